"""CISPO (Eq. 4 and 5 of arXiv:2506.13585): the importance weight is clipped, not the update."""

from __future__ import annotations

from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss, ratio_of


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """-sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log pi: no token loses its gradient.

    They set no lower bound (``clip_low: 1``) and do not give the upper one; 5, so ``clip_high: 4``,
    is in the middle of what arXiv:2510.13786 found to work.
    """
    ratio = ratio_of(tokens.log_ratio).detach()
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return TokenLoss(
        -ratio.clamp(low, high) * tokens.advantages * tokens.logprobs, ratio < low, ratio > high
    )
