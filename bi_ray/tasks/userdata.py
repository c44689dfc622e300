"""A user's own questions and answers, from files (docs/data.md).

Each set has its own file, or all share one that is split by the hash of the question into the
ranges of ``SPLIT_RANGES``; nothing is pre-trained on it, so ``sft`` has the range of ``pretrain``
too. A row of a training set is left out when a test set has the same question.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bi_ray.answers.checker import AnswerChecker
from bi_ray.answers.extraction import write_response
from bi_ray.config.base import ConfigError, SetName
from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.tasks import FieldsConfig, UserDataConfig, UserSetConfig
from bi_ray.isolation.child import Fault, doing
from bi_ray.isolation.guard import Guard, Limits
from bi_ray.reasoning.trace import Span
from bi_ray.rows.cells import RowError, cell_text
from bi_ray.rows.files import read_rows
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues
from bi_ray.tasks.base import Problem, in_split, text_hash
from bi_ray.tasks.text import TextTask

log = logging.getLogger(__name__)

TRAINING_SETS: frozenset[SetName] = frozenset({"pretrain", "sft", "rl"})


@dataclass(frozen=True, slots=True)
class UserRow:
    """A good row of a user's file.

    Attributes:
        question, answer: the problem.
        response: a demonstration with the right answer in it, "" where the row has none.
        spans: the behaviors in the demonstration.
        place: file and line of the row.
    """

    question: str
    answer: str
    response: str
    spans: tuple[Span, ...]
    place: Place


class UserDataTask(TextTask):
    """Problems from a user's files.

    A file is read when it is first needed; then ``rejects`` has its bad rows.

    Args:
        config: the files and how they are read.
        seed: seed of the order of each set's problems.
        verifier: the limits within which a row's own response is judged; None: the defaults.
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
        """Number of problems of a set.

        Raises:
            DataError: its file cannot be read, or a row is bad and ``strict`` is set.
        """
        return len(self._rows(split))

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of a set; its id ends with the line number of its row.

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
        """The rows of a file that have a demonstration; the others are rejects.

        A question may have several.
        """
        rows = self._read(path, rejects)
        return [row for row in rows if _has_response(row, rejects)]

    def _rows(self, split: SetName) -> list[UserRow]:
        if split not in self._sets:
            rows = self._file_rows(split)
            if split in TRAINING_SETS:
                tested = self.tested()
                rows = [row for row in rows if not refuse_tested(row, tested, self.rejects)]
            if split == "sft":
                # several demonstrations of a question are the outcome of rejection sampling
                rows = [row for row in rows if _has_response(row, self.rejects)]
            else:
                rows = self._without_duplicates(rows)
            random.Random(f"{self.seed}/{split}").shuffle(rows)
            self._sets[split] = rows
        return self._sets[split]

    def _file_rows(self, split: SetName) -> list[UserRow]:
        """The rows of a set in the order of the file, before sets are compared."""
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
        return [row for row in rows if _is_in_range_of(row, split)]

    def tested(self) -> dict[str, SetName]:
        """The test set of each tested question, by the question's hash.

        No training set may have such a question.
        """
        names: set[SetName] = set(self.config.sets)
        if self.config.path:
            names.add("influence_target")
        tested: dict[str, SetName] = {}
        for name in sorted(names - TRAINING_SETS):
            for row in self._file_rows(name):
                tested[text_hash(row.question)] = name
        return tested

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
        """Judges rows; in a process of its own where a check may hang, since that is slower."""
        checker = self.config.answer.checker
        if checker in ("exact", "numeric"):
            return nullcontext(_judge_here(self.checker))
        guard: Guard[RowCheck, Any] = Guard(
            partial(_RowJudge, self.checker), self.limits, checker == "function"
        )
        return _GuardedJudge(guard)


def _is_in_range_of(row: UserRow, split: SetName) -> bool:
    """Whether a row of a file that all sets share belongs to a set."""
    question_hash = text_hash(row.question)
    if split == "sft" and in_split(question_hash, "pretrain"):
        return True
    return in_split(question_hash, split)


class RowCheck(NamedTuple):
    """What is checked about a row.

    Attributes:
        answer: the right answer.
        response: the row's demonstration; None: check only whether any response could be compared
            with the answer.
        question: the problem's text.
    """

    answer: str
    response: str | None = None
    question: str = ""


