"""The samples that a page carries; behaviors and the first wrong line are marked in their text."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.parse import place_of
from bi_ray.reasoning.trace import Span
from bi_ray.report.series import Series
from bi_ray.report.summary import EVALUATIONS
from bi_ray.runs.layout import DATA, samples_file
from bi_ray.tasks.base import Task
from bi_ray.tasks.registry import build_task
from bi_ray.verification.samples import read_samples
from bi_ray.verification.verdicts import BEHAVIOR_FIELDS

# number of samples of one arm, stage and set on a page, all seeds together
QUOTAS = {"greedy": 100, "sampled": 200}
ROOM = 2_000_000  # bytes of samples on a page; if responses or arms need more, samples are left out
_SHOWN = (  # fields of a sample that the page shows; None without a verdict
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

Row = Mapping[str, Any]  # a line of evaluated samples
# text; if a behavior wrote it or it belongs to the first wrong line, also the behavior or None and
# whether it is wrong
Part = list[Any]


class Cell(NamedTuple):
    """An arm, a stage and a set of a source.

    Attributes:
        series: number of the series.
        run: label of the source.
        arm: name of the arm.
        stage: training stage, SFT or RL.
        set: name of the set.
    """

    series: int
    run: str
    arm: str
    stage: str
    set: str


class PageProblem(NamedTuple):
    """A problem that samples of the page belong to."""

    id: str
    question: str
    answer: str


class Samples:
    """The problems, cells and samples of a page; a sample refers to the others by number.

    Args:
        room: bytes of samples that one cell may take.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.problems: list[PageProblem] = []
        self.cells: list[Cell] = []
        self.samples: list[dict[str, Any]] = []
        self._sets: dict[Path, dict[str, ProblemRow]] = {}
        self._numbers: dict[tuple[Path, str], int] = {}

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """``problems``, ``cells`` and ``samples`` as the page's script reads them."""
        return {
            "problems": [problem._asdict() for problem in self.problems],
            "cells": [cell._asdict() for cell in self.cells],
            "samples": self.samples,
        }

    def add_cell(self, one: Series, stage: str, folder: str, set_name: str) -> None:
        """Choose the samples of one cell: whole problems, up to the first that does not fit."""
        source = one.source
        task = build_task(source.config.task, source.config.seeds.data)
        by_seed = [_samples(run / folder / one.arm / samples_file(set_name)) for run in source.runs]
        directories = [run / DATA / set_name for run in source.runs]
        for mode, quota in QUOTAS.items():
            room = self.room * quota // sum(QUOTAS.values())
            for seed, rows in _by_turns(by_seed, mode):
                problem = self._problem(directories[seed], rows[0]["id"])
                described = [_describe(task, row, problem) for row in rows]
                room -= len(json.dumps(described, separators=(",", ":")))
                quota -= len(rows)
                if quota < 0 or room < 0:
                    break
                position = {
                    "cell": len(self.cells),
                    "seed": seed,
                    "problem": self._number(directories[seed], rows[0], problem),
                }
                self.samples += [position | sample for sample in described]
        self.cells.append(Cell(one.number, source.label, one.arm, stage, set_name))

    def _problem(self, directory: Path, name: str) -> ProblemRow | None:
        """A problem of a run's set; None if the run's problems are not on this disk."""
        if directory not in self._sets:
            rows = read_problems(directory) if directory.exists() else []
            self._sets[directory] = {row.id: row for row in rows}
        return self._sets[directory].get(name)

    def _number(self, directory: Path, row: Row, problem: ProblemRow | None) -> int:
        """Position of a sample's problem among those of the page."""
        key = (directory, row["id"])
        if key not in self._numbers:
            self._numbers[key] = len(self.problems)
            question = "(the run's problems are not on this disk)"
            if problem:
                question = problem.question
            self.problems.append(PageProblem(row["id"], question, row["answer"]))
        return self._numbers[key]


def collect_samples(series: Sequence[Series]) -> Samples:
    """Problems and samples for the page, the same for the same files.

    Of every cell (series, stage, set) the first problems in the order of the set, seeds in turn,
    until ``QUOTAS`` or a fair share of ``ROOM`` is used up; a problem's samples stay together.
    """
    cells = sum(len(EVALUATIONS) * len(one.source.config.evaluation.sets) for one in series)
    samples = Samples(room=ROOM // max(1, cells))
    for one in series:
        for set_name in one.source.config.evaluation.sets:
            for stage, folder in EVALUATIONS.items():
                samples.add_cell(one, stage, folder, set_name)
    return samples


def _samples(file: Path) -> list[dict[str, Any]]:
    return read_samples(file) if file.exists() else []


def _by_turns(by_seed: Sequence[Sequence[Row]], mode: str) -> Iterator[tuple[int, list[Row]]]:
    """Seed and responses of each problem: the first problem of every seed, then the second ..."""
    problems = [_by_problem(rows, mode) for rows in by_seed]
    for of_seeds in zip_longest(*problems, fillvalue=[]):
        for seed, rows in enumerate(of_seeds):
            if rows:
                yield seed, rows


def _by_problem(rows: Sequence[Row], mode: str) -> list[list[Row]]:
    """The responses of one mode, by problem."""
    problems: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["mode"] == mode and "response" in row:
            problems[row["id"]].append(row)
    return list(problems.values())


def _describe(task: Task, row: Row, problem: ProblemRow | None) -> dict[str, Any]:
    """What the page shows of one sample."""
    shown = {name: row.get(name) for name in _SHOWN}
    return shown | {"parts": _parts(task, row["response"], problem)}


def _parts(task: Task, response: str, problem: ProblemRow | None) -> list[Part]:
    """The response, cut where a behavior or the first wrong line begins or ends."""
    spans = task.behavior_spans(response)
    wrong_start = wrong_end = len(response)
    if problem and problem.graph:
        wrong_start, wrong_end = _first_wrong_line(task, response, Graph.from_json(problem.graph))
    cuts = {0, len(response), wrong_start, wrong_end}
    for span in spans:
        cuts |= {span.start, span.end}
    parts = []
    for start, end in pairwise(sorted(cuts)):
        part: Part = [response[start:end]]
        behavior = _behavior_of(spans, start, end)
        is_wrong = wrong_start <= start and end <= wrong_end
        if behavior or is_wrong:
            part += [behavior, is_wrong]
        parts.append(part)
    return parts


def _behavior_of(spans: Sequence[Span], start: int, end: int) -> str | None:
    for span in spans:
        if span.start <= start and end <= span.end:
            return span.behavior
    return None


def _first_wrong_line(task: Task, response: str, graph: Graph) -> tuple[int, int]:
    """Start and end of the first line that the checker refuses.

    An empty range at the end of the response if there is none, or if a line is lacking.
    """
    steps = task.parse_trace(response)
    number = check_trace(steps, graph, task.notation).first_bad_step
    if number is None or number >= len(steps):
        return len(response), len(response)
    return place_of(response, steps, number)


def behaviors_per_response(one: Series, folder: str, set_name: str) -> dict[str, float] | None:
    """Mean number per response (greedy and sampled), by behavior; None without graphs."""
    counts: Counter[str] = Counter()
    responses = 0
    for run in one.source.runs:
        for row in _samples(run / folder / one.arm / samples_file(set_name)):
            if row["failure"] is not None or row["trace_valid"] is None:
                continue
            responses += 1
            for name, field in BEHAVIOR_FIELDS.items():
                counts[name] += row.get(field, 0)
    if not responses:
        return None
    return {name: counts[name] / responses for name in BEHAVIOR_FIELDS}
