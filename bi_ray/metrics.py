"""Metrics files: one JSON row per finished step, no step twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add one line to a metrics file."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file, none if it does not exist; a line that is being written is left out."""
    return parse_metrics(path.read_text()) if path.exists() else []


def parse_metrics(text: str) -> list[dict[str, Any]]:
    """All whole rows of the text of a metrics file."""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def last_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last row, with the figures of the last validation where it has none of its own; no rows: nothing."""
    if not rows:
        return {}
    validated: Mapping[str, Any] = next((row for row in reversed(rows) if any(map(is_validation, row))), {})
    return {name: value for name, value in validated.items() if is_validation(name)} | dict(rows[-1])


def is_validation(name: str) -> bool:
    """Whether a figure is one of a validation: ``validation/SET/...``."""
    return name.startswith("validation/")


def cut_metrics(path: Path, step: int) -> None:
    """Drop the rows after ``step``: they will be made again."""
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)
