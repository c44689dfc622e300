"""A chain of thought as data: what is done in which order, and which parts of the text an injected behaviour wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from bi_ray.reasoning.graph import Graph


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a chain of thought.

    Attributes:
        node: the quantity that the line is about.
        attempt: true where the line starts on a locked node, names what is missing and turns back (reflection).
        subgoal: whether intermediate results are written out (subgoal computation).
        analysis: whether the relation is restated before it is used (information analysis).
    """

    node: str
    attempt: bool = False
    subgoal: bool = False
    analysis: bool = False


Plan = list[Step]


def plan_in_order(order: Iterable[str]) -> Plan:
    """The plain plan that solves the nodes of ``order`` one by one."""
    return [Step(node) for node in order]


def vanilla_plan(graph: Graph) -> Plan:
    """Every needed node, in the graph's own topological order, with no behaviour."""
    return plan_in_order(graph.needed_order)


def mark(step: Step, **behaviours: bool) -> Step:
    """A copy of ``step`` with behaviours switched on or off."""
    return replace(step, **behaviours)  # type: ignore[arg-type]  # mypy cannot see which field each name is


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a text, written by ``behaviour``."""

    start: int
    end: int
    behaviour: str


class Piece(NamedTuple):
    """A piece of rendered text and the behaviour that wrote it, or None for plain text."""

    text: str
    behaviour: str | None = None


def join(pieces: Iterable[Piece]) -> tuple[str, list[Span]]:
    """Concatenate pieces into a text and the spans of the behaviours in it."""
    texts: list[str] = []
    spans: list[Span] = []
    position = 0
    for piece in pieces:
        end = position + len(piece.text)
        if piece.behaviour:
            spans.append(Span(position, end, piece.behaviour))
        texts.append(piece.text)
        position = end
    return "".join(texts), spans
