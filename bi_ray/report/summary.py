"""What a run, or several seeds of it, found: ``summary.json``, the table in the terminal and one
picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bi_ray.config import RunConfig
from bi_ray.data.problems import SetSummary
from bi_ray.files.atomic import write_atomically
from bi_ray.report.page import write_page
from bi_ray.report.picture import draw_picture
from bi_ray.report.readiness import read_readiness, render_readiness
from bi_ray.report.scores import SetScore, TableRow, gain_difference, make_table, score_set
from bi_ray.report.source import STAGES, Source, distinct_labels, find_runs
from bi_ray.report.tables import markdown_table, render_samples, render_table
from bi_ray.rows.fields import MANIFEST
from bi_ray.runs.foreign_folders import refuse_foreign_page, refuse_foreign_report
from bi_ray.runs.layout import (
    MARKDOWN,
    METRICS_FILE,
    PAGE,
    PICTURE,
    REPORT,
    RL,
    SUMMARY,
    samples_file,
)
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.records import read_record
from bi_ray.runs.stages import StageRecord, is_finished, read_stage, require_sizes, stage_folders
from bi_ray.verification.samples import read_samples

_FEW_INFORMATIVE = 0.2
_DOUBLE = "eval_sft_double"
_BASE = "eval_base"


def write_summary(config: RunConfig, runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Summarize runs of one configuration that differ in their seeds, and write the report; stages
    may be missing.

    Args:
        config: of the runs, seeds aside.
        runs: their directories, one per seed.
        out: the folder ``report`` appears there, with ``report.html``, ``summary.json`` and
            ``result.svg``.

    Raises:
        RunError: a file of a run is damaged, or the folder ``report`` holds something else.
    """
    refuse_foreign_report(out / REPORT)
    summary, table = summarize(config, runs)
    rewards = {
        arm: [_rewards(run / RL / arm / METRICS_FILE) for run in runs] for arm in config.arms
    }
    with write_atomically(out / REPORT) as folder:
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1))
        found = "\n".join(f"- {line}" for line in findings(summary))
        title = f"{config.name}: {len(runs)} seed{'s' * (len(runs) > 1)}"
        made_by = f"bi_ray {', '.join(summary['code_versions'])}"
        (folder / MARKDOWN).write_text(
            f"# {title}\n\n{made_by}\n\n{markdown_table(table)}\n\n{found}\n"
        )
        if table:
            draw_picture(rewards, table, folder / PICTURE, title=title)
        write_page(folder / PAGE, [Source(config.name, config, tuple(runs), summary)])
    rendered = [render_readiness(summary["readiness"])] if summary["readiness"] else []
    return summary | {"rendered": [*rendered, render_table(table), render_samples(table)]}


def summarize(config: RunConfig, runs: Sequence[Path]) -> tuple[dict[str, Any], list[TableRow]]:
    """What ``summary.json`` holds, and the table as objects. What a run has not got to yet is left
    out.

    Raises:
        RunError: a file of a run is damaged.
    """
    for run in runs:
        for folder in stage_folders(run):
            require_sizes(folder, absent_ok=True)
    scores = [score for seed, run in enumerate(runs) for score in read_scores(config, run, seed)]
    table = make_table(scores, config.evaluation.bootstrap_draws)
    summary: dict[str, Any] = {
        "name": config.name,
        "seeds": len(runs),
        "code_versions": _code_versions(runs),
        "table": [asdict(row) for row in table],
        "difference_of_gains": list(_differences(config, scores)),
        "sets": _sets(config, runs),
        "base_model": _base_model(config, runs),
        "sft_twice_the_budget": _double_sft(config, runs),
        "stage_seconds": {run.name: _seconds(run) for run in runs},
        **read_readiness(list(config.arms), runs, config.evaluation.bootstrap_draws),
    }
    return summary, table


