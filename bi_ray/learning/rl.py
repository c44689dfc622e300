"""Reinforcement learning, one rank of it. Needs a process group and a driver; resumes by itself.

The driver owns the batches and the versions; a rank only leases the batch of the next step. When
the group comes back from step M, it joins again, and is served M+1, M+2, ... from what the driver
kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from bi_ray.batches.batch import LearnerBatch
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, RLConfig
from bi_ray.learning.algorithms import load_algorithm
from bi_ray.learning.driver_calls import DriverCalls
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
from bi_ray.policy.published import publish_weights, published_file
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import METRICS_FILE
from bi_ray.runs.metrics import read_steps
from bi_ray.runs.validation import scores_of

log = logging.getLogger(__name__)


class JoinError(RuntimeError):
    """The driver could not let the group in this time; a group that restarts may be let in."""


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
    """The loss of a micro-batch for ``Learner.update``; counts what there is to see of it.

    That is clip, KL, entropy, importance weights and mismatch of sampler and learner.

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
        for name, value in result.per_token.items():
            totals.add_per_token(name, float(value))
        for name, value in result.sums.items():
            totals.add(name, float(value))
        totals.add_per_token("entropy", float(entropy.sum()))
        totals.add_per_token("mismatch_mean", float(mismatch.sum()))
        totals.keep_largest("mismatch_max", float(mismatch.max()) if len(mismatch) else 0.0)
        return result.loss

    return loss


def train(job: RLJob, driver: DriverCalls, device: torch.device) -> None:
    """Train to the end, from the last checkpoint if there is one. Every rank calls it.

    Raises:
        TrainingError: see ``Learner.update``; or the driver refused the group for good.
        JoinError: the driver refused the group this time.
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
    """The checkpoints of the newest steps and of the best ones.

    The driver has written the validation of a step before its checkpoint is made.
    """

    def scores() -> dict[int, float]:
        return scores_of(read_steps(job.output / METRICS_FILE), job.config.validation)

    return StepDirectories(job.output, job.config.keep_last, job.config.keep_best, scores)


def _checkpoint(
    job: RLJob,
    learner: Learner,
    reference: Reference | None,
    driver: DriverCalls,
    directories: StepDirectories,
    step: int,
) -> None:
    save_checkpoint(learner, job.base, directories, step, reference.gather() if reference else None)
    if learner.rank == 0:
        driver.checkpointed(step)


def _shown(totals: dict[str, float]) -> dict[str, float]:
    """The figures of a step, with both clips together and the effective sample size.

    That is (sum w)^2 / (n sum w^2), of the importance weights w of n tokens.
    """
    shown = dict(totals)
    tokens = max(1.0, totals["tokens"])
    total, squares = shown.pop("importance_sum"), shown.pop("importance_square_sum")
    shown["effective_sample_share"] = total**2 / (tokens * squares) if squares else 1.0
    shown["clip_share"] = shown["clip_low_share"] + shown["clip_high_share"]
    return shown


@dataclass(frozen=True, slots=True)
class _Joined:
    """What rank 0 got from the driver, for all ranks.

    Attributes:
        step: to resume from.
        incarnation: of the group.
        refusal: why rank 0 got nothing; empty where it did.
        is_final: whether a group that restarts would be refused again.
    """

    step: int = 0
    incarnation: int = 0
    refusal: str = ""
    is_final: bool = False


def _join(directories: StepDirectories, last_step: int, driver: DriverCalls) -> tuple[int, int]:
    """The step to resume from and the group's incarnation, the same on every rank.

    Rank 0 asks; what it got, or why it got nothing, goes to all, so that no rank waits for one that
    has given up.

    Raises:
        JoinError: it may succeed when the group restarts.
        TrainingError: it would fail again: the driver says so, or it is a bug.
    """
    answer = [_Joined()]
    error: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            step = directories.recover(last_step)
            answer = [_Joined(step, driver.join(step))]
        except Exception as caught:  # whatever it is, the other ranks wait for an answer
            error = caught
            answer = [_refusal(caught)]
            log.error("rank 0 did not join: %s", caught, exc_info=caught)
    distributed.broadcast_object_list(answer)
    joined = answer[0]
    if joined.refusal:
        kind = TrainingError if joined.is_final else JoinError
        raise kind(joined.refusal) from error
    return joined.step, joined.incarnation


def _refusal(error: Exception) -> _Joined:
    """What the ranks are told of an error.

    What happens to machines is a RuntimeError or an OSError, timeouts included, and may pass.
    Anything else would come back: a bug, or a checkpoint that cannot be read.
    """
    is_final = isinstance(error, TrainingError)
    reason = str(error) or type(error).__name__
    if not isinstance(error, RuntimeError | OSError):
        is_final = True
        reason = f"{type(error).__name__}: {error}"
    return _Joined(refusal=f"the driver did not let the learners join: {reason}", is_final=is_final)


def _publish(
    job: RLJob,
    learner: Learner,
    driver: DriverCalls,
    incarnation: int,
    step: int,
    metrics: dict[str, float],
) -> None:
    """Write the weights after ``step`` and hand them to the driver. Every rank calls it."""
    began = time.perf_counter()
    weights = learner.gather_weights()
    path = published_file(job.weights, PolicyVersion(incarnation, step))
    on_rank_0(lambda: publish_weights(weights, path))

    def publish() -> None:
        figures = metrics | {"write_s": time.perf_counter() - began}
        driver.publish(incarnation, step, path, figures)

    if job.config.is_checkpointed(step):
        # every rank takes part in the checkpoint: none may begin it if rank 0 has given up
        on_rank_0(publish)
    elif learner.rank == 0:
        publish()  # the others learn of a failure when they lease the next batch
