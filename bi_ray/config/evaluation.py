"""Options of evaluation, and of the verifier that judges responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bi_ray.config.base import Config, Deadline, NotInKey, NotNegative, Positive, Seconds, SetName


class VerifierConfig(Config):
    """How a response becomes a verdict."""

    sample_timeout_s: Seconds = 5
    """A response that takes longer to judge is a data failure."""

    batch_timeout_s: Deadline = 120
    """Responses are sent to the verifier in batches that this is enough for, even if each takes
    `sample_timeout_s`."""

    start_timeout_s: Deadline = 120
    """Deadline for the verifier's process to start, and for a user's function to load what its
    first call needs."""

    memory_mib: Annotated[Positive, NotInKey()] = 8192
    """Memory of the process that judges; a response that makes it take more is a data failure."""

    reward_function: str | None = None
    """Import path package.module:function of a reward of your own. null: whether the answer is
    right."""

    trace_reward: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Reward for the trace: this times what `trace_reward_of` measures is added. 0: none."""

    trace_reward_of: Literal["progress", "valid"] = "progress"
    """progress: the share of the needed quantities solved before the first wrong line. valid: 1 if
    every line is right, else 0."""


class EvaluationConfig(Config):
    """What is measured before and after RL."""

    sets: tuple[SetName, ...] = ("test_id", "test_ood")
    """The sets to evaluate on."""

    samples_per_prompt: NotNegative = 8
    """Responses sampled in addition to the greedy one, for pass@k and the informative share. 0:
    greedy only."""

    base_model: Annotated[bool, NotInKey()] = False
    """Also evaluate the model that SFT starts from."""

    sampled_problems: Positive = 100
    """How many problems of each set are sampled that often, the first ones."""

    temperature: Annotated[float, Field(ge=0.01)] = 1.0
    """Temperature of those samples."""

    bootstrap_draws: Positive = 10_000
    """Resamples behind each bootstrap interval."""

    timeout_s: Deadline = 7200
    """Deadline of evaluating one policy on one set."""
