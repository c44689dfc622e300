"""Grading of a user's rows: each response with its verdict, whoever wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

from typing_extensions import TypedDict

from bi_ray.config.evaluation import VerifierConfig
from bi_ray.isolation.guard import Guard, Limits
from bi_ray.reasoning.parse import place_of
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields, NumberedRow, fields_of
from bi_ray.rows.rejects import Place, Rejects, RowValues
from bi_ray.tasks.base import Problem, Task
from bi_ray.tasks.reading import id_of, problem_of
from bi_ray.tasks.text import TextTask
from bi_ray.verification.verdicts import Judge, Verdict, VerificationItem, calls_user_code

_ROWS_PER_CALL = 64  # handed to the guarded process together


class VerdictRow(TypedDict):
    """A line of a file of verdicts; see ``Verdict`` for fields without a comment."""

    id: str  # of the problem
    right: bool
    format_right: bool
    trace_valid: bool | None
    steps: int  # number of lines of the chain of thought
    first_bad_step: int | None
    bad_line: str | None  # text of the first bad line; None where the trace ends too early
    bad_response_line: int | None  # its line number in the whole response, from 1
    trace_fault: str | None
    behaviors: dict[str, int]  # number of lines that show each behavior
    right_reflections: int


class GradedRow(NamedTuple):
    """A row whose response was judged.

    Attributes:
        place: file and line of the row.
        id: the problem's id.
        verdict: the judgment.
        steps: number of lines of the chain of thought.
        bad_line: text of the first bad line; None where the trace ends too early.
        bad_response_line: its line number in the whole response, from 1.
    """

    place: Place
    id: str
    verdict: Verdict
    steps: int
    bad_line: str | None = None
    bad_response_line: int | None = None

    def as_json(self) -> VerdictRow:
        """The row of a file of verdicts."""
        verdict = self.verdict
        return {
            "id": self.id,
            "right": verdict.right,
            "format_right": verdict.format_right,
            "trace_valid": verdict.trace_valid,
            "steps": self.steps,
            "first_bad_step": verdict.first_bad_step,
            "bad_line": self.bad_line,
            "bad_response_line": self.bad_response_line,
            "trace_fault": verdict.trace_fault,
            "behaviors": verdict.behaviors,
            "right_reflections": verdict.right_reflections,
        }


class RowJudge:
    """Judges the responses of rows, in this process and without any limit.

    A response is checked against the graph of its question; free text by its answer alone.

    Args:
        task: parses questions and responses.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.judge = Judge(task)

    def __call__(self, row: tuple[Place, Fields]) -> GradedRow | RowError:
        """The grade of a row, or why it has none."""
        place, fields = row
        try:
            return self.grade(fields, place)
        except RowError as error:
            return error

    def grade(self, fields: Fields, place: Place) -> GradedRow:
        """Judge the response of a row.

        Raises:
            RowError: the row has no response, or neither a graph nor an answer to judge it by.
        """
        response = fields.response
        if response is None:
            raise RowError("no response: name the column response, completion or messages")
        problem = self._problem_of(fields, place)
        item = VerificationItem(
            question=problem.question,
            graph="",
            answer=problem.answer,
            response=response,
            truncated=False,
            reference=problem.reference,
        )
        steps = self.judge.parse(response)
        verdict = self.judge.verdict(item, problem.graph, steps)
        row = GradedRow(place, problem.id, verdict, len(steps))
        bad = verdict.first_bad_step
        if bad is None or bad == len(steps):
            return row
        start, _ = place_of(response, steps, bad)
        line = response.count("\n", 0, start) + 1
        return row._replace(bad_line=steps[bad].text, bad_response_line=line)

    def _problem_of(self, fields: Fields, place: Place) -> Problem:
        if isinstance(self.task, TextTask):
            return self.task.recall(id_of(fields, place), fields.question, fields.answer)
        _, problem = problem_of(fields, self.task, place)
        return problem


def grade_rows(
    rows: Iterable[NumberedRow], task: Task, rejects: Rejects, config: VerifierConfig | None = None
) -> Iterator[GradedRow]:
    """Judge the response of every row, in a process of its own.

    Args:
        rows: see ``bi_ray.rows.fields.rows_of``.
        task: parses questions and responses.
        rejects: gets the rows with nothing to judge, and those whose judgment failed.
        config: the limits of a judgment; None: the defaults.

    Raises:
        ConfigError: the function that checks answers cannot be loaded.
        DataError: a bad row, where ``rejects`` is strict.
    """
    numbered = iter(rows)
    limits = Limits.of(config or VerifierConfig())
    with Guard(partial(RowJudge, task), limits, calls_user_code(task)) as guard:
        while block := list(islice(numbered, _ROWS_PER_CALL)):
            yield from _grade_block(block, guard, rejects)


def _grade_block(
    block: Sequence[NumberedRow],
    guard: Guard[tuple[Place, Fields], GradedRow | RowError],
    rejects: Rejects,
) -> Iterator[GradedRow]:
    # rows that cannot be read are not handed over; their errors come in their turn
    outcomes: list[Fields | RowError] = []
    readable: list[tuple[Place, Fields]] = []
    for place, row in block:
        outcome = _fields_or_error(row)
        outcomes.append(outcome)
        if isinstance(outcome, Fields):
            readable.append((place, outcome))
    graded = guard.run(readable)
    for (place, row), outcome in zip(block, outcomes, strict=True):
        grade = next(graded) if isinstance(outcome, Fields) else outcome
        if isinstance(grade, GradedRow):
            yield grade
        else:
            rejects.add(place, str(grade), dict(row))


def _fields_or_error(row: RowValues) -> Fields | RowError:
    try:
        return fields_of(row)
    except RowError as error:
        return error


@dataclass(slots=True)
class Tally:
    """Counts over verdicts; ``traces``: those with a graph to check the trace by."""

    rows: int = 0
    right: int = 0
    format_right: int = 0
    traces: int = 0
    trace_valid: int = 0
    right_by_wrong_trace: int = 0
    right_reflections: int = 0
    behaviors: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self.rows += 1
        self.right += verdict.right
        self.format_right += verdict.format_right
        self.traces += verdict.trace_valid is not None
        self.trace_valid += verdict.trace_valid is True
        self.right_by_wrong_trace += verdict.right and verdict.trace_valid is False
        self.right_reflections += verdict.right_reflections
        self.behaviors.update(verdict.behaviors)
