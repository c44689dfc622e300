"""Charts of influence: by accuracy group and behavior, all against all, predicted and realized."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bi_ray.intervals import Interval
from bi_ray.readiness.summary import (
    AccuracyGroup,
    BehaviorInfluence,
    HeatMap,
    PairsGroup,
    PairsSummary,
    ReadinessSummary,
)
from bi_ray.report.charts import MUTED, Chart, Figure, Json, Trace, chart, errors, figure, tidy
from bi_ray.report.number_format import small, small_interval
from bi_ray.report.readiness import Analysis, RealizedSummary
from bi_ray.report.series import Series

ESTIMATORS = {"sum": "token sums (Eq. 5)", "mean": "means per response"}
QUANTITIES = {
    "dj": "dJ",
    "k_plus": "K+ (right rollouts)",
    "k_minus": "K\N{MINUS SIGN} (wrong rollouts)",
}
PER = {"dj": "dJ, all tokens of a behavior", "dj_per_token": "dJ per token"}
DURING = {
    "reward": "reward on the target set",
    "change": "its change, predicted and realized",
    "groups": "dJ of the step's queries",
}
REALIZED = {"odd": "half of ahead minus back (first order)", "step": "the step ahead alone"}
_PARTS = {
    "dj": "all pairs",
    "without_self": "without the self term",
    "self_term": "self term alone",
}
_PART_LOOKS = {  # symbol and shift along x
    "dj": ("circle", 0.0),
    "without_self": ("diamond-open", -0.2),
    "self_term": ("x-thin", 0.2),
}
_DIVERGING = [[0, "#0072B2"], [0.5, "#FFFFFF"], [1, "#D55E00"]]
_NO_PAIR = "rgba(130,140,150,0.35)"  # shows where a heat map has no value, in either theme
FEW_QUERIES = 5
_SPREAD = 0.5  # share of the distance between two groups over which series are spread
_ZEROLINE = {"zeroline": True}


def estimators(series: Sequence[Series]) -> dict[str, str]:
    """The token scales with which every measured series was measured, in words."""
    measured = _measured(series).values()
    if not measured:
        return {}
    common = {}
    for name, words in ESTIMATORS.items():
        if all(name in readiness.influence for readiness in measured):
            common[name] = words
    return common


def _measured(series: Sequence[Series]) -> dict[Series, ReadinessSummary]:
    measured = {}
    for one in series:
        if one.readiness:
            measured[one] = one.readiness
    return measured


def _with_pairs(series: Sequence[Series]) -> dict[Series, PairsSummary]:
    pairs = {}
    for one, readiness in _measured(series).items():
        if readiness.all_against_all:
            pairs[one] = readiness.all_against_all
    return pairs


def by_group(series: Sequence[Series]) -> Chart | None:
    """K+, K- and dJ by accuracy group, with each estimator."""
    measured = _measured(series)
    variants = {}
    for estimator in estimators(series):
        for quantity in QUANTITIES:
            variants[f"{estimator}/{quantity}"] = _grouped(measured, estimator, quantity)
    if not variants:
        return None
    return {"controls": ["estimator", "quantity"], "variants": variants}


def _grouped(measured: dict[Series, ReadinessSummary], estimator: str, quantity: str) -> Figure:
    data = []
    samples = 0
    for number, (one, readiness) in enumerate(measured.items()):
        groups = readiness.influence[estimator].groups
        data.append(_group_trace(one, groups, quantity, _shift(number, len(measured))))
        samples = max(samples, readiness.samples_per_prompt)
    return figure(
        data,
        "rollouts right",
        QUANTITIES[quantity],
        xaxis=_group_axis(samples),
        yaxis=_ZEROLINE,
    )


def _group_trace(
    one: Series, groups: Sequence[AccuracyGroup], quantity: str, shift: float
) -> Trace:
    x = []
    intervals = []
    customdata = []
    symbols = []
    for group in groups:
        interval: Interval | None = getattr(group, quantity)
        if interval is None:
            continue
        x.append(group.right + shift)
        intervals.append(interval)
        customdata.append([group.right, group.queries])
        symbols.append(_symbol(one, group.queries))
    trace = _points(one, x, intervals)
    trace["line"] = {"width": 1, "dash": one.dash}
    trace["customdata"] = customdata
    trace["hovertemplate"] = "%{customdata[0]} right, %{customdata[1]} queries: %{y:.3g}"
    trace["mode"] = "markers+lines"
    trace["marker"]["symbol"] = symbols
    return trace


def by_behavior(series: Sequence[Series]) -> Chart | None:
    """The part of dJ that the tokens of each behavior carry, with each estimator."""
    measured = _measured(series)
    names = _behaviors(measured)
    variants = {}
    for estimator in estimators(series):
        for per in PER:
            variants[f"{estimator}/{per}"] = _by_behavior(measured, estimator, per, names)
    if not variants:
        return None
    return {"controls": ["estimator", "per"], "variants": variants}


def _behaviors(measured: dict[Series, ReadinessSummary]) -> list[str]:
    """The names of all behaviors, in the order in which they come."""
    names: dict[str, None] = {}
    for readiness in measured.values():
        for influence in readiness.influence.values():
            for row in influence.behaviors:
                names[row.behavior] = None
    return list(names)


def _by_behavior(
    measured: dict[Series, ReadinessSummary], estimator: str, per: str, names: Sequence[str]
) -> Figure:
    data = []
    for number, (one, readiness) in enumerate(measured.items()):
        rows = readiness.influence[estimator].behaviors
        data.append(_behavior_trace(one, rows, per, names, _shift(number, len(measured))))
    xaxis = {
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": [-0.5, len(names) - 0.5],
    }
    return figure(data, "", PER[per], xaxis=xaxis, yaxis=_ZEROLINE)


def _behavior_trace(
    one: Series, rows: Sequence[BehaviorInfluence], per: str, names: Sequence[str], shift: float
) -> Trace:
    x = []
    intervals: list[Interval] = []
    customdata = []
    for row in rows:
        x.append(names.index(row.behavior) + shift)
        intervals.append(getattr(row, per))
        customdata.append([row.behavior, row.tokens])
    trace = _points(one, x, intervals)
    trace["customdata"] = customdata
    trace["hovertemplate"] = "%{customdata[0]}, %{customdata[1]:,} tokens: %{y:.3g}"
    return trace


def all_against_all(series: Sequence[Series]) -> dict[Series, Chart]:
    """DJ with the queries' own rollouts in the target, without them, and what they alone give.

    One panel per series, all with the same scale.
    """
    pairs = _with_pairs(series)
    bounds: list[float] = []
    for summary in pairs.values():
        for part in _PARTS:
            bounds += _bounds(_part(summary.groups, part))
    scale = _same_scale(bounds)
    charts = {}
    for one, summary in pairs.items():
        data = [_part_trace(one, summary.groups, part) for part in _PARTS]
        xaxis = _group_axis(_samples(one))
        yaxis = {"zeroline": True, "range": scale}
        charts[one] = chart(figure(data, "rollouts right", "dJ", xaxis=xaxis, yaxis=yaxis))
    return charts


def _part(groups: Sequence[PairsGroup], part: str) -> list[Interval]:
    return [getattr(group, part) for group in groups]


def _part_trace(one: Series, groups: Sequence[PairsGroup], part: str) -> Trace:
    symbol, shift = _PART_LOOKS[part]
    color = MUTED if part == "self_term" else one.color
    x = [group.right + shift for group in groups]
    trace = _points(one, x, _part(groups, part))
    trace["name"] = _PARTS[part]
    trace["marker"] = {
        "color": color,
        "symbol": symbol,
        "size": 8,
        "line": {"width": 2, "color": color},
    }
    trace["error_y"]["color"] = color
    return trace


def heat_maps(series: Sequence[Series]) -> dict[Series, Chart]:
    """Mean influence of a query of one accuracy group on a query of another.

    One panel per series, all with the same color scale.
    """
    pairs = _with_pairs(series)
    largest = 0.0
    for summary in pairs.values():
        values = np.array(summary.heat_map.values, dtype=np.float64)  # None becomes nan
        largest = max(largest, float(np.nanmax(np.abs(values), initial=0.0)))
    charts = {}
    for one, summary in pairs.items():
        charts[one] = chart(_heat_map(one, summary.heat_map, largest or 1))
    return charts


def _heat_map(one: Series, heat_map: HeatMap, largest: float) -> Figure:
    names = [f"{right}/{_samples(one)}" for right in heat_map.groups]
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": list(map(tidy, heat_map.values)),
        "zmin": -largest,
        "zmax": largest,
        "colorscale": _DIVERGING,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": "training on %{x} right, effect on %{y} right: %{z:.3g}<extra></extra>",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": ".2~g", "nticks": 5},
    }
    axis = {"type": "category", "showgrid": False, "tickangle": 0}
    return figure(
        [trace],
        "group trained on",
        "group it acts on",
        xaxis=axis,
        yaxis=axis,
        plot_bgcolor=_NO_PAIR,
    )


def predicted_realized(series: Sequence[Series]) -> dict[Series, Chart]:
    """One real step per query: change of the expected reward, predicted (x) and realized (y)."""
    panels: dict[Series, Chart] = {}
    predicted: list[float] = []
    bounds: dict[str, list[float]] = {name: [] for name in REALIZED}
    for one in series:
        if not one.realized:
            continue
        panels[one] = {"controls": ["realized"], "variants": {}}
        noise = one.realized.noise_floor
        predicted += [point.predicted for point in one.realized.points]
        for name in REALIZED:
            bounds[name] += [-noise, noise, *_bounds(_realized(one.realized, name))]
    for one, panel in panels.items():
        for name in REALIZED:
            across, up = _same_scale(predicted), _same_scale(bounds[name])
            panel["variants"][name] = _steps(one, name, across, up)
    return panels


def _realized(summary: RealizedSummary, name: str) -> list[Interval]:
    """The realized change of every point: to first order (odd), or of the step ahead alone."""
    return [getattr(point, f"{name}_interval") for point in summary.points]


def _steps(one: Series, name: str, across: Sequence[float], up: Sequence[float]) -> Figure:
    """The steps of one series, with the diagonal and the band of noise."""
    assert one.realized
    noise = one.realized.noise_floor
    low, high = across
    diagonal = {
        "type": "line",
        "x0": low,
        "x1": high,
        "y0": low,
        "y1": high,
        "line": {"color": MUTED, "dash": "dash"},
    }
    band = {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": -noise,
        "y1": noise,
        "fillcolor": MUTED,
        "opacity": 0.16,
        "line": {"width": 0},
        "layer": "below",
    }
    return figure(
        [_step_trace(one, one.realized, name)],
        "predicted change of J",
        "realized change of J",
        shapes=[band, diagonal],
        xaxis={"zeroline": True, "range": across},
        yaxis={"zeroline": True, "range": up},
    )


def _step_trace(one: Series, realized: RealizedSummary, name: str) -> Trace:
    intervals = _realized(realized, name)
    predicted = []
    customdata = []
    for step in realized.points:
        predicted.append(step.predicted)
        customdata.append([step.query, step.right, step.of, step.seed])
    return {
        "type": "scatter",
        "mode": "markers",
        "name": one.label,
        "x": tidy(predicted),
        "y": tidy(interval.value for interval in intervals),
        "error_y": errors(intervals) | {"color": one.color, "thickness": 1, "width": 0},
        "marker": {"color": one.color, "symbol": one.symbol, "size": 7},
        "opacity": 0.75,
        "customdata": customdata,
        "hovertemplate": "%{customdata[0]}, %{customdata[1]}/%{customdata[2]} right, "
        "seed %{customdata[3]}<br>predicted %{x:.3g}, realized %{y:.3g}<extra></extra>",
    }


def during_rl(series: Sequence[Series]) -> Chart | None:
    """Measured during RL: reward on the target set, its predicted and realized change, and dJ."""
    watched = [one for one in series if one.analyses]
    if not watched:
        return None
    changes: list[Trace] = []
    for one in watched:
        changes += _changes(one)
    variants = {
        "reward": figure([_reward(one) for one in watched], "RL step", DURING["reward"]),
        "change": figure(changes, "RL step", "change of J on the target set", yaxis=_ZEROLINE),
        "groups": figure(
            [_mean_dj(one) for one in watched],
            "RL step",
            "mean dJ of the step's queries",
            yaxis=_ZEROLINE,
        ),
    }
    return {"controls": ["during"], "variants": variants}


def _by_step(analyses: Sequence[Analysis]) -> dict[int, list[Analysis]]:
    """The analyses of all seeds, by step in rising order."""
    by_step = defaultdict(list)
    for analysis in sorted(analyses, key=lambda analysis: analysis.step):
        by_step[analysis.step].append(analysis)
    return by_step


def _reward(one: Series) -> Trace:
    """Mean over the seeds, each with its own standard error."""
    by_step = _by_step(one.analyses)
    intervals = []
    for analyses in by_step.values():
        reward = sum(analysis.target_reward for analysis in analyses) / len(analyses)
        squares = sum(analysis.target_se**2 for analysis in analyses)
        intervals.append(Interval.of_error(reward, squares**0.5 / len(analyses)))
    trace = _points(one, list(by_step), intervals)
    return trace | {"mode": "lines+markers", "line": {"dash": one.dash}}


def _changes(one: Series) -> list[Trace]:
    """Predicted (hollow, dotted) and realized change; a line only if there is one seed."""
    predicted_at = []
    predicted = []
    realized_at = []
    realized = []
    for analysis in one.analyses:
        if analysis.predicted is not None:
            predicted_at.append(analysis)
            predicted.append(Interval.of_error(analysis.predicted, 0.0))
        if analysis.realized is not None:
            realized_at.append(analysis)
            realized.append(Interval.of_error(analysis.realized, analysis.noise or 0.0))
    return [
        _change(one, "predicted", predicted_at, predicted, "dot", f"{one.symbol}-open"),
        _change(one, "realized", realized_at, realized, "solid", one.symbol),
    ]


def _change(
    one: Series,
    name: str,
    analyses: Sequence[Analysis],
    intervals: Sequence[Interval],
    dash: str,
    symbol: str,
) -> Trace:
    seeds = {analysis.seed for analysis in analyses}
    trace = _points(one, [analysis.step for analysis in analyses], intervals)
    trace["mode"] = "lines+markers" if len(seeds) < 2 else "markers"
    trace["name"] = f"{one.label}, {name}"
    trace["line"] = {"dash": dash, "width": 1.5}
    trace["marker"]["symbol"] = symbol
    return trace


def _mean_dj(one: Series) -> Trace:
    """Mean over the queries of a step and its seeds."""
    means: dict[int, float] = {}
    for step, analyses in _by_step(one.analyses).items():
        queries = 0
        total = 0.0
        for analysis in analyses:
            for group in analysis.groups:
                if group.dj is not None:
                    queries += group.queries
                    total += group.queries * group.dj.value
        if queries:
            means[step] = total / queries
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": one.label,
        "x": list(means),
        "y": tidy(means.values()),
        "line": {"color": one.color, "dash": one.dash},
        "marker": {"color": one.color, "symbol": one.symbol, "size": 7},
    }


def _samples(one: Series) -> int:
    """Number of rollouts per query."""
    return one.readiness.samples_per_prompt if one.readiness else 0


def _symbol(one: Series, queries: int) -> str:
    """Hollow if a point has too few queries for a bootstrap to tell how certain it is."""
    return one.symbol if queries >= FEW_QUERIES else f"{one.symbol}-open"


def _shift(number: int, count: int) -> float:
    """Where a series is drawn beside the others, along x."""
    return (number - (count - 1) / 2) * _SPREAD / max(1, count)


def _group_axis(samples: int) -> Json:
    ticks = list(range(samples + 1))
    return {
        "tickvals": ticks,
        "ticktext": [f"{right}/{samples}" for right in ticks],
        "range": [-0.5, samples + 0.5],
    }


def _bounds(intervals: Sequence[Interval]) -> list[float]:
    bounds: list[float] = []
    for interval in intervals:
        bounds += [interval.low, interval.high]
    return bounds


def _same_scale(values: Sequence[float]) -> list[float]:
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = 0.06 * (high - low) or 1.0
    return [low - margin, high + margin]


def _points(one: Series, x: Sequence[float], intervals: Sequence[Interval]) -> Trace:
    """Points with error bars in the looks of a series."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": one.label,
        "x": list(x),
        "y": tidy(interval.value for interval in intervals),
        "error_y": errors(intervals) | {"color": one.color},
        "marker": {"color": one.color, "symbol": one.symbol, "size": 8},
    }


def correlation_text(realized: RealizedSummary) -> str:
    """Correlations, noise floor and control of predicted against realized, in words."""
    controls = realized.controls
    predicted = sum(step.predicted for step in controls) / len(controls)
    to_first_order = sum(step.odd for step in controls) / len(controls)
    parts = [
        f"first order: {_correlation(realized.correlation_odd)}",
        f"step ahead: {_correlation(realized.correlation)}",
        f"noise floor {small(realized.noise_floor)}, step of norm {small(realized.step_norm)}",
        f"control, along the target's own gradient: predicted {small(predicted)}, "
        f"realized to first order {small(to_first_order)}",
    ]
    return "; ".join(parts)


def _correlation(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(sum(interval)):
        return "too few or equal points for a correlation"
    certainty = "" if interval.sign else ", not more than chance"
    return f"correlation {small_interval(interval)}{certainty}"
