"""The rollout engines as one: routing, health, weight versions, membership. A plain asyncio class
inside the driver.

What a worker fails to answer is asked again elsewhere; what a request itself does wrong is not. A
group that takes much longer than those it came with runs a second time on another worker, and the
first answer counts. Results keep the order of the requests and, the seeds being in them, do not
depend on who answered.

One lock separates syncs from changes of membership: a new worker is admitted between two syncs,
with current weights.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from actors.rollout.background import start_watched
from actors.rollout.group_history import GroupHistory
from actors.rollout.health import Clock, WorkerHealth, WorkerState
from actors.rollout.queue import Member, PoolError, WorkerQueue
from actors.rollout.worker import INITIAL_VERSION, RayWorker, RequestError, WorkerHandle, WorkerLost
from actors.weights.base import Announcement, WeightSyncError
from actors.weights.shared_memory import RunWeightFiles
from bi_ray.batches.rollout import Group, GroupRequest
from bi_ray.config import RolloutConfig, RunConfig
from bi_ray.policy.published import weights_directory

log = logging.getLogger(__name__)
_FIRST_ATTEMPTS = 3  # of a worker, before the pool does not start
_LONGEST_PAUSE_S = 60.0  # between two attempts later on
_IN_SERVICE = (WorkerState.HEALTHY, WorkerState.SUSPECT)
_AT_WORK = (*_IN_SERVICE, WorkerState.DRAINING)


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """A request without an answer; never to be taken for a wrong answer.

    Attributes:
        key: of the request.
        kind: ``data``: the request is at fault, also where engine after engine crashed on it;
            ``infrastructure``:
            workers failed on it too often, or were ended over it.
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
        """How long a group may take before it is late; None while fewer than half of them are
        finished.
        """
        if 2 * len(self.took_s) < self.groups:
            return None
        return max(least_s, factor * statistics.median(self.took_s))


