"""Validations during RL: the figures of one, the best step, and when to stop.

The rows of ``metrics.jsonl`` are the only memory: a run that resumes from an earlier step has cut
the later ones, and comes to the same decisions again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bi_ray.config.training import RLConfig, ValidationConfig
from bi_ray.intervals import pass_at_k
from bi_ray.runs.layout import OUTCOME_FILE, VALIDATION
from bi_ray.runs.records import read_record

SampleRow = Mapping[str, Any]  # as ``actors.driver.sampling`` writes it
Metrics = Mapping[str, Any]  # a row of metrics.jsonl


def summarize(
    set_name: str, rows: Sequence[SampleRow], config: ValidationConfig
) -> dict[str, float]:
    """The figures of one validation on one set, named ``validation/SET/...``.

    Args:
        set_name: of the problems.
        rows: one per sample.
        config: says which k of pass@k.

    Returns:
        ``failures`` (samples without a verdict), ``greedy`` (accuracy of the greedy responses),
        ``truncated`` (share of those that were cut off), ``tokens`` (their mean length), and
        ``pass_at_k`` for each k. A figure without a sample to compute it from is left out: a
        failure is not a wrong answer.
    """
    judged = [row for row in rows if row["failure"] is None]
    figures: dict[str, float] = {"failures": len(rows) - len(judged)}
    greedy = [row for row in judged if row["mode"] == "greedy"]
    if greedy:
        figures["greedy"] = _mean_of(greedy, "right")
        figures["truncated"] = _mean_of(greedy, "truncated")
        figures["tokens"] = _mean_of(greedy, "tokens")
    verdicts = _sampled_verdicts(judged)
    for k in config.pass_at:
        values = [pass_at_k(len(right), sum(right), k) for right in verdicts if len(right) >= k]
        if values:
            figures[f"pass_at_{k}"] = float(np.mean(values))
    return {f"{VALIDATION}/{set_name}/{name}": value for name, value in figures.items()}


def _mean_of(rows: Sequence[SampleRow], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _sampled_verdicts(judged: Sequence[SampleRow]) -> list[list[bool]]:
    """Whether each sampled response to a problem is right, by problem in the order of the rows."""
    by_problem: dict[str, list[bool]] = {}
    for row in judged:
        if row["mode"] == "sampled":
            by_problem.setdefault(row["id"], []).append(row["right"])
    return list(by_problem.values())


def compared_figure(config: ValidationConfig) -> str:
    """The name of the figure by which steps are compared."""
    return f"{VALIDATION}/{config.sets[0]}/{config.metric}"


def scores_of(metrics: Iterable[Metrics], config: ValidationConfig | None) -> dict[int, float]:
    """The compared figure of every validated step, in the order of the steps."""
    if config is None:
        return {}
    name = compared_figure(config)
    return {row["step"]: row[name] for row in metrics if name in row}


def best_step(scores: Mapping[int, float]) -> int | None:
    """The step with the highest score, the earliest of equal ones; None without scores."""
    return max(scores, key=lambda step: (scores[step], -step), default=None)


def stops_after(scores: Mapping[int, float], config: ValidationConfig | None) -> int | None:
    """The step at which the patience runs out, None while it has not."""
    if config is None or config.patience is None:
        return None
    best, waited = -np.inf, 0
    for step in sorted(scores):
        if scores[step] > best + config.min_gain:
            best, waited = scores[step], 0
        else:
            waited += 1
        if waited >= config.patience:
            return step
    return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Content of ``outcome.json``: which step's policy is the result of RL, and why.

    Attributes:
        step: whose policy it is; 0: the policy that RL started from.
        last_step: the last one that was trained.
        best_step: with the best validation; None without validations.
        stopped: why RL ended before its last step, None where it did not.
    """

    step: int
    last_step: int
    best_step: int | None
    stopped: str | None


def read_outcome(stage: Path) -> Outcome:
    """The outcome of a finished RL.

    Args:
        stage: its folder.

    Raises:
        RunError: the file is damaged or missing.
    """
    return read_record(stage / OUTCOME_FILE, Outcome)


def outcome_of(metrics: Sequence[Metrics], config: RLConfig, usable: Collection[int]) -> Outcome:
    """The outcome of an RL that has ended, from its metrics rows.

    Args:
        metrics: rows of every step.
        config: of RL.
        usable: the steps whose policies are there and whole.
    """
    last = max(row["step"] for row in metrics)
    scores = scores_of(metrics, config.validation)
    best = best_step(scores)
    if config.validation is None or best is None:
        return Outcome(last, last, best, stopped=None)
    kept = last
    if config.validation.use_best:
        best_usable = best_step({step: scores[step] for step in scores if step in usable})
        kept = last if best_usable is None else best_usable
    stopped = None
    if last < config.steps:
        stopped = (
            f"stopped after step {last} of {config.steps}: {compared_figure(config.validation)} "
            f"did not rise by more than {config.validation.min_gain:g} in "
            f"{config.validation.patience} validations; best {scores[best]:.3f} after step {best}"
        )
    return Outcome(kept, last, best, stopped)
