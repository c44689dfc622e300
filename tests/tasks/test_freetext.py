"""Traces over extracted graphs: written, read back and proven, in plain words and in the user's
own.
"""

import json
import random
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.config.recipes import BRIDGE, VANILLA, BehaviorConfig, RecipeConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator, flatten
from bi_ray.reasoning.extract import prove, source_row
from bi_ray.reasoning.graph import Graph, Node, NodeState
from bi_ray.reasoning.trace import Span, Step, StepKind, another_way, join, mark, vanilla_plan
from bi_ray.tasks.base import in_split
from bi_ray.tasks.freetext import NOTATION, FreeTextTask, parse_line

CASES = json.loads((Path(__file__).parents[1] / "reasoning/extractions/good.json").read_text())
ROWS = [
    prove(source_row(i, case["row"]), json.dumps(case["extraction"]))
    for i, case in enumerate(CASES)
]
OWN, PLAIN = FreeTextTask(ROWS), FreeTextTask(ROWS, own_words=False)
ALWAYS = RecipeConfig(
    behaviors=tuple(
        BehaviorConfig(name=name, probability=0.8) for name in ("reflection", "analysis", "subgoal")
    )
)


def full_plan(graph: Graph, rng: random.Random) -> list[Step]:
    """Every behavior that a trace can carry, wherever it can stand."""
    plan, solved = [Step(graph.question, StepKind.OUTLINE)], []
    for step in vanilla_plan(graph):
        node = graph.nodes[step.node]
        locked = [name for name in graph.nodes if graph.state(name, solved) is NodeState.LOCKED]
        if locked and rng.random() < 0.7:
            plan.append(Step(rng.choice(locked), StepKind.ATTEMPT))
        computed = node.operator is not None
        wrong = rng.choice([node.value + 1, node.value - 4, Fraction(node.value) + Fraction(1, 3)])
        mistake = wrong if computed and rng.random() < 0.5 else None
        plan.append(Step(step.node, subgoal=computed, analysis=computed, mistake=mistake))
        solved.append(step.node)
        if another_way(node) is not None:
            plan.append(Step(step.node, StepKind.VERIFY))
    return plan


def report_of(task, response, graph):
    return check_trace(task.parse_trace(response), graph, task.notation)


@pytest.mark.parametrize("task", [OWN, PLAIN], ids=["own", "plain"])
@pytest.mark.parametrize("recipe", [VANILLA, BRIDGE, ALWAYS], ids=["vanilla", "bridge", "always"])
def test_recipes_work_on_extracted_rows(task, recipe):
    shown = Counter()
    for row in ROWS:
        problem = task.problem_of(row)
        demonstration = Recipe(recipe, seed=1).demonstrate(task, problem)
        assert task.format_is_right(demonstration.response)
        assert task.parse_answer(demonstration.response) == problem.answer
        assert task.behavior_spans(demonstration.response) == demonstration.spans
        shown.update(span.behavior for span in demonstration.spans)
    assert set(shown) == ({"reflection", "analysis", "subgoal"} if recipe is not VANILLA else set())


@pytest.mark.parametrize("task", [OWN, PLAIN], ids=["own", "plain"])
@pytest.mark.parametrize("row", ROWS, ids=[case["case"] for case in CASES])
def test_every_behavior_is_written_read_and_proven(task, row):
    for seed in range(5):
        plan = full_plan(row.graph, random.Random(seed))
        response, spans = join(task.render(plan, row.graph))
        steps = task.parse_trace(response)
        report = check_trace(steps, row.graph, task.notation)
        assert report.valid, (report.reason, response)
        assert task.behavior_spans(response) == spans
        assert [(step.node, step.kind, step.mistake) for step in steps] == [
            (step.node, step.kind, step.mistake) for step in plan
        ]
        assert report.right_reflections == sum(step.kind is StepKind.ATTEMPT for step in plan)
        assert str(report.solved[row.graph.question]) == str(row.graph.answer)


