"""A place in the rollout pool, and the worker that has it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from actors.rollout.handle import WorkerHandle, WorkerInfo, WorkerLost
from actors.rollout.worker_state import WorkerHealth, WorkerState
from actors.weights.base import Announcement
from bi_ray.policy.version import PolicyVersion

_IN_SERVICE = (WorkerState.HEALTHY, WorkerState.SUSPECT)
_AT_WORK = (*_IN_SERVICE, WorkerState.DRAINING)


def new_future() -> asyncio.Future[Any]:
    """A future of the running event loop."""
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class Member:
    """A place in the pool. Its worker may be replaced; ``lost`` then belongs to the successor.

    Attributes:
        number: names the place, from 1 on.
        health: state of its worker.
        handle: its worker, once there is one.
        lost: done when the worker has ended, with what ended it.
        info: where the worker runs, once it has started.
        version: the weights that it holds, once they are known.
        outstanding: sequences that it is working on.
        is_taken: it has a group that must be alone.
        generated_tokens: in all finished groups of the place.
        busy_s: seconds with anything outstanding, up to ``busy_since`` if that is set.
        busy_since: when it got something to do, by the pool's clock; None: it is idle.
        restarts: how many successors its first worker had.
        task: brings the worker up, or drains it.
    """

    number: int
    health: WorkerHealth
    handle: WorkerHandle | None = None
    lost: asyncio.Future[WorkerLost] = field(default_factory=new_future)
    info: WorkerInfo | None = None
    version: PolicyVersion | None = None
    outstanding: int = 0
    is_taken: bool = False
    generated_tokens: int = 0
    busy_s: float = 0.0
    busy_since: float | None = None
    restarts: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def state(self) -> WorkerState:
        """State of its worker."""
        return self.health.state

    @property
    def is_in_service(self) -> bool:
        """Whether its worker takes part in syncs and is pinged."""
        return self.state in _IN_SERVICE

    @property
    def is_at_work(self) -> bool:
        """Whether its worker may still answer requests."""
        return self.state in _AT_WORK

    def is_served_by(self, handle: WorkerHandle) -> bool:
        """Whether that worker still has this place and is in service."""
        return self.handle is handle and self.is_in_service

    async def answer(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Await a call to its worker, for as long as there can be an answer.

        Raises:
            WorkerLost: the worker ended before it answered.
            Exception: whatever the call raises.
        """
        answer, lost = asyncio.ensure_future(call), self.lost
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                loss = lost.result()
                raise type(loss)(str(loss))  # each waiter gets one of its own, for its traceback
            return answer.result()
        finally:
            answer.cancel()

    async def load(
        self, announcement: Announcement, timeout_s: float, in_flight: bool = False
    ) -> None:
        """Have its worker load the announced weights.

        Raises:
            TimeoutError: it took longer than ``timeout_s``.
            WorkerFailed, WeightSyncError: see ``WorkerHandle.sync``.
        """
        assert self.handle is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self.answer(self.handle.sync(announcement, in_flight))
        except TimeoutError as error:
            limit = f"{timeout_s:g} s (rollout.sync_timeout_s)"
            raise TimeoutError(
                f"it did not take version {announcement.version} within {limit}"
            ) from error
        self.version = announcement.version

    def let_go(self, loss: WorkerLost) -> None:
        """Fail the calls that wait for an answer of its worker."""
        if not self.lost.done():
            self.lost.set_result(loss)

    def end(self, loss: WorkerLost) -> None:
        """Fail the calls that wait for an answer of its worker, and kill it."""
        self.let_go(loss)
        if self.handle is not None:
            self.handle.kill()

    def restart(self) -> None:
        """Make room for a successor of a DEAD worker."""
        self.health.restarted()
        self.handle = self.info = self.version = None
        self.lost = new_future()
        self.restarts += 1

    def row(self) -> dict[str, Any]:
        """Its state in plain values, for ``RolloutPool.status``."""
        row: dict[str, Any] = {
            "worker": self.number,
            "state": str(self.state),
            "version": str(self.version) if self.version else None,
            "outstanding": self.outstanding,
            "generated_tokens": self.generated_tokens,
            "restarts": self.restarts,
            "node": None,
            "pid": None,
            "engine_pid": None,
        }
        if self.info is not None:
            row["node"] = self.info.node_id
            row["pid"] = self.info.pid
            row["engine_pid"] = self.info.engine_pid
        return row
