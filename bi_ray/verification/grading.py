"""Responses graded: the answer, the format, and every line of the chain of thought, whoever wrote
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from bi_ray.config import VerifierConfig
from bi_ray.isolation.guard import Guard, Limits, doing
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.parse import place_of
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields, NumberedRow, fields_of
from bi_ray.rows.rejects import Place, Rejects, RowValues
from bi_ray.tasks.base import ChecksAnswers, Problem, Task
from bi_ray.tasks.reading import problem_of
from bi_ray.tasks.text import TextTask
from bi_ray.verification.verdicts import calls_user_code

_ROWS_PER_CALL = 64  # that are handed to the guarded process together


@dataclass(frozen=True, slots=True)
class Grade:
    """What a response is worth.

    Attributes:
        id: of the problem.
        right: whether its last answer is the right one.
        format_right: whether it is exactly one chain of thought and one answer.
        trace_valid: whether every line is right and the question is solved; None: there is no graph
            to check by.
        steps: lines of the chain of thought.
        first_bad_step: which line is the first wrong one, from 0; ``steps`` where it ends too
            early.
        bad_line: its text; None where the chain of thought ends too early.
        bad_response_line: which line of the whole response that is, from 1.
        reason: what is wrong with it.
        behaviors: how many lines show each behavior.
        right_reflections: lines before the first bad one that were right to turn back.
    """

    id: str
    right: bool
    format_right: bool
    trace_valid: bool | None
    steps: int
    first_bad_step: int | None = None
    bad_line: str | None = None
    bad_response_line: int | None = None
    reason: str | None = None
    behaviors: dict[str, int] = field(default_factory=dict)
    right_reflections: int = 0

    def as_json(self) -> dict[str, Any]:
        """One line of a file of verdicts."""
        return asdict(self)


def grade(task: Task, fields: Fields, place: Place) -> Grade:
    """Grade the response of a row against the graph of its question; free text by its answer alone.

    It runs in this process and without any limit; ``grade_rows`` sets one.

    Raises:
        RowError: no response, or neither graph nor answer to grade it by.
    """
    if fields.response is None:
        raise RowError("no response: name the column response, completion or messages")
    if isinstance(task, TextTask):
        problem = task.recall(fields.id or f"row-{place.line}", fields.question, fields.answer)
    else:
        problem = problem_of(fields, task, place)[1]
    doing("check of the trace")
    steps = task.parse_trace(fields.response)
    report = check_trace(steps, problem.graph, task.notation) if problem.graph else None
    bad = report.first_bad_step if report else None
    told = bad if bad is not None and bad < len(steps) else None
    line = (
        None
        if told is None
        else _line_of(fields.response, place_of(fields.response, steps, told)[0])
    )
    doing("check of the format")
    format_right = task.format_is_right(fields.response)
    return Grade(
        id=problem.id,
        right=_is_right(task, problem, fields.response),
        format_right=format_right,
        trace_valid=report.valid if report else None,
        steps=len(steps),
        first_bad_step=bad,
        bad_line=None if told is None else steps[told].text,
        bad_response_line=line,
        reason=report.reason if report else None,
        behaviors=dict(Counter(behavior for step in steps for behavior in step.behaviors)),
        right_reflections=report.right_reflections if report else 0,
    )


def _line_of(text: str, character: int) -> int:
    return text.count("\n", 0, character) + 1


def _is_right(task: Task, problem: Problem, response: str) -> bool:
    doing("check of the answer")
    if not isinstance(task, ChecksAnswers):
        return task.parse_answer(response) == problem.answer
    return task.answer_is_right(response, problem.question, problem.answer, problem.reference)


class _Grader:
    """Grades row after row; built and called in the guarded process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        if isinstance(task, ChecksAnswers):
            task.prepare()

    def __call__(self, row: tuple[Place, Fields]) -> Grade | RowError:
        place, fields = row
        try:
            return grade(self._task, fields, place)
        except RowError as error:
            return error


def grade_rows(
    rows: Iterable[NumberedRow], task: Task, rejects: Rejects, config: VerifierConfig | None = None
) -> Iterator[tuple[Place, Grade]]:
    """A grade per row; ``rejects`` gets those with nothing to grade, and those whose judgment
    failed.

    Args:
        rows: see ``bi_ray.rows.fields.rows_of``.
        task: reads questions and responses.
        rejects: gets the bad rows.
        config: the limits of a judgment; None: the defaults.

    Raises:
        ConfigError: what checks answers cannot be loaded.
        DataError: a bad row, where ``rejects`` is strict.
    """
    numbered = iter(rows)
    limits = Limits.of(config or VerifierConfig())
    guard: Guard[tuple[Place, Fields], Grade | RowError]
    with Guard(partial(_Grader, task), limits, calls_user_code(task)) as guard:
        while block := list(islice(numbered, _ROWS_PER_CALL)):
            yield from _grade_block(block, guard, rejects)


def _grade_block(
    block: Sequence[NumberedRow],
    guard: Guard[tuple[Place, Fields], Grade | RowError],
    rejects: Rejects,
) -> Iterator[tuple[Place, Grade]]:
    read = [_fields_or_error(row) for _, row in block]
    asked = [
        (place, fields)
        for (place, _), fields in zip(block, read, strict=True)
        if isinstance(fields, Fields)
    ]
    graded = guard.run(asked)
    for (place, row), fields in zip(block, read, strict=True):
        outcome = next(graded) if isinstance(fields, Fields) else fields
        if isinstance(outcome, Grade):
            yield place, outcome
        else:
            rejects.add(place, str(outcome), dict(row))


def _fields_or_error(row: RowValues) -> Fields | RowError:
    try:
        return fields_of(row)
    except RowError as error:
        return error


@dataclass(slots=True)
class Tally:
    """What is counted over grades; ``traces``: those with a graph to check by."""

    rows: int = 0
    right: int = 0
    format_right: int = 0
    traces: int = 0
    trace_valid: int = 0
    right_by_wrong_trace: int = 0
    right_reflections: int = 0
    behaviors: Counter[str] = field(default_factory=Counter)

    def add(self, one: Grade) -> None:
        """Count a grade."""
        self.rows += 1
        self.right += one.right
        self.format_right += one.format_right
        self.traces += one.trace_valid is not None
        self.trace_valid += one.trace_valid is True
        self.right_by_wrong_trace += one.right and one.trace_valid is False
        self.right_reflections += one.right_reflections
        self.behaviors.update(one.behaviors)
