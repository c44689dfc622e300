"""The metrics of an RL step: a row of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EngineWork:
    """What the engines have done so far; the difference of two of these is what a step took.

    Attributes:
        busy_s: for how long each engine had anything to do, in seconds, by its number.
        redispatched: groups that ran a second time because the first copy was late.
    """

    busy_s: Mapping[int, float]
    redispatched: int

    def since(self, earlier: EngineWork, step_s: float) -> dict[str, float]:
        """Figures of a step of ``step_s`` seconds that began at ``earlier``.

        Returns:
            ``idle_share_engine_N``, the share of the step in which engine N had nothing to do, and
            ``redispatched_groups``.
        """
        figures: dict[str, float] = {}
        for number, busy_s in self.busy_s.items():
            busy_share = (busy_s - earlier.busy_s.get(number, 0.0)) / max(1e-9, step_s)
            figures[f"idle_share_engine_{number}"] = max(0.0, 1 - busy_share)
        figures["redispatched_groups"] = self.redispatched - earlier.redispatched
        return figures


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Everything that is measured of a step; the fields are in the order of the row.

    Attributes:
        step: its number, from 1.
        batch: figures of its batch, and of making it.
        learner: figures of the update, from rank 0.
        validation: figures of the validation after it; empty where none was due.
        sync_s: seconds until the engines had its weights.
        validate_s: seconds of the validation.
        step_s: seconds since the step before was finished.
        queued_batches: batches of later steps that wait for the learners.
        dropped_batches: batches that were dropped since the session began.
        idle_share_learner: share of the step in which the learners had nothing to do.
        engines: see ``EngineWork.since``.
    """

    step: int
    batch: Figures
    learner: Figures
    validation: Figures
    sync_s: float
    validate_s: float
    step_s: float
    queued_batches: int
    dropped_batches: int
    idle_share_learner: float
    engines: Figures

    def row(self) -> dict[str, float]:
        """The row of the metrics file."""
        return {
            "step": self.step,
            **self.batch,
            **self.learner,
            **self.validation,
            "sync_s": self.sync_s,
            "validate_s": self.validate_s,
            "step_s": self.step_s,
            "queued_batches": self.queued_batches,
            "dropped_batches": self.dropped_batches,
            "idle_share_learner": self.idle_share_learner,
            **self.engines,
        }
