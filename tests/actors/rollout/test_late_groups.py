"""A group that takes much longer than its like gets a second copy on another worker."""

from __future__ import annotations

import asyncio

import pytest
from pool_world import (
    CONFIG,
    EXPECTED,
    World,
    broken,
    crashed,
    hang,
    refused,
    requests,
    run,
    seeds,
)

from actors.rollout.generation import FailedGroup

EAGER = CONFIG.model_copy(update={"redispatch_factor": 3.0, "redispatch_least_s": 1.0})


async def _answered(world: World, count: int, least: int) -> asyncio.Task:
    """A generate of which all but those of a stuck worker are answered; then a long time passes."""
    work = asyncio.create_task(world.pool.generate(requests(count)))
    await world.until(lambda: sum(len(worker.served) for worker in world.workers) >= least)
    await asyncio.sleep(0.01)
    return work


def test_a_slow_worker_does_not_hold_the_batch():
    async def scenario():
        world = World({0: {"generate": hang}}, EAGER)
        await world.pool.start(2)
        work = await _answered(world, 20, 16)
        world.clock.now = 0.9
        await asyncio.sleep(0.15)
        assert not work.done()  # nobody is late yet
        assert world.pool.redispatched == 0
        world.clock.now = 1.5
        assert seeds(await work) == EXPECTED[:20]
        status = world.pool.status()
        assert status["redispatched"] == 4
        assert status["failures"] == {}
        assert world.states() == ["healthy", "healthy"]
        await asyncio.sleep(0.02)
        assert [row["outstanding"] for row in world.pool.status()["workers"]] == [0, 0]
        assert world.workers[0].running == 0  # the copies that lost are cancelled
        await world.pool.close()

    run(scenario())


def test_the_first_answer_wins_even_if_it_is_the_late_one():
    async def scenario():
        gate = asyncio.Event()
        calls = []

        async def slow_after_the_first_batch():
            calls.append(1)
            if len(calls) > 4:
                await asyncio.sleep(1000)

        world = World(
            {0: {"generate": gate.wait}, 1: {"generate": slow_after_the_first_batch}}, EAGER
        )
        await world.pool.start(2)
        finished = []
        work = asyncio.create_task(
            world.pool.generate(requests(8), lambda group: finished.append(group.key))
        )
        await world.until(lambda: len(world.workers[1].served) == 4)
        await asyncio.sleep(0.01)
        world.clock.now = 1.5
        await world.until(lambda: world.pool.redispatched == 4)
        gate.set()
        assert seeds(await work) == EXPECTED[:8]
        assert sorted(finished) == sorted(f"q{i}" for i in range(8))  # each once
        await asyncio.sleep(0.02)
        assert [worker.running for worker in world.workers] == [0, 0]
        await world.pool.close()

    run(scenario())


@pytest.mark.parametrize(
    ("failure", "kind"), [(broken, "infrastructure"), (crashed, "data"), (refused, "data")]
)
def test_a_second_copy_that_no_worker_is_left_for_does_not_hold_up_a_group_that_is_given_up(
    failure, kind
):
    async def scenario():
        gate = asyncio.Event()
        calls = []

        async def fail_late():
            await gate.wait()
            await failure()

        async def fail_after_the_first_batch():
            calls.append(1)
            if len(calls) > 4:
                await (crashed if failure is crashed else broken)()

        twists = {0: {"generate": fail_late}, 1: {"generate": fail_after_the_first_batch}}
        world = World(twists, EAGER.model_copy(update={"group_attempts": 2}))
        await world.pool.start(2)
        work = asyncio.create_task(world.pool.generate(requests(8)))
        await world.until(lambda: len(world.workers[1].served) == 4)
        await asyncio.sleep(0.01)
        world.clock.now = 1.5
        # the second copies fail, and wait for a third worker
        await world.until(lambda: len(calls) == 8)
        await asyncio.sleep(0.01)
        gate.set()
        answers = await asyncio.wait_for(work, 100)
        failed = [answer for answer in answers if isinstance(answer, FailedGroup)]
        assert [answer.kind for answer in failed] == [kind] * 4
        await asyncio.sleep(0.02)
        assert [row["outstanding"] for row in world.pool.status()["workers"]] == [0, 0]
        await world.pool.close()

    run(scenario())


def test_no_second_copy_without_another_worker_or_where_it_is_switched_off():
    async def scenario(config, workers, twists):
        world = World(twists, config)
        await world.pool.start(workers)
        work = await _answered(world, 8, 4)
        world.clock.now = 100.0
        await asyncio.sleep(0.2)
        assert not work.done()
        assert world.pool.redispatched == 0
        work.cancel()
        await world.pool.close()

    stuck = {0: {"generate": hang}}
    run(scenario(EAGER.model_copy(update={"redispatch_factor": None}), 2, stuck))
    calls = []

    async def half():
        calls.append(1)
        if len(calls) > 4:
            await hang()

    run(scenario(EAGER, 1, {0: {"generate": half}}))
