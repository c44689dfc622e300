"""From free text to a graph that a language model reads out of a worked answer, and its proof.

The model splits a chain of thought into steps of one conclusion each and says how each is computed
from earlier ones (the extraction of section 3 of arXiv:2505.18917). None of it is taken on trust: a
row is used only when its graph is acyclic, every value is recomputed in exact arithmetic, every
number in it comes from the question or is a known constant, and the answer agrees.
``extract_client`` makes the calls; here are the schema, the prompt and the rules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
from bi_ray.reasoning.written_numbers import decimal_text, numbers_in, plain_expression, value_in

MAX_NODES = 64
_MAX_EXPRESSION = 300  # characters
_MAX_BRACKETS = 20  # of an expression: its reader calls itself once per bracket
_MAX_DIGITS = 15  # of a value: larger ones are not about the question any more
_MAX_PHRASE = 100  # characters

SIGNS = {
    Operator.ADD: "+",
    Operator.SUBTRACT: "-",
    Operator.MULTIPLY: "*",
    Operator.DIVIDE: "/",
}
NOTATION = Notation(SIGNS)

# Numbers that a chain of thought may use though the question does not state them, each with a
# pattern of words in the question or the chain of thought that call for it. 1 needs none: the
# whole, or the speaker.
CONSTANTS: dict[int, str] = {
    1: r"",
    2: r"half|halv|twice|doubl|averag|pair|couple|both|each way|round.?trip|back and forth|triang",
    3: r"tripl|thrice|trio|yard|feet|foot|triang|averag",
    4: (
        r"quarter|quart\b|quarts\b|gallon|square|rectang|perimeter|season|month|week|average"
        r"|\blegs?\b"
    ),
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
    100: (
        r"%|¢|percent|per cent|\bcents?\b|penn(?:y|ies)|dollar|\$|met(?:er|re)|centimet|dime|nickel"
        r"|quarter|\bcm\b"
    ),
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
You turn a solved word problem into a graph of quantities. You get a question, its chain of \
thought and its answer.
Split the chain of thought into steps of one conclusion each. List every quantity: first the \
numbers that the question
gives, then what is computed, each after all that it is computed from. For each quantity write
- step: the words of the chain of thought that conclude it, copied exactly; "" for a number that \
the question gives;
- name: a short identifier in lower case, such as clips_may;
- description: what it is, a short phrase in plain words without any number that was computed: \
clips sold in May;
- parents: the names of the quantities that it is computed from, [] for a number that the \
question gives;
- expression: how it is computed, from the names of its parents and from numbers, with + - * / \
and brackets;
- value: its value as a number.
Use a number in an expression only if the question states it, or if everyone knows it (60 \
minutes in an hour). Write 20%
as 20 / 100. Every other number is a quantity of its own. Do not round, and do not correct the \
chain of thought.
answer: the name of the quantity that answers the question, in the unit that the answer is \
written in.

Example. Question: Natalia sold clips to 48 of her friends in April, and then she sold half as \
many clips in May. How
many clips did Natalia sell altogether in April and May?
Chain of thought: Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether \
in April and May.
Answer: 72
{"nodes": [
{"step": "", "name": "clips_april", "description": "clips sold in April", "parents": [],
 "expression": "48", "value": "48"},
{"step": "Natalia sold 48/2 = 24 clips in May.", "name": "clips_may", "description": "clips sold \
in May",
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


# the docstrings of the two classes are in the schema that the model gets, so a change to them makes
# every cached answer useless (``extract_client``)
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
        number: position among the rows, from 0.
        question: the problem.
        chain_of_thought: the worked answer.
        answer: the final answer as the user writes it.
    """

    number: int
    question: str
    chain_of_thought: str
    answer: str


class ExtractedStep(NamedTuple):
    """One conclusion: its quantity, and the user's own words that state its value, or ""."""

    node: str
    text: str


