"""The table of what was measured before RL beside accuracy and influence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bi_ray.intervals import Interval
from bi_ray.readiness.summary import AccuracySummary
from bi_ray.report.number_format import percent_range, points, small, small_range
from bi_ray.report.series import Series
from bi_ray.verification.verdicts import BEHAVIOR_FIELDS


class TableCell(NamedTuple):
    """A figure in words, and its 95 % interval in words or ""."""

    value: str
    range: str = ""


@dataclass(frozen=True, slots=True)
class TableLine:
    """A line of the table: a name, what it means, and a cell per series; None: not measured."""

    name: str
    definition: str
    cells: list[TableCell | None]


class _Definition(NamedTuple):
    name: str
    definition: str
    cell: Callable[[AccuracySummary], TableCell | None]


def lines_before_rl(series: Sequence[Series]) -> list[TableLine]:
    """The lines of which any series has a figure; none if nothing was measured."""
    accuracies = [one.readiness.accuracy if one.readiness else None for one in series]
    measured = [accuracy for accuracy in accuracies if accuracy]
    lines = []
    for name, definition, cell in _definitions(measured):
        cells = [cell(accuracy) if accuracy else None for accuracy in accuracies]
        if any(cells):
            lines.append(TableLine(name, definition, cells))
    return lines


def _definitions(measured: Sequence[AccuracySummary]) -> list[_Definition]:
    ks: dict[int, None] = {}  # in the order in which they come
    texts: dict[str, None] = {}
    for accuracy in measured:
        ks.update(dict.fromkeys(accuracy.pass_at))
        texts.update(dict.fromkeys(accuracy.perplexity))
    return [
        _Definition("informative share", "queries with 0 < right < N", _informative),
        _Definition("signal", "mean of sqrt(a(1 - a)), a = right / N", _signal),
        *[_Definition(f"pass@{k}", "unbiased estimate", partial(_pass_at, k)) for k in ks],
        _Definition("entropy", "nats per token, on its own rollouts", _entropy),
        *[
            _Definition(
                f"perplexity, {text}", "exp of the mean loss per token", partial(_perplexity, text)
            )
            for text in texts
        ],
        _Definition("response length", "tokens", _response_tokens),
        _Definition("truncated", "ended at the length limit", _truncated),
        _Definition("right format", "one chain of thought, one answer", _format_right),
        _Definition("valid trace", "every line right", _trace_valid),
        *[_Definition(name, "per response", partial(_behavior, name)) for name in BEHAVIOR_FIELDS],
    ]


def _informative(accuracy: AccuracySummary) -> TableCell | None:
    if accuracy.informative is None:
        return None
    return TableCell(f"{points(accuracy.informative.value)} %", percent_range(accuracy.informative))


def _signal(accuracy: AccuracySummary) -> TableCell | None:
    return _number(accuracy.signal)


def _pass_at(k: int, accuracy: AccuracySummary) -> TableCell | None:
    return _share(accuracy.pass_at.get(k))


def _entropy(accuracy: AccuracySummary) -> TableCell | None:
    return _number(accuracy.entropy)


def _perplexity(text: str, accuracy: AccuracySummary) -> TableCell | None:
    return _number(accuracy.perplexity.get(text))


def _response_tokens(accuracy: AccuracySummary) -> TableCell | None:
    return _number(accuracy.response_tokens)


def _truncated(accuracy: AccuracySummary) -> TableCell | None:
    return _share(accuracy.truncated)


def _format_right(accuracy: AccuracySummary) -> TableCell | None:
    return _share(accuracy.format_right)


def _trace_valid(accuracy: AccuracySummary) -> TableCell | None:
    return _share(accuracy.trace_valid)


def _behavior(name: str, accuracy: AccuracySummary) -> TableCell | None:
    if name not in accuracy.behaviors:
        return None
    return TableCell(f"{accuracy.behaviors[name]:.2f}")


def _number(interval: Interval | None) -> TableCell | None:
    if interval is None:
        return None
    return TableCell(small(interval.value), small_range(interval))


def _share(value: float | None) -> TableCell | None:
    return None if value is None else TableCell(f"{points(value)} %")
