"""The run directory: stages that are whole or absent, and the work of unfinished ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from bi_ray.config.base import Config
from bi_ray.config.files import save_config
from bi_ray.files.atomic import discard, restore, tidy, write_atomically
from bi_ray.files.errors import RunError, explain_full_disk, naming
from bi_ray.files.integrity import find_damage, record_files
from bi_ray.files.uri import public_name
from bi_ray.runs.foreign_folders import (
    refuse_foreign,
    refuse_foreign_files,
    refuse_foreign_report,
)
from bi_ray.runs.layout import (
    CONFIG_FILE,
    REPORT,
    RUN_MARK,
    STAGE_FILE,
    kind_of,
    work_of,
)
from bi_ray.runs.lock import take_lock
from bi_ray.runs.process import absolute
from bi_ray.runs.records import remedy_from
from bi_ray.runs.stage_key import StageKey, differences, key_of
from bi_ray.runs.stages import StageRecord, read_stage, require_sizes, write_stage

_SHOWN_DIFFERENCES = 20


class StageChanged(RunError):
    """A stage was made under another configuration or from other inputs."""


class RunDirectory:
    """Where the stages of one run are: the folder ``STAGE`` of each, ``work/STAGE`` until then.

    Used as a context manager it holds the run's lock, which the kernel releases when the process
    ends in whatever way. See ``layout`` for the names of everything in it.

    Attributes:
        path: the directory, absolute.
        name: what tells this run from others: the path, or the URI that the directory is a working
            copy of.

    Args:
        path: a directory, made if absent. For a URI see ``place.RunPlace``.

    Raises:
        RunError: the path is a URI or a file, or relative inside a Ray job.
    """

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise RunError(
                f"{public_name(str(path))}: this command works in a directory; `bi-ray run` and "
                "`study` take a URI"
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
        self._lock = take_lock(self.path)
        tidy(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def run_id(self) -> str:
        """Names this run among others: the same for the same directory or URI."""
        return key_of({"path": self.name}, {}).digest

    def artifact(self, stage: str) -> Path:
        """Where the finished ``stage`` is, or will be."""
        return self.path / stage

    def is_done(self, stage: str, key: StageKey) -> bool:
        """Whether ``stage`` is finished.

        Raises:
            StageChanged: it is, under another key; the message lists what differs.
            RunError: it is, and files of it are damaged. Absent ones, such as weights that were
                removed to make room, matter to whoever reads them; see ``require_whole``.
        """
        folder = self.artifact(stage)
        restore(folder)
        if not self._is_under(folder, stage, key):
            return False
        require_sizes(folder, absent_ok=True)
        return True

    def work(self, stage: str, key: StageKey) -> Path:
        """The folder for what an unfinished ``stage`` resumes from, made if absent.

        Raises:
            StageChanged: the work there was begun under another key.
            RunError: the folder is there, and bi-ray did not make it.
        """
        folder = self.path / work_of(stage)
        if not self._is_under(folder, stage, key):
            refuse_foreign_files(folder)
            with write_atomically(folder) as fresh:
                write_stage(fresh, key, seconds=None, files=None)
        return folder

    @contextmanager
    def commit(self, stage: str, key: StageKey, began: float | None = None) -> Iterator[Path]:
        """A folder to fill, which becomes ``stage``, whole, when the block ends without an error.

        The folder that ``work`` gave is removed then. ``stage.json`` holds the key, the code
        version, size and digest of every file, and the seconds since ``began``.

        Args:
            stage: its name.
            key: of the stage.
            began: when it began, by ``time.monotonic``; None: when the block begins.

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
            files = record_files(folder)
            write_stage(folder, key, time.monotonic() - began, files)
        discard(self.path / work_of(stage))

    def require_whole(self, *stages: str) -> None:
        """Compare the files of finished stages with their digests, each stage once.

        Whoever reads a stage calls this.

        Raises:
            RunError: a file is not what it was when its stage was finished.
        """
        for stage in stages:
            if stage in self._whole:
                continue
            folder = self.artifact(stage)
            damage = find_damage(folder, read_stage(folder).files or {})
            if damage is not None:
                raise RunError(f"{folder} is damaged: {damage}; {self._remedy(stage)}")
            self._whole.add(stage)

    def _remedy(self, stage: str) -> str:
        return f"make the stage again with --from {kind_of(stage)}"

    @contextmanager
    def keeping_work(self, stage: str, note: Callable[[str], None]) -> Iterator[None]:
        """While the block makes ``stage``, keep its checkpoints where the run is.

        In a directory they are there already.

        Args:
            stage: its name.
            note: takes a line when checkpoints cannot be kept.
        """
        yield

    def forget_from(self, stage_order: Sequence[str], stage: str) -> None:
        """Remove ``stage`` and every later one, all their arms, finished or not.

        Whatever else is in those folders stays.

        Args:
            stage_order: the first parts of the stages' names, in the order of a run.
            stage: where to start again.

        Raises:
            RunError: ``stage`` is not in ``stage_order``, or files of the user are inside a stage;
                nothing is removed then.
        """
        if stage not in stage_order:
            raise RunError(f"no stage is called {stage!r}; the stages are {', '.join(stage_order)}")
        forgotten = stage_order[stage_order.index(stage) :]
        doomed: list[Path] = []
        for name in reversed(forgotten):
            doomed += self._folders_of(name)
        for folder in doomed:
            discard(folder)
        for name in forgotten:
            _remove_if_empty(self.path / name)
            _remove_if_empty(self.path / work_of(name))

    def _folders_of(self, kind: str) -> list[Path]:
        """The folders of a stage, one per arm where it has arms, finished or not.

        Raises:
            RunError: there are files in them that the stage did not make.
        """
        finished = self.path / kind
        if kind == REPORT:
            refuse_foreign_report(finished)
            return [finished]
        folders: list[Path] = []
        for parent in (finished, self.path / work_of(kind)):
            files = [*parent.glob(STAGE_FILE), *parent.glob(f"*/{STAGE_FILE}")]
            folders += [file.parent for file in sorted(files)]
        for folder in folders or [finished]:
            refuse_foreign_files(folder)
        return folders

    def _is_under(self, folder: Path, stage: str, key: StageKey) -> bool:
        """Whether a stage's folder is there, finished or not, and of this key."""
        if not (folder / STAGE_FILE).exists():
            return False
        record = read_stage(folder)
        if record.key != key.digest:
            raise self._changed(stage, record, key)
        return True

    def _changed(self, stage: str, record: StageRecord, key: StageKey) -> StageChanged:
        before = {**record.config, "inputs": record.inputs}
        now = {**key.config, "inputs": key.inputs}
        lines = differences(before, now)
        shown = lines[:_SHOWN_DIFFERENCES]
        if len(lines) > _SHOWN_DIFFERENCES:
            shown.append(f"and {len(lines) - _SHOWN_DIFFERENCES} more")
        listed = "\n  ".join(shown)
        return StageChanged(
            f"stage {stage} of {self.path} was made under other settings:\n  {listed}\n"
            f"use a new run directory, or {remedy_from(stage)}"
        )


def begin_directory(path: Path) -> None:
    """Make the directory of a run or study and mark it as ours.

    Raises:
        RunError: it has files and is not a run directory; nothing in it was touched.
    """
    refuse_foreign(path)
    with naming(path):
        # `scale` trusts no directory that others can write to.
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not (path / RUN_MARK).exists():
            (path / RUN_MARK).touch()


def keep_config(config: Config, directory: Path, replace: bool) -> None:
    """Write the whole configuration, defaults included, as ``config.yaml`` of a run.

    Args:
        config: of the run.
        directory: of the run.
        replace: whether to replace a file that is there already.
    """
    file = directory / CONFIG_FILE
    if replace or not file.exists():
        save_config(config, file)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
