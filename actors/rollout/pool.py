"""The rollout engines as one, behind ``generate``: a plain asyncio class inside the driver.

Its parts, none of which refers to the pool:

- ``membership``: workers come, are brought to new weights, are replaced when they die, and leave;
- ``heartbeat``: finds workers that died in silence;
- ``queue``: which worker gets which group;
- ``generation``: asks for the groups of one ``generate``, again and elsewhere where that helps;
- ``member``, ``worker_state``, ``handle``: a place in the pool, the state of its worker, the
  worker.

Results keep the order of the requests and, as the seeds are part of them, do not depend on who
answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.rollout.generation import FailedGroup, Generation
from actors.rollout.handle import WorkerHandle, describe
from actors.rollout.heartbeat import Heartbeat
from actors.rollout.membership import Membership
from actors.rollout.queue import PoolError
from actors.rollout.worker import RayWorker
from actors.rollout.worker_state import Clock
from actors.weights.base import Announcement, PublishedWeights
from actors.weights.shared_memory import RunWeightFiles
from bi_ray.batches.rollout import Group, GroupRequest
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import RunConfig
from bi_ray.policy.published import new_copies_directory
from bi_ray.policy.version import PolicyVersion

log = logging.getLogger(__name__)


class RolloutPool:
    """Engines that come and go, behind one ``generate``.

    Args:
        make_worker: makes a handle for a new worker, without waiting for anything.
        config: sizes, deadlines, thresholds.
        clock: time in seconds for the health of the workers.
        weights: removes published weights that no engine needs any more.
    """

    def __init__(
        self,
        make_worker: Callable[[], WorkerHandle],
        config: RolloutConfig,
        clock: Clock = time.monotonic,
        weights: PublishedWeights | None = None,
    ) -> None:
        self.config = config
        self._clock = clock
        self._weights = weights
        self._membership = Membership(make_worker, config, clock)
        self._heartbeat = Heartbeat(self._membership, config, clock)

    @property
    def version(self) -> PolicyVersion:
        """The weights that the engines have, or are being brought to."""
        return self._membership.version

    @property
    def failures(self) -> Counter[str]:
        """Failures of workers and groups, by kind."""
        return self._membership.tally.failures

    @property
    def redispatched(self) -> int:
        """How many groups were asked for a second time because the first took long."""
        return self._membership.tally.redispatched

    async def start(self, workers: int) -> None:
        """Start ``workers`` engines and wait until all are HEALTHY.

        Raises:
            PoolError: not all of them came up in ``start_timeout_s``. Nothing is left running.
        """
        if self._weights is not None:
            await self._weights.clear()
        try:
            await self._membership.start(workers)
        except PoolError:
            await self.close()
            raise
        self._heartbeat.start()

    async def scale(self, workers: int) -> None:
        """Have ``workers`` engines from now on; returns at once.

        New ones come up in the background; those that leave finish their work first.

        Raises:
            PoolError: fewer than one.
        """
        await self._membership.scale(workers)

    async def close(self) -> None:
        """End all workers and everything that waits for them."""
        self._heartbeat.stop()
        await self._membership.close()
        if self._weights is not None:
            await self._weights.clear()

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Bring every worker in service to the announced weights.

        A worker that fails or is late is DEAD and gets a successor; the others stay in service.
        Workers that are just coming up take the version before they are given work, also where
        every engine died over the sync.

        Args:
            announcement: the weights.
            in_flight: running requests continue under the new weights; else they finish first,
                within ``sync_timeout_s``.

        Raises:
            PoolError: the version is older than the current one, or no worker could load it.
        """
        await self._membership.sync(announcement, in_flight)
        if self._weights is None:
            return
        try:
            await self._weights.release(announcement)
        except Exception as error:  # files that stay a while longer do not fail a sync
            log.warning(
                "weights before %s were not removed: %s",
                announcement.version,
                describe(error),
                exc_info=True,
                extra={"version": announcement.version},
            )

    async def generate(
        self, requests: Sequence[GroupRequest], on_group: Callable[[Group], None] | None = None
    ) -> list[Group | FailedGroup]:
        """Sample every group.

        Args:
            requests: what to sample.
            on_group: called with each group as it is finished, in any order.

        Returns:
            Answers in the order of the requests.

        Raises:
            PoolError: there is no worker left and none could be started.
            Exception: a bug, in a worker or in ``on_group``; everything else is ended.
        """
        generation = Generation(self._membership, self.config, self._clock, len(requests), on_group)
        tasks = [asyncio.create_task(generation.answer(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def busy_s(self) -> dict[int, float]:
        """Seconds for which each worker had anything to do since it was added, by its number."""
        return self._membership.queue.busy_s()

    def status(self) -> dict[str, Any]:
        """The pool in plain values: version, waiting groups, failures, and a row per worker."""
        return {
            "version": str(self.version),
            "waiting": len(self._membership.queue),
            "failures": dict(self.failures),
            "redispatched": self.redispatched,
            "workers": [member.row() for member in self._membership.members],
        }


def make_ray_pool(config: RunConfig, run_id: str, base: Path) -> RolloutPool:
    """A pool of Ray actors; call it inside a Ray process.

    Args:
        config: the run.
        run_id: names the run's published weights.
        base: checkpoint that the engines are built from.
    """
    import ray

    model = config.model.model_copy(update={"path": str(base)})
    copies = new_copies_directory(run_id)
    here = ray.get_runtime_context().get_node_id()
    weights = RunWeightFiles(run_id, here, config.ray.call_timeout_s)

    def make_worker() -> RayWorker:
        return RayWorker(model, config.rollout, copies)

    return RolloutPool(make_worker, config.rollout, weights=weights)
