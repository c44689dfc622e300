"""The layout of a run directory: the name of every file and folder in it.

RUN/
    .bi-ray-run  .lock  .cluster.json  config.yaml
    STAGE/  or  STAGE/ARM/    a finished stage: stage.json beside what it made
    work/STAGE/ARM/           an unfinished stage: its metrics and checkpoints
    trackers/  report/
STUDY/
    seed_N/                   a run per seed
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bi_ray.files.names import OURS

# Stages: the first part of a stage's name and path; the second is the arm, if it has one.
DATA = "data"
EVAL_BASE = "eval_base"
SFT_DATA = "sft_data"
SFT = "sft"
EVAL_SFT = "eval_sft"
TARGET = "target"
READINESS = "readiness"
REALIZED = "realized"
SFT_DOUBLE = "sft_double"
EVAL_SFT_DOUBLE = "eval_sft_double"
QUERIES = "queries"
RL = "rl"
EVAL_RL = "eval_rl"
REPORT = "report"
STAGES = (  # in the order of a run
    DATA,
    EVAL_BASE,
    SFT_DATA,
    SFT,
    EVAL_SFT,
    TARGET,
    READINESS,
    REALIZED,
    SFT_DOUBLE,
    EVAL_SFT_DOUBLE,
    QUERIES,
    RL,
    EVAL_RL,
    REPORT,
)

# Beside the stages.
CONFIG_FILE = "config.yaml"
RUN_MARK = f"{OURS}run"  # from the first moment of a run or study on
LOCK_FILE = ".lock"
CLUSTER_FILE = ".cluster.json"  # address of the Ray cluster that the run uses
WORK = "work"
TRACKERS = "trackers"
SEEDS = "seed_*"  # the runs of a study

# In every stage.
STAGE_FILE = "stage.json"  # written last: a stage that has it is whole
UNSENT_MARK = ".unsent"  # in a finished stage that the URI of the run does not have yet

# In a training (sft, sft_double, rl).
POLICY = "policy"
METRICS_FILE = "metrics.jsonl"
TRACKED_FILE = "tracked"  # the last step whose metrics the trackers have
SFT_CHECKPOINTS = "checkpoints"  # the folder of SFT's steps; those of RL are beside its metrics
CHECKPOINT_FILE = "state.json"  # in a checkpoint, written last
OUTCOME_FILE = "outcome.json"  # which step RL kept
VALIDATION = "validation"  # STEP.jsonl: a row per sample of a validation
INFLUENCE_FILE = "influence.jsonl"  # a row per query analyzed during RL

# In the stages around RL. Two stages call their rows queries.jsonl.
SELECTED_QUERIES_FILE = "queries.jsonl"  # of queries: ``bi_ray.batches.selection.QueryRow``
MEASURED_QUERIES_FILE = "queries.jsonl"  # of readiness: ``bi_ray.readiness.records.MeasuredQuery``
READINESS_FILE = "readiness.json"  # what readiness measured of the policy as a whole
ROLLOUTS_FILE = "rollouts.jsonl"  # what readiness sampled
REALIZED_FILE = "realized.json"

# In the report.
SUMMARY = "summary.json"
PAGE = "report.html"
PICTURE = "result.svg"
MARKDOWN = "result.md"
REPORT_FILES = (SUMMARY, PAGE, PICTURE, MARKDOWN)

_STEP_PREFIX = "step_"
_STEP = re.compile(r"step_([1-9][0-9]*)")
_DAMAGED = ".damaged"


def stage_of(kind: str, arm: str) -> str:
    """Name of the stage ``kind`` of an arm, such as ``sft/bridge``; also its path in the run."""
    return f"{kind}/{arm}"


def kind_of(stage: str) -> str:
    """First part of a stage's name: ``sft`` of ``sft/bridge``. ``--from`` takes it."""
    return stage.split("/")[0]


def work_of(stage: str) -> str:
    """Path of an unfinished stage in the run."""
    return f"{WORK}/{stage}"


def samples_file(set_name: str) -> str:
    """Name of the evaluated samples of a set, in the folder of an evaluation."""
    return f"{set_name}.jsonl"


def step_name(step: int) -> str:
    """Name of the checkpoint after ``step``."""
    return f"{_STEP_PREFIX}{step}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint called ``name``; None where this is not the name of one."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def step_at(path: str) -> int:
    """The step of the checkpoint at a path, 0 where it is not one of a checkpoint."""
    return step_of(PurePosixPath(path).name) or 0


def damaged_name(name: str) -> str:
    """New name of a checkpoint called ``name`` that cannot be used."""
    return f"{name}{_DAMAGED}"


def steps_in(folder: Path) -> set[int]:
    """The steps whose checkpoints are in a folder, whole or not; empty where there is no folder."""
    return {step_at(path.name) for path in folder.glob(f"{_STEP_PREFIX}*")} - {0}


def folders_of_checkpoints(work: Path) -> set[Path]:
    """The folders below ``work`` with checkpoints in them, damaged ones too."""
    checkpoints = work.rglob(f"{_STEP_PREFIX}*")
    return {path.parent for path in checkpoints if step_of(path.name.removesuffix(_DAMAGED))}


def is_in_checkpoint(file: str) -> bool:
    """Whether a path in an unfinished stage leads into a checkpoint, or into what becomes one."""
    folders = PurePosixPath(file).parts[:-1]
    return any(folder.startswith(_STEP_PREFIX) for folder in folders)


def stage_files(run: Path) -> Iterator[Path]:
    """The ``stage.json`` of every finished stage of a run, those of a run's arms after the rest."""
    for pattern in (f"*/{STAGE_FILE}", f"*/*/{STAGE_FILE}"):
        for file in sorted(run.glob(pattern)):
            folders = file.relative_to(run).parts[:-1]
            is_unfinished = folders[0] == WORK or any(name.startswith(OURS) for name in folders)
            if not is_unfinished:
                yield file
