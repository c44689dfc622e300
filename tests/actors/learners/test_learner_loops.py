"""What the learners make of the driver's errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

from actors.learners import loops as learner_loops
from actors.learners.loops import DriverClient
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, RLConfig
from bi_ray.learning import rl
from bi_ray.learning.learner import TrainingError
from bi_ray.verification.verdicts import VerdictError


def driver_that_raises(error, monkeypatch):
    """A client whose every call ends as Ray ends a call in which the driver raised ``error``."""

    def get(call, timeout):
        raise RayTaskError("call", "traceback", error)

    monkeypatch.setattr(learner_loops.ray, "get", get)
    method = SimpleNamespace(remote=lambda *arguments: None)
    actor = SimpleNamespace(join=method, lease=method, publish=method)
    return DriverClient(actor, 30, 30)


CALLS = [
    lambda client: client.join(0),
    lambda client: client.lease(1, 1),
    lambda client: client.publish(1, 1, Path("weights"), {}),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_stage_without_verdicts_is_final_in_every_call(call, monkeypatch):
    client = driver_that_raises(VerdictError("none of 4 responses could be judged"), monkeypatch)
    with pytest.raises(TrainingError, match="none of 4 responses could be judged"):
        call(client)


@pytest.mark.parametrize("call", CALLS)
def test_any_other_error_of_the_driver_may_pass(call, monkeypatch):
    client = driver_that_raises(RuntimeError("no engine"), monkeypatch)
    with pytest.raises(RuntimeError, match="no engine") as caught:
        call(client)
    assert not isinstance(caught.value, TrainingError)


def test_a_deadline_that_passed_names_its_option(monkeypatch):
    def get(call, timeout):
        raise GetTimeoutError("late")

    monkeypatch.setattr(learner_loops.ray, "get", get)
    method = SimpleNamespace(remote=lambda *arguments: None)
    client = DriverClient(SimpleNamespace(join=method, checkpointed=method), 10, 30)
    with pytest.raises(TimeoutError, match=r"no answer to join within 30 s \(rl.batch_timeout_s\)"):
        client.join(0)
    with pytest.raises(TimeoutError, match=r"checkpointed 4 within 10 s \(ray.call_timeout_s\)"):
        client.checkpointed(4)


def test_a_driver_that_is_cut_off_may_come_back_and_a_dead_one_will_not(monkeypatch):
    errors = [ActorUnavailableError("no connection", b"1" * 16), ActorDiedError()]

    def get(call, timeout):
        raise errors.pop(0)

    monkeypatch.setattr(learner_loops.ray, "get", get)
    method = SimpleNamespace(remote=lambda *arguments: None)
    client = DriverClient(SimpleNamespace(join=method), 30, 30)
    with pytest.raises(ConnectionError, match="the driver cannot be reached"):
        client.join(0)
    with pytest.raises(TrainingError, match="the driver died; run the same command again"):
        client.join(0)


def test_a_join_that_times_out_once_is_raised_for_a_restart_and_then_succeeds(
    monkeypatch, tmp_path, caplog
):
    """Ray Train starts the group again, ``learner.max_restarts`` times, for what a loop raises.

    What a loop returns is final.
    """
    answers = iter([GetTimeoutError("late"), 3])
    joined = []

    def get(call, timeout):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def train(job, driver, device):
        directories = SimpleNamespace(recover=lambda last_step: 2)
        joined.append(rl._join(directories, job.config.steps, driver))

    monkeypatch.setattr(learner_loops.ray, "get", get)
    monkeypatch.setattr(learner_loops, "get_device", lambda: "cpu")
    monkeypatch.setattr(learner_loops, "make_weights_directory", lambda folder: None)
    monkeypatch.setattr(learner_loops, "start_logging", lambda *names: None)
    monkeypatch.setattr(rl.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(rl.distributed, "broadcast_object_list", lambda objects: None)
    monkeypatch.setattr(rl, "train", train)
    method = SimpleNamespace(remote=lambda *arguments: None)
    job = {
        "base": str(tmp_path),
        "output": str(tmp_path),
        "weights": str(tmp_path),
        "rl": RLConfig().model_dump(),
        "model": ModelConfig().model_dump(),
        "learner": LearnerConfig().model_dump(),
        "driver": SimpleNamespace(join=method),
        "call_timeout_s": 30,
    }
    with pytest.raises(rl.JoinError, match="the driver had no answer to join within"):
        learner_loops.rl_loop(job)
    assert "rank 0 did not join" in caplog.text
    assert "GetTimeoutError: late" in caplog.text  # the traceback
    assert learner_loops.rl_loop(job) is None
    assert joined == [(2, 3)]
