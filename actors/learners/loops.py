"""What Ray Train runs on every learner: module-level functions that take a plain dict."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError
from ray.train.torch import get_device

from actors.driver.session import SessionError
from actors.logs import start_logging
from bi_ray.batches.batch import LearnerBatch
from bi_ray.config.base import ConfigError
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig, RLConfig, SFTConfig
from bi_ray.files.private import PrivacyError
from bi_ray.learning import rl, sft
from bi_ray.learning.driver_calls import DriverCalls
from bi_ray.learning.learner import TrainingError
from bi_ray.policy.published import make_weights_directory
from bi_ray.verification.verdicts import VerdictError

DRIVER_DIED = "the driver died; run the same command again to resume"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Deadline:
    """How long an answer may take, and the option that sets it."""

    option: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:g} s ({self.option})"


class DriverClient(DriverCalls):
    """A driver actor as the learners see it: every call has a deadline.

    A ``TrainingError`` is final: the driver has no session, no verdicts, or is dead.

    Args:
        actor: handle of the driver.
        call_timeout_s: deadline of ``checkpointed``, in seconds.
        batch_timeout_s: deadline of the other calls, for which the engines may have to work.
    """

    def __init__(self, actor: Any, call_timeout_s: float, batch_timeout_s: float) -> None:
        self._actor = actor
        self._control = _Deadline("ray.call_timeout_s", call_timeout_s)
        self._work = _Deadline("rl.batch_timeout_s", batch_timeout_s)

    def join(self, step: int) -> int:
        """See ``DriverCalls``."""
        try:
            return self._wait(self._actor.join.remote(step), "answer to join", self._work)
        except SessionError as error:
            raise TrainingError(str(error)) from error
        except ActorDiedError as error:
            raise TrainingError(DRIVER_DIED) from error

    def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """See ``DriverCalls``."""
        call = self._actor.lease.remote(step, incarnation)
        return self._wait(call, f"batch for step {step}", self._work)

    def publish(self, incarnation: int, step: int, path: Path, metrics: dict[str, float]) -> None:
        """See ``DriverCalls``."""
        call = self._actor.publish.remote(incarnation, step, path, metrics)
        self._wait(call, f"answer to publish {step}", self._work)

    def checkpointed(self, step: int) -> None:
        """See ``DriverCalls``."""
        call = self._actor.checkpointed.remote(step)
        self._wait(call, f"answer to checkpointed {step}", self._control)

    def _wait(self, call: Any, what: str, deadline: _Deadline) -> Any:
        """The driver's answer.

        Raises:
            TrainingError: it has no verdicts. A new group of learners would most likely fail the
                same way.
            TimeoutError: it came too late.
            ConnectionError: the driver cannot be reached now.
            ActorDiedError: the driver is dead.
            Exception: whatever else the driver raised.
        """
        try:
            return ray.get(call, timeout=deadline.seconds)
        # before all others: it is an instance of its cause's class too
        except RayTaskError as error:
            if isinstance(error.cause, VerdictError):
                raise TrainingError(f"no {what}: {error.cause}") from error
            raise error.cause from error  # what the driver raised, without a traceback as its text
        except GetTimeoutError as error:
            raise TimeoutError(f"the driver had no {what} within {deadline}") from error
        except ActorDiedError:
            raise
        except RayError as error:
            raise ConnectionError(f"the driver cannot be reached: {error}") from error


def sft_loop(config: dict[str, Any]) -> str | None:
    """One rank of an SFT job; returns why it cannot continue, or None when it is done.

    An error that would come back is returned, not raised: Ray Train starts the group again for what
    is raised.
    """
    start_logging("learner", torch.distributed.get_rank())
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
        return _final(error)
    return None


def rl_loop(config: dict[str, Any]) -> str | None:
    """One rank of an RL job; returns why it cannot continue, or None when it is done.

    See ``sft_loop`` for what is returned and what is raised.
    """
    start_logging("learner", torch.distributed.get_rank())
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
        return _final(error)
    return None


def _final(error: Exception) -> str:
    """Log an error that ends the job for good; returns its message."""
    log.error("training ends: %s", error, exc_info=error)
    return str(error)
