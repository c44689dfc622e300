"""The stages and checkpoints of a run at a URI: each there is all of one send, or absent.

A stage or checkpoint goes to a folder with a new random name, a generation. Its mark
(``stage.json``, ``state.json``) is written last and in one piece, and names the generation.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pyarrow.fs import FileInfo
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bi_ray.files.errors import RunError
from bi_ray.files.integrity import FileRecord, file_names, find_damage
from bi_ray.files.names import TEMPORARY
from bi_ray.runs.layout import CHECKPOINT_FILE, REPORT, REPORT_FILES, STAGE_FILE, WORK, step_at
from bi_ray.runs.remote_files import RemoteFiles, is_inside

log = logging.getLogger(__name__)
_GENERATION = re.compile(r"(.+?)/(sent-[0-9a-f]{16})/")
_ABANDONED_S = 86_400.0  # age of files that no mark names, after which nobody is still sending them


class Mark(BaseModel):
    """The last file of a stage or checkpoint at the URI.

    Attributes:
        generation: the folder beside the mark that holds the files.
        content: of the mark in the working copy, ``stage.json`` or ``state.json``.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    generation: Annotated[str, Field(pattern=r"^sent-[0-9a-f]{16}$")]
    content: dict[str, Any]

    @property
    def text(self) -> str:
        """The content as the working copy has it."""
        return json.dumps(self.content, indent=1)

    def files(self) -> dict[str, FileRecord]:
        """Size and digest of every other file, by its path.

        Raises:
            ValidationError: the content does not have them.
        """
        return TypeAdapter(dict[str, FileRecord]).validate_python(self.content.get("files"))


class NotWhole(RunError):
    """What is at the URI under a mark is not what was sent."""


