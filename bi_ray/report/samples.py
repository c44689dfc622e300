"""The samples that a page carries, and what they show: behaviors and the first wrong line, marked
in the text.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.parse import place_of
from bi_ray.report.charts import Series
from bi_ray.report.source import STAGES
from bi_ray.runs.layout import samples_file
from bi_ray.tasks.base import Task
from bi_ray.tasks.registry import build_task
from bi_ray.verification.samples import read_samples
from bi_ray.verification.verdicts import BEHAVIOR_FIELDS

# samples of one arm, stage and set on a page, all seeds together
QUOTAS = {"greedy": 100, "sampled": 200}
ROOM = 2_000_000  # bytes of samples on a page; longer responses, or more arms: fewer of them
BEHAVIORS = BEHAVIOR_FIELDS  # rows of older evaluations lack the last three

Row = dict[str, Any]
# text; then the behavior or None, and True where it belongs to the first wrong line, or neither
Part = list[Any]


def collect_samples(series: Sequence[Series]) -> dict[str, list[Row]]:
    """Problems and samples for the page, the same for the same files.

    Of every cell (series, stage, set) the first problems in the order of the set, seeds in turn,
    until ``QUOTAS`` or a fair share of ``ROOM`` is used up; a problem's samples come together.

    Returns:
        ``problems`` (id, question, answer), ``cells`` (series, run, arm, stage, set) and
        ``samples``, which point into both by number.
    """
    cells = sum(len(STAGES) * len(one.source.config.evaluation.sets) for one in series)
    book = _Book(room=ROOM // max(1, cells))
    for one in series:
        for set_name in one.source.config.evaluation.sets:
            for folder, stage in STAGES.items():
                book.add(one, folder, stage, set_name)
    return {"problems": book.problems, "cells": book.cells, "samples": book.samples}


class _Book:
    """Collects what goes on the page; ``room`` is in bytes of samples of one cell."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.problems: list[Row] = []
        self.cells: list[Row] = []
        self.samples: list[Row] = []
        self._sets: dict[Path, dict[str, ProblemRow]] = {}
        self._numbers: dict[tuple[Path, str], int] = {}

    def add(self, one: Series, folder: str, stage: str, set_name: str) -> None:
        """Choose the samples of one cell: whole problems, up to the first that does not fit."""
        source = one.source
        task = build_task(source.config.task, source.config.seeds.data)
        rows = [_samples(run / folder / one.arm / samples_file(set_name)) for run in source.runs]
        for mode, quota in QUOTAS.items():
            left, room = quota, self.room * quota // sum(QUOTAS.values())
            for seed, group in _in_turn(rows, mode):
                directory = source.runs[seed] / "data" / set_name
                problem = self._known(directory).get(group[0]["id"])
                described = [_describe(task, row, problem) for row in group]
                room -= len(json.dumps(described, separators=(",", ":")))
                left -= len(group)
                if left < 0 or room < 0:
                    break
                where = {
                    "cell": len(self.cells),
                    "seed": seed,
                    "problem": self._number(directory, group[0], problem),
                }
                self.samples += [where | sample for sample in described]
        self.cells.append(
            {"series": one.number, "run": source.label, "arm": one.arm, "stage": stage, "set": set_name}
        )  # fmt: skip

    def _known(self, directory: Path) -> dict[str, ProblemRow]:
        if directory not in self._sets:
            rows = read_problems(directory) if directory.exists() else []
            self._sets[directory] = {row.id: row for row in rows}
        return self._sets[directory]

    def _number(self, directory: Path, row: Row, problem: ProblemRow | None) -> int:
        """Position of a sample's problem among those of the page."""
        key = (directory, row["id"])
        if key not in self._numbers:
            self._numbers[key] = len(self.problems)
            question = problem.question if problem else "(the run's problems are not on this disk)"
            self.problems.append({"id": row["id"], "question": question, "answer": row["answer"]})
        return self._numbers[key]


def _samples(file: Path) -> list[Row]:
    return read_samples(file) if file.exists() else []


def _in_turn(by_seed: Sequence[list[Row]], mode: str) -> Iterator[tuple[int, list[Row]]]:
    """Seed and responses of each problem: the first problem of every seed, then the second of every
    seed, ...
    """
    groups = [
        _by_problem(row for row in rows if row["mode"] == mode and "response" in row)
        for rows in by_seed
    ]
    for place in range(max((len(seed) for seed in groups), default=0)):
        yield from ((seed, found[place]) for seed, found in enumerate(groups) if place < len(found))


def _by_problem(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["id"]].append(row)
    return list(groups.values())


def _describe(task: Task, row: Row, problem: ProblemRow | None) -> Row:
    """What the page shows of one sample. A sample without a verdict has None where a verdict has a
    value.
    """
    names = (
        "mode",
        "sample",
        "right",
        "trace_valid",
        "trace_fault",
        "truncated",
        "format_right",
        "tokens",
        "failure",
    )
    parts = _parts(task, row["response"], problem)
    return {name: row.get(name) for name in names} | {"parts": parts}


def _parts(task: Task, response: str, problem: ProblemRow | None) -> list[Part]:
    """The response cut where a behavior or the first wrong line begins or ends."""
    spans = task.behavior_spans(response)
    wrong = (
        _first_wrong_line(task, response, Graph.from_json(problem.graph))
        if problem and problem.graph
        else None
    )
    cuts = {0, len(response), *(place for span in spans for place in span[:2]), *(wrong or ())}
    edges = sorted(cuts)
    parts: list[Part] = []
    for start, end in pairwise(edges):
        behavior = next(
            (span.behavior for span in spans if span.start <= start and end <= span.end), None
        )
        is_wrong = wrong is not None and wrong[0] <= start and end <= wrong[1]
        parts.append([response[start:end], *([behavior, is_wrong] if behavior or is_wrong else [])])
    return parts


def _first_wrong_line(task: Task, response: str, graph: Graph) -> tuple[int, int] | None:
    """Where the first line that the checker refuses stands, None where there is none, or where a
    line is lacking.
    """
    steps = task.parse_trace(response)
    place = check_trace(steps, graph, task.notation).first_bad_step
    if place is None or place >= len(steps):
        return None
    return place_of(response, steps, place)


def behaviors_per_response(one: Series, folder: str, set_name: str) -> dict[str, float] | None:
    """How many behaviors a response has on average (greedy and sampled), None where none could be
    read from it.
    """
    files = [run / folder / one.arm / samples_file(set_name) for run in one.source.runs]
    judged = [row for file in files for row in _samples(file) if row["failure"] is None]
    # free text has no lines that could be told
    rows = [row for row in judged if row["trace_valid"] is not None]
    if not rows:
        return None
    return {
        name: sum(row.get(field, 0) for row in rows) / len(rows)
        for name, field in BEHAVIORS.items()
    }
