"""All that is measured of one policy: a row per query, and a record of the policy as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from bi_ray.batches.scored_group import ScoredGroup
from bi_ray.readiness.accuracy import describe_samples, entropies, perplexities
from bi_ray.readiness.influence import (
    Differentiator,
    TokenScale,
    direction_in_halves,
    measure_influence,
    norm,
    pairwise_influence,
)
from bi_ray.readiness.records import AllAgainstAll, MeasuredPolicy, MeasuredQuery, Pair, Target

Demonstrations = Sequence[tuple[Sequence[int], Sequence[int]]]  # tokens of prompts and responses


def measure_queries(
    differentiator: Differentiator,
    queries: Sequence[ScoredGroup],
    samples: Sequence[Sequence[Mapping[str, Any]]],
    target: Sequence[ScoredGroup],
    token_scales: Sequence[TokenScale],
    pairwise_mib: float,
    on_progress: Callable[[str], None] = lambda phase: None,
) -> tuple[list[MeasuredQuery], MeasuredPolicy]:
    """Accuracy and influence of every query.

    Args:
        differentiator: of the policy that generated the rollouts.
        queries: whose influence is measured.
        samples: the verified samples of each query (see ``accuracy.describe_samples``).
        target: on which the influence is measured; other problems than ``queries``, or the result
            contains the self term.
        token_scales: sums or means over tokens, each with a direction of its own.
        pairwise_mib: memory in MiB that the gradients of all against all may take; if they need
            more, all against all is left out.
        on_progress: called with the name of each phase as it begins.

    Returns:
        A row per query, and the policy's own record without its perplexity.
    """
    on_progress("entropy")
    rows = _accuracy_rows(differentiator, queries, samples)
    policy = MeasuredPolicy(target=describe_target(target))
    for scale in token_scales:
        on_progress(f"direction of the target, token {scale}")
        direction, cosine = direction_in_halves(differentiator, target, scale)
        policy.halves_cosine[scale] = cosine
        policy.direction_norm[scale] = norm(direction)
        on_progress(f"influence, token {scale}")
        influences = measure_influence(differentiator, queries, direction, scale)
        for row, influence in zip(rows, influences, strict=True):
            row.influence[scale] = influence
    if not _gradients_fit(differentiator, queries, pairwise_mib):
        return rows, policy
    on_progress("all against all")
    matrix = pairwise_influence(differentiator, queries, token_scales[0])
    pairs = pairs_by_right(matrix, [group.right for group in queries])
    return _with_all_against_all(rows, matrix), replace(policy, pairs=pairs)


def _accuracy_rows(
    differentiator: Differentiator,
    queries: Sequence[ScoredGroup],
    samples: Sequence[Sequence[Mapping[str, Any]]],
) -> list[MeasuredQuery]:
    """A row per query, without influence."""
    of_queries = entropies(
        differentiator.model,
        queries,
        differentiator.temperature,
        differentiator.microbatch_tokens,
    )
    rows = []
    for group, own_samples, entropy in zip(queries, samples, of_queries, strict=True):
        row = MeasuredQuery(
            id=group.id,
            right=group.right,
            of=len(group.rollouts),
            **asdict(describe_samples(own_samples)),
            influence={},
            entropy=entropy,
        )
        rows.append(row)
    return rows


def _gradients_fit(
    differentiator: Differentiator, queries: Sequence[ScoredGroup], pairwise_mib: float
) -> bool:
    """Whether a float32 gradient of every informative query fits into the memory."""
    informative = sum(group.informative for group in queries)
    parameters = sum(parameter.numel() for parameter in differentiator.parameters.values())
    return informative * parameters * 4 <= pairwise_mib * 2**20


def _with_all_against_all(rows: Sequence[MeasuredQuery], matrix: Tensor) -> list[MeasuredQuery]:
    """The rows with what pairwise influence [queries, queries] gives each query on average."""
    extended = []
    for number, row in enumerate(rows):
        average = AllAgainstAll(
            dj=float(matrix[:, number].mean()),
            self_term=float(matrix[number, number]) / len(rows),
        )
        extended.append(replace(row, all_against_all=average))
    return extended


def describe_target(target: Sequence[ScoredGroup]) -> Target:
    """How large the target is, and its mean reward, the estimate of J."""
    rewards = [group.mean_reward for group in target]
    return Target(
        queries=len(target),
        rollouts=sum(len(group.rollouts) for group in target),
        reward=sum(rewards) / len(rewards) if rewards else 0.0,
    )


def pairs_by_right(matrix: Tensor, right: Sequence[int]) -> list[Pair]:
    """Pairwise influence [queries, queries] by the accuracy groups of row and column.

    Args:
        matrix: pairwise influence; its diagonal does not count.
        right: number of right rollouts of every query.
    """
    off_diagonal = matrix * (1 - torch.eye(len(matrix), dtype=matrix.dtype))
    numbers = torch.tensor(right)
    groups = sorted(set(right))
    pairs = []
    for row in groups:
        for column in groups:
            mask = (numbers == row)[:, None] & (numbers == column)[None, :]
            count = int(mask.sum())
            if row == column:
                count -= int((numbers == row).sum())
            if count:
                pairs.append(Pair(row, column, float(off_diagonal[mask].sum()), count))
    return pairs


def held_out_perplexity(
    differentiator: Differentiator, demonstrations: Mapping[str, Demonstrations]
) -> dict[str, list[float]]:
    """Perplexity of each held-out demonstration, by whose demonstrations they are."""
    model, limit = differentiator.model, differentiator.microbatch_tokens
    return {name: perplexities(model, rows, limit) for name, rows in demonstrations.items()}
