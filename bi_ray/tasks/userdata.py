"""A user's own questions and answers, from files (docs/data.md).

Each set has its own file, or all share one that is split by the hash of the question into the
ranges of ``SPLIT_RANGES``; nothing is pre-trained on it, so that ``sft`` has the range of
``pretrain`` too. A row of a set that trains is left out when a set that tests has the same
question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bi_ray.answers.checker import AnswerChecker, write_response
from bi_ray.config import (
    ConfigError,
    FieldsConfig,
    SetName,
    UserDataConfig,
    UserSetConfig,
    VerifierConfig,
)
from bi_ray.isolation.guard import Fault, Guard, Limits, doing
from bi_ray.reasoning.trace import Span
from bi_ray.rows.cells import RowError, cell_text
from bi_ray.rows.files import read_rows
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues
from bi_ray.tasks.base import Problem, in_split, text_hash
from bi_ray.tasks.text import TextTask

TRAINING_SETS: frozenset[SetName] = frozenset({"pretrain", "sft", "rl"})


@dataclass(frozen=True, slots=True)
class UserRow:
    """A good row of a user's file.

    Attributes:
        question, answer: the problem.
        response: a demonstration with the right answer in it, "" where the row has none.
        spans: the behaviors in it.
        place: where the row stands.
    """

    question: str
    answer: str
    response: str
    spans: tuple[Span, ...]
    place: Place


class UserDataTask(TextTask):
    """Problems from a user's files. They are read when first asked for; ``rejects`` has the bad
    rows then.

    Args:
        config: the files and how they are read.
        seed: orders the problems of each set.
        verifier: the limits within which a row's own response is judged.
    """

    def __init__(
        self, config: UserDataConfig, seed: int, verifier: VerifierConfig | None = None
    ) -> None:
        super().__init__(config.answer.extract, config.system_prompt)
        self.config = config
        self.seed = seed
        self.checker = AnswerChecker(config.answer)
        self.limits = Limits.of(verifier or VerifierConfig())
        self.rejects = Rejects(config.strict)
        self._files: dict[str, list[UserRow]] = {}
        self._sets: dict[SetName, list[UserRow]] = {}

    def available(self, split: SetName) -> int:
        """How many problems a set has.

        Raises:
            DataError: its file cannot be read, or a row is bad and ``strict`` is set.
        """
        return len(self._rows(split))

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of a set; its id has the line of its row.

        Raises:
            DataError: the set has fewer; or see ``available``.
        """
        rows = self._rows(split)
        if not rows:
            raise DataError(self.rejects.explain(f"set {split}", "add rows to its file"))
        if index >= len(rows):
            raise DataError(
                f"set {split} has {len(rows)} problems, so none with the number {index}"
            )
        row = rows[index]
        return Problem(
            id=f"{split}-{row.place.line}",
            question=row.question,
            given_answer=row.answer,
            response=row.response,
            spans=row.spans,
            place=row.place,
        )

    def prepare(self) -> None:
        """See ``AnswerChecker.prepare``."""
        self.checker.prepare()

    def answer_is_right(self, response: str, question: str, answer: str, reference: str) -> bool:
        """See ``AnswerChecker.is_right``."""
        return self.checker.is_right(response, question, answer)

    def read_demonstrations(self, path: str, rejects: Rejects) -> list[UserRow]:
        """The rows of a file that have a demonstration, several of one question too; the others are
        rejects.
        """
        return [row for row in self._read(path, rejects) if _has_response(row, rejects)]

    def _rows(self, split: SetName) -> list[UserRow]:
        if split not in self._sets:
            rows = self._own_rows(split)
            if split in TRAINING_SETS:
                rows = self._without_tested(rows)
            # several demonstrations of one question are what rejection sampling gives
            if split == "sft":
                rows = [row for row in rows if _has_response(row, self.rejects)]
            else:
                rows = self._without_duplicates(rows)
            random.Random(f"{self.seed}/{split}").shuffle(rows)
            self._sets[split] = rows
        return self._sets[split]

    def _own_rows(self, split: SetName) -> list[UserRow]:
        """The rows of a set in the order of the file, before any set is held against another."""
        settings = self.config.sets.get(split, UserSetConfig())
        path = settings.path or self.config.path
        if path is None:
            raise ConfigError(
                f"task.sets lacks {split}; add it with a path, or give all sets one in task.path"
            )
        if path not in self._files:
            self._files[path] = self._read(path, self.rejects)
        rows = self._files[path]
        if settings.path:
            return list(rows)
        ranges: Sequence[SetName] = ("pretrain", "sft") if split == "sft" else (split,)
        return [
            row for row in rows if any(in_split(text_hash(row.question), name) for name in ranges)
        ]

    def tested(self) -> dict[str, SetName]:
        """By the hash of a question, the set that tests with it: no training set may have it."""
        names: set[SetName] = {
            *self.config.sets,
            *(("influence_target",) if self.config.path else ()),
        }
        return {
            text_hash(row.question): name
            for name in sorted(names - TRAINING_SETS)
            for row in self._own_rows(name)
        }

    def _without_tested(self, rows: Sequence[UserRow]) -> list[UserRow]:
        tested = self.tested()
        return [row for row in rows if not refuse_tested(row, tested, self.rejects)]

    def _without_duplicates(self, rows: Sequence[UserRow]) -> list[UserRow]:
        """The first row of each question; the others are rejects."""
        first: dict[str, UserRow] = {}
        for row in rows:
            same = first.setdefault(text_hash(row.question), row)
            if same is not row:
                reason = f"duplicate question: the same as in line {same.place.line}"
                self.rejects.add(row.place, reason, row.question)
        return list(first.values())

    def _read(self, path: str, rejects: Rejects) -> list[UserRow]:
        def read(values: RowValues, place: Place) -> UserRow:
            return read_row(values, place, self.config.fields, self, judge)

        with self._judge() as judge:
            return list(read_rows(path, read, rejects))

    def _judge(self) -> AbstractContextManager[Judge]:
        """What judges rows: in a process of its own where a check may hang, since asking that takes
        longer.
        """
        checker = self.config.answer.checker
        if checker in ("exact", "numeric"):
            return nullcontext(_JudgeHere(self.checker))
        guard: Guard[RowCheck, Any] = Guard(
            partial(_JudgeHere, self.checker), self.limits, checker == "function"
        )
        return _GuardedJudge(guard)


