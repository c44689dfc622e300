"""What is known of a run from its files alone: which stages are done, which are in work, and who works there."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bi_ray.config import RUN_CONFIG_FILE, RunConfig, load_config
from bi_ray.display import figures_of
from bi_ray.metrics import is_validation, last_figures, parse_metrics, read_metrics
from bi_ray.mirror import RunPlace, read_lock
from bi_ray.remote import Remote
from bi_ray.store import STAGE_FILE, RunError
from bi_ray.validation import OUTCOME, best_step, compared_figure, scores_of


def describe_status(place: RunPlace) -> list[str]:
    """A line about who works in a run, then one per stage that is done or in work; of a study, so for every seed.

    Raises:
        RunError: there is no run.
    """
    if seeds := sorted(folder.name for folder in place.path.glob("seed_*")):
        return [line for seed in seeds for line in describe_status(place / seed)]
    done, holder = _remote_status(place.uri) if place.uri else _local_status(place.path)
    in_work = dict(_in_work_elsewhere(place.uri, done) if place.uri else ()) | dict(_in_work(place.path))
    if not done and not holder and not in_work:
        raise RunError(f"{place.name} holds no run")
    lines = [f"{place.name}: " + (f"in use by {holder}" if holder else "nobody works in it now")]
    for stage, content in done.items():
        said = [f"{json.loads(content)['seconds']:.0f} s", *_validation(place.path, place.path / stage)]
        lines.append(f"  done     {stage:<24} {'  '.join(said)}")
    for stage, figures in in_work.items():
        said = [figures, *_validation(place.path, place.path / "work" / stage)]
        lines.append(f"  in work  {stage:<24} {'  '.join(said)}".rstrip())
    return lines


def _validation(run: Path, stage: Path) -> list[str]:
    """What validations say of an RL, in work or done: the best step, and which step's policy was kept."""
    rows = read_metrics(stage / "metrics.jsonl")
    if not any(is_validation(name) for row in rows for name in row) or not (run / RUN_CONFIG_FILE).exists():
        return []
    rl = load_config(run / RUN_CONFIG_FILE, RunConfig).rl
    scores = scores_of(rows, rl.validation)
    if (best := best_step(scores)) is None or rl.validation is None:
        return []
    said = [
        f"best {compared_figure(rl.validation)} {scores[best]:.3f} at step {best}, last {[*scores.values()][-1]:.3f}"
    ]
    if (stage / OUTCOME).exists():
        outcome = json.loads((stage / OUTCOME).read_text())
        said.append(f"kept step {outcome['step']} of {rl.steps}" + (", stopped early" if outcome["stopped"] else ""))
    return said


def _local_status(run: Path) -> tuple[dict[str, str], str | None]:
    files = [*run.glob(f"*/{STAGE_FILE}"), *run.glob(f"*/*/{STAGE_FILE}")]
    whole = [file for file in files if file.parent.suffix not in (".tmp", ".old") and file.parent.parent.name != "work"]
    by_age = sorted(whole, key=lambda file: file.stat().st_mtime)
    return {file.parent.relative_to(run).as_posix(): file.read_text() for file in by_age}, lock_holder(run)


def _remote_status(uri: str) -> tuple[dict[str, str], str | None]:
    remote = Remote(uri)
    lock = read_lock(remote)
    stages = {name: mark.text for name, mark in remote.stages().items()}
    return stages, str(lock) if lock and lock.is_fresh(time.time()) else None


def lock_holder(run: Path) -> str | None:
    """What the process that holds the lock of a run directory says of itself, None where nobody holds it."""
    if not (run / ".lock").exists():
        return None
    with open(run / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"process {lock.read().strip() or 'unknown'}"
    return None


def _in_work(run: Path) -> Iterator[tuple[str, str]]:
    """Stages with something unfinished and their last figures; evaluations have a folder that is being filled."""
    for file in sorted(run.glob(f"work/*/*/{STAGE_FILE}")):
        figures = _last_step(read_metrics(file.parent / "metrics.jsonl"))
        yield file.parent.relative_to(run / "work").as_posix(), figures
    for folder in sorted([*run.glob("*.tmp"), *run.glob("*/*.tmp")]):
        if folder.is_dir():
            yield folder.relative_to(run).as_posix().removesuffix(".tmp").rpartition(".")[0], ""


def _in_work_elsewhere(uri: str, done: Collection[str]) -> Iterator[tuple[str, str]]:
    """Stages whose checkpoints are at the URI, with their figures as of the newest one."""
    remote = Remote(uri)
    for work in remote.folders_with(STAGE_FILE, "work"):
        stage, metrics = work.removeprefix("work/"), f"{work}/metrics.jsonl"
        if stage not in done:
            yield stage, _last_step(parse_metrics(remote.read(metrics)) if remote.exists(metrics) else [])


def _last_step(rows: Sequence[Mapping[str, Any]]) -> str:
    row = last_figures(rows)
    return f"step {row['step']}  {figures_of(row)}" if row else "at its first step"
