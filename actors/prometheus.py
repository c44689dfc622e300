"""The figures of a training as Prometheus metrics, which Ray's agents export with their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge

from bi_ray.tracking.base import Tracked

_TAGS = ("run", "run_id", "stage", "arm")
_STEPS = "bi_ray_training_steps"  # a counter; Ray adds "_total"
_gauges: dict[str, Gauge] = {}  # of this process: Ray does not export a second one of a name


def _gauge(figure: str) -> Gauge:
    name = metric_name(figure)
    if name not in _gauges:
        _gauges[name] = Gauge(name, f"{figure} of the last step.", _TAGS)
    return _gauges[name]


@cache
def _counter() -> Counter:
    """The counter of steps, one in a process."""
    return Counter(_STEPS, "Steps that trainings finished.", _TAGS)


class RayMetrics:
    """A gauge ``ray_bi_ray_NAME`` per figure, with tags run, run_id, stage and arm.

    The prefix ``ray_`` is Ray's.
    """

    def begin(self, training: Tracked) -> None:
        """See ``tracking.Tracker``."""
        self._tags = {tag: getattr(training, tag) for tag in _TAGS}

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``tracking.Tracker``."""
        _gauge("step").set(float(step), self._tags)
        for name, value in figures.items():
            _gauge(name).set(value, self._tags)
        if step:
            _counter().inc(1, self._tags)

    def end(self) -> None:
        """See ``tracking.Tracker``; the last figures stay until the command ends."""


def metric_name(figure: str) -> str:
    """The name of a figure's gauge: letters, digits and underscores."""
    return "bi_ray_" + re.sub(r"\W+", "_", figure)
