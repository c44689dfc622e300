"""From evaluated samples to accuracies, gains and intervals (docs/method.md, "Definitions").

A row is one sample as ``actors.driver.sampling`` writes it: ``mode`` (greedy or sampled), ``id`` of
the problem, ``answer``, ``failure`` (None if there is a verdict) and the fields of
``bi_ray.verification.verdicts.Verdict``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bi_ray.intervals import Interval, bootstrap_mean, mean_of_known, pass_at_k, wilson

Stage = Literal["SFT", "RL"]
Row = Mapping[str, Any]

_KS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class SetScore:
    """What one policy did on one set.

    Attributes:
        arm: arm of the policy.
        stage: training stage of the policy.
        set: name of the set of problems.
        seed: training seed of the policy.
        greedy: whether the greedy response was right, by problem.
        sampled: number of samples that were right and number of samples, by problem.
        truncated: share of the greedy responses that were truncated.
        format_right: share of the greedy responses in the right format.
        trace_valid: share of the greedy traces that are valid; None without graphs.
        failures: number of samples without a verdict, left out of all the above.
        progress: mean share of the needed quantities that a greedy response solves before its first
            bad line; None without graphs.
        right_reflections: share of the greedy responses' reflections that were right to turn back;
            those behind a bad line do not count as right. None if there are none, or no graphs.
    """

    arm: str
    stage: Stage
    set: str
    seed: int
    greedy: dict[str, bool]
    sampled: dict[str, tuple[int, int]]
    truncated: float
    format_right: float
    trace_valid: float | None
    failures: int
    progress: float | None = None
    right_reflections: float | None = None

    def pass_at(self, k: int) -> float | None:
        """Mean pass@k over the problems with at least 2k samples; None if there are none."""
        values: list[float | None] = []
        for right, total in self.sampled.values():
            if total >= 2 * k:
                values.append(pass_at_k(total, right, k))
        return mean_of_known(values)

    @property
    def informative(self) -> float | None:
        """Share of the sampled problems with some but not all samples right; None if none was."""
        return mean_of_known([0 < right < total for right, total in self.sampled.values()])


def score_set(arm: str, stage: Stage, set_name: str, seed: int, rows: Sequence[Row]) -> SetScore:
    """Summarize the rows of one policy on one set.

    Raises:
        ValueError: no greedy response has a verdict.
    """
    judged = [row for row in rows if row["failure"] is None]
    greedy = [row for row in judged if row["mode"] == "greedy"]
    if not greedy:
        raise ValueError(
            f"{arm}, {stage}, {set_name}: no greedy response has a verdict ({len(rows)} failures)"
        )
    return SetScore(
        arm=arm,
        stage=stage,
        set=set_name,
        seed=seed,
        greedy={row["id"]: bool(row["right"]) for row in greedy},
        sampled=_right_of_sampled(judged),
        truncated=_share(greedy, "truncated"),
        format_right=_share(greedy, "format_right"),
        trace_valid=_mean_of_field(greedy, "trace_valid"),
        failures=len(rows) - len(judged),
        progress=_mean_of_field(greedy, "progress"),
        right_reflections=_right_reflections(greedy),
    )


def _share(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _mean_of_field(rows: Sequence[Row], name: str) -> float | None:
    return mean_of_known([row.get(name) for row in rows])


def _right_of_sampled(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Number of right samples and of samples, by problem."""
    sampled: dict[str, tuple[int, int]] = {}
    for row in rows:
        if row["mode"] == "sampled":
            right, total = sampled.get(row["id"], (0, 0))
            sampled[row["id"]] = (right + bool(row["right"]), total + 1)
    return sampled


def _right_reflections(rows: Sequence[Row]) -> float | None:
    right = written = 0
    for row in rows:
        if row.get("right_reflections") is not None:
            right += row["right_reflections"]
            written += row["reflections"]
    return right / written if written else None


@dataclass(frozen=True)
class StageSummary:
    """One stage of an arm on a set, over its training seeds.

    Shares and pass@k are means over the seeds; see ``SetScore``.
    """

    accuracy: Interval
    pass_at: dict[int, float]
    informative: float | None
    truncated: float
    format_right: float
    trace_valid: float | None
    failures: int
    progress: float | None = None
    right_reflections: float | None = None


