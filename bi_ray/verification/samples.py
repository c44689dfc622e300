"""Evaluated samples on disk, a JSON line per sample, as ``actors.driver.sampling`` makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bi_ray.runs.records import damaged, read_jsonl
from bi_ray.verification.verdicts import Verdict


class SampleRow(TypedDict):
    """A sample; where ``failure`` is None, it also has the fields of ``Verdict``."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    mode: Literal["greedy", "sampled"]
    id: str
    answer: str
    failure: str | None
    response: NotRequired[str]


_VERDICT = TypeAdapter(Verdict)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of one policy on one set.

    Raises:
        RunError: the file is missing, empty or damaged; the message names it, and the line.
    """
    rows = read_jsonl(path, SampleRow)
    if not rows:
        raise damaged(path, "it is empty")
    for number, row in enumerate(rows, start=1):
        if row["failure"] is not None:
            continue
        try:
            _VERDICT.validate_python(row)
        except ValidationError as error:
            fault = error.errors()[0]
            reason = f"line {number}: {fault['loc'][0]}: {fault['msg'].lower()}"
            raise damaged(path, reason) from error
    return [dict(row) for row in rows]
