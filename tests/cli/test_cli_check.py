"""The command `check`: verdicts, exit codes, and files that it must not overwrite."""

import json

import pytest

from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from tests.command_line import QUICKSTART, call, error_of


def verdicts_in(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_right_responses_pass_the_check(injected):
    output = call("check", injected, "--strict")
    assert "60 of 60" in output
    for verdict in verdicts_in(injected.with_name("injected.verdicts.jsonl")):
        assert verdict["right"]
        assert verdict["trace_valid"]


def test_wrong_responses_are_reported_with_line_and_reason(injected, tmp_path):
    rows = [row for _, row in rows_of(injected, Rejects())]
    lines = rows[7]["response"].splitlines()
    lines[2] += "7"
    rows[7]["response"] = "\n".join(lines)
    rows[9]["response"] = None
    file = tmp_path / "wrong.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "verdicts.jsonl"
    arguments = ["check", file, "--config", QUICKSTART, "--out", out]
    output = call(*arguments, "--strict", code=1)
    assert "58 of 59" in output
    assert rows[7]["id"] in output
    assert "wrong.jsonl, line 10: no response" in output
    [wrong] = [verdict for verdict in verdicts_in(out) if not verdict["trace_valid"]]
    assert (wrong["line"], wrong["first_bad_step"], wrong["bad_line"]) == (8, 1, lines[2])
    assert wrong["bad_response_line"] == 3  # as an editor counts
    assert call(*arguments)  # exit code 0 without --strict


def test_verdicts_never_replace_responses(user_file, injected, tmp_path):
    before = user_file.read_bytes()
    check = ["check", user_file, "--config", QUICKSTART]
    assert "is the file to grade; choose another" in error_of(*check, "--out", user_file)
    assert "is a directory; name a file in it" in error_of(*check, "--out", tmp_path)
    assert user_file.read_bytes() == before
    out = tmp_path / "verdicts.jsonl"
    assert "could be used; nothing was graded" in error_of(*check, "--out", out)
    assert not out.exists()
    assert (tmp_path / "verdicts.jsonl.rejects.jsonl").exists()
    call("check", injected, "--out", out)
    assert not (tmp_path / "verdicts.jsonl.rejects.jsonl").exists()
    error_of("check", tmp_path / "absent.jsonl", "--config", QUICKSTART, "--out", out)
    assert len(out.read_text().splitlines()) == 60


def test_verdicts_make_their_folder(injected, tmp_path):
    out = tmp_path / "new" / "verdicts.jsonl"
    call("check", injected, "--out", out)
    assert len(out.read_text().splitlines()) == 60


def test_rows_of_reasoning_gym_are_graded_by_its_scorer(tmp_path):
    pytest.importorskip("reasoning_gym")
    config = tmp_path / "gym.yaml"
    config.write_text(
        "name: gym\n"
        "task: {kind: reasoning_gym, task: countdown, sets: {rl: {}, test_id: {problems: 8}}}\n"
        "arms: [base]\nevaluation: {sets: [test_id]}\nseeds: {data: 5}\nreadiness: {queries: 0}\n"
    )
    made = tmp_path / "set"
    call("data", config, "--set", "test_id", "--out", made, "--format", "jsonl")
    rows = [dict(row) for _, row in rows_of(made, Rejects())]
    responses = [row["answer"] for row in rows]
    responses[0] = f"0 + {responses[0]}"  # wrong: a number too many
    responses[1] = f"({responses[1]})"  # also right
    rows[2]["id"] = "test_id-7000"
    lines = []
    for row, response in zip(rows, responses, strict=True):
        text = f"<think> x </think> <answer> {response} </answer>"
        fields = {"id": row["id"], "question": row["question"], "response": text}
        lines.append(json.dumps(fields) + "\n")
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(lines))
    output = call("check", file, "--config", config)
    assert "6 of 7" in output
    assert "line 3: no problem of this task: 'test_id-7000' is not where" in output
    # The manifest of a set has its task and seed, so that --config is not needed.
    for data_file in made.glob("data-*"):
        data_file.write_text(file.read_text())
    assert "6 of 7" in call("check", made)
