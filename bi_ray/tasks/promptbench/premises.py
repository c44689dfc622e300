"""PromptBench's questions, written from graphs and read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from bi_ray.config.tasks import LogicName
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
    template = PREMISES[node.operator]
    if node.operator is None:
        return template.format(node=node.name, value=node.value)
    return template.format(node=node.name, a=node.parents[0], b=node.parents[-1])


def _boolean(node: Node) -> str:
    if node.operator is None:
        return wording.FACT.format(node=node.name, value=node.value)
    return wording.EQUALS.format(node=node.name, premise=NOTATION.text(node.formula))


def _deductive(node: Node) -> str:
    if isinstance(node.expression, tuple):
        return wording.RULE.format(node=node.name, premise=RULES.text(node.expression[1]))
    return wording.FACT.format(node=node.name, value=node.value)


_SENTENCE: dict[LogicName, Callable[[Node], str]] = {
    "arithmetic": _arithmetic,
    "boolean": _boolean,
    "deductive": _deductive,
}


_OPERATOR_OF_CAUSE = {cause: operator for operator, cause in CAUSES.items()}


def _rules(graph: Graph) -> Iterator[str]:
    """A sentence per conclusion; the facts below it are its premise."""
    facts_of: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        for conclusion in node.parents:
            facts_of.setdefault(conclusion, []).append(node)
    for conclusion, facts in facts_of.items():
        cause = facts[0].operator
        assert cause is not None  # facts have a parent, the conclusion
        operator = _OPERATOR_OF_CAUSE[cause]
        premise = RULES.text((operator, *(fact.name for fact in facts)))
        yield wording.RULE.format(node=conclusion, premise=premise)


def read_question(text: str, logic: LogicName) -> Graph:
    """The graph behind a question, redundant nodes included, whatever the premises' order.

    Args:
        text: premises and question, sentence after sentence; the question comes first or last.
        logic: the logic of the problem.

    Raises:
        ParseError: a sentence has no known form, or the sentences do not make a graph.
    """
    definitions: list[list[Definition]] = []
    questions: list[re.Match[str]] = []
    for sentence in re.split(r"(?<=[.?])\s+", text.strip()):
        if match := _QUESTIONS[logic].fullmatch(sentence):
            questions.append(match)
        elif sentence:
            definitions.append(_READ[logic](sentence))
    if not questions:
        raise ParseError(f"no question: {text[-80:]!r}")
    if len(questions) > 1:
        raise ParseError(f"{len(questions)} questions: {text[-80:]!r}")
    if logic == "abductive":
        _insert_given(definitions, questions[0])
    return graph_from_definitions(definitions, questions[0]["node"])


def _insert_given(definitions: list[list[Definition]], question: re.Match[str]) -> None:
    """Insert the value that an abductive question gives, so that the order stays topological.

    It comes first or last, on the side where the rules about it are.
    """
    name = question["given"]
    position = len(definitions)
    if definitions:
        _, first_formula = definitions[0][0]
        if name in names_in(first_formula):
            position = 0
    definitions.insert(position, [(name, _value(question["value"]))])


def _pattern(template: str, value: str) -> re.Pattern[str]:
    """The pattern of the sentences that a template writes; its fields are groups."""
    fields = {
        "node": r"\w+",
        "a": r"\w+",
        "b": r"\w+",
        "given": r"\w+",
        "value": value,
        "premise": ".+",
    }
    pattern = re.escape(template)
    for name, field in fields.items():
        pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{field})")
    return re.compile(pattern)


_ARITHMETIC = {operator: _pattern(template, INTEGER) for operator, template in PREMISES.items()}
_FACT = _pattern(wording.FACT, TRUTH)
_EQUALS = _pattern(wording.EQUALS, TRUTH)
_RULE = _pattern(wording.RULE, TRUTH)
_QUESTION = _pattern(wording.QUESTION, TRUTH)
_QUESTIONS: dict[LogicName, re.Pattern[str]] = {
    "arithmetic": _QUESTION,
    "boolean": _QUESTION,
    "deductive": _QUESTION,
    "abductive": _pattern(wording.ABDUCTIVE_QUESTION, TRUTH),
}


def _read_arithmetic(sentence: str) -> list[Definition]:
    for operator, pattern in _ARITHMETIC.items():
        match = pattern.fullmatch(sentence)
        if match is None:
            continue
        if operator is None:
            return [(match["node"], _value(match["value"]))]
        if operator.arity == 1:
            return [(match["node"], (operator, match["a"]))]
        return [(match["node"], (operator, match["a"], match["b"]))]
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
    definitions: list[Definition] = []
    for fact in facts:
        if type(fact) is not str:
            # one operator cannot tell what makes a nested premise false
            raise _unknown(sentence)
        definitions.append((fact, (CAUSES[operator], conclusion)))
    return definitions


def _read_fact(sentence: str) -> list[Definition]:
    match = _FACT.fullmatch(sentence)
    if match is None:
        return []
    return [(match["node"], _value(match["value"]))]


def _read_operation(
    pattern: re.Pattern[str], notation: Notation, sentence: str
) -> tuple[str, tuple[Any, ...]]:
    """The node that a sentence computes or concludes, and its expression."""
    match = pattern.fullmatch(sentence)
    if match is None:
        raise _unknown(sentence)
    expression = notation.parse(match["premise"])
    if not isinstance(expression, tuple):
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
