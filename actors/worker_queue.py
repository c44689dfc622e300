"""Which worker gets which group: the members of the rollout pool, and the groups that wait for one of them.

Work goes to the HEALTHY worker with the fewest sequences outstanding, at most ``max_sequences`` at a time; the rest
waits here, first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from actors.health import Clock, WorkerHealth, WorkerState
from actors.rollout_worker import WorkerHandle, WorkerInfo
from bi_ray.policy.rollout import PolicyVersion


class PoolError(RuntimeError):
    """The pool cannot do its work any more; the message says what to change."""


@dataclass(eq=False, slots=True)
class Member:
    """A place in the pool. Its worker may be replaced by a successor; ``lost`` then belongs to the successor."""

    number: int
    handle: WorkerHandle
    health: WorkerHealth
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    info: WorkerInfo | None = None
    version: PolicyVersion | None = None
    outstanding: int = 0  # sequences
    generated_tokens: int = 0
    busy_s: float = 0.0  # with anything outstanding, up to `busy_since` if that is set
    busy_since: float | None = None
    restarts: int = 0
    task: asyncio.Task[None] | None = None  # brings the worker up, or drains it

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

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(self, samples: int, avoid: frozenset[int], only_others: bool = False) -> Member:
        """Wait for a worker with room; its room is taken when this returns.

        Args:
            samples: sequences that it will have outstanding.
            avoid: numbers of members to ask only when no other one is in service.
            only_others: not even then.

        Raises:
            PoolError: there is no worker, or none is left.
        """
        if not self.members:
            raise PoolError("the pool has no rollout worker; start it first, or see the log for why they ended")
        waiting = _Waiting(samples, avoid, asyncio.get_running_loop().create_future(), only_others)
        self._waiting.append(waiting)
        self.dispatch()
        try:
            return await waiting.member
        except asyncio.CancelledError:
            if waiting.member.done() and not waiting.member.cancelled() and waiting.member.exception() is None:
                self.release(waiting.member.result(), samples)
            raise

    def release(self, member: Member, samples: int) -> None:
        """Give back the room for ``samples`` sequences."""
        member.outstanding -= samples
        if not member.outstanding and member.busy_since is not None:
            member.busy_s += self._clock() - member.busy_since
            member.busy_since = None
        self.dispatch()

    def dispatch(self) -> None:
        """Give waiting groups to workers with room, the oldest group first."""
        held_back: list[_Waiting] = []  # only workers that failed on it have room
        while self._waiting and self._free(self._serving()):
            waiting = self._waiting.popleft()
            if waiting.member.done():  # its caller was cancelled
                continue
            willing = [member for member in self._serving() if member.number not in waiting.avoid]
            free = self._free(willing if willing or waiting.only_others else self._serving())
            if not free:
                held_back.append(waiting)
                continue
            member = min(free, key=lambda member: (member.outstanding, member.number))
            member.outstanding += waiting.samples
            if member.busy_since is None:
                member.busy_since = self._clock()
            waiting.member.set_result(member)
        self._waiting.extendleft(reversed(held_back))

    def other_has_room(self, member: Member | None) -> bool:
        """Whether a worker other than this one could begin at once."""
        return not self._waiting and any(other is not member for other in self._free(self._serving()))

    def fail(self, reason: str) -> None:
        """Whatever waits gets a ``PoolError``."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.member.done():
                waiting.member.set_exception(PoolError(reason))

    def busy_s(self) -> dict[int, float]:
        """For how long each worker had anything to do since it was added, in seconds, by its number."""
        now = self._clock()
        return {
            member.number: member.busy_s + (0.0 if member.busy_since is None else now - member.busy_since)
            for member in self.members
        }

    def _serving(self) -> list[Member]:
        return [member for member in self.members if member.state is WorkerState.HEALTHY]

    def _free(self, members: list[Member]) -> list[Member]:
        return [member for member in members if member.outstanding < self._max_sequences]
