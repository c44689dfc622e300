"""The trace checker: recomputes every equality and proves every reflection, on demonstrations and
on samples alike.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from bi_ray.reasoning.expression import (
    Expression,
    Notation,
    Truth,
    Value,
    compute,
    flatten,
    names_in,
    reductions,
    substitute,
    value_of,
)
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.trace import StepKind, is_filler

# looking members up in their enumeration takes long
_SOLVE, _ATTEMPT = StepKind.SOLVE, StepKind.ATTEMPT
# of values under which a verification has to hold; each lets a wrong one through once in hundreds
_DRAWS = 8
_TRIAL_NUMBERS = (2, 997)
# of a number that a line may come to on its way: squares of squares grow without end
_MAX_DIGITS = 100


# not frozen: with so many fields that would be most of the time it takes to read a line
@dataclass(slots=True)
class ParsedStep:
    """One line of a chain of thought as read from text.

    Attributes:
        text: the line.
        node: the quantity that it is about, None where the line has no known form.
        kind: what it does.
        value: the value that it ends with, None for an attempt that turned back and for an outline.
        symbol: how equations write the node from now on; None: by its name.
        symbols: the right side over symbols, if any: "aad - aac".
        numbers: further right sides over numbers, in order: "5 - 5".
        subgoal: whether they write out more than a plain line of this task does (subgoal
            computation).
        restated: values restated before the relation is used (information analysis), name to value.
        relation: the relation itself restated (information analysis), over names.
        missing: the parents named as not known yet, for an attempt.
        mistake: the wrong value that was written first (self-correction).
        target: what a verification's equation has to give, a name.
        needs: pairs of a node and its parents, for an outline.
    """

    text: str
    node: str | None = None
    kind: StepKind = StepKind.SOLVE
    value: Value | None = None
    symbol: str | None = None
    symbols: str | None = None
    numbers: tuple[str, ...] = ()
    subgoal: bool = False
    restated: tuple[tuple[str, Value], ...] = ()
    relation: Expression | None = None
    missing: tuple[str, ...] = ()
    mistake: Value | None = None
    target: str | None = None
    needs: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors that the line shows."""
        shown = {
            "reflection": self.kind is StepKind.ATTEMPT,
            "verification": self.kind is StepKind.VERIFY,
            "planning": self.kind is StepKind.OUTLINE,
            "analysis": bool(self.restated) or self.relation is not None,
            "subgoal": self.subgoal,
            "correction": self.mistake is not None,
        }
        return tuple(name for name, there in shown.items() if there)


@dataclass(slots=True)
class TraceReport:
    """Verdict over a chain of thought. ``reason`` says in words what is wrong with line
    ``first_bad_step``.

    Attributes:
        right_reflections: attempts on a node that was locked, with exactly the parents that were
            missing, before the first bad line.
        progress: share of the needed nodes that the lines before the first bad one solve. Of all
            lines, a policy could raise the share of right ones by lines that lead nowhere, or by
            stopping early; not this.
        solved: values of the nodes that the lines before the first bad one solved.
    """

    valid: bool
    steps: int
    first_bad_step: int | None = None
    reason: str | None = None
    right_reflections: int = 0
    progress: float = 0.0
    solved: dict[str, Value] = field(default_factory=dict)


def check_trace(steps: Sequence[ParsedStep], graph: Graph, notation: Notation) -> TraceReport:
    """Check every line against the graph and against what the lines before it solved.

    Args:
        steps: the lines, in order.
        graph: the problem.
        notation: how the task writes equations.

    Returns:
        A report; ``valid`` is true where every line is right and the question is solved.
    """
    report = TraceReport(valid=True, steps=len(steps))
    checker = _Checker(graph, notation, report.solved)
    for position, step in enumerate(steps):
        if step.node is None and is_filler(step.text):
            continue
        reason = checker.fault(step)
        if reason:
            report.valid, report.first_bad_step, report.reason = False, position, reason
            break
        kind = step.kind
        report.right_reflections += kind is _ATTEMPT
        if kind is _SOLVE:
            assert step.node is not None  # a line without a node has a fault
            assert step.value is not None
            report.solved[step.node] = step.value
    if report.valid and graph.question not in report.solved:
        report.valid, report.first_bad_step = False, len(steps)
        report.reason = f"ends before {graph.question} is solved"
    report.progress = len(graph.needed & report.solved.keys()) / len(graph.needed)
    return report


