"""What a training leaves on disk: step directories that are whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bi_ray.store import CHECKPOINT_FILE, explain_full_disk, tidy, write_atomically

_STEP = re.compile(r"step_(\d+)")


class StepDirectories:
    """The directories ``step_N`` of a training, the newest of which it resumes from.

    Args:
        directory: where they are.
        keep_last: how many of the newest stay.
        keep_best: how many of those with the highest score stay beside them.
        scores: by step, as known when a step is written; higher is better. Of equal ones the earlier is better.
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
        return self.directory / f"step_{step}"

    def recover(self) -> int:
        """Tidy what a kill may have left; returns the newest complete step, 0 if there is none."""
        self.directory.mkdir(parents=True, exist_ok=True)
        tidy(self.directory)
        return max(self._steps(), default=0)

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Make ``step_N`` by filling a new folder, then remove the steps that are not kept.

        Raises:
            DiskFull: there was no room; the older steps are as before.
        """
        path = self.path(step)
        with explain_full_disk(self.directory, f"the checkpoint of step {step}"), write_atomically(path) as folder:
            fill(folder)
            (folder / CHECKPOINT_FILE).write_text(json.dumps({"step": step}))
        for old in self._steps() - self._kept():
            shutil.rmtree(self.path(old))

    def _kept(self) -> set[int]:
        steps = sorted(self._steps())
        scores = {step: score for step, score in self._scores().items() if step in steps}
        best = sorted(scores, key=lambda step: (-scores[step], step))[: self._keep_best]
        return {*steps[-self._keep_last :], *best}

    def _steps(self) -> set[int]:
        matches = (_STEP.fullmatch(path.name) for path in self.directory.iterdir())
        return {int(match[1]) for match in matches if match}
