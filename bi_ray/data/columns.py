"""The columns of a user's rows that nothing here reads: kept beside a demonstration, each with one
type for the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

# What a demonstration has itself, and conversations: these would still hold the response that it
# replaces.
OWN = frozenset(
    {
        "id",
        "question",
        "answer",
        "response",
        "spans",
        "graph",
        "hash",
        "messages",
        "prompt",
        "completion",
    }
)
_ROWS_PER_TYPE = 1000  # whose values are looked at together
_MOST_KEYS = 200  # of an object: more are no columns of columns, but data of their own


def extra_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has beside ``OWN``."""
    return {name: value for name, value in row.items() if name not in OWN}


class ExtraColumns:
    """The further columns of a set, with a type for each that all its values have; JSON text where
    there is none.

    Args:
        rows: all of them, whole; they are read once, and none is kept.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._types: dict[str, pa.DataType | None] = {}
        waiting: dict[str, list[Any]] = {}
        for number, row in enumerate(rows, 1):
            for name, value in extra_columns(row).items():
                waiting.setdefault(str(name), []).append(value)
            if number % _ROWS_PER_TYPE == 0:
                self._look_at(waiting)
                waiting = {}
        self._look_at(waiting)

    @property
    def schema(self) -> pa.Schema:
        """Name and type of each, in the order in which they came."""
        return pa.schema(
            [(name, pa.string() if kind is None else kind) for name, kind in self._types.items()]
        )

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a row, None where it lacks one."""
        return {
            name: _as_text(row.get(name)) if kind is None else row.get(name)
            for name, kind in self._types.items()
        }

    def _look_at(self, columns: Mapping[str, list[Any]]) -> None:
        for name, values in columns.items():
            self._types[name] = _common(self._types.get(name, pa.null()), values)


def _common(known: pa.DataType | None, values: list[Any]) -> pa.DataType | None:
    """The type of a column so far that takes further values, too; None: there is no such type."""
    if known is None:
        return None
    try:
        fields = [pa.schema([("", one)]) for one in (known, pa.array(values).type)]
        found: pa.DataType = pa.unify_schemas(fields, promote_options="permissive").field(0).type
        pa.array(values, found)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return found if _can_be_saved(found) else None


def _can_be_saved(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields, which ``{}`` in every row would be."""
    if pa.types.is_struct(kind):
        return 0 < kind.num_fields <= _MOST_KEYS and all(
            _can_be_saved(field.type) for field in kind
        )
    return not pa.types.is_list(kind) or _can_be_saved(kind.value_type)


def _as_text(value: Any) -> str | None:
    return (
        value
        if value is None or isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str)
    )
