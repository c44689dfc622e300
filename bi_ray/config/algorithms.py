"""Options of RL's algorithms: what each sets by itself, and every knob that a user may turn. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bi_ray.config.base import Config, Positive

LossScale = Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_budget"]
AdvantageStd = Literal["population", "sample", "none"]

# Where an algorithm differs from GRPO, whose values are the defaults of RLConfig. Sources: docs/algorithms.md.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage_std": "none", "loss_scale": "sequence_budget"},
    "dapo": {
        "clip_high": 0.28,
        "dynamic_sampling": {},
        "shaping": {"overlong_penalty": 0.5},  # theirs is 1 where rewards are 1 and -1; here they are 1 and 0
    },
    "gpg": {"advantage_std": "none", "importance": {"base": "learner"}},
    "rloo": {
        "advantage": "leave_one_out",
        "advantage_std": "none",
        "loss_scale": "sequence_mean",
        "importance": {"level": "sequence"},
    },
    "reinforce_pp": {"advantage": "batch", "zero_variance_groups": "keep"},
    "gspo": {
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "loss_scale": "sequence_mean",
        "importance": {"treatment": "none"},  # its ratio is no importance weight, but its root
    },
    "cispo": {"clip_low": 1.0, "clip_high": 4.0, "importance": {"treatment": "none"}},  # the clip is the truncation
}

_RENAMED = {
    "clip_ratio": "rl.clip_low and rl.clip_high",
    "kl_coefficient": "rl.kl, for example {estimator: k3, coefficient: 0.001}",
}


class KLConfig(Config):
    """A KL term in the loss, and the policy that it holds to."""

    estimator: Literal["none", "k1", "k2", "k3"] = "none"  # none: no reference policy is loaded
    coefficient: Annotated[float, Field(ge=0)] = 0.001  # 0: the KL is measured, and not in the loss
    with_ratio: bool = False  # times pi / pi_base, with gradient: then k1 and k3 too have that of KL(pi || reference)
    reference: Literal["frozen", "moving"] = "frozen"  # frozen: the policy that RL starts from
    moving_every_steps: Positive = 50  # a moving reference goes towards the policy after every so many steps
    moving_rate: Annotated[float, Field(gt=0, le=1)] = 1.0  # this far: 1 replaces it

    @property
    def measured(self) -> bool:
        """Whether a reference policy is needed at all."""
        return self.estimator != "none"

    @property
    def in_loss(self) -> bool:
        """Whether every sample has a gradient, those without advantage too."""
        return self.measured and self.coefficient > 0


class ImportanceConfig(Config):
    """What is done about the learner's log-probabilities not being those that the sampler drew by.

    The importance weight is pi_learner / pi_sampler, without gradient. Either base bounds what a token can count for:
    `learner` multiplies the loss by the treated weight; under `sampler` the ratio has the weight in it already, and
    the loss is multiplied by treated weight / weight, which is 1 wherever nothing is treated.
    """

    base: Literal["sampler", "learner"] = "sampler"  # of the algorithm's ratio; learner: its own, so the ratio is 1
    level: Literal["token", "sequence"] = "token"  # sequence: the product of the weights of all its tokens
    treatment: Literal["none", "truncate", "mask"] = "truncate"  # of weights above the cap; mask: also below the floor
    cap: Annotated[float, Field(gt=0)] = 2.0
    floor: Annotated[float, Field(ge=0)] = 0.0
    tolerance: Annotated[float, Field(ge=0)] = 1e-4  # nats; smaller differences of a token are rounding: none is made
    # of them, and the gradient does not depend on which engine drew a token beside which others

    @model_validator(mode="after")
    def _cap_and_floor(self) -> Self:
        if self.floor >= self.cap:
            raise ValueError(f"floor {self.floor:g} is not below cap {self.cap:g}")
        if self.floor and self.treatment != "mask":
            raise ValueError("floor: only the treatment mask has one; set treatment: mask, or leave the floor out")
        return self


class DynamicSamplingConfig(Config):
    """Groups without variance are replaced by those of other prompts before a step begins (DAPO)."""

    max_rounds: Positive = 10  # of generation for one step, the first included; then the step takes what there is


class ShapingConfig(Config):
    """What is taken off a reward for length. The reward itself is logged apart."""

    overlong_penalty: Annotated[float, Field(ge=0)] = 0.0  # at the length limit; grows linearly from 0 in the buffer
    overlong_buffer_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of model.max_response_tokens, at its end
    length_penalty: Annotated[float, Field(ge=0)] = 0.0  # of a right response, times its share of the length limit

    @property
    def on(self) -> bool:
        """Whether any reward is changed."""
        return bool(self.overlong_penalty or self.length_penalty)


class AlgorithmConfig(Config):
    """The knobs of an RL algorithm. What is not set is as the algorithm has it, see ``ALGORITHMS``."""

    algorithm: str = "grpo"  # a name, or the import path "package.module:function" of your own (docs/algorithms.md)
    algorithm_options: dict[str, Any] = Field(default_factory=dict)  # for an algorithm of your own to read
    advantage: str = "group"  # group, leave_one_out, batch, group_batch, or an import path
    advantage_std: AdvantageStd = "population"
    advantage_epsilon: Annotated[float, Field(ge=0)] = 0.0
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2  # ratios below 1 - clip_low; 1: no lower bound
    clip_high: Annotated[float, Field(ge=0)] = 0.2  # ratios above 1 + clip_high
    loss_scale: LossScale = "token_mean"
    kl: KLConfig = KLConfig()
    importance: ImportanceConfig = ImportanceConfig()
    # drop: groups whose rewards are equal leave the step; they count in none but the sequence_* scales. keep: they
    # count in token_mean, in batch advantages and in the KL term. None: keep where the loss has a KL term, else drop.
    zero_variance_groups: Literal["drop", "keep"] | None = None
    # Groups without a right response, whose rewards differ in format, trace or length alone. outcome: they teach
    # nothing, as if nothing was added or taken off. shaped: their advantages are as large as those of right answers.
    wrong_groups: Literal["outcome", "shaped"] = "outcome"
    dynamic_sampling: DynamicSamplingConfig | None = None
    shaping: ShapingConfig = ShapingConfig()
    format_reward: Annotated[float, Field(ge=0)] = 0.0  # added where the format is right

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        for old, new in _RENAMED.items():
            if old in data:
                raise ValueError(f"{old} is gone: write {new}")
        name = data.get("algorithm", "grpo")
        if isinstance(name, str) and name not in ALGORITHMS and ":" not in name:
            raise ValueError(
                f"algorithm: {name!r} is neither one of {', '.join(ALGORITHMS)} nor an import path "
                "package.module:function"
            )
        merged = dict(data)
        for key, value in ALGORITHMS.get(name, {}).items():
            given = data.get(key, {})
            if key not in data or (isinstance(value, dict) and isinstance(given, dict)):
                merged[key] = {**value, **given} if isinstance(value, dict) else value
        return merged

    @model_validator(mode="after")
    def _a_whole(self) -> Self:
        if self.algorithm == "gpg" and self.importance.base == "sampler":
            raise ValueError("importance.base: gpg has no ratio, so its base is learner; leave it out")
        if self.advantage not in ("group", "leave_one_out", "batch", "group_batch") and ":" not in self.advantage:
            raise ValueError(
                f"advantage: {self.advantage!r} is neither group, leave_one_out, batch nor group_batch, nor an import "
                "path package.module:function"
            )
        if self.zero_variance_groups is None:  # resolved here, so that a run shows and keeps what it does
            object.__setattr__(self, "zero_variance_groups", "keep" if self.kl.in_loss else "drop")
        return self
