"""Routing, retries, syncs and membership of the pool, driven through small workers inside the
test's own process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import virtual_time

from actors.rollout.pool import FailedGroup, RolloutPool
from actors.rollout.queue import PoolError
from actors.rollout.worker import EngineCrashed, Ping, RequestError, WorkerInfo, WorkerLost
from actors.weights.shared_memory import FileAnnouncement
from bi_ray.batches.rollout import Group, GroupRequest, Sample, SamplingConfig
from bi_ray.config import RolloutConfig
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
    """Answers at once, unless told to misbehave: a mapping from a method to what it does instead."""

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
    raise RuntimeError("broken")


async def crashed():
    raise EngineCrashed("gone")


async def refused():
    raise RequestError("too long")


async def hang():
    await asyncio.sleep(1000)


class World:
    """A pool, the workers that it made, and the time. ``twists[i]`` is for the i-th worker ever
    made.
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
        await world.pool.beat()
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


@pytest.mark.parametrize("twist", [broken, hang])
def test_a_call_that_fails_makes_suspect_and_the_group_goes_elsewhere(twist):
    async def scenario():
        world = World({0: {"generate": twist}}, HASTY)
        await world.pool.start(2)
        assert seeds(await world.pool.generate(requests(10))) == EXPECTED[:10]
        assert world.states() == ["suspect", "healthy"]
        assert world.pool.status()["failures"] == {"generate": 4}
        await world.pool.beat()
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
        assert "RuntimeError: broken" in failed.reason
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
            match=r"no rollout worker took version 1\.1; first error: RuntimeError: broken",
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
        world.pool._files = Stubborn()
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


def test_a_silent_worker_is_suspect_then_dead_and_its_groups_move_on():
    async def scenario():
        world = World({0: {"ping": hang, "generate": hang}})
        await world.pool.start(2)
        work = asyncio.create_task(world.pool.generate(requests(8)))
        await world.until(lambda: len(world.workers[1].served) == 4)
        world.clock.now = 1.5
        await world.pool.beat()
        assert world.states() == ["suspect", "healthy"]
        assert not work.done()
        world.clock.now = 5.5
        await world.pool.beat()
        assert seeds(await work) == EXPECTED[:8]
        await world.settle()
        assert world.workers[0].killed
        assert world.states() == ["healthy", "healthy"]
        assert world.pool.failures["silent"] == 1
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
            PoolError, match="1 of 1 rollout workers did not start: RuntimeError: broken"
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
        await world.pool.beat()
        assert not work.done()
        world.clock.now = 101.0
        await world.pool.beat()
        reason = (
            r"no rollout engine for 100 s \(rollout.no_engine_timeout_s\); .* RuntimeError: broken"
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
    # why the first one was late
    assert "lower rollout.workers or rollout.cpus_per_worker" in caplog.text


async def unusable():
    raise ValueError("no memory is free on this device")


def test_a_worker_that_cannot_even_be_made_is_made_later_and_the_heart_beats_on():
    async def scenario():
        world = World({0: {"ping": lost}, 1: {}}, CONFIG.model_copy(update={"heartbeat_s": 5}))
        make, failures = world.pool._make_worker, iter([RuntimeError("the GCS is away")])

        def make_or_fail():
            for failure in failures:
                raise failure
            return make()

        await world.pool.start(2)
        world.pool._make_worker = make_or_fail
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

        world.pool.beat = beat
        await asyncio.sleep(16)
        assert len(beats) == 3
        await world.pool.close()

    run(scenario())
    assert "Traceback" in caplog.text


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
        release, losses = world.pool._queue.release, iter([WorkerLost("gone")])

        def release_and_lose(member, samples):
            release(member, samples)  # the next group is given this worker, and has not begun
            for loss in losses:
                world.pool._lose(member, "lost", loss)

        world.pool._queue.release = release_and_lose
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

        world.pool._make_worker = make
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

        world.pool._make_worker = make
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


@pytest.mark.parametrize("in_flight", [False, True])
def test_workers_are_told_whether_to_finish_their_work_before_a_sync(in_flight):
    async def scenario():
        world = World()
        await world.pool.start(2)
        await world.pool.sync(announcement(V1), in_flight)
        assert [worker.swaps for worker in world.workers] == [[in_flight], [in_flight]]
        await world.pool.close()

    run(scenario())
