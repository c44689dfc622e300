"""Names, relations and values for the draft of an iGSM problem."""

from __future__ import annotations

from collections.abc import Callable
from operator import mul
from typing import NamedTuple

from bi_ray.reasoning.expression import Expression, Operator
from bi_ray.tasks.igsm.dependencies import Draft
from bi_ray.tasks.igsm.structure import MAX_LAYERS
from bi_ray.tasks.igsm.vocabulary import WORLDS

ADD, SUBTRACT, MULTIPLY, SAME = Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY, Operator.SAME


class Numbers(NamedTuple):
    """Which numbers and relations occur.

    Ranges are pairs of the least number and how many numbers there are; shares are between 0 and 1.

    Attributes:
        given: range of the values of given quantities.
        added: range of the numbers in "... more than".
        factors: range of the numbers in "... times".
        times: share of the relations with a number that multiply by it.
        difference: share of the relations between two quantities that subtract.
        equal: whether equal quantities may be subtracted.
        every: whether the limit holds for every quantity, or for the answer alone.
        tries: draws of the relation of a quantity until its value is within the limit.
    """

    given: tuple[int, int]
    added: tuple[int, int]
    factors: tuple[int, int]
    times: float
    difference: float
    equal: bool
    every: bool
    tries: int


PAPER = Numbers(
    given=(0, 10),
    added=(0, 10),
    factors=(0, 10),
    times=0.9,
    difference=0.5,
    equal=True,
    every=False,
    tries=1,
)
CLEAN = Numbers(
    given=(1, 20),
    added=(1, 20),
    factors=(2, 8),
    times=0.3,
    difference=0.5,
    equal=False,
    every=True,
    tries=8,
)


def draw_names(uniform: Callable[[], float], draft: Draft) -> list[str]:
    """A name for every quantity of a draft, "A's B", from one world.

    The items of a layer are in alphabetical order: sums over them are read back in that order.
    """
    world = WORLDS[int(uniform() * len(WORLDS))]
    layers = draft.structure.layer
    outermost = int(uniform() * (MAX_LAYERS - layers[-1]))
    items: list[str] = []
    for layer in range(layers[-1] + 1):
        groups = world.groups[outermost + layer]
        names = list(groups[int(uniform() * len(groups))])
        while len(names) > layers.count(layer):
            del names[int(uniform() * len(names))]
        items += names
    edges = draft.structure.edges
    quantity_names: list[str] = []
    for quantity in draft.quantities:
        if quantity < len(edges):
            holder, item = edges[quantity]
            held = items[item]
        else:
            holder, depth = divmod(quantity - len(edges), MAX_LAYERS - 1)
            held = world.categories[outermost + layers[holder] + depth + 1]
        quantity_names.append(f"{items[holder]}'s {held}")
    return quantity_names


class Relation(NamedTuple):
    """How a quantity is computed from its operands: ``number outer (operand inner operand ...)``.

    Attributes:
        inner: operator that joins the operands; None: there are none, and the number is the value.
        outer: operator that joins the number to them; None: there is no number.
        number: the number.
    """

    inner: Operator | None
    outer: Operator | None = None
    number: int = 0


PLAIN_SUM, EQUAL = Relation(ADD), Relation(SAME)
PRODUCTS = Relation(MULTIPLY)  # a sum of products of pairs


def draw_values(
    uniform: Callable[[], float], draft: Draft, numbers: Numbers, limit: int
) -> tuple[list[Relation], list[int]] | None:
    """A relation and a value for every quantity, in the order of the draft.

    Args:
        uniform: draws a number from [0, 1).
        draft: what is computed from what.
        numbers: which numbers and relations occur.
        limit: largest absolute value of the answer, or of every quantity.

    Returns:
        None where a value is beyond the limit.
    """
    edges = len(draft.structure.edges)
    every, tries = numbers.every, range(numbers.tries)
    relations: list[Relation] = []
    values: list[int] = []
    for quantity, positions, with_number in zip(
        draft.quantities, draft.operands, draft.numbers, strict=True
    ):
        operands = [values[position] for position in positions]
        if quantity < edges:
            for _ in tries:
                relation, value = _draw_relation(uniform, operands, with_number, numbers)
                if -limit <= value <= limit:
                    break
        elif (quantity - edges) % (MAX_LAYERS - 1):
            relation = PRODUCTS
            value = sum(map(mul, operands[::2], operands[1::2]))
        else:
            relation = PLAIN_SUM if len(operands) > 1 else EQUAL
            value = sum(operands)
        if every and not -limit <= value <= limit:
            return None
        relations.append(relation)
        values.append(value)
    if -limit <= values[draft.question] <= limit:
        return relations, values
    return None


def _draw_relation(
    uniform: Callable[[], float], operands: list[int], with_number: bool, numbers: Numbers
) -> tuple[Relation, int]:
    """A random relation of an instance quantity to its operands, and its value."""
    count = len(operands)
    if not count:
        given = numbers.given[0] + int(uniform() * numbers.given[1])
        return Relation(None, None, given), given
    inner, value = ADD, sum(operands)
    if count == 1:
        inner = SAME
    elif count == 2 and uniform() < numbers.difference:
        a, b = operands
        if numbers.equal or a != b:
            inner, value = SUBTRACT, a - b
    if not with_number:
        return Relation(inner), value
    if uniform() < numbers.times:
        factor = numbers.factors[0] + int(uniform() * numbers.factors[1])
        return Relation(inner, MULTIPLY, factor), factor * value
    added = numbers.added[0] + int(uniform() * numbers.added[1])
    return Relation(inner, ADD, added), added + value


def formula_of(relation: Relation, names: list[str]) -> Expression:
    """A relation between named operands as an expression."""
    inner, outer, number = relation
    if inner is None:
        return number
    if relation is PRODUCTS:
        products = [(MULTIPLY, a, b) for a, b in zip(names[::2], names[1::2], strict=True)]
        if len(products) == 1:
            return products[0]
        return (ADD, *products)
    if outer is None:
        return (inner, *names)
    if inner is SAME:
        return (outer, number, names[0])
    if inner is ADD and outer is ADD:
        return (ADD, number, *names)
    return (outer, number, (inner, *names))
