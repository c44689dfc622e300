"""What the driver hands to the learners for one RL step. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainSample:
    """One response to learn from.

    Attributes:
        key: name of the sample: its group's key and its number there.
        prompt_tokens: the prompt after the chat template, at least one token.
        response_tokens: what the policy sampled, including the end token if there is one.
        logprobs: the sampler's log-probability of every response token, temperature applied.
        advantage: the sample's advantage in its group, the same for every token.
    """

    key: str
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise ValueError(
                f"{self.key}: no prompt tokens, so nothing predicts the first response token"
            )
        if len(self.response_tokens) != len(self.logprobs):
            raise ValueError(
                f"{self.key}: {len(self.response_tokens)} tokens, {len(self.logprobs)} "
                "log-probabilities"
            )


@dataclass(frozen=True, slots=True)
class LearnerBatch:
    """The samples of one RL step; their order does not matter.

    Attributes:
        samples: those that have a gradient. Groups whose rewards are all equal are left out unless
            a KL term is on. May be empty: then the version goes up and the weights stay.
        samples_total: number of samples that were scored, including those left out. Eq. 12 of
            arXiv:2505.18917 averages over all of them, so that a batch with few informative groups
            makes a small step.
        tokens_total: number of response tokens that a mean over tokens divides by; None: those of
            ``samples``.
    """

    samples: Sequence[TrainSample]
    samples_total: int
    tokens_total: int | None = None

    def __post_init__(self) -> None:
        if self.samples_total < len(self.samples):
            raise ValueError(
                f"samples_total is {self.samples_total} but there are {len(self.samples)} samples"
            )
