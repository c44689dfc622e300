"""Numbers and findings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bi_ray.report.source import Source

Json = Mapping[str, Any]
MINUS = "\N{MINUS SIGN}"
# of two halves of the targets: below, under a fifth of the squared length of their sum is signal
SIGNAL_COSINE = 0.1


def triple(interval: Any) -> tuple[float, float, float]:
    """Value, low and high of an interval as JSON keeps it: a mapping or a list."""
    if isinstance(interval, Mapping):
        return float(interval["value"]), float(interval["low"]), float(interval["high"])
    value, low, high = interval
    return float(value), float(low), float(high)


def points(value: float, signed: bool = False) -> str:
    """A share in percent, or a difference in points: "41.5", "+3.1"."""
    return f"{100 * value:{'+' if signed else ''}.1f}".replace("-", MINUS)


def small(value: float) -> str:
    """Any number in three digits: "0.00124", "3.1e-06"."""
    return f"{value:.3g}".replace("-", MINUS)


def percent_range(interval: Any, signed: bool = False) -> str:
    """The bounds of an interval in percent: "38.5 to 44.6"."""
    _, low, high = triple(interval)
    return f"{points(low, signed)} to {points(high, signed)}"


def small_range(interval: Any) -> str:
    """The bounds of an interval in three digits."""
    _, low, high = triple(interval)
    return f"{small(low)} to {small(high)}"


def sign(interval: Any) -> int:
    """1 where the whole interval is above 0, -1 where it is below, 0 where it holds 0: no more than
    chance.
    """
    _, low, high = triple(interval)
    return 1 if low > 0 else -1 if high < 0 else 0


def answer(source: Source) -> list[str]:
    """The answer of a run in plain sentences, the most important first."""
    summary = source.summary
    if differences := summary["difference_of_gains"]:
        lines = [_difference(row) for row in differences]
    else:
        lines = [_gain(row) for row in summary["table"] if row["gain"]]
    if not lines:
        return [
            "No answer yet: no arm has been evaluated before and after RL.",
            *_informative(source),
        ]
    lines += _informative(source)
    if forecast := _forecast(source):
        lines.append(forecast)
    if summary["seeds"] == 1:
        lines.append(
            "This is one seed: the intervals cover the choice of problems, not the luck of one training; "
            "`bi-ray study` repeats it."
        )
    return lines


def _difference(row: Json) -> str:
    value, _, _ = triple(row["difference"])
    much = f"{points(abs(value))} points {'more' if value >= 0 else 'less'}"
    interval = percent_range(row["difference"], signed=True)
    arms = f"with {row['arm']} than with {row['against']}"
    if sign(row["difference"]) == 0:
        return f"On {row['set']}, no difference beyond chance: RL gained {much} {arms}, {interval} at 95 %."
    return f"On {row['set']}, RL gained {much} {arms}, {interval} at 95 %: beyond chance."


def _gain(row: Json) -> str:
    value, _, _ = triple(row["gain"])
    verdict = {1: "a gain beyond chance", -1: "a loss beyond chance", 0: "no more than chance"}[
        sign(row["gain"])
    ]
    return (
        f"On {row['set']}, RL changed the accuracy of {row['arm']} by {points(value, signed=True)} points "
        f"({percent_range(row['gain'], signed=True)}): {verdict}."
    )


def _informative(source: Source) -> list[str]:
    """How many queries can teach anything, by arm, in one sentence; none without a measurement."""
    readiness = source.summary.get("readiness") or {}
    shares = [
        f"{points(found['accuracy']['informative']['value'])} % "
        f"({percent_range(found['accuracy']['informative'])}) with {arm}"
        for arm, found in readiness.items()
    ]
    return (
        [f"Before RL, the share of queries that teach anything was {' and '.join(shares)}."]
        if shares
        else []
    )


def _forecast(source: Source) -> str | None:
    """Whether the arm with the larger influence before RL is the one that gained more; None without
    a measurement.
    """
    arms = list(source.config.arms)
    readiness = source.summary.get("readiness") or {}
    rows = [row for row in source.summary["difference_of_gains"] if row["against"] == arms[0]]
    if not rows or arms[0] not in readiness or rows[0]["arm"] not in readiness:
        return None
    other, difference = rows[0]["arm"], rows[0]["difference"]
    estimator = next(iter(readiness[arms[0]]["influence"]))
    if estimator not in readiness[other]["influence"]:
        return None
    first, second = (
        triple(readiness[arm]["influence"][estimator]["all"]["dj"]) for arm in (arms[0], other)
    )
    said = (
        f"Before RL, the predicted influence dJ was {small(second[0])} ({small(second[1])} to {small(second[2])}) with "
        f"{other} and {small(first[0])} ({small(first[1])} to {small(first[2])}) with {arms[0]}"
    )
    cosines = [readiness[arm].get("halves_cosine", {}).get(estimator) for arm in (arms[0], other)]
    if any(cosine is not None and cosine < SIGNAL_COSINE for cosine in cosines):
        shown = " and ".join(
            "none" if cosine is None else small(cosine) for cosine in reversed(cosines)
        )
        said += (
            f" (the targets' gradient is mostly sampling noise, its halves have cosines {shown}: "
            f"raise readiness.target_queries)"
        )
    if second[1] <= first[2] and first[1] <= second[2]:
        return f"{said}: too close to call, the intervals overlap."
    if sign(difference) == 0:
        return f"{said}: it named {other if second > first else arms[0]}, and the gains do not differ beyond chance."
    right = (second > first) == (difference["value"] > 0)
    return f"{said}: it named {other if second > first else arms[0]}, {'rightly' if right else 'wrongly'}."


def named(items: Sequence[str], most: int = 8) -> str:
    """Some of the items in a row, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def before_after(before: float | None, after: float | None, percent: bool = True) -> str:
    """Two figures as "30 → 35"; in percent, or as they are with two decimals."""
    shown = [
        "–" if value is None else f"{100 * value:.0f}" if percent else f"{value:.2f}"
        for value in (before, after)
    ]
    return " → ".join(shown)
