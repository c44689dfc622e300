"""Files and folders that are whole or absent, and readers that name what is damaged.

What is being written has a name that begins with ``TEMPORARY``, and nothing else is ever cleaned up. Before it takes
its final name it is on the disk (fsync), and so is the folder's entry afterwards: a power cut leaves the old content
or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import shutil
import uuid
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

OURS = ".bi-ray-"
TEMPORARY = f"{OURS}tmp-"
ASIDE = f"{OURS}old-"  # what a new folder replaces, between two renames
RUN_MARK = f"{OURS}run"  # in every run directory, from its beginning
STAGES = (  # the first parts of their names, in the order of a run
    "data", "eval_base", "sft_data", "sft", "eval_sft", "target", "readiness", "realized", "sft_double",
    "eval_sft_double", "queries", "rl", "eval_rl", "report",
)  # fmt: skip
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # file systems that cannot sync a directory
T = TypeVar("T")


class RunError(RuntimeError):
    """A run directory that cannot be used as asked; the message says what to change."""


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
    """Let every error of the file system name ``path``: that of a write names no file, that of a rename our own."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or TEMPORARY in str(error.filename)):
            error.filename = str(path)
            del error.filename2
        raise


def temporary_name(target: Path) -> Path:
    """A free name beside ``target`` for what is to take its place."""
    return target.with_name(f"{TEMPORARY}{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def target_name(temporary: Path) -> str:
    """The name of the target, from a name that ``temporary_name`` gave."""
    return temporary.name.removeprefix(TEMPORARY).removesuffix(".tmp").rpartition(".")[0]


@contextmanager
def write_whole(target: Path, durable: bool = True) -> Iterator[Path]:
    """A new, empty file to fill, which takes the place of ``target`` when the block ends without an error.

    Args:
        target: the file.
        durable: whether it has to outlast a power cut; without, it is whole or absent after a kill alone.

    Raises:
        OSError: it cannot be written; the error names ``target``, which stays as it was.
    """
    fresh = temporary_name(target)
    with naming(target):
        holder = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
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
    """A new folder to fill, which takes the place of ``target`` when the block ends without an error.

    A kill at any moment leaves the old folder, the new one, or (between two renames) the old one under a name of
    ``ASIDE``, which the next call puts back first. What a killed call left half-written goes too.
    """
    restore(target)
    remove_leftovers(target.parent, target.name)
    fresh, aside = temporary_name(target), _aside(target)
    with naming(target):
        fresh.mkdir(parents=True)
        holder = os.open(fresh, os.O_RDONLY)
        try:
            _hold(holder)
            yield fresh
            _sync_tree(fresh)
            if target.is_symlink():
                target.unlink()
            elif target.exists():
                target.rename(aside)
            fresh.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            restore(target)
            raise
        finally:
            os.close(holder)
    shutil.rmtree(aside, ignore_errors=True)


def put_in_place(fresh: Path, target: Path) -> None:
    """Give a finished file or folder its name, once all of it is on the disk."""
    if fresh.is_dir():
        _sync_tree(fresh)
    else:
        _sync(fresh)
    fresh.replace(target)
    _sync(target.parent)


def restore(target: Path) -> None:
    """Put back what a kill between the two renames of ``write_atomically`` left aside."""
    aside = _aside(target)
    if aside.exists():
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
    """Put back and remove whatever killed processes left below ``folder``, at any depth; nothing that is not ours."""
    for aside in sorted(folder.rglob(f"{ASIDE}*")):
        restore(aside.with_name(aside.name.removeprefix(ASIDE)))
    for parent in {leftover.parent for leftover in folder.rglob(f"{TEMPORARY}*")}:
        remove_leftovers(parent)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes left half-written in ``folder``, and nothing that a living one is writing.

    Args:
        folder: need not exist.
        name: only what was to become the file or folder of this name; "": all of it.
    """
    for leftover in list(folder.glob(f"{TEMPORARY}*")):
        if name and target_name(leftover) != name:
            continue
        if _is_held(leftover):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _aside(target: Path) -> Path:
    return target.with_name(f"{ASIDE}{target.name}")


def _hold(descriptor: int) -> None:
    """Show that a living process writes there: the kernel frees this lock when the process ends in whatever way."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    """Whether a living process may be writing there: also where the file system does not tell."""
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


def _sync_tree(folder: Path) -> None:
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(path) / name
            if not file.is_symlink():
                _sync(file)
        _sync(Path(path))


@contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Raises DiskFull, which says what to do, where the block fails for want of space while it writes ``what``."""
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {folder} while {what} was written; nothing half-written remains; free some "
            "space and run the same command again"
        ) from error


