"""Sizes and digests of the files of a folder, to tell later whether they are still what was
written.

A power cut can leave a file short or full of zeros under its final name, and disks and networks
flip bits now and then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict


class FileRecord(BaseModel):
    """What a file was when it was written.

    Attributes:
        bytes: its size.
        xxh3_128: its digest, hexadecimal; ``xxhsum -H2 FILE`` prints the same.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: int
    xxh3_128: str


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every file below ``folder``, hidden ones left out, by its path relative to
    it.
    """
    records: dict[str, FileRecord] = {}
    for name in file_names(folder):
        file = folder / name
        records[name] = FileRecord(bytes=file.stat().st_size, xxh3_128=_digest(file))
    return records


def find_damage(folder: Path, records: Mapping[str, FileRecord]) -> str | None:
    """The first file below ``folder`` that is not as recorded, and how it differs; None if all are
    as recorded.
    """
    try:
        # Sizes first: they cost nothing, and most damage shows there.
        for name, record in records.items():
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != record.bytes:
                return f"{name} has {file.stat().st_size:,} bytes, not {record.bytes:,}"
        for name, record in records.items():
            if _digest(folder / name) != record.xxh3_128:
                return f"{name} has changed since it was written (its digest differs)"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror or error}"
    return None


def sync_folder(folder: Path) -> None:
    """Have the disk write every file and directory below ``folder``, and the folder itself, before
    this returns.

    Without it, a power cut soon after a rename can leave files that are empty or cut under their
    final names.
    """
    for parent, _, files in os.walk(folder):
        for file in files:
            sync(Path(parent) / file)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Have the disk write one file, or one directory's list of names, before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_names(folder: Path) -> list[str]:
    """Relative paths of all files below ``folder``, without hidden ones (``.nfs0001``) and what is
    being written.
    """
    names = []
    for parent, folders, files in os.walk(folder):  # passes over folders that are removed meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if not file.startswith("."):
                names.append((Path(parent) / file).relative_to(folder).as_posix())
    return sorted(names)


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()
