"""From what a text says, sentence by sentence or line by line, to the graph behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Expression, Notation, Value, names_in, substitute
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.trace import StepKind

# a quantity, and what it is: a value, or an expression over other quantities
Definition = tuple[str, Expression]


class ParseError(ValueError):
    """A text from which no graph can be read; the message quotes the sentence or line, or names the
    quantity.
    """


def graph_from_definitions(sentences: Sequence[Sequence[Definition]], question: str) -> Graph:
    """The graph of definitions that come in any order.

    Its order is the told one where that is topological, else the reverse where that one is, else
    some topological one.

    Args:
        sentences: what each sentence defines, in the order of the text.
        question: the quantity that is asked for.

    Raises:
        ParseError: a quantity is defined twice, in a circle or not at all, or has no value.
    """
    told = [definition for sentence in sentences for definition in sentence]
    parents: dict[str, tuple[str, ...]] = {}
    for name, expression in told:
        if name in parents:
            raise ParseError(f"{name} is defined twice")
        parents[name] = names_in(expression)
    absent = {
        question,
        *(parent for needed in parents.values() for parent in needed),
    } - parents.keys()
    if absent:
        raise ParseError(f"nothing says what {min(absent)} is")
    backwards = [definition for sentence in reversed(sentences) for definition in sentence]
    order = next(
        (one for one in (told, backwards) if _is_topological(one, parents)), None
    ) or _sorted(told, parents)
    values: dict[str, Value] = {}
    nodes = [_node(name, expression, values) for name, expression in order]
    return _graph(nodes, question)


def graph_from_trace(steps: Sequence[ParsedStep], notation: Notation) -> Graph:
    """The graph that a chain of thought shows: of what it solves, how it says that it does; the
    last one is the target.

    What the lines say is believed as far as it fits together: whether it is what the problem
    states, only ``check_trace`` against the problem's own graph can tell.

    Args:
        steps: the lines, in order; attempts, verifications and plans add nothing.
        notation: how equations are written.

    Raises:
        ParseError: a line has no known form, uses what is not solved yet, or comes to another value
            than it says.
    """
    names: dict[str, str] = {}  # of the quantities, by what equations call them
    values: dict[str, Value] = {}
    nodes: list[Node] = []
    for step in steps:
        if step.node is None:
            raise ParseError(f"no line of a known form: {step.text!r}")
        if step.symbol is not None:
            names[step.symbol] = step.node
        if step.kind is not StepKind.SOLVE:
            continue
        expression = step.value if step.symbols is None else notation.parse(step.symbols)
        if expression is None:
            raise ParseError(f"no equation of a known form: {step.text!r}")
        nodes.append(node := _node(step.node, substitute(expression, names), values))
        if node.value != step.value:
            raise ParseError(f"{step.node} would be {node.value}, not {step.value}: {step.text!r}")
    if not nodes:
        raise ParseError("no line solves anything")
    return _graph(nodes, nodes[-1].name)


def place_of(response: str, steps: Sequence[ParsedStep], position: int) -> tuple[int, int]:
    """Where in a response the line of step ``position`` stands: its characters, the end exclusive.

    Args:
        response: the whole response.
        steps: its lines as a task reads them (``parse_trace``): the text of each follows that of
            the one before.
        position: which, from 0.
    """
    start = response.find("<think>")
    start = 0 if start < 0 else start + len("<think>")
    for step in steps[:position]:
        start = response.index(step.text, start) + len(step.text)
    start = response.index(steps[position].text, start)
    return start, start + len(steps[position].text)


def _is_topological(order: Iterable[Definition], parents: Mapping[str, tuple[str, ...]]) -> bool:
    known: set[str] = set()
    for name, _ in order:
        if not known.issuperset(parents[name]):
            return False
        known.add(name)
    return True


def _sorted(told: Iterable[Definition], parents: Mapping[str, tuple[str, ...]]) -> list[Definition]:
    expressions = dict(told)
    try:
        return [(name, expressions[name]) for name in TopologicalSorter(parents).static_order()]
    except CycleError as error:
        raise ParseError(f"defined in a circle: {', '.join(error.args[1])}") from error


def _node(name: str, expression: Expression, values: dict[str, Value]) -> Node:
    """The node of a definition, its value added to ``values``."""
    try:
        node = Node.of(name, expression, values)
    except KeyError as error:
        raise ParseError(f"{name} is computed before {error.args[0]} is known") from error
    except (TypeError, ZeroDivisionError) as error:
        raise ParseError(f"{name} has no value: {error}") from error
    values[name] = node.value
    return node


def _graph(nodes: Iterable[Node], question: str) -> Graph:
    try:
        return Graph(nodes, question)
    except ValueError as error:
        raise ParseError(str(error)) from error
