"""Small workers inside the test's own process, and a pool over them whose time the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import virtual_time

from actors.rollout.handle import (
    EngineCrashed,
    Ping,
    RequestError,
    WorkerFailed,
    WorkerInfo,
    WorkerLost,
)
from actors.rollout.pool import RolloutPool
from actors.weights.shared_memory import FileAnnouncement
from bi_ray.batches.rollout import Group, GroupRequest, Sample, SamplingConfig
from bi_ray.config.rollout import RolloutConfig
from bi_ray.policy.version import PolicyVersion

CONFIG = RolloutConfig(
    max_sequences=8,
    start_timeout_s=10,
    sync_timeout_s=10,
    generate_timeout_s=10,
    heartbeat_s=1000,  # the tests beat themselves
    suspect_after_s=1,
    dead_after_s=5,
)
HASTY = CONFIG.model_copy(
    update={"start_timeout_s": 1.0, "sync_timeout_s": 1.0, "generate_timeout_s": 1.0}
)
V1, V2 = PolicyVersion(1, 1), PolicyVersion(1, 2)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Worker:
    """Answers at once; ``twists`` maps names of methods to what they do instead."""

    def __init__(self, number: int, twists: dict[str, Callable]):
        self.number, self.twists = number, twists
        self.version = PolicyVersion(0, 0)
        self.served: list[str] = []
        self.swaps: list[bool] = []
        self.most = self.running = 0
        self.killed = self.closed = False

    async def _twist(self, method: str):
        if method in self.twists:
            await self.twists[method]()

    async def start(self):
        await self._twist("start")
        return WorkerInfo("node", self.number, self.number)

    async def generate(self, request):
        if len(request.prompt_tokens) > 4:
            raise RequestError(f"{request.key}: too long")
        self.running += request.sampling.samples
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001)
            await self._twist("generate")
        finally:
            self.running -= request.sampling.samples
        self.served.append(request.key)
        samples = [
            Sample([request.seed + j], [0.0], "", False, self.version)
            for j in range(request.sampling.samples)
        ]
        return Group(request.key, request.prompt_tokens, samples)

    async def sync(self, announcement, in_flight=False):
        self.swaps.append(in_flight)
        await self._twist("sync")
        self.version = announcement.version

    async def ping(self):
        await self._twist("ping")
        return Ping(self.version, self.running)

    async def close(self):
        self.closed = True

    def kill(self):
        self.killed = True


async def lost():
    raise WorkerLost("gone")


async def broken():
    raise WorkerFailed("broken")


async def crashed():
    raise EngineCrashed("gone")


async def refused():
    raise RequestError("too long")


async def hang():
    await asyncio.sleep(1000)


class World:
    """A pool, the workers that it made, and the time.

    ``twists[i]`` is for the i-th worker ever made.
    """

    def __init__(
        self, twists: dict[int, dict] | None = None, config: RolloutConfig = CONFIG, default=None
    ):
        self.workers: list[Worker] = []
        self.twists, self.default = twists or {}, default or {}
        self.clock = Clock()
        self.pool = RolloutPool(self.make, config, self.clock)

    def make(self):
        self.workers.append(
            Worker(len(self.workers), self.twists.get(len(self.workers), self.default))
        )
        return self.workers[-1]

    @property
    def membership(self):
        return self.pool._membership

    def make_workers_with(self, make):
        """From now on ``make`` makes them."""
        self.membership._make_worker = make

    async def beat(self):
        await self.pool._heartbeat.beat()

    def states(self):
        return [row["state"] for row in self.pool.status()["workers"]]

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0.002)

    async def settle(self):
        await self.until(lambda: set(self.states()) <= {"healthy"})


def requests(count: int, samples: int = 2, prompt=(1, 2)) -> list[GroupRequest]:
    return [GroupRequest(f"q{i}", prompt, SamplingConfig(samples), 100 * i) for i in range(count)]


def announcement(version: PolicyVersion) -> FileAnnouncement:
    return FileAnnouncement(version, "node", f"/weights/{version}")


def seeds(answers) -> list[list[int]]:
    return [[sample.tokens[0] for sample in group.samples] for group in answers]


EXPECTED = [[100 * i, 100 * i + 1] for i in range(40)]


def run(coroutine):
    return virtual_time.run(coroutine, limit_s=3000)
