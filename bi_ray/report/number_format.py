"""Numbers as the report shows them: signs, percent, points, intervals."""

from __future__ import annotations

from collections.abc import Sequence

from bi_ray.intervals import Interval

MINUS = "\N{MINUS SIGN}"


def points(value: float, signed: bool = False) -> str:
    """A share in percent, or a difference in points: "41.5", "+3.1"."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}".replace("-", MINUS)


def small(value: float) -> str:
    """Any number in three digits: "0.00124", "3.1e-06"."""
    return f"{value:.3g}".replace("-", MINUS)


def percent_range(interval: Interval, signed: bool = False) -> str:
    """The bounds of an interval in percent: "38.5 to 44.6"."""
    return f"{points(interval.low, signed)} to {points(interval.high, signed)}"


def small_range(interval: Interval) -> str:
    """The bounds of an interval in three digits."""
    return f"{small(interval.low)} to {small(interval.high)}"


def small_interval(interval: Interval) -> str:
    """An interval in three digits: "0.8 (0.7 to 0.9)"."""
    return f"{small(interval.value)} ({small_range(interval)})"


def named(items: Sequence[str], most: int = 8) -> str:
    """The first items, and how many more there are."""
    words = ", ".join(items[:most])
    if len(items) > most:
        words += f" and {len(items) - most} more"
    return words


def before_after(before: float | None, after: float | None, percent: bool = True) -> str:
    """Two figures as "30 → 35"; in percent, or as they are with two decimals."""
    return f"{_figure(before, percent)} → {_figure(after, percent)}"


def _figure(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f}" if percent else f"{value:.2f}"
