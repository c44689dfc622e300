"""Which queries RL trains on: rejection by the SFT policy's own rollouts.

A query that the policy never or always answers correctly has no advantages, so there is nothing to
learn from it at the start; it is left out once, before RL (Fig. 11 of arXiv:2505.18917). As RL
proceeds, a rejected query might have become informative; it is not reconsidered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from bi_ray.config.training import QueryFilterConfig


class SelectionError(ValueError):
    """A filter that leaves nothing to train on; the message says what to change."""


class SelectionSummary(TypedDict):
    """Counts of a selection, for the log and the manifest.

    ``right[n]`` is the number of queries with n right samples.
    """

    queries: int
    kept: int
    failed: int
    right: list[int]


@dataclass(frozen=True, slots=True)
class QueryRow:
    """What became of one query.

    Attributes:
        id: id of its problem.
        right: number of samples that were right.
        of: number of samples that have a verdict; failures are neither right nor wrong.
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
        config: how many must be right.

    Returns:
        A row per query. Where failures left fewer samples than asked for, the upper end of the
        range is lowered by as many.
    """
    rows = []
    for name, right in groups:
        lost = config.samples_per_prompt - len(right)
        kept = config.least_right <= sum(right) <= config.most_kept - lost
        rows.append(QueryRow(name, sum(right), len(right), kept))
    return rows


def describe_selection(
    rows: Sequence[QueryRow], asked: int, config: QueryFilterConfig
) -> SelectionSummary:
    """Counts of a selection, including the histogram of right samples.

    Args:
        rows: of the queries that were sampled.
        asked: number of queries that should have been sampled; the others failed as a whole.
        config: the filter.

    Raises:
        SelectionError: no query is kept.
    """
    histogram = [0] * (config.samples_per_prompt + 1)
    kept = 0
    for row in rows:
        histogram[row.right] += 1
        kept += row.kept
    if not kept:
        raise SelectionError(
            f"rl.query_filter keeps none of {asked} queries: it keeps {config.least_right} to "
            f"{config.most_kept} right of {config.samples_per_prompt}, but the numbers of queries "
            f"by right samples are {histogram}. Make task.sets.rl easier or harder, train SFT "
            "longer, widen least_right and most_right, or remove the filter"
        )
    return {"queries": asked, "kept": kept, "failed": asked - len(rows), "right": histogram}
