"""From the texts of iGSM back to graphs and steps. The sentence forms are those of ``wording``;
names may be any.

What a text does not state are its abstract quantities: "each A's Cabin" is implied by the world, as
the sum over the things of this category that A is said to hold. Our own worlds are known; for other
names a world can be handed over, and without one a category is read as what its holder holds
directly, where that is the only possible reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Expression, Operator, Value, names_in, value_of
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.parse import ParseError, graph_from_definitions
from bi_ray.reasoning.trace import Span, StepKind
from bi_ray.tasks.igsm import wording
from bi_ray.tasks.igsm.vocabulary import WORLDS, World

_SENTENCE = re.compile(r"[^.?]+[.?]?")
_NUMBERED = re.compile(r"(-?[0-9]{1,30}) (more than|times)(?: as (?:much|many) as)? (.+)")
_JOINT = re.compile(r",? and each |, each ")


@lru_cache(maxsize=4096)
def parse_relation(text: str) -> Expression | None:
    """What a relation in words says; a bare name where it is the same as another quantity; None
    where it says nothing.

    It is the inverse of ``wording.relation``, for any names of the form "A's B".
    """
    if (number := value_of(text)) is not None:
        return number if isinstance(number, int) else None
    if text[:1].isdigit() or text[:1] == "-":
        match = _NUMBERED.fullmatch(text)
        inner = _group(match[3]) if match else None
        if match is None or inner is None:
            return None
        if match[2] == "times":
            return (Operator.MULTIPLY, int(match[1]), inner)
        added = inner[1:] if isinstance(inner, tuple) and inner[0] is Operator.ADD else (inner,)
        return (Operator.ADD, int(match[1]), *added)
    return _group(text)


def _group(text: str) -> Expression | None:
    for start, operator in (
        ("the sum of each ", Operator.ADD),
        ("the difference of each ", Operator.SUBTRACT),
    ):
        if text.startswith(start):
            operands = [_operand(part) for part in _JOINT.split(text[len(start) :])]
            fits = len(operands) == 2 or (len(operands) > 2 and operator.takes_more)
            return (operator, *operands) if fits and None not in operands else None
    return _operand(text[len("each ") :]) if text.startswith("each ") else None


def _operand(text: str) -> Expression | None:
    first, times, second = text.partition(" times each ")
    if "'s " not in first or (times and "'s " not in second):
        return None
    return (Operator.MULTIPLY, first, second) if times else first


def parse_question(text: str, world: World | None = None) -> Graph:
    """The graph behind the text of a problem, redundant quantities too.

    Args:
        text: premises in any order, and one question.
        world: what the names belong to, where they are not of ``vocabulary.WORLDS``.

    Raises:
        ParseError: a sentence has no known form, a quantity is stated twice or cannot be known, or
            quantities depend on one another in a circle.
    """
    stated: dict[str, Expression] = {}
    asked: list[str] = []
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
            asked.append(f"{question[1]}'s {question[0]}")
        elif sentence.endswith((".", "?")):  # words behind the last sentence are no sentence
            raise ParseError(f"no sentence of a known form: {sentence!r}")
    if len(asked) != 1:
        raise ParseError(
            f"{len(asked)} questions; a problem has one, 'How many ... does each ... have?'"
        )
    return graph_from_definitions(_with_abstract(stated, asked[0], world), asked[0])


def _between(sentence: str, start: str, middle: str, end: str) -> tuple[str, str] | None:
    """What stands before and behind the last ``middle`` of a sentence with this start and end;
    neither is empty.
    """
    if not (sentence.startswith(start) and sentence.endswith(end)):
        return None
    first, _, second = sentence[len(start) : -len(end)].rpartition(middle)
    return (first, second) if first and second else None


def _with_abstract(
    stated: Mapping[str, Expression], asked: str, world: World | None
) -> list[list[tuple[str, Expression]]]:
    """The definitions of every sentence, with those of the abstract quantities that it is the first
    to use.
    """
    held: dict[str, list[str]] = {}
    for name in sorted(stated):
        holder, _, thing = name.partition("'s ")
        held.setdefault(holder, []).append(thing)
    implied: set[str] = set()

    def definitions(used: tuple[str, ...]) -> Iterator[tuple[str, Expression]]:
        for name in used:
            if name not in stated and name not in implied:
                implied.add(name)
                formula = _abstract(name, held, world)
                yield from definitions(names_in(formula))
                yield name, formula

    sentences = [
        [*definitions(names_in(formula)), (name, formula)] for name, formula in stated.items()
    ]
    return [*sentences, list(definitions((asked,)))]


def _abstract(name: str, held: Mapping[str, list[str]], world: World | None) -> Expression:
    """The formula of a quantity that no premise states: sums over what its holder holds, layer by
    layer.
    """
    holder, _, category = name.partition("'s ")
    things = held.get(holder)
    if not things:
        raise ParseError(f"{name!r} is used, but it is not stated, nor what each {holder} holds")
    worlds = (
        [world]
        if world
        else [one for one in WORLDS if category in one.layers and holder in one.layer_of]
    )
    if not worlds:
        if any(thing in held for thing in things):
            raise ParseError(
                f"{name!r} is not stated, and {category!r} is no category of a known world: pass world"
            )
        depth = 1
    elif category not in worlds[0].layers or holder not in worlds[0].layer_of:
        raise ParseError(
            f"{name!r} is not stated, and {holder!r} or {category!r} does not belong to the world"
        )
    else:
        depth = worlds[0].categories.index(category) - worlds[0].layer_of[holder]
    if depth < 1:
        raise ParseError(f"{name!r} is not stated, and no {holder} can hold any {category}")
    direct = [f"{holder}'s {thing}" for thing in things]
    if depth == 1:
        return (Operator.ADD, *direct) if len(direct) > 1 else direct[0]
    products = [
        (Operator.MULTIPLY, f"{holder}'s {thing}", f"{thing}'s {category}") for thing in things
    ]
    return (Operator.ADD, *products) if len(products) > 1 else products[0]


def parse_trace(response: str) -> list[ParsedStep]:
    """The lines between <think> and </think> as steps; a line of no known form becomes a step
    without a node.

    The conclusion, where it comes last and says what the last solved step says, is no step.
    """
    start = response.find("<think>")
    end = response.find("</think>")
    inside = response[
        start + len("<think>") if start >= 0 else 0 : end if end >= 0 else len(response)
    ]
    lines = [line for line in inside.split("\n") if line.strip()]
    names: dict[str, str] = {}
    steps = [parse_line(line.strip(), names) for line in lines]
    solved = [step.value for step in steps if step.kind is StepKind.SOLVE and step.node]
    if solved and steps[-1].text == wording.CONCLUSION.format(answer=solved[-1]):
        steps.pop()
    return steps


def parse_line(line: str, names: dict[str, str]) -> ParsedStep:
    """One line read back. ``names``: what letters stand for so far; the line's own letter is added."""
    place = line.find(wording.NUMBER_OF)
    if line.startswith("- Plan: "):
        step = _outline(line)
    elif place < 0:
        step = _verification(line, names)
    else:
        step = _solution(line, line[:place], line[place + len(wording.NUMBER_OF) :])
    if step is None:
        return ParsedStep(text=line)
    if step.symbol and step.node:
        names.setdefault(step.symbol, step.node)
    return step


