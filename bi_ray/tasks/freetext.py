"""A user's own word problems, with graphs that were read out of free text.

Quantities are called by their descriptions, in equations too ("clips sold in May = clips sold in
April / 2 = 24"), so that a trace can be read back and proven from its text and the graph alone. An
equation is preceded by the user's own sentence for it, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from bi_ray.answers.extraction import has_each_tag_once
from bi_ray.config.base import SetName
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation, Value, names_in, reductions, substitute, value_of
from bi_ray.reasoning.extract import SIGNS, ExtractedRow
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.parse import ParseError
from bi_ray.reasoning.trace import (
    Piece,
    Plan,
    Span,
    Step,
    StepKind,
    outline,
    verification_of,
)
from bi_ray.reasoning.written_numbers import decimal_text
from bi_ray.tasks.base import Problem, in_split
from bi_ray.tasks.traces import (
    ANSWER,
    SYSTEM_PROMPT,
    THINK_END,
    THINK_START,
    answer_pattern,
    inside_think,
    last_answer,
    read_verification,
    response_pattern,
)

_NAME = r"[^\W\d_][\w'’-]*(?: \w[\w'’-]*)*"
_NAMES = rf"{_NAME}(?:, {_NAME})*"
_NUMBER = r"-?[0-9]{1,30}(?:\.[0-9]{1,30}|/[1-9][0-9]{0,29})?"
_SIDE = r"[^=?\n]+?"  # of an equation


class PlainWords(Notation):
    """Equations over quantities that are called by several words; decimals where they are exact."""

    name_pattern = _NAME

    def __init__(self) -> None:
        super().__init__(SIGNS)

    def __reduce__(self) -> tuple[type[PlainWords], tuple[Any, ...]]:
        return PlainWords, ()

    @staticmethod
    def leaf(leaf: Any) -> str:
        """A name or a value as an operand; decimals as such."""
        if not isinstance(leaf, Fraction):
            return Notation.leaf(leaf)
        text = decimal_text(leaf)
        if leaf < 0 or "/" in text:
            return f"({text})"
        return text


NOTATION = PlainWords()

_SAID = r"\b(?:So|The question says)\b"  # the beginning of a line's equation
_ANALYSIS = rf"We know that (?P<restated>{_NAME} = {_NUMBER}(?:, {_NAME} = {_NUMBER})*)\. "
_GIVEN = rf"The question says (?P<told>{_NAME}) = (?P<given>{_NUMBER})"
_MISTAKE = rf" = {_NUMBER}\? No, that is wrong: (?P<mended>{_NAME})"
_EQUATION = (
    rf"So (?P<node>{_NAME}) = (?P<symbols>{_SIDE})(?P<numbers>(?: = {_SIDE})*)"
    rf"(?P<mistake>{_MISTAKE})? = (?P<value>{_NUMBER})"
)
_SOLVE = re.compile(
    rf"(?P<analysis>{_ANALYSIS})?"
    # no more than one position where an equation can begin
    rf"(?P<own>(?:(?!{_SAID})[^\n])*?[.!?] )??"
    rf"(?:{_GIVEN}|{_EQUATION})\."
)
_ATTEMPT = re.compile(
    rf"Let's find (?P<node>{_NAME})\. That needs (?P<missing>{_NAMES}), not known yet\. "
    r"Let's go back\."
)
_VERIFY = re.compile(
    rf"Let's check (?P<node>{_NAME}): "
    rf"(?P<symbols>{_SIDE})(?P<numbers>(?: = {_SIDE})*) = (?P<value>{_NUMBER}), "
    rf"and (?P<target>{_NAME}) = (?P<held>{_NUMBER})\. Right\."
)
_NEED = re.compile(rf"to find (?P<node>{_NAME}): first (?P<parents>{_NAMES})")
_ANY_NEED = rf"to find {_NAME}: first {_NAMES}"
_OUTLINE = re.compile(rf"Plan: {_ANY_NEED}(?:; {_ANY_NEED})*\.")
_LINES = {
    "reflection": _ATTEMPT,
    "verification": _VERIFY,
    "planning": _OUTLINE,
}
# groups of a solving line that behaviors write
_PARTS = {
    "analysis": "analysis",
    "numbers": "subgoal",
    "mistake": "correction",
}
_ANSWER_TAG = answer_pattern(_NUMBER)
_RESPONSE = response_pattern(_NUMBER)


class FreeTextTask:
    """Problems of extracted rows, and the wording of their traces.

    Args:
        rows: proven rows; none are needed to read traces, or to write them for other graphs.
        own_words: whether a step begins with the user's own sentence, where the row has one.
    """

    kind = "text"
    system_prompt = SYSTEM_PROMPT
    notation: Notation = NOTATION

    def __init__(self, rows: Sequence[ExtractedRow] = (), own_words: bool = True) -> None:
        self.rows = rows
        self._graphs = {row.question: row.graph for row in rows}
        self._own: dict[str, dict[str, str]] = {}  # words of each node, by graph
        if own_words:
            for row in rows:
                self._add_words(row)

    def _add_words(self, row: ExtractedRow) -> None:
        graph, words = row.graph.to_json(), dict(row.steps)
        if self._own.get(graph, words) != words:
            # of two rows with one graph, whose names may differ, neither gets the other's words
            words = {}
        self._own[graph] = words

    @staticmethod
    def problem_of(row: ExtractedRow) -> Problem:
        """The problem of a row, whatever set it belongs to."""
        return Problem(f"row-{row.number}", row.question, row.graph)

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of a set: the rows whose graph hash falls in the set's range.

        Raises:
            ValueError: the set has fewer.
        """
        rows = [row for row in self.rows if in_split(row.graph.hash(), split)]
        if index >= len(rows):
            raise ValueError(
                f"set {split!r} has {len(rows)} of the {len(self.rows)} rows: "
                "ask for fewer problems"
            )
        return self.problem_of(rows[index])

    def parse_question(self, text: str) -> Graph:
        """The graph of the row that asks this question.

        Raises:
            ParseError: no row does.
        """
        graph = self._graphs.get(text.strip())
        if graph is None:
            raise ParseError(
                "free text: no row with this question has a proven graph; extract it first"
            )
        return graph

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response: a line per step inside <think>, then the answer."""
        own = self._own.get(graph.to_json(), {}) if self._own else {}
        pieces = [Piece(THINK_START)]
        solved: list[str] = []
        for number, step in enumerate(plan):
            if number:
                pieces.append(Piece("\n"))
            pieces.extend(_RENDER[step.kind](step, graph, solved, own))
            if step.kind is StepKind.SOLVE:
                solved.append(step.node)
        pieces.append(Piece(THINK_END))
        pieces.append(Piece(ANSWER.format(answer=_text(graph.answer))))
        return pieces

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines between <think> and </think>; one of no known form becomes a step without a
        node.
        """
        lines = inside_think(response).splitlines()
        return list(map(parse_line, filter(str.strip, lines)))

    def behavior_spans(self, response: str) -> list[Span]:
        """The spans that ``render`` marks: whole lines, and parts of solving lines."""
        spans: list[Span] = []
        for line in re.finditer(r"[^\n]+", response):
            spans.extend(_spans_of_line(line))
        return spans

    def parse_answer(self, response: str) -> str | None:
        """The number in the last <answer>; None where there is none."""
        answer = last_answer(response, _ANSWER_TAG)
        value = value_of(answer) if answer else None
        return None if value is None else str(value)

    def format_is_right(self, response: str) -> bool:
        """Whether the response is exactly one <think> part and one <answer> part."""
        return has_each_tag_once(response) and _RESPONSE.fullmatch(response) is not None


