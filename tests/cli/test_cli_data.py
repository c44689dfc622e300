"""The commands `data` and `inject`: what they write and print, and which errors they report."""

import json

import pytest

from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from tests.command_line import QUICKSTART, call, error_of, printed_error
from tests.data.test_sets import QUICKSTART as CONFIG
from tests.data.test_sets import files_of, write_set


def rows_in(directory):
    return [dict(row) for _, row in rows_of(directory, Rejects())]


def test_data_is_what_the_library_writes(problem_set, tmp_path):
    write_set(CONFIG, "sft", 60, tmp_path / "set")
    assert files_of(tmp_path / "set") == files_of(problem_set)


def test_bad_rows_of_a_user_are_left_out_and_reported(user_file, tmp_path):
    out = tmp_path / "out"
    behaviors = ["--behavior", "reflection:0.5", "--behavior", "subgoal"]
    output = call("inject", user_file, "--out", out, *behaviors, "--config", QUICKSTART)
    assert "4 demonstrations with" in output
    assert "mine.jsonl, line 2: no valid JSON" in output
    assert "mine.jsonl, line 4: its answer is 123456, but its question comes to" in output
    assert "2 rows were left out; " in output
    assert [row["id"] for row in rows_in(out)] == ["row-1", "row-3", "row-5", "row-6"]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    reasons = [(reject["line"], reject["reason"][:10]) for reject in rejects]
    assert reasons == [(2, "no valid J"), (4, "its answer")]
    assert json.loads((out / "manifest.json").read_text())["rejected"] == 2


def test_injected_files_do_not_depend_on_the_number_of_processes(problem_set, user_file, tmp_path):
    calls = {
        "set": [problem_set, "--recipe", "bridge"],
        "mine": [user_file, "--recipe", "bridge", "--config", QUICKSTART],
    }
    for name, arguments in calls.items():
        for processes in (1, 2):
            out = tmp_path / f"{name}-{processes}"
            call("inject", *arguments, "--out", out, "--processes", processes)
        assert files_of(tmp_path / f"{name}-1") == files_of(tmp_path / f"{name}-2")


def test_strict_stops_at_the_first_bad_row_and_leaves_nothing(
    user_file, tmp_path, monkeypatch, capsys
):
    arguments = ["inject", user_file, "--out", tmp_path / "out", "--recipe", "bridge"]
    output = printed_error(monkeypatch, capsys, *arguments, "--config", QUICKSTART, "--strict")
    assert "mine.jsonl, line 2: no valid JSON" in output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["data", QUICKSTART, "--problems", 5, "--format", "completion"],
            "completion needs responses",
        ),
        (["inject", "SET", "--recipe", "bridge", "--format", "verl"], "has no responses"),
        (
            ["inject", "EMPTY", "--config", QUICKSTART, "--recipe", "bridge"],
            "could be used; nothing was written\n"
            "line 1: its question cannot be read: no sentence of a known form",
        ),
    ],
)
def test_what_cannot_become_a_set_leaves_nothing_behind(arguments, words, problem_set, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"question": "Why?"}\n')
    places = {"SET": problem_set, "EMPTY": tmp_path / "empty.jsonl"}
    out = tmp_path / "out"
    arguments = [places.get(argument, argument) for argument in arguments]
    assert words in error_of(*arguments, "--out", out)
    assert not out.exists()


OWN_COLUMNS = [
    {"source": "me", "level": 0, "mixed": 1},
    {"source": "me", "level": 1, "mixed": "x"},
    {"source": "me", "level": 2, "mixed": "x"},  # its answer is wrong
    {"source": "me", "level": 3, "mixed": "x", "note": {"by": ["a", "b"]}},
    {"source": "me", "level": 4, "mixed": "x"},
]


