"""Random models, and RL runs of a few steps with real parts; measures nothing by itself."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
import torch
from common import Metrics
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from actors.cluster import connect
from actors.driver.driver import Driver
from actors.driver.verifier import VerifierClient
from actors.learners.group import LearnerGroup
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import write_problems
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.policy.published import weights_directory
from bi_ray.pretraining.tokenizer import build_tokenizer
from bi_ray.runs.metrics import read_metrics
from bi_ray.tasks.promptbench.wording import node_names, phrases
from bi_ray.tasks.registry import build_task
from bi_ray.verification.verdicts import DataFailure, Verdict, VerificationItem

QUERIES = 256
log = logging.getLogger(__name__)


class ModelShape(NamedTuple):
    """The shape of a Llama; ``vocabulary`` None: the tokenizer's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int | None = None


SHAPES = {
    "1m": ModelShape(128, 344, 5, 4, 4),
    "2m": ModelShape(192, 512, 6, 6, 6),
    "5m": ModelShape(256, 704, 6, 4, 4),
    "15m": ModelShape(384, 1056, 8, 6, 6),
    "30m": ModelShape(512, 1408, 9, 8, 8),
    "135m": ModelShape(576, 1536, 30, 9, 3, 49152),
}
RUN_ID = f"benchmark-{os.getpid()}"


def even_length(question: str, answer: str, response: str) -> float:
    """A reward that a random model gets half of the time, so that rewards differ in most groups."""
    return float(len(response) % 2 == 0)


def random_model(directory: Path, size: str) -> Path:
    """Write a Llama with random weights and the project's tokenizer; returns ``directory``."""
    tokenizer = build_tokenizer(phrases(), node_names(48))
    vocabulary = SHAPES[size].vocabulary or len(tokenizer)
    write_random_llama(directory, SHAPES[size], tokenizer, vocabulary)
    return directory


def write_random_llama(
    directory: Path, shape: ModelShape, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> int:
    """Write a Llama with random weights (seed 0) and its tokenizer; returns its parameter count."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model.num_parameters()


def rl_options(prompts: int, samples: int, steps: int) -> dict[str, Any]:
    """The section ``rl`` of a run with one checkpoint, at its end."""
    return {
        "steps": steps,
        "prompts_per_step": prompts,
        "samples_per_prompt": samples,
        "checkpoint_every_steps": steps,
    }


def run_config(model: Path, options: dict[str, Any]) -> RunConfig:
    """A run of RL only; ``options`` has sections like those of a configuration file."""
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
    """A temporary folder, deleted at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def start_ray(config: RunConfig) -> None:
    """Start a Ray for this benchmark only; a loaded machine may need more than one attempt."""
    for attempt in range(3):
        try:
            return connect(config.ray)
        except Exception:  # Ray raises a bare one when a node is late
            log.exception("Ray did not start (attempt %d)", attempt + 1)
    raise SystemExit("Ray did not start")


class LenientVerifier(VerifierClient):
    """Scores truncated responses like complete ones, so that all responses can have one length."""

    async def score(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        """A verdict for each item; see ``VerifierClient``."""
        return await super().score([replace(item, truncated=False) for item in items])


class PinnedDriver(Driver):
    """A driver that can pin engines and learners to separate cores.

    Args:
        pins: cores of the engines, and of the learners; None: without pinning.
    """

    def __init__(
        self, config: RunConfig, run_id: str, base: Path, pins: tuple[set[int], set[int]] | None
    ) -> None:
        super().__init__(config, run_id, base)
        self.verifier.close()
        self.verifier = LenientVerifier(config)
        self.pins = pins

    async def start(self) -> dict[str, Any]:
        """Start the engines and pin them; returns the pool's status."""
        status = await super().start()
        if self.pins:
            for row in status["workers"]:
                pin(row["pid"], self.pins[0])
                pin(row["engine_pid"], self.pins[0])
        return status

    async def join(self, step: int) -> int:
        """Pin the learners, which call this when they are ready; see ``Driver.join``."""
        if self.pins:
            for process in psutil.process_iter(["cmdline"]):
                if any("RayTrainWorker" in part for part in process.info["cmdline"] or ()):
                    pin(process.pid, self.pins[1])
        return await super().join(step)


def pin(pid: int, cores: set[int]) -> None:
    """Pin all threads of a process to some cores; later threads inherit it."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(int(thread), cores)


def run_rl(
    config: RunConfig, folder: Path, pins: tuple[set[int], set[int]] | None = None
) -> list[Metrics]:
    """Train with real engines and learners; returns the metrics of each step.

    Args:
        config: see ``run_config``.
        folder: an empty directory.
        pins: see ``PinnedDriver``.
    """
    model = Path(config.model.path)
    tokenizer, task = load_tokenizer(model), build_task(config.task, 0)
    write_problems(task, "rl", QUERIES, tokenizer, config.model, folder / "data/rl")
    start_ray(config)
    driver_class = ray.remote(PinnedDriver).options(num_cpus=0, max_concurrency=64)
    driver: Any = driver_class.remote(config, RUN_ID, model, pins)
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


def column(rows: Sequence[Metrics], name: str) -> list[float]:
    """One figure of every row; 0 where a row lacks it."""
    return [row.get(name, 0.0) for row in rows]


def medians(rows: Sequence[Metrics], *names: str) -> dict[str, float]:
    """The medians of some figures over all rows."""
    return {name: statistics.median(column(rows, name)) for name in names}
