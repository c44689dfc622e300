"""The display of a running command: a bar per phase, live figures of a training, notes above."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from bi_ray.runs.metrics import is_validation, last_figures, read_steps

log = logging.getLogger(__name__)

# The figures of a metrics row that are shown, and how.
_SHOWN = {
    "reward": "reward {:.2f}",
    "informative_share": "informative {:.0%}",
    "loss": "loss {:.3f}",
    "tokens_per_s": "{:,.0f} tok/s",
    "generate_s": "generate {:.1f} s",
    "compute_s": "train {:.1f} s",
    "sync_s": "sync {:.2f} s",
    "mismatch_max": "mismatch {:.0e}",
}
_TAIL_S = 0.5
_PLAIN_S = 30.0  # between two lines about the same phase where the output is not a terminal


class _Bars(Progress):
    """A bar with the live figures on a line of their own, where they have room."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text(f"  {task.fields['figures']}", style="dim")


class Display:
    """Bars in a terminal; a plain line every half minute in a file or a job's log.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars: _Bars | None = None  # of the current phase
        self._task = TaskID(0)
        self._line_at = 0.0

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[None]:
        """A phase with a bar, from its beginning to its end."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        began = self._line_at = time.monotonic()
        hidden = not self.console.is_terminal
        with _Bars(*columns, console=self.console, transient=True, disable=hidden) as self._bars:
            self._task = self._bars.add_task(title, total=total, figures="")
            try:
                yield
            finally:
                self._bars = None
        self.note(f"{title}: {time.monotonic() - began:.0f} s")

    def advance(self) -> None:
        """One unit of the current phase is done."""
        if self._bars is not None:
            self._bars.advance(self._task)

    def set(self, done: int, total: int | None = None, figures: str = "") -> None:
        """Show how far the current phase is, and the figures of its last step."""
        if self._bars is None:
            return
        self._bars.update(self._task, completed=done, total=total, figures=figures)
        is_due = time.monotonic() - self._line_at >= _PLAIN_S
        if self._bars.disable and is_due:
            self._line_at = time.monotonic()
            title = self._bars.tasks[self._task].description
            self.note(f"{title}: {_count(done, total)}{figures}".rstrip())

    @contextmanager
    def training(self, title: str, steps: int, metrics: Path) -> Iterator[None]:
        """A training that appends a row to ``metrics`` after each step, followed from a thread."""
        follower = _Follower(self, steps, metrics)
        with self.task(title, steps):
            follower.start()
            try:
                yield
            finally:
                follower.stop()


class _Follower:
    """A thread that shows the figures of a training as its metrics file grows."""

    def __init__(self, display: Display, steps: int, metrics: Path) -> None:
        self._display = display
        self._steps = steps
        self._metrics = metrics
        self._rows_shown = 0
        self._damage = ""  # that was noted last
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_TAIL_S):
            try:
                self._show(read_steps(self._metrics))
            except Exception as error:  # whatever it is, the training itself is not disturbed
                self._note_damage(error)

    def _show(self, rows: list[dict[str, Any]]) -> None:
        last = last_figures(rows)
        if last:
            self._display.set(last["step"], self._steps, figures_line(last))
        for row in rows[self._rows_shown :]:
            if row.get("learned_samples") == 0:
                self._display.note(empty_step(row))
        self._rows_shown = len(rows)

    def _note_damage(self, error: Exception) -> None:
        if str(error) == self._damage:
            return
        self._damage = str(error)
        log.warning("figures of %s are not shown", self._metrics, exc_info=error)
        self._display.note(f"figures are not shown: {error}")


def _count(done: int, total: int | None) -> str:
    if total:
        return f"{done}/{total}  "
    if done:
        return f"{done}  "
    return ""


def empty_step(row: Mapping[str, Any]) -> str:
    """Why a step had nothing to learn from, in a line."""
    groups = row.get("groups", 0)
    if groups:
        reward = row.get("reward", 0)
        why = f"all samples of each of its {groups} groups had the same reward ({reward:.2f})"
    else:
        lost, unjudged = row.get("failed_groups", 0), row.get("data_failures", 0)
        why = f"no group was left: {lost} were lost to workers, {unjudged} samples had no verdict"
    return f"step {row['step']} changed nothing: {why}"


def figures_line(row: Mapping[str, Any]) -> str:
    """The figures of a metrics row in one line; greedy accuracy in validations comes last."""
    shown = [form.format(row[name]) for name, form in _SHOWN.items() if name in row]
    for name, value in row.items():
        if is_validation(name) and name.endswith("/greedy"):
            shown.append(f"{name.split('/')[1]} {value:.1%}")
    return "  ".join(shown)
