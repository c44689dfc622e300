"""The command `check`: grade responses, and write a verdict for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from bi_ray.cli.arguments import TaskFile
from bi_ray.cli.console import console, progress_bar, say
from bi_ray.cli.data import SHOWN_REJECTS, explain_out, show_rejects
from bi_ray.config.base import ConfigError
from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.files.atomic import remove_leftovers, write_whole
from bi_ray.files.errors import RunError
from bi_ray.files.records import parse_record
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import REJECTS, DataError, Reject, Rejects

if TYPE_CHECKING:
    from bi_ray.tasks.base import Task
    from bi_ray.verification.grading import GradedRow, Tally, VerdictRow

_MAX_ROW_BYTES = 2**24

Responses = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Responses to grade: .jsonl, .parquet, or the directory of a set"
    ),
]
VerdictFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File to write verdicts to", show_default="FILE.verdicts.jsonl"
    ),
]
StrictGrades = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit with code 1 if any row is wrong or cannot be graded (for CI)"
    ),
]


def check(
    source: Responses,
    config_file: TaskFile = None,
    out: VerdictFile = None,
    strict: StrictGrades = False,
) -> None:
    """Grade responses of a model, or demonstrations.

    Checks the answer, the format and, where possible, every line of the trace; prints the first
    bad line of a wrong trace with the reason.
    """
    from bi_ray.api import task_of

    run = load_config(config_file, RunConfig) if config_file else None
    task = task_of(run, source)
    out = out or source.with_name(f"{source.name}.verdicts.jsonl")
    files = _Files(source, out, out.with_name(f"{out.name}.{REJECTS}"))
    _check_out(files)
    grading = _grade(files, task, run.verifier if run else None)
    _show_grading(grading, files)
    if strict and not grading.all_right:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Files:
    """What one call reads (``source``) and writes."""

    source: Path
    verdicts: Path
    rejects: Path


@dataclass(frozen=True, slots=True)
class _Grading:
    """The outcome of one call.

    Attributes:
        tally: counts over all graded rows.
        bad_traces: the first few rows whose trace is wrong.
        rejects: rows that could not be graded.
    """

    tally: Tally
    bad_traces: list[GradedRow]
    rejects: Rejects

    @property
    def all_right(self) -> bool:
        """Whether every row was graded, and is right in answer and trace."""
        if self.rejects.rows or self.tally.right < self.tally.rows:
            return False
        return self.tally.trace_valid == self.tally.traces


def _check_out(files: _Files) -> None:
    """Refuse an ``--out`` that would overwrite something other than verdicts.

    Raises:
        ConfigError: see above; or it cannot be read.
    """
    from bi_ray.verification.grading import VerdictRow

    with explain_out(files.verdicts):
        if files.verdicts.resolve() == files.source.resolve():
            raise ConfigError(f"--out {files.verdicts} is the file to grade; choose another --out")
        if files.verdicts.is_dir():
            raise ConfigError(f"--out {files.verdicts} is a directory; name a file in it")
        _refuse_foreign_rows(files.verdicts, VerdictRow, "verdicts")
        _refuse_foreign_rows(files.rejects, Reject, "rejected rows")


def _refuse_foreign_rows(file: Path, kind: type[VerdictRow] | type[Reject], content: str) -> None:
    """Refuse to replace an existing file that does not begin with a row of this kind.

    Raises:
        ConfigError: the file begins with something else.
    """
    if not file.is_file():
        return
    with open(file, "rb") as lines:
        first_line = lines.readline(_MAX_ROW_BYTES)
    if not first_line:
        return
    try:
        parse_record(first_line, kind, str(file), "")
    except RunError as error:
        raise ConfigError(
            f"{file} exists and does not contain {content}; it was not replaced, "
            "choose another --out"
        ) from error


def _grade(files: _Files, task: Task, limits: VerifierConfig | None) -> _Grading:
    """Grade every row, and write verdicts and rejects.

    Raises:
        DataError: no row could be graded; then no verdicts are written.
    """
    from bi_ray.verification.grading import Tally, grade_rows

    grading = _Grading(Tally(), [], Rejects())
    with (
        explain_out(files.verdicts),
        _replacing(files.verdicts) as verdicts,
        progress_bar("responses", None) as show_progress,
    ):
        rows = rows_of(files.source, grading.rejects)
        for graded in grade_rows(rows, task, grading.rejects, limits):
            verdict = graded.verdict
            grading.tally.add(verdict)
            show_progress(grading.tally.rows)
            verdicts.write(_verdict_line(graded))
            if verdict.first_bad_step is not None and len(grading.bad_traces) < SHOWN_REJECTS:
                grading.bad_traces.append(graded)
        files.rejects.unlink(missing_ok=True)  # of an earlier call
        if grading.rejects.rows:
            grading.rejects.write(files.rejects)
        if not grading.tally.rows:
            raise DataError(grading.rejects.explain(files.source, "nothing was graded"))
    return grading


def _verdict_line(graded: GradedRow) -> str:
    return json.dumps(asdict(graded.place) | graded.as_json(), ensure_ascii=False) + "\n"


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Open a text file that replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    with write_whole(path) as fresh, fresh.open("w", encoding="utf-8") as file:
        yield file


def _show_grading(grading: _Grading, files: _Files) -> None:
    console.print(_tally_table(grading.tally))
    if grading.bad_traces:
        console.print(_bad_trace_table(grading.bad_traces))
    bad_traces = grading.tally.traces - grading.tally.trace_valid
    if bad_traces > len(grading.bad_traces) > 0:
        say(f"and {bad_traces - len(grading.bad_traces):,} more in {files.verdicts}")
    show_rejects(grading.rejects, files.rejects)
    say(f"All verdicts: {files.verdicts}")


def _tally_table(tally: Tally) -> Table:
    table = Table(box=None, show_header=False)
    shares = (
        ("right answer", tally.right, tally.rows),
        ("right format", tally.format_right, tally.rows),
        ("valid trace", tally.trace_valid, tally.traces),
        ("right answer by a wrong trace", tally.right_by_wrong_trace, tally.traces),
    )
    for name, count, total in shares:
        if total:
            table.add_row(name, f"{count:,} of {total:,}", f"{count / total:.1%}")
    for name, count in sorted(tally.behaviors.items()):
        note = f"{tally.right_reflections:,} of them right" if name == "reflection" else ""
        table.add_row(f"{name} lines", f"{count:,}", note)
    return table


def _bad_trace_table(rows: list[GradedRow]) -> Table:
    table = Table("row", "its line", "what is wrong", box=None)
    for row in rows:
        line = "end" if row.bad_response_line is None else str(row.bad_response_line)
        table.add_row(Text(row.id), line, Text(row.verdict.trace_fault or ""))
    return table
