"""The checkpoints of unfinished stages, sent to the URI of a run and fetched from there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bi_ray.files.atomic import write_atomically
from bi_ray.files.errors import RunError
from bi_ray.files.integrity import file_names
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import (
    CHECKPOINT_FILE,
    STAGE_FILE,
    WORK,
    folders_of_checkpoints,
    is_in_checkpoint,
    step_at,
    step_of,
    work_of,
)
from bi_ray.runs.remote import Mark, NotWhole, Remote

log = logging.getLogger(__name__)
Content = dict[str, Any]  # of a stage.json or state.json, whatever it says


class WorkMirror:
    """The folder ``work/`` of a run at a URI and of its working copy.

    Args:
        remote: the run at the URI.
        path: the working copy.
    """

    def __init__(self, remote: Remote, path: Path) -> None:
        self._remote = remote
        self._path = path
        # The content of each checkpoint's mark at the URI, by its path in the run; None: unknown.
        self._sent: dict[str, Content] | None = None

    def begin(self) -> None:
        """Forget which checkpoints the URI has: another stage begins."""
        self._sent = None

    def send(self, stage: str, check: Callable[[], None]) -> None:
        """Send what the URI lacks of an unfinished stage, and remove its older checkpoints there.

        Args:
            stage: its name.
            check: see ``Remote.send``.

        Raises:
            RunError: the URI refuses or does not answer, or from ``check``.
        """
        work = work_of(stage)
        ours = self._checkpoints_here(work)
        if self._sent is None:
            there = self._remote.checkpoints(work)
            self._sent = {name: mark.content for name, mark in there.items()}
        lacking = [name for name, content in ours.items() if self._sent.get(name) != content]
        if not lacking:
            return
        check()
        for file in file_names(self._path / work):
            if not is_in_checkpoint(file) and not file.endswith(".tmp"):
                check()
                self._remote.send_file(self._path / work / file, f"{work}/{file}")
        for name in sorted(lacking, key=step_at, reverse=True):
            if self._send_checkpoint(name, check):
                self._sent[name] = ours[name]
        for name in self._sent.keys() - ours.keys():
            self._remote.remove(name, CHECKPOINT_FILE)
            del self._sent[name]

    def _send_checkpoint(self, name: str, check: Callable[[], None]) -> bool:
        """Send a checkpoint; False where the training removed it meanwhile, having newer ones."""
        folder = self._path / name
        try:
            self._remote.send(folder, name, CHECKPOINT_FILE, check)
        except (RunError, FileNotFoundError):
            if folder.exists():
                raise
            log.debug("%s was removed while it was sent", folder, exc_info=True)
            return False
        return True

    def _checkpoints_here(self, work: str) -> dict[str, Content]:
        """The content of the mark of each checkpoint in the copy, by its path in the run."""
        checkpoints = {}
        for folder in checkpoints_in(self._path / work):
            content = read_object(folder / CHECKPOINT_FILE)
            if content:
                checkpoints[folder.relative_to(self._path).as_posix()] = content
        return checkpoints

    def fetch_unfinished(self, finished: Collection[str]) -> None:
        """Take the checkpoints of every stage at the URI that is not ``finished``."""
        for work in self._remote.folders_with(STAGE_FILE, WORK):
            if work.removeprefix(f"{WORK}/") not in finished:
                self._fetch(work)

    def _fetch(self, work: str) -> None:
        """Take the checkpoints of a stage that are newer than the copy's, or of another key.

        Those that are not whole, here or there, are left out with a line in the log.
        """
        folder = self._path / work
        theirs = self._remote.checkpoints(work)
        key = _parse_object(self._remote.read(f"{work}/{STAGE_FILE}")).get("key")
        if key is None:
            log.warning(
                "%s/%s at %s is damaged; its checkpoints are left out",
                work,
                STAGE_FILE,
                self._remote.name,
            )
        elif read_object(folder / STAGE_FILE).get("key") != key:
            with write_atomically(folder) as fresh:
                self._fetch_into(fresh, work, theirs)
        elif max(map(step_at, theirs), default=0) > _newest_step(folder):
            self._fetch_into(folder, work, theirs)

    def _fetch_into(self, folder: Path, work: str, checkpoints: Mapping[str, Mark]) -> None:
        """Take the checkpoints that ``folder`` lacks, and the files beside them (metrics)."""
        names = [file.removeprefix(f"{work}/") for file in self._remote.files_below(work)]
        beside = [name for name in names if not is_in_checkpoint(name)]
        self._remote.fetch_files(work, beside, folder)
        for name, mark in checkpoints.items():
            checkpoint = folder / Path(name).relative_to(work)
            if not checkpoint.exists():
                self._fetch_checkpoint(name, mark, checkpoint)

    def _fetch_checkpoint(self, name: str, mark: Mark, folder: Path) -> None:
        try:
            with write_atomically(folder) as fresh:
                self._remote.fetch(name, mark, CHECKPOINT_FILE, fresh)
        except NotWhole as error:
            log.warning("%s", error, exc_info=True)


def checkpoints_in(work: Path) -> list[Path]:
    """The checkpoints of an unfinished stage that were written to their end."""
    checkpoints = []
    for folder, _, files in os.walk(work):  # passes over folders that are removed meanwhile
        if CHECKPOINT_FILE in files and step_of(Path(folder).name):
            checkpoints.append(Path(folder))
    return checkpoints


def read_object(file: Path) -> Content:
    """The JSON object in a file, an empty one where it is damaged or absent."""
    try:
        return _parse_object(file.read_text(errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _parse_object(text: str) -> Content:
    """The JSON object in a text, an empty one where there is none."""
    try:
        content = json.loads(text)
    except ValueError:
        log.info("not JSON: %.80r", text, exc_info=True)
        return {}
    return content if isinstance(content, dict) else {}


def _newest_step(work: Path) -> int:
    """The newest whole step among the checkpoints of an unfinished stage, 0 without one."""
    folders = folders_of_checkpoints(work)
    return max((StepDirectories(folder).recover() for folder in folders), default=0)
