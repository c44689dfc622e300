"""Which quantity of an iGSM problem is computed from which, with an exact number of operations.

A quantity takes ``max(1, k - 1)`` operations, where k <= 4 counts its operands, a number of its own
among them. The stages are those of arXiv:2407.20311: abstract quantities with all that they are
computed from, up to a first budget of operations; instance quantities, up to a second; an order
from the question backwards in which each is needed; more operands until the number of operations is
exact; then quantities that the question does not need. Nothing here has a value or a name yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
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
    # range of the share of the operations that the first stage may use
    abstract_low: float = 0.47
    abstract_high: float = 0.92
    # range of the share that the first two stages may use together
    instance_low: float = 0.63
    instance_high: float = 0.92
    # operands that are the latest possible quantity, which makes long chains; others are any
    late: float = 0.9
    leaf: float = 0.3  # quantities with no operands so far that stay given by a number alone
    same: float = 0.1  # quantities with one operand that stay equal to it
    number: float = 0.7  # free operands that are a number
    redundant_leaf: float = 0.03  # redundant quantities that are given by a number alone


@dataclass(slots=True)
class Draft:
    """A problem without values and names: quantities in a topological order.

    Attributes:
        structure: the items and edges that the quantities are about.
        quantities: number of an edge (an instance quantity), or ``len(edges) + 3 * item + depth``
            for an abstract one (what the item holds in the layer ``depth + 1`` below it).
        operands: for each quantity, the positions of the earlier ones that it is computed from.
        numbers: for each quantity, whether it also takes a number of its own.
        question: position of the quantity that is asked for.
        needed: number of quantities that the question needs, itself among them.
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
    """A random draft of exactly ``ops`` operations and at most ``redundant`` redundant quantities.

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
        position = len(order)
        if uniform() >= shape.late:
            position = int(uniform() * len(order)) + 1
        count = 1 if uniform() < shape.redundant_leaf else 2
        numbers[edge] = _fill(uniform, chosen, edge, order, position, count, shape)
        order.insert(position, edge)
    position_of = dict(zip(order, range(len(order)), strict=True))
    operands: list[list[int]] = []
    for quantity in order:
        operands.append(list(map(position_of.__getitem__, chosen[quantity])))
    return Draft(
        structure=structure,
        quantities=order,
        operands=operands,
        numbers=[numbers.get(quantity, False) for quantity in order],
        question=position_of[question],
        needed=needed,
    )


def _budget(uniform: Callable[[], float], ops: int, low: float, high: float) -> int:
    """A share of the operations between ``low`` and ``high``, rounded at random."""
    return int(ops * (low + uniform() * (high - low)) + uniform())


def _take(uniform: Callable[[], float], pool: list[int]) -> int:
    """Remove a random element; the order of the rest changes."""
    return _remove(pool, int(uniform() * len(pool)))


def _remove(pool: list[int], position: int) -> int:
    """Remove an element; the last one takes its position."""
    taken = pool[position]
    pool[position] = pool[-1]
    pool.pop()
    return taken


def _abstract_operands(structure: Structure) -> dict[int, list[int]]:
    """The operands of each abstract quantity.

    They are edges, or pairs of an edge and an abstract quantity one layer below. Quantities that
    would have too many operands are left out, and those that are computed from them.
    """
    edges = len(structure.edges)
    abstract: dict[int, list[int]] = {}
    for item in range(len(structure.layer) - 1, -1, -1):
        below = structure.below[item]
        if not below:
            continue
        quantity = edges + (MAX_LAYERS - 1) * item
        abstract[quantity] = below
        if 2 * len(below) > MAX_IN_DEGREE:
            continue
        # the first abstract quantity of each item below
        inner = [edges + (MAX_LAYERS - 1) * structure.edges[edge][1] for edge in below]
        for depth in range(MAX_LAYERS - 2):
            nested = [first + depth for first in inner]
            if not abstract.keys() >= set(nested):
                break
            pairs = zip(below, nested, strict=True)
            abstract[quantity + depth + 1] = list(chain.from_iterable(pairs))
    return abstract


def _abstract_stage(
    uniform: Callable[[], float], structure: Structure, budget: int
) -> tuple[dict[int, list[int]], int]:
    """Abstract quantities with all that they are computed from, within a budget of operations.

    Returns:
        Their operands, and the number of operations used.
    """
    abstract = _abstract_operands(structure)
    candidates = list(abstract)
    chosen: dict[int, list[int]] = {}
    used = 0
    while candidates and used < budget:
        new: dict[int, list[int]] = {}
        waiting = [_take(uniform, candidates)]
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
    """Order the quantities from the question backwards; each is an operand of a later one.

    Args:
        uniform: draws a number from [0, 1).
        chosen: operands of every quantity; those of instance quantities are filled in.
        edges: number of edges; the quantities below this number are instance quantities.
        extra: operations that are left to spend.
        shape: the free parameters.

    Returns:
        The order, the question last, and the operations still left; an empty order at a dead end.
    """
    # for each quantity, the number of abstract ones that need it and are not placed yet
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
        candidates = len(needed)
        if open_ or not placed:
            candidates += len(loose)
        position = int(uniform() * candidates)
        if position < len(needed):
            quantity = _remove(needed, position)
        elif not placed:
            quantity = _take(uniform, loose)
        else:
            if not open_:
                return [], extra
            quantity = _take(uniform, loose)
            user, extra = _user(uniform, chosen, open_, extra, shape.late)
            if user is None:
                return [], extra
            chosen[user].append(quantity)
        placed.append(quantity)
        if quantity < edges:
            open_.append(quantity)
            continue
        for operand in chosen[quantity]:
            waiting[operand] -= 1
            if not waiting[operand]:
                needed.append(operand)
    placed.reverse()
    return placed, extra


def _user(
    uniform: Callable[[], float],
    chosen: dict[int, list[int]],
    open_: list[int],
    extra: int,
    late: float,
) -> tuple[int | None, int]:
    """A placed quantity that takes another operand, and the operations left; None: there is none.

    Quantities that cannot take another one are removed from ``open_``.
    """
    while open_:
        position = len(open_) - 1
        if uniform() >= late:
            position = int(uniform() * len(open_))
        count = len(chosen[open_[position]])
        if count < 2:
            return open_[position], extra
        if extra and count < MAX_IN_DEGREE:
            return open_[position], extra - 1
        _remove(open_, position)
    return None, extra


def _exact_stage(
    uniform: Callable[[], float],
    chosen: dict[int, list[int]],
    order: list[int],
    edges: int,
    extra: int,
    shape: Shape,
) -> dict[int, bool] | None:
    """Add operands until ``extra`` more operations are spent.

    Returns:
        Whether each instance quantity takes a number of its own; None at a dead end.
    """
    positions = [position for position, quantity in enumerate(order) if quantity < edges]
    counts: dict[int, int] = {}  # of operands, by position
    # three operands, a number among them, need two quantities before it
    room = [position for position in positions if position >= 2]
    while extra:
        if not room:
            return None
        index = int(uniform() * len(room))
        position = room[index]
        count = counts.get(position) or max(2, len(chosen[order[position]]))
        if count < min(MAX_IN_DEGREE, position + 1):
            counts[position] = count + 1
            extra -= 1
        else:
            _remove(room, index)
    numbers: dict[int, bool] = {}
    for position in positions:
        quantity = order[position]
        count = counts.get(position, 0)
        if not count:
            count = _operand_count(uniform, len(chosen[quantity]), position, shape)
        numbers[quantity] = _fill(uniform, chosen, quantity, order, position, count, shape)
    return numbers


def _operand_count(uniform: Callable[[], float], current: int, before: int, shape: Shape) -> int:
    """Number of operands of a quantity of one operation.

    Args:
        uniform: draws a number from [0, 1).
        current: number of operands so far.
        before: number of quantities before it.
        shape: the free parameters.
    """
    if current >= 2:
        return current
    if not before:
        return 1
    share_of_one = shape.same if current else shape.leaf
    if uniform() < share_of_one:
        return 1
    return 2


def _fill(
    uniform: Callable[[], float],
    chosen: dict[int, list[int]],
    quantity: int,
    order: list[int],
    before: int,
    count: int,
    shape: Shape,
) -> bool:
    """Give a quantity ``count`` operands, out of the first ``before`` quantities of the order.

    Returns:
        Whether one of them is a number.
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
