"""From groups of judged samples to what the learners train on. Pure: no ray, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bi_ray.batches.advantages import learned_rewards, rewards_differ, step_advantages
from bi_ray.batches.batch import LearnerBatch, TrainSample
from bi_ray.batches.rollout import Group, Sample
from bi_ray.batches.shaping import length_penalty, overlong_penalty
from bi_ray.config import ConfigError, RLConfig, RunConfig
from bi_ray.config.importing import load_object
from bi_ray.verification.verdicts import DataFailure, Verdict

JudgedGroup = tuple[Group, Sequence[Verdict | DataFailure]]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group that counts: its samples that have a verdict, two at least.

    Attributes:
        group: all of it.
        samples: those with a verdict.
        verdicts: one for each of ``samples``.
    """

    group: Group
    samples: list[Sample]
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        """Before shaping."""
        return [verdict.reward for verdict in self.verdicts]

    @property
    def outcomes(self) -> list[float]:
        """What the answers alone are worth."""
        return [verdict.answer_reward for verdict in self.verdicts]

    @property
    def informative(self) -> bool:
        """Whether some answers are worth more than others; format, trace and length have no say."""
        return rewards_differ(self.outcomes)

    @property
    def tokens(self) -> int:
        """Of all responses."""
        return sum(len(sample.tokens) for sample in self.samples)


def score_groups(judged: Sequence[JudgedGroup], rl: RLConfig) -> list[ScoredGroup]:
    """The groups that count.

    A sample that ended as a data failure has no reward: it leaves its group, and under
    ``incomplete_groups: drop`` the group leaves the step.
    """
    scored = []
    for group, outcome in judged:
        whole = [
            (s, v) for s, v in zip(group.samples, outcome, strict=True) if isinstance(v, Verdict)
        ]
        if len(whole) >= 2 and (len(whole) == len(outcome) or rl.incomplete_groups == "keep"):
            scored.append(
                ScoredGroup(
                    group, [sample for sample, _ in whole], [verdict for _, verdict in whole]
                )
            )
    return scored


def refill(judged: Sequence[JudgedGroup], rounds: int, rl: RLConfig) -> int:
    """How many more prompts a step needs: DAPO's dynamic sampling (arXiv:2503.14476).

    ``queries.next_queries`` picks them; ``build_batch`` gets the groups of all rounds.

    Args:
        judged: all groups of the step so far, in the order in which they were asked for.
        rounds: of generation so far.
        rl: how many are wanted.

    Returns:
        As many as make up for the missing ones at the share of informative groups so far, one
        step's at most; 0 when the step has enough, when the rounds are used up, or without
        ``dynamic_sampling``.
    """
    if rl.dynamic_sampling is None or rounds >= rl.dynamic_sampling.max_rounds:
        return 0
    found = sum(group.informative for group in score_groups(judged, rl))
    missing = max(0, rl.prompts_per_step - found)
    return (
        min(rl.prompts_per_step, math.ceil(missing * len(judged) / found))
        if found
        else rl.prompts_per_step
    )


def build_batch(
    judged: Sequence[JudgedGroup], config: RunConfig
) -> tuple[LearnerBatch, dict[str, Any]]:
    """From verdicts to what the learners train on.

    Under ``dynamic_sampling`` the first ``prompts_per_step`` informative groups make the step, and
    the others count in the metrics alone: the reward stays that of every prompt that was asked for.
    Samples without advantage are left out unless a KL term needs them.

    Args:
        judged: the groups of the step, in the order in which they were asked for.
        config: the run.

    Raises:
        ConfigError: ``rl.advantage`` is an import path with nothing usable behind it.
    """
    rl = config.rl
    scored = score_groups(judged, rl)
    chosen = scored
    if rl.dynamic_sampling:
        chosen = [group for group in scored if group.informative][: rl.prompts_per_step]
    shaped = [_shaped_rewards(group, config) for group in chosen]
    if rl.zero_variance_groups == "drop":
        used = [
            (g, rewards)
            for g, rewards in zip(chosen, shaped, strict=True)
            if rewards_differ(rewards)
        ]
    else:
        used = list(zip(chosen, shaped, strict=True))
    advantages = _advantages([rewards for _, rewards in used], rl)
    samples = [
        TrainSample(
            f"{scored.group.key}/{number}",
            scored.group.prompt_tokens,
            tuple(sample.tokens),
            tuple(sample.logprobs),
            advantage,
        )
        for (scored, _), values in zip(used, advantages, strict=True)
        for number, (sample, advantage) in enumerate(zip(scored.samples, values, strict=True))
        if advantage != 0 or rl.kl.in_loss
    ]
    batch = LearnerBatch(
        samples=samples,
        samples_total=sum(len(group.samples) for group in chosen),
        tokens_total=sum(group.tokens for group, _ in used),
    )
    metrics = _metrics(judged, scored)
    if rl.dynamic_sampling:
        metrics["trained_groups"] = len(chosen)
    if rl.shaping.on:
        metrics["shaped_reward"] = _mean([reward for rewards in shaped for reward in rewards])
        metrics["shaping"] = metrics["shaped_reward"] - _mean(
            [r for group in chosen for r in group.rewards]
        )
    return batch, metrics


def _shaped_rewards(group: ScoredGroup, config: RunConfig) -> list[float]:
    shaping, limit = config.rl.shaping, config.model.max_response_tokens
    rewards = [
        verdict.reward
        - overlong_penalty(len(sample.tokens), limit, shaping)
        - length_penalty(len(sample.tokens), limit, verdict.right, shaping)
        for sample, verdict in zip(group.samples, group.verdicts, strict=True)
    ]
    return (
        rewards if config.rl.wrong_groups == "shaped" else learned_rewards(rewards, group.outcomes)
    )


def _advantages(groups: list[list[float]], rl: RLConfig) -> list[list[float]]:
    if ":" in rl.advantage:
        found = load_object(rl.advantage, "rl.advantage")(groups)
        if [len(values) for values in found] != [len(rewards) for rewards in groups]:
            raise ConfigError(
                f"rl.advantage: {rl.advantage} must give every group as many advantages as rewards"
            )
        return [[float(value) for value in values] for values in found]
    return step_advantages(groups, rl.advantage, rl.advantage_std, rl.advantage_epsilon)


def _metrics(judged: Sequence[JudgedGroup], scored: Sequence[ScoredGroup]) -> dict[str, Any]:
    verdicts = [verdict for group in scored for verdict in group.verdicts]
    return {
        "reward": _mean([verdict.reward for verdict in verdicts]),
        "accuracy": _mean([verdict.right for verdict in verdicts]),
        "format_rate": _mean([verdict.format_right for verdict in verdicts]),
        **(
            _trace_metrics(verdicts)
            if any(verdict.trace_valid is not None for verdict in verdicts)
            else {}
        ),
        "truncated_rate": _mean([verdict.truncated for verdict in verdicts]),
        "informative_share": _mean([group.informative for group in scored]),
        "response_tokens_mean": _mean(
            [len(sample.tokens) for group, _ in judged for sample in group.samples]
        ),
        "groups": len(scored),
        "data_failures": sum(
            isinstance(verdict, DataFailure) for _, outcome in judged for verdict in outcome
        ),
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
