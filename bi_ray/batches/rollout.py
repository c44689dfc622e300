"""What goes to a rollout engine and what comes back. Plain data: no ray, no vllm, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bi_ray.policy.version import PolicyVersion, VersionSpan

if TYPE_CHECKING:
    from bi_ray.config import RunConfig


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How one group of samples is drawn.

    Attributes:
        samples: of the group.
        temperature: 0 is greedy decoding.
        top_p: of the probability that is drawn from.
        max_tokens: length at which a response is cut off.
        stop: strings that end a response. They stay in its text and in its tokens, as with TRL and
            verl, which decode the tokens: what ends an answer may be part of its format.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A prompt that wants a group of samples.

    Attributes:
        key: names the group, the same whenever it is asked for again (problem id, with the step in
            RL).
        prompt_tokens: the prompt after the chat template.
        sampling: how to draw.
        seed: sample j is drawn with seed ``seed + j``, whatever else the engine does at that time.
    """

    key: str
    prompt_tokens: tuple[int, ...]
    sampling: SamplingConfig
    seed: int


@dataclass(slots=True)
class Sample:
    """One response.

    Attributes:
        tokens: the response, its end token included where there is one.
        logprobs: log-probability of each token under the distribution that it was drawn from
            (temperature and top-p applied), same length as ``tokens``.
        text: the response as text, without the end token.
        truncated: whether it ended at the length limit.
        version: the oldest policy that made a part of it.
        spans: which policy made which tokens, in their order; more than one where weights were
            swapped in flight.
    """

    tokens: list[int]
    logprobs: list[float]
    text: str
    truncated: bool
    version: PolicyVersion
    spans: tuple[VersionSpan, ...] = ()


@dataclass(slots=True)
class Group:
    """All samples of one request."""

    key: str
    prompt_tokens: tuple[int, ...]
    samples: list[Sample] = field(default_factory=list)


def seed_for(*parts: object) -> int:
    """A 31-bit seed that depends on every part: (run seed, stage, step, prompt)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


def rl_sampling(config: RunConfig, samples: int | None = None) -> SamplingConfig:
    """How RL draws a group of so many samples, by default ``rl.samples_per_prompt``."""
    rl, model = config.rl, config.model
    return SamplingConfig(
        samples or rl.samples_per_prompt,
        rl.temperature,
        rl.top_p,
        model.max_response_tokens,
        model.stop,
    )


def version_metrics(samples: Sequence[Sample], step: int) -> dict[str, float]:
    """How old the policies were that made the batch of ``step``, in versions.

    Returns:
        staleness_mean: over tokens, of the versions between the one that made it and the one that
            learns from it.
        staleness_max: of any token.
        mixed_version_share: of samples that more than one version made.
    """
    ages = [
        (step - 1 - span.version.step, span.tokens)
        for sample in samples
        for span in sample.spans or (VersionSpan(sample.version, len(sample.tokens)),)
        if span.tokens
    ]
    tokens = sum(count for _, count in ages)
    return {
        "staleness_mean": sum(age * count for age, count in ages) / max(1, tokens),
        "staleness_max": max((age for age, _ in ages), default=0),
        "mixed_version_share": sum(len(sample.spans) > 1 for sample in samples)
        / max(1, len(samples)),
    }
