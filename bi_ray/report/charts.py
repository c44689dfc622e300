"""Charts as plotly.js takes them (plain dictionaries): accuracy before and after RL, histograms,
training curves.

A chart is ``{"controls": [...], "variants": {key: figure}}``: the page joins the values of its
controls with "/" into the key. Colors are those of the light theme; the page swaps them by
``PALETTE`` where it is dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bi_ray.report.picture import COLORS, moving_average
from bi_ray.report.source import Source
from bi_ray.report.wording import points, triple
from bi_ray.runs.metrics import is_validation

Figure = dict[str, Any]
Chart = dict[str, Any]

MUTED = "#6B7785"
# as COLORS, on a dark ground
_DARK = ("#4AA3DF", "#F0823F", "#2DBD91", "#DB93BD", "#E69F00", "#56B4E9", "#E6E9ED")
PALETTE = dict(zip(COLORS, _DARK, strict=True)) | {MUTED: "#93A0AE", "#FFFFFF": "#161C22"}
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
_MOST_POINTS = 400  # of one curve; a longer training is thinned evenly
_DIGITS = 5

# Names of metrics in words, in the order of the page; what a training logs beside these is not
# shown.
METRICS = {
    "rl": {
        "reward": "reward (mean over the step's samples)",
        "accuracy": "share of right answers",
        "informative_share": "informative share of the queries",
        "entropy": "entropy, nats per token",
        "response_tokens_mean": "response length, tokens",
        "mismatch_mean": "mismatch of sampler and learner, mean |log-probability difference|",
        "mismatch_max": "the same, largest",
        "reflections_per_sample": "reflections per response",
        "analyses_per_sample": "analyses per response",
        "format_rate": "share with the right format",
        "trace_valid_rate": "share with a valid trace",
        "trace_progress": "needed quantities solved before the first wrong line, share",
        "truncated_rate": "share truncated",
        "kl": "KL to the SFT policy, nats per token",
        "clip_share": "share of tokens clipped",
        "effective_sample_share": "effective sample size of the importance weights, share of the tokens",
        "importance_cut_share": "share of tokens whose importance weight was cut",
        "grad_norm": "norm of the gradient",
        "weight_norm": "norm of the weights",
        "loss": "loss",
        "learning_rate": "learning rate",
        "step_s": "seconds per step",
    },
    "sft": {
        "loss": "loss, nats per token",
        "grad_norm": "norm of the gradient",
        "learning_rate": "learning rate",
    },
}


# Figures of a validation in words; the others are pass@k.
_VALIDATION = {
    "greedy": "greedy accuracy",
    "truncated": "share of the greedy responses truncated",
    "tokens": "length of the greedy responses, tokens",
    "failures": "samples without a verdict",
}


@dataclass(frozen=True, eq=False)
class Series:
    """An arm of a source, in its own color and symbol.

    Attributes:
        label: the arm, behind the source's label where there are several.
        source: the run or study.
        arm: its arm.
        number: position among all, for the looks.
    """

    label: str
    source: Source
    arm: str
    number: int

    @property
    def color(self) -> str:
        """Of the light theme."""
        return COLORS[self.number % len(COLORS)]

    @property
    def symbol(self) -> str:
        """Tells series apart without color."""
        return _SYMBOLS[self.number % len(_SYMBOLS)]

    @property
    def dash(self) -> str:
        """Tells lines apart without color."""
        return _DASHES[self.number % len(_DASHES)]

    def part(self, name: str) -> Any:
        """The arm's entry of a part of the summary (readiness, realized, during_rl), None where
        there is none.
        """
        return (self.source.summary.get(name) or {}).get(self.arm)


def all_series(sources: Sequence[Source]) -> list[Series]:
    """Every arm of every source."""
    pairs = [(source, arm) for source in sources for arm in source.config.arms]
    return [
        Series(arm if len(sources) == 1 else f"{source.label}: {arm}", source, arm, number)
        for number, (source, arm) in enumerate(pairs)
    ]


def chart(figure: Figure) -> Chart:
    """A chart without controls."""
    return {"controls": [], "variants": {"": figure}}


def figure(data: list[dict[str, Any]], x: str, y: str, **layout: Any) -> Figure:
    """A figure with titles of its axes; ``xaxis`` and ``yaxis`` add to them."""
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name in axes:
        axes[name] |= layout.pop(name, {})
    return {"data": data, "layout": {**axes, **layout}}


def errors(intervals: Sequence[Any], scale: float = 1) -> dict[str, Any]:
    """The error bars of intervals."""
    found = [triple(interval) for interval in intervals]
    return {
        "type": "data",
        "symmetric": False,
        "array": [tidy(scale * (high - value)) for value, _, high in found],
        "arrayminus": [tidy(scale * (value - low)) for value, low, _ in found],
        "thickness": 1.5,
        "width": 3,
    }


def tidy(value: float | None) -> float | None:
    """A number in as many digits as a chart needs; none where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def gains(series: Sequence[Series]) -> Chart | None:
    """Accuracy before (hollow) and after RL (filled), by set and series."""
    rows = [
        (one, row) for one in series for row in one.source.summary["table"] if row["arm"] == one.arm
    ]
    if not rows:
        return None
    sets = list(dict.fromkeys(row["set"] for _, row in rows))
    rows.sort(key=lambda pair: (sets.index(pair[1]["set"]), pair[0].number))
    data: list[dict[str, Any]] = []
    ticks: list[tuple[float, str]] = []
    for place, (one, row) in enumerate(rows):
        y = -place - 0.6 * sets.index(row["set"])
        ticks.append((y, f"{_short(one.label)}<br>{row['set']}"))
        stages = [("SFT", row["sft"], 0.16)] + ([("RL", row["rl"], -0.16)] if row["rl"] else [])
        for stage, summary, shift in stages:
            value, low, high = triple(summary["accuracy"])
            marker = {
                "color": one.color,
                "symbol": one.symbol + ("-open" if stage == "SFT" else ""),
                "size": 10,
            }
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{one.label}, {row['set']}, after {stage}",
                    "x": [tidy(100 * value)],
                    "y": [y + shift],
                    "error_x": errors([summary["accuracy"]], 100) | {"color": one.color},
                    "marker": marker | {"line": {"width": 2, "color": one.color}},
                    "hovertemplate": f"{points(value)} % ({points(low)} to {points(high)})",
                }
            )
    yaxis = {
        "tickvals": [y for y, _ in ticks],
        "ticktext": [text for _, text in ticks],
        "showgrid": False,
    }
    yaxis["range"] = [ticks[-1][0] - 0.8, 0.8]
    layout = {"showlegend": False, "hovermode": "closest", "height": 110 + 56 * len(rows)}
    xaxis = {"rangemode": "tozero", "ticksuffix": " %"}
    return chart(
        figure(
            data, "greedy accuracy", "", yaxis=yaxis | {"zeroline": False}, xaxis=xaxis, **layout
        )
    )


