"""The result as one picture: training curves, and accuracy before and after RL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bi_ray.intervals import Floats, Interval
from bi_ray.report.scores import TableRow

Looks = dict[str, tuple[str, str]]  # color and marker by arm

# Okabe and Ito's palette, which stays distinct under every common color blindness; markers tell
# arms apart in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SMOOTHING_SHARE = 0.05  # of the steps, in the moving average of a training curve


def draw_picture(
    rewards: Mapping[str, Sequence[Sequence[float]]],
    table: Sequence[TableRow],
    path: Path,
    title: str = "",
) -> None:
    """Draw training curves (left) and SFT -> RL with intervals (right) into an image, readable at
    800 pixels' width.

    Args:
        rewards: mean training reward of every RL step, by arm, one sequence per training seed.
        table: from ``make_table``.
        path: where to; the suffix gives the format.
        title: above the picture.
    """
    figure = Figure(figsize=(8, 3.8), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    arms = list(dict.fromkeys([*rewards, *(row.arm for row in table)]))
    looks = {
        arm: (COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]) for i, arm in enumerate(arms)
    }
    _draw_curves(left, rewards, looks)
    _draw_gains(right, table, looks)
    if title:
        figure.suptitle(title, fontsize=12)
    figure.savefig(path)


def _draw_curves(
    axes: Axes, rewards: Mapping[str, Sequence[Sequence[float]]], looks: dict[str, tuple[str, str]]
) -> None:
    for arm, runs in rewards.items():
        color, marker = looks[arm]
        steps = min(len(run) for run in runs)
        smooth = np.stack(
            [moving_average(np.asarray(run[:steps], dtype=np.float64)) for run in runs]
        )
        x = np.arange(1, steps + 1)
        axes.plot(
            x,
            smooth.mean(axis=0),
            color=color,
            marker=marker,
            markevery=max(1, steps // 6),
            label=arm,
            lw=2,
        )
        # each seed, or the one seed's raw curve
        for run in smooth if len(smooth) > 1 else np.asarray(runs)[:, :steps]:
            axes.plot(x, run, color=color, alpha=0.25, lw=0.8)
    axes.set(xlabel="RL step", ylabel="training reward")
    axes.set_title("Reward while RL trains", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rewards:
        axes.legend(frameon=False, fontsize=10)


def moving_average(values: Floats) -> Floats:
    """Mean over the last steps, fewer at the start, same shape."""
    width = max(1, round(_SMOOTHING_SHARE * len(values)))
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (total[end] - total[start]) / (end - start)


def _draw_gains(axes: Axes, table: Sequence[TableRow], looks: Looks) -> None:
    """One line per arm and set: hollow point before RL, filled after it, an arrow between them."""
    sets = list(dict.fromkeys(row.set for row in table))
    rows = [row for name in sets for row in table if row.set == name]
    for position, row in enumerate(rows):
        y = -(position + sets.index(row.set))  # a gap between the sets
        color, marker = looks[row.arm]
        _draw_point(axes, row.sft.accuracy, y + 0.16, color, marker, filled=False)
        note = ""
        if row.rl and row.gain:
            _draw_point(axes, row.rl.accuracy, y - 0.16, color, marker, filled=True)
            note = f"{100 * row.gain.value:+.1f} ({100 * row.gain.low:+.1f} to {100 * row.gain.high:+.1f})"
        axes.annotate(
            note, (1.0, y), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=9
        )
    axes.set_yticks(
        [-(i + sets.index(row.set)) for i, row in enumerate(rows)],
        [f"{r.arm}\n{r.set}" for r in rows],
    )
    axes.tick_params(axis="y", labelsize=9, length=0)
    high = max(
        [100 * (row.rl or row.sft).accuracy.high for row in rows]
        + [100 * row.sft.accuracy.high for row in rows]
    )
    axes.set(xlabel="greedy accuracy, %", xlim=(0, high * 1.75))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.set_title("SFT (hollow) → RL (filled), gain at the right", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_point(
    axes: Axes, interval: Interval, y: float, color: str, marker: str, filled: bool
) -> None:
    value, low, high = (100 * part for part in interval)
    axes.errorbar(
        value,
        y,
        xerr=[[value - low], [high - value]],
        color=color,
        marker=marker,
        markersize=7,
        markerfacecolor=color if filled else "white",
        capsize=2,
        lw=1.5,
    )
