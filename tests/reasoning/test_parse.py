"""Graphs from definitions in any order, and the places of steps in a response."""

import pytest

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Node
from bi_ray.reasoning.parse import ParseError, graph_from_definitions, place_of

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
