"""The interface of trackers, and what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Tracked:
    """The training whose figures are sent.

    Attributes:
        run: ``name`` of the configuration.
        run_id: tells runs of the same name apart.
        stage: sft, sft_double or rl.
        arm: which of the run's arms is trained.
        folder: for the files of trackers, in the run directory; shared by all trainings of the run.
        config: the whole configuration, as plain data.
    """

    run: str
    run_id: str
    stage: str
    arm: str
    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the training for people, such as ``quickstart/rl/bridge``."""
        return f"{self.run}/{self.stage}/{self.arm}"

    @property
    def key(self) -> str:
        """Identifies the training: the same whatever process resumes it."""
        return f"{self.run_id}-{self.stage}-{self.arm}"


class Tracker(Protocol):
    """A tracker. The options of the configuration are the keyword arguments of its class."""

    def begin(self, training: Tracked) -> None:
        """A training begins, or resumes."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """The figures of a step; steps come in order."""

    def end(self) -> None:
        """The training is over or was interrupted; ``begin`` may follow with the next one."""
