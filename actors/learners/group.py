"""The learners of a run: Ray Train starts them, restarts them, and forms their process group.

Ray Train keeps no checkpoints here: a job writes its own into the run directory, whole or not at
all, and every start of its loop looks for the newest. So a restart by Ray Train, by the same
command after a kill, and at another number of workers are one and the same path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from actors.environment import environment
from actors.learners.loops import rl_loop, sft_loop
from actors.learners.process_group import NodeTorchConfig
from bi_ray.config.run import ModelConfig, RayConfig
from bi_ray.config.training import LearnerConfig, RLConfig, SFTConfig
from bi_ray.policy.checkpoint import check_directory

Loop = Callable[[dict[str, Any]], Any]
_LOST_PEER = ("connection closed by peer", "connection reset", "gloo", "nccl")
log = logging.getLogger(__name__)


class LearnerError(RuntimeError):
    """A training job that ended early; the message is the reason that the failing rank gave."""


class LearnerGroup:
    """Runs training jobs on ``LearnerConfig.workers`` processes. Holds nothing between jobs.

    Both jobs block until they are done, and may be called from any thread of a process that is
    connected to Ray.

    Args:
        run: the run directory; what Ray Train itself writes goes under ``ray_train/`` there.
        learner: size and resources of the group.
        model: data type and attention kernel.
        cluster: for the deadline of calls to the driver.
    """

    def __init__(
        self, run: Path, learner: LearnerConfig, model: ModelConfig, cluster: RayConfig
    ) -> None:
        self._run = run.absolute()
        self._learner = learner
        self._model = model
        self._cluster = cluster

    def run_sft(self, base: Path, data: Path, output: Path, config: SFTConfig, seed: int) -> None:
        """Fine-tune ``base`` on a dataset with columns ``prompt_tokens`` and ``response_tokens``.

        Leaves ``policy/`` and ``metrics.jsonl`` in ``output``, and checkpoints from which the same
        call resumes.

        Raises:
            CheckpointError: ``base`` is no usable checkpoint.
            LearnerError: the training failed more often than ``learner.max_restarts``, or cannot
                continue.
        """
        options = {"data": str(data.absolute()), "sft": config.model_dump(), "seed": seed}
        self._fit("sft", sft_loop, base, output, options)

    def run_rl(
        self, base: Path, output: Path, weights: Path, config: RLConfig, driver: Any
    ) -> None:
        """Train ``base`` on the batches that ``driver`` serves (see ``loops.DriverClient``).

        Leaves ``step_N/`` in ``output``, and one file per version in ``weights``, which whoever
        samples loads and removes.

        Raises:
            CheckpointError: ``base`` is no usable checkpoint.
            LearnerError: the training failed more often than ``learner.max_restarts``, or cannot
                continue.
        """
        options = {
            "weights": str(weights.absolute()),
            "rl": config.model_dump(),
            "driver": driver,
            "call_timeout_s": self._cluster.call_timeout_s,
        }
        self._fit("rl", rl_loop, base, output, options)

    def _fit(
        self, kind: str, loop: Loop, base: Path, output: Path, options: dict[str, object]
    ) -> None:
        """Run a job to its end; ``options`` are what only this kind of job has."""
        job = options | {
            "base": str(check_directory(base).absolute()),
            "output": str(output.absolute()),
            "learner": self._learner.model_dump(),
            "model": self._model.model_dump(),
        }
        output.mkdir(parents=True, exist_ok=True)
        with environment(self._deadlines()):
            result = self._result(lambda: self._trainer(kind, loop, output, job))
        if result.return_value:
            raise LearnerError(result.return_value)

    def _trainer(self, kind: str, loop: Loop, output: Path, job: dict[str, object]) -> TorchTrainer:
        return TorchTrainer(
            loop,
            train_loop_config=job,
            torch_config=NodeTorchConfig(timeout_s=int(self._learner.collective_timeout_s)),
            scaling_config=self._scaling(),
            run_config=RunConfig(
                name=f"{kind}-{output.name}",
                storage_path=str(self._run / "ray_train"),
                failure_config=FailureConfig(
                    max_failures=self._learner.max_restarts,
                    controller_failure_limit=self._learner.max_restarts,
                ),
            ),
        )

    def _result(self, make_trainer: Callable[[], TorchTrainer]) -> Any:
        """The result of a fit, which begins again when the controller of Ray Train dies.

        The controller is an actor that Ray Train does not restart.
        """
        deaths = 0
        while True:
            try:
                return make_trainer().fit()
            except TrainingFailedError as error:
                raise LearnerError(self._reason(error)) from error
            except RayActorError as error:
                deaths += 1
                if deaths > self._learner.max_restarts:
                    raise LearnerError(
                        f"the controller of Ray Train died {deaths} times (learner.max_restarts is "
                        f"{self._learner.max_restarts}); run the same command again to resume from "
                        "the last checkpoint"
                    ) from error
                log.warning(
                    "the controller of Ray Train died; learners restart from the last checkpoint",
                    exc_info=error,
                )

    def _scaling(self) -> ScalingConfig:
        gpus = self._learner.gpus_per_worker
        resources = {"CPU": self._learner.cpus_per_worker}
        if gpus:
            resources["GPU"] = gpus
        return ScalingConfig(
            num_workers=self._learner.workers, use_gpu=gpus > 0, resources_per_worker=resources
        )

    def _deadlines(self) -> dict[str, str]:
        """Options that ``fit`` of Ray Train reads from the environment alone."""
        # It waits this long for a placement, and again after each failure to get one: together,
        # ``start_timeout_s``.
        attempts = self._learner.max_restarts + 1
        interval_s = os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        return {
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(self._learner.start_timeout_s / attempts),
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(self._learner.collective_timeout_s),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": interval_s,
        }

    def _reason(self, error: TrainingFailedError) -> str:
        if isinstance(error, WorkerGroupError):
            return failing_rank(error.worker_failures)
        if isinstance(error, ControllerError) and "startup timed out" in str(error):
            learner = self._learner
            cpus = learner.workers * learner.cpus_per_worker
            return (
                f"no room for {learner.workers} learners within {learner.start_timeout_s:g} s "
                f"(learner.start_timeout_s): they need {cpus:g} CPUs and the cluster has "
                f"{ray.cluster_resources()}; lower learner.workers or learner.cpus_per_worker, or "
                "give the rollout workers less"
            )
        return str(error)


def failing_rank(failures: Mapping[int, BaseException]) -> str:
    """One line about the rank that failed by itself, not because it lost another one."""
    errors = {rank: getattr(error, "_base_exc", error) for rank, error in failures.items()}
    own = [rank for rank, error in errors.items() if not _is_collateral(error)]
    rank = min(own or errors)
    error = errors[rank]
    if isinstance(error, RayActorError):
        return f"learner {rank} died (killed, or out of memory?)"
    return f"learner {rank}: {type(error).__name__}: {error}"


def _is_collateral(error: BaseException) -> bool:
    """Whether a rank failed because another one was gone."""
    text = str(error).lower()
    return any(sign in text for sign in _LOST_PEER)
