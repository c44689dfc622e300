"""From definitions in a text to the graph behind it, and from a step to its place in the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import chain

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Expression, Value, names_in
from bi_ray.reasoning.graph import Graph, Node

# a quantity, and what it is: a value, or an expression over other quantities
Definition = tuple[str, Expression]


class ParseError(ValueError):
    """A text from which no graph can be read.

    The message quotes the sentence or line, or names the quantity.
    """


def graph_from_definitions(sentences: Sequence[Sequence[Definition]], question: str) -> Graph:
    """The graph of definitions that come in any order.

    Its order is that of the text where it is topological, else the reverse where that is, else any
    topological order.

    Args:
        sentences: what each sentence defines, in the order of the text.
        question: the quantity that is asked for.

    Raises:
        ParseError: a quantity is defined twice, in a circle or not at all, or has no value.
    """
    forwards = list(chain.from_iterable(sentences))
    parents: dict[str, tuple[str, ...]] = {}
    for name, expression in forwards:
        if name in parents:
            raise ParseError(f"{name} is defined twice")
        parents[name] = names_in(expression)
    absent = {question}.union(*parents.values()) - parents.keys()
    if absent:
        raise ParseError(f"nothing says what {min(absent)} is")
    backwards = list(chain.from_iterable(reversed(sentences)))
    if _is_topological(forwards, parents):
        order = forwards
    elif _is_topological(backwards, parents):
        order = backwards
    else:
        order = _sorted(forwards, parents)
    values: dict[str, Value] = {}
    nodes = [_node(name, expression, values) for name, expression in order]
    try:
        return Graph(nodes, question)
    except ValueError as error:
        raise ParseError(str(error)) from error


def place_of(response: str, steps: Sequence[ParsedStep], position: int) -> tuple[int, int]:
    """Start and end (exclusive) of a step's line in a response, in characters.

    Args:
        response: the whole response.
        steps: its lines as a task reads them (``parse_trace``): the text of each follows that of
            the one before.
        position: of the step, from 0.
    """
    start = max(response.find("<think>"), 0)
    if response.startswith("<think>", start):
        start += len("<think>")
    for step in steps[:position]:
        start = response.index(step.text, start) + len(step.text)
    text = steps[position].text
    start = response.index(text, start)
    return start, start + len(text)


def _is_topological(order: Iterable[Definition], parents: Mapping[str, tuple[str, ...]]) -> bool:
    known: set[str] = set()
    for name, _ in order:
        if not known.issuperset(parents[name]):
            return False
        known.add(name)
    return True


def _sorted(
    definitions: Iterable[Definition], parents: Mapping[str, tuple[str, ...]]
) -> list[Definition]:
    """The definitions in a topological order."""
    expressions = dict(definitions)
    try:
        order = list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise ParseError(f"defined in a circle: {', '.join(error.args[1])}") from error
    return [(name, expressions[name]) for name in order]


def _node(name: str, expression: Expression, values: dict[str, Value]) -> Node:
    """The node of a definition; its value is added to ``values``."""
    try:
        node = Node.of(name, expression, values)
    except KeyError as error:
        raise ParseError(f"{name} is computed before {error.args[0]} is known") from error
    except (TypeError, ZeroDivisionError) as error:
        raise ParseError(f"{name} has no value: {error}") from error
    values[name] = node.value
    return node
