"""Files in a folder that pyarrow reaches by URI (s3://, gs://, file://)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

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

from bi_ray.files.atomic import write_text
from bi_ray.files.errors import RunError
from bi_ray.files.names import temporary_name
from bi_ray.files.uri import hide_secrets, public_name

_FETCHES = 8  # files that are fetched at a time


class RemoteFiles:
    """A folder in a file system that pyarrow reaches by URI. All names are relative to it.

    Attributes:
        name: the URI without its query and credentials.

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

    def list_files(self, below: str = "") -> list[FileInfo]:
        """Every file below a folder.

        One whose path leads out of it is left out: buckets may be somebody else's.
        """
        with self._explained("list"):
            entries = self._files.get_file_info(
                FileSelector(below, recursive=True, allow_not_found=True)
            )
        return [entry for entry in entries if entry.type == FileType.File and is_inside(entry.path)]

    def files_below(self, folder: str) -> list[str]:
        """The names of all files below a folder, sorted."""
        return sorted(file.path for file in self.list_files(folder))

    def folders_with(self, base_name: str, below: str = "") -> list[str]:
        """Every folder that has a file of this name, sorted."""
        end = f"/{base_name}"
        return sorted(
            name.removesuffix(end) for name in self.files_below(below) if name.endswith(end)
        )

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._explained("read"):
            return self._files.get_file_info(name).type == FileType.File

    def modified(self, name: str) -> float | None:
        """When a file was written, by the store's clock, in seconds since 1970; None: no file."""
        with self._explained("read"):
            file = self._files.get_file_info(name)
        if file.type != FileType.File:
            return None
        return file.mtime_ns / 1e9 if file.mtime_ns else time.time()

    def now(self) -> float:
        """The time by the store's own clock, in seconds since 1970: when it stores a file now."""
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

    def send_file(self, file: Path, name: str) -> None:
        """Make or replace the file ``name`` by a local one."""
        with self._explained("write"):
            self._make_folder_of(name)
            copy_files(str(file), name, LocalFileSystem(), self._files)

    def fetch_files(self, name: str, files: Sequence[str], folder: Path) -> None:
        """Copy files of the folder ``name``, given by their paths in it, to a local folder."""

        def fetch(file: str) -> None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            copy_files(f"{name}/{file}", str(folder / file), self._files, LocalFileSystem())

        with self._explained("read"), ThreadPoolExecutor(_FETCHES) as pool:
            list(pool.map(fetch, files))

    def remove_file(self, name: str) -> None:
        """Remove a file that is there."""
        with self._explained("remove"):
            self._files.delete_file(name)

    def remove_folder(self, name: str) -> None:
        """Remove a folder, if it is there."""
        with self._explained("remove"):
            if self._files.get_file_info(name).type == FileType.Directory:
                self._files.delete_dir(name)

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


def is_inside(path: str) -> bool:
    """Whether a relative path stays below where it starts."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
