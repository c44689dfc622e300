"""Options of ``bi-ray pretrain``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from bi_ray.config.base import Config, Fraction, Positive
from bi_ray.config.tasks import (
    IGSMConfig,
    PromptBenchConfig,
)


class PretrainConfig(Config):
    """How the tiny base model is made."""

    name: str
    task: PromptBenchConfig
    igsm: IGSMConfig | None = None  # small problems of iGSM too
    in_order_share: Fraction = 0.3  # of PromptBench drills whose premises come after those they use
    seed: int = 0
    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    mlp_size: Positive = 344
    max_positions: Positive = 1024
    rope_theta: Annotated[float, Field(gt=0)] = 10_000
    steps: Positive = 3000
    curriculum_steps: Positive = 2600  # until the drills are as hard as they get
    warmup_steps: Positive = 52
    decay_steps: Positive = 600  # at the end
    batch_tokens: Positive = 16384  # padded tokens of one optimizer step
    microbatch_tokens: Positive = 2048
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    processes: Positive = 2  # of one thread each
    precision: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # of matrix products; auto: bfloat16 where the CPU has it
    )
    checkpoint_every_steps: Positive = 50
    scored_drills: Positive = 200  # of each kind, in the scores at the end

    @field_validator("task")
    @classmethod
    def _the_drills_are_arithmetic(cls, task: PromptBenchConfig) -> PromptBenchConfig:
        if task.logic != "arithmetic":
            raise ValueError(f"logic: {task.logic} has no drills to practice, only arithmetic has")
        return task
