"""data, inject, check and show as commands: what they write, what they say, and their exit codes."""

import json
import sys

import pytest
from typer.testing import CliRunner

from bi_ray.cli import main as cli
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from tests.data.test_sets import QUICKSTART as CONFIG
from tests.data.test_sets import ROOT, files_of, write_set

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def call(*arguments, code=0):
    result = CliRunner().invoke(
        cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}
    )
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "set"
    assert "60 problems, best constant answer" in call(
        "data", QUICKSTART, "--out", out, "--problems", 60
    )
    return out


@pytest.fixture(scope="module")
def injected(made):
    out = made.with_name("injected")
    said = call("inject", made, "--out", out, "--recipe", "bridge", "--format", "jsonl")
    assert "60 demonstrations with" in said
    return out


@pytest.fixture
def mine(tmp_path, made):
    """A user's file: templated questions without graphs, two bad rows among them."""
    rows = [
        {"question": row["question"], "answer": row["answer"]}
        for _, row in rows_of(made, Rejects())
    ][:5]
    rows[2]["answer"] = "123456"
    lines = [json.dumps(row) for row in rows]
    lines.insert(1, "{not JSON")
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "mine.jsonl"


@pytest.mark.parametrize("command", ["data", "inject", "check", "show"])
def test_every_command_explains_itself(command):
    assert command in call("--help")
    assert len(call(command, "--help").splitlines()) > 5


def test_data_is_what_the_library_writes(made, tmp_path):
    write_set(CONFIG, "sft", 60, tmp_path / "set")
    assert files_of(tmp_path / "set") == files_of(made)


def test_a_user_s_file_with_bad_rows(mine, tmp_path):
    said = call("inject", mine, "--out", tmp_path / "out", "--behavior", "reflection:0.5", "--behavior", "subgoal",
                "--config", QUICKSTART)  # fmt: skip
    assert "4 demonstrations with" in said
    assert "mine.jsonl, line 2: not valid JSON" in said
    assert "mine.jsonl, line 4: its answer is 123456, but its question comes to" in said
    assert "2 rows were left out; each with its reason:" in said
    rows = [row for _, row in rows_of(tmp_path / "out", Rejects())]
    assert [row["id"] for row in rows] == ["row-1", "row-3", "row-5", "row-6"]
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [(reject["line"], reject["reason"][:10]) for reject in rejects] == [
        (2, "not valid "),
        (4, "its answer"),
    ]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rejected"] == 2


def test_injected_files_do_not_depend_on_the_number_of_processes(made, mine, tmp_path):
    for name, source in (("set", made), ("mine", mine)):
        options = ["--recipe", "bridge", *(["--config", QUICKSTART] if source is mine else [])]
        for processes in (1, 2):
            call(
                "inject",
                source,
                "--out",
                tmp_path / f"{name}-{processes}",
                "--processes",
                processes,
                *options,
            )
        assert files_of(tmp_path / f"{name}-1") == files_of(tmp_path / f"{name}-2")