class Remote(RemoteFiles):
    """A run at a URI.

    Raises:
        RunError: from every method, when the file system refuses or does not answer.
    """

    def stages(self) -> dict[str, Mark]:
        """The mark of every finished stage, by stage; one that cannot be read is logged."""
        folders = self.folders_with(STAGE_FILE)
        finished = [name for name in folders if not name.startswith(f"{WORK}/")]
        return self._marks(finished, STAGE_FILE)

    def checkpoints(self, work: str) -> dict[str, Mark]:
        """The mark of every checkpoint below the folder ``work``, by its path in the run."""
        folders = self.folders_with(CHECKPOINT_FILE, work)
        return self._marks([name for name in folders if step_at(name)], CHECKPOINT_FILE)

    def _marks(self, folders: Sequence[str], mark_name: str) -> dict[str, Mark]:
        marks = {}
        for folder in folders:
            try:
                marks[folder] = self.mark(folder, mark_name)
            except NotWhole as error:
                log.warning("%s", error, exc_info=True)
            except RunError:
                if self.exists(f"{folder}/{mark_name}"):
                    raise
                # It was removed meanwhile: a run at work removes its older checkpoints.
        return marks

    def mark(self, folder: str, mark_name: str) -> Mark:
        """The mark of a folder.

        Raises:
            NotWhole: it cannot be read as one.
        """
        try:
            return Mark.model_validate_json(self.read(f"{folder}/{mark_name}"))
        except ValueError as error:
            raise NotWhole(
                f"{folder}/{mark_name} at {self.name} is damaged; it is left out"
            ) from error

    def send(
        self,
        folder: Path,
        name: str,
        mark_name: str = STAGE_FILE,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace the folder ``name`` by ``folder``, at the moment in which its mark is written.

        Args:
            folder: in the working copy, with the file ``mark_name``.
            name: of the folder there.
            mark_name: file that is written last.
            check: called before every file and before the mark; what it raises ends the sending.
        """
        content = json.loads((folder / mark_name).read_bytes())
        before = self._generation_of(name, mark_name)
        generation = f"sent-{uuid.uuid4().hex[:16]}"
        for file in file_names(folder):
            if file != mark_name:
                check()
                self.send_file(folder / file, f"{name}/{generation}/{file}")
        check()
        mark = Mark(generation=generation, content=content)
        self.write(f"{name}/{mark_name}", mark.model_dump_json(indent=1))
        if before is not None:
            self.remove(f"{name}/{before}")

    def _generation_of(self, folder: str, mark_name: str) -> str | None:
        """The generation that a folder's mark names; None without a mark that can be read."""
        if not self.exists(f"{folder}/{mark_name}"):
            return None
        try:
            return self.mark(folder, mark_name).generation
        except NotWhole:
            log.info("%s/%s is replaced", folder, mark_name, exc_info=True)
            return None

    def replace_report(self, folder: Path) -> None:
        """Replace the report, which has no mark, file by file.

        Raises:
            RunError: there is something else in its folder, which stays as it is.
        """
        fresh = file_names(folder)
        there = [file.removeprefix(f"{REPORT}/") for file in self.files_below(REPORT)]
        old = {file for file in there if not file.startswith(".")}
        foreign = sorted(old.difference(REPORT_FILES))
        if foreign:
            raise RunError(
                f"{REPORT}/{foreign[0]} at {self.name} is not part of a report; move it away and "
                "try again"
            )
        for file in fresh:
            self.send_file(folder / file, f"{REPORT}/{file}")
        for file in sorted(old.difference(fresh)):
            self.remove_file(f"{REPORT}/{file}")

    def fetch(self, name: str, mark: Mark, mark_name: str, folder: Path) -> None:
        """Fill ``folder`` with the stage or checkpoint ``name``.

        Raises:
            NotWhole: a file there is missing or is not the one that was sent.
        """
        what = f"{name} at {self.name} is left out"
        generation = f"{name}/{mark.generation}"
        try:
            files = mark.files()
        except ValidationError as error:
            raise NotWhole(f"{what}: {mark_name} is damaged") from error
        if not all(map(is_inside, files)):
            raise NotWhole(f"{what}: it names files outside of its folder")
        there = set(self.files_below(generation))
        missing = [file for file in files if f"{generation}/{file}" not in there]
        if missing:
            raise NotWhole(f"{what}: {missing[0]} is missing")
        self.fetch_files(generation, list(files), folder)
        damage = find_damage(folder, files)
        if damage is not None:
            raise NotWhole(f"{what}: {damage}")
        (folder / mark_name).write_text(mark.text)

    def remove(self, name: str, mark_name: str = STAGE_FILE) -> None:
        """Remove the folder ``name``, its mark first."""
        if self.exists(f"{name}/{mark_name}"):
            self.remove_file(f"{name}/{mark_name}")
        self.remove_folder(name)

    def remove_stage(self, name: str) -> None:
        """Remove a finished stage: its mark, then what was sent of it.

        Whatever else is in its folder stays.
        """
        self.remove_file(f"{name}/{STAGE_FILE}")
        sent = set()
        for file in self.files_below(name):
            match = _GENERATION.match(file)
            if match and match[1] == name:
                sent.add(match[2])
        for generation in sorted(sent):
            self.remove(f"{name}/{generation}")
        if not self.files_below(name):
            self.remove(name)

    def remove_abandoned(self) -> None:
        """Remove what a kill left half-sent long ago.

        That is generations that no mark names, and files half-written.
        """
        files = self.list_files()
        generations = _last_writes(files)
        half_written = [file for file in files if file.base_name.startswith(TEMPORARY)]
        if not generations and not half_written:
            return
        latest = self.now() - _ABANDONED_S
        for file in half_written:
            if _modified(file) <= latest:
                self.remove_file(file.path)
        marks = _marks_by_folder(files)
        for (folder, generation), modified in generations.items():
            if modified > latest:
                continue
            if not self._may_name(folder, marks.get(folder), generation):
                self.remove(f"{folder}/{generation}")

    def _may_name(self, folder: str, mark_name: str | None, generation: str) -> bool:
        """Whether a folder's mark may name a generation; one that cannot be read may."""
        if mark_name is None:
            return False
        try:
            return self.mark(folder, mark_name).generation == generation
        except NotWhole:
            log.info("%s/%s is kept", folder, generation, exc_info=True)
            return True


def _last_writes(files: Iterable[FileInfo]) -> Mapping[tuple[str, str], float]:
    """When the newest file of each generation was written, by folder and generation."""
    newest: dict[tuple[str, str], float] = {}
    for file in files:
        match = _GENERATION.match(file.path)
        if match:
            sent = match[1], match[2]
            newest[sent] = max(newest.get(sent, 0.0), _modified(file))
    return newest


def _marks_by_folder(files: Iterable[FileInfo]) -> dict[str, str]:
    """The name of each folder's mark; folders without one are left out."""
    return {
        file.path.rpartition("/")[0]: file.base_name
        for file in files
        if file.base_name in (STAGE_FILE, CHECKPOINT_FILE)
    }


def _modified(file: FileInfo) -> float:
    """When a file was written, in seconds since 1970; 0 where the store does not tell."""
    return (file.mtime_ns or 0) / 1e9
