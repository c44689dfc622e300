"""The state of one RL run inside the driver: its steps, the leased batches, the rows of metrics.

The learners pull: ``join`` when they (re)start, ``lease`` for the batch of a step, ``publish`` when
a step is done, ``checkpointed`` when a step is on disk. One path is synchronous and asynchronous:
with S for ``max_staleness``, the batch of step k begins as soon as the engines hold the weights of
step k-1-S. So none of its tokens is made by older weights, and at most S+1 batches are being made
or wait for the learners. S = 0 is strictly on-policy.

A batch is kept until a checkpoint covers it: learners that come back from an earlier step get the
same batches again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from actors.driver.step_metrics import EngineWork, Figures, StepMetrics
from actors.logs import log_fields
from bi_ray.batches.batch import LearnerBatch
from bi_ray.learning.driver_calls import ServedCalls
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.metrics import append_metrics, cut_metrics
from bi_ray.verification.verdicts import VerdictError

log = logging.getLogger(__name__)


class SessionError(RuntimeError):
    """A learner's call breaks the protocol, or a part of the run failed for good."""


@dataclass(frozen=True, slots=True)
class KeptBatch:
    """A batch that no checkpoint covers yet, and what was measured while it was made."""

    batch: LearnerBatch
    metrics: Figures


class SessionBackend(Protocol):
    """Whoever does the work that a session orders: engines, verifier, validator."""

    def policy_of(self, step: int) -> Path:
        """The file with the weights after a checkpointed step; step 0: the SFT policy."""

    async def make_batch(self, step: int) -> KeptBatch:
        """Generate and verify the batch of a step by whatever policy the engines hold.

        Raises:
            VerdictError: the batch has no verdicts.
        """

    async def sync(self, version: PolicyVersion, path: Path) -> None:
        """Bring published weights to the engines.

        Raises:
            PoolError: no engine took them.
        """

    async def validate(self, step: int) -> Figures:
        """Figures of the policy after ``step``; empty where no validation is due.

        Raises:
            VerdictError: the validation has no verdicts.
        """

    def last_step(self) -> int | None:
        """The step with which RL ends early, by the rows of metrics; None: it does not so far."""

    def engine_work(self) -> EngineWork:
        """What the engines have done until now."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When batches may be made, and when learners may continue.

    Attributes:
        steps: of the run; no batch is made for a later one.
        max_staleness: S of the module's docstring.
        must_settle: whether the learners wait after this step until the engines have its weights,
            it is validated and its row is written, even if ``max_staleness`` would let them
            continue. So it is before a checkpoint, which must not know more than the metrics, and
            where a validation may end the run.
    """

    steps: int
    max_staleness: int = 0
    must_settle: Callable[[int], bool] = lambda step: True

    def waits(self, step: int) -> bool:
        """Whether the learners wait until ``step`` is settled."""
        return not self.max_staleness or self.must_settle(step)


