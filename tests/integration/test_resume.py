"""Killed at random points, on another machine, with other engines: the result is the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bi_ray.runs.metrics import read_metrics
from bi_ray.runs.place import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.remote_lock import LOCK
from bi_ray.runs.status import describe_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BI_RAY = Path(sys.executable).parent / "bi-ray"
STEPS = 6
KILLS = int(os.environ.get("KILLS", "2"))  # a start takes a minute
DEADLINE_S = 900


@pytest.fixture(scope="module")
def config(tiny_model):
    easy = {"problems": 12, "depth": 2, "redundant_nodes": [1, 4]}
    sets = {"sft": easy, "rl": easy, "val": easy, "val_ood": easy | {"depth": 3}, "test_id": easy}
    return {
        "name": "resumed",
        "task": {"kind": "promptbench", "name_pool": 48, "sets": sets},
        "arms": ["base"],
        "model": {
            "path": str(tiny_model(True)),
            "max_prompt_tokens": 128,
            "max_response_tokens": 64,
        },
        "learner": {"workers": 1, "cpus_per_worker": 0.5},
        "rl": {
            "steps": STEPS,
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 2,
                "decay_share": 0.5,
                "decay": "cosine",
            },
            "checkpoint_every_steps": 2,
            "validation": {"sets": ["val", "val_ood"], "every_steps": 3, "samples_per_prompt": 2},
        },
        "rollout": {"workers": 2, "cpus_per_worker": 0.5, "kv_cache_mib": 64, "max_sequences": 32},
        "verifier": {"reward_function": "tests.integration.test_pipeline:parity"},
        "evaluation": {"sets": ["test_id"], "samples_per_prompt": 2, "bootstrap_draws": 200},
        "readiness": {"queries": 0},
        "ray": {"local_cpus": 4},
        "trackers": ["tensorboard"],
    }


def start(config, folder, run, **environment):
    file = folder / "resumed.yaml"
    file.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [BI_RAY, "run", str(file), "--run", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"COLUMNS": "160"} | environment,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except BaseException:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    assert process.returncode == 0, output
    return output


def kill_when(process, due, pause_s=0.02):
    """SIGKILL the command once ``due()`` is true; False if it ended before."""
    deadline = time.monotonic() + DEADLINE_S
    while not due():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(pause_s)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    return True


def without_times(row):
    """A row of metrics without what depends on the clock."""
    timed = ("_s", "_per_s", "redispatched_groups", "dropped_batches", "queued_batches")
    return {
        name: value
        for name, value in row.items()
        if not name.endswith(timed) and "idle_share" not in name
    }


def validations(folder):
    """All validated samples, without the incarnation of the weights that generated them."""
    files = sorted((folder / "validation").iterdir())
    return {
        file.name: [
            {**row, "version": row["version"].partition(".")[2]} for row in read_metrics(file)
        ]
        for file in files
    }


def assert_same(run, other):
    """Same policy byte for byte, same metrics but for times, same validated samples."""
    for name in ("model.safetensors", "config.json"):
        ours, theirs = (folder / "rl/base/policy" / name for folder in (run, other))
        assert ours.read_bytes() == theirs.read_bytes(), name
    ours, theirs = (read_metrics(folder / "rl/base/metrics.jsonl") for folder in (run, other))
    assert [row["step"] for row in ours] == list(range(STEPS + 1))
    assert list(map(without_times, ours)) == list(map(without_times, theirs))
    assert validations(run / "rl/base") == validations(other / "rl/base")


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(config, folder, folder / "run"))
    rows = read_metrics(folder / "run/rl/base/metrics.jsonl")
    # otherwise little could differ
    assert sum(row["learned_samples"] > 0 for row in rows[1:]) >= STEPS // 2
    return folder / "run"


def before_rl(whole, run):
    """A copy of the run without RL and later stages."""
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("ray_train", ".lock"))
    for stage in ("rl", "eval_rl", "report", "work", "trackers"):
        shutil.rmtree(run / stage, ignore_errors=True)


def test_killed_at_random_points_it_ends_with_the_same_bytes(config, undisturbed, tmp_path):
    run, chance = tmp_path / "run", random.Random(int(os.environ.get("KILL_SEED", "1")))
    before_rl(undisturbed, run)
    metrics, kills = run / "work/rl/base/metrics.jsonl", []

    def due(began, step, pause):
        """This start has cut the rows that it repeats, and passed ``step`` a random moment ago."""
        if (
            not metrics.exists()
            or metrics.stat().st_mtime < began
            or len(read_metrics(metrics)) <= step
        ):
            return False
        time.sleep(pause)
        return True

    for _ in range(KILLS):
        began = time.time()
        newest = max(
            (int(path.name.removeprefix("step_")) for path in metrics.parent.glob("step_?")),
            default=0,
        )
        step, pause = chance.randrange(newest, STEPS), chance.uniform(0, 1.5)
        if kill_when(start(config, tmp_path, run), partial(due, began, step, pause)):
            kills.append(
                (
                    step,
                    round(pause, 2),
                    len(read_metrics(metrics)),
                    sorted(os.listdir(metrics.parent)),
                )
            )
    print("killed at", kills)
    assert kills
    finish(start(config, tmp_path, run))
    assert_same(run, undisturbed)
    events = EventAccumulator(str(run / "trackers/tensorboard/rl/base"))
    events.Reload()
    tracked = [event.step for event in events.Scalars("reward")]
    assert sorted(set(tracked)) == list(range(1, STEPS + 1))
    # a kill may come between a figure and the note that it was sent
    assert len(tracked) <= STEPS + len(kills)


def test_an_early_stop_keeps_the_best_step(config, undisturbed, tmp_path):
    """No step beats step 0 by as much as 1: RL stops at the first validation after it."""
    run = tmp_path / "run"
    before_rl(undisturbed, run)
    validation = config["rl"]["validation"] | {
        "patience": 1,
        "min_gain": 1.0,
        "use_best": True,
        "every_steps": 1,
    }
    rl = config["rl"] | {"validation": validation, "checkpoint_every_steps": 4}
    output = " ".join(finish(start(config | {"rl": rl}, tmp_path, run)).split())
    rows = read_metrics(run / "rl/base/metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert (
        without_times(rows[1])["reward"]
        == read_metrics(undisturbed / "rl/base/metrics.jsonl")[1]["reward"]
    )
    assert (
        f"stopped after step 1 of {STEPS}: "
        "validation/val/greedy did not rise by more than 1 in 1 validations" in output
    )
    outcome = json.loads((run / "rl/base/outcome.json").read_text())
    best = max((0, 1), key=lambda step: (rows[step]["validation/val/greedy"], -step))
    assert (outcome["step"], outcome["last_step"], outcome["best_step"]) == (best, 1, best)
    kept, before = (run / stage / "policy/model.safetensors" for stage in ("rl/base", "sft/base"))
    assert (kept.read_bytes() == before.read_bytes()) == (best == 0)
    (line,) = (
        line
        for line in describe_status(RunPlace.of(str(run)))
        if "rl/base" in line and "eval" not in line
    )
    assert (
        f"best validation/val/greedy {rows[best]['validation/val/greedy']:.3f} at step {best}"
        in line
    )
    assert line.endswith(f"kept step {best} of {STEPS}, stopped early")


def test_another_number_of_engines_changes_nothing(config, undisturbed, tmp_path):
    run = tmp_path / "run"
    before_rl(undisturbed, run)
    finish(start(config | {"rollout": config["rollout"] | {"workers": 1}}, tmp_path, run))
    assert_same(run, undisturbed)


def test_a_new_machine_resumes_from_the_uri_alone(config, undisturbed, tmp_path, s3):
    """The killed run's copy is gone; only what its checkpoints sent to S3 remains."""
    uri = f"s3://bucket/{tmp_path.name}/run{s3}"
    here, there = ({"BI_RAY_LOCAL": str(tmp_path / name)} for name in ("here", "there"))
    place, remote = RunPlace.of(uri, tmp_path / "here"), Remote(uri)
    before_rl(undisturbed, place.path)
    for file in [*place.path.glob("*/stage.json"), *place.path.glob("*/*/stage.json")]:
        (file.parent / ".unsent").touch()  # the command sends them first
    process = start(config, tmp_path, uri, **here)
    assert kill_when(process, lambda: remote.folders_with("state.json", "work/"), pause_s=0.2)
    shutil.rmtree(place.path)
    remote.remove_file(LOCK)  # its machine is gone; the lock would expire after some minutes
    finish(start(config, tmp_path, uri, **there))
    run = RunPlace.of(uri, tmp_path / "there").path
    assert_same(run, undisturbed)
    assert not remote.folders_with("state.json", "work")  # data sets have files of that name too
    folder = f"rl/base/{remote.stages()['rl/base'].generation}"
    assert json.loads(remote.read(f"{folder}/outcome.json"))["step"] == STEPS
