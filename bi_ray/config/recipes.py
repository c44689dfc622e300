"""Options of recipes: which behaviors are injected into the demonstrations of an arm."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from bi_ray.config.base import Config, ForeignOptions, Fraction, Positive

PAPER_PROBABILITY = 0.1  # of a behavior that explores, at each step where it can appear


class BehaviorConfig(Config):
    """One injected behavior and how often it appears."""

    name: str
    """subgoal, analysis, reflection, correction, verification, planning, or the import path
    package.module:Class of your own."""

    probability: Fraction = PAPER_PROBABILITY
    """Probability per step where the behavior can appear; of planning: per demonstration."""

    by_in_degree: tuple[Fraction, ...] = ()
    """Probabilities for steps with 0, 1, 2 ... parents, which replace `probability`; the last one
    holds for more parents, too. Empty: `probability` holds for every step."""

    most: Positive | None = None
    """Maximum number of occurrences in one demonstration. null: no limit."""

    redundant_share: Fraction = 0.3
    """For reflection only: share of the attempts that are on nodes the question does not need."""

    checks: Literal["steps", "answer"] = "steps"
    """For verification only: what is checked, the steps or the final answer."""

    options: ForeignOptions = {}
    """Options that a behavior of your own reads."""


class RecipeConfig(Config):
    """What the SFT demonstrations of one arm look like. Behaviors are applied in this order."""

    behaviors: tuple[BehaviorConfig, ...] = ()
    """The behaviors to inject. Empty: plain demonstrations."""

    demonstrations: str | None = None
    """A file of demonstrations (docs/data.md). null: they are made for the problems of the set
    sft."""

    sft: bool = True
    """Whether to train with SFT. false: no demonstrations either; RL starts from the checkpoint as
    it is."""

    seed: int = 0
    """Seed of the behaviors, in addition to seeds.data."""

    vary: Literal["premises", "order"] | None = None
    """What is shuffled from copy to copy. premises: the question. order: the solution. null:
    nothing."""

    copies: Positive | None = None
    """Demonstrations of each problem. null: 1, or with `vary` the paper's 4 on iGSM and 2
    elsewhere."""

    max_trace_tokens: Positive | None = None
    """Longest response, in tokens; from longer ones, exploring steps are dropped, the last ones
    first. null: no limit."""

    same_length_as: RecipeConfig | None = None
    """A recipe to match: filler is added until each demonstration is as long as that recipe's.
    null: no filler."""

    same_total_as: RecipeConfig | None = None
    """A recipe to match: problems are added until all demonstrations together have as many tokens
    as that recipe's. null: the problems of the set sft."""

    @model_validator(mode="after")
    def _behaviors_have_a_place(self) -> Self:
        if self.behaviors and self.demonstrations:
            raise ValueError(
                "demonstrations: those of a file are taken as they are; remove the behaviors"
            )
        if not self.sft and (self.behaviors or self.demonstrations):
            raise ValueError(
                "sft: false leaves nothing to learn from behaviors or demonstrations; remove them"
            )
        return self

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if self.copies in (None, 1) or self.vary or self.behaviors:
            return self
        raise ValueError("copies: they would all be the same; set vary, or name behaviors")

    @model_validator(mode="after")
    def _filler_goes_into_plain_demonstrations(self) -> Self:
        if self.same_length_as is None:
            return self
        if self.same_total_as or self.behaviors or self.vary:
            raise ValueError(
                "same_length_as: filler goes into plain demonstrations; remove the other options"
            )
        return self

    @model_validator(mode="after")
    def _matches_a_recipe_that_matches_none(self) -> Self:
        for reference in (self.same_length_as, self.same_total_as):
            if reference and (reference.same_length_as or reference.same_total_as):
                raise ValueError(
                    "same_length_as, same_total_as: name a recipe that matches no other one itself"
                )
        return self

    @property
    def counts_tokens(self) -> bool:
        """Whether making it takes a tokenizer."""
        return bool(self.max_trace_tokens or self.same_length_as)

    def for_task(self, kind: str) -> RecipeConfig:
        """The same recipe with ``copies`` set; None becomes the factor for this task."""
        factor = PAPER_COPIES.get(kind, 2) if self.vary else 1
        update: dict[str, object] = {"copies": self.copies or factor}
        if self.same_length_as:
            update["same_length_as"] = self.same_length_as.for_task(kind)
        if self.same_total_as:
            update["same_total_as"] = self.same_total_as.for_task(kind)
        return self.model_copy(update=update)


# copies of a problem by PP-Aug and RC-Aug in arXiv:2505.18917
PAPER_COPIES = {"igsm": 4, "promptbench": 2}

BASE = RecipeConfig(sft=False)

VANILLA = RecipeConfig()

BRIDGE = RecipeConfig(
    behaviors=(
        BehaviorConfig(name="reflection", probability=PAPER_PROBABILITY),
        BehaviorConfig(name="analysis", probability=PAPER_PROBABILITY),
        BehaviorConfig(name="subgoal", probability=1.0),
    )
)


def _single(name: str, probability: float = PAPER_PROBABILITY) -> RecipeConfig:
    return RecipeConfig(behaviors=(BehaviorConfig(name=name, probability=probability),))


RECIPES = {
    "base": BASE,
    "vanilla": VANILLA,
    "bridge": BRIDGE,
    "pp_aug": RecipeConfig(vary="premises"),
    "rc_aug": RecipeConfig(vary="order"),
    "subgoal": _single("subgoal", 1.0),
    "analysis": _single("analysis"),
    "reflection": _single("reflection"),
    "correction": _single("correction"),
    "verification": _single("verification"),
    "planning": _single("planning", 1.0),
    "filler": RecipeConfig(same_length_as=BRIDGE),
    "vanilla_tokens": RecipeConfig(same_total_as=BRIDGE),
}
