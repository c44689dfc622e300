"""A rollout worker as the pool sees it: its calls, what they return, and how they fail.

Every error of a call is one of three kinds. The request is at fault (``RequestError``): trying it
elsewhere is useless. The worker is (``WORKER_FAULTS``): another one is asked. Anything else is a
bug of this program: it reaches the caller with its traceback and is never counted as a failure of
an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from actors.weights.base import Announcement
from bi_ray.batches.rollout import Group, GroupRequest
from bi_ray.policy.version import PolicyVersion

INITIAL_VERSION = PolicyVersion(0, 0)  # the checkpoint that an engine was built from


class RequestError(ValueError):
    """The request itself is at fault; its prompt is too long, for example."""


class WorkerFailed(RuntimeError):
    """The engine, or the way to it, failed on a call; the worker may still be alive."""


class WorkerLost(WorkerFailed):
    """The worker will never answer again."""


class EngineCrashed(WorkerLost):
    """The engine ended by an error of its own: whatever it was working on may be at fault."""


WORKER_FAULTS = (WorkerFailed, TimeoutError)


def describe(error: BaseException) -> str:
    """An error with its type, for a log line or the reason of a failure."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a worker runs.

    Attributes:
        node_id: Ray node.
        pid: process of the actor.
        engine_pid: process of its engine.
    """

    node_id: str
    pid: int
    engine_pid: int


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life.

    Attributes:
        version: the weights that the engine holds.
        running: number of sequences that it is generating.
    """

    version: PolicyVersion
    running: int


class WorkerHandle(Protocol):
    """A worker behind remote calls.

    Deadlines are the caller's. Every call may raise ``WorkerFailed`` or ``WorkerLost``.
    """

    async def start(self) -> WorkerInfo:
        """Bring the engine up and warm it."""

    async def generate(self, request: GroupRequest) -> Group:
        """Sample a group; cancelling the call ends the work.

        Raises:
            RequestError: the request is at fault.
        """

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Load the announced weights; running requests finish first, or continue under them.

        Raises:
            WeightSyncError: they could not be loaded.
        """

    async def ping(self) -> Ping:
        """Give a sign of life."""

    async def close(self) -> None:
        """Shut the engine down."""

    def kill(self) -> None:
        """End everything at once; never fails, may be called at any time."""
