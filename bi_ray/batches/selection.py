"""Which queries RL trains on: rejection by the SFT policy's own rollouts (Fig. 11 of
arXiv:2505.18917).

A query that the policy never or always answers right has no advantages, so nothing to teach at the
start; it is left out once, before RL. This is done offline: as RL goes on, queries that were
rejected might have become informative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bi_ray.config import QueryFilterConfig


class SelectionError(ValueError):
    """A filter that leaves nothing to train on; the message says what to change."""


@dataclass(frozen=True, slots=True)
class QueryRow:
    """What became of one query.

    Attributes:
        id: of its problem.
        right: samples that were right.
        of: samples that have a verdict; failures are neither right nor wrong.
        kept: whether RL trains on it.
    """

    id: str
    right: int
    of: int
    kept: bool


def reject(
    groups: Iterable[tuple[str, Sequence[bool]]], config: QueryFilterConfig
) -> list[QueryRow]:
    """Sort queries by their samples.

    Args:
        groups: id of each query, and whether each of its samples that have a verdict was right.
        config: how many have to be.

    Returns:
        A row per query. One with fewer samples than asked for, after failures, is kept where the
        counts are in the range all the same, and the upper end of the range is taken down by as
        many.
    """
    rows = []
    for name, right in groups:
        lost = config.samples_per_prompt - len(right)
        kept = config.least_right <= sum(right) <= config.most_kept - lost
        rows.append(QueryRow(name, sum(right), len(right), kept))
    return rows


def describe_selection(
    rows: Sequence[QueryRow], asked: int, config: QueryFilterConfig
) -> dict[str, Any]:
    """Counts for the log and the manifest, the histogram of right samples among them.

    Args:
        rows: of the queries that were sampled.
        asked: how many should have been; the others failed as a whole.
        config: the filter.

    Raises:
        SelectionError: none is kept.
    """
    kept = sum(row.kept for row in rows)
    histogram = [0] * (config.samples_per_prompt + 1)
    for row in rows:
        histogram[row.right] += 1
    summary = {"queries": asked, "kept": kept, "failed": asked - len(rows), "right": histogram}
    if not kept:
        raise SelectionError(
            f"rl.query_filter keeps none of {asked} queries (right of {config.samples_per_prompt}: {histogram}; kept "
            f"would be {config.least_right} to {config.most_kept}); make task.sets.rl easier or harder, train SFT "
            "longer, widen least_right and most_right, or take the filter out"
        )
    return summary
