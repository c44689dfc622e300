"""From the rows of measured queries, of one run or of several seeds, to averages with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from bi_ray.intervals import Interval, bootstrap_mean, mean_of_known, pass_at_k, wilson
from bi_ray.readiness.records import (
    AllAgainstAll,
    BehaviorPart,
    MeasuredPolicy,
    MeasuredQuery,
    Pair,
    WatchedQuery,
)

Row = TypeVar("Row", bound=MeasuredQuery | WatchedQuery)
Seeds = Sequence[Sequence[MeasuredQuery]]  # rows of queries, one list per seed
_KS = (1, 2, 4, 8, 16, 32, 64)
_NO_PART = BehaviorPart(0, 0.0)


@dataclass(frozen=True, slots=True)
class AccuracySummary:
    """The accuracy side, averaged over the queries.

    Attributes:
        histogram: number of queries with 0, 1, ... right rollouts.
        informative: share of the queries with some but not all rollouts right.
        signal: mean of sqrt(a(1 - a)), with a the share of right rollouts.
        pass_at: unbiased pass@k, by k.
        entropy: nats per token.
        perplexity: of held-out demonstrations, by whose they are.
        response_tokens: mean length in tokens.
        truncated: see ``accuracy.ResponseSummary``, also for the next three.
    """

    histogram: list[int]
    informative: Interval | None
    signal: Interval | None
    pass_at: dict[int, float]
    entropy: Interval | None
    perplexity: dict[str, Interval]
    response_tokens: Interval | None
    truncated: float
    format_right: float
    trace_valid: float | None
    behaviors: dict[str, float]


@dataclass(frozen=True, slots=True)
class InfluenceMeans:
    """Averages over all queries; None where no query has a value (``records.Influence``)."""

    dj: Interval | None
    k_plus: Interval | None
    k_minus: Interval | None


@dataclass(frozen=True, slots=True)
class AccuracyGroup:
    """Averages over the queries with the same number of right rollouts.

    Attributes:
        right: number of right rollouts.
        queries: number of queries.
        k_plus: see ``records.Influence``, also for the next two.
    """

    right: int
    queries: int
    k_plus: Interval | None
    k_minus: Interval | None
    dj: Interval | None


@dataclass(frozen=True, slots=True)
class BehaviorInfluence:
    """What the tokens of a behavior contribute to dJ.

    Attributes:
        behavior: its name.
        tokens: number of tokens that it wrote.
        dj: mean per query.
        dj_per_token: mean per token of the behavior.
    """

    behavior: str
    tokens: int
    dj: Interval | None
    dj_per_token: Interval


@dataclass(frozen=True, slots=True)
class InfluenceSummary:
    """Influence with one token scale: by accuracy group, of all queries, and by behavior."""

    groups: list[AccuracyGroup]
    all: InfluenceMeans
    behaviors: list[BehaviorInfluence]


@dataclass(frozen=True, slots=True)
class PairsGroup:
    """Influence on the queries themselves, of the queries with the same number of right rollouts.

    Attributes:
        right: number of right rollouts.
        queries: number of queries.
        dj: with all queries as target.
        self_term: the part that a query has on itself.
        without_self: ``dj`` without that part.
    """

    right: int
    queries: int
    dj: Interval | None
    self_term: Interval | None
    without_self: Interval | None


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Mean influence of a query of one accuracy group on a query of another.

    Attributes:
        groups: the accuracy groups of both axes, as numbers of right rollouts.
        values: [acted on, trained on]; None where there is no pair.
    """

    groups: list[int]
    values: list[list[float | None]]


@dataclass(frozen=True, slots=True)
class PairsSummary:
    """All against all."""

    groups: list[PairsGroup]
    heat_map: HeatMap


@dataclass(frozen=True, slots=True)
class ReadinessSummary:
    """Averages over the queries of all seeds, as the report shows them.

    Attributes:
        seeds: number of seeds.
        queries: number of queries of all seeds.
        samples_per_prompt: number of rollouts per query.
        accuracy: the accuracy side.
        influence: by token scale.
        halves_cosine: mean over the seeds, by token scale (``influence.direction_in_halves``).
        all_against_all: None if a query has none.
        set: set of problems that the queries are from.
        target_set: set of problems that the target is from.
    """

    seeds: int
    queries: int
    samples_per_prompt: int
    accuracy: AccuracySummary
    influence: dict[str, InfluenceSummary]
    halves_cosine: dict[str, float | None]
    all_against_all: PairsSummary | None = None
    set: str = "rl"
    target_set: str = "influence_target"


