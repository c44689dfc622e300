"""Options of the measurement before RL, and of influence during it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bi_ray.config.base import Config, Deadline, InKeyOf, NotInKey, NotNegative, Positive


class ReadinessConfig(Config):
    """What is measured of a policy before RL, and every few steps while RL trains it.

    Queries are taken from the set `rl`. Their influence is measured on problems of the set
    `influence_target`, which shares none with any other set. Both are sampled as RL will:
    rl.samples_per_prompt times, at rl.temperature.
    """

    queries: NotNegative = 64
    """Queries whose influence is measured. 0: readiness is not measured at all."""

    target_queries: Positive = 64
    """Problems on which the influence is measured."""

    target: Annotated[dict[str, Any] | None, InKeyOf("target")] = None
    """Difficulty of those problems, written as in task.sets. null: that of the set rl."""

    token_scales: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")
    """How a response's tokens are combined; each scale takes passes of its own."""

    method: Literal["forward", "shifted"] = "forward"
    """How influence is computed. forward: exactly, by forward-mode differentiation. shifted: an
    approximation, for attention kernels without jvp."""

    shift_norm: Annotated[float, Field(gt=0)] = 3e-3
    """How far the method shifted moves the weights, as a norm."""

    pairwise_mib: Annotated[float, Field(ge=0)] = 1024
    """Memory for one gradient per query. If it is too small, the influence of each query on each
    other one is not measured."""

    every_rl_steps: Annotated[NotNegative, NotInKey()] = 0
    """Also measure at this interval of steps while RL trains. 0: only before RL."""

    realized_queries: Annotated[NotNegative, InKeyOf("realized")] = 0
    """Queries on which one SGD step is really taken, to compare its effect with the prediction.
    0: none."""

    realized_samples_per_prompt: Annotated[Positive, InKeyOf("realized")] = 16
    """Responses sampled for each target problem after each such step."""

    realized_step_norm: Annotated[float, Field(gt=0), InKeyOf("realized")] = 0.1
    """Length of that step in weight space."""

    microbatch_tokens: Positive = 4096
    """Maximum number of padded tokens in one forward and backward pass."""

    cpus: Annotated[float, Field(ge=0), NotInKey()] = 0
    """CPU cores that the analyzer reserves. 0: it shares those of the other actors."""

    gpus: Annotated[float, Field(ge=0), NotInKey()] = 0
    """GPUs that the analyzer reserves. 0: it computes on CPU."""

    threads: Annotated[Positive, NotInKey()] = 2
    """Threads that the analyzer computes with."""

    start_timeout_s: Deadline = 180
    """Deadline for the analyzer to start."""

    timeout_s: Deadline = 3600
    """Deadline of the analysis of one policy."""

    @model_validator(mode="after")
    def _a_scale_is_named(self) -> Self:
        if not self.token_scales:
            raise ValueError("token_scales: name at least one of sum and mean")
        return self
