"""Checkpoints of a training: a directory per step, each with the digests of its files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bi_ray.files.atomic import discard, remove, tidy, write_atomically
from bi_ray.files.errors import explain_full_disk
from bi_ray.files.integrity import FileRecord, file_names, find_damage, record_files
from bi_ray.runs.layout import CHECKPOINT_FILE, damaged_name, step_name, step_of, steps_in

log = logging.getLogger(__name__)


class CheckpointState(BaseModel):
    """Content of ``state.json``, the file of a checkpoint that is written last.

    Attributes:
        step: how many steps the training had made.
        files: every other file of the checkpoint, by its path in it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    step: int
    files: dict[str, FileRecord]


def checkpoint_damage(folder: Path) -> str | None:
    """Why the checkpoint ``step_N`` cannot be used, naming the file; None if it is whole.

    Reads every file.
    """
    if not folder.is_dir():
        return "it is not a directory"
    file = folder / CHECKPOINT_FILE
    try:
        state = CheckpointState.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return f"{CHECKPOINT_FILE} is missing"
    except OSError as error:
        return f"{CHECKPOINT_FILE} cannot be read: {error.strerror or error}"
    except ValidationError:
        log.debug("%s", file, exc_info=True)
        return f"{CHECKPOINT_FILE} is cut short or damaged"
    if state.step != step_of(folder.name):
        return f"{CHECKPOINT_FILE} is of step {state.step}"
    expected = {CHECKPOINT_FILE, *state.files}
    for name in file_names(folder):
        if name not in expected:
            return f"{name} does not belong there"  # whoever loads the folder might read it
    return find_damage(folder, state.files)


class StepDirectories:
    """The checkpoints ``step_N`` of a training, which resumes from the newest whole one.

    Args:
        directory: where they are.
        keep_last: how many of the newest to keep.
        keep_best: how many of those with the highest score to keep besides.
        scores: by step, as known when a step is written; higher is better. Of equal ones the
            earlier is better.
    """

    def __init__(
        self,
        directory: Path,
        keep_last: int = 2,
        keep_best: int = 0,
        scores: Callable[[], Mapping[int, float]] = dict,
    ) -> None:
        self.directory = directory
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._scores = scores

    def path(self, step: int) -> Path:
        """Directory of ``step``."""
        return self.directory / step_name(step)

    def recover(
        self, last_step: int | None = None, note: Callable[[str], None] = log.warning
    ) -> int:
        """The newest whole step, 0 if there is none, after tidying what a kill may have left.

        Newer ones that are damaged are renamed ``step_N.damaged``, which stay until step N is
        written again.

        Args:
            last_step: of the training; a later one cannot be of it. None: any.
            note: takes a line about each damaged checkpoint.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        tidy(self.directory)
        steps = sorted(steps_in(self.directory), reverse=True)
        for step in steps:
            if self._is_whole(step, last_step, note):
                return step
        if steps:
            note(
                f"no intact checkpoint is left in {self.directory}: training starts at its first "
                "step"
            )
        return 0

    def whole_steps(self, note: Callable[[str], None] = log.warning) -> set[int]:
        """Every whole step; those that are damaged are renamed as ``recover`` does."""
        return {step for step in steps_in(self.directory) if self._is_whole(step, None, note)}

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Make ``step_N`` by filling a new folder, then remove the steps that are not kept.

        Raises:
            DiskFull: there was no room; the older steps are as before.
        """
        path = self.path(step)
        with (
            explain_full_disk(self.directory, f"the checkpoint of step {step}"),
            write_atomically(path) as folder,
        ):
            fill(folder)
            state = CheckpointState(step=step, files=record_files(folder))
            (folder / CHECKPOINT_FILE).write_text(state.model_dump_json(indent=1))
        remove(path.with_name(damaged_name(path.name)))
        for old in steps_in(self.directory) - self._kept():
            discard(self.path(old))

    def _is_whole(self, step: int, last_step: int | None, note: Callable[[str], None]) -> bool:
        """Whether a checkpoint can be used; if not, it is renamed."""
        path = self.path(step)
        if last_step is not None and step > last_step:
            reason: str | None = f"the training has only {last_step} steps"
        else:
            reason = checkpoint_damage(path)
        if reason is None:
            return True
        aside = path.with_name(damaged_name(path.name))
        remove(aside)
        path.rename(aside)
        note(f"checkpoint {path} is left out: {reason}; it was renamed to {aside.name}")
        return False

    def _kept(self) -> set[int]:
        steps = sorted(steps_in(self.directory))
        scores = self._scores()
        scored = [step for step in steps if step in scores]
        best_first = sorted(scored, key=lambda step: -scores[step])  # stable: the earlier is better
        return {*steps[-self._keep_last :], *best_first[: self._keep_best]}
