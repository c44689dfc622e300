"""Engines die at work: no group is lost, and one that ends engine after engine is given up."""

from __future__ import annotations

import asyncio

import pytest
from pool_world import CONFIG, EXPECTED, V1, Worker, World, announcement, lost, requests, run, seeds

from actors.rollout.generation import FailedGroup
from actors.rollout.handle import EngineCrashed, WorkerLost
from bi_ray.batches.rollout import GroupRequest, SamplingConfig


def test_a_lost_worker_is_replaced_synced_and_its_groups_come_back_the_same():
    async def scenario():
        world = World({0: {"generate": lost}})
        await world.pool.start(2)
        await world.pool.sync(announcement(V1))
        assert seeds(await world.pool.generate(requests(40))) == EXPECTED
        await world.settle()
        assert world.states() == ["healthy", "healthy"]
        assert world.workers[0].killed
        assert world.workers[0].served == []
        assert world.workers[2].version == V1
        row = world.pool.status()["workers"][0]
        assert (row["restarts"], row["pid"], row["version"], row["outstanding"]) == (1, 2, "1.1", 0)
        assert world.pool.status()["failures"] == {"lost": 1}
        await world.pool.close()

    run(scenario())


def test_the_deaths_of_engines_lose_no_group():
    async def scenario():
        world = World({i: {"generate": lost} for i in range(6)})
        await world.pool.start(2)
        assert seeds(await world.pool.generate(requests(6))) == EXPECTED[:6]
        assert world.pool.failures["infrastructure"] == 0
        await world.pool.close()

    run(scenario())


def test_a_worker_that_ends_between_the_choice_and_the_call_costs_nothing():
    async def scenario():
        world = World(config=CONFIG.model_copy(update={"max_sequences": 2}))
        await world.pool.start(1)
        release, losses = world.membership.queue.release, iter([WorkerLost("gone")])

        def release_and_lose(member, samples):
            release(member, samples)  # the next group is given this worker, and has not begun
            for loss in losses:
                world.membership.lose(member, "lost", loss)

        world.membership.queue.release = release_and_lose
        assert seeds(await world.pool.generate(requests(4))) == EXPECTED[:4]
        assert world.workers[0].served == ["q0"]
        assert [row["outstanding"] for row in world.pool.status()["workers"]] == [0]
        await world.pool.close()

    run(scenario())


class Poison:
    """A request that ends every engine which it comes to, together with all that the engine has in
    work.
    """

    def __init__(self, keys: set[str], loss: type[WorkerLost]):
        self.keys, self.loss = keys, loss
        self.ended = 0

    def make(self, number: int) -> Worker:
        poison = self

        class Victim(Worker):
            ends = False

            async def generate(self, request):
                if request.key in poison.keys:
                    self.ends = True
                    poison.ended += 1
                group = await Worker.generate(self, request)
                if self.ends:
                    raise poison.loss("gone")
                return group

        return Victim(number, {})


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("loss", "most", "kind"), [(EngineCrashed, 2, "data"), (WorkerLost, 20, "infrastructure")]
)
@pytest.mark.parametrize("keys", [{"q3"}, {"q0", "q5", "q11"}])
def test_a_group_that_ends_engine_after_engine_is_given_up_and_its_neighbors_are_not(
    workers, loss, most, kind, keys
):
    async def scenario():
        world, poison = World(), Poison(keys, loss)

        def make():
            world.workers.append(poison.make(len(world.workers)))
            return world.workers[-1]

        world.make_workers_with(make)
        await world.pool.start(workers)
        answers = await world.pool.generate(requests(12))
        for number, answer in enumerate(answers):
            if f"q{number}" in keys:
                assert isinstance(answer, FailedGroup)
                assert answer.kind == kind
                assert f"{most} engines" in answer.reason
            else:
                assert seeds([answer]) == [EXPECTED[number]]
        assert poison.ended <= most * len(keys)
        assert world.pool.failures[kind] == len(keys)
        await world.settle()
        assert seeds(await world.pool.generate(requests(2)[1:])) == EXPECTED[1:2]
        await world.pool.close()

    run(scenario())


def test_a_group_that_must_be_alone_gets_an_engine_although_others_keep_coming():
    async def scenario():
        world, poison = World(), Poison({"bad"}, EngineCrashed)

        def make():
            world.workers.append(poison.make(len(world.workers)))
            return world.workers[-1]

        world.make_workers_with(make)
        await world.pool.start(1)
        done = asyncio.Event()

        async def others():
            while not done.is_set():
                await world.pool.generate(requests(8))

        crowd = [asyncio.create_task(others()) for _ in range(4)]
        await asyncio.sleep(0.05)
        (failed,) = await world.pool.generate([GroupRequest("bad", (1, 2), SamplingConfig(2), 0)])
        assert isinstance(failed, FailedGroup)
        done.set()
        await asyncio.gather(*crowd)
        assert world.pool.failures["data"] == 1
        await world.pool.close()

    run(scenario())
