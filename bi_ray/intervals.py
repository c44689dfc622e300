"""Estimates with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_error(cls, value: float, error: float) -> Interval:
        """The interval of a normally distributed estimate with this standard error."""
        return cls(value, value - Z95 * error, value + Z95 * error)

    @property
    def sign(self) -> int:
        """1 if the whole interval is above 0, -1 if it is below, 0 if it contains 0."""
        return (self.low > 0) - (self.high < 0)

    def as_json(self) -> dict[str, float]:
        """The interval as files hold it."""
        return {"value": float(self.value), "low": float(self.low), "high": float(self.high)}


def wilson(right: int, total: int) -> Interval:
    """Wilson's score interval of a proportion.

    Raises:
        ValueError: ``total`` is 0, or ``right`` is not in 0 .. ``total``.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"expected 0 <= right <= total and total > 0, got {right} of {total}")
    share, z2 = right / total, Z95**2 / total
    center = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(share * (1 - share) / total + z2 / (4 * total))
    # in exact arithmetic the bounds enclose the share and stay in [0, 1]
    low = min(share, max(0.0, center - half))
    high = max(share, min(1.0, center + half))
    return Interval(share, low, high)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of ``k`` samples is right.

    Equation 1 of arXiv:2107.03374, from ``right`` of ``samples`` samples.

    Raises:
        ValueError: there are fewer than ``k`` samples.
    """
    if samples < k or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {right} of {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def bootstrap_mean(values: Sequence[ArrayLike], draws: int, seed: int) -> Interval:
    """Percentile bootstrap of a mean over problems, or over seeds and the problems within them.

    Args:
        values: one array of shape [problems] per training seed. With one seed, only problems are
            drawn; with several, each draw takes that many seeds with replacement and then, for each
            of them anew, its problems.
        draws: number of bootstrap draws.
        seed: seed of the random numbers.

    Raises:
        ValueError: a seed has no problems, or there is no seed.
    """
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("nothing to draw from: every seed needs at least one problem")
    rng = np.random.default_rng(seed)
    count = len(arrays)
    chosen = np.zeros((draws, 1), dtype=np.int64)
    if count > 1:
        chosen = rng.integers(count, size=(draws, count))
    means = np.empty((draws, count))
    for index, array in enumerate(arrays):
        where = chosen == index
        means[where] = _resampled_means(array, int(where.sum()), rng)
    low, high = np.quantile(means.mean(axis=1), (0.025, 0.975))
    value = np.mean([array.mean() for array in arrays])
    return Interval(float(value), float(low), float(high))


def _resampled_means(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Means of ``draws`` resamples of ``values``, shape [draws].

    Drawing n values with replacement amounts to one draw of how often each distinct value occurs,
    and 0/1 scores and their differences have few distinct values.
    """
    distinct, counts = np.unique(values, return_counts=True)
    return rng.multinomial(values.size, counts / values.size, size=draws) @ distinct / values.size
