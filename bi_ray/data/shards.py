"""Rows written as they come to numbered files of equal size, each whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from bi_ray.files.atomic import put_in_place
from bi_ray.files.names import temporary_name

Row = Mapping[str, Any]
FileFormat = Literal["arrow", "parquet", "jsonl"]
ROWS_PER_BATCH = 500  # held in memory, and one record batch or row group of a file
ROWS_PER_SHARD = 10_000  # one file
SHARD = "data-{number:05d}.{suffix}"


class _File(Protocol):
    def write(self, rows: list[Row]) -> None: ...

    def close(self) -> None: ...


class _ArrowFile:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.file = pa.OSFile(str(path), "wb")
        self.writer = pa.ipc.new_stream(self.file, schema)

    def write(self, rows: list[Row]) -> None:
        self.writer.write_batch(pa.RecordBatch.from_pylist(rows, self.schema))

    def close(self) -> None:
        self.writer.close()
        self.file.close()


class _ParquetFile:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema)

    def write(self, rows: list[Row]) -> None:
        self.writer.write_batch(pa.RecordBatch.from_pylist(rows, self.schema))

    def close(self) -> None:
        self.writer.close()


class _JSONFile:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.names = schema.names
        self.file = path.open("w", encoding="utf-8")

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            columns = {name: row[name] for name in self.names}
            self.file.write(json.dumps(columns, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.file.close()


_FILES: dict[FileFormat, Callable[[Path, pa.Schema], _File]] = {
    "arrow": _ArrowFile,
    "parquet": _ParquetFile,
    "jsonl": _JSONFile,
}


class ShardWriter:
    """Writes rows into the numbered files of a directory; what it writes depends on the rows alone.

    Args:
        directory: exists already.
        file_format: of the files.
        schema: of the rows; further keys of a row are left out.
        shards: how many files there are already, each full.
        on_shard: called with the number of files after each that is whole and full.
    """

    def __init__(
        self,
        directory: Path,
        file_format: FileFormat,
        schema: pa.Schema,
        shards: int = 0,
        on_shard: Callable[[int], None] = lambda shards: None,
    ) -> None:
        self.directory = directory
        self.file_format = file_format
        self.schema = schema
        self.shards = shards
        self._on_shard = on_shard
        self._file: _File | None = None
        self._rows: list[Row] = []
        self._in_file = 0

    def write(self, row: Row) -> None:
        """Take a row; it is on the disk after ``close`` at the latest."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_BATCH:
            self._flush()
            if self._in_file == ROWS_PER_SHARD:
                self._end_file()
                self._on_shard(self.shards)

    def close(self) -> None:
        """Write the rest; a set without rows is one file without rows."""
        if self._rows or self.shards == 0:
            self._flush()
        if self._file is not None:
            self._end_file()
        if self.file_format == "arrow":
            _make_loadable(self.directory, self.schema, self.shards)

    @property
    def _path(self) -> Path:
        return self.directory / SHARD.format(number=self.shards, suffix=self.file_format)

    def _flush(self) -> None:
        if self._file is None:
            self._temporary = temporary_name(self._path)
            self._file = _FILES[self.file_format](self._temporary, self.schema)
        self._file.write(self._rows)
        self._in_file += len(self._rows)
        self._rows = []

    def _end_file(self) -> None:
        assert self._file is not None
        self._file.close()
        put_in_place(self._temporary, self._path)
        self._file, self._in_file = None, 0
        self.shards += 1


def _make_loadable(directory: Path, schema: pa.Schema, shards: int) -> None:
    """Write what `datasets.load_from_disk` needs beside the files.

    `datasets` itself writes it, for a set without rows.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    empty = temporary_name(directory / "empty")
    Dataset(schema.empty_table()).save_to_disk(empty)
    state = json.loads((empty / "state.json").read_text())
    files = [SHARD.format(number=number, suffix="arrow") for number in range(shards)]
    state["_data_files"] = [{"filename": name} for name in files]
    (directory / "state.json").write_text(json.dumps(state, indent=1))
    (empty / "dataset_info.json").rename(directory / "dataset_info.json")
    for leftover in empty.iterdir():
        leftover.unlink()
    empty.rmdir()
