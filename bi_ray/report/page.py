"""``report.html``: one file for a browser, without a network, of one run or of several beside one
another.

Scripts run only with the hashes that the page itself names (Content-Security-Policy), and nothing
may be loaded: what a model wrote is text and stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bi_ray.files.atomic import write_text
from bi_ray.report import charts, influence, wording
from bi_ray.report.charts import Chart, Series, all_series
from bi_ray.report.samples import BEHAVIORS, QUOTAS, behaviors_per_response, collect_samples
from bi_ray.report.source import STAGES, Source

_TEMPLATES = Path(__file__).parent / "templates"
Json = dict[str, Any]


def write_page(path: Path, sources: Sequence[Source]) -> None:
    """Write the page; it appears whole.

    Args:
        path: the file.
        sources: one run or study, or several to compare.
    """
    text = render_page(sources)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def render_page(sources: Sequence[Source]) -> str:
    """The page's text."""
    sources = [_as_json(source) for source in sources]
    series = all_series(sources)
    curves, metrics = charts.curves(series)
    validations, validated = charts.validations(series)
    panels: dict[str, dict[Series, Chart]] = {
        "histogram": charts.histograms(series),
        "pairs": influence.all_against_all(series),
        "heat": influence.heat_maps(series),
        "realized": influence.predicted_realized(series),
    }
    single: dict[str, Chart | None] = {
        "gains": charts.gains(series),
        "groups": influence.by_group(series),
        "behaviors": influence.by_behavior(series),
        "during": influence.during_rl(series),
        "curves": curves,
        "validation": validations,
    }
    found = {name: chart for name, chart in single.items() if chart}
    found |= {
        f"{name}-{one.number}": chart
        for name, panel in panels.items()
        for one, chart in panel.items()
    }
    book = collect_samples(series)
    payload = {"charts": found, "palette": charts.PALETTE, **book}
    scripts = [
        _source_of(get_plotlyjs()),
        _source_of((_TEMPLATES / "page.js").read_text(encoding="utf-8")),
    ]
    environment = Environment(
        loader=PackageLoader("bi_ray.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        sources=sources,
        series=series,
        charts=found,
        panels=panels,
        metrics=metrics,
        validated=validated,
        rows=_rows(series),
        side_figures=_side_figures(series),
        offered=_offered(book),
        behaviors=list(BEHAVIORS),
        policy="; ".join(
            [
                "default-src 'none'",
                "script-src " + " ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
                "style-src 'unsafe-inline'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        payload=Markup(_data(payload)),
        configurations={source.label: _configuration(source) for source in sources},
        quotas=QUOTAS,
        influence=influence,
        wording=wording,
    )


def _as_json(source: Source) -> Source:
    """The source with its summary as a file would give it back: lists for tuples, text for keys."""
    return Source(source.label, source.config, source.runs, json.loads(json.dumps(source.summary)))


def _source_of(script: str) -> str:
    """A script as a browser reads it from a page: it makes one line end of every kind, which the
    hash has to match.
    """
    script = script.replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in script.lower(), "a script that ends itself cannot stand in a page"
    return script


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _data(payload: Json) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _configuration(source: Source) -> str:
    return yaml.safe_dump(source.config.model_dump(mode="json"), sort_keys=False)


def _rows(series: Sequence[Series]) -> list[Json]:
    """Rows of the table, of every series, with the behaviors per response that the samples show."""
    return [
        row
        | {
            "series": one,
            "behaviors": {
                stage: behaviors_per_response(one, folder, row["set"])
                for folder, stage in STAGES.items()
            },
        }
        for one in series
        for row in one.source.summary["table"]
        if row["arm"] == one.arm
    ]


def _side_figures(series: Sequence[Series]) -> list[Json]:
    """What was measured beside accuracy before RL: name, definition and a cell (value, range) per
    series.
    """
    found = [one.part("readiness") for one in series]
    if not any(found):
        return []
    accuracy = [(one or {}).get("accuracy") or {} for one in found]

    def interval(name: str, form: Any, bounds: Any) -> list[Json | None]:
        entries = [entry.get(name) for entry in accuracy]
        return [
            entry and {"value": form(entry["value"]), "range": bounds(entry)} for entry in entries
        ]

    def share(name: str) -> list[Json | None]:
        return [
            {"value": f"{wording.points(e[name])} %"} if e.get(name) is not None else None
            for e in accuracy
        ]

    def number(name: str, key: str) -> list[Json | None]:
        parts = [(entry.get(name) or {}).get(key) for entry in accuracy]
        return [
            part if part is None else {"value": wording.small(part["value"]), "range": wording.small_range(part)}
            if isinstance(part, dict) else {"value": f"{part:.2f}"}
            for part in parts
        ]  # fmt: skip

    def as_percent(value: float) -> str:
        return f"{wording.points(value)} %"

    small = wording.small, wording.small_range
    rows: list[tuple[str, str, list[Json | None]]] = [
        (
            "informative share",
            "queries with 0 < right < N",
            interval("informative", as_percent, wording.percent_range),
        ),
        ("signal", "mean of sqrt(a(1 - a)), a = right / N", interval("signal", *small)),
    ]
    passes = list(dict.fromkeys(k for entry in accuracy for k in entry.get("pass_at", {})))
    rows += [
        (f"pass@{k}", "unbiased estimate", [
            {"value": f"{wording.points(entry['pass_at'][k])} %"} if k in entry.get("pass_at", {}) else None
            for entry in accuracy
        ])
        for k in passes
    ]  # fmt: skip
    rows.append(("entropy", "nats per token, on its own rollouts", interval("entropy", *small)))
    texts = list(dict.fromkeys(name for entry in accuracy for name in entry.get("perplexity", {})))
    rows += [
        (f"perplexity, {name}", "exp of the mean loss per token", number("perplexity", name))
        for name in texts
    ]
    rows.append(("response length", "tokens", interval("response_tokens", *small)))
    rows += [
        ("truncated", "ended at the length limit", share("truncated")),
        ("right format", "one chain of thought, one answer", share("format_right")),
        ("valid trace", "every line right", share("trace_valid")),
    ]
    rows += [(name, "per response", number("behaviors", name)) for name in BEHAVIORS]
    return [
        {"name": name, "definition": words, "cells": cells}
        for name, words, cells in rows
        if any(cells)
    ]


def _offered(book: dict[str, list[Json]]) -> Json:
    """The values that the filters offer, by name: those that a sample has."""
    samples = [book["cells"][sample["cell"]] | sample for sample in book["samples"]]
    names = ("run", "arm", "set", "stage", "mode", "seed")
    return {name: list(dict.fromkeys(sample[name] for sample in samples)) for name in names}