@dataclass(frozen=True, slots=True)
class ExtractedRow:
    """A row with a proven graph.

    Attributes:
        number: position among the rows, from 0.
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
    """A row that is not used: its position among the rows, from 0, and the reason."""

    number: int
    reason: str


def source_row(number: int, row: Mapping[str, str]) -> SourceRow:
    """A row with the keys ``question``, ``chain_of_thought`` and ``answer``.

    Without a chain of thought, as in GSM8K, the answer holds it, followed by "####" and the final
    answer.

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
    answer = answer.strip()
    if not answer:
        raise ExtractionFault('no answer after "####"')
    thought = _without_calculator_notes(thought).strip()
    return SourceRow(number, row["question"].strip(), thought, answer)


def _without_calculator_notes(text: str) -> str:
    """A text without the notes that GSM8K has for a calculator: "<<48/2=24>>"."""
    return re.sub(r"<<[^<>]*>>", "", text)


def request_text(row: SourceRow) -> str:
    """The message to the model about a row."""
    return (
        f"Question: {row.question}\nChain of thought: {row.chain_of_thought}\nAnswer: {row.answer}"
    )


def prove(row: SourceRow, content: str) -> ExtractedRow:
    """The row with its graph, if the model's JSON holds one that is right.

    Args:
        row: the row that the model was asked about.
        content: the model's answer.

    Raises:
        ExtractionFault: the first rule that it breaks.
    """
    extraction = _read(content)
    items = _by_name(extraction.nodes)
    expressions: dict[str, Expression] = {}
    for name, item in items.items():
        expressions[name] = _expression(item, items)
    order = _topological(expressions)
    allowed = _Numbers(row)
    phrases = _phrases(order, items)
    nodes: dict[str, Node] = {}
    for name in order:
        allowed.check(items[name])
        nodes[name] = _node(items[name], expressions[name], nodes, phrases)
    if extraction.answer not in items:
        raise ExtractionFault(
            f"the answer {extraction.answer[:60]!r} is not in the list of quantities"
        )
    graph = Graph(nodes.values(), phrases[extraction.answer])
    _check_answer(row, graph)
    thought = " ".join(row.chain_of_thought.split())
    steps: list[ExtractedStep] = []
    for name in order:
        words = _own_words(items[name].step, nodes[name], thought)
        steps.append(ExtractedStep(phrases[name], words))
    return ExtractedRow(row.number, row.question, row.answer, graph, tuple(steps))


def _read(content: str) -> Extraction:
    try:
        return Extraction.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ExtractionFault(
                f"the model's answer is not JSON: {first['ctx']['error']}"
            ) from error
        where = ".".join(map(str, first["loc"]))
        raise ExtractionFault(
            f"the model's JSON does not fit the schema: {where}: {first['msg']}"
        ) from error


def _by_name(items: Sequence[ExtractedNode]) -> dict[str, ExtractedNode]:
    by_name = {item.name: item for item in items}
    if len(by_name) < len(items):
        counts = Counter(item.name for item in items)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ExtractionFault(f"the quantity {twice} is listed twice")
    return by_name


def _expression(item: ExtractedNode, items: Mapping[str, ExtractedNode]) -> Expression:
    """A quantity's expression over names; it uses exactly the parents that the model lists."""
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
    for name in (*used, *item.parents):
        if name not in items:
            raise ExtractionFault(
                f"{item.name} needs {name}, which is not in the list of quantities"
            )
    for name in used:
        if name not in item.parents:
            raise ExtractionFault(f"{item.name} uses {name}, which is not among its parents")
    for name in item.parents:
        if name not in used:
            raise ExtractionFault(f"{item.name} lists {name} as a parent and does not use it")
    return expression


def _parse(text: str) -> Expression | None:
    """The expression that a text writes; a decimal is one number, not a division."""
    decimals: dict[str, Expression] = {}

    def stand_in(match: re.Match[str]) -> str:
        # not confused with a quantity: those have names in lower case
        name = f"D{len(decimals)}"
        decimals[name] = tidy(Fraction(match[0]))
        return name

    expression = NOTATION.parse(re.sub(r"(?<![\w.])[0-9]+\.[0-9]+(?![\w.])", stand_in, text))
    if expression is None:
        return None
    return substitute(expression, decimals)


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
        raise ExtractionFault(f"a cycle: {' <- '.join(error.args[1])}") from error
    order: list[str] = []
    waiting = list(parents)
    while waiting:
        name = next(name for name in waiting if parents[name].issubset(order))
        order.append(name)
        waiting.remove(name)
    return order


