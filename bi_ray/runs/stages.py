"""The record of a stage, ``stage.json``: what it was made from, and every file that it made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from bi_ray.files.errors import RunError
from bi_ray.files.integrity import FileRecord, find_damage
from bi_ray.files.records import parse_record
from bi_ray.runs.layout import STAGE_FILE, stage_files
from bi_ray.runs.process import code_version
from bi_ray.runs.records import damaged, read_record, remedy_for, remedy_from
from bi_ray.runs.stage_key import StageKey


@dataclass(frozen=True, slots=True)
class StageRecord:
    """Content of ``stage.json``.

    Attributes:
        key, config, inputs: see ``StageKey``.
        code_version: version of the code that made the stage.
        seconds: how long that took; None while it is unfinished.
        files: size and digest of every file by its path in the folder; None while it is unfinished.
    """

    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    code_version: str
    seconds: float | None
    files: dict[str, FileRecord] | None = None


def read_stage(folder: Path) -> StageRecord:
    """The record in a stage's folder.

    Raises:
        RunError: the file is damaged or missing.
    """
    return read_record(folder / STAGE_FILE, StageRecord)


def parse_stage(text: str, run: str, stage: str) -> StageRecord:
    """The record of ``stage`` at the URI ``run``, from the text of its file.

    Raises:
        RunError: the text is damaged.
    """
    return parse_record(text, StageRecord, f"{run}/{stage}/{STAGE_FILE}", remedy_from(stage))


def write_stage(
    folder: Path, key: StageKey, seconds: float | None, files: dict[str, FileRecord] | None
) -> None:
    """Write the record of a stage; ``seconds`` and ``files`` are None of an unfinished one."""
    record = StageRecord(key.digest, key.config, key.inputs, code_version(), seconds, files)
    (folder / STAGE_FILE).write_text(json.dumps(to_jsonable_python(record), indent=1))


def is_finished(folder: Path) -> bool:
    """Whether a stage's folder is whole: then each of its files has to be there."""
    return (folder / STAGE_FILE).exists()


def stage_folders(run: Path) -> list[Path]:
    """The folder of every finished stage of a run, by name; those of arms after the rest."""
    return [file.parent for file in stage_files(run)]


def require_sizes(folder: Path, absent_ok: bool = False) -> None:
    """Check that every file of a finished stage is as long as when it was written.

    Args:
        folder: of the stage.
        absent_ok: a file may also be missing, such as weights that were removed to make room.

    Raises:
        RunError: a file is missing or has another size.
    """
    for name, record in (read_stage(folder).files or {}).items():
        file = folder / name
        try:
            size = file.stat().st_size
        except FileNotFoundError as error:
            if absent_ok:
                continue
            raise RunError(f"{file} is missing: {remedy_for(file)}") from error
        if size != record.bytes:
            raise damaged(file, f"{size:,} bytes of {record.bytes:,}")


def stage_damage(folder: Path) -> str | None:
    """The first file of a finished stage that is not as recorded, and how it differs; None: none.

    Reads every file.
    """
    try:
        files = read_stage(folder).files or {}
    except RunError as error:
        return str(error)
    return find_damage(folder, files)
