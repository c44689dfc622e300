"""How much more one arm gained from RL than another."""

from __future__ import annotations

from collections.abc import Sequence

from bi_ray.intervals import Interval, bootstrap_mean
from bi_ray.report.scores import SetScore, difference_by_problem, gains_by_seed, scores_of_arm


def gain_difference(
    scores: Sequence[SetScore], arm: str, against: str, set_name: str, draws: int, seed: int = 0
) -> Interval | None:
    """How much more ``arm`` gained from RL than ``against``, paired by training seed and problem.

    Returns:
        None if the arms have no training seed with all four scores in common.

    Raises:
        ValueError: the four scores of a training seed have no problem in common.
    """
    first = gains_by_seed(scores_of_arm(scores, arm, set_name))
    second = gains_by_seed(scores_of_arm(scores, against, set_name))
    pairs = []
    for training_seed, gains in first.items():
        if training_seed in second:
            pairs.append(list(difference_by_problem(gains, second[training_seed]).values()))
    return bootstrap_mean(pairs, draws, seed) if pairs else None