class _Checker:
    def __init__(self, graph: Graph, notation: Notation, solved: dict[str, Value]) -> None:
        self.graph = graph
        self.notation = notation
        self.solved = solved
        self.written: dict[str, str] = {}  # symbol of each node that has one
        self.symbols: set[str] = set()  # all of them

    def fault(self, step: ParsedStep) -> str | None:
        """What is wrong with a line, or None."""
        if step.node is None:
            return f"no line of a known form: {step.text!r}"
        node = self.graph.nodes.get(step.node)
        if node is None:
            return f"{step.node} is no quantity of the problem"
        if step.symbol is not None and (reason := self._symbol_fault(step.node, step.symbol)):
            return reason
        kind = step.kind
        if kind is not _SOLVE:
            if kind is StepKind.OUTLINE:
                return self._outline_fault(step)
            if kind is StepKind.VERIFY:
                return self._verification_fault(step, node)
        if step.node in self.solved:
            return f"{step.node} is already solved"
        missing = self.graph.missing_parents(step.node, self.solved)
        if kind is _ATTEMPT:
            return _attempt_fault(step, missing)
        if missing:
            return f"solves {step.node} before {', '.join(missing)}"
        return self._solution_fault(step, node)

    def _symbol_fault(self, name: str, symbol: str) -> str | None:
        known = self.written.get(name)
        if known is None:
            if symbol in self.symbols:
                return f"{symbol} stands for another quantity already"
            self.written[name] = symbol
            self.symbols.add(symbol)
            return None
        return None if known == symbol else f"{name} has been denoted as {known}, not {symbol}"

    def _outline_fault(self, step: ParsedStep) -> str | None:
        if self.solved:
            return "plans after it has begun"
        if not step.needs:
            return "plans nothing"
        named = {self.graph.question}
        planned: set[str] = set()
        for name, parents in step.needs:
            if name in planned:
                return f"plans {name} twice"
            planned.add(name)
            if name not in named:
                return f"plans {name}, which nothing before it needs"
            if name not in self.graph.nodes or sorted(parents) != sorted(
                set(self.graph.nodes[name].parents)
            ):
                return f"says that {name} needs {', '.join(parents)}"
            named.update(parents)
        lacking = [
            name
            for name in self.graph.needed_order
            if self.graph.nodes[name].parents and name not in planned
        ]
        return f"plans without {', '.join(lacking)}" if lacking else None

    def _verification_fault(self, step: ParsedStep, node: Node) -> str | None:
        if node.name not in self.solved:
            return f"checks {node.name} before it is solved"
        written = self.notation.parse(step.symbols or "")
        if written is None or step.target is None:
            return f"no line of a known form: {step.text!r}"
        names = {symbol: name for name, symbol in self._symbols().items()}
        expression = substitute(written, names)
        if not {*names_in(expression), step.target} <= {node.name, *node.parents}:
            return f"checks {node.name} with {step.symbols}, which says nothing about it"
        if step.target == node.name and expression == flatten(node.formula):
            return f"checks {node.name} with the equation that gave it"
        if not _follows(expression, step.target, node, self.solved):
            return f"checks {node.name} with {step.symbols}, which says nothing about it"
        target = self.solved[step.target]
        if reason := self._numbers_fault(step, substitute(expression, self.solved), target):
            return reason
        return (
            None
            if step.value == target
            else f"checks {node.name}: {step.symbols} is {target}, not {step.value}"
        )

    def _solution_fault(self, step: ParsedStep, node: Node) -> str | None:
        formula = node.formula
        if node.operator is None:
            if step.symbols or step.numbers:
                return f"{node.name} is given, yet an equation is written for it"
        elif step.symbols is None:
            return f"{node.name} needs an equation"
        elif not self._is(step.symbols, formula, self.written):
            return f"{node.name}: {step.symbols} is not what the problem states"
        elif step.numbers and (
            reason := self._numbers_fault(step, substitute(formula, self.solved), node.value)
        ):
            return reason
        for name, value in step.restated:
            if name not in node.parents or self.solved[name] != value:
                return f"{node.name}: restates {name} as {value}"
        if (
            step.relation is not None
            and step.relation != formula
            and flatten(step.relation) != flatten(formula)
        ):
            return f"{node.name}: restates a relation that the problem does not state"
        if step.mistake is not None and step.mistake == node.value:
            return f"{node.name}: takes back {step.mistake}, which was right"
        if step.value != node.value:
            return f"{node.name} is {node.value}, not {step.value}"
        return None

    def _numbers_fault(self, step: ParsedStep, expected: Expression, value: Value) -> str | None:
        """The first side has to be the equation with its numbers, and every one has to come to the
        same.
        """
        known: set[str] = set()
        for place, text in enumerate(step.numbers):
            if " " not in text and value_of(text.strip("()")) is not None:
                return f"{step.node}: repeats its result, {text}"
            if place == 0:
                if not self._is(text, expected, {}):
                    return f"{step.node}: {text} is not {step.symbols} with its numbers"
                # what we would write next needs no reading
                if len(step.numbers) > 1 and _worth(expected) == value:
                    known = {self.notation.text(side) for side in reductions(expected)}
            elif text not in known and (
                (side := self.notation.parse(text)) is None or _worth(side) != value
            ):
                return f"{step.node}: {text} is not {value}"
        return None

    def _is(self, text: str, expression: Expression, symbols: dict[str, str]) -> bool:
        """Whether a text writes an expression; nearly always it is what we would write, and nothing
        has to be read.
        """
        expected = substitute(expression, symbols) if symbols else expression
        return text == self.notation.text(expected) or self.notation.parse(text) == flatten(
            expected
        )

    def _symbols(self) -> dict[str, str]:
        """Every node by its symbol; those without one by their names."""
        if not self.written:
            return {name: name for name in self.graph.nodes}
        return self.written


