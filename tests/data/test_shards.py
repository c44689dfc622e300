"""Files of rows: read back as written, in every format, at every size around a batch and a file."""

import pyarrow as pa
import pytest
from datasets import load_dataset, load_from_disk

from bi_ray.data import shards
from bi_ray.data.shards import ShardWriter
from bi_ray.files.atomic import remove_leftovers
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects

SCHEMA = pa.schema({"id": pa.string(), "tokens": pa.list_(pa.int64()), "text": pa.string()})


def numbered(count):
    return [
        {"id": f"r{i}", "tokens": list(range(i % 5)), "text": f"Fünf = {i}\n"} for i in range(count)
    ]


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 12)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("count", [0, 1, 4, 11, 12, 13, 24, 30])
@pytest.mark.parametrize("file_format", ["arrow", "parquet", "jsonl"])
def test_rows_come_back(tmp_path, file_format, count):
    rows, full = numbered(count), []
    writer = ShardWriter(tmp_path, file_format, SCHEMA, on_shard=full.append)
    for row in rows:
        writer.write(row | {"not in the schema": 1})
    writer.close()
    assert [row for _, row in rows_of(tmp_path, Rejects(strict=True))] == rows
    assert full == list(range(1, count // 12 + 1))
    assert len(list(tmp_path.glob(f"data-*.{file_format}"))) == max(1, -(-count // 12))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.usefixtures("small_files")
def test_arrow_files_are_a_dataset(tmp_path):
    writer = ShardWriter(tmp_path, "arrow", SCHEMA)
    for row in numbered(30):
        writer.write(row)
    writer.close()
    data = load_from_disk(str(tmp_path))
    assert data.to_list() == numbered(30)
    assert data.map(lambda row: {"length": len(row["tokens"])})[29]["length"] == 4
    assert data.features["tokens"].feature.dtype == "int64"


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_others_load_by_the_datasets_library(tmp_path, file_format):
    (tmp_path / "x").mkdir()
    writer = ShardWriter(tmp_path / "x", file_format, SCHEMA)
    for row in numbered(30):
        writer.write(row)
    writer.close()
    data = load_dataset(str(tmp_path / "x"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.to_list() == numbered(30)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("file_format", ["arrow", "parquet", "jsonl"])
def test_going_on_behind_whole_files_gives_the_same_bytes(tmp_path, file_format):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    writer = ShardWriter(whole, file_format, SCHEMA)
    for row in numbered(40):
        writer.write(row)
    writer.close()
    writer = ShardWriter(broken, file_format, SCHEMA)
    for row in numbered(17):  # and no close: the second file is in work
        writer.write(row)
    writer = ShardWriter(broken, file_format, SCHEMA, shards=1)
    for row in numbered(40)[12:]:
        writer.write(row)
    writer.close()
    for file in whole.glob("data-*"):
        assert (broken / file.name).read_bytes() == file.read_bytes()


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("file_format", ["arrow", "parquet", "jsonl"])
def test_what_a_killed_writer_left_is_known_as_ours(tmp_path, file_format):
    writer = ShardWriter(tmp_path, file_format, SCHEMA)
    for row in numbered(18):
        writer.write(row)
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"data-00000.{file_format}"]
