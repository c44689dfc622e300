"""A user's own word problems with graphs that were read out of free text: chains of thought in
plain words.

Quantities are called by their descriptions, in the equations too ("clips sold in May = clips sold
in April / 2 = 24"), so that a trace can be read back and proven without anything but its text and
the graph. In front of an equation stands the user's own sentence for it, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from bi_ray.answers.checker import has_each_tag_once
from bi_ray.config import SetName
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation, Value, names_in, reductions, substitute, value_of
from bi_ray.reasoning.extract import SIGNS, ExtractedRow
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.parse import ParseError
from bi_ray.reasoning.quantities import decimal_text
from bi_ray.reasoning.trace import Piece, Plan, Span, Step, StepKind, another_way, outline
from bi_ray.tasks.base import Problem, in_split

SYSTEM_PROMPT = "Think step by step inside <think> and </think>, then write <answer> The final answer is ... </answer>."
THINK_START, THINK_END = "<think>\n", "\n</think>\n"
ANSWER = "<answer> The final answer is {answer} </answer>"

_NAME = r"[^\W\d_][\w'’-]*(?: \w[\w'’-]*)*"
_NAMES = rf"{_NAME}(?:, {_NAME})*"
_NUMBER = r"-?[0-9]{1,30}(?:\.[0-9]{1,30}|/[1-9][0-9]{0,29})?"
_SIDE = r"[^=?\n]+?"  # of an equation


class PlainWords(Notation):
    """Equations over quantities that are called by several words; decimals where they are exact."""

    def __init__(self) -> None:
        super().__init__(SIGNS)
        number, _, rest = self._tokens.pattern.partition("|(N/A|")
        self._tokens = re.compile(rf"{number}|({_NAME}))") if rest else self._tokens

    def __reduce__(self) -> tuple[type[PlainWords], tuple[Any, ...]]:
        return PlainWords, ()

    @staticmethod
    def leaf(leaf: Any) -> str:
        """Decimals as such; what would be read differently stands in brackets."""
        if isinstance(leaf, Fraction):
            text = decimal_text(leaf)
            return f"({text})" if leaf < 0 or "/" in text else text
        return Notation.leaf(leaf)


NOTATION = PlainWords()

_SAID = r"\b(?:So|The question says)\b"  # what begins the equation of a line
_SOLVE = re.compile(
    rf"(?P<analysis>We know that (?P<restated>{_NAME} = {_NUMBER}(?:, {_NAME} = {_NUMBER})*)\. )?"
    # no more than one place where an equation can begin
    rf"(?P<own>(?:(?!{_SAID})[^\n])*?[.!?] )??"
    rf"(?:The question says (?P<told>{_NAME}) = (?P<given>{_NUMBER})"
    rf"|So (?P<node>{_NAME}) = (?P<symbols>{_SIDE})(?P<numbers>(?: = {_SIDE})*)"
    rf"(?P<mistake> = {_NUMBER}\? No, that is wrong: (?P<mended>{_NAME}))? = (?P<value>{_NUMBER}))\.",
)
_ATTEMPT = re.compile(
    rf"Let's find (?P<node>{_NAME})\. That needs (?P<missing>{_NAMES}), not known yet\. Let's go back\."
)
_VERIFY = re.compile(
    rf"Let's check (?P<node>{_NAME}): (?P<symbols>{_SIDE})(?P<numbers>(?: = {_SIDE})*) = (?P<value>{_NUMBER}), "
    rf"and (?P<target>{_NAME}) = (?P<held>{_NUMBER})\. Right\."
)
_NEED = rf"to find (?P<node>{_NAME}): first (?P<parents>{_NAMES})"
_OUTLINE = re.compile(
    rf"Plan: {re.sub(r'[?]P<[a-z]+>', '', _NEED)}(?:; {re.sub(r'[?]P<[a-z]+>', '', _NEED)})*\."
)
_LINES = {"reflection": _ATTEMPT, "verification": _VERIFY, "planning": _OUTLINE}
_ANSWER_TAG = re.compile(rf"<answer> The final answer is ({_NUMBER}) </answer>")
_RESPONSE = re.compile(rf"\s*<think>.*?</think>\s*{_ANSWER_TAG.pattern}\s*", re.DOTALL)


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
        self._own: dict[str, dict[str, str]] = {}
        for row in rows if own_words else ():
            graph, words = row.graph.to_json(), dict(row.steps)
            # of two rows with one graph, whose names may differ, neither lends its words to the
            # other
            self._own[graph] = words if self._own.get(graph, words) == words else {}

    @staticmethod
    def problem_of(row: ExtractedRow) -> Problem:
        """The problem of a row, whatever set it belongs to."""
        return Problem(f"row-{row.number}", row.question, row.graph)

    def problem(self, split: SetName, index: int) -> Problem:
        """Row ``index`` of those whose graph hash falls in ``split``.

        Raises:
            ValueError: there are not so many.
        """
        rows = [row for row in self.rows if in_split(row.graph.hash(), split)]
        if index >= len(rows):
            raise ValueError(
                f"set {split!r} has {len(rows)} of the {len(self.rows)} rows: ask for fewer problems"
            )
        return self.problem_of(rows[index])

    def parse_question(self, text: str) -> Graph:
        """The graph of the row that asks this question.

        Raises:
            ParseError: no row does.
        """
        if (graph := self._graphs.get(text.strip())) is None:
            raise ParseError(
                "free text: no row with this question has a proven graph; extract it first"
            )
        return graph

    def render(self, plan: Plan, graph: Graph) -> list[Piece]:
        """The whole response: a line per step inside <think>, then the answer."""
        own = self._own.get(graph.to_json(), {}) if self._own else {}
        pieces = [Piece(THINK_START)]
        solved: list[str] = []
        for i, step in enumerate(plan):
            if i:
                pieces.append(Piece("\n"))
            pieces.extend(_RENDER[step.kind](step, graph, solved, own))
            if step.kind is StepKind.SOLVE:
                solved.append(step.node)
        return [*pieces, Piece(THINK_END), Piece(ANSWER.format(answer=_text(graph.answer)))]

    def parse_trace(self, response: str) -> list[ParsedStep]:
        """The lines between <think> and </think>; a line of no known form becomes a step without a
        node.
        """
        start, end = response.find("<think>"), response.find("</think>")
        inside = response[
            start + len("<think>") if start >= 0 else 0 : end if end >= 0 else len(response)
        ]
        return [parse_line(line) for line in inside.splitlines() if line.strip()]

    def behavior_spans(self, response: str) -> list[Span]:
        """What ``render`` marks: whole lines of reflection, verification and planning, and parts of
        solving ones.
        """
        spans: list[Span] = []
        for line in re.finditer(r"[^\n]+", response):
            for behavior, pattern in _LINES.items():
                if pattern.fullmatch(line[0]):
                    spans.append(Span(*line.span(), behavior))
            if (match := _SOLVE.fullmatch(line[0])) is None:
                continue
            for group, behavior in (
                ("analysis", "analysis"),
                ("numbers", "subgoal"),
                ("mistake", "correction"),
            ):
                if match[group]:
                    start, end = match.span(group)
                    spans.append(Span(line.start() + start, line.start() + end, behavior))
        return spans

    def parse_answer(self, response: str) -> str | None:
        """The number of the last <answer>, None where there is none or it does not hold a number."""
        match = _ANSWER_TAG.match(response, max(0, response.rfind("<answer>")))
        value = value_of(match[1]) if match else None
        return None if value is None else str(value)

    def format_is_right(self, response: str) -> bool:
        """Whether the response is exactly one <think> part and one <answer> part."""
        return has_each_tag_once(response) and _RESPONSE.fullmatch(response) is not None


def _text(value: Value) -> str:
    assert isinstance(value, int | Fraction)  # extracted graphs hold numbers only
    return decimal_text(value)


def _render_solution(
    step: Step, graph: Graph, solved: list[str], own: Mapping[str, str]
) -> Iterator[Piece]:
    node = graph.nodes[step.node]
    if step.analysis and node.parents:
        known = [
            f"{name} = {_text(graph.nodes[name].value)}" for name in dict.fromkeys(node.parents)
        ]
        yield Piece(f"We know that {', '.join(known)}. ", "analysis")
    if sentence := _sentence(own.get(node.name, "")):
        yield Piece(f"{sentence} ")
    if node.operator is None:
        yield Piece(f"The question says {node.name} = {_text(node.value)}.")
        return
    yield Piece(f"So {node.name} = {NOTATION.text(node.formula)}")
    if step.subgoal and (sides := _sides_of(node, graph)):
        yield Piece("".join(f" = {side}" for side in sides), "subgoal")
    if step.mistake is not None:
        yield Piece(f" = {_text(step.mistake)}? No, that is wrong: {node.name}", "correction")
    yield Piece(f" = {_text(node.value)}.")


def _sides_of(node: Node, graph: Graph) -> list[str]:
    """The equation with its numbers and what becomes of it; not again what stands there without
    names already.
    """
    numbers = substitute(node.formula, {name: graph.nodes[name].value for name in node.parents})
    sides = [NOTATION.text(side) for side in reductions(numbers)]
    return [
        side
        for side in sides
        if side != NOTATION.text(node.formula) and value_of(side.strip("()")) is None
    ]


def _sentence(text: str) -> str:
    """A user's words as a sentence that the reader of traces can set apart; "" where it could not."""
    if not text or re.search(rf"<\w|</|{_SAID}|\bWe know that\b", text):
        return ""
    return text if text[-1] in ".!?" else f"{text}."


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
    check = another_way(graph.nodes[step.node])
    if check is None:
        raise ValueError(f"{step.node} cannot be verified: there is no other equation for it")
    symbols = NOTATION.text(check.expression)
    numbers = NOTATION.text(
        substitute(check.expression, {name: node.value for name, node in graph.nodes.items()})
    )
    value = _text(graph.nodes[check.target].value)
    sides = symbols if numbers == symbols else f"{symbols} = {numbers}"
    yield Piece(
        f"Let's check {step.node}: {sides} = {value}, and {check.target} = {value}. Right.",
        "verification",
    )


