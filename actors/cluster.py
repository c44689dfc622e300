"""Joins a Ray cluster or starts a local Ray, and finds the driver of a run in progress."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.local_ray import (
    AUTH_MODE,
    AUTH_TOKEN,
    RayOptions,
    is_loopback,
    start_local_ray,
    stay_on_loopback,
    use_authentication,
)
from bi_ray.config.run import RayConfig
from bi_ray.files.errors import RunError
from bi_ray.files.private import PrivacyError, read_own, write_private
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.layout import CLUSTER_FILE
from bi_ray.runs.process import job_id

NAMESPACE = "bi_ray"  # of the named drivers; by default, every job has an anonymous one
TOKEN_ADVICE = (
    "set RAY_AUTH_MODE=token (or give --auth-mode token where a command has it), and put the "
    "cluster's token into RAY_AUTH_TOKEN, into the file that RAY_AUTH_TOKEN_PATH names, or into "
    "~/.ray/auth_token; `ray get-auth-token` on the head node prints it"
)
_PROBE_S = 5.0
_POLL_S = 0.2
_KEEP_DEVICES = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
_QUIET = RayOptions(configure_logging=True, logging_level=logging.WARNING, log_to_driver=False)

_HOST_AND_PORT = re.compile(r"(?!.*://).+:\d+")

log = logging.getLogger(__name__)


class ClusterError(RuntimeError):
    """A cluster that cannot be joined or does not answer; the message says what to change."""


def connect(config: RayConfig, source: str = "ray.address") -> None:
    """Join the cluster of this Ray job, else the one at ``config.address``; else start a local Ray.

    A local Ray is for this process alone and always wants a token. A cluster's mode is
    ``config.auth_mode`` where the configuration names the cluster, else that of ``RAY_AUTH_MODE``.
    Environment variables that Ray reads stay set: its processes inherit them as long as it runs.

    Args:
        config: of the cluster.
        source: where its address comes from, for messages.

    Raises:
        ClusterError: nobody answers at the address, or not without (another) token.
        LocalRayError, PrivacyError: a local one cannot be started.
    """
    os.environ.setdefault(_KEEP_DEVICES, "0")  # Ray clears CUDA_VISIBLE_DEVICES of no actor
    if config.address and not job_id():
        auth_mode = None if os.environ.get(AUTH_MODE) else config.auth_mode
        _join(config.address, source, auth_mode)
        return
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address, "RAY_ADDRESS")
        return
    options: RayOptions = {**_QUIET, "include_dashboard": False}
    with _sigterm_kept():
        start_local_ray(config.local_cpus, **options)


def _join(
    address: str, source: str, auth_mode: str | None = None, token: str | None = None
) -> None:
    """Join the cluster at ``address``, which ``source`` names.

    Args:
        address: ``HOST:PORT``, or ``auto``.
        source: where it comes from, for messages.
        auth_mode: of the cluster; None: that of the environment.
        token: of the cluster; None: the one that Ray finds.

    Raises:
        ClusterError: see ``connect``; or the address is of another kind.
    """
    check_address(address, source)
    if address == "auto" or is_loopback(address.rpartition(":")[0]):
        stay_on_loopback()
    if auth_mode is not None:
        use_authentication(auth_mode, token)
    _check_answers(address)
    try:
        with _sigterm_kept():
            ray.init(address=address, **_QUIET)
    except AuthenticationError as error:
        raise ClusterError(f"Ray at {address} wants a token: {TOKEN_ADVICE}") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot join Ray at {address}: {error}. If the lines above say Unauthenticated, "
            f"{TOKEN_ADVICE}"
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, which ``ray.init`` replaces."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def check_address(address: str, source: str) -> None:
    """Check that ``address`` is one that a driver can join.

    Raises:
        ClusterError: it is of another kind; the message says which one is wanted.
    """
    if address == "auto" or _HOST_AND_PORT.fullmatch(address):
        return
    if address.startswith(("http://", "https://")):
        kind = "the address of a job server, which `bi-ray submit` and `bi-ray job` use"
    elif address.startswith("ray://"):
        kind = "the address of a Ray client server"
    else:
        kind = "not HOST:PORT"
    raise ClusterError(
        f"{source} is {address}, {kind}; a run needs Ray's own address, such as HOST:6379"
    )


def _check_answers(address: str) -> None:
    """Check that somebody listens at ``HOST:PORT``; Ray itself would wait for over a minute.

    Raises:
        ClusterError: nobody does.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray answers at {address}: {error}; `ray start --head` prints the address"
        ) from error


