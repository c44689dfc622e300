"""Sets in directories of their own, as `bi-ray data` and `inject` write them.

Each has its rows in numbered files, manifest.json and README.md.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict
from typing_extensions import TypedDict

from bi_ray.config.base import SetName
from bi_ray.config.run import RunConfig
from bi_ray.data.columns import ExtraColumns
from bi_ray.data.export import (
    DEMONSTRATION_SCHEMA,
    Counts,
    Format,
    Layout,
    Manifest,
    Row,
    layout_of,
    split_of,
    with_columns,
    write_card,
)
from bi_ray.data.generation import distinct_problems, too_few
from bi_ray.data.seen import Seen
from bi_ray.data.shards import ROWS_PER_SHARD, ShardWriter
from bi_ray.files.atomic import put_in_place, write_atomically, write_text
from bi_ray.files.errors import RunError, naming
from bi_ray.rows.fields import MANIFEST, rows_of
from bi_ray.rows.rejects import REJECTS, DataError, Rejects
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.layout import LOCK_FILE, RUN_MARK
from bi_ray.runs.process import code_version
from bi_ray.runs.records import read_record
from bi_ray.runs.stage_key import StageKey, differences, key_of
from bi_ray.tasks.base import FiniteTask
from bi_ray.tasks.registry import build_task, data_files

PARTIAL = ".partial"  # of a directory's name while it is made
_PROGRESS, _HASHES = "progress.json", "hashes.u64"
OnProgress = Callable[[int], None]  # takes the number of rows so far


def write_set(
    config: RunConfig,
    name: SetName,
    count: int | None,
    out: Path,
    export: Format = "arrow",
    processes: int = 1,
    on_progress: OnProgress = lambda done: None,
) -> Manifest:
    """Write the first ``count`` different problems of a set as they come; returns the manifest.

    They are written to ``OUT.partial``, in files of 10,000 rows; after a kill the same call resumes
    behind the last whole file. The files are the same bytes for any number of processes, killed in
    between or not.

    Args:
        config: its task and data seed are used.
        name: which set.
        count: how many problems; None: all, of a user's files.
        out: a directory that does not exist yet; one made by the same call before is left as it is.
        export: see ``bi_ray.data.export``.
        processes: how many make problems.
        on_progress: called with the number of problems so far.

    Raises:
        DataError: ``out`` holds something else, or there are too few problems.
        RunLocked: another process is at it.
    """
    task = build_task(config.task, config.seeds.data, config.verifier)
    source = f"bi_ray/{config.task.kind}"
    layout = layout_of(export, task.system_prompt, source, split_of(name), demonstrations=False)
    key = _key_of_set(config, name, count, export)
    if refuse_existing(out, key):
        _remove_marks(out)
        return read_manifest(out)
    if isinstance(task, FiniteTask):
        _require_rows(task, name, count)
    with RunDirectory(out.with_name(out.name + PARTIAL)) as locked:
        work = locked.path
        progress = _Progress(work, key)
        first, seen = progress.next_index, progress.seen
        rows = distinct_problems(
            config.task, config.seeds.data, name, count, processes, first, seen, task
        )
        _write_rows(rows, layout, work, progress, on_progress)
        about: Manifest = {"name": f"{config.name} {name}", "set": name, "split": split_of(name)}
        about["format"] = export
        if isinstance(task, FiniteTask):
            task.rejects.write(work / REJECTS)
            about["rejected"] = len(task.rejects.rows)
        about |= {"key": key.digest, "made_from": key.config}
        manifest = _sign(work, layout, about, progress.counts)
        put_in_place(work, out)
    _remove_marks(out)
    return manifest


def _key_of_set(config: RunConfig, name: SetName, count: int | None, export: Format) -> StageKey:
    made_from = {
        "set": name,
        "problems": count,
        "data_seed": config.seeds.data,
        "task": config.task,
        "format": export,
    }
    return key_of(made_from, data_files(config.task))


def _write_rows(
    rows: Iterable[tuple[int, Row]],
    layout: Layout,
    work: Path,
    progress: _Progress,
    on_progress: OnProgress,
) -> None:
    """Write the rows that are still to come, each with its index in the set."""
    writer = ShardWriter(work, layout.file_format, layout.schema, progress.shards, progress.save)
    on_progress(progress.counts.rows)
    for index, row in rows:
        converted = layout.convert(row, progress.counts.rows)
        progress.add(index, row)
        writer.write(converted)
        on_progress(progress.counts.rows)
    writer.close()
    progress.forget()


def _remove_marks(out: Path) -> None:
    """Take from a finished set what makes a run of its directory.

    Until the set has its name it is one, or nobody could resume it after a kill.
    """
    for file in (LOCK_FILE, RUN_MARK):
        (out / file).unlink(missing_ok=True)


def _require_rows(task: FiniteTask, name: SetName, count: int | None) -> None:
    """Refuse a set with too few rows in its files, before anything is made of them.

    Raises:
        DataError: it has too few.
    """
    available = task.available(name)
    if not available:
        raise DataError(task.rejects.explain(f"set {name}", "nothing was written"))
    if count is not None and available < count:
        raise DataError("\n".join([too_few(name, available, count), *task.rejects.summary()]))


def write_injected(
    rows: Iterable[Row],
    rejects: Rejects,
    source: Path,
    out: Path,
    system_prompt: str,
    run: RunConfig | None,
    about: Mapping[str, Any],
    export: Format = "arrow",
    on_progress: OnProgress = lambda done: None,
) -> Manifest:
    """Write demonstrations as they come, and the rejected rows; returns the manifest.

    Args:
        rows: of ``bi_ray.injection.user_rows.inject_rows``.
        rejects: gets the bad ones meanwhile; they are written to rejects.jsonl.
        source: where they came from.
        out: a directory that does not exist yet.
        system_prompt: of the conversations.
        run: names the task; None: the manifest of ``source`` does.
        about: the recipe and its seed, for the manifest.
        export: see ``bi_ray.data.export``.
        on_progress: called with the number of demonstrations so far.

    Raises:
        DataError: ``out`` exists.
    """
    refuse_existing(out)
    made_from = key_of({**_source_of(source, run), **about}, {}).config  # plain JSON data
    kind = (made_from["task"] or {}).get("kind", "free_text")
    layout = layout_of(export, system_prompt, f"bi_ray/{kind}", "train", demonstrations=True)
    if layout.schema is DEMONSTRATION_SCHEMA:
        # A first reading, for the types of the extra columns: JSON lines can hold anything.
        extra = ExtraColumns(row for _, row in rows_of(source, Rejects()))
        layout = with_columns(layout, extra)
    counts = Counts()
    with write_atomically(out) as folder:
        writer = ShardWriter(folder, layout.file_format, layout.schema)
        for row in rows:
            writer.write(layout.convert(row, counts.rows))
            counts.add(row)
            on_progress(counts.rows)
        if not counts.rows:
            raise DataError(rejects.explain(source, "nothing was written"))
        writer.close()
        rejects.write(folder / REJECTS)
        card = {
            "name": f"{source.stem} with behaviors",
            "split": "train",
            "format": export,
            "rejected": len(rejects.rows),
            "made_from": made_from,
        }
        return _sign(folder, layout, card, counts)


def _source_of(source: Path, run: RunConfig | None) -> Manifest:
    """Where the rows of ``source`` came from, by the configuration or by their manifest."""
    made_from = read_manifest(source).get("made_from", {})
    task, data_seed = made_from.get("task"), made_from.get("data_seed")
    if run is not None:
        task, data_seed = run.task, run.seeds.data
    return {"input": source.name, "task": task, "data_seed": data_seed}


def _sign(folder: Path, layout: Layout, about: Mapping[str, Any], counts: Counts) -> Manifest:
    """Write manifest and card; returns the manifest."""
    manifest = {**about, "code_version": code_version(), **counts.summary()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    write_card(folder, layout, manifest)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a set; empty for a file, and for a directory that bi-ray did not make.

    Raises:
        RunError: it is damaged.
    """
    file = directory / MANIFEST
    if not file.is_file():
        return {}
    return dict(read_record(file, _Manifest, "make the set again under another --out"))


