"""A whole RL training in virtual time, whose processes are killed at random.

Real are the pool, its queue and health, the session and the metrics file. Fake are the engines (a
sample is a hash of its seed and of the weights), the learners (weights are a hash of the weights
before and the batch) and the processes: a dead learner's calls to the driver run on, as in Ray; a
dead driver takes its engines and everything that it was doing along.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.driver.session import KeptBatch, RLSession, Schedule
from actors.driver.step_metrics import EngineWork
from actors.rollout.handle import Ping, WorkerInfo, WorkerLost
from actors.rollout.pool import RolloutPool
from actors.weights.shared_memory import FileAnnouncement
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.rollout import Group, GroupRequest, Sample, SamplingConfig
from bi_ray.config.rollout import RolloutConfig
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.metrics import read_metrics

STEPS, CHECKPOINT_EVERY, VALIDATE_EVERY = 12, 3, 4
ENGINES, RANKS, GROUPS, SAMPLES = 2, 2, 8, 2
KINDS = ("engine", "hung engine", "failed start", "learner", "driver", "scale")
LIMIT_S = 12 * 3600.0
CALL_TIMEOUT_S = 3600.0
CONFIG = RolloutConfig(max_sequences=8, start_timeout_s=300, sync_timeout_s=120)


def fingerprint(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()


def number(*parts: object) -> int:
    return int(fingerprint(*parts)[:7], 16)


class Engine:
    """A ``WorkerHandle`` whose answers depend on nothing but seeds and weights."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.random = training.random
        self.version = PolicyVersion(0, 0)
        self.weights = "base"
        self.dead = asyncio.Event()
        self.hangs = False

    async def _work(self, shortest_s: float, longest_s: float) -> None:
        seconds = self.random.uniform(shortest_s, longest_s)
        try:
            async with asyncio.timeout(None if self.hangs else seconds):
                await self.dead.wait()
        except TimeoutError:
            if self.hangs:  # stopped while it was at it
                await self.dead.wait()
        if self.dead.is_set():
            raise WorkerLost("killed")

    async def start(self) -> WorkerInfo:
        if self.training.failing_starts:
            self.training.failing_starts -= 1
            raise RuntimeError("the engine does not start")
        await self._work(20, 80)
        self.training.engines.append(self)
        return WorkerInfo("node", 1, 1)

    async def generate(self, request: GroupRequest) -> Group:
        await self._work(10, 60)
        samples = [
            Sample([number(request.seed, i, self.weights)], [0.0], "", False, self.version)
            for i in range(request.sampling.samples)
        ]
        return Group(request.key, request.prompt_tokens, samples)

    async def sync(self, announcement: Any, in_flight: bool = False) -> None:
        await self._work(2, 10)
        self.version = announcement.version
        self.weights = self.training.files[announcement.path]

    async def ping(self) -> Ping:
        await self._work(0.01, 0.02)
        return Ping(self.version, 0)

    async def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.dead.set()
        if self in self.training.engines:
            self.training.engines.remove(self)


@dataclass(slots=True)
class Outcome:
    """What a training left behind, and what was done to it."""

    rows: list[dict[str, Any]]
    weights: str
    kills: Counter[str]
    failures: Counter[str] = field(default_factory=Counter)

    def same_as(self, other: Outcome) -> bool:
        return (self.rows, self.weights) == (other.rows, other.weights)


class Driver:
    """What the driver's process holds."""

    def __init__(self, training: Training) -> None:
        clock = asyncio.get_running_loop().time
        self.training = training
        self.pool = RolloutPool(self._make_worker, CONFIG, clock)
        schedule = Schedule(STEPS, training.max_staleness, _must_settle)
        self.session = RLSession(0, self, training.metrics, schedule)

    def _make_worker(self) -> Engine:
        if self.training.failing_makes:
            self.training.failing_makes -= 1
            raise RuntimeError("no actor can be made")
        return Engine(self.training)

    def policy_of(self, step: int) -> Path:
        name = f"checkpoint_{step}"
        self.training.files[name] = self.training.checkpoints[step]
        return Path(name)

    async def sync(self, version: PolicyVersion, path: Path) -> None:
        await self.pool.sync(FileAnnouncement(version, "node", str(path)))

    async def _groups(self, name: str, count: int) -> list[Group]:
        requests = [
            GroupRequest(f"{name}/{i}", (1, 2), SamplingConfig(SAMPLES), number("seed", name, i))
            for i in range(count)
        ]
        answers = await self.pool.generate(requests)
        return [answer for answer in answers if isinstance(answer, Group)]

    def last_step(self) -> int | None:
        return None

    def engine_work(self) -> EngineWork:
        return EngineWork({}, 0)

    async def make_batch(self, step: int) -> KeptBatch:
        groups = await self._groups(str(step), GROUPS)
        batch = _contents(groups)
        made = LearnerBatch(samples=(), samples_total=number(batch))
        return KeptBatch(made, {"batch": batch, "groups": len(groups)})

    async def validate(self, step: int) -> dict[str, Any]:
        if step % VALIDATE_EVERY:
            return {}
        return {
            "validation/val/greedy": _contents(await self._groups(f"validation {step}", GROUPS))
        }


