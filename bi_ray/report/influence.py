"""Charts of influence: by accuracy group, by behavior, all against all, and predicted against
realized.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bi_ray.report.charts import MUTED, Chart, Figure, Series, chart, errors, figure, tidy
from bi_ray.report.wording import small, triple

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
REALISED = {"odd": "half of ahead minus back (first order)", "step": "the step ahead alone"}
_REALISED_FIELDS = {"odd": ("odd", "odd_low", "odd_high"), "step": ("realized", "low", "high")}
_PARTS = {
    "dj": "all pairs",
    "without_self": "without the self term",
    "self_term": "self term alone",
}
_DIVERGING = [[0, "#0072B2"], [0.5, "#FFFFFF"], [1, "#D55E00"]]
_NO_PAIR = "rgba(130,140,150,0.35)"  # shows where a heat map has no value, in either theme
FEW_QUERIES = 5
_Z95 = 1.96  # two-sided 95 % point of the normal distribution
_SPREAD = 0.5  # of the distance of two groups, over which series stand side by side


def estimators(series: Sequence[Series]) -> dict[str, str]:
    """Those with which every measured series was measured, in words."""
    there = [one.part("readiness")["influence"] for one in _measured(series)]
    return {
        name: words
        for name, words in ESTIMATORS.items()
        if there and all(name in found for found in there)
    }


def by_group(series: Sequence[Series]) -> Chart | None:
    """K+, K- and dJ by accuracy group, with each estimator."""
    there = _measured(series)
    variants = {
        f"{estimator}/{quantity}": _grouped(there, estimator, quantity)
        for estimator in estimators(series)
        for quantity in QUANTITIES
    }
    if not variants:
        return None
    return {"controls": ["estimator", "quantity"], "variants": variants}


def _grouped(series: Sequence[Series], estimator: str, quantity: str) -> Figure:
    data = []
    for place, one in enumerate(series):
        groups = [
            g
            for g in one.part("readiness")["influence"][estimator]["groups"]
            if g[quantity] is not None
        ]
        x = [group["right"] + _shift(place, len(series)) for group in groups]
        data.append(
            _points(one, x, [group[quantity] for group in groups])
            | {"line": {"width": 1, "dash": one.dash}}
        )
        data[-1]["customdata"] = [[group["right"], group["queries"]] for group in groups]
        data[-1]["hovertemplate"] = "%{customdata[0]} right, %{customdata[1]} queries: %{y:.3g}"
        data[-1]["mode"] = "markers+lines"
        data[-1]["marker"]["symbol"] = [_symbol(one, group["queries"]) for group in groups]
    xaxis = _group_axis(max(_samples(one) for one in series))
    return figure(
        data, "rollouts right", QUANTITIES[quantity], xaxis=xaxis, yaxis={"zeroline": True}
    )


def by_behavior(series: Sequence[Series]) -> Chart | None:
    """DJ that the tokens of each behavior carry, with each estimator."""
    there = _measured(series)
    found = [rows for one in there for rows in one.part("readiness")["influence"].values()]
    names = list(dict.fromkeys(row["behavior"] for rows in found for row in rows["behaviors"]))
    variants = {}
    for estimator in estimators(series):
        for per in PER:
            data = []
            for place, one in enumerate(there):
                rows = one.part("readiness")["influence"][estimator]["behaviors"]
                x = [names.index(row["behavior"]) + _shift(place, len(there)) for row in rows]
                trace = _points(one, x, [row[per] for row in rows])
                trace["customdata"] = [[row["behavior"], row["tokens"]] for row in rows]
                trace["hovertemplate"] = "%{customdata[0]}, %{customdata[1]:,} tokens: %{y:.3g}"
                data.append(trace)
            xaxis = {
                "tickvals": list(range(len(names))),
                "ticktext": names,
                "range": [-0.5, len(names) - 0.5],
            }
            variants[f"{estimator}/{per}"] = figure(
                data, "", PER[per], xaxis=xaxis, yaxis={"zeroline": True}
            )
    return {"controls": ["estimator", "per"], "variants": variants} if variants else None


def all_against_all(series: Sequence[Series]) -> dict[Series, Chart]:
    """DJ with the queries' own rollouts in the target, without them, and what they alone give; a
    panel per series.
    """
    found = {one: one.part("readiness")["all_against_all"]["groups"] for one in _with_pairs(series)}
    values = [
        triple(group[part])[1:] for groups in found.values() for group in groups for part in _PARTS
    ]
    span = _same_scale([bound for pair in values for bound in pair])
    looks = {
        "dj": ("circle", 0.0),
        "without_self": ("diamond-open", -0.2),
        "self_term": ("x-thin", 0.2),
    }
    charts = {}
    for one, groups in found.items():
        data = []
        for part, name in _PARTS.items():
            symbol, shift = looks[part]
            color = MUTED if part == "self_term" else one.color
            trace = _points(
                one, [group["right"] + shift for group in groups], [group[part] for group in groups]
            )
            trace |= {
                "name": name,
                "marker": {"color": color, "symbol": symbol, "size": 8, "line": {"width": 2}},
            }
            trace["marker"]["line"]["color"] = color
            trace["error_y"] |= {"color": color}
            data.append(trace)
        axes = {"xaxis": _group_axis(_samples(one)), "yaxis": {"zeroline": True, "range": span}}
        charts[one] = chart(figure(data, "rollouts right", "dJ", **axes))
    return charts


def heat_maps(series: Sequence[Series]) -> dict[Series, Chart]:
    """Mean influence of a query of one accuracy group on a query of another; one color scale for
    all panels.
    """
    found = {
        one: one.part("readiness")["all_against_all"]["heat_map"] for one in _with_pairs(series)
    }
    every = [
        abs(v) for heat in found.values() for row in heat["values"] for v in row if v is not None
    ]
    most = max(every, default=0) or 1
    charts = {}
    for one, heat in found.items():
        names = [f"{right}/{_samples(one)}" for right in heat["groups"]]
        trace = {
            "type": "heatmap",
            "x": names,
            "y": names,
            "z": [[tidy(value) for value in row] for row in heat["values"]],
            "zmin": -most,
            "zmax": most,
            "colorscale": _DIVERGING,
            "xgap": 1,
            "ygap": 1,
            "hoverongaps": False,
            "hovertemplate": "training on %{x} right, effect on %{y} right: %{z:.3g}<extra></extra>",
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": ".2~g", "nticks": 5},
        }
        axis = {"type": "category", "showgrid": False, "tickangle": 0}
        heat_map = figure(
            [trace],
            "group trained on",
            "group it acts on",
            xaxis=axis,
            yaxis=axis,
            plot_bgcolor=_NO_PAIR,
        )
        charts[one] = chart(heat_map)
    return charts


def predicted_realized(series: Sequence[Series]) -> dict[Series, Chart]:
    """One real step per query: change of the expected reward, predicted (x) and realized (y) with
    its interval.
    """
    found = {
        one: one.part("realized") for one in series if (one.part("realized") or {}).get("points")
    }
    every = list(found.values())
    return {
        one: {
            "controls": ["realized"],
            "variants": {name: _steps(one, measured, name, every) for name in REALISED},
        }
        for one, measured in found.items()
    }


def _steps(one: Series, measured: Any, name: str, every: Sequence[Any]) -> Figure:
    """The steps of one series; ``every`` series' steps decide the scale."""
    value, lower, upper = _REALISED_FIELDS[name]
    across = _same_scale([row["predicted"] for other in every for row in other["points"]])
    floors = [sign * other["noise_floor"] for other in every for sign in (-1, 1)]
    up = _same_scale(
        [row[bound] for other in every for row in other["points"] for bound in (lower, upper)]
        + floors
    )
    rows, floor, (low, high) = measured["points"], measured["noise_floor"], across
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": one.label,
        "x": [tidy(row["predicted"]) for row in rows],
        "y": [tidy(row[value]) for row in rows],
        "error_y": errors([(row[value], row[lower], row[upper]) for row in rows])
        | {"color": one.color, "thickness": 1, "width": 0},
        "marker": {"color": one.color, "symbol": one.symbol, "size": 7},
        "opacity": 0.75,
        "customdata": [[row["query"], row["right"], row["of"], row["seed"]] for row in rows],
        "hovertemplate": "%{customdata[0]}, %{customdata[1]}/%{customdata[2]} right, seed %{customdata[3]}<br>"
        "predicted %{x:.3g}, realized %{y:.3g}<extra></extra>",
    }
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -floor, "y1": floor}
    line = {
        "type": "line",
        "x0": low,
        "x1": high,
        "y0": low,
        "y1": high,
        "line": {"color": MUTED, "dash": "dash"},
    }
    shapes = [
        band | {"fillcolor": MUTED, "opacity": 0.16, "line": {"width": 0}, "layer": "below"},
        line,
    ]
    axes = {"xaxis": {"zeroline": True, "range": across}, "yaxis": {"zeroline": True, "range": up}}
    return figure([trace], "predicted change of J", "realized change of J", shapes=shapes, **axes)


