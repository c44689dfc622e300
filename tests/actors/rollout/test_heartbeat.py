"""Silent workers are found, and the heartbeat itself outlives failures."""

from __future__ import annotations

import asyncio

import pytest
from pool_world import CONFIG, EXPECTED, World, hang, lost, requests, run, seeds

from actors.rollout.queue import PoolError


def test_a_silent_worker_is_suspect_then_dead_and_its_groups_move_on():
    async def scenario():
        world = World({0: {"ping": hang, "generate": hang}})
        await world.pool.start(2)
        work = asyncio.create_task(world.pool.generate(requests(8)))
        await world.until(lambda: len(world.workers[1].served) == 4)
        world.clock.now = 1.5
        await world.beat()
        assert world.states() == ["suspect", "healthy"]
        assert not work.done()
        world.clock.now = 5.5
        await world.beat()
        assert seeds(await work) == EXPECTED[:8]
        await world.settle()
        assert world.workers[0].killed
        assert world.states() == ["healthy", "healthy"]
        assert world.pool.failures["silent"] == 1
        await world.pool.close()

    run(scenario())


def test_a_worker_that_cannot_even_be_made_is_made_later_and_the_heart_beats_on():
    async def scenario():
        world = World({0: {"ping": lost}, 1: {}}, CONFIG.model_copy(update={"heartbeat_s": 5}))
        make, failures = world.membership._make_worker, iter([RuntimeError("the GCS is away")])

        def make_or_fail():
            for failure in failures:
                raise failure
            return make()

        await world.pool.start(2)
        world.membership._make_worker = make_or_fail
        await asyncio.sleep(6)
        await world.settle()
        assert world.states() == ["healthy", "healthy"]
        world.workers[1].twists["ping"] = lost
        await asyncio.sleep(6)
        assert world.workers[1].killed
        await world.settle()
        assert len(world.workers) == 4
        await world.pool.close()

    run(scenario())


def test_a_heartbeat_that_fails_is_logged_and_not_the_last(caplog):
    async def scenario():
        world = World(config=CONFIG.model_copy(update={"heartbeat_s": 5}))
        await world.pool.start(1)
        beats = []

        async def beat():
            beats.append(1)
            raise LookupError("of a kind that nobody thought of")

        world.pool._heartbeat.beat = beat
        await asyncio.sleep(16)
        assert len(beats) == 3
        await world.pool.close()

    run(scenario())
    assert "Traceback" in caplog.text


def test_if_the_heartbeat_ever_ends_nobody_waits_for_a_worker_any_more(caplog):
    class Uncaught(BaseException):
        pass

    async def beat():
        raise Uncaught("of a kind that no except clause names")

    async def scenario():
        world = World({0: {"generate": hang}}, CONFIG.model_copy(update={"heartbeat_s": 5}))
        await world.pool.start(1)
        world.pool._heartbeat.beat = beat
        work = asyncio.create_task(world.pool.generate(requests(40)))
        with pytest.raises(PoolError, match="heartbeat of the rollout pool ended: Uncaught"):
            await work
        await world.pool.close()

    run(scenario())
    assert "Traceback" in caplog.text
