"""A run at a URI (s3://, gs://, file://), worked on in a directory.

Stages work in that copy. A finished stage is sent to the URI when it is committed, and it is
fetched from there when a run begins and the copy lacks it. The checkpoints of an unfinished stage
go there too, see ``mirror_work``.

An object store has no real lock: two runs may both send a stage, each believing that it holds the
lock. What is there is all of one send nevertheless, see ``remote``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from bi_ray.files.atomic import discard, write_atomically
from bi_ray.files.errors import RunError
from bi_ray.files.uri import public_name
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.foreign_uris import mark_as_run, refuse_foreign_uri
from bi_ray.runs.layout import STAGE_FILE, UNSENT_MARK, WORK, kind_of, work_of
from bi_ray.runs.mirror_work import WorkMirror, read_object
from bi_ray.runs.remote import Mark, NotWhole, Remote
from bi_ray.runs.remote_lock import RemoteLock
from bi_ray.runs.sender import Sender
from bi_ray.runs.stage_key import StageKey
from bi_ray.runs.stages import require_sizes, stage_damage, stage_folders

log = logging.getLogger(__name__)
_SEND_WORK_S = 5.0  # between two looks for new checkpoints


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
        self._work_mirror = WorkMirror(self._remote, self.path)

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
            mark_as_run(self._remote)
            self._remote.remove_abandoned()
            self._match_uri()
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
            (folder / UNSENT_MARK).touch()
        self._send(stage)
        self._remote.remove(work_of(stage))

    @contextmanager
    def keeping_work(self, stage: str, note: Callable[[str], None]) -> Iterator[None]:
        """While the block makes ``stage``, send its checkpoints to the URI, from a thread.

        One that cannot be sent is sent later, and ``note`` gets a line: the run continues with the
        copy.
        """
        self._work_mirror.begin()
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
        for folder in reversed(self._remote.folders_with(STAGE_FILE)):
            name = folder.removeprefix(f"{WORK}/")
            if kind_of(name) not in forgotten:
                continue
            if name == folder:
                self._remote.remove_stage(folder)
            else:
                self._remote.remove(folder)

    def _match_uri(self) -> None:
        """Make the copy as the URI is, but for stages that could not be sent last time."""
        theirs = self._remote.stages()
        for folder in stage_folders(self.path):
            stage = folder.relative_to(self.path).as_posix()
            if (folder / UNSENT_MARK).exists():
                self._send(stage)
                theirs.pop(stage, None)
            elif stage not in theirs:
                self._send_or_discard(stage, folder)
        for stage, mark in theirs.items():
            if not self._is_here(stage, mark):
                self._fetch_stage(stage, mark)
        self._work_mirror.fetch_unfinished(finished=theirs)

    def _send_or_discard(self, stage: str, folder: Path) -> None:
        """Send a stage whose mark at the URI is damaged; remove one that the URI does not have."""
        is_there = self._remote.exists(f"{stage}/{STAGE_FILE}")
        if is_there and stage_damage(folder) is None:
            self._send(stage)
        else:
            discard(folder)

    def _is_here(self, stage: str, mark: Mark) -> bool:
        """Whether the copy has a stage as it is at the URI, as far as sizes tell."""
        folder = self.artifact(stage)
        if read_object(folder / STAGE_FILE) != mark.content:
            return False
        try:
            require_sizes(folder)
        except RunError:
            log.info("%s is fetched again from %s", folder, self.name, exc_info=True)
            return False
        return True

    def _fetch_stage(self, stage: str, mark: Mark) -> None:
        """Take a stage from the URI.

        Where it is not whole there, the copy's is sent, or the stage is made again.
        """
        try:
            with write_atomically(self.artifact(stage)) as folder:
                self._remote.fetch(stage, mark, STAGE_FILE, folder)
        except NotWhole as error:
            log.warning("%s", error, exc_info=True)
            if stage_damage(self.artifact(stage)) is None:
                self._send(stage)

    def _send(self, stage: str) -> None:
        check = self._check_lock()
        check()
        folder = self.artifact(stage)
        self._remote.send(folder, stage, check=check)
        (folder / UNSENT_MARK).unlink(missing_ok=True)

    def _send_work(self, stage: str) -> None:
        self._work_mirror.send(stage, self._check_lock())

    def _check_lock(self) -> Callable[[], None]:
        assert self._remote_lock is not None, "a stage is made under the lock"
        return self._remote_lock.check

    def _remedy(self, stage: str) -> str:
        return (
            f"remove that folder, and the next start fetches it from {self.name}; or "
            f"{super()._remedy(stage)}"
        )