def during_rl(series: Sequence[Series]) -> Chart | None:
    """What was logged while RL trained: reward on the target set, its predicted and its realized
    change, dJ.
    """
    there = [(one, one.part("during_rl")) for one in series if one.part("during_rl")]
    if not there:
        return None
    variants = {
        "reward": figure([_reward(one, rows) for one, rows in there], "RL step", DURING["reward"]),
        "change": figure(
            [trace for one, rows in there for trace in _changes(one, rows)],
            "RL step",
            "change of J on the target set",
            yaxis={"zeroline": True},
        ),
        "groups": figure(
            [_mean_dj(one, rows) for one, rows in there],
            "RL step",
            "mean dJ of the step's queries",
            yaxis={"zeroline": True},
        ),
    }
    return {"controls": ["during"], "variants": variants}


def _reward(one: Series, rows: Sequence[Any]) -> dict[str, Any]:
    steps = sorted({row["step"] for row in rows})
    at = {step: [row for row in rows if row["step"] == step] for step in steps}
    means = [sum(row["target_reward"] for row in at[step]) / len(at[step]) for step in steps]
    half = [
        _Z95 * sum(row["target_se"] ** 2 for row in at[step]) ** 0.5 / len(at[step])
        for step in steps
    ]
    intervals = [(mean, mean - h, mean + h) for mean, h in zip(means, half, strict=True)]
    return _points(one, steps, intervals) | {"mode": "lines+markers", "line": {"dash": one.dash}}


