"""What validations say: figures of one, the best step, and when to stop. Pure functions of rows and
of metrics rows.

The rows of ``metrics.jsonl`` are the only memory: a run that goes on from an earlier step has cut
the later ones, and comes to the same decisions again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bi_ray.config import RLConfig, ValidationConfig
from bi_ray.intervals import pass_at_k

PREFIX = "validation"
OUTCOME = "outcome.json"
# beside metrics.jsonl: every sample of the validation after step N in ``N.jsonl``
FOLDER = "validation"


def summarize(
    set_name: str, rows: Sequence[Mapping[str, Any]], config: ValidationConfig
) -> dict[str, float]:
    """The figures of one validation on one set, named ``validation/SET/...``.

    Args:
        set_name: of the problems.
        rows: one per sample, as ``actors.driver.sampling`` writes them.
        config: says which k of pass@k.

    Returns:
        ``greedy`` (share of right greedy responses), ``truncated`` (share of those), ``tokens``
        (their mean length), ``pass_at_k`` for each k, and ``failures``. A figure that no sample
        with a verdict tells of is left out: a failure is no wrong answer.
    """
    judged = [row for row in rows if row["failure"] is None]
    greedy = [row for row in judged if row["mode"] == "greedy"]
    sampled: dict[str, list[bool]] = {}
    for row in judged:
        if row["mode"] == "sampled":
            sampled.setdefault(row["id"], []).append(row["right"])
    figures: dict[str, float] = {"failures": len(rows) - len(judged)}
    if greedy:
        figures["greedy"] = float(np.mean([row["right"] for row in greedy]))
        figures["truncated"] = float(np.mean([row["truncated"] for row in greedy]))
        figures["tokens"] = float(np.mean([row["tokens"] for row in greedy]))
    for k in config.pass_at:
        values = [
            pass_at_k(len(right), sum(right), k) for right in sampled.values() if len(right) >= k
        ]
        if values:
            figures[f"pass_at_{k}"] = float(np.mean(values))
    return {f"{PREFIX}/{set_name}/{name}": value for name, value in figures.items()}


def compared_figure(config: ValidationConfig) -> str:
    """The name of the figure by which steps are compared."""
    return f"{PREFIX}/{config.sets[0]}/{config.metric}"


def scores_of(
    metrics: Iterable[Mapping[str, Any]], config: ValidationConfig | None
) -> dict[int, float]:
    """The compared figure of every validated step, in the order of the steps."""
    if config is None:
        return {}
    name = compared_figure(config)
    return {row["step"]: row[name] for row in metrics if name in row}


def best_step(scores: Mapping[int, float]) -> int | None:
    """The step with the highest score, the earliest of equal ones; None without scores."""
    return max(scores, key=lambda step: (scores[step], -step), default=None)


def stops_after(scores: Mapping[int, float], config: ValidationConfig | None) -> int | None:
    """The step with which the patience is at its end, None while it is not."""
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
    """Which step's policy is the result of RL, and why. ``outcome.json`` beside the policy holds
    it.

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


def outcome_of(
    metrics: Sequence[Mapping[str, Any]], config: RLConfig, usable: Collection[int] | None = None
) -> Outcome:
    """The outcome of an RL that has ended, from its metrics rows.

    Args:
        metrics: rows of every step.
        config: of RL.
        usable: the steps whose policies are there and whole; None: all.
    """
    last = max(row["step"] for row in metrics)
    scores = scores_of(metrics, config.validation)
    best = best_step(scores)
    kept = last
    if config.validation is not None and config.validation.use_best:
        choices = {
            step: score for step, score in scores.items() if usable is None or step in usable
        }
        best_usable = best_step(choices)
        kept = last if best_usable is None else best_usable
    stopped = None
    if config.validation and best is not None and last < config.steps:
        stopped = (
            f"stopped after step {last} of {config.steps}: {compared_figure(config.validation)} did not rise by more "
            f"than {config.validation.min_gain:g} in {config.validation.patience} validations; best "
            f"{scores[best]:.3f} after step {best}"
        )
    return Outcome(kept, last, best, stopped)
