"""PromptBench's questions, written from graphs and read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from bi_ray.config import LogicName
from bi_ray.reasoning.expression import Notation, Operator, Value, names_in, value_of
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.parse import Definition, ParseError, graph_from_definitions
from bi_ray.tasks.promptbench import wording
from bi_ray.tasks.promptbench.wording import CAUSES, INTEGER, NOTATION, PREMISES, RULES, TRUTH


def sentences(graph: Graph, logic: LogicName) -> list[str]:
    """The premises of a problem, in the order of its graph."""
    if logic == "abductive":
        return list(_rules(graph))
    return [_SENTENCE[logic](node) for node in graph.nodes.values()]


def question(graph: Graph, logic: LogicName) -> str:
    """The sentence that asks."""
    if logic != "abductive":
        return wording.QUESTION.format(node=graph.question)
    root = next(iter(graph.nodes.values()))
    return wording.ABDUCTIVE_QUESTION.format(given=root.name, value=root.value, node=graph.question)


def _arithmetic(node: Node) -> str:
    parents = node.parents or ("",)
    return PREMISES[node.operator].format(
        node=node.name, value=node.value, a=parents[0], b=parents[-1]
    )


def _boolean(node: Node) -> str:
    if node.operator is None:
        return wording.FACT.format(node=node.name, value=node.value)
    return wording.EQUALS.format(node=node.name, premise=NOTATION.text(node.formula))


def _deductive(node: Node) -> str:
    if not isinstance(node.expression, tuple):
        return wording.FACT.format(node=node.name, value=node.value)
    return wording.RULE.format(node=node.name, premise=RULES.text(node.expression[1]))


_SENTENCE: dict[LogicName, Callable[[Node], str]] = {
    "arithmetic": _arithmetic,
    "boolean": _boolean,
    "deductive": _deductive,
}


def _rules(graph: Graph) -> Iterator[str]:
    """A sentence per conclusion: the facts that stand below it are its premise."""
    below: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        for conclusion in node.parents:
            below.setdefault(conclusion, []).append(node)
    for conclusion, facts in below.items():
        operator = next(premise for premise, cause in CAUSES.items() if cause is facts[0].operator)
        yield wording.RULE.format(
            node=conclusion, premise=RULES.text((operator, *(fact.name for fact in facts)))
        )


def read_question(text: str, logic: LogicName) -> Graph:
    """The graph behind a question, redundant nodes included, whatever the order of its premises.

    Args:
        text: premises and question, sentence after sentence; the question comes first or last.
        logic: what it is about.

    Raises:
        ParseError: a sentence has no known form, or what they say makes no graph.
    """
    told: list[list[Definition]] = []
    asked: list[re.Match[str]] = []
    for sentence in filter(None, re.split(r"(?<=[.?])\s+", text.strip())):
        if match := _ASKED[logic].fullmatch(sentence):
            asked.append(match)
        else:
            told.append(_READ[logic](sentence))
    if len(asked) != 1:
        raise ParseError(
            f"{len(asked)} questions: {text[-80:]!r}" if asked else f"no question: {text[-80:]!r}"
        )
    # what is given stands where the rules about it do, so that their order can be kept
    if logic == "abductive":
        given: Definition = (asked[0]["given"], _value(asked[0]["value"]))
        told.insert(0 if told and given[0] in names_in(told[0][0][1]) else len(told), [given])
    return graph_from_definitions(told, asked[0]["node"])


def _pattern(template: str, value: str) -> re.Pattern[str]:
    """What reads a sentence that the template writes."""
    fields = dict.fromkeys(("node", "a", "b", "given"), r"\w+") | {"value": value, "premise": ".+"}
    return re.compile(
        re.sub(r"\\\{(\w+)\\\}", lambda m: f"(?P<{m[1]}>{fields[m[1]]})", re.escape(template))
    )


_ARITHMETIC = {operator: _pattern(template, INTEGER) for operator, template in PREMISES.items()}
_FACT, _EQUALS, _RULE = (
    _pattern(template, TRUTH) for template in (wording.FACT, wording.EQUALS, wording.RULE)
)
_QUESTION = _pattern(wording.QUESTION, TRUTH)
_ASKED: dict[LogicName, re.Pattern[str]] = {
    "arithmetic": _QUESTION,
    "boolean": _QUESTION,
    "deductive": _QUESTION,
    "abductive": _pattern(wording.ABDUCTIVE_QUESTION, TRUTH),
}


def _read_arithmetic(sentence: str) -> list[Definition]:
    for operator, pattern in _ARITHMETIC.items():
        if match := pattern.fullmatch(sentence):
            if operator is None:
                return [(match["node"], _value(match["value"]))]
            operands = (match["a"],) if operator.arity == 1 else (match["a"], match["b"])
            return [(match["node"], (operator, *operands))]
    raise _unknown(sentence)


def _read_boolean(sentence: str) -> list[Definition]:
    return _read_fact(sentence) or [_read_operation(_EQUALS, NOTATION, sentence)]


def _read_deductive(sentence: str) -> list[Definition]:
    if fact := _read_fact(sentence):
        return fact
    conclusion, premise = _read_operation(_RULE, RULES, sentence)
    return [(conclusion, (Operator.IF, premise))]


def _read_abductive(sentence: str) -> list[Definition]:
    conclusion, (operator, *facts) = _read_operation(_RULE, RULES, sentence)
    if not all(type(fact) is str for fact in facts):
        # what makes a nested premise false is more than one operator can say
        raise _unknown(sentence)
    return [(fact, (CAUSES[operator], conclusion)) for fact in facts]


def _read_fact(sentence: str) -> list[Definition]:
    match = _FACT.fullmatch(sentence)
    return [(match["node"], _value(match["value"]))] if match else []


def _read_operation(
    pattern: re.Pattern[str], notation: Notation, sentence: str
) -> tuple[str, tuple[Any, ...]]:
    """The node that a sentence computes or concludes, and from what."""
    match = pattern.fullmatch(sentence)
    expression = notation.parse(match["premise"]) if match else None
    if match is None or not isinstance(expression, tuple):
        raise _unknown(sentence)
    return match["node"], expression


def _value(text: str) -> Value:
    value = value_of(text)
    assert value is not None  # the sentence's form lets nothing else through
    return value


def _unknown(sentence: str) -> ParseError:
    return ParseError(f"no sentence of a known form: {sentence!r}")


_READ: dict[LogicName, Callable[[str], list[Definition]]] = {
    "arithmetic": _read_arithmetic,
    "boolean": _read_boolean,
    "deductive": _read_deductive,
    "abductive": _read_abductive,
}
