"""What goes to a rollout engine and what comes back. Plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bi_ray.policy.version import PolicyVersion, VersionSpan

if TYPE_CHECKING:
    from bi_ray.config.run import RunConfig


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How one group of samples is drawn.

    Attributes:
        samples: number of samples in the group.
        temperature: sampling temperature; 0 is greedy decoding.
        top_p: nucleus sampling: draw from the likeliest tokens that hold this much probability.
        max_tokens: length at which a response is cut off.
        stop: strings that end a response. They stay in its text and in its tokens, as in TRL and
            verl, which decode the tokens: what ends an answer may be part of its format.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A prompt for which a group of samples is wanted.

    Attributes:
        key: name of the group, the same whenever it is asked for again: the problem's id, in an
            evaluation behind the mode.
        prompt_tokens: the prompt after the chat template.
        sampling: how to draw.
        seed: sample j is drawn with seed ``seed + j``, whatever else the engine is doing.
    """

    key: str
    prompt_tokens: tuple[int, ...]
    sampling: SamplingConfig
    seed: int


@dataclass(slots=True)
class Sample:
    """One response.

    Attributes:
        tokens: the response, including its end token if it has one.
        logprobs: log-probability of each token under the distribution it was drawn from
            (temperature and top-p applied), same length as ``tokens``.
        text: the response as text, without the end token.
        truncated: whether it ended at the length limit.
        version: the oldest policy that generated a part of it.
        spans: which policy generated which tokens, in order; more than one if weights were swapped
            in flight.
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
    """How RL draws a group of ``samples`` samples, by default ``rl.samples_per_prompt``."""
    rl, model = config.rl, config.model
    return SamplingConfig(
        samples or rl.samples_per_prompt,
        rl.temperature,
        rl.top_p,
        model.max_response_tokens,
        model.stop,
    )


def version_metrics(samples: Sequence[Sample], step: int) -> dict[str, float]:
    """How old the policies were that generated the batch of ``step``, in versions.

    Returns:
        staleness_mean: mean over tokens of the number of versions between the policy that generated
            the token and the one that learns from it.
        staleness_max: the largest of these numbers.
        mixed_version_share: share of the samples that more than one version generated.
    """
    tokens = age_times_tokens = oldest = mixed = 0
    for sample in samples:
        mixed += len(sample.spans) > 1
        for span in sample.spans or (VersionSpan(sample.version, len(sample.tokens)),):
            if not span.tokens:
                continue
            age = step - 1 - span.version.step
            oldest = max(oldest, age) if tokens else age
            tokens += span.tokens
            age_times_tokens += age * span.tokens
    return {
        "staleness_mean": age_times_tokens / max(1, tokens),
        "staleness_max": oldest,
        "mixed_version_share": mixed / max(1, len(samples)),
    }
