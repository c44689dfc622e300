"""Connecting to Ray, with the authentication mode said out loud, and finding the driver of a run that is going on."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bi_ray.config import RayConfig
from bi_ray.store import RunDirectory, RunError, job_id, read_record, write_text

NAMESPACE = "bi_ray"  # of the named drivers; Ray gives every job an anonymous one otherwise
ADDRESS_FILE = ".cluster.json"
TOKEN_ADVICE = (
    "set RAY_AUTH_MODE=token (or give --auth-mode token where a command has it), and put the cluster's token into "
    "RAY_AUTH_TOKEN, into the file that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token; `ray get-auth-token` on "
    "the head node prints it"
)
_PROBE_S = 5.0
_POLL_S = 0.2


class ClusterError(RuntimeError):
    """A cluster that cannot be reached or asked; the message says what to change."""


def connect(config: RayConfig) -> None:
    """Join the cluster of this Ray job, else that at ``config.address``, or start a local one for this process alone.

    Ray turns token authentication on by itself once a token was written on a machine; both ends of a call must agree,
    so the mode of a local cluster is set from the configuration.

    Raises:
        ClusterError: nobody answers at the address, or not without (another) token.
    """
    address = os.environ.get("RAY_ADDRESS")
    if config.address and not job_id():
        address = config.address
    if not address:
        os.environ["RAY_AUTH_MODE"] = config.auth_mode
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _init(
        address=address or "local",
        num_cpus=None if address else config.local_cpus,
        include_dashboard=False if not address else None,
    )


def _init(address: str, **options: Any) -> None:
    """``ray.init``, which takes SIGTERM over: it is given back to whoever had it."""
    _check_answers(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, configure_logging=True, logging_level=logging.WARNING, log_to_driver=False, **options)
    except AuthenticationError as error:
        raise ClusterError(f"Ray at {address} wants a token: {TOKEN_ADVICE}") from error
    except (ConnectionError, RuntimeError) as error:
        if address == "local":
            raise
        raise ClusterError(
            f"cannot join Ray at {address}: {error}. Where the lines above say Unauthenticated, {TOKEN_ADVICE}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


def _check_answers(address: str) -> None:
    """Ray waits for more than a minute where nobody listens at ``HOST:PORT``.

    Raises:
        ClusterError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except OSError as error:
        raise ClusterError(f"no Ray answers at {address}: {error}; `ray start --head` prints the address") from error


def check_shared(run: Path, timeout_s: float) -> None:
    """See that every node of the cluster sees the run directory: engines and learners on all of them read from it.

    Raises:
        ClusterError: a node does not, or does not say within ``timeout_s``.
    """
    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0)(_sees)
    for node in ray.nodes():
        if not node["Alive"] or node["NodeID"] == here:
            continue
        host, there = node["NodeManagerHostname"], NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            seen = ray.get(look.options(scheduling_strategy=there).remote(run), timeout=timeout_s)
        except GetTimeoutError as error:
            raise ClusterError(f"node {host} did not answer within {timeout_s:g} s (ray.call_timeout_s)") from error
        if not seen:
            raise ClusterError(
                f"node {host} does not see {run}: give a --run on a file system that all nodes share, or, where --run "
                "is a URI, such a --local for its working copy"
            )


def _sees(path: Path) -> bool:
    return path.exists()


@dataclass(frozen=True, slots=True)
class _Address:
    """What a run leaves in its directory: where its driver is, and how Ray's calls prove who they are."""

    address: str | None
    auth_mode: str | None = None


def write_address(run: Path) -> None:
    """Leave in a run directory where its driver is, for ``scale`` in another process."""
    context = {"address": ray.get_runtime_context().gcs_address, "auth_mode": os.environ.get("RAY_AUTH_MODE")}
    write_text(run / ADDRESS_FILE, json.dumps(context))


def driver_name(run_id: str) -> str:
    """The name of a run's driver in ``NAMESPACE``."""
    return f"driver-{run_id}"


def free_driver_name(run_id: str, timeout_s: float) -> str:
    """The driver's name, once the driver of a command that was killed is gone. The caller holds the run's lock.

    Raises:
        ClusterError: it is not gone in time.
    """
    name, deadline = driver_name(run_id), time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            ray.kill(ray.get_actor(name, NAMESPACE))
        except ValueError:
            return name
        time.sleep(_POLL_S)
    raise ClusterError(f"the driver of an earlier command did not end within {timeout_s:g} s; try again")


def scale(directory: RunDirectory, workers: int, address: str | None = None, timeout_s: float = 60) -> dict[str, Any]:
    """Tell the driver of a run that is going on how many rollout workers it should have.

    Args:
        directory: the run's; its lock is not taken.
        workers: how many, 1 or more.
        address: of the cluster; None: the one that the run wrote into its directory, else that of ``RAY_ADDRESS``.
            Inside a Ray job it is the job's cluster in any case.
        timeout_s: deadline of the driver's answer.

    Returns:
        the state of the pool and its workers.

    Raises:
        ClusterError: no run is going on there, or its engines are not up yet.
        RunError: the driver refused the number, or the file with its address is damaged.
    """
    file = directory.path / ADDRESS_FILE
    written = _Address(None, None)
    if address is None and file.exists():
        written = read_record(file, _Address, "give the cluster's --address")
    address = (None if job_id() else address or written.address) or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise ClusterError(f"nothing here says on which cluster {directory.name} is going on; give its --address")
    if written.auth_mode:
        os.environ.setdefault("RAY_AUTH_MODE", written.auth_mode)
    _init(address)
    try:
        driver: Any = ray.get_actor(driver_name(directory.run_id), NAMESPACE)
        return ray.get(driver.scale.remote(workers), timeout=timeout_s)
    except RayTaskError as error:
        raise RunError(str(error.cause)) from error
    except ValueError as error:
        raise ClusterError(
            f"no rollout workers of {directory.name} on the cluster at {address}: no run of it is going on there, or "
            "it is not as far as its first evaluation; `bi-ray status` says which"
        ) from error
    except GetTimeoutError as error:
        raise ClusterError(f"the driver did not answer within {timeout_s:g} s; try again") from error
    except RayActorError as error:
        raise ClusterError(f"the driver of {directory.name} died") from error
    finally:
        ray.shutdown()
