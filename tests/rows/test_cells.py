"""Cells of every source as text: right, empty, or refused with a reason."""

import datetime
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from datasets import Dataset

import bi_ray
from bi_ray.config.tasks import UserDataConfig
from bi_ray.rows.cells import RowError, cell_text, plain_row, text_cell
from bi_ray.rows.fields import fields_of, rows_of
from bi_ray.rows.rejects import Place, Rejects
from bi_ray.tasks.userdata import UserDataTask


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[
            (452.0, "452"),
            (2.5, "2.5"),
            (-0.0, "0"),
            (1e21, "1" + "0" * 21),
            (1e23, "1" + "0" * 23),
            (1e-7, "0.0000001"),
        ],
        *[
            (1e300, "1e+300"),
            (True, "True"),
            (False, "False"),
            (7, "7"),
            ("452.0", "452.0"),
            (" a ", " a "),
            ("", ""),
        ],
        *[
            (Decimal("2.00"), "2"),
            (Decimal("2.50"), "2.5"),
            (Decimal("1E+3"), "1000"),
            (Fraction(1, 3), "1/3"),
        ],
        *[(b"2", "2"), (bytearray("é".encode()), "é"), (np.str_("x"), "x"), (np.bytes_(b"x"), "x")],
        *[
            (np.int64(7), "7"),
            (np.float64(452.0), "452"),
            (np.float32(0.1), "0.1"),
            (np.bool_(True), "True"),
        ],
        *[(np.array(7), "7"), (np.array("x"), "x"), (torch.tensor(7), "7")],
        *[
            (None, None),
            (float("nan"), None),
            (np.nan, None),
            (np.float32("nan"), None),
            (Decimal("NaN"), None),
        ],
        *[(pd.NA, None), (pd.NaT, None), (np.datetime64("NaT"), None)],
    ],
)
def test_a_cell_as_text(value, text):
    assert cell_text(value, "answer") == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *[
            (float("inf"), "finite"),
            (Decimal("-Infinity"), "finite"),
            (np.float32("inf"), "finite"),
        ],
        *[
            ([1, [2]], "found a list"),
            ((1,), "found a list"),
            ({"a": 1}, "found an object"),
            (np.array([7]), "ndarray"),
        ],
        *[
            (b"\xff", "not UTF-8"),
            (1 + 2j, "complex"),
        ],
        *[
            (pd.Timestamp("2024-01-02"), "write it as text"),
            (datetime.date(2024, 1, 2), "write it as text"),
        ],
        *[
            (np.datetime64("2024-01-02T00:00:00.000000001"), "a date or time"),
            (np.timedelta64(5, "ns"), "a date or time"),
        ],
    ],
)
def test_a_cell_that_is_refused(value, reason):
    with pytest.raises(RowError, match=rf"answer has .*{reason}"):
        cell_text(value, "answer")


@pytest.mark.parametrize("nested", [False, True])
def test_a_number_of_more_digits_than_python_writes_is_refused(nested):
    with pytest.raises(RowError, match="found a list" if nested else "too many digits"):
        cell_text([10**5000] if nested else 10**5000, "answer")


def test_a_cell_of_text_is_text_or_empty():
    assert [text_cell(value, "response") for value in ("a", b"a", None, np.nan, pd.NA)] == [
        "a",
        "a",
        None,
        None,
        None,
    ]
    with pytest.raises(RowError, match="response has to be text, found a number: 5"):
        text_cell(5, "response")


def test_arrays_become_lists_at_every_depth():
    messages = np.array([{"role": "user", "content": "?", "tags": np.array([1, 2])}], dtype=object)
    assert plain_row({"messages": messages}) == {
        "messages": [{"role": "user", "content": "?", "tags": [1, 2]}]
    }


@pytest.mark.parametrize(
    "row", [{"a": "\ud83c"}, {"a": [{"b": "x\udfff"}]}, {"\ud83c": 1}, {"a": np.array(["\ud83c"])}]
)
def test_half_a_surrogate_pair_is_refused_wherever_it_is(row):
    with pytest.raises(RowError, match="half a surrogate pair"):
        plain_row(row)


ROWS = [
    {"question": "1 + 1?", "answer": 2.0, "response": "<answer>2</answer>"},
    {"question": "1 + 2?", "answer": None, "response": "<answer>3</answer>"},
    {"question": "1 + 3?", "answer": 4.0, "response": None},
]


def sources(tmp_path):
    """The same rows as people have them: JSON lines with NaN, Parquet, pandas' Parquet, and a
    `datasets` directory.
    """
    frame = pd.DataFrame(ROWS)  # its floats and NaN are pandas' own doing
    lines = [json.dumps(row).replace("null", "NaN") for row in ROWS]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "arrow.parquet")
    frame.to_parquet(tmp_path / "pandas.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    return frame, [
        tmp_path / name for name in ("lines.jsonl", "arrow.parquet", "pandas.parquet", "saved")
    ]


