"""What the losses of all algorithms share: token weights, KL estimates, importance, their sum.

Every loss is a sum of weighted tokens. The weights carry the normalization of the whole step (all
ranks, all micro-batches), so the losses of micro-batches add up, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bi_ray.config.algorithms import ImportanceConfig, LossScale
from bi_ray.config.base import ConfigError
from bi_ray.config.training import RLConfig
from bi_ray.learning.algorithms.base import Algorithm, LearnedTokens, ratio_of, sequence_sum


def token_weights(
    lengths: Sequence[int],
    scale: LossScale,
    samples_total: int,
    tokens_total: int | None = None,
    budget_tokens: int = 1,
) -> list[float]:
    """The weight of each token of each response in the loss of a step.

    - ``sequence_sum``: 1 / samples. A response counts by the sum of its tokens, as in Eq. 5 and 12
      of arXiv:2505.18917; with groups of one size this is the mean over a group, then over all
      groups.
    - ``sequence_budget``: 1 / (samples * length limit). The same over a constant (Dr.GRPO).
    - ``sequence_mean``: 1 / (samples * length). A response counts by the mean of its tokens (the
      first GRPO).
    - ``token_mean``: 1 / tokens. Every token counts the same (DAPO).

    Args:
        lengths: tokens of every response in the batch.
        scale: which of the four.
        samples_total: samples of the step, with those of groups without advantage that are not in
            the batch.
        tokens_total: tokens of the step; None: those of the responses given.
        budget_tokens: the length limit of a response.
    """
    if scale == "sequence_mean":
        return [1.0 / (samples_total * max(1, length)) for length in lengths]
    if scale == "token_mean":
        total = sum(lengths) if tokens_total is None else tokens_total
        weight = 1.0 / max(1, total)
    elif scale == "sequence_budget":
        weight = 1.0 / (samples_total * budget_tokens)
    else:
        weight = 1.0 / samples_total
    return [weight] * len(lengths)


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Weighted negative log-likelihood, the loss of SFT: a scalar from two tensors [tokens]."""
    return -(weights * logprobs).sum()


def kl_estimate(
    logprobs: Tensor, reference_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]
) -> Tensor:
    """KL(policy || reference) per token, from samples of the policy; with d = log ref - log policy.

    ``k1``: -d. ``k2``: d^2 / 2. ``k3``: exp(d) - d - 1, unbiased like k1, and never negative. As
    terms of a loss they differ: on-policy, the gradient of k1 is 0 in expectation, that of k2 is
    the gradient of KL(policy || reference), that of k3 the gradient of KL(reference || policy).
    Times the ratio pi / pi_base, k1 and k3 have the gradient of KL(policy || reference), off-policy
    too (arXiv:2512.02556).

    Args:
        logprobs: [tokens], with gradient.
        reference_logprobs: [tokens].
        estimator: which of the three.
    """
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.exp() - difference - 1


def without_rounding(logprobs: Tensor, sampler_logprobs: Tensor, tolerance: float) -> Tensor:
    """The sampler's log-probabilities, with the learner's own where they differ by less than
    ``tolerance``.

    The last bits of the sampler's depend on which sequences were in a batch with a token. What is
    left depends on them only where a difference happens to be at the tolerance itself.
    """
    own = logprobs.detach()
    return torch.where((own - sampler_logprobs).abs() < tolerance, own, sampler_logprobs)


@dataclass(frozen=True, slots=True)
class Importance:
    """How the learner's policy weighs what the sampler drew. All [tokens], without gradient.

    Attributes:
        weights: pi_learner / pi_sampler, of the token or of its whole sequence.
        factors: what the loss is multiplied by.
        cut: bool: the treatment changed the weight.
    """

    weights: Tensor
    factors: Tensor
    cut: Tensor


def importance(
    logprobs: Tensor, sampler_logprobs: Tensor, sequences: Tensor, config: ImportanceConfig
) -> Importance:
    """Truncated or masked importance weights; see ``ImportanceConfig`` for what the factors are.

    Args:
        logprobs: [tokens], of the learner.
        sampler_logprobs: [tokens], of the distribution that the tokens were drawn from, temperature
            and top-p applied.
        sequences: [tokens], int64, which tokens belong together.
        config: level, treatment and bounds.
    """
    difference = logprobs.detach() - sampler_logprobs
    if config.level == "sequence":
        difference = sequence_sum(difference, sequences)
    weights = ratio_of(difference)
    cut = torch.zeros_like(weights, dtype=torch.bool)
    treated = weights
    if config.treatment == "truncate":
        cut = weights > config.cap
        treated = weights.clamp(max=config.cap)
    elif config.treatment == "mask":
        cut = (weights > config.cap) | (weights < config.floor)
        treated = weights.masked_fill(cut, 0.0)
    # against the sampler's, the algorithm's own ratio has the weight in it already
    factors = treated / weights if config.base == "sampler" else treated
    return Importance(weights, factors, cut)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss of a micro-batch with what there is to see of it.

    Attributes:
        loss: scalar, with gradient.
        per_token: sums over the tokens that are reported as means, by name.
        sums: other sums over the tokens, by name.
    """

    loss: Tensor
    per_token: dict[str, Tensor]
    sums: dict[str, Tensor]


def policy_loss(
    algorithm: Algorithm,
    config: RLConfig,
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    sequences: Tensor,
    reference_logprobs: Tensor | None = None,
) -> PolicyLoss:
    """Sum of weight * (importance factor * the algorithm's loss + coefficient * KL estimate).

    Args:
        algorithm: gives the loss of every token.
        config: options of RL.
        logprobs: [tokens], of the policy that learns, with gradient.
        sampler_logprobs: [tokens], of the policy that sampled.
        advantages: [tokens].
        weights: [tokens], see ``token_weights``.
        sequences: [tokens], int64: number of the token's sequence within the micro-batch, which
            holds all of it.
        reference_logprobs: [tokens], of the reference policy; needed where ``config.kl`` is
            measured.

    Raises:
        ConfigError: the algorithm does not give a loss per token.
    """
    corrected = importance(logprobs, sampler_logprobs, sequences, config.importance)
    base = logprobs.detach()
    if config.importance.base == "sampler":
        base = sampler_logprobs
    tokens = LearnedTokens(logprobs, base, advantages, sequences)
    result = algorithm(tokens, config)
    if result.values.shape != logprobs.shape:  # it would be broadcast to all tokens silently
        raise ConfigError(
            f"rl.algorithm: {config.algorithm} gave losses of shape {list(result.values.shape)} "
            f"for {len(logprobs)} tokens; it must give one per token, neither weighted nor summed"
        )
    loss = (weights * corrected.factors * result.values).sum()
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None and config.kl.estimator != "none":
        kl = kl_estimate(logprobs.detach(), reference_logprobs, "k3")
        if config.kl.in_loss:
            term = kl_estimate(logprobs, reference_logprobs, config.kl.estimator)
            if config.kl.with_ratio:
                term = ratio_of(tokens.log_ratio) * term
            loss = loss + config.kl.coefficient * (weights * term).sum()
    per_token = {
        "clip_low_share": result.clipped_low.sum(),
        "clip_high_share": result.clipped_high.sum(),
        "kl": kl.sum(),
        "importance_cut_share": corrected.cut.sum(),
    }
    sums = {
        "importance_sum": corrected.weights.sum(),
        "importance_square_sum": corrected.weights.square().sum(),
    }
    return PolicyLoss(loss, per_token, sums)
