"""Grades of responses: what is wrong, on which line, and why."""

import pytest

from bi_ray.config.recipes import BRIDGE
from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.rows.fields import fields_of
from bi_ray.rows.rejects import Place, Rejects
from bi_ray.tasks.base import Problem
from bi_ray.tasks.registry import build_task
from bi_ray.verification.grading import RowJudge, Tally, grade_rows

TASK = build_task(
    PromptBenchConfig(name_pool=48, sets={"sft": {"depth": 3, "redundant_nodes": [2, 4]}}), 0
)
PLACE = Place("mine.jsonl", 1)
JUDGE = RowJudge(TASK)


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
        graded = JUDGE.grade(fields_of(row_of(made.problem, made.response)), PLACE)
        verdict = graded.verdict
        assert verdict.right
        assert verdict.trace_valid
        assert verdict.format_right
        assert (verdict.first_bad_step, verdict.trace_fault) == (None, None)
        assert (graded.bad_line, graded.bad_response_line) == (None, None)
        assert verdict.behaviors.get("reflection", 0) == verdict.right_reflections
        tally.add(verdict)
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
    graded = JUDGE.grade(fields_of(row_of(made.problem, "\n".join(lines))), PLACE)
    verdict = graded.verdict
    assert (verdict.right, verdict.trace_valid) == (True, False)
    assert verdict.first_bad_step == 2  # the first line is <think>
    assert graded.bad_line == lines[3]
    assert graded.bad_response_line == 4
    spread = "\n\n".join(["I think:", *lines])  # as some models write
    assert JUDGE.grade(fields_of(row_of(made.problem, spread)), PLACE).bad_response_line == 9
    assert verdict.trace_fault
    tally = Tally()
    tally.add(verdict)
    assert tally.right_by_wrong_trace == 1


def test_an_end_that_comes_too_early_has_no_bad_line(demonstrations):
    made = demonstrations[0]
    response = "\n".join(made.response.splitlines()[:2])
    graded = JUDGE.grade(fields_of(row_of(made.problem, response)), PLACE)
    verdict = graded.verdict
    assert (verdict.right, verdict.format_right, verdict.trace_valid) == (False, False, False)
    assert verdict.first_bad_step == graded.steps
    assert (graded.bad_line, graded.bad_response_line) == (None, None)
    assert "ends before" in verdict.trace_fault


def test_a_verdict_and_its_row_of_json_are_the_same(demonstrations):
    made = demonstrations[0]
    graded = JUDGE.grade(fields_of({"id": "a", **row_of(made.problem, made.response)}), PLACE)
    row = graded.as_json()
    assert row["id"] == "a"
    shared = row.keys() & set(type(graded.verdict).__slots__)
    assert shared == {
        "right", "format_right", "trace_valid", "first_bad_step", "trace_fault", "right_reflections"
    }  # fmt: skip
    assert all(row[name] == getattr(graded.verdict, name) for name in shared)
    assert sum(row["behaviors"].values()) == len(made.spans)


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
