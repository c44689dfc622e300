"""DAPO (arXiv:2503.14476): GRPO for long chains of thought."""

from __future__ import annotations

from bi_ray.config import RLConfig
from bi_ray.learning.algorithms import grpo
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """GRPO's loss; what is different is in the knobs.

    Clip-higher (``clip_high`` 0.28) leaves rare tokens room to grow; every token of the step counts the same
    (``loss_scale: token_mean``); groups without variance are replaced before the step (``dynamic_sampling``, see
    ``groups.refill``); responses near the length limit lose reward (``shaping.overlong_penalty``).
    """
    return grpo.loss(tokens, config)
