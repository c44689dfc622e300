"""Damaged files of a finished run: every command says in one line which file it is, or is right
without it.
"""

import json
import random
import shutil
import sys

import pytest
import torch
from report_run import config_of, write_run
from safetensors.torch import save_file

from bi_ray.cli import main as cli
from bi_ray.config.files import save_config
from bi_ray.files.errors import RunError
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.stage_key import key_of

ARM = "bridge"
KEY = key_of({"rl": {"steps": 4}}, {"data": "1a"})
STEP = {
    name: 0.1 for name in ("predicted", "realized", "low", "high", "odd", "odd_low", "odd_high")
}
REALIZED = {
    "points": [STEP | {"query": f"q{number}", "right": 1, "of": 4} for number in range(5)],
    "control": STEP,
    "unchanged_policy": {"difference": 0.0, "noise_floor": 0.03},
    "step_norm": 0.4,
}
WATCHED = {
    "step": 2,
    "queries": [{"right": 1, "of": 4, "k_plus": 1.0, "k_minus": 0.5, "dj": 0.2}],
    "target_reward": 0.4,
    "target_se": 0.1,
    "since": None,
    "predicted": None,
    "realized": None,
    "noise": None,
}
POLICY = {
    "target": {"queries": 4, "rollouts": 16, "reward": 0.5},
    "direction_norm": {"sum": 1.0},
    "halves_cosine": {"sum": 0.5},
    "pairs": [{"row": 1, "column": 1, "sum": 0.5, "count": 2}],
    "perplexity": {"own demonstrations": [1.5, 2.0]},
}
DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "cut behind a line": lambda content: content[: content.rfind(b"\n", 0, len(content) - 1) + 1],
    "empty": lambda content: b"",
    "object": lambda content: b"{}",
    "rows": lambda content: b"{}\n{}\n",
    "list": lambda content: b"[]",
    "null": lambda content: b"null\n",
    "deep": lambda content: b"[" * 100_000,
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "words": lambda content: content.replace(b"0.", b'"x"').replace(b"1", b'"y"'),
    "nulls": lambda content: b"".join(
        _with_nulls(line) for line in content.splitlines(keepends=True)
    ),
    "missing": lambda content: None,
}


def _with_nulls(line: bytes) -> bytes:
    """The same row of JSON with null for every value."""
    try:
        return json.dumps(dict.fromkeys(json.loads(line))).encode() + b"\n"
    except (ValueError, TypeError):
        return line


def query(number):
    influence = {"k_plus": 1.0, "k_minus": 0.5, "dj": 0.25, "behaviors": {"plain": [10, 0.25]}}
    row = {
        "id": f"q{number}",
        "right": number,
        "of": 4,
        "entropy": 0.5,
        "response_tokens": 20.0,
        "truncated": 0.0,
    }
    row |= {
        "format_right": 1.0,
        "trace_valid": 0.5,
        "behaviors": {"reflection": 0.5},
        "influence": {"sum": influence},
    }
    return row | {"all_against_all": {"dj": 0.2, "self_term": 0.1}}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run as the stages commit it, made without engines, by the run's own directory."""
    parent = tmp_path_factory.mktemp("damage")
    raw, config = parent / "raw", config_of([ARM], steps=4)
    write_run(raw, config, problems=3, sampled=1)
    for stage in ("sft", "rl"):
        (raw / stage / ARM / "policy").mkdir()
        save_file({"weight": torch.ones(4, 4)}, raw / stage / ARM / "policy" / "model.safetensors")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (raw / stage / ARM / "policy" / name).write_text("{}\n")
    outcome = {"step": 4, "last_step": 4, "best_step": 4, "stopped": None}
    (raw / "rl" / ARM / "outcome.json").write_text(json.dumps(outcome))
    (raw / "rl" / ARM / "influence.jsonl").write_text(lines([WATCHED]))
    for stage in ("readiness", "realized"):
        (raw / stage / ARM).mkdir(parents=True)
    (raw / "readiness" / ARM / "queries.jsonl").write_text(
        lines(query(number) for number in range(5))
    )
    (raw / "readiness" / ARM / "readiness.json").write_text(json.dumps(POLICY))
    (raw / "realized" / ARM / "realized.json").write_text(json.dumps(REALIZED))
    with RunDirectory(parent / "run") as run:
        save_config(config, run.path / "config.yaml")
        for stage in (
            "data",
            *(
                f"{name}/{ARM}"
                for name in ("sft", "eval_sft", "readiness", "realized", "rl", "eval_rl")
            ),
        ):
            with run.commit(stage, KEY) as folder:
                shutil.copytree(raw / stage, folder, dirs_exist_ok=True)
        work = run.work("rl/other", KEY)
        (work / "metrics.jsonl").write_text(
            lines([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])
        )
    return parent / "run"


