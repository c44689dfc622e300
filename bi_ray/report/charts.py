"""Charts as plotly.js takes them: accuracy before and after RL, histograms, training curves.

A chart is ``{"controls": [...], "variants": {key: figure}}``: the page joins the values of its
controls with "/" into the key. Colors are those of the light theme; in the dark theme the page
replaces them by ``PALETTE``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bi_ray.intervals import Interval
from bi_ray.report.number_format import percent_range, points
from bi_ray.report.picture import COLORS, moving_average
from bi_ray.report.scores import StageSummary, TableRow
from bi_ray.report.series import DASHES, Series
from bi_ray.report.source import MetricsRow
from bi_ray.runs.metrics import is_validation

Json = dict[str, Any]
Figure = Json
Trace = Json
Chart = Json

MUTED = "#6B7785"
# as COLORS, on a dark background
_DARK = ("#4AA3DF", "#F0823F", "#2DBD91", "#DB93BD", "#E69F00", "#56B4E9", "#E6E9ED")
PALETTE = dict(zip(COLORS, _DARK, strict=True)) | {MUTED: "#93A0AE", "#FFFFFF": "#161C22"}
_MOST_POINTS = 400  # per curve; longer ones are thinned evenly
_DIGITS = 5

# Metrics in words, in the order of the page; other metrics of a training are not shown.
METRICS = {
    "rl": {
        "reward": "reward (mean over the step's samples)",
        "accuracy": "share of right answers",
        "informative_share": "informative share of the queries",
        "entropy": "entropy, nats per token",
        "response_tokens_mean": "response length, tokens",
        "mismatch_mean": "mismatch of sampler and learner, mean |log-probability difference|",
        "mismatch_max": "mismatch of sampler and learner, largest",
        "reflections_per_sample": "reflections per response",
        "analyses_per_sample": "analyses per response",
        "format_rate": "share with the right format",
        "trace_valid_rate": "share with a valid trace",
        "trace_progress": "needed quantities solved before the first wrong line, share",
        "truncated_rate": "share truncated",
        "kl": "KL to the SFT policy, nats per token",
        "clip_share": "share of tokens clipped",
        "effective_sample_share": "effective sample size of the importance weights, "
        "share of the tokens",
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
_NOT_SHARES = ("tokens", "failures")


def chart(figure: Figure) -> Chart:
    """A chart without controls."""
    return {"controls": [], "variants": {"": figure}}


def figure(data: Sequence[Trace], x: str, y: str, **layout: Any) -> Figure:
    """A figure with titles of its axes; ``xaxis`` and ``yaxis`` add to them."""
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name in axes:
        axes[name] |= layout.pop(name, {})
    return {"data": list(data), "layout": {**axes, **layout}}


def errors(intervals: Sequence[Interval], scale: float = 1) -> Json:
    """The error bars of intervals."""
    values, lows, highs = np.reshape(intervals, (-1, 3)).T
    return {
        "type": "data",
        "symmetric": False,
        "array": tidy(scale * (highs - values)),
        "arrayminus": tidy(scale * (values - lows)),
        "thickness": 1.5,
        "width": 3,
    }


def tidy(values: Iterable[float | None]) -> list[float | None]:
    """Numbers in as many digits as a chart needs; None if they are not finite."""
    tidied: list[float | None] = []
    for value in values:
        if value is None or not math.isfinite(value):
            tidied.append(None)
        else:
            tidied.append(float(f"{value:.{_DIGITS}g}"))
    return tidied


def gains(series: Sequence[Series]) -> Chart | None:
    """Accuracy before (hollow) and after RL (filled), by set and series."""
    rows: list[tuple[Series, TableRow]] = []
    for one in series:
        rows += [(one, row) for row in one.rows]
    if not rows:
        return None
    sets = list(dict.fromkeys(row.set for _, row in rows))
    rows.sort(key=lambda pair: (sets.index(pair[1].set), pair[0].number))
    data: list[Trace] = []
    ticks: list[float] = []
    labels: list[str] = []
    for one, row in rows:
        y = -len(ticks) - 0.6 * sets.index(row.set)
        ticks.append(y)
        series_label = one.label.replace(": ", "<br>")
        labels.append(f"{series_label}<br>{row.set}")
        data.append(_accuracy(one, row, "SFT", row.sft, y + 0.16))
        if row.rl:
            data.append(_accuracy(one, row, "RL", row.rl, y - 0.16))
    yaxis = {
        "tickvals": ticks,
        "ticktext": labels,
        "showgrid": False,
        "range": [ticks[-1] - 0.8, 0.8],
        "zeroline": False,
    }
    accuracies = figure(
        data,
        "greedy accuracy",
        "",
        yaxis=yaxis,
        xaxis={"rangemode": "tozero", "ticksuffix": " %"},
        showlegend=False,
        hovermode="closest",
        height=110 + 56 * len(rows),
    )
    return chart(accuracies)


def _accuracy(one: Series, row: TableRow, stage: str, summary: StageSummary, y: float) -> Trace:
    """One point, hollow after SFT."""
    value = summary.accuracy.value
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{one.label}, {row.set}, after {stage}",
        "x": tidy([100 * value]),
        "y": [y],
        "error_x": errors([summary.accuracy], 100) | {"color": one.color},
        "marker": {
            "color": one.color,
            "symbol": f"{one.symbol}-open" if stage == "SFT" else one.symbol,
            "size": 10,
            "line": {"width": 2, "color": one.color},
        },
        "hovertemplate": f"{points(value)} % ({percent_range(summary.accuracy)})",
    }


def histograms(series: Sequence[Series]) -> dict[Series, Chart]:
    """Share of the queries by how many of their N rollouts are right.

    One panel per series, all with the same scale.
    """
    counts_of: dict[Series, list[int]] = {}
    top = 0.0
    for one in series:
        if one.readiness:
            counts = one.readiness.accuracy.histogram
            counts_of[one] = counts
            top = max(top, 100 * (max(counts) / max(1, sum(counts))))
    return {one: chart(_histogram(one, counts, top)) for one, counts in counts_of.items()}


def _histogram(one: Series, counts: Sequence[int], top: float) -> Figure:
    n = len(counts) - 1
    total = max(1, sum(counts))
    bars = {
        "type": "bar",
        "name": one.label,
        "x": [f"{right}/{n}" for right in range(n + 1)],
        "y": tidy(100 * (np.asarray(counts) / total)),
        "customdata": counts,
        "marker": {"color": [MUTED, *[one.color] * (n - 1), MUTED]},
        "hovertemplate": "%{x} right: %{customdata} queries, %{y:.1f} %<extra></extra>",
    }
    return figure(
        [bars],
        "rollouts right",
        "queries",
        yaxis={"range": [0, 1.08 * top], "ticksuffix": " %"},
        xaxis={"type": "category", "tickangle": 0},
        bargap=0.12,
    )


def curves(series: Sequence[Series]) -> tuple[Chart | None, dict[str, dict[str, str]]]:
    """Training curves, a variant per metric that any training logged.

    Returns:
        The chart, and the metrics in words by stage and control value.
    """
    variants: dict[str, Figure] = {}
    offered: dict[str, dict[str, str]] = {}
    for stage, names in METRICS.items():
        rows = {one: one.source.metrics(stage, one.arm) for one in series}
        for name, words in names.items():
            data: list[Trace] = []
            for one in series:
                data += _curve(one, rows[one], name)
            if data:
                offered.setdefault(stage, {})[f"{stage}.{name}"] = words
                y = words.partition(" (")[0].partition(", mean")[0]
                variants[f"{stage}.{name}"] = figure(data, f"{stage.upper()} step", y)
    if not variants:
        return None, offered
    return {"controls": ["metric"], "variants": variants}, offered


def _curve(one: Series, runs: Sequence[Sequence[MetricsRow]], name: str) -> list[Trace]:
    """A thin line per seed, and the moving average over the seeds that got so far."""
    by_seed = []
    for rows in runs:
        logged = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
        if logged:
            by_seed.append(logged)
    if not by_seed:
        return []
    thin = [_thin_line(one, number, logged) for number, logged in enumerate(by_seed)]
    return [*thin, _average(one, by_seed)]


Points = Sequence[tuple[int, float]]  # step and value


def _thin_line(one: Series, number: int, logged: Points) -> Trace:
    steps, values = zip(*logged[:: _stride(len(logged))], strict=True)
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": one.label,
        "name": f"{one.label}, seed {number}",
        "x": steps,
        "y": tidy(values),
        "line": {"color": one.color, "width": 1},
        "opacity": 0.35,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _average(one: Series, by_seed: Sequence[Points]) -> Trace:
    smooth = []
    for logged in by_seed:
        _, logged_values = zip(*logged, strict=True)
        smooth.append(moving_average(np.asarray(logged_values)))
    steps = [step for step, _ in max(by_seed, key=len)]
    means = []
    for position in range(len(steps)):
        reached = [values[position] for values in smooth if position < len(values)]
        means.append(float(np.mean(reached)))
    stride = _stride(len(steps))
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": one.label,
        "name": one.label,
        "x": steps[::stride],
        "y": tidy(means[::stride]),
        "line": {"color": one.color, "width": 2.5, "dash": one.dash},
    }


def _stride(length: int) -> int:
    """Show every how many-th point of a curve."""
    return max(1, math.ceil(length / _MOST_POINTS))


class _Validation(NamedTuple):
    """A line of the validation chart: a figure on a set, in the looks of a series."""

    one: Series
    set: str
    figure: str
    dash: str


def validations(series: Sequence[Series]) -> tuple[Chart | None, dict[str, str]]:
    """Curves of the validations during RL, a variant per figure with every set in it.

    A line per arm and set: the color is the arm's, the dash the set's.

    Returns:
        The chart, and the figures in words.
    """
    runs = {one: one.source.metrics("rl", one.arm) for one in series}
    sets, figures = _validated(list(runs.values()))
    variants = {}
    for name, words in figures.items():
        data: list[Trace] = []
        for one in series:
            for number, set_name in enumerate(sets):
                line = _Validation(one, set_name, name, DASHES[number % len(DASHES)])
                data += _validation_line(line, runs[one])
        layout: Json = {}
        if name not in _NOT_SHARES:
            layout["yaxis"] = {"ticksuffix": " %", "rangemode": "tozero"}
        variants[name] = figure(data, "RL step", words.partition(",")[0], **layout)
    if not variants:
        return None, figures
    return {"controls": ["validation"], "variants": variants}, figures


def _validated(
    trainings: Sequence[Sequence[Sequence[MetricsRow]]],
) -> tuple[list[str], dict[str, str]]:
    """The sets that were validated, and the figures in words, in the order of the page."""
    names: dict[str, None] = {}  # in the order in which they come
    for runs in trainings:
        for rows in runs:
            for row in rows:
                names.update(dict.fromkeys(filter(is_validation, row)))
    sets: dict[str, None] = {}
    words = {}
    for name in names:
        _, set_name, kind = name.split("/")
        sets[set_name] = None
        words[kind] = _VALIDATION.get(kind) or f"pass@{kind.rpartition('_')[2]}"
    # greedy accuracy first, then pass@k by k, then the others
    order = sorted(words, key=lambda kind: (kind != "greedy", kind in _VALIDATION, len(kind), kind))
    return list(sets), {kind: words[kind] for kind in order}


def _validation_line(line: _Validation, runs: Sequence[Sequence[MetricsRow]]) -> list[Trace]:
    """The mean over the seeds that have the step; nothing if no step has been validated."""
    name = f"validation/{line.set}/{line.figure}"
    by_step: dict[int, list[float]] = {}
    for rows in runs:
        for row in rows:
            if name in row:
                by_step.setdefault(row["step"], []).append(row[name])
    if not by_step:
        return []
    scale = 1 if line.figure in _NOT_SHARES else 100
    steps = sorted(by_step)
    color = line.one.color
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{line.one.label}, {line.set}",
        "x": steps,
        "y": tidy(scale * float(np.mean(by_step[step])) for step in steps),
        "line": {"color": color, "width": 2, "dash": line.dash},
        "marker": {"color": color, "symbol": line.one.symbol, "size": 7},
    }
    return [trace]
