"""From groups of judged samples to what the learners train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bi_ray.batches.advantages import step_advantages
from bi_ray.batches.batch import LearnerBatch, TrainSample
from bi_ray.batches.rollout import Group
from bi_ray.batches.scored_group import Rollout, ScoredGroup
from bi_ray.batches.shaping import length_penalty, overlong_penalty
from bi_ray.config.base import ConfigError
from bi_ray.config.importing import load_object
from bi_ray.config.run import RunConfig
from bi_ray.config.training import RLConfig
from bi_ray.verification.verdicts import DataFailure, Verdict

JudgedGroup = tuple[Group, Sequence[Verdict | DataFailure]]
CompleteGroup = tuple[Group, list[Verdict]]


def complete_groups(judged: Sequence[JudgedGroup], rl: RLConfig) -> list[CompleteGroup]:
    """The groups that count, each with a verdict for every sample, and at least two samples.

    A sample that ended as a data failure has no reward: it leaves its group, and under
    ``incomplete_groups: drop`` the group leaves the step.
    """
    complete = []
    for group, outcomes in judged:
        samples = []
        verdicts = []
        for sample, outcome in zip(group.samples, outcomes, strict=True):
            if isinstance(outcome, Verdict):
                samples.append(sample)
                verdicts.append(outcome)
        has_failures = len(verdicts) < len(outcomes)
        if has_failures and rl.incomplete_groups == "drop":
            continue
        if len(verdicts) >= 2:
            complete.append((replace(group, samples=samples), verdicts))
    return complete


def score_group(group: Group, verdicts: Sequence[Verdict], rl: RLConfig) -> ScoredGroup:
    """A complete group with its rewards, before shaping."""
    rollouts = []
    for sample, verdict in zip(group.samples, verdicts, strict=True):
        rollout = Rollout(
            tokens=sample.tokens,
            reward=verdict.reward,
            right=verdict.right,
            outcome=verdict.answer_reward,
            logprobs=sample.logprobs,
        )
        rollouts.append(rollout)
    by_outcome = rl.wrong_groups == "outcome"
    return ScoredGroup(group.key, group.prompt_tokens, tuple(rollouts), by_outcome)


def refill(judged: Sequence[JudgedGroup], rounds: int, rl: RLConfig) -> int:
    """How many more prompts a step needs: DAPO's dynamic sampling (arXiv:2503.14476).

    ``queries.next_queries`` picks them; ``build_batch`` gets the groups of all rounds.

    Args:
        judged: all groups of the step so far, in the order in which they were asked for.
        rounds: rounds of generation so far.
        rl: how many informative groups are wanted.

    Returns:
        As many as make up for the missing groups at the share of informative groups so far, but at
        most ``prompts_per_step``; 0 once the step has enough or the rounds are used up, and without
        ``dynamic_sampling``.
    """
    if rl.dynamic_sampling is None or rounds >= rl.dynamic_sampling.max_rounds:
        return 0
    informative = 0
    for group, verdicts in complete_groups(judged, rl):
        informative += score_group(group, verdicts, rl).answers_differ
    if not informative:
        return rl.prompts_per_step
    missing = max(0, rl.prompts_per_step - informative)
    return min(rl.prompts_per_step, math.ceil(missing * len(judged) / informative))


def build_batch(
    judged: Sequence[JudgedGroup], config: RunConfig
) -> tuple[LearnerBatch, dict[str, Any]]:
    """From verdicts to what the learners train on, and the step's metrics.

    Under ``dynamic_sampling`` the first ``prompts_per_step`` informative groups make up the step,
    and the others only count in the metrics: the reward remains that of every prompt asked for.
    Samples without advantage are left out unless a KL term needs them.

    Args:
        judged: the groups of the step, in the order in which they were asked for.
        config: the run.

    Raises:
        ConfigError: ``rl.advantage`` is an import path with nothing usable behind it.
    """
    rl = config.rl
    complete = complete_groups(judged, rl)
    scored = [score_group(group, verdicts, rl) for group, verdicts in complete]
    chosen = scored
    if rl.dynamic_sampling:
        chosen = [group for group in scored if group.answers_differ][: rl.prompts_per_step]
    shaped = [_shape(group, config) for group in chosen]
    used = shaped
    if rl.zero_variance_groups == "drop":
        used = [group for group in shaped if group.informative]
    batch = LearnerBatch(
        samples=_train_samples(used, rl),
        samples_total=sum(len(group.rollouts) for group in chosen),
        tokens_total=sum(group.tokens for group in used),
    )
    metrics = _metrics(judged, complete, scored)
    if rl.dynamic_sampling:
        metrics["trained_groups"] = len(chosen)
    if rl.shaping.on:
        metrics |= _shaping_metrics(chosen, shaped)
    return batch, metrics


def _shape(group: ScoredGroup, config: RunConfig) -> ScoredGroup:
    """The group with the rewards that its lengths leave."""
    shaping, limit = config.rl.shaping, config.model.max_response_tokens
    rollouts = []
    for rollout in group.rollouts:
        length = len(rollout.tokens)
        reward = (
            rollout.reward
            - overlong_penalty(length, limit, shaping)
            - length_penalty(length, limit, rollout.right, shaping)
        )
        rollouts.append(replace(rollout, reward=reward))
    return replace(group, rollouts=tuple(rollouts))


def _train_samples(groups: Sequence[ScoredGroup], rl: RLConfig) -> list[TrainSample]:
    advantages = _advantages([group.learned_rewards for group in groups], rl)
    samples = []
    for group, values in zip(groups, advantages, strict=True):
        for number, (rollout, advantage) in enumerate(zip(group.rollouts, values, strict=True)):
            if advantage == 0 and not rl.kl.in_loss:
                continue
            sample = TrainSample(
                key=f"{group.id}/{number}",
                prompt_tokens=group.prompt_tokens,
                response_tokens=tuple(rollout.tokens),
                logprobs=tuple(rollout.logprobs),
                advantage=advantage,
            )
            samples.append(sample)
    return samples


def _advantages(groups: list[list[float]], rl: RLConfig) -> list[list[float]]:
    if ":" not in rl.advantage:
        return step_advantages(groups, rl.advantage, rl.advantage_std, rl.advantage_epsilon)
    function = load_object(rl.advantage, "rl.advantage")
    advantages = [list(map(float, values)) for values in function(groups)]
    if list(map(len, advantages)) != list(map(len, groups)):
        raise ConfigError(
            f"rl.advantage: {rl.advantage} must give every group as many advantages as rewards"
        )
    return advantages


def _metrics(
    judged: Sequence[JudgedGroup],
    complete: Sequence[CompleteGroup],
    scored: Sequence[ScoredGroup],
) -> dict[str, Any]:
    verdicts: list[Verdict] = []
    for _, of_group in complete:
        verdicts += of_group
    lengths: list[int] = []
    failures = 0
    for group, outcomes in judged:
        lengths += [len(sample.tokens) for sample in group.samples]
        failures += sum(isinstance(outcome, DataFailure) for outcome in outcomes)
    metrics: dict[str, Any] = {
        "reward": _mean_of(verdicts, "reward"),
        "accuracy": _mean_of(verdicts, "right"),
        "format_rate": _mean_of(verdicts, "format_right"),
    }
    traced = [verdict for verdict in verdicts if verdict.trace_valid is not None]
    if traced:
        metrics |= _trace_metrics(traced)
    metrics |= {
        "truncated_rate": _mean_of(verdicts, "truncated"),
        "informative_share": _mean_or_zero([group.answers_differ for group in scored]),
        "response_tokens_mean": _mean_or_zero(lengths),
        "groups": len(scored),
        "data_failures": failures,
    }
    return metrics


def _trace_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Averages over the responses whose trace a graph can be held against."""
    return {
        "trace_valid_rate": _mean_of(verdicts, "trace_valid"),
        "trace_progress": _mean_or_zero([verdict.progress or 0.0 for verdict in verdicts]),
        "reflections_per_sample": _mean_of(verdicts, "reflections"),
        "analyses_per_sample": _mean_of(verdicts, "analyses"),
    }


def _shaping_metrics(
    chosen: Sequence[ScoredGroup], shaped: Sequence[ScoredGroup]
) -> dict[str, float]:
    """Mean reward after shaping, and what shaping changed of it."""
    before: list[float] = []
    for group in chosen:
        before += group.rewards
    after: list[float] = []
    for group in shaped:
        after += group.learned_rewards
    reward = _mean_or_zero(after)
    return {"shaped_reward": reward, "shaping": reward - _mean_or_zero(before)}


def _mean_of(verdicts: Sequence[Verdict], field: str) -> float:
    return _mean_or_zero([getattr(verdict, field) for verdict in verdicts])


def _mean_or_zero(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
