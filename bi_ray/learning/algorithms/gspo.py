"""GSPO, group sequence policy optimization (arXiv:2507.18071)."""

from __future__ import annotations

from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms.base import (
    LearnedTokens,
    TokenLoss,
    clipped_surrogate,
    ratio_of,
    sequence_mean,
)


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """The clipped surrogate of whole responses: rho = (pi(o|q) / pi_base(o|q))^(1/|o|).

    The geometric mean of a response's ratios stays near 1, so the clip is narrow, and cuts whole
    responses. Every token of a response has its loss; ``loss_scale: sequence_mean`` makes that one
    loss per response.
    """
    ratio = ratio_of(sequence_mean(tokens.log_ratio, tokens.sequences))
    return clipped_surrogate(ratio, tokens.advantages, config.clip_low, config.clip_high)
