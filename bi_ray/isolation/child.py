"""Calls that may hang, die or load for minutes: the side of the process that makes them.

``guard`` starts the process and watches it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dill

from bi_ray.config.base import ConfigError

_MESSAGE = 300  # characters of an error's message that are kept
_PACKAGE = Path(__file__).parents[1]  # bi_ray


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call gave no result.

    Attributes:
        reason: the reason, in one line.
        where: file and line of the user's code that raised, "" where nothing was raised.
    """

    reason: str
    where: str = ""

    def __str__(self) -> str:
        if self.where:
            return f"{self.reason} ({self.where})"
        return self.reason


class CallError(ValueError):
    """Raised by the function for an item without a result; the message is the whole reason."""


class Page:
    """A page of shared memory in which the process writes what it is doing.

    Its first byte is a flag that the call imports modules, the others are the name of the part that
    runs.
    """

    _BYTES = 64

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self._BYTES)

    @classmethod
    def create(cls, descriptor: int) -> Page:
        """A new page in an empty file."""
        os.ftruncate(descriptor, cls._BYTES)
        return cls(descriptor)

    def clear(self) -> None:
        """Begin a call."""
        self._memory[:] = bytes(self._BYTES)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    @property
    def is_loading(self) -> bool:
        """Whether the call imports modules."""
        return self._memory[0] != 0

    def set_loading(self) -> None:
        """Flag that the call imports modules."""
        self._memory[0] = 1

    @property
    def part(self) -> str:
        """Name of the part of the call that runs."""
        return self._memory[1:].rstrip(b"\0").decode() or "judgment of the response"

    @part.setter
    def part(self, name: str) -> None:
        length = self._BYTES - 1
        self._memory[1:] = name.encode()[:length].ljust(length, b"\0")


_own_page: Page | None = None  # of this process, where it is a guarded one


def doing(part: str) -> None:
    """Name the part of a call that begins now, for the message if it fails.

    Does nothing outside a guarded process.
    """
    if _own_page is not None:
        _own_page.part = part


def serve(connection_fd: int, page_fd: int, parent: int) -> None:
    """The main function of the process: load the function, then call it for every item.

    Args:
        connection_fd: file descriptor of the connection to the parent.
        page_fd: file descriptor of the ``Page``.
        parent: identifier of the parent's process.
    """
    global _own_page
    _follow(parent)
    connection: Connection = Connection(connection_fd)
    _own_page = Page(page_fd)
    os.close(page_fd)
    doing("loading of the code that judges responses")
    try:
        call = dill.loads(connection.recv_bytes())()
    except ConfigError as error:
        connection.send(str(error))
        return
    except Exception as error:
        fault = Fault(_message(error), _where(error))
        connection.send(f"the code that judges responses cannot be loaded: {fault}")
        return
    connection.send(None)
    sys.addaudithook(_notice_imports)
    while True:
        try:
            items = connection.recv()
        except EOFError:
            return
        for item in items:
            connection.send(_outcome(call, item, _own_page))


def _follow(parent: int) -> None:
    """End with the parent, and be the first that the kernel kills when memory runs out.

    Linux sends the signal when the parent's thread ends that started this process, not only when
    the parent does.
    """
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _outcome(call: Callable[[Any], Any], item: Any, page: Page) -> Any:
    own_pid = os.getpid()
    page.clear()
    try:
        return call(item)
    except CallError as error:
        return Fault(str(error))
    except BaseException as error:
        return Fault(f"the {page.part} raised {_message(error)}", _where(error))
    finally:
        # an alarm that was left behind must not ring in the next call
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.getpid() != own_pid:  # the call forked, and this is the copy
            os._exit(0)


_imported: set[str] = set()


def _notice_imports(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook that flags a call that imports a module which is new in this process."""
    if event != "import" or not arguments or arguments[0] in _imported:
        return
    _imported.add(arguments[0])
    if _own_page is not None and threading.current_thread() is threading.main_thread():
        _own_page.set_loading()


def _message(error: BaseException) -> str:
    """Type and message of an error in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a __str__ of the user
        text = "(its message cannot be read)"
    return f"{type(error).__name__}: {text[:_MESSAGE]}"


def _where(error: BaseException) -> str:
    """File and line that raised in the user's code, or else in a library's; "" where in neither."""
    place = ""
    is_users = False
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_ours(frame.filename):
            continue
        # the last frame of the user's code, or the last one where there is none
        if _is_library(frame.filename) and is_users:
            continue
        is_users = not _is_library(frame.filename)
        place = f"{frame.filename}:{frame.lineno}"
    return place


def _is_ours(filename: str) -> bool:
    return Path(filename).is_relative_to(_PACKAGE)


def _is_library(filename: str) -> bool:
    standard = os.path.dirname(os.__file__)
    return filename.startswith((standard, "<")) or "site-packages" in filename
