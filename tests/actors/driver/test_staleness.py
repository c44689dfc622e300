"""The bound on staleness, under whatever delays: a session with engines and learners that take
random times.

The engines here are a version that they hold, and batches that look at it again and again while
they are made.
"""

import asyncio
import random
from pathlib import Path

import pytest

from actors.driver.session import KeptBatch, RLSession, Schedule, SessionError
from actors.driver.step_metrics import EngineWork
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.rollout import Sample, version_metrics
from bi_ray.policy.version import PolicyVersion, VersionSpan
from bi_ray.runs.metrics import read_metrics

STEPS, EVERY = 12, 3


class World:
    """Engines, and the learners that drive a session; every pause is drawn from a seed."""

    def __init__(self, seed: int, max_staleness: int, folder: Path):
        self.random = random.Random(seed)
        self.max_staleness = max_staleness
        self.held: PolicyVersion | None = None
        # versions that made a batch, of its last making
        self.made_by: dict[int, list[PolicyVersion]] = {}
        self.trained: list[int] = []
        self.stop_at = -1
        self.last = STEPS  # where a validation ends the run
        self.rows = folder / "metrics.jsonl"
        schedule = Schedule(STEPS, max_staleness, self.checkpointed)
        self.session = RLSession(0, self, self.rows, schedule)

    def policy_of(self, step):
        return Path(f"policy_{step}")

    def last_step(self):
        return self.last

    def engine_work(self):
        return EngineWork({}, 0)

    @staticmethod
    def checkpointed(step):
        return step % EVERY == 0 or step == STEPS

    async def pause(self):
        await asyncio.sleep(self.random.choice([0, 0, 0.0005, 0.002]))

    async def make_batch(self, step):
        assert step <= STEPS
        assert step <= self.held.step + 1 + self.max_staleness  # the queue is bounded
        self.made_by[step] = []
        for _ in range(4):
            self.made_by[step].append(self.held)
            await self.pause()
        return KeptBatch(LearnerBatch(samples=(), samples_total=step), {"made": step})

    async def sync(self, version, path):
        await self.pause()
        assert str(path) == f"policy_{version.step}"
        self.held = version

    async def validate(self, step):
        await self.pause()
        if step == self.stop_at:
            self.last = step
        return {}

    async def learn(self, start: int, until: int) -> None:
        """What rank 0 does between two restarts."""
        incarnation = await self.session.join(start)
        self.trained = self.trained[:start]
        for step in range(start + 1, until + 1):
            batch = await self.session.lease(step, incarnation)
            if batch is None:
                return
            assert batch.samples_total == step
            oldest = min(version.step for version in self.made_by[step])
            assert step - 1 - self.max_staleness <= oldest <= step - 1
            self.trained.append(step)
            await self.pause()
            await self.session.publish(incarnation, step, Path(f"policy_{step}"), {"loss": 0.0})
            if self.checkpointed(step):
                await self.session.checkpointed(step)


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_no_batch_is_made_by_weights_that_are_too_old(seed, max_staleness, tmp_path):
    world = World(seed, max_staleness, tmp_path)
    asyncio.run(asyncio.wait_for(world.learn(0, STEPS), 20))
    assert world.trained == list(range(1, STEPS + 1))
    assert [row["step"] for row in read_metrics(world.rows)] == world.trained
    if max_staleness == 0:
        assert all(set(versions) == {(1, step - 1)} for step, versions in world.made_by.items())


def test_engines_do_work_ahead_where_they_may(tmp_path):
    """Else the bound would be kept by an engine that never works while the learners do."""
    world = World(1, 2, tmp_path)
    asyncio.run(asyncio.wait_for(world.learn(0, STEPS), 20))
    ages = [
        step - 1 - version.step for step, versions in world.made_by.items() for version in versions
    ]
    assert max(ages) == 2
    assert any(len(set(versions)) > 1 for versions in world.made_by.values())


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_holds_when_learners_die_and_go_back(seed, max_staleness, tmp_path):
    world = World(seed, max_staleness, tmp_path)

    async def scenario():
        reached = 0
        while reached < STEPS:
            died = min(STEPS, reached + world.random.randint(1, 5))
            await world.learn(reached - reached % EVERY if reached < STEPS else reached, died)
            reached = died
        await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert world.trained == list(range(1, STEPS + 1))
    assert [row["step"] for row in read_metrics(world.rows)] == world.trained


def test_a_batch_in_the_making_is_dropped_when_the_weights_go_back_and_counted(tmp_path):
    async def scenario():
        world = World(0, 1, tmp_path)
        first = await world.session.join(0)
        lease = asyncio.ensure_future(world.session.lease(2, first))
        await asyncio.sleep(0)
        await world.session.join(0)
        with pytest.raises(SessionError, match=r"dropped|replaced"):
            await lease
        await world.learn(0, 2)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["dropped_batches"] >= 2


def test_a_sync_that_fails_reaches_the_learners_and_a_join_mends_it(tmp_path):
    async def scenario():
        world = World(0, 1, tmp_path)
        incarnation = await world.session.join(0)
        await world.session.lease(1, incarnation)
        world.sync, whole = fail, world.sync
        await world.session.publish(incarnation, 1, Path("policy_1"), {})  # nobody waits for it
        with pytest.raises(RuntimeError, match="no rollout worker took version"):
            await world.session.publish(incarnation, 2, Path("policy_2"), {})
        with pytest.raises(SessionError, match="no rollout worker took version"):
            await world.session.lease(3, incarnation)
        world.sync = whole
        await world.learn(0, STEPS)

    async def fail(version, path):
        raise RuntimeError("no rollout worker took version")

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_a_validation_ends_the_run_for_every_rank_after_the_same_step(max_staleness, tmp_path):
    async def scenario():
        world = World(3, max_staleness, tmp_path)
        world.stop_at = 2 * EVERY
        ahead = []

        async def pause_and_look_ahead():
            # rank 0 has not published it yet
            if world.trained and world.trained[-1] == world.stop_at and not ahead:
                ahead.append(asyncio.ensure_future(world.session.lease(world.stop_at + 1, 1)))
            await asyncio.sleep(0.003)

        world.pause = pause_and_look_ahead
        await world.learn(0, STEPS)
        assert world.trained == list(range(1, 2 * EVERY + 1))
        assert await ahead[0] is None
        assert await world.session.lease(2 * EVERY + 1, 1) is None
        await world.session.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_staleness_is_a_mean_over_tokens_and_a_maximum():
    old, new = PolicyVersion(1, 7), PolicyVersion(1, 9)
    samples = [
        Sample([1] * 4, [0.0] * 4, "", False, old, (VersionSpan(old, 1), VersionSpan(new, 3))),
        Sample([1] * 4, [0.0] * 4, "", False, new, (VersionSpan(new, 4),)),
    ]
    assert version_metrics(samples, 10) == {
        "staleness_mean": 2 / 8,
        "staleness_max": 2,
        "mixed_version_share": 0.5,
    }
    assert version_metrics([], 10) == {
        "staleness_mean": 0.0,
        "staleness_max": 0,
        "mixed_version_share": 0.0,
    }
