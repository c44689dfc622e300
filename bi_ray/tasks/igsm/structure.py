"""What holds what in an iGSM problem: layers of items, and edges to the items of the next layer.

Written for speed, on integers: a problem gets its names later, and only if it is kept.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

MAX_LAYERS = 4
MAX_WIDTH = 4  # items of a layer
MAX_IN_DEGREE = 4  # operands of a quantity, a number among them
_SHARPNESS = 0.35  # of the softmax over shapes, per edge
_SPARE_EDGES = 3  # most edges beyond those that are wanted, where the shape has room for them


class Structure(NamedTuple):
    """Items, numbered layer by layer from the outermost, and edges between neighboring layers.

    Attributes:
        layer: the layer of each item.
        edges: pairs of an item and one of the next layer that it holds, in ascending order.
        below: for each item the numbers of its edges, in ascending order.
    """

    layer: list[int]
    edges: list[tuple[int, int]]
    below: list[list[int]]


@lru_cache(maxsize=256)
def _shapes(wanted: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """Every shape (items per layer) with room for ``wanted`` edges, and its cumulative weight.

    The weights are a softmax. A shape is the likelier, the nearer its mean number of edges is to
    ``wanted``: harder problems get more layers and more items.
    """
    shapes: list[tuple[int, ...]] = []
    weights: list[float] = []
    for layers in range(2, MAX_LAYERS + 1):
        for shape in itertools.product(range(2, MAX_WIDTH + 1), repeat=layers):
            least = sum(shape[1:])
            most = sum(map(math.prod, itertools.pairwise(shape)))
            if wanted <= most:
                shapes.append(shape)
                weights.append(math.exp(-_SHARPNESS * abs((least + most) / 2 - wanted)))
    return shapes, list(itertools.accumulate(weights))


MAX_EDGES = (MAX_LAYERS - 1) * MAX_WIDTH**2


def draw_structure(uniform: Callable[[], float], wanted: int) -> Structure:
    """A random structure; every item below the first layer is held.

    Args:
        uniform: draws a number from [0, 1), as ``random.Random.random`` does.
        wanted: least number of edges, at most ``MAX_EDGES``.
    """
    shapes, cumulated = _shapes(wanted)
    shape = shapes[bisect(cumulated, uniform() * cumulated[-1])]
    layer: list[int] = []
    chosen: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    start = 0
    for depth, width in enumerate(shape):
        end = start + width
        layer += [depth] * width
        if depth:
            above = range(start - shape[depth - 1], start)
            for item in range(start, end):
                holder = start - 1 - int(uniform() * len(above))
                for upper in above:
                    edges = chosen if upper == holder else others
                    edges.append((upper, item))
        start = end
    more = wanted - len(chosen) + int(uniform() * (_SPARE_EDGES + 1))
    for _ in range(min(more, len(others))):
        position = int(uniform() * len(others))
        chosen.append(others[position])
        others[position] = others[-1]
        others.pop()
    chosen.sort()
    below: list[list[int]] = [[] for _ in layer]
    for number, (upper, _) in enumerate(chosen):
        below[upper].append(number)
    return Structure(layer, chosen, below)
