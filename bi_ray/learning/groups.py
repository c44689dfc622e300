"""From groups of judged samples to what the learners train on. Pure: no ray, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bi_ray.config import RunConfig
from bi_ray.policy.advantages import group_advantages
from bi_ray.policy.batch import LearnerBatch, TrainSample
from bi_ray.policy.rollout import Group
from bi_ray.verification import DataFailure, Verdict


def build_batch(
    judged: Sequence[tuple[Group, Sequence[Verdict | DataFailure]]], config: RunConfig
) -> tuple[LearnerBatch, dict[str, Any]]:
    """From verdicts to what the learners train on.

    A sample that ended as a data failure has no reward: it leaves its group, and under ``incomplete_groups: drop`` the
    group leaves the batch. Samples without advantage are left out unless a KL term needs them.
    """
    rl = config.rl
    samples: list[TrainSample] = []
    rewards: list[list[float]] = []
    verdicts: list[Verdict] = []
    failed = 0
    for group, outcome in judged:
        whole = [(s, v) for s, v in zip(group.samples, outcome, strict=True) if isinstance(v, Verdict)]
        failed += len(outcome) - len(whole)
        if len(whole) < 2 or (len(whole) < len(outcome) and rl.incomplete_groups == "drop"):
            continue
        group_rewards = [verdict.reward for _, verdict in whole]
        rewards.append(group_rewards)
        verdicts += [verdict for _, verdict in whole]
        advantages = group_advantages(group_rewards, rl.advantage_std, rl.advantage_epsilon)
        for number, ((sample, _), advantage) in enumerate(zip(whole, advantages, strict=True)):
            if advantage != 0 or rl.kl_coefficient > 0:
                key = f"{group.key}/{number}"
                samples.append(
                    TrainSample(key, group.prompt_tokens, tuple(sample.tokens), tuple(sample.logprobs), advantage)
                )
    lengths = [len(sample.tokens) for group, _ in judged for sample in group.samples]
    batch = LearnerBatch(samples=samples, groups_total=len(rewards), samples_total=sum(map(len, rewards)))
    return batch, {
        "reward": _mean([reward for group in rewards for reward in group]),
        "accuracy": _mean([verdict.right for verdict in verdicts]),
        "format_rate": _mean([verdict.format_right for verdict in verdicts]),
        **(_trace_metrics(verdicts) if any(verdict.trace_valid is not None for verdict in verdicts) else {}),
        "truncated_rate": _mean([verdict.truncated for verdict in verdicts]),
        "informative_share": _mean([len(set(group)) > 1 for group in rewards]),
        "response_tokens_mean": _mean(lengths),
        "groups": len(rewards),
        "data_failures": failed,
    }


def _trace_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """What the traces show that a graph could be held against; of free text nobody can tell."""
    traced = [verdict for verdict in verdicts if verdict.trace_valid is not None]
    return {
        "trace_valid_rate": _mean([bool(verdict.trace_valid) for verdict in traced]),
        "trace_progress": _mean([verdict.progress or 0.0 for verdict in traced]),
        "reflections_per_sample": _mean([verdict.reflections for verdict in traced]),
        "analyses_per_sample": _mean([verdict.analyses for verdict in traced]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