def test_the_users_own_sentences_are_in_it_and_nothing_is_lost_without_them():
    row = ROWS[0]
    own = join(FreeTextTask([row]).render(vanilla_plan(row.graph), row.graph))[0]
    plain = join(PLAIN.render(vanilla_plan(row.graph), row.graph))[0]
    assert own == (
        "<think>\nThe question says muffins baked on Friday = 18.\n"
        "On Saturday Mira bakes 18 / 2 = 9 muffins. So muffins baked on Saturday = muffins "
        "baked on Friday / 2 = 9.\n"
        "Together she bakes 18 + 9 = 27 muffins. So muffins baked on both days = muffins "
        "baked on Friday + "
        "muffins baked on Saturday = 27.\n</think>\n<answer> The final answer is 27 </answer>"
    )
    for step in row.steps:
        own = own.replace(f"{step.text} ", "") if step.text else own
    assert own == plain


def test_rows_with_one_graph_do_not_lend_each_other_their_words():
    row = ROWS[0]
    steps = tuple(step._replace(text=step.text.replace("Mira", "Tom")) for step in row.steps)
    other = replace(row, number=99, steps=steps)
    plan = vanilla_plan(row.graph)
    assert FreeTextTask([row, other]).render(plan, row.graph) == PLAIN.render(plan, row.graph)
    assert FreeTextTask([row, row]).render(plan, row.graph) == FreeTextTask([row]).render(
        plan, row.graph
    )


def test_a_graph_that_went_through_json_keeps_its_words():
    for row in ROWS:
        again = Graph.from_json(row.graph.to_json())
        assert again.hash() == row.graph.hash()
        plan = full_plan(again, random.Random(0))
        assert FreeTextTask([row]).render(plan, again) == FreeTextTask([row]).render(
            plan, row.graph
        )
        words = [step.text for step in row.steps if step.text and step.node in row.graph.needed]
        text = join(FreeTextTask([row]).render(plan, again))[0]
        assert all(sentence in text for sentence in words)


def test_numbers_are_written_as_the_user_has_them():
    for case, line in (
        (
            "a percent sign in an expression",
            "So discount = 25 / 100 * price = 25 / 100 * 80 = 0.25 * 80 = 20.",
        ),
        ("money and thousands separators", "The question says price of the insurance = 1250.5."),
        ("a share as a decimal", "So voters who stayed home = 0.125 * voters = 0.125 * 640 = 80."),
        ("a value that is no whole number", "So pizzas of each friend = 7 / 3 = 7/3."),
    ):
        graph = ROWS[[known["case"] for known in CASES].index(case)].graph
        plan = [mark(step, subgoal=True) for step in vanilla_plan(graph)]
        assert line in join(PLAIN.render(plan, graph))[0].splitlines()


