"""Which worker gets which group: the members of the rollout pool, and the groups that wait for one
of them.

Work goes to the HEALTHY worker with the fewest sequences outstanding, at most ``max_sequences`` at
a time; the rest waits here, first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from actors.rollout.health import Clock, WorkerHealth, WorkerState
from actors.rollout.worker import WorkerHandle, WorkerInfo, WorkerLost
from bi_ray.policy.version import PolicyVersion


class PoolError(RuntimeError):
    """The pool cannot do its work any more; the message says what to change."""


def _new_future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class Member:
    """A place in the pool. Its worker may be replaced; ``lost`` then belongs to the successor.

    Attributes:
        number: names the place.
        handle: of its worker, once there is one.
        health: of its worker.
        lost: done when the worker has ended, with what ended it.
        outstanding: sequences that it has in work.
        is_taken: a group that must be alone has it.
    """

    number: int
    health: WorkerHealth
    handle: WorkerHandle | None = None
    lost: asyncio.Future[WorkerLost] = field(default_factory=_new_future)
    info: WorkerInfo | None = None
    version: PolicyVersion | None = None
    outstanding: int = 0
    is_taken: bool = False
    generated_tokens: int = 0
    busy_s: float = 0.0  # with anything outstanding, up to `busy_since` if that is set
    busy_since: float | None = None
    restarts: int = 0
    task: asyncio.Task[None] | None = None  # brings the worker up, or drains it

    def let_go(self, loss: WorkerLost) -> None:
        """Whoever waits for an answer of its worker waits no longer."""
        if not self.lost.done():
            self.lost.set_result(loss)

    def end(self, loss: WorkerLost) -> None:
        """Let go of whoever waits for an answer of its worker, and kill it."""
        self.let_go(loss)
        if self.handle is not None:
            self.handle.kill()

    def restart(self) -> None:
        """Make room for a successor of a DEAD worker."""
        self.health.restarted()
        self.handle = self.info = self.version = None
        self.lost = _new_future()
        self.restarts += 1

    @property
    def state(self) -> WorkerState:
        """Of its worker."""
        return self.health.state

    def row(self) -> dict[str, Any]:
        """What is known of it, in plain values."""
        info = self.info
        return {
            "worker": self.number,
            "state": str(self.state),
            "version": str(self.version) if self.version else None,
            "outstanding": self.outstanding,
            "generated_tokens": self.generated_tokens,
            "restarts": self.restarts,
            "node": info.node_id if info else None,
            "pid": info.pid if info else None,
            "engine_pid": info.engine_pid if info else None,
        }


@dataclass(eq=False, slots=True)
class _Waiting:
    """A group that wants a worker, preferably none of those that failed on it."""

    samples: int
    avoid: frozenset[int]
    member: asyncio.Future[Member]
    only_others: bool = False  # rather none than one of those
    alone: bool = False  # it must be the only one that the worker has


class WorkerQueue:
    """Members, and groups in front of them.

    Args:
        max_sequences: that a member has outstanding at most before it is passed over.
        clock: time in seconds.
    """

    def __init__(self, max_sequences: int, clock: Clock) -> None:
        self.members: list[Member] = []
        self._max_sequences = max_sequences
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._fault: str | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(
        self, samples: int, avoid: frozenset[int], only_others: bool = False, alone: bool = False
    ) -> Member:
        """Wait for a worker with room; its room is taken when this returns.

        Args:
            samples: sequences that it will have outstanding.
            avoid: numbers of members to ask only when no other one is in service.
            only_others: not even then.
            alone: the worker must have nothing else, until this is released.

        Raises:
            PoolError: there is no worker, or none is left.
        """
        if self._fault is not None:
            raise PoolError(self._fault)
        if not self.members:
            raise PoolError(
                "the pool has no rollout worker; start it first, or see the log for why they ended"
            )
        waiting = _Waiting(samples, avoid, _new_future(), only_others, alone)
        self._waiting.append(waiting)
        self.dispatch()
        try:
            return await waiting.member
        except asyncio.CancelledError:
            if (
                waiting.member.done()
                and not waiting.member.cancelled()
                and waiting.member.exception() is None
            ):
                self.release(waiting.member.result(), samples)
            raise

    def release(self, member: Member, samples: int) -> None:
        """Give back the room for ``samples`` sequences."""
        member.outstanding -= samples
        if not member.outstanding:
            member.is_taken = False
            if member.busy_since is not None:
                member.busy_s += self._clock() - member.busy_since
                member.busy_since = None
        self.dispatch()

    def dispatch(self) -> None:
        """Give waiting groups to workers with room, the oldest group first."""
        held_back: list[_Waiting] = []  # only workers that failed on it have room
        emptied: set[int] = set()  # members that get nothing new, until a group can be alone there
        while self._waiting and self._free(emptied):
            waiting = self._waiting.popleft()
            if waiting.member.done():  # its caller was cancelled
                continue
            willing = self._willing(waiting, emptied)
            free = [member for member in willing if not waiting.alone or not member.outstanding]
            if free:
                self._give(waiting, min(free, key=_load))
                continue
            held_back.append(waiting)
            if waiting.alone and willing:
                emptied.add(min(willing, key=_load).number)
        self._waiting.extendleft(reversed(held_back))

    def _willing(self, waiting: _Waiting, emptied: set[int]) -> list[Member]:
        """Members with room that the group may have: where it can be, none that failed on it."""
        free = self._free(emptied)
        others = [member for member in free if member.number not in waiting.avoid]
        if others or waiting.only_others:
            return others
        if any(member.number not in waiting.avoid for member in self._serving()):
            return []  # it waits for one of these
        return free

    def _give(self, waiting: _Waiting, member: Member) -> None:
        member.outstanding += waiting.samples
        member.is_taken = waiting.alone
        if member.busy_since is None:
            member.busy_since = self._clock()
        waiting.member.set_result(member)

    def other_has_room(self, member: Member | None) -> bool:
        """Whether a worker other than this one could begin at once."""
        return not self._waiting and any(other is not member for other in self._free())

    def fail(self, reason: str) -> None:
        """Whatever waits gets a ``PoolError``, and so does what comes, until ``recover``."""
        self._fault = reason
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.member.done():
                waiting.member.set_exception(PoolError(reason))

    def recover(self) -> None:
        """There is a worker again."""
        self._fault = None

    @property
    def fault(self) -> str | None:
        """Why nothing can be done, where that is so."""
        return self._fault

    def busy_s(self) -> dict[int, float]:
        """For how long each worker had anything to do since it was added, in seconds, by its
        number.
        """
        now = self._clock()
        return {
            member.number: member.busy_s
            + (0.0 if member.busy_since is None else now - member.busy_since)
            for member in self.members
        }

    def _serving(self) -> list[Member]:
        return [member for member in self.members if member.state is WorkerState.HEALTHY]

    def _free(self, emptied: set[int] | frozenset[int] = frozenset()) -> list[Member]:
        return [
            member
            for member in self._serving()
            if member.outstanding < self._max_sequences
            and not member.is_taken
            and member.number not in emptied
        ]


def _load(member: Member) -> tuple[int, int]:
    """Work goes to the smallest."""
    return member.outstanding, member.number
