"""Writes the report's files, and prints the result in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bi_ray.config.run import RunConfig
from bi_ray.files.atomic import write_atomically
from bi_ray.report.page import write_page
from bi_ray.report.picture import draw_picture
from bi_ray.report.readiness import render_readiness
from bi_ray.report.sentences import advice, findings
from bi_ray.report.source import Source, distinct_labels, find_runs
from bi_ray.report.summary import Summary, as_json, summarize_runs
from bi_ray.report.tables import markdown_table, render_samples, render_table
from bi_ray.runs.foreign_folders import refuse_foreign_page, refuse_foreign_report
from bi_ray.runs.layout import (
    EVAL_RL,
    MARKDOWN,
    METRICS_FILE,
    PAGE,
    PICTURE,
    REPORT,
    RL,
    SUMMARY,
    samples_file,
)
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.stages import is_finished


def write_summary(config: RunConfig, runs: Sequence[Path], out: Path) -> Summary:
    """Summarize runs of one configuration that differ in their seeds, and write the report.

    Stages may be missing.

    Args:
        config: configuration of the runs, seeds aside.
        runs: their directories, one per seed.
        out: the folder ``report`` appears there, with the page, ``summary.json``, Markdown tables
            and a picture.

    Raises:
        RunError: a file of a run is damaged, or the folder ``report`` holds something else.
    """
    refuse_foreign_report(out / REPORT)
    summary = summarize_runs(config, runs)
    title = f"{config.name}: {len(runs)} seed{'s' * (len(runs) > 1)}"
    with write_atomically(out / REPORT) as folder:
        (folder / SUMMARY).write_text(json.dumps(as_json(summary), indent=1))
        (folder / MARKDOWN).write_text(_markdown(summary, title))
        if summary.table:
            rewards = {arm: _rewards(runs, arm) for arm in config.arms}
            draw_picture(rewards, summary.table, folder / PICTURE, title=title)
        write_page(folder / PAGE, [Source(config.name, config, tuple(runs), summary)])
    return summary


def _markdown(summary: Summary, title: str) -> str:
    made_by = f"bi_ray {', '.join(summary.code_versions)}"
    lines = "\n".join(f"- {line}" for line in findings(summary))
    return f"# {title}\n\n{made_by}\n\n{markdown_table(summary.table)}\n\n{lines}\n"


def _rewards(runs: Sequence[Path], arm: str) -> list[list[float]]:
    """Mean training reward of every RL step, one list per run."""
    by_run = []
    for run in runs:
        folder = run / RL / arm
        rows = read_steps(folder / METRICS_FILE, growing=not is_finished(folder))
        # step 0 has only been validated
        by_run.append([row["reward"] for row in rows if "reward" in row])
    return by_run


def write_report(paths: Sequence[Path], out: Path | None) -> Path:
    """Write the report of a run or a study anew from its files, or one page that compares several.

    Args:
        paths: runs and studies.
        out: the page; None: for one path, its whole folder ``report``; for several,
            ``comparison.html`` in the current directory.

    Returns:
        Path of the page.

    Raises:
        RunError: a path holds no run, a file of it is damaged, or ``out`` is a file that is not a
            report.
    """
    runs_of = {path: find_runs(path) for path in paths}
    if out is None and len(paths) == 1:
        config, runs = runs_of[paths[0]]
        write_summary(config, runs, paths[0])
        return paths[0] / REPORT / PAGE
    sources = []
    for label, path in zip(distinct_labels(paths), paths, strict=True):
        config, runs = runs_of[path]
        sources.append(Source(label, config, runs, summarize_runs(config, runs)))
    page = out or Path("comparison.html")
    refuse_foreign_page(page)
    write_page(page, sources)
    return page


def show_summary(summary: Summary, console: Console, out: Path) -> None:
    """Print the tables, the findings, and where to look next."""
    tables = [render_table(summary.table), render_samples(summary.table)]
    if summary.readiness:
        tables.insert(0, render_readiness(summary.readiness))
    for table in tables:
        console.print()
        console.print(table)
    console.print("\n".join(findings(summary)), highlight=False, markup=False)
    page = out / REPORT / PAGE
    console.print(
        f"\nThe report, for a browser: {page}", highlight=False, markup=False, soft_wrap=True
    )
    console.print("Every sample with its verdict, and the rest of the report:", highlight=False)
    for name in (
        f"{EVAL_RL}/<arm>/{samples_file('<set>')}",
        f"{REPORT}/{PICTURE}",
        f"{REPORT}/{MARKDOWN}",
        f"{REPORT}/{SUMMARY}",
    ):
        console.print(f"  {name}", highlight=False, markup=False)
    for line in advice(summary):
        console.print(line, highlight=False, soft_wrap=True)
