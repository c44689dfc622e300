"""JSON and JSON-lines files read against a type; what is damaged is named."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from bi_ray.files.atomic import T
from bi_ray.files.errors import RunError, in_words
from bi_ray.files.names import RUN_MARK, STAGES


def read_record(path: Path, kind: type[T], remedy: str | None = None) -> T:
    """A JSON file as an object of ``kind``: a dataclass, a TypedDict or a type such as ``dict[str,
    int]``.

    Args:
        path: the file.
        kind: its fields and their types; further fields are left out, or kept where ``kind`` allows
            them.
        remedy: what makes the file again, for the message; None: the stage that it belongs to.

    Raises:
        RunError: it is missing or damaged; one line that names the file and the remedy.
    """
    return parse_record(_content(path, remedy), kind, str(path), remedy or remedy_for(path))


def parse_record(text: bytes | str, kind: type[T], where: str, remedy: str) -> T:
    """The same of the text of a JSON file.

    Args:
        text: of the file, or of one line of it.
        kind: see ``read_record``.
        where: the file, and the line, for the message.
        remedy: what makes the file again, for the message.

    Raises:
        RunError: see ``read_record``.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        return cast(T, _adapter(cast(Hashable, kind)).validate_python(value))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"])) or "it"
        reason = f"{field}: {fault['msg'].lower()}"
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except (ValueError, RecursionError):
        reason = "not JSON" if text.strip() else "empty"
    raise RunError(f"{where} is damaged ({reason}): {remedy}")


def read_jsonl(path: Path, kind: type[T], growing: bool = False) -> list[T]:
    """The rows of a file of JSON lines, each an object of ``kind``.

    Args:
        path: the file.
        kind: see ``read_record``.
        growing: somebody may be writing it: it may be absent, and a last line without an end is
            left out.

    Raises:
        RunError: it is missing or damaged; one line that names the file, the line and the remedy.
    """
    if growing and not path.exists():
        return []
    return parse_jsonl(_content(path, None), kind, str(path), remedy_for(path), growing)


def parse_jsonl(
    text: bytes | str, kind: type[T], where: str, remedy: str, growing: bool = False
) -> list[T]:
    """The same of the text of a file; the arguments are those of ``parse_record``."""
    content = text if isinstance(text, bytes) else text.encode()
    *lines, rest = content.split(b"\n")
    if rest and not growing:
        raise RunError(f"{where} is damaged (line {len(lines) + 1} is cut off): {remedy}")
    return [
        parse_record(line, kind, f"{where}, line {number},", remedy)
        for number, line in enumerate(lines, start=1)
    ]


def damaged(path: Path, reason: str) -> RunError:
    """The error about a file of a run that is not as it was written."""
    return RunError(f"{path} is damaged ({reason}): {remedy_for(path)}")


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _content(path: Path, remedy: str | None) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {remedy or remedy_for(path)}") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {in_words(error)}") from error


def remedy_for(path: Path) -> str:
    """What makes a file of a run directory again."""
    for folder in path.parents:
        if any((folder / name).exists() for name in (RUN_MARK, ".lock", "config.yaml")):
            parts = path.relative_to(folder).parts
            stage = parts[1] if parts[0] == "work" and len(parts) > 2 else parts[0]
            if stage in STAGES:
                return f"make it again with --from {stage}"
    return "restore it from a copy, or remove it and make it again"
