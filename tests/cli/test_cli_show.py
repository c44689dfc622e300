"""The command `show` on data: which row it finds, how it prints it, and why there is none."""

import json

import pytest
from rich.console import Console

from bi_ray.cli import show as show_module
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from tests.command_line import QUICKSTART, ROOT, call, error_of


def test_show_finds_rows_by_position_and_by_id(injected, problem_set):
    rows = [row for _, row in rows_of(injected, Rejects())]
    output = call("show", injected, "--index", 4)
    assert rows[4]["question"] in output
    assert rows[4]["response"] in output
    assert call("show", injected, "--id", rows[4]["id"]) == output
    assert f"Answer: {rows[0]['answer']}" in call("show", problem_set)
    assert "has no row 60 (its 60 rows count from 0)" in error_of(
        "show", problem_set, "--index", 60
    )


def reflection_in(rows):
    for index, row in enumerate(rows):
        for span in row["spans"]:
            if span["behavior"] == "reflection":
                return index, row["response"][span["start"] : span["end"]]
    raise AssertionError("no row has a reflection")


def test_behaviors_are_in_color(injected, monkeypatch):
    index, text = reflection_in([row for _, row in rows_of(injected, Rejects())])
    console = Console(force_terminal=True, color_system="standard", width=200)
    monkeypatch.setattr(show_module, "console", console)
    with console.capture() as captured:
        show_module.show(injected, index=index, row_id=None)
    assert f"\x1b[35m{text}\x1b[0m" in captured.get()


@pytest.mark.parametrize(
    "spans",
    [
        "oops",
        [{"start": 0}],
        [{"start": 0, "end": 99999, "behavior": "subgoal"}],
        {"start": 0, "end": 1, "behavior": "subgoal"},
    ],
)
def test_wrong_spans_are_an_error_that_names_the_row(spans, tmp_path):
    row = {"question": "Why?", "response": "Because.", "spans": spans}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    message = error_of("show", tmp_path / "rows.jsonl")
    assert "rows.jsonl, line 1: expected spans to be a list" in message


def test_show_passes_over_bad_rows_in_search_of_an_id(user_file):
    assert "What is the value of" in call("show", user_file, "--id", "row-4")


def test_show_needs_no_arm():
    config = load_config(ROOT / "configs" / "smollm2.yaml", RunConfig)  # its only arm is vanilla
    assert show_module._make_row(config, None, "rl", 0).response.startswith("<think>")


def test_a_configuration_has_no_ids():
    message = error_of("show", QUICKSTART, "--id", "sft-1")
    assert "--id: the problems of a configuration have no ids" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no rows; there is nothing to show"),
        ("[1]\n{\n", "could be used; there is nothing to show"),
        ("[1]\n{\n", "line 1: not a JSON object: found list"),
        ('{"question": "Why?"}\n[1]\n', r"has no row 5 (its 1 rows count from 0)"),
        ('{"question": "Why?"}\n[1]\n', "1 row left out, not a JSON object (first: line 2)"),
    ],
)
def test_show_explains_why_there_is_no_such_row(content, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    assert words in error_of("show", tmp_path / "rows.jsonl", "--index", 5)


def test_show_reports_what_was_left_out_when_a_set_was_made(tmp_path):
    (tmp_path / "data-00000.jsonl").touch()
    reject = {"file": "mine.jsonl", "line": 3, "reason": "no question", "row": "{}"}
    (tmp_path / "rejects.jsonl").write_text(json.dumps(reject) + "\n")
    message = error_of("show", tmp_path)
    assert "could be used" in message
    assert "line 3: no question" in message
