"""Readiness of the arms of finished runs, read from their directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from bi_ray.intervals import Interval
from bi_ray.readiness.realized import correlation
from bi_ray.readiness.records import (
    Comparison,
    Point,
    Realized,
    Step,
    Watched,
    read_policy,
    read_queries,
)
from bi_ray.readiness.summary import (
    AccuracyGroup,
    ReadinessSummary,
    summarize_readiness,
    watched_groups,
)
from bi_ray.runs.layout import (
    INFLUENCE_FILE,
    MEASURED_QUERIES_FILE,
    READINESS,
    READINESS_FILE,
    REALIZED,
    REALIZED_FILE,
    RL,
)
from bi_ray.runs.records import read_jsonl, read_record
from bi_ray.runs.stages import is_finished


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPoint(Point):
    """A real step along one query, and the number of the run's seed."""

    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedStep(Step):
    """A real step along the target's own gradient, and the number of the run's seed."""

    seed: int


@dataclass(frozen=True, slots=True)
class RealizedSummary:
    """Predicted against realized change of one arm, over all seeds.

    Attributes:
        points: a real step along each query.
        noise_floor: mean over the seeds (``records.UnchangedPolicy``).
        correlation: of the predicted and the realized change.
        correlation_odd: of the predicted change and the realized one to first order.
        controls: a step along the target's own gradient for each seed.
        step_norm: Euclidean length of every step.
    """

    points: list[SeedPoint]
    noise_floor: float
    correlation: Interval | None
    correlation_odd: Interval | None
    controls: list[SeedStep]
    step_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis(Comparison):
    """An analysis during RL, with the queries averaged by accuracy.

    Attributes:
        seed: number of the run's seed.
        step: number of RL steps that the policy has behind it.
        groups: influence of the step's queries.
    """

    seed: int
    step: int
    groups: list[AccuracyGroup]


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """What was measured before RL and during it, by arm; arms that were not measured are absent."""

    readiness: dict[str, ReadinessSummary] = field(default_factory=dict)
    realized: dict[str, RealizedSummary] = field(default_factory=dict)
    during_rl: dict[str, list[Analysis]] = field(default_factory=dict)


def read_readiness(arms: Sequence[str], runs: Sequence[Path], draws: int) -> ReadinessReport:
    """Read what was measured before RL and during it.

    Args:
        arms: names of the arms.
        runs: directories of one configuration under different seeds.
        draws: number of bootstrap draws.

    Raises:
        RunError: a file is damaged.
    """
    report = ReadinessReport()
    for arm in arms:
        if measured := _measured(arm, runs, draws):
            report.readiness[arm] = measured
        if realized := _realized(arm, runs, draws):
            report.realized[arm] = realized
        if analyses := _analyses(arm, runs, draws):
            report.during_rl[arm] = analyses
    return report


def _measured(arm: str, runs: Sequence[Path], draws: int) -> ReadinessSummary | None:
    folders = []
    for run in runs:
        folder = run / READINESS / arm
        if (folder / MEASURED_QUERIES_FILE).exists() or is_finished(folder):
            folders.append(folder)
    if not folders:
        return None
    rows = read_queries([folder / MEASURED_QUERIES_FILE for folder in folders])
    policies = [read_policy(folder / READINESS_FILE, rows[0][0]) for folder in folders]
    return summarize_readiness(rows, policies, draws)


def _realized(arm: str, runs: Sequence[Path], draws: int) -> RealizedSummary | None:
    points = []
    controls = []
    floors = []
    step_norms = []
    for seed, run in enumerate(runs):
        file = run / REALIZED / arm / REALIZED_FILE
        if not file.exists() and not is_finished(file.parent):
            continue
        result = read_record(file, Realized)
        for point in result.points:
            points.append(SeedPoint(seed=seed, **asdict(point)))
        controls.append(SeedStep(seed=seed, **asdict(result.control)))
        floors.append(result.unchanged_policy.noise_floor)
        step_norms.append(result.step_norm)
    if not points:
        return None
    predicted = [point.predicted for point in points]
    return RealizedSummary(
        points=points,
        noise_floor=sum(floors) / len(floors),
        correlation=correlation(predicted, [point.realized for point in points], draws),
        correlation_odd=correlation(predicted, [point.odd for point in points], draws),
        controls=controls,
        step_norm=step_norms[0],
    )


def _analyses(arm: str, runs: Sequence[Path], draws: int) -> list[Analysis]:
    analyses = []
    for seed, run in enumerate(runs):
        for row in read_jsonl(run / RL / arm / INFLUENCE_FILE, Watched, growing=True):
            analysis = Analysis(
                seed=seed,
                step=row.step,
                groups=watched_groups(row.queries, draws),
                target_reward=row.target_reward,
                target_se=row.target_se,
                since=row.since,
                predicted=row.predicted,
                realized=row.realized,
                noise=row.noise,
            )
            analyses.append(analysis)
    return analyses


def render_readiness(readiness: Mapping[str, ReadinessSummary]) -> Table:
    """Readiness before RL for a terminal, a row per arm."""
    table = Table(
        title="Readiness before RL",
        caption="informative: 0 < right < N, %; signal: mean sqrt(a(1-a)); K+, K-, dJ: per unit of "
        "learning rate; halves: cosine between the target's gradients on two halves of it, near 0 "
        "mostly noise",
    )
    table.add_column("arm", no_wrap=True)
    for name in ("informative", "signal", "K+", "K-", "dJ", "halves"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, summary in readiness.items():
        scale = next(iter(summary.influence))
        influence = summary.influence[scale].all
        halves = summary.halves_cosine.get(scale)
        table.add_row(
            arm,
            _percent(summary.accuracy.informative),
            _value(summary.accuracy.signal, ".2f"),
            _value(influence.k_plus),
            _value(influence.k_minus),
            _range(influence.dj),
            "-" if halves is None else f"{halves:.2f}",
        )
    return table


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.value:.0f} ({100 * interval.low:.0f}–{100 * interval.high:.0f})"


def _value(interval: Interval | None, digits: str = ".2g") -> str:
    return "-" if interval is None else f"{interval.value:{digits}}"


def _range(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.value:.2g} ({interval.low:.2g} to {interval.high:.2g})"
