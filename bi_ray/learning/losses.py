"""One pure function per algorithm, on the learned tokens of a micro-batch.

Every function returns a sum of weighted tokens. The weights carry the normalisation of the whole step (all ranks, all
micro-batches), so the losses of micro-batches add up, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossScale = Literal["sequence_mean", "token_mean", "sequence_sum"]


def token_weights(lengths: Sequence[int], scale: LossScale, samples_total: int) -> list[float]:
    """What each token of each response weighs in the GRPO loss of a step.

    - ``sequence_sum``: 1 / samples. A response counts by the sum of its tokens, as in Eq. 5 and 12 of
      arXiv:2505.18917; with groups of one size this is the mean over a group, then over all groups.
    - ``sequence_mean``: 1 / (samples * length). A response counts by the mean of its tokens (the first GRPO).
    - ``token_mean``: 1 / (tokens of the responses given). Every token counts the same (DAPO).

    Args:
        lengths: tokens of every response in the batch.
        scale: which of the three.
        samples_total: samples of the step, with those of groups without advantage that are not in the batch.
    """
    if scale == "token_mean":
        return [1.0 / max(1, sum(lengths))] * len(lengths)
    if scale == "sequence_mean":
        return [1.0 / (samples_total * max(1, length)) for length in lengths]
    return [1.0 / samples_total] * len(lengths)


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Weighted negative log-likelihood, the loss of SFT. Both arguments [tokens]; the result is a scalar."""
    return -(weights * logprobs).sum()


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A policy loss with what there is to see of it.

    Attributes:
        loss: scalar, with gradient.
        clipped: [tokens], bool: the clip took the token's gradient away.
        kl: [tokens], k3 estimates against the reference; zeros without one.
    """

    loss: Tensor
    clipped: Tensor
    kl: Tensor


def grpo_loss(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip_ratio: float,
    reference_logprobs: Tensor | None = None,
    kl_coefficient: float = 0.0,
) -> PolicyLoss:
    """GRPO: the clipped surrogate of PPO with group advantages, and a KL penalty inside the loss.

    Per token, with ratio rho = pi / pi_sampler: -min(rho A, clip(rho, 1 - c, 1 + c) A) + beta k3. On-policy (rho = 1)
    with ``sequence_sum`` weights its gradient is minus Eq. 12 of arXiv:2505.18917.

    Args:
        logprobs: [tokens], of the policy that learns, with gradient.
        sampler_logprobs: [tokens], of the policy that sampled.
        advantages: [tokens].
        weights: [tokens], see ``token_weights``.
        clip_ratio: c.
        reference_logprobs: [tokens], of the reference policy; needed when ``kl_coefficient`` is not 0.
        kl_coefficient: beta.
    """
    ratio = (logprobs - sampler_logprobs).exp()
    clamped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    surrogate = torch.minimum(ratio * advantages, clamped * advantages)
    loss = -(weights * surrogate).sum()
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        kl = k3(logprobs, reference_logprobs)
        loss = loss + kl_coefficient * (weights * kl).sum()
    clipped = (clamped * advantages).detach() < (ratio * advantages).detach()
    return PolicyLoss(loss, clipped, kl.detach())


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The low-variance estimate of KL(policy || reference) per token: exp(d) - d - 1, d = log ref - log policy."""
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1
