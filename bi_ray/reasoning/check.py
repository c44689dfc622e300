"""The trace checker: recomputes every equality and proves every reflection, in demonstrations and
samples alike.
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
from bi_ray.reasoning.trace import LINE_BEHAVIORS, StepKind, is_filler

# looking up a member of an enumeration is slow
_ATTEMPT, _VERIFY, _OUTLINE = StepKind.ATTEMPT, StepKind.VERIFY, StepKind.OUTLINE
# a verification has to hold for this many random draws of the parents' values; each draw lets a
# wrong one pass less than once in hundreds
_DRAWS = 8
_TRIAL_NUMBERS = (2, 997)
# largest intermediate result of a line, in digits: squares of squares grow without end
_MAX_DIGITS = 100


# not frozen: freezing this many fields would take most of the time of reading a line
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
        subgoal: whether ``numbers`` has more sides than a plain line of this task (subgoal
            computation).
        restated: pairs of a name and its value, restated before use (information analysis).
        relation: the relation itself restated (information analysis), over names.
        missing: for an attempt, the parents named as not known yet.
        mistake: the wrong value that was written first (self-correction).
        target: for a verification, the name whose value its equation has to give.
        needs: for an outline, pairs of a node and its parents.
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
        shown: list[str] = []
        if self.kind in LINE_BEHAVIORS:
            shown.append(LINE_BEHAVIORS[self.kind])
        if self.restated or self.relation is not None:
            shown.append("analysis")
        if self.subgoal:
            shown.append("subgoal")
        if self.mistake is not None:
            shown.append("correction")
        return tuple(shown)


@dataclass(slots=True)
class TraceReport:
    """Verdict on a chain of thought.

    Attributes:
        valid: whether every line is right and the question is solved.
        steps: number of lines.
        first_bad_step: position of the first bad line; the number of lines where one is missing.
        reason: what is wrong with it, in words.
        right_reflections: attempts before the first bad line on a node that was locked, with
            exactly the parents that were missing.
        progress: share of the needed nodes that the lines before the first bad one solve. A policy
            could raise a share of right lines by writing lines that lead nowhere, or by stopping
            early; not this one.
        solved: values of the nodes that the lines before the first bad one solved.
    """

    valid: bool
    steps: int
    first_bad_step: int | None = None
    reason: str | None = None
    right_reflections: int = 0
    progress: float = 0.0
    solved: dict[str, Value] = field(default_factory=dict)


class _Fault(Exception):
    """A line that is wrong; the message says what is wrong with it."""


def check_trace(steps: Sequence[ParsedStep], graph: Graph, notation: Notation) -> TraceReport:
    """Check every line against the graph and against what the lines before it solved.

    Args:
        steps: the lines, in order.
        graph: the problem.
        notation: how the task writes equations.
    """
    report = TraceReport(valid=True, steps=len(steps))
    checker = _Checker(graph, notation, report)
    position = 0
    try:
        for step in steps:
            checker.check(step)
            position += 1
        checker.check_end()
    except _Fault as fault:
        report.valid = False
        report.first_bad_step = position
        report.reason = str(fault)
    report.progress = len(graph.needed & report.solved.keys()) / len(graph.needed)
    return report


class _Checker:
    """Checks line after line; every check raises ``_Fault`` where the line is wrong.

    Args:
        graph: the problem.
        notation: how equations are written.
        report: gets what right lines solve, and their number of reflections.
    """

    def __init__(self, graph: Graph, notation: Notation, report: TraceReport) -> None:
        self.graph = graph
        self.notation = notation
        self.report = report
        self.solved = report.solved
        self.written: dict[str, str] = {}  # symbol of each node that has one
        self.symbols: set[str] = set()  # all of them

    def check(self, step: ParsedStep) -> None:
        """Check one line."""
        if step.node is None:
            if is_filler(step.text):
                return
            raise _Fault(f"no line of a known form: {step.text!r}")
        node = self.graph.nodes.get(step.node)
        if node is None:
            raise _Fault(f"{step.node} is no quantity of the problem")
        if step.symbol is not None:
            self._check_symbol(step.node, step.symbol)
        kind = step.kind
        if kind is _OUTLINE:
            return self._check_outline(step)
        if kind is _VERIFY:
            return self._check_verification(step, node)
        if step.node in self.solved:
            raise _Fault(f"{step.node} is already solved")
        missing = self.graph.missing_parents(step.node, self.solved)
        if kind is _ATTEMPT:
            return self._check_attempt(step, missing)
        if missing:
            raise _Fault(f"solves {step.node} before {', '.join(missing)}")
        self._check_solution(step, node)
        self.solved[node.name] = node.value

    def check_end(self) -> None:
        """Check that the question is solved."""
        if self.graph.question not in self.solved:
            raise _Fault(f"ends before {self.graph.question} is solved")

    def _check_symbol(self, name: str, symbol: str) -> None:
        known = self.written.get(name)
        if known == symbol:
            return
        if known is not None:
            raise _Fault(f"{name} has been denoted as {known}, not {symbol}")
        if symbol in self.symbols:
            raise _Fault(f"{symbol} stands for another quantity already")
        self.written[name] = symbol
        self.symbols.add(symbol)

    def _check_outline(self, step: ParsedStep) -> None:
        if self.solved:
            raise _Fault("plans after it has begun")
        if not step.needs:
            raise _Fault("plans nothing")
        named = {self.graph.question}
        planned: set[str] = set()
        for name, parents in step.needs:
            if name in planned:
                raise _Fault(f"plans {name} twice")
            planned.add(name)
            if name not in named:
                raise _Fault(f"plans {name}, which nothing before it needs")
            node = self.graph.nodes.get(name)
            if node is None or sorted(parents) != sorted(set(node.parents)):
                raise _Fault(f"says that {name} needs {', '.join(parents)}")
            named.update(parents)
        lacking: list[str] = []
        for name in self.graph.needed_order:
            if self.graph.nodes[name].parents and name not in planned:
                lacking.append(name)
        if lacking:
            raise _Fault(f"plans without {', '.join(lacking)}")

    def _check_verification(self, step: ParsedStep, node: Node) -> None:
        if node.name not in self.solved:
            raise _Fault(f"checks {node.name} before it is solved")
        written = self.notation.parse(step.symbols or "")
        if written is None or step.target is None:
            raise _Fault(f"no line of a known form: {step.text!r}")
        names = {symbol: name for name, symbol in self._symbols().items()}
        expression = substitute(written, names)
        if not {*names_in(expression), step.target} <= {node.name, *node.parents}:
            raise _Fault(f"checks {node.name} with {step.symbols}, which says nothing about it")
        if step.target == node.name and expression == flatten(node.formula):
            raise _Fault(f"checks {node.name} with the equation that gave it")
        if not _follows(expression, step.target, node, self.solved):
            raise _Fault(f"checks {node.name} with {step.symbols}, which says nothing about it")
        target = self.solved[step.target]
        self._check_numbers(step, substitute(expression, self.solved), target)
        if step.value != target:
            raise _Fault(f"checks {node.name}: {step.symbols} is {target}, not {step.value}")

    def _check_attempt(self, step: ParsedStep, missing: Sequence[str]) -> None:
        if not missing:
            raise _Fault(f"turns back from {step.node}, which was not locked")
        if sorted(step.missing) != sorted(missing):
            raise _Fault(
                f"says that {', '.join(step.missing)} are missing for {step.node}; "
                f"missing are {', '.join(missing)}"
            )
        self.report.right_reflections += 1

    def _check_solution(self, step: ParsedStep, node: Node) -> None:
        if node.operator is not None:
            self._check_equation(step, node)
        elif step.symbols or step.numbers:
            raise _Fault(f"{node.name} is given, yet an equation is written for it")
        for name, value in step.restated:
            if name not in node.parents or self.solved[name] != value:
                raise _Fault(f"{node.name}: restates {name} as {value}")
        if step.relation is not None and flatten(step.relation) != flatten(node.formula):
            raise _Fault(f"{node.name}: restates a relation that the problem does not state")
        if step.mistake == node.value:
            raise _Fault(f"{node.name}: takes back {step.mistake}, which was right")
        if step.value != node.value:
            raise _Fault(f"{node.name} is {node.value}, not {step.value}")

    def _check_equation(self, step: ParsedStep, node: Node) -> None:
        if step.symbols is None:
            raise _Fault(f"{node.name} needs an equation")
        expected = node.formula
        if self.written:
            expected = substitute(expected, self.written)
        if not self._is(step.symbols, expected):
            raise _Fault(f"{node.name}: {step.symbols} is not what the problem states")
        if step.numbers:
            self._check_numbers(step, substitute(node.formula, self.solved), node.value)

    def _check_numbers(self, step: ParsedStep, expected: Expression, value: Value) -> None:
        """The first side has to be ``expected``, and every side has to come to ``value``."""
        if not step.numbers:
            return
        first, *later = step.numbers
        _check_repetition(step, first)
        if not self._is(first, expected):
            raise _Fault(f"{step.node}: {first} is not {step.symbols} with its numbers")
        if not later:
            return
        known: set[str] = set()  # sides that we would write next, which need no reading
        if _worth(expected) == value:
            known.update(map(self.notation.text, reductions(expected)))
        for text in later:
            _check_repetition(step, text)
            if text in known:
                continue
            side = self.notation.parse(text)
            if side is None or _worth(side) != value:
                raise _Fault(f"{step.node}: {text} is not {value}")

    def _is(self, text: str, expected: Expression) -> bool:
        """Whether a text writes an expression.

        Nearly always it is what we would write, and nothing has to be parsed.
        """
        if text == self.notation.text(expected):
            return True
        return self.notation.parse(text) == flatten(expected)

    def _symbols(self) -> dict[str, str]:
        """The symbol of every node; where none has one, the names."""
        if self.written:
            return self.written
        names = list(self.graph.nodes)
        return dict(zip(names, names, strict=True))


def _check_repetition(step: ParsedStep, side: str) -> None:
    if " " not in side and value_of(side.strip("()")) is not None:
        raise _Fault(f"{step.node}: repeats its result, {side}")


def _follows(expression: Expression, target: str, node: Node, values: Mapping[str, Value]) -> bool:
    """Whether "expression is target" follows from the node's formula, and from no other value.

    Tried on random values of the parents. An equation that holds whatever the node's value is says
    nothing about it.
    """
    rng = random.Random(0)
    is_telling = False
    for _ in range(_DRAWS):
        trial = {name: _draw(values[name], rng) for name in node.parents}
        result = _worth(substitute(node.formula, trial))
        if result is None:  # a division by zero, for one
            continue
        if not _holds(expression, target, trial | {node.name: result}):
            return False
        for other in _other_values(result):
            if not _holds(expression, target, trial | {node.name: other}):
                is_telling = True
    return is_telling


def _draw(like: Value, rng: random.Random) -> Value:
    if isinstance(like, Truth):
        return rng.choice(list(Truth))
    return rng.randint(*_TRIAL_NUMBERS)


def _other_values(value: Value) -> list[Value]:
    """Wrong values to try in the place of a right one."""
    if isinstance(value, Truth):
        return [truth for truth in Truth if truth is not value]
    return [value + 1]


def _holds(expression: Expression, target: str, values: Mapping[str, Value]) -> bool:
    return _worth(substitute(expression, values)) == values[target]


def _worth(side: Expression) -> Value | None:
    """The value of an expression over numbers.

    None where it has none, or where its intermediate results explode.
    """
    if not isinstance(side, tuple):
        return side if isinstance(side, int | Fraction | Truth) else None
    operands: list[Value] = []
    for operand in side[1:]:
        worth = _worth(operand)
        if worth is None:
            return None
        operands.append(worth)
    try:
        value: Value = compute(side[0], operands)
    except (TypeError, ZeroDivisionError):
        return None
    if isinstance(value, Truth):
        return value
    if max(abs(value.numerator), value.denominator) > 10**_MAX_DIGITS:
        return None
    return value
