"""Which worker gets which group, and what becomes of groups that a worker fails on."""

from __future__ import annotations

import asyncio

import pytest
from pool_world import CONFIG, EXPECTED, HASTY, World, broken, hang, requests, run, seeds

from actors.rollout.generation import FailedGroup


def test_work_is_spread_bounded_and_answered_in_order():
    async def scenario():
        world = World()
        await world.pool.start(2)
        finished = []
        answers = await world.pool.generate(requests(40), lambda group: finished.append(group.key))
        assert seeds(answers) == EXPECTED
        assert sorted(finished) == sorted(f"q{i}" for i in range(40))
        assert [len(worker.served) for worker in world.workers] == [20, 20]
        assert [worker.most for worker in world.workers] == [8, 8]
        status = world.pool.status()
        assert [row["generated_tokens"] for row in status["workers"]] == [40, 40]
        assert [row["outstanding"] for row in status["workers"]] == [0, 0]
        assert status["failures"] == {}
        await world.pool.close()
        assert all(worker.closed for worker in world.workers)

    run(scenario())


def test_the_least_busy_worker_gets_the_next_group():
    async def scenario():
        gate = asyncio.Event()
        world = World({0: {"generate": gate.wait}})
        await world.pool.start(2)
        finished = []

        def on_group(group):
            finished.append(group.key)
            if len(finished) == 36:
                gate.set()

        await world.pool.generate(requests(40), on_group)
        # a full engine and no more
        assert [len(worker.served) for worker in world.workers] == [4, 36]
        await world.pool.close()

    run(scenario())


def test_few_groups_are_spread_too():
    async def scenario():
        world = World()
        await world.pool.start(2)
        await world.pool.generate(requests(4, samples=1))
        assert [len(worker.served) for worker in world.workers] == [2, 2]
        await world.pool.close()

    run(scenario())


def test_a_group_waits_for_a_worker_that_has_not_failed_on_it_and_holds_up_no_other():
    async def scenario():
        calls = iter([broken])

        async def broken_once():
            for call in calls:
                await call()

        gate = asyncio.Event()
        twists = {0: {"generate": broken_once}, 1: {"generate": gate.wait}}
        world = World(twists, CONFIG.model_copy(update={"max_sequences": 2}))
        await world.pool.start(2)
        first = asyncio.create_task(world.pool.generate(requests(2)))
        await world.until(lambda: world.states() == ["suspect", "healthy"])
        await world.beat()
        assert world.states() == ["healthy", "healthy"]
        (later,) = await world.pool.generate(requests(1))
        assert not first.done()
        assert later.key == "q0"
        assert world.workers[0].served == ["q0"]
        gate.set()
        assert seeds(await first) == EXPECTED[:2]
        assert world.workers[1].served == ["q1", "q0"]
        await world.pool.close()

    run(scenario())


def test_a_group_larger_than_an_engine_is_still_served():
    async def scenario():
        world = World()
        await world.pool.start(1)
        answers = await world.pool.generate(requests(3, samples=20))
        assert [len(group.samples) for group in answers] == [20, 20, 20]
        await world.pool.close()

    run(scenario())


@pytest.mark.parametrize("twist", [broken, hang])
def test_a_call_that_fails_makes_suspect_and_the_group_goes_elsewhere(twist):
    async def scenario():
        world = World({0: {"generate": twist}}, HASTY)
        await world.pool.start(2)
        assert seeds(await world.pool.generate(requests(10))) == EXPECTED[:10]
        assert world.states() == ["suspect", "healthy"]
        assert world.pool.status()["failures"] == {"generate": 4}
        await world.beat()
        assert world.states() == ["healthy", "healthy"]
        assert not world.workers[0].killed
        await world.pool.close()

    run(scenario())


def test_after_the_last_attempt_the_group_is_an_infrastructure_failure():
    async def scenario():
        world = World(
            default={"generate": broken}, config=CONFIG.model_copy(update={"group_attempts": 2})
        )
        await world.pool.start(2)
        (failed,) = await world.pool.generate(requests(1))
        assert isinstance(failed, FailedGroup)
        assert failed.kind == "infrastructure"
        assert "given up after 2" in failed.reason
        assert "WorkerFailed: broken" in failed.reason
        assert world.pool.failures["infrastructure"] == 1
        await world.pool.close()

    run(scenario())


def test_a_request_at_fault_is_not_tried_again_and_hurts_nobody():
    async def scenario():
        world = World()
        await world.pool.start(2)
        bad = requests(1, prompt=(1, 2, 3, 4, 5))[0]
        first, failed, last = await world.pool.generate([requests(3)[0], bad, requests(3)[2]])
        assert failed == FailedGroup("q0", "data", "q0: too long")
        assert seeds([first, last]) == [[0, 1], [200, 201]]
        assert world.states() == ["healthy", "healthy"]
        assert world.pool.status()["failures"] == {"data": 1}
        await world.pool.close()

    run(scenario())


def test_an_error_in_the_callback_ends_the_rest_of_the_work():
    async def scenario():
        world = World({1: {"generate": hang}})
        await world.pool.start(2)

        def on_group(group):
            raise LookupError(group.key)

        with pytest.raises(LookupError):
            await world.pool.generate(requests(8), on_group)
        await asyncio.sleep(0.02)
        assert [worker.running for worker in world.workers] == [0, 0]
        assert [row["outstanding"] for row in world.pool.status()["workers"]] == [0, 0]
        await world.pool.close()

    run(scenario())


def test_a_cancelled_generate_leaves_no_work_behind():
    async def scenario():
        world = World(default={"generate": hang})
        await world.pool.start(2)
        work = asyncio.create_task(world.pool.generate(requests(40)))
        await world.until(lambda: all(worker.running == 8 for worker in world.workers))
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(0.02)
        status = world.pool.status()
        assert [row["outstanding"] for row in status["workers"]] == [0, 0]
        assert [worker.running for worker in world.workers] == [0, 0]
        await world.pool.close()

    run(scenario())


def test_the_time_that_a_worker_had_work_is_counted():
    async def scenario():
        gate = asyncio.Event()
        world = World({0: {"generate": gate.wait}})
        await world.pool.start(2)
        work = asyncio.create_task(world.pool.generate(requests(2)))
        await world.until(lambda: len(world.workers[1].served) == 1)
        await asyncio.sleep(0.01)
        world.clock.now = 2.0
        assert list(world.pool.busy_s().values()) == [2.0, 0.0]
        gate.set()
        await work
        world.clock.now = 5.0
        assert list(world.pool.busy_s().values()) == [2.0, 0.0]
        await world.pool.close()

    run(scenario())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_reaches_the_caller_and_is_no_failure_of_a_worker(workers, caplog):
    async def bug():
        assert 1 + 1 == 3, "a bug of ours"

    async def scenario():
        world = World({0: {"generate": bug}})
        await world.pool.start(workers)
        with pytest.raises(AssertionError, match="a bug of ours"):
            await world.pool.generate(requests(6))
        assert world.states() == ["healthy"] * workers
        assert world.pool.status()["failures"] == {}
        await asyncio.sleep(0.02)
        assert [row["outstanding"] for row in world.pool.status()["workers"]] == [0] * workers
        await world.pool.close()

    run(scenario())
    assert "a bug met by group q0 on worker 1" in caplog.text
    assert caplog.records[-1].worker == 1
    assert "Traceback" in caplog.text
