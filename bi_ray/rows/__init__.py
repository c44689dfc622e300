"""Rows of a user's files: good ones are read, bad ones are kept with file, line and reason.

A reader is any function from a row (a mapping) to what it wants of the row; it raises ``RowError``
for one that cannot be used. ``read_rows`` feeds it, and a ``Rejects`` collects what it refused.
"""

from __future__ import annotations

from bi_ray.rows.cells import RowError
from bi_ray.rows.files import file_digest, read_rows
from bi_ray.rows.rejects import REJECTS, DataError, Place, Reject, Rejects, RowValues

__all__ = [
    "REJECTS",
    "DataError",
    "Place",
    "Reject",
    "Rejects",
    "RowError",
    "RowValues",
    "file_digest",
    "read_rows",
]
