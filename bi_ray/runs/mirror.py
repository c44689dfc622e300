"""Where a run lives: a directory, or a URI (s3://, gs://, file://) with a working copy in a
directory.

Stages work in the copy. A finished stage is sent to the URI when it is committed, and it is fetched
from there when a run begins and the copy lacks it. The checkpoints of an unfinished stage go there
too, under ``work/``.

An object store has no real lock: two runs may both send a stage, each believing that it holds the
lock. What is there is all of one send nevertheless, see ``remote``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from bi_ray.files.atomic import discard, write_atomically
from bi_ray.files.errors import RunError
from bi_ray.files.integrity import file_names
from bi_ray.files.names import OURS, RUN_MARK
from bi_ray.files.uri import parses, public_name
from bi_ray.runs.checkpoints import StepDirectories, step_of
from bi_ray.runs.directory import (
    RunDirectory,
    StageKey,
    absolute,
    begin_directory,
    stage_damage,
)
from bi_ray.runs.layout import CHECKPOINT_FILE, REPORT, STAGE_FILE, require_sizes
from bi_ray.runs.remote import WORK, Mark, NotWhole, Remote, step_at
from bi_ray.runs.remote_lock import LOCK, RemoteLock, read_lock
from bi_ray.runs.sender import Sender

log = logging.getLogger(__name__)

LOCAL_VARIABLE = "BI_RAY_LOCAL"
_SEND_WORK_S = 5.0  # between two looks for new checkpoints
_UNSENT = ".unsent"  # in a stage of the copy that the URI does not have yet
_DEPTH_OF_STAGES = 3  # of stage.json: data/stage.json, sft/bridge/stage.json
_FIRST_FOLDER = re.compile(r"work|seed_[0-9]+")  # of those that are deeper


@dataclass(frozen=True, slots=True)
class RunPlace:
    """A run directory as a user names it.

    Attributes:
        path: the directory, or the working copy of the URI; absolute.
        uri: None for a directory.
    """

    path: Path
    uri: str | None = field(default=None, repr=False)  # it may have credentials

    @classmethod
    def of(cls, text: str, local: Path | None = None) -> RunPlace:
        """The place that ``text``, a path or a URI, names.

        Args:
            text: what stands after ``--run``.
            local: under which folder the working copy of a URI is kept; None: ``$BI_RAY_LOCAL``,
                else the user's cache. On a cluster of several nodes every node has to see it.

        Raises:
            RunError: the path is relative inside a Ray job, whose folder is thrown away; or the URI
                does not parse.
        """
        if "://" not in text:
            return cls(absolute(text))
        if not parses(text):
            raise RunError(
                f"the credentials in the URI of {public_name(text)} cannot be read: write / as %2F, ? as %3F and # as "
                "%23, or leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
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
        return RunPlace(
            self.path / child, urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{child}"))
        )

    def directory(self) -> RunDirectory:
        """The run directory there; a context manager that holds its lock."""
        return MirroredRun(self.uri, self.path) if self.uri else RunDirectory(self.path)

    def begin(self) -> None:
        """Mark the place of a study as ours, in the directory and at the URI.

        Raises:
            RunError: one of them has files and is not of a run or study; nothing was touched there.
        """
        if self.uri:
            refuse_foreign_uri(Remote(self.uri))
        begin_directory(self.path)
        if self.uri:
            _mark(Remote(self.uri))

    def publish_report(self) -> None:
        """Send the report to the URI; nothing to do for a directory."""
        if self.uri:
            Remote(self.uri).replace_report(self.path / REPORT)

    def publish_file(self, name: str) -> None:
        """The same of a single file."""
        if self.uri:
            Remote(self.uri).write(name, (self.path / name).read_text())


def refuse_foreign_uri(remote: Remote) -> None:
    """Raises RunError where a URI has files and is not a run or study of ours; see
    ``run_files.refuse_foreign``.
    """
    if remote.exists(RUN_MARK):
        return
    files = [PurePosixPath(name) for name in remote.files_below("")]
    if all(file.name.startswith(OURS) or str(file) == LOCK for file in files):
        return
    lock = read_lock(remote)
    if lock is not None and lock.holder is not None:
        return
    if not any(_is_mark(remote, file) for file in files):
        raise RunError(
            f"{remote.name} has files and is not a run directory, so nothing was written there; name a new or empty "
            "folder"
        )


def _is_mark(remote: Remote, file: PurePosixPath) -> bool:
    """Whether a file shows that a run lives at the URI: the mark of a stage or checkpoint, not of a
    run below it.
    """
    if file.name not in (STAGE_FILE, CHECKPOINT_FILE):
        return False
    is_further_down = (
        len(file.parts) > _DEPTH_OF_STAGES and _FIRST_FOLDER.fullmatch(file.parts[0]) is None
    )
    if is_further_down:
        return False
    try:
        remote.mark(str(file.parent), file.name)
    except NotWhole:
        return False
    return True


def _mark(remote: Remote) -> None:
    if not remote.exists(RUN_MARK):
        remote.write(RUN_MARK, "")


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
        # state.json of each checkpoint at the URI; None: unknown
        self._sent: dict[str, dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        """Take both locks and make the copy as the URI is.

        Raises:
            RunLocked: another process has one of them.
            RunError: the URI or the copy has files and is not a run; nothing was touched there.
        """
        refuse_foreign_uri(self._remote)
        super().__enter__()
        try:
            lock = RemoteLock(self._remote, f"{socket.gethostname()}:{self.path}")
            lock.take()
            self._remote_lock = lock
            _mark(self._remote)
            self._remote.remove_abandoned()
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
        self._remote.remove(WORK + stage)

    @contextmanager
    def keeping_work(self, stage: str, note: Callable[[str], None]) -> Iterator[None]:
        """While the block makes ``stage``, send its checkpoints to the URI, from a thread.

        One that cannot be sent is sent later, after a word to ``note``: the run goes on with the
        copy.
        """
        self._sent = None
        what = f"checkpoints of {stage} stay in {self.path} for now"
        sender = Sender(lambda: self._send_work(stage), what, note, _SEND_WORK_S)
        sender.start()
        try:
            yield
        except BaseException:
            sender.stop()
            sender.attempt()  # what it reports does not hide why the block ended
            raise
        finally:
            sender.stop()

    def forget_from(self, stage_order: Sequence[str], stage: str) -> None:
        """As in a directory, at the URI too."""
        super().forget_from(stage_order, stage)
        forgotten = set(stage_order[stage_order.index(stage) :])
        for name in reversed(self._remote.folders_with(STAGE_FILE)):
            if name.removeprefix(WORK).partition("/")[0] not in forgotten:
                continue
            if name.startswith(WORK):
                self._remote.remove(name)
            else:
                self._remote.remove_stage(name)

    def _fetch_and_send(self) -> None:
        """The URI is right about everything but the stages that could not be sent last time."""
        theirs = self._remote.stages()
        files = [*self.path.glob(f"*/{STAGE_FILE}"), *self.path.glob(f"*/*/{STAGE_FILE}")]
        ours = {file.parent.relative_to(self.path).as_posix(): file.parent for file in files}
        for stage, folder in ours.items():
            if stage.startswith(WORK):
                continue
            if (folder / _UNSENT).exists():
                self._send(stage)
                theirs.pop(stage, None)
            elif stage not in theirs and self._is_damaged_there(stage, folder):
                self._send(stage)
            elif stage not in theirs:
                discard(folder)
        for stage, mark in theirs.items():
            if not self._is_here(stage, mark):
                self._fetch_stage(stage, mark)
        for work in self._remote.folders_with(STAGE_FILE, WORK):
            if work.removeprefix(WORK) not in theirs:
                self._fetch_work(work)

    def _is_here(self, stage: str, mark: Mark) -> bool:
        """Whether the copy has a stage as it is at the URI, as far as sizes tell."""
        folder = self.artifact(stage)
        if _content(folder / STAGE_FILE) != mark.content:
            return False
        try:
            require_sizes(folder)
        except RunError:
            log.info("%s is fetched again from %s", folder, self.name, exc_info=True)
            return False
        return True

    def _is_damaged_there(self, stage: str, folder: Path) -> bool:
        """Whether the URI has a stage whose mark cannot be read, and the copy has it whole."""
        return self._remote.exists(f"{stage}/{STAGE_FILE}") and stage_damage(folder) is None

    def _fetch_stage(self, stage: str, mark: Mark) -> None:
        """Take a stage from the URI; where it is not whole there, the copy's is sent, or it is made
        again.
        """
        try:
            with write_atomically(self.artifact(stage)) as folder:
                self._remote.fetch(stage, mark, STAGE_FILE, folder)
        except NotWhole as error:
            log.warning("%s", error)
            if stage_damage(self.artifact(stage)) is None:
                self._send(stage)

    def _fetch_work(self, work: str) -> None:
        """Take the checkpoints of an unfinished stage where they are newer than what the copy has,
        or of another key.

        Those that are not whole, here or there, are left out with a line in the log.
        """
        local = self.path / work
        theirs = self._remote.checkpoints(work)
        key = _parsed(self._remote.read(f"{work}/{STAGE_FILE}")).get("key")
        if key is None:
            log.warning(
                "%s/%s at %s is damaged; its checkpoints are left out", work, STAGE_FILE, self.name
            )
            return
        if _content(local / STAGE_FILE).get("key") != key:
            with write_atomically(local) as folder:
                self._fetch_beside(work, folder)
                for name, mark in theirs.items():
                    self._fetch_checkpoint(name, mark, folder / Path(name).relative_to(work))
            return
        newest = max(
            (StepDirectories(folder).recover() for folder in _folders_of_steps(local)), default=0
        )
        if max(map(step_at, theirs), default=0) <= newest:
            return
        self._fetch_beside(work, local)
        for name, mark in theirs.items():
            folder = self.path / name
            if not folder.exists():
                self._fetch_checkpoint(name, mark, folder)

    def _fetch_beside(self, work: str, folder: Path) -> None:
        """Take the files that are beside the checkpoints of an unfinished stage, such as metrics."""
        names = [file.removeprefix(f"{work}/") for file in self._remote.files_below(work)]
        self._remote.fetch_files(work, [name for name in names if not _is_of_a_step(name)], folder)

    def _fetch_checkpoint(self, name: str, mark: Mark, folder: Path) -> None:
        try:
            with write_atomically(folder) as fresh:
                self._remote.fetch(name, mark, CHECKPOINT_FILE, fresh)
        except NotWhole as error:
            log.warning("%s", error)

    def _send_work(self, stage: str) -> None:
        """Send the checkpoints that the URI lacks, newest first, and what lies beside them; remove
        old ones there.
        """
        assert self._remote_lock is not None, "a stage is made under the lock"
        check = self._remote_lock.check
        local, work = self.path / WORK / stage, WORK + stage
        ours, sent = self._checkpoints_here(work), self._sent
        if sent is None:
            sent = {name: mark.content for name, mark in self._remote.checkpoints(work).items()}
            self._sent = sent
        lacking = [name for name, content in ours.items() if sent.get(name) != content]
        if not lacking:
            return
        check()
        for file in file_names(local):
            if not _is_of_a_step(file) and not file.endswith(".tmp"):
                check()
                self._remote.send_file(local / file, f"{work}/{file}")
        for name in sorted(lacking, key=step_at, reverse=True):
            try:
                self._remote.send(self.path / name, name, CHECKPOINT_FILE, check)
                sent[name] = ours[name]
            except (RunError, FileNotFoundError):
                if (self.path / name).exists():
                    raise
                # It was removed meanwhile, since newer ones are there.
        for name in sent.keys() - ours.keys():
            self._remote.remove(name, CHECKPOINT_FILE)
            del sent[name]

    def _checkpoints_here(self, work: str) -> dict[str, dict[str, Any]]:
        """What ``state.json`` of each checkpoint in the copy says, by the checkpoint's path in the
        run.
        """
        checkpoints = {}
        for folder in checkpoints_in(self.path / work):
            if content := _content(folder / CHECKPOINT_FILE):
                checkpoints[folder.relative_to(self.path).as_posix()] = content
        return checkpoints

    def _send(self, stage: str) -> None:
        assert self._remote_lock is not None, "a stage is committed under the lock"
        self._remote_lock.check()
        self._remote.send(self.artifact(stage), stage, check=self._remote_lock.check)
        (self.artifact(stage) / _UNSENT).unlink(missing_ok=True)

    def _remedy(self, stage: str) -> str:
        return f"remove that folder, and the next start fetches it from {self.name}; or {super()._remedy(stage)}"


def checkpoints_in(work: Path) -> list[Path]:
    """The checkpoints of an unfinished stage that were written to their end."""
    checkpoints = []
    # passes over folders that the training removes meanwhile
    for folder, _, files in os.walk(work):
        if CHECKPOINT_FILE in files and step_of(Path(folder).name):
            checkpoints.append(Path(folder))
    return checkpoints


def _folders_of_steps(work: Path) -> set[Path]:
    return {folder.parent for folder in work.rglob("step_*") if step_of(folder.name.split(".")[0])}


def _is_of_a_step(file: str) -> bool:
    """Whether a file of an unfinished stage belongs to a checkpoint."""
    return any(part.startswith("step_") for part in PurePosixPath(file).parts[:-1])


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object, an empty one where the text is none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _content(file: Path) -> dict[str, Any]:
    """The JSON object in a file, an empty one where it has none or is absent."""
    try:
        return _parsed(file.read_text(errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
