"""Dr.GRPO (arXiv:2503.20783): GRPO without its two biases."""

from __future__ import annotations

from bi_ray.config import RLConfig
from bi_ray.learning.algorithms import grpo
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """GRPO's loss; what is different is in the knobs.

    The advantage is r - mean (``advantage_std: none``), so that easy and hard queries do not count for more, and a
    response counts by the sum of its tokens over a constant, the length limit (``loss_scale: sequence_budget``), so
    that long wrong ones do not count for less. On-policy the gradient is that of mean reward, over the constant.
    """
    return grpo.loss(tokens, config)
