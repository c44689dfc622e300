"""RLOO, REINFORCE leave-one-out (arXiv:2402.14740)."""

from __future__ import annotations

from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms.base import (
    LearnedTokens,
    TokenLoss,
    clipped_surrogate,
    ratio_of,
    sequence_sum,
)


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """The clipped surrogate of whole responses: rho is the product of the ratios of a response's
    tokens.

    A is the reward minus the mean reward of the other samples of the group. Every token of a
    response has its loss; ``loss_scale: sequence_mean`` makes that one loss per response. On-policy
    the gradient is A grad log pi(o|q).
    """
    ratio = ratio_of(sequence_sum(tokens.log_ratio, tokens.sequences))
    return clipped_surrogate(ratio, tokens.advantages, config.clip_low, config.clip_high)
