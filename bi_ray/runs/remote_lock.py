"""The lock of a run at a URI: who works on it, renewed while they do."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from bi_ray.files.errors import RunError
from bi_ray.runs.lock import RunLocked
from bi_ray.runs.process import this_process
from bi_ray.runs.remote_files import RemoteFiles

log = logging.getLogger(__name__)

LOCK = "lock.json"
RENEW_S = 30.0
# A lock that was not renewed for this long is nobody's; clocks may differ by a minute or two.
STALE_S = 180.0
# Between writing a lock and looking whose it is: two that begin together see each other.
_SETTLE_S = 1.0
_READS = 5


class Holder(BaseModel):
    """Content of ``lock.json``.

    Attributes:
        owner: machine and working copy.
        process: the process there, see ``this_process``.
        token: new each time that the lock is taken.
        time: when it was renewed, by the holder's clock, in seconds since 1970; for people to read.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    owner: str
    process: str
    token: str
    time: FiniteFloat

    def __str__(self) -> str:
        return f"process {self.process} on {self.owner}"


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file at a URI.

    Attributes:
        holder: who has it; None where the file cannot be read as a lock.
        modified: when it was renewed, by the store's clock, in seconds since 1970.
    """

    holder: Holder | None
    modified: float

    def is_fresh(self, now: float) -> bool:
        """Whether it was renewed recently enough to count, at the time ``now``."""
        return now - self.modified < STALE_S

    def __str__(self) -> str:
        return str(self.holder or "an unknown process (its lock cannot be read)")


class RemoteLock:
    """A lock file at a URI, renewed by a thread; it holds as long as it was renewed lately.

    The time is that of the store, so nobody's clock matters. Object stores have no locks, so two
    that begin at the same moment are told apart by who wrote last. Whoever lost the lock, having
    been cut off for longer than ``STALE_S``, notices before it sends anything.

    Args:
        remote: where.
        owner: who; one that finds a lock of the same owner takes it over at once.
    """

    def __init__(self, remote: RemoteFiles, owner: str) -> None:
        self._remote = remote
        self._owner = owner
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, daemon=True)

    def take(self) -> None:
        """Take the lock and begin to renew it.

        Raises:
            RunLocked: somebody else has it.
        """
        lock = read_lock(self._remote)
        if lock is not None:
            self._refuse_to_replace(lock)
        self._write()
        time.sleep(_SETTLE_S)
        self.check()
        self._thread.start()

    def _refuse_to_replace(self, lock: Lock) -> None:
        """Raises RunLocked where a lock is another owner's and was renewed lately."""
        holder = lock.holder
        if holder is not None and holder.owner == self._owner:
            return
        if lock.is_fresh(self._remote.now()):
            raise self._locked_by(str(lock))
        if holder is None:
            log.warning(
                "%s: %s cannot be read and was not renewed lately; it is replaced",
                self._remote.name,
                LOCK,
            )

    def check(self) -> None:
        """Make sure that the lock is still ours.

        Raises:
            RunLocked: it is not.
        """
        lock = read_lock(self._remote)
        if lock is None:
            raise self._locked_by("nobody: the lock was removed")
        if lock.holder is None or lock.holder.token != self._token:
            raise self._locked_by(str(lock))

    def release(self) -> None:
        """Remove the lock, if it is ours.

        If the store does not answer, the lock expires: no error of here masks why the run ended.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self.check()
            self._remote.remove_file(LOCK)
        except RunError:
            log.warning("the lock of %s was not removed", self._remote.name, exc_info=True)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self.check()
                self._write()
            except RunLocked:
                # The next file that is sent fails for it.
                log.warning("the lock of %s was lost", self._remote.name, exc_info=True)
                return
            except Exception:  # whatever it is, an unrenewed lock is worse than another attempt
                log.warning(
                    "the lock of %s could not be renewed; trying again",
                    self._remote.name,
                    exc_info=True,
                )

    def _write(self) -> None:
        holder = Holder(
            owner=self._owner, process=this_process(), token=self._token, time=time.time()
        )
        self._remote.write(LOCK, holder.model_dump_json())

    def _locked_by(self, holder: str) -> RunLocked:
        return RunLocked(
            f"{self._remote.name} is in use by {holder}: wait for it, or choose another run; after "
            f"a crash elsewhere it is released after {STALE_S:g} s"
        )


def read_lock(remote: RemoteFiles) -> Lock | None:
    """The lock file at a URI, None if there is none."""
    modified = 0.0
    for _ in range(_READS):
        written = remote.modified(LOCK)
        if written is None:
            return None
        modified = written
        with suppress(ValidationError):
            return Lock(Holder.model_validate_json(remote.read(LOCK)), modified)
        time.sleep(_SETTLE_S / _READS)  # it may have been replaced while it was read
    return Lock(None, modified)
