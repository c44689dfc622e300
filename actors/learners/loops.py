"""What Ray Train runs on every learner: module-level functions that take a plain dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError
from ray.train.torch import get_device

from actors.driver.session import SessionError
from bi_ray.batches.batch import LearnerBatch
from bi_ray.config import ConfigError, LearnerConfig, ModelConfig, RLConfig, SFTConfig
from bi_ray.files.private import PrivacyError
from bi_ray.learning import rl, sft
from bi_ray.learning.learner import TrainingError
from bi_ray.policy.published import make_weights_directory
from bi_ray.verification.verdicts import VerdictError

DRIVER_DIED = "the driver died; run the same command again to resume"


class DriverClient:
    """A driver actor as the learners see it: every call has a deadline.

    The actor's methods: ``join(step) -> int``, ``lease(step, incarnation)``, ``publish(incarnation,
    step, path, metrics)`` and ``checkpointed(step)``. ``lease`` returns a LearnerBatch, the
    ObjectRef of one that the driver put (then all learners of a node share one copy), or None where
    RL is over.

    Args:
        actor: handle of the driver.
        call_timeout_s: deadline of calls that only set or read state.
        batch_timeout_s: deadline of calls for which the engines may have to work: all but
            ``checkpointed``.
    """

    def __init__(self, actor: Any, call_timeout_s: float, batch_timeout_s: float) -> None:
        self._actor = actor
        self._call_timeout_s = call_timeout_s
        self._batch_timeout_s = batch_timeout_s

    def join(self, step: int) -> int:
        """See ``rl.Driver``; the engines go back to the weights of ``step`` meanwhile.

        Raises:
            TrainingError: the driver has no session or is dead, or the first validation has no
                verdicts.
        """
        try:
            return self._wait(self._actor.join.remote(step), "answer to join")
        except SessionError as error:
            raise TrainingError(str(error)) from error
        except ActorDiedError as error:
            raise TrainingError(DRIVER_DIED) from error

    def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """See ``rl.Driver``.

        Raises:
            TrainingError: the batch, or the validation before it, has no verdicts.
        """
        reply = self._wait(self._actor.lease.remote(step, incarnation), f"batch for step {step}")
        return (
            ray.get(reply, timeout=self._call_timeout_s)
            if isinstance(reply, ray.ObjectRef)
            else reply
        )

    def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, float]) -> None:
        """See ``rl.Driver``; the engines take the weights, and a validation may run, meanwhile.

        Raises:
            TrainingError: the validation of this step, or of the one before, has no verdicts.
        """
        self._wait(
            self._actor.publish.remote(incarnation, step, str(path), metrics),
            f"answer to publish {step}",
        )

    def checkpointed(self, step: int) -> None:
        """See ``rl.Driver``."""
        ray.get(self._actor.checkpointed.remote(step), timeout=self._call_timeout_s)

    def _wait(self, call: Any, what: str) -> Any:
        """The driver's answer.

        Raises:
            TrainingError: it has no verdicts. A new group of learners would most likely fail the
                same way.
            TimeoutError: it came too late.
            Exception: whatever else the driver raised.
        """
        try:
            return ray.get(call, timeout=self._batch_timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            limit = f"{self._batch_timeout_s:g} s (rl.batch_timeout_s)"
            raise TimeoutError(f"the driver had no {what} within {limit}") from error
        # before all others: it is an instance of its cause's class too
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VerdictError):
                raise TrainingError(f"no {what}: {error.cause}") from error
            raise error.cause from error  # what the driver raised, without a traceback as its text


def sft_loop(config: dict[str, Any]) -> str | None:
    """One rank of an SFT job; returns why it cannot go on, or None when it is done.

    An error that would come back is returned, not raised: Ray Train starts the group again for what
    is raised.
    """
    learner = LearnerConfig.model_validate(config["learner"])
    torch.set_num_threads(learner.threads_per_worker)
    job = sft.SFTJob(
        base=Path(config["base"]),
        data=Path(config["data"]),
        output=Path(config["output"]),
        config=SFTConfig.model_validate(config["sft"]),
        model=ModelConfig.model_validate(config["model"]),
        learner=learner,
        seed=config["seed"],
    )
    try:
        sft.train(job, get_device())
    except TrainingError as error:
        return str(error)
    return None


def rl_loop(config: dict[str, Any]) -> str | None:
    """One rank of an RL job; returns why it cannot go on, or None when it is done (see
    ``sft_loop``).
    """
    learner = LearnerConfig.model_validate(config["learner"])
    torch.set_num_threads(learner.threads_per_worker)
    job = rl.RLJob(
        base=Path(config["base"]),
        output=Path(config["output"]),
        weights=Path(config["weights"]),
        config=RLConfig.model_validate(config["rl"]),
        model=ModelConfig.model_validate(config["model"]),
        learner=learner,
    )
    driver = DriverClient(config["driver"], config["call_timeout_s"], job.config.batch_timeout_s)
    try:
        make_weights_directory(job.weights)
        rl.train(job, driver, get_device())
    except (TrainingError, ConfigError, PrivacyError) as error:
        return str(error)
    return None
