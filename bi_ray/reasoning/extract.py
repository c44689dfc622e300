"""From free text to a graph: what a language model reads out of a worked answer, and the proof that
it is right.

The model splits a chain of thought into steps of one conclusion each and says how each is computed
from earlier ones (the extraction of section 3 of arXiv:2505.18917). Nothing of what it says is
believed: a row is used only when its graph is acyclic, every value is recomputed in exact
arithmetic, every number in it comes from the question or is a known constant, and the answer
agrees. ``extract_client`` makes the calls; here are the schema, the prompt, the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bi_ray.reasoning.expression import (
    Expression,
    Notation,
    Operator,
    Truth,
    evaluate,
    names_in,
    substitute,
    tidy,
    value_of,
)
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.quantities import decimal_text, numbers_in, plain_expression, value_in

MAX_NODES = 64
_MAX_EXPRESSION = 300  # characters
_MAX_BRACKETS = 20  # of one expression: the reader of expressions calls itself once per bracket
_MAX_DIGITS = 15  # of a value: beyond it a chain of thought is not about the question any more
_MAX_PHRASE = 100  # characters

SIGNS = {Operator.ADD: "+", Operator.SUBTRACT: "-", Operator.MULTIPLY: "*", Operator.DIVIDE: "/"}
NOTATION = Notation(SIGNS)

# Numbers that a chain of thought may bring along though the question does not state them, each with
# the words of question or chain of thought that call for it. 1 needs none: the whole, or the
# speaker.
CONSTANTS: dict[int, str] = {
    1: r"",
    2: r"half|halv|twice|doubl|averag|pair|couple|both|each way|round.?trip|back and forth|triang",
    3: r"tripl|thrice|trio|yard|feet|foot|triang|averag",
    4: r"quarter|quart\b|quarts\b|gallon|square|rectang|perimeter|season|month|week|average|\blegs?\b",
    5: r"weekday|work ?day|school day|nickel|business day",
    7: r"week|day|daily",
    10: r"dime|decade|millimet|centimet|\bmm\b|\bcm\b",
    12: r"year|annual|month|dozen|inch|foot|feet|hour|o'clock|noon|\b[ap]\.?m\b",
    16: r"ounce|pound|\boz\b|\blbs?\b",
    24: r"day|daily|hour",
    25: r"quarter",
    28: r"februar|month",
    30: r"month|april|june|september|november",
    31: r"month|januar|march|may|july|august|october|december",
    36: r"inch|yard",
    52: r"year|annual|week",
    60: r"hour|minute|second",
    90: r"angle|degree",
    100: r"%|¢|percent|per cent|\bcents?\b|penn(?:y|ies)|dollar|\$|met(?:er|re)|centimet|dime|nickel|quarter|\bcm\b",
    180: r"angle|degree|triang",
    360: r"angle|degree|circle|rotat|\bturn",
    365: r"year|annual|day|daily",
    1000: r"kilo|\bkm\b|\bkg\b|gram|lit(?:er|re)|milli|\bml\b|\bmm\b|\bton|met(?:er|re)",
    1760: r"mile|yard",
    2000: r"\btons?\b|pound",
    3600: r"hour|second",
    5280: r"mile|feet|foot",
}

PROMPT = """\
You turn a solved word problem into a graph of quantities. You get a question, its chain of thought and its answer.
Split the chain of thought into steps of one conclusion each. List every quantity: first the numbers that the question
gives, then what is computed, each after all that it is computed from. For each quantity write
- step: the words of the chain of thought that conclude it, copied exactly; "" for a number that the question gives;
- name: a short identifier in lower case, such as clips_may;
- description: what it is, a short phrase in plain words without any number that was computed: clips sold in May;
- parents: the names of the quantities that it is computed from, [] for a number that the question gives;
- expression: how it is computed, from the names of its parents and from numbers, with + - * / and brackets;
- value: its value as a number.
Use a number in an expression only if the question states it, or if everyone knows it (60 minutes in an hour). Write 20%
as 20 / 100. Every other number is a quantity of its own. Do not round, and do not correct the chain of thought.
answer: the name of the quantity that answers the question, in the unit that the answer is written in.

