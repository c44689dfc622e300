"""The extra columns of a user's rows: nothing reads them; they are kept beside demonstrations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

Row = Mapping[str, Any]  # of a user's file, whatever is in it

# The columns of a demonstration itself; and conversations, which would still hold the response that
# it replaces.
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
_MOST_KEYS = 200  # of an object: one with more is data of its own, not a struct


def extra_columns(row: Row) -> dict[str, Any]:
    """The columns of a row beside ``OWN``."""
    return {name: value for name, value in row.items() if name not in OWN}


class ExtraColumns:
    """The extra columns of a set, each with a type that all its values have.

    A column without such a type is JSON text.

    Args:
        rows: all of them; they are read once, and none is kept.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._types: dict[str, pa.DataType | None] = {}
        block: list[Row] = []
        for row in rows:
            block.append(row)
            if len(block) == _ROWS_PER_TYPE:
                self._widen_types(block)
                block = []
        self._widen_types(block)

    @property
    def schema(self) -> pa.Schema:
        """Name and type of each column, in the order in which they came."""
        fields = []
        for name, kind in self._types.items():
            fields.append((name, pa.string() if kind is None else kind))
        return pa.schema(fields)

    def of(self, row: Row) -> dict[str, Any]:
        """The values of a row, None where it lacks one."""
        values = {}
        for name, kind in self._types.items():
            value = row.get(name)
            values[name] = _as_text(value) if kind is None else value
        return values

    def _widen_types(self, rows: Iterable[Row]) -> None:
        """Let the type of each column take the values of further rows, too."""
        columns: dict[str, list[Any]] = {}
        for row in rows:
            for name, value in extra_columns(row).items():
                columns.setdefault(str(name), []).append(value)
        for name, values in columns.items():
            known = self._types.get(name, pa.null())
            self._types[name] = None if known is None else _common_type(known, values)


def _common_type(known: pa.DataType, values: list[Any]) -> pa.DataType | None:
    """A type for the values of type ``known`` and further ones; None: there is none."""
    try:
        schemas = [pa.schema([("", kind)]) for kind in (known, pa.array(values).type)]
        common: pa.DataType = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        pa.array(values, common)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return common if _can_be_saved(common) else None


def _can_be_saved(kind: pa.DataType) -> bool:
    """Whether Parquet has the type: it has no struct without fields, which ``{}`` would be."""
    if pa.types.is_struct(kind):
        has_fields = 0 < kind.num_fields <= _MOST_KEYS
        return has_fields and all(_can_be_saved(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _can_be_saved(kind.value_type)
    return True


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
