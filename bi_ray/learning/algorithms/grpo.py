"""GRPO (arXiv:2402.03300; section 2 of arXiv:2505.18917)."""

from __future__ import annotations

from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms.base import LearnedTokens, TokenLoss, clipped_surrogate, ratio_of


def loss(tokens: LearnedTokens, config: RLConfig) -> TokenLoss:
    """The clipped surrogate of PPO, token by token, with the advantage of the sample in its group.

    On-policy (rho = 1), with ``loss_scale: sequence_sum``, population std and no epsilon, the
    gradient is minus Eq. 12 of arXiv:2505.18917. The first GRPO averages over each response
    (``sequence_mean``); verl, with which the paper was made, over all tokens (``token_mean``, the
    default here).

    Three more algorithms are this loss with options of their own:
    - DAPO (arXiv:2503.14476): ``clip_high`` 0.28 leaves rare tokens room to grow; every token of
      the step counts the same (``token_mean``); groups without variance are replaced before the
      step (``dynamic_sampling``); responses near the length limit lose reward
      (``shaping.overlong_penalty``).
    - Dr.GRPO (arXiv:2503.20783): the advantage is r - mean (``advantage_std: none``), so that easy
      and hard queries do not count for more; a response counts by the sum of its tokens over a
      constant, the length limit (``sequence_budget``), so that long wrong ones do not count for
      less.
    - REINFORCE++ (arXiv:2501.03262): advantages are (r - mean) / std over all samples of the step
      (``advantage:
      batch``); groups whose rewards are equal have advantages too, so they stay
      (``zero_variance_groups: keep``). ``advantage: group_batch`` is the paper's variant with the
      group's mean as baseline.
    """
    return clipped_surrogate(
        ratio_of(tokens.log_ratio), tokens.advantages, config.clip_low, config.clip_high
    )
