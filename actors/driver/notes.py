"""What the driver's process warns of, shown by the command: Ray keeps an actor's log on its node."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

_MOST_NOTES = 1000
_POLL_S = 2.0
_ANSWER_S = 10.0
log = logging.getLogger(__name__)


class NoteKeeper(logging.Handler):
    """Keeps the newest warnings of this project's actors; lives in the process that logs them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._notes: deque[str] = deque(maxlen=_MOST_NOTES)
        self._count = 0

    def install(self) -> None:
        """Keep what is logged from now on."""
        logging.getLogger("actors").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line; a repetition of the last one is left out."""
        note = record.getMessage()
        if not self._notes or note != self._notes[-1]:
            self._notes.append(note)
            self._count += 1

    def after(self, seen: int) -> tuple[int, list[str]]:
        """How many notes there were so far, and those after the first ``seen``."""
        fresh = min(self._count - seen, len(self._notes))
        return self._count, list(self._notes)[len(self._notes) - fresh :]


class NoteFollower:
    """Shows the notes of a driver as they come, from a thread of the command.

    Args:
        driver: the actor; its method ``notes`` is ``NoteKeeper.after``.
        show: shows one line.
    """

    def __init__(self, driver: Any, show: Callable[[str], None]) -> None:
        self._driver = driver
        self._show = show
        self._seen = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show what has come last, and end."""
        self._stop.set()
        self._thread.join(2 * _ANSWER_S)

    def _follow(self) -> None:
        while True:
            is_last = self._stop.wait(_POLL_S)
            try:
                self._seen, notes = ray.get(
                    self._driver.notes.remote(self._seen), timeout=_ANSWER_S
                )
                for note in notes:
                    self._show(note)
            except Exception:  # the driver starts, is late or died: whoever works with it says so
                log.debug("no notes of the driver", exc_info=True)
            if is_last:
                return