class RowCheck(NamedTuple):
    """What is asked about a row.

    Attributes:
        answer: the right one.
        response: its demonstration; None: only whether any response could be compared with the
            answer.
        question: the problem's text.
    """

    answer: str
    response: str | None = None
    question: str = ""


# Why nothing could be compared with an answer, None where it can be; or whether a response gives
# it.
Judge = Callable[[RowCheck], str | bool | None]


class _JudgeHere:
    """Judges rows in this process."""

    def __init__(self, checker: AnswerChecker) -> None:
        self._checker = checker
        checker.prepare()

    def __call__(self, check: RowCheck) -> str | bool | None:
        doing("check of the answer")
        if check.response is None:
            return self._checker.fault_of(check.answer)
        return self._checker.is_right(check.response, check.question, check.answer)


class _GuardedJudge:
    """Judges rows in a guarded process, which starts with the first one."""

    def __init__(self, guard: Guard[RowCheck, Any]) -> None:
        self._guard = guard

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.close()

    def __call__(self, check: RowCheck) -> str | bool | None:
        (outcome,) = self._guard.run([check])
        if isinstance(outcome, Fault):
            raise RowError(str(outcome))
        return outcome


def read_row(
    values: RowValues, place: Place, fields: FieldsConfig, task: UserDataTask, judge: Judge
) -> UserRow:
    """A row, if it can be used.

    Raises:
        RowError: why it cannot.
        ConfigError: the answers' checker cannot be loaded.
    """
    question = _text(values, fields.question)
    if not question:
        raise RowError(
            f"no question (field {fields.question!r})" + _fields_of(values, fields.question)
        )
    response = _text(values, fields.response)
    thought = _text(values, fields.chain_of_thought)
    answer = _text(values, fields.answer) or (task.parse_answer(response) or "" if response else "")
    if not answer:
        raise RowError(f"no answer (field {fields.answer!r})" + _fields_of(values, fields.answer))
    if fault := judge(RowCheck(answer)):
        raise RowError(f"{fault}: {answer!r:.80}")
    spans = _spans(values.get(fields.spans), response) if response else ()
    if not response and thought:
        response = write_response(thought, answer, task.extract)
    if response and not judge(RowCheck(answer, response, question)):
        found = task.parse_answer(response)
        raise RowError(
            f"its response is not right: the answer is {answer!r:.40}, and it gives {found!r:.40}"
        )
    return UserRow(question, answer, response, spans, place)


def refuse_tested(row: UserRow, tested: Mapping[str, SetName], rejects: Rejects) -> bool:
    """Whether a row that is to be trained on is tested with; then it is a reject."""
    name = tested.get(text_hash(row.question))
    if name:
        rejects.add(
            row.place,
            f"its question is in the set {name} too, so nothing may be trained on it",
            row.question,
        )
    return name is not None


def _has_response(row: UserRow, rejects: Rejects) -> bool:
    if not row.response:
        rejects.add(
            row.place, "no chain of thought and no response, one of which SFT needs", row.question
        )
    return bool(row.response)


def _text(values: RowValues, field: str) -> str:
    """A field as text without spaces around it, "" where it is absent or empty (NULL, NaN).

    Raises:
        RowError: it is neither text nor a number.
    """
    return (cell_text(values.get(field), f"field {field!r}") or "").strip()


def _fields_of(values: Mapping[str, Any], wanted: str) -> str:
    """What a row has instead of a field: others, or the field with nothing in it."""
    if wanted in values:
        return f": it holds {values[wanted]!r:.40}"
    return f": the row has {', '.join(map(repr, values)) or 'no fields'}"


def _spans(value: object, response: str) -> tuple[Span, ...]:
    """Spans as rows keep them: a list of objects with start, end and behavior.

    Raises:
        RowError: one has another form or lies outside of the response, or two overlap.
    """
    if value is None:
        return ()
    try:
        spans = []
        for row in value:  # type: ignore[attr-defined]
            spans.append(Span(int(row["start"]), int(row["end"]), str(row["behavior"])))
        spans.sort()
    except (TypeError, KeyError, ValueError) as error:
        raise RowError(f"spans are no list of start, end and behavior: {error!r}") from error
    edges = [edge for span in spans for edge in span[:2]]
    if edges != sorted(edges) or any(
        not 0 <= span.start < span.end <= len(response) for span in spans
    ):
        raise RowError("spans overlap, are empty or lie outside of the response")
    return tuple(spans)