class Bootstrap(Generic[Row]):
    """Bootstrap means of a value of the rows, over seeds and the queries within them.

    Args:
        seeds: rows, one list per seed.
        draws: number of bootstrap draws.
        seed: seed of the random numbers.
    """

    def __init__(self, seeds: Sequence[Sequence[Row]], draws: int, seed: int) -> None:
        self.seeds = seeds
        self.draws = draws
        self.seed = seed

    def chosen(self, right: int) -> Bootstrap[Row]:
        """The same of the rows with this number of right rollouts."""
        seeds: list[list[Row]] = []
        for rows in self.seeds:
            seeds.append([row for row in rows if row.right == right])
        return Bootstrap(seeds, self.draws, self.seed)

    def values(self, value: Callable[[Row], float | None]) -> list[list[float]]:
        """Per seed, the value of every row that has one; seeds without any are left out."""
        per_seed = []
        for rows in self.seeds:
            values = []
            for row in rows:
                number = value(row)
                if number is not None:
                    values.append(number)
            if values:
                per_seed.append(values)
        return per_seed

    def mean(self, value: Callable[[Row], float | None]) -> Interval | None:
        """Mean and interval; None if no row has a value."""
        values = self.values(value)
        if not values:
            return None
        return bootstrap_mean(values, self.draws, self.seed)


def summarize_readiness(
    seeds: Seeds, policies: Sequence[MeasuredPolicy], draws: int, seed: int = 0
) -> ReadinessSummary:
    """Average over the queries of all seeds.

    Args:
        seeds: rows of ``measure.measure_queries``, a list per seed; all with the same number of
            rollouts.
        policies: the policy's own record for each seed, with its perplexity.
        draws: number of bootstrap draws, over seeds and queries.
        seed: seed of the bootstrap.
    """
    bootstrap = Bootstrap(seeds, draws, seed)
    rows: list[MeasuredQuery] = []
    for of_seed in seeds:
        rows += of_seed
    scales = list(rows[0].influence)
    pairs = None
    if all(row.all_against_all is not None for row in rows):
        pairs = _all_against_all(bootstrap, policies, rows[0].of)
    return ReadinessSummary(
        seeds=len(seeds),
        queries=len(rows),
        samples_per_prompt=rows[0].of,
        accuracy=_accuracy(bootstrap, rows, policies),
        influence={scale: _influence(bootstrap, rows, scale) for scale in scales},
        halves_cosine={scale: _halves_cosine(policies, scale) for scale in scales},
        all_against_all=pairs,
    )


def _accuracy(
    bootstrap: Bootstrap[MeasuredQuery],
    rows: Sequence[MeasuredQuery],
    policies: Sequence[MeasuredPolicy],
) -> AccuracySummary:
    samples = rows[0].of
    histogram = [0] * (samples + 1)
    for row in rows:
        histogram[row.right] += 1
    return AccuracySummary(
        histogram=histogram,
        informative=_informative(bootstrap, histogram),
        signal=bootstrap.mean(_signal),
        pass_at={k: _pass_at(rows, k) for k in _KS if samples >= 2 * k},
        entropy=bootstrap.mean(lambda row: row.entropy),
        perplexity=_perplexity(policies, bootstrap.draws, bootstrap.seed),
        response_tokens=bootstrap.mean(lambda row: row.response_tokens),
        truncated=float(np.mean([row.truncated for row in rows])),
        format_right=float(np.mean([row.format_right for row in rows])),
        trace_valid=mean_of_known([row.trace_valid for row in rows]),
        behaviors=_behavior_counts(rows),
    )


def _informative(bootstrap: Bootstrap[MeasuredQuery], histogram: Sequence[int]) -> Interval | None:
    """Share of informative queries: Wilson's interval for one seed, else over seeds and queries."""
    if len(bootstrap.seeds) == 1:
        return wilson(sum(histogram[1:-1]), sum(histogram))
    return bootstrap.mean(lambda row: float(0 < row.right < row.of))


def _signal(row: MeasuredQuery) -> float:
    """sqrt(a(1 - a)), with a the share of right rollouts."""
    return float((row.right * (row.of - row.right)) ** 0.5 / row.of)


def _pass_at(rows: Sequence[MeasuredQuery], k: int) -> float:
    return float(np.mean([pass_at_k(row.of, row.right, k) for row in rows]))


def _perplexity(policies: Sequence[MeasuredPolicy], draws: int, seed: int) -> dict[str, Interval]:
    intervals = {}
    for name in policies[0].perplexity:
        values = [policy.perplexity[name] for policy in policies]
        intervals[name] = bootstrap_mean(values, draws, seed)
    return intervals


def _behavior_counts(rows: Sequence[MeasuredQuery]) -> dict[str, float]:
    """Mean number per response, by behavior."""
    counts = {}
    for name in rows[0].behaviors:
        counts[name] = float(np.mean([row.behaviors[name] for row in rows]))
    return counts


def _halves_cosine(policies: Sequence[MeasuredPolicy], scale: str) -> float | None:
    return mean_of_known([policy.halves_cosine.get(scale) for policy in policies])


def _influence(
    bootstrap: Bootstrap[MeasuredQuery], rows: Sequence[MeasuredQuery], scale: str
) -> InfluenceSummary:
    groups = []
    for right in range(rows[0].of + 1):
        chosen = bootstrap.chosen(right)
        count = sum(map(len, chosen.seeds))
        if count:
            means = _influence_means(chosen, scale)
            groups.append(AccuracyGroup(right, count, means.k_plus, means.k_minus, means.dj))
    names: dict[str, None] = {}  # in the order in which they come
    for row in rows:
        names.update(dict.fromkeys(row.influence[scale].behaviors))
    return InfluenceSummary(
        groups=groups,
        all=_influence_means(bootstrap, scale),
        behaviors=[_behavior_influence(bootstrap, scale, name) for name in names],
    )


