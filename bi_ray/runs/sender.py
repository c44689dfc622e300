"""Checkpoints sent to a URI beside a training, which continues whatever fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from bi_ray.files.errors import RunError

log = logging.getLogger(__name__)
_MISSES = 3  # looks for checkpoints that may in a row meet a folder that is being renamed


class Sender:
    """A thread that sends checkpoints again and again, whatever fails.

    Args:
        send: sends what is new.
        what: begins the line about a failure.
        note: takes that line, once until sending works again.
        every_s: seconds between two attempts.
    """

    def __init__(
        self, send: Callable[[], None], what: str, note: Callable[[str], None], every_s: float
    ) -> None:
        self._send = send
        self._what = what
        self._note = note
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._misses = 0
        self._reported = False  # since sending worked last

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being sent."""
        self._stopped.set()
        self._thread.join()

    def attempt(self) -> None:
        """Send once; never raises."""
        try:
            self._send()
        except FileNotFoundError as error:
            # The training renames and removes its checkpoints meanwhile.
            self._misses += 1
            log.debug("a checkpoint went away while it was read", exc_info=True)
            if self._misses >= _MISSES:
                self._report(error)
        except Exception as error:
            self._report(error)
        else:
            self._misses, self._reported = 0, False

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.attempt()

    def _report(self, error: Exception) -> None:
        log.info("checkpoints were not sent", exc_info=error)
        if self._reported:
            return
        self._reported = True
        kind = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
        with suppress(OSError):  # a terminal that is gone
            self._note(f"{self._what}: {kind}{error}")
