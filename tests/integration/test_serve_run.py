"""Serving a run that was really trained; an engine that dies; and `serve deploy`. Takes minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import ray
import yaml
from ray import serve

from actors.local_ray import start_local_ray
from bi_ray.data.problems import read_problems
from bi_ray.policy.chat import messages
from bi_ray.tasks.registry import build_task
from serve.policies import read_run
from tests.integration.test_pipeline import DEADLINE_S, config, finish, start, write
from tests.serving import KEY, free_port, put_policy, serving, write_run

__all__ = ["config"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    code, output = finish(start(write(config, folder / "tiny.yaml"), folder / "run"))
    assert code == 0, output
    return folder / "run"


def test_greedy_text_by_http_is_the_evaluations_and_a_dead_engine_is_replaced(run):
    with serving(run, "--models", "bridge-rl,bridge-sft", "--api-key", KEY) as served:
        for model, stage in (("bridge-rl", "eval_rl"), ("bridge-sft", "eval_sft")):
            assert_same_text(served.client(), model, run, stage)
        engine = served.engines()[0]
        engine.kill()
        wait_until(
            lambda: (
                engine.pid not in [e.pid for e in served.engines()] and len(served.engines()) == 2
            ),
            300,
        )
        wait_until(lambda: answers(served), 300)
        assert_same_text(served.client(), "bridge-rl", run, "eval_rl")
        assert_same_text(served.client(), "bridge-sft", run, "eval_sft")


def assert_same_text(client, model, run, stage):
    config = read_run(run)
    task = build_task(config.task, config.seeds.data)
    questions = {row.id: row.question for row in read_problems(run / "data/test_id")}
    rows = [
        json.loads(line) for line in (run / stage / "bridge/test_id.jsonl").read_text().splitlines()
    ]
    greedy = [row for row in rows if row["mode"] == "greedy"]
    assert len(greedy) == len(questions)
    for row in greedy:
        chat = messages(task.system_prompt, questions[row["id"]])
        answer = client.chat.completions.create(model=model, messages=chat, temperature=0)
        assert answer.choices[0].message.content == row["response"]


def answers(served):
    """Whether both models answer; until then, only errors that ask to try again are allowed."""
    states = []
    for model in ("bridge-rl", "bridge-sft"):
        request = {"model": model, "prompt": [6, 7, 8], "max_tokens": 2}
        headers = {"authorization": f"Bearer {KEY}"}
        states.append(
            httpx.post(
                f"{served.url}/completions", json=request, headers=headers, timeout=90
            ).status_code
        )
    assert set(states) <= {200, 503}
    return states == [200, 200]


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture
def cluster():
    """A Ray with its dashboard, which `serve deploy` needs."""
    port = free_port()
    start_local_ray(4, include_dashboard=True, dashboard_port=port, log_to_driver=False)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def test_serve_deploy_brings_the_same_and_without_keys_only_this_machine_is_answered(
    cluster, tiny_model, tmp_path
):
    run = tmp_path / "run"
    write_run(run, tiny_model(True))
    put_policy(run / "sft/bridge", tiny_model(True))
    content = yaml.safe_load((ROOT / "serve/config.yaml").read_text())
    port = free_port()
    content["http_options"] |= {"port": port, "host": "0.0.0.0"}
    content["applications"][0]["args"] |= {"run": str(run), "models": ["bridge-sft"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    deployed = subprocess.run(
        [str(Path(sys.executable).parent / "serve"), "deploy", str(tmp_path / "config.yaml"),
         "-a", cluster],
        capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ | {"RAY_ADDRESS": ""},
    )  # fmt: skip
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    wait_until(lambda: lists_its_model(port), 240)
    request = {"model": "bridge-sft", "prompt": [6, 7, 8], "max_tokens": 2}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=request, timeout=60)
    assert answer.json()["policy_version"].startswith("sft-")
    if other := own_address():
        answer = httpx.post(f"http://{other}:{port}/v1/completions", json=request, timeout=60)
        assert answer.status_code == 403, answer.text


def lists_its_model(port):
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=10)
        return [card["id"] for card in answer.json()["data"]] == ["bridge-sft"]
    except (httpx.HTTPError, ValueError, KeyError):
        assert serve.status().applications["bi-ray"].status not in ("DEPLOY_FAILED", "UNHEALTHY")
        return False


def own_address():
    """An address of this machine other than loopback; None if there is none."""
    found = [address.address for group in psutil.net_if_addrs().values() for address in group]
    return next(
        (a for a in found if a.count(".") == 3 and not a.startswith(("127.", "169.254."))), None
    )
