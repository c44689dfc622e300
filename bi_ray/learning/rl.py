"""Reinforcement learning, one rank of it. Needs a process group and a driver; resumes from its last
step.

The driver owns the batches and the versions; a rank only asks for the batch of the next step. When
the group comes back from step M, it says so by joining again, and is served M+1, M+2, ... from what
the driver kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, distributed

from bi_ray.batches.batch import LearnerBatch
from bi_ray.config import LearnerConfig, ModelConfig, RLConfig
from bi_ray.learning.algorithms import load_algorithm
from bi_ray.learning.learner import (
    Learner,
    Totals,
    TrainingError,
    load_checkpoint,
    on_rank_0,
    save_checkpoint,
)
from bi_ray.learning.losses import policy_loss, token_weights, without_rounding
from bi_ray.learning.optimizer import learning_rate
from bi_ray.learning.reference import Reference
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import MicroBatch, Row
from bi_ray.policy.published import publish_weights
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import METRICS_FILE
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.validation import scores_of

log = logging.getLogger(__name__)


class JoinError(RuntimeError):
    """The driver could not let the group in this time; one that starts again may be let in."""


class Driver(Protocol):
    """What a learner asks of the driver. Every call has a deadline and raises when it passes."""

    def join(self, step: int) -> int:
        """Say that the group starts, or starts again, after ``step``; returns its incarnation. Rank
        0 only.

        Raises:
            TrainingError: the group need not ask again. Any other error may pass.
        """

    def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """Wait for the batch of ``step``; None: training is over with the step before. Every rank."""

    def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, float]) -> None:
        """Announce the weights after ``step``. Rank 0 only."""

    def checkpointed(self, step: int) -> None:
        """Say that a checkpoint covers ``step``: its batch and those before are not asked for
        again. Rank 0 only.
        """


@dataclass(frozen=True, slots=True)
class RLJob:
    """What to train.

    Attributes:
        base: directory of the SFT policy.
        output: gets ``step_N/``; seen by every rank.
        weights: where published weights go, in shared memory of rank 0's node.
        config: how.
        model: data type and attention kernel.
        learner: size and packing of micro-batches, and what spares memory or time.
    """

    base: Path
    output: Path
    weights: Path
    config: RLConfig
    model: ModelConfig
    learner: LearnerConfig


def batch_rows(batch: LearnerBatch, config: RLConfig, max_response_tokens: int) -> list[Row]:
    """The rows of a step, with token weights that are normalized over all of it."""
    lengths = [len(sample.response_tokens) for sample in batch.samples]
    totals = batch.samples_total, batch.tokens_total, max_response_tokens
    weights = token_weights(lengths, config.loss_scale, *totals)
    return [
        Row(
            (*sample.prompt_tokens, *sample.response_tokens),
            len(sample.prompt_tokens),
            weight,
            sample.advantage,
            sample.logprobs,
        )
        for sample, weight in zip(batch.samples, weights, strict=True)
    ]


def microbatch_loss(
    policy: TokenLogprobs, reference: TokenLogprobs | None, config: RLConfig
) -> Callable[[MicroBatch, Totals], Tensor]:
    """The loss of a micro-batch as a ``Learner`` wants it; counts clip, KL, entropy, importance and
    mismatch per token.

    Raises:
        ConfigError: see ``load_algorithm``.
    """
    algorithm = load_algorithm(config)

    def loss(batch: MicroBatch, totals: Totals) -> Tensor:
        logprobs, entropy = policy(batch, config.temperature, with_entropy=True, top_p=config.top_p)
        reference_logprobs = None
        if reference is not None:
            with torch.no_grad():
                reference_logprobs = reference(batch, config.temperature, top_p=config.top_p)[0]
        sampler_logprobs = without_rounding(
            logprobs, batch.sampler_logprobs, config.importance.tolerance
        )
        sampled = sampler_logprobs, batch.advantages, batch.weights, batch.sequences
        result = policy_loss(algorithm, config, logprobs, *sampled, reference_logprobs)
        assert entropy is not None
        mismatch = (logprobs.detach() - batch.sampler_logprobs).abs()
        sums = result.sums | {"entropy": entropy.sum(), "mismatch_mean": mismatch.sum()}
        for name, value in sums.items():
            totals.add(name, float(value))
        totals.keep_largest("mismatch_max", float(mismatch.max()) if len(mismatch) else 0.0)
        return result.loss

    return loss


# counted as sums, shown as means
_PER_TOKEN = (
    "clip_low_share",
    "clip_high_share",
    "kl",
    "importance_cut_share",
    "entropy",
    "mismatch_mean",
)


def train(job: RLJob, driver: Driver, device: torch.device) -> None:
    """Train to the end, from the last checkpoint if there is one. Every rank calls it.

    Raises:
        TrainingError: see ``Learner.update``; or the driver refused the group for good.
        JoinError: the driver refused it this time.
        ConfigError: an algorithm by import path that cannot be loaded, or does not give a loss per
            token.
    """
    config = job.config
    directories = _directories(job)
    start, incarnation = _join(directories, config.steps, driver)
    learner = load_checkpoint(
        job.base, directories, start, job.model, job.learner, config.optimizer, device
    )
    reference = None
    if config.kl.measured:
        checkpoint = directories.path(start) if start else None
        reference = Reference(job.base, checkpoint, config.kl, job.model, job.learner, device)
    loss = microbatch_loss(learner.policy, reference.policy if reference else None, config)
    for step in range(start + 1, config.steps + 1):
        began = time.perf_counter()
        batch = driver.lease(step, incarnation)
        if batch is None:
            if not config.is_checkpointed(step - 1):
                _checkpoint(job, learner, reference, driver, directories, step - 1)
            break
        metrics = {"wait_s": time.perf_counter() - began}
        rate = learning_rate(config.optimizer, step, config.steps)
        metrics |= {"learning_rate": rate, "learned_samples": len(batch.samples)}
        if batch.samples:
            rows = batch_rows(batch, config, job.model.max_response_tokens)
            metrics |= _shown(learner.update(step, rows, loss, rate))
        if reference:
            reference.follow(learner.policy, step)
        metrics["weight_norm"] = learner.weight_norm()
        _publish(job, learner, driver, incarnation, step, metrics)
        if config.is_checkpointed(step):
            _checkpoint(job, learner, reference, driver, directories, step)
    distributed.barrier()  # nobody is done before the last checkpoint is there


def _directories(job: RLJob) -> StepDirectories:
    """Those of the newest steps and of the best ones: the driver writes what validations say of a
    step before that.
    """

    def scores() -> dict[int, float]:
        return scores_of(read_steps(job.output / METRICS_FILE), job.config.validation)

    return StepDirectories(job.output, job.config.keep_last, job.config.keep_best, scores)


def _checkpoint(
    job: RLJob,
    learner: Learner,
    reference: Reference | None,
    driver: Driver,
    directories: StepDirectories,
    step: int,
) -> None:
    save_checkpoint(learner, job.base, directories, step, reference.gather() if reference else None)
    if learner.rank == 0:
        driver.checkpointed(step)


def _shown(totals: dict[str, float]) -> dict[str, float]:
    """Sums over tokens as means; of the importance weights (sum w)^2 / (n sum w^2), their effective
    sample size.
    """
    tokens = max(1.0, totals["tokens"])
    shown = {
        name: value / tokens if name in _PER_TOKEN else value for name, value in totals.items()
    }
    total, squares = shown.pop("importance_sum"), shown.pop("importance_square_sum")
    shown["effective_sample_share"] = total**2 / (tokens * squares) if squares else 1.0
    shown["clip_share"] = shown["clip_low_share"] + shown["clip_high_share"]
    return shown


def _join(directories: StepDirectories, last_step: int, driver: Driver) -> tuple[int, int]:
    """The step to go on from and the group's incarnation, the same on every rank.

    Rank 0 asks; what it got, or why it got nothing, goes to all, so that no rank waits for one that
    has given up.
    """
    answer: list[tuple[int, int, str, bool]] = [(0, 0, "", False)]
    if distributed.get_rank() == 0:
        try:
            step = directories.recover(last_step)
            answer = [(step, driver.join(step), "", False)]
        except Exception as error:
            log.warning("rank 0 did not join", exc_info=True)
            reason = (
                f"the driver did not let the learners join: {str(error) or type(error).__name__}"
            )
            answer = [(0, 0, reason, isinstance(error, TrainingError))]
    distributed.broadcast_object_list(answer)
    step, incarnation, reason, is_final = answer[0]
    if reason:
        raise TrainingError(reason) if is_final else JoinError(reason)
    return step, incarnation


def _publish(
    job: RLJob,
    learner: Learner,
    driver: Driver,
    incarnation: int,
    step: int,
    metrics: dict[str, float],
) -> None:
    began = time.perf_counter()
    weights = learner.gather_weights()
    path = job.weights / f"{incarnation}.{step}.safetensors"
    on_rank_0(lambda: publish_weights(weights, path))

    def publish() -> None:
        driver.publish(incarnation, step, path, {**metrics, "write_s": time.perf_counter() - began})

    if job.config.is_checkpointed(step):
        # the checkpoint takes every rank: none may begin it if rank 0 has given up
        on_rank_0(publish)
    elif learner.rank == 0:
        publish()  # the others learn of a failure when they lease the next batch