@pytest.fixture
def file_with_own_columns(user_file):
    """The good lines of ``user_file``, with columns of the user's own and two that we replace."""
    rows = [json.loads(line) for line in user_file.read_text().splitlines() if "question" in line]
    lines = []
    for row, own in zip(rows, OWN_COLUMNS, strict=True):
        lines.append(json.dumps(row | own | {"hash": "mine", "spans": "mine"}) + "\n")
    user_file.write_text("".join(lines))
    return user_file


@pytest.mark.parametrize("file_format", ["arrow", "jsonl", "parquet"])
def test_columns_of_the_user_are_kept_and_ours_replaced(
    file_with_own_columns, file_format, tmp_path
):
    out = tmp_path / "out"
    arguments = ["--recipe", "pp_aug", "--config", QUICKSTART, "--format", file_format]
    call("inject", file_with_own_columns, "--out", out, *arguments)
    rows = rows_in(out)
    assert {row["source"] for row in rows} == {"me"}
    assert [row["level"] for row in rows] == [0, 0, 1, 1, 3, 3, 4, 4]
    assert {row["mixed"] for row in rows} == {"1", "x"}  # no type holds both, so text
    authors = [(row["note"] or {}).get("by") for row in rows]
    assert authors == [None] * 4 + [["a", "b"]] * 2 + [None] * 2
    for row in rows:
        assert isinstance(row["spans"], list)
        assert "hash" not in row


def test_an_export_for_trl_has_only_its_columns(file_with_own_columns, tmp_path):
    out = tmp_path / "trl"
    arguments = ["--recipe", "bridge", "--config", QUICKSTART, "--format", "messages"]
    call("inject", file_with_own_columns, "--out", out, *arguments)
    assert list(rows_in(out)[0]) == ["id", "messages"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["inject", "MINE", "--recipe", "bridge", "--config", QUICKSTART],
        ["data", QUICKSTART, "--problems", 5],
        ["check", "INJECTED"],
    ],
)
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("mine.jsonl/out", "part of the path is a file, not a directory; choose another --out"),
        ("x" * 300, "the name is too long"),
        ("/proc/out", "there is no such file or directory"),
    ],
)
def test_an_out_that_cannot_be_written_is_explained(
    arguments, out, words, user_file, injected, tmp_path
):
    places = {"MINE": user_file, "INJECTED": injected}
    before = user_file.read_bytes()
    arguments = [places.get(argument, argument) for argument in arguments]
    message = error_of(*arguments, "--out", tmp_path / out)
    assert f"{out} cannot be written: {words}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]
    assert user_file.read_bytes() == before


def test_a_missing_file_is_reported_before_its_task_is_asked_for(tmp_path):
    missing = tmp_path / "absent.jsonl"
    assert "absent.jsonl: no such file" in error_of("check", missing)
    inject = ["inject", "--recipe", "bridge", "--out", tmp_path / "out"]
    assert "absent.jsonl: no such file" in error_of(*inject, missing)


@pytest.mark.parametrize(
    ("content", "problems", "words"),
    [
        ("", [], "set rl has no rows; nothing was written"),
        (
            '{"question": ""}\n',
            [],
            "no row of set rl could be used; nothing was written\nline 1: no question",
        ),
        (
            '{"question": "a", "answer": 1}\n{\n',
            ["--problems", 9],
            "1 usable problems, and 9 are asked for",
        ),
    ],
)
def test_files_with_too_few_rows_make_no_set_and_leave_nothing(content, problems, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: mine\ntask: {{kind: jsonl, sets: {{rl: {{path: {tmp_path}/rows.jsonl}}}}}}\n"
        "arms: [base]\nevaluation: {sets: []}\nreadiness: {queries: 0}\n"
    )
    message = error_of("data", config, "--set", "rl", "--out", tmp_path / "out", *problems)
    assert words in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "run.yaml"]
    if problems:
        assert "1 row left out, no valid JSON (first: line 2)" in message
    else:
        assert words.partition(";")[0] in error_of("show", config, "--set", "rl")
