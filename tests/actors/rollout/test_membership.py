"""Workers start, are tried again, come and leave."""

from __future__ import annotations

import asyncio

import pytest
from pool_world import (
    CONFIG,
    EXPECTED,
    HASTY,
    V1,
    World,
    announcement,
    broken,
    hang,
    lost,
    requests,
    run,
    seeds,
)

from actors.rollout.queue import PoolError


def test_scaling_down_lets_the_work_finish():
    async def scenario():
        gate = asyncio.Event()
        world = World(default={"generate": gate.wait})
        await world.pool.start(3)
        work = asyncio.create_task(world.pool.generate(requests(40)))
        await world.until(lambda: all(worker.running == 8 for worker in world.workers))
        await world.pool.scale(1)
        assert sorted(world.states()) == ["draining", "draining", "healthy"]
        gate.set()
        assert seeds(await work) == EXPECTED
        await world.until(lambda: world.states() == ["healthy"])
        gone = [worker for worker in world.workers if worker.closed]
        assert [len(worker.served) for worker in gone] == [4, 4]
        assert world.pool.status()["failures"] == {}
        with pytest.raises(PoolError, match="scale to 1 or more"):
            await world.pool.scale(0)
        await world.pool.close()

    run(scenario())


def test_a_start_that_takes_too_long_says_what_to_change():
    async def scenario():
        world = World({1: {"start": hang}}, HASTY)
        with pytest.raises(
            PoolError, match=r"1 of 2 .* lower rollout.workers or rollout.cpus_per_worker"
        ):
            await world.pool.start(2)
        assert all(worker.killed or worker.closed for worker in world.workers)

    run(scenario())


def test_a_start_that_fails_is_tried_again_and_then_given_up_with_its_reason():
    async def scenario():
        world = World({0: {"start": broken}, 1: {"start": broken}})
        await world.pool.start(1)
        assert world.states() == ["healthy"]
        assert len(world.workers) == 3
        await world.pool.close()
        hopeless = World(default={"start": broken})
        with pytest.raises(
            PoolError, match="1 of 1 rollout workers did not start: WorkerFailed: broken"
        ):
            await hopeless.pool.start(1)
        assert len(hopeless.workers) == 3

    run(scenario())


def test_when_no_worker_can_be_had_for_long_nobody_waits_for_ever():
    async def scenario():
        broken_since = {0: {"generate": lost}}
        world = World(
            broken_since, CONFIG.model_copy(update={"no_engine_timeout_s": 100}), {"start": broken}
        )
        await world.pool.start(1)
        work = asyncio.create_task(world.pool.generate(requests(40)))
        await world.until(lambda: len(world.workers) == 4)
        world.clock.now = 99.0
        await world.beat()
        assert not work.done()
        world.clock.now = 101.0
        await world.beat()
        reason = (
            r"no rollout engine for 100 s \(rollout.no_engine_timeout_s\); .* WorkerFailed: broken"
        )
        with pytest.raises(PoolError, match=reason):
            await work
        with pytest.raises(PoolError, match=reason):
            await world.pool.generate(requests(1))
        with pytest.raises(PoolError, match=reason):
            await world.pool.sync(announcement(V1))
        world.default.clear()  # now there is room
        await world.settle()
        assert seeds(await world.pool.generate(requests(1))) == EXPECTED[:1]
        assert world.workers[-1].version == V1
        await world.pool.close()

    run(scenario())


async def unusable():
    raise ValueError("no memory is free on this device")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_place_is_not_given_up_after_late_and_failed_starts(workers, caplog):
    async def scenario():
        failing = (
            {"start": hang},
            {"start": broken},
            {"start": unusable},
            {"start": lost},
            {"sync": broken},
        )
        twists = {0: {"generate": lost}} | {workers + i: twist for i, twist in enumerate(failing)}
        world = World(twists, HASTY.model_copy(update={"heartbeat_s": 2}))
        await world.pool.start(workers)
        await world.pool.sync(announcement(V1))
        began = asyncio.get_running_loop().time()
        assert seeds(await world.pool.generate(requests(12))) == EXPECTED[:12]
        await world.settle()
        assert world.states() == ["healthy"] * workers
        assert asyncio.get_running_loop().time() - began >= 2 + 4 + 8 + 16  # pauses that grow
        await world.pool.close()

    run(scenario())
    assert "worker 1 did not start 4 times in a row; next attempt in 8 s" in caplog.text
    assert "worker 1 is in service again" in caplog.text
    assert {record.worker for record in caplog.records} == {1}
    # why the first one was late
    assert "lower rollout.workers or rollout.cpus_per_worker" in caplog.text
