"""The files of readiness, as ``measure``, ``realized`` and the analyses during RL leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from bi_ray.runs.records import damaged, read_jsonl, read_record

_ALL_FIELDS = ConfigDict(extra="allow")


class Influence(TypedDict):
    """What training on a query does, in one token scale; of each behavior its tokens and its part
    of dJ.
    """

    k_plus: float | None
    k_minus: float | None
    dj: float
    behaviors: dict[str, tuple[int, float]]


class AllAgainstAll(TypedDict):
    """Mean influence of a query on all of them, and the part that it has on itself."""

    dj: float
    self_term: float


class QueryRow(TypedDict):
    """A measured query; see ``measure.measure_queries``."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    right: int
    of: int
    entropy: float
    response_tokens: float
    truncated: float
    format_right: float
    trace_valid: float | None
    behaviors: dict[str, float]
    influence: dict[str, Influence]
    all_against_all: NotRequired[AllAgainstAll]


class Pair(TypedDict):
    """Sum and count of pairwise influence by the two queries' numbers of right rollouts."""

    row: int
    column: int
    sum: float
    count: int


class PolicyRow(TypedDict):
    """The policy's own row beside its queries."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    perplexity: NotRequired[dict[str, list[float]]]
    halves_cosine: NotRequired[dict[str, float | None]]
    pairs: NotRequired[list[Pair]]


class Step(TypedDict):
    """One real SGD step: the change of expected reward, predicted and realized."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    predicted: float
    realized: float
    low: float
    high: float
    odd: float
    odd_low: float
    odd_high: float


class Point(Step):
    """The step along one query."""

    query: str
    right: int
    of: int


class NoiseFloor(TypedDict):
    """What fresh samples of one and the same policy differ by."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    noise_floor: float


class Realized(TypedDict):
    """``realized.json``."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    points: list[Point]
    control: Step
    unchanged_policy: NoiseFloor
    step_norm: float


class WatchedQuery(TypedDict):
    """A query of an analysis during RL."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    right: int
    of: int
    k_plus: float | None
    k_minus: float | None
    dj: float


class WatchedRow(TypedDict):
    """An analysis during RL; see ``realized.Forecast.against``."""

    __pydantic_config__ = _ALL_FIELDS  # type: ignore[misc]
    step: int
    queries: list[WatchedQuery]
    target_reward: float
    target_se: float
    predicted: float | None
    realized: float | None
    noise: float | None


def read_queries(files: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The measured queries of each seed; all were measured in the same way.

    Raises:
        RunError: a file is missing, empty, damaged or measured in another way; the message names
            it, and the line.
    """
    seeds: list[list[dict[str, Any]]] = []
    for file in files:
        rows = read_jsonl(file, QueryRow)
        if not rows:
            raise damaged(file, "it is empty")
        seeds.append([dict(row) for row in rows])
    first = seeds[0][0]
    for file, rows_of_seed in zip(files, seeds, strict=True):
        for number, row in enumerate(rows_of_seed, start=1):
            alike = all(
                row[name].keys() == first[name].keys() for name in ("influence", "behaviors")
            )
            if not alike or row["of"] != first["of"] or not 0 <= row["right"] <= row["of"]:
                raise damaged(file, f"line {number} does not fit the first one")
    return seeds


def read_policy(file: Path, query: dict[str, Any]) -> dict[str, Any]:
    """The policy's own row.

    Raises:
        RunError: it is missing or damaged, or lacks what goes with the queries such as ``query``.
    """
    policy = read_record(file, PolicyRow)
    if "all_against_all" in query and "pairs" not in policy:
        raise damaged(file, "pairs is missing")
    return dict(policy)
