"""Ways to break a right chain of thought, each with the line at which it breaks and why.

A mutation works on parsed lines, so it fits every task; it knows the graph and nothing of the
checker.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import Notation, Operator, Truth, Value, substitute
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import StepKind, another_way, outline


class Wrong(NamedTuple):
    """A broken trace, the place of its first bad line, and words that the reason has to hold."""

    steps: list[ParsedStep]
    place: int
    reason: str


class Trace(NamedTuple):
    """A right one that solves node after node, without attempts, plans and verifications."""

    steps: list[ParsedStep]
    graph: Graph
    notation: Notation

    def text(self, expression) -> str:
        """As this trace writes an expression: by its symbols, where it has them."""
        symbols = {step.node: step.symbol for step in self.steps if step.symbol}
        return self.notation.text(substitute(expression, symbols))

    def changed(self, place: int, *steps: ParsedStep) -> list[ParsedStep]:
        """With the line at ``place`` replaced."""
        return [*self.steps[:place], *steps, *self.steps[place + 1 :]]

    def with_line(self, place: int, step: ParsedStep) -> list[ParsedStep]:
        """With a line more before the one at ``place``."""
        return [*self.steps[:place], step, *self.steps[place:]]

    def computed(self, rng: random.Random, *operators: Operator) -> int | None:
        """Place of a random computed line, of one of the operators."""
        nodes = self.graph.nodes
        found = [
            place
            for place, step in enumerate(self.steps)
            if (operator := nodes[step.node].operator) and (not operators or operator in operators)
        ]
        return rng.choice(found) if found else None


Mutation = Callable[[Trace, random.Random], Wrong | None]


def other(value: Value) -> Value:
    """Another value of the same kind."""
    if isinstance(value, Truth):
        return Truth.FALSE if value is Truth.TRUE else Truth.TRUE
    return value + 1


def wrong_value(trace, rng):
    place = rng.randrange(len(trace.steps))
    step = trace.steps[place]
    bad = other(step.value)
    return Wrong(
        trace.changed(place, replace(step, value=bad)), place, f"{step.node} is "
                                                               f"{step.value}, not {bad}"
    )  # fmt: skip


def wrong_order(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    parents = trace.graph.nodes[step.node].parents
    first = min(i for i, other_step in enumerate(trace.steps) if other_step.node in parents)
    rest = [s for s in trace.steps if s is not step]
    return Wrong([*rest[:first], step, *rest[first:]], first, f"solves {step.node} before ")


def missing_parent(trace, rng):
    place = rng.randrange(len(trace.steps) - 1)
    name = trace.steps[place].node
    user = next(
        i for i, step in enumerate(trace.steps) if name in trace.graph.nodes[step.node].parents
    )
    return Wrong(trace.changed(place), user - 1, f"solves {trace.steps[user].node} before {name}")


def starts_with_the_target(trace, rng):
    return Wrong([trace.steps[-1]], 0, f"solves {trace.graph.question} before ")


def attempt(node, missing):
    return ParsedStep(text="", node=node, kind=StepKind.ATTEMPT, missing=tuple(missing))


def reflects_on_an_unlocked_node(trace, rng):
    place = rng.randrange(len(trace.steps))
    node = trace.graph.nodes[trace.steps[place].node]
    return Wrong(
        trace.with_line(place, attempt(node.name, node.parents or [trace.graph.question])),
        place,
        f"turns back from {node.name}, which was not locked",
    )


def reflects_on_a_solved_node(trace, rng):
    place = rng.randrange(1, len(trace.steps))
    name = trace.steps[rng.randrange(place)].node
    return Wrong(trace.with_line(place, attempt(name, ["x"])), place, f"{name} is already solved")


def _locked(trace, rng):
    place = trace.computed(rng)
    node = trace.graph.nodes[trace.steps[place].node]
    first = min(i for i, step in enumerate(trace.steps) if step.node in node.parents)
    return first, node, list(dict.fromkeys(node.parents))


def reflects_on_too_little(trace, rng):
    place, node, missing = _locked(trace, rng)
    return Wrong(
        trace.with_line(place, attempt(node.name, missing[:-1])),
        place,
        f"missing are {', '.join(missing)}",
    )


def reflects_on_too_much(trace, rng):
    place, node, missing = _locked(trace, rng)
    step = attempt(node.name, [*missing, trace.graph.question])
    return Wrong(trace.with_line(place, step), place, f"missing for {node.name}")


def reflects_on_something_else(trace, rng):
    place, node, missing = _locked(trace, rng)
    step = attempt(node.name, [node.name, *missing[1:]])
    return Wrong(trace.with_line(place, step), place, f"missing for {node.name}")


def swapped_operands(trace, rng):
    place = trace.computed(rng, Operator.SUBTRACT, Operator.DIVIDE)
    if place is None:
        return None
    step = trace.steps[place]
    operator, *operands = trace.graph.nodes[step.node].formula
    symbols = trace.text((operator, *reversed(operands)))
    return Wrong(
        trace.changed(place, replace(step, symbols=symbols)),
        place,
        f"{symbols} is not what the problem",
    )


def another_operator(trace, rng):
    confused = {Operator.ADD: Operator.MULTIPLY, Operator.MULTIPLY: Operator.ADD}
    confused |= {Operator.AND: Operator.OR, Operator.OR: Operator.AND}
    place = trace.computed(rng, *confused)
    if place is None:
        return None
    step = trace.steps[place]
    operator, *operands = trace.graph.nodes[step.node].formula
    symbols = trace.text((confused[operator], *operands))
    return Wrong(
        trace.changed(place, replace(step, symbols=symbols)),
        place,
        f"{symbols} is not what the problem",
    )


def cycle(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    symbols = step.symbol or step.node
    return Wrong(
        trace.changed(place, replace(step, symbols=symbols)),
        place,
        f"{symbols} is not what the problem",
    )


def no_equation(trace, rng):
    place = trace.computed(rng)
    step = replace(trace.steps[place], symbols=None, numbers=())
    return Wrong(trace.changed(place, step), place, f"{step.node} needs an equation")


def equation_for_a_given_node(trace, rng):
    given = [i for i, step in enumerate(trace.steps) if not trace.graph.nodes[step.node].operator]
    place = rng.choice(given)
    step = replace(trace.steps[place], symbols=trace.text(trace.graph.question))
    return Wrong(trace.changed(place, step), place, f"{step.node} is given, yet an equation")


def wrong_numbers(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    node = trace.graph.nodes[step.node]
    values = {name: trace.graph.nodes[name].value for name in node.parents}
    values[node.parents[-1]] = other(values[node.parents[-1]])
    text = trace.notation.text(substitute(node.formula, values))
    if not isinstance(substitute(node.formula, values), tuple) or node.operator is Operator.SAME:
        return None
    return Wrong(trace.changed(place, replace(step, numbers=(text,))), place, f"{text} is not ")


def wrong_side(trace, rng):
    place = trace.computed(rng, Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY)
    if place is None or isinstance(trace.steps[place].value, Truth):
        return None
    step = trace.steps[place]
    node = trace.graph.nodes[step.node]
    right = trace.notation.text(
        substitute(node.formula, {n: trace.graph.nodes[n].value for n in node.parents})
    )
    bad = trace.notation.text((Operator.ADD, node.value, 1))
    return Wrong(
        trace.changed(place, replace(step, numbers=(right, bad))),
        place,
        f"{bad} is not {node.value}",
    )


def repeats_its_result(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    text = trace.notation.text(step.value)
    return Wrong(
        trace.changed(place, replace(step, numbers=(text,))), place, f"repeats its result, {text}"
    )


def wrong_restatement(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    name = trace.graph.nodes[step.node].parents[0]
    bad = other(trace.graph.nodes[name].value)
    return Wrong(
        trace.changed(place, replace(step, restated=((name, bad),))),
        place,
        f"restates {name} as {bad}",
    )


def restates_what_is_no_parent(trace, rng):
    place = trace.computed(rng)
    step = replace(
        trace.steps[place], restated=((trace.steps[place].node, trace.steps[place].value),)
    )
    return Wrong(trace.changed(place, step), place, f"restates {step.node} as ")


def wrong_relation(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    relation = (Operator.ADD, step.node, trace.graph.question)
    return Wrong(
        trace.changed(place, replace(step, relation=relation)), place, "restates a relation"
    )


def corrects_what_was_right(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    return Wrong(
        trace.changed(place, replace(step, mistake=step.value)),
        place,
        f"takes back {step.value}, which was",
    )


def corrects_to_the_wrong_value(trace, rng):
    place = trace.computed(rng)
    step = trace.steps[place]
    bad = other(step.value)
    return Wrong(
        trace.changed(
            place, replace(step, mistake=other(bad) if other(bad) != step.value else bad, value=bad)
        ),
        place,
        f"{step.node} is {step.value}, not {bad}",
    )


def _verification(trace, rng):
    """A right verification behind the step at a place, and the place behind it."""
    suited = [i for i, step in enumerate(trace.steps) if another_way(trace.graph.nodes[step.node])]
    if not suited:
        return None
    place = rng.choice(suited)
    check = another_way(trace.graph.nodes[trace.steps[place].node])
    step = ParsedStep(
        text="",
        node=trace.steps[place].node,
        kind=StepKind.VERIFY,
        value=trace.graph.nodes[check.target].value,
        symbols=trace.text(check.expression),
        target=check.target,
    )
    return place + 1, step


def verification(change: Callable[[Trace, ParsedStep], tuple[dict, str]]) -> Mutation:
    def mutate(trace, rng):
        found = _verification(trace, rng)
        if found is None:
            return None
        place, step = found
        changes, reason = change(trace, step)
        return Wrong(trace.with_line(place, replace(step, **changes)), place, reason)

    return mutate


verifies_nothing = verification(
    lambda trace, step: (
        {
            "symbols": trace.text(step.node),
            "target": step.node,
            "value": trace.graph.nodes[step.node].value,
        },
        "says nothing about it",
    )
)
verifies_by_numbers_alone = verification(
    lambda trace, step: ({"symbols": trace.notation.text(step.value)}, "says nothing about it")
)
verifies_by_its_own_equation = verification(
    lambda trace, step: (
        {
            "symbols": trace.text(trace.graph.nodes[step.node].formula),
            "target": step.node,
            "value": trace.graph.nodes[step.node].value,
        },
        "with the equation that gave it",
    )
)
verifies_to_a_wrong_value = verification(
    lambda trace, step: ({"value": other(step.value)}, f"is {step.value}, not {other(step.value)}")
)
verifies_a_stranger = verification(
    lambda trace, step: ({"target": "no such quantity"}, "says nothing about it")
)  # fmt: skip


def verifies_too_early(trace, rng):
    found = _verification(trace, rng)
    if found is None:
        return None
    place, step = found
    return Wrong(
        trace.with_line(place - 1, step), place - 1, f"checks {step.node} before it is solved"
    )


def plan(change: Callable[[Trace, list], tuple[list, str]], place: int = 0) -> Mutation:
    def mutate(trace, rng):
        needs, reason = change(trace, outline(trace.graph))
        step = ParsedStep(
            text="", node=trace.graph.question, kind=StepKind.OUTLINE, needs=tuple(needs)
        )
        return Wrong(trace.with_line(place, step), place, reason)

    return mutate


plans_late = plan(lambda trace, needs: (needs, "plans after it has begun"), place=1)
plans_nothing = plan(lambda trace, needs: ([], "plans nothing"))
plans_too_little = plan(
    lambda trace, needs: (needs[:-1], f"plans without {needs[-1][0]}" if needs[1:] else "nothing")
)
plans_in_a_cycle = plan(
    lambda trace, needs: (
        [needs[0], *needs[1:-1], (needs[-1][0], (needs[0][0],))],
        f"says that {needs[-1][0]} needs {needs[0][0]}",
    )
)
plans_with_too_few_parents = plan(
    lambda trace, needs: (
        [(needs[0][0], needs[0][1][:-1]), *needs[1:]],
        f"says that {needs[0][0]} needs ",
    )
)
plans_forwards = plan(
    lambda trace, needs: (needs[::-1], f"plans {needs[-1][0]}, which nothing before it needs")
)  # fmt: skip


def truncated(trace, rng):
    length = rng.randrange(len(trace.steps))
    return Wrong(trace.steps[:length], length, f"ends before {trace.graph.question} is solved")


def cut_within_a_line(trace, rng):
    place = rng.randrange(len(trace.steps))
    text = trace.steps[place].text[: len(trace.steps[place].text) // 2]
    return Wrong([*trace.steps[:place], ParsedStep(text=text)], place, "no line of a known form")


def repeats_a_step(trace, rng):
    place = rng.randrange(1, len(trace.steps))
    step = trace.steps[rng.randrange(place)]
    return Wrong(trace.with_line(place, step), place, f"{step.node} is already solved")


def unknown_node(trace, rng):
    place = rng.randrange(len(trace.steps))
    step = replace(trace.steps[place], node="nowhere", symbol=None)
    return Wrong(trace.changed(place, step), place, "nowhere is no quantity of the problem")


def babble(trace, rng):
    place = rng.randrange(len(trace.steps))
    return Wrong(
        trace.with_line(place, ParsedStep(text="so now it is clear")),
        place,
        "no line of a known form",
    )


MUTATIONS: dict[str, Mutation] = {
    name: value
    for name, value in globals().items()
    if callable(value)
    and name.islower()
    and not name.startswith("_")
    and name
    not in {
        "other",
        "attempt",
        "verification",
        "plan",
        "outline",
        "another_way",
        "substitute",
        "replace",
    }
}


def wrong_traces(trace: Trace, rng: random.Random) -> Iterator[tuple[str, Wrong]]:
    """Every mutation that fits a trace."""
    for name, mutation in MUTATIONS.items():
        found = mutation(trace, rng)
        if found is not None:
            yield name, found
