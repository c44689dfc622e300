"""Errors of the file system, in words for people."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bi_ray.files.names import TEMPORARY


class RunError(RuntimeError):
    """A run directory cannot be used as asked; the message says what to change."""


class DiskFull(RunError):
    """The disk filled while something was written; nothing half-written remains."""


def in_words(error: OSError) -> str:
    """Why the file system refused, in words."""
    reasons = {
        errno.ENOTDIR: "part of the path is a file, not a directory",
        errno.EEXIST: "part of the path is a file, not a directory",
        errno.EISDIR: "it is a directory",
        errno.ENOENT: "there is no such file or directory",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EROFS: "the file system is read-only",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.ELOOP: "it is a symbolic link",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every error of the file system in the block name ``path``.

    That of a write names no file, and that of a rename one of our temporary ones.
    """
    try:
        yield
    except OSError as error:
        names_another = error.filename is None or TEMPORARY in str(error.filename)
        if error.errno is not None and names_another:
            error.filename = str(path)
            del error.filename2
        raise


@contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Explain a full disk in the block, which writes ``what`` into ``folder``.

    Raises:
        DiskFull: the block failed for want of space.
    """
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {folder} while {what} was written; nothing half-written "
            "remains; free some space and run the same command again"
        ) from error


def _is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space.

    safetensors and Arrow raise errors of their own with the words of the operating system.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)
