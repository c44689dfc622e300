"""GPG, group policy gradient (arXiv:2504.02546): no surrogate at all."""

from __future__ import annotations

import torch

from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """-A log pi, with A = r - mean of the group.

    Their factor alpha, samples over samples of groups with variance, is what
    ``zero_variance_groups: drop`` does to ``loss_scale: token_mean``: the mean is over the groups
    that teach something. There is no ratio, so a difference of sampler and learner is corrected by
    ``importance`` alone.
    """
    none = torch.zeros_like(tokens.logprobs, dtype=torch.bool)
    return TokenLoss(-tokens.advantages * tokens.logprobs, none, none)
