"""Log lines with fields to filter by: ``... actor=driver worker=2 step=12 version=1.12``.

A field comes from the call itself (``log.warning(..., extra={"step": 12})``), else from the
``log_fields`` around it, else from the process (``start_logging``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FIELDS = ("actor", "worker", "step", "version")  # in the order in which a line has them
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PACKAGES = ("actors", "bi_ray")
_NO_FIELDS: dict[str, object] = {}  # never changed in place
_inherited: ContextVar[dict[str, object]] = ContextVar("log_fields", default=_NO_FIELDS)


@contextmanager
def log_fields(
    worker: int | None = None, step: int | None = None, version: object = None
) -> Iterator[None]:
    """Give these fields to every record that is logged inside, also by tasks that begin inside.

    Args:
        worker: number of a rollout worker, or rank of a learner.
        step: of RL.
        version: of the policy.
    """
    given = {"worker": worker, "step": step, "version": version}
    inner = {name: value for name, value in given.items() if value is not None}
    token = _inherited.set(_inherited.get() | inner)
    try:
        yield
    finally:
        _inherited.reset(token)


class FieldFilter(logging.Filter):
    """Completes the fields of each record; belongs on a handler and never drops a record.

    Args:
        fields: of the process.
    """

    def __init__(self, fields: dict[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields that the record does not have itself."""
        known = self._fields | _inherited.get()
        for name, value in known.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class FieldFormatter(logging.Formatter):
    """Appends the fields of a record to its message as ``name=value`` pairs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without its traceback."""
        pairs = [f"{name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name)]
        return " ".join([super().formatMessage(record), *pairs])


def start_logging(actor: str, worker: int | None = None) -> logging.Handler:
    """Write what this process logs to stderr, which Ray keeps in a file of the actor's node.

    A later call replaces an earlier one.

    Args:
        actor: what the process is: driver, worker, learner or analyzer.
        worker: number of a rollout worker, or rank of a learner, where it is known.

    Returns:
        the handler, on the root logger.
    """
    fields: dict[str, object] = {"actor": actor}
    if worker is not None:
        fields["worker"] = worker
    root = logging.getLogger()
    for earlier in list(root.handlers):
        if isinstance(earlier.formatter, FieldFormatter):
            root.removeHandler(earlier)
    handler = logging.StreamHandler()
    handler.addFilter(FieldFilter(fields))
    handler.setFormatter(FieldFormatter(_FORMAT))
    root.addHandler(handler)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    return handler
