"""Files that are either whole or absent, and the run directory that is made of them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Self

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from bi_ray.config import RUN_CONFIG_FILE, Config, save_config
from bi_ray.integrity import FileRecord, find_damage, record_files
from bi_ray.uri import public_name

STAGE_FILE = "stage.json"
CHECKPOINT_FILE = "state.json"  # in a checkpoint of an unfinished stage, the last file that is written
CODE_VERSION_VARIABLE = "BI_RAY_CODE_VERSION"  # set for a job, whose copy of the code comes without .git
_SHOWN_DIFFERENCES = 20


class RunError(RuntimeError):
    """A run directory that cannot be used as asked; the message says what to change."""


class RunLocked(RunError):
    """Another process works in the run directory."""


class StageChanged(RunError):
    """A stage's artefact was made under another configuration or from other inputs."""


class DiskFull(RunError):
    """The disk filled while something was written; nothing half-written stayed."""


def job_id() -> str | None:
    """The id of the Ray job that this command is, None outside of one. Ray's job supervisor sets the variable."""
    job_config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return json.loads(job_config).get("metadata", {}).get("job_submission_id", "unknown") if job_config else None


def this_process() -> str:
    """What a lock says of its holder."""
    job = job_id()
    return f"{os.getpid()} (job {job} on {socket.gethostname()})" if job else str(os.getpid())


def absolute(path: str | Path) -> Path:
    """The absolute path of a run directory.

    Raises:
        RunError: it is relative, and this is a Ray job.
    """
    if job_id():
        refuse_relative("the run directory", path)
    return Path(path).absolute()


def refuse_relative(what: str, path: str | Path) -> None:
    """Raises RunError for a relative path: a job's folder is thrown away."""
    if not Path(path).is_absolute():
        raise RunError(
            f"{what}, {path}, is relative: a job runs in a copy of the working directory, and results in there would "
            "be lost; give an absolute path that every node sees, or a URI such as s3://bucket/run"
        )


def in_words(error: OSError) -> str:
    """Why the file system refused to write, in words."""
    told = {
        errno.ENOTDIR: "a part of the path is a file and no directory",
        errno.EEXIST: "a part of the path is a file and no directory",
        errno.EISDIR: "it is a directory",
        errno.ENOENT: "there is no such directory, and none can be made there",
        errno.EACCES: "this user has no right to write there",
        errno.EPERM: "this user has no right to write there",
        errno.EROFS: "it is on a disk that can only be read",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
    }
    return told.get(error.errno or 0, error.strerror or str(error))


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``target`` when the block ends without an error.

    A kill at any moment leaves the old folder, the new one, or (between two renames) the old one as ``target.old``,
    which the next call puts back first.
    """
    restore(target)
    fresh = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore(target: Path) -> None:
    """Put back what a kill between the two renames of ``write_atomically`` left aside."""
    old = target.with_name(f"{target.name}.old")
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)


@dataclass(frozen=True)
class StageKey:
    """What an artefact depends on, as plain JSON data, and the hash of it.

    Attributes:
        config: the parts of the configuration that the stage reads, by name.
        inputs: the digest of every artefact that the stage reads, by stage.
        digest: hash of the canonical JSON of both (64 bits, hexadecimal).
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    digest: str


