"""Warnings of the driver's process, shown by the command: Ray keeps an actor's log on its node."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

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
        """The number of notes so far, and the notes after the first ``seen``."""
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
        self._thread = threading.Thread(target=self._follow, name="notes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show the last notes, and end."""
        self._stop.set()
        self._thread.join(2 * _ANSWER_S)

    def _follow(self) -> None:
        while True:
            is_last = self._stop.wait(_POLL_S)
            try:
                for note in self._fresh_notes():
                    self._show(note)
            except Exception:  # notes that cannot be shown must not end those that come later
                log.exception("notes of the driver could not be shown")
            if is_last:
                return

    def _fresh_notes(self) -> list[str]:
        """The notes since the last call; none while the driver starts, is late or died."""
        try:
            answer = ray.get(self._driver.notes.remote(self._seen), timeout=_ANSWER_S)
        except RayError:  # whoever works with the driver reports it
            log.debug("no notes of the driver", exc_info=True)
            return []
        self._seen, notes = answer
        return notes