Example. Question: Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How
many clips did Natalia sell altogether in April and May?
Chain of thought: Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether in April and May.
Answer: 72
{"nodes": [
{"step": "", "name": "clips_april", "description": "clips sold in April", "parents": [],
 "expression": "48", "value": "48"},
{"step": "Natalia sold 48/2 = 24 clips in May.", "name": "clips_may", "description": "clips sold in May",
 "parents": ["clips_april"], "expression": "clips_april / 2", "value": "24"},
{"step": "Natalia sold 48+24 = 72 clips altogether in April and May.", "name": "clips_total",
 "description": "clips sold altogether", "parents": ["clips_april", "clips_may"],
 "expression": "clips_april + clips_may", "value": "72"}],
"answer": "clips_total"}"""


class ExtractionFault(ValueError):
    """Why an extraction is not used, in words."""


class ExtractedNode(BaseModel):
    """A quantity as the model lists it."""

    model_config = ConfigDict(extra="forbid")

    step: str
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    description: str
    parents: list[str]
    expression: str
    value: str


class Extraction(BaseModel):
    """What the model has to write; ``SCHEMA`` is its JSON schema."""

    model_config = ConfigDict(extra="forbid")

    nodes: Annotated[list[ExtractedNode], Field(min_length=1, max_length=MAX_NODES)]
    answer: str


SCHEMA: dict[str, Any] = Extraction.model_json_schema()


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of the user's data.

    Attributes:
        number: its place among the rows, from 0.
        question: the problem.
        chain_of_thought: the worked answer.
        answer: the final answer as the user writes it.
    """

    number: int
    question: str
    chain_of_thought: str
    answer: str


class ExtractedStep(NamedTuple):
    """One conclusion: its quantity, and the user's own words for it ("" where there are none that
    state its value).
    """

    node: str
    text: str


