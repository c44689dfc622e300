"""What a report is made of: a run or a study, read from its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.files.errors import RunError
from bi_ray.report.summary import Summary
from bi_ray.runs.layout import (
    CONFIG_FILE,
    EVAL_RL,
    EVAL_SFT,
    METRICS_FILE,
    RL,
    SEEDS,
    SFT,
    stage_of,
    work_of,
)
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.stages import is_finished

MetricsRow = Mapping[str, Any]  # a line of metrics.jsonl: the values of one step by name

_STAGES = (SFT, EVAL_SFT, RL, EVAL_RL)


@dataclass(frozen=True, eq=False)
class Source:
    """A run, or the runs of a study, that a page shows.

    Attributes:
        label: its name on the page.
        config: configuration of the runs, seeds aside.
        runs: their directories, one per seed.
        summary: their results.
    """

    label: str
    config: RunConfig
    runs: tuple[Path, ...]
    summary: Summary

    def metrics(self, stage: str, arm: str) -> list[Sequence[MetricsRow]]:
        """Rows of the training ``stage`` (sft or rl) by seed, also of a training under way.

        A training that has not begun has no rows.
        """
        by_seed: list[Sequence[MetricsRow]] = []
        for run in self.runs:
            folder = run / stage / arm
            complete = stage == RL and is_finished(folder)
            rows = read_steps(folder / METRICS_FILE, growing=not complete)
            if not rows:
                rows = read_steps(run / work_of(stage_of(stage, arm)) / METRICS_FILE)
            by_seed.append(rows)
        return by_seed

    def missing(self) -> list[str]:
        """The stages that a run has not finished, with the run's name if there are several."""
        missing = []
        for run in self.runs:
            for arm in self.config.arms:
                for stage in _STAGES:
                    if (run / stage / arm).exists():
                        continue
                    name = stage_of(stage, arm)
                    missing.append(name if len(self.runs) == 1 else f"{run.name}/{name}")
        return missing


def find_runs(path: Path) -> tuple[RunConfig, tuple[Path, ...]]:
    """The configuration and the run directories of a run or of a study.

    Raises:
        RunError: ``path`` holds neither.
        ConfigError: its configuration cannot be read.
    """
    path = path.absolute()
    if (path / CONFIG_FILE).exists():
        return load_config(path / CONFIG_FILE, RunConfig), (path,)
    runs = [file.parent for file in path.glob(f"{SEEDS}/{CONFIG_FILE}")]
    runs.sort(key=lambda run: (len(run.name), run.name))  # seed_2 before seed_10
    if runs:
        return load_config(runs[0] / CONFIG_FILE, RunConfig), tuple(runs)
    if not path.is_dir():
        raise RunError(f"{path}: no such run")
    raise RunError(
        f"{path}: neither a run nor a study: it holds neither {CONFIG_FILE} nor "
        f"{SEEDS}/{CONFIG_FILE}"
    )


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """The names of the folders, with their parents' names where two are the same."""
    names = [path.absolute().name for path in paths]
    labels = []
    for name, path in zip(names, paths, strict=True):
        if names.count(name) > 1:
            name = "/".join(path.absolute().parts[-2:])
        labels.append(name)
    return labels