class _Numbers:
    """The numbers that a row's expressions may contain."""

    def __init__(self, row: SourceRow) -> None:
        text = f"{row.question} {row.chain_of_thought}".lower()
        self.allowed = numbers_in(row.question)
        for value, words in CONSTANTS.items():
            if re.search(words, text):
                self.allowed.add(Fraction(value))

    def check(self, item: ExtractedNode) -> None:
        """Refuse a quantity whose expression has any other number."""
        for text in re.findall(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?", plain_expression(item.expression)):
            number = Fraction(text)
            if number not in self.allowed:
                raise ExtractionFault(
                    f"the number {decimal_text(number)} of {item.name} is neither in the question "
                    "nor among the known constants that its words call for"
                )


def _phrases(order: list[str], items: Mapping[str, ExtractedNode]) -> dict[str, str]:
    """What a chain of thought calls each quantity: its description, in words that suit equations.

    It is the quantity's name where the description is empty, too long, or taken.
    """
    phrases: dict[str, str] = {}
    for name in order:
        plain = name.replace("_", " ").strip()
        phrase = _words_of(items[name].description)
        if not _suits_equations(phrase):
            phrase = " ".join(plain.split())
        while phrase in phrases.values():
            phrase = f"{phrase} {plain}"
        phrases[name] = phrase
    return phrases


def _words_of(description: str) -> str:
    words = re.findall(r"\w[\w'’-]*", description)
    return " ".join(word.strip("'’-") for word in words)


def _suits_equations(phrase: str) -> bool:
    starts_with_letter = phrase[:1].isalpha()
    return starts_with_letter and len(phrase) <= _MAX_PHRASE and value_of(phrase) is None


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
    except ZeroDivisionError as error:
        raise ExtractionFault(f"{item.name} divides by zero: {item.expression}") from error
    value = tidy(Fraction(value))
    if max(abs(value.numerator), value.denominator) >= 10**_MAX_DIGITS:
        raise ExtractionFault(f"{item.name} comes to a number of more than {_MAX_DIGITS} digits")
    stated = value_in(item.value)
    if stated is None:
        raise ExtractionFault(f"the value {item.value[:60]!r} of {item.name} is not one number")
    accepted = {stated}
    if "%" in item.value or "percent" in item.value.lower():
        accepted.add(stated / 100)
    if value not in accepted:
        raise ExtractionFault(
            f"{item.name} is given as {item.value.strip()}, "
            f"but {item.expression} is {decimal_text(value)}"
        )
    # arithmetic with fractions leaves 14 as Fraction(14), which JSON would keep as another value
    return replace(Node.of(phrases[item.name], formula, values), value=value)


def _check_answer(row: SourceRow, graph: Graph) -> None:
    stated = value_in(row.answer)
    if stated is None:
        raise ExtractionFault(f"the answer {row.answer[:60]!r} is not one number")
    assert isinstance(graph.answer, int | Fraction)  # SIGNS has no logic
    if stated != graph.answer:
        raise ExtractionFault(
            f"the answer is {row.answer[:60]}, "
            f"but {graph.question} comes to {decimal_text(graph.answer)}"
        )
    operators = {graph.nodes[name].operator for name in graph.needed}
    if operators <= {None, Operator.SAME}:
        raise ExtractionFault(f"the answer, {graph.question}, is given and not computed")


def _own_words(step: str, node: Node, chain_of_thought: str) -> str:
    """The user's own sentence for a node, "" where the model's quote cannot be used.

    It is used if it really is the user's, and states the node's value.
    """
    text = " ".join(_without_calculator_notes(step).split())
    assert isinstance(node.value, int | Fraction)
    if text in chain_of_thought and abs(node.value) in numbers_in(text):
        return text
    return ""
