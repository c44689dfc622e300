"""Errors of remote calls, as the pool gets them."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.rollout.handle import EngineCrashed, RequestError, WorkerFailed, WorkerLost
from actors.rollout.worker import _await


def raised_there(error):
    """As the caller of an actor gets what its code has raised."""
    return RayTaskError("generate", "traceback over there", error).as_instanceof_cause()


def error_of(error):
    async def call():
        raise error

    with pytest.raises(Exception) as caught:
        asyncio.run(_await(call()))
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        RequestError("too long"),
        WorkerFailed("the engine failed"),
        EngineCrashed("the engine's process crashed"),
        AssertionError("a bug of ours"),
    ],
)
def test_what_the_worker_raised_keeps_its_type_and_the_traceback_over_there(error):
    received = error_of(raised_there(error))
    assert type(received) is type(error)
    assert str(received) == str(error)
    assert "traceback over there" in "".join(traceback.format_exception(received))


def test_an_actor_that_is_gone_is_lost_and_one_out_of_reach_may_come_back():
    assert type(error_of(ActorDiedError())) is WorkerLost
    assert type(error_of(ActorUnavailableError("unreachable", None))) is WorkerFailed


@pytest.mark.parametrize("error", [WorkerCrashedError(), ObjectLostError("id", None, "")])
def test_any_other_trouble_of_ray_is_a_failure_of_the_worker(error):
    received = error_of(error)
    assert type(received) is WorkerFailed
    assert str(received).startswith(type(error).__name__)
    assert "\n" not in str(received)
