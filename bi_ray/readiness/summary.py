"""From the rows of measured queries, of one run or of several seeds, to averages with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bi_ray.intervals import Interval, bootstrap_mean, pass_at_k, wilson

Row = Mapping[str, Any]
Seeds = Sequence[Sequence[Row]]  # rows of queries, one list per seed
_KS = (1, 2, 4, 8, 16, 32, 64)


def summarize(
    seeds: Seeds, policies: Sequence[Mapping[str, Any]], draws: int, seed: int = 0
) -> dict[str, Any]:
    """Averages over the queries of all seeds, as the report shows them.

    Args:
        seeds: rows of ``measure.measure_queries``, a list per seed; all with the same number of
            samples.
        policies: its second result for each seed, with ``perplexity``.
        draws: of the bootstrap, over seeds and queries.
        seed: of the bootstrap.
    """
    tools = _Pool(seeds, draws, seed)
    samples = seeds[0][0]["of"]
    summary: dict[str, Any] = {
        "seeds": len(seeds),
        "queries": sum(len(rows) for rows in seeds),
        "samples_per_prompt": samples,
        "accuracy": _accuracy(tools, seeds, policies, samples),
        "influence": {
            scale: _influence(tools, scale, samples) for scale in seeds[0][0]["influence"]
        },
        "halves_cosine": {
            scale: _halves_cosine(policies, scale) for scale in seeds[0][0]["influence"]
        },
    }
    if all("all_against_all" in row for rows in seeds for row in rows):
        summary["all_against_all"] = _all_against_all(tools, policies, samples)
    return summary


class _Pool:
    """Bootstrap means of a value of the rows, over seeds and queries."""

    def __init__(self, seeds: Seeds, draws: int, seed: int) -> None:
        self.seeds = seeds
        self.draws = draws
        self.seed = seed

    def values(
        self, value: Callable[[Row], float | None], chosen: Callable[[Row], bool] = lambda row: True
    ) -> list[list[float]]:
        """Per seed, the value of every chosen row that has one; seeds without any are left out."""
        found = [
            [v for row in rows if chosen(row) and (v := value(row)) is not None]
            for rows in self.seeds
        ]
        return [values for values in found if values]

    def mean(
        self, value: Callable[[Row], float | None], chosen: Callable[[Row], bool] = lambda row: True
    ) -> dict[str, float] | None:
        """Mean and interval, None where no row has a value."""
        found = self.values(value, chosen)
        return as_json(bootstrap_mean(found, self.draws, self.seed)) if found else None


def as_json(interval: Interval) -> dict[str, float]:
    """An interval as JSON keeps it."""
    return {name: float(value) for name, value in interval._asdict().items()}


def _accuracy(
    tools: _Pool, seeds: Seeds, policies: Sequence[Mapping[str, Any]], samples: int
) -> dict[str, Any]:
    rows = [row for seed in seeds for row in seed]
    informative = sum(0 < row["right"] < samples for row in rows)
    # of problems with a graph
    traces = [row["trace_valid"] for row in rows if row["trace_valid"] is not None]
    perplexity = {
        name: as_json(
            bootstrap_mean(
                [policy["perplexity"][name] for policy in policies], tools.draws, tools.seed
            )
        )
        for name in policies[0].get("perplexity", {})
    }
    return {
        "histogram": [sum(row["right"] == right for row in rows) for right in range(samples + 1)],
        "informative": as_json(wilson(informative, len(rows)))
        if len(seeds) == 1
        else tools.mean(lambda row: float(0 < row["right"] < samples)),
        "signal": tools.mean(
            lambda row: (row["right"] * (samples - row["right"])) ** 0.5 / samples
        ),
        "pass_at": {
            str(k): float(np.mean([pass_at_k(samples, row["right"], k) for row in rows]))
            for k in _KS
            if samples >= 2 * k
        },
        "entropy": tools.mean(lambda row: row["entropy"]),
        "perplexity": perplexity,
        "response_tokens": tools.mean(lambda row: row["response_tokens"]),
        **{
            name: float(np.mean([row[name] for row in rows]))
            for name in ("truncated", "format_right")
        },
        "trace_valid": float(np.mean(traces)) if traces else None,
        "behaviors": {
            name: float(np.mean([row["behaviors"][name] for row in rows]))
            for name in rows[0]["behaviors"]
        },
    }


def _halves_cosine(policies: Sequence[Mapping[str, Any]], scale: str) -> float | None:
    """Mean over the seeds; see ``influence.direction_in_halves``."""
    values = [
        value
        for policy in policies
        if (value := policy.get("halves_cosine", {}).get(scale)) is not None
    ]
    return float(np.mean(values)) if values else None


def _influence(tools: _Pool, scale: str, samples: int) -> dict[str, Any]:
    def part(name: str) -> Callable[[Row], float | None]:
        return lambda row: row["influence"][scale][name]

    names = list(
        dict.fromkeys(
            name
            for rows in tools.seeds
            for row in rows
            for name in row["influence"][scale]["behaviors"]
        )
    )
    return {
        "groups": groups_by_right(
            tools, samples, {name: part(name) for name in ("k_plus", "k_minus", "dj")}
        ),
        "all": {name: tools.mean(part(name)) for name in ("dj", "k_plus", "k_minus")},
        "behaviors": [_behavior(tools, scale, name) for name in names],
    }


def groups_by_right(
    tools: _Pool, samples: int, values: Mapping[str, Callable[[Row], float | None]]
) -> list[dict[str, Any]]:
    """Means over the queries with 0, 1, ... right rollouts; accuracies that no query has are left
    out.
    """
    found = []
    for right in range(samples + 1):
        chosen = lambda row, right=right: row["right"] == right  # noqa: E731
        count = sum(chosen(row) for rows in tools.seeds for row in rows)
        if count:
            means = {name: tools.mean(value, chosen) for name, value in values.items()}
            found.append({"right": right, "queries": count, **means})
    return found


def _behavior(tools: _Pool, scale: str, name: str) -> dict[str, Any]:
    """What the tokens of a behavior contribute to dJ: on average per query, and per token that it
    wrote.
    """

    def part(row: Row, index: int) -> float:
        return row["influence"][scale]["behaviors"].get(name, (0, 0.0))[index]

    tokens = tools.values(lambda row: part(row, 0))
    return {
        "behavior": name,
        "tokens": int(sum(map(sum, tokens))),
        "dj": tools.mean(lambda row: part(row, 1)),
        "dj_per_token": as_json(
            bootstrap_ratio(tools.values(lambda row: part(row, 1)), tokens, tools.draws, tools.seed)
        ),
    }


def bootstrap_ratio(
    numerators: Sequence[Sequence[float]],
    denominators: Sequence[Sequence[float]],
    draws: int,
    seed: int,
) -> Interval:
    """Percentile bootstrap of sum over sum, over seeds and the queries within them; draws of
    nothing are left out.
    """
    rng = np.random.default_rng(seed)
    pairs = [
        np.stack([np.asarray(a), np.asarray(b)])
        for a, b in zip(numerators, denominators, strict=True)
    ]
    count = len(pairs)
    chosen = rng.integers(count, size=(draws, count))
    sums = np.zeros((draws, 2))
    for index, pair in enumerate(pairs):
        # a draw stands there once for every time that it took this seed
        draw, _ = np.nonzero(chosen == index)
        size = pair.shape[1]
        times = rng.multinomial(size, np.full(size, 1 / size), size=len(draw))
        np.add.at(sums, draw, times @ pair.T)
    kept = sums[sums[:, 1] > 0]
    low, high = np.quantile(kept[:, 0] / kept[:, 1], (0.025, 0.975))
    total = np.sum([pair.sum(axis=1) for pair in pairs], axis=0)
    return Interval(float(total[0] / total[1]), float(low), float(high))


def _all_against_all(
    tools: _Pool, policies: Sequence[Mapping[str, Any]], samples: int
) -> dict[str, Any]:
    def part(name: str) -> Callable[[Row], float]:
        return lambda row: row["all_against_all"][name]

    sums: dict[tuple[int, int], tuple[float, int]] = {}
    for pair in (pair for policy in policies for pair in policy["pairs"]):
        key = pair["row"], pair["column"]
        total, count = sums.get(key, (0.0, 0))
        sums[key] = total + pair["sum"], count + pair["count"]
    groups = sorted({row for row, _ in sums})
    values = [[_ratio(sums.get((row, column))) for column in groups] for row in groups]
    without = lambda row: row["all_against_all"]["dj"] - row["all_against_all"]["self_term"]  # noqa: E731
    parts = {"dj": part("dj"), "self_term": part("self_term"), "without_self": without}
    return {
        "groups": groups_by_right(tools, samples, parts),
        "heat_map": {"groups": groups, "values": values},
    }


def _ratio(pair: tuple[float, int] | None) -> float | None:
    return pair[0] / pair[1] if pair else None


def watched_groups(rows: Sequence[Row], draws: int) -> list[dict[str, Any]]:
    """Influence by accuracy of the informative queries of one analysis during RL."""
    if not rows:
        return []
    parts: dict[str, Callable[[Row], float | None]] = {
        "k_plus": lambda row: row["k_plus"],
        "k_minus": lambda row: row["k_minus"],
        "dj": lambda row: row["dj"],
    }
    return groups_by_right(_Pool([rows], draws, 0), rows[0]["of"], parts)
