"""Estimates with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def wilson(right: int, total: int) -> Interval:
    """Wilson's score interval of a proportion.

    Raises:
        ValueError: ``total`` is 0, or ``right`` is not in 0 .. ``total``.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} of {total} is no proportion")
    share, z2 = right / total, _Z95**2 / total
    center = (share + z2 / 2) / (1 + z2)
    half = _Z95 / (1 + z2) * math.sqrt(share * (1 - share) / total + z2 / (4 * total))
    return Interval(share, min(share, max(0.0, center - half)), max(share, min(1.0, center + half)))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` samples is right, from ``right`` of
    ``samples`` (2107.03374).

    Raises:
        ValueError: there are fewer than ``k`` samples.
    """
    if samples < k or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {right} of {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def bootstrap_mean(values: Sequence[ArrayLike], draws: int, seed: int) -> Interval:
    """Percentile bootstrap of a mean over problems, or over seeds and the problems within them.

    Args:
        values: one array of shape [problems] per training seed. With one seed only problems are
            drawn; with several, each draw takes that many seeds with replacement and then, anew for
            each, its problems.
        draws: how many.
        seed: of the random numbers.

    Raises:
        ValueError: a seed has no problems, or there is no seed.
    """
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("nothing to draw from: every seed needs at least one problem")
    rng = np.random.default_rng(seed)
    count = len(arrays)
    chosen = (
        rng.integers(count, size=(draws, count))
        if count > 1
        else np.zeros((draws, 1), dtype=np.int64)
    )
    means = np.empty((draws, count))
    for index, array in enumerate(arrays):
        where = chosen == index
        means[where] = _resampled_means(array, int(where.sum()), rng)
    low, high = np.quantile(means.mean(axis=1), (0.025, 0.975))
    return Interval(float(np.mean([array.mean() for array in arrays])), float(low), float(high))


def _resampled_means(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Means of ``draws`` resamples of ``values``, shape [draws].

    Drawing n values with replacement is one draw of how often each distinct value occurs, and 0/1
    scores and their differences have few distinct values.
    """
    distinct, counts = np.unique(values, return_counts=True)
    return rng.multinomial(values.size, counts / values.size, size=draws) @ distinct / values.size
