import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, DatasetDict

from bi_ray.rows.cells import RowError
from bi_ray.rows.files import file_digest, read_rows
from bi_ray.rows.rejects import DataError, Place, Rejects

ROWS = [{"question": f"q{i}", "answer": i} for i in range(5)]


def question_of(values, place):
    if "question" not in values:
        raise RowError("no question")
    return values["question"], place.line


def written(tmp_path, lines):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines)
    )
    return path


def file_of(kind, tmp_path):
    if kind == "jsonl":
        return written(tmp_path, [json.dumps(row) for row in ROWS])
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    return tmp_path / "rows"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "directory"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    rejects = Rejects()
    path = file_of(kind, tmp_path)
    assert list(read_rows(path, question_of, rejects)) == [(f"q{i}", i + 1) for i in range(5)]
    assert not rejects.rows
    assert len(file_digest(path)) == 16


def test_bad_lines_are_kept_with_line_and_reason_and_the_good_ones_go_on(tmp_path):
    lines = [
        '{"question": "a"}',
        '{"question": ',
        "",
        "[1, 2]",
        '{"answer": 3}',
        b'{"question": "\xff"}\n',
    ]
    lines += [
        '{"question": "b"}',
        '{"question": ' + "9" * 5000 + "}",
        '{"question": ' * 100_000,
        '{"question": "c"}',
    ]
    path = written(tmp_path, lines)
    rejects = Rejects()
    assert list(read_rows(path, question_of, rejects)) == [("a", 1), ("b", 7), ("c", 10)]
    found = [(reject.line, reject.reason.partition(":")[0]) for reject in rejects.rows]
    assert found == [
        (2, "not valid JSON"),
        (4, "not a JSON object"),
        (5, "no question"),
        (6, "not UTF-8"),
        (8, "not valid JSON"),
        (9, "not valid JSON"),
    ]
    assert all(reject.file == str(path) for reject in rejects.rows)
    rejects.write(tmp_path / "rejects.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [row["line"] for row in kept] == [2, 4, 5, 6, 8, 9]
    assert kept[2]["row"] == '{"answer": 3}'
    assert max(len(row["row"]) for row in kept) <= 200
    assert rejects.summary()[0] == f"{path}: 3 rows left out, not valid JSON (first: line 2)"
    assert len(rejects.summary()) == 4


def test_strict_stops_at_the_first(tmp_path):
    path = written(tmp_path, ['{"question": "a"}', "{}", "["])
    rows = read_rows(path, question_of, Rejects(strict=True))
    assert next(rows) == ("a", 1)
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: no question \(strict stops"):
        next(rows)


def test_a_first_line_with_a_byte_order_mark_is_read(tmp_path):
    path = written(tmp_path, [b'\xef\xbb\xbf{"question": "a"}\n'])
    assert list(read_rows(path, question_of, Rejects())) == [("a", 1)]


def test_files_that_cannot_be_read_at_all(tmp_path):
    def read(path):
        return list(read_rows(path, question_of, Rejects()))

    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "rows.csv").write_text("question\na\n")
    with pytest.raises(DataError, match=r"give .jsonl \(one JSON object a line\), .parquet"):
        read(tmp_path / "rows.csv")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read"):
        read(tmp_path / "bad.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is a directory, but not a data set"):
        read(tmp_path / "empty")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(
        DataError, match=r"several splits \(train\): name one, as in .*splits/train"
    ):
        read(tmp_path / "splits")
    assert len(read(tmp_path / "splits" / "train")) == 5
    with pytest.raises(DataError, match="No such file"):
        file_digest(tmp_path / "absent.jsonl")


def test_the_digest_follows_the_content(tmp_path):
    before = file_digest(written(tmp_path, ["{}"]))
    assert file_digest(written(tmp_path, ["{}"])) == before
    assert file_digest(written(tmp_path, ["[]"])) != before


def test_a_place_reads_as_file_and_line():
    assert str(Place("a.jsonl", 3)) == "a.jsonl, line 3"


def test_what_datasets_left_unfinished_and_utf_16_are_told(tmp_path):
    (tmp_path / "state.json").touch()
    with pytest.raises(DataError, match=r"cannot be read|not a data set"):
        list(read_rows(tmp_path, lambda row, place: row, Rejects()))
    (tmp_path / "rows.jsonl").write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(DataError, match="is UTF-16: save it as UTF-8"):
        list(read_rows(tmp_path / "rows.jsonl", lambda row, place: row, Rejects()))


def test_a_reason_is_never_longer_than_anybody_would_read():
    rejects = Rejects()
    rejects.add(Place("a", 1), "9" * 5000)
    assert len(rejects.rows[0].reason) < 500
