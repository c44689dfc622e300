"""The sockets on which a command and its descendants listen, as the system reports them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from dataclasses import dataclass

import psutil
import pytest

# Set in tests/conftest.py for tests only.
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
    """The listeners of process ``root`` and of all its descendants at this moment."""
    sockets = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        for member in [process, *process.children(recursive=True)]:
            sockets |= _listeners_of(member)
    return sockets


def _listeners_of(process: psutil.Process) -> set[Listener]:
    sockets = set()
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended, or is a zombie
        title = os.path.basename((process.cmdline() or [process.name()])[0])
        for connection in process.net_connections("inet"):
            is_udp = connection.type == socket.SOCK_DGRAM
            is_open = is_udp or connection.status == psutil.CONN_LISTEN
            if is_open and not connection.raddr:
                sockets.add(Listener(title, connection.laddr.ip, connection.laddr.port))
    return sockets


def user_environment(**more: str) -> dict[str, str]:
    """The environment of a user who sets nothing about Ray."""
    inherited = {name: value for name, value in os.environ.items() if name not in SET_FOR_TESTS}
    return inherited | more


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a file to another user"
)
