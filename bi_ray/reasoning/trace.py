"""A chain of thought as data: its steps, and the parts of its text that behaviors wrote."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from bi_ray.reasoning.expression import Expression, Operator, Value
from bi_ray.reasoning.graph import Graph, Node


class StepKind(StrEnum):
    """What a line of a chain of thought does."""

    SOLVE = "solve"
    ATTEMPT = "attempt"  # starts on a locked node, names what is missing and turns back
    VERIFY = "verify"  # computes something known again in another way
    OUTLINE = "outline"  # says, from the target backwards, what needs what


# the behaviors that write lines of their own; the others write parts of solving lines
LINE_BEHAVIORS = {
    StepKind.ATTEMPT: "reflection",
    StepKind.VERIFY: "verification",
    StepKind.OUTLINE: "planning",
}


# a behavior copies many of them, and a frozen dataclass takes three times as long to make
class Step(NamedTuple):
    """One line of a chain of thought.

    Attributes:
        node: the quantity that the line is about; for an outline, the target.
        kind: what it does.
        subgoal: whether intermediate results are written out (subgoal computation).
        analysis: whether the relation is restated before it is used (information analysis).
        mistake: a wrong value that is written first, noticed and corrected (self-correction).
    """

    node: str
    kind: StepKind = StepKind.SOLVE
    subgoal: bool = False
    analysis: bool = False
    mistake: Value | None = None


Plan = list[Step]


def plan_in_order(order: Iterable[str]) -> Plan:
    """The plain plan that solves the nodes of ``order`` one by one."""
    return list(map(_plain, order))


def vanilla_plan(graph: Graph) -> Plan:
    """Every needed node, in the graph's own topological order, with no behavior."""
    return plan_in_order(graph.needed_order)


_plain = lru_cache(maxsize=4096)(Step)  # the same names appear in many problems


@lru_cache(maxsize=4096)
def mark(step: Step, **behaviors: Any) -> Step:
    """A copy of ``step`` with behaviors switched on or off."""
    return step._replace(**behaviors)


class Check(NamedTuple):
    """A verification: ``expression``, over a node and its parents, has to equal ``target``."""

    expression: Expression
    target: str


def another_way(node: Node) -> Check | None:
    """An equation other than the node's own that tests its value; None: there is none."""
    if node.expression is None and (check := _inverse(node)):
        return check
    formula = node.formula
    if not isinstance(formula, tuple) or not formula[0].commutes:
        return None
    backwards = formula[:0:-1]
    if backwards == formula[1:]:
        return None
    return Check((formula[0], *backwards), node.name)


def _inverse(node: Node) -> Check | None:
    operator, parents = node.operator, node.parents
    if operator is Operator.SUBTRACT:
        return Check((Operator.ADD, node.name, parents[1]), parents[0])
    if operator is Operator.ADD and len(parents) == 2:
        return Check((Operator.SUBTRACT, node.name, parents[1]), parents[0])
    if operator is Operator.SQUARE:
        return Check((Operator.MULTIPLY, parents[0], parents[0]), node.name)
    if operator is Operator.NOT:
        return Check((Operator.NOT, node.name), parents[0])
    return None


def verification_of(node: Node) -> Check:
    """As ``another_way``, for a node that a plan verifies.

    Raises:
        ValueError: there is no other equation.
    """
    check = another_way(node)
    if check is None:
        raise ValueError(f"{node.name} cannot be verified: there is no other equation for it")
    return check


def outline(graph: Graph) -> list[tuple[str, tuple[str, ...]]]:
    """Every needed computed node with its parents, from the question backwards.

    Each node but the first comes after a node of which it is a parent.
    """
    parents_of: dict[str, tuple[str, ...]] = {}
    queue = [graph.question]
    while queue:
        name = queue.pop(0)
        parents = graph.nodes[name].parents
        if parents and name not in parents_of:
            parents_of[name] = parents
            queue.extend(parents)
    return list(parents_of.items())


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a text, written by ``behavior``."""

    start: int
    end: int
    behavior: str


class Piece(NamedTuple):
    """A piece of rendered text and the behavior that wrote it, or None for plain text."""

    text: str
    behavior: str | None = None


def join(pieces: Iterable[Piece]) -> tuple[str, list[Span]]:
    """Concatenate pieces into a text and the spans of the behaviors in it."""
    texts: list[str] = []
    spans: list[Span] = []
    position = 0
    for text, behavior in pieces:
        end = position + len(text)
        if behavior:
            spans.append(Span(position, end, behavior))
        texts.append(text)
        position = end
    return "".join(texts), spans


# words that say nothing about any problem: they make a demonstration longer, without a behavior
FILLER_WORDS = (
    "so",
    "now",
    "let",
    "us",
    "go",
    "on",
    "with",
    "this",
    "and",
    "take",
    "it",
    "one",
    "by",
    "as",
    "before",
)
_FILLER_WORDS = frozenset(FILLER_WORDS)


def is_filler(line: str) -> bool:
    """Whether a line consists of filler words and full stops, at least one of either."""
    text = line.strip().removeprefix("- ")
    words = text.replace(".", " ").split()
    return text != "" and _FILLER_WORDS.issuperset(words)
