"""A chain of thought as data: what is done in which order, and which parts of the text an injected
behavior wrote.
"""

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


# a behavior copies many, and a frozen dataclass takes three times as long to make
class Step(NamedTuple):
    """One line of a chain of thought.

    Attributes:
        node: the quantity that the line is about; for an outline, the target.
        kind: what it does.
        subgoal: whether intermediate results are written out (subgoal computation).
        analysis: whether the relation is restated before it is used (information analysis).
        mistake: a wrong value that is written first, noticed and mended (self-correction).
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


_plain = lru_cache(maxsize=4096)(Step)  # names come again in other problems


@lru_cache(maxsize=4096)
def mark(step: Step, **behaviors: Any) -> Step:
    """A copy of ``step`` with behaviors switched on or off."""
    return step._replace(**behaviors)


class Check(NamedTuple):
    """A verification: ``expression``, over a node and its parents, has to give what ``target`` is."""

    expression: Expression
    target: str


def another_way(node: Node) -> Check | None:
    """How a node's value can be computed again, or tested, by another equation than its own; None
    where it cannot.
    """
    if node.expression is None and node.operator is not None:
        parents = node.parents
        if node.operator is Operator.SUBTRACT:
            return Check((Operator.ADD, node.name, parents[1]), parents[0])
        if node.operator is Operator.ADD and len(parents) == 2:
            return Check((Operator.SUBTRACT, node.name, parents[1]), parents[0])
        if node.operator is Operator.SQUARE:
            return Check((Operator.MULTIPLY, parents[0], parents[0]), node.name)
        if node.operator is Operator.NOT:
            return Check((Operator.NOT, node.name), parents[0])
    formula = node.formula
    if isinstance(formula, tuple) and formula[0].commutes and formula[1:] != formula[:0:-1]:
        return Check((formula[0], *formula[:0:-1]), node.name)
    return None


def outline(graph: Graph) -> list[tuple[str, tuple[str, ...]]]:
    """Every needed computed node with its parents, from the target backwards: each was named before
    as a parent.
    """
    found: dict[str, tuple[str, ...]] = {}
    queue = [graph.question]
    while queue:
        name = queue.pop(0)
        if name not in found and (parents := graph.nodes[name].parents):
            found[name] = parents
            queue.extend(parents)
    return list(found.items())


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


# Words that say nothing of any problem. Lines of them give a demonstration length and no behavior.
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


def is_filler(line: str) -> bool:
    """Whether a line holds filler words and full stops alone, and at least one of either."""
    words = line.strip().removeprefix("- ")
    return bool(words) and all(word in FILLER_WORDS for word in words.replace(".", " ").split())
