"""For tests of serving: a run directory, the command that serves it, and transformers as truth."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from openai import OpenAI

from bi_ray.config.files import save_config
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import write_problems
from bi_ray.files.atomic import write_atomically
from bi_ray.files.integrity import record_files
from bi_ray.policy.chat import encode_prompt, messages
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.runs.checkpoints import CheckpointState
from bi_ray.runs.layout import CHECKPOINT_FILE, step_of
from bi_ray.tasks.registry import build_task

KEY = "a key of the tests"
START_S, STOP_S = 330, 60


def write_run(run: Path, model: Path) -> RunConfig:
    """Write a run with one arm, its problems and its configuration, but no policy yet."""
    easy = {"problems": 8, "depth": 2, "redundant_nodes": [1, 4]}
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "task": {
                "name_pool": 48,
                "sets": dict.fromkeys(("sft", "rl", "test_id", "test_ood"), easy),
            },
            "arms": ["bridge"],
            "model": {"path": str(model), "max_prompt_tokens": 128, "max_response_tokens": 96},
            "rollout": {"cpus_per_worker": 0.5, "kv_cache_mib": 64, "max_sequences": 16},
        }
    )
    task = build_task(config.task, 0)
    write_problems(task, "test_id", 8, load_tokenizer(model), config.model, run / "data/test_id")
    save_config(config, run / "config.yaml")
    return config


def conversations(config: RunConfig, count: int) -> list[list[dict[str, str]]]:
    """Chats that ask the first problems of the test set."""
    task = build_task(config.task, 0)
    questions = [task.problem("test_id", index).question for index in range(count)]
    return [messages(task.system_prompt, question) for question in questions]


def put_policy(stage: Path, model: Path) -> None:
    """Add a policy as training does: complete, by a rename; a checkpoint lists its files."""
    with write_atomically(stage) as folder:
        shutil.copytree(model, folder / "policy")
        if (step := step_of(stage.name)) is not None:
            record_checkpoint(folder, step)


def record_checkpoint(folder: Path, step: int) -> None:
    """Write the list of a checkpoint's files, or write it again."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    state = CheckpointState(step=step, files=record_files(folder))
    (folder / CHECKPOINT_FILE).write_text(state.model_dump_json())


@dataclass(frozen=True)
class Truth:
    """A greedy response by transformers."""

    prompt_tokens: list[int]
    tokens: list[int]
    text: str
    logprobs: list[float]


def greedy(model_path: Path, conversation: list[dict[str, str]], max_tokens: int) -> Truth:
    """The model's greedy response; an end token is among the tokens but not in the text."""
    tokenizer, model = load_tokenizer(model_path), load_model(model_path).eval()
    prompt = encode_prompt(tokenizer, conversation[0]["content"], conversation[1]["content"])
    tokens: list[int] = []
    logprobs: list[float] = []
    with torch.no_grad():
        while len(tokens) < max_tokens and tokens[-1:] != [tokenizer.eos_token_id]:
            row = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(row.argmax()))
            logprobs.append(float(row.max()))
    text_tokens = tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens
    return Truth(prompt, tokens, str(tokenizer.decode(text_tokens)), logprobs)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Served:
    """A run that `bi-ray serve` is serving."""

    run: Path
    url: str
    process: subprocess.Popen[str]
    output: Path

    def client(self, key: str = KEY) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def engines(self) -> list[psutil.Process]:
        """The engines' processes that are running now."""
        running = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.status() != "zombie" and "VLLM" in " ".join(child.cmdline()):
                running.append(child)
        return running

    def version(self, model: str) -> str:
        return self.client().models.retrieve(model).policy_version  # type: ignore[attr-defined]

    def wait_for(self, model: str, start_of_version: str, seconds: float = 30) -> str:
        deadline = time.monotonic() + seconds
        while not (version := self.version(model)).startswith(start_of_version):
            assert time.monotonic() < deadline, f"{model} is still at {version}"
            time.sleep(0.2)
        return version


@contextmanager
def serving(run: Path, *options: str) -> Iterator[Served]:
    """Run `bi-ray serve` during the block, then stop it by SIGTERM; no process may remain."""
    port, output = free_port(), run.with_name(f"{run.name}.log")
    bi_ray = str(Path(sys.executable).parent / "bi-ray")
    command = [bi_ray, "serve", str(run), "--port", str(port), *options]
    with open(output, "w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
        )
    try:
        deadline = time.monotonic() + START_S
        while "curl http" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        yield Served(run, f"http://127.0.0.1:{port}/v1", process, output)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(STOP_S) == 0, output.read_text()
        assert not psutil.wait_procs(children, 10)[1]
        assert "Traceback" not in output.read_text()
        assert "rror" not in output.read_text()
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
