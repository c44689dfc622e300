"""When a group is late: it takes much longer than those that it was sampled with."""

from __future__ import annotations

import statistics


class LateGroups:
    """Tells late groups by the time that the finished ones took.

    Args:
        groups: number of groups that are sampled together.
        least_s: seconds that a group may take in any case.
    """

    def __init__(self, groups: int, least_s: float) -> None:
        self._groups = groups
        self._least_s = least_s
        self._took_s: list[float] = []

    def finished(self, took_s: float) -> None:
        """Note how long a group took, from when a worker had it."""
        self._took_s.append(took_s)

    def is_late(self, so_far_s: float, factor: float) -> bool:
        """Whether a group has taken more than ``factor`` times the median.

        No group is late before half of them are finished.
        """
        if 2 * len(self._took_s) < self._groups:
            return False
        limit_s = max(self._least_s, factor * statistics.median(self._took_s))
        return so_far_s > limit_s
