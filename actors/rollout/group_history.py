"""The failures over one group of samples, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

from actors.rollout.handle import EngineCrashed, WorkerLost, describe

_MOST_CRASHES = 2
_MOST_LOSSES = 20
_LOSSES_IN_COMPANY = 3


@dataclass(eq=False, slots=True)
class GroupHistory:
    """Failures over one group, of all its copies.

    An engine that ends by an error of its own may have been ended by any of the groups that it had.
    So each of them continues alone in an engine, and one that ends a second engine that way is at
    fault and is given up; its neighbors then finish well. An engine that was killed from outside
    proves nothing about its groups: these are asked for again in company at first, and far more
    often.

    Attributes:
        failed_calls: calls that failed although the worker lives.
        losses: workers that ended over it.
        crashes: those of them that ended by themselves.
        last: the last failure, in one line.
    """

    failed_calls: int = 0
    losses: int = 0
    crashes: int = 0
    last: str = ""

    def add(self, worker: int, error: Exception) -> None:
        """Worker number ``worker`` failed on the group."""
        self.last = f"worker {worker}: {describe(error)}"
        if not isinstance(error, WorkerLost):
            self.failed_calls += 1
            return
        self.losses += 1
        if isinstance(error, EngineCrashed):
            self.crashes += 1

    @property
    def is_at_fault(self) -> bool:
        """Whether it crashed engine after engine, alone in the last one."""
        return self.crashes >= _MOST_CRASHES

    @property
    def must_be_alone(self) -> bool:
        """Whether it may have ended an engine, so that the next one must not have other groups."""
        return self.crashes > 0 or self.losses >= _LOSSES_IN_COMPANY

    def given_up(self, most_failed_calls: int) -> str | None:
        """Why it is not asked for again; None: it is."""
        if self.is_at_fault:
            return f"{self.crashes} engines crashed on it; {self.last}"
        if self.losses >= _MOST_LOSSES:
            return f"{self.losses} engines died while working on it; {self.last}"
        if self.failed_calls >= most_failed_calls:
            return f"given up after {self.failed_calls} failed calls; {self.last}"
        return None