def key_of(config: Mapping[str, object], inputs: Mapping[str, str]) -> StageKey:
    """The key of a stage.

    Args:
        config: parts of the configuration, sections or plain values, such as ``{"sft": run.sft, "seed": 3}``.
        inputs: digests of the stages that this one reads, such as ``{"data": data_key.digest}``.
    """
    parts = json.loads(json.dumps(to_jsonable_python(dict(config)), allow_nan=False))
    text = json.dumps([parts, dict(inputs)], sort_keys=True, separators=(",", ":"))
    return StageKey(parts, dict(inputs), hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


class RunDirectory:
    """Where the artefacts of one run live: the folder ``STAGE`` for each, ``work/STAGE`` while made.

    Used as a context manager it holds the run's lock, which the kernel releases when the process ends in whatever way.

    Attributes:
        path: the directory, absolute.
        name: what tells this run from others: the path, or the URI that the directory is a working copy of.

    Args:
        path: a directory, made if absent. For a URI see ``mirror.RunPlace``.

    Raises:
        RunError: the path is a URI or a file, or relative inside a Ray job.
    """

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise RunError(
                f"{public_name(str(path))}: this command works in a directory; `bi-ray run` and `study` take a URI"
            )
        self.path = absolute(path)
        self.name = str(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; name a directory for the run")
        self._lock: IO[str] | None = None
        self._whole: set[str] = set()  # stages whose files were compared with their digests

    def __enter__(self) -> Self:
        """Take the lock and remove what a killed process left half-written.

        Raises:
            RunLocked: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / ".lock", "a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RunLocked(f"{self.path} is in use by process {holder}: wait for it, or choose another run") from error
        lock.truncate(0)
        lock.write(this_process())
        lock.flush()
        self._lock = lock
        for leftover in [*self.path.glob("*.tmp"), *self.path.glob("*/*.tmp"), *self.path.glob("work/*/*.tmp")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def run_id(self) -> str:
        """Names this run among others: the same for the same directory or URI."""
        return key_of({"path": self.name}, {}).digest

    def artefact(self, stage: str) -> Path:
        """Where the finished artefact of ``stage`` is, or will be."""
        return self.path / stage

    def is_done(self, stage: str, key: StageKey) -> bool:
        """Whether ``stage`` has its artefact.

        Raises:
            StageChanged: it has one under another key; the message lists what differs.
        """
        restore(self.artefact(stage))
        return self._is_under(self.artefact(stage), stage, key)

    def work(self, stage: str, key: StageKey) -> Path:
        """The folder for what an unfinished ``stage`` keeps to go on from (checkpoints, metrics); made if absent.

        Raises:
            StageChanged: the work there was begun under another key.
        """
        folder = self.path / "work" / stage
        if not self._is_under(folder, stage, key):
            _discard(folder)
            with write_atomically(folder) as fresh:
                _write_stage_file(fresh, key, seconds=None, files={})
        return folder

    @contextmanager
    def commit(self, stage: str, key: StageKey, began: float | None = None) -> Iterator[Path]:
        """A folder to fill with the artefact of ``stage``; it appears, whole, when the block ends without an error.

        The folder that ``work`` gave is removed then. ``stage.json`` in the artefact holds the key, the code version,
        size and digest of every file, and the seconds since ``began`` (of ``time.monotonic``; None: since the block
        began).

        Raises:
            DiskFull: the disk filled while the block ran.
        """
        began = time.monotonic() if began is None else began
        with explain_full_disk(self.path, f"stage {stage}"), write_atomically(self.artefact(stage)) as folder:
            yield folder
            _write_stage_file(folder, key, time.monotonic() - began, record_files(folder))
        _discard(self.path / "work" / stage)

    def require_whole(self, *stages: str) -> None:
        """Compare the files of finished stages with their digests, each stage once; whoever reads a stage calls this.

        Raises:
            RunError: a file is not what it was when its stage was finished.
        """
        for stage in stages:
            if stage in self._whole:
                continue
            if reason := stage_damage(self.artefact(stage)):
                raise RunError(f"{self.artefact(stage)} is damaged: {reason}; {self._remedy(stage)}")
            self._whole.add(stage)

    def _remedy(self, stage: str) -> str:
        return f"make the stage again with --from {stage.split('/')[0]}"

    @contextmanager
    def keeping_work(self, stage: str, note: Callable[[str], None]) -> Iterator[None]:
        """While the block makes ``stage``, keep its checkpoints where the run lives; here they are there already.

        Args:
            stage: its name.
            note: told, once in a row, why a checkpoint could not be kept.
        """
        yield

    def forget_from(self, stage_order: Sequence[str], stage: str) -> None:
        """Remove the artefacts of ``stage`` and of every later one, all their arms, finished or not.

        Args:
            stage_order: the first parts of the stages' names in the order of the run, such as data, sft, rl.
            stage: where to start again.

        Raises:
            RunError: ``stage`` is not in ``stage_order``.
        """
        if stage not in stage_order:
            raise RunError(f"no stage is called {stage!r}; the stages are {', '.join(stage_order)}")
        for name in reversed(stage_order[stage_order.index(stage) :]):
            for folder in (self.path / name, self.path / f"{name}.old", self.path / "work" / name):
                _discard(folder)

    def _is_under(self, folder: Path, stage: str, key: StageKey) -> bool:
        if not (folder / STAGE_FILE).exists():
            return False
        found = json.loads((folder / STAGE_FILE).read_text())
        if found["key"] == key.digest:
            return True
        lines = differences({**found["config"], "inputs": found["inputs"]}, {**key.config, "inputs": key.inputs})
        more = [f"and {len(lines) - _SHOWN_DIFFERENCES} more"] if len(lines) > _SHOWN_DIFFERENCES else []
        listed = "\n  ".join(lines[:_SHOWN_DIFFERENCES] + more)
        raise StageChanged(
            f"stage {stage} of {self.path} was made under other settings:\n  {listed}\n"
            f"use a new run directory, or make it again with --from {stage.split('/')[0]}"
        )


def keep_config(config: Config, directory: Path, replace: bool) -> None:
    """Write the whole configuration, defaults included, as ``config.yaml`` of a run.

    Args:
        config: of the run.
        directory: of the run.
        replace: whether a file that is there already gives way.
    """
    file = directory / RUN_CONFIG_FILE
    if replace or not file.exists():
        save_config(config, file)


def differences(old: object, new: object, where: str = "") -> list[str]:
    """What differs between two pieces of JSON data, a line per leaf: ``sft.epochs: 5 -> 10``."""
    before, after = _leaves(old, where), _leaves(new, where)
    return [
        f"{name}: {before.get(name, '(absent)')} -> {after.get(name, '(absent)')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _leaves(value: object, where: str) -> dict[str, str]:
    """Every scalar, empty container and list of scalars in ``value`` as JSON text, by its dotted name."""
    children: dict[str, object] = {}
    if isinstance(value, dict):
        children = {f"{where}.{name}" if where else str(name): child for name, child in value.items()}
    elif isinstance(value, list) and any(isinstance(child, (dict, list)) for child in value):
        children = {f"{where}[{index}]": child for index, child in enumerate(value)}
    if not children:
        return {where: json.dumps(value)}
    return {name: text for path, child in children.items() for name, text in _leaves(child, path).items()}


def code_version() -> str:
    """The installed version of this package, with the commit where it runs, or was submitted, from a git checkout."""
    if said := os.environ.get(CODE_VERSION_VARIABLE):
        return said
    version = metadata.version("bi-ray")
    root = Path(__file__).parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return version
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
    )
    return f"{version}+{described.stdout.strip()}" if described.returncode == 0 else version


def stage_damage(folder: Path) -> str | None:
    """How the files of a finished stage differ from what its ``stage.json`` says of them; None if they do not."""
    try:
        content = json.loads((folder / STAGE_FILE).read_bytes())
        records = TypeAdapter(dict[str, FileRecord]).validate_python(content["files"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        return f"{STAGE_FILE} cannot be read ({type(error).__name__})"
    return find_damage(folder, records)


def _write_stage_file(folder: Path, key: StageKey, seconds: float | None, files: Mapping[str, FileRecord]) -> None:
    content = {
        "key": key.digest,
        "config": key.config,
        "inputs": key.inputs,
        "code_version": code_version(),
        "seconds": seconds,
        "files": {name: record.model_dump() for name, record in files.items()},
    }
    (folder / STAGE_FILE).write_text(json.dumps(content, indent=1))


def _discard(folder: Path) -> None:
    """Remove a folder so that a kill leaves it whole or absent, never in part under its own name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


@contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Raises DiskFull, which says what to do, where the block fails for want of space while it writes ``what``."""
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {folder} while {what} was written; nothing half-written stayed: free some "
            "space and run the same command again"
        ) from error


def _is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space; safetensors and arrow raise errors of their own with the same words."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)
