"""JSON files of a run, read against a type; an error names the stage that makes the file again."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from bi_ray.files.errors import RunError
from bi_ray.files.records import parse_jsonl, parse_record, read_bytes
from bi_ray.runs.layout import CONFIG_FILE, LOCK_FILE, RUN_MARK, STAGES, WORK, kind_of

_MARKS = (RUN_MARK, LOCK_FILE, CONFIG_FILE)  # a folder with one of them is a run
T = TypeVar("T")


def read_record(path: Path, kind: type[T], remedy: str | None = None) -> T:
    """A JSON file as an object of ``kind``.

    Args:
        path: the file.
        kind: a dataclass, a TypedDict, or a type such as ``dict[str, int]``. Fields that it does
            not have are dropped, or kept where ``kind`` allows them.
        remedy: how to make the file again, for the message; None: see ``remedy_for``.

    Raises:
        RunError: it is missing or damaged; one line with the file and the remedy.
    """
    remedy = remedy or remedy_for(path)
    return parse_record(read_bytes(path, remedy), kind, str(path), remedy)


def read_jsonl(path: Path, kind: type[T], growing: bool = False) -> list[T]:
    """The rows of a file of JSON lines, each an object of ``kind``.

    Args:
        path: the file.
        kind: see ``read_record``.
        growing: another process may be writing the file: it may be absent, and a last line
            without an end is dropped.

    Raises:
        RunError: it is missing or damaged; one line with the file, the line and the remedy.
    """
    if growing and not path.exists():
        return []
    remedy = remedy_for(path)
    return parse_jsonl(read_bytes(path, remedy), kind, str(path), remedy, growing)


def damaged(path: Path, reason: str) -> RunError:
    """The error about a file or folder of a run that is not as it was written."""
    return RunError(f"{path} is damaged ({reason}): {remedy_for(path)}")


def remedy_from(stage: str) -> str:
    """How to make ``stage``, or a file of it, again, as the end of an error message."""
    return f"make it again with --from {kind_of(stage)}"


def remedy_for(path: Path) -> str:
    """How to make a file or folder again, as the end of an error message."""
    stage = _stage_with(path)
    if stage is None:
        return "restore it from a copy, or remove it and make it again"
    return remedy_from(stage)


def _stage_with(path: Path) -> str | None:
    """First part of the name of the stage that ``path`` is in, None outside of runs and stages."""
    for folder in path.parents:
        is_run = any((folder / name).exists() for name in _MARKS)
        if not is_run:
            continue
        parts = path.relative_to(folder).parts
        is_unfinished = parts[0] == WORK and len(parts) > 2
        stage = parts[1] if is_unfinished else parts[0]
        if stage in STAGES:
            return stage
    return None
