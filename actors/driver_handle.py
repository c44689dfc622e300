"""The driver actor as a run's command sees it: started on first use, every call with a deadline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.cluster import NAMESPACE, check_shared, connect, free_driver_name, write_address
from actors.driver.driver import Driver, driver_concurrency
from actors.driver.notes import NoteFollower
from actors.learners.loops import DRIVER_DIED
from bi_ray.config.run import RunConfig
from bi_ray.files.errors import RunError
from bi_ray.files.private import private_folder
from bi_ray.policy.published import SHARED_MEMORY
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.display import Display

_POLL_S = 0.5
_CONNECT_S = 30.0  # for the driver's process itself, on top of the engines' deadline

log = logging.getLogger(__name__)


class DriverError(RunError):
    """The driver actor did not answer in time, or died."""


class DriverHandle:
    """The driver actor of one run.

    Args:
        config: of the run.
        run_directory: of the run; the caller holds its lock.
        display: shows the driver's notes and the progress of its calls.
    """

    def __init__(self, config: RunConfig, run_directory: RunDirectory, display: Display) -> None:
        self._config = config
        self._run = run_directory
        self._display = display
        self._actor: Any = None
        self._notes: NoteFollower | None = None

    @property
    def call_timeout_s(self) -> float:
        """Deadline of calls that only read or set state."""
        return self._config.ray.call_timeout_s

    def connect(self) -> None:
        """Join the cluster, or start a local one, unless this was done before.

        Raises:
            ClusterError, LocalRayError, PrivacyError: it cannot be joined, started or trusted.
        """
        if ray.is_initialized():
            return
        private_folder(SHARED_MEMORY)  # if it belongs to another user, fail before anything starts
        connect(self._config.ray)
        check_shared(self._run.path, self.call_timeout_s)
        write_address(self._run.path)

    def actor(self) -> Any:
        """The actor; the first call starts it and its rollout engines.

        Raises:
            DriverError: the engines do not start in time.
        """
        if self._actor is None:
            self.connect()
            self._start()
        return self._actor

    def _start(self) -> None:
        base = Path(self._config.model.path).absolute()
        actor = ray.remote(Driver).options(
            num_cpus=0,  # it waits for engines and learners nearly all the time
            max_concurrency=driver_concurrency(self._config.learner.workers),
            name=free_driver_name(self._run.run_id, self.call_timeout_s),
            namespace=NAMESPACE,
        )
        self._actor = actor.remote(self._config, self._run.run_id, base)
        self._notes = NoteFollower(self._actor, self._display.note)
        rollout = self._config.rollout
        with self._display.task(f"starting {rollout.workers} rollout engines", None):
            self.call(self._actor.start.remote(), rollout.start_timeout_s + _CONNECT_S)

    def call(self, reference: Any, timeout_s: float) -> Any:
        """Wait for the result of a call; see ``result_of``."""
        return result_of(reference, timeout_s)

    def call_with_progress(self, reference: Any, timeout_s: float) -> Any:
        """Wait for the result of a call, and show its progress meanwhile; see ``result_of``."""
        return result_of(reference, timeout_s, self._show_progress)

    def _show_progress(self) -> None:
        progress = self.call(self._actor.progress.remote(), self.call_timeout_s)
        self._display.set(progress.get("done", 0), progress.get("total"), progress.get("phase", ""))

    def close(self) -> None:
        """End the actor and its engines; nothing happens if it was never started."""
        if self._actor is None:
            return
        try:
            self.call(self._actor.close.remote(), self.call_timeout_s)
        except DriverError as error:
            log.warning("the driver did not close", exc_info=True)
            self._display.note(f"the driver did not close: {error}")
        if self._notes is not None:
            self._notes.stop()
        ray.kill(self._actor)
        self._actor = None


def result_of(
    reference: Any, timeout_s: float, while_waiting: Callable[[], None] | None = None
) -> Any:
    """The result of a remote call of the driver.

    Args:
        reference: the call's.
        timeout_s: its deadline.
        while_waiting: called every half second until the result is there.

    Raises:
        DriverError: the driver did not answer in time, died, or raised an error.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            return ray.get(reference, timeout=min(_POLL_S, left_s) if while_waiting else left_s)
        except ray.exceptions.GetTimeoutError as error:
            if time.monotonic() >= deadline:
                raise DriverError(f"the driver did not answer within {timeout_s:g} s") from error
        # before RayActorError: a RayTaskError is an instance of its cause's class, too
        except ray.exceptions.RayTaskError as error:
            raise DriverError(_cause(error)) from error
        except ray.exceptions.RayActorError as error:
            raise DriverError(DRIVER_DIED) from error
        if while_waiting:
            while_waiting()


def _cause(error: ray.exceptions.RayTaskError) -> str:
    """Why a call of the driver failed; an actor that died during it is not the driver."""
    if isinstance(error.cause, ray.exceptions.RayActorError):
        return f"an actor that the driver needs died: {str(error.cause).splitlines()[0]}"
    return str(error.cause)
