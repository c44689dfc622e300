"""Routing: which worker gets which group.

Work goes to the HEALTHY worker with the fewest sequences outstanding, up to ``max_sequences`` per
worker; the rest waits here, first come, first served.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from actors.rollout.member import Member, new_future
from actors.rollout.worker_state import Clock, WorkerState


class PoolError(RuntimeError):
    """The pool cannot do its work any more; the message says what to change."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A group that waits for a worker.

    Attributes:
        samples: sequences that it will have outstanding.
        avoid: numbers of members that failed on it.
        member: done with the member that it gets.
        only_others: rather wait than take one of ``avoid``.
        alone: it must be the only group that the worker has.
    """

    samples: int
    avoid: frozenset[int]
    member: asyncio.Future[Member]
    only_others: bool = False
    alone: bool = False

    def given_member(self) -> Member | None:
        """The member that it got; None while it waits, or once it was cancelled or failed."""
        member = self.member
        if not member.done() or member.cancelled() or member.exception() is not None:
            return None
        return member.result()


class WorkerQueue:
    """The members of a pool, and the groups that wait for one of them.

    Args:
        max_sequences: a member with this many sequences outstanding gets no more.
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
        """Wait for a worker with room; the room is taken when this returns.

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
        waiting = _Waiting(samples, avoid, new_future(), only_others, alone)
        self._waiting.append(waiting)
        self.dispatch()
        try:
            return await waiting.member
        except asyncio.CancelledError:
            member = waiting.given_member()
            if member is not None:
                self.release(member, samples)
            raise

    def release(self, member: Member, samples: int) -> None:
        """Give back the room for ``samples`` sequences."""
        member.outstanding -= samples
        if not member.outstanding:
            member.is_taken = False
            self._stop_counting(member)
        self.dispatch()

    def _stop_counting(self, member: Member) -> None:
        if member.busy_since is not None:
            member.busy_s += self._clock() - member.busy_since
            member.busy_since = None

    def dispatch(self) -> None:
        """Give waiting groups to workers with room, the oldest group first."""
        held_back: list[_Waiting] = []  # nobody with room may have them yet
        reserved: set[int] = set()  # members that get nothing new until a group can be alone there
        while self._waiting and self._with_room(reserved):
            waiting = self._waiting.popleft()
            if waiting.member.done():  # its caller was cancelled
                continue
            if not self._place(waiting, reserved):
                held_back.append(waiting)
        self._waiting.extendleft(reversed(held_back))

    def _place(self, waiting: _Waiting, reserved: set[int]) -> bool:
        """Give a group to a worker; False if none can have it now.

        A group that must be alone then has a worker reserved for it.
        """
        willing = self._willing(waiting, reserved)
        if not willing:
            return False
        if not waiting.alone:
            self._give(waiting, min(willing, key=_load))
            return True
        idle = [member for member in willing if not member.outstanding]
        if idle:
            self._give(waiting, min(idle, key=_load))
            return True
        reserved.add(min(willing, key=_load).number)
        return False

    def _willing(self, waiting: _Waiting, reserved: set[int]) -> list[Member]:
        """Members with room that the group may have; those to avoid are the last resort."""
        with_room = self._with_room(reserved)
        others = _without(with_room, waiting.avoid)
        if others or waiting.only_others:
            return others
        if _without(self._healthy(), waiting.avoid):
            return []  # it waits for one of these
        return with_room

    def _give(self, waiting: _Waiting, member: Member) -> None:
        member.outstanding += waiting.samples
        member.is_taken = waiting.alone
        if member.busy_since is None:
            member.busy_since = self._clock()
        waiting.member.set_result(member)

    def other_has_room(self, member: Member) -> bool:
        """Whether a worker other than this one could begin at once."""
        if self._waiting:
            return False
        return bool(_without(self._with_room(set()), {member.number}))

    def fail(self, reason: str) -> None:
        """Raise ``PoolError`` for every group that waits or comes, until ``recover``."""
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
        """Why nothing can be done; None: it can."""
        return self._fault

    def busy_s(self) -> dict[int, float]:
        """Seconds for which each worker had anything to do since it was added, by its number."""
        now = self._clock()
        seconds: dict[int, float] = {}
        for member in self.members:
            seconds[member.number] = member.busy_s
            if member.busy_since is not None:
                seconds[member.number] += now - member.busy_since
        return seconds

    def _healthy(self) -> list[Member]:
        return [member for member in self.members if member.state is WorkerState.HEALTHY]

    def _with_room(self, reserved: set[int]) -> list[Member]:
        """Members that can take another group, without those of ``reserved``."""
        return [member for member in _without(self._healthy(), reserved) if self._has_room(member)]

    def _has_room(self, member: Member) -> bool:
        return member.outstanding < self._max_sequences and not member.is_taken


def _without(members: list[Member], numbers: set[int] | frozenset[int]) -> list[Member]:
    return [member for member in members if member.number not in numbers]


def _load(member: Member) -> tuple[int, int]:
    """Sort key: work goes to the member with the smallest."""
    return member.outstanding, member.number
