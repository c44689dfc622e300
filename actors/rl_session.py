"""The state of one RL run inside the driver: which step is where, which batches are leased, what the metrics say.

The learners pull: ``join`` when they (re)start, ``lease`` for the batch of a step, ``publish`` when a step is done,
``checkpointed`` when a step is on disk. A batch is made when it is first leased, from the policy of the step before it
(strictly on-policy), and kept until a checkpoint covers it: learners that come back from an earlier step get the very
same batches again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.metrics import append_metrics, cut_metrics
from bi_ray.policy.batch import LearnerBatch
from bi_ray.policy.rollout import PolicyVersion

MakeBatch = Callable[[int], Awaitable[tuple[LearnerBatch, dict[str, Any]]]]
Sync = Callable[[PolicyVersion, Path], Awaitable[None]]


class SessionError(RuntimeError):
    """A learner asked for something that the protocol does not allow, or a part of the run failed for good."""


@dataclass(slots=True)
class Kept:
    """A batch that no checkpoint covers yet, and what was measured while it was made."""

    batch: LearnerBatch
    metrics: dict[str, Any]


class RLSession:
    """Serves one arm's RL.

    Args:
        incarnation: versions of this session have a higher one.
        policy_of: file with the weights after a checkpointed step (0: the SFT policy).
        make_batch: generates and verifies the batch of a step with the policy that the engines hold.
        sync: brings published weights to the engines.
        validate: figures of the policy after a step, or nothing where no validation is due.
        is_over: whether RL ends early, with the step given.
        metrics_file: one JSON row per finished step.
    """

    def __init__(
        self,
        incarnation: int,
        policy_of: Callable[[int], Path],
        make_batch: MakeBatch,
        sync: Sync,
        validate: Callable[[int], Awaitable[dict[str, Any]]],
        metrics_file: Path,
        is_over: Callable[[int], bool] = lambda step: False,
    ) -> None:
        self.version = PolicyVersion(incarnation, 0)
        self._policy_of = policy_of
        self._make_batch = make_batch
        self._sync = sync
        self._validate = validate
        self._metrics_file = metrics_file
        self._is_over = is_over
        self._kept: dict[int, asyncio.Future[Kept]] = {}
        self._settled_step = 0  # the engines hold the weights of this step
        self._settled = asyncio.Condition()
        self._step_began = time.monotonic()
        self.last_metrics: dict[str, Any] = {}

    async def join(self, step: int) -> int:
        """The learners hold the weights of ``step`` and will ask for the next; returns their incarnation.

        Engines go back to those weights before they make anything new; rows of metrics past ``step`` are taken back.
        """
        # A kill in the middle of a batch leaves a failed or cancelled future behind: such a batch is made again.
        self._kept = {
            number: future
            for number, future in self._kept.items()
            if number > step and not (future.done() and (future.cancelled() or future.exception()))
        }
        # A batch still in the making goes on with the old weights, which must not change under it.
        await asyncio.gather(*self._kept.values(), return_exceptions=True)
        self.version = PolicyVersion(self.version.incarnation + 1, step)
        cut_metrics(self._metrics_file, step)
        await self._sync(self.version, self._policy_of(step))
        if step == 0:
            await self._validate_first()
        await self._settle(step)
        self._step_began = time.monotonic()
        return self.version.incarnation

    async def _validate_first(self) -> None:
        """Step 0 has a row only where it is validated."""
        cut_metrics(self._metrics_file, -1)
        if figures := await self._validate(0):
            append_metrics(self._metrics_file, {"step": 0} | figures)

    async def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """The batch of ``step``: made once, the same for every learner and after every restart; None: RL is over.

        A learner that asks before rank 0 has published the step before waits for that.

        Raises:
            SessionError: the asking learner belongs to an incarnation that is gone, or the step is not next.
        """
        self._refuse_old(incarnation)
        if step not in self._kept:
            if step not in (self._settled_step + 1, self._settled_step + 2):
                raise SessionError(f"step {step} was asked for while the policy is at step {self._settled_step}")
            async with self._settled:
                await self._settled.wait_for(
                    lambda: self._settled_step == step - 1 or incarnation != self.version.incarnation
                )
            self._refuse_old(incarnation)
        if self._is_over(step - 1):
            return None
        if step not in self._kept:
            self._kept[step] = asyncio.ensure_future(self._make(step))
        return (await asyncio.shield(self._kept[step])).batch

    async def _make(self, step: int) -> Kept:
        return Kept(*await self._make_batch(step))

    async def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, Any]) -> None:
        """The learners finished ``step`` and wrote its weights to ``path``: engines take them, metrics get a row."""
        self._refuse_old(incarnation)
        self.version = PolicyVersion(incarnation, step)
        began = time.monotonic()
        await self._sync(self.version, path)
        synced = time.monotonic()
        validation = await self._validate(step)
        now = time.monotonic()
        made = (await self._kept[step]).metrics
        row = {"step": step} | made | metrics | validation
        row |= {"sync_s": synced - began, "validate_s": now - synced, "step_s": now - self._step_began}
        self._step_began = now
        append_metrics(self._metrics_file, row)
        self.last_metrics = row
        await self._settle(step)

    async def _settle(self, step: int) -> None:
        async with self._settled:
            self._settled_step = step
            self._settled.notify_all()

    def checkpointed(self, step: int) -> None:
        """A checkpoint of ``step`` is on disk: batches up to it are not needed any more."""
        self._kept = {number: kept for number, kept in self._kept.items() if number > step}

    def _refuse_old(self, incarnation: int) -> None:
        if incarnation != self.version.incarnation:
            raise SessionError(f"learners of incarnation {incarnation} were replaced by {self.version.incarnation}")
