"""Calls of the driver end in a result or in one clear error; without a Ray cluster."""

import io
import logging
import time

import pytest
import ray
from rich.console import Console

from actors import driver_handle
from actors.driver_handle import DriverError, DriverHandle, result_of
from actors.learners.loops import DRIVER_DIED
from bi_ray.config.run import RunConfig
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.display import Display


@pytest.fixture
def answers(monkeypatch):
    """``ray.get`` gives these one after the other; after the last, calls are still running."""
    queue = []

    def get(reference, timeout):
        answer = queue.pop(0) if queue else ray.exceptions.GetTimeoutError()
        if isinstance(answer, ray.exceptions.GetTimeoutError):
            time.sleep(timeout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(driver_handle, "_POLL_S", 0.01)
    return queue


def test_a_result_is_waited_for_with_something_to_do(answers):
    late = ray.exceptions.GetTimeoutError()
    answers += [late, late, "result"]
    calls = []
    assert result_of("reference", 10, lambda: calls.append("progress")) == "result"
    assert calls == ["progress", "progress"]


def test_a_call_ends_at_its_deadline(answers):
    with pytest.raises(DriverError, match=r"did not answer within 0\.05 s"):
        result_of("reference", 0.05)
    with pytest.raises(DriverError, match=r"did not answer within 0\.05 s"):
        result_of("reference", 0.05, lambda: None)


def task_error(cause):
    return ray.exceptions.RayTaskError("measure", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (task_error(ValueError("no engine")), "no engine"),
        (ray.exceptions.RayActorError(), DRIVER_DIED),
        (task_error(ray.exceptions.RayActorError()), "an actor that the driver needs died"),
    ],
)
def test_a_failed_call_says_who_failed(answers, error, message):
    answers.append(error)
    with pytest.raises(DriverError) as caught:
        result_of("reference", 1)
    assert str(caught.value).startswith(message)
    assert caught.value.__cause__ is error


class Closing:
    """Stands for the actor; its close never answers."""

    class close:
        @staticmethod
        def remote():
            return "reference"


def test_a_driver_that_does_not_close_is_killed_and_leaves_a_traceback(
    answers, monkeypatch, tmp_path, caplog
):
    config = RunConfig.model_validate(
        {
            "name": "run",
            "task": {"sets": {"rl": {}}},
            "arms": ["base"],
            "evaluation": {"sets": []},
            "ray": {"call_timeout_s": 0.05},
        }
    )
    shown = io.StringIO()
    handle = DriverHandle(config, RunDirectory(tmp_path), Display(Console(file=shown)))
    handle.close()  # never started
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    handle._actor = actor = Closing()
    with caplog.at_level(logging.WARNING):
        handle.close()
    assert killed == [actor]
    assert "the driver did not close" in shown.getvalue()
    assert any(record.exc_info for record in caplog.records)
