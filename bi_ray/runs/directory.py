"""Files that are either whole or absent, and the run directory that is made of them."""

from __future__ import annotations

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

from pydantic_core import to_jsonable_python

from bi_ray.config import RUN_CONFIG_FILE, Config, save_config
from bi_ray.files.atomic import discard, restore, tidy, write_atomically
from bi_ray.files.errors import RunError, explain_full_disk, in_words, naming
from bi_ray.files.integrity import FileRecord, find_damage, record_files
from bi_ray.files.names import RUN_MARK
from bi_ray.files.uri import public_name
from bi_ray.runs.layout import (
    LOCK_FILE,
    REPORT,
    STAGE_FILE,
    StageRecord,
    holder_in,
    read_stage,
    refuse_foreign,
    refuse_foreign_files,
    refuse_foreign_report,
    require_sizes,
)

# set for a job, whose copy of the code comes without .git
CODE_VERSION_VARIABLE = "BI_RAY_CODE_VERSION"
_SHOWN_DIFFERENCES = 20


class RunLocked(RunError):
    """Another process works in the run directory."""


class StageChanged(RunError):
    """A stage's artifact was made under another configuration or from other inputs."""


def job_id() -> str | None:
    """The id of the Ray job that this command is, None outside of one. Ray's job supervisor sets
    the variable.
    """
    job_config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return (
        json.loads(job_config).get("metadata", {}).get("job_submission_id", "unknown")
        if job_config
        else None
    )


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


@dataclass(frozen=True)
class StageKey:
    """What an artifact depends on, as plain JSON data, and the hash of it.

    Attributes:
        config: the parts of the configuration that the stage reads, by name.
        inputs: the digest of every artifact that the stage reads, by stage.
        digest: hash of the canonical JSON of both (64 bits, hexadecimal).
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    digest: str


def key_of(config: Mapping[str, object], inputs: Mapping[str, str]) -> StageKey:
    """The key of a stage.

    Args:
        config: parts of the configuration, sections or plain values, such as ``{"sft": run.sft,
            "seed": 3}``.
        inputs: digests of the stages that this one reads, such as ``{"data": data_key.digest}``.
    """
    parts = json.loads(json.dumps(to_jsonable_python(dict(config)), allow_nan=False))
    text = json.dumps([parts, dict(inputs)], sort_keys=True, separators=(",", ":"))
    return StageKey(parts, dict(inputs), hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


class RunDirectory:
    """Where the artifacts of one run live: the folder ``STAGE`` for each, ``work/STAGE`` while
    made.

    Used as a context manager it holds the run's lock, which the kernel releases when the process
    ends in whatever way.

    Attributes:
        path: the directory, absolute.
        name: what tells this run from others: the path, or the URI that the directory is a working
            copy of.

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
        self._lock: IO[bytes] | None = None
        self._whole: set[str] = set()  # stages whose files were compared with their digests

    def __enter__(self) -> Self:
        """Take the lock and remove what a killed process left half-written.

        Raises:
            RunLocked: another process has it.
            RunError: the directory has files and is not a run directory; nothing in it was touched.
        """
        begin_directory(self.path)
        self._lock = self._take_lock()
        tidy(self.path)
        return self

    def _take_lock(self) -> IO[bytes]:
        file = self.path / LOCK_FILE
        with naming(file):
            lock = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", 0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = holder_in(lock.read())
            lock.close()
            raise RunLocked(
                f"{self.path} is in use by process {holder}: wait for it, or choose another run"
            ) from error
        except OSError as error:
            lock.close()
            raise RunError(
                f"{file} cannot be locked: {in_words(error)}; choose a directory on another disk"
            ) from error
        try:
            with naming(file):
                lock.truncate(0)
                lock.write(this_process().encode())
        except OSError:
            lock.close()
            raise
        return lock

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def run_id(self) -> str:
        """Names this run among others: the same for the same directory or URI."""
        return key_of({"path": self.name}, {}).digest

    def artifact(self, stage: str) -> Path:
        """Where the finished artifact of ``stage`` is, or will be."""
        return self.path / stage

    def is_done(self, stage: str, key: StageKey) -> bool:
        """Whether ``stage`` has its artifact.

        Raises:
            StageChanged: it has one under another key; the message lists what differs.
            RunError: it has one, and files of it are damaged. Absent ones, such as weights that
                were removed to make room, matter to whoever reads them; see ``require_whole``.
        """
        folder = self.artifact(stage)
        restore(folder)
        if not self._is_under(folder, stage, key):
            return False
        require_sizes(folder, absent_ok=True)
        return True

    def work(self, stage: str, key: StageKey) -> Path:
        """The folder for what an unfinished ``stage`` keeps to go on from (checkpoints, metrics);
        made if absent.

        Raises:
            StageChanged: the work there was begun under another key.
            RunError: the folder is there, and bi-ray did not make it.
        """
        folder = self.path / "work" / stage
        if not self._is_under(folder, stage, key):
            refuse_foreign_files(folder)
            with write_atomically(folder) as fresh:
                _write_stage_file(fresh, key, seconds=None, files=None)
        return folder

    @contextmanager
    def commit(self, stage: str, key: StageKey, began: float | None = None) -> Iterator[Path]:
        """A folder to fill with the artifact of ``stage``; it appears, whole, when the block ends
        without an error.

        The folder that ``work`` gave is removed then. ``stage.json`` in the artifact holds the key,
        the code version, size and digest of every file, and the seconds since ``began`` (of
        ``time.monotonic``; None: since the block began).

        Raises:
            DiskFull: the disk filled while the block ran.
            RunError: there is a folder in its place that bi-ray did not make.
        """
        began = time.monotonic() if began is None else began
        refuse_foreign_files(self.artifact(stage))
        with (
            explain_full_disk(self.path, f"stage {stage}"),
            write_atomically(self.artifact(stage)) as folder,
        ):
            yield folder
            record = record_files(folder)
            _write_stage_file(folder, key, seconds=time.monotonic() - began, files=record)
        discard(self.path / "work" / stage)

    def require_whole(self, *stages: str) -> None:
        """Compare the files of finished stages with their digests, each stage once; whoever reads a
        stage calls this.

        Raises:
            RunError: a file is not what it was when its stage was finished.
        """
        for stage in stages:
            if stage in self._whole:
                continue
            # none recorded: nothing to compare with
            files = read_stage(self.artifact(stage)).files or {}
            if reason := find_damage(self.artifact(stage), files):
                raise RunError(
                    f"{self.artifact(stage)} is damaged: {reason}; {self._remedy(stage)}"
                )
            self._whole.add(stage)

    def _remedy(self, stage: str) -> str:
        return f"make the stage again with --from {stage.split('/')[0]}"

    @contextmanager
    def keeping_work(self, stage: str, note: Callable[[str], None]) -> Iterator[None]:
        """While the block makes ``stage``, keep its checkpoints where the run lives; here they are
        there already.

        Args:
            stage: its name.
            note: told, once in a row, why a checkpoint could not be kept.
        """
        yield

    def forget_from(self, stage_order: Sequence[str], stage: str) -> None:
        """Remove the artifacts of ``stage`` and of every later one, all their arms, finished or
        not.

        Whatever else is in those folders stays.

        Args:
            stage_order: the first parts of the stages' names in the order of the run, such as data,
                sft, rl.
            stage: where to start again.

        Raises:
            RunError: ``stage`` is not in ``stage_order``, or files of the user are inside an
                artifact; nothing is removed then.
        """
        if stage not in stage_order:
            raise RunError(f"no stage is called {stage!r}; the stages are {', '.join(stage_order)}")
        forgotten = stage_order[stage_order.index(stage) :]
        doomed = [self._made_by(name) for name in reversed(forgotten)]
        for folders in doomed:
            for folder in folders:
                discard(folder)
        for name in forgotten:
            for parent in (self.path / name, self.path / "work" / name):
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def _made_by(self, stage: str) -> list[Path]:
        """The folders of a stage, one per arm where it has arms, that hold what it made and nothing
        else.
        """
        whole = self.path / stage
        if stage == REPORT:
            refuse_foreign_report(whole)
            return [whole]
        candidates = [whole, self.path / "work" / stage]
        for parent in list(candidates):
            if parent.is_dir():
                candidates += sorted(child for child in parent.iterdir() if child.is_dir())
        folders = [folder for folder in candidates if (folder / STAGE_FILE).exists()]
        if not folders:
            refuse_foreign_files(whole)
        for folder in folders:
            refuse_foreign_files(folder)
        return folders

    def _is_under(self, folder: Path, stage: str, key: StageKey) -> bool:
        if not (folder / STAGE_FILE).exists():
            return False
        found = read_stage(folder)
        if found.key == key.digest:
            return True
        lines = differences(
            {**found.config, "inputs": found.inputs}, {**key.config, "inputs": key.inputs}
        )
        more = (
            [f"and {len(lines) - _SHOWN_DIFFERENCES} more"]
            if len(lines) > _SHOWN_DIFFERENCES
            else []
        )
        listed = "\n  ".join(lines[:_SHOWN_DIFFERENCES] + more)
        raise StageChanged(
            f"stage {stage} of {self.path} was made under other settings:\n  {listed}\n"
            f"use a new run directory, or make it again with --from {stage.split('/')[0]}"
        )


