"""A folder in a file system that pyarrow reaches by URI (s3://, gs://, file://), and what is sent
to it and fetched.

A stage or checkpoint goes to a folder with a new random name, a generation. Its mark
(``stage.json``, ``state.json``) is written last and in one piece, and names the generation: what is
there is all of one send, or absent.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pyarrow import ArrowException
from pyarrow.fs import (
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    LocalFileSystem,
    SubTreeFileSystem,
    copy_files,
)
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bi_ray.files.atomic import write_text
from bi_ray.files.errors import RunError
from bi_ray.files.integrity import FileRecord, file_names, find_damage
from bi_ray.files.names import TEMPORARY, temporary_name
from bi_ray.files.uri import hide_secrets, public_name
from bi_ray.runs.checkpoints import step_of
from bi_ray.runs.layout import CHECKPOINT_FILE, REPORT, REPORT_FILES, STAGE_FILE

log = logging.getLogger(__name__)
WORK = "work/"
_FETCHES = 8  # files that are fetched at a time
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


class Remote:
    """A folder in a file system that pyarrow reaches by URI.

    Raises:
        RunError: from every method, when the file system refuses or does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.name = public_name(uri)
        self._uri = uri
        with self._explained("open"):
            files, root = FileSystem.from_uri(uri)
            self._files = SubTreeFileSystem(root, files)
            self._folder = Path(root) if isinstance(files, LocalFileSystem) else None

    def stages(self) -> dict[str, Mark]:
        """The mark of every finished stage, by stage; one that cannot be read is left out with a
        line in the log.
        """
        folders = [name for name in self.folders_with(STAGE_FILE) if not name.startswith(WORK)]
        return self._marks(folders, STAGE_FILE)

    def checkpoints(self, work: str) -> dict[str, Mark]:
        """The mark of every checkpoint below the folder ``work``, by its path from the root."""
        folders = self.folders_with(CHECKPOINT_FILE, work)
        return self._marks([name for name in folders if step_at(name)], CHECKPOINT_FILE)

    def _marks(self, folders: Sequence[str], mark_name: str) -> dict[str, Mark]:
        marks = {}
        for folder in folders:
            try:
                marks[folder] = self.mark(folder, mark_name)
            except NotWhole as error:
                log.warning("%s", error)
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

    def folders_with(self, base_name: str, below: str = "") -> list[str]:
        """Every folder that has a file of this name, by its path from the root."""
        files = [file.path for file in self._list(below) if file.base_name == base_name]
        return sorted(path.rpartition("/")[0] for path in files if "/" in path)

    def files_below(self, folder: str) -> list[str]:
        """The paths of all files below a folder, from the root."""
        return sorted(file.path for file in self._list(folder))

    def _list(self, below: str) -> list[FileInfo]:
        """Every file below a folder whose path stays below it: buckets may be somebody else's."""
        with self._explained("list"):
            found = self._files.get_file_info(
                FileSelector(below, recursive=True, allow_not_found=True)
            )
        return [file for file in found if file.type == FileType.File and _is_inside(file.path)]

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._explained("read"):
            return self._files.get_file_info(name).type == FileType.File

    def modified(self, name: str) -> float | None:
        """When a file was written, by the store's own clock, in seconds since 1970; None if there
        is no such file.
        """
        with self._explained("read"):
            file = self._files.get_file_info(name)
        if file.type != FileType.File:
            return None
        return file.mtime_ns / 1e9 if file.mtime_ns else time.time()

    def now(self) -> float:
        """The time by the store's own clock, in seconds since 1970: that of a file which is written
        for it.
        """
        name = temporary_name(Path("clock")).name
        self.write(name, "")
        try:
            return self.modified(name) or time.time()
        finally:
            self.remove_file(name)

    def read(self, name: str) -> str:
        """The text of a file."""
        with self._explained("read"), self._files.open_input_stream(name) as stream:
            return stream.read().decode(errors="replace")

    def write(self, name: str, text: str) -> None:
        """Make or replace a file, in one piece."""
        with self._explained("write"):
            if self._folder:
                self._make_folder_of(name)
                write_text(self._folder / name, text, durable=False)
                return
            with self._files.open_output_stream(name) as stream:  # object stores replace it whole
                stream.write(text.encode())

    def send(
        self,
        folder: Path,
        name: str,
        mark_name: str = STAGE_FILE,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace the folder ``name`` by ``folder``, in one moment: that in which its mark is
        written.

        Args:
            folder: in the working copy, with the file ``mark_name``.
            name: of the folder there.
            mark_name: file that is written last.
            check: called before every file and before the mark; what it raises ends the sending.
        """
        content = json.loads((folder / mark_name).read_bytes())
        before = ""
        if self.exists(f"{name}/{mark_name}"):
            with suppress(NotWhole):
                before = self.mark(name, mark_name).generation
        generation = f"sent-{uuid.uuid4().hex[:16]}"
        for file in file_names(folder):
            if file != mark_name:
                check()
                self.send_file(folder / file, f"{name}/{generation}/{file}")
        check()
        mark = Mark(generation=generation, content=content)
        self.write(f"{name}/{mark_name}", mark.model_dump_json(indent=1))
        if before:
            self.remove(f"{name}/{before}")

    def replace_report(self, folder: Path) -> None:
        """Replace the report, which has no mark, file by file.

        Raises:
            RunError: there is something else in its folder, which stays as it is.
        """
        fresh = file_names(folder)
        there = [file.removeprefix(f"{REPORT}/") for file in self.files_below(REPORT)]
        old = [file for file in there if not file.startswith(".")]
        foreign = [file for file in old if file not in REPORT_FILES]
        if foreign:
            raise RunError(
                f"{REPORT}/{foreign[0]} at {self.name} is not part of a report; move it away and try again"
            )
        for file in fresh:
            self.send_file(folder / file, f"{REPORT}/{file}")
        for file in old:
            if file not in fresh:
                self.remove_file(f"{REPORT}/{file}")

    def send_file(self, file: Path, name: str) -> None:
        """Make or replace the file ``name``."""
        with self._explained("write"):
            self._make_folder_of(name)
            copy_files(str(file), name, LocalFileSystem(), self._files)

    def fetch(self, name: str, mark: Mark, mark_name: str, folder: Path) -> None:
        """Fill ``folder`` with the stage or checkpoint ``name``.

        Raises:
            NotWhole: a file there is missing or is not the one that was sent.
        """
        what = f"{name} at {self.name}"
        try:
            files = mark.files()
        except ValidationError as error:
            raise NotWhole(f"{what} is left out: {mark_name} is damaged") from error
        if not all(map(_is_inside, files)):
            raise NotWhole(f"{what} is left out: it names files outside of its folder")
        there = set(self.files_below(f"{name}/{mark.generation}"))
        missing = [file for file in files if f"{name}/{mark.generation}/{file}" not in there]
        if missing:
            raise NotWhole(f"{what} is left out: {missing[0]} is missing")
        self.fetch_files(f"{name}/{mark.generation}", list(files), folder)
        if damage := find_damage(folder, files):
            raise NotWhole(f"{what} is left out: {damage}")
        (folder / mark_name).write_text(mark.text)

    def fetch_files(self, name: str, files: Sequence[str], folder: Path) -> None:
        """Copy files of the folder ``name``, given by their paths in it, to ``folder``."""

        def fetch_one(file: str) -> None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            copy_files(f"{name}/{file}", str(folder / file), self._files, LocalFileSystem())

        with self._explained("read"), ThreadPoolExecutor(_FETCHES) as pool:
            list(pool.map(fetch_one, files))

    def remove(self, name: str, mark_name: str = STAGE_FILE) -> None:
        """Remove the folder ``name``, its mark first."""
        with self._explained("remove"):
            if self._files.get_file_info(f"{name}/{mark_name}").type == FileType.File:
                self._files.delete_file(f"{name}/{mark_name}")
            if self._files.get_file_info(name).type == FileType.Directory:
                self._files.delete_dir(name)

    def remove_stage(self, name: str) -> None:
        """Remove a finished stage: its mark, then what was sent of it. Whatever else is in its
        folder stays.
        """
        self.remove_file(f"{name}/{STAGE_FILE}")
        found = [_GENERATION.match(file) for file in self.files_below(name)]
        for generation in {match[2] for match in found if match and match[1] == name}:
            self.remove(f"{name}/{generation}")
        if not self.files_below(name):
            self.remove(name)

    def remove_file(self, name: str) -> None:
        """Remove a file that is there."""
        with self._explained("remove"):
            self._files.delete_file(name)

    def remove_abandoned(self) -> None:
        """Remove what a kill left half-sent long ago: generations that no mark names, and files
        half-written.
        """
        newest: dict[tuple[str, str], float] = {}
        marks: dict[str, str] = {}
        half_written: dict[str, float] = {}
        for file in self._list(""):
            folder = file.path.rpartition("/")[0]
            if file.base_name in (STAGE_FILE, CHECKPOINT_FILE):
                marks[folder] = file.base_name
            if file.base_name.startswith(TEMPORARY):
                half_written[file.path] = (file.mtime_ns or 0) / 1e9
            if found := _GENERATION.match(file.path):
                sent = found[1], found[2]
                newest[sent] = max(newest.get(sent, 0.0), (file.mtime_ns or 0) / 1e9)
        if not newest and not half_written:
            return
        now = self.now()
        for path, modified in half_written.items():
            if now - modified >= _ABANDONED_S:
                self.remove_file(path)
        for (name, generation), modified in newest.items():
            if now - modified >= _ABANDONED_S and not self._may_name(
                name, marks.get(name), generation
            ):
                self.remove(f"{name}/{generation}")

    def _may_name(self, folder: str, mark_name: str | None, generation: str) -> bool:
        """Whether a folder's mark, if it has one, names a generation; one that cannot be read may."""
        if mark_name is None:
            return False
        try:
            return self.mark(folder, mark_name).generation == generation
        except NotWhole:
            return True

    def _make_folder_of(self, name: str) -> None:
        if self._folder:  # object stores need none
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException) as error:
            reason = " ".join(str(error).split())
            shown = hide_secrets(reason, self._uri)
            cause = error if shown == reason else None  # a traceback would show what was hidden
            raise RunError(f"cannot {verb} {self.name}: {shown}") from cause


def step_at(path: str) -> int:
    """The step of the checkpoint at a path, 0 if it is not one of a checkpoint."""
    return step_of(path.rpartition("/")[2]) or 0


def _is_inside(path: str) -> bool:
    """Whether a relative path stays below where it starts."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
