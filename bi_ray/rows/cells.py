"""The cells of a user's row, whoever wrote them: JSON, Parquet, `datasets`, pandas or numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

_MISSING = ("NAType", "NaTType")  # pandas' own; pandas itself need not be installed
_MOST_ZEROS = 30  # written out, before a number keeps its exponent
_SHOWN = 40  # characters of a value that a reason quotes
_TIMES_OF_NUMPY = ("datetime64", "timedelta64")
_SHORT_FLOATS = ("float16", "float32", "longdouble")
_KINDS = {  # in the words of JSON
    list: "a list",
    tuple: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
}


class RowError(ValueError):
    """A row that cannot be used; the message is the reason, without file and line."""


def cell_text(value: object, field: str) -> str | None:
    """A cell as the text that an answer is compared with; None where it is empty.

    A number is written as people write it: 452.0 (which a column of floats makes of 452) is "452",
    and 1e21 has all its digits. NaN is empty, as NULL is.

    Args:
        value: of JSON, Python, numpy, pandas or Arrow.
        field: what the cell is called.

    Raises:
        RowError: it is neither text nor a number, or is infinite.
    """
    if is_missing(value):
        return None
    if isinstance(value, bytes | bytearray):
        return _decoded(bytes(value), field)
    if isinstance(value, str | bool | Fraction):
        return str(value)
    if isinstance(value, int):
        return _whole_number(value, field)
    if isinstance(value, float | Decimal):
        return _number(value, field)
    if _is_scalar(value):
        return _scalar(value, field)
    raise _wrong_kind(value, field)


def text_cell(value: object, field: str) -> str | None:
    """A cell that holds text, or is empty.

    Raises:
        RowError: it holds anything else.
    """
    if isinstance(value, str | bytes | bytearray):
        return cell_text(value, field)
    if is_missing(value):
        return None
    raise RowError(f"{field} has to be text, found {describe(value)}")


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, NaN, or pandas' NA and NaT."""
    if value is None or type(value).__name__ in _MISSING:
        return True
    if isinstance(value, Decimal):
        return value.is_nan()  # ``math.isnan`` raises over a signaling one
    return isinstance(value, float) and math.isnan(value)


def plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with lists for arrays, at every depth; all else is as it was.

    Raises:
        RowError: a text in it is not valid Unicode (half a surrogate pair), so nothing could write
            it again.
    """
    plain: dict[str, Any] = {}
    for name, value in row.items():
        column = _valid_text(str(name), "a column's name")
        plain[column] = _plain(value, str(name))
    return plain


def _plain(value: Any, field: str) -> Any:
    if isinstance(value, str):
        return _valid_text(value, field)
    if isinstance(value, Mapping):
        return {_plain(name, field): _plain(inner, field) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, field) for inner in value]
    if _is_array(value):
        return _plain(value.tolist(), field)
    return value


def _is_array(value: object) -> bool:
    """Whether a value is an array of numpy or torch, of one dimension or more."""
    return bool(getattr(value, "shape", None)) and hasattr(value, "tolist")


def _is_scalar(value: object) -> bool:
    """Whether a value is a scalar of numpy or torch."""
    return getattr(value, "shape", None) == () and hasattr(value, "item")


def _valid_text(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise RowError(f"{field!a} is not valid Unicode: half a surrogate pair, {code}") from error
    return text


def _decoded(value: bytes, field: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"{field} has bytes that are not UTF-8 text: {value[:40]!r}") from error


def _whole_number(value: int, field: str) -> str:
    try:
        return str(int(value))
    except ValueError as error:  # more digits than Python writes
        raise RowError(f"{field} is a number with too many digits: {error}") from error


def _number(value: float | Decimal, field: str) -> str:
    if math.isinf(value):
        raise RowError(f"{field} has to be a finite number, found {value}")
    number = Decimal(str(value))  # the digits that tell it from its neighbors, and no more
    exponent = int(number.as_tuple().exponent)
    zeros = max(abs(number.adjusted()), exponent)
    if zeros > _MOST_ZEROS:
        return str(value)
    digits = format(number, "f")
    if "." in digits:
        digits = digits.rstrip("0").removesuffix(".")
    return "0" if digits == "-0" else digits


def _scalar(value: Any, field: str) -> str | None:
    kind = type(value).__name__
    if kind in _TIMES_OF_NUMPY:  # of some units, `item` makes plain numbers
        if str(value) == "NaT":
            return None
        raise _wrong_kind(value, field)
    if kind in _SHORT_FLOATS:  # as a Python float it would get more digits
        return cell_text(Decimal(str(value)), field)
    inner = value.item()
    if type(inner) is type(value):
        raise _wrong_kind(value, field)
    return cell_text(inner, field)


def _wrong_kind(value: object, field: str) -> RowError:
    return RowError(f"{field} has to be text or a number, found {describe(value)}")


def describe(value: object) -> str:
    """A value of the wrong kind, in the words of JSON, and its start."""
    kind = _KINDS.get(type(value), type(value).__name__)
    if isinstance(value, Mapping):
        kind = "an object"
    if isinstance(value, date | time | timedelta) or kind in _TIMES_OF_NUMPY:
        return f"a date or time: {value}; write it as text, as responses have to"
    try:
        return f"{kind}: {repr(value)[:_SHOWN]}"
    except ValueError:  # it has a whole number of more digits than Python writes
        return kind
