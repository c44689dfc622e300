"""What is known of a run from its files alone: which stages are done, which are in work, and who
works there.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bi_ray.config import RUN_CONFIG_FILE, RunConfig, load_config
from bi_ray.files.errors import RunError, in_words
from bi_ray.files.names import OURS, TEMPORARY, target_name
from bi_ray.files.records import read_record
from bi_ray.runs.display import figures_of
from bi_ray.runs.layout import (
    LOCK_FILE,
    STAGE_FILE,
    StageRecord,
    holder_in,
    parse_stage,
    read_stage,
    require_sizes,
    stage_folders,
)
from bi_ray.runs.metrics import is_validation, last_figures, parse_steps, read_steps
from bi_ray.runs.mirror import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.remote_lock import read_lock
from bi_ray.runs.validation import OUTCOME, Outcome, best_step, compared_figure, scores_of


def describe_status(place: RunPlace) -> list[str]:
    """A line about who works in a run, then one per stage that is done or in work; of a study, so
    for every seed.

    Raises:
        RunError: there is no run, or a file of it is damaged.
    """
    if seeds := sorted(folder.name for folder in place.path.glob("seed_*")):
        return [line for seed in seeds for line in describe_status(place / seed)]
    done, holder = _remote_status(place.uri) if place.uri else _local_status(place.path)
    in_work = dict(_in_work_elsewhere(place.uri, done) if place.uri else ()) | dict(
        _in_work(place.path)
    )
    if not done and not holder and not in_work:
        raise RunError(f"{place.name} holds no run")
    lines = [f"{place.name}: " + (f"in use by {holder}" if holder else "not in use")]
    for stage, record in done.items():
        seconds = "" if record.seconds is None else f"{record.seconds:.0f} s"
        said = [seconds, *_validation(place.path, place.path / stage)]
        lines.append(f"  done     {stage:<24} {'  '.join(said)}")
    for stage, figures in in_work.items():
        said = [figures, *_validation(place.path, place.path / "work" / stage)]
        lines.append(f"  in work  {stage:<24} {'  '.join(said)}".rstrip())
    return lines


def _validation(run: Path, stage: Path) -> list[str]:
    """What validations say of an RL, in work or done: the best step, and which step's policy was
    kept.
    """
    rows = read_steps(stage / "metrics.jsonl")
    if (
        not any(is_validation(name) for row in rows for name in row)
        or not (run / RUN_CONFIG_FILE).exists()
    ):
        return []
    rl = load_config(run / RUN_CONFIG_FILE, RunConfig).rl
    scores = scores_of(rows, rl.validation)
    if (best := best_step(scores)) is None or rl.validation is None:
        return []
    said = [
        f"best {compared_figure(rl.validation)} {scores[best]:.3f} at step {best}, last {[*scores.values()][-1]:.3f}"
    ]
    if (stage / OUTCOME).exists():
        outcome = read_record(stage / OUTCOME, Outcome)
        said.append(
            f"kept step {outcome.step} of {rl.steps}"
            + (", stopped early" if outcome.stopped else "")
        )
    return said


def _local_status(run: Path) -> tuple[dict[str, StageRecord], str | None]:
    folders = sorted(stage_folders(run), key=lambda folder: (folder / STAGE_FILE).stat().st_mtime)
    for folder in folders:
        require_sizes(folder, absent_ok=True)
    return {
        folder.relative_to(run).as_posix(): read_stage(folder) for folder in folders
    }, lock_holder(run)


def _remote_status(uri: str) -> tuple[dict[str, StageRecord], str | None]:
    remote = Remote(uri)
    lock = read_lock(remote)
    records: dict[str, StageRecord] = {}
    for stage, mark in remote.stages().items():
        records[stage] = parse_stage(mark.text, remote.name, stage)
    return records, str(lock) if lock and lock.is_fresh(time.time()) else None


def lock_holder(run: Path) -> str | None:
    """What the process that holds the lock of a run directory says of itself, None where nobody
    holds it.

    Raises:
        RunError: there is something else in the place of the lock, or it cannot be read.
    """
    file = run / LOCK_FILE
    try:
        with open(file, "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"process {holder_in(lock.read())}"
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"{file} is not a readable lock file: {in_words(error)}; remove it"
        ) from error
    return None


def _in_work(run: Path) -> Iterator[tuple[str, str]]:
    """Stages with something unfinished and their last figures; evaluations have a folder that is
    being filled.
    """
    for file in sorted(run.glob(f"work/*/*/{STAGE_FILE}")):
        if not file.parent.name.startswith(OURS):
            figures = _last_step(read_steps(file.parent / "metrics.jsonl"))
            yield file.parent.relative_to(run / "work").as_posix(), figures
    for folder in sorted([*run.glob(f"{TEMPORARY}*"), *run.glob(f"*/{TEMPORARY}*")]):
        if folder.is_dir():
            yield (folder.parent / target_name(folder)).relative_to(run).as_posix(), ""


def _in_work_elsewhere(uri: str, done: Collection[str]) -> Iterator[tuple[str, str]]:
    """Stages whose checkpoints are at the URI, with their figures as of the newest one."""
    remote = Remote(uri)
    for work in remote.folders_with(STAGE_FILE, "work"):
        stage, metrics = work.removeprefix("work/"), f"{work}/metrics.jsonl"
        if stage not in done:
            text = remote.read(metrics) if remote.exists(metrics) else ""
            remedy = f"make it again with --from {stage.split('/')[0]}"
            yield stage, _last_step(parse_steps(text, f"{remote.name}/{metrics}", remedy))


def _last_step(rows: Sequence[Mapping[str, Any]]) -> str:
    row = last_figures(rows)
    return f"step {row['step']}  {figures_of(row)}" if row else "at its first step"