@dataclass(frozen=True, slots=True)
class ExtractedRow:
    """A row with a proven graph.

    Attributes:
        number: its place among the rows, from 0.
        question: the problem.
        answer: the final answer as the user writes it; ``graph.answer`` is the number in it.
        graph: its quantities, called by their descriptions ("clips sold in May").
        steps: every quantity in the order of the chain of thought, which is a topological order.
    """

    number: int
    question: str
    answer: str
    graph: Graph
    steps: tuple[ExtractedStep, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not used: its place among the rows, from 0, and why."""

    number: int
    reason: str


def source_row(number: int, row: Mapping[str, str]) -> SourceRow:
    """A row with the keys ``question``, ``chain_of_thought`` and ``answer``.

    Without a chain of thought, as in GSM8K, the answer holds it, and the final answer behind
    "####".

    Raises:
        ExtractionFault: a key is missing or its text is empty.
    """
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ExtractionFault(f"no {key}")
    thought, _, answer = row["answer"].rpartition("####")
    if row.get("chain_of_thought"):
        thought = row["chain_of_thought"]
    if not thought.strip():
        raise ExtractionFault('no chain_of_thought, and no "####" in the answer that would end one')
    if not answer.strip():
        raise ExtractionFault('no answer behind "####"')
    thought = re.sub(r"<<[^<>]*>>", "", thought)  # the calculator's notes of GSM8K
    return SourceRow(number, row["question"].strip(), thought.strip(), answer.strip())


def request_text(row: SourceRow) -> str:
    """What the model is asked about a row."""
    return (
        f"Question: {row.question}\nChain of thought: {row.chain_of_thought}\nAnswer: {row.answer}"
    )


def prove(row: SourceRow, content: str) -> ExtractedRow:
    """The row with its graph, when the model's JSON holds a right one.

    Args:
        row: what the model was asked about.
        content: what it wrote.

    Raises:
        ExtractionFault: the first rule that it breaks.
    """
    extraction = _read(content)
    items = {item.name: item for item in extraction.nodes}
    if len(items) < len(extraction.nodes):
        names = [item.name for item in extraction.nodes]
        twice = next(name for name in names if names.count(name) > 1)
        raise ExtractionFault(f"the quantity {twice} is listed twice")
    expressions = {name: _expression(item, items) for name, item in items.items()}
    order = _topological(expressions)
    allowed = _Numbers(row)
    phrases = _phrases(order, items)
    nodes: dict[str, Node] = {}
    for name in order:
        allowed.check(items[name])
        nodes[name] = _node(items[name], expressions[name], nodes, phrases)
    if extraction.answer not in items:
        raise ExtractionFault(f"the answer {extraction.answer[:60]!r} is no quantity of the list")
    graph = Graph(nodes.values(), phrases[extraction.answer])
    _check_answer(row, graph)
    own = " ".join(row.chain_of_thought.split())
    steps = (
        ExtractedStep(phrases[name], _own_words(items[name].step, nodes[name], own))
        for name in order
    )
    return ExtractedRow(row.number, row.question, row.answer, graph, tuple(steps))


def _read(content: str) -> Extraction:
    try:
        return Extraction.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ExtractionFault(f"the model wrote no JSON: {first['ctx']['error']}") from None
        where = ".".join(map(str, first["loc"]))
        raise ExtractionFault(
            f"the model's JSON does not fit the schema: {where}: {first['msg']}"
        ) from None


def _expression(item: ExtractedNode, items: Mapping[str, ExtractedNode]) -> Expression:
    """A quantity's expression over names; what it uses is what it says it uses."""
    text = plain_expression(item.expression)
    too_long = len(text) > _MAX_EXPRESSION or text.count("(") > _MAX_BRACKETS
    expression = None if too_long else _parse(text)
    if expression is None or _has_truth(expression):
        raise ExtractionFault(
            f"the expression {item.expression[:60]!r} of {item.name} cannot be read: "
            "only names, numbers, + - * / and brackets, and not too many"
        )
    used = names_in(expression)
    if item.name in used:
        raise ExtractionFault(f"{item.name} is computed from itself")
    if absent := [name for name in (*used, *item.parents) if name not in items]:
        raise ExtractionFault(f"{item.name} needs {absent[0]}, which is no quantity of the list")
    if missing := [name for name in used if name not in item.parents]:
        raise ExtractionFault(f"{item.name} uses {missing[0]}, which is not among its parents")
    if unused := [name for name in item.parents if name not in used]:
        raise ExtractionFault(f"{item.name} names {unused[0]} as a parent and does not use it")
    return expression


def _parse(text: str) -> Expression | None:
    """The expression that a text writes; a decimal stays one number, whatever the notation makes of
    it.
    """
    decimals: dict[str, Expression] = {}

    def stand_in(match: re.Match[str]) -> str:
        # names of quantities are in lower case
        decimals[name := f"D{len(decimals)}"] = tidy(Fraction(match[0]))
        return name

    expression = NOTATION.parse(re.sub(r"(?<![\w.])[0-9]+\.[0-9]+(?![\w.])", stand_in, text))
    return None if expression is None else substitute(expression, decimals)


def _has_truth(expression: Expression) -> bool:
    if isinstance(expression, tuple):
        return any(map(_has_truth, expression[1:]))
    return isinstance(expression, Truth)


def _topological(expressions: Mapping[str, Expression]) -> list[str]:
    """The names, each after all that it uses, otherwise in the order in which they are listed."""
    parents = {name: set(names_in(expression)) for name, expression in expressions.items()}
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        raise ExtractionFault(f"a cycle: {' <- '.join(error.args[1])}") from None
    order: list[str] = []
    waiting = list(parents)
    while waiting:
        order.append(next(name for name in waiting if parents[name] <= set(order)))
        waiting.remove(order[-1])
    return order


class _Numbers:
    """Which numbers a row's expressions may hold."""

    def __init__(self, row: SourceRow) -> None:
        text = f"{row.question} {row.chain_of_thought}".lower()
        self.stated = numbers_in(row.question)
        self.constants = {value for value, words in CONSTANTS.items() if re.search(words, text)}

    def check(self, item: ExtractedNode) -> None:
        for text in re.findall(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?", plain_expression(item.expression)):
            if Fraction(text) not in self.stated and Fraction(text) not in self.constants:
                raise ExtractionFault(
                    f"the number {decimal_text(Fraction(text))} of {item.name} stands neither in the question nor "
                    "among the known constants that its words call for"
                )


def _phrases(order: list[str], items: Mapping[str, ExtractedNode]) -> dict[str, str]:
    """What each quantity is called in a chain of thought: its description in words that no equation
    confuses.

    Where the description is empty, too long, or taken, its name says it.
    """
    phrases: dict[str, str] = {}
    for name in order:
        plain = name.replace("_", " ").strip()
        words = [word.strip("'’-") for word in re.findall(r"\w[\w'’-]*", items[name].description)]
        found = " ".join(words)
        if not found[:1].isalpha() or len(found) > _MAX_PHRASE or value_of(found) is not None:
            found = " ".join(plain.split())
        while found in phrases.values():
            found = f"{found} {plain}"
        phrases[name] = found
    return phrases


def _node(
    item: ExtractedNode,
    expression: Expression,
    nodes: Mapping[str, Node],
    phrases: Mapping[str, str],
) -> Node:
    """The node with its value recomputed."""
    values = {phrases[name]: node.value for name, node in nodes.items()}
    formula = substitute(expression, phrases)
    try:
        value = evaluate(formula, values)
    except ZeroDivisionError:
        raise ExtractionFault(f"{item.name} divides by zero: {item.expression}") from None
    value = tidy(Fraction(value))
    if max(abs(value.numerator), value.denominator) >= 10**_MAX_DIGITS:
        raise ExtractionFault(f"{item.name} comes to a number of more than {_MAX_DIGITS} digits")
    stated = value_in(item.value)
    if stated is None:
        raise ExtractionFault(f"the value {item.value[:60]!r} of {item.name} is not one number")
    hundredths = stated / 100 if "%" in item.value or "percent" in item.value.lower() else stated
    if value not in (stated, hundredths):
        raise ExtractionFault(
            f"{item.name} is given as {item.value.strip()}, but {item.expression} is {decimal_text(value)}"
        )
    # tidied: arithmetic with fractions leaves 14 as Fraction(14), which JSON would keep as another
    # value
    return replace(Node.of(phrases[item.name], formula, values), value=value)


def _check_answer(row: SourceRow, graph: Graph) -> None:
    stated = value_in(row.answer)
    if stated is None:
        raise ExtractionFault(f"the answer {row.answer[:60]!r} is not one number")
    assert isinstance(graph.answer, int | Fraction)  # SIGNS has no logic
    if stated != graph.answer:
        found = decimal_text(graph.answer)
        raise ExtractionFault(
            f"the answer is {row.answer[:60]}, but {graph.question} comes to {found}"
        )
    if all(graph.nodes[name].operator in (None, Operator.SAME) for name in graph.needed):
        raise ExtractionFault(f"the answer, {graph.question}, is given and not computed")


def _own_words(step: str, node: Node, chain_of_thought: str) -> str:
    """The user's own sentence for a node: kept when it is really theirs, on one line, and states
    the node's value.
    """
    text = " ".join(re.sub(r"<<[^<>]*>>", "", step).split())
    if not text or text not in chain_of_thought:
        return ""
    stated = numbers_in(text)
    assert isinstance(node.value, int | Fraction)
    return text if abs(node.value) in stated else ""