def begin_directory(path: Path) -> None:
    """Make the directory of a run or study and mark it as ours.

    Raises:
        RunError: it has files and is not a run directory; nothing in it was touched.
    """
    refuse_foreign(path)
    with naming(path):
        # `scale` trusts no directory that others can write to
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not (path / RUN_MARK).exists():
            (path / RUN_MARK).touch()


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
    """Every scalar, empty container and list of scalars in ``value`` as JSON text, by its dotted
    name.
    """
    children: dict[str, object] = {}
    if isinstance(value, dict):
        children = {
            f"{where}.{name}" if where else str(name): child for name, child in value.items()
        }
    elif isinstance(value, list) and any(isinstance(child, (dict, list)) for child in value):
        children = {f"{where}[{index}]": child for index, child in enumerate(value)}
    if not children:
        return {where: json.dumps(value)}
    return {
        name: text
        for path, child in children.items()
        for name, text in _leaves(child, path).items()
    }


def code_version() -> str:
    """The installed version of this package, with the commit where it runs, or was submitted, from
    a git checkout.
    """
    if said := os.environ.get(CODE_VERSION_VARIABLE):
        return said
    version = metadata.version("bi-ray")
    root = Path(__file__).parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return version
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        timeout=10,
    )
    return f"{version}+{described.stdout.strip()}" if described.returncode == 0 else version


def stage_damage(folder: Path) -> str | None:
    """How the files of a finished stage differ from what its ``stage.json`` says of them; None if
    they do not.
    """
    try:
        files = read_stage(folder).files or {}
    except RunError as error:
        return str(error)
    return find_damage(folder, files)


def _write_stage_file(
    folder: Path, key: StageKey, seconds: float | None, files: dict[str, FileRecord] | None
) -> None:
    record = StageRecord(key.digest, key.config, key.inputs, code_version(), seconds, files)
    (folder / STAGE_FILE).write_text(json.dumps(to_jsonable_python(record), indent=1))
