"""Advantages of a group of samples of one prompt: A_i = (r_i - mean) / std (section 2 of arXiv:2505.18917)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def group_advantages(
    rewards: Sequence[float], std: Literal["population", "sample"] = "population", epsilon: float = 0.0
) -> list[float]:
    """Advantages in the order of ``rewards``; zeros when all rewards are equal.

    With binary rewards, n of N right, population std and no epsilon these are Eq. 6: sqrt((N-n)/n) for the right ones
    and -sqrt(n/(N-n)) for the wrong ones.

    Args:
        rewards: one number per sample of the group.
        std: divide the squared deviations by N (population) or by N - 1 (sample).
        epsilon: added to the standard deviation.

    Raises:
        ValueError: a reward is not finite (a failure is never a reward).
    """
    if not all(math.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite, found {list(rewards)}")
    # Compared, not computed: the mean of equal numbers may differ from them in the last bit.
    if len(set(rewards)) <= 1:
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    deviations = [reward - mean for reward in rewards]
    squares = math.fsum(deviation**2 for deviation in deviations)
    spread = math.sqrt(squares / (len(rewards) - (std == "sample"))) + epsilon
    return [deviation / spread for deviation in deviations]
