"""Lines as models write them: read whatever they hold, without an exception and without delay."""

import time

import pytest

from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.tasks.promptbench.lines import parse_line, spans_in
from bi_ray.tasks.promptbench.wording import NOTATION

GRAPH = Graph([Node("aaa", 5), Node("aab", 25, Operator.SQUARE, ("aaa",))], "aab")
START = "Let's solve aab, aab = "


@pytest.mark.parametrize(
    "line",
    [
        START + "aaa + " * 5000 + "aaa = 25",
        START + "NOT " * 5000 + "aaa = True",
        START + "(" * 5000 + "aaa" + ")" * 5000 + " = 25",
        START + "(" * 5000 + "aaa = 25",
        START + "aaa^2 = " + "5 + 5 = " * 5000 + "25",
        START + "aaa^2 = " * 5000,
        "Let's solve aab, since " + "aaa is 5 and " * 5000 + "aaa is 6, aab = aaa^2 = 25",
        "Let's solve aab, " + "aaa and " * 5000 + "aaa are not known yet",
        "Plan: " + "aab needs aaa, " * 5000,
        "Let's solve " * 5000,
        "Let's check aab, " + "aaa * " * 5000 + "aaa = 25, aab is 25, right",
    ],
)
def test_endless_lines_are_wrong_and_nothing_worse(line):
    start = time.monotonic()
    assert not check_trace(
        [parse_line("Let's solve aaa, aaa is 5"), parse_line(line)], GRAPH, NOTATION
    ).valid
    spans_in(line)
    assert time.monotonic() - start < 2


def test_a_mistake_is_told_from_what_mends_it():
    line = START + "aaa^2 = 5^2 = 24, wait, that is wrong, aab = 25"
    step = parse_line(line)
    assert (step.symbols, step.numbers, step.mistake, step.value) == ("aaa^2", ("5^2",), 24, 25)
    assert [(line[a:b], behavior) for a, b, behavior in spans_in(line)] == [
        (" = 5^2", "subgoal"),
        (" = 24, wait, that is wrong, aab", "correction"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        START + "25",
        START + "aaa^2 = 25 or so",
        START + "aaa^2 = 24, wait, that is wrong, aaa = 25",
        START + "aaa^2 = 24, wait, that is wrong",
        START + "aaa^2 = 24, wait, that is wrong, aab = 26, wait, that is wrong, aab = 25",
        "Let's solve aab, aaa = aaa^2 = 25",
        "Let's check aab, aaa * aaa = 25, aab is 24, right",
    ],
)
def test_lines_of_no_known_form(line):
    assert parse_line(line).node is None
