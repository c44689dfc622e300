"""From the texts of iGSM back to graphs and steps.

The sentence forms are those of ``wording``; names may be any. A text does not state its abstract
quantities: "each A's Cabin" is implied by the world, as the sum over the things of this category
that A is said to hold. Our own worlds are known; for other names a world can be passed, and without
one a category is what its holder holds directly, where that is the only possible reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from string import digits
from typing import NamedTuple

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Expression, Operator, Value, names_in, value_of
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.parse import Definition, ParseError, graph_from_definitions
from bi_ray.reasoning.trace import LINE_BEHAVIORS, Span, StepKind
from bi_ray.tasks.igsm import wording
from bi_ray.tasks.igsm.vocabulary import WORLDS, World
from bi_ray.tasks.traces import inside_think

_SENTENCE = re.compile(r"[^.?]+[.?]?")
_NUMBERED = re.compile(r"(-?[0-9]{1,30}) (more than|times)(?: as (?:much|many) as)? (.+)")
_JOINT = re.compile(r",? and each |, each ")


_SUM, _DIFFERENCE = "the sum of each ", "the difference of each "


@lru_cache(maxsize=4096)
def parse_relation(text: str) -> Expression | None:
    """The formula of a relation in words; the inverse of ``wording.relation``.

    Names may be any of the form "A's B". A bare name is the same as another quantity. None where
    the text is not a relation.
    """
    number = value_of(text)
    if number is not None:
        return number if isinstance(number, int) else None
    if not text.startswith(("-", *digits)):
        return _group(text)
    match = _NUMBERED.fullmatch(text)
    if match is None:
        return None
    inner = _group(match[3])
    if inner is None:
        return None
    if match[2] == "times":
        return (Operator.MULTIPLY, int(match[1]), inner)
    if isinstance(inner, tuple) and inner[0] is Operator.ADD:
        return (Operator.ADD, int(match[1]), *inner[1:])
    return (Operator.ADD, int(match[1]), inner)


def _group(text: str) -> Expression | None:
    """A sum, a difference, a product or a name."""
    if text.startswith(_SUM):
        return _joined(Operator.ADD, text.removeprefix(_SUM))
    if text.startswith(_DIFFERENCE):
        return _joined(Operator.SUBTRACT, text.removeprefix(_DIFFERENCE))
    if text.startswith("each "):
        return _operand(text.removeprefix("each "))
    return None


def _joined(operator: Operator, text: str) -> Expression | None:
    """An operation on "a, each b and each c"."""
    operands = list(map(_operand, _JOINT.split(text)))
    if None in operands or len(operands) < 2:
        return None
    if len(operands) > 2 and not operator.takes_more:
        return None
    return (operator, *operands)


def _operand(text: str) -> Expression | None:
    """A name, or "a times each b"."""
    first, times, second = text.partition(" times each ")
    if "'s " not in first:
        return None
    if not times:
        return first
    if "'s " not in second:
        return None
    return (Operator.MULTIPLY, first, second)


def parse_question(text: str, world: World | None = None) -> Graph:
    """The graph behind the text of a problem, redundant quantities too.

    Args:
        text: premises in any order, and one question.
        world: the world that the names belong to, where it is none of ``vocabulary.WORLDS``.

    Raises:
        ParseError: a sentence has no known form, a quantity is stated twice or not known, or
            quantities depend on one another in a circle.
    """
    stated: dict[str, Expression] = {}
    questions: list[str] = []
    for sentence in map(str.strip, _SENTENCE.findall(text)):
        if premise := _between(sentence, "The number of each ", " equals ", "."):
            name, relation = premise
            formula = parse_relation(relation)
            if "'s " not in name or formula is None:
                raise ParseError(f"not understood: {relation!r} in {sentence!r}")
            if name in stated:
                raise ParseError(f"{name!r} is stated twice")
            stated[name] = formula
        elif question := _between(sentence, "How many ", " does each ", " have?"):
            held, holder = question
            questions.append(f"{holder}'s {held}")
        elif sentence.endswith((".", "?")):  # words after the last sentence are ignored
            raise ParseError(f"no sentence of a known form: {sentence!r}")
    if len(questions) != 1:
        raise ParseError(
            f"{len(questions)} questions; a problem has one, 'How many ... does each ... have?'"
        )
    definitions = _with_abstract(stated, questions[0], world)
    return graph_from_definitions(definitions, questions[0])


def _between(sentence: str, start: str, middle: str, end: str) -> tuple[str, str] | None:
    """The text before and after the last ``middle`` of a sentence with this start and end.

    None where the sentence has another form, or one of the two is empty.
    """
    if not sentence.startswith(start) or not sentence.endswith(end):
        return None
    first, _, second = sentence[len(start) : -len(end)].rpartition(middle)
    if not first or not second:
        return None
    return first, second


def _with_abstract(
    stated: Mapping[str, Expression], question: str, world: World | None
) -> list[list[Definition]]:
    """The definitions of every sentence.

    Those of abstract quantities come with the sentence that is the first to use them.
    """
    held: dict[str, list[str]] = {}
    for name in sorted(stated):
        holder, _, thing = name.partition("'s ")
        held.setdefault(holder, []).append(thing)
    defined = set(stated)

    def abstract(used: tuple[str, ...]) -> Iterator[Definition]:
        for name in used:
            if name in defined:
                continue
            defined.add(name)
            formula = _abstract_formula(name, held, world)
            yield from abstract(names_in(formula))
            yield name, formula

    sentences: list[list[Definition]] = []
    for name, formula in stated.items():
        sentences.append([*abstract(names_in(formula)), (name, formula)])
    sentences.append(list(abstract((question,))))
    return sentences


def _abstract_formula(name: str, held: Mapping[str, list[str]], world: World | None) -> Expression:
    """The formula of a quantity that no premise states: a sum over what its holder holds.

    Over things of a later layer it is a sum of products.
    """
    holder, _, category = name.partition("'s ")
    things = held.get(holder)
    if not things:
        raise ParseError(f"{name!r} is used, but it is not stated, nor what each {holder} holds")
    depth = _depth(name, held, world)
    terms: list[Expression] = []
    for thing in things:
        holders_thing = f"{holder}'s {thing}"
        if depth == 1:
            terms.append(holders_thing)
        else:
            terms.append((Operator.MULTIPLY, holders_thing, f"{thing}'s {category}"))
    if len(terms) == 1:
        return terms[0]
    return (Operator.ADD, *terms)


def _depth(name: str, held: Mapping[str, list[str]], world: World | None) -> int:
    """Number of layers from the holder of an abstract quantity down to its category."""
    holder, _, category = name.partition("'s ")
    if world is None:
        world = _known_world(holder, category)
    elif category not in world.layers or holder not in world.layer_of:
        raise ParseError(
            f"{name!r} is not stated, and {holder!r} or {category!r} does not belong to the world"
        )
    if world is None:
        if not held.keys().isdisjoint(held[holder]):
            raise ParseError(
                f"{name!r} is not stated, and {category!r} is not a category of a known world: "
                "pass world"
            )
        return 1
    depth = world.categories.index(category) - world.layer_of[holder]
    if depth < 1:
        raise ParseError(f"{name!r} is not stated, and no {holder} can hold any {category}")
    return depth


def _known_world(holder: str, category: str) -> World | None:
    for world in WORLDS:
        if category in world.layers and holder in world.layer_of:
            return world
    return None


def parse_trace(response: str) -> list[ParsedStep]:
    """The lines between <think> and </think> as steps; one of no known form has no node.

    The conclusion is not a step, if it comes last and gives the value of the last solved step.
    """
    names: dict[str, str] = {}
    steps: list[ParsedStep] = []
    answer: Value | None = None
    for line in filter(str.strip, inside_think(response).split("\n")):
        step = parse_line(line.strip(), names)
        steps.append(step)
        if step.kind is StepKind.SOLVE and step.node:
            answer = step.value
    if answer is not None and steps[-1].text == wording.CONCLUSION.format(answer=answer):
        steps.pop()
    return steps


def parse_line(line: str, names: dict[str, str]) -> ParsedStep:
    """One line read back; a line of no known form has no node.

    Args:
        line: the line.
        names: the quantity of each letter so far; the line's own letter is added.
    """
    head, number_of, rest = line.partition(wording.NUMBER_OF)
    if line.startswith(_PLAN):
        step = _outline(line)
    elif number_of:
        step = _solution(line, head, rest)
    else:
        step = _verification(line, names)
    if step is None:
        return ParsedStep(text=line)
    if step.symbol and step.node:
        names.setdefault(step.symbol, step.node)
    return step


_PLAN = "- Plan: "
_REPRESENT = " represent "
_DENOTE = "Let's denote it as "


class _Mention(NamedTuple):
    """The beginning of a line, which mentions its quantity.

    Attributes:
        name: the quantity.
        letter: its letter.
        tail: the rest of the line.
        given: its value, where it is given.
    """

    name: str
    letter: str
    tail: str
    given: Value | None = None


def _mention(head: str, rest: str) -> _Mention | None:
    """Read the beginning of a line, from the texts before and after "the number of each"."""
    sentence, _, tail = rest.partition(". ")
    if head.endswith(_REPRESENT):
        letter = head.removesuffix(_REPRESENT).rpartition(" ")[2]
        return _Mention(sentence, letter, tail)
    if tail.startswith(wording.REMEMBER):
        letter, _, tail = tail.removeprefix(wording.REMEMBER).partition(". ")
        return _Mention(sentence, letter, tail)
    if tail.startswith(_DENOTE):
        letter, _, tail = tail.removeprefix(_DENOTE).partition(". ")
        name, _, number = sentence.rpartition(" is ")
        given = value_of(number)
        if given is None:
            return None
        return _Mention(name, letter, tail, given)
    name, _, letter = sentence.rpartition(" as ")
    return _Mention(name, letter, tail)


def _solution(line: str, head: str, rest: str) -> ParsedStep | None:
    """A line that mentions a quantity, then solves it or turns back."""
    mention = _mention(head, rest)
    if mention is None or "'s " not in mention.name:
        return None
    if len(mention.letter) != 1 or not mention.letter.isalpha():
        return None
    tail = mention.tail
    relation: Expression | None = None
    if tail.startswith(wording.RELATION):
        words, _, tail = tail.removeprefix(wording.RELATION).partition(". ")
        relation = parse_relation(words)
        if relation is None:
            return None
    if not tail.startswith(wording.UNKNOWN):
        return _equation(line, mention, relation, tail)
    if relation is not None:
        return None
    return _attempt(line, mention)


def _attempt(line: str, mention: _Mention) -> ParsedStep | None:
    """The rest of a line that turns back: which quantities are not known yet."""
    end = wording.STILL_UNKNOWN.format(letter=mention.letter)
    quantities = mention.tail.removeprefix(wording.UNKNOWN)
    if not quantities.endswith(end):
        return None
    quantities = quantities.removesuffix(end)
    if not quantities.startswith(wording.NUMBER_OF):
        return None
    joint = f" and {wording.NUMBER_OF}"
    missing = quantities.removeprefix(wording.NUMBER_OF).split(joint)
    return ParsedStep(
        text=line,
        node=mention.name,
        kind=StepKind.ATTEMPT,
        symbol=mention.letter,
        missing=tuple(missing),
    )


def _equation(
    line: str, mention: _Mention, relation: Expression | None, tail: str
) -> ParsedStep | None:
    """The rest of a line that solves: "Then y = p - v = 48 - 24 = 24."."""
    name, letter, _, given = mention
    if not tail.endswith("."):
        return None
    equation, wrong, corrected = tail[:-1].partition(wording.MISTAKE)
    start, *sides = equation.split(" = ")
    if start.rpartition(" ")[2] != letter or not sides:
        return None
    value = value_of(sides.pop())
    mistake: Value | None = None
    if wrong:
        again, _, number = corrected.partition(" = ")
        mistake, value = value, value_of(number)
        if again != letter or mistake is None:
            return None
    if value is None or (given is not None and given != value):
        return None
    return ParsedStep(
        text=line,
        node=name,
        value=value,
        symbol=letter,
        symbols=sides[0] if sides else None,
        numbers=tuple(sides[1:]),
        subgoal=len(sides) > 2,
        relation=relation,
        mistake=mistake,
    )


_VERIFICATION = re.compile(
    rf"- [^.]*?{wording.CHECK}(?P<letter>[A-Za-z]): (?P<sides>[^:]+) = (?P<value>-?[0-9]{{1,30}}), "
    r"and (?P<target>[A-Za-z]) is (?P<held>-?[0-9]{1,30}), right\."
)


def _verification(line: str, names: Mapping[str, str]) -> ParsedStep | None:
    match = _VERIFICATION.fullmatch(line)
    if match is None or match["value"] != match["held"] or match["letter"] not in names:
        return None
    sides = match["sides"].split(" = ")
    return ParsedStep(
        text=line,
        node=names[match["letter"]],
        kind=StepKind.VERIFY,
        value=value_of(match["value"]),
        symbols=sides[0],
        numbers=tuple(sides[1:]),
        target=names.get(match["target"]),
    )


def _outline(line: str) -> ParsedStep | None:
    needs: list[tuple[str, tuple[str, ...]]] = []
    for clause in line.removeprefix(_PLAN).removesuffix(".").split("; "):
        if not clause.startswith(wording.TO_GET):
            return None
        need = clause.removeprefix(wording.TO_GET)
        name, joint, parents = need.partition(f"{wording.WE_NEED}each ")
        if not joint:
            return None
        needs.append((name, tuple(parents.split(" and each "))))
    return ParsedStep(text=line, node=needs[0][0], kind=StepKind.OUTLINE, needs=tuple(needs))


def behavior_spans(response: str) -> list[Span]:
    """The spans that ``wording.render`` marks: whole lines, and parts of solving lines."""
    spans: list[Span] = []
    names: dict[str, str] = {}
    start = 0
    for line in response.split("\n"):
        step = parse_line(line, names)
        behavior = LINE_BEHAVIORS.get(step.kind)
        if behavior:
            spans.append(Span(start, start + len(line), behavior))
        else:
            for first, last, part in _spans_of_solution(line, step):
                spans.append(Span(start + first, start + last, part))
        start += len(line) + 1
    return spans


def _spans_of_solution(line: str, step: ParsedStep) -> Iterator[Span]:
    if step.relation is not None:
        start = line.index(wording.RELATION)
        yield Span(start, line.index(". ", start) + len(". "), "analysis")
    end = line.rfind(" = ")
    result = end
    if step.mistake is not None:
        # the first such words may be part of a name
        end = line.rindex(" = ", 0, line.rindex(wording.MISTAKE))
    if step.subgoal:
        length = len(" = ".join(["", *step.numbers[1:]]))
        yield Span(end - length, end, "subgoal")
    if step.mistake is not None:
        yield Span(end, result, "correction")