def _spans_of_line(line: re.Match[str]) -> Iterator[Span]:
    for behavior, pattern in _LINES.items():
        if pattern.fullmatch(line[0]):
            yield Span(*line.span(), behavior)
    match = _SOLVE.fullmatch(line[0])
    if match is None:
        return
    for group, behavior in _PARTS.items():
        if match[group]:
            start, end = match.span(group)
            yield Span(line.start() + start, line.start() + end, behavior)


def _text(value: Value) -> str:
    assert isinstance(value, int | Fraction)  # extracted graphs hold numbers only
    return decimal_text(value)


def _render_solution(
    step: Step, graph: Graph, solved: list[str], own: Mapping[str, str]
) -> Iterator[Piece]:
    node = graph.nodes[step.node]
    if step.analysis and node.parents:
        known: list[str] = []
        for name in dict.fromkeys(node.parents):
            known.append(f"{name} = {_text(graph.nodes[name].value)}")
        yield Piece(f"We know that {', '.join(known)}. ", "analysis")
    sentence = _sentence(own.get(node.name, ""))
    if sentence:
        yield Piece(f"{sentence} ")
    if node.operator is None:
        yield Piece(f"The question says {node.name} = {_text(node.value)}.")
        return
    yield Piece(f"So {node.name} = {NOTATION.text(node.formula)}")
    if step.subgoal:
        sides = _sides_of(node, graph)
        if sides:
            yield Piece(" = ".join(["", *sides]), "subgoal")
    if step.mistake is not None:
        yield Piece(f" = {_text(step.mistake)}? No, that is wrong: {node.name}", "correction")
    yield Piece(f" = {_text(node.value)}.")


