"""Options of the data: tasks, behaviors, recipes. ``bi_ray.config`` has them too, with all others."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bi_ray.config.base import Config, Positive, SetName

OperatorName = Literal["add", "subtract", "multiply", "square", "and", "or", "not"]
LogicName = Literal["arithmetic", "boolean", "deductive", "abductive"]


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
