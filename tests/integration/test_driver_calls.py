"""The driver as an actor, and how its callers handle its errors: real Ray, cheap actors."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray

from actors.driver.driver import driver_concurrency
from actors.driver.session import KeptBatch, RLSession, Schedule, SessionError
from actors.driver.step_metrics import EngineWork
from actors.driver_handle import DriverError, result_of
from actors.learners.loops import DriverClient
from bi_ray.batches.batch import LearnerBatch
from bi_ray.learning.learner import TrainingError

pytestmark = pytest.mark.usefixtures("ray_local")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class SessionActor:
    """A real session with engines and batches that cost nothing."""

    def __init__(self, folder: Path):
        self.session = RLSession(0, self, folder / "m.jsonl", Schedule(steps=9))

    def policy_of(self, step):
        return Path("policy")

    async def make_batch(self, step):
        return KeptBatch(LearnerBatch(samples=(), samples_total=step), {})

    async def sync(self, version, path):
        pass

    async def validate(self, step):
        return {}

    def last_step(self):
        return None

    def engine_work(self):
        return EngineWork({}, 0)

    async def join(self, step):
        return await self.session.join(step)

    async def lease(self, step, incarnation):
        return (await self.session.lease(step, incarnation)).samples_total

    async def publish(self, incarnation, step, path, metrics):
        await self.session.publish(incarnation, step, Path(path), metrics)


@pytest.mark.parametrize("learners", [70, 130])
def test_every_learner_may_wait_for_a_batch_and_the_first_one_still_publishes(learners, tmp_path):
    calls = driver_concurrency(learners)
    driver = ray.remote(SessionActor).options(num_cpus=0, max_concurrency=calls).remote(tmp_path)
    incarnation = ray.get(driver.join.remote(0), timeout=60)
    first = [driver.lease.remote(1, incarnation) for _ in range(learners)]
    assert ray.get(first, timeout=60) == [1] * learners
    ahead = [driver.lease.remote(2, incarnation) for _ in range(learners - 1)]
    time.sleep(0.5)  # all of them wait
    ray.get(driver.publish.remote(incarnation, 1, "weights", {}), timeout=60)
    assert ray.get(ahead, timeout=60) == [2] * (learners - 1)
    # They die while waiting, and their successors wait, too.
    dead = [driver.lease.remote(3, incarnation) for _ in range(learners)]
    time.sleep(0.5)
    incarnation = ray.get(driver.join.remote(0), timeout=60)
    assert (
        ray.get([driver.lease.remote(1, incarnation) for _ in range(learners)], timeout=60)
        == [1] * learners
    )
    for call in dead:
        with pytest.raises(SessionError, match="replaced"):
            ray.get(call, timeout=60)
    ray.kill(driver)


class Refusing:
    def __init__(self, error):
        self.error = error

    def join(self, step):
        raise self.error

    def pid(self):
        return os.getpid()


def test_a_join_is_refused_for_good_or_only_this_time():
    """A driver without a session, or without a process, will not have one at the next attempt."""

    def client(error):
        actor = ray.remote(Refusing).options(num_cpus=0).remote(error)
        return actor, DriverClient(actor, 30, 30)

    with pytest.raises(TrainingError, match="no RL session is open"):
        client(SessionError("no RL session is open"))[1].join(0)
    with pytest.raises(RuntimeError, match="no engine") as caught:
        client(RuntimeError("no engine"))[1].join(0)
    assert not isinstance(caught.value, TrainingError)
    actor, dead = client(RuntimeError())
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(TrainingError, match="the driver died; run the same command again"):
        dead.join(0)


class Analyzer:
    def pid(self):
        return os.getpid()

    def measure(self):
        time.sleep(60)


class Asking:
    async def measure(self, analyzer):
        await analyzer.measure.remote()


def test_an_actor_that_dies_under_a_call_of_the_driver_is_not_the_driver():
    analyzer = ray.remote(Analyzer).options(num_cpus=0, max_concurrency=2).remote()
    driver = ray.remote(Asking).options(num_cpus=0).remote()
    pid = ray.get(analyzer.pid.remote())
    call = driver.measure.remote(analyzer)
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DriverError) as caught:
        result_of(call, 60)
    assert str(caught.value).startswith("an actor that the driver needs died")
    assert len(str(caught.value).splitlines()) == 1
