"""Trackers fed from a training's metrics file, beside the training.

A thread follows the file, so trackers see what is on disk and nothing else, a slow one holds nobody
up, and one that fails is left out with a warning: no tracker stops a run. Each figure goes out
once, also when the run was killed and resumes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bi_ray.config.importing import load_object
from bi_ray.config.run import RunConfig
from bi_ray.files.atomic import write_text
from bi_ray.runs.layout import TRACKED_FILE
from bi_ray.runs.metrics import read_steps
from bi_ray.tracking.base import Tracked, Tracker

log = logging.getLogger(__name__)
_FOLLOW_S = 0.5
_END_S = 60.0  # for what is still to be sent when a training ends
_NOTHING = -1  # the last step that went out, before there is one

KNOWN: dict[str, str] = {
    "tensorboard": "bi_ray.tracking.trackers:TensorBoard",
    "wandb": "bi_ray.tracking.trackers:WandB",
    "mlflow": "bi_ray.tracking.trackers:MLflow",
    "trackio": "bi_ray.tracking.trackers:Trackio",
    "prometheus": "actors.prometheus:RayMetrics",
}


def make_trackers(config: RunConfig, warn: Callable[[str], None]) -> dict[str, Tracker]:
    """The trackers of a configuration, by name; one that cannot be made is left out.

    Args:
        config: names them and has their options.
        warn: takes a line about each that is left out.
    """
    trackers: dict[str, Tracker] = {}
    for name, options in config.trackers.items():
        try:
            kind = load_object(KNOWN.get(name, name), f"trackers.{name}", "class")
            trackers[name] = kind(**options)
        except ImportError as error:
            log.info("tracker %s is left out", name, exc_info=True)
            warn(f"tracker {name} is left out: {error}; pip install 'bi-ray[track]' installs it")
        except Exception as error:  # whatever a tracker does, the run continues
            log.info("tracker %s is left out", name, exc_info=True)
            warn(f"tracker {name} is left out: {type(error).__name__}: {error}")
    return trackers


@dataclass
class Tracking:
    """Hands every new row of a training's metrics file to every tracker, while the block runs.

    Attributes:
        trackers: by name. One that raises is taken out of them.
        training: whose figures they are.
        metrics: the file.
        warn: takes a line when a tracker is left out or has to wait.
    """

    trackers: dict[str, Tracker]
    training: Tracked
    metrics: Path
    warn: Callable[[str], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _sent: int = _NOTHING
    _trouble: str = ""  # that was reported last

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._follow, daemon=True)
        if self.trackers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if not self._thread.is_alive():
            return
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self.warn(
                f"trackers did not take the last figures within {_END_S:g} s; the run continues "
                "without them"
            )

    def _follow(self) -> None:
        self._each("begin", self.training)
        self._sent = self._read_mark()
        while not self._stop.wait(_FOLLOW_S):
            self._send()
        self._send()
        self._each("end")

    @property
    def _mark(self) -> Path:
        return self.metrics.with_name(TRACKED_FILE)

    def _read_mark(self) -> int:
        """The last step that went out."""
        try:
            return int(self._mark.read_text())
        except FileNotFoundError:
            return _NOTHING
        except (OSError, ValueError) as error:
            log.warning("%s is damaged", self._mark, exc_info=error)
            self.warn(
                f"{self._mark} is damaged: trackers get every step of {self.training.name} again"
            )
            return _NOTHING

    def _send(self) -> None:
        """Send what is new. No fault of the files disturbs the run or later figures."""
        try:
            self._send_rows()
            self._trouble = ""
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:  # it is tried again all the time
                log.warning("trackers of %s wait", self.training.name, exc_info=error)
                self.warn(f"trackers of {self.training.name} get no new figures for now: {error}")
            self._trouble = trouble

    def _send_rows(self) -> None:
        for row in read_steps(self.metrics):
            if row["step"] <= self._sent:
                continue
            self._each("log", row["step"], finite_figures(row))
            self._sent = row["step"]
            # After a power cut figures may go out twice: a sync takes longer than some steps.
            write_text(self._mark, str(self._sent), durable=False)

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # whatever a tracker does, the run continues
                log.warning("tracker %s fails", name, exc_info=error)
                del self.trackers[name]
                self.warn(
                    f"tracker {name} is left out from now on: {type(error).__name__}: {error}"
                )


def finite_figures(row: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers of a step, without its number; ``row`` is of ``metrics.read_steps``."""
    figures = {name: float(value) for name, value in row.items() if math.isfinite(value)}
    figures.pop("step")
    return figures