def test_each_behavior_reads_as_a_sentence():
    graph = ROWS[0].graph
    friday, saturday, both = graph.nodes
    plan = [
        Step(both, StepKind.OUTLINE),
        Step(friday),
        Step(both, StepKind.ATTEMPT),
        Step(saturday, subgoal=True, analysis=True, mistake=8),
        Step(both),
        Step(both, StepKind.VERIFY),
    ]
    lines = join(PLAIN.render(plan, graph))[0].splitlines()
    assert (
        lines[1]
        == f"Plan: to find {both}: first {friday}, {saturday}; to find {saturday}: first {friday}."
    )
    assert lines[3] == f"Let's find {both}. That needs {saturday}, not known yet. Let's go back."
    assert lines[4] == (
        f"We know that {friday} = 18. So {saturday} = {friday} / 2 = 18 / 2 = 8? No, that is "
        f"wrong: {saturday} = 9."
    )
    assert (
        lines[6]
        == f"Let's check {both}: {both} - {saturday} = 27 - 9 = 18, and {friday} = 18. Right."
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("= 9.\n", "= 8.\n", "muffins baked on Saturday is 9, not 8"),
        ("Friday = 18.", "Friday = 19.", "muffins baked on Friday is 18, not 19"),
        ("Friday / 2 ", "Friday * 2 ", "is not what the problem states"),
        ("Friday / 2 ", "Friday / 3 ", "is not what the problem states"),
        ("= 18 / 2 =", "= 18 / 3 =", "is not muffins baked on Friday / 2 with its numbers"),
        (
            "We know that muffins baked on Friday = 18",
            "We know that muffins baked on Friday = 17",
            "restates",
        ),
        (
            "That needs muffins baked on Saturday,",
            "That needs muffins baked on Friday,",
            "missing are",
        ),
        (
            "Let's find muffins baked on both days",
            "Let's find muffins baked on Saturday",
            "was not locked",
        ),
        (
            "Let's find muffins baked on both days",
            "Let's find muffins baked on Sunday",
            "is no quantity",
        ),
        ("= 8? No", "= 9? No", "takes back 9, which was right"),
        ("27 - 9 = 18, and", "27 - 9 = 19, and", "no line of a known form"),
        ("27 - 9 = 18", "27 - 8 = 18", "with its numbers"),
        (
            " - muffins baked on Saturday = 27",
            " - muffins baked on Saturdays = 27",
            "says nothing about it",
        ),
        ("first muffins baked on Friday.", "first muffins baked on both days.", "says that"),
        ("= 9.\n", "= 9/0.\n", "no line of a known form"),
        (
            "Let's check muffins baked on both days: muffins baked on both days - muffins "
            "baked on Saturday = 27 - 9",
            "Let's check muffins baked on both days: muffins baked on Friday / (muffins "
            "baked on Saturday - "
            "muffins baked on Saturday) = 18 / (9 - 9)",
            "checks muffins baked on both days",
        ),
    ],
)
def test_a_wrong_line_is_refused_with_the_reason(old, new, reason):
    graph = ROWS[0].graph
    friday, saturday, both = graph.nodes
    plan = [
        Step(both, StepKind.OUTLINE),
        Step(friday),
        Step(both, StepKind.ATTEMPT),
        Step(saturday, subgoal=True, analysis=True, mistake=8),
        Step(both),
        Step(both, StepKind.VERIFY),
    ]
    for task in (OWN, PLAIN):
        response = join(task.render(plan, graph))[0]
        assert report_of(task, response, graph).valid
        assert old in response
        report = report_of(task, response.replace(old, new, 1), graph)
        assert not report.valid
        assert reason in report.reason


WORD = st.sampled_from(
    [
        "we",
        "need",
        "first",
        "So",
        "Let's",
        "total",
        "of",
        "buy-one",
        "3",
        "x1",
        "and",
        "is",
        "known",
    ]
)
PHRASES = (
    st.lists(WORD, min_size=1, max_size=5).map(" ".join).filter(lambda name: name[0].isalpha())
)
OPERATORS = [Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY, Operator.DIVIDE]


