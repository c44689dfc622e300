"""Options of the learners, of SFT and of RL. Units stand in the names; this module imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bi_ray.algorithm_config import AlgorithmConfig
from bi_ray.data_config import Config, Fraction, Positive, Seconds


class LearnerConfig(Config):
    """The learner group: Ray Train workers that hold FSDP2 shards."""

    workers: Positive = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    threads_per_worker: Positive = 1
    microbatch_tokens: Positive = 8192  # padded tokens of one forward and backward pass on one worker
    max_restarts: Annotated[int, Field(ge=0)] = 2
    start_timeout_s: Seconds = 180
    collective_timeout_s: Seconds = 600  # a learner that waits longer for another one fails, and the group starts again


class OptimizerConfig(Config):
    """AdamW or plain SGD, with a constant rate after a linear warm-up and an optional linear decay at the end."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_share: Fraction = 0.0  # share of the steps, at the end, over which the rate falls to 0


class SFTConfig(Config):
    """Supervised fine-tuning on the demonstrations of an arm."""

    epochs: Positive = 5
    batch_examples: Positive = 128
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6)
    loss_on_prompt: bool = False
    report_twice_the_budget: bool = False  # also train and evaluate with twice the epochs, as a control
    checkpoint_every_steps: Positive = 50


class QueryFilterConfig(Config):
    """Rejection of RL queries by the SFT policy's own rollouts (Fig. 11 of arXiv:2505.18917), once, before RL."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8  # at rl.temperature
    least_right: Annotated[int, Field(ge=0)] = 1  # queries with fewer right samples are left out
    most_right: Annotated[int, Field(ge=0)] | None = None  # and those with more; None: all but one
    queries: Positive | None = None  # the first so many of the set rl are sampled; None: all
    timeout_s: Seconds = 7200  # of the sampling for one arm

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if not self.least_right <= self.most_kept <= self.samples_per_prompt:
            raise ValueError(f"[{self.least_right}, {self.most_kept}] of {self.samples_per_prompt} right is no range")
        return self

    @property
    def most_kept(self) -> int:
        """The most right samples that a kept query has."""
        return self.samples_per_prompt - 1 if self.most_right is None else self.most_right


class RLConfig(AlgorithmConfig):
    """Reinforcement learning: how much of it, and by which algorithm (GRPO of section 2 of arXiv:2505.18917)."""

    steps: Positive = 200
    prompts_per_step: Positive = 32
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    # 0: every batch is made by the policy that it trains. S > 0: engines and learners work at the same time, weights
    # are swapped in flight, and no token is made by a policy more than S steps older than the one that it trains.
    max_staleness: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    query_filter: QueryFilterConfig | None = None  # None: every query of the set rl
    incomplete_groups: Literal["drop", "keep"] = "drop"  # groups that lost a sample to an infrastructure failure
    checkpoint_every_steps: Positive = 10
    validate_every_steps: Annotated[int, Field(ge=0)] = 0  # 0: never
    batch_timeout_s: Seconds = 600
