"""JSON and JSON lines read against a type; an error names the file, the line and the field."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from bi_ray.files.errors import RunError, in_words

T = TypeVar("T")


def parse_record(text: bytes | str, kind: type[T], where: str, remedy: str) -> T:
    """The text of a JSON file as an object of ``kind``.

    Args:
        text: of the file, or of one line of it.
        kind: a dataclass, a TypedDict, or a type such as ``dict[str, int]``. Fields that it does
            not have are dropped, or kept where ``kind`` allows them.
        where: the file, and the line, for the message.
        remedy: how to make the file again, for the message.

    Raises:
        RunError: it is damaged; one line with ``where``, the fault and the remedy.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        return cast(T, _adapter(cast(Hashable, kind)).validate_python(value))
    except UnicodeDecodeError as error:
        raise _damaged(where, "not UTF-8", remedy) from error
    except ValidationError as error:
        raise _damaged(where, _first_fault(error), remedy) from error
    except (ValueError, RecursionError) as error:
        reason = "not JSON" if text.strip() else "empty"
        raise _damaged(where, reason, remedy) from error


def parse_jsonl(
    text: bytes | str, kind: type[T], where: str, remedy: str, growing: bool = False
) -> list[T]:
    """The text of a file of JSON lines as objects of ``kind``.

    Args:
        text: of the file.
        kind: see ``parse_record``.
        where: the file, for the message.
        remedy: how to make the file again, for the message.
        growing: another process may be writing the file: a last line without an end is dropped.

    Raises:
        RunError: a line is damaged.
    """
    content = text.encode() if isinstance(text, str) else text
    *lines, rest = content.split(b"\n")
    if rest and not growing:
        raise _damaged(where, f"line {len(lines) + 1} is cut off", remedy)
    return [
        parse_record(line, kind, f"{where}, line {number},", remedy)
        for number, line in enumerate(lines, start=1)
    ]


def read_bytes(path: Path, remedy: str) -> bytes:
    """The content of a file.

    Raises:
        RunError: it is missing, with ``remedy``, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {remedy}") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {in_words(error)}") from error


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    field = ".".join(map(str, fault["loc"])) or "it"
    return f"{field}: {fault['msg'].lower()}"


def _damaged(where: str, reason: str, remedy: str) -> RunError:
    return RunError(f"{where} is damaged ({reason}): {remedy}")