def _changes(one: Series, rows: Sequence[Any]) -> list[dict[str, Any]]:
    traces = []
    for name, dash, symbol in (
        ("predicted", "dot", f"{one.symbol}-open"),
        ("realized", "solid", one.symbol),
    ):
        kept = [row for row in rows if row[name] is not None]
        noise = [_Z95 * (row["noise"] or 0.0) if name == "realized" else 0.0 for row in kept]
        intervals = [
            (row[name], row[name] - n, row[name] + n) for row, n in zip(kept, noise, strict=True)
        ]
        trace = _points(one, [row["step"] for row in kept], intervals)
        trace |= {"mode": "lines+markers" if len({row["seed"] for row in kept}) < 2 else "markers"}
        trace |= {"name": f"{one.label}, {name}", "line": {"dash": dash, "width": 1.5}}
        trace["marker"] |= {"symbol": symbol}
        traces.append(trace)
    return traces


def _mean_dj(one: Series, rows: Sequence[Any]) -> dict[str, Any]:
    """Mean over the queries of a step (and its seeds), each group by its number of queries."""
    steps = sorted({row["step"] for row in rows if row.get("groups")})
    means = []
    for step in steps:
        groups = [group for row in rows if row["step"] == step for group in row.get("groups") or []]
        queries = sum(group["queries"] for group in groups)
        means.append(
            sum(group["queries"] * triple(group["dj"])[0] for group in groups) / max(1, queries)
        )
    line = {"color": one.color, "dash": one.dash}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": one.label,
        "x": steps,
        "y": [tidy(mean) for mean in means],
        "line": line,
        "marker": {"color": one.color, "symbol": one.symbol, "size": 7},
    }


def _measured(series: Sequence[Series]) -> list[Series]:
    return [one for one in series if (one.part("readiness") or {}).get("influence")]


def _with_pairs(series: Sequence[Series]) -> list[Series]:
    return [one for one in series if (one.part("readiness") or {}).get("all_against_all")]


def _samples(one: Series) -> int:
    return int(one.part("readiness")["samples_per_prompt"])


def _symbol(one: Series, queries: int) -> str:
    """Hollow where too few queries stand behind a point for a bootstrap to say how sure it is."""
    return one.symbol if queries >= FEW_QUERIES else f"{one.symbol}-open"


def _shift(place: int, count: int) -> float:
    return (place - (count - 1) / 2) * _SPREAD / max(1, count)


def _group_axis(samples: int) -> dict[str, Any]:
    places = list(range(samples + 1))
    return {
        "tickvals": places,
        "ticktext": [f"{p}/{samples}" for p in places],
        "range": [-0.5, samples + 0.5],
    }


def _same_scale(values: Sequence[float]) -> list[float]:
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = 0.06 * (high - low) or 1.0
    return [low - margin, high + margin]


def _points(one: Series, x: Sequence[float], intervals: Sequence[Any]) -> dict[str, Any]:
    """Points with error bars in the looks of a series."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": one.label,
        "x": list(x),
        "y": [tidy(triple(interval)[0]) for interval in intervals],
        "error_y": errors(intervals) | {"color": one.color},
        "marker": {"color": one.color, "symbol": one.symbol, "size": 8},
    }


def correlation_text(measured: Any) -> str:
    """Correlations, noise floor and control of predicted against realized, in words."""
    parts = [
        f"first order: {_correlation(measured['correlation_odd'])}",
        f"step ahead: {_correlation(measured['correlation'])}",
        f"noise floor {small(measured['noise_floor'])}, step of norm {small(measured['step_norm'])}",
    ]
    controls = measured["controls"]
    predicted, realized = (
        sum(row[name] for row in controls) / len(controls) for name in ("predicted", "odd")
    )
    parts.append(
        f"control, along the target's own gradient: predicted {small(predicted)}, "
        f"realized to first order {small(realized)}"
    )
    return "; ".join(parts)


def _correlation(interval: Any) -> str:
    if interval is None or not math.isfinite(sum(triple(interval))):
        return "no correlation can be given"
    value, low, high = triple(interval)
    sure = "" if low > 0 or high < 0 else ", no more than chance"
    return f"correlation {small(value)} ({small(low)} to {small(high)}){sure}"
