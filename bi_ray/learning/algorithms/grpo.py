"""GRPO (arXiv:2402.03300; section 2 of arXiv:2505.18917)."""

from __future__ import annotations

from bi_ray.config import RLConfig
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss, clipped_surrogate, ratio_of


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """The clipped surrogate of PPO, token by token, with the advantage of the sample in its group.

    On-policy (rho = 1), with ``loss_scale: sequence_sum``, population std and no epsilon, the gradient is minus Eq. 12
    of arXiv:2505.18917. The first GRPO averages over each response (``sequence_mean``); verl, with which the paper was
    made, over all tokens (``token_mean``, the default here).
    """
    return clipped_surrogate(ratio_of(tokens.log_ratio), tokens.advantages, config.clip_low, config.clip_high)
