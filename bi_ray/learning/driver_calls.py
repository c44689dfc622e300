"""The four calls of the learners to the driver: join, lease, publish, checkpointed.

They are one protocol with two faces: the learners call and block (``DriverCalls``), the driver
serves many calls at a time (``ServedCalls``). What each call means is written at the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bi_ray.batches.batch import LearnerBatch


class DriverCalls(Protocol):
    """The driver as a learner sees it. Every call has a deadline.

    Raises:
        TrainingError: from every call: it would fail again if the group started again.
        RuntimeError, OSError: from every call: it may succeed when the group starts again; a
            ``TimeoutError`` where the deadline passed.
    """

    def join(self, step: int) -> int:
        """Report that the group holds the weights of ``step`` and will lease the next. Rank 0 only.

        Waits until the engines are back at these weights and step 0 is validated. A later join
        ends the wait of an earlier one.

        Args:
            step: of the newest checkpoint; 0: the group starts from the SFT policy.

        Returns:
            the incarnation of the group, one higher than the last.
        """

    def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """The batch of ``step``, the same for every rank and after every restart. Every rank.

        Waits until the batch is made. Before that, it waits for the publish of the step before
        where ``max_staleness`` is 0, a checkpoint is due or a validation may end the run. A join of
        other learners ends the wait.

        Returns:
            the batch; None: RL is over with the step before.
        """

    def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, float]) -> None:
        """Hand over the weights after ``step``, and the figures of its update. Rank 0 only.

        Waits for the publish before. Then, where ``lease`` waits for this one, until the engines
        have taken the weights, the step is validated and its row of metrics is written.

        Args:
            incarnation: of the group.
            step: that is done.
            path: safetensors file in shared memory of this node.
            metrics: figures for the step's row.
        """

    def checkpointed(self, step: int) -> None:
        """Report that a checkpoint of ``step`` is on disk. Rank 0 only; waits for nobody.

        Batches up to ``step`` are not leased again.
        """


class ServedCalls(Protocol):
    """``DriverCalls`` from the driver's side, where each call is a coroutine."""

    async def join(self, step: int) -> int:
        """``DriverCalls.join``."""

    async def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """``DriverCalls.lease``."""

    async def publish(
        self, incarnation: int, step: int, path: Path, metrics: dict[str, float]
    ) -> None:
        """``DriverCalls.publish``."""

    async def checkpointed(self, step: int) -> None:
        """``DriverCalls.checkpointed``."""