def _sides_of(node: Node, graph: Graph) -> list[str]:
    """The equation with its numbers and its reductions, without what it repeats.

    That is the equation itself, where it has no names, and its value.
    """
    sides: list[str] = []
    for side in reductions(substitute(node.formula, graph.values)):
        text = NOTATION.text(side)
        if text != NOTATION.text(node.formula) and value_of(text.strip("()")) is None:
            sides.append(text)
    return sides


def _sentence(text: str) -> str:
    """A user's words as a sentence, "" where the reader of traces could not tell it apart."""
    if not text or re.search(rf"<\w|</|{_SAID}|\bWe know that\b", text):
        return ""
    if text[-1] in ".!?":
        return text
    return f"{text}."


def _render_attempt(
    step: Step, graph: Graph, solved: list[str], own: Mapping[str, str]
) -> Iterator[Piece]:
    missing = ", ".join(graph.missing_parents(step.node, solved))
    yield Piece(
        f"Let's find {step.node}. That needs {missing}, not known yet. Let's go back.", "reflection"
    )


def _render_verification(
    step: Step, graph: Graph, solved: list[str], own: Mapping[str, str]
) -> Iterator[Piece]:
    check = verification_of(graph.nodes[step.node])
    symbols = NOTATION.text(check.expression)
    numbers = NOTATION.text(substitute(check.expression, graph.values))
    value = _text(graph.values[check.target])
    sides = symbols if numbers == symbols else f"{symbols} = {numbers}"
    yield Piece(
        f"Let's check {step.node}: {sides} = {value}, and {check.target} = {value}. Right.",
        "verification",
    )


def _render_outline(
    step: Step, graph: Graph, solved: list[str], own: Mapping[str, str]
) -> Iterator[Piece]:
    needs: list[str] = []
    for name, parents in outline(graph):
        needs.append(f"to find {name}: first {', '.join(dict.fromkeys(parents))}")
    yield Piece(f"Plan: {'; '.join(needs)}.", "planning")


_RENDER: dict[StepKind, Callable[[Step, Graph, list[str], Mapping[str, str]], Iterator[Piece]]] = {
    StepKind.SOLVE: _render_solution,
    StepKind.ATTEMPT: _render_attempt,
    StepKind.VERIFY: _render_verification,
    StepKind.OUTLINE: _render_outline,
}


def parse_line(line: str) -> ParsedStep:
    """One line of a trace read back; without a node where it has no known form."""
    line = line.strip()
    if match := _ATTEMPT.fullmatch(line):
        missing = tuple(match["missing"].split(", "))
        return ParsedStep(text=line, node=match["node"], kind=StepKind.ATTEMPT, missing=missing)
    match = _VERIFY.fullmatch(line)
    if match and match["value"] == match["held"]:
        return read_verification(line, match)
    if _OUTLINE.fullmatch(line):
        needs: list[tuple[str, tuple[str, ...]]] = []
        for need in _NEED.finditer(line):
            needs.append((need["node"], tuple(need["parents"].split(", "))))
        return ParsedStep(text=line, node=needs[0][0], kind=StepKind.OUTLINE, needs=tuple(needs))
    if match := _SOLVE.fullmatch(line):
        return _parse_solution(line, match)
    return ParsedStep(text=line)


def _parse_solution(line: str, match: re.Match[str]) -> ParsedStep:
    restated = tuple(_restated(match["restated"] or ""))
    if match["told"]:
        value = value_of(match["given"])
        return ParsedStep(text=line, node=match["told"], value=value, restated=restated)
    if match["mistake"] and match["mended"] != match["node"]:
        return ParsedStep(text=line)
    symbols, *numbers = (match["symbols"] + match["numbers"]).split(" = ")
    expressions = list(map(NOTATION.parse, (symbols, *numbers)))
    if None in expressions:
        return ParsedStep(text=line)
    subgoal = bool(numbers)
    if subgoal and not names_in(expressions[0]):  # type: ignore[arg-type]  # None was refused above
        numbers = [symbols, *numbers]  # the equation has no names: it is its own first side
    mistake: Value | None = None
    if match["mistake"]:
        mistake = value_of(match["mistake"][len(" = ") :].partition("?")[0])
    return ParsedStep(
        text=line,
        node=match["node"],
        value=value_of(match["value"]),
        symbols=symbols,
        numbers=tuple(numbers),
        subgoal=subgoal,
        restated=restated,
        mistake=mistake,
    )


def _restated(text: str) -> Iterator[tuple[str, Value]]:
    """The pairs of "a = 1, b = 2"."""
    for pair in filter(None, text.split(", ")):
        name, number = pair.split(" = ")
        value = value_of(number)
        if value is not None:
            yield name, value
