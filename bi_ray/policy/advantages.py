"""Advantages of samples, from their rewards: A_i = (r_i - baseline) / spread. Pure: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Std = Literal["population", "sample", "none"]


def step_advantages(groups: Sequence[Sequence[float]], kind: str, std: Std, epsilon: float) -> list[list[float]]:
    """Advantages of all groups of a step, in the order of their rewards.

    - ``group``: baseline and spread of the sample's own group (GRPO; without std Dr.GRPO and GPG).
    - ``leave_one_out``: the baseline is the mean of the group's other samples, the spread the group's (RLOO).
    - ``batch``: baseline and spread of all samples of the step (REINFORCE++).
    - ``group_batch``: the group's baseline, and the spread of what is left over all samples (REINFORCE++-baseline).

    Args:
        groups: rewards of each group, two at least.
        kind: which of the four.
        std: see ``group_advantages``; none: the spread is 1.
        epsilon: added to the spread, where there is one.

    Raises:
        ValueError: a reward is not finite.
    """
    if kind == "group":
        return [group_advantages(rewards, std, epsilon) for rewards in groups]
    if kind == "leave_one_out":
        scales = [len(rewards) / (len(rewards) - 1) for rewards in groups]
        return [
            [scale * advantage for advantage in group_advantages(rewards, std, epsilon)]
            for scale, rewards in zip(scales, groups, strict=True)
        ]
    if kind == "group_batch":
        groups = [group_advantages(rewards, "none") for rewards in groups]
    flat = iter(group_advantages([reward for rewards in groups for reward in rewards], std, epsilon))
    return [[next(flat) for _ in rewards] for rewards in groups]


def group_advantages(rewards: Sequence[float], std: Std = "population", epsilon: float = 0.0) -> list[float]:
    """Advantages in the order of ``rewards``; zeros when all rewards are equal (section 2 of arXiv:2505.18917).

    With binary rewards, n of N right, population std and no epsilon these are Eq. 6: sqrt((N-n)/n) for the right ones
    and -sqrt(n/(N-n)) for the wrong ones.

    Args:
        rewards: one number per sample of the group.
        std: divide the squared deviations by N (population) or by N - 1 (sample); none: divide by no spread at all.
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
    if std == "none":
        return deviations
    squares = math.fsum(deviation**2 for deviation in deviations)
    spread = math.sqrt(squares / (len(rewards) - (std == "sample"))) + epsilon
    return [deviation / spread for deviation in deviations]