class RLSession(ServedCalls):
    """Serves one arm's RL.

    Args:
        incarnation: the groups of learners of this session have higher ones.
        backend: does the work.
        metrics_file: one JSON row per finished step.
        schedule: when batches may be made.

    Attributes:
        incarnation: of the learners that joined last; calls of others are refused.
        last_metrics: the row of the last finished step.
    """

    def __init__(
        self, incarnation: int, backend: SessionBackend, metrics_file: Path, schedule: Schedule
    ) -> None:
        self.incarnation = incarnation
        self.last_metrics: dict[str, float] = {}
        self._backend = backend
        self._metrics_file = metrics_file
        self._schedule = schedule
        self._kept: dict[int, asyncio.Task[KeptBatch]] = {}
        self._settled_step = 0  # the engines hold the weights of this step
        self._finished_step = 0  # and this one is validated and has its row
        self._last_step: int | None = None  # of the backend, as of the last change of the rows
        self._settled = asyncio.Condition()
        self._publishing: asyncio.Task[None] | None = None
        self._joining = asyncio.Lock()
        self._first_validation: asyncio.Task[Figures] | None = None
        self._step_began = time.monotonic()
        self._work_before = EngineWork({}, 0)  # of the engines, when the step began
        self._dropped = 0  # batches of abandoned versions

    # Join

    async def join(self, step: int) -> int:
        """The learners hold the weights of ``step`` and will ask for the next.

        Engines go back to those weights before they make anything new; rows of metrics past
        ``step`` are taken back. Finished batches of later steps are served again, also those made
        by versions that are abandoned now: the learners come to the same versions again, by the
        same batches. A batch in the making is finished first where one version makes it. Else it is
        dropped and counted: the restored weights may be too old for it.

        Waits for earlier joins, for the publish in progress, for the batches in the making (with
        staleness, only until they are cancelled), for the engines to take the weights and for the
        validation of step 0. Each of these ends by itself, within the deadlines of the engines and
        the verifier; a later join cancels the validation.

        Returns:
            their incarnation.

        Raises:
            SessionError: the learners died meanwhile, and others have joined.
            PoolError: the engines did not take the weights; joining again may help.
            VerdictError: the validation of step 0 has no verdicts.
        """
        self.incarnation += 1  # from now on the learners before are refused
        newest = PolicyVersion(self.incarnation, step)
        async with self._settled:
            self._settled.notify_all()
        if self._first_validation is not None:  # of a join whose learners died over it
            self._first_validation.cancel()
        async with self._joining:
            with log_fields(step=step, version=newest):
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
        await self._end_making()
        self._refuse_old(incarnation)
        self._forget_batches(step)
        self._publishing = None
        cut_metrics(self._metrics_file, step)
        self._last_step = self._backend.last_step()
        await self._backend.sync(version, self._backend.policy_of(step))
        self._refuse_old(incarnation)
        if step == 0:
            await self._validate_first(incarnation)
        self._begin_step(time.monotonic())
        self._finished_step = step
        await self._settle(step)

    async def _end_making(self) -> None:
        """Wait for the batches in the making; with staleness, cancel them first."""
        making = [task for task in self._kept.values() if not task.done()]
        if self._schedule.max_staleness:
            for task in making:
                task.cancel()
            self._dropped += len(making)
            if making:
                log.warning(
                    "dropped %d batches in the making: the learners go back to an earlier step",
                    len(making),
                )
        await asyncio.gather(*making, return_exceptions=True)

    def _forget_batches(self, step: int) -> None:
        """Keep the finished batches after ``step``; those that failed are made again."""
        kept = {}
        for number, task in self._kept.items():
            if number > step and _is_whole(task):
                kept[number] = task
        self._kept = kept

    async def _validate_first(self, incarnation: int) -> None:
        """Step 0 has a row only where it is validated."""
        cut_metrics(self._metrics_file, -1)
        self._first_validation = asyncio.ensure_future(self._backend.validate(0))
        try:
            await asyncio.wait({self._first_validation})
            self._refuse_old(incarnation)
            figures = self._first_validation.result()
        finally:
            self._first_validation.cancel()
            self._first_validation = None
        if figures:
            append_metrics(self._metrics_file, {"step": 0} | dict(figures))
        self._last_step = self._backend.last_step()

    # Lease

    async def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """The batch of ``step``: made once, the same for every learner and after every restart.

        Waits until the batch has begun, which the publish of an earlier step brings about, and,
        where the schedule says so, until the publish of the step before is finished; then for the
        batch itself. A fault of that publish and a join of other learners end the wait.

        Returns:
            the batch; None: RL is over.

        Raises:
            SessionError: the learner belongs to an incarnation that was replaced, the step is not
                among the next, or the engines did not take the weights that the batch needs.
            VerdictError: the batch, or the validation before it, has no verdicts.
        """
        self._refuse_old(incarnation)
        self._refuse_far(step)
        async with self._settled:
            await self._settled.wait_for(lambda: self._lease_is_decided(step, incarnation))
        self._refuse_old(incarnation)
        if not self._may_lease(step):
            fault = self._fault()
            if isinstance(fault, VerdictError):  # every learner gets the error of `publish`
                raise fault
            raise SessionError(f"no batch for step {step}: {fault}") from fault
        if self._is_over(step - 1):
            return None
        task = self._kept[step]
        await asyncio.wait({task})
        if task.cancelled():
            raise SessionError(f"the batch of step {step} was dropped: the learners were replaced")
        return task.result().batch

    def _refuse_far(self, step: int) -> None:
        """Only rank 0 publishes; the others may ask for the next batch while it still does."""
        ahead = step - self._settled_step
        is_near = 0 < ahead <= 2 + self._schedule.max_staleness
        if step not in self._kept and not is_near:
            raise SessionError(
                f"step {step} was requested while the policy is at step {self._settled_step}"
            )

    def _lease_is_decided(self, step: int, incarnation: int) -> bool:
        if self._may_lease(step):
            return True
        return incarnation != self.incarnation or self._fault() is not None

    def _may_lease(self, step: int) -> bool:
        before = step - 1
        is_finished = self._finished_step >= before
        if self._schedule.waits(before) and not is_finished:
            return False
        if step in self._kept:
            return True
        return is_finished and self._is_over(before)

    def _is_over(self, step: int) -> bool:
        """Whether RL ends early, with ``step`` or before."""
        return self._last_step is not None and step >= self._last_step

    # Publish

    async def publish(
        self, incarnation: int, step: int, path: Path, metrics: dict[str, float]
    ) -> None:
        """The learners finished ``step``: engines take its weights, metrics get a row.

        Waits for the publish of the step before, which ends within the deadlines of the engines and
        the verifier; then, where the schedule says so, for its own end.

        Raises:
            SessionError: the learner belongs to an incarnation that was replaced.
            PoolError: the engines did not take the weights, of this step or of the one before.
            VerdictError: the batch or the validation of the step has no verdicts.
        """
        self._refuse_old(incarnation)
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._refuse_old(incarnation)
        version = PolicyVersion(incarnation, step)
        with log_fields(step=step, version=version):
            self._publishing = asyncio.ensure_future(self._take(version, path, metrics))
        self._publishing.add_done_callback(
            partial(_log_failure, what=f"step {step} was not published", step=step)
        )
        if self._schedule.waits(step):
            await asyncio.shield(self._publishing)

    async def _take(self, version: PolicyVersion, path: Path, learner: Figures) -> None:
        """Take the weights, validate them, write the row of the step, begin the next batches."""
        step = version.step
        try:
            began = time.monotonic()
            await self._backend.sync(version, path)
            synced = time.monotonic()
            if self._schedule.max_staleness:  # the validation runs beside the rollouts
                await self._settle(step)
            validation = await self._backend.validate(step)
            validated = time.monotonic()
            batch = (await self._kept[step]).metrics
            row = self._measure(step, batch, learner, validation, began, synced, validated).row()
            self._begin_step(validated)
            append_metrics(self._metrics_file, row, durable=self._schedule.must_settle(step))
            self._last_step = self._backend.last_step()
            self.last_metrics = row
            if not self._schedule.max_staleness:
                await self._settle(step)
            self._finished_step = step
        finally:
            async with self._settled:
                self._settled.notify_all()  # of a fault too

    def _measure(
        self,
        step: int,
        batch: Figures,
        learner: Figures,
        validation: Figures,
        began: float,
        synced: float,
        validated: float,
    ) -> StepMetrics:
        """The metrics of a step that was published at ``began``; times are of ``monotonic``."""
        sync_s, validate_s = synced - began, validated - synced
        step_s = validated - self._step_began
        idle_s = learner.get("wait_s", 0.0)
        if self._schedule.waits(step):
            idle_s += sync_s + validate_s
        waiting = [number for number, task in self._kept.items() if number > step and task.done()]
        return StepMetrics(
            step=step,
            batch=batch,
            learner=learner,
            validation=validation,
            sync_s=sync_s,
            validate_s=validate_s,
            step_s=step_s,
            queued_batches=len(waiting),
            dropped_batches=self._dropped,
            idle_share_learner=min(1.0, idle_s / max(1e-9, step_s)),
            engines=self._backend.engine_work().since(self._work_before, step_s),
        )

    def _begin_step(self, now: float) -> None:
        self._step_began = now
        self._work_before = self._backend.engine_work()

    async def _settle(self, step: int) -> None:
        """The engines hold the weights of ``step``: begin every batch that may begin now."""
        async with self._settled:
            self._settled_step = step
            if self._is_over(step):
                return
            newest = min(self._schedule.steps, step + 1 + self._schedule.max_staleness)
            for number in range(step + 1, newest + 1):
                if number not in self._kept:
                    self._begin_batch(number)
            self._settled.notify_all()

    def _begin_batch(self, step: int) -> None:
        with log_fields(step=step):
            task = asyncio.ensure_future(self._backend.make_batch(step))
        task.add_done_callback(partial(_log_failure, what=f"batch {step} failed", step=step))
        self._kept[step] = task

    # The rest

    async def checkpointed(self, step: int) -> None:
        """A checkpoint of ``step`` is on disk: batches up to it are not needed any more.

        Waits for nobody.
        """
        self._kept = {number: task for number, task in self._kept.items() if number > step}

    async def close(self) -> None:
        """RL is over: cancel batches of steps that will not come, and wait for their end."""
        making = [task for task in self._kept.values() if not task.done()]
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    def _fault(self) -> BaseException | None:
        """Why the engines did not take the last weights, if they did not."""
        task = self._publishing
        if task is None or not task.done() or task.cancelled():
            return None
        return task.exception()

    def _refuse_old(self, incarnation: int) -> None:
        if incarnation != self.incarnation:
            raise SessionError(
                f"learners of incarnation {incarnation} were replaced by {self.incarnation}"
            )


def _is_whole(task: asyncio.Task[KeptBatch]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _log_failure(task: asyncio.Task[Any], what: str, step: int) -> None:
    """Log a failure at once: the learner that will get it may ask much later."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        reason = f"{type(error).__name__}: {error}"
        log.warning("%s: %s", what, reason, exc_info=error, extra={"step": step})
