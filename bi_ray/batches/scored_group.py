"""A group of responses with their verdicts, as RL and the readiness measurement take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bi_ray.batches.advantages import group_advantages, learned_rewards, rewards_differ


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response with its verdict.

    Attributes:
        tokens: the response, including its end token if it has one.
        reward: what RL sees.
        right: whether it counts as right. In a batch this is the verdict's; where influence is
            measured, an outcome of at least ``RIGHT_REWARD``.
        behaviors: which behavior wrote each token, ``plain`` for most; empty if nobody asks.
        outcome: what its answer alone is worth; None: the same as ``reward``.
        logprobs: the sampler's log-probability of each token; empty if nobody asks.
    """

    tokens: Sequence[int]
    reward: float
    right: bool
    behaviors: tuple[str, ...] = ()
    outcome: float | None = None
    logprobs: Sequence[float] = ()

    @property
    def answer_reward(self) -> float:
        """What the answer alone is worth."""
        return self.reward if self.outcome is None else self.outcome


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """All verified rollouts of one query, at least two.

    Attributes:
        id: of the query's problem.
        prompt_tokens: the prompt after the chat template.
        rollouts: the responses with their verdicts.
        by_outcome: the group counts by its outcomes if all its answers are wrong
            (``rl.wrong_groups: outcome``).
    """

    id: str
    prompt_tokens: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    by_outcome: bool = True

    @property
    def right(self) -> int:
        """Number of rollouts that are right."""
        return sum(rollout.right for rollout in self.rollouts)

    @property
    def tokens(self) -> int:
        """Number of tokens of all rollouts."""
        return sum(len(rollout.tokens) for rollout in self.rollouts)

    @property
    def rewards(self) -> list[float]:
        """The reward of each rollout."""
        return [rollout.reward for rollout in self.rollouts]

    @property
    def outcomes(self) -> list[float]:
        """What the answer of each rollout is worth."""
        return [rollout.answer_reward for rollout in self.rollouts]

    @property
    def mean_reward(self) -> float:
        """Mean reward of the rollouts."""
        return sum(self.rewards) / len(self.rollouts)

    @property
    def answers_differ(self) -> bool:
        """Whether some answers are worth more than others, whatever the format or length."""
        return rewards_differ(self.outcomes)

    @property
    def learned_rewards(self) -> list[float]:
        """The rewards from which RL computes advantages (``advantages.learned_rewards``)."""
        if not self.by_outcome:
            return self.rewards
        return learned_rewards(self.rewards, self.outcomes)

    @property
    def informative(self) -> bool:
        """Whether RL learns from the group: not all of its advantages are zero."""
        return rewards_differ(self.learned_rewards)

    def advantages(self) -> list[float]:
        """(r - mean) / std with the population's std (Eq. 6 of arXiv:2505.18917)."""
        return group_advantages(self.learned_rewards)

    def centered_rewards(self) -> list[float]:
        """Reward minus the mean of the other rollouts.

        These are the weights of the unbiased gradient of the expected reward.
        """
        total, others = sum(self.rewards), len(self.rollouts) - 1
        return [reward - (total - reward) / others for reward in self.rewards]
