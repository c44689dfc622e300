"""What the driver is doing, for the command to show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """The phase that the driver is in. Its parts write it, ``Driver.progress`` reads it.

    Attributes:
        phase: what is being done.
        done: finished units of it.
        total: all units; None where that is not known.
    """

    phase: str = ""
    done: int = 0
    total: int | None = None

    def report(self, phase: str, done: int = 0, total: int | None = None) -> None:
        """Set everything at once."""
        self.phase = phase
        self.done = done
        self.total = total
