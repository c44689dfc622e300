"""What a person sees while a run goes on: one bar per phase, live figures of a training, notes
above them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from bi_ray.files.errors import RunError
from bi_ray.runs.metrics import is_validation, last_figures, read_steps

# What is shown of a row of metrics, and how.
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
_PLAIN_S = 30.0  # between two lines about the same phase where the output is no terminal


class _Bars(Progress):
    """A bar with the live figures on a line of their own, where they have room."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text(f"  {task.fields['figures']}", style="dim")


class Display:
    """Bars in a terminal; a plain line every half minute where the output goes to a file or a job's
    log.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._task: Any = None
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
        terminal = self.console.is_terminal
        with _Bars(
            *columns, console=self.console, transient=True, disable=not terminal
        ) as self._progress:
            self._task = self._progress.add_task(title, total=total, figures="")
            try:
                yield
            finally:
                self._progress = None
        self.note(f"{title}: {time.monotonic() - began:.0f} s")

    def advance(self) -> None:
        """One unit of the current phase is done."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def set(self, done: int, total: int | None = None, figures: str = "") -> None:
        """The current phase is that far."""
        if self._progress is None:
            return
        self._progress.update(self._task, completed=done, total=total, figures=figures)
        if self._progress.disable and time.monotonic() - self._line_at >= _PLAIN_S:
            self._line_at = time.monotonic()
            count = f"{done}/{total}  " if total else f"{done}  " if done else ""
            self.note(f"{self._progress.tasks[self._task].description}: {count}{figures}".rstrip())

    @contextmanager
    def training(self, title: str, steps: int, metrics: Path) -> Iterator[None]:
        """A training that appends a row to ``metrics`` after each step, followed from a thread."""
        stop = threading.Event()

        def follow() -> None:
            told, damage = 0, ""
            while not stop.wait(_TAIL_S):
                try:
                    rows = read_steps(metrics)
                except (RunError, OSError) as error:  # the training itself is not disturbed
                    if str(error) != damage:
                        self.note(f"figures are not shown: {error}")
                    damage = str(error)
                    continue
                if row := last_figures(rows):
                    self.set(row["step"], steps, figures_of(row))
                for fresh in rows[told:]:
                    if fresh.get("learned_samples") == 0:
                        self.note(empty_step(fresh))
                told = len(rows)

        with self.task(title, steps):
            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()


def empty_step(row: dict[str, Any]) -> str:
    """Why a step had nothing to learn from."""
    groups, failed = row.get("groups", 0), row.get("failed_groups", 0)
    why = (
        f"the samples of each of its {groups} groups were rewarded alike (reward {row.get('reward', 0):.2f})"
        if groups
        else f"no group was left: {failed} were lost to workers, {row.get('data_failures', 0)} samples had no verdict"
    )
    return f"step {row['step']} changed nothing: {why}"


def figures_of(row: dict[str, Any]) -> str:
    """The figures of a metrics row in one line, greedy accuracy on the validation sets at its end."""
    shown = [form.format(row[name]) for name, form in _SHOWN.items() if name in row]
    greedy = [name for name in row if is_validation(name) and name.endswith("/greedy")]
    return "  ".join([*shown, *(f"{name.split('/')[1]} {row[name]:.1%}" for name in greedy)])