def test_strict_stops_at_the_first_bad_row_and_leaves_nothing(mine, tmp_path, monkeypatch, capsys):
    arguments = [
        "inject",
        mine,
        "--out",
        tmp_path / "out",
        "--recipe",
        "bridge",
        "--config",
        QUICKSTART,
        "--strict",
    ]
    monkeypatch.setattr(sys, "argv", ["bi-ray", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "mine.jsonl, line 2: not valid JSON" in capsys.readouterr().out.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_right_responses_pass_the_check(injected):
    said = call("check", injected, "--strict")
    assert "60 of 60" in said
    verdicts = [
        json.loads(line)
        for line in injected.with_name("injected.verdicts.jsonl").read_text().splitlines()
    ]
    assert all(verdict["right"] and verdict["trace_valid"] for verdict in verdicts)


def test_wrong_responses_are_told_with_line_and_reason(injected, tmp_path):
    rows = [row for _, row in rows_of(injected, Rejects())]
    lines = rows[7]["response"].splitlines()
    lines[2] += "7"
    rows[7]["response"] = "\n".join(lines)
    rows[9]["response"] = None
    file = tmp_path / "wrong.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = call(
        "check",
        file,
        "--config",
        QUICKSTART,
        "--out",
        tmp_path / "verdicts.jsonl",
        "--strict",
        code=1,
    )
    assert "58 of 59" in said
    assert rows[7]["id"] in said
    assert "wrong.jsonl, line 10: no response" in said
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    [wrong] = [verdict for verdict in verdicts if not verdict["trace_valid"]]
    assert (wrong["line"], wrong["first_bad_step"], wrong["bad_line"]) == (8, 1, lines[2])
    assert wrong["bad_response_line"] == 3  # as an editor counts
    # without --strict: 0
    assert call("check", file, "--config", QUICKSTART, "--out", tmp_path / "verdicts.jsonl")


def test_show_finds_rows_by_place_and_by_name(injected, made):
    rows = [row for _, row in rows_of(injected, Rejects())]
    said = call("show", injected, "--index", 4)
    assert rows[4]["question"] in said
    assert rows[4]["response"] in said
    assert call("show", injected, "--id", rows[4]["id"]) == said
    assert f"Answer: {rows[0]['answer']}" in call("show", made)
    assert isinstance(
        CliRunner().invoke(cli.app, ["show", str(made), "--index", "60"]).exception, ValueError
    )


def test_behaviors_are_in_color(injected):
    rows = [row for _, row in rows_of(injected, Rejects())]
    index = next(
        i
        for i, row in enumerate(rows)
        if any(span["behavior"] == "reflection" for span in row["spans"])
    )
    span = next(span for span in rows[index]["spans"] if span["behavior"] == "reflection")
    text = rows[index]["response"][span["start"] : span["end"]]
    from rich.console import Console

    from bi_ray.cli import data as cli_data

    console = Console(force_terminal=True, color_system="standard", width=200)
    before, cli_data.console = cli_data.console, console
    try:
        with console.capture() as captured:
            cli_data.show(injected, index=index, row_id=None)
    finally:
        cli_data.console = before
    assert f"\x1b[35m{text}\x1b[0m" in captured.get()


def error_of(*arguments):
    """The message of a known error: what the front door prints in place of a traceback."""
    from typer.main import get_command

    with pytest.raises((ValueError, RuntimeError)) as caught:
        get_command(cli.app).main([str(argument) for argument in arguments], standalone_mode=False)
    assert cli._is_known(caught.value)
    return str(caught.value)


def test_verdicts_never_take_the_place_of_responses(mine, injected, tmp_path):
    before = mine.read_bytes()
    assert "has to be a file of its own" in error_of(
        "check", mine, "--config", QUICKSTART, "--out", mine
    )
    assert mine.read_bytes() == before
    out = tmp_path / "verdicts.jsonl"
    assert "could be used; nothing was graded" in error_of(
        "check", mine, "--config", QUICKSTART, "--out", out
    )
    assert not out.exists()
    assert (tmp_path / "verdicts.jsonl.rejects.jsonl").exists()
    call("check", injected, "--out", out)
    assert not (tmp_path / "verdicts.jsonl.rejects.jsonl").exists()
    error_of("check", tmp_path / "absent.jsonl", "--config", QUICKSTART, "--out", out)
    assert len(out.read_text().splitlines()) == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["data", QUICKSTART, "--problems", 5, "--format", "completion"],
            "completion needs responses",
        ),
        (["inject", "MADE", "--recipe", "bridge", "--format", "verl"], "has no responses"),
        (
            ["inject", "EMPTY", "--config", QUICKSTART, "--recipe", "bridge"],
            "could be used; nothing was written\nline 1: its question cannot be read: no sentence of a known form",
        ),
    ],
)
def test_what_cannot_become_a_set_leaves_nothing_behind(arguments, words, made, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"question": "Why?"}\n')
    places = {"MADE": made, "EMPTY": tmp_path / "empty.jsonl"}
    out = tmp_path / "out"
    assert words in error_of(
        *(places.get(argument, argument) for argument in arguments), "--out", out
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "spans", ["oops", [{"start": 0}], [{"start": 0, "end": 99999, "behavior": "subgoal"}]]
)
def test_spans_that_are_none_are_an_error_with_their_place(spans, tmp_path):
    row = {"question": "Why?", "response": "Because.", "spans": spans}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "rows.jsonl, line 1: spans has to be a list" in error_of("show", tmp_path / "rows.jsonl")


def test_show_looks_past_bad_rows_for_an_id_and_needs_no_arm(mine):
    assert "What is the value of" in call("show", mine, "--id", "row-4")
    from bi_ray.cli.data import _made_row
    from bi_ray.config import RunConfig, load_config

    config = load_config(ROOT / "configs" / "smollm2.yaml", RunConfig)  # its only arm is vanilla
    assert _made_row(config, None, "rl", 0)["response"].startswith("<think>")
    assert "--id: a configuration has no ids" in error_of("show", QUICKSTART, "--id", "sft-1")


