"""What a training leaves on disk: step directories that are whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from bi_ray.store import restore, write_atomically

_STEP = re.compile(r"step_(\d+)")


class StepDirectories:
    """The directories ``step_N`` of a training, the newest of which it resumes from.

    Args:
        directory: where they are.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self._keep = keep

    def path(self, step: int) -> Path:
        """Directory of ``step``."""
        return self.directory / f"step_{step}"

    def recover(self) -> int:
        """Tidy what a kill may have left; returns the newest complete step, 0 if there is none."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in self.directory.glob("step_*.old"):
            restore(old.with_suffix(""))
        for unfinished in self.directory.glob("step_*.tmp"):
            shutil.rmtree(unfinished)
        return max(self._steps(), default=0)

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Make ``step_N`` by filling a new folder, then remove the steps that are too old."""
        with write_atomically(self.path(step)) as folder:
            fill(folder)
            (folder / "state.json").write_text(json.dumps({"step": step}))
        for old in sorted(self._steps())[: -self._keep]:
            shutil.rmtree(self.path(old))

    def _steps(self) -> list[int]:
        matches = (_STEP.fullmatch(path.name) for path in self.directory.iterdir())
        return [int(match[1]) for match in matches if match]
