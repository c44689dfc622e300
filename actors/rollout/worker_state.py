"""The health of one rollout worker: a pure state machine with an injected clock.

::

    STARTING -> STALE -> HEALTHY <-> SUSPECT -> DEAD -> STARTING
                           |
                           +-> DRAINING -> RETIRED

Whatever is alive can die, so STARTING, STALE and HEALTHY lead to DEAD as well. Three ways are left
out on purpose: from DEAD to HEALTHY (a dead worker was killed; its successor starts with old
weights and is STALE until it is synced), from HEALTHY to STALE (a worker that misses a sync is
DEAD), and out of RETIRED.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

Clock = Callable[[], float]  # seconds, from any origin, never backwards


class WorkerState(StrEnum):
    """Where a worker is in its life; only a HEALTHY one is given work."""

    STARTING = "starting"
    STALE = "stale"  # the engine runs, its weights are not known to be the current ones
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # silent for a while, or it just failed; keeps its work, gets no more
    DEAD = "dead"
    DRAINING = "draining"  # finishes its work and gets no more
    RETIRED = "retired"


TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.STALE, WorkerState.DEAD}),
    WorkerState.STALE: frozenset({WorkerState.HEALTHY, WorkerState.DEAD}),
    WorkerState.HEALTHY: frozenset({WorkerState.SUSPECT, WorkerState.DEAD, WorkerState.DRAINING}),
    WorkerState.SUSPECT: frozenset({WorkerState.HEALTHY, WorkerState.DEAD}),
    WorkerState.DEAD: frozenset({WorkerState.STARTING}),
    WorkerState.DRAINING: frozenset({WorkerState.RETIRED}),
    WorkerState.RETIRED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A change of state that ``TRANSITIONS`` does not have."""


class WorkerHealth:
    """State of one worker, and when it last gave a sign of life.

    Args:
        suspect_after_s: seconds of silence that make a HEALTHY worker SUSPECT.
        dead_after_s: seconds of silence that make a SUSPECT worker DEAD.
        clock: time in seconds.

    Raises:
        ValueError: ``dead_after_s`` is not the longer one.
    """

    def __init__(self, suspect_after_s: float, dead_after_s: float, clock: Clock) -> None:
        if dead_after_s <= suspect_after_s:
            raise ValueError(
                f"dead_after_s ({dead_after_s}) must be longer than suspect_after_s "
                f"({suspect_after_s})"
            )
        self.suspect_after_s = suspect_after_s
        self.dead_after_s = dead_after_s
        self._clock = clock
        self._heard_at = clock()
        self.state = WorkerState.STARTING

    def started(self) -> None:
        """The engine is up, with whatever weights it was built from."""
        self._move(WorkerState.STALE)
        self._heard_at = self._clock()

    def synced(self) -> None:
        """A STALE worker has loaded the current weights."""
        self._require(WorkerState.STALE)
        self._move(WorkerState.HEALTHY)
        self._heard_at = self._clock()

    def heartbeat(self) -> None:
        """The worker answered; a SUSPECT one is HEALTHY again.

        Raises:
            IllegalTransition: the worker is DEAD or RETIRED, so nothing of it may be believed.
        """
        if self.state in (WorkerState.DEAD, WorkerState.RETIRED):
            raise IllegalTransition(f"a {self.state} worker gave a sign of life")
        self._heard_at = self._clock()
        if self.state is WorkerState.SUSPECT:
            self._move(WorkerState.HEALTHY)

    def failed(self) -> None:
        """A call to the worker failed; a HEALTHY one is SUSPECT until it gives a sign of life."""
        if self.state is WorkerState.HEALTHY:
            self._move(WorkerState.SUSPECT)

    def tick(self) -> None:
        """Let silence have its effect."""
        silence_s = self._clock() - self._heard_at
        if self.state is WorkerState.HEALTHY and silence_s > self.suspect_after_s:
            self._move(WorkerState.SUSPECT)
        if self.state is WorkerState.SUSPECT and silence_s > self.dead_after_s:
            self._move(WorkerState.DEAD)

    def lost(self) -> None:
        """The worker is gone, or must not be trusted any more."""
        self._move(WorkerState.DEAD)

    def restarted(self) -> None:
        """A successor takes the place of a DEAD worker."""
        self._move(WorkerState.STARTING)
        self._heard_at = self._clock()

    def drain(self) -> None:
        """No more work for a HEALTHY worker; what it has it finishes."""
        self._move(WorkerState.DRAINING)

    def retired(self) -> None:
        """A DRAINING worker has nothing left to do."""
        self._move(WorkerState.RETIRED)

    def _require(self, state: WorkerState) -> None:
        if self.state is not state:
            raise IllegalTransition(f"a {self.state} worker is not {state}")

    def _move(self, target: WorkerState) -> None:
        if target not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"no way from {self.state} to {target}")
        self.state = target
