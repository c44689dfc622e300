"""The arms that a page compares, each in a color and a symbol of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bi_ray.readiness.summary import ReadinessSummary
from bi_ray.report.picture import COLORS
from bi_ray.report.readiness import Analysis, RealizedSummary
from bi_ray.report.scores import TableRow
from bi_ray.report.source import Source

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True, eq=False)
class Series:
    """An arm of a source.

    Attributes:
        label: the arm, behind the source's label if there are several sources.
        source: the run or study.
        arm: name of the arm.
        number: position among all series; decides its looks.
    """

    label: str
    source: Source
    arm: str
    number: int

    @property
    def color(self) -> str:
        """Color in the light theme."""
        return COLORS[self.number % len(COLORS)]

    @property
    def symbol(self) -> str:
        """Symbol of its points, to distinguish series without color."""
        return _SYMBOLS[self.number % len(_SYMBOLS)]

    @property
    def dash(self) -> str:
        """Dash of its lines, to distinguish series without color."""
        return DASHES[self.number % len(DASHES)]

    @property
    def rows(self) -> list[TableRow]:
        """The arm's rows of the table, one per set."""
        return [row for row in self.source.summary.table if row.arm == self.arm]

    @property
    def readiness(self) -> ReadinessSummary | None:
        """What was measured before RL; None if nothing was."""
        return self.source.summary.readiness.get(self.arm)

    @property
    def realized(self) -> RealizedSummary | None:
        """Predicted against realized change; None if no step was taken."""
        return self.source.summary.realized.get(self.arm)

    @property
    def analyses(self) -> list[Analysis]:
        """What was measured during RL."""
        return self.source.summary.during_rl.get(self.arm, [])


def all_series(sources: Sequence[Source]) -> list[Series]:
    """Every arm of every source."""
    series: list[Series] = []
    for source in sources:
        for arm in source.config.arms:
            label = arm if len(sources) == 1 else f"{source.label}: {arm}"
            series.append(Series(label, source, arm, len(series)))
    return series