def _short(label: str) -> str:
    """A label of an axis breaks where the run's name ends."""
    return label.replace(": ", "<br>")


def histograms(series: Sequence[Series]) -> dict[Series, Chart]:
    """Share of the queries by how many of their N rollouts are right; a panel per series, the same
    scale on all.
    """
    found = {
        one: one.part("readiness")["accuracy"]["histogram"]
        for one in series
        if one.part("readiness")
    }
    shares = {
        one: [count / max(1, sum(counts)) for count in counts] for one, counts in found.items()
    }
    top = 100 * max((max(share) for share in shares.values()), default=0)
    charts = {}
    for one, counts in found.items():
        n = len(counts) - 1
        bars = {
            "type": "bar",
            "name": one.label,
            "x": [f"{right}/{n}" for right in range(n + 1)],
            "y": [tidy(100 * share) for share in shares[one]],
            "customdata": counts,
            "marker": {"color": [MUTED, *[one.color] * (n - 1), MUTED]},
            "hovertemplate": "%{x} right: %{customdata} queries, %{y:.1f} %<extra></extra>",
        }
        yaxis = {"range": [0, 1.08 * top], "ticksuffix": " %"}
        axis = {"type": "category", "tickangle": 0}
        charts[one] = chart(
            figure([bars], "rollouts right", "queries", yaxis=yaxis, xaxis=axis, bargap=0.12)
        )
    return charts


