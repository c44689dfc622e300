"""Plausible wrong values: what somebody who computes a node in a hurry may write."""

from __future__ import annotations

from fractions import Fraction

from bi_ray.reasoning.expression import Expression, Operator, Truth, Value, evaluate
from bi_ray.reasoning.graph import Graph

_CONFUSED = {
    Operator.ADD: Operator.SUBTRACT,
    Operator.SUBTRACT: Operator.ADD,
    Operator.AND: Operator.OR,
    Operator.OR: Operator.AND,
}


def plausible_mistakes(name: str, graph: Graph) -> list[Value]:
    """Wrong values for a computed node, each once: swapped operands, another operator, off by one,
    a wrong sign.

    Never the right one; whole where the right one is whole; N/A only where the problem has it.
    Empty where there is none.
    """
    node = graph.nodes[name]
    values = {parent: graph.nodes[parent].value for parent in node.parents}
    found: list[Value] = [
        value for slip in _slips(node.formula) if (value := _value(slip, values)) is not None
    ]
    if isinstance(node.value, Truth):
        used = {other.value for other in graph.nodes.values()}
        found += [truth for truth in Truth if truth in used or truth is not Truth.UNKNOWN]
    else:
        found += [node.value + 1, node.value - 1, -node.value]
    return [
        value for value in dict.fromkeys(found) if value != node.value and _alike(value, node.value)
    ]


def _slips(formula: Expression) -> list[Expression]:
    """A formula with its operands swapped, with the operator mistaken for another, or with a square
    as a double.
    """
    if not isinstance(formula, tuple):
        return []
    operator, operands = formula[0], formula[1:]
    slips: list[Expression] = []
    if operator in (Operator.SUBTRACT, Operator.DIVIDE):
        slips.append((operator, *reversed(operands)))
    if operator in _CONFUSED and len(operands) == 2:
        slips.append((_CONFUSED[operator], *operands))
    if operator is Operator.SQUARE:
        slips.append((Operator.ADD, *operands, *operands))
    return slips


def _value(expression: Expression, values: dict[str, Value]) -> Value | None:
    try:
        return evaluate(expression, values)
    except (TypeError, ZeroDivisionError):
        return None


def _alike(value: Value, right: Value) -> bool:
    """Whether a value is of the right one's kind: a truth, a whole number, a fraction."""
    if isinstance(right, Fraction):
        return isinstance(value, int | Fraction)
    return isinstance(value, type(right))
