"""Verified rollouts as readiness takes them, and which tokens of a response a behavior wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bi_ray.batches.advantages import group_advantages, learned_rewards, rewards_differ
from bi_ray.policy.packing import Row
from bi_ray.policy.spans import token_spans
from bi_ray.reasoning.trace import Span

PLAIN = "plain"  # what no behavior wrote


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response with its verdict.

    Attributes:
        tokens: the response, its end token included where there is one.
        reward: what RL would see.
        right: whether it counts as right (``RIGHT_REWARD``).
        behaviors: of every token, ``plain`` for most; or empty where nobody asks.
        outcome: what its answer alone is worth; None: the reward.
    """

    tokens: tuple[int, ...]
    reward: float
    right: bool
    behaviors: tuple[str, ...] = ()
    outcome: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """All verified rollouts of one query, at least two of them."""

    id: str
    prompt_tokens: tuple[int, ...]
    rollouts: tuple[Rollout, ...]

    @property
    def right(self) -> int:
        """How many rollouts are right."""
        return sum(rollout.right for rollout in self.rollouts)

    @property
    def rewards(self) -> list[float]:
        """Of every rollout."""
        return [rollout.reward for rollout in self.rollouts]

    @property
    def learned_rewards(self) -> list[float]:
        """The rewards that RL makes advantages of (``policy.advantages.learned_rewards``)."""
        outcomes = [r.reward if r.outcome is None else r.outcome for r in self.rollouts]
        return learned_rewards(self.rewards, outcomes)

    @property
    def informative(self) -> bool:
        """Whether RL learns from it: rewards differ, so advantages are not all zero."""
        return rewards_differ(self.learned_rewards)

    def advantages(self) -> list[float]:
        """(r - mean)/std with the population's std (Eq. 6 of arXiv:2505.18917); zeros where rewards
        are equal.
        """
        return group_advantages(self.learned_rewards)

    def centered_rewards(self) -> list[float]:
        """Reward minus the mean of the other rollouts: weights of the unbiased gradient of expected
        reward.
        """
        total, others = sum(self.rewards), len(self.rollouts) - 1
        return [reward - (total - reward) / others for reward in self.rewards]

    def rows(self, weights: Sequence[float]) -> list[Row]:
        """A row per rollout whose tokens all have the rollout's weight."""
        start = len(self.prompt_tokens)
        return [
            Row((*self.prompt_tokens, *rollout.tokens), start, weight)
            for rollout, weight in zip(self.rollouts, weights, strict=True)
        ]


def token_behaviors(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], text: str, spans: Sequence[Span]
) -> tuple[str, ...]:
    """Which behavior wrote each token (``policy.spans.token_spans``), ``plain`` for most."""
    behaviors = [PLAIN] * len(tokens)
    for span in token_spans(tokenizer, tokens, text, spans):
        behaviors[span.start : span.end] = [span.behavior] * (span.end - span.start)
    return tuple(behaviors)
