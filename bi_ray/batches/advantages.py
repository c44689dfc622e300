"""Advantages of samples, from their rewards: A_i = (r_i - baseline) / spread. Pure: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Std = Literal["population", "sample", "none"]
RIGHT_REWARD = 0.5  # a response with at least this reward counts as right, whoever gave it
# Rewards closer than this are equal; above 1, closer than this share of the largest. Terms of the
# order of 1 that were added up in float32, as in many reward functions, are off by about 1e-7, even
# where they cancel each other. Divided by a spread of that size, rounding would become advantages
# of 1 and -1.
EQUAL_REWARDS = 1e-6


def rewards_differ(rewards: Sequence[float]) -> bool:
    """Whether there is more between the rewards of a group than rounding (``EQUAL_REWARDS``)."""
    if not rewards:
        return False
    low, high = min(rewards), max(rewards)
    largest = max(1.0, abs(low), abs(high))
    # the difference of two large rewards may be no float
    return high / largest - low / largest > EQUAL_REWARDS


def learned_rewards(rewards: Sequence[float], outcomes: Sequence[float]) -> list[float]:
    """The rewards of a group that its advantages are made of.

    Rewards for format, trace and length order right and wrong responses more finely. In a group
    whose outcomes are all the same and wrong nothing but these differs, and divided by their small
    spread they would become as large as the advantages of right answers. Such a group counts by its
    outcomes, so it teaches nothing.

    Args:
        rewards: with everything that was added or taken off.
        outcomes: the same responses by their answers alone (``Verdict.outcome``).
    """
    if rewards_differ(outcomes) or max(outcomes, default=0.0) >= RIGHT_REWARD:
        return list(rewards)
    return list(outcomes)


def step_advantages(
    groups: Sequence[Sequence[float]], kind: str, std: Std, epsilon: float
) -> list[list[float]]:
    """Advantages of all groups of a step, in the order of their rewards.

    - ``group``: baseline and spread of the sample's own group (GRPO; without std Dr.GRPO and GPG).
    - ``leave_one_out``: the baseline is the mean of the group's other samples, the spread the
      group's (RLOO).
    - ``batch``: baseline and spread of all samples of the step (REINFORCE++).
    - ``group_batch``: the group's baseline, and the spread of what is left over all samples
      (REINFORCE++-baseline).

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
    flat = iter(
        group_advantages([reward for rewards in groups for reward in rewards], std, epsilon)
    )
    return [[next(flat) for _ in rewards] for rewards in groups]


def group_advantages(
    rewards: Sequence[float], std: Std = "population", epsilon: float = 0.0
) -> list[float]:
    """Advantages in the order of ``rewards``; zeros when these do not differ (section 2 of
    arXiv:2505.18917).

    With binary rewards, n of N right, population std and no epsilon these are Eq. 6: sqrt((N-n)/n)
    for the right ones and -sqrt(n/(N-n)) for the wrong ones.

    Args:
        rewards: one number per sample of the group.
        std: divide the squared deviations by N (population) or by N - 1 (sample); none: divide by
            no spread at all.
        epsilon: added to the standard deviation.

    Raises:
        ValueError: a reward is not finite (a failure is never a reward), or two are so far apart
            that their difference is not.
    """
    if not all(math.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite, found {list(rewards)}")
    if not rewards_differ(rewards):
        return [0.0] * len(rewards)
    # Squares of very large or small rewards are no floats. A power of two scales without rounding.
    exponent = math.frexp(max(map(abs, rewards)))[1]
    scaled = [math.ldexp(reward, -exponent) for reward in rewards]
    mean = math.fsum(scaled) / len(scaled)
    deviations = [reward - mean for reward in scaled]
    if std == "none":
        return [_unscaled(deviation, exponent) for deviation in deviations]
    squares = math.fsum(deviation**2 for deviation in deviations)
    spread = math.sqrt(squares / (len(rewards) - (std == "sample"))) + math.ldexp(
        epsilon, -exponent
    )
    return [deviation / spread for deviation in deviations]


def _unscaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError as error:
        raise ValueError("rewards are too large: their difference is no float") from error
