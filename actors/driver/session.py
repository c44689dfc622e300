"""The state of one RL run inside the driver: which step is where, which batches are leased, what
the metrics say.

The learners pull: ``join`` when they (re)start, ``lease`` for the batch of a step, ``publish`` when
a step is done, ``checkpointed`` when a step is on disk. One path is synchronous and asynchronous:
with S for ``max_staleness``, the batch of step k begins as soon as the engines hold the weights of
step k-1-S. So no token of it is made by older ones, and at most S+1 batches are in the making or
wait for the learners. S = 0 is strictly on-policy.

A batch is kept until a checkpoint covers it: learners that come back from an earlier step get the
same batches again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bi_ray.batches.batch import LearnerBatch
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.metrics import append_metrics, cut_metrics
from bi_ray.verification.verdicts import VerdictError

MakeBatch = Callable[[int], Awaitable[tuple[LearnerBatch, dict[str, Any]]]]
Sync = Callable[[PolicyVersion, Path], Awaitable[None]]
log = logging.getLogger(__name__)


class SessionError(RuntimeError):
    """A learner asked for something that the protocol does not allow, or a part of the run failed
    for good.
    """


@dataclass(slots=True)
class Kept:
    """A batch that no checkpoint covers yet, and what was measured while it was made."""

    batch: LearnerBatch
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When batches may be made, and when learners go on.

    Attributes:
        steps: of the run; no batch is made for a later one.
        max_staleness: see above.
        is_settled_first: whether the learners go on after a step only when the engines have its
            weights, it is validated and its row is written, although ``max_staleness`` would let
            them: before a checkpoint, which must not know more than the metrics, and where a
            validation may end the run.
        is_over: whether RL ends early, with the step given.
    """

    steps: int
    max_staleness: int = 0
    is_settled_first: Callable[[int], bool] = lambda step: True
    is_over: Callable[[int], bool] = lambda step: False

    def waits(self, step: int) -> bool:
        """See ``is_settled_first``."""
        return not self.max_staleness or self.is_settled_first(step)


