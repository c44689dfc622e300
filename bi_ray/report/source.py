"""What a report is made of: a run or a study, read from its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.config import RUN_CONFIG_FILE, RunConfig, load_config
from bi_ray.files.errors import RunError
from bi_ray.runs.layout import is_finished
from bi_ray.runs.metrics import read_steps

# folder of the evaluated samples to the stage that they come after
STAGES = {"eval_sft": "SFT", "eval_rl": "RL"}
_SEEDS = "seed_*"


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
            rows = read_steps(
                folder / "metrics.jsonl", growing=not (stage == "rl" and is_finished(folder))
            )
            found.append(rows or read_steps(run / "work" / stage / arm / "metrics.jsonl"))
        return found

    def missing(self) -> list[str]:
        """The stages that a run has not finished, by run where there are several."""
        absent: dict[str, list[str]] = {}
        for run in self.runs:
            for arm in self.config.arms:
                for stage in ("sft", "eval_sft", "rl", "eval_rl"):
                    if not (run / stage / arm).exists():
                        absent.setdefault(run.name, []).append(f"{stage}/{arm}")
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
    if (path / RUN_CONFIG_FILE).exists():
        return load_config(path / RUN_CONFIG_FILE, RunConfig), (path,)
    seeds = sorted(
        path.glob(f"{_SEEDS}/{RUN_CONFIG_FILE}"),
        key=lambda file: (len(file.parent.name), file.parent.name),
    )
    if seeds:
        return load_config(seeds[0], RunConfig), tuple(file.parent for file in seeds)
    if not path.is_dir():
        raise RunError(f"{path}: no such run")
    if (path / "data").is_dir() or list(path.glob(f"{_SEEDS}/data")):
        raise RunError(
            f"{path}: a run without {RUN_CONFIG_FILE}, made by an older version; run its command again (finished "
            "stages are kept) and the file is there"
        )
    raise RunError(
        f"{path}: no run and no study: it holds neither {RUN_CONFIG_FILE} nor {_SEEDS}/{RUN_CONFIG_FILE}"
    )


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """The names of the folders, with their parents' where two are the same."""
    names = [path.absolute().name for path in paths]
    return [
        name if names.count(name) == 1 else "/".join(path.absolute().parts[-2:])
        for name, path in zip(names, paths, strict=True)
    ]
