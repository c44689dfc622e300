"""Predicted against realized change of expected reward (docs/method.md, "Predicted and realized").

By experiment: one SGD step along grad J(q), then fresh samples on the target. During training:
<direction of the target, theta_(k+n) - theta_k> is what n steps should have changed, to first
order; fresh samples show what they did change.

Both use the unbiased gradient of expected reward, without the division by the group's standard
deviation, because expected reward is what is measured afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bi_ray.batches.scored_group import ScoredGroup
from bi_ray.intervals import Floats, Interval
from bi_ray.readiness.influence import Differentiator, Weights, dot, flatten, norm, reward_direction
from bi_ray.readiness.records import Comparison


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of the target at one step of RL.

    Attributes:
        step: the RL step.
        direction: gradient of the target's expected reward, flat [parameters].
        weights: of the policy, flat [parameters].
        rewards: mean reward of each target problem, by its id.
    """

    step: int
    direction: Tensor
    weights: Tensor
    rewards: dict[str, float]

    @classmethod
    def make(
        cls, step: int, differentiator: Differentiator, target: Sequence[ScoredGroup]
    ) -> Forecast:
        """A forecast from rollouts of the policy itself."""
        return cls(
            step=step,
            direction=flatten(reward_direction(differentiator, target)),
            weights=flatten(differentiator.parameters).clone(),
            rewards={group.id: group.mean_reward for group in target},
        )

    def against(self, before: Forecast | None) -> Comparison:
        """Compare what an earlier step predicted for this one with what came true.

        ``predicted`` and ``realized`` are about the problems that both steps have, at least two.
        """
        reward, error = mean_and_error(list(self.rewards.values()))
        if before is None or before.step >= self.step:
            return Comparison(reward, error)
        changes = []
        for name, value in self.rewards.items():
            if name in before.rewards:
                changes.append(value - before.rewards[name])
        if len(changes) < 2:
            return Comparison(reward, error)
        realized, noise = mean_and_error(changes)
        predicted = float(before.direction.double() @ (self.weights - before.weights).double())
        return Comparison(reward, error, before.step, predicted, realized, noise)


def step_along(
    differentiator: Differentiator, direction: Weights, step_norm: float, target: Weights
) -> tuple[dict[str, Tensor], float]:
    """Take one SGD step of a given length.

    Args:
        differentiator: has the policy.
        direction: direction of the step.
        step_norm: Euclidean length of the step, whatever that of ``direction``; negative: against
            the direction.
        target: gradient of the target's expected reward.

    Returns:
        The weights after the step by name, on the CPU, and the change <target, step> that is
        predicted on the target to first order.

    Raises:
        ValueError: the direction is 0.
    """
    length = norm(direction)
    if length == 0:
        raise ValueError("no gradient: all rollouts of the query have the same reward")
    scale = step_norm / length
    moved = differentiator.moved(scale, direction)
    weights = {name: weight.cpu() for name, weight in moved.items()}
    return weights, scale * dot(target, direction)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is 0."""
    array = np.asarray(values, dtype=np.float64)
    error = 0.0
    if len(array) > 1:
        error = float(array.std(ddof=1) / math.sqrt(len(array)))
    return float(array.mean()), error


def realized_change(
    before: Mapping[str, float], ahead: Mapping[str, float], behind: Mapping[str, float]
) -> dict[str, float]:
    """Change of expected reward by a step, paired by problem.

    The rewards come from fresh samples with the same random numbers.

    Args:
        before: mean reward by problem.
        ahead: the same after the step.
        behind: the same after the opposite step.

    Returns:
        ``realized``: ahead minus before, what the step did; and ``odd``: half of ahead minus
        behind, which leaves out what curvature takes from steps in both directions, and so is what
        a prediction to first order is about. Each with its 95 % interval, ``low`` and ``high``,
        ``odd_low`` and ``odd_high``.
    """
    names = [name for name in before if name in ahead and name in behind]
    changes = [ahead[name] - before[name] for name in names]
    odd_changes = [(ahead[name] - behind[name]) / 2 for name in names]
    realized = Interval.of_error(*mean_and_error(changes))
    odd = Interval.of_error(*mean_and_error(odd_changes))
    return {
        "realized": realized.value,
        "low": realized.low,
        "high": realized.high,
        "odd": odd.value,
        "odd_low": odd.low,
        "odd_high": odd.high,
    }


def correlation(
    predicted: Sequence[float], realized: Sequence[float], draws: int, seed: int = 0
) -> Interval | None:
    """Pearson's correlation with a bootstrap interval over the points.

    None below 4 points, and where all predictions or all changes are equal.
    """
    if len(predicted) < 4 or len(set(predicted)) == 1 or len(set(realized)) == 1:
        return None
    pairs: Floats = np.array([predicted, realized]).T.copy()
    rng = np.random.default_rng(seed)
    chosen = pairs[rng.integers(len(pairs), size=(draws, len(pairs)))]  # [draws, points, 2]
    centered = chosen - chosen.mean(axis=1, keepdims=True)
    spread = np.sqrt((centered**2).sum(axis=1)).prod(axis=1)
    values = centered.prod(axis=2).sum(axis=1) / np.where(spread > 0, spread, np.inf)
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(np.corrcoef(pairs.T)[0, 1]), float(low), float(high))
