"""The command in its own process, as users run it: complete, repeated, with mistakes, killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from datasets import load_from_disk
from safetensors.torch import load_file

from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.policy.published import SHARED_MEMORY

pytestmark = pytest.mark.timeout(600)
BI_RAY = Path(sys.executable).parent / "bi-ray"
RL_STEPS = 4
DEADLINE_S = 450


def parity(question, answer, response):
    """A reward that a random policy gets half of the time, so that rewards differ in groups."""
    return float(len(response) % 2)


@pytest.fixture(scope="module")
def config(tiny_model):
    easy = {"problems": 16, "depth": 2, "redundant_nodes": [1, 4]}
    return {
        "name": "tiny",
        "task": {
            "kind": "promptbench",
            "name_pool": 48,
            "sets": {
                "sft": easy | {"problems": 64},
                "rl": easy,
                "test_id": easy,
                "test_ood": easy | {"depth": 3},
            },
        },
        "arms": ["bridge"],
        "model": {
            "path": str(tiny_model(True)),
            "max_prompt_tokens": 128,
            "max_response_tokens": 96,
        },
        "learner": {"workers": 1, "cpus_per_worker": 0.5},
        "sft": {
            "epochs": 3,
            "batch_examples": 16,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every_steps": 3,
        },
        "rl": {
            "steps": RL_STEPS,
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every_steps": 2,
            "query_filter": {"samples_per_prompt": 4},
        },
        "rollout": {"workers": 1, "cpus_per_worker": 0.5, "kv_cache_mib": 64, "max_sequences": 32},
        "verifier": {"reward_function": "tests.integration.test_pipeline:parity"},
        "evaluation": {"samples_per_prompt": 2, "sampled_problems": 4, "bootstrap_draws": 200},
        "readiness": {
            "queries": 8,
            "target_queries": 6,
            "every_rl_steps": 2,
            "realized_queries": 1,
            "realized_samples_per_prompt": 2,
            "threads": 1,
        },
        "ray": {"local_cpus": 4},
    }


def write(config, path):
    path.write_text(yaml.safe_dump(config))
    return path


def start(config_file, run):
    return start_command([BI_RAY, "run", config_file, "--run", run])


def start_command(command):
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"COLUMNS": "160"},
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except BaseException:  # also the test's timeout: no run outlives its test
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    return process.returncode, output


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    config_file = write(config, folder / "tiny.yaml")
    code, output = finish(start(config_file, folder / "run"))
    assert code == 0, output
    return config_file, folder / "run", output


def test_a_run_ends_with_the_table_and_keeps_every_sample(undisturbed):
    _, run, output = undisturbed
    assert "Greedy accuracy" in output
    assert "Always giving the same answer" in output
    assert f"The report, for a browser: {run}/report/report.html" in output
    assert (run / "report/report.html").read_text().count("data-theme") > 0
    assert load_config(run / "config.yaml", RunConfig) == load_config(undisturbed[0], RunConfig)
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert [(row["arm"], row["set"]) for row in summary["table"]] == [
        ("bridge", "test_id"),
        ("bridge", "test_ood"),
    ]
    assert (run / "report" / "result.svg").stat().st_size > 10_000
    rows = [
        json.loads(line) for line in (run / "eval_rl/bridge/test_id.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 16 + 4 * 2
    assert [row["step"] for row in metrics(run / "rl/bridge")] == list(range(1, RL_STEPS + 1))


def test_rl_trains_on_the_queries_that_the_filter_kept(undisturbed):
    _, run, output = undisturbed
    rows = [
        json.loads(line) for line in (run / "queries/bridge/queries.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 16
    assert all(row["of"] == 4 and row["kept"] == (0 < row["right"] < 4) for row in rows)
    kept = sum(row["kept"] for row in rows)
    assert kept > 0
    assert f"bridge: {kept} of 16 RL queries kept" in " ".join(output.split())


def test_rl_steps_change_the_policy_and_sampler_and_learner_agree(undisturbed):
    _, run, _ = undisturbed
    before = load_file(run / "sft/bridge/policy/model.safetensors")
    after = load_file(run / "rl/bridge/policy/model.safetensors")
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-4
    for row in metrics(run / "rl/bridge"):
        assert row["informative_share"] > 0
        # also after the first step, because engines load the new weights
        assert row["mismatch_max"] < 1e-4


def test_readiness_is_measured_before_rl_while_it_trains_and_by_experiment(undisturbed):
    _, run, _ = undisturbed
    rows = [
        json.loads(line)
        for line in (run / "readiness/bridge/queries.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 8
    assert all(row["of"] == 4 for row in rows)
    assert any(row["influence"]["sum"]["dj"] != 0 for row in rows)
    for row in rows:
        parts = row["influence"]["sum"]["behaviors"].values()
        assert sum(part for _, part in parts) == pytest.approx(
            row["influence"]["sum"]["dj"], rel=1e-6, abs=1e-9
        )
    groups = [
        json.loads(line)
        for line in (run / "readiness/bridge/rollouts.jsonl").read_text().splitlines()
    ]
    kinds = {(row["kind"], row["id"].rsplit("-", 1)[0]) for row in groups}
    assert kinds == {("query", "rl"), ("target", "influence_target")}
    whole = json.loads((run / "readiness/bridge/readiness.json").read_text())
    assert whole["target"]["queries"] == 6
    assert whole["direction_norm"]["sum"] > 0
    assert len(whole["perplexity"]["own demonstrations"]) == 6
    point = json.loads((run / "realized/bridge/realized.json").read_text())["points"][0]
    assert point["low"] <= point["realized"] <= point["high"]
    assert point["predicted"] != 0
    watched = [
        json.loads(line) for line in (run / "rl/bridge/influence.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in watched] == [0, 2]
    assert watched[0]["predicted"] is None
    assert watched[1]["since"] == 0
    assert not list(SHARED_MEMORY.glob("*/*.held"))


def test_the_same_command_again_does_nothing_twice(undisturbed):
    config_file, run, _ = undisturbed
    policy = run / "rl/bridge/policy/model.safetensors"
    made = policy.stat().st_mtime_ns
    began = time.monotonic()
    code, output = finish(start(config_file, run))
    assert code == 0, output
    assert policy.stat().st_mtime_ns == made
    assert output.count("already done") == 10
    assert time.monotonic() - began < 60


def test_a_changed_option_is_shown_and_nothing_is_lost(undisturbed, config, tmp_path):
    _, run, _ = undisturbed
    changed = write({**config, "rl": config["rl"] | {"steps": 9}}, tmp_path / "changed.yaml")
    code, output = finish(start(changed, run))
    assert code == 2
    assert "rl.steps: 4 -> 9" in output
    assert "--from rl" in output
    assert "Traceback" not in output
    # still that of the first run
    assert load_config(run / "config.yaml", RunConfig).rl.steps == RL_STEPS
    assert (run / "rl/bridge/policy/model.safetensors").exists()


def test_a_second_run_in_the_same_directory_is_refused(undisturbed):
    config_file, run, _ = undisturbed
    first = start(config_file, run)
    while not (run / ".lock").read_text():
        time.sleep(0.01)
    held = (run / ".lock").read_text()
    code, output = (
        finish(start(config_file, run)) if str(first.pid) == held else (2, f"process {first.pid}")
    )
    finish(first)
    assert code == 2
    assert f"process {first.pid}" in output


def processes_of(command, title):
    """Processes below ``command`` with such a title; Ray names its workers after their class."""
    return [
        p
        for p in psutil.Process(command.pid).children(recursive=True)
        if " ".join(p.cmdline()).startswith(title)
    ]


def wait_for_rows(file, rows, command):
    deadline = time.monotonic() + DEADLINE_S
    while not file.exists() or file.read_bytes().count(b"\n") < rows:
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < deadline, f"{file} did not get {rows} rows"
        time.sleep(0.05)


def same_policy(run, other, stage):
    ours = load_file(run / stage / "bridge/policy/model.safetensors")
    theirs = load_file(other / stage / "bridge/policy/model.safetensors")
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("stage", "victim", "survives"),
    [
        ("sft", "command", False),
        ("sft", "ray::RayTrainWorker", True),
        ("rl", "command", False),
        ("rl", "ray::Driver", False),
        ("rl", "ray::RolloutWorker", True),
        ("rl", "ray::RayTrainWorker", True),
        ("rl", "ray::InfluenceAnalyzer", True),
    ],
)
def test_killed_anywhere_the_same_command_resumes_to_the_same_result(
    undisturbed, tmp_path, stage, victim, survives
):
    config_file, whole, _ = undisturbed
    run = tmp_path / "run"
    command = start(config_file, run)
    wait_for_rows(run / f"work/{stage}/bridge/metrics.jsonl", 3 if stage == "rl" else 7, command)
    if victim == "command":
        os.kill(command.pid, signal.SIGKILL)
    else:
        victims = processes_of(command, victim)
        assert victims, [
            " ".join(p.cmdline())[:60] for p in psutil.Process(command.pid).children(recursive=True)
        ]
        victims[0].kill()
    code, output = finish(command)
    assert (code == 0) == survives, output
    if not survives:
        code, output = finish(start(config_file, run))
        assert code == 0, output
        done_before = (
            ("data", "sft_data/bridge")
            if stage == "sft"
            else ("data", "sft_data/bridge", "sft/bridge")
        )
        for name in done_before:
            assert f"{name}: already done" in output
    for name in ("sft", "rl"):
        assert same_policy(run, whole, name) <= 1e-6
    assert [row["step"] for row in metrics(run / "rl/bridge")] == list(range(1, RL_STEPS + 1))


def assert_one_error(process, words, code=2):
    got, output = finish(process)
    assert got == code, output
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in " ".join(output.split())


def test_mistakes_are_one_line(config, tmp_path):
    wrong_key = write({**config, "rl": {"learning_rat": 1}}, tmp_path / "wrong_key.yaml")
    no_model = write({**config, "model": {"path": "no/such/model"}}, tmp_path / "no_model.yaml")
    too_long = write(
        {**config, "model": config["model"] | {"max_prompt_tokens": 40}}, tmp_path / "too_long.yaml"
    )
    assert_one_error(start(wrong_key, tmp_path / "run"), "unknown option `rl.learning_rat`")
    assert_one_error(start(no_model, tmp_path / "run"), "no model at no/such/model")
    assert_one_error(start(tmp_path / "absent.yaml", tmp_path / "run"), "absent.yaml: no such file")
    assert_one_error(start(too_long, tmp_path / "run"), "raise model.max_prompt_tokens (40)")


def test_problems_without_answers_are_refused(undisturbed, tmp_path):
    config_file, whole, _ = undisturbed
    run = tmp_path / "run"
    shutil.copytree(whole / "data", run / "data")
    shutil.rmtree(run / "data/sft")
    load_from_disk(str(whole / "data/sft")).remove_columns("answer").save_to_disk(
        str(run / "data/sft")
    )
    record = json.loads((run / "data/stage.json").read_text())
    # otherwise the change is noticed at once
    (run / "data/stage.json").write_text(json.dumps(record | {"files": None}))
    assert_one_error(
        start(config_file, run), "row 0: no answer; every problem needs one to be verified"
    )


def test_a_disk_that_fills_is_one_line(undisturbed, tmp_path):
    """Simulated by a limit on file sizes: finished work stays, nothing half-written does."""
    config_file, whole, _ = undisturbed
    run = tmp_path / "run"
    shutil.copytree(whole / "data", run / "data")
    limit = f'ulimit -f 8; exec "{BI_RAY}" run "{config_file}" --run "{run}"'
    assert_one_error(start_command(["bash", "-c", limit]), "File too large")
    assert sorted(path.name for path in run.iterdir()) == [
        ".bi-ray-run",
        ".lock",
        "config.yaml",
        "data",
        "sft_data",
    ]
    assert not any((run / "sft_data").iterdir())
