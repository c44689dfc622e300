"""What every algorithm takes and returns, and the parts that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bi_ray.config.training import RLConfig

# beyond it a ratio only means "far off", and its gradient would not be finite
LARGEST_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class LearnedTokens:
    """The learned tokens of a micro-batch; n of them, of whole sequences.

    Attributes:
        logprobs: [n], of the policy that learns, with gradient.
        base_logprobs: [n], what the ratio is against: the sampler's, or the learner's own
            (``rl.importance.base``).
        advantages: [n].
        sequences: [n], int64: number of the token's sequence within the micro-batch.
    """

    logprobs: Tensor
    base_logprobs: Tensor
    advantages: Tensor
    sequences: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """[n], log of pi / pi_base, with gradient."""
        return self.logprobs - self.base_logprobs


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The losses of the tokens. The caller weights and sums them; an algorithm does neither.

    Attributes:
        values: [n], with gradient.
        clipped_low: [n], bool: the lower end of the clip changed the token's gradient.
        clipped_high: [n], bool: the upper end.
    """

    values: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


Algorithm = Callable[[LearnedTokens, RLConfig], TokenLoss]


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp, of what is not too far from 0."""
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def sequence_sum(values: Tensor, sequences: Tensor) -> Tensor:
    """[n], for each token the sum of ``values`` [n] over its sequence."""
    # As many bins as tokens: the number of sequences would have to be fetched from the device.
    return torch.zeros_like(values).index_add(0, sequences, values).index_select(0, sequences)


def sequence_mean(values: Tensor, sequences: Tensor) -> Tensor:
    """[n], for each token the mean of ``values`` [n] over its sequence."""
    return sequence_sum(values, sequences) / sequence_sum(torch.ones_like(values), sequences)


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> TokenLoss:
    """PPO's: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (Eq. 7 of arXiv:1707.06347).

    Args:
        ratio: [n], rho, with gradient.
        advantages: [n], A.
        clip_low: how far rho may fall where A < 0.
        clip_high: how far it may rise where A > 0.
    """
    free = ratio * advantages
    clamped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    clipped = clamped.detach() < free.detach()
    return TokenLoss(
        -torch.minimum(free, clamped), clipped & (advantages < 0), clipped & (advantages > 0)
    )
