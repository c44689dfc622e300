"""Rows of every shape that is read: what is taken from them, and why others are refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import fields_of, rows_of
from bi_ray.rows.rejects import DataError, Rejects

SYSTEM = {"role": "system", "content": "Think."}
USER = {"role": "user", "content": "What is 1 + 1?"}
ASSISTANT = {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    ("row", "answer", "response"),
    [
        ({"question": "What is 1 + 1?", "answer": 2}, "2", None),
        ({"question": "What is 1 + 1?", "answer": "", "response": "2"}, None, "2"),
        ({"messages": [SYSTEM, USER, ASSISTANT]}, None, "2"),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT], "answer": "2"}, "2", "2"),
        ({"prompt": "What is 1 + 1?", "completion": "2"}, None, "2"),
        ({"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}}, "2", None),
    ],
)
def test_fields_of_every_format(row, answer, response):
    fields = fields_of(row)
    assert (fields.question, fields.answer, fields.response) == ("What is 1 + 1?", answer, response)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "?"}, "no question"),
        ({"question": " "}, "no question"),
        ({"text": "?", "label": 1}, r"no question: name the column .* \(there are text, label\)"),
        ({"question": 5}, "question has to be text, found a number: 5"),
        ({"question": ["a"]}, "question has to be text, found a list"),
        ({"question": "?", "answer": ["5"]}, "answer has to be text or a number, found a list"),
        (
            {"question": "?", "answer": {"value": 5}},
            "answer has to be text or a number, found an object",
        ),
        ({"messages": [ASSISTANT]}, "no question"),
        ({"prompt": ["a"]}, "have to be text, or lists of role and content"),
        ({"question": "?", "response": 3}, "response has to be text, found a number"),
        ({"question": "?", "graph": {"nodes": []}}, "graph has to be text"),
    ],
)
def test_rows_that_cannot_be_used(row, reason):
    with pytest.raises(RowError, match=reason):
        fields_of(row)


def test_bad_lines_are_told_with_their_place_and_good_ones_go_on(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b'{"question": "a"}\n\n{"question": \n[1]\n\xff\xfe\n{"question": "b"}\n')
    rejects = Rejects()
    assert [(place.line, row["question"]) for place, row in rows_of(file, rejects)] == [
        (1, "a"),
        (6, "b"),
    ]
    assert [reject.line for reject in rejects.rows] == [3, 4, 5]
    with pytest.raises(DataError, match=r"mine.jsonl, line 3: not valid JSON"):
        list(rows_of(file, Rejects(strict=True)))


def test_parquet_and_datasets_are_read_too(tmp_path):
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(1200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet", row_group_size=700)
    Dataset.from_list(rows).save_to_disk(tmp_path / "mine")
    for path in (tmp_path / "mine.parquet", tmp_path / "mine"):
        found = list(rows_of(path, Rejects()))
        assert [row for _, row in found] == rows
        assert [place.line for place, _ in found] == list(range(1, 1201))


@pytest.mark.parametrize("name", ["absent.jsonl", "mine.csv", "."])
def test_what_is_no_set_is_refused(tmp_path, name):
    (tmp_path / "mine.csv").write_text("a,b\n")
    with pytest.raises(DataError):
        list(rows_of(tmp_path / name, Rejects()))
