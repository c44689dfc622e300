"""The result as one picture: training curves, and accuracy before and after RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bi_ray.intervals import Floats, Interval
from bi_ray.report.scores import TableRow

# Okabe and Ito's palette, which stays distinct under every common form of color blindness; markers
# distinguish arms in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SMOOTHING_SHARE = 0.05  # share of the steps in the moving average of a training curve


class Look(NamedTuple):
    """Color and marker of an arm."""

    color: str
    marker: str


def draw_picture(
    rewards: Mapping[str, Sequence[Sequence[float]]],
    table: Sequence[TableRow],
    path: Path,
    title: str = "",
) -> None:
    """Draw training curves (left) and SFT → RL with intervals (right), readable at 800 pixels.

    Args:
        rewards: mean training reward of every RL step, by arm, one sequence per training seed.
        table: from ``make_table``.
        path: path of the image; its suffix gives the format.
        title: above the picture.
    """
    figure = Figure(figsize=(8, 3.8), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    looks: dict[str, Look] = {}
    for arm in [*rewards, *(row.arm for row in table)]:
        number = len(looks)
        look = Look(COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)])
        looks.setdefault(arm, look)
    _draw_curves(left, rewards, looks)
    _draw_gains(right, table, looks)
    if title:
        figure.suptitle(title, fontsize=12)
    figure.savefig(path)


def _draw_curves(
    axes: Axes, rewards: Mapping[str, Sequence[Sequence[float]]], looks: Mapping[str, Look]
) -> None:
    for arm, runs in rewards.items():
        _draw_curve(axes, arm, runs, looks[arm])
    axes.set(xlabel="RL step", ylabel="training reward")
    axes.set_title("Reward during RL", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rewards:
        axes.legend(frameon=False, fontsize=10)


def _draw_curve(axes: Axes, arm: str, runs: Sequence[Sequence[float]], look: Look) -> None:
    """The moving average over the seeds, and thin lines: each seed, or the one seed's raw curve."""
    steps = min(len(run) for run in runs)
    raw = np.array([run[:steps] for run in runs], dtype=np.float64)  # [seeds, steps]
    smooth = np.stack([moving_average(run) for run in raw])
    x = np.arange(1, steps + 1)
    axes.plot(
        x,
        smooth.mean(axis=0),
        color=look.color,
        marker=look.marker,
        markevery=max(1, steps // 6),
        label=arm,
        lw=2,
    )
    for line in smooth if len(smooth) > 1 else raw:
        axes.plot(x, line, color=look.color, alpha=0.25, lw=0.8)


def moving_average(values: Floats) -> Floats:
    """Mean over the last 5 % of the steps, fewer at the start; same shape as ``values``."""
    width = max(1, round(_SMOOTHING_SHARE * len(values)))
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (total[end] - total[start]) / (end - start)


def _draw_gains(axes: Axes, table: Sequence[TableRow], looks: Mapping[str, Look]) -> None:
    """One line per arm and set: hollow point before RL, filled after it, the gain beside them."""
    sets = list(dict.fromkeys(row.set for row in table))
    ticks: list[int] = []
    labels: list[str] = []
    highest = 0.0
    for row in sorted(table, key=lambda row: sets.index(row.set)):
        y = -(len(ticks) + sets.index(row.set))  # with a gap between the sets
        ticks.append(y)
        labels.append(f"{row.arm}\n{row.set}")
        look = looks[row.arm]
        _draw_point(axes, row.sft.accuracy, y + 0.16, look, filled=False)
        highest = max(highest, 100 * row.sft.accuracy.high)
        if not row.rl:
            continue
        highest = max(highest, 100 * row.rl.accuracy.high)
        if row.gain:
            _draw_point(axes, row.rl.accuracy, y - 0.16, look, filled=True)
            _write_gain(axes, row.gain, y)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.set(xlabel="greedy accuracy, %", xlim=(0, highest * 1.75))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.set_title("SFT (hollow) → RL (filled), gain at the right", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _write_gain(axes: Axes, gain: Interval, y: float) -> None:
    value, low, high = 100 * gain.value, 100 * gain.low, 100 * gain.high
    axes.annotate(
        f"{value:+.1f} ({low:+.1f} to {high:+.1f})",
        (1.0, y),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="center",
        fontsize=9,
    )


def _draw_point(axes: Axes, interval: Interval, y: float, look: Look, filled: bool) -> None:
    value, low, high = 100 * interval.value, 100 * interval.low, 100 * interval.high
    axes.errorbar(
        value,
        y,
        xerr=[[value - low], [high - value]],
        color=look.color,
        marker=look.marker,
        markersize=7,
        markerfacecolor=look.color if filled else "white",
        capsize=2,
        lw=1.5,
    )
