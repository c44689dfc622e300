"""Advantages of samples from their rewards: A_i = (r_i - baseline) / spread. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Std = Literal["population", "sample", "none"]
RIGHT_REWARD = 0.5  # a response with at least this reward counts as right, whoever gave it
# Rewards closer than this are equal; if the largest is above 1, closer than this share of it. Many
# reward functions add terms of order 1 in float32, which is off by about 1e-7 even if the terms
# cancel. Divided by a spread of that size, rounding errors would become advantages of 1 and -1.
EQUAL_REWARDS = 1e-6


def rewards_differ(rewards: Sequence[float]) -> bool:
    """Whether rewards differ by more than rounding errors (``EQUAL_REWARDS``)."""
    if not rewards:
        return False
    low, high = min(rewards), max(rewards)
    largest = max(1.0, abs(low), abs(high))
    # divide first: the difference of two large rewards may overflow
    return high / largest - low / largest > EQUAL_REWARDS


def learned_rewards(rewards: Sequence[float], outcomes: Sequence[float]) -> list[float]:
    """The rewards from which the advantages of a group are computed.

    Rewards for format, trace and length rank right and wrong responses more finely. In a group
    whose responses are all wrong and worth the same, only these rewards differ, and divided by
    their small spread they would weigh as much as right answers do. Such a group therefore counts
    by its outcomes, and so teaches nothing.

    Args:
        rewards: one per response, with everything that was added or subtracted.
        outcomes: what the answers alone are worth (``Verdict.answer_reward``), same order.
    """
    if rewards_differ(outcomes) or max(outcomes, default=0.0) >= RIGHT_REWARD:
        return list(rewards)
    return list(outcomes)


def step_advantages(
    groups: Sequence[Sequence[float]], kind: str, std: Std, epsilon: float
) -> list[list[float]]:
    """Advantages of all groups of a step, in the order of their rewards.

    - ``group``: baseline and spread of the sample's own group (GRPO; without std Dr.GRPO and GPG).
    - ``leave_one_out``: the baseline is the mean of the group's other samples, the spread is the
      group's (RLOO).
    - ``batch``: baseline and spread of all samples of the step (REINFORCE++).
    - ``group_batch``: the group's baseline, and the spread of what remains over all samples
      (REINFORCE++-baseline).

    Args:
        groups: rewards of each group, at least two per group.
        kind: which of the four.
        std: see ``group_advantages``.
        epsilon: added to the spread, if advantages are divided by one.

    Raises:
        ValueError: a reward is not finite.
    """
    if kind == "group":
        return [group_advantages(rewards, std, epsilon) for rewards in groups]
    if kind == "leave_one_out":
        return [_leave_one_out(rewards, std, epsilon) for rewards in groups]
    if kind == "group_batch":
        groups = [group_advantages(rewards, "none") for rewards in groups]
    return _batch_advantages(groups, std, epsilon)


def _leave_one_out(rewards: Sequence[float], std: Std, epsilon: float) -> list[float]:
    """Advantages whose baseline is the mean of the other samples of the group.

    r_i minus the mean of the others is n / (n - 1) times r_i minus the mean of all n.
    """
    scale = len(rewards) / (len(rewards) - 1)
    advantages = group_advantages(rewards, std, epsilon)
    return [scale * advantage for advantage in advantages]


def _batch_advantages(
    groups: Sequence[Sequence[float]], std: Std, epsilon: float
) -> list[list[float]]:
    """Advantages with baseline and spread of all samples of the step, by group."""
    flat: list[float] = []
    for rewards in groups:
        flat += rewards
    advantages = group_advantages(flat, std, epsilon)
    by_group = []
    start = 0
    for rewards in groups:
        end = start + len(rewards)
        by_group.append(advantages[start:end])
        start = end
    return by_group


def group_advantages(
    rewards: Sequence[float], std: Std = "population", epsilon: float = 0.0
) -> list[float]:
    """Advantages in the order of ``rewards``; all zero if these do not differ.

    With binary rewards, n of N right, population std and no epsilon these are Eq. 6 of
    arXiv:2505.18917: sqrt((N-n)/n) for the right ones and -sqrt(n/(N-n)) for the wrong ones.

    Args:
        rewards: one number per sample of the group.
        std: divide the squared deviations by N (population) or by N - 1 (sample); none: do not
            divide by a spread at all.
        epsilon: added to the standard deviation.

    Raises:
        ValueError: a reward is not finite (a failure is never a reward), or two are so far apart
            that their difference is not.
    """
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"rewards must be finite, got {list(rewards)}")
    if not rewards_differ(rewards):
        return [0.0] * len(rewards)
    # Squares of very large or small rewards overflow or vanish. A power of two scales exactly.
    exponent = math.frexp(max(map(abs, rewards)))[1]
    scaled = [math.ldexp(reward, -exponent) for reward in rewards]
    mean = math.fsum(scaled) / len(scaled)
    deviations = [reward - mean for reward in scaled]
    if std == "none":
        return [_unscaled(deviation, exponent) for deviation in deviations]
    degrees_of_freedom = len(rewards)
    if std == "sample":
        degrees_of_freedom -= 1
    squares = math.fsum(deviation**2 for deviation in deviations)
    spread = math.sqrt(squares / degrees_of_freedom) + math.ldexp(epsilon, -exponent)
    return [deviation / spread for deviation in deviations]


def _unscaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError as error:
        raise ValueError("rewards are too large: their difference overflows") from error
