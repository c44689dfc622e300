"""A Ray for one command alone: it listens on the loopback interface only, and wants a token.

Ray binds all of its servers to the loopback interface when its node has a loopback address, as on
macOS and Windows. On Linux it replaces a loopback address by the machine's own unless the variable
``LOOPBACK_SWITCH`` is 0. So a local Ray is started with that, and the address of its node is
checked afterwards.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.request import getproxies, proxy_bypass

import ray
from ray import _raylet
from ray._private import ray_constants

from bi_ray.files.errors import RunError
from bi_ray.files.private import private_folder

LOOPBACK = "127.0.0.1"
LOOPBACK_SWITCH = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_TOKEN_BYTES = 32
_LOOPBACK_INTERFACE = "lo"
_LONGEST_SOCKET_PATH = 107  # bytes, of a Unix socket on Linux
# the longest name that Ray gives to one
_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.10"

log = logging.getLogger(__name__)


class LocalRayError(RunError):
    """A local Ray that cannot be started safely; the message says why."""


class RayOptions(TypedDict, total=False):
    """Arguments of ``ray.init`` that callers choose."""

    configure_logging: bool
    logging_level: int
    log_to_driver: bool
    include_dashboard: bool


def start_local_ray(num_cpus: int | None = None, **options: Unpack[RayOptions]) -> None:
    """Start a Ray for this process alone and join it.

    Args:
        num_cpus: logical CPUs that it hands out; None: every core.
        options: more arguments of ``ray.init``.

    Raises:
        LocalRayError: it would be reachable from other machines.
        PrivacyError: its folder belongs to another user, or cannot be made.
    """
    folder = session_folder()
    stay_on_loopback()
    _set_environment(folder)
    use_authentication("token", os.environ.get(AUTH_TOKEN) or secrets.token_hex(_TOKEN_BYTES))
    ray.init("local", num_cpus=num_cpus, _temp_dir=str(folder), **options)
    addresses = [node["NodeManagerAddress"] for node in ray.nodes()]
    if not all(map(is_loopback, addresses)):
        ray.shutdown()
        raise LocalRayError(
            f"Ray listens at {', '.join(addresses)} instead of the loopback interface alone"
        )


def _set_environment(folder: Path) -> None:
    """Keep what Ray starts on the loopback interface, for as long as this process lives.

    Its processes inherit the variables when they start, which may be at any time.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK_INTERFACE
    os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK_INTERFACE
    os.environ["VLLM_HOST_IP"] = LOOPBACK
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def session_folder() -> Path:
    """Where local Rays keep their sockets, logs and spilled objects: a folder of this user alone.

    It is in ``RAY_TMPDIR``, else in ``TMPDIR``, else in /tmp; also in /tmp if a socket's path would
    be too long.

    Raises:
        PrivacyError: it belongs to another user, or cannot be made.
    """
    name = f"bi_ray_{os.geteuid()}"
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = Path(chosen).absolute() / name
    if len(os.fsencode(folder / _SOCKET)) > _LONGEST_SOCKET_PATH:
        log.warning("%s is too long a path for Ray's sockets; using /tmp", chosen)
        folder = Path("/tmp") / name
    return private_folder(folder)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address, or the name of one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # another name
        return False


def stay_on_loopback() -> None:
    """Let Ray start at a loopback address, or join one, in this process and its children."""
    os.environ[LOOPBACK_SWITCH] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray read the variable when it was imported
    bypass_proxies([LOOPBACK, "localhost"])


def use_authentication(mode: str, token: str | None = None) -> None:
    """Set how Ray's calls authenticate from now on; ``token`` None: the one that Ray finds."""
    os.environ[AUTH_MODE] = mode
    if token is not None:
        os.environ[AUTH_TOKEN] = token
    # Ray read both variables when it was imported.
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def bypass_proxies(hosts: Iterable[str]) -> None:
    """Let HTTP to these hosts go straight there, whatever proxy the environment names."""
    if not getproxies():
        return
    proxied = [host for host in hosts if not proxy_bypass(host)]
    if not proxied:
        return
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    if known:
        proxied.insert(0, known)
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(proxied)
