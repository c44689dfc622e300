"""Rows of a user's files: good ones go on, bad ones are kept with file, line and reason.

A reader is any function from a row (a mapping) to what is wanted of it; it raises ``RowError`` for
a row that cannot be used. ``read_rows`` feeds it, and a ``Rejects`` collects what it refused.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as parquet

from bi_ray.rows.cells import RowError, plain_row
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues

_BATCH_ROWS = 1000

T = TypeVar("T")


def read_rows(
    path: str | Path, read: Callable[[RowValues, Place], T], rejects: Rejects
) -> Iterator[T]:
    """What ``read`` makes of every good row of a file, in order; one row is in memory at a time, a
    thousand in Parquet.

    Args:
        path: ``.jsonl`` (also ``.ndjson``), ``.parquet``, or a directory that ``datasets`` saved.
        read: called with a row and its place; raises ``RowError`` for a bad one.
        rejects: gets the bad rows, those that are no JSON object too.

    Raises:
        DataError: the file cannot be read at all; or from ``rejects``.
    """
    path = Path(path)
    for line, content in _contents(path):
        place = Place(str(path), line)
        try:
            values = _parse(content) if isinstance(content, bytes) else content
            made = read(plain_row(values), place)
        except RowError as error:
            row = (
                content.decode("utf-8", "replace").strip()
                if isinstance(content, bytes)
                else dict(content)
            )
            rejects.add(place, str(error), row)
            continue
        yield made


def _contents(path: Path) -> Iterator[tuple[int, bytes | RowValues]]:
    """Numbered rows: bytes of a line of JSON, or a mapping."""
    try:
        if path.is_dir():
            from datasets import Dataset, load_from_disk  # here: it takes seconds

            data = load_from_disk(str(path))
            if not isinstance(data, Dataset):
                raise DataError(
                    f"{path} holds several splits ({', '.join(data)}): name one, as in {path}/{next(iter(data))}"
                )
            tables = data.with_format("arrow").iter(batch_size=_BATCH_ROWS)
            yield from enumerate((row for table in tables for row in _python_rows(table)), start=1)
        elif path.suffix in (".jsonl", ".ndjson"):
            # Not by datasets: it gives a whole file up for one bad line, and does not say which.
            with open(path, "rb") as lines:
                if lines.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                    raise DataError(f"{path} is UTF-16: save it as UTF-8")
                yield from (
                    (number, line) for number, line in enumerate(lines, start=1) if line.strip()
                )
        elif path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=_BATCH_ROWS)
                yield from enumerate(
                    (row for batch in batches for row in _python_rows(batch)), start=1
                )
        elif path.exists():
            raise DataError(
                f"{path}: give .jsonl (one JSON object a line), .parquet, or a directory that datasets saved; "
                "of .csv or .json, datasets.load_dataset and to_json make .jsonl"
            )
        else:
            raise FileNotFoundError
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; paths start at the working directory"
            if not path.exists()
            else f"{path} is a directory, but no data set: {error}"
        ) from error
    except DataError:
        raise
    # pyarrow's and those of a broken JSON file are ValueErrors
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Rows of Arrow; 0.1 of a column of 32 bits stays 0.1, which as a Python float has further
    digits.
    """
    for position, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            digits = batch.column(position).cast(pa.string())
            batch = batch.set_column(position, field.name, digits.cast(pa.float64()))
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


def file_digest(path: str | Path) -> str:
    """Hash of a file's content, or of the files of a directory (64 bits, hexadecimal).

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    result = hashlib.blake2b(digest_size=8)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
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
        raise RowError(f"no UTF-8: {error.reason} at byte {error.start}") from error
    # not only JSONDecodeError: a number may have too many digits
    except (ValueError, RecursionError) as error:
        raise RowError(f"no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise RowError(f"no JSON object: found {type(values).__name__}")
    return values
