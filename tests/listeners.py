"""The sockets at which a command and everything that it started can be reached, read from the
system.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from dataclasses import dataclass

import psutil
import pytest

# What tests set for themselves in tests/conftest.py, and a user has not.
SET_FOR_TESTS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}


@dataclass(frozen=True, order=True)
class Listener:
    """A TCP socket that listens, or a UDP socket that is bound to a port."""

    process: str
    address: str
    port: int

    @property
    def is_on_loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def listeners(root: int) -> set[Listener]:
    """Those of process ``root`` and of all its descendants, at this moment."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        for member in [process, *process.children(recursive=True)]:
            found |= _of(member)
    return found


def _of(process: psutil.Process) -> set[Listener]:
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended, or is a zombie
        title = (process.cmdline() or [process.name()])[0]
        for connection in process.net_connections("inet"):
            is_open = (
                connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
            )
            if is_open and not connection.raddr:
                found.add(
                    Listener(os.path.basename(title), connection.laddr.ip, connection.laddr.port)
                )
    return found


def user_environment(**more: str) -> dict[str, str]:
    """The environment of a user who sets nothing about Ray."""
    kept = {name: value for name, value in os.environ.items() if name not in SET_FOR_TESTS}
    return kept | more


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a file to another user"
)
