"""The rollout engines as one: routing, health, weight versions, membership. A plain asyncio class inside the driver.

What a worker fails to answer is asked again elsewhere; what a request itself does wrong is not. A group that takes much
longer than those it came with runs a second time on another worker, and the first answer counts. Results keep the order
of the requests and, the seeds being in them, do not depend on who answered.

One lock separates syncs from changes of membership: a new worker is admitted between two syncs, with current weights.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from actors.health import Clock, WorkerHealth, WorkerState
from actors.rollout_worker import INITIAL_VERSION, RayWorker, RequestError, WorkerHandle, WorkerLost
from actors.weight_sync import Announcement, RunWeightFiles, WeightSyncError, weights_directory
from actors.worker_queue import Member, PoolError, WorkerQueue
from bi_ray.config import RolloutConfig, RunConfig
from bi_ray.policy.rollout import Group, GroupRequest

log = logging.getLogger(__name__)
_START_ATTEMPTS = 3  # of a worker in a row, before its place is given up
_IN_SERVICE = (WorkerState.HEALTHY, WorkerState.SUSPECT)


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """A request without an answer; never to be taken for a wrong answer.

    Attributes:
        key: of the request.
        kind: ``data``: the request is at fault; ``infrastructure``: workers failed on it as often as the config allows.
        reason: one line.
    """

    key: str
    kind: Literal["data", "infrastructure"]
    reason: str


class WeightFiles(Protocol):
    """Whoever removes published weights that no engine needs any more."""

    async def release(self, announcement: Announcement) -> None:
        """Every engine holds this version or a later one."""

    async def clear(self) -> None:
        """No engine will ask again."""


@dataclass(eq=False, slots=True)
class _Race:
    """The groups of one ``generate``: how long those took that are finished.

    Attributes:
        groups: how many they are.
        took_s: of each that is finished, from when a worker had it.
    """

    groups: int
    took_s: list[float] = field(default_factory=list)

    def limit_s(self, factor: float, least_s: float) -> float | None:
        """How long a group may take before it is late; None while fewer than half of them are finished."""
        if 2 * len(self.took_s) < self.groups:
            return None
        return max(least_s, factor * statistics.median(self.took_s))


@dataclass(eq=False, slots=True)
class _Run:
    """One copy of a group: which worker has it, and since when."""

    member: Member | None = None
    began: float = 0.0


class RolloutPool:
    """Engines that come and go, behind one ``generate``.

    Args:
        make_worker: makes a handle for a new worker, without waiting for anything.
        config: sizes, deadlines, thresholds.
        clock: time in seconds for the health of the workers.
        files: told when published weights are not needed any more.
    """

    def __init__(
        self,
        make_worker: Callable[[], WorkerHandle],
        config: RolloutConfig,
        clock: Clock = time.monotonic,
        files: WeightFiles | None = None,
    ) -> None:
        self.config = config
        self.version = INITIAL_VERSION
        self.failures: Counter[str] = Counter()
        self.redispatched = 0  # groups that were asked for a second time because the first took long
        self._make_worker = make_worker
        self._clock = clock
        self._files = files
        self._announcement: Announcement | None = None
        self._queue = WorkerQueue(config.max_sequences, clock)
        self._members = self._queue.members
        self._numbers = 0
        self._start_fault = ""
        self._lock = asyncio.Lock()
        self._heart: asyncio.Task[None] | None = None

    # Membership

    async def start(self, workers: int) -> None:
        """Start ``workers`` engines and wait until all are HEALTHY.

        Raises:
            PoolError: not all of them came up in ``start_timeout_s``. Nothing is left running.
        """
        if self._files is not None:
            await self._files.clear()
        for _ in range(workers):
            self._add()
        await asyncio.gather(*(member.task for member in self._members if member.task))
        missing = workers - len(self._members)
        if missing:
            await self.close()
            raise PoolError(f"{missing} of {workers} rollout workers did not start: {self._start_fault}")
        self._heart = asyncio.create_task(self._beat_for_ever())

    async def scale(self, workers: int) -> None:
        """Have ``workers`` engines from now on; returns at once, they come up or drain in the background.

        Raises:
            PoolError: fewer than one.
        """
        if workers < 1:
            raise PoolError(f"{workers} rollout workers cannot do any work; scale to 1 or more")
        async with self._lock:
            staying = [member for member in self._members if member.state is not WorkerState.DRAINING]
            for _ in range(workers - len(staying)):
                self._add()
            # Those that serve nobody go first, then the least busy.
            staying.sort(key=lambda member: (member.state is WorkerState.HEALTHY, member.outstanding))
            for member in staying[: max(0, len(staying) - workers)]:
                self._dismiss(member)

    async def close(self) -> None:
        """End all workers and everything that waits for them."""
        if self._heart is not None:
            self._heart.cancel()
        members = list(self._members)
        self._members.clear()
        for member in members:
            if member.task is not None:
                member.task.cancel()
        await asyncio.gather(*(self._end(member) for member in members))
        self._queue.fail("the pool was closed")
        if self._files is not None:
            await self._files.clear()

    def _add(self) -> None:
        self._numbers += 1
        health = WorkerHealth(self.config.suspect_after_s, self.config.dead_after_s, self._clock)
        member = Member(self._numbers, self._make_worker(), health)
        self._members.append(member)
        member.task = asyncio.create_task(self._bring_up(member))

    async def _bring_up(self, member: Member) -> None:
        """Start a worker and admit it; after failures start successors, then give the place up."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self.config.start_timeout_s):
                    member.info = await member.handle.start()
                member.health.started()
                await self._admit(member)
            except Exception as error:  # whatever goes wrong in a start: the worker is of no use
                self._start_fault = self._explain(error)
                self._count("start", member, self._start_fault)
                self._bury(member)
                # Late, or built from values that cannot work: the next attempt would end the same way.
                if isinstance(error, TimeoutError | ValueError | WeightSyncError) or attempt == _START_ATTEMPTS:
                    break
                self._succeed(member)
            else:
                self._queue.dispatch()
                return
        self._forget(member)

    def _explain(self, error: Exception) -> str:
        if not isinstance(error, TimeoutError):
            return _name(error)
        return (
            f"no answer in {self.config.start_timeout_s:g} s. Each wants {self.config.cpus_per_worker:g} CPU and "
            f"{self.config.gpus_per_worker:g} GPU: lower rollout.workers or rollout.cpus_per_worker if the cluster has "
            "not got them, raise rollout.start_timeout_s if it is only slow"
        )

    async def _admit(self, member: Member) -> None:
        """Between two syncs, give a STALE worker the current weights; then it is HEALTHY."""
        async with self._lock:
            if self._announcement is not None:
                async with asyncio.timeout(self.config.sync_timeout_s):
                    await member.handle.sync(self._announcement.for_worker(0))
            member.version = self.version
            member.health.synced()

    def _dismiss(self, member: Member) -> None:
        if member.state is WorkerState.HEALTHY:
            member.health.drain()
            member.task = asyncio.create_task(self._drain(member))
            return
        if member.task is not None:
            member.task.cancel()
        if member.state is not WorkerState.DEAD:
            self._bury(member)
        self._forget(member)

    async def _drain(self, member: Member) -> None:
        # Every attempt has a deadline, so this ends.
        while member.outstanding:
            await asyncio.sleep(0.05)
        member.health.retired()
        self._forget(member)
        await self._end(member)

    async def _end(self, member: Member) -> None:
        member.lost.set()
        try:
            await member.handle.close()
        except Exception as error:  # a worker that cannot be closed any more is killed
            log.debug("worker %d was killed: %s", member.number, error)
            member.handle.kill()

    def _bury(self, member: Member) -> None:
        """A worker is DEAD: end it, and let go of what waits for its answers."""
        member.health.lost()
        self._end_dead(member)

    def _end_dead(self, member: Member) -> None:
        member.lost.set()
        member.handle.kill()

    def _succeed(self, member: Member) -> None:
        """Put a new worker in the place of a DEAD one."""
        member.health.restarted()
        member.handle, member.lost = self._make_worker(), asyncio.Event()
        member.info = member.version = None
        member.restarts += 1

    def _lose(self, member: Member, kind: str, error: BaseException | str) -> None:
        """A worker in service is DEAD; its successor comes up in the background."""
        self._count(kind, member, error)
        self._bury(member)
        self._replace(member)

    def _replace(self, member: Member) -> None:
        self._succeed(member)
        member.task = asyncio.create_task(self._bring_up(member))

    def _forget(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
        if not any(other.state is not WorkerState.DRAINING for other in self._members):
            self._queue.fail(f"no rollout worker is left, and none could be started: {self._start_fault}")

    # Weights

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Bring every worker in service to the announced weights.

        What is in work is finished first, in that time; or, ``in_flight``, it goes on under the new weights. A worker
        that fails or is late is DEAD and gets a successor; the others stay in service. Workers that are just coming up
        take the version before they are given work.

        Raises:
            PoolError: the version is older than the current one, or no worker took it.
        """
        async with self._lock:
            if announcement.version < self.version:
                raise PoolError(f"version {announcement.version} is older than {self.version}, which the engines have")
            self._announcement, self.version = announcement, announcement.version
            members = [member for member in self._members if member.state in _IN_SERVICE]
            taken = await asyncio.gather(
                *(self._sync_member(member, announcement.for_worker(i), in_flight) for i, member in enumerate(members))
            )
            if not any(taken) and (members or not self._members):
                raise PoolError(
                    f"no rollout worker took version {announcement.version} within {self.config.sync_timeout_s:.0f} s; "
                    "see the log for the reason, and rollout.sync_timeout_s"
                )
            if self._files is not None:
                await self._files.release(announcement)

    async def _sync_member(self, member: Member, announcement: Announcement, in_flight: bool) -> bool:
        handle = member.handle
        try:
            async with asyncio.timeout(self.config.sync_timeout_s):
                await self._or_lost(member, handle.sync(announcement, in_flight))
        except Exception as error:  # whatever it was, the weights of this worker are unknown
            if member.handle is handle and member.state in _IN_SERVICE:
                self._lose(member, "sync", error)
            return False
        member.version = announcement.version
        member.health.heartbeat()
        self._queue.dispatch()
        return True

    # Work

    async def generate(
        self, requests: Sequence[GroupRequest], on_group: Callable[[Group], None] | None = None
    ) -> list[Group | FailedGroup]:
        """Sample every group.

        Args:
            requests: what to sample.
            on_group: called with each group as it is finished, in any order.

        Returns:
            answers in the order of the requests.

        Raises:
            PoolError: there is no worker left and none could be started.
        """
        race = _Race(len(requests))
        tasks = [asyncio.create_task(self._answer(request, race, on_group)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(
        self, request: GroupRequest, race: _Race, on_group: Callable[[Group], None] | None
    ) -> Group | FailedGroup:
        run = _Run()
        first = asyncio.create_task(self._attempts(request, run))
        copies = {first}
        try:
            if await self._is_late(first, run, race):
                self.redispatched += 1
                assert run.member is not None
                log.info("group %s takes long on worker %d; another one is asked", request.key, run.member.number)
                copies.add(asyncio.create_task(self._attempts(request, _Run(), run.member)))
            answer = await _first_group(copies)
        finally:
            for copy in copies:
                copy.cancel()
        if isinstance(answer, Group):
            race.took_s.append(self._clock() - run.began)
            if on_group is not None:
                on_group(answer)
        else:
            self.failures[answer.kind] += 1
        return answer

    async def _is_late(self, first: asyncio.Task[Any], run: _Run, race: _Race) -> bool:
        """Wait until a copy is finished, or has taken too long while another worker could do it."""
        factor, least_s = self.config.redispatch_factor, self.config.redispatch_least_s
        if factor is None:
            await asyncio.wait({first})
        while not first.done():
            limit_s = race.limit_s(factor or 1.0, least_s)
            out_s = self._clock() - run.began if run.member else 0.0
            if limit_s is not None and out_s > limit_s and self._queue.other_has_room(run.member):
                return True
            await asyncio.wait({first}, timeout=least_s / 10)
        return False

    async def _attempts(
        self, request: GroupRequest, run: _Run, other_than: Member | None = None
    ) -> Group | FailedGroup:
        """Ask workers for a group, as often as the config allows."""
        avoid = frozenset({other_than.number} if other_than else ())
        reason = ""
        for _ in range(self.config.group_attempts):
            run.member = None
            member = await self._queue.acquire(request.sampling.samples, avoid, only_others=other_than is not None)
            handle = member.handle
            run.member, run.began = member, self._clock()
            try:
                async with asyncio.timeout(self.config.generate_timeout_s):
                    group = await self._or_lost(member, handle.generate(request))
            except RequestError as error:
                return FailedGroup(request.key, "data", str(error))
            except Exception as error:  # anything else is the worker's fault, not the request's
                reason = f"worker {member.number}: {_name(error)}"
                avoid |= {member.number}
                if member.handle is handle:
                    self._blame(member, error)
            else:
                member.generated_tokens += sum(len(sample.tokens) for sample in group.samples)
                return group
            finally:
                self._queue.release(member, request.sampling.samples)
        return FailedGroup(request.key, "infrastructure", f"given up after {self.config.group_attempts}; {reason}")

    def _blame(self, member: Member, error: Exception) -> None:
        """A call failed: a lost worker is DEAD, any other has to answer a ping before it gets more work."""
        if isinstance(error, WorkerLost) and member.state in _IN_SERVICE:
            self._lose(member, "lost", error)
            return
        self._count("generate", member, error)
        member.health.failed()

    async def _or_lost(self, member: Member, call: Coroutine[Any, Any, Any]) -> Any:
        """The answer of a worker, or ``WorkerLost`` as soon as it is known that there will be none."""
        answer, lost = asyncio.ensure_future(call), asyncio.ensure_future(member.lost.wait())
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise WorkerLost("it was declared dead")
            return answer.result()
        finally:
            answer.cancel()
            lost.cancel()

    # Health

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            await self.beat()

    async def beat(self) -> None:
        """Ping the workers in service once and act on their silence."""
        await asyncio.gather(*(self._ping(member) for member in self._members if member.state in _IN_SERVICE))
        self._queue.dispatch()

    async def _ping(self, member: Member) -> None:
        handle = member.handle
        try:
            # Shorter than what makes others suspect, so that one silent worker does not hold up the round for them.
            async with asyncio.timeout(self.config.suspect_after_s / 2):
                await handle.ping()
        except WorkerLost as error:
            if member.handle is handle and member.state in _IN_SERVICE:
                self._lose(member, "lost", error)
        except Exception as error:  # late, or cut off for now
            log.warning("rollout worker %d does not answer: %s", member.number, _name(error))
        else:
            if member.handle is handle and member.state in _IN_SERVICE:
                member.health.heartbeat()
        self._act_on_silence(member)

    def _act_on_silence(self, member: Member) -> None:
        if member.state not in _IN_SERVICE:
            return
        member.health.tick()
        if member.state is WorkerState.DEAD:
            self._count("silent", member, f"silent for {self.config.dead_after_s:g} s")
            self._end_dead(member)
            self._replace(member)

    def _count(self, kind: str, member: Member, error: BaseException | str) -> None:
        self.failures[kind] += 1
        log.warning("rollout worker %d, %s failure: %s", member.number, kind, _name(error))

    def busy_s(self) -> dict[int, float]:
        """For how long each worker had anything to do since it was added, in seconds, by its number."""
        return self._queue.busy_s()

    def status(self) -> dict[str, Any]:
        """State of the pool in plain values: one row per worker, failures by kind, groups that wait for a worker."""
        return {
            "version": str(self.version),
            "waiting": len(self._queue),
            "failures": dict(self.failures),
            "redispatched": self.redispatched,
            "workers": [member.row() for member in self._members],
        }


async def _first_group(copies: set[asyncio.Task[Group | FailedGroup]]) -> Group | FailedGroup:
    """The first answer that is a group; where none is, the last failure."""
    left: set[asyncio.Task[Group | FailedGroup]] = set(copies)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        answers = [task.result() for task in done]
        groups = [answer for answer in answers if isinstance(answer, Group)]
        if groups or not left:
            return (groups or answers)[0]


def _name(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"


def make_ray_pool(config: RunConfig, run_id: str, base: Path) -> RolloutPool:
    """A pool of Ray actors whose engines are built from the checkpoint ``base``; call it inside a Ray process."""
    import ray

    model = config.model.model_copy(update={"path": str(base)})
    copies = weights_directory(run_id) / f"copies_{uuid.uuid4().hex[:8]}"
    files = RunWeightFiles(run_id, ray.get_runtime_context().get_node_id(), config.ray.call_timeout_s)
    return RolloutPool(lambda: RayWorker(model, config.rollout, copies), config.rollout, files=files)
