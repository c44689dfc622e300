"""What a run, or several seeds of it, found: ``summary.json``, the table in the terminal and one picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bi_ray.config import RunConfig
from bi_ray.evaluation import SetScore, gain_difference, make_table, score_set
from bi_ray.metrics import read_metrics
from bi_ray.problems import MANIFEST
from bi_ray.report import draw_picture, render_samples, render_table
from bi_ray.store import STAGE_FILE, code_version, write_atomically

REPORT = "report"
SUMMARY = "summary.json"
PICTURE = "result.png"
_STAGES = {"eval_sft": "SFT", "eval_rl": "RL"}
_DOUBLE = "eval_sft_double"
_BASE = "eval_base"


def write_summary(config: RunConfig, runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Summarise finished runs of one configuration that differ in their seeds.

    Args:
        config: of the runs, seeds aside.
        runs: their directories, one per seed.
        out: the folder ``report`` appears there, with ``summary.json`` and ``result.png``.
    """
    scores = [score for seed, run in enumerate(runs) for score in read_scores(config, run, seed)]
    table = make_table(scores, config.evaluation.bootstrap_draws)
    summary: dict[str, Any] = {
        "name": config.name,
        "seeds": len(runs),
        "code_version": code_version(),
        "table": [asdict(row) for row in table],
        "difference_of_gains": list(_differences(config, scores)),
        "sets": _sets(config, runs),
        "base_model": _base_model(config, runs),
        "sft_twice_the_budget": _double_sft(config, runs),
        "stage_seconds": {run.name: _seconds(run) for run in runs},
    }
    rewards = {arm: [_rewards(run / f"rl/{arm}/metrics.jsonl") for run in runs] for arm in config.arms}
    with write_atomically(out / REPORT) as folder:
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1))
        draw_picture(rewards, table, folder / PICTURE, title=f"{config.name}: {len(runs)} seed{'s' * (len(runs) > 1)}")
    return summary | {"rendered": [render_table(table), render_samples(table)]}


def read_scores(config: RunConfig, run: Path, seed: int) -> list[SetScore]:
    """The scores of every arm, stage and set of a finished run."""
    return [
        score_set(arm, "SFT" if label == "SFT" else "RL", name, seed, read_metrics(run / f"{stage}/{arm}/{name}.jsonl"))
        for arm in config.arms
        for stage, label in _STAGES.items()
        for name in config.evaluation.sets
    ]


def _differences(config: RunConfig, scores: Sequence[SetScore]) -> Iterable[dict[str, Any]]:
    first, *others = config.arms
    for arm in others:
        for name in config.evaluation.sets:
            interval = gain_difference(scores, arm, first, name, config.evaluation.bootstrap_draws)
            yield {"arm": arm, "against": first, "set": name, "difference": asdict_interval(interval)}


def asdict_interval(interval: Any) -> dict[str, float]:
    """A named tuple as JSON keeps it."""
    return {name: float(value) for name, value in interval._asdict().items()}


def _sets(config: RunConfig, runs: Sequence[Path]) -> dict[str, Any]:
    """Per set, a value per run: sizes, the share of zero answers, the best constant answer and its accuracy."""
    found: dict[str, Any] = {}
    for name in config.task.sets:
        manifests = [json.loads((run / "data" / name / MANIFEST).read_text()) for run in runs]
        found[name] = {key: [m[key] for m in manifests] for key in manifests[0] if key not in ("hashes", "set")}
    return found


def _base_model(config: RunConfig, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Greedy accuracy before SFT, where the run measured it."""
    if not config.evaluation.base_model:
        return []
    return [_accuracy(config, "base", name, [run / _BASE for run in runs]) for name in config.evaluation.sets]


def _double_sft(config: RunConfig, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Greedy accuracy after twice the SFT budget, where the run measured it."""
    if not config.sft.report_twice_the_budget:
        return []
    return [
        _accuracy(config, arm, name, [run / _DOUBLE / arm for run in runs])
        for arm in config.arms
        for name in config.evaluation.sets
    ]


def _accuracy(config: RunConfig, arm: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Greedy accuracy on one set over the seeds, each a folder of evaluated samples."""
    files = [folder / f"{name}.jsonl" for folder in folders]
    scores = [score_set(arm, "SFT", name, seed, read_metrics(file)) for seed, file in enumerate(files)]
    row = make_table(scores, config.evaluation.bootstrap_draws)[0]
    return {"arm": arm, "set": name, "accuracy": asdict_interval(row.sft.accuracy)}


def _seconds(run: Path) -> dict[str, float]:
    files = sorted(run.glob(f"*/{STAGE_FILE}")) + sorted(run.glob(f"*/*/{STAGE_FILE}"))
    return {str(file.parent.relative_to(run)): json.loads(file.read_text())["seconds"] for file in files}


def _rewards(metrics: Path) -> list[float]:
    return [row["reward"] for row in read_metrics(metrics)]


def show_summary(summary: dict[str, Any], console: Console, out: Path) -> None:
    """Print the table, the difference between the arms, and what to do next."""
    for table in summary["rendered"]:
        console.print()
        console.print(table)
    for row in summary["difference_of_gains"]:
        value, low, high = (100 * row["difference"][key] for key in ("value", "low", "high"))
        console.print(
            f"RL gained {value:+.1f} points ({low:+.1f} to {high:+.1f}) more with {row['arm']} than with "
            f"{row['against']} on {row['set']}" + ("" if low > 0 or high < 0 else ": not more than chance"),
            highlight=False,
        )
    controls = [(row, "before SFT") for row in summary["base_model"]]
    controls += [(row, "after twice the SFT budget") for row in summary["sft_twice_the_budget"]]
    for row, when in controls:
        value, low, high = (100 * row["accuracy"][key] for key in ("value", "low", "high"))
        console.print(f"{row['arm']} {when}: {value:.1f} ({low:.1f} to {high:.1f}) on {row['set']}", highlight=False)
    for name, found in summary["sets"].items():
        if name.startswith("test"):
            best = max(found["best_constant_accuracy"])
            console.print(f"Always giving the same answer would score {best:.1%} on {name}", highlight=False)
    console.print(f"\nEvery sample with its verdict: {out}/eval_rl/<arm>/<set>.jsonl", highlight=False)
    console.print(f"Picture: {out / REPORT / PICTURE}   Numbers: {out / REPORT / SUMMARY}", highlight=False)
