"""The trace checker: recomputes every equality and proves every reflection, on demonstrations and on samples alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bi_ray.reasoning.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Equation:
    """What one "=" claims: the operator as written, its operands (names or numbers) and, if written, the result."""

    operands: tuple[str, ...]
    operator: str


@dataclass(frozen=True, slots=True)
class ParsedStep:
    """One line of a chain of thought as read from text.

    Attributes:
        text: the line.
        node: the quantity that it is about, None where the line has no known form.
        value: the value that it gives the node, None for an attempt that turned back.
        symbols: the equation over names, if any.
        numbers: the same equation over numbers (subgoal computation), if any.
        restated: values restated before the relation is used (information analysis), name to number.
        missing: the parents named as not known yet; not empty only for an attempt.
    """

    text: str
    node: str | None = None
    value: int | None = None
    symbols: Equation | None = None
    numbers: Equation | None = None
    restated: tuple[tuple[str, int], ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class TraceReport:
    """Verdict over a chain of thought. ``reason`` says in words what is wrong with line ``first_bad_step``."""

    valid: bool
    steps: int
    first_bad_step: int | None = None
    reason: str | None = None
    reflections: int = 0
    analyses: int = 0
    subgoals: int = 0
    solved: dict[str, int] = field(default_factory=dict)


def check_trace(steps: Sequence[ParsedStep], graph: Graph, notation: dict[str, str]) -> TraceReport:
    """Check every line against the graph and against what the lines before it solved.

    Args:
        steps: the lines, in order.
        graph: the problem.
        notation: operator as written in an equation, by operator name ("add" to "+").

    Returns:
        A report; ``valid`` is true where every line is right and the question is solved.
    """
    report = TraceReport(valid=True, steps=len(steps))
    for position, step in enumerate(steps):
        reason = _fault(step, graph, report.solved, notation)
        if reason:
            report.valid, report.first_bad_step, report.reason = False, position, reason
            return report
        assert step.node is not None  # _fault refuses lines without a node
        report.reflections += bool(step.missing)
        report.analyses += bool(step.restated)
        report.subgoals += bool(step.numbers)
        if step.value is not None:
            report.solved[step.node] = step.value
    if graph.question not in report.solved:
        report.valid, report.first_bad_step = False, len(steps)
        report.reason = f"ends before {graph.question} is solved"
    return report


def _fault(step: ParsedStep, graph: Graph, solved: dict[str, int], notation: dict[str, str]) -> str | None:
    """What is wrong with a line, or None."""
    if step.node is None:
        return f"no line of a known form: {step.text!r}"
    if step.node not in graph.nodes:
        return f"{step.node} is no quantity of the problem"
    if step.node in solved:
        return f"{step.node} is already solved"
    missing = graph.missing_parents(step.node, solved)
    if step.missing:
        if not missing:
            return f"turns back from {step.node}, which was not locked"
        if set(step.missing) != set(missing):
            return f"says that {', '.join(step.missing)} are missing for {step.node}; missing are {', '.join(missing)}"
        return None
    if missing:
        return f"solves {step.node} before {', '.join(missing)}"
    node = graph.nodes[step.node]
    return _equation_fault(step, node, solved, notation)


def _equation_fault(step: ParsedStep, node: Node, solved: dict[str, int], notation: dict[str, str]) -> str | None:
    if node.operator is None:
        if step.symbols or step.numbers:
            return f"{node.name} is given, yet an equation is written for it"
    else:
        if step.symbols is None:
            return f"{node.name} needs an equation"
        operands = [str(solved[parent]) for parent in node.parents]
        for equation, expected in ((step.symbols, list(node.parents)), (step.numbers, operands)):
            if equation and (list(equation.operands), equation.operator) != (expected, notation[node.operator]):
                return f"{node.name}: {equation.operator} of {equation.operands} is not what the problem states"
    for name, value in step.restated:
        if name not in node.parents or solved[name] != value:
            return f"{node.name}: restates {name} as {value}"
    if step.value != node.value:
        return f"{node.name} is {node.value}, not {step.value}"
    return None
