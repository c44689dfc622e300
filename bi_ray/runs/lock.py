"""The lock of a run directory: one process works in it at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from bi_ray.files.errors import RunError, in_words, naming
from bi_ray.runs.layout import LOCK_FILE
from bi_ray.runs.process import this_process

_SHOWN_HOLDER = 200  # bytes of a lock file that are shown


class RunLocked(RunError):
    """Another process works in the run directory."""


def take_lock(run: Path) -> IO[bytes]:
    """Lock a run directory until the file is closed; the kernel closes it when the process ends.

    Raises:
        RunLocked: another process has the lock.
        RunError: the file system has no locks.
        OSError: the lock file cannot be written; the error names it.
    """
    file = run / LOCK_FILE
    with naming(file):
        lock = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", 0)
    try:
        _lock_and_sign(lock, file)
    except BaseException:
        lock.close()
        raise
    return lock


def _lock_and_sign(lock: IO[bytes], file: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder_in(lock.read())
        raise RunLocked(
            f"{file.parent} is in use by process {holder}: wait for it, or choose another run"
        ) from error
    except OSError as error:
        raise RunError(
            f"{file} cannot be locked: {in_words(error)}; choose a directory on another disk"
        ) from error
    with naming(file):
        lock.truncate(0)
        lock.write(this_process().encode())


def lock_holder(run: Path) -> str | None:
    """The process that holds the lock of a run directory, as it signed; None where nobody does.

    Raises:
        RunError: there is something else in the place of the lock, or it cannot be read.
    """
    file = run / LOCK_FILE
    try:
        with open(file, "rb") as lock:
            return _locked_by(lock)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"{file} is not a readable lock file: {in_words(error)}; remove it"
        ) from error


def _locked_by(lock: IO[bytes]) -> str | None:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {_holder_in(lock.read())}"
    return None


def _holder_in(content: bytes) -> str:
    """What a lock file says of its holder, as far as it can be shown in a line."""
    text = content[:_SHOWN_HOLDER].decode(errors="replace")
    return " ".join("".join(filter(str.isprintable, text)).split()) or "unknown"
