"""Where a run lives: a directory, or a URI (s3://, gs://, file://) with a working copy in a directory.

Stages work in the copy. A finished stage is sent to the URI when it is committed, its ``stage.json`` last, so that it
is whole there or absent; and it is fetched from there when a run begins and the copy lacks it. The checkpoints of an
unfinished stage go there too, under ``work/``, each with its ``state.json`` last.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem, copy_files

from bi_ray.store import (
    CHECKPOINT_FILE,
    STAGE_FILE,
    RunDirectory,
    RunError,
    RunLocked,
    StageKey,
    absolute,
    this_process,
    write_atomically,
)

LOCAL_VARIABLE = "BI_RAY_LOCAL"
LOCK = "lock.json"
RENEW_S = 30.0
STALE_S = 180.0  # a lock that was not renewed for so long belongs to nobody; clocks may differ by a minute or two
_SETTLE_S = 1.0  # between writing a lock and looking whose it is: two that begin together see each other
_READS = 5
_WORK = "work/"
_SEND_WORK_S = 5.0  # between two looks for new checkpoints
_UNSENT = ".unsent"  # in a stage of the copy that the URI does not have yet


@dataclass(frozen=True, slots=True)
class RunPlace:
    """A run directory as a user names it.

    Attributes:
        path: the directory, or the working copy of the URI; absolute.
        uri: None for a directory.
    """

    path: Path
    uri: str | None = None

    @classmethod
    def of(cls, text: str, local: Path | None = None) -> RunPlace:
        """The place that ``text``, a path or a URI, names.

        Args:
            text: what stands after ``--run``.
            local: under which folder the working copy of a URI is kept; None: ``$BI_RAY_LOCAL``, else the user's cache.
                On a cluster of several nodes every node has to see it.

        Raises:
            RunError: the path is relative inside a Ray job, whose folder is thrown away.
        """
        if "://" not in text:
            return cls(absolute(text))
        uri = text.rstrip("/")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bi_ray"
        parent = local or Path(os.environ.get(LOCAL_VARIABLE) or cache)
        name = public_name(uri)
        digest = blake2b(name.encode(), digest_size=4).hexdigest()
        return cls(absolute(parent) / f"{name.rpartition('/')[2]}-{digest}", uri)

    @property
    def name(self) -> str:
        """The path, or the URI without its query and credentials."""
        return public_name(self.uri) if self.uri else str(self.path)

    def __truediv__(self, child: str) -> RunPlace:
        if self.uri is None:
            return RunPlace(self.path / child)
        parts = urlsplit(self.uri)
        return RunPlace(self.path / child, urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{child}")))

    def directory(self) -> RunDirectory:
        """The run directory there; a context manager that holds its lock."""
        return MirroredRun(self.uri, self.path) if self.uri else RunDirectory(self.path)

    def publish(self, folder: str) -> None:
        """Send a folder that is no stage, such as the report, to the URI; nothing to do for a directory."""
        if self.uri:
            Remote(self.uri).send(self.path / folder, folder)

    def publish_file(self, name: str) -> None:
        """The same of a single file."""
        if self.uri:
            Remote(self.uri).write(name, (self.path / name).read_text())


def public_name(uri: str) -> str:
    """A URI as it may be shown: without its query and credentials."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