def _is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space; safetensors and arrow raise errors of their own with the same words."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


# --- reading


def read_record(path: Path, kind: type[T], remedy: str | None = None) -> T:
    """A JSON file as an object of ``kind``: a dataclass, a TypedDict or a type such as ``dict[str, int]``.

    Args:
        path: the file.
        kind: its fields and their types; further fields are left out, or kept where ``kind`` allows them.
        remedy: what makes the file again, for the message; None: the stage that it belongs to.

    Raises:
        RunError: it is missing or damaged; one line that names the file and the remedy.
    """
    return parse_record(_content(path, remedy), kind, str(path), remedy or remedy_for(path))


def parse_record(text: bytes | str, kind: type[T], where: str, remedy: str) -> T:
    """The same of the text of a JSON file.

    Args:
        text: of the file, or of one line of it.
        kind: see ``read_record``.
        where: the file, and the line, for the message.
        remedy: what makes the file again, for the message.

    Raises:
        RunError: see ``read_record``.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        return cast(T, _adapter(cast(Hashable, kind)).validate_python(value))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "it"
        reason = f"{field}: {fault['msg'].lower()}"
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except (ValueError, RecursionError):
        reason = "not JSON" if text.strip() else "empty"
    raise RunError(f"{where} is damaged ({reason}): {remedy}")


def read_jsonl(path: Path, kind: type[T], growing: bool = False) -> list[T]:
    """The rows of a file of JSON lines, each an object of ``kind``.

    Args:
        path: the file.
        kind: see ``read_record``.
        growing: somebody may be writing it: it may be absent, and a last line without an end is left out.

    Raises:
        RunError: it is missing or damaged; one line that names the file, the line and the remedy.
    """
    if growing and not path.exists():
        return []
    return parse_jsonl(_content(path, None), kind, str(path), remedy_for(path), growing)


def parse_jsonl(text: bytes | str, kind: type[T], where: str, remedy: str, growing: bool = False) -> list[T]:
    """The same of the text of a file; the arguments are those of ``parse_record``."""
    content = text if isinstance(text, bytes) else text.encode()
    *lines, rest = content.split(b"\n")
    if rest and not growing:
        raise RunError(f"{where} is damaged (line {len(lines) + 1} is cut off): {remedy}")
    return [parse_record(line, kind, f"{where}, line {number},", remedy) for number, line in enumerate(lines, start=1)]


def damaged(path: Path, reason: str) -> RunError:
    """The error about a file of a run that is not as it was written."""
    return RunError(f"{path} is damaged ({reason}): {remedy_for(path)}")


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _content(path: Path, remedy: str | None) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {remedy or remedy_for(path)}") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {in_words(error)}") from error


def remedy_for(path: Path) -> str:
    """What makes a file of a run directory again."""
    for folder in path.parents:
        if any((folder / name).exists() for name in (RUN_MARK, ".lock", "config.yaml")):
            parts = path.relative_to(folder).parts
            stage = parts[1] if parts[0] == "work" and len(parts) > 2 else parts[0]
            if stage in STAGES:
                return f"make it again with --from {stage}"
    return "restore it from a copy, or remove it and make it again"
