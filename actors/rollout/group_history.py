"""What befell one group of samples: whether it has to be alone in an engine, when it is given up."""

from __future__ import annotations

from dataclasses import dataclass

from actors.rollout.worker import EngineCrashed, WorkerLost

_MOST_CRASHES = 2
_MOST_LOSSES = 20
_LOSSES_IN_COMPANY = 3


@dataclass(eq=False, slots=True)
class GroupHistory:
    """Failures over one group, of all its copies.

    An engine that ends by an error of its own may have been ended by any of the groups that it had.
    So each of them goes on alone in an engine, and one that ends a second engine that way is at
    fault and is given up; its neighbors then end well. An engine that was killed from outside says
    nothing about its groups: these are asked again in company at first, and far more often.

    Attributes:
        failed_calls: to workers that are still alive.
        losses: workers that ended over it.
        crashes: those of them that ended by themselves.
        last: the last failure, in one line.
    """

    failed_calls: int = 0
    losses: int = 0
    crashes: int = 0
    last: str = ""

    def add(self, worker: int, error: Exception, text: str) -> None:
        """Worker number ``worker`` failed on the group by ``error``, which ``text`` tells."""
        self.last = f"worker {worker}: {text}"
        if not isinstance(error, WorkerLost):
            self.failed_calls += 1
            return
        self.losses += 1
        if isinstance(error, EngineCrashed):
            self.crashes += 1

    @property
    def is_at_fault(self) -> bool:
        """Whether it crashed engine after engine, alone in the last one: a fault of the request,
        not of the engines.
        """
        return self.crashes >= _MOST_CRASHES

    @property
    def must_be_alone(self) -> bool:
        """Whether it may have ended an engine, and others must not be there if it does so again."""
        return self.crashes > 0 or self.losses >= _LOSSES_IN_COMPANY

    def given_up(self, most_failed_calls: int) -> str | None:
        """Why it is not to be asked for again; None: it is."""
        if self.is_at_fault:
            return f"{self.crashes} engines crashed on it; {self.last}"
        if self.losses >= _MOST_LOSSES:
            return f"{self.losses} engines died while working on it; {self.last}"
        if self.failed_calls >= most_failed_calls:
            return f"given up after {self.failed_calls} failed calls; {self.last}"
        return None
