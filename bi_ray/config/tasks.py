"""Options of the tasks: where problems come from, how hard they are, and which answer is right."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from bi_ray.config.base import Config, ForeignOptions, Positive, SetName

OperatorName = Literal["add", "subtract", "multiply", "square", "and", "or", "not"]
LogicName = Literal["arithmetic", "boolean", "deductive", "abductive"]


def _one_number_is_a_range(value: object) -> object:
    return (value, value) if isinstance(value, int) else value


def _range_ascends(value: tuple[int, int]) -> tuple[int, int]:
    low, high = value
    if not 0 <= low <= high:
        raise ValueError(f"expected [low, high] with 0 <= low <= high, got [{low}, {high}]")
    return value


PositiveRange = Annotated[
    tuple[Positive, Positive],
    BeforeValidator(_one_number_is_a_range),
    AfterValidator(_range_ascends),
]
Range = Annotated[
    tuple[int, int],
    BeforeValidator(_one_number_is_a_range),
    AfterValidator(_range_ascends),
]


class DifficultyConfig(Config):
    """How many problems a set has, and how hard they are.

    Ranges are inclusive; one number instead of [low, high] means exactly that.
    """

    problems: Positive = 1000
    """Number of problems."""

    depth: PositiveRange = (4, 4)
    """Depth of the tree of operators: [low, high], or one number."""

    redundant_nodes: Range = (0, 0)
    """Nodes that the question does not need: [low, high], or one number."""


_OPERATORS: dict[LogicName, tuple[OperatorName, ...]] = {
    "arithmetic": ("add", "subtract", "multiply", "square"),
    "boolean": ("and", "or", "not"),
    # close to DyVal's shares of 0.51, 0.33 and 0.16: most of what "and" implies is unknown
    "deductive": ("or", "or", "or", "not", "not", "and"),
    "abductive": ("or", "or", "or", "not", "not", "and"),
}


class PromptBenchConfig(Config):
    """PromptBench (DyVal, arXiv:2309.17167): trees of operators over numbers or truth values."""

    kind: Literal["promptbench"] = "promptbench"
    """The kind of task."""

    logic: LogicName = "arithmetic"
    """What the operators work on."""

    order: Literal["topological", "reversed", "random"] = "topological"
    """Order of the premises. topological: each after those that it uses."""

    operators: tuple[OperatorName, ...] = _OPERATORS["arithmetic"]
    """The operators to draw from; one named twice is drawn twice as often. If this is left out,
    all operators of the logic are drawn."""

    constants: tuple[int, int] = (1, 10)
    """For arithmetic only: constants of the leaves, [low, high]."""

    max_abs_value: Positive = 1000
    """For arithmetic only: largest absolute value of any node, the answer included."""

    name_pool: Positive = 676
    """Number of node names to draw from."""

    sets: dict[SetName, DifficultyConfig]
    """The sets of problems, by name."""

    @model_validator(mode="before")
    @classmethod
    def _operators_of_the_logic(cls, content: object) -> object:
        if (
            isinstance(content, dict)
            and "operators" not in content
            and content.get("logic") in _OPERATORS
        ):
            return content | {"operators": _OPERATORS[content["logic"]]}
        return content

    @model_validator(mode="after")
    def _operators_fit(self) -> Self:
        known = dict.fromkeys(_OPERATORS[self.logic])
        if unknown := [name for name in self.operators if name not in known]:
            raise ValueError(
                f"operators: {self.logic} logic has no {unknown[0]!r}, only {', '.join(known)}"
            )
        if self.logic == "arithmetic" and not set(self.operators) - {"square"}:
            raise ValueError("operators: name at least one of add, subtract and multiply")
        if not self.operators:
            raise ValueError("operators: name at least one")
        if self.logic == "abductive" and "not" not in self.operators:
            raise ValueError("operators: add 'not'; a single redundant node needs it")
        return self

    @model_validator(mode="after")
    def _enough_names(self) -> Self:
        low, high = self.constants
        if low > high:
            raise ValueError(
                f"constants: expected [low, high] with low <= high, got [{low}, {high}]"
            )
        if max(abs(low), abs(high)) > self.max_abs_value:
            raise ValueError("max_abs_value is smaller than the largest constant")
        for name, difficulty in self.sets.items():
            most = 2 ** difficulty.depth[1] - 1 + difficulty.redundant_nodes[1]
            if most > self.name_pool:
                raise ValueError(
                    f"set {name}: up to {most} nodes need a name_pool of at least {most}"
                )
        return self


Extract = Literal["tag", "boxed", "hashes", "response"]


class AnswerConfig(Config):
    """How the answer of a response is found, and when it is right (docs/data.md)."""

    extract: Extract = "tag"
    """Where the answer is. tag: in the last `<answer>...</answer>`. boxed: in the last
    `\\boxed{...}`. hashes: after the last `####`. response: it is the whole response."""

    checker: Literal["exact", "numeric", "math", "regex", "function"] = "exact"
    """How it is compared with the right answer. exact: as text. numeric: as a number. math: by
    math-verify. regex: what `pattern` finds in it, as text. function: by a function of your own."""

    ignore_case: bool = False
    """For exact and regex: ignore the difference between upper and lower case."""

    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """For numeric: largest difference, as a share of the right answer; of 1 if that is 0."""

    pattern: str | None = None
    """For regex: a regular expression with one group; the group of its last match is the answer.
    null: for the other checkers."""

    function: str | None = None
    """For function: import path package.module:function of a function that returns true or false.
    null: for the other checkers."""

    @model_validator(mode="after")
    def _checker_has_its_options(self) -> Self:
        for checker, name in (("regex", "pattern"), ("function", "function")):
            if (getattr(self, name) is not None) != (self.checker == checker):
                raise ValueError(
                    f"{name}: checker {checker!r} needs it, and no other checker has it"
                )
        if self.pattern is not None:
            _check_pattern(self.pattern)
        return self


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r} is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(
            f"pattern: {pattern!r} has {groups} groups; put ( ) around the answer, and only there"
        )


class FieldsConfig(Config):
    """Names of the fields, or columns, of a user's rows. All but the question may be absent."""

    question: str = "question"
    """Field of the question."""

    answer: str = "answer"
    """Field of the right answer. If it is absent, the answer is what is found in the response."""

    chain_of_thought: str = "chain_of_thought"
    """Field of the reasoning; put before the answer, it makes a demonstration."""

    response: str = "response"
    """Field of a whole demonstration, which is taken as it is."""

    spans: str = "spans"
    """Field of the behaviors in that response: a list of `{start, end, behavior}`."""