FILES = [
    "config.yaml",
    ".lock",
    "data/stage.json",
    "data/test_id/manifest.json",
    "data/test_id/state.json",
    "data/test_id/dataset_info.json",
    "data/test_id/data-00000-of-00001.arrow",
    f"sft/{ARM}/stage.json",
    f"sft/{ARM}/metrics.jsonl",
    f"sft/{ARM}/policy/model.safetensors",
    f"sft/{ARM}/policy/config.json",
    f"eval_sft/{ARM}/stage.json",
    f"eval_sft/{ARM}/test_id.jsonl",
    f"rl/{ARM}/stage.json",
    f"rl/{ARM}/metrics.jsonl",
    f"rl/{ARM}/outcome.json",
    f"rl/{ARM}/influence.jsonl",
    f"rl/{ARM}/policy/model.safetensors",
    f"eval_rl/{ARM}/test_ood.jsonl",
    f"readiness/{ARM}/queries.jsonl",
    f"readiness/{ARM}/readiness.json",
    f"realized/{ARM}/realized.json",
    "work/rl/other/stage.json",
    "work/rl/other/metrics.jsonl",
]


@pytest.fixture
def command(monkeypatch, capsys):
    """A command as a user calls it, in this process: its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bi-ray", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, capsys.readouterr().out

    return call


def serve_checks(monkeypatch):
    """What `serve` does before it starts Ray; the rest needs engines."""
    import serve.command

    class ChecksPassed(Exception):
        pass

    def stop(*_):
        raise ChecksPassed

    monkeypatch.setattr(serve.command, "_ray_serve", stop)
    return ChecksPassed


def remove_sizes(run):
    """A run as it was before a stage's record listed its files."""
    for file in run.rglob("stage.json"):
        content = json.loads(file.read_text())
        del content["files"]
        file.write_text(json.dumps(content))


def damage(run, name, how):
    content = DAMAGES[how]((run / name).read_bytes())
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)


def assert_clear(result, run, name, what):
    code, output = result
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code in (0, 2), (what, output)
    assert len(errors) == (code == 2), (what, output)
    assert "Traceback" not in output, (what, output)
    if code == 2:
        folder = (run / name).parent.name
        assert name.rpartition("/")[2] in errors[0] or folder in errors[0], (what, output)
        assert ".bi-ray-tmp" not in errors[0], (what, output)


def assert_names(call, folder):
    """What a run asks of each finished stage: an error is ours, and names the folder."""
    try:
        call()
        message = str(folder)
    except RunError as error:
        message = str(error)
    assert str(folder) in message


QUICK = ("data/stage.json", f"rl/{ARM}/metrics.jsonl")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES],
)
@pytest.mark.parametrize("older", [False, True], ids=["with sizes", "without sizes"])
def test_a_damaged_file_is_one_line(finished, tmp_path, command, monkeypatch, name, older):
    checks_passed = serve_checks(monkeypatch)
    monkeypatch.setattr(
        "bi_ray.report.writing.write_page", lambda *_: None
    )  # its text is tested elsewhere, and takes longest
    for how in DAMAGES:
        run = tmp_path / how.replace(" ", "_")
        shutil.copytree(finished, run)
        if older:
            remove_sizes(run)
        damage(run, name, how)
        for arguments in (["status", run], ["report", run], ["serve", run, "--port", "18991"]):
            try:
                result = command(*arguments)
            except checks_passed:
                continue
            assert_clear(result, run, name, (name, how, arguments[0]))
        with RunDirectory(run) as directory:
            for stage in ("data", f"rl/{ARM}"):
                assert_names(lambda stage=stage: directory.is_done(stage, KEY), run / stage)
