"""The lines of PromptBench's chains of thought, written from steps and read back (section 3 of
arXiv:2505.18917).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence, Set

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Value, reductions, substitute, value_of
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Piece, Span, Step, StepKind, another_way, outline
from bi_ray.tasks.promptbench.wording import INTEGER, NOTATION, TRUTH

_VALUE = rf"(?:{INTEGER}|{TRUTH})"
_SIDE = r"[^=,\n]+"  # of an equation
_SOLVE = re.compile(
    r"Let's solve (?P<node>\w+), (?:"
    rf"(?:since (?P<restated>[^=\n]+?), )?(?P<named>\w+) (?:is (?P<given>{_VALUE})|"
    rf"= (?P<sides>{_SIDE}(?: = {_SIDE})*) = (?P<value>{_VALUE})"
    rf"(?:, wait, that is wrong, (?P<mended>\w+) = (?P<right>{_VALUE}))?)|"
    r"(?P<missing>\w+(?: and \w+)*) (?:is|are) not known yet, wait, (?P<again>\w+) seems to be not solvable yet, "
    r"let's get back)"
)
_VERIFY = re.compile(
    rf"Let's check (?P<node>\w+), (?P<symbols>{_SIDE})(?P<numbers>(?: = {_SIDE})*) = (?P<value>{_VALUE}), "
    rf"(?P<target>\w+) is (?P<held>{_VALUE}), right"
)
_OUTLINE = re.compile(r"Plan: (?P<needs>\w+ needs [^=\n]+)")
_OPERAND = r"(?:[a-z]+|[0-9]{1,30}|\(-[0-9]{1,30}\)|True|False|N/A)"
_PLAIN_SIDE = rf"(?:{_OPERAND} (?:[-+*]|AND|OR) {_OPERAND}|{_OPERAND}\^2)"
# most equations: parsing finds no fault in their sides
_PLAIN = re.compile(rf"{_PLAIN_SIDE}(?: = {_PLAIN_SIDE})*")
_RESTATED = re.compile(rf"(\w+) is ({_VALUE})")
_FORMS = {
    "Let's solve ": (_SOLVE, ""),
    "Let's check ": (_VERIFY, "verification"),
    "Plan: ": (_OUTLINE, "planning"),
}
# each is read from there to the next one, so that no text is read often
_BEGIN = re.compile("|".join(_FORMS))
_SOLVES = StepKind.SOLVE


def write_line(step: Step, graph: Graph, solved: Set[str], before: str, pieces: list[Piece]) -> str:
    """Append the pieces of a step's line.

    Args:
        step: what the line is about.
        graph: the problem.
        solved: the nodes of the solving lines so far.
        before: plain text that comes before the line and is not in ``pieces`` yet. Few long pieces
            are soon joined.
        pieces: gets more.

    Returns:
        The plain text at the line's end; it is not in ``pieces``.
    """
    if step.kind is _SOLVES:
        return _write_solution(step, graph, before, pieces)
    if step.kind is StepKind.ATTEMPT:
        whole = Piece(_attempt(step.node, graph.missing_parents(step.node, solved)), "reflection")
    elif step.kind is StepKind.VERIFY:
        whole = Piece(_verification(step.node, graph), "verification")
    else:
        needs = [
            f"{name} needs {' and '.join(dict.fromkeys(parents))}"
            for name, parents in outline(graph)
        ]
        whole = Piece(f"Plan: {', '.join(needs)}", "planning")
    pieces += (Piece(before), whole)
    return ""


def _write_solution(step: Step, graph: Graph, before: str, pieces: list[Piece]) -> str:
    node = graph.nodes[step.node]
    name, value = node.name, node.value
    if node.operator is None:
        return f"{before}Let's solve {name}, {name} is {value}"
    text = f"{before}Let's solve {name}, "
    if step.analysis:
        known = " and ".join(
            [f"{parent} is {graph.values[parent]}" for parent in dict.fromkeys(node.parents)]
        )
        pieces += (Piece(text), Piece(f"since {known}, ", "analysis"))
        text = ""
    formula = node.formula
    text = f"{text}{name} = {NOTATION.text(formula)}"
    if step.subgoal:
        numbers = substitute(formula, graph.values)
        sides = "".join([f" = {NOTATION.text(side)}" for side in reductions(numbers)])
        pieces += (Piece(text), Piece(sides, "subgoal"))
        text = ""
    if step.mistake is not None:
        pieces += (
            Piece(text),
            Piece(f" = {step.mistake}, wait, that is wrong, {name}", "correction"),
        )
        text = ""
    return f"{text} = {value}"


def _attempt(name: str, missing: Sequence[str]) -> str:
    verb = "are" if len(missing) > 1 else "is"
    return (
        f"Let's solve {name}, {' and '.join(missing)} {verb} not known yet, "
        f"wait, {name} seems to be not solvable yet, let's get back"
    )


def _verification(name: str, graph: Graph) -> str:
    node = graph.nodes[name]
    check = another_way(node)
    if check is None:
        raise ValueError(f"{name} cannot be verified: there is no other equation for it")
    numbers = NOTATION.text(substitute(check.expression, graph.values))
    value = graph.values[check.target]
    return f"Let's check {name}, {NOTATION.text(check.expression)} = {numbers} = {value}, {check.target} is {value}, right"


def parse_line(line: str) -> ParsedStep:
    """One line of a trace read back; without a node where it has no known form."""
    line = line.strip()
    if match := _SOLVE.fullmatch(line):
        return _parse_attempt(line, match) if match["missing"] else _parse_solution(line, match)
    if (match := _VERIFY.fullmatch(line)) and match["value"] == match["held"]:
        return ParsedStep(
            text=line,
            node=match["node"],
            kind=StepKind.VERIFY,
            value=_value(match["value"]),
            symbols=match["symbols"],
            numbers=_sides(match["numbers"]),
            target=match["target"],
        )
    if match := _OUTLINE.fullmatch(line):
        pairs = [need.split(" needs ") for need in match["needs"].split(", ")]
        if all(len(pair) == 2 for pair in pairs):
            needs = tuple((name, tuple(parents.split(" and "))) for name, parents in pairs)
            return ParsedStep(text=line, node=needs[0][0], kind=StepKind.OUTLINE, needs=needs)
    return ParsedStep(text=line)


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
    facts: tuple[tuple[str, Value], ...] = ()
    if restated:
        parts = [_RESTATED.fullmatch(part) for part in restated.split(" and ")]
        if not all(parts):
            return ParsedStep(text=line)
        facts = tuple((part[1], _value(part[2])) for part in parts if part)
    if not equation:
        return ParsedStep(text=line, node=node, value=_value(given), restated=facts)
    symbols, *numbers = equation.split(" = ")
    if not _PLAIN.fullmatch(equation) and any(
        NOTATION.parse(side) is None for side in (symbols, *numbers)
    ):
        return ParsedStep(text=line)
    return ParsedStep(
        text=line,
        node=node,
        value=_value(right or value),
        symbols=symbols,
        numbers=tuple(numbers),
        subgoal=bool(numbers),
        restated=facts,
        mistake=_value(value) if right else None,
    )


def _value(text: str) -> Value:
    value = value_of(text)
    assert value is not None  # the line's form lets nothing else through
    return value


def _sides(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(" = ")[1:]) if text else ()


def spans_in(text: str) -> list[Span]:
    """What in a text, whoever wrote it, is a behavior: whole lines, or parts of those that solve
    something.
    """
    spans: list[Span] = []
    starts = [match.start() for match in _BEGIN.finditer(text)]
    for start, end in itertools.pairwise([*starts, len(text)]):
        pattern, behavior = next(_FORMS[begin] for begin in _FORMS if text.startswith(begin, start))
        match = pattern.match(text, start, end)
        if match and behavior:
            spans.append(Span(*match.span(), behavior))
        elif match:
            spans.extend(_spans_of_solution(match))
    return spans


def _spans_of_solution(match: re.Match[str]) -> Iterator[Span]:
    if match["missing"]:
        yield Span(*match.span(), "reflection")
    if match["restated"]:
        yield Span(
            match.start("restated") - len("since "), match.end("restated") + len(", "), "analysis"
        )
    if match["sides"]:
        numbers = match.start("sides") + len(match["sides"].partition(" = ")[0])
        if numbers < match.end("sides"):
            yield Span(numbers, match.end("sides"), "subgoal")
    if match["mended"]:
        yield Span(match.end("sides"), match.end("mended"), "correction")
