"""The lines of PromptBench's chains of thought, written from steps and read back.

Their wording follows section 3 of arXiv:2505.18917.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence, Set

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Value, reductions, substitute, value_of
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import (
    LINE_BEHAVIORS,
    Piece,
    Span,
    Step,
    StepKind,
    outline,
    verification_of,
)
from bi_ray.tasks.promptbench.wording import INTEGER, NOTATION, TRUTH
from bi_ray.tasks.traces import read_verification

_VALUE = rf"(?:{INTEGER}|{TRUTH})"
_SIDE = r"[^=,\n]+"  # of an equation
_EQUATION = (
    rf"= (?P<sides>{_SIDE}(?: = {_SIDE})*) = (?P<value>{_VALUE})"
    rf"(?:, wait, that is wrong, (?P<mended>\w+) = (?P<right>{_VALUE}))?"
)
_SOLUTION = (
    r"(?:since (?P<restated>[^=\n]+?), )?"
    rf"(?P<named>\w+) (?:is (?P<given>{_VALUE})|{_EQUATION})"
)
_ATTEMPT = (
    r"(?P<missing>\w+(?: and \w+)*) (?:is|are) not known yet, "
    r"wait, (?P<again>\w+) seems to be not solvable yet, let's get back"
)
_SOLVE = re.compile(rf"Let's solve (?P<node>\w+), (?:{_SOLUTION}|{_ATTEMPT})")
_VERIFY = re.compile(
    r"Let's check (?P<node>\w+), "
    rf"(?P<symbols>{_SIDE})(?P<numbers>(?: = {_SIDE})*) = (?P<value>{_VALUE}), "
    rf"(?P<target>\w+) is (?P<held>{_VALUE}), right"
)
_OUTLINE = re.compile(r"Plan: (?P<needs>\w+ needs [^=\n]+)")
_OPERAND = r"(?:[a-z]+|[0-9]{1,30}|\(-[0-9]{1,30}\)|True|False|N/A)"
_PLAIN_SIDE = rf"(?:{_OPERAND} (?:[-+*]|AND|OR) {_OPERAND}|{_OPERAND}\^2)"
# most equations, whose sides need no parsing
_PLAIN = re.compile(rf"{_PLAIN_SIDE}(?: = {_PLAIN_SIDE})*")
_RESTATED = re.compile(rf"(\w+) is ({_VALUE})")
_FORMS = {
    "Let's solve ": (_SOLVE, ""),
    "Let's check ": (_VERIFY, "verification"),
    "Plan: ": (_OUTLINE, "planning"),
}
# a line is read from its beginning to the next one, so that no text is read repeatedly
_BEGIN = re.compile("|".join(_FORMS))
_SOLVES = StepKind.SOLVE


def write_line(step: Step, graph: Graph, solved: Set[str], before: str, pieces: list[Piece]) -> str:
    """Append the pieces of a step's line.

    Args:
        step: what the line is about.
        graph: the problem.
        solved: the nodes of the solving lines so far.
        before: plain text that comes before the line and is not in ``pieces`` yet, since few long
            pieces are faster to join.
        pieces: gets the pieces.

    Returns:
        The plain text at the line's end, which is not in ``pieces`` yet.
    """
    if step.kind is _SOLVES:
        return _write_solution(step, graph, before, pieces)
    if step.kind is StepKind.ATTEMPT:
        text = _attempt(step.node, graph.missing_parents(step.node, solved))
    elif step.kind is StepKind.VERIFY:
        text = _verification(step.node, graph)
    else:
        text = _outline(graph)
    pieces += (Piece(before), Piece(text, LINE_BEHAVIORS[step.kind]))
    return ""


def _write_solution(step: Step, graph: Graph, before: str, pieces: list[Piece]) -> str:
    node = graph.nodes[step.node]
    name, value = node.name, node.value
    if node.operator is None:
        return f"{before}Let's solve {name}, {name} is {value}"
    text = f"{before}Let's solve {name}, "
    if step.analysis:
        known: list[str] = []
        for parent in dict.fromkeys(node.parents):
            known.append(f"{parent} is {graph.values[parent]}")
        pieces += (Piece(text), Piece(f"since {' and '.join(known)}, ", "analysis"))
        text = ""
    formula = node.formula
    text = f"{text}{name} = {NOTATION.text(formula)}"
    if step.subgoal:
        numbers = substitute(formula, graph.values)
        sides = ["", *map(NOTATION.text, reductions(numbers))]
        pieces += (Piece(text), Piece(" = ".join(sides), "subgoal"))
        text = ""
    if step.mistake is not None:
        mistake = f" = {step.mistake}, wait, that is wrong, {name}"
        pieces += (Piece(text), Piece(mistake, "correction"))
        text = ""
    return f"{text} = {value}"


def _attempt(name: str, missing: Sequence[str]) -> str:
    verb = "are" if len(missing) > 1 else "is"
    return (
        f"Let's solve {name}, {' and '.join(missing)} {verb} not known yet, "
        f"wait, {name} seems to be not solvable yet, let's get back"
    )


def _verification(name: str, graph: Graph) -> str:
    check = verification_of(graph.nodes[name])
    symbols = NOTATION.text(check.expression)
    numbers = NOTATION.text(substitute(check.expression, graph.values))
    value = graph.values[check.target]
    return f"Let's check {name}, {symbols} = {numbers} = {value}, {check.target} is {value}, right"


def _outline(graph: Graph) -> str:
    needs: list[str] = []
    for name, parents in outline(graph):
        needs.append(f"{name} needs {' and '.join(dict.fromkeys(parents))}")
    return f"Plan: {', '.join(needs)}"


def parse_line(line: str) -> ParsedStep:
    """One line of a trace read back; without a node where it has no known form."""
    line = line.strip()
    match = _SOLVE.fullmatch(line)
    if match is None:
        return _parse_other(line)
    if match["missing"]:
        return _parse_attempt(line, match)
    return _parse_solution(line, match)


def _parse_other(line: str) -> ParsedStep:
    match = _VERIFY.fullmatch(line)
    if match and match["value"] == match["held"]:
        return read_verification(line, match)
    match = _OUTLINE.fullmatch(line)
    if match is None:
        return ParsedStep(text=line)
    needs: list[tuple[str, tuple[str, ...]]] = []
    for need in match["needs"].split(", "):
        name, *parents = need.split(" needs ")
        if len(parents) != 1:
            return ParsedStep(text=line)
        needs.append((name, tuple(parents[0].split(" and "))))
    return ParsedStep(text=line, node=needs[0][0], kind=StepKind.OUTLINE, needs=tuple(needs))


def _parse_attempt(line: str, match: re.Match[str]) -> ParsedStep:
    if match["again"] != match["node"]:
        return ParsedStep(text=line)
    return ParsedStep(
        text=line,
        node=match["node"],
        kind=StepKind.ATTEMPT,
        missing=tuple(match["missing"].split(" and ")),
    )


def _parse_solution(line: str, match: re.Match[str]) -> ParsedStep:
    node, restated, named, given, equation, value, mended, right, _, _ = match.groups()
    if named != node or (mended or node) != node:
        return ParsedStep(text=line)
    facts = _facts(restated) if restated else ()
    if facts is None:
        return ParsedStep(text=line)
    if not equation:
        return ParsedStep(text=line, node=node, value=_value(given), restated=facts)
    sides = equation.split(" = ")
    if not _PLAIN.fullmatch(equation) and None in map(NOTATION.parse, sides):
        return ParsedStep(text=line)
    mistake: Value | None = None
    if right:
        mistake, value = _value(value), right
    return ParsedStep(
        text=line,
        node=node,
        value=_value(value),
        symbols=sides[0],
        numbers=tuple(sides[1:]),
        subgoal=len(sides) > 1,
        restated=facts,
        mistake=mistake,
    )


def _facts(text: str) -> tuple[tuple[str, Value], ...] | None:
    """The pairs of "aaa is 1 and aab is 2"; None where the text is anything else."""
    facts: list[tuple[str, Value]] = []
    for part in text.split(" and "):
        fact = _RESTATED.fullmatch(part)
        if fact is None:
            return None
        facts.append((fact[1], _value(fact[2])))
    return tuple(facts)


def _value(text: str) -> Value:
    value = value_of(text)
    assert value is not None  # the line's form lets nothing else through
    return value


def spans_in(text: str) -> list[Span]:
    """The behaviors in a text, whoever wrote it: whole lines, and parts of solving lines."""
    spans: list[Span] = []
    starts = [match.start() for match in _BEGIN.finditer(text)]
    for start, end in itertools.pairwise([*starts, len(text)]):
        pattern, behavior = _form_at(text, start)
        match = pattern.match(text, start, end)
        if match is None:
            continue
        if behavior:
            spans.append(Span(*match.span(), behavior))
        else:
            spans.extend(_spans_of_solution(match))
    return spans


def _form_at(text: str, start: int) -> tuple[re.Pattern[str], str]:
    """The pattern of a line by its beginning, and the behavior that writes the whole line."""
    for beginning, form in _FORMS.items():
        if text.startswith(beginning, start):
            return form
    raise AssertionError(f"no line begins at {start}")


def _spans_of_solution(match: re.Match[str]) -> Iterator[Span]:
    if match["missing"]:
        yield Span(*match.span(), "reflection")
    if match["restated"]:
        start, end = match.span("restated")
        yield Span(start - len("since "), end + len(", "), "analysis")
    if match["sides"]:
        start, end = match.span("sides")
        numbers = start + len(match["sides"].partition(" = ")[0])
        if numbers < end:
            yield Span(numbers, end, "subgoal")
    if match["mended"]:
        yield Span(match.end("sides"), match.end("mended"), "correction")