def _follows(expression: Expression, target: str, node: Node, values: Mapping[str, Value]) -> bool:
    """Whether "expression is target" is so because of the node's formula, and not so for another
    value of the node.

    Seen on drawn values of the parents: an equation that holds whatever the node is, says nothing
    about it.
    """
    rng = random.Random(0)
    telling = False
    for _ in range(_DRAWS):
        trial = {name: _draw(values[name], rng) for name in node.parents}
        result = _worth(substitute(node.formula, trial))
        if result is None:  # a division by zero, for one
            continue
        if not _holds(expression, target, trial | {node.name: result}):
            return False
        others = (
            [t for t in Truth if t is not result] if isinstance(result, Truth) else [result + 1]
        )
        telling = telling or not all(
            _holds(expression, target, trial | {node.name: other}) for other in others
        )
    return telling


def _draw(like: Value, rng: random.Random) -> Value:
    return rng.choice(list(Truth)) if isinstance(like, Truth) else rng.randint(*_TRIAL_NUMBERS)


def _holds(expression: Expression, target: str, values: Mapping[str, Value]) -> bool:
    return _worth(substitute(expression, values)) == values[target]


def _worth(side: Expression) -> Value | None:
    """What an expression over numbers comes to; None where it comes to nothing, or its numbers
    explode on the way.
    """
    if not isinstance(side, tuple):
        return side if isinstance(side, int | Fraction | Truth) else None
    operands = [worth for operand in side[1:] if (worth := _worth(operand)) is not None]
    if len(operands) < len(side) - 1:
        return None
    try:
        value: Value = compute(side[0], operands)
    except (TypeError, ZeroDivisionError):
        return None
    if (
        isinstance(value, int | Fraction)
        and max(abs(value.numerator), value.denominator) > 10**_MAX_DIGITS
    ):
        return None
    return value


def _attempt_fault(step: ParsedStep, missing: Sequence[str]) -> str | None:
    if not missing:
        return f"turns back from {step.node}, which was not locked"
    if sorted(step.missing) != sorted(missing):
        return f"says that {', '.join(step.missing)} are missing for {step.node}; missing are {', '.join(missing)}"
    return None