def test_a_column_of_floats_and_its_gaps_are_the_same_from_every_source(tmp_path):
    frame, paths = sources(tmp_path)
    task = UserDataTask(UserDataConfig(kind="jsonl", sets={"rl": {"path": str(paths[0])}}), 0)
    for path in paths:
        found = [fields_of(row) for _, row in rows_of(path, Rejects())]
        assert [fields.answer for fields in found] == ["2", None, "4"]
        assert found[2].response is None
        reader = UserDataTask(UserDataConfig(kind="jsonl", sets={"rl": {"path": str(path)}}), 0)
        problems = [reader.problem("rl", index) for index in range(3)]
        # 3: what its response gives
        assert sorted(problem.answer for problem in problems) == ["2", "3", "4"]
    for data in (frame, Dataset.from_pandas(frame), ROWS, *paths):
        rejects = Rejects()
        graded = bi_ray.check(data, task=task, rejects=rejects)
        assert graded["right"] == [True]
        assert [(reject.line, reject.reason[:9]) for reject in rejects.rows] == [
            (2, "no answer"),
            (3, "no respon"),
        ]


def test_no_answer_and_nan_are_told_with_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "a", "answer": NaN}\n'
        '{"question": "b", "answer": Infinity}\n'
        '{"question": "c", "answer": 1}'
    )
    task = UserDataTask(UserDataConfig(kind="jsonl", sets={"rl": {"path": str(path)}}), 0)
    assert task.available("rl") == 1
    found = [(reject.file, reject.line, reject.reason) for reject in task.rejects.rows]
    assert [one[:2] for one in found] == [(str(path), 1), (str(path), 2)]
    assert found[0][2].startswith("no answer")
    assert "finite number" in found[1][2]


def test_floats_of_32_bits_keep_their_digits(tmp_path):
    table = pa.table({"question": ["a"], "answer": pa.array([0.1], pa.float32())})
    parquet.write_table(table, tmp_path / "rows.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved"):
        assert [fields_of(row).answer for _, row in rows_of(path, Rejects())] == ["0.1"]


def test_pandas_rows_with_arrays_in_cells_are_read(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {i} + 2?"}],
            "reward_model": {"style": "rule", "ground_truth": str(i + 2)},
            "completion": [{"role": "assistant", "content": f"<answer>{i + 2}</answer>"}],
        }
        for i in range(3)
    ]
    path = tmp_path / "verl.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    frame = pd.read_parquet(path)
    assert isinstance(frame["prompt"][0], np.ndarray)
    task = UserDataTask(UserDataConfig(kind="jsonl", sets={"rl": {"path": str(path)}}), 0)
    for data in (frame, path, Dataset.from_parquet(str(path)).with_format("numpy")):
        assert bi_ray.check(data, task=task)["right"] == [True] * 3


def test_rows_that_nothing_could_write_again_are_rejects_with_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"question": "a", "answer": "1"}',
        '{"question": "\\ud83c", "answer": null}',
        '{"question": "b\u2028c\u0085"}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    task = UserDataTask(UserDataConfig(kind="jsonl", sets={"rl": {"path": str(path)}}), 0)
    assert task.available("rl") == 1
    task.rejects.write(tmp_path / "rejects.jsonl")
    kept = [
        json.loads(line)
        for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    assert [(row["line"], row["reason"][:40]) for row in kept] == [
        (2, "'question' is not valid Unicode: half a "),
        (3, "no answer (field 'answer'): the row has "),
    ]
    rejects = Rejects()
    rows = [
        {"question": "\ud83c", "answer": 1},
        {"question": "b", "answer": [10**5000]},
        {("a", "b"): 1},
    ]
    bi_ray.check(rows, task=task, rejects=rejects)
    assert [reject.line for reject in rejects.rows] == [1, 2, 3]
    rejects.write(tmp_path / "more.jsonl")


def test_a_reject_of_any_row_can_be_written(tmp_path):
    rejects = Rejects()
    circle: list = []
    circle.append(circle)
    for row in (
        "\ud83c" * 300,
        {"a": circle},
        {"a": 10**5000},
        {("a",): 1},
        {"a": pd.NaT, "b": np.array([1])},
    ):
        rejects.add(Place("a.jsonl", 1), "\ud83c", row)
    rejects.write(tmp_path / "rejects.jsonl")
    assert len((tmp_path / "rejects.jsonl").read_text(encoding="utf-8").split("\n")) == 6
