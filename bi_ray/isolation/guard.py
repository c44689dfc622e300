"""Calls that may hang, die or load for minutes, made in a process of their own that is ended from
outside.

An alarm inside the process cannot stop code that sets alarms of its own, swallows every exception,
or stays in C. So the caller watches the clock and kills the process, and the next call gets a new
one.

The process is started with ``subprocess`` and not with ``multiprocessing`` (nor a pool built on
it), which would import the caller's main script again: a script that calls ``bi_ray.check`` needs
no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import dill

from bi_ray.config import ConfigError, VerifierConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

_ATTEMPTS = 2  # of an item whose process died: once may be the machine, twice is the item
_FIRST_CALLS = 2  # that may take as long as loading, while none has come back
_POLL_S = 0.05  # between two looks at the process while it works
_END_S = 5  # for a killed process to be gone
_PAGE_BYTES = 64
_LOADING = 0  # position in the page of the flag that the call imports modules
_MESSAGE = 300  # characters of an error's message that are kept


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may take.

    Attributes:
        call_s: seconds per call.
        load_s: seconds for loading: the start of the process, and a call that imports modules.
        memory_mib: resident memory of the process.
    """

    call_s: float
    load_s: float
    memory_mib: int

    @classmethod
    def of(cls, config: VerifierConfig) -> Limits:
        """The limits of a run."""
        return cls(config.sample_timeout_s, config.start_timeout_s, config.memory_mib)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call gave no result.

    Attributes:
        reason: one line.
        where: file and line of the user's code that raised, "" where nothing was raised.
    """

    reason: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.where})" if self.where else self.reason


class CallError(ValueError):
    """Raised by the function for an item without a result: the message is the whole reason, and
    names the part.
    """


class GuardError(RuntimeError):
    """A process that does not start for reasons of the machine."""


class _Ended(Exception):
    """A call took too long and its process has to be killed; the message is the fault's reason."""


class _Died(Exception):
    """A process was lost during a call, which may not be the call's fault; the message says how."""


