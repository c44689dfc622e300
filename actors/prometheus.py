"""The figures of a training as Prometheus metrics, through Ray: every node's agent offers them with
Ray's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from bi_ray.tracking.base import Tracked

_TAGS = ("run", "run_id", "stage", "arm")
_STEPS = "bi_ray_training_steps"  # a counter; Ray adds "_total"
# of this process: a second one of the same name would not be exported
_made: dict[str, Gauge | Counter] = {}


class RayMetrics:
    """A gauge ``ray_bi_ray_NAME`` per figure, with tags run, run_id, stage and arm (Ray puts its
    own prefix first).
    """

    def begin(self, training: Tracked) -> None:
        """See ``tracking.Tracker``."""
        self._tags = {tag: getattr(training, tag) for tag in _TAGS}
        if _STEPS not in _made:
            _made[_STEPS] = Counter(_STEPS, "Steps that trainings finished.", _TAGS)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``tracking.Tracker``."""
        for name, value in {"step": float(step), **figures}.items():
            metric = metric_name(name)
            if metric not in _made:
                _made[metric] = Gauge(metric, f"{name} of the last step.", _TAGS)
            gauge = _made[metric]
            assert isinstance(gauge, Gauge)
            gauge.set(value, self._tags)
        counter = _made[_STEPS]
        assert isinstance(counter, Counter)
        if step:
            counter.inc(1, self._tags)

    def end(self) -> None:
        """See ``tracking.Tracker``; the last figures stay until the command ends."""


def metric_name(figure: str) -> str:
    """The name of a figure's gauge: letters, digits and underscores."""
    return "bi_ray_" + re.sub(r"\W+", "_", figure)