# why nothing could be compared with an answer, None where it can be; or whether a response is right
Judge = Callable[[RowCheck], str | bool | None]


class _RowJudge:
    """Judges rows in the process that it is in; exceptions of a check pass through."""

    def __init__(self, checker: AnswerChecker) -> None:
        self._checker = checker
        checker.prepare()

    def __call__(self, check: RowCheck) -> str | bool | None:
        doing("check of the answer")
        if check.response is None:
            return self._checker.fault_of(check.answer)
        return self._checker.is_right(check.response, check.question, check.answer)


def _judge_here(checker: AnswerChecker) -> Judge:
    """Judges rows in this process; a check that fails is the row's fault."""
    judge = _RowJudge(checker)

    def judge_or_reject(check: RowCheck) -> str | bool | None:
        try:
            return judge(check)
        except Exception as error:
            log.exception("the check of the answer %.80r failed", check.answer)
            reason = " ".join(str(error).split())
            raise RowError(
                f"the check of the answer raised {type(error).__name__}: {reason}"
            ) from error

    return judge_or_reject


class _GuardedJudge:
    """Judges rows in a guarded process, which is started for the first row."""

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
    """Read a row.

    Raises:
        RowError: why the row cannot be used.
        ConfigError: the answers' checker cannot be loaded.
    """
    question = _text(values, fields.question)
    if not question:
        raise _lacks("question", values, fields.question)
    response = _text(values, fields.response)
    thought = _text(values, fields.chain_of_thought)
    answer = _text(values, fields.answer)
    if response and not answer:
        answer = task.parse_answer(response) or ""
    if not answer:
        raise _lacks("answer", values, fields.answer)
    if fault := judge(RowCheck(answer)):
        raise RowError(f"{fault}: {answer!r:.80}")
    spans: tuple[Span, ...] = ()
    if response:
        spans = _spans(values.get(fields.spans), response)
    elif thought:
        response = write_response(thought, answer, task.extract)
    if response and not judge(RowCheck(answer, response, question)):
        given = task.parse_answer(response)
        raise RowError(
            f"its response is not right: the answer is {answer!r:.40}, and it gives {given!r:.40}"
        )
    return UserRow(question, answer, response, spans, place)


def refuse_tested(row: UserRow, tested: Mapping[str, SetName], rejects: Rejects) -> bool:
    """Whether a test set has a training row's question; then the row is a reject."""
    name = tested.get(text_hash(row.question))
    if name is None:
        return False
    reason = f"its question is in the set {name} too, so nothing may be trained on it"
    rejects.add(row.place, reason, row.question)
    return True


def _has_response(row: UserRow, rejects: Rejects) -> bool:
    if row.response:
        return True
    reason = "no chain of thought and no response, one of which SFT needs"
    rejects.add(row.place, reason, row.question)
    return False


def _text(values: RowValues, field: str) -> str:
    """A field as text without surrounding spaces, "" where it is absent or empty (NULL, NaN).

    Raises:
        RowError: the field is neither text nor a number.
    """
    return (cell_text(values.get(field), f"field {field!r}") or "").strip()


def _lacks(what: str, values: Mapping[str, Any], field: str) -> RowError:
    """The error of a row without a field; it says what the row has instead."""
    if field in values:
        instead = f"it holds {values[field]!r:.40}"
    elif values:
        instead = f"the row has {', '.join(map(repr, values))}"
    else:
        instead = "the row has no fields"
    return RowError(f"no {what} (field {field!r}): {instead}")


def _spans(value: object, response: str) -> tuple[Span, ...]:
    """Spans as rows keep them: a list of objects with start, end and behavior.

    Raises:
        RowError: a span has another form or is outside of the response, or two overlap.
    """
    if value is None:
        return ()
    spans: list[Span] = []
    try:
        for row in value:  # type: ignore[attr-defined]
            spans.append(Span(int(row["start"]), int(row["end"]), str(row["behavior"])))
    except (TypeError, KeyError, ValueError) as error:
        raise RowError(f"spans are not a list of start, end and behavior: {error!r}") from error
    end = 0
    for span in sorted(spans):
        if not end <= span.start < span.end <= len(response):
            raise RowError("spans overlap, are empty or lie outside of the response")
        end = span.end
    return tuple(sorted(spans))
