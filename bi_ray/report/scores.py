"""From evaluated samples to accuracies, gains and intervals (section 8 of docs/method.md), as plain
data.

A row is one sample as ``actors.driver.sampling`` writes it: ``mode`` (greedy or sampled), ``id`` of
the problem, ``answer``, ``failure`` (None where there is a verdict) and the fields of
``bi_ray.verification.verdicts.Verdict``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from bi_ray.intervals import Interval, bootstrap_mean, pass_at_k, wilson

Stage = Literal["SFT", "RL"]
Row = Mapping[str, Any]

_SHARES = ("truncated", "format_right")  # of the greedy responses


def constant_answer_baseline(answers: Iterable[str]) -> tuple[str, float]:
    """The commonest answer and the accuracy of always giving it.

    Raises:
        ValueError: there are no answers.
    """
    counts = Counter(answers)
    if not counts:
        raise ValueError("no answers")
    answer, times = counts.most_common(1)[0]
    return answer, times / counts.total()


def informative_share(right: ArrayLike, samples: int) -> float:
    """Share of the problems with 0 < right < ``samples``; ``right`` has shape [problems]."""
    counts = np.asarray(right)
    return float(np.mean((counts > 0) & (counts < samples)))


@dataclass(frozen=True)
class SetScore:
    """What one policy did on one set.

    Attributes:
        arm, stage, set, seed: which policy (of which training seed) and which problems.
        greedy: whether the greedy response was right, by problem.
        sampled: how many of the samples were right and how many there are, by problem.
        truncated, format_right, trace_valid: shares of the greedy responses; the last None without
        graphs.
        progress: share of the needed quantities that a greedy response solves before its first bad
            line, on average.
        right_reflections: share of the greedy responses' reflections that were right to turn back;
            those behind a bad line do not count as right. None where there are none. Both are None
            without graphs, and in evaluations older than them.
        failures: samples without a verdict, left out of all the above.
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
        """Mean pass@k over the problems with at least 2k samples; None where there are none."""
        values = [
            pass_at_k(total, right, k) for right, total in self.sampled.values() if total >= 2 * k
        ]
        return float(np.mean(values)) if values else None

    @property
    def informative(self) -> float | None:
        """Share of the sampled problems with some but not all samples right; None where nothing was
        sampled.
        """
        if not self.sampled:
            return None
        return float(np.mean([0 < right < total for right, total in self.sampled.values()]))


def score_set(arm: str, stage: Stage, set_name: str, seed: int, rows: Iterable[Row]) -> SetScore:
    """Summarize the rows of one policy on one set.

    Raises:
        ValueError: no greedy response has a verdict.
    """
    rows = list(rows)
    judged = [row for row in rows if row["failure"] is None]
    greedy = [row for row in judged if row["mode"] == "greedy"]
    if not greedy:
        raise ValueError(
            f"{arm}, {stage}, {set_name}: no greedy response has a verdict ({len(rows)} failures)"
        )
    sampled: dict[str, tuple[int, int]] = {}
    for row in judged:
        if row["mode"] == "sampled":
            right, total = sampled.get(row["id"], (0, 0))
            sampled[row["id"]] = (right + bool(row["right"]), total + 1)
    traces = [row["trace_valid"] for row in greedy if row["trace_valid"] is not None]
    shares = {name: float(np.mean([row[name] for row in greedy])) for name in _SHARES}
    return SetScore(
        arm=arm,
        stage=stage,
        set=set_name,
        seed=seed,
        greedy={row["id"]: bool(row["right"]) for row in greedy},
        sampled=sampled,
        trace_valid=float(np.mean(traces)) if traces else None,
        failures=len(rows) - len(judged),
        progress=_mean(row.get("progress") for row in greedy),
        right_reflections=_right_reflections(greedy),
        **shares,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _right_reflections(rows: Iterable[Row]) -> float | None:
    graded = [row for row in rows if row.get("right_reflections") is not None]
    written = sum(row["reflections"] for row in graded)
    return sum(row["right_reflections"] for row in graded) / written if written else None


@dataclass(frozen=True)
class StageSummary:
    """One stage of an arm on a set, over its training seeds. Shares and pass@k are means over the
    seeds.
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
        draws: of the bootstrap.
        seed: of the bootstrap.

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
    before = {score.seed: score for score in scores if score.stage == "SFT"}
    after = {score.seed: score for score in scores if score.stage == "RL"}
    if not before:
        raise ValueError(f"{arm}, {set_name}: there is no score before RL")
    both = [_gains(before[s], after[s]) for s in before if s in after]
    return TableRow(
        arm=arm,
        set=set_name,
        seeds=len(before),
        problems=sum(len(score.greedy) for score in before.values()),
        sft=_summarize(list(before.values()), draws, seed),
        rl=_summarize(list(after.values()), draws, seed) if after else None,
        gain=bootstrap_mean([list(gains.values()) for gains in both], draws, seed)
        if both
        else None,
    )


def _gains(before: SetScore, after: SetScore) -> dict[str, int]:
    """After minus before (-1, 0 or 1) by problem, for the problems that both have."""
    return {
        name: after.greedy[name] - right
        for name, right in before.greedy.items()
        if name in after.greedy
    }


def _summarize(scores: Sequence[SetScore], draws: int, seed: int) -> StageSummary:
    ks = (1, 2, 4, 8, 16, 32, 64)
    pass_at = {
        k: [value for score in scores if (value := score.pass_at(k)) is not None] for k in ks
    }
    informative = [score.informative for score in scores if score.informative is not None]
    traces = [score.trace_valid for score in scores if score.trace_valid is not None]
    right = [list(score.greedy.values()) for score in scores]
    return StageSummary(
        accuracy=wilson(sum(right[0]), len(right[0]))
        if len(right) == 1
        else bootstrap_mean(right, draws, seed),
        pass_at={
            k: float(np.mean(values)) for k, values in pass_at.items() if len(values) == len(scores)
        },
        informative=float(np.mean(informative)) if informative else None,
        truncated=float(np.mean([score.truncated for score in scores])),
        format_right=float(np.mean([score.format_right for score in scores])),
        trace_valid=float(np.mean(traces)) if traces else None,
        failures=sum(score.failures for score in scores),
        progress=_mean(score.progress for score in scores),
        right_reflections=_mean(score.right_reflections for score in scores),
    )


def gain_difference(
    scores: Sequence[SetScore], arm: str, against: str, set_name: str, draws: int, seed: int = 0
) -> Interval:
    """How much more ``arm`` gained from RL than ``against``, paired by training seed and problem.

    Raises:
        ValueError: the arms have no training seed with all four scores in common.
    """
    of = {(score.arm, score.stage, score.seed): score for score in scores if score.set == set_name}
    pairs: list[list[int]] = []
    for s in dict.fromkeys(key[2] for key in of):
        wanted = [(arm, "SFT", s), (arm, "RL", s), (against, "SFT", s), (against, "RL", s)]
        if all(key in of for key in wanted):
            first, second = (
                _gains(of[arm, "SFT", s], of[arm, "RL", s]),
                _gains(of[against, "SFT", s], of[against, "RL", s]),
            )
            pairs.append([first[name] - second[name] for name in first if name in second])
    return bootstrap_mean(pairs, draws, seed)
