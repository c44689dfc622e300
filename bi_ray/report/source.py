"""What a report is made of: a run or a study, read from its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.config import RunConfig, load_config
from bi_ray.files.errors import RunError
from bi_ray.runs.layout import (
    CONFIG_FILE,
    DATA,
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

# folder of the evaluated samples to the stage that they come after
STAGES = {EVAL_SFT: "SFT", EVAL_RL: "RL"}


@dataclass(frozen=True, eq=False)
class Source:
    """A run, or the runs of a study, that a page shows.

    Attributes:
        label: how the page calls it.
        config: of the runs, seeds aside.
        runs: their directories, one per seed.
        summary: what ``summary.json`` holds; it may lack whatever the runs have not got to.
    """

    label: str
    config: RunConfig
    runs: tuple[Path, ...]
    summary: dict[str, Any]

    def metrics(self, stage: str, arm: str) -> list[list[dict[str, Any]]]:
        """Rows of the training ``stage`` (sft or rl) by seed, of a training under way too; no row:
        not begun.
        """
        found = []
        for run in self.runs:
            folder = run / stage / arm
            growing = not (stage == RL and is_finished(folder))
            rows = read_steps(folder / METRICS_FILE, growing=growing)
            work = run / work_of(stage_of(stage, arm))
            found.append(rows or read_steps(work / METRICS_FILE))
        return found

    def missing(self) -> list[str]:
        """The stages that a run has not finished, by run where there are several."""
        absent: dict[str, list[str]] = {}
        for run in self.runs:
            for arm in self.config.arms:
                for stage in (SFT, EVAL_SFT, RL, EVAL_RL):
                    if not (run / stage / arm).exists():
                        absent.setdefault(run.name, []).append(stage_of(stage, arm))
        if len(self.runs) == 1:
            return [stage for stages in absent.values() for stage in stages]
        return [f"{run}/{stage}" for run, stages in absent.items() for stage in stages]


def find_runs(path: Path) -> tuple[RunConfig, tuple[Path, ...]]:
    """The configuration and the run directories of a run or of a study.

    Raises:
        RunError: ``path`` holds neither.
        ConfigError: its configuration cannot be read.
    """
    path = path.absolute()
    if (path / CONFIG_FILE).exists():
        return load_config(path / CONFIG_FILE, RunConfig), (path,)
    seeds = sorted(
        path.glob(f"{SEEDS}/{CONFIG_FILE}"),
        key=lambda file: (len(file.parent.name), file.parent.name),
    )
    if seeds:
        return load_config(seeds[0], RunConfig), tuple(file.parent for file in seeds)
    if not path.is_dir():
        raise RunError(f"{path}: no such run")
    if (path / DATA).is_dir() or list(path.glob(f"{SEEDS}/{DATA}")):
        raise RunError(
            f"{path}: a run without {CONFIG_FILE}, made by an older version; run its command again (finished "
            "stages are kept) and the file is there"
        )
    raise RunError(
        f"{path}: no run and no study: it holds neither {CONFIG_FILE} nor {SEEDS}/{CONFIG_FILE}"
    )


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """The names of the folders, with their parents' where two are the same."""
    names = [path.absolute().name for path in paths]
    return [
        name if names.count(name) == 1 else "/".join(path.absolute().parts[-2:])
        for name, path in zip(names, paths, strict=True)
    ]
