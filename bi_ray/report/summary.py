"""The results of a run, or of several seeds of it, read from its files: ``summary.json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from bi_ray.config.run import RunConfig
from bi_ray.data.problems import SetSummary
from bi_ray.intervals import Interval
from bi_ray.readiness.summary import ReadinessSummary
from bi_ray.report.gain_difference import gain_difference
from bi_ray.report.readiness import Analysis, RealizedSummary, read_readiness
from bi_ray.report.scores import SetScore, Stage, TableRow, make_table, score_set
from bi_ray.rows.fields import MANIFEST
from bi_ray.runs.layout import (
    DATA,
    EVAL_BASE,
    EVAL_RL,
    EVAL_SFT,
    EVAL_SFT_DOUBLE,
    samples_file,
)
from bi_ray.runs.records import read_record
from bi_ray.runs.stages import StageRecord, is_finished, read_stage, require_sizes, stage_folders
from bi_ray.verification.samples import read_samples

# folder of the evaluated samples, by the training stage that they come after
EVALUATIONS: dict[Stage, str] = {"SFT": EVAL_SFT, "RL": EVAL_RL}


@dataclass(frozen=True, slots=True)
class GainDifference:
    """How much more an arm gained from RL on a set than another arm."""

    arm: str
    against: str
    set: str
    difference: Interval


@dataclass(frozen=True, slots=True)
class Control:
    """Greedy accuracy of a policy that RL has not trained."""

    arm: str
    set: str
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class Summary:
    """The results of runs of one configuration; what the runs have not got to yet is absent.

    Attributes:
        name: name of the configuration.
        seeds: number of runs.
        code_versions: versions of bi_ray that made the stages.
        table: greedy accuracy and more, by arm and set.
        difference_of_gains: of every arm against the first one, by set.
        sets: a value per run, by set and by field of its manifest.
        base_model: accuracy before SFT.
        sft_twice_the_budget: accuracy after twice the SFT budget, without RL.
        stage_seconds: duration of every finished stage in seconds, by run and stage.
        readiness: see ``readiness.ReadinessReport``, also for the next two.
    """

    name: str
    seeds: int
    code_versions: list[str]
    table: list[TableRow]
    difference_of_gains: list[GainDifference] = field(default_factory=list)
    sets: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    base_model: list[Control] = field(default_factory=list)
    sft_twice_the_budget: list[Control] = field(default_factory=list)
    stage_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    readiness: dict[str, ReadinessSummary] = field(default_factory=dict)
    realized: dict[str, RealizedSummary] = field(default_factory=dict)
    during_rl: dict[str, list[Analysis]] = field(default_factory=dict)

    def constant_answers(self) -> dict[str, float]:
        """Best accuracy of always giving the same answer, by test set."""
        accuracies = {}
        for name, values in self.sets.items():
            if name.startswith("test"):
                accuracies[name] = max(values["best_constant_accuracy"])
        return accuracies


def as_json(value: Any) -> Any:
    """A value of a summary as JSON holds it; an interval is {value, low, high}."""
    if isinstance(value, Interval):
        return value.as_json()
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def summarize_runs(config: RunConfig, runs: Sequence[Path]) -> Summary:
    """Summarize runs of one configuration that differ in their seeds.

    Raises:
        RunError: a file of a run is damaged.
    """
    code_versions: set[str] = set()
    stage_seconds: dict[str, dict[str, float]] = {}
    for run in runs:
        seconds = stage_seconds.setdefault(run.name, {})
        for name, stage in _stages(run).items():
            code_versions.add(stage.code_version)
            if stage.seconds is not None:
                seconds[name] = stage.seconds
    draws = config.evaluation.bootstrap_draws
    scores: list[SetScore] = []
    for seed, run in enumerate(runs):
        scores += read_scores(config, run, seed)
    readiness = read_readiness(list(config.arms), runs, draws)
    return Summary(
        name=config.name,
        seeds=len(runs),
        code_versions=sorted(code_versions),
        table=make_table(scores, draws),
        difference_of_gains=_differences(config, scores),
        sets=_sets(config, runs),
        base_model=_base_model(config, runs),
        sft_twice_the_budget=_double_sft(config, runs),
        stage_seconds=stage_seconds,
        readiness=readiness.readiness,
        realized=readiness.realized,
        during_rl=readiness.during_rl,
    )


def read_scores(config: RunConfig, run: Path, seed: int) -> list[SetScore]:
    """The scores of every arm, stage and set that a run has evaluated."""
    scores = []
    for arm in config.arms:
        for stage, folder in EVALUATIONS.items():
            for name in config.evaluation.sets:
                file = run / folder / arm / samples_file(name)
                if file.exists() or is_finished(file.parent):
                    scores.append(score_set(arm, stage, name, seed, read_samples(file)))
    return scores


def _differences(config: RunConfig, scores: Sequence[SetScore]) -> list[GainDifference]:
    first, *others = config.arms
    draws = config.evaluation.bootstrap_draws
    differences = []
    for arm in others:
        for name in config.evaluation.sets:
            interval = gain_difference(scores, arm, first, name, draws)
            if interval is not None:
                differences.append(GainDifference(arm, first, name, interval))
    return differences


def _sets(config: RunConfig, runs: Sequence[Path]) -> dict[str, dict[str, list[Any]]]:
    """Sizes, the share of zero answers, the best constant answer and more, a value per run."""
    sets: dict[str, dict[str, list[Any]]] = {}
    for name in config.task.sets:
        values: dict[str, list[Any]] = defaultdict(list)
        for run in runs:
            file = run / DATA / name / MANIFEST
            if not file.parent.exists():
                continue
            for key, value in read_record(file, SetSummary).items():
                if key not in ("hashes", "set"):
                    values[key].append(value)
        if values:
            sets[name] = dict(values)
    return sets


def _base_model(config: RunConfig, runs: Sequence[Path]) -> list[Control]:
    """Greedy accuracy before SFT, if the run measured it."""
    if not config.evaluation.base_model:
        return []
    return _controls(config, "base", [run / EVAL_BASE for run in runs])


def _double_sft(config: RunConfig, runs: Sequence[Path]) -> list[Control]:
    """Greedy accuracy after twice the SFT budget, if the run measured it."""
    if not config.sft.report_twice_the_budget:
        return []
    controls = []
    for arm in config.arms:
        controls += _controls(config, arm, [run / EVAL_SFT_DOUBLE / arm for run in runs])
    return controls


def _controls(config: RunConfig, arm: str, folders: Sequence[Path]) -> list[Control]:
    """Greedy accuracy on every set over the seeds, each a folder of evaluated samples."""
    existing = [folder for folder in folders if folder.exists()]
    if not existing:
        return []
    controls = []
    for name in config.evaluation.sets:
        scores = []
        for seed, folder in enumerate(existing):
            rows = read_samples(folder / samples_file(name))
            scores.append(score_set(arm, "SFT", name, seed, rows))
        row = make_table(scores, config.evaluation.bootstrap_draws)[0]
        controls.append(Control(arm, name, row.sft.accuracy))
    return controls


def _stages(run: Path) -> dict[str, StageRecord]:
    """The records of the finished stages of a run, by name."""
    records = {}
    for folder in stage_folders(run):
        require_sizes(folder, absent_ok=True)
        records[folder.relative_to(run).as_posix()] = read_stage(folder)
    return records
