"""The status of a run, from its files alone: stages done and in work, and who works there."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.files.errors import RunError
from bi_ray.files.names import OURS, TEMPORARY, target_name
from bi_ray.runs.display import figures_line
from bi_ray.runs.layout import (
    CONFIG_FILE,
    METRICS_FILE,
    OUTCOME_FILE,
    SEEDS,
    STAGE_FILE,
    WORK,
    work_of,
)
from bi_ray.runs.lock import lock_holder
from bi_ray.runs.metrics import is_validation, last_figures, parse_steps, read_steps
from bi_ray.runs.place import RunPlace
from bi_ray.runs.records import remedy_from
from bi_ray.runs.remote import Remote
from bi_ray.runs.remote_lock import read_lock
from bi_ray.runs.stages import StageRecord, parse_stage, read_stage, require_sizes, stage_folders
from bi_ray.runs.validation import best_step, compared_figure, read_outcome, scores_of


def describe_status(place: RunPlace) -> list[str]:
    """A line about who works in a run, then one per stage that is done or in work.

    Of a study, these lines for every seed.

    Raises:
        RunError: there is no run, or a file of it is damaged.
    """
    lines: list[str] = []
    seeds = sorted(folder.name for folder in place.path.glob(SEEDS))
    if seeds:
        for seed in seeds:
            lines += describe_status(place / seed)
        return lines
    if place.uri:
        remote = Remote(place.uri)
        done, holder = _remote_stages(remote), _remote_holder(remote)
        in_work = _remote_work(remote, finished=done)
    else:
        done, holder = _local_stages(place.path), lock_holder(place.path)
        in_work = {}
    in_work |= _local_work(place.path)
    if not done and not holder and not in_work:
        raise RunError(f"{place.name} holds no run")
    lines.append(f"{place.name}: " + (f"in use by {holder}" if holder else "not in use"))
    for stage, record in done.items():
        seconds = "" if record.seconds is None else f"{record.seconds:.0f} s"
        validations = _describe_validations(place.path, place.path / stage)
        lines.append(_line("done", stage, [seconds, *validations]))
    for stage, figures in in_work.items():
        validations = _describe_validations(place.path, place.path / work_of(stage))
        lines.append(_line("in work", stage, [figures, *validations]).rstrip())
    return lines


def _line(state: str, stage: str, parts: Iterable[str]) -> str:
    return f"  {state:<7}  {stage:<24} {'  '.join(parts)}"


def _describe_validations(run: Path, stage: Path) -> list[str]:
    """The best step of an RL, in work or done, and which step's policy was kept."""
    rows = read_steps(stage / METRICS_FILE)
    if not any(_has_validation(row) for row in rows) or not (run / CONFIG_FILE).exists():
        return []
    rl = load_config(run / CONFIG_FILE, RunConfig).rl
    scores = scores_of(rows, rl.validation)
    best = best_step(scores)
    if best is None or rl.validation is None:
        return []
    figure, last = compared_figure(rl.validation), [*scores.values()][-1]
    parts = [f"best {figure} {scores[best]:.3f} at step {best}, last {last:.3f}"]
    if (stage / OUTCOME_FILE).exists():
        outcome = read_outcome(stage)
        early = ", stopped early" if outcome.stopped else ""
        parts.append(f"kept step {outcome.step} of {rl.steps}{early}")
    return parts


def _has_validation(row: Mapping[str, Any]) -> bool:
    return any(map(is_validation, row))


def _local_stages(run: Path) -> dict[str, StageRecord]:
    """The finished stages of a run directory, in the order in which they were finished."""
    folders = sorted(stage_folders(run), key=lambda folder: (folder / STAGE_FILE).stat().st_mtime)
    for folder in folders:
        require_sizes(folder, absent_ok=True)
    return {folder.relative_to(run).as_posix(): read_stage(folder) for folder in folders}


def _remote_stages(remote: Remote) -> dict[str, StageRecord]:
    """The finished stages of a run at a URI."""
    marks = remote.stages().items()
    return {stage: parse_stage(mark.text, remote.name, stage) for stage, mark in marks}


def _remote_holder(remote: Remote) -> str | None:
    """Who holds the lock of a run at a URI, None where nobody does."""
    lock = read_lock(remote)
    return str(lock) if lock is not None and lock.is_fresh(time.time()) else None


def _local_work(run: Path) -> dict[str, str]:
    """The unfinished stages in a directory with their last figures.

    Those without a folder for what they resume from, such as evaluations, have one that is being
    filled.
    """
    figures: dict[str, str] = {}
    for file in sorted(run.glob(f"{WORK}/*/*/{STAGE_FILE}")):
        folder = file.parent
        if not folder.name.startswith(OURS):
            stage = folder.relative_to(run / WORK).as_posix()
            figures[stage] = _last_step(read_steps(folder / METRICS_FILE))
    for folder in sorted([*run.glob(f"{TEMPORARY}*"), *run.glob(f"*/{TEMPORARY}*")]):
        if folder.is_dir():
            stage = (folder.parent / target_name(folder)).relative_to(run).as_posix()
            figures[stage] = ""
    return figures


def _remote_work(remote: Remote, finished: Collection[str]) -> dict[str, str]:
    """The unfinished stages at a URI with their figures as of the newest checkpoint."""
    figures: dict[str, str] = {}
    for work in remote.folders_with(STAGE_FILE, WORK):
        stage, metrics = work.removeprefix(f"{WORK}/"), f"{work}/{METRICS_FILE}"
        if stage not in finished:
            text = remote.read(metrics) if remote.exists(metrics) else ""
            rows = parse_steps(text, f"{remote.name}/{metrics}", remedy_from(stage))
            figures[stage] = _last_step(rows)
    return figures


def _last_step(rows: Sequence[Mapping[str, Any]]) -> str:
    row = last_figures(rows)
    return f"step {row['step']}  {figures_line(row)}" if row else "at its first step"
