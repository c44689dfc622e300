"""Options of the learners, of SFT and of RL."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bi_ray.config.algorithms import AlgorithmConfig
from bi_ray.config.base import (
    Config,
    Deadline,
    Fraction,
    InKeyOf,
    NotInKey,
    NotNegative,
    Positive,
    SetName,
)


class LoRAConfig(Config):
    """Low-rank adapters (arXiv:2106.09685) instead of training all weights.

    Engines and checkpoints get the adapters merged into the weights.
    """

    rank: Positive = 64
    """Rank of the adapters."""

    alpha: Annotated[float, Field(gt=0)] = 128
    """Scale of the adapters: their product is multiplied by alpha / rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' inputs."""

    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get adapters, such as q_proj."""


class LearnerConfig(Config):
    """The learner group: Ray Train workers that hold FSDP2 shards."""

    workers: Positive = 1
    """Number of learners."""

    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores that each learner reserves."""

    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs that each learner reserves. 0: it trains on CPU."""

    threads_per_worker: Positive = 1
    """Threads that each learner computes with."""

    microbatch_tokens: Positive = 4096
    """Tokens of one forward and backward pass on one learner, padding included. The default suits
    a CPU's cache; GPUs want more."""

    packing: Literal["auto", "shared", "flat", "padded"] = "auto"
    """How sequences form a micro-batch. shared: without padding, a group's prompt computed once.
    flat: without padding. padded: rows of equal length. auto: the first of these that the model's
    attention supports."""

    activation_checkpointing: bool = False
    """Compute activations again in the backward pass, which takes less memory."""

    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in CPU memory between uses."""

    reshard_after_forward: bool = True
    """Free gathered weights after the forward pass. false: they are kept for the backward pass,
    which is faster and takes more memory."""

    gradient_sync: Literal["microbatch", "step"] = "microbatch"
    """When learners sum their gradients. step: once per step, so that less is sent, but every
    learner holds a whole gradient."""

    compile: bool = False
    """Compile the decoder layers with torch.compile, which takes minutes at the start."""

    lora: LoRAConfig | None = None
    """Adapters to train. null: all weights are trained."""

    max_restarts: NotNegative = 2
    """How often the learner group is restarted after a failure before training ends with an
    error."""

    start_timeout_s: Deadline = 180
    """How long to wait for room for the learners on the cluster."""

    collective_timeout_s: Deadline = 600
    """How long a learner waits for another one; after that it fails and the group restarts."""


class OptimizerConfig(Config):
    """AdamW or plain SGD. The rate warms up linearly, stays constant, and may decay at the end."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    """Learning rate after the warm-up."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moment estimates."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay. 0: none."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which a larger gradient is scaled down."""

    warmup_steps: NotNegative = 0
    """Steps over which the rate rises linearly. 0: no warm-up."""

    decay_share: Fraction = 0.0
    """Share of the steps, at the end, over which the rate falls to 0. 0: it stays constant."""

    decay: Literal["linear", "cosine"] = "linear"
    """The shape of that fall."""


class SFTConfig(Config):
    """Supervised fine-tuning on the demonstrations of an arm."""

    epochs: Positive = 5
    """Passes over the demonstrations."""

    batch_examples: Positive = 128
    """Demonstrations per optimizer step."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6)
    """The optimizer of SFT."""

    loss_on_prompt: bool = False
    """Whether the tokens of the prompt are learned, too."""

    report_twice_the_budget: Annotated[bool, NotInKey()] = False
    """Also train and evaluate with twice the epochs, as a control."""

    checkpoint_every_steps: Annotated[Positive, NotInKey()] = 50
    """How often a checkpoint is written to resume from."""


class QueryFilterConfig(Config):
    """Rejection of RL queries before RL, by the SFT policy's own rollouts.

    Source: Fig. 11 of arXiv:2505.18917.
    """

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Responses sampled for each query, at rl.temperature."""

    least_right: NotNegative = 1
    """Queries with fewer right responses are rejected."""

    most_right: NotNegative | None = None
    """Queries with more right responses are rejected. null: samples_per_prompt - 1, which rejects
    those with only right ones."""

    queries: Positive | None = None
    """How many queries of the set rl are sampled, the first ones. null: all of them."""

    timeout_s: Deadline = 7200
    """Deadline of the sampling for one arm."""

    @model_validator(mode="after")
    def _some_count_is_kept(self) -> Self:
        if not self.least_right <= self.most_kept <= self.samples_per_prompt:
            raise ValueError(
                "expected least_right <= most_right <= samples_per_prompt, got "
                f"{self.least_right}, {self.most_kept} and {self.samples_per_prompt}"
            )
        return self

    @property
    def most_kept(self) -> int:
        """Most right responses that a kept query has."""
        return self.samples_per_prompt - 1 if self.most_right is None else self.most_right


