"""Readiness of the arms of finished runs, read from their directories, as the report and the
terminal show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bi_ray.readiness.realized import correlation
from bi_ray.readiness.records import Realized, WatchedRow, read_policy, read_queries
from bi_ray.readiness.summary import summarize, watched_groups
from bi_ray.runs.layout import (
    INFLUENCE_FILE,
    MEASURED_QUERIES_FILE,
    READINESS,
    READINESS_FILE,
    REALIZED,
    REALIZED_FILE,
    RL,
)
from bi_ray.runs.records import read_jsonl, read_record
from bi_ray.runs.stages import is_finished

_QUERY_SET, _TARGET_SET = "rl", "influence_target"


def read_readiness(arms: Sequence[str], runs: Sequence[Path], draws: int) -> dict[str, Any]:
    """What was measured before RL and while it went on.

    Args:
        arms: whose.
        runs: directories of one configuration under different seeds.
        draws: of the bootstrap.

    Returns:
        ``readiness``, ``realized`` and ``during_rl``, each by arm; arms that were not measured are
        left out. Their contents: ``summary.summarize``; ``points`` with their ``correlation``; a
        row per analysis of each seed.

    Raises:
        RunError: a file is damaged.
    """
    found: dict[str, Any] = {"readiness": {}, "realized": {}, "during_rl": {}}
    for arm in arms:
        folders = [run / READINESS / arm for run in runs]
        measured = [f for f in folders if (f / MEASURED_QUERIES_FILE).exists() or is_finished(f)]
        if measured:
            rows = read_queries([folder / MEASURED_QUERIES_FILE for folder in measured])
            policies = [read_policy(folder / READINESS_FILE, rows[0][0]) for folder in measured]
            found["readiness"][arm] = {"set": _QUERY_SET, "target_set": _TARGET_SET} | summarize(
                rows, policies, draws
            )
        if realized := _realized(arm, runs, draws):
            found["realized"][arm] = realized
        during = [
            {"seed": seed} | row
            for seed, run in enumerate(runs)
            for row in _watched(run / RL / arm / INFLUENCE_FILE, draws)
        ]
        if during:
            found["during_rl"][arm] = during
    return found


def _realized(arm: str, runs: Sequence[Path], draws: int) -> dict[str, Any] | None:
    files = [(seed, run / REALIZED / arm / REALIZED_FILE) for seed, run in enumerate(runs)]
    there = [(seed, file) for seed, file in files if file.exists() or is_finished(file.parent)]
    results = [(seed, read_record(file, Realized)) for seed, file in there]
    points = [{"seed": seed} | point for seed, result in results for point in result["points"]]
    if not points:
        return None
    floors = [result["unchanged_policy"]["noise_floor"] for _, result in results]
    return {
        "points": points,
        "noise_floor": sum(floors) / len(floors),
        "correlation": correlation(points, "realized", draws),
        "correlation_odd": correlation(points, "odd", draws),
        "controls": [{"seed": seed} | result["control"] for seed, result in results],
        "step_norm": results[0][1]["step_norm"],
    }


def _watched(file: Path, draws: int) -> list[dict[str, Any]]:
    """The rows of one RL run, each with its queries averaged by accuracy."""
    return [
        {name: value for name, value in row.items() if name != "queries"}
        | {"groups": watched_groups(row["queries"], draws)}
        for row in read_jsonl(file, WatchedRow, growing=True)
    ]


def render_readiness(readiness: Mapping[str, Mapping[str, Any]]) -> Table:
    """Before RL, a row per arm, for a terminal."""
    table = Table(
        title="Readiness before RL",
        caption="informative: 0 < right < N, %; signal: mean sqrt(a(1-a)); K+, K-, dJ: per unit of learning rate; "
        "halves: cosine of the targets' gradient from either half of them, near 0 mostly noise",
    )
    table.add_column("arm", no_wrap=True)
    for name in ("informative", "signal", "K+", "K-", "dJ", "halves"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, found in readiness.items():
        accuracy = found["accuracy"]
        scale = next(iter(found["influence"]))
        influence, halves = (
            found["influence"][scale]["all"],
            found.get("halves_cosine", {}).get(scale),
        )
        value, low, high = (
            100 * accuracy["informative"][part] for part in ("value", "low", "high")
        )
        table.add_row(
            arm,
            f"{value:.0f} ({low:.0f}–{high:.0f})",
            f"{accuracy['signal']['value']:.2f}",
            *(
                "-" if influence[name] is None else f"{influence[name]['value']:.2g}"
                for name in ("k_plus", "k_minus")
            ),
            _short(influence["dj"]),
            "-" if halves is None else f"{halves:.2f}",
        )
    return table


def _short(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "-"
    return f"{interval['value']:.2g} ({interval['low']:.2g} to {interval['high']:.2g})"