@st.composite
def graphs(draw):
    """Any expressions over any names: nested, with numbers of their own, whole, decimal and
    negative.
    """
    names = draw(st.lists(PHRASES, min_size=2, max_size=7, unique=True))
    values, nodes = {}, []
    for name in names:
        leaf = st.one_of(
            st.integers(-20, 20),
            st.sampled_from([Fraction(1, 2), Fraction(-5, 4)]),  # as read from text: decimals
            *map(st.just, values),
        )
        pairs = st.tuples(st.sampled_from(OPERATORS), leaf, leaf)
        expression = draw(
            st.one_of(leaf, pairs, st.tuples(st.sampled_from(OPERATORS), pairs, pairs))
        )
        try:
            nodes.append(Node.of(name, expression, values))
        except ZeroDivisionError:
            nodes.append(Node.of(name, 1, values))
        values[name] = nodes[-1].value
    return Graph(nodes, names[-1])


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(0, 1000))
def test_any_graph_is_written_read_and_proven(graph, seed):
    plan = full_plan(graph, random.Random(seed))
    if not graph.nodes[graph.question].parents:
        plan = plan[1:]  # nothing to plan
    response, spans = join(PLAIN.render(plan, graph))
    report = report_of(PLAIN, response, graph)
    assert report.valid, (report.reason, response)
    assert PLAIN.behavior_spans(response) == spans
    assert PLAIN.format_is_right(response)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("clips in May / 2", (Operator.DIVIDE, "clips in May", 2)),
        ("buy-one offers - 3", (Operator.SUBTRACT, "buy-one offers", 3)),
        (
            "(price of 2 pens + 1.5) * 4",
            (Operator.MULTIPLY, (Operator.ADD, "price of 2 pens", Fraction(3, 2)), 4),
        ),
        ("2 pens + 1", None),
        ("pens  of Ann", None),
        ("pens +", None),
    ],
)
def test_equations_in_plain_words(text, read):
    assert NOTATION.parse(text) == (None if read is None else flatten(read))


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("<think>\na\n</think>\n<answer> The final answer is 2.50 </answer>", "5/2", True),
        ("<think>\na\n</think>\n<answer> The final answer is 10/4 </answer>", "5/2", True),
        ("<think>a</think><answer> The final answer is -7 </answer>", "-7", True),
        ("<think>a</think><answer> The final answer is 3/0 </answer>", None, False),
        ("<think>a</think><answer> The final answer is many </answer>", None, False),
        ("a <answer> The final answer is 3 </answer>", "3", False),
        (
            "<think>a</think><answer> The final answer is 3 </answer> <answer> The final "
            "answer is 4 </answer>",
            "4",
            False,
        ),
        ("", None, False),
    ],
)
def test_answers(response, answer, right):
    assert PLAIN.parse_answer(response) == answer
    assert PLAIN.format_is_right(response) is right


def test_a_sentence_that_would_confuse_the_reader_is_left_out():
    row = ROWS[0]
    steps = tuple(step._replace(text="So 18 / 2 = 9 it is.") for step in row.steps)
    task = FreeTextTask([replace(row, steps=steps)])
    plan = vanilla_plan(row.graph)
    assert task.render(plan, row.graph) == PLAIN.render(plan, row.graph)


def test_a_question_is_known_by_its_row():
    task = FreeTextTask(ROWS[3:6])
    for row in ROWS[3:6]:
        assert task.parse_question(f"{row.question}\n") is row.graph
    with pytest.raises(ValueError, match="extract it first"):
        task.parse_question("What?")


def test_sets_share_no_row_and_say_when_they_are_empty():
    rows = {
        split: []
        for split in (
            "pretrain",
            "sft",
            "rl",
            "val",
            "val_ood",
            "test_id",
            "test_ood",
            "influence_target",
        )
    }
    for split, found in rows.items():
        count = sum(in_split(row.graph.hash(), split) for row in ROWS)
        found.extend(OWN.problem(split, index).id for index in range(count))
        with pytest.raises(ValueError, match=f"set {split!r} has {count} of the {len(ROWS)} rows"):
            OWN.problem(split, count)
    together = [name for found in rows.values() for name in found]
    assert sorted(together) == sorted(f"row-{i}" for i in range(len(ROWS)))


@pytest.mark.parametrize(
    "line",
    [
        "So " + "a " * 3000,
        "So a = " + "b + " * 3000,
        "We know that " + "a = 1, " * 2000,
        "So a" + " = 1" * 2000,
        "Plan: " + "to find a: first b; " * 2000,
        "Let's check a: " + "a, " * 3000,
        ". " * 5000,
        "So " * 3000,
    ],
)
def test_no_line_of_a_model_takes_long_to_read(line):
    start = time.perf_counter()
    assert parse_line(line).node is None
    assert PLAIN.behavior_spans(line) == []
    assert time.perf_counter() - start < 1.0


def test_spans_of_text_without_behaviors():
    assert PLAIN.behavior_spans("So a = b = 3.") == []
    assert PLAIN.behavior_spans("So a = b / 2 = 6 / 2 = 3.") == [Span(12, 20, "subgoal")]
