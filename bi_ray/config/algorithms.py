"""Options of RL algorithms: the defaults that each algorithm sets, and what a user may change."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from bi_ray.config.base import Config, ForeignOptions, Positive

LossScale = Literal["sequence_mean", "token_mean", "sequence_sum", "sequence_budget"]
AdvantageStd = Literal["population", "sample", "none"]
ZeroVariance = Literal["drop", "keep"]

_ADVANTAGES = ("group", "leave_one_out", "batch", "group_batch")

# Where an algorithm differs from GRPO, whose values are the defaults of RLConfig.
# Sources: docs/algorithms.md.
ALGORITHMS: dict[str, dict[str, object]] = {
    "grpo": {},
    "dr_grpo": {"advantage_std": "none", "loss_scale": "sequence_budget"},
    "dapo": {
        "clip_high": 0.28,
        "dynamic_sampling": {},
        # 1 in the paper, whose rewards are 1 and -1; here they are 1 and 0
        "shaping": {"overlong_penalty": 0.5},
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
        # its ratio is the length-th root of the importance weight
        "importance": {"treatment": "none"},
    },
    # the clip is the truncation
    "cispo": {"clip_low": 1.0, "clip_high": 4.0, "importance": {"treatment": "none"}},
}


class KLConfig(Config):
    """A KL term in the loss, and the reference policy that it is measured against."""

    estimator: Literal["none", "k1", "k2", "k3"] = "none"
    """Which estimate of the KL is used. none: no reference policy is loaded."""

    coefficient: Annotated[float, Field(ge=0)] = 0.001
    """Weight of the KL in the loss. 0: it is measured, but not part of the loss."""

    with_ratio: bool = False
    """Multiply the term by pi / pi_base, with gradient: then k1 and k3, too, have the gradient of
    KL(pi || reference)."""

    reference: Literal["frozen", "moving"] = "frozen"
    """frozen: the policy that RL starts from. moving: it follows the policy being trained."""

    moving_every_steps: Positive = 50
    """How often a moving reference takes a step toward the policy."""

    moving_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How far a moving reference goes toward the policy each time. 1: it is replaced by it."""

    @property
    def measured(self) -> bool:
        """Whether a reference policy is needed at all."""
        return self.estimator != "none"

    @property
    def in_loss(self) -> bool:
        """Whether every sample has a gradient, even one without advantage."""
        return self.measured and self.coefficient > 0


class ImportanceConfig(Config):
    """How to correct for the learner's log-probabilities differing from the sampler's.

    The importance weight is pi_learner / pi_sampler, without gradient. Either base bounds what a
    token can count for. `learner` multiplies the loss by the treated weight. Under `sampler` the
    ratio already contains the weight, and the loss is multiplied by treated weight / weight, which
    is 1 wherever nothing is treated.
    """

    base: Literal["sampler", "learner"] = "sampler"
    """Whose log-probabilities the algorithm's ratio is taken against. learner: its own before the
    step, so the ratio is 1."""

    level: Literal["token", "sequence"] = "token"
    """sequence: the weight is the product over all tokens of the response."""

    treatment: Literal["none", "truncate", "mask"] = "truncate"
    """truncate: weights above `cap` become `cap`. mask: weights above `cap` or below `floor` become
    0."""

    cap: Annotated[float, Field(gt=0)] = 2.0
    """Largest weight that is left alone."""

    floor: Annotated[float, Field(ge=0)] = 0.0
    """Smallest weight that is left alone; for the treatment mask only."""

    tolerance: Annotated[float, Field(ge=0)] = 1e-4
    """In nats. A token's smaller difference is rounding and counts as none, so the gradient does
    not depend on which engine drew a token beside which others."""

    @model_validator(mode="after")
    def _cap_and_floor(self) -> Self:
        if self.floor >= self.cap:
            raise ValueError(f"floor {self.floor:g} is not below cap {self.cap:g}")
        if self.floor and self.treatment != "mask":
            raise ValueError(
                "floor: only the treatment mask has one; set treatment: mask, or remove the floor"
            )
        return self


class DynamicSamplingConfig(Config):
    """Before a step begins, groups without variance are replaced by other prompts' (DAPO)."""

    max_rounds: Positive = 10
    """Maximum number of rounds of generation for one step, counting the first; after that the
    step uses what it has."""