def test_columns_of_the_user_s_own_are_kept_and_ours_replaced(mine, tmp_path):
    rows = [json.loads(line) for line in mine.read_text().splitlines() if "question" in line]
    own = [
        {"source": "me", "level": n, "mixed": "x" if n else 1, "hash": "mine", "spans": "mine"}
        for n in range(5)
    ]
    own[3]["note"] = {"by": ["a", "b"]}
    mine.write_text(
        "".join(json.dumps(row | more) + "\n" for row, more in zip(rows, own, strict=True))
    )
    for name in ("arrow", "jsonl", "parquet"):
        call(
            "inject",
            mine,
            "--out",
            tmp_path / name,
            "--recipe",
            "pp_aug",
            "--config",
            QUICKSTART,
            "--format",
            name,
        )
        found = [dict(row) for _, row in rows_of(tmp_path / name, Rejects())]
        assert {row["source"] for row in found} == {"me"}
        # row 2 has a wrong answer
        assert [row["level"] for row in found] == [0, 0, 1, 1, 3, 3, 4, 4]
        assert {row["mixed"] for row in found} == {"1", "x"}  # no type has both: as text
        assert [(row["note"] or {}).get("by") for row in found] == [None] * 4 + [["a", "b"]] * 2 + [
            None
        ] * 2
        assert all(isinstance(row["spans"], list) and "hash" not in row for row in found)
    call(
        "inject",
        mine,
        "--out",
        tmp_path / "trl",
        "--recipe",
        "bridge",
        "--config",
        QUICKSTART,
        "--format",
        "messages",
    )
    assert list(next(rows_of(tmp_path / "trl", Rejects()))[1]) == ["id", "messages"]


def test_reasoning_gym_s_rows_are_graded_by_its_scorer(tmp_path):
    pytest.importorskip("reasoning_gym")
    config = tmp_path / "gym.yaml"
    config.write_text(
        "name: gym\ntask: {kind: reasoning_gym, task: countdown, sets: {rl: {}, test_id: {problems: 8}}}\n"
        "arms: [base]\nevaluation: {sets: [test_id]}\nseeds: {data: 5}\nreadiness: {queries: 0}\n"
    )
    call("data", config, "--set", "test_id", "--out", tmp_path / "set", "--format", "jsonl")
    rows = [dict(row) for _, row in rows_of(tmp_path / "set", Rejects())]
    for row in rows:
        row["response"] = f"<think> x </think> <answer> {row['answer']} </answer>"
    # a number too many
    rows[0]["response"] = f"<think> x </think> <answer> 0 + {rows[0]['answer']} </answer>"
    # as good
    rows[1]["response"] = rows[1]["response"].replace(rows[1]["answer"], f"({rows[1]['answer']})")
    rows[2]["id"] = "test_id-7000"
    file = tmp_path / "answers.jsonl"
    file.write_text(
        "".join(
            json.dumps({key: row[key] for key in ("id", "question", "response")}) + "\n"
            for row in rows
        )
    )
    said = call("check", file, "--config", config)
    assert "6 of 7" in said
    assert "line 3: no problem of this task: 'test_id-7000' is not where" in said
    # what `bi-ray` made says its task and seed itself
    for row in (tmp_path / "set").glob("data-*"):
        row.write_text(file.read_text())
    assert "6 of 7" in call("check", tmp_path / "set")


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
def test_an_out_that_cannot_be_written_is_told_in_words(
    arguments, out, words, mine, injected, tmp_path
):
    places, before = {"MINE": mine, "INJECTED": injected}, mine.read_bytes()
    said = error_of(
        *(places.get(argument, argument) for argument in arguments), "--out", tmp_path / out
    )
    assert f"{out} cannot be written: {words}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]
    assert mine.read_bytes() == before


def test_verdicts_make_their_folder(injected, tmp_path):
    call("check", injected, "--out", tmp_path / "new" / "verdicts.jsonl")
    assert len((tmp_path / "new" / "verdicts.jsonl").read_text().splitlines()) == 60


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
def test_show_says_why_there_is_no_such_row(content, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    assert words in error_of("show", tmp_path / "rows.jsonl", "--index", 5)


def test_show_tells_what_was_left_out_when_a_set_was_made(tmp_path):
    (tmp_path / "data-00000.jsonl").touch()
    reject = {"file": "mine.jsonl", "line": 3, "reason": "no question", "row": "{}"}
    (tmp_path / "rejects.jsonl").write_text(json.dumps(reject) + "\n")
    said = error_of("show", tmp_path)
    assert "could be used" in said
    assert "line 3: no question" in said


def test_a_file_that_is_not_there_is_told_before_its_task_is_asked_for(tmp_path):
    for command in (["check"], ["inject", "--recipe", "bridge", "--out", tmp_path / "out"]):
        assert "absent.jsonl: no such file" in error_of(*command, tmp_path / "absent.jsonl")


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
    (tmp_path / "run.yaml").write_text(
        f"name: mine\ntask: {{kind: jsonl, sets: {{rl: {{path: {tmp_path}/rows.jsonl}}}}}}\n"
        "arms: [base]\nevaluation: {sets: []}\nreadiness: {queries: 0}\n"
    )
    said = error_of(
        "data", tmp_path / "run.yaml", "--set", "rl", "--out", tmp_path / "out", *problems
    )
    assert words in said
    assert not problems or "1 row left out, not valid JSON (first: line 2)" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "run.yaml"]
    if not problems:
        assert words.partition(";")[0] in error_of("show", tmp_path / "run.yaml", "--set", "rl")