class Remote:
    """A folder in a file system that pyarrow reaches by URI.

    Raises:
        RunError: from every method, when the file system refuses or does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.name = public_name(uri)
        with self._explained("open"):
            files, root = FileSystem.from_uri(uri)
            self._files = SubTreeFileSystem(root, files)
            self._folder = Path(root) if isinstance(files, LocalFileSystem) else None

    def stages(self) -> dict[str, str]:
        """The content of ``stage.json`` of every finished stage, by stage."""
        folders = [name for name in self.folders_with(STAGE_FILE) if not name.startswith(_WORK)]
        return {name: self.read(f"{name}/{STAGE_FILE}") for name in folders}

    def folders_with(self, base_name: str, below: str = "") -> list[str]:
        """Every folder that has a file of this name, by its path from the root."""
        with self._explained("list"):
            found = self._files.get_file_info(FileSelector(below, recursive=True, allow_not_found=True))
        return sorted(f.path.rpartition("/")[0] for f in found if f.base_name == base_name and "/" in f.path)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._explained("read"):
            return self._files.get_file_info(name).type == FileType.File

    def read(self, name: str) -> str:
        """The text of a file."""
        with self._explained("read"), self._files.open_input_stream(name) as stream:
            return stream.read().decode()

    def write(self, name: str, text: str) -> None:
        """Make or replace a file."""
        with self._explained("write"):
            self._make_folder_of(name)
            with self._files.open_output_stream(name) as stream:
                stream.write(text.encode())

    def send(self, folder: Path, name: str, mark: str = STAGE_FILE) -> None:
        """Replace the folder ``name`` by ``folder``: without the file ``mark`` at first, and it comes last."""
        self.remove(name, mark)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _UNSENT]
        for file in sorted(files, key=lambda file: file == folder / mark):
            self.send_file(file, f"{name}/{file.relative_to(folder).as_posix()}")

    def send_file(self, file: Path, name: str) -> None:
        """Make or replace the file ``name``."""
        with self._explained("write"):
            self._make_folder_of(name)
            copy_files(str(file), name, LocalFileSystem(), self._files)

    def fetch(self, name: str, folder: Path) -> None:
        """Fill ``folder`` with the files of ``name``."""
        with self._explained("read"):
            copy_files(name, str(folder), self._files, LocalFileSystem())

    def remove(self, name: str, mark: str = STAGE_FILE) -> None:
        """Remove the folder ``name``, its file ``mark`` first."""
        with self._explained("remove"):
            if self._files.get_file_info(f"{name}/{mark}").type == FileType.File:
                self._files.delete_file(f"{name}/{mark}")
            self._files.delete_dir_contents(name, missing_dir_ok=True)

    def remove_file(self, name: str) -> None:
        """Remove a file that is there."""
        with self._explained("remove"):
            self._files.delete_file(name)

    def _make_folder_of(self, name: str) -> None:
        if self._folder:  # object stores need none
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"cannot {verb} {self.name}: {reason}") from error


class RemoteLock:
    """A lock file with owner and time. It is renewed by a thread, and holds as long as the time is recent.

    Object stores have no locks, so two that begin within the same moment are told apart by who wrote last, and whoever
    lost the lock, having been cut off for longer than ``STALE_S``, notices before it sends anything.

    Args:
        remote: where.
        owner: who; one that finds a lock of the same owner takes it over at once.
    """

    def __init__(self, remote: Remote, owner: str) -> None:
        self._remote = remote
        self._owner = owner
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, daemon=True)

    def take(self) -> None:
        """Raises RunLocked where somebody else has it."""
        holder = read_lock(self._remote)
        if holder and holder["owner"] != self._owner and is_fresh(holder):
            raise self._locked_by(holder)
        self._write()
        time.sleep(_SETTLE_S)
        self.check()
        self._thread.start()

    def check(self) -> None:
        """Raises RunLocked where it is not ours any more."""
        holder = read_lock(self._remote)
        if holder is None or holder["token"] != self._token:
            raise self._locked_by(holder or {"process": "nobody", "owner": "nowhere: the lock was removed"})

    def release(self) -> None:
        """Give it back, if it is ours; where nobody answers it gets old, and the reason why a run ended stays seen."""
        self._stop.set()
        self._thread.join()
        with suppress(RunError):
            self.check()
            self._remote.remove_file(LOCK)

    def _renew_for_ever(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self.check()
                self._write()
            except RunLocked:
                return  # the next commit says so
            except RunError:
                continue  # not reachable for now

    def _write(self) -> None:
        content = {"owner": self._owner, "process": this_process(), "token": self._token, "time": time.time()}
        self._remote.write(LOCK, json.dumps(content))

    def _locked_by(self, holder: dict[str, Any]) -> RunLocked:
        return RunLocked(
            f"{self._remote.name} is in use by process {holder['process']} on {holder['owner']}: wait for it, or "
            f"choose another run; after a crash elsewhere it is free {STALE_S:g} s later"
        )


def read_lock(remote: Remote) -> dict[str, Any] | None:
    """What the lock file says, None without a whole one."""
    for _ in range(_READS):
        if not remote.exists(LOCK):
            return None
        try:
            return json.loads(remote.read(LOCK))
        except ValueError:  # it was replaced while it was read
            time.sleep(_SETTLE_S / _READS)
    return None


def is_fresh(holder: dict[str, Any]) -> bool:
    """Whether a lock was renewed recently enough to count."""
    return time.time() - holder["time"] < STALE_S


class MirroredRun(RunDirectory):
    """The run directory at a URI, worked on in the local directory ``path``.

    Raises:
        RunError: the URI is of a kind that pyarrow does not know, or its server does not answer.
    """

    def __init__(self, uri: str, path: Path) -> None:
        super().__init__(path)
        self.name = public_name(uri)
        self._remote = Remote(uri)
        self._remote_lock: RemoteLock | None = None

    def __enter__(self) -> Self:
        """Take both locks and make the copy as the URI is.

        Raises:
            RunLocked: another process has one of them.
        """
        super().__enter__()
        try:
            lock = RemoteLock(self._remote, f"{socket.gethostname()}:{self.path}")
            lock.take()
            self._remote_lock = lock
            self._fetch_and_send()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._remote_lock is not None:
                self._remote_lock.release()
        finally:
            self._remote_lock = None
            super().__exit__()

    @contextmanager
    def commit(self, stage: str, key: StageKey, began: float | None = None) -> Iterator[Path]:
        """As in a directory; then the stage is sent to the URI.

        Raises:
            RunError: it cannot be sent. It stays in the copy, and the next start sends it.
        """
        with super().commit(stage, key, began) as folder:
            yield folder
            (folder / _UNSENT).touch()
        self._send(stage)
        self._remote.remove(_WORK + stage)

    @contextmanager
    def keeping_work(self, stage: str, note: Callable[[str], None]) -> Iterator[None]:
        """While the block makes ``stage``, send its checkpoints to the URI, from a thread.

        One that cannot be sent is sent later, after a word to ``note``: the run goes on with the copy.
        """
        stop = threading.Event()

        def send_for_ever() -> None:
            reachable = True
            while not stop.wait(_SEND_WORK_S):
                try:
                    self._send_work(stage)
                    reachable = True
                except RunError as error:
                    if reachable:
                        note(f"checkpoints of {stage} stay in {self.path} for now: {error}")
                    reachable = False

        thread = threading.Thread(target=send_for_ever, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(RunError):  # the reason why the block ended stays seen
                self._send_work(stage)
            raise
        finally:
            stop.set()
            thread.join()

    def forget_from(self, stage_order: Sequence[str], stage: str) -> None:
        """As in a directory, at the URI too."""
        super().forget_from(stage_order, stage)
        forgotten = set(stage_order[stage_order.index(stage) :])
        for name in reversed(self._remote.folders_with(STAGE_FILE)):
            if name.removeprefix(_WORK).partition("/")[0] in forgotten:
                self._remote.remove(name)

    def _fetch_and_send(self) -> None:
        """The URI is right about everything but the stages that could not be sent last time."""
        theirs = self._remote.stages()
        files = [*self.path.glob(f"*/{STAGE_FILE}"), *self.path.glob(f"*/*/{STAGE_FILE}")]
        ours = {file.parent.relative_to(self.path).as_posix(): file for file in files}
        for stage, file in ours.items():
            if stage.startswith("work/"):
                continue
            if (file.parent / _UNSENT).exists():
                self._send(stage)
            elif theirs.get(stage) != file.read_text():
                shutil.rmtree(file.parent)
        for stage in theirs:
            if not (self.artefact(stage) / STAGE_FILE).exists():
                with write_atomically(self.artefact(stage)) as folder:
                    self._remote.fetch(stage, folder)
        for work in self._remote.folders_with(STAGE_FILE, _WORK):
            if work.removeprefix(_WORK) not in theirs:
                self._fetch_work(work)

    def _fetch_work(self, work: str) -> None:
        """Take the checkpoints of an unfinished stage where they are newer than what the copy has, or of another key.

        A checkpoint without its last file was being sent or removed; it is left out.
        """
        whole = self._remote.folders_with(CHECKPOINT_FILE, work)
        local = self.path / work
        key = json.loads(self._remote.read(f"{work}/{STAGE_FILE}"))["key"]
        same = (local / STAGE_FILE).exists() and _key(local) == key
        if same and max(map(_step_of, whole), default=-1) <= max(map(_step_of, checkpoints_in(local)), default=-1):
            return
        with write_atomically(local) as folder:
            self._remote.fetch(work, folder)
            for checkpoint in folder.rglob("step_*"):
                if checkpoint.is_dir() and not (checkpoint / CHECKPOINT_FILE).exists():
                    shutil.rmtree(checkpoint)

    def _send_work(self, stage: str) -> None:
        """Send the checkpoints that the URI lacks, newest first, and what lies beside them; remove old ones there."""
        local, work = self.path / _WORK / stage, _WORK + stage
        ours = {f"{work}/{folder.relative_to(local).as_posix()}": folder for folder in checkpoints_in(local)}
        theirs = set(self._remote.folders_with(CHECKPOINT_FILE, work))
        lacking = sorted(ours.keys() - theirs, key=_step_of, reverse=True)
        if not lacking:
            return
        assert self._remote_lock is not None, "a stage is made under the lock"
        self._remote_lock.check()
        for file in sorted(local.rglob("*")):
            name = file.relative_to(local).as_posix()
            if file.is_file() and file.suffix != ".tmp" and "step_" not in name:
                self._remote.send_file(file, f"{work}/{name}")
        for name in lacking:
            try:
                self._remote.send(ours[name], name, CHECKPOINT_FILE)
            except RunError:
                if ours[name].exists():
                    raise
                # It was removed meanwhile, since newer ones are there.
        for name in theirs - ours.keys():
            self._remote.remove(name, CHECKPOINT_FILE)

    def _send(self, stage: str) -> None:
        assert self._remote_lock is not None, "a stage is committed under the lock"
        self._remote_lock.check()
        self._remote.send(self.artefact(stage), stage)
        (self.artefact(stage) / _UNSENT).unlink()


def checkpoints_in(work: Path) -> list[Path]:
    """The whole checkpoints of an unfinished stage."""
    found = [file.parent for file in work.rglob(f"step_*/{CHECKPOINT_FILE}")]
    return [folder for folder in found if folder.suffix == ""]


def _step_of(checkpoint: str | Path) -> int:
    return int(str(checkpoint).rpartition("step_")[2])


def _key(work: Path) -> str:
    return json.loads((work / STAGE_FILE).read_text())["key"]
