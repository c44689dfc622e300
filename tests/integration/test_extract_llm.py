"""Free text to graphs by a real model behind vLLM's own server, with structured output.

The model is small and weak. What must be right is the machinery: every row is either proven or
rejected with a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.rollout.engine import engine_environment
from bi_ray.config.extraction import ExtractConfig
from bi_ray.config.recipes import BRIDGE
from bi_ray.config.rollout import RolloutConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.extract import Extraction
from bi_ray.reasoning.extract_client import ExtractError, extract
from bi_ray.tasks.freetext import FreeTextTask
from tests.serving import free_port

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/smollm2-135m-instruct"
START_S = 600
ROWS = [
    {
        "question": "Tim has 3 pears and buys 4 more. How many pears has he?",
        "answer": "Tim has 3 + 4 = <<3+4=7>>7 pears.\n#### 7",
    },
    {
        "question": "A pen costs $2. How much do 6 pens cost?",
        "answer": "6 pens cost 2 * 6 = <<2*6=12>>12 dollars.\n#### 12",
    },
    {
        "question": "Mira bakes 18 muffins on Friday and half as many on Saturday. "
        "How many muffins does she bake?",
        "answer": "On Saturday Mira bakes 18 / 2 = 9 muffins.\n"
        "Together she bakes 18 + 9 = 27 muffins.\n#### 27",
    },
    {
        "question": "A film of 90 minutes is shown 4 times. How many hours is that?",
        "chain_of_thought": "All shows take 90 * 4 = 360 minutes. That is 360 / 60 = 6 hours.",
        "answer": "6 hours",
    },
    {
        "question": "Ann has 10 coins and gives 3 to Ben. How many are left?",
        "chain_of_thought": "She keeps 10 - 3 = 7 coins.",
        "answer": "8",  # wrong on purpose, so that no graph is right
    },
]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's OpenAI server with the model, in its own process."""
    if not (MODEL / "config.json").is_file():
        subprocess.run(["make", "smollm2"], cwd=ROOT, check=True)
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "server.log"
    rollout = RolloutConfig(threads_per_worker=2)
    command = [
        # `vllm serve` looks up its own version under a name that the CPU build lacks.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL)),
        *("--served-model-name", "smollm2"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *(
            "--max-model-len",
            "4096",
            "--max-num-seqs",
            "8",
            "--kv-cache-memory-bytes",
            str(512 * 2**20),
        ),
        *("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"),
    ]
    with open(log, "w") as file:
        environment = {**os.environ, **engine_environment(rollout)}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + START_S
        while not _healthy(port):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        children = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        process.terminate()
        for child in psutil.wait_procs(children, 30)[1]:
            child.kill()
        process.wait(30)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_row_is_proven_or_rejected_with_a_reason(endpoint, tmp_path):
    options = ExtractConfig(
        endpoint=endpoint,
        model="smollm2",
        api_key_env="",
        concurrency=5,
        max_tokens=400,
        timeout_s=600,
        retries=1,
    )
    progress: list[tuple[int, int]] = []
    found = extract(ROWS, options, tmp_path, lambda done, total: progress.append((done, total)))

    assert progress == [(done, 5) for done in range(1, 6)]
    assert sorted(
        [row.number for row in found.rows] + [reject.number for reject in found.rejects]
    ) == list(range(5))
    assert 4 in {reject.number for reject in found.rejects}
    for reject in found.rejects:
        print(f"row {reject.number}: {reject.reason}")
        assert "endpoint" not in reject.reason  # of the extraction, not of the server
        # With structured output, only a wrong graph can fail.
        assert "JSON" not in reject.reason
    for row in found.rows:
        demonstration = Recipe(BRIDGE, seed=0).demonstrate(
            task := FreeTextTask([row]), task.problem_of(row)
        )
        print(demonstration.response)

    kept = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("*.json"))]
    assert len(kept) == 5
    for answer in kept:
        if answer["finish_reason"] != "length":
            Extraction.model_validate_json(answer["content"])

    # Cached answers are not asked for again: nobody listens at this address.
    nowhere = options.model_copy(
        update={"endpoint": "http://127.0.0.1:9/v1", "retries": 0, "concurrency": 1}
    )
    again = extract(ROWS, nowhere, tmp_path)
    assert again.rejects == found.rejects
    assert [row.graph.to_json() for row in again.rows] == [
        row.graph.to_json() for row in found.rows
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_that_the_server_does_not_have_is_named(endpoint, tmp_path):
    options = ExtractConfig(endpoint=endpoint, model="larger", api_key_env="", retries=0)
    with pytest.raises(ExtractError, match=r"refuses model 'larger'.*does not exist"):
        extract(ROWS, options, tmp_path)
