"""What a person sees while a run goes on: one bar per phase, live figures of a training, notes above them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bi_ray.metrics import read_metrics

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


class Display:
    """Progress in the terminal; plain lines where the output is no terminal.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._task: Any = None

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
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            self._task = self._progress.add_task(title, total=total, figures="")
            yield
            elapsed = self._progress.tasks[self._task].elapsed or 0.0
        self._progress = None
        self.note(f"{title}: {elapsed:.0f} s")

    def advance(self) -> None:
        """One unit of the current phase is done."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def set(self, done: int, total: int | None = None, figures: str = "") -> None:
        """The current phase is that far."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, figures=figures)

    @contextmanager
    def training(self, title: str, steps: int, metrics: Path) -> Iterator[None]:
        """A training that appends a row to ``metrics`` after each step, followed from a thread."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(_TAIL_S):
                rows = read_metrics(metrics)
                if rows:
                    self.set(rows[-1]["step"], steps, figures_of(rows[-1]))

        with self.task(title, steps):
            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()


def figures_of(row: dict[str, Any]) -> str:
    """The figures of a metrics row in one line."""
    return "  ".join(form.format(row[name]) for name, form in _SHOWN.items() if name in row)
