"""Which quantity of an iGSM problem is computed from which, grown in stages to an exact number of
operations.

A quantity takes ``max(1, k - 1)`` operations, where k <= 4 counts its operands, a number of its own
among them. The stages are those of arXiv:2407.20311: abstract quantities with all that they stand
on, up to a first budget of operations; instance ones, up to a second; an order from the question
backwards in which each is needed; more operands until the operations are exact; then what the
question does not need. Nothing here has a value or a name yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from bi_ray.tasks.igsm.structure import (
    MAX_EDGES,
    MAX_IN_DEGREE,
    MAX_LAYERS,
    Structure,
    draw_structure,
)


class Shape(NamedTuple):
    """The free parameters of the generator. All shares are of 1."""

    instances_per_op: float = 0.56  # edges wanted of the structure, per operation
    # share of the operations that the first stage may use: from here ...
    abstract_low: float = 0.47
    abstract_high: float = 0.92  # ... to here
    instance_low: float = 0.63  # share that the first two stages use together: from here ...
    instance_high: float = 0.92  # ... to here
    # operands that are the latest quantity there can be, which makes long chains; others are any
    late: float = 0.9
    leaf: float = 0.3  # quantities with no operands so far that stay given by a number alone
    same: float = 0.1  # quantities with one operand that stay equal to it
    number: float = 0.7  # free operands that are a number
    # quantities that the question needs not and that are given by a number alone
    redundant_leaf: float = 0.03


@dataclass(slots=True)
class Draft:
    """A problem without values and names: quantities in a topological order.

    Attributes:
        structure: the items and edges that the quantities are about.
        quantities: number of an edge (an instance quantity), or ``len(edges) + 3 * item + depth``
            for an abstract one (what the item holds in the layer ``depth + 1`` below it).
        operands: of each quantity the places of those before it that it is computed from.
        numbers: whether each takes a number of its own, too.
        question: place of the quantity that is asked for.
        needed: how many quantities the question needs, itself among them.
    """

    structure: Structure
    quantities: list[int]
    operands: list[list[int]]
    numbers: list[bool]
    question: int
    needed: int


def draw_draft(
    uniform: Callable[[], float], ops: int, redundant: int, shape: Shape
) -> Draft | None:
    """A random draft of exactly ``ops`` operations and at most ``redundant`` quantities that the
    question needs not.

    Returns:
        None where the stages met a dead end: draw again.
    """
    wanted = min(MAX_EDGES, int(shape.instances_per_op * ops + 0.5) + redundant)
    structure = draw_structure(uniform, max(1, wanted))
    edges = len(structure.edges)
    first = _budget(uniform, ops, shape.abstract_low, shape.abstract_high)
    chosen, used = _abstract_stage(uniform, structure, first)
    second = _budget(uniform, ops, shape.instance_low, shape.instance_high)
    free = [edge for edge in range(edges) if edge not in chosen]
    while free and (used < second or not chosen):
        chosen[_take(uniform, free)] = []
        used += 1
    order, used = _backwards(uniform, chosen, edges, ops - used, shape)
    if not order:
        return None
    numbers = _exact_stage(uniform, chosen, order, edges, used, shape)
    if numbers is None:
        return None
    question = order[-1]
    needed = len(order)
    for _ in range(min(redundant, len(free))):
        edge = _take(uniform, free)
        place = len(order) if uniform() < shape.late else int(uniform() * len(order)) + 1
        count = 1 if uniform() < shape.redundant_leaf else 2
        numbers[edge] = _fill(uniform, chosen, edge, order, place, count, shape)
        order.insert(place, edge)
    places = {quantity: place for place, quantity in enumerate(order)}
    return Draft(
        structure,
        order,
        [[places[operand] for operand in chosen[quantity]] for quantity in order],
        [numbers.get(quantity, False) for quantity in order],
        places[question],
        needed,
    )


def _budget(uniform: Callable[[], float], ops: int, low: float, high: float) -> int:
    """A share of the operations between ``low`` and ``high``, rounded at random so that none is out
    of reach.
    """
    return int(ops * (low + uniform() * (high - low)) + uniform())


def _take(uniform: Callable[[], float], pool: list[int]) -> int:
    """Remove a random element; the order of the rest changes."""
    place = int(uniform() * len(pool))
    taken = pool[place]
    pool[place] = pool[-1]
    pool.pop()
    return taken


def _abstract_operands(structure: Structure) -> dict[int, list[int]]:
    """What each abstract quantity is computed from: edges, or pairs of an edge and an abstract
    quantity one layer on.

    Those that would have more operands than a quantity may have are left out, and what stands on
    them.
    """
    edges = len(structure.edges)
    found: dict[int, list[int]] = {}
    for item in range(len(structure.layer) - 1, -1, -1):
        below = structure.below[item]
        if not below:
            continue
        quantity = edges + (MAX_LAYERS - 1) * item
        found[quantity] = below
        if 2 * len(below) <= MAX_IN_DEGREE:
            inner = [edges + (MAX_LAYERS - 1) * structure.edges[edge][1] for edge in below]
            for depth in range(MAX_LAYERS - 2):
                if not all([first + depth in found for first in inner]):
                    break
                found[quantity + depth + 1] = [
                    operand
                    for edge, first in zip(below, inner, strict=True)
                    for operand in (edge, first + depth)
                ]
    return found


def _abstract_stage(
    uniform: Callable[[], float], structure: Structure, budget: int
) -> tuple[dict[int, list[int]], int]:
    """Abstract quantities with all that they stand on, within a budget of operations; and the
    operations used.
    """
    abstract = _abstract_operands(structure)
    candidates = list(abstract)
    chosen: dict[int, list[int]] = {}
    used = 0
    while candidates and used < budget:
        place = int(uniform() * len(candidates))
        new: dict[int, list[int]] = {}
        waiting = [candidates[place]]
        candidates[place] = candidates[-1]
        candidates.pop()
        cost = used
        while waiting and cost <= budget:
            quantity = waiting.pop()
            if quantity in chosen or quantity in new:
                continue
            operands = abstract.get(quantity)
            if operands is None:
                new[quantity] = []
                cost += 1
            else:
                new[quantity] = operands
                cost += len(operands) - 1 or 1
                waiting += operands
        if cost <= budget:
            chosen.update(new)
            used = cost
    return chosen, used


def _backwards(
    uniform: Callable[[], float], chosen: dict[int, list[int]], edges: int, extra: int, shape: Shape
) -> tuple[list[int], int]:
    """Order the quantities from the question backwards, making each an operand of one that comes
    later.

    Args:
        uniform: a number from [0, 1).
        chosen: operands of every quantity; those of instance ones are filled in.
        edges: quantities below this number are instance ones.
        extra: operations that are left to spend.
        shape: the free parameters.

    Returns:
        The order, the question last, and the operations still left; no order where it met a dead
        end.
    """
    # for each quantity how many abstract ones that need it are not placed yet
    waiting = dict.fromkeys(chosen, 0)
    for quantity, operands in chosen.items():
        if quantity >= edges:
            for operand in operands:
                waiting[operand] += 1
    needed: list[int] = []  # can be placed; something placed needs them
    # can be placed; nothing needs them yet
    loose = [quantity for quantity, count in waiting.items() if not count]
    placed: list[int] = []
    open_: list[int] = []  # placed instance quantities that can take another operand
    while needed or loose:
        place = int(uniform() * (len(needed) + (len(loose) if open_ or not placed else 0)))
        if place < len(needed):
            quantity = needed[place]
            needed[place] = needed[-1]
            needed.pop()
        elif not open_ and placed:
            return [], extra
        else:
            quantity = _take(uniform, loose)
            if placed:
                while True:
                    place = (
                        len(open_) - 1 if uniform() < shape.late else int(uniform() * len(open_))
                    )
                    operands = chosen[open_[place]]
                    if len(operands) < 2:
                        break
                    if extra and len(operands) < MAX_IN_DEGREE:
                        extra -= 1
                        break
                    open_[place] = open_[-1]
                    open_.pop()
                    if not open_:
                        return [], extra
                operands.append(quantity)
        placed.append(quantity)
        if quantity < edges:
            open_.append(quantity)
        else:
            for operand in chosen[quantity]:
                waiting[operand] -= 1
                if not waiting[operand]:
                    needed.append(operand)
    placed.reverse()
    return placed, extra


def _exact_stage(
    uniform: Callable[[], float],
    chosen: dict[int, list[int]],
    order: list[int],
    edges: int,
    extra: int,
    shape: Shape,
) -> dict[int, bool] | None:
    """Raise in-degrees until ``extra`` operations more are there; who takes a number of its own,
    None at a dead end.
    """
    places = [place for place, quantity in enumerate(order) if quantity < edges]
    counts: dict[int, int] = {}
    # three operands, a number among them, need two before it
    room = [place for place in places if place >= 2]
    while extra:
        if not room:
            return None
        index = int(uniform() * len(room))
        place = room[index]
        count = counts.get(place) or max(2, len(chosen[order[place]]))
        if count < min(MAX_IN_DEGREE, place + 1):
            counts[place] = count + 1
            extra -= 1
        else:
            room[index] = room[-1]
            room.pop()
    numbers: dict[int, bool] = {}
    for place in places:
        quantity = order[place]
        count = counts.get(place) or _operand_count(uniform, len(chosen[quantity]), place, shape)
        numbers[quantity] = _fill(uniform, chosen, quantity, order, place, count, shape)
    return numbers


def _operand_count(uniform: Callable[[], float], have: int, before: int, shape: Shape) -> int:
    """How many operands a quantity of one operation gets that has ``have`` so far, and ``before``
    ones before it.
    """
    if have >= 2:
        return have
    if before and uniform() >= (shape.same if have else shape.leaf):
        return 2
    return 1


def _fill(
    uniform: Callable[[], float],
    chosen: dict[int, list[int]],
    quantity: int,
    order: list[int],
    before: int,
    count: int,
    shape: Shape,
) -> bool:
    """Give a quantity ``count`` operands, of the first ``before`` ones; whether one of them is a
    number.
    """
    operands = chosen.setdefault(quantity, [])
    missing = count - len(operands)
    if not missing:
        return False
    number = count == 1 or missing > before - len(operands) or uniform() < shape.number
    missing -= number
    late = shape.late
    while missing:
        operand = order[before - 1 if uniform() < late else int(uniform() * before)]
        if operand not in operands:
            operands.append(operand)
            missing -= 1
    return number
