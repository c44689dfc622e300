"""Grades of responses: what is wrong, on which line, and why."""

import pytest

from bi_ray.config import BRIDGE, PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.rows.fields import fields_of
from bi_ray.rows.rejects import Place, Rejects
from bi_ray.tasks.base import Problem
from bi_ray.tasks.registry import build_task
from bi_ray.verification.grading import Tally, grade, grade_rows

TASK = build_task(
    PromptBenchConfig(name_pool=48, sets={"sft": {"depth": 3, "redundant_nodes": [2, 4]}}), 0
)
PLACE = Place("mine.jsonl", 1)


def row_of(problem: Problem, response: str):
    return {
        "question": problem.question,
        "graph": problem.graph.to_json(),
        "answer": problem.answer,
        "response": response,
    }


@pytest.fixture(scope="module")
def demonstrations():
    recipe = Recipe(BRIDGE, 0)
    return [recipe.demonstrate(TASK, TASK.problem("sft", index)) for index in range(60)]


def test_demonstrations_are_right(demonstrations):
    tally = Tally()
    for made in demonstrations:
        one = grade(TASK, fields_of(row_of(made.problem, made.response)), PLACE)
        assert one.right
        assert one.trace_valid
        assert one.format_right
        assert (one.first_bad_step, one.bad_line, one.reason) == (None, None, None)
        assert one.behaviors.get("reflection", 0) == one.right_reflections
        tally.add(one)
    spans = [span.behavior for made in demonstrations for span in made.spans]
    assert tally.behaviors == {name: spans.count(name) for name in set(spans)}
    assert (tally.rows, tally.right, tally.trace_valid, tally.right_by_wrong_trace) == (
        60,
        60,
        60,
        0,
    )
    assert tally.right_reflections == spans.count("reflection") > 5


def test_the_first_bad_line_is_told(demonstrations):
    made = next(made for made in demonstrations if made.response.count("\n") > 6)
    lines = made.response.splitlines()
    wrong = lines[3]
    lines[3] = wrong + "1"  # a digit more: another value
    one = grade(TASK, fields_of(row_of(made.problem, "\n".join(lines))), PLACE)
    assert (one.right, one.trace_valid) == (True, False)
    assert one.first_bad_step == 2  # the first line is <think>
    assert one.bad_line == lines[3]
    assert one.bad_response_line == 4
    spread = "\n\n".join(["I think:", *lines])  # as some models write
    assert grade(TASK, fields_of(row_of(made.problem, spread)), PLACE).bad_response_line == 9
    assert one.reason
    tally = Tally()
    tally.add(one)
    assert tally.right_by_wrong_trace == 1


def test_an_end_that_comes_too_early_has_no_bad_line(demonstrations):
    made = demonstrations[0]
    one = grade(
        TASK, fields_of(row_of(made.problem, "\n".join(made.response.splitlines()[:2]))), PLACE
    )
    assert (one.right, one.format_right, one.trace_valid) == (False, False, False)
    assert (one.first_bad_step, one.bad_line, one.bad_response_line) == (one.steps, None, None)
    assert "ends before" in one.reason


def test_a_row_without_a_response_is_no_wrong_answer(demonstrations):
    rejects = Rejects()
    rows = [
        row_of(demonstrations[0].problem, demonstrations[0].response),
        row_of(demonstrations[1].problem, None),
    ]
    graded = list(
        grade_rows([(Place("mine.jsonl", i), row) for i, row in enumerate(rows, 1)], TASK, rejects)
    )
    assert len(graded) == 1
    assert [(reject.line, reject.reason[:11]) for reject in rejects.rows] == [(2, "no response")]