def _influence_means(bootstrap: Bootstrap[MeasuredQuery], scale: str) -> InfluenceMeans:
    return InfluenceMeans(
        dj=bootstrap.mean(lambda row: row.influence[scale].dj),
        k_plus=bootstrap.mean(lambda row: row.influence[scale].k_plus),
        k_minus=bootstrap.mean(lambda row: row.influence[scale].k_minus),
    )


def _behavior_influence(
    bootstrap: Bootstrap[MeasuredQuery], scale: str, name: str
) -> BehaviorInfluence:
    def part(row: MeasuredQuery) -> BehaviorPart:
        return row.influence[scale].behaviors.get(name, _NO_PART)

    tokens = bootstrap.values(lambda row: part(row).tokens)
    parts = bootstrap.values(lambda row: part(row).dj)
    return BehaviorInfluence(
        behavior=name,
        tokens=int(sum(map(sum, tokens))),
        dj=bootstrap.mean(lambda row: part(row).dj),
        dj_per_token=bootstrap_ratio(parts, tokens, bootstrap.draws, bootstrap.seed),
    )


def bootstrap_ratio(
    numerators: Sequence[Sequence[float]],
    denominators: Sequence[Sequence[float]],
    draws: int,
    seed: int,
) -> Interval:
    """Percentile bootstrap of sum over sum, over seeds and the queries within them.

    Args:
        numerators: one list per seed, a number per query.
        denominators: the same; draws whose denominators sum to 0 are left out.
        draws: number of bootstrap draws.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    pairs = []  # per seed [2, queries]
    for above, below in zip(numerators, denominators, strict=True):
        pairs.append(np.stack([np.asarray(above), np.asarray(below)]))
    count = len(pairs)
    chosen = rng.integers(count, size=(draws, count))
    sums = np.zeros((draws, 2))
    for index, pair in enumerate(pairs):
        # a draw is in the list once for every time that it took this seed
        draw, _ = np.nonzero(chosen == index)
        size = pair.shape[1]
        times = rng.multinomial(size, np.full(size, 1 / size), size=len(draw))
        np.add.at(sums, draw, times @ pair.T)
    valid = sums[sums[:, 1] > 0]
    low, high = np.quantile(valid[:, 0] / valid[:, 1], (0.025, 0.975))
    total = np.sum([pair.sum(axis=1) for pair in pairs], axis=0)
    return Interval(float(total[0] / total[1]), float(low), float(high))


def _all_against_all(
    bootstrap: Bootstrap[MeasuredQuery], policies: Sequence[MeasuredPolicy], samples: int
) -> PairsSummary:
    groups = []
    for right in range(samples + 1):
        chosen = bootstrap.chosen(right)
        count = sum(map(len, chosen.seeds))
        if count:
            groups.append(_pairs_group(chosen, right, count))
    pairs: list[Pair] = []
    for policy in policies:
        pairs += policy.pairs or []
    return PairsSummary(groups, _heat_map(pairs))


def _pairs_group(bootstrap: Bootstrap[MeasuredQuery], right: int, count: int) -> PairsGroup:
    def mean(value: Callable[[AllAgainstAll], float]) -> Interval | None:
        def of_row(row: MeasuredQuery) -> float | None:
            return None if row.all_against_all is None else value(row.all_against_all)

        return bootstrap.mean(of_row)

    return PairsGroup(
        right=right,
        queries=count,
        dj=mean(lambda influence: influence.dj),
        self_term=mean(lambda influence: influence.self_term),
        without_self=mean(lambda influence: influence.dj - influence.self_term),
    )


def _heat_map(pairs: Sequence[Pair]) -> HeatMap:
    sums: dict[tuple[int, int], float] = defaultdict(float)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for pair in pairs:
        sums[pair.row, pair.column] += pair.sum
        counts[pair.row, pair.column] += pair.count
    groups = sorted({row for row, _ in sums})
    values = []
    for row in groups:
        line: list[float | None] = []
        for column in groups:
            key = row, column
            line.append(sums[key] / counts[key] if key in sums else None)
        values.append(line)
    return HeatMap(groups, values)


def watched_groups(rows: Sequence[WatchedQuery], draws: int) -> list[AccuracyGroup]:
    """Influence by accuracy of the informative queries of one analysis during RL."""
    if not rows:
        return []
    bootstrap = Bootstrap([rows], draws, 0)
    groups = []
    for right in range(rows[0].of + 1):
        chosen = bootstrap.chosen(right)
        count = sum(map(len, chosen.seeds))
        if count:
            group = AccuracyGroup(
                right=right,
                queries=count,
                k_plus=chosen.mean(lambda row: row.k_plus),
                k_minus=chosen.mean(lambda row: row.k_minus),
                dj=chosen.mean(lambda row: row.dj),
            )
            groups.append(group)
    return groups
