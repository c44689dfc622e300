"""Folders and files that no other user of the machine can read or put anything into."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bi_ray.files.errors import RunError, in_words
from bi_ray.files.names import temporary_name

_GROUP_OR_OTHERS = 0o077
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class PrivacyError(RunError):
    """A folder or file is another user's, or others can change it; the message says what to do."""


def private_folder(path: Path) -> Path:
    """Make ``path`` if it is absent, for this user alone (mode 0700), and return it.

    Raises:
        PrivacyError: it is a link, a file or another user's, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise PrivacyError(f"{path} is a link, not a directory: remove it")
        if status.st_uid != os.geteuid():
            raise PrivacyError(
                f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}: ask "
                "that user to remove it"
            )
        if status.st_mode & _GROUP_OR_OTHERS:
            path.chmod(0o700)
    except OSError as error:
        raise PrivacyError(f"cannot make the folder {path}: {in_words(error)}") from error
    return path


def write_private(file: Path, text: str) -> bool:
    """Make or replace a file that only this user can read.

    Returns:
        Whether the file system keeps others out; where it has no modes, nothing is written.
    """
    temporary = temporary_name(file)
    with open(temporary, "x", opener=open_private) as content:
        private = not os.fstat(content.fileno()).st_mode & _GROUP_OR_OTHERS
        if private:
            content.write(text)
    if private:
        temporary.replace(file)
    else:
        temporary.unlink()
    return private


def open_private(path: str, flags: int) -> int:
    """An ``opener`` of ``open``: a file that it makes is readable by this user alone."""
    return os.open(path, flags, 0o600)


def read_own(file: Path) -> str:
    """The text of a file that nobody but this user can have written.

    Raises:
        FileNotFoundError: there is none.
        PrivacyError: the file or its directory belongs to another user, or others can write to it.
    """
    _refuse_foreign(file.parent, file.parent.stat())
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrivacyError(f"cannot read {file}: {error.strerror}") from error
    with open(descriptor, encoding="utf-8") as content:
        _refuse_foreign(file, os.fstat(descriptor))
        return content.read()


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise PrivacyError(
            f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}"
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise PrivacyError(f"others can write to {path} (chmod go-w would keep them out)")
