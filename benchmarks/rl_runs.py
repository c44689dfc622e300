"""What the benchmarks of whole RL steps share: random models of a size, and RL runs of a few steps
with real parts.

Run by itself it measures nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.cluster import connect
from actors.driver.driver import Driver
from actors.driver.verifier import VerifierClient
from actors.learners.group import LearnerGroup
from bi_ray.config import RunConfig
from bi_ray.data.problems import write_problems
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.policy.published import weights_directory
from bi_ray.pretraining.tokenizer import build_tokenizer
from bi_ray.runs.metrics import read_metrics
from bi_ray.tasks.promptbench.wording import node_names, phrases
from bi_ray.tasks.registry import build_task
from bi_ray.verification.verdicts import DataFailure, Verdict, VerificationItem

QUERIES = 256
# hidden size, intermediate size, layers, heads, key-value heads, vocabulary (None: the tokenizer's)
SHAPES = {
    "1m": (128, 344, 5, 4, 4, None),
    "2m": (192, 512, 6, 6, 6, None),
    "5m": (256, 704, 6, 4, 4, None),
    "15m": (384, 1056, 8, 6, 6, None),
    "30m": (512, 1408, 9, 8, 8, None),
    "135m": (576, 1536, 30, 9, 3, 49152),
}
RUN_ID = f"benchmark-{os.getpid()}"


def even_length(question: str, answer: str, response: str) -> float:
    """A reward that a random model gets half of the time, so that nearly every group teaches
    something.
    """
    return float(len(response) % 2 == 0)


def random_model(directory: Path, size: str) -> Path:
    """A Llama with random weights and the project's tokenizer, in ``directory``."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[size]
    tokenizer = build_tokenizer(phrases(), node_names(48))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def run_config(model: Path, options: dict[str, Any]) -> RunConfig:
    """A run of RL alone; ``options`` has sections as a configuration file has them."""
    easy = {"problems": QUERIES, "depth": 3, "redundant_nodes": [0, 2]}
    values: dict[str, Any] = {
        "name": "benchmark",
        "task": {
            "name_pool": 48,
            "sets": dict.fromkeys(("sft", "rl", "test_id", "test_ood"), easy),
        },
        "arms": ["vanilla"],
        "model": {"path": str(model), "max_prompt_tokens": 256},
        "verifier": {"reward_function": "rl_runs:even_length"},
        "rollout": {"cpus_per_worker": 0.5},
        "learner": {"cpus_per_worker": 0.5},
    }
    for section, chosen in options.items():
        values[section] = values.get(section, {}) | chosen
    return RunConfig.model_validate(values)


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder that goes when the benchmark ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def start_ray(config: RunConfig) -> None:
    """A Ray of this benchmark alone; a loaded machine may need more than one attempt."""
    for attempt in range(3):
        try:
            return connect(config.ray)
        except Exception as error:  # Ray raises a bare one when a node is late
            print(f"Ray did not start (attempt {attempt + 1}): {str(error).splitlines()[0]}")
    raise SystemExit("Ray did not start")


class LenientVerifier(VerifierClient):
    """Takes a response that is cut off for a whole one: then all can be of one length and groups
    teach all the same.
    """

    async def score(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        """See ``VerifierClient``."""
        return await super().score([replace(item, truncated=False) for item in items])


class PinnedDriver(Driver):
    """A driver that binds engines and learners to cores of their own.

    Args:
        pins: cores of the engines' processes and of the learners'; None: nobody is bound.
    """

    def __init__(
        self, config: RunConfig, run_id: str, base: Path, pins: tuple[set[int], set[int]] | None
    ) -> None:
        super().__init__(config, run_id, base)
        self.verifier.close()
        self.verifier = LenientVerifier(config)
        self.pins = pins

    async def start(self) -> dict[str, Any]:
        """Start the engines, and bind them."""
        status = await super().start()
        if self.pins:
            for row in status["workers"]:
                bind(row["pid"], self.pins[0])
                bind(row["engine_pid"], self.pins[0])
        return status

    async def join(self, step: int) -> int:
        """The learners are there: bind them."""
        if self.pins:
            for process in psutil.process_iter(["cmdline"]):
                if any("RayTrainWorker" in part for part in process.info["cmdline"] or ()):
                    bind(process.pid, self.pins[1])
        return await super().join(step)


def bind(pid: int, cores: set[int]) -> None:
    """Bind every thread of a process, those to come too."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def run_rl(
    config: RunConfig, folder: Path, pins: tuple[set[int], set[int]] | None = None
) -> list[dict[str, Any]]:
    """Train with engines and learners of their own.

    Args:
        config: see ``run_config``.
        folder: an empty one.
        pins: see ``PinnedDriver``.

    Returns:
        The rows of the metrics.
    """
    model = Path(config.model.path)
    tokenizer = load_tokenizer(model)
    write_problems(
        build_task(config.task, 0), "rl", QUERIES, tokenizer, config.model, folder / "data/rl"
    )
    start_ray(config)
    driver: Any = (
        ray.remote(PinnedDriver)
        .options(num_cpus=0, max_concurrency=64)
        .remote(config, RUN_ID, model, pins)
    )
    try:
        ray.get(driver.start.remote(), timeout=config.rollout.start_timeout_s + 60)
        out = folder / "rl"
        out.mkdir()
        ray.get(
            driver.begin_rl.remote("vanilla", model, out, folder / "data", None, None), timeout=120
        )
        learners = LearnerGroup(folder, config.learner, config.model, config.ray)
        learners.run_rl(model, out, weights_directory(RUN_ID), config.rl, driver)
        ray.get(driver.end_rl.remote(), timeout=120)
        ray.get(driver.close.remote(), timeout=120)
        return read_metrics(out / "metrics.jsonl")
    finally:
        ray.shutdown()


def column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A figure of every row."""
    return [row.get(name, 0.0) for row in rows]
