"""Background tasks: nobody awaits them, so a failure of theirs is logged by a callback."""

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
        on_failure: called with the error that ended it, once it is logged with its traceback.
    """
    task = asyncio.create_task(work, name=name)

    def look_for_failure(ended: asyncio.Task[T]) -> None:
        if ended.cancelled():
            return
        error = ended.exception()
        if error is None:
            return
        log.error("%s ended by an error: %s", name, error, exc_info=error)
        if on_failure is not None:
            on_failure(error)

    task.add_done_callback(look_for_failure)
    return task