def check_shared(run: Path, timeout_s: float) -> None:
    """Check that every node sees the run directory: engines and learners anywhere read from it.

    Raises:
        ClusterError: a node does not, or does not answer within ``timeout_s``.
    """
    here = ray.get_runtime_context().get_node_id()
    exists = ray.remote(num_cpus=0)(_exists)
    for node in ray.nodes():
        if not node["Alive"] or node["NodeID"] == here:
            continue
        host = node["NodeManagerHostname"]
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = exists.options(scheduling_strategy=there).remote(run)
        try:
            is_seen = ray.get(answer, timeout=timeout_s)
        except GetTimeoutError as error:
            raise ClusterError(
                f"node {host} did not answer within {timeout_s:g} s (ray.call_timeout_s)"
            ) from error
        if not is_seen:
            raise ClusterError(
                f"node {host} does not see {run}: give a --run on a file system that all nodes "
                "share, or, where --run is a URI, such a --local for its working copy"
            )


def _exists(path: Path) -> bool:
    return path.exists()


@dataclass(frozen=True, slots=True)
class _Whereabouts:
    """The cluster on which a run's driver is.

    Attributes:
        address: Ray's, ``HOST:PORT``.
        auth_mode: ``RAY_AUTH_MODE`` of the driver, None where it has none.
        token: of a local Ray, which has its own; users of a cluster have that of the cluster.
    """

    address: str
    auth_mode: str | None = None
    token: str | None = None


def write_address(run: Path) -> None:
    """Write into a run directory where its driver is, for ``scale`` in another process."""
    address = ray.get_runtime_context().gcs_address
    is_local = is_loopback(address.rpartition(":")[0])
    token = os.environ.get(AUTH_TOKEN) if is_local else None
    there = _Whereabouts(address, os.environ.get(AUTH_MODE), token)
    if not write_private(run / CLUSTER_FILE, json.dumps(asdict(there))):
        log.warning("%s has no file modes: `bi-ray scale` needs --address for this run", run)


def _read_address(directory: RunDirectory) -> _Whereabouts | None:
    """What ``write_address`` wrote, None where it wrote nothing.

    Raises:
        ClusterError: it is damaged, or somebody else can have written it.
    """
    file = directory.path / CLUSTER_FILE
    try:
        there = _Whereabouts(**json.loads(read_own(file)))
    except FileNotFoundError:
        return None
    except PrivacyError as error:
        raise ClusterError(
            f"the cluster's address in {directory.name} is not trusted: {error}; give the "
            "--address of the cluster"
        ) from error
    except (ValueError, TypeError) as error:
        raise ClusterError(
            f"{file} is damaged ({error}); give the --address of the cluster"
        ) from error
    check_address(str(there.address), str(file))
    return there


def driver_name(run_id: str) -> str:
    """The name of a run's driver in ``NAMESPACE``."""
    return f"driver-{run_id}"


def free_driver_name(run_id: str, timeout_s: float) -> str:
    """The name for a run's driver, once the driver of a command that was killed is gone.

    The caller holds the run's lock.

    Raises:
        ClusterError: it is not gone within ``timeout_s``.
    """
    name = driver_name(run_id)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            ray.kill(ray.get_actor(name, NAMESPACE))
        except ValueError:
            return name
        time.sleep(_POLL_S)
    raise ClusterError(
        f"the driver of an earlier command did not end within {timeout_s:g} s; try again"
    )


def scale(
    directory: RunDirectory, workers: int, address: str | None = None, timeout_s: float = 60
) -> dict[str, Any]:
    """Tell the driver of a run in progress how many rollout workers it should have.

    Args:
        directory: the run's; its lock is not taken.
        workers: how many, 1 or more.
        address: of the cluster; None: the one that the run wrote into its directory, else that of
            ``RAY_ADDRESS``. Inside a Ray job it is always the job's cluster. An address that others
            can have written is refused.
        timeout_s: deadline of the driver's answer.

    Returns:
        the state of the pool and its workers.

    Raises:
        ClusterError: no run is in progress there, or its engines are not up yet.
        RunError: the driver refused the number.
    """
    address = _join_cluster_of(directory, address)
    try:
        driver: Any = ray.get_actor(driver_name(directory.run_id), NAMESPACE)
        return ray.get(driver.scale.remote(workers), timeout=timeout_s)
    except RayTaskError as error:
        raise RunError(str(error.cause)) from error
    except ValueError as error:
        raise ClusterError(
            f"no rollout workers of {directory.name} on the cluster at {address}: no run of it is "
            "in progress there, or it has not reached its first evaluation; `bi-ray status` shows "
            "which"
        ) from error
    except GetTimeoutError as error:
        raise ClusterError(
            f"the driver did not answer within {timeout_s:g} s; try again"
        ) from error
    except RayActorError as error:
        raise ClusterError(f"the driver of {directory.name} died") from error
    finally:
        ray.shutdown()


def _join_cluster_of(directory: RunDirectory, address: str | None) -> str:
    """Join the cluster that ``scale`` is about; returns its address."""
    auth_mode = os.environ.get(AUTH_MODE)
    if not job_id():
        if address:
            _join(address, "--address", auth_mode)
            return address
        there = _read_address(directory)
        if there:
            _join(there.address, CLUSTER_FILE, there.auth_mode or auth_mode, there.token)
            return there.address
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        raise ClusterError(f"no cluster is known for {directory.name}; give its --address")
    _join(address, "RAY_ADDRESS", auth_mode)
    return address