def write_report(paths: Sequence[Path], out: Path | None) -> Path:
    """Write the report of a run or a study anew from its files, or one page that compares several.

    Args:
        paths: runs and studies.
        out: the page; None: of one path, its whole folder ``report``; of several,
            ``comparison.html`` here.

    Returns:
        Where the page is.

    Raises:
        RunError: a path holds no run, a file of it is damaged, or ``out`` is a file that is no
            report.
    """
    found = [(path, *find_runs(path)) for path in paths]
    if out is None and len(found) == 1:
        path, config, runs = found[0]
        write_summary(config, runs, path)
        return path / REPORT / PAGE
    sources = [
        Source(label, config, runs, summarize(config, runs)[0])
        for label, (_, config, runs) in zip(distinct_labels(paths), found, strict=True)
    ]
    page = out or Path("comparison.html")
    refuse_foreign_page(page)
    write_page(page, sources)
    return page


def read_scores(config: RunConfig, run: Path, seed: int) -> list[SetScore]:
    """The scores of every arm, stage and set that a run has evaluated; an arm counts once its SFT
    policy has been.
    """
    return [
        score_set(
            arm,
            "SFT" if label == "SFT" else "RL",
            name,
            seed,
            read_samples(run / stage / arm / samples_file(name)),
        )
        for arm in config.arms
        for stage, label in STAGES.items()
        for name in config.evaluation.sets
        if (run / stage / arm / samples_file(name)).exists() or is_finished(run / stage / arm)
    ]


def _differences(config: RunConfig, scores: Sequence[SetScore]) -> Iterable[dict[str, Any]]:
    first, *others = config.arms
    there = {(score.arm, score.stage, score.set, score.seed) for score in scores}
    for arm in others:
        for name in config.evaluation.sets:
            wanted = [(a, stage, name) for a in (arm, first) for stage in ("SFT", "RL")]
            if any(all((*key, score.seed) in there for key in wanted) for score in scores):
                interval = gain_difference(
                    scores, arm, first, name, config.evaluation.bootstrap_draws
                )
                yield {
                    "arm": arm,
                    "against": first,
                    "set": name,
                    "difference": asdict_interval(interval),
                }


def asdict_interval(interval: Any) -> dict[str, float]:
    """A named tuple as JSON keeps it."""
    return {name: float(value) for name, value in interval._asdict().items()}


def _sets(config: RunConfig, runs: Sequence[Path]) -> dict[str, Any]:
    """Per set, a value per run: sizes, the share of zero answers, the best constant answer and its
    accuracy.
    """
    found: dict[str, Any] = {}
    for name in config.task.sets:
        files = [run / "data" / name / MANIFEST for run in runs]
        manifests = [read_record(file, SetSummary) for file in files if file.parent.exists()]
        if not manifests:
            continue
        names = [key for key in manifests[0] if key not in ("hashes", "set")]
        found[name] = {key: [manifest.get(key) for manifest in manifests] for key in names}
    return found