class UserSetConfig(Config):
    """The problems of one set of a user's data."""

    path: str | None = None
    """A file for this set alone. null: its part of task.path, by the hash of the question."""

    problems: Positive | None = None
    """How many problems are used, the first ones. null: all of them."""


class UserDataConfig(Config):
    """A user's own questions and answers (docs/data.md).

    They come from JSONL, from Parquet or from a directory that `datasets` saved.
    """

    kind: Literal["jsonl"]
    """The kind of task."""

    path: str | None = None
    """One file that is split over the sets. null: each set has a file of its own."""

    fields: FieldsConfig = FieldsConfig()
    """Names of the fields of a row."""

    answer: AnswerConfig = AnswerConfig()
    """How answers are found and compared."""

    system_prompt: str | None = None
    """The system prompt. null: one that asks for the answer where answer.extract looks for it."""

    strict: bool = False
    """Stop at the first bad row. false: bad rows are left out and counted."""

    sets: dict[SetName, UserSetConfig]
    """The sets of problems, by name."""

    @model_validator(mode="after")
    def _every_set_has_a_file(self) -> Self:
        for name, settings in self.sets.items():
            if settings.path is None and self.path is None:
                raise ValueError(f"set {name}: set its path, or task.path for all sets")
        if self.path is not None and "pretrain" in self.sets:
            raise ValueError(
                "set pretrain: its part of task.path belongs to sft; remove it, or set its path"
            )
        return self


class GymSetConfig(Config):
    """The problems of one set from reasoning-gym."""

    problems: Positive = 1000
    """Number of problems."""

    options: ForeignOptions = {}
    """Options of the task for this set, on top of task.options."""


class ReasoningGymConfig(Config):
    """A task of reasoning-gym, judged by its own scorer: only the full score is right.

    It needs the extra `gym`.
    """

    kind: Literal["reasoning_gym"]
    """The kind of task."""

    task: str
    """reasoning-gym's name of the task, such as spell_backward."""

    options: ForeignOptions = {}
    """Options of the task, as reasoning-gym names them."""

    extract: Extract = "tag"
    """Where the answer is. tag: in the last `<answer>...</answer>`. boxed: in the last
    `\\boxed{...}`. hashes: after the last `####`. response: it is the whole response."""

    system_prompt: str | None = None
    """The system prompt. null: one that asks for the answer where `extract` looks for it."""

    sets: dict[SetName, GymSetConfig]
    """The sets of problems, by name."""

    @model_validator(mode="after")
    def _seeds_are_ours(self) -> Self:
        for options in (self.options, *(settings.options for settings in self.sets.values())):
            if reserved := sorted({"seed", "size"} & set(options)):
                raise ValueError(
                    f"options: {reserved[0]} is set per problem; remove it (seeds.data varies the "
                    "problems)"
                )
        return self


class IGSMDifficultyConfig(Config):
    """How many iGSM problems a set has, and how hard they are.

    Ranges are inclusive; one number instead of [low, high] means exactly that.
    """

    problems: Positive = 1000
    """Number of problems."""

    ops: PositiveRange = (15, 20)
    """Operations that the answer takes, at most 40: [low, high], or one number."""

    redundant_nodes: Range = (1, 4)
    """Most nodes that the question does not need: [low, high], or one number. Small structures hold
    fewer."""

    @field_validator("ops")
    @classmethod
    def _ops_fit_into_a_world(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[1] > 40:
            raise ValueError(f"a world has room for at most 40 operations, not {value[1]}")
        return value


class IGSMConfig(Config):
    """iGSM: how many things hold how many things (arXiv:2407.20311, as arXiv:2505.18917 uses it).

    In both modes the sets are split by graph hash.
    """

    kind: Literal["igsm"] = "igsm"
    """The kind of task."""

    mode: Literal["paper", "clean"] = "clean"
    """paper: the distribution of the paper's data with its flaws (multipliers of 0, many answers
    of 0, easier problems more likely). clean: without them."""

    premises: Literal["shuffled", "in_order"] = "shuffled"
    """Order of the premises. in_order: each after those that it uses."""

    question: Literal["last", "first"] = "last"
    """Where the question is, after or before the premises."""

    max_abs_value: Positive = 999
    """Largest absolute value: of the answer in mode paper, of every quantity in mode clean."""

    sets: dict[SetName, IGSMDifficultyConfig]
    """The sets of problems, by name."""


def _with_kind(value: object) -> object:
    """PromptBench is the default kind."""
    return {"kind": "promptbench"} | value if isinstance(value, dict) else value


TASK_KINDS = ("promptbench", "igsm", "jsonl", "reasoning_gym")
TaskConfig = Annotated[
    PromptBenchConfig | IGSMConfig | UserDataConfig | ReasoningGymConfig,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]