@dataclass(eq=False, slots=True)
class _Run:
    """One copy of a group: which worker has it, and since when; None while it waits for one."""

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
        # groups that were asked for a second time because the first took long
        self.redispatched = 0
        self._make_worker = make_worker
        self._clock = clock
        self._files = files
        self._announcement: Announcement | None = None
        self._queue = WorkerQueue(config.max_sequences, clock)
        self._members = self._queue.members
        self._numbers = 0
        self._start_fault = ""
        self._in_service_at = 0.0
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
            raise PoolError(
                f"{missing} of {workers} rollout workers did not start: {self._start_fault}"
            )
        self._in_service_at = self._clock()
        self._heart = start_watched(self._beat_for_ever(), "heartbeat of the rollout pool")

    async def scale(self, workers: int) -> None:
        """Have ``workers`` engines from now on; returns at once, they come up or drain in the
        background.

        Raises:
            PoolError: fewer than one.
        """
        if workers < 1:
            raise PoolError(f"{workers} rollout workers cannot do any work; scale to 1 or more")
        async with self._lock:
            staying = [
                member for member in self._members if member.state is not WorkerState.DRAINING
            ]
            for _ in range(workers - len(staying)):
                self._add()
            # Those that serve nobody go first, then the least busy.
            staying.sort(
                key=lambda member: (member.state is WorkerState.HEALTHY, member.outstanding)
            )
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
        member = Member(self._numbers, health)
        self._members.append(member)
        self._begin_to_bring_up(member)

    def _begin_to_bring_up(self, member: Member) -> None:
        def give_up(error: BaseException) -> None:
            self._start_fault = _name(error)
            self._forget(member)

        name = f"start of rollout worker {member.number}"
        member.task = start_watched(self._bring_up(member), name, give_up)

    async def _bring_up(self, member: Member) -> None:
        """Start a worker and admit it; after a failure its successor, with growing pauses, until
        one is there.

        Only while the pool itself starts is a place given up, so that a run that cannot work ends
        at once.
        """
        for attempt in itertools.count(1):
            try:
                await self._start_worker(member)
            except Exception as error:  # whatever goes wrong in a start: the worker is of no use
                self._start_fault = _name(error)
                self._count("start", member, error)
                self._bury(member, WorkerLost("it did not start"))
                if self._heart is None and (_is_hopeless(error) or attempt == _FIRST_ATTEMPTS):
                    break
                await self._pause(member, attempt)
                member.restart()
            else:
                if member.restarts:
                    log.warning("rollout worker %d is in service again", member.number)
                self._queue.recover()
                self._queue.dispatch()
                return
        self._forget(member)

    async def _start_worker(self, member: Member) -> None:
        member.handle = self._make_worker()
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                member.info = await member.handle.start()
        except TimeoutError as error:
            raise TimeoutError(self._late_start()) from error
        member.health.started()
        await self._admit(member)

    async def _pause(self, member: Member, attempt: int) -> None:
        """None before the second attempt, then a heartbeat, and each time twice as long, up to a
        minute.
        """
        if attempt == 1:
            return
        pause_s = min(_LONGEST_PAUSE_S, self.config.heartbeat_s * 2 ** min(attempt - 2, 30))
        log.warning(
            "rollout worker %d did not start %d times in a row; next attempt in %g s",
            member.number,
            attempt,
            pause_s,
        )
        await asyncio.sleep(pause_s)

    def _late_start(self) -> str:
        return (
            f"no answer in {self.config.start_timeout_s:g} s. Each needs {self.config.cpus_per_worker:g} CPU and "
            f"{self.config.gpus_per_worker:g} GPU: if the cluster lacks these resources, lower rollout.workers or "
            "rollout.cpus_per_worker; if it is merely slow, raise rollout.start_timeout_s"
        )

    async def _admit(self, member: Member) -> None:
        """Between two syncs, give a STALE worker the current weights; then it is HEALTHY."""
        async with self._lock:
            if self._announcement is not None:
                assert member.handle is not None
                await self._give_weights(member, member.handle, self._announcement.for_worker(0))
            member.version = self.version
            member.health.synced()

    def _dismiss(self, member: Member) -> None:
        if member.state is WorkerState.HEALTHY:
            member.health.drain()
            member.task = start_watched(
                self._drain(member), f"draining of rollout worker {member.number}"
            )
            return
        if member.task is not None:
            member.task.cancel()
        if member.state is not WorkerState.DEAD:
            self._bury(member, WorkerLost("it was removed"))
        self._forget(member)

    async def _drain(self, member: Member) -> None:
        # Every attempt has a deadline, so this ends.
        while member.outstanding:
            await asyncio.sleep(0.05)
        member.health.retired()
        self._forget(member)
        await self._end(member)

    async def _end(self, member: Member) -> None:
        member.let_go(WorkerLost("it was closed"))
        if member.handle is not None:
            try:
                await member.handle.close()
            except Exception:  # a worker that cannot be closed any more is killed
                log.debug(
                    "rollout worker %d is killed, its close failed", member.number, exc_info=True
                )
                member.handle.kill()

    def _bury(self, member: Member, loss: WorkerLost) -> None:
        """A worker is DEAD: end it, and let go of what waits for its answers."""
        member.health.lost()
        member.end(loss)

    def _lose(self, member: Member, kind: str, error: Exception) -> None:
        """A worker in service is DEAD; its successor comes up in the background."""
        self._count(kind, member, error)
        self._bury(
            member,
            error if isinstance(error, WorkerLost) else WorkerLost(f"it was ended: {_name(error)}"),
        )
        self._replace(member)

    def _replace(self, member: Member) -> None:
        member.restart()
        self._begin_to_bring_up(member)

    def _forget(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
        if not any(other.state is not WorkerState.DRAINING for other in self._members):
            self._queue.fail(
                f"no rollout worker is left, and none could be started: {self._start_fault}"
            )

    # Weights

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Bring every worker in service to the announced weights.

        What is in work is finished first, in that time; or, ``in_flight``, it goes on under the new
        weights. A worker that fails or is late is DEAD and gets a successor; the others stay in
        service. Workers that are just coming up take the version before they are given work: also
        where every engine died over the sync.

        Raises:
            PoolError: the version is older than the current one, or no worker could load it.
        """
        async with self._lock:
            if announcement.version < self.version:
                raise PoolError(
                    f"version {announcement.version} is older than {self.version}, which the engines have"
                )
            self._announcement, self.version = announcement, announcement.version
            members = [member for member in self._members if member.state in _IN_SERVICE]
            faults = await asyncio.gather(
                *(
                    self._sync_member(member, announcement.for_worker(i), in_flight)
                    for i, member in enumerate(members)
                )
            )
            self._check_sync(announcement, faults)
            await self._release(announcement)

    def _check_sync(self, announcement: Announcement, faults: Sequence[Exception | None]) -> None:
        """Where no worker is left of those that took part, their successors take the version, if it
        can be taken.
        """
        if self._queue.fault is not None:
            raise PoolError(self._queue.fault)
        refusals = [
            fault
            for fault in faults
            if fault is not None and not isinstance(fault, WorkerLost | TimeoutError)
        ]
        if refusals and None not in faults:
            raise PoolError(
                f"no rollout worker took version {announcement.version}; first error: {_name(refusals[0])}"
            ) from refusals[0]
        if not self._members:
            raise PoolError(
                f"no rollout worker is left to take version {announcement.version}: {self._start_fault}"
            )

    async def _release(self, announcement: Announcement) -> None:
        """Files that stay a while longer are no reason to fail a sync."""
        if self._files is None:
            return
        try:
            await self._files.release(announcement)
        except Exception as error:
            log.warning(
                "weights before %s were not removed: %s",
                announcement.version,
                _name(error),
                exc_info=True,
            )

    async def _sync_member(
        self, member: Member, announcement: Announcement, in_flight: bool
    ) -> Exception | None:
        """What went wrong, if it did."""
        handle = member.handle
        if handle is None or member.state not in _IN_SERVICE:
            return WorkerLost("it ended just before")
        try:
            await self._give_weights(member, handle, announcement, in_flight)
        except Exception as error:  # whatever it was, the weights of this worker are unknown
            if member.handle is handle and member.state in _IN_SERVICE:
                self._lose(member, "sync", error)
            return error
        member.version = announcement.version
        member.health.heartbeat()
        self._queue.dispatch()
        return None

    async def _give_weights(
        self,
        member: Member,
        handle: WorkerHandle,
        announcement: Announcement,
        in_flight: bool = False,
    ) -> None:
        try:
            async with asyncio.timeout(self.config.sync_timeout_s):
                await self._or_lost(member, handle.sync(announcement, in_flight))
        except TimeoutError as error:
            limit = f"{self.config.sync_timeout_s:g} s (rollout.sync_timeout_s)"
            raise TimeoutError(
                f"it did not take version {announcement.version} within {limit}"
            ) from error

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
        run, history = _Run(), GroupHistory()
        first = asyncio.create_task(self._attempts(request, run, history))
        copies = {first: run}
        try:
            if await self._is_late(first, run, race, history):
                self.redispatched += 1
                assert run.member is not None
                log.info(
                    "group %s takes long on worker %d; another one is asked",
                    request.key,
                    run.member.number,
                )
                second = _Run()
                copies[
                    asyncio.create_task(self._attempts(request, second, history, run.member))
                ] = second
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
            log.info(
                "group %s has no answer, %s failure: %s", request.key, answer.kind, answer.reason
            )
        return answer

    async def _is_late(
        self, first: asyncio.Task[Any], run: _Run, race: _Race, history: GroupHistory
    ) -> bool:
        """Wait until a copy is finished, or has taken too long while another worker could do it."""
        factor, least_s = self.config.redispatch_factor, self.config.redispatch_least_s
        if factor is None:
            await asyncio.wait({first})
        while not first.done():
            limit_s = race.limit_s(factor or 1.0, least_s)
            out_s = self._clock() - run.began if run.member else 0.0
            is_late = limit_s is not None and out_s > limit_s and not history.must_be_alone
            if is_late and self._queue.other_has_room(run.member):
                return True
            await asyncio.wait({first}, timeout=least_s / 10)
        return False

    async def _attempts(
        self,
        request: GroupRequest,
        run: _Run,
        history: GroupHistory,
        other_than: Member | None = None,
    ) -> Group | FailedGroup:
        """Ask workers for a group until it is there or its history says that it is of no use."""
        avoid = frozenset({other_than.number} if other_than else ())
        samples = request.sampling.samples
        while (reason := history.given_up(self.config.group_attempts)) is None:
            run.member = None
            member = await self._queue.acquire(
                samples, avoid, other_than is not None, history.must_be_alone
            )
            handle = member.handle
            # it ended before this task had its turn
            if handle is None or member.state not in _AT_WORK:
                self._queue.release(member, samples)
                continue
            run.member, run.began = member, self._clock()
            try:
                async with asyncio.timeout(self.config.generate_timeout_s):
                    group = await self._or_lost(member, handle.generate(request))
            except RequestError as error:
                return FailedGroup(request.key, "data", str(error))
            except Exception as error:  # anything else is the worker's fault, or is taken for it
                history.add(member.number, error, _name(error))
                avoid |= {member.number}
                if member.handle is handle:
                    self._blame(member, error)
            else:
                member.generated_tokens += sum(len(sample.tokens) for sample in group.samples)
                return group
            finally:
                self._queue.release(member, samples)
        return FailedGroup(request.key, "data" if history.is_at_fault else "infrastructure", reason)

    def _blame(self, member: Member, error: Exception) -> None:
        """A call failed: a lost worker is DEAD, any other has to answer a ping before it gets more
        work.
        """
        if isinstance(error, WorkerLost) and member.state in _IN_SERVICE:
            self._lose(member, "lost", error)
            return
        self._count("generate", member, error)
        member.health.failed()

    async def _or_lost(self, member: Member, call: Coroutine[Any, Any, Any]) -> Any:
        """The answer of a worker, or ``WorkerLost`` as soon as it is known that there will be none."""
        answer, lost = asyncio.ensure_future(call), member.lost
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                loss = lost.result()
                raise type(loss)(str(loss))  # each waiter gets one of its own, for its traceback
            return answer.result()
        finally:
            answer.cancel()

    # Health

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            try:
                await self.beat()
            # the next beat may do better, and without any no dead worker is found
            except Exception:
                log.exception("a heartbeat of the rollout pool failed")

    async def beat(self) -> None:
        """Ping the workers in service once, act on their silence, and on there being none for too
        long.
        """
        await asyncio.gather(
            *(self._ping(member) for member in self._members if member.state in _IN_SERVICE)
        )
        self._queue.dispatch()
        self._act_on_absence()

    def _act_on_absence(self) -> None:
        """Without any engine for ``no_engine_timeout_s`` whoever waits for one is told why."""
        now = self._clock()
        if any(member.state in _IN_SERVICE for member in self._members):
            self._in_service_at = now
        elif now - self._in_service_at > self.config.no_engine_timeout_s:
            self._queue.fail(
                f"no rollout engine for {self.config.no_engine_timeout_s:g} s (rollout.no_engine_timeout_s); "
                f"the last one did not start: {self._start_fault or 'no reason is known yet'}"
            )

    async def _ping(self, member: Member) -> None:
        handle = member.handle
        if handle is None:  # it ended since the round began
            return
        try:
            # Shorter than what makes others suspect, so that one silent worker does not hold up the
            # round for them.
            async with asyncio.timeout(self.config.suspect_after_s / 2):
                await handle.ping()
        except WorkerLost as error:
            if member.handle is handle and member.state in _IN_SERVICE:
                self._lose(member, "lost", error)
        except Exception as error:  # late, or cut off for now
            log.warning(
                "rollout worker %d does not answer: %s", member.number, _name(error), exc_info=True
            )
        else:
            if member.handle is handle and member.state in _IN_SERVICE:
                member.health.heartbeat()
        self._act_on_silence(member)

    def _act_on_silence(self, member: Member) -> None:
        if member.state not in _IN_SERVICE:
            return
        member.health.tick()
        if member.state is WorkerState.DEAD:
            silence = WorkerLost(f"silent for {self.config.dead_after_s:g} s")
            self._count("silent", member, silence)
            member.end(silence)
            self._replace(member)

    def _count(self, kind: str, member: Member, error: BaseException) -> None:
        self.failures[kind] += 1
        log.warning("rollout worker %d, %s failure: %s", member.number, kind, _name(error))

    def busy_s(self) -> dict[int, float]:
        """For how long each worker had anything to do since it was added, in seconds, by its
        number.
        """
        return self._queue.busy_s()

    def status(self) -> dict[str, Any]:
        """State of the pool in plain values: one row per worker, failures by kind, groups that wait
        for a worker.
        """
        return {
            "version": str(self.version),
            "waiting": len(self._queue),
            "failures": dict(self.failures),
            "redispatched": self.redispatched,
            "workers": [member.row() for member in self._members],
        }


async def _first_group(
    copies: Mapping[asyncio.Task[Group | FailedGroup], _Run],
) -> Group | FailedGroup:
    """The first answer that is a group; where none is, the last failure.

    A copy fails only when the group is given up. Another one that a worker has may still succeed;
    one that waits for a worker is of no use any more, and there may never be one for it.
    """
    left = set(copies)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        answers = [task.result() for task in done]
        groups = [answer for answer in answers if isinstance(answer, Group)]
        left = {task for task in left if copies[task].member is not None}
        if groups or not left:
            return (groups or answers)[0]


def _is_hopeless(error: Exception) -> bool:
    """Late, or built from values that cannot work: the next attempt would end the same way."""
    return isinstance(error, TimeoutError | ValueError | WeightSyncError)


def _name(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    return f"{type(error).__name__}: {error}"


def make_ray_pool(config: RunConfig, run_id: str, base: Path) -> RolloutPool:
    """A pool of Ray actors whose engines are built from the checkpoint ``base``; call it inside a
    Ray process.
    """
    import ray

    model = config.model.model_copy(update={"path": str(base)})
    copies = weights_directory(run_id) / f"copies_{uuid.uuid4().hex[:8]}"
    files = RunWeightFiles(
        run_id, ray.get_runtime_context().get_node_id(), config.ray.call_timeout_s
    )
    return RolloutPool(
        lambda: RayWorker(model, config.rollout, copies), config.rollout, files=files
    )