@dataclass(frozen=True)
class TableRow:
    """An arm on a set: before RL, after it, and the gain over the problems that both have."""

    arm: str
    set: str
    seeds: int
    problems: int
    sft: StageSummary
    rl: StageSummary | None
    gain: Interval | None


def make_table(scores: Sequence[SetScore], draws: int, seed: int = 0) -> list[TableRow]:
    """The table arm x (SFT, RL, gain) x set, arms and sets in the order in which they come.

    Args:
        scores: of any number of arms, sets and training seeds; every arm and set needs its SFT
            scores.
        draws: number of bootstrap draws.
        seed: seed of the bootstrap.

    Raises:
        ValueError: an arm and set has RL scores but no SFT scores, or RL and SFT share no problem.
    """
    cells: dict[tuple[str, str], list[SetScore]] = {}
    for score in scores:
        cells.setdefault((score.arm, score.set), []).append(score)
    return [_table_row(arm, name, cell, draws, seed) for (arm, name), cell in cells.items()]


def _table_row(
    arm: str, set_name: str, scores: Sequence[SetScore], draws: int, seed: int
) -> TableRow:
    before = list(_of_stage(scores, "SFT").values())
    after = list(_of_stage(scores, "RL").values())
    if not before:
        raise ValueError(f"{arm}, {set_name}: there is no score before RL")
    gains = [list(of_seed.values()) for of_seed in gains_by_seed(scores).values()]
    return TableRow(
        arm=arm,
        set=set_name,
        seeds=len(before),
        problems=sum(len(score.greedy) for score in before),
        sft=_summarize_stage(before, draws, seed),
        rl=_summarize_stage(after, draws, seed) if after else None,
        gain=bootstrap_mean(gains, draws, seed) if gains else None,
    )


def gains_by_seed(scores: Sequence[SetScore]) -> dict[int, dict[str, int]]:
    """After minus before RL (-1, 0 or 1), by training seed and problem, of one arm on one set."""
    after = _of_stage(scores, "RL")
    gains = {}
    for seed, before in _of_stage(scores, "SFT").items():
        if seed in after:
            gains[seed] = difference_by_problem(after[seed].greedy, before.greedy)
    return gains


def _of_stage(scores: Sequence[SetScore], stage: Stage) -> dict[int, SetScore]:
    """The scores of one stage by training seed."""
    return {score.seed: score for score in scores if score.stage == stage}


def difference_by_problem(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """First minus second by problem, for the problems that both have."""
    return {name: first[name] - value for name, value in second.items() if name in first}


def _summarize_stage(scores: Sequence[SetScore], draws: int, seed: int) -> StageSummary:
    return StageSummary(
        accuracy=_accuracy(scores, draws, seed),
        pass_at=_mean_pass_at(scores),
        informative=_mean_over_seeds(scores, "informative"),
        truncated=float(np.mean([score.truncated for score in scores])),
        format_right=float(np.mean([score.format_right for score in scores])),
        trace_valid=_mean_over_seeds(scores, "trace_valid"),
        failures=sum(score.failures for score in scores),
        progress=_mean_over_seeds(scores, "progress"),
        right_reflections=_mean_over_seeds(scores, "right_reflections"),
    )


def _mean_over_seeds(scores: Sequence[SetScore], name: str) -> float | None:
    return mean_of_known([getattr(score, name) for score in scores])


def _accuracy(scores: Sequence[SetScore], draws: int, seed: int) -> Interval:
    """Greedy accuracy: Wilson's interval for one training seed, else over seeds and problems."""
    right = [list(score.greedy.values()) for score in scores]
    if len(right) == 1:
        return wilson(sum(right[0]), len(right[0]))
    return bootstrap_mean(right, draws, seed)


def _mean_pass_at(scores: Sequence[SetScore]) -> dict[int, float]:
    """Mean pass@k over the training seeds, for each k that all of them have."""
    means = {}
    for k in _KS:
        values = [score.pass_at(k) for score in scores]
        mean = mean_of_known(values)
        if mean is not None and None not in values:
            means[k] = mean
    return means


def scores_of_arm(scores: Sequence[SetScore], arm: str, set_name: str) -> list[SetScore]:
    """The scores of an arm on a set, over stages and seeds."""
    return [score for score in scores if score.arm == arm and score.set == set_name]