def _render_outline(
    step: Step, graph: Graph, solved: list[str], own: Mapping[str, str]
) -> Iterator[Piece]:
    needs = [
        f"to find {name}: first {', '.join(dict.fromkeys(parents))}"
        for name, parents in outline(graph)
    ]
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
    if (match := _VERIFY.fullmatch(line)) and match["value"] == match["held"]:
        return ParsedStep(
            text=line,
            node=match["node"],
            kind=StepKind.VERIFY,
            value=value_of(match["value"]),
            symbols=match["symbols"],
            numbers=tuple(match["numbers"].split(" = ")[1:]),
            target=match["target"],
        )
    if _OUTLINE.fullmatch(line):
        pairs = [
            (need["node"], tuple(need["parents"].split(", "))) for need in re.finditer(_NEED, line)
        ]
        return ParsedStep(text=line, node=pairs[0][0], kind=StepKind.OUTLINE, needs=tuple(pairs))
    if match := _SOLVE.fullmatch(line):
        return _parse_solution(line, match)
    return ParsedStep(text=line)


def _parse_solution(line: str, match: re.Match[str]) -> ParsedStep:
    pairs = [known.split(" = ") for known in (match["restated"] or "").split(", ") if known]
    restated = tuple((name, value) for name, text in pairs if (value := value_of(text)) is not None)
    if match["told"]:
        return ParsedStep(
            text=line, node=match["told"], value=value_of(match["given"]), restated=restated
        )
    symbols, numbers = match["symbols"], match["numbers"].split(" = ")[1:]
    expressions = [NOTATION.parse(side) for side in (symbols, *numbers)]
    if (
        any(side is None for side in expressions)
        or (match["mended"] or match["node"]) != match["node"]
    ):
        return ParsedStep(text=line)
    subgoal = bool(numbers)
    if subgoal and not names_in(expressions[0]):  # type: ignore[arg-type]  # None was refused above
        numbers = [symbols, *numbers]  # it is its own equation with numbers
    mistake = match["mistake"]
    return ParsedStep(
        text=line,
        node=match["node"],
        value=value_of(match["value"]),
        symbols=symbols,
        numbers=tuple(numbers),
        subgoal=subgoal,
        restated=restated,
        mistake=value_of(mistake[len(" = ") :].partition("?")[0]) if mistake else None,
    )
