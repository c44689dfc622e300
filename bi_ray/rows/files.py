"""The files of a user's rows: JSON lines, Parquet, and directories that `datasets` saved."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as parquet

from bi_ray.rows.cells import RowError, plain_row
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues

_BATCH_ROWS = 1000
_JSON_LINES = (".jsonl", ".ndjson")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

T = TypeVar("T")


def read_rows(
    path: str | Path, read: Callable[[RowValues, Place], T], rejects: Rejects
) -> Iterator[T]:
    """The result of ``read`` for every good row of a file, in order.

    One row is in memory at a time, a thousand in Parquet.

    Args:
        path: ``.jsonl`` (also ``.ndjson``), ``.parquet``, or a directory that ``datasets`` saved.
        read: called with a row and its place; raises ``RowError`` for a bad one.
        rejects: gets the bad rows, those that are not JSON objects too.

    Raises:
        DataError: the file cannot be read at all; or from ``rejects``.
    """
    path = Path(path)
    for number, content in _contents(path):
        place = Place(str(path), number)
        try:
            values = _parse(content) if isinstance(content, bytes) else content
            result = read(plain_row(values), place)
        except RowError as error:
            rejects.add(place, str(error), _shown(content))
            continue
        yield result


def _shown(content: bytes | RowValues) -> object:
    """A bad row as rejects keep it."""
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace").strip()
    return dict(content)


def _contents(path: Path) -> Iterator[tuple[int, bytes | RowValues]]:
    """Numbered rows: bytes of a line of JSON, or a mapping.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; paths start at the working directory")
    try:
        if path.is_dir():
            yield from _rows_of_data_set(path)
        elif path.suffix in _JSON_LINES:
            yield from _lines(path)
        elif path.suffix == ".parquet":
            yield from _rows_of_parquet(path)
        else:
            raise DataError(
                f"{path}: give .jsonl (one JSON object a line), .parquet, or a directory that "
                "datasets saved; of .csv or .json, datasets.load_dataset and to_json make .jsonl"
            )
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is a directory, but not a data set: {error}") from error
    # pyarrow's errors and those of a broken JSON file are ValueErrors.
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _rows_of_data_set(path: Path) -> Iterator[tuple[int, RowValues]]:
    from datasets import Dataset, load_from_disk  # here: it takes seconds

    data = load_from_disk(str(path))
    if not isinstance(data, Dataset):
        raise DataError(
            f"{path} holds several splits ({', '.join(data)}): name one, as in "
            f"{path}/{next(iter(data))}"
        )
    yield from _numbered_rows(data.with_format("arrow").iter(batch_size=_BATCH_ROWS))


def _rows_of_parquet(path: Path) -> Iterator[tuple[int, RowValues]]:
    with parquet.ParquetFile(path) as file:
        yield from _numbered_rows(file.iter_batches(batch_size=_BATCH_ROWS))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank.

    Not by datasets: it gives a whole file up for one bad line, and does not say which.
    """
    with open(path, "rb") as lines:
        if lines.peek(2)[:2] in _UTF16:
            raise DataError(f"{path} is UTF-16: save it as UTF-8")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


def _numbered_rows(
    batches: Iterable[pa.RecordBatch | pa.Table],
) -> Iterator[tuple[int, RowValues]]:
    number = 0
    for batch in batches:
        for row in _python_rows(batch):
            number += 1
            yield number, row


def _python_rows(batch: pa.RecordBatch | pa.Table) -> list[RowValues]:
    """Rows of Arrow; 0.1 of a column of 32 bits stays 0.1: as a float it has further digits."""
    for position, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            digits = batch.column(position).cast(pa.string())
            batch = batch.set_column(position, field.name, digits.cast(pa.float64()))
    rows: list[RowValues] = batch.to_pylist()
    return rows


def file_digest(path: str | Path) -> str:
    """Hash of a file's content, or of the files of a directory (64 bits, hexadecimal).

    Raises:
        DataError: there is no such file.
    """
    path = Path(path)
    result = hashlib.blake2b(digest_size=8)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        try:
            with open(file, "rb") as content:
                result.update(hashlib.file_digest(content, "blake2b").digest())
        except OSError as error:
            raise DataError(
                f"{file}: {error.strerror}; paths start at the working directory"
            ) from error
    return result.hexdigest()


def _parse(line: bytes) -> RowValues:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    # Not only JSONDecodeError: a number may have too many digits.
    except (ValueError, RecursionError) as error:
        raise RowError(f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise RowError(f"not a JSON object: found {type(values).__name__}")
    return values
