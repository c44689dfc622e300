"""A function applied to a stream of items in several processes, results in the order of the items."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from bi_ray.rows.rejects import DataError

T = TypeVar("T")

Job = TypeVar("Job")


def in_processes(
    work: Callable[[Job], T],
    jobs: Iterable[Job],
    processes: int,
    begin: Callable[..., None],
    settings: tuple[Any, ...],
) -> Generator[tuple[Job, T], None, None]:
    """Every job with what ``work`` makes of it, in order; to be closed by who stops asking.

    Args:
        work: a function of a module, as ``begin`` is.
        jobs: read as processes come free, some way ahead; an error of theirs comes in its turn.
        processes: how many work, started afresh (spawn).
        begin: called in each process first, with ``settings``.
        settings: all that the processes know.

    Raises:
        DataError: a process died.
    """
    source: Iterator[Job] | None = iter(jobs)
    with ProcessPoolExecutor(
        processes, get_context("spawn"), _begin_process, (begin, settings)
    ) as pool:
        waiting: deque[tuple[Any, Future[T]]] = deque()
        try:
            while True:
                # enough that nobody waits for the next job
                while source is not None and len(waiting) < 2 * processes:
                    try:
                        job = next(source)
                    except StopIteration:
                        source = None
                    except Exception as error:
                        source, failed = None, Future[T]()
                        failed.set_exception(error)
                        waiting.append((None, failed))
                    else:
                        waiting.append((job, pool.submit(work, job)))
                if not waiting:
                    return
                job, made = waiting.popleft()
                yield job, made.result()
        except BrokenProcessPool as error:
            raise DataError(f"one of the processes died; try fewer than {processes}") from error
        finally:
            for _, made in waiting:
                made.cancel()


def _begin_process(begin: Callable[..., None], settings: tuple[Any, ...]) -> None:
    """Leave Ctrl-C to the parent, end when the parent has ended in whatever way, and begin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    begin(*settings)
