"""A worker applied to a stream of jobs in several processes, results in the order of the jobs."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from bi_ray.rows.rejects import DataError

T = TypeVar("T")
Job = TypeVar("Job")
_JOBS_PER_PROCESS = 2  # under way: enough that no process waits for the next job


def in_processes(
    make_worker: Callable[..., Callable[[Job], T]],
    settings: tuple[Any, ...],
    jobs: Iterable[Job],
    processes: int,
) -> Generator[tuple[Job, T], None, None]:
    """Every job with its result, in the order of the jobs; to be closed by who stops asking.

    Args:
        make_worker: called once in each process; what it returns is called with the jobs. A class
            of a module whose objects can be called, for example.
        settings: the arguments of ``make_worker``, all that the processes know.
        jobs: read as processes come free, some way ahead; an error of theirs comes in its turn.
        processes: how many work, started afresh (spawn).

    Raises:
        DataError: a process died.
    """
    source = _Jobs(jobs)
    waiting: deque[_Submitted] = deque()
    with ProcessPoolExecutor(
        processes, get_context("spawn"), _begin_process, (make_worker, settings)
    ) as pool:
        try:
            while True:
                while not source.is_over and len(waiting) < _JOBS_PER_PROCESS * processes:
                    submitted = source.submit_next(pool)
                    if submitted is not None:
                        waiting.append(submitted)
                if not waiting:
                    return
                job, result = waiting.popleft()
                yield job, result.result()
        except BrokenProcessPool as error:
            raise DataError(f"one of the processes died; try fewer than {processes}") from error
        finally:
            for _, result in waiting:
                result.cancel()


class _Submitted(NamedTuple):
    job: Any
    result: Future[Any]


class _Jobs:
    """Jobs that are submitted one by one; an error while reading one is the last result."""

    def __init__(self, jobs: Iterable[Any]) -> None:
        self._jobs: Iterator[Any] = iter(jobs)
        self.is_over = False

    def submit_next(self, pool: ProcessPoolExecutor) -> _Submitted | None:
        """Submit the next job, None if there is none."""
        try:
            job = next(self._jobs)
        except StopIteration:
            self.is_over = True
            return None
        except Exception as error:
            self.is_over = True
            failed = Future[Any]()
            failed.set_exception(error)
            return _Submitted(None, failed)
        return _Submitted(job, pool.submit(_work, job))


_worker: Callable[[Any], Any]  # of this process


def _begin_process(make_worker: Callable[..., Callable[[Any], Any]], settings: Any) -> None:
    """Leave Ctrl-C to the parent, end when the parent has ended in any way, and make the worker."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = make_worker(*settings)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(job: Any) -> Any:
    return _worker(job)
