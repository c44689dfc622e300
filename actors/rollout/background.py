"""Work beside the caller that nobody waits for: its failure is seen all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


def start_watched(
    work: Coroutine[Any, Any, T],
    name: str,
    on_failure: Callable[[BaseException], None] | None = None,
) -> asyncio.Task[T]:
    """Run ``work`` as a task of its own.

    Args:
        work: what to do.
        name: what it is, for the log.
        on_failure: called with the error that ended it. The log has it with its traceback anyway.
    """
    task = asyncio.create_task(work, name=name)

    def look(ended: asyncio.Task[T]) -> None:
        if ended.cancelled():
            return
        error = ended.exception()
        if error is None:
            return
        log.error("%s ended by an error: %s", name, error, exc_info=error)
        if on_failure is not None:
            on_failure(error)

    task.add_done_callback(look)
    return task
