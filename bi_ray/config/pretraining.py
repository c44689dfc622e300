"""Options of ``bi-ray pretrain``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from bi_ray.config.base import Config, Fraction, Positive
from bi_ray.config.tasks import IGSMConfig, PromptBenchConfig


class PretrainConfig(Config):
    """How the tiny base model is made."""

    name: str
    """Name of the pre-training, for the display."""

    task: PromptBenchConfig
    """The PromptBench problems to practice."""

    igsm: IGSMConfig | None = None
    """Small problems of iGSM to practice as well. null: none of them."""

    in_order_share: Fraction = 0.3
    """Share of the PromptBench drills whose premises come after those they use."""

    seed: int = 0
    """Seed of the drills and of the initial weights."""

    hidden_size: Positive = 128
    """Width of the model."""

    layers: Positive = 4
    """Number of decoder layers."""

    heads: Positive = 4
    """Number of attention heads of a layer."""

    mlp_size: Positive = 344
    """Width of the hidden layer of each MLP."""

    max_positions: Positive = 1024
    """Longest sequence that the model reads, in tokens; longer drills are left out."""

    rope_theta: Annotated[float, Field(gt=0)] = 10_000
    """Base of the rotary position embedding."""

    steps: Positive = 3000
    """Optimizer steps."""

    curriculum_steps: Positive = 2600
    """Steps until the drills are as hard as they get."""

    warmup_steps: Positive = 52
    """Steps over which the learning rate rises linearly."""

    decay_steps: Positive = 600
    """Steps at the end over which the learning rate falls to 0."""

    batch_tokens: Positive = 16384
    """Padded tokens of one optimizer step."""

    microbatch_tokens: Positive = 2048
    """Maximum number of padded tokens in one forward and backward pass."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Learning rate of AdamW, which trains embeddings and norms."""

    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of Muon, which trains the other weight matrices."""

    processes: Positive = 2
    """Number of training processes, each with one thread."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products. auto: bfloat16 if the CPU supports it."""

    checkpoint_every_steps: Positive = 50
    """How often a checkpoint is written."""

    scored_drills: Positive = 200
    """Drills of each kind in the scores at the end."""

    @field_validator("task")
    @classmethod
    def _the_drills_are_arithmetic(cls, task: PromptBenchConfig) -> PromptBenchConfig:
        if task.logic != "arithmetic":
            raise ValueError(f"logic: {task.logic} has no drills to practice, only arithmetic has")
        return task
