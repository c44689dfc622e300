"""Options of recipes: which behaviors are injected into the demonstrations of an arm."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from bi_ray.config.base import Config, Fraction, Positive


class BehaviorConfig(Config):
    """One injected behavior and how often it appears."""

    name: str  # subgoal, analysis, reflection, correction, verification, planning, or "package.module:Class"
    probability: Fraction = 0.1  # per step where the behavior can appear; of planning: per demonstration
    by_in_degree: tuple[Fraction, ...] = ()  # in place of it: for steps with 0, 1, 2 ... parents, the last for more
    most: Positive | None = None  # of it in one demonstration
    redundant_share: Fraction = 0.3  # reflection only: attempts on a node that the question does not need
    checks: Literal["steps", "answer"] = "steps"  # verification only: what is checked
    options: dict[str, Any] = {}  # for behaviors of your own


class RecipeConfig(Config):
    """What the SFT demonstrations of one arm look like. Behaviors are applied in their order."""

    behaviors: tuple[BehaviorConfig, ...] = ()
    demonstrations: str | None = None  # a file of them (docs/data.md); None: made for the problems of the set sft
    sft: bool = True  # False: no SFT, and so no demonstrations; RL starts from the checkpoint as it is
    seed: int = 0  # of the behaviors, beside seeds.data
    vary: Literal["premises", "order"] | None = None  # what is shuffled from copy to copy: question or solution
    copies: Positive | None = None  # of each problem; None: 1, or with `vary` the paper's 4 on iGSM and 2 elsewhere
    max_trace_tokens: Positive | None = None  # of a response; exploring steps are dropped first, from the end
    same_length_as: RecipeConfig | None = None  # filler until each demonstration is as long as this recipe's
    same_total_as: RecipeConfig | None = None  # more problems until all together have as many tokens as this recipe's

    @model_validator(mode="after")
    def _behaviors_have_a_place(self) -> Self:
        if self.behaviors and self.demonstrations:
            raise ValueError("demonstrations: those of a file are taken as they are; take the behaviors out")
        if not self.sft and (self.behaviors or self.demonstrations):
            raise ValueError("sft: false leaves nothing to learn from behaviors or demonstrations; take them out")
        return self

    @model_validator(mode="after")
    def _one_comparison(self) -> Self:
        if self.copies is not None and self.copies > 1 and not (self.vary or self.behaviors):
            raise ValueError("copies: these would all be the same; name what varies, or behaviors")
        if self.same_length_as and (self.same_total_as or self.behaviors or self.vary):
            raise ValueError("same_length_as: filler goes into plain demonstrations; take the other options out")
        if any(other and (other.same_length_as or other.same_total_as) for other in self._others()):
            raise ValueError("same_length_as, same_total_as: compare with a recipe that is not compared itself")
        return self

    def _others(self) -> tuple[RecipeConfig | None, ...]:
        return self.same_length_as, self.same_total_as

    @property
    def counts_tokens(self) -> bool:
        """Whether it cannot be made without a tokenizer."""
        return bool(self.max_trace_tokens or self.same_length_as)

    def for_task(self, kind: str) -> RecipeConfig:
        """The same with ``copies`` filled in: the paper's factor for this kind of task where none is given."""
        factor = PAPER_COPIES.get(kind, 2) if self.vary else 1
        others = {name: getattr(self, name) for name in ("same_length_as", "same_total_as")}
        filled = {name: other.for_task(kind) for name, other in others.items() if other}
        return self.model_copy(update={"copies": self.copies or factor} | filled)


PAPER_COPIES = {"igsm": 4, "promptbench": 2}  # of PP-Aug and RC-Aug in arXiv:2505.18917

BASE = RecipeConfig(sft=False)

VANILLA = RecipeConfig()

BRIDGE = RecipeConfig(
    behaviors=(
        BehaviorConfig(name="reflection", probability=0.1),
        BehaviorConfig(name="analysis", probability=0.1),
        BehaviorConfig(name="subgoal", probability=1.0),
    )
)


def _single(name: str, probability: float = 0.1) -> RecipeConfig:
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