def _solution(line: str, head: str, rest: str) -> ParsedStep | None:
    """A line that brings a quantity up, then solves it or turns back."""
    sentence, _, tail = rest.partition(". ")
    given: Value | None = None
    if head.endswith(" represent "):
        name, letter = sentence, head[:-11].rpartition(" ")[2]
    elif tail.startswith(wording.REMEMBER):
        letter, _, tail = tail[len(wording.REMEMBER) :].partition(". ")
        name = sentence
    elif tail.startswith("Let's denote it as "):
        letter, _, tail = tail[len("Let's denote it as ") :].partition(". ")
        name, _, number = sentence.rpartition(" is ")
        given = value_of(number)
        if given is None:
            return None
    else:
        name, _, letter = sentence.rpartition(" as ")
    if len(letter) != 1 or not letter.isalpha() or "'s " not in name:
        return None
    relation: Expression | None = None
    if tail.startswith(wording.RELATION):
        words, _, tail = tail[len(wording.RELATION) :].partition(". ")
        relation = parse_relation(words)
        if relation is None:
            return None
    if tail.startswith(wording.UNKNOWN):
        end = wording.STILL_UNKNOWN.format(letter=letter)
        if relation is not None or not tail.endswith(end):
            return None
        missing = tail[len(wording.UNKNOWN) : -len(end)].split(f" and {wording.NUMBER_OF}")
        if not missing[0].startswith(wording.NUMBER_OF):
            return None
        missing[0] = missing[0][len(wording.NUMBER_OF) :]
        return ParsedStep(
            text=line, node=name, kind=StepKind.ATTEMPT, symbol=letter, missing=tuple(missing)
        )
    return _equation(line, name, letter, given, relation, tail)


def _equation(
    line: str, name: str, letter: str, given: Value | None, relation: Expression | None, tail: str
) -> ParsedStep | None:
    """The rest of a line that solves: "Then y = p - v = 48 - 24 = 24."."""
    if not tail.endswith("."):
        return None
    tail, wrong, mended = tail[:-1].partition(wording.MISTAKE)
    start, *sides = tail.split(" = ")
    if start.rpartition(" ")[2] != letter or not sides:
        return None
    value = value_of(sides.pop())
    mistake: Value | None = None
    if wrong:
        again, _, number = mended.partition(" = ")
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
    for clause in line.removeprefix("- Plan: ").removesuffix(".").split("; "):
        name, joint, parents = clause.removeprefix(wording.TO_GET).partition(
            f"{wording.WE_NEED}each "
        )
        if not joint or not clause.startswith(wording.TO_GET):
            return None
        needs.append((name, tuple(parents.split(" and each "))))
    return ParsedStep(text=line, node=needs[0][0], kind=StepKind.OUTLINE, needs=tuple(needs))


_WHOLE_LINE = {
    StepKind.ATTEMPT: "reflection",
    StepKind.VERIFY: "verification",
    StepKind.OUTLINE: "planning",
}


def behavior_spans(response: str) -> list[Span]:
    """What ``wording.render`` marks: whole lines of reflection, verification and planning, and
    parts of others.
    """
    spans: list[Span] = []
    names: dict[str, str] = {}
    start = 0
    for line in response.split("\n"):
        step = parse_line(line, names)
        if behavior := _WHOLE_LINE.get(step.kind):
            spans.append(Span(start, start + len(line), behavior))
        else:
            if step.relation is not None:
                place = line.index(wording.RELATION)
                spans.append(Span(start + place, start + line.index(". ", place) + 2, "analysis"))
            end = len(line)
            if step.mistake is not None:
                place = line.rindex(wording.MISTAKE)  # the first may stand before the solution
                end = line.rindex(" = ", 0, place)
                correction = Span(start + end, start + line.rindex(" = "), "correction")
            else:
                end = line.rfind(" = ")
            if step.subgoal:
                extra = sum(len(side) + len(" = ") for side in step.numbers[1:])
                spans.append(Span(start + end - extra, start + end, "subgoal"))
            if step.mistake is not None:
                spans.append(correction)
        start += len(line) + 1
    return spans