class ValidationConfig(Config):
    """What is measured while RL trains: at step 0, every few steps, and after the last one.

    Nothing that is trained on may depend on it, except where RL stops and which policy is kept.
    """

    sets: Annotated[tuple[SetName, ...], Field(min_length=1)] = ("val",)
    """The sets to measure; the first one decides which step is best."""

    every_steps: Positive = 20
    """How often the policy is validated."""

    problems: Positive | None = None
    """How many problems of each set are used, the first ones. null: all of them."""

    samples_per_prompt: NotNegative = 0
    """Responses sampled in addition to the greedy one, for pass@k. 0: greedy only."""

    temperature: Annotated[float, Field(ge=0.01)] = 1.0
    """Temperature of those samples."""

    metric: Annotated[str, Field(pattern=r"^(greedy|pass_at_[1-9]\d*)$")] = "greedy"
    """What steps are compared by: greedy, or pass_at_K, such as pass_at_4."""

    patience: Positive | None = None
    """RL stops after this many validations in a row without a better one. null: it never stops
    early."""

    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """A validation is better if it exceeds the best one so far by more than this."""

    use_best: bool = False
    """Make the best step's policy the result of RL. false: the last step's."""

    @model_validator(mode="after")
    def _the_metric_is_measured(self) -> Self:
        if self.metric != "greedy" and int(self.metric.rpartition("_")[2]) not in self.pass_at:
            measured = ", ".join(["greedy", *(f"pass_at_{k}" for k in self.pass_at)])
            raise ValueError(
                f"metric: with {self.samples_per_prompt} samples_per_prompt, choose from {measured}"
            )
        return self

    @property
    def pass_at(self) -> tuple[int, ...]:
        """The k of every pass@k that is measured: powers of two, and the number of samples."""
        samples = self.samples_per_prompt
        if samples == 0:
            return ()
        powers = {2**exponent for exponent in range(samples.bit_length())}
        return tuple(sorted(powers | {samples}))

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the policy after ``step`` of ``steps`` is validated."""
        return step % self.every_steps == 0 or step == steps


class RLConfig(AlgorithmConfig):
    """Reinforcement learning: how much of it, and by which algorithm.

    The defaults are GRPO as in section 2 of arXiv:2505.18917.
    """

    steps: Positive = 200
    """Optimizer steps."""

    prompts_per_step: Positive = 32
    """Prompts in the batch of one step."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Responses sampled for each prompt: the size of a group."""

    max_staleness: NotNegative = 0
    """0: every batch is generated by the policy that it trains. S > 0: engines and learners work
    at the same time, weights are swapped in flight, and no token comes from a policy more than S
    steps older than the one that it trains."""

    temperature: Annotated[float, Field(ge=0.01)] = 1.0
    """Sampling temperature; vLLM rounds smaller ones up to 0.01."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are drawn from the most probable ones that together have this probability. 1: from
    all."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    """The optimizer of RL."""

    query_filter: Annotated[QueryFilterConfig | None, InKeyOf("queries")] = None
    """Rejects queries before RL. null: every query of the set rl is used."""

    incomplete_groups: Literal["drop", "keep"] = "drop"
    """What happens to groups that lost a sample to an infrastructure failure."""

    checkpoint_every_steps: Annotated[Positive, NotInKey()] = 10
    """How often a checkpoint is written to resume from."""

    keep_last: Annotated[Positive, NotInKey()] = 2
    """How many of the newest checkpoints are kept."""

    keep_best: Annotated[NotNegative, NotInKey()] = 1
    """How many checkpoints with the best validation are kept as well; every validated step is then
    checkpointed. 0: none."""

    validation: ValidationConfig | None = None
    """Measures the policy during RL. null: it is not measured."""

    batch_timeout_s: Deadline = 600
    """How long learners wait for a batch of rollouts."""

    @model_validator(mode="after")
    def _the_best_step_is_kept(self) -> Self:
        if self.validation and self.validation.use_best and not self.keep_best:
            raise ValueError(
                "keep_best: set it to 1 or more; validation.use_best needs the best checkpoint"
            )
        return self

    def is_checkpointed(self, step: int) -> bool:
        """Whether ``step`` gets a checkpoint, no matter where training ends."""
        if step % self.checkpoint_every_steps == 0 or step == self.steps:
            return True
        if self.validation is None or self.keep_best == 0:
            return False
        return self.validation.is_due(step, self.steps)
