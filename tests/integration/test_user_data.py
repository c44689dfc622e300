"""A whole run from a user's JSONL with bad rows: an arm without SFT, one with demonstrations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from datasets import load_from_disk
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BI_RAY = Path(sys.executable).parent / "bi-ray"
RL_STEPS = 2
DEADLINE_S = 800


def parity(question, answer, response):
    """A reward that a random policy gets half of the time, so that rewards differ in groups."""
    return float(len(response) % 2)


def write(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def write_config(folder, model):
    """A configuration over files in ``folder``."""
    rows = [
        {
            "question": f"{i} + {i} = ?",
            "answer": f"{2 * i:,} apples",
            "chain_of_thought": f"{i} + {i} = {2 * i}",
        }
        for i in range(400)
    ]
    bad = [
        "{",
        {"question": "no answer"},
        {"question": "too long " * 40, "answer": 1},
        rows[0],
        {"answer": 3},
    ]
    data = write(folder / "sums.jsonl", [*rows, *bad])
    response = (
        "<think>\nwait, no\n{0} + {0} = {1}\n</think>\n<answer> The final answer is {1} </answer>"
    )
    injected = [
        {
            "question": f"{i} + {i} = ?",
            "response": response.format(i, 2 * i),
            "spans": [{"start": 8, "end": 16, "behavior": "reflection"}],
        }
        for i in range(400, 432)
    ]
    write(folder / "injected.jsonl", injected)
    config = {
        "name": "sums",
        "task": {
            "kind": "jsonl",
            "path": data,
            "answer": {"checker": "numeric"},
            "sets": {"sft": {"problems": 32}, "rl": {"problems": 16}, "test_id": {}},
        },
        "arms": {
            "base": {"sft": False},
            "vanilla": {},
            "injected": {"demonstrations": str(folder / "injected.jsonl")},
        },
        "model": {"path": str(model), "max_prompt_tokens": 256, "max_response_tokens": 96},
        "learner": {"workers": 1, "cpus_per_worker": 0.5},
        "sft": {"epochs": 1, "batch_examples": 16, "optimizer": {"learning_rate": 1e-3}},
        "rl": {
            "steps": RL_STEPS,
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every_steps": 2,
        },
        "rollout": {"workers": 1, "cpus_per_worker": 0.5, "kv_cache_mib": 64, "max_sequences": 32},
        "verifier": {"reward_function": "tests.integration.test_user_data:parity"},
        "evaluation": {
            "sets": ["test_id"],
            "samples_per_prompt": 2,
            "sampled_problems": 4,
            "bootstrap_draws": 200,
        },
        "readiness": {"queries": 4, "target_queries": 4, "threads": 1},
        "ray": {"local_cpus": 4},
    }
    file = folder / "sums.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))  # the arms stay in order
    return file


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    file = write_config(folder, tiny_model(True))
    process = subprocess.Popen(
        [str(BI_RAY), "run", str(file), "--run", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"COLUMNS": "160"},
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except BaseException:  # no run outlives its test
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    assert process.returncode == 0, output
    return folder / "run", output


def test_bad_rows_are_reported_and_kept_and_the_rest_is_used(run):
    directory, output = run
    rejects = [
        json.loads(line) for line in (directory / "data/rejects.jsonl").read_text().splitlines()
    ]
    reasons = {row["line"]: row["reason"] for row in rejects}
    assert set(reasons) >= {401, 402, 404, 405}
    # The question that is too long may belong to a set that the run lacks.
    assert set(reasons) <= {401, 402, 403, 404, 405}
    assert reasons[404].startswith("duplicate question")
    assert "1 row left out, not valid JSON (first: line 401)" in " ".join(output.split())
    assert f"{directory}/data/rejects.jsonl" in output.replace("\n", "")


def test_sets_share_no_question_and_arms_have_their_own_demonstrations(run):
    directory, _ = run
    sets = {
        name: set(load_from_disk(str(directory / "data" / name))["question"])
        for name in ("sft", "rl", "test_id")
    }
    sets["target"] = set(load_from_disk(str(directory / "target"))["question"])
    assert sum(map(len, sets.values())) == len(set().union(*sets.values()))
    assert len(sets["sft"]) == 32
    injected = load_from_disk(str(directory / "sft_data/injected"))
    assert {span["behavior"] for row in injected for span in row["spans"]} == {"reflection"}
    assert not (directory / "sft_data/base").exists()


def test_without_sft_rl_starts_from_the_checkpoint_itself(run, tiny_model):
    directory, _ = run
    base = load_file(tiny_model(True) / "model.safetensors")
    start = load_file(directory / "sft/base/policy/model.safetensors")
    assert all((start[name] == tensor).all() for name, tensor in base.items())
    end = load_file(directory / "rl/base/policy/model.safetensors")
    assert max(float((end[name] - start[name]).abs().max()) for name in start) > 1e-5


def test_every_arm_is_measured_without_traces_and_reported(run):
    directory, output = run
    summary = json.loads((directory / "report/summary.json").read_text())
    assert [row["arm"] for row in summary["table"]] == ["base", "vanilla", "injected"]
    assert all(row["sft"]["trace_valid"] is None for row in summary["table"])
    for arm in ("base", "vanilla", "injected"):
        found = summary["readiness"][arm]["accuracy"]
        assert found["trace_valid"] is None
        assert list(found["perplexity"]) == ["held-out demonstrations"]
        rows = [
            json.loads(line)
            for line in (directory / f"eval_rl/{arm}/test_id.jsonl").read_text().splitlines()
        ]
        assert all(row["failure"] is None and row["trace_valid"] is None for row in rows)
        metrics = [
            json.loads(line)
            for line in (directory / f"rl/{arm}/metrics.jsonl").read_text().splitlines()
        ]
        assert [row["step"] for row in metrics] == list(range(1, RL_STEPS + 1))
        assert all("trace_valid_rate" not in row for row in metrics)
    assert "Greedy accuracy" in output
    assert "apples" in (directory / "report/report.html").read_text()
