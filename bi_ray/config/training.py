"""Options of the learners, of SFT and of RL. Units stand in the names; this module imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bi_ray.config.algorithms import AlgorithmConfig
from bi_ray.config.base import Config, Fraction, Positive, Seconds, SetName


class LoRAConfig(Config):
    """Low-rank adapters (arXiv:2106.09685) instead of all weights; engines and checkpoints get them merged."""

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"  # names of linear layers, such as q_proj


class LearnerConfig(Config):
    """The learner group: Ray Train workers that hold FSDP2 shards."""

    workers: Positive = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    threads_per_worker: Positive = 1
    microbatch_tokens: Positive = 4096  # of one forward and backward pass on one worker, padding counted; about what
    # a CPU's cache likes, GPUs want more
    packing: Literal["auto", "shared", "flat", "padded"] = "auto"  # auto: the first of these that the model's attention
    # allows. shared: no padding, a group's prompt computed once; flat: no padding; padded: rows of one length
    activation_checkpointing: bool = False  # activations are computed again in the backward pass: less memory
    cpu_offload: bool = False  # weights, gradients and optimizer state stay in the CPU's memory between uses
    reshard_after_forward: bool = True  # false: gathered weights are kept for the backward pass: faster, more memory
    gradient_sync: Literal["microbatch", "step"] = "microbatch"  # when learners sum their gradients; step: once, so
    # that less is sent, and every learner holds a whole gradient
    compile: bool = False  # torch.compile of the decoder layers: minutes at the start
    lora: LoRAConfig | None = None  # None: all weights are trained
    max_restarts: Annotated[int, Field(ge=0)] = 2
    start_timeout_s: Seconds = 180
    collective_timeout_s: Seconds = 600  # a learner that waits longer for another one fails, and the group starts again


class OptimizerConfig(Config):
    """AdamW or plain SGD, with a constant rate after a linear warm-up and an optional decay at the end."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_share: Fraction = 0.0  # share of the steps, at the end, over which the rate falls to 0; 0: it stays constant
    decay: Literal["linear", "cosine"] = "linear"  # the form of that fall


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


class ValidationConfig(Config):
    """What is measured of the policy while RL trains it: at step 0, every few steps, and after the last one.

    Nothing that is trained on may depend on it, but for where RL stops and which step's policy is kept.
    """

    sets: Annotated[tuple[SetName, ...], Field(min_length=1)] = ("val",)  # the first one tells which step is best
    every_steps: Positive = 20
    problems: Positive | None = None  # the first so many of each set; None: all
    samples_per_prompt: Annotated[int, Field(ge=0)] = 0  # beside the greedy response, for pass@k; 0: greedy only
    temperature: Annotated[float, Field(ge=0.01)] = 1.0  # of those samples
    metric: Annotated[str, Field(pattern=r"^(greedy|pass_at_[1-9]\d*)$")] = "greedy"  # by which steps are compared
    patience: Positive | None = None  # RL stops after so many validations in a row without a better one; None: never
    min_gain: Annotated[float, Field(ge=0)] = 0.0  # what counts as better: the best one so far by more than this
    use_best: bool = False  # the best step's policy is the result of RL; otherwise the last step's

    @model_validator(mode="after")
    def _the_metric_is_measured(self) -> Self:
        if self.metric != "greedy" and int(self.metric.rpartition("_")[2]) not in self.pass_at:
            measured = ", ".join(["greedy", *(f"pass_at_{k}" for k in self.pass_at)])
            raise ValueError(f"metric: with {self.samples_per_prompt} samples_per_prompt, choose from {measured}")
        return self

    @property
    def pass_at(self) -> tuple[int, ...]:
        """The k of every pass@k that is measured: powers of two, and the number of samples."""
        n = self.samples_per_prompt
        return tuple(sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | ({n} if n else set())))

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the policy after ``step`` of ``steps`` is validated."""
        return step % self.every_steps == 0 or step == steps


class RLConfig(AlgorithmConfig):
    """Reinforcement learning: how much of it, and by which algorithm (GRPO of section 2 of arXiv:2505.18917)."""

    steps: Positive = 200
    prompts_per_step: Positive = 32
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    # 0: every batch is made by the policy that it trains. S > 0: engines and learners work at the same time, weights
    # are swapped in flight, and no token is made by a policy more than S steps older than the one that it trains.
    max_staleness: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0.01)] = 1.0  # vLLM takes smaller ones for 0.01
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    query_filter: QueryFilterConfig | None = None  # None: every query of the set rl
    incomplete_groups: Literal["drop", "keep"] = "drop"  # groups that lost a sample to an infrastructure failure
    checkpoint_every_steps: Positive = 10
    keep_last: Positive = 2  # checkpoints
    keep_best: Annotated[int, Field(ge=0)] = 1  # and so many with the best validation; then validated steps have one
    validation: ValidationConfig | None = None  # None: never
    batch_timeout_s: Seconds = 600

    @model_validator(mode="after")
    def _the_best_step_is_kept(self) -> Self:
        if self.validation and self.validation.use_best and not self.keep_best:
            raise ValueError("keep_best: validation.use_best needs the best step's checkpoint; set it to 1 or more")
        return self

    def is_checkpointed(self, step: int) -> bool:
        """Whether ``step`` gets a checkpoint, wherever training ends."""
        validated = self.validation is not None and self.keep_best > 0 and self.validation.is_due(step, self.steps)
        return step % self.checkpoint_every_steps == 0 or step == self.steps or validated
