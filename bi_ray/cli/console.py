"""The terminal as all commands share it: one console, plain text, and a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from bi_ray.runs.display import Display

console = Console()
_ROWS_PER_UPDATE = 200


class ShowProgress(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, figures: str = "") -> None:
        """Show how many rows are done, and a text beside the bar."""


def say(text: str) -> None:
    """Print text as it is: no markup, no highlighting, no line breaks at the terminal's edge."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[ShowProgress]:
    """Show a bar while the block runs; it moves once per 200 rows, not with each.

    Args:
        title: what is being made.
        total: number of rows; None: unknown.
    """
    display = Display(console)

    def show_progress(done: int, figures: str = "") -> None:
        if figures or done % _ROWS_PER_UPDATE == 0 or done == total:
            display.set(done, total, figures)

    with display.task(title, total):
        yield show_progress
