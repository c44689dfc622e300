"""Plausible wrong values: what somebody may write who computes a node in a hurry."""

from __future__ import annotations

from contextlib import suppress
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
    """Wrong values for a computed node, each once; possibly none.

    They come from swapped operands, another operator, off by one, or a wrong sign. They are whole
    where the right value is whole, and N/A only where the problem has it.
    """
    right = graph.nodes[name].value
    candidates: list[Value] = []
    for slip in _slips(graph.nodes[name].formula):
        with suppress(TypeError, ZeroDivisionError):
            candidates.append(evaluate(slip, graph.values))
    if isinstance(right, Truth):
        candidates += [Truth.TRUE, Truth.FALSE]
        if Truth.UNKNOWN in graph.values.values():
            candidates.append(Truth.UNKNOWN)
    else:
        candidates += [right + 1, right - 1, -right]
    mistakes: list[Value] = []
    for value in dict.fromkeys(candidates):
        if value != right and _is_alike(value, right):
            mistakes.append(value)
    return mistakes


def _slips(formula: Expression) -> list[Expression]:
    """A formula with swapped operands, with another operator, or with a square as a double."""
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


def _is_alike(value: Value, right: Value) -> bool:
    """Whether a value is of the right one's kind: a truth, a whole number, a fraction."""
    if isinstance(right, Fraction):
        return isinstance(value, int | Fraction)
    return isinstance(value, type(right))
