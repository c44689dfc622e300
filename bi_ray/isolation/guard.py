"""Calls that may hang, die or load for minutes, made in a process of their own: the parent's side.

An alarm inside the process cannot stop code that sets alarms of its own, swallows every exception,
or stays in C. So the caller watches the clock and kills the process, and the next call gets a new
one.

The process is started with ``subprocess`` and not with ``multiprocessing`` (or a pool built on it),
which would import the caller's main script again: a script that calls ``bi_ray.check`` needs no
``if __name__ == "__main__"``.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import dill

from bi_ray.config.base import ConfigError
from bi_ray.config.evaluation import VerifierConfig
from bi_ray.isolation.child import Fault, Page

Item = TypeVar("Item")
Result = TypeVar("Result")

_ATTEMPTS = 2  # at an item whose process died: once may be the machine, twice is the item
_FIRST_CALLS = 2  # calls that may take as long as loading, while none has returned
_POLL_S = 0.05  # between two checks of the process while it works
_END_S = 5  # for a killed process to be gone


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a call.

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


class GuardError(RuntimeError):
    """The process does not start, for reasons of the machine."""


class _Ended(Exception):
    """A call took too long, so its process has to be killed; the message is the fault's reason."""


class _Died(Exception):
    """A process was lost during a call, perhaps not by the call's fault; the message says how."""


class Guard(Generic[Item, Result]):
    """Calls a function item by item in another process. Not thread-safe.

    Args:
        load: called once in every new process; returns the function. It imports and warms up
            whatever the function needs, and may raise ConfigError. It is pickled, with objects of
            the main script by value.
        limits: limits of time and memory.
        first_call_loads: whether the function is a user's, whose first call may import libraries or
            load a model: the first call in a process then has ``load_s``. A new process first
            repeats an earlier item, without counting it, so that the calls that count are warm.
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
        self._warm_up: Item | None = None  # the item that took longest
        self._warm_up_s = -1.0
        self._process: _Process | None = None

    def __enter__(self) -> Guard[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, unless it runs; one that ended while idle is replaced.

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
                    for result in self._results(items[position:]):
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

    def _results(self, items: Sequence[Item]) -> Iterator[Result | Fault]:
        """The results of one process.

        Raises:
            _Ended, _Died: the item in its turn has no result.
        """
        self.start()
        process = self._process
        assert process is not None
        process.send(items)
        for item in items:
            yield self._receive(process, item)

    def _receive(self, process: _Process, item: Item) -> Result | Fault:
        call_s = loading_s = self._limits.call_s
        if self._first_call_loads:
            loading_s = max(call_s, self._limits.load_s)
        is_first = process.calls == 0 and self._slow_calls_left > 0
        began = time.monotonic()
        try:
            result: Result | Fault = process.receive(loading_s if is_first else call_s, loading_s)
        except _Ended:
            self._slow_calls_left -= is_first
            raise
        duration_s = time.monotonic() - began
        is_slowest = duration_s > self._warm_up_s and not isinstance(result, Fault)
        if self._first_call_loads and is_slowest:
            self._warm_up, self._warm_up_s = item, duration_s
        return result


class _Process:
    """A process that calls the function, seen from outside.

    It writes what it is doing to a shared page (``child.Page``), since a process that has to be
    killed cannot be asked.
    """

    def __init__(self, load: Callable[[], Any], limits: Limits) -> None:
        self._limits = limits
        self.calls = 0
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as page:
            self._page = Page.create(page.fileno())
            paths = list(map(str, sys.path))
            code = (
                f"import sys; sys.path[:] = {paths!r}; from bi_ray.isolation.child import serve; "
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
        """Whether the process runs; it ends with the thread that started it (``child._follow``)."""
        return self._process.poll() is None

    def send(self, items: Sequence[Any]) -> None:
        """Hand over the next items; their results come in the same order."""
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
            _Died: the process is gone, or has to be killed since it takes too much memory.
        """
        result = self._wait(limit_s, loading_s)
        self.calls += 1
        return result

    def _wait(self, limit_s: float, loading_s: float) -> Any:
        began = time.monotonic()
        while not self._is_readable():
            allowed_s = loading_s if self._page.is_loading else limit_s
            if time.monotonic() - began > allowed_s:
                raise _Ended(self._time_fault(allowed_s))
            if _resident_mib(self._process.pid) > self._limits.memory_mib:
                # perhaps of earlier calls, which may have left some
                limit = f"{self._limits.memory_mib} MiB (verifier.memory_mib)"
                raise _Died(f"the {self._page.part} took more memory than {limit}")
        try:
            return self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise _Died(self._how_it_ended()) from error

    def _time_fault(self, allowed_s: float) -> str:
        fault = f"the {self._page.part} took longer than {allowed_s:g} s"
        if allowed_s > self._limits.call_s:
            fault += ", loading included (verifier.start_timeout_s)"
        return fault

    def _is_readable(self) -> bool:
        if self._connection.poll(_POLL_S):
            return True
        if self._process.poll() is None or self._connection.poll(0):
            return False
        raise _Died(self._how_it_ended())  # something that it forked holds the connection open

    def _how_it_ended(self) -> str:
        part = self._page.part
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
    """Resident memory of a process in MiB; 0 where the system does not report it."""
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
