"""Predicted against realized change of expected reward, in two ways (docs/method.md, "Predicted and
realized").

By experiment: one SGD step along grad J(q), then fresh samples on the target. In training:
<direction of the target, theta_(k+n) - theta_k> is what n steps should have changed, to first
order; fresh samples say what they did.

Both use the unbiased gradient of expected reward, without the division by the group's standard
deviation, because expected reward is what is counted afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bi_ray.readiness.influence import Differentiator, Weights, dot, flatten, norm, reward_direction
from bi_ray.readiness.rollouts import ScoredGroup

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of the target at one step of RL.

    Attributes:
        step: of RL.
        direction: gradient of the target's expected reward, flat [parameters].
        weights: of the policy, flat [parameters].
        rewards: mean reward of each target problem, by its id.
    """

    step: int
    direction: Tensor
    weights: Tensor
    rewards: dict[str, float]

    @classmethod
    def make(cls, step: int, tool: Differentiator, target: Sequence[ScoredGroup]) -> Forecast:
        """From rollouts of the policy itself."""
        rewards = {group.id: sum(group.rewards) / len(group.rollouts) for group in target}
        return cls(
            step, flatten(reward_direction(tool, target)), flatten(tool.parameters).clone(), rewards
        )

    def against(self, before: Forecast | None) -> dict[str, Any]:
        """What was predicted at an earlier step for this one, and what came.

        Returns:
            ``target_reward`` and its standard error ``target_se``; and, compared with ``before`` on
            the problems that both have: ``since`` (its step), ``predicted`` and ``realized`` change
            of expected reward, and ``noise``, the standard error of the realized one. All None
            where there is no earlier step.
        """
        reward, error = mean_and_error(list(self.rewards.values()))
        row: dict[str, Any] = {"target_reward": reward, "target_se": error}
        nothing = dict.fromkeys(("since", "predicted", "realized", "noise"))
        if before is None or before.step >= self.step:
            return row | nothing
        changes = [
            value - before.rewards[name]
            for name, value in self.rewards.items()
            if name in before.rewards
        ]
        if len(changes) < 2:
            return row | nothing
        realized, noise = mean_and_error(changes)
        predicted = float(before.direction.double() @ (self.weights - before.weights).double())
        return row | {
            "since": before.step,
            "predicted": predicted,
            "realized": realized,
            "noise": noise,
        }


def step_along(
    tool: Differentiator, direction: Weights, step_norm: float, target: Weights
) -> tuple[dict[str, Tensor], float]:
    """The weights after one SGD step of a given length, and the change that is predicted on the
    target to first order.

    Args:
        tool: has the policy.
        direction: where to.
        step_norm: Euclidean length of the step, whatever that of ``direction``; negative: against
            it.
        target: gradient of the target's expected reward.

    Returns:
        The weights by name, on the CPU, and <target, step>.

    Raises:
        ValueError: the direction is 0.
    """
    length = norm(direction)
    if length == 0:
        raise ValueError("no gradient: all rollouts of the query have the same reward")
    scale = step_norm / length
    weights = {name: (p + scale * direction[name]).cpu() for name, p in tool.parameters.items()}
    return weights, scale * dot(target, direction)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(
        array
    ) > 1 else 0.0


def realized_change(
    before: Mapping[str, float], ahead: Mapping[str, float], behind: Mapping[str, float]
) -> dict[str, float]:
    """Change of expected reward after a step, from fresh samples with the same random numbers,
    paired by problem.

    Args:
        before: mean reward by problem.
        ahead: the same after the step.
        behind: the same after the opposite step.

    Returns:
        ``realized``: ahead minus before, what the step did; and ``odd``: half of ahead minus
        behind, which leaves out what curvature takes from steps in both directions and so is what a
        prediction to first order is about. Each with its 95 % interval, ``low`` and ``high``,
        ``odd_low`` and ``odd_high``.
    """
    names = [name for name in before if name in ahead and name in behind]
    value, error = mean_and_error([ahead[name] - before[name] for name in names])
    odd, odd_error = mean_and_error([(ahead[name] - behind[name]) / 2 for name in names])
    return {
        "realized": value,
        "low": value - _Z95 * error,
        "high": value + _Z95 * error,
        "odd": odd,
        "odd_low": odd - _Z95 * odd_error,
        "odd_high": odd + _Z95 * odd_error,
    }


def correlation(
    points: Sequence[Mapping[str, Any]], found: str, draws: int, seed: int = 0
) -> dict[str, float] | None:
    """Pearson's correlation of ``predicted`` and ``found`` with a bootstrap interval over points;
    None below 4.
    """
    if len(points) < 4:
        return None
    pairs = np.array([[point["predicted"], point[found]] for point in points])
    rng = np.random.default_rng(seed)
    chosen = pairs[rng.integers(len(pairs), size=(draws, len(pairs)))]  # [draws, points, 2]
    centered = chosen - chosen.mean(axis=1, keepdims=True)
    spread = np.sqrt((centered**2).sum(axis=1)).prod(axis=1)
    values = centered.prod(axis=2).sum(axis=1) / np.where(spread > 0, spread, np.inf)
    low, high = np.quantile(values, (0.025, 0.975))
    return {"value": float(np.corrcoef(pairs.T)[0, 1]), "low": float(low), "high": float(high)}
