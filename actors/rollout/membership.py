"""The workers of a pool: how they come, take part in syncs, are replaced, and leave.

One lock separates syncs from changes of membership: a new worker is admitted between two syncs,
with current weights.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from actors.rollout.background import start_watched
from actors.rollout.handle import (
    INITIAL_VERSION,
    WORKER_FAULTS,
    WorkerHandle,
    WorkerLost,
    describe,
)
from actors.rollout.member import Member
from actors.rollout.queue import PoolError, WorkerQueue
from actors.rollout.worker_state import Clock, WorkerHealth, WorkerState
from actors.weights.base import Announcement, WeightSyncError
from bi_ray.config.rollout import RolloutConfig

log = logging.getLogger(__name__)
_FIRST_ATTEMPTS = 3  # at starting a worker, before the pool does not start
_LONGEST_PAUSE_S = 60.0  # between two attempts later on
_DRAIN_POLL_S = 0.05
_SYNC_FAULTS = (WeightSyncError, *WORKER_FAULTS)  # anything else that a sync raises is a bug


@dataclass(slots=True)
class Tally:
    """What a pool counts.

    Attributes:
        failures: of workers and groups, by kind.
        redispatched: groups that got a second copy because the first took long.
    """

    failures: Counter[str] = field(default_factory=Counter)
    redispatched: int = 0


class Membership:
    """The members of a pool.

    Args:
        make_worker: makes a handle for a new worker, without waiting for anything.
        config: deadlines and pauses.
        clock: time in seconds for the health of the workers.

    Attributes:
        queue: routes groups to the members.
        tally: what was counted.
        version: the weights that engines in service have, or are being brought to.
        start_fault: why a worker last failed to start; empty at first.
    """

    def __init__(
        self, make_worker: Callable[[], WorkerHandle], config: RolloutConfig, clock: Clock
    ) -> None:
        self.queue = WorkerQueue(config.max_sequences, clock)
        self.members = self.queue.members
        self.tally = Tally()
        self.version = INITIAL_VERSION
        self.start_fault = ""
        self._make_worker = make_worker
        self._config = config
        self._clock = clock
        self._announcement: Announcement | None = None
        self._numbers = itertools.count(1)
        self._has_started = False
        self._lock = asyncio.Lock()

    # Start, scale and close

    async def start(self, workers: int) -> None:
        """See ``RolloutPool.start``; members that did come up stay after an error."""
        for _ in range(workers):
            self._add()
        await asyncio.gather(*(member.task for member in self.members if member.task))
        missing = workers - len(self.members)
        if missing:
            raise PoolError(
                f"{missing} of {workers} rollout workers did not start: {self.start_fault}"
            )
        self._has_started = True

    async def scale(self, workers: int) -> None:
        """See ``RolloutPool.scale``."""
        if workers < 1:
            raise PoolError(f"{workers} rollout workers cannot do any work; scale to 1 or more")
        async with self._lock:
            staying = [
                member for member in self.members if member.state is not WorkerState.DRAINING
            ]
            for _ in range(workers - len(staying)):
                self._add()
            surplus = max(0, len(staying) - workers)
            for member in sorted(staying, key=_usefulness)[:surplus]:
                self._dismiss(member)

    async def close(self) -> None:
        """End all workers and everything that waits for them."""
        members = list(self.members)
        self.members.clear()
        for member in members:
            if member.task is not None:
                member.task.cancel()
        await asyncio.gather(*(self._end(member) for member in members))
        self.queue.fail("the pool was closed")

    # A worker comes

    def _add(self) -> None:
        config = self._config
        health = WorkerHealth(config.suspect_after_s, config.dead_after_s, self._clock)
        member = Member(next(self._numbers), health)
        self.members.append(member)
        self._begin_to_bring_up(member)

    def _begin_to_bring_up(self, member: Member) -> None:
        def give_up(error: BaseException) -> None:
            self.start_fault = describe(error)
            self._forget(member)

        name = f"start of rollout worker {member.number}"
        member.task = start_watched(self._bring_up(member), name, give_up)

    async def _bring_up(self, member: Member) -> None:
        """Start a worker and admit it; after a failure start another one, with growing pauses.

        A place is given up only while the pool itself starts, so that a run that cannot work ends
        at once.
        """
        for attempt in itertools.count(1):
            try:
                await self._start_worker(member)
            except Exception as error:  # whatever went wrong, this worker is of no use
                self.start_fault = describe(error)
                self.count("start", member, error)
                self._bury(member, WorkerLost("it did not start"))
                is_last = _is_hopeless(error) or attempt == _FIRST_ATTEMPTS
                if is_last and not self._has_started:
                    self._forget(member)
                    return
                await self._pause(member, attempt)
                member.restart()
            else:
                break
        if member.restarts:
            number = member.number
            log.warning("rollout worker %d is in service again", number, extra={"worker": number})
        self.queue.recover()
        self.queue.dispatch()

    async def _start_worker(self, member: Member) -> None:
        member.handle = self._make_worker()
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                member.info = await member.handle.start()
        except TimeoutError as error:
            raise TimeoutError(self._late_start()) from error
        member.health.started()
        await self._admit(member)

    async def _admit(self, member: Member) -> None:
        """Between two syncs, give a STALE worker the current weights; then it is HEALTHY."""
        async with self._lock:
            if self._announcement is not None:
                announcement = self._announcement.for_worker(0)
                await member.load(announcement, self._config.sync_timeout_s)
            member.version = self.version
            member.health.synced()

    async def _pause(self, member: Member, attempt: int) -> None:
        """Wait before the next attempt: not at all, then one heartbeat, doubled up to a minute."""
        if attempt == 1:
            return
        pause_s = min(_LONGEST_PAUSE_S, self._config.heartbeat_s * 2 ** min(attempt - 2, 30))
        log.warning(
            "rollout worker %d did not start %d times in a row; next attempt in %g s",
            member.number,
            attempt,
            pause_s,
            extra={"worker": member.number},
        )
        await asyncio.sleep(pause_s)

    def _late_start(self) -> str:
        config = self._config
        return (
            f"no answer in {config.start_timeout_s:g} s. Each needs {config.cpus_per_worker:g} CPU "
            f"and {config.gpus_per_worker:g} GPU: if the cluster lacks these resources, lower "
            "rollout.workers or rollout.cpus_per_worker; if it is merely slow, raise "
            "rollout.start_timeout_s"
        )

    # A worker takes new weights

    async def sync(self, announcement: Announcement, in_flight: bool) -> None:
        """See ``RolloutPool.sync``."""
        async with self._lock:
            if announcement.version < self.version:
                raise PoolError(
                    f"version {announcement.version} is older than {self.version}, "
                    "which the engines have"
                )
            self._announcement, self.version = announcement, announcement.version
            members = [member for member in self.members if member.is_in_service]
            syncs = [
                self._sync_member(member, announcement.for_worker(index), in_flight)
                for index, member in enumerate(members)
            ]
            self._check_sync(announcement, await asyncio.gather(*syncs))

    async def _sync_member(
        self, member: Member, announcement: Announcement, in_flight: bool
    ) -> Exception | None:
        """Bring one worker to the announced weights; returns what went wrong, if anything did."""
        handle = member.handle
        if handle is None or not member.is_in_service:
            return WorkerLost("it ended just before")
        try:
            await member.load(announcement, self._config.sync_timeout_s, in_flight)
        except Exception as error:  # whatever it was, the weights of this worker are unknown
            if member.is_served_by(handle):
                kind = "sync" if isinstance(error, _SYNC_FAULTS) else "bug"
                self.lose(member, kind, error)
            return error
        member.health.heartbeat()
        self.queue.dispatch()
        return None

    def _check_sync(self, announcement: Announcement, faults: Sequence[Exception | None]) -> None:
        """Whether the announced version is in service, or will be: successors take it, too.

        Raises:
            PoolError: no worker can be had, or none could load it.
            Exception: a bug.
        """
        refusals: list[Exception] = []
        for fault in faults:
            if fault is None or isinstance(fault, WorkerLost | TimeoutError):
                continue
            if not isinstance(fault, _SYNC_FAULTS):
                raise fault
            refusals.append(fault)
        if self.queue.fault is not None:
            raise PoolError(self.queue.fault)
        if refusals and None not in faults:
            raise PoolError(
                f"no rollout worker took version {announcement.version}; "
                f"first error: {describe(refusals[0])}"
            ) from refusals[0]
        if not self.members:
            raise PoolError(
                f"no rollout worker is left to take version {announcement.version}: "
                f"{self.start_fault}"
            )

    # A worker dies

    def lose(self, member: Member, kind: str, error: Exception) -> None:
        """Declare a worker in service DEAD; its successor comes up in the background."""
        self.count(kind, member, error)
        if isinstance(error, WorkerLost):
            loss = error
        else:
            loss = WorkerLost(f"it was ended: {describe(error)}")
        self._bury(member, loss)
        self.replace(member)

    def _bury(self, member: Member, loss: WorkerLost) -> None:
        """Declare a worker DEAD: end it, and fail the calls that wait for its answers."""
        member.health.lost()
        member.end(loss)

    def replace(self, member: Member) -> None:
        """Bring up a successor of a DEAD worker in the background."""
        member.restart()
        self._begin_to_bring_up(member)

    def count(self, kind: str, member: Member, error: Exception) -> None:
        """Count and log a failure of a worker, with the traceback of ``error``."""
        self.tally.failures[kind] += 1
        log.warning(
            "rollout worker %d, %s failure: %s",
            member.number,
            kind,
            describe(error),
            exc_info=error,
            extra={"worker": member.number},
        )

    # A worker leaves

    def _dismiss(self, member: Member) -> None:
        if member.state is WorkerState.HEALTHY:
            member.health.drain()
            name = f"draining of rollout worker {member.number}"
            member.task = start_watched(self._drain(member), name)
            return
        if member.task is not None:
            member.task.cancel()
        if member.state is not WorkerState.DEAD:
            self._bury(member, WorkerLost("it was removed"))
        self._forget(member)

    async def _drain(self, member: Member) -> None:
        # Every attempt has a deadline, so this ends.
        while member.outstanding:
            await asyncio.sleep(_DRAIN_POLL_S)
        member.health.retired()
        self._forget(member)
        await self._end(member)

    async def _end(self, member: Member) -> None:
        member.let_go(WorkerLost("it was closed"))
        if member.handle is None:
            return
        try:
            await member.handle.close()
        except Exception:  # a worker that cannot be closed any more is killed
            number = member.number
            log.debug(
                "rollout worker %d is killed, its close failed",
                number,
                exc_info=True,
                extra={"worker": number},
            )
            member.handle.kill()

    def _forget(self, member: Member) -> None:
        if member in self.members:
            self.members.remove(member)
        staying = [other for other in self.members if other.state is not WorkerState.DRAINING]
        if not staying:
            self.queue.fail(
                f"no rollout worker is left, and none could be started: {self.start_fault}"
            )


def _usefulness(member: Member) -> tuple[bool, int]:
    """Sort key for scaling down: those that serve nobody go first, then the least busy."""
    return member.state is WorkerState.HEALTHY, member.outstanding


def _is_hopeless(error: Exception) -> bool:
    """Late, or built from values that cannot work: the next attempt would end the same way."""
    return isinstance(error, TimeoutError | ValueError | WeightSyncError)
