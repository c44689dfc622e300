"""Sizes and digests of the files of a folder, which tell later whether they are as written.

A power cut can leave a file short or full of zeros under its final name, and disks and networks
flip bits now and then.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict

log = logging.getLogger(__name__)


class FileRecord(BaseModel):
    """Size and digest of a file when it was written.

    Attributes:
        bytes: size of the file.
        xxh3_128: digest, hexadecimal; ``xxhsum -H2 FILE`` prints the same.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: int
    xxh3_128: str


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below ``folder`` by its relative path, hidden ones left out."""
    records: dict[str, FileRecord] = {}
    for name in file_names(folder):
        file = folder / name
        records[name] = FileRecord(bytes=file.stat().st_size, xxh3_128=_digest(file))
    return records


def find_damage(folder: Path, records: Mapping[str, FileRecord]) -> str | None:
    """The first file below ``folder`` that is not as recorded, and how it differs; None: none."""
    try:
        # Sizes first: they cost nothing, and most damage shows there.
        for name, record in records.items():
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            size = file.stat().st_size
            if size != record.bytes:
                return f"{name} has {size:,} bytes, not {record.bytes:,}"
        for name, record in records.items():
            if _digest(folder / name) != record.xxh3_128:
                return f"{name} has changed since it was written (its digest differs)"
    except OSError as error:
        log.info("%s cannot be compared with its digests", folder, exc_info=True)
        return f"{error.filename or folder} cannot be read: {error.strerror or error}"
    return None


def file_names(folder: Path) -> list[str]:
    """Relative paths of all files below ``folder``, sorted.

    Without hidden ones, such as ``.nfs0001``, and without what is being written.
    """
    names: list[str] = []
    for parent, folders, files in os.walk(folder):  # passes over folders that are removed meanwhile
        folders[:] = _visible(folders)
        relative = Path(parent).relative_to(folder)
        names += [(relative / file).as_posix() for file in _visible(files)]
    return sorted(names)


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()
