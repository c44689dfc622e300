"""What the learners make of the driver's errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError

from actors.learners import loops as learner_loops
from actors.learners.loops import DriverClient
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
