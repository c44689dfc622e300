"""Rows that cannot be used: their place, the reason, and the file that keeps them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bi_ray.files.atomic import write_text

REJECTS = "rejects.jsonl"
_SHOWN = 200  # characters of a bad row that are kept: enough to find it
_REASON = 400  # and of a reason: it may quote the row
RowValues = Mapping[str, Any]  # of a user's file, whatever is in it


class DataError(ValueError):
    """Data cannot be used; the message names the row and says what to change."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is.

    Attributes:
        file: path of the file or data set.
        line: from 1; in Parquet and data sets the number of the row.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was left out.

    Attributes:
        file, line: see ``Place``.
        reason: why it cannot be used.
        row: the start of its content.
    """

    file: str
    line: int
    reason: str
    row: str


class Rejects:
    """The bad rows of one reading.

    Args:
        strict: the first one is an error.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.rows: list[Reject] = []

    def add(self, place: Place, reason: str, row: object = "") -> None:
        """Keep a bad row.

        Raises:
            DataError: ``strict``.
        """
        reason = reason if len(reason) <= _REASON else f"{reason[:_REASON]} ..."
        if self.strict:
            raise DataError(f"{place}: {reason} (strict stops at the first bad row)")
        self.rows.append(
            Reject(place.file, place.line, _writable(reason), _writable(_start_of(row)))
        )

    def write(self, path: Path) -> None:
        """Write a JSON line per bad row: ``file``, ``line``, ``reason``, ``row``."""
        text = "".join(
            json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in self.rows
        )
        write_text(path, text)

    def summary(self) -> list[str]:
        """A line per file and reason, the most frequent first.

        Reasons that differ only behind their colon are one.
        """
        counts: Counter[tuple[str, str]] = Counter()
        first_lines: dict[tuple[str, str], int] = {}
        for reject in self.rows:
            cause = reject.file, reject.reason.partition(":")[0]
            counts[cause] += 1
            first_lines.setdefault(cause, reject.line)
        lines = []
        for cause, count in counts.most_common():
            file, reason = cause
            rows = "row" if count == 1 else "rows"
            first = first_lines[cause]
            lines.append(f"{file}: {count} {rows} left out, {reason} (first: line {first})")
        return lines

    def explain(self, source: object, what: str) -> str:
        """Why nothing of ``source`` could be used: every reason, and the first one in full.

        Args:
            source: where the rows came from.
            what: the consequence, such as "nothing was written".
        """
        if not self.rows:
            return f"{source} has no rows; {what}"
        first = self.rows[0]
        lines = [f"no row of {source} could be used; {what}"]
        if len(self.rows) > 1:
            lines += self.summary()
        lines.append(f"line {first.line}: {first.reason}")
        return "\n".join(lines)


def _start_of(row: object) -> str:
    """The start of a row's content, whatever it holds."""
    if isinstance(row, str):
        return row[:_SHOWN]
    try:
        return json.dumps(row, ensure_ascii=False, default=str)[:_SHOWN]
    except (ValueError, TypeError, RecursionError):  # JSON has no form for it
        return f"({type(row).__name__})"


def _writable(text: str) -> str:
    """A text with half surrogate pairs escaped: no file takes them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
