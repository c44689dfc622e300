"""Questions and traces read back into the graphs that they were written from."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import every_behavior

from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.parse import ParseError
from bi_ray.reasoning.trace import join
from bi_ray.tasks.promptbench.task import PromptBenchTask

LOGICS = ("arithmetic", "boolean", "deductive", "abductive")
ORDERS = ("topological", "reversed", "random")
FAMILIES = pytest.mark.parametrize(
    ("logic", "order"), [(logic, order) for logic in LOGICS for order in ORDERS]
)
DIFFICULTY = DifficultyConfig(depth=(1, 5), redundant_nodes=(0, 8))


def make_task(logic, order="topological") -> PromptBenchTask:
    return PromptBenchTask(PromptBenchConfig(logic=logic, order=order, sets={"sft": DIFFICULTY}), 0)


def check_round_trip(task: PromptBenchTask, seed: int) -> None:
    rng = random.Random(seed)
    graph = task.draw(rng, DIFFICULTY)
    text = task.describe(graph, rng)
    read = task.parse_question(text)
    assert read.nodes == graph.nodes  # redundant ones, too
    assert (read.question, read.hash()) == (graph.question, graph.hash())
    computed = any(node.parents for node in graph.nodes.values())
    # the text tells the order
    if task.config.order == "topological" or (task.config.order == "reversed" and computed):
        assert list(read.nodes) == list(graph.nodes)
        assert task.describe(read, rng) == text
    trace = join(task.render(every_behavior(graph, rng), graph))[0]
    report = check_trace(task.parse_trace(trace), read, task.notation)
    assert report.valid, report.reason
    assert report.solved == {name: graph.values[name] for name in graph.needed_order}


@FAMILIES
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**60))
def test_round_trip(logic, order, seed):
    check_round_trip(make_task(logic, order), seed)


@pytest.mark.slow
@FAMILIES
def test_round_trip_of_ten_thousand(logic, order):
    task = make_task(logic, order)
    for seed in range(10_000):
        check_round_trip(task, seed)


# The paper's appendix, sentence by sentence, and the forms of
# DyVal's logic.
SENTENCES = [
    ("arithmetic", "The value of aac is 5.", "aac", {"aac": 5}),
    ("arithmetic", "The value of aac is -5.", "aac", {"aac": -5}),
    (
        "arithmetic",
        "aaf gets its value by adding together the value of aab and aae.",
        "aaf",
        ("add", "aab", "aae"),
    ),
    (
        "arithmetic",
        "aap gets its value by subtracting the value of aao from the value of aaf.",
        "aap",
        ("subtract", "aaf", "aao"),
    ),
    (
        "arithmetic",
        "aas gets its value by multiplying together the value of aaq and aar.",
        "aas",
        ("multiply", "aaq", "aar"),
    ),
    (
        "arithmetic",
        "aab gets its value by squaring the value that aaa has.",
        "aab",
        ("square", "aaa"),
    ),
    ("boolean", "The value of aae equals to (aab AND aac).", "aae", ("and", "aab", "aac")),
    (
        "boolean",
        "The value of aae equals to (aab OR aac OR aad).",
        "aae",
        ("or", "aab", "aac", "aad"),
    ),
    ("boolean", "The value of aae equals to (NOT aab).", "aae", ("not", "aab")),
    ("deductive", "(aab and aac) -> aae.", "aae", ("if", ("and", "aab", "aac"))),
    ("deductive", "(aab or aac) -> aae.", "aae", ("if", ("or", "aab", "aac"))),
    ("deductive", "(NOT aab) -> aae.", "aae", ("if", ("not", "aab"))),
]


@pytest.mark.parametrize(("logic", "sentence", "name", "meaning"), SENTENCES)
def test_every_sentence_form_is_read(logic, sentence, name, meaning):
    fact = "The value of {} is 3." if logic == "arithmetic" else "{} is True."
    others = sorted(set(re.findall(r"\baa[a-z]\b", sentence)) - {name})
    # one line, question first
    text = " ".join([f"What is the value of {name}?", sentence, *map(fact.format, others)])
    node = make_task(logic).parse_question(text).nodes[name]
    assert node.formula == (meaning[name] if isinstance(meaning, dict) else meaning)


def test_facts_behind_a_conclusion_are_read():
    text = (
        "(aad and aae) -> aab.\n(NOT aaa) -> aac.\n(aab or aac) -> aaz.\nGiven aaz is "
        "False, what is the value of aac?"
    )
    graph = make_task("abductive").parse_question(text)
    assert {name: node.formula for name, node in graph.nodes.items()} == {
        "aaz": "False",
        "aab": ("cause_or", "aaz"),
        "aac": ("cause_or", "aaz"),
        "aad": ("cause_and", "aab"),
        "aae": ("cause_and", "aab"),
        "aaa": ("cause_not", "aac"),
    }
    assert {name: node.value for name, node in graph.nodes.items()} == {
        "aaz": "False",
        "aab": "False",
        "aac": "False",
        "aad": "N/A",
        "aae": "N/A",
        "aaa": "True",
    }


def test_the_operands_of_a_subtraction_are_not_swapped():
    text = (
        "The value of aaa is 9.\nThe value of aab is 4.\n"
        "aac gets its value by subtracting the value of aab from the value of aaa.\nWhat is "
        "the value of aac?"
    )
    assert make_task("arithmetic").parse_question(text).answer == 5


@pytest.mark.parametrize(
    ("logic", "text", "reason"),
    [
        ("arithmetic", "The value of aaa is 9.", "no question"),
        ("arithmetic", "", "no question"),
        ("arithmetic", "What is the value of aaa?", "nothing says what aaa is"),
        (
            "arithmetic",
            "The value of aaa is 9. What is the value of aaa? What is the value of aaa?",
            "2 questions",
        ),
        (
            "arithmetic",
            "The value of aaa is nine. What is the value of aaa?",
            "'The value of aaa is nine.'",
        ),
        (
            "arithmetic",
            "The value of aaa is 9. Good luck! What is the value of aaa?",
            "no sentence of a known form",
        ),
        (
            "arithmetic",
            "The value of aaa is 9. The value of aaa is 9. What is the value of aaa?",
            "aaa is defined twice",
        ),
        (
            "arithmetic",
            "aaa gets its value by squaring the value that aab has. What is the value of aaa?",
            "nothing says what aab is",
        ),
        (
            "arithmetic",
            "aaa gets its value by squaring the value that aab has. "
            "aab gets its value by squaring the value that aaa has. What is the value of aaa?",
            "in a circle: aaa, aab, aaa",
        ),
        ("boolean", "aaa is 5. What is the value of aaa?", "'aaa is 5.'"),
        (
            "boolean",
            "aaa is True. (NOT aaa) -> aab. What is the value of aab?",
            "no sentence of a known form",
        ),
        (
            "boolean",
            "The value of aab equals to (aaa AND). What is the value of aab?",
            "no sentence of a known form",
        ),
        (
            "boolean",
            "The value of aab equals to (aaa). What is the value of aab?",
            "no sentence of a known form",
        ),
        (
            "deductive",
            "aaa is True. (aaa xor aaa) -> aab. What is the value of aab?",
            "no sentence of a known form",
        ),
        (
            "abductive",
            "(aaa and (NOT aab)) -> aac. Given aac is True, what is the value of aaa?",
            "no sentence of a",
        ),
        ("abductive", "(NOT aaa) -> aab. What is the value of aaa?", "no sentence of a known form"),
        (
            "abductive",
            "(NOT aaa) -> aab. Given aac is True, what is the value of aaa?",
            "nothing says what aab is",
        ),
    ],
)
def test_what_makes_no_graph_is_refused_with_the_reason(logic, text, reason):
    with pytest.raises(ParseError, match=re.escape(reason)):
        make_task(logic).parse_question(text)


def test_premises_in_no_particular_order_make_the_same_graph():
    graph = Graph(
        [
            Node("aaa", 2),
            Node("aab", 4, Operator.SQUARE, ("aaa",)),
            Node("aac", 16, Operator.SQUARE, ("aab",)),
        ],
        "aac",
    )
    task = make_task("arithmetic")
    *lines, question = task.describe(graph, random.Random(0)).split("\n")
    for order in ([0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 2, 1]):
        assert (
            task.parse_question("\n".join([*(lines[i] for i in order), question])).nodes
            == graph.nodes
        )
