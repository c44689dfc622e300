"""Responses graded: the answer, the format, and every line of the chain of thought, whoever wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from bi_ray.config import ConfigError
from bi_ray.injection.rows import problem_of
from bi_ray.reading import Fields, NumberedRow, fields_of
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.parse import place_of
from bi_ray.rows import Place, Rejects, RowError
from bi_ray.tasks.base import ChecksAnswers, Problem, Task
from bi_ray.tasks.text import TextTask


@dataclass(frozen=True, slots=True)
class Grade:
    """What a response is worth.

    Attributes:
        id: of the problem.
        right: whether its last answer is the right one.
        format_right: whether it is exactly one chain of thought and one answer.
        trace_valid: whether every line is right and the question is solved; None: there is no graph to check by.
        steps: lines of the chain of thought.
        first_bad_step: which line is the first wrong one, from 0; ``steps`` where it ends too early.
        bad_line: its text; None where the chain of thought ends too early.
        bad_response_line: which line of the whole response that is, from 1.
        reason: what is wrong with it.
        behaviours: how many lines show each behaviour.
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
    behaviours: dict[str, int] = field(default_factory=dict)
    right_reflections: int = 0

    def as_json(self) -> dict[str, Any]:
        """One line of a file of verdicts."""
        return asdict(self)


def grade(task: Task, fields: Fields, place: Place) -> Grade:
    """Grade the response of a row against the graph of its question; free text by its answer alone.

    Raises:
        RowError: no response, or neither graph nor answer to grade it by.
    """
    if fields.response is None:
        raise RowError("no response: name the column response, completion or messages")
    if isinstance(task, TextTask):
        problem = task.recall(fields.id or f"row-{place.line}", fields.question, fields.answer)
    else:
        problem = problem_of(fields, task, place)[1]
    steps = task.parse_trace(fields.response)
    report = check_trace(steps, problem.graph, task.notation) if problem.graph else None
    bad = report.first_bad_step if report else None
    told = bad if bad is not None and bad < len(steps) else None
    line = None if told is None else _line_of(fields.response, place_of(fields.response, steps, told)[0])
    return Grade(
        id=problem.id,
        right=_is_right(task, problem, fields.response),
        format_right=task.format_is_right(fields.response),
        trace_valid=report.valid if report else None,
        steps=len(steps),
        first_bad_step=bad,
        bad_line=None if told is None else steps[told].text,
        bad_response_line=line,
        reason=report.reason if report else None,
        behaviours=dict(Counter(behaviour for step in steps for behaviour in step.behaviours)),
        right_reflections=report.right_reflections if report else 0,
    )


def _line_of(text: str, character: int) -> int:
    return text.count("\n", 0, character) + 1


def _is_right(task: Task, problem: Problem, response: str) -> bool:
    if not isinstance(task, ChecksAnswers):
        return task.parse_answer(response) == problem.answer
    try:
        return task.answer_is_right(response, problem.question, problem.answer, problem.reference)
    except ConfigError:
        raise
    except Exception as error:  # a user's function: whatever it raises is about this row
        raise RowError(f"the answer's check failed: {type(error).__name__}: {error}") from error


def grade_rows(rows: Iterable[NumberedRow], task: Task, rejects: Rejects) -> Iterator[tuple[Place, Grade]]:
    """A grade per row; ``rejects`` gets those with nothing to grade."""
    for place, row in rows:
        try:
            yield place, grade(task, fields_of(row), place)
        except RowError as error:
            rejects.add(place, str(error), dict(row))


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
    behaviours: Counter[str] = field(default_factory=Counter)

    def add(self, one: Grade) -> None:
        """Count a grade."""
        self.rows += 1
        self.right += one.right
        self.format_right += one.format_right
        self.traces += one.trace_valid is not None
        self.trace_valid += one.trace_valid is True
        self.right_by_wrong_trace += one.right and one.trace_valid is False
        self.right_reflections += one.right_reflections
        self.behaviours.update(one.behaviours)