def refuse_existing(out: Path, key: StageKey | None = None) -> bool:
    """Whether ``out`` was made under ``key`` already.

    Raises:
        DataError: there is something else in its place.
    """
    if not out.exists():
        return False
    if key is not None and read_manifest(out).get("key") == key.digest:
        return True
    raise DataError(f"{out} exists already; remove it, or choose another --out")


class _Manifest(TypedDict, total=False):
    """The part of a manifest that is read again; the rest stays in it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    key: str
    made_from: Manifest


@dataclass(frozen=True, slots=True)
class _State:
    """An unfinished set as ``progress.json`` keeps it."""

    key: str
    config: Manifest
    shards: int
    next_index: int
    answers: dict[str, int]


class _Progress:
    """What an unfinished set resumes from: kept after every whole file, removed at the end.

    Raises:
        DataError: the set was begun under other settings.
        RunError: a file is damaged.
    """

    def __init__(self, folder: Path, key: StageKey) -> None:
        self._folder, self._key = folder, key
        self._hashes = folder / _HASHES
        self._fresh: list[int] = []
        self.counts, self.shards, self.next_index = Counts(), 0, 0
        if (folder / _PROGRESS).exists():
            self._resume(read_record(folder / _PROGRESS, _State, f"remove {folder} to begin again"))
        known = 8 * self.counts.rows
        self._hashes.touch()
        if self._hashes.stat().st_size < known:
            raise RunError(
                f"{self._hashes} is damaged (it is too short): remove {folder} to begin again"
            )
        os.truncate(self._hashes, known)  # a kill between the two files of `save` leaves more
        self.seen = Seen(np.fromfile(self._hashes, dtype=np.uint64))

    def _resume(self, state: _State) -> None:
        if state.key != self._key.digest:
            changed = "\n  ".join(differences(state.config, self._key.config))
            raise DataError(
                f"{self._folder} was begun under other settings:\n  {changed}\nremove it, or "
                "choose another --out"
            )
        self.shards, self.next_index = state.shards, state.next_index
        self.counts = Counts(self.shards * ROWS_PER_SHARD, Counter(state.answers))

    def add(self, index: int, row: Row) -> None:
        """Count a row that is about to be written."""
        self.next_index = index + 1
        self.counts.add(row)
        self._fresh.append(int(row["hash"], 16))

    def save(self, shards: int) -> None:
        """Keep everything so far: it is in ``shards`` whole files."""
        with naming(self._hashes), self._hashes.open("ab") as file:
            file.write(np.array(self._fresh, dtype=np.uint64).tobytes())
            file.flush()
            os.fsync(file.fileno())  # before the number of the rows, which is in the other file
        self._fresh = []
        state = _State(
            self._key.digest, self._key.config, shards, self.next_index, dict(self.counts.answers)
        )
        write_text(self._folder / _PROGRESS, json.dumps(asdict(state)))

    def forget(self) -> None:
        """Remove what was kept: the set is whole."""
        (self._folder / _PROGRESS).unlink(missing_ok=True)
        self._hashes.unlink()
