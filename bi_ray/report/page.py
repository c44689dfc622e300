"""``report.html``: one file for a browser, without a network, of one run or several side by side.

Only scripts whose hashes the page itself names can run (Content-Security-Policy), and nothing can
be loaded: whatever a model wrote is text and stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bi_ray.files.atomic import write_text
from bi_ray.report import charts, influence, number_format, sentences
from bi_ray.report.before_rl import lines_before_rl
from bi_ray.report.charts import Chart
from bi_ray.report.samples import QUOTAS, Samples, behaviors_per_response, collect_samples
from bi_ray.report.scores import TableRow
from bi_ray.report.series import Series, all_series
from bi_ray.report.source import Source
from bi_ray.report.summary import EVALUATIONS
from bi_ray.report.tables import extreme_ks
from bi_ray.verification.verdicts import BEHAVIOR_FIELDS

_TEMPLATES = Path(__file__).parent / "templates"


class PageRow(NamedTuple):
    """A row of the page's table.

    Attributes:
        series: the series that it belongs to.
        result: accuracy before and after RL.
        behaviors: mean number per response, by stage and behavior; None without graphs.
    """

    series: Series
    result: TableRow
    behaviors: dict[str, dict[str, float] | None]


class _Charts(NamedTuple):
    """The charts of a page.

    Attributes:
        by_name: every chart by the name that the template uses.
        panels: the series that have a chart of their own, by kind; the chart's name is KIND-NUMBER.
        metrics: the metrics of the training curves in words, by stage and control value.
        validated: the figures of the validations in words.
    """

    by_name: dict[str, Chart]
    panels: dict[str, list[Series]]
    metrics: dict[str, dict[str, str]]
    validated: dict[str, str]


def write_page(path: Path, sources: Sequence[Source]) -> None:
    """Write the page atomically.

    Args:
        path: the file.
        sources: one run or study, or several to compare.
    """
    text = render_page(sources)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def render_page(sources: Sequence[Source]) -> str:
    """The page's text."""
    series = all_series(sources)
    drawn = _charts(series)
    samples = collect_samples(series)
    payload = {"charts": drawn.by_name, "palette": charts.PALETTE, **samples.as_json()}
    scripts = [
        _script(get_plotlyjs()),
        _script((_TEMPLATES / "page.js").read_text(encoding="utf-8")),
    ]
    rows = _rows(series)
    environment = Environment(
        loader=PackageLoader("bi_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        sources=sources,
        series=series,
        charts=drawn.by_name,
        panels=drawn.panels,
        metrics=drawn.metrics,
        validated=drawn.validated,
        rows=rows,
        ks=extreme_ks([row.result for row in rows]),
        lines_before_rl=lines_before_rl(series),
        filters=_filters(samples),
        behaviors=list(BEHAVIOR_FIELDS),
        policy=_content_security_policy(scripts),
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        payload=Markup(_embedded_json(payload)),
        configurations={source.label: _configuration(source) for source in sources},
        quotas=QUOTAS,
        sentences=sentences,
        influence=influence,
        number_format=number_format,
    )


def _charts(series: Sequence[Series]) -> _Charts:
    curves, metrics = charts.curves(series)
    validations, validated = charts.validations(series)
    single: dict[str, Chart | None] = {
        "gains": charts.gains(series),
        "groups": influence.by_group(series),
        "behaviors": influence.by_behavior(series),
        "during": influence.during_rl(series),
        "curves": curves,
        "validation": validations,
    }
    per_series: dict[str, dict[Series, Chart]] = {
        "histogram": charts.histograms(series),
        "pairs": influence.all_against_all(series),
        "heat": influence.heat_maps(series),
        "realized": influence.predicted_realized(series),
    }
    by_name = {name: chart for name, chart in single.items() if chart}
    for name, panels in per_series.items():
        for one, chart in panels.items():
            by_name[f"{name}-{one.number}"] = chart
    panels_of = {name: list(panels) for name, panels in per_series.items()}
    return _Charts(by_name, panels_of, metrics, validated)


def _script(text: str) -> str:
    """A script as a browser reads it from a page.

    A browser normalizes line ends, and the hash has to match what it reads.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower():
        raise ValueError("a script that contains </script cannot be embedded in a page")
    return text


def _content_security_policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    rules = [
        "default-src 'none'",
        f"script-src {hashes}",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _embedded_json(payload: Mapping[str, Any]) -> str:
    """JSON that cannot end the element that contains it."""
    return json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _configuration(source: Source) -> str:
    return yaml.safe_dump(source.config.model_dump(mode="json"), sort_keys=False)


def _rows(series: Sequence[Series]) -> list[PageRow]:
    rows = []
    for one in series:
        for result in one.rows:
            behaviors: dict[str, dict[str, float] | None] = {}
            for stage, folder in EVALUATIONS.items():
                behaviors[stage] = behaviors_per_response(one, folder, result.set)
            rows.append(PageRow(one, result, behaviors))
    return rows


def _filters(samples: Samples) -> dict[str, list[Any]]:
    """The values that the filters offer, by name: those that a sample has."""
    cells = [samples.cells[sample["cell"]] for sample in samples.samples]
    filters: dict[str, list[Any]] = {}
    for name in ("run", "arm", "set", "stage"):
        filters[name] = list(dict.fromkeys(getattr(cell, name) for cell in cells))
    for name in ("mode", "seed"):
        filters[name] = list(dict.fromkeys(sample[name] for sample in samples.samples))
    return filters