def curves(series: Sequence[Series]) -> tuple[Chart | None, dict[str, dict[str, str]]]:
    """Training curves, a variant per metric that any training logged, and the metrics by stage for
    the control.
    """
    variants: dict[str, Figure] = {}
    offered: dict[str, dict[str, str]] = {}
    for stage, names in METRICS.items():
        rows = {one: one.source.metrics(stage, one.arm) for one in series}
        for name, words in names.items():
            data = [trace for one in series for trace in _curve(one, rows[one], name)]
            if data:
                offered.setdefault(stage, {})[f"{stage}.{name}"] = words
                x = f"{stage.upper()} step"
                variants[f"{stage}.{name}"] = figure(
                    data, x, words.partition(" (")[0].partition(", mean")[0]
                )
    return ({"controls": ["metric"], "variants": variants} if variants else None), offered


def validations(series: Sequence[Series]) -> tuple[Chart | None, dict[str, str]]:
    """Curves of the validations while RL trained, a variant per figure with every set in it, and
    the figures in words.

    A line per arm and set: the color is the arm's, the dash the set's.
    """
    rows = {one: one.source.metrics("rl", one.arm) for one in series}
    found = dict.fromkeys(
        name for runs in rows.values() for run in runs for row in run for name in row
    )
    names = [name.split("/") for name in found if is_validation(name)]
    words = {
        figure: _VALIDATION.get(figure) or f"pass@{figure.rpartition('_')[2]}"
        for _, _, figure in names
    }
    order = sorted(
        words,
        key=lambda figure: (figure not in ("greedy",), figure in _VALIDATION, len(figure), figure),
    )
    sets = list(dict.fromkeys(name for _, name, _ in names))
    variants = {
        kind: figure(
            [
                line
                for one in series
                for number, name in enumerate(sets)
                for line in _validation(
                    one, rows[one], f"validation/{name}/{kind}", _DASHES[number % len(_DASHES)]
                )
            ],
            "RL step",
            words[kind].partition(",")[0],
            **(
                {}
                if kind in ("tokens", "failures")
                else {"yaxis": {"ticksuffix": " %", "rangemode": "tozero"}}
            ),
        )
        for kind in order
    }
    chosen = {kind: words[kind] for kind in order}
    return ({"controls": ["validation"], "variants": variants} if variants else None), chosen


def _validation(
    one: Series, runs: Sequence[Sequence[Mapping[str, Any]]], name: str, dash: str
) -> list[dict[str, Any]]:
    """One line: the mean over the seeds that have the step."""
    at: dict[int, list[float]] = {}
    for row in (row for rows in runs for row in rows if name in row):
        at.setdefault(row["step"], []).append(row[name])
    if not at:
        return []
    _, set_name, kind = name.split("/")
    scale = 1 if kind in ("tokens", "failures") else 100
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{one.label}, {set_name}",
            "x": sorted(at),
            "y": [tidy(scale * float(np.mean(at[step]))) for step in sorted(at)],
            "line": {"color": one.color, "width": 2, "dash": dash},
            "marker": {"color": one.color, "symbol": one.symbol, "size": 7},
        }
    ]


def _curve(
    one: Series, runs: Sequence[Sequence[Mapping[str, Any]]], name: str
) -> list[dict[str, Any]]:
    """A thin line per seed and a thick one: the moving average, over the seeds that got so far."""
    values = [
        [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
        for rows in runs
    ]
    values = [seed for seed in values if seed]
    if not values:
        return []
    line = {"color": one.color}
    group = {"type": "scatter", "mode": "lines", "legendgroup": one.label, "name": one.label}
    traces = []
    for number, seed in enumerate(values):
        kept = seed[:: max(1, -(-len(seed) // _MOST_POINTS))]
        traces.append(
            group
            | {
                "x": [step for step, _ in kept],
                "y": [tidy(value) for _, value in kept],
                "name": f"{one.label}, seed {number}",
                "line": line | {"width": 1},
                "opacity": 0.35,
                "showlegend": False,
                "hoverinfo": "skip",
            }
        )
    smooth = [moving_average(np.asarray([value for _, value in seed])) for seed in values]
    steps = [step for step, _ in max(values, key=len)]
    means = [
        float(np.mean([seed[place] for seed in smooth if place < len(seed)]))
        for place in range(len(steps))
    ]
    stride = max(1, -(-len(steps) // _MOST_POINTS))
    thick = {"x": steps[::stride], "y": [tidy(mean) for mean in means[::stride]]}
    return [*traces, group | thick | {"line": line | {"width": 2.5, "dash": one.dash}}]