def _must_settle(step: int) -> bool:
    return step % CHECKPOINT_EVERY == 0 or step % VALIDATE_EVERY == 0 or step == STEPS


def _contents(groups: Sequence[Group]) -> str:
    return fingerprint(
        [(group.key, [sample.tokens for sample in group.samples]) for group in groups]
    )


class Training:
    """One training from its first step to its last.

    Args:
        folder: gets the metrics file.
        seed: of everything that is random.
        kinds: what may happen, of ``KINDS``.
        kills: how many times something happens.
        pause_s: shortest and longest time between two of these.
        max_staleness: of batches. Above 0 the values of a disturbed training are its own.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        kinds: Sequence[str] = KINDS,
        kills: int = 0,
        pause_s: tuple[float, float] = (5, 80),
        max_staleness: int = 0,
    ) -> None:
        self.max_staleness = max_staleness
        self.random = random.Random(seed)
        self.kinds, self.kills_left, self.pause_s = kinds, kills, pause_s
        self.metrics = folder / "metrics.jsonl"
        self.files: dict[str, str] = {}
        self.checkpoints = {0: "base"}
        self.engines: list[Engine] = []
        self.failing_starts = self.failing_makes = 0
        self.happened: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.driver: Driver | None = None
        self.learners: asyncio.Task[str] | None = None
        self._outside: set[asyncio.Task[Any]] = set()

    async def run(self) -> Outcome:
        """Start drivers, and under each of them learners, until the last step is done."""
        self._outside = asyncio.all_tasks()  # those that belong to no process
        killer = asyncio.create_task(self._kill_at_random())
        try:
            while True:
                weights = await self._under_one_driver()
                await self._end_driver(killer)
                if weights is not None:
                    rows = read_metrics(self.metrics)
                    return Outcome(
                        [_lasting(row) for row in rows], weights, self.happened, self.failures
                    )
        finally:
            killer.cancel()

    async def _under_one_driver(self) -> str | None:
        driver = Driver(self)
        try:
            await driver.pool.start(ENGINES)
        except Exception as error:  # the command ends; it is given again
            self._count_failure("start", error)
            return None
        self.driver = driver
        while self.driver is driver:
            self.learners = asyncio.create_task(self._learn(driver))
            await asyncio.wait({self.learners})
            if self.learners.cancelled():
                continue
            error = self.learners.exception()
            if error is None:
                return self.learners.result()
            self._count_failure("learners", error)
        return None

    def _count_failure(self, who: str, error: BaseException) -> None:
        self.failures[f"{who}: {type(error).__name__}: {str(error)[:60]}"] += 1

    async def _end_driver(self, killer: asyncio.Task[None]) -> None:
        """The process is gone, with its engines and all that it was doing."""
        self.driver = None
        for engine in list(self.engines):
            engine.kill()
        left = asyncio.all_tasks() - self._outside - {killer}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _learn(self, driver: Driver) -> str:
        """All ranks of one start of the learners; returns the last weights."""
        session = driver.session
        await asyncio.sleep(self.random.uniform(10, 30))
        start = max(self.checkpoints)
        weights = self.checkpoints[start]
        incarnation = await _call(session.join(start))
        for step in range(start + 1, STEPS + 1):
            leases = [_call(session.lease(step, incarnation)) for _ in range(RANKS)]
            batch = (await asyncio.gather(*leases))[0]
            await asyncio.sleep(self.random.uniform(5, 20))
            weights = fingerprint(weights, batch.samples_total)
            name = f"{incarnation}.{step}"
            self.files[name] = weights
            await _call(session.publish(incarnation, step, Path(name), {"weights": weights}))
            if step % CHECKPOINT_EVERY == 0 or step == STEPS:
                self.checkpoints[step] = weights
                await session.checkpointed(step)
        return weights

    async def _kill_at_random(self) -> None:
        while self.kills_left:
            await asyncio.sleep(self.random.uniform(*self.pause_s))
            kind = self.random.choice(self.kinds)
            if await self._happens(kind):
                self.kills_left -= 1
                self.happened[kind] += 1

    async def _happens(self, kind: str) -> bool:
        """Whether it could be done now."""
        if kind == "failed start":
            self.failing_starts += self.random.randint(0, 4)
            self.failing_makes += 1 if self.driver else 0
            return True
        if kind in ("engine", "hung engine") and self.engines:
            engine = self.random.choice(self.engines)
            if kind == "engine":
                engine.kill()
            engine.hangs = True
            return True
        if self.driver is None or self.learners is None or self.learners.done():
            return False
        if kind == "scale":
            await self.driver.pool.scale(self.random.randint(1, 4))
            return True
        if kind in ("learner", "driver"):
            if kind == "driver":
                self.driver = None
            self.learners.cancel()
            return True
        return False


async def _call(coroutine: Any) -> Any:
    """A remote call: it runs on when its caller dies."""
    task = asyncio.ensure_future(coroutine)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.wait_for(asyncio.shield(task), CALL_TIMEOUT_S)


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same however often anything was killed."""
    return {name: value for name, value in row.items() if name in LASTING}


LASTING = ("step", "batch", "groups", "weights", "validation/val/greedy")
