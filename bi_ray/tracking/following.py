"""Trackers fed from a training's metrics file, beside the training."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bi_ray.config import RunConfig
from bi_ray.config.importing import load_object
from bi_ray.files.atomic import write_text
from bi_ray.runs.metrics import read_steps
from bi_ray.tracking.base import Tracked, Tracker

log = logging.getLogger(__name__)

_FOLLOW_S = 0.5

_END_S = 60.0  # for what is still to be sent when a training ends

MARK = "tracked"  # beside metrics.jsonl: the last step that went out

KNOWN: dict[str, str] = {
    "tensorboard": "bi_ray.tracking:TensorBoard",
    "wandb": "bi_ray.tracking:WandB",
    "mlflow": "bi_ray.tracking:MLflow",
    "trackio": "bi_ray.tracking:Trackio",
    "prometheus": "actors.prometheus:RayMetrics",
}


def make_trackers(config: RunConfig, warn: Callable[[str], None]) -> dict[str, Tracker]:
    """The trackers that a configuration names; one that cannot be made is left out with a warning."""
    made: dict[str, Tracker] = {}
    for name, options in config.trackers.items():
        try:
            made[name] = load_object(KNOWN.get(name, name), f"trackers.{name}", "class")(**options)
        except ImportError as error:
            warn(
                f"tracker {name} is left out: {error}; pip install 'bi-ray[track]' has what it needs"
            )
        except Exception as error:
            warn(f"tracker {name} is left out: {type(error).__name__}: {error}")
    return made


@dataclass
class Tracking:
    """Follows the metrics file of a training while the block runs, and hands every new row to every
    tracker.

    Attributes:
        trackers: by name. One that raises is taken out of them.
        training: whose figures they are.
        metrics: the file.
        warn: told why a tracker is left out, in one line.
    """

    trackers: dict[str, Tracker]
    training: Tracked
    metrics: Path
    warn: Callable[[str], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _sent: int = -1
    _trouble: str = ""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._follow, daemon=True)
        if self.trackers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.trackers:
            self._thread.join(_END_S)
            if self._thread.is_alive():
                self.warn(
                    f"trackers did not take the last figures within {_END_S:g} s; the run goes on without them"
                )

    def _follow(self) -> None:
        self._each("begin", self.training)
        self._sent = self._read_mark()
        while not self._stop.wait(_FOLLOW_S):
            self._send()
        self._send()
        self._each("end")

    def _read_mark(self) -> int:
        """The last step that went out, -1 before the first one."""
        mark = self.metrics.with_name(MARK)
        try:
            return int(mark.read_text())
        except FileNotFoundError:
            return -1
        except (OSError, ValueError) as error:
            log.warning("%s is damaged", mark, exc_info=error)
            self.warn(f"{mark} is damaged: trackers get every step of {self.training.name} again")
            return -1

    def _send(self) -> None:
        """Send what is new. Whatever is wrong with the files, the run and later figures are not
        disturbed.
        """
        try:
            for row in read_steps(self.metrics):
                if row["step"] > self._sent:
                    self._each("log", row["step"], figures_of(row))
                    self._sent = row["step"]
                    # After a power cut figures may go out twice: a sync takes longer than some
                    # steps.
                    write_text(self.metrics.with_name(MARK), str(self._sent), durable=False)
            self._trouble = ""
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:  # it is tried again all the time
                log.warning("trackers of %s wait", self.training.name, exc_info=error)
                self.warn(f"trackers of {self.training.name} get no new figures for now: {error}")
            self._trouble = trouble

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # whatever a tracker does, the run goes on
                log.warning("tracker %s fails", name, exc_info=error)
                del self.trackers[name]
                self.warn(
                    f"tracker {name} is left out from here on: {type(error).__name__}: {error}"
                )


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a metrics row, without its step."""
    numbers = {
        name: value
        for name, value in row.items()
        if isinstance(value, (int, float)) and name != "step"
    }
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
