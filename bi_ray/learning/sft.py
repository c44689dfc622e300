"""Supervised fine-tuning on demonstrations, one rank of it. Needs a process group; resumes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_from_disk
from torch import Tensor, distributed

from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, SFTConfig
from bi_ray.files.atomic import write_atomically
from bi_ray.learning.learner import Learner, Totals, load_checkpoint, save_checkpoint
from bi_ray.learning.losses import nll_loss
from bi_ray.learning.optimizer import learning_rate
from bi_ray.policy.chat import check_tokens
from bi_ray.policy.checkpoint import load_tokenizer, save_policy
from bi_ray.policy.packing import MicroBatch, Row
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import METRICS_FILE, POLICY, SFT_CHECKPOINTS
from bi_ray.runs.metrics import append_metrics, cut_metrics


@dataclass(frozen=True, slots=True)
class SFTJob:
    """What to train, and on what.

    Attributes:
        base: directory of the checkpoint to start from.
        data: a ``datasets`` directory with columns ``prompt_tokens`` and ``response_tokens`` (lists
            of int).
        output: gets ``policy/``, ``metrics.jsonl`` and ``checkpoints/``; seen by every rank.
        config: how.
        model: data type and attention kernel.
        learner: size and packing of micro-batches, and what spares memory or time.
        seed: orders the demonstrations.
    """

    base: Path
    data: Path
    output: Path
    config: SFTConfig
    model: ModelConfig
    learner: LearnerConfig
    seed: int


@dataclass(frozen=True, slots=True)
class TokenizedDemonstration:
    """The tokens of a prompt and its response, and the position of the first learned one."""

    tokens: tuple[int, ...]
    first_learned: int


def load_demonstrations(directory: Path, loss_on_prompt: bool) -> list[TokenizedDemonstration]:
    """Read a dataset of token lists.

    Raises:
        ValueError: a column is missing, there are no rows, or a row has nothing to learn.
    """
    dataset = load_from_disk(str(directory))
    columns = {"prompt_tokens", "response_tokens"}
    if not columns <= set(dataset.column_names):
        raise ValueError(
            f"{directory} has columns {dataset.column_names}; SFT needs {sorted(columns)}"
        )
    demonstrations = []
    pairs = zip(dataset["prompt_tokens"], dataset["response_tokens"], strict=True)
    for number, (prompt, response) in enumerate(pairs):
        first_learned = 1 if loss_on_prompt else max(1, len(prompt))
        tokens = (*prompt, *response)
        if len(tokens) <= first_learned:
            raise ValueError(f"{directory}: row {number} has no answer to learn from")
        demonstrations.append(TokenizedDemonstration(tokens, first_learned))
    if not demonstrations:
        raise ValueError(f"{directory} is empty")
    return demonstrations


def steps_per_epoch(demonstrations: int, config: SFTConfig) -> int:
    """Optimizer steps of an epoch; the last one takes what is left."""
    return -(-demonstrations // config.batch_examples)


def step_rows(
    demonstrations: Sequence[TokenizedDemonstration], config: SFTConfig, seed: int, step: int
) -> list[Row]:
    """The rows of ``step`` (from 1), which depend on the seed and the step alone.

    All learned tokens of the step have the same weight, and the weights add up to 1.
    """
    epoch, position = divmod(step - 1, steps_per_epoch(len(demonstrations), config))
    order = list(range(len(demonstrations)))
    random.Random(f"{seed}/sft/{epoch}").shuffle(order)
    first = position * config.batch_examples
    chosen = [demonstrations[i] for i in order[first : first + config.batch_examples]]
    learned = sum(len(row.tokens) - row.first_learned for row in chosen)
    return [Row(row.tokens, row.first_learned, 1 / learned) for row in chosen]


def train(job: SFTJob, device: torch.device) -> None:
    """Train to the end, from the last checkpoint if there is one. Every rank calls it.

    A row of ``metrics.jsonl`` per step: step, loss (mean over learned tokens), tokens,
    learning_rate, grad_norm, step_s. At the end ``policy/`` holds the trained policy.

    Raises:
        TrainingError: see ``Learner.update``.
        ValueError: see ``load_demonstrations``.
        ChatError: a demonstration has tokens that the model has no embedding for.
    """
    config = job.config
    demonstrations = load_demonstrations(job.data, config.loss_on_prompt)
    check_tokens(load_tokenizer(job.base), [max(row.tokens) for row in demonstrations])
    steps = config.epochs * steps_per_epoch(len(demonstrations), config)
    directories = StepDirectories(job.output / SFT_CHECKPOINTS)
    learner, start = _resume(job, directories, steps, device)

    def loss(batch: MicroBatch, _: Totals) -> Tensor:
        return nll_loss(learner.policy(batch)[0], batch.weights)

    for step in range(start + 1, steps + 1):
        is_checkpointed = step % config.checkpoint_every_steps == 0 and step < steps
        began = time.perf_counter()
        rate = learning_rate(config.optimizer, step, steps)
        result = learner.update(step, step_rows(demonstrations, config, job.seed, step), loss, rate)
        if learner.rank == 0:
            row = {
                "step": step,
                "loss": result["loss"],
                "tokens": int(result["tokens"]),
                "learning_rate": rate,
            }
            row |= {"grad_norm": result["grad_norm"], "step_s": time.perf_counter() - began}
            append_metrics(job.output / METRICS_FILE, row, durable=is_checkpointed)
        if is_checkpointed:
            save_checkpoint(learner, job.base, directories, step)
    weights = learner.gather_weights()
    if learner.rank == 0:
        with write_atomically(job.output / POLICY) as folder:
            save_policy(weights, job.base, folder)
    distributed.barrier()  # nobody is done before the policy is there


def _resume(
    job: SFTJob, directories: StepDirectories, last_step: int, device: torch.device
) -> tuple[Learner, int]:
    """The learner as the newest whole checkpoint left it, and that checkpoint's step."""
    newest = [0]
    if distributed.get_rank() == 0:
        newest = [directories.recover(last_step)]
        cut_metrics(job.output / METRICS_FILE, newest[0])
    distributed.broadcast_object_list(newest)
    step = newest[0]
    learner = load_checkpoint(
        job.base, directories, step, job.model, job.learner, job.config.optimizer, device
    )
    return learner, step