class RLSession:
    """Serves one arm's RL.

    Args:
        incarnation: versions of this session have a higher one.
        policy_of: file with the weights after a checkpointed step (0: the SFT policy).
        make_batch: generates and verifies the batch of a step with whatever policy the engines
            hold.
        sync: brings published weights to the engines.
        validate: figures of the policy after a step, or nothing where no validation is due.
        usage: what the engines did since it was last asked, for the metrics of a step that took so
            many seconds.
        metrics_file: one JSON row per finished step.
        schedule: when batches may be made.
    """

    def __init__(
        self,
        incarnation: int,
        policy_of: Callable[[int], Path],
        make_batch: MakeBatch,
        sync: Sync,
        validate: Callable[[int], Awaitable[dict[str, Any]]],
        usage: Callable[[float], dict[str, Any]],
        metrics_file: Path,
        schedule: Schedule,
    ) -> None:
        self.version = PolicyVersion(incarnation, 0)
        self._policy_of = policy_of
        self._make_batch = make_batch
        self._sync = sync
        self._validate = validate
        self._usage = usage
        self._metrics_file = metrics_file
        self._schedule = schedule
        self._kept: dict[int, asyncio.Task[Kept]] = {}
        self._settled_step = 0  # the engines hold the weights of this step
        self._finished_step = 0  # and this one is validated and has its row
        self._settled = asyncio.Condition()
        self._publishing: asyncio.Task[None] | None = None
        self._joining = asyncio.Lock()
        self._first_validation: asyncio.Task[dict[str, Any]] | None = None
        self._step_began = time.monotonic()
        self._dropped = 0  # batches of abandoned versions
        self.last_metrics: dict[str, Any] = {}

    async def join(self, step: int) -> int:
        """The learners hold the weights of ``step`` and will ask for the next; returns their
        incarnation.

        Engines go back to those weights before they make anything new; rows of metrics past
        ``step`` are taken back. Finished batches of later steps are served again, also those made
        by versions that are abandoned now: the learners come to the same versions again, by the
        same batches. A batch in the making is finished first where one version makes it. Else it is
        dropped and counted: the restored weights may be too old for it.

        Raises:
            SessionError: the learners died meanwhile, and others have joined.
            PoolError: the engines did not take the weights; joining again may help.
        """
        newest = PolicyVersion(self.version.incarnation + 1, step)
        self.version = newest  # from now on those before are refused
        async with self._settled:
            self._settled.notify_all()
        if self._first_validation is not None:  # of a join whose learners died over it
            self._first_validation.cancel()
        async with self._joining:
            await self._go_back(newest)
        return newest.incarnation

    async def _go_back(self, version: PolicyVersion) -> None:
        """What ``join`` does, one join at a time.

        Learners that die while they join leave their call running, and it must not touch what is
        their successors' by now: after every wait it is checked that no later join has come.
        """
        incarnation, step = version
        self._refuse_old(incarnation)
        if self._publishing is not None:  # an engine that takes weights is not to be disturbed
            await asyncio.wait({self._publishing})
            self._refuse_old(incarnation)
        await self._quieten()
        self._refuse_old(incarnation)
        # A kill in the middle of a batch leaves a failed or cancelled task behind: such a batch is
        # made again.
        self._kept = {
            number: task for number, task in self._kept.items() if number > step and _is_whole(task)
        }
        self._publishing = None
        cut_metrics(self._metrics_file, step)
        await self._sync(version, self._policy_of(step))
        self._refuse_old(incarnation)
        if step == 0:
            await self._validate_first(incarnation)
        self._usage(0)
        self._step_began = time.monotonic()
        self._finished_step = step
        await self._settle(step)

    async def _validate_first(self, incarnation: int) -> None:
        """Step 0 has a row only where it is validated."""
        cut_metrics(self._metrics_file, -1)
        self._first_validation = asyncio.ensure_future(self._validate(0))
        try:
            await asyncio.wait({self._first_validation})
            self._refuse_old(incarnation)
            figures = self._first_validation.result()
        finally:
            self._first_validation.cancel()
            self._first_validation = None
        if figures:
            append_metrics(self._metrics_file, {"step": 0} | figures)

    async def _quieten(self) -> None:
        """End what is in the making, in good or in bad."""
        making = [task for task in self._kept.values() if not task.done()]
        if self._schedule.max_staleness:
            for task in making:
                task.cancel()
            self._dropped += len(making)
            if making:
                log.warning(
                    "%d batches in the making are dropped: the learners go back", len(making)
                )
        await asyncio.gather(*making, return_exceptions=True)

    async def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """The batch of ``step``: made once, the same for every learner and after every restart;
        None: RL is over.

        Raises:
            SessionError: the asking learner belongs to an incarnation that is gone, the step is not
                among the next, or the engines did not take the weights that the batch needs.
            VerdictError: the batch, or the validation before it, has no verdicts.
        """
        self._refuse_old(incarnation)
        # Rank 0 publishes while the other ranks may ask for the next batch already.
        if (
            step not in self._kept
            and not 0 < step - self._settled_step <= 2 + self._schedule.max_staleness
        ):
            raise SessionError(
                f"step {step} was asked for while the policy is at step {self._settled_step}"
            )
        async with self._settled:
            await self._settled.wait_for(
                lambda: (
                    self._may_lease(step)
                    or incarnation != self.version.incarnation
                    or self._fault() is not None
                )
            )
        self._refuse_old(incarnation)
        if not self._may_lease(step):
            fault = self._fault()
            # every learner gets the error that `publish` raised
            if isinstance(fault, VerdictError):
                raise fault
            raise SessionError(f"no batch for step {step}: {fault}") from fault
        if self._schedule.is_over(step - 1):
            return None
        task = self._kept[step]
        await asyncio.wait({task})
        if task.cancelled():
            raise SessionError(f"the batch of step {step} was dropped: the learners were replaced")
        return task.result().batch

    def _may_lease(self, step: int) -> bool:
        before = step - 1
        if self._schedule.waits(before) and self._finished_step < before:
            return False
        return step in self._kept or (
            self._finished_step >= before and self._schedule.is_over(before)
        )

    async def _make(self, step: int) -> Kept:
        return Kept(*await self._make_batch(step))

    async def publish(
        self, incarnation: int, step: int, path: Path, metrics: dict[str, Any]
    ) -> None:
        """The learners finished ``step`` and wrote its weights to ``path``: engines take them,
        metrics get a row.

        With ``max_staleness`` the learners need not wait for that, but where the schedule says so.

        Raises:
            SessionError: the learner belongs to an incarnation that is gone.
            PoolError: the engines did not take the weights, of this step or of the one before.
        """
        self._refuse_old(incarnation)
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._refuse_old(incarnation)
        self.version = PolicyVersion(incarnation, step)
        self._publishing = asyncio.ensure_future(self._take(self.version, path, metrics))
        self._publishing.add_done_callback(
            partial(_name_failure, what=f"step {step} was not published")
        )
        if self._schedule.waits(step):
            await asyncio.shield(self._publishing)

    async def _take(self, version: PolicyVersion, path: Path, metrics: dict[str, Any]) -> None:
        step = version.step
        try:
            began = time.monotonic()
            await self._sync(version, path)
            synced = time.monotonic()
            if self._schedule.max_staleness:  # the validation runs beside the rollouts
                await self._settle(step)
            validation = await self._validate(step)
            now = time.monotonic()
            row = {"step": step} | (await self._kept[step]).metrics | metrics | validation
            row |= {
                "sync_s": synced - began,
                "validate_s": now - synced,
                "step_s": now - self._step_began,
            }
            row |= self._measured(step, row)
            self._step_began = now
            append_metrics(self._metrics_file, row, durable=self._schedule.is_settled_first(step))
            self.last_metrics = row
            if not self._schedule.max_staleness:
                await self._settle(step)
            self._finished_step = step
        finally:
            async with self._settled:
                self._settled.notify_all()  # of a fault too

    def _measured(self, step: int, row: dict[str, Any]) -> dict[str, Any]:
        """What the session itself knows of a step: queue, dropped batches, and how long each actor
        had no work.
        """
        waiting = [number for number, task in self._kept.items() if number > step and task.done()]
        idle_s = row.get("wait_s", 0.0)
        if self._schedule.waits(step):
            idle_s += row["sync_s"] + row["validate_s"]
        return {
            "queued_batches": len(waiting),
            "dropped_batches": self._dropped,
            "idle_share_learner": min(1.0, idle_s / max(1e-9, row["step_s"])),
            **self._usage(row["step_s"]),
        }

    async def _settle(self, step: int) -> None:
        """The engines hold the weights of ``step``: begin every batch that may begin now."""
        async with self._settled:
            self._settled_step = step
            if self._schedule.is_over(step):
                return
            newest = min(self._schedule.steps, step + 1 + self._schedule.max_staleness)
            for number in range(step + 1, newest + 1):
                if number not in self._kept:
                    self._kept[number] = asyncio.ensure_future(self._make(number))
                    self._kept[number].add_done_callback(
                        partial(_name_failure, what=f"batch {number} failed")
                    )
            self._settled.notify_all()

    async def close(self) -> None:
        """RL is over: end what was begun for steps that will not come."""
        making = [task for task in self._kept.values() if not task.done()]
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    def checkpointed(self, step: int) -> None:
        """A checkpoint of ``step`` is on disk: batches up to it are not needed any more."""
        self._kept = {number: kept for number, kept in self._kept.items() if number > step}

    def _fault(self) -> BaseException | None:
        """Why the engines did not take the last weights, if they did not."""
        publishing = self._publishing
        return (
            publishing.exception()
            if publishing and publishing.done() and not publishing.cancelled()
            else None
        )

    def _refuse_old(self, incarnation: int) -> None:
        if incarnation != self.version.incarnation:
            raise SessionError(
                f"learners of incarnation {incarnation} were replaced by {self.version.incarnation}"
            )


def _is_whole(task: asyncio.Task[Kept]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _name_failure(task: asyncio.Task[Any], what: str) -> None:
    """Say it at once, and not only to the learner that will ask."""
    if not task.cancelled() and (error := task.exception()):
        log.warning("%s: %s: %s", what, type(error).__name__, error, exc_info=error)
