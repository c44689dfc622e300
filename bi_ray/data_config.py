"""Options of the data: tasks, behaviors, recipes. ``bi_ray.config`` has them too, with all others."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

SetName = Literal["pretrain", "sft", "rl", "val", "val_ood", "test_id", "test_ood", "influence_target"]
OperatorName = Literal["add", "subtract", "multiply", "square", "and", "or", "not"]
LogicName = Literal["arithmetic", "boolean", "deductive", "abductive"]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


class Config(BaseModel):
    """Base of every section: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DifficultyConfig(Config):
    """How hard and how many the problems of one set are. Ranges are inclusive; one number means exactly that."""

    problems: Positive = 1000
    depth: tuple[Positive, Positive] = (4, 4)
    redundant_nodes: tuple[int, int] = (0, 0)

    @field_validator("depth", "redundant_nodes", mode="before")
    @classmethod
    def _one_number_is_a_range(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("depth", "redundant_nodes"):
            low, high = getattr(self, name)
            if low > high or low < 0:
                raise ValueError(f"{name}: [{low}, {high}] is no range; write [low, high] with 0 <= low <= high")
        return self


_OPERATORS: dict[LogicName, tuple[OperatorName, ...]] = {
    "arithmetic": ("add", "subtract", "multiply", "square"),
    "boolean": ("and", "or", "not"),
    # as often as upstream, nearly (0.51, 0.33, 0.16): most of what "and" implies is not known
    "deductive": ("or", "or", "or", "not", "not", "and"),
    "abductive": ("or", "or", "or", "not", "not", "and"),
}


class PromptBenchConfig(Config):
    """PromptBench (DyVal, arXiv:2309.17167): trees of operators over small constants, or of logic.

    Without ``operators``, all of the logic are drawn; an operator named twice is drawn twice as often.
    """

    kind: Literal["promptbench"] = "promptbench"
    logic: LogicName = "arithmetic"
    order: Literal["topological", "reversed", "random"] = "topological"
    operators: tuple[OperatorName, ...] = _OPERATORS["arithmetic"]
    constants: tuple[int, int] = (1, 10)  # arithmetic only
    max_abs_value: Positive = 1000  # arithmetic only: of every node, so of the answer too
    name_pool: Positive = 676  # how many node names there are to draw from
    sets: dict[SetName, DifficultyConfig]

    @model_validator(mode="before")
    @classmethod
    def _operators_of_the_logic(cls, content: object) -> object:
        if isinstance(content, dict) and "operators" not in content and content.get("logic") in _OPERATORS:
            return content | {"operators": _OPERATORS[content["logic"]]}
        return content

    @model_validator(mode="after")
    def _operators_fit(self) -> Self:
        known = dict.fromkeys(_OPERATORS[self.logic])
        if strange := [name for name in self.operators if name not in known]:
            raise ValueError(f"operators: {self.logic} logic has no {strange[0]!r}, only {', '.join(known)}")
        if self.logic == "arithmetic" and not set(self.operators) - {"square"}:
            raise ValueError("operators: name at least one of add, subtract and multiply")
        if not self.operators:
            raise ValueError("operators: name at least one")
        if self.logic == "abductive" and "not" not in self.operators:
            raise ValueError("operators: name not among them; a single redundant node hangs from one")
        return self

    @model_validator(mode="after")
    def _enough_names(self) -> Self:
        if self.constants[0] > self.constants[1]:
            raise ValueError(f"constants: {list(self.constants)} is no range; write [low, high] with low <= high")
        if max(map(abs, self.constants)) > self.max_abs_value:
            raise ValueError("max_abs_value is smaller than the largest constant")
        for name, difficulty in self.sets.items():
            most = 2 ** difficulty.depth[1] - 1 + difficulty.redundant_nodes[1]
            if most > self.name_pool:
                raise ValueError(f"set {name}: up to {most} nodes need a name_pool of at least {most}")
        return self


class AnswerConfig(Config):
    """How the answer of a response is found, and when it is the right one (docs/data.md)."""

    # the last <answer>...</answer>, the last \\boxed{...}, what follows the last "####", or the whole response
    extract: Literal["tag", "boxed", "hashes", "response"] = "tag"
    checker: Literal["exact", "numeric", "math", "regex", "function"] = "exact"
    ignore_case: bool = False  # exact and regex
    tolerance: Annotated[float, Field(ge=0)] = 1e-6  # numeric: of the right answer; of 1 where that is 0
    pattern: str | None = None  # regex: the group of its last match in what was found is the answer
    function: str | None = None  # function: import path "package.module:function" of one that returns True or False

    @model_validator(mode="after")
    def _checker_has_its_options(self) -> Self:
        for checker, name in (("regex", "pattern"), ("function", "function")):
            if (getattr(self, name) is not None) != (self.checker == checker):
                raise ValueError(f"{name}: it goes with checker {checker!r}, and only with it")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern: {self.pattern!r} is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(
                    f"pattern: {self.pattern!r} has {groups} groups; put ( ) around the answer, only there"
                )
        return self


class FieldsConfig(Config):
    """What the fields of a user's rows, or the columns, are called. All but the question may be absent."""

    question: str = "question"
    answer: str = "answer"  # absent: what is found in the response
    chain_of_thought: str = "chain_of_thought"  # put before the answer to make a response
    response: str = "response"  # a whole one, taken as it is
    spans: str = "spans"  # of behaviors in the response: a list of {start, end, behavior}


class UserSetConfig(Config):
    """The problems of one set of a user's data."""

    path: str | None = None  # its own file; None: its part of task.path, by the hash of the question
    problems: Positive | None = None  # None: all there are


class UserDataConfig(Config):
    """A user's own questions and answers, from JSONL, Parquet or a directory that datasets saved (docs/data.md)."""

    kind: Literal["jsonl"]
    path: str | None = None  # one file that is split over the sets
    fields: FieldsConfig = FieldsConfig()
    answer: AnswerConfig = AnswerConfig()
    system_prompt: str | None = None  # None: asks for the answer where answer.extract looks for it
    strict: bool = False  # stop at the first bad row
    sets: dict[SetName, UserSetConfig]

    @model_validator(mode="after")
    def _every_set_has_a_file(self) -> Self:
        for name, settings in self.sets.items():
            if settings.path is None and self.path is None:
                raise ValueError(f"set {name}: give it a path, or all sets one in task.path")
        if self.path is not None and "pretrain" in self.sets:
            raise ValueError("set pretrain: its part of task.path belongs to sft; take it out, or give it its own path")
        return self


class GymSetConfig(Config):
    """The problems of one set from reasoning-gym."""

    problems: Positive = 1000
    options: dict[str, Any] = {}  # of the task, on top of task.options: a harder set has others


class ReasoningGymConfig(Config):
    """A task of reasoning-gym, judged by its own scorer: right is the full score (needs the extra `gym`)."""

    kind: Literal["reasoning_gym"]
    task: str  # its name there, such as spell_backward
    options: dict[str, Any] = {}  # of the task; reasoning-gym names them
    extract: Literal["tag", "boxed", "hashes", "response"] = "tag"  # see AnswerConfig
    system_prompt: str | None = None  # None: asks for the answer where extract looks for it
    sets: dict[SetName, GymSetConfig]

    @model_validator(mode="after")
    def _seeds_are_ours(self) -> Self:
        for options in (self.options, *(settings.options for settings in self.sets.values())):
            if own := sorted({"seed", "size"} & set(options)):
                raise ValueError(f"options: {own[0]} is set per problem; take it out (seeds.data varies the problems)")
        return self


class IGSMDifficultyConfig(Config):
    """How hard and how many the iGSM problems of one set are. Ranges are inclusive; one number means exactly that."""

    problems: Positive = 1000
    ops: tuple[Positive, Positive] = (15, 20)  # operations that the answer takes
    redundant_nodes: tuple[int, int] = (1, 4)  # at most so many: small structures hold fewer

    @field_validator("ops", "redundant_nodes", mode="before")
    @classmethod
    def _one_number_is_a_range(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("ops", "redundant_nodes"):
            low, high = getattr(self, name)
            if low > high or low < 0:
                raise ValueError(f"{name}: [{low}, {high}] is no range; write [low, high] with 0 <= low <= high")
        if self.ops[1] > 40:
            raise ValueError(f"ops: at most 40 operations fit into a world, not {self.ops[1]}")
        return self


class IGSMConfig(Config):
    """iGSM: how many things hold how many things (arXiv:2407.20311, as arXiv:2505.18917 uses it).

    Mode ``paper`` has the distribution of the paper's data with its faults (multipliers of 0, many answers 0, easier
    problems likelier); ``clean`` mends them. Both are split by graph hash.
    """

    kind: Literal["igsm"] = "igsm"
    mode: Literal["paper", "clean"] = "clean"
    premises: Literal["shuffled", "in_order"] = "shuffled"
    question: Literal["last", "first"] = "last"
    max_abs_value: Positive = 999  # paper: of the answer; clean: of every quantity
    sets: dict[SetName, IGSMDifficultyConfig]


def _with_kind(value: object) -> object:
    """PromptBench is the default kind."""
    return {"kind": "promptbench"} | value if isinstance(value, dict) else value


TASK_KINDS = ("promptbench", "igsm", "jsonl", "reasoning_gym")
TaskConfig = Annotated[
    PromptBenchConfig | IGSMConfig | UserDataConfig | ReasoningGymConfig,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


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
