"""Weights reach the workers in service; those that fail are replaced."""

from __future__ import annotations

import asyncio

import pytest
from pool_world import HASTY, V1, V2, World, announcement, broken, hang, lost, requests, run

from actors.rollout.queue import PoolError


@pytest.mark.parametrize("twist", [broken, hang, lost])
def test_a_failed_sync_costs_one_worker_and_not_the_others(twist):
    async def scenario():
        world = World({0: {"sync": twist}}, HASTY)
        await world.pool.start(2)
        await world.pool.sync(announcement(V1))
        assert world.workers[0].killed
        assert world.workers[1].version == V1
        assert world.states()[1] == "healthy"
        assert world.states()[0] != "healthy"
        await world.settle()
        assert world.workers[2].version == V1
        assert world.pool.status()["failures"] == {"sync": 1}
        await world.pool.close()

    run(scenario())


def test_a_sync_that_nobody_could_load_is_an_error_with_its_reason():
    async def scenario():
        world = World(default={"sync": broken})
        await world.pool.start(2)
        with pytest.raises(
            PoolError,
            match=r"no rollout worker took version 1\.1; first error: WorkerFailed: broken",
        ):
            await world.pool.sync(announcement(V1))
        await world.pool.close()

    run(scenario())


@pytest.mark.parametrize("twist", [lost, hang])
@pytest.mark.parametrize("workers", [1, 2])
def test_where_every_engine_ends_over_a_sync_their_successors_take_the_version(twist, workers):
    async def scenario():
        world = World({i: {"sync": twist} for i in range(workers)}, HASTY)
        await world.pool.start(workers)
        await world.pool.sync(announcement(V1))
        answers = await world.pool.generate(requests(4))
        assert {sample.version for group in answers for sample in group.samples} == {V1}
        await world.settle()
        assert [worker.version for worker in world.workers[workers:]] == [V1] * workers
        await world.pool.close()

    run(scenario())


def test_weights_that_cannot_be_removed_are_no_reason_to_fail():
    class Stubborn:
        async def release(self, announcement):
            raise OSError("the node is gone")

        async def clear(self):
            pass

    async def scenario():
        world = World()
        world.pool._weights = Stubborn()
        await world.pool.start(1)
        await world.pool.sync(announcement(V1))
        assert world.workers[0].version == V1
        await world.pool.close()

    run(scenario())


def test_versions_never_go_back():
    async def scenario():
        world = World()
        await world.pool.start(1)
        await world.pool.sync(announcement(V2))
        with pytest.raises(PoolError, match="older"):
            await world.pool.sync(announcement(V1))
        assert world.workers[0].version == V2
        await world.pool.close()

    run(scenario())


def test_a_newcomer_gives_no_answer_before_it_has_the_current_weights():
    async def scenario():
        gate = asyncio.Event()
        world = World({1: {"sync": gate.wait}})
        await world.pool.start(1)
        await world.pool.sync(announcement(V1))
        await world.pool.scale(2)
        await world.until(lambda: world.states() == ["healthy", "stale"])
        later = asyncio.create_task(world.pool.sync(announcement(V2)))  # waits for the admission
        answers = await world.pool.generate(requests(10))
        assert {sample.version for group in answers for sample in group.samples} == {V1}
        assert world.workers[1].served == []
        gate.set()
        await later
        assert [worker.version for worker in world.workers] == [V2, V2]
        assert world.states() == ["healthy", "healthy"]
        await world.pool.close()

    run(scenario())


@pytest.mark.parametrize("in_flight", [False, True])
def test_workers_are_told_whether_to_finish_their_work_before_a_sync(in_flight):
    async def scenario():
        world = World()
        await world.pool.start(2)
        await world.pool.sync(announcement(V1), in_flight)
        assert [worker.swaps for worker in world.workers] == [[in_flight], [in_flight]]
        await world.pool.close()

    run(scenario())


def test_a_bug_in_a_sync_reaches_the_caller_and_costs_the_worker_whose_weights_are_unknown(caplog):
    async def bug():
        raise KeyError("a bug of ours")

    async def scenario():
        world = World({0: {"sync": bug}})
        await world.pool.start(2)
        with pytest.raises(KeyError, match="a bug of ours"):
            await world.pool.sync(announcement(V1))
        assert world.workers[0].killed
        assert world.pool.status()["failures"] == {"bug": 1}
        await world.settle()
        assert world.workers[2].version == V1
        await world.pool.close()

    run(scenario())
    assert "Traceback" in caplog.text
