"""Files and folders that are whole or absent under their names, whenever a process is killed.

What is being written has a name that begins with ``TEMPORARY``, and nothing else is ever cleaned
up. Before it takes its final name it is on the disk (fsync), and so is the folder's entry
afterwards: a power cut leaves the old content or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bi_ray.files.errors import naming
from bi_ray.files.names import ASIDE, TEMPORARY, target_name, temporary_name

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # file systems that cannot sync a directory


@contextmanager
def write_whole(target: Path, durable: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """A new, empty file to fill, which replaces ``target`` when the block ends without an error.

    Args:
        target: the file.
        durable: whether it has to outlast a power cut; without, it is whole or absent after a kill
            alone.
        mode: its permissions, less the umask.

    Raises:
        OSError: it cannot be written; the error names ``target``, which stays as it was.
    """
    fresh = temporary_name(target)
    with naming(target):
        holder = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        try:
            _hold(holder)
            yield fresh
            if durable:
                put_in_place(fresh, target)
            else:
                fresh.replace(target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            os.close(holder)


def write_text(target: Path, text: str, durable: bool = True) -> None:
    """Make or replace a file that is whole at every moment; see ``write_whole``."""
    with write_whole(target, durable) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """A new folder to fill, which replaces ``target`` when the block ends without an error.

    A kill at any moment leaves the old folder, the new one, or (between two renames) the old one
    under a name of ``ASIDE``, which the next call puts back first. What a killed call left
    half-written goes too.

    Raises:
        OSError: it cannot be written; the error names ``target``, which stays as it was.
    """
    restore(target)
    remove_leftovers(target.parent, target.name)
    fresh = temporary_name(target)
    with naming(target):
        fresh.mkdir(parents=True)
        holder = os.open(fresh, os.O_RDONLY)
        try:
            _hold(holder)
            yield fresh
            sync_folder(fresh)
            _replace_folder(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            restore(target)
            raise
        finally:
            os.close(holder)
    shutil.rmtree(_aside(target), ignore_errors=True)


def _replace_folder(fresh: Path, target: Path) -> None:
    """Give a folder the name ``target``; a folder there already gets its name of ``ASIDE``."""
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        target.rename(_aside(target))
    fresh.rename(target)
    _sync(target.parent)


def put_in_place(fresh: Path, target: Path) -> None:
    """Give a finished file or folder its name, once all of it is on the disk."""
    if fresh.is_dir():
        sync_folder(fresh)
    else:
        _sync(fresh)
    fresh.replace(target)
    _sync(target.parent)


def restore(target: Path) -> None:
    """Put back what a kill between the two renames of ``write_atomically`` left aside."""
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(target)


def discard(folder: Path) -> None:
    """Remove a folder so that a kill leaves it whole or absent, never in part under its own name.

    Of a symbolic link only the link goes.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        doomed = temporary_name(folder)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def tidy(folder: Path) -> None:
    """Put back and remove what killed processes left below ``folder``, and nothing of others."""
    for aside in sorted(folder.rglob(f"{ASIDE}*")):
        restore(aside.with_name(aside.name.removeprefix(ASIDE)))
    for parent in {leftover.parent for leftover in folder.rglob(f"{TEMPORARY}*")}:
        remove_leftovers(parent)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes left half-written, and nothing that a living one is writing.

    Args:
        folder: where; it need not exist.
        name: only what was to become the file or folder of this name; "": all of it.
    """
    for leftover in list(folder.glob(f"{TEMPORARY}*")):
        if name and target_name(leftover) != name:
            continue
        if not _is_held(leftover):
            remove(leftover, ignore_errors=True)


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file, a link or a folder, if it is there.

    Args:
        path: what to remove; of a symbolic link only the link goes.
        ignore_errors: leave what cannot be removed of a folder.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)


def _aside(target: Path) -> Path:
    return target.with_name(f"{ASIDE}{target.name}")


def _hold(descriptor: int) -> None:
    """Show that a living process writes there; the kernel frees the lock when the process ends."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    """Whether a living process may be writing there; yes where the file system cannot tell."""
    if path.is_symlink():  # nobody writes a link, and what it points at is not opened
        return False
    mode = os.O_RDONLY if path.is_dir() else os.O_RDWR  # NFS locks only what is open for writing
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the disk write all files and folders below ``folder``, and itself, before returning."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(path) / name
            if not file.is_symlink():
                _sync(file)
        _sync(Path(path))
