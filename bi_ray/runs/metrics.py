"""Metrics files: one JSON row per finished step, no step twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from bi_ray.files.atomic import write_text
from bi_ray.files.errors import naming
from bi_ray.files.records import parse_jsonl
from bi_ray.runs.layout import VALIDATION
from bi_ray.runs.records import read_jsonl

Row = dict[str, Any]  # a step's figures by name; what is read of a training are numbers


class MetricsRow(TypedDict):
    """A row of a metrics file: its step, and figures by name."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    step: int


def append_metrics(path: Path, row: Mapping[str, Any], durable: bool = False) -> None:
    """Add one line to a metrics file. Where it cannot be written whole the file stays as it was.

    Args:
        path: the file.
        row: of a step.
        durable: whether this row and all before it have to outlast a power cut: a checkpoint of the
            step follows.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    line = json.dumps(row).encode() + b"\n"
    with naming(path), open(path, "a+b", buffering=0) as file:
        end = _end_of_rows(path, file)
        try:
            file.truncate(end)
            while line:
                line = line[file.write(line) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _end_of_rows(path: Path, file: IO[bytes]) -> int:
    """Where the last whole row ends: a kill or a full disk may have cut off another one."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    return path.read_bytes().rfind(b"\n") + 1


def read_metrics(path: Path) -> list[Row]:
    """All whole rows of a metrics file; none if it does not exist.

    Raises:
        RunError: a row is damaged; the message names the file and the line.
    """
    return read_jsonl(path, Row, growing=True)


def read_steps(path: Path, growing: bool = True) -> list[Row]:
    """The steps of a training: ``step``, and whatever else in a row is a number.

    Args:
        path: a metrics file.
        growing: the training may be under way; see ``records.read_jsonl``.

    Raises:
        RunError: the file, or a row of it, is damaged; the message names the file and the line.
    """
    return [_numbers(row) for row in read_jsonl(path, MetricsRow, growing)]


def parse_steps(text: str, where: str, remedy: str) -> list[Row]:
    """The steps of a training from the text of its metrics file; see ``records.parse_jsonl``."""
    return [_numbers(row) for row in parse_jsonl(text, MetricsRow, where, remedy, growing=True)]


def _numbers(row: Mapping[str, Any]) -> Row:
    return {name: value for name, value in row.items() if isinstance(value, (int, float))}


def last_figures(rows: Sequence[Mapping[str, Any]]) -> Row:
    """The last row, with the figures of the last validation where it has none; {} without rows."""
    if not rows:
        return {}
    return _last_validation(rows) | dict(rows[-1])


def _last_validation(rows: Sequence[Mapping[str, Any]]) -> Row:
    for row in reversed(rows):
        figures = {name: value for name, value in row.items() if is_validation(name)}
        if figures:
            return figures
    return {}


def is_validation(name: str) -> bool:
    """Whether a figure is one of a validation: ``validation/SET/...``."""
    return name.startswith(f"{VALIDATION}/")


def cut_metrics(path: Path, step: int) -> None:
    """Drop the rows after ``step``: they will be made again.

    Raises:
        RunError: a row is damaged.
        OSError: the file cannot be written; the error names it.
    """
    rows = [row for row in read_jsonl(path, MetricsRow, growing=True) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