class ShapingConfig(Config):
    """Length penalties, subtracted from the reward. The reward itself is logged without them."""

    overlong_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Penalty at the length limit; it grows linearly from 0 over the buffer. 0: none."""

    overlong_buffer_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of model.max_response_tokens, at its end, that is the buffer."""

    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Penalty of a right response, times the share of the length limit that it uses. 0: none."""

    @property
    def on(self) -> bool:
        """Whether any reward is changed."""
        return bool(self.overlong_penalty or self.length_penalty)


class AlgorithmConfig(Config):
    """The options of an RL algorithm; ``ALGORITHMS`` has the defaults of each."""

    algorithm: str = "grpo"
    """grpo, dr_grpo, dapo, gpg, rloo, reinforce_pp, gspo, cispo, or the import path
    package.module:function of your own (docs/algorithms.md)."""

    algorithm_options: ForeignOptions = Field(default_factory=dict)
    """Options that an algorithm of your own reads."""

    advantage: str = "group"
    """group, leave_one_out, batch, group_batch, or an import path package.module:function."""

    advantage_std: AdvantageStd = "population"
    """Which standard deviation advantages are divided by. none: they are not divided."""

    advantage_epsilon: Annotated[float, Field(ge=0)] = 0.0
    """Added to that standard deviation."""

    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Ratios below 1 - clip_low are clipped. 1: no lower bound."""

    clip_high: Annotated[float, Field(ge=0)] = 0.2
    """Ratios above 1 + clip_high are clipped."""

    loss_scale: LossScale = "token_mean"
    """A token's weight. token_mean: 1 / tokens. sequence_mean: 1 / (samples x length).
    sequence_sum: 1 / samples. sequence_budget: 1 / (samples x model.max_response_tokens)."""

    kl: KLConfig = KLConfig()
    """The KL term of the loss."""

    importance: ImportanceConfig = ImportanceConfig()
    """What is done where learner and sampler disagree."""

    zero_variance_groups: ZeroVariance | None = Field(default=None, validate_default=True)
    """What happens to groups whose rewards are equal. drop: they leave the step, and count only in
    the sequence_* loss scales. keep: they count in token_mean, in batch advantages and in the KL
    term. null: keep if the loss has a KL term, else drop."""

    wrong_groups: Literal["outcome", "shaped"] = "outcome"
    """What groups without a right response teach, whose rewards differ only in format, trace or
    length. outcome: nothing, as if nothing had been added or taken off. shaped: their advantages
    are as large as those of right answers."""

    dynamic_sampling: DynamicSamplingConfig | None = None
    """Replaces groups that are not informative. null: they are not replaced."""

    shaping: ShapingConfig = ShapingConfig()
    """Penalties for length."""

    format_reward: Annotated[float, Field(ge=0)] = 0.0
    """Added to the reward where the format is right."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        name = data.get("algorithm", "grpo")
        if not isinstance(name, str):
            return data
        if name not in ALGORITHMS and ":" not in name:
            raise ValueError(
                f"algorithm: {name!r} is neither one of {', '.join(ALGORITHMS)} nor an import path "
                "package.module:function"
            )
        merged = dict(data)
        for key, default in ALGORITHMS.get(name, {}).items():
            if key not in data:
                merged[key] = default
            elif isinstance(default, dict) and isinstance(data[key], dict):
                merged[key] = default | data[key]
        return merged

    @field_validator("zero_variance_groups")
    @classmethod
    def _kept_for_the_kl_term(
        cls, value: ZeroVariance | None, info: ValidationInfo
    ) -> ZeroVariance | None:
        """Resolve None here, so that a run shows and saves what it does."""
        kl = info.data.get("kl")
        if value is not None or kl is None:  # a kl that does not fit is reported by itself
            return value
        return "keep" if kl.in_loss else "drop"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.algorithm == "gpg" and self.importance.base == "sampler":
            raise ValueError(
                "importance.base: gpg has no ratio, so its base is learner; leave it out"
            )
        if self.advantage not in _ADVANTAGES and ":" not in self.advantage:
            raise ValueError(
                f"advantage: {self.advantage!r} is neither one of {', '.join(_ADVANTAGES)} nor an "
                "import path package.module:function"
            )
        return self