def _base_model(config: RunConfig, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Greedy accuracy before SFT, where the run measured it."""
    if not config.evaluation.base_model:
        return []
    folders = [run / _BASE for run in runs if (run / _BASE).exists()]
    return [_accuracy(config, "base", name, folders) for name in config.evaluation.sets if folders]


def _double_sft(config: RunConfig, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Greedy accuracy after twice the SFT budget, where the run measured it."""
    if not config.sft.report_twice_the_budget:
        return []
    folders = {
        arm: [run / _DOUBLE / arm for run in runs if (run / _DOUBLE / arm).exists()]
        for arm in config.arms
    }
    return [
        _accuracy(config, arm, name, folders[arm])
        for arm in config.arms
        for name in config.evaluation.sets
        if folders[arm]
    ]


def _accuracy(config: RunConfig, arm: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Greedy accuracy on one set over the seeds, each a folder of evaluated samples."""
    files = [folder / samples_file(name) for folder in folders]
    scores = [
        score_set(arm, "SFT", name, seed, read_samples(file)) for seed, file in enumerate(files)
    ]
    row = make_table(scores, config.evaluation.bootstrap_draws)[0]
    return {"arm": arm, "set": name, "accuracy": asdict_interval(row.sft.accuracy)}


def _stages(run: Path) -> dict[str, StageRecord]:
    """What the finished stages of a run say of themselves, by name."""
    return {folder.relative_to(run).as_posix(): read_stage(folder) for folder in stage_folders(run)}


def _seconds(run: Path) -> dict[str, float]:
    return {
        name: stage.seconds for name, stage in _stages(run).items() if stage.seconds is not None
    }


def _code_versions(runs: Sequence[Path]) -> list[str]:
    """Versions of the code that made the stages."""
    return sorted({stage.code_version for run in runs for stage in _stages(run).values()})


def _rewards(metrics: Path) -> list[float]:
    rows = read_steps(metrics, growing=not is_finished(metrics.parent))
    return [row["reward"] for row in rows if "reward" in row]  # step 0 has only been validated


def findings(summary: dict[str, Any]) -> list[str]:
    """What the tables do not say: the difference between the arms, the controls, the best constant
    answer.
    """
    lines = []
    for row in summary["difference_of_gains"]:
        value, low, high = _points(row["difference"])
        chance = "" if low > 0 or high < 0 else ": not more than chance"
        lines.append(
            f"RL gained {value:+.1f} points ({low:+.1f} to {high:+.1f}) more with {row['arm']} than with "
            f"{row['against']} on {row['set']}{chance}"
        )
    controls = [(row, "before SFT") for row in summary["base_model"]]
    controls += [
        (row, "after twice the SFT budget, without RL") for row in summary["sft_twice_the_budget"]
    ]
    for row, when in controls:
        value, low, high = _points(row["accuracy"])
        lines.append(f"{row['arm']} {when}: {value:.1f} ({low:.1f} to {high:.1f}) on {row['set']}")
    for name, found in summary["sets"].items():
        if name.startswith("test"):
            best = max(found["best_constant_accuracy"])
            lines.append(f"Always giving the same answer would score {best:.1%} on {name}")
    return lines


def _points(interval: dict[str, float]) -> tuple[float, float, float]:
    return 100 * interval["value"], 100 * interval["low"], 100 * interval["high"]


def show_summary(summary: dict[str, Any], console: Console, out: Path) -> None:
    """Print the tables, what else was found, and where to look next."""
    for table in summary["rendered"]:
        console.print()
        console.print(table)
    console.print("\n".join(findings(summary)), highlight=False, markup=False)
    console.print(
        f"\nThe report, for a browser: {out / REPORT / PAGE}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print("Every sample with its verdict, and the rest of the report:", highlight=False)
    for name in (
        "eval_rl/<arm>/<set>.jsonl",
        f"{REPORT}/{PICTURE}",
        f"{REPORT}/{MARKDOWN}",
        f"{REPORT}/{SUMMARY}",
    ):
        console.print(f"  {name}", highlight=False, markup=False)
    for line in advice(summary):
        console.print(line, highlight=False, soft_wrap=True)


def advice(summary: dict[str, Any]) -> list[str]:
    """What to do next."""
    lines = []
    for row in summary["table"]:
        informative = row["sft"]["informative"]
        if (
            informative is not None
            and informative < _FEW_INFORMATIVE
            and row["set"] == summary["table"][0]["set"]
        ):
            lines.append(
                f"Next: after SFT only {informative:.0%} of the queries of {row['arm']} were informative, so RL had "
                "little to learn from; make task.sets.rl easier, or train SFT longer"
            )
    if summary["seeds"] == 1:
        lines.append(
            "Next: one seed says little; `bi-ray study CONFIG --run DIR` repeats it under three"
        )
    lines.append(
        "Next: `bi-ray show CONFIG` prints what the arms were taught; `bi-ray options` what can be changed"
    )
    return lines
