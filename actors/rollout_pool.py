"""The rollout engines as one: routing, health, weight versions, membership. A plain asyncio class inside the driver.

Work goes to the HEALTHY worker with the fewest sequences outstanding, at most ``max_sequences`` at a time; the rest
waits here, first come, first served. What a worker fails to answer is asked again elsewhere; what a request itself does
wrong is not. A group that takes much longer than those it came with runs a second time on another worker, and the first
answer counts. Results keep the order of the requests and, the seeds being in them, do not depend on who answered.

One lock separates syncs from changes of membership: a new worker is admitted between two syncs, with current weights.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from actors.health import Clock, WorkerHealth, WorkerState
from actors.rollout_worker import INITIAL_VERSION, RayWorker, RequestError, WorkerHandle, WorkerInfo, WorkerLost
from actors.weight_sync import Announcement, RunWeightFiles, WeightSyncError, weights_directory
from bi_ray.config import RolloutConfig, RunConfig
from bi_ray.policy.rollout import Group, GroupRequest, PolicyVersion

log = logging.getLogger(__name__)
_START_ATTEMPTS = 3  # of a worker in a row, before its place is given up
_IN_SERVICE = (WorkerState.HEALTHY, WorkerState.SUSPECT)


class PoolError(RuntimeError):
    """The pool cannot do its work any more; the message says what to change."""


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
class _Member:
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
        return self.health.state


@dataclass(eq=False, slots=True)
class _Waiting:
    """A group that wants a worker, preferably none of those that failed on it."""

    samples: int
    avoid: frozenset[int]
    member: asyncio.Future[_Member]
    only_others: bool = False  # rather none than one of those


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

    member: _Member | None = None
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
        self._members: list[_Member] = []
        self._waiting: deque[_Waiting] = deque()
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
        members, self._members = self._members, []
        for member in members:
            if member.task is not None:
                member.task.cancel()
        await asyncio.gather(*(self._end(member) for member in members))
        self._fail_waiting("the pool was closed")
        if self._files is not None:
            await self._files.clear()

    def _add(self) -> None:
        self._numbers += 1
        health = WorkerHealth(self.config.suspect_after_s, self.config.dead_after_s, self._clock)
        member = _Member(self._numbers, self._make_worker(), health)
        self._members.append(member)
        member.task = asyncio.create_task(self._bring_up(member))

    async def _bring_up(self, member: _Member) -> None:
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
                self._dispatch()
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

    async def _admit(self, member: _Member) -> None:
        """Between two syncs, give a STALE worker the current weights; then it is HEALTHY."""
        async with self._lock:
            if self._announcement is not None:
                async with asyncio.timeout(self.config.sync_timeout_s):
                    await member.handle.sync(self._announcement.for_worker(0))
            member.version = self.version
            member.health.synced()

    def _dismiss(self, member: _Member) -> None:
        if member.state is WorkerState.HEALTHY:
            member.health.drain()
            member.task = asyncio.create_task(self._drain(member))
            return
        if member.task is not None:
            member.task.cancel()
        if member.state is not WorkerState.DEAD:
            self._bury(member)
        self._forget(member)

    async def _drain(self, member: _Member) -> None:
        # Every attempt has a deadline, so this ends.
        while member.outstanding:
            await asyncio.sleep(0.05)
        member.health.retired()
        self._forget(member)
        await self._end(member)

    async def _end(self, member: _Member) -> None:
        member.lost.set()
        try:
            await member.handle.close()
        except Exception as error:  # a worker that cannot be closed any more is killed
            log.debug("worker %d was killed: %s", member.number, error)
            member.handle.kill()

    def _bury(self, member: _Member) -> None:
        """A worker is DEAD: end it, and let go of what waits for its answers."""
        member.health.lost()
        self._end_dead(member)

    def _end_dead(self, member: _Member) -> None:
        member.lost.set()
        member.handle.kill()

    def _succeed(self, member: _Member) -> None:
        """Put a new worker in the place of a DEAD one."""
        member.health.restarted()
        member.handle, member.lost = self._make_worker(), asyncio.Event()
        member.info = member.version = None
        member.restarts += 1

    def _lose(self, member: _Member, kind: str, error: BaseException | str) -> None:
        """A worker in service is DEAD; its successor comes up in the background."""
        self._count(kind, member, error)
        self._bury(member)
        self._replace(member)

    def _replace(self, member: _Member) -> None:
        self._succeed(member)
        member.task = asyncio.create_task(self._bring_up(member))

    def _forget(self, member: _Member) -> None:
        if member in self._members:
            self._members.remove(member)
        if not any(other.state is not WorkerState.DRAINING for other in self._members):
            self._fail_waiting(f"no rollout worker is left, and none could be started: {self._start_fault}")

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

    async def _sync_member(self, member: _Member, announcement: Announcement, in_flight: bool) -> bool:
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
        self._dispatch()
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
            if limit_s is not None and out_s > limit_s and self._other_has_room(run.member):
                return True
            await asyncio.wait({first}, timeout=least_s / 10)
        return False

    def _other_has_room(self, member: _Member | None) -> bool:
        """Whether a worker other than this one could begin at once."""
        return not self._waiting and any(other is not member for other in self._free(self._serving()))

    async def _attempts(
        self, request: GroupRequest, run: _Run, other_than: _Member | None = None
    ) -> Group | FailedGroup:
        """Ask workers for a group, as often as the config allows."""
        avoid = frozenset({other_than.number} if other_than else ())
        reason = ""
        for _ in range(self.config.group_attempts):
            run.member = None
            member = await self._acquire(request.sampling.samples, avoid, only_others=other_than is not None)
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
                self._release(member, request.sampling.samples)
        return FailedGroup(request.key, "infrastructure", f"given up after {self.config.group_attempts}; {reason}")

    def _blame(self, member: _Member, error: Exception) -> None:
        """A call failed: a lost worker is DEAD, any other has to answer a ping before it gets more work."""
        if isinstance(error, WorkerLost) and member.state in _IN_SERVICE:
            self._lose(member, "lost", error)
            return
        self._count("generate", member, error)
        member.health.failed()

    async def _or_lost(self, member: _Member, call: Coroutine[Any, Any, Any]) -> Any:
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

    async def _acquire(self, samples: int, avoid: frozenset[int], only_others: bool = False) -> _Member:
        """Wait for a worker with room; its room is taken when this returns."""
        if not self._members:
            raise PoolError("the pool has no rollout worker; start it first, or see the log for why they ended")
        waiting = _Waiting(samples, avoid, asyncio.get_running_loop().create_future(), only_others)
        self._waiting.append(waiting)
        self._dispatch()
        try:
            return await waiting.member
        except asyncio.CancelledError:
            if waiting.member.done() and not waiting.member.cancelled() and waiting.member.exception() is None:
                self._release(waiting.member.result(), samples)
            raise

    def _release(self, member: _Member, samples: int) -> None:
        member.outstanding -= samples
        if not member.outstanding and member.busy_since is not None:
            member.busy_s += self._clock() - member.busy_since
            member.busy_since = None
        self._dispatch()

    def _dispatch(self) -> None:
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

    def _serving(self) -> list[_Member]:
        return [member for member in self._members if member.state is WorkerState.HEALTHY]

    def _free(self, members: list[_Member]) -> list[_Member]:
        return [member for member in members if member.outstanding < self.config.max_sequences]

    def _fail_waiting(self, reason: str) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.member.done():
                waiting.member.set_exception(PoolError(reason))

    # Health

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            await self.beat()

    async def beat(self) -> None:
        """Ping the workers in service once and act on their silence."""
        await asyncio.gather(*(self._ping(member) for member in self._members if member.state in _IN_SERVICE))
        self._dispatch()

    async def _ping(self, member: _Member) -> None:
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

    def _act_on_silence(self, member: _Member) -> None:
        if member.state not in _IN_SERVICE:
            return
        member.health.tick()
        if member.state is WorkerState.DEAD:
            self._count("silent", member, f"silent for {self.config.dead_after_s:g} s")
            self._end_dead(member)
            self._replace(member)

    def _count(self, kind: str, member: _Member, error: BaseException | str) -> None:
        self.failures[kind] += 1
        log.warning("rollout worker %d, %s failure: %s", member.number, kind, _name(error))

    def busy_s(self) -> dict[int, float]:
        """For how long each worker had anything to do since it was added, in seconds, by its number."""
        now = self._clock()
        return {
            member.number: member.busy_s + (0.0 if member.busy_since is None else now - member.busy_since)
            for member in self._members
        }

    def status(self) -> dict[str, Any]:
        """State of the pool in plain values: one row per worker, failures by kind, groups that wait for a worker."""
        return {
            "version": str(self.version),
            "waiting": len(self._waiting),
            "failures": dict(self.failures),
            "redispatched": self.redispatched,
            "workers": [_row(member) for member in self._members],
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


def _row(member: _Member) -> dict[str, Any]:
    info = member.info
    return {
        "worker": member.number,
        "state": str(member.state),
        "version": str(member.version) if member.version else None,
        "outstanding": member.outstanding,
        "generated_tokens": member.generated_tokens,
        "restarts": member.restarts,
        "node": info.node_id if info else None,
        "pid": info.pid if info else None,
        "engine_pid": info.engine_pid if info else None,
    }


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