class Guard(Generic[Item, Result]):
    """Calls a function item by item in another process. Not thread-safe.

    Args:
        load: called once in every new process; returns the function. It imports and warms up
            whatever the function needs, and may raise ConfigError. It is pickled, with objects of
            the main script by value.
        limits: of time and memory.
        first_call_loads: whether the function is a user's, whose first call may import libraries or
            load a model: the first call in a process then has ``load_s``. A new process repeats an
            earlier item first, uncounted, so that the calls that count are warm.
    """

    def __init__(
        self,
        load: Callable[[], Callable[[Item], Result]],
        limits: Limits,
        first_call_loads: bool = False,
    ) -> None:
        self._load = load
        self._limits = limits
        self._first_call_loads = first_call_loads
        self._slow_calls_left = _FIRST_CALLS
        self._warm_up: Item | None = None  # the slowest item that came back
        self._warm_up_s = -1.0
        self._process: _Process | None = None

    def __enter__(self) -> Guard[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, unless it runs. One that ended while it had nothing to do is replaced.

        Raises:
            ConfigError: from ``load``.
            GuardError: it was not ready within ``load_s``.
        """
        if self._process is not None and self._process.is_running():
            return
        self.close()
        self._process = _Process(self._load, self._limits)
        if self._warm_up is None:
            return
        try:
            self._process.send([self._warm_up])
            self._process.receive(self._limits.load_s, self._limits.load_s)
        except (_Ended, _Died):
            self._warm_up, self._warm_up_s = None, -1.0
            self.close()
            self.start()

    def close(self) -> None:
        """End the process, and those that it started."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def run(self, items: Sequence[Item]) -> Iterator[Result | Fault]:
        """The result for each item, or a fault, in order, as they come.

        Raises:
            ConfigError, GuardError: see ``start``.
        """
        position, deaths = 0, 0
        try:
            while position < len(items):
                try:
                    self.start()
                    assert self._process is not None
                    self._process.send(items[position:])
                    while position < len(items):
                        result = self._receive(items[position])
                        position, deaths = position + 1, 0
                        yield result
                except _Ended as error:
                    self.close()
                    position, deaths = position + 1, 0
                    yield Fault(str(error))
                except _Died as error:
                    self.close()
                    deaths += 1
                    if deaths == _ATTEMPTS:
                        position, deaths = position + 1, 0
                        yield Fault(f"{error} ({_ATTEMPTS} times)")
        finally:
            # the caller went away; results that it did not take must not reach the next one
            if position < len(items):
                self.close()

    def _receive(self, item: Item) -> Result | Fault:
        process = self._process
        assert process is not None
        began = time.monotonic()
        call_s = self._limits.call_s
        loading_s = max(call_s, self._limits.load_s) if self._first_call_loads else call_s
        is_first = process.calls == 0 and self._slow_calls_left > 0
        try:
            result: Result | Fault = process.receive(loading_s if is_first else call_s, loading_s)
        except _Ended:
            self._slow_calls_left -= is_first
            raise
        took_s = time.monotonic() - began
        if self._first_call_loads and took_s > self._warm_up_s and not isinstance(result, Fault):
            self._warm_up, self._warm_up_s = item, took_s
        return result


class _Process:
    """A process that calls the function, seen from outside.

    A shared page says what it is doing, so that a process that has to be killed can be asked no
    more: a flag that the call imports modules, then the name of the part that runs.
    """

    def __init__(self, load: Callable[[], Any], limits: Limits) -> None:
        self._limits = limits
        self.calls = 0
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as page:
            page.truncate(_PAGE_BYTES)
            self._page = mmap.mmap(page.fileno(), _PAGE_BYTES)
            paths = list(map(str, sys.path))
            code = (
                f"import sys; sys.path[:] = {paths!r}; from bi_ray.isolation.guard import serve; "
                f"serve({theirs.fileno()}, {page.fileno()}, {os.getpid()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), page.fileno()),
                start_new_session=True,  # what it starts is killed with it
            )
        self._connection: Connection = Connection(ours.detach())
        try:
            self._start(load)
        except BaseException:
            self.close()
            raise

    def _start(self, load: Callable[[], Any]) -> None:
        try:
            self._connection.send_bytes(dill.dumps(load))
            refusal = self._wait(self._limits.load_s, self._limits.load_s)
        except (_Ended, _Died, OSError) as error:
            raise GuardError(f"the process that judges responses did not start: {error}") from error
        if refusal is not None:
            raise ConfigError(refusal)

    def is_running(self) -> bool:
        """Whether the process has not ended, as it does with the thread that started it (see
        ``_follow``).
        """
        return self._process.poll() is None

    def send(self, items: Sequence[Any]) -> None:
        """Hand over the next items; each has its result in its turn."""
        try:
            self._connection.send(list(items))
        except OSError as error:
            raise _Died(self._how_it_ended()) from error

    def receive(self, limit_s: float, loading_s: float) -> Any:
        """The next result.

        Args:
            limit_s: how long it may take.
            loading_s: how long it may take if it imports modules.

        Raises:
            _Ended: it took too long.
            _Died: the process is gone, or has to go since it takes too much memory.
        """
        result = self._wait(limit_s, loading_s)
        self.calls += 1
        return result

    def _wait(self, limit_s: float, loading_s: float) -> Any:
        began = time.monotonic()
        while not self._is_readable():
            allowed_s = loading_s if self._page[_LOADING] else limit_s
            if time.monotonic() - began > allowed_s:
                loading = (
                    ", loading included (verifier.start_timeout_s)"
                    if allowed_s > self._limits.call_s
                    else ""
                )
                raise _Ended(f"the {self._part()} took longer than {allowed_s:g} s{loading}")
            if _resident_mib(self._process.pid) > self._limits.memory_mib:
                limit = f"{self._limits.memory_mib} MiB (verifier.memory_mib)"
                # earlier calls may have left some
                raise _Died(f"the {self._part()} took more memory than {limit}")
        try:
            return self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise _Died(self._how_it_ended()) from error

    def _is_readable(self) -> bool:
        if self._connection.poll(_POLL_S):
            return True
        if self._process.poll() is None or self._connection.poll(0):
            return False
        raise _Died(self._how_it_ended())  # something that it forked holds the connection open

    def _part(self) -> str:
        return self._page[_LOADING + 1 :].rstrip(b"\0").decode() or "judgment of the response"

    def _how_it_ended(self) -> str:
        part = self._part()
        self._kill()
        code = self._process.returncode
        if code is None:
            how = "without an exit code"
        elif code < 0:
            how = f"by {_signal_name(-code)}"
        else:
            how = f"with exit code {code}"
        return f"the {part} ended its process {how}"

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def close(self) -> None:
        """End the process, and those that it started."""
        self._kill()
        self._connection.close()
        self._page.close()


def _resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * mmap.PAGESIZE / 2**20


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- inside the process

_own_page: mmap.mmap | None = None


def doing(part: str) -> None:
    """Name the part of a call that begins now, for the reason why it failed. Does nothing outside a
    guarded process.
    """
    if _own_page is not None:
        text = part.encode()[: _PAGE_BYTES - _LOADING - 1]
        _own_page[_LOADING + 1 :] = text.ljust(_PAGE_BYTES - _LOADING - 1, b"\0")


def serve(connection_fd: int, page_fd: int, parent: int) -> None:
    """What the process runs: load the function, then call it for every item that comes."""
    global _own_page
    _follow(parent)
    connection: Connection = Connection(connection_fd)
    _own_page = mmap.mmap(page_fd, _PAGE_BYTES)
    os.close(page_fd)
    doing("loading of the code that judges responses")
    try:
        call = dill.loads(connection.recv_bytes())()
    except ConfigError as error:
        connection.send(str(error))
        return
    except Exception as error:
        connection.send(
            f"the code that judges responses cannot be loaded: {Fault(_message(error), _where(error))}"
        )
        return
    connection.send(None)
    sys.addaudithook(_notice_imports)
    while True:
        try:
            items = connection.recv()
        except EOFError:
            return
        for item in items:
            connection.send(_outcome(call, item))


def _follow(parent: int) -> None:
    """End with the parent, and be the first that the kernel takes when memory runs out.

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


def _outcome(call: Callable[[Any], Any], item: Any) -> Any:
    assert _own_page is not None
    own_pid = os.getpid()
    _own_page[:] = bytes(_PAGE_BYTES)
    try:
        return call(item)
    except CallError as error:
        return Fault(str(error))
    except BaseException as error:
        part = _own_page[_LOADING + 1 :].rstrip(b"\0").decode() or "judgment of the response"
        return Fault(f"the {part} raised {_message(error)}", _where(error))
    finally:
        # an alarm that was left behind must not ring in the next call
        signal.setitimer(signal.ITIMER_REAL, 0)
        if os.getpid() != own_pid:  # the call forked, and this is the copy
            os._exit(0)


_imported: set[str] = set()


def _notice_imports(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: flag a call that imports what this process has not seen yet. Such a call is
    loading.
    """
    if event != "import" or not arguments or arguments[0] in _imported:
        return
    _imported.add(arguments[0])
    if _own_page is not None and threading.current_thread() is threading.main_thread():
        _own_page[_LOADING] = 1


def _message(error: BaseException) -> str:
    """Type and message of an error in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a __str__ of the user
        text = "(its message cannot be read)"
    return f"{type(error).__name__}: {text[:_MESSAGE]}"


def _where(error: BaseException) -> str:
    """File and line in the user's code: of the last frame that is neither ours nor a library's,
    where there is one.
    """
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)
    ]
    if not frames:
        return ""
    own = [frame for frame in frames if not _is_library(frame.filename)]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno}"


def _is_ours(filename: str) -> bool:
    return filename.startswith(str(Path(__file__).parent))


def _is_library(filename: str) -> bool:
    standard = os.path.dirname(os.__file__)
    return filename.startswith((standard, "<")) or "site-packages" in filename
