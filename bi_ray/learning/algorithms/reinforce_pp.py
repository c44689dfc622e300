"""REINFORCE++ (arXiv:2501.03262): PPO without a critic, its advantages normalized over the whole step."""

from __future__ import annotations

from bi_ray.config import RLConfig
from bi_ray.learning.algorithms import grpo
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """GRPO's loss with other advantages: (r - mean) / std over all samples of the step (``advantage: batch``).

    Groups whose rewards are equal have advantages too, so they stay (``zero_variance_groups: keep``).
    ``advantage: group_batch`` is the paper's variant with the group's mean as baseline.
    """
    return grpo.loss(tokens, config)
