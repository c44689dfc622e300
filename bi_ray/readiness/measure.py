"""All that is measured of one policy: a row per query, and what belongs to the policy as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bi_ray.batches.advantages import RIGHT_REWARD
from bi_ray.readiness.accuracy import describe_samples, entropies, perplexities
from bi_ray.readiness.influence import (
    Differentiator,
    TokenScale,
    direction_in_halves,
    measure_influence,
    norm,
    pairwise_influence,
)
from bi_ray.readiness.rollouts import Rollout, ScoredGroup, token_behaviors
from bi_ray.reasoning.trace import Span

Demonstrations = Sequence[tuple[Sequence[int], Sequence[int]]]


def scored_group(
    row: Mapping[str, Any],
    tokenizer: Any = None,
    behavior_spans: Callable[[str], Sequence[Span]] | None = None,
    by_outcome: bool = True,
) -> ScoredGroup:
    """A group from the row that keeps it: ``id``, ``prompt_tokens`` and ``samples`` (see
    ``describe_samples``).

    Args:
        row: the group.
        tokenizer: of the policy; needed with ``behavior_spans`` only.
        behavior_spans: finds the behaviors in a response; None: nobody asks.
        by_outcome: as RL under ``wrong_groups: outcome``.
    """
    rollouts = []
    for sample in row["samples"]:
        tokens = tuple(sample["tokens"])
        spans = behavior_spans(sample["response"]) if behavior_spans else None
        behaviors = (
            () if spans is None else token_behaviors(tokenizer, tokens, sample["response"], spans)
        )
        reward = float(sample["reward"])
        outcome = sample.get("outcome")
        if outcome is None:  # None: exact match; a row that has no outcomes counts by its rewards
            outcome = float(sample["right"]) if "outcome" in sample else reward
        right = outcome >= RIGHT_REWARD
        rollouts.append(Rollout(tokens, reward, right, behaviors, outcome if by_outcome else None))
    return ScoredGroup(row["id"], tuple(row["prompt_tokens"]), tuple(rollouts))


def measure_queries(
    differentiator: Differentiator,
    queries: Sequence[ScoredGroup],
    samples: Sequence[Sequence[Mapping[str, Any]]],
    target: Sequence[ScoredGroup],
    token_scales: Sequence[TokenScale],
    pairwise_mib: float,
    on_progress: Callable[[str], None] = lambda phase: None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Accuracy side and influence of every query.

    Args:
        differentiator: of the policy that made the rollouts.
        queries: whose influence is measured.
        samples: the verified samples of each of them.
        target: on which they have it; other problems than ``queries``, or the self term is in the
            result.
        token_scales: sums or means over tokens, each a direction of its own.
        pairwise_mib: memory that the gradients of all against all may take; where it is not enough
            they are left out.
        on_progress: told what begins.

    Returns:
        A row per query (``right``, ``of``, ``entropy``, what ``describe_samples`` says,
        ``influence`` by token scale, and ``all_against_all`` with its ``self_term``); and for the
        policy the ``target``'s reward, the ``direction_norm`` and ``halves_cosine``
        (``influence.direction_in_halves``) by token scale, and ``pairs``: sums and counts of
        pairwise influence by the two queries' numbers of right rollouts, self pairs left out.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": group.id,
            "right": group.right,
            "of": len(group.rollouts),
            **describe_samples(own),
            "influence": {},
        }
        for group, own in zip(queries, samples, strict=True)
    ]
    on_progress("entropy")
    limit, temperature = differentiator.microbatch_tokens, differentiator.temperature
    for row, value in zip(
        rows, entropies(differentiator.model, queries, temperature, limit), strict=True
    ):
        row["entropy"] = value
    policy: dict[str, Any] = {
        "target": describe_target(target),
        "direction_norm": {},
        "halves_cosine": {},
    }
    for scale in token_scales:
        on_progress(f"direction of the target, token {scale}")
        direction, policy["halves_cosine"][scale] = direction_in_halves(
            differentiator, target, scale
        )
        policy["direction_norm"][scale] = norm(direction)
        on_progress(f"influence, token {scale}")
        for row, found in zip(
            rows, measure_influence(differentiator, queries, direction, scale), strict=True
        ):
            kept = asdict(found)
            row["influence"][scale] = {
                name: kept[name] for name in ("k_plus", "k_minus", "dj", "behaviors")
            }
    informative = sum(group.informative for group in queries)
    parameters = sum(parameter.numel() for parameter in differentiator.parameters.values())
    if informative * parameters * 4 <= pairwise_mib * 2**20:
        on_progress("all against all")
        matrix = pairwise_influence(differentiator, queries, token_scales[0])
        policy["pairs"] = pairs_by_right(matrix, [group.right for group in queries])
        for number, row in enumerate(rows):
            row["all_against_all"] = {
                "dj": float(matrix[:, number].mean()),
                "self_term": float(matrix[number, number]) / len(rows),
            }
    return rows, policy


def describe_target(target: Sequence[ScoredGroup]) -> dict[str, Any]:
    """How large the target is, and its mean reward, the estimate of J."""
    rewards = [sum(group.rewards) / len(group.rollouts) for group in target]
    return {
        "queries": len(target),
        "rollouts": sum(len(group.rollouts) for group in target),
        "reward": sum(rewards) / len(rewards) if rewards else 0.0,
    }


def pairs_by_right(matrix: Tensor, right: Sequence[int]) -> list[dict[str, Any]]:
    """Sums and counts of the off-diagonal entries of ``matrix`` by the numbers of right rollouts of
    row and column.
    """
    off_diagonal = matrix * (1 - torch.eye(len(matrix), dtype=matrix.dtype))
    numbers = torch.tensor(right)
    found = []
    for row in sorted(set(right)):
        for column in sorted(set(right)):
            mask = (numbers == row)[:, None] & (numbers == column)[None, :]
            count = int(mask.sum()) - (int((numbers == row).sum()) if row == column else 0)
            if count:
                found.append(
                    {
                        "row": row,
                        "column": column,
                        "sum": float(off_diagonal[mask].sum()),
                        "count": count,
                    }
                )
    return found


def held_out_perplexity(
    differentiator: Differentiator, demonstrations: Mapping[str, Demonstrations]
) -> dict[str, list[float]]:
    """Perplexity of each held-out demonstration, by whose demonstrations they are."""
    model, limit = differentiator.model, differentiator.microbatch_tokens
    return {name: perplexities(model, rows, limit) for name, rows in demonstrations.items()}
