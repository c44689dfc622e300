"""Graphs from definitions in any order, and from chains of thought, whoever wrote them."""

import pytest

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation, Operator
from bi_ray.reasoning.graph import Node
from bi_ray.reasoning.parse import ParseError, graph_from_definitions, graph_from_trace, place_of
from bi_ray.reasoning.trace import StepKind
from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.wording import NOTATION

ADD, SUBTRACT, SQUARE = Operator.ADD, Operator.SUBTRACT, Operator.SQUARE


def test_definitions_in_order_keep_it():
    told = [[("c", 2)], [("a", 3)], [("b", (ADD, "a", "c"))]]
    assert list(graph_from_definitions(told, "b").nodes) == ["c", "a", "b"]


def test_definitions_told_backwards_are_turned_round_sentence_by_sentence():
    told = [[("c", (SUBTRACT, "a", "b"))], [("a", (SQUARE, "d")), ("b", 7)], [("d", 2)]]
    graph = graph_from_definitions(told, "c")
    assert list(graph.nodes) == ["d", "a", "b", "c"]
    assert graph.answer == -3


def test_definitions_in_no_order_are_sorted():
    told = [[("b", (SQUARE, "a"))], [("a", 5)], [("c", "b")]]
    graph = graph_from_definitions(told, "c")
    assert graph.nodes == {
        "a": Node("a", 5),
        "b": Node("b", 25, SQUARE, ("a",)),
        "c": Node("c", 25, Operator.SAME, ("b",)),
    }


def test_expressions_may_hold_numbers_and_be_nested():
    graph = graph_from_definitions([[("a", 1)], [("b", (ADD, 9, (SUBTRACT, "a", 4)))]], "b")
    assert graph.nodes["b"].expression == (ADD, 9, (SUBTRACT, "a", 4))
    assert graph.answer == 6


@pytest.mark.parametrize(
    ("told", "question", "reason"),
    [
        ([[("a", 1)], [("a", 1)]], "a", "a is defined twice"),
        ([[("a", 1)]], "b", "nothing says what b is"),
        ([[("a", (SQUARE, "b"))]], "a", "nothing says what b is"),
        ([[("a", (SQUARE, "a"))]], "a", "in a circle: a, a"),
        ([[("a", (SQUARE, "b")), ("b", (SQUARE, "c")), ("c", "a")]], "a", "in a circle"),
        ([[("a", 0)], [("b", (Operator.DIVIDE, 1, "a"))]], "b", "b has no value"),
        ([[("a", (SQUARE,))]], "a", "a has no value"),
    ],
)
def test_definitions_without_a_graph_are_refused(told, question, reason):
    with pytest.raises(ParseError, match=reason):
        graph_from_definitions(told, question)


LINES = [
    "Plan: aac needs aaa and aab, aab needs aaa",
    "Let's solve aac, aaa and aab are not known yet, wait, aac seems to be not solvable yet, let's get back",
    "Let's solve aaa, aaa is 5",
    "Let's solve aab, since aaa is 5, aab = aaa^2 = 5^2 = 24, wait, that is wrong, aab = 25",
    "Let's check aab, aaa * aaa = 5 * 5 = 25, aab is 25, right",
    "Let's solve aac, aac = aaa - aab = -20",
]


def test_a_trace_shows_its_graph_whatever_else_it_does():
    graph = graph_from_trace([parse_line(line) for line in LINES], NOTATION)
    assert graph.question == "aac"
    assert list(graph.nodes.values()) == [
        Node("aaa", 5),
        Node("aab", 25, SQUARE, ("aaa",)),
        Node("aac", -20, SUBTRACT, ("aaa", "aab")),
    ]


def test_letters_are_read_as_the_quantities_that_they_stand_for():
    """As iGSM writes: a letter for each quantity, given when it is first named, also where that
    leads nowhere.
    """
    notation = Notation({ADD: "+", SUBTRACT: "-", Operator.MULTIPLY: "*"})
    school, room, desks = "each School's Room", "each Room's Desk", "each School's Desk"
    steps = [
        ParsedStep("", desks, kind=StepKind.ATTEMPT, symbol="y", missing=(room,)),
        ParsedStep("", school, symbol="S", value=4),
        ParsedStep("", room, symbol="q", symbols="2 + S", numbers=("2 + 4",), value=6),
        ParsedStep(
            "",
            desks,
            symbol="y",
            symbols="S * (q + S)",
            numbers=("4 * (6 + 4)", "4 * 10"),
            value=40,
        ),
        ParsedStep("", "all", symbol="k", symbols="y + q + S", value=50),
        ParsedStep("", "the same", symbol="m", symbols="k", value=50),
    ]
    assert list(graph_from_trace(steps, notation).nodes.values()) == [
        Node(school, 4),
        Node(room, 6, ADD, (school,), (ADD, 2, school)),
        Node(
            desks,
            40,
            Operator.MULTIPLY,
            (school, room),
            (Operator.MULTIPLY, school, (ADD, room, school)),
        ),
        Node("all", 50, ADD, (desks, room, school)),
        Node("the same", 50, Operator.SAME, ("all",)),
    ]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no line solves anything"),
        (LINES[:2], "no line solves anything"),
        (["so"], "no line of a known form: 'so'"),
        (LINES[3:4], "aab is computed before aaa is known"),
        ([LINES[2], "Let's solve aab, aab = aaa^2 = 26"], "aab would be 25, not 26"),
        ([LINES[2], LINES[2]], "'aaa' is defined twice"),
        (
            [LINES[2], "Let's solve aab, aab = aaa AND aaa = 5"],
            "aab (would be True, not 5|has no value)",
        ),
    ],
)
def test_a_trace_that_does_not_fit_together_is_refused(lines, reason):
    with pytest.raises(ParseError, match=reason):
        graph_from_trace([parse_line(line) for line in lines], NOTATION)


def test_an_equation_of_no_known_form_is_refused():
    steps = [ParsedStep("the line", "a", symbols="1 +", value=1)]
    with pytest.raises(ParseError, match="no equation of a known form: 'the line'"):
        graph_from_trace(steps, NOTATION)


@pytest.mark.parametrize(
    "response", ["<think>\nk\nthink\n\nk\n</think>", "k\r\nthink\r\nk", "<think> k \n think\n k"]
)
def test_the_place_of_a_line_is_not_that_of_another_with_its_letters(response):
    steps = [ParsedStep(text) for text in ("k", "think", "k")]
    places = [place_of(response, steps, position) for position in range(3)]
    assert [response[start:end] for start, end in places] == ["k", "think", "k"]
    lines = [line.replace("<think>", "").strip() for line in response.split("\n")]
    numbers = [number for number, line in enumerate(lines) if line in ("k", "think")]
    assert [response.count("\n", 0, start) for start, _ in places] == numbers
