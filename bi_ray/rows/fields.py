"""The fields of a problem and of a response, from rows of our sets, exports, or other people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.rows.cells import RowError, cell_text, is_missing, text_cell
from bi_ray.rows.files import read_rows
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues

MANIFEST = "manifest.json"
NumberedRow = tuple[Place, RowValues]
_SUFFIXES = (".jsonl", ".parquet")
_SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")
_SHOWN_COLUMNS = 12


def rows_of(path: Path, rejects: Rejects) -> Iterator[NumberedRow]:
    """The rows of a file or directory with their places, as they come.

    Args:
        path: a .jsonl or .parquet file, a `datasets` directory, or an export of this project.
        rejects: gets the lines that are not JSON.

    Raises:
        DataError: it cannot be read; or from ``rejects``.
    """
    for file in _files_of(path):
        yield from read_rows(file, lambda row, place: (place, row), rejects)


def _files_of(path: Path) -> list[Path]:
    """What ``read_rows`` can read of a path.

    Raises:
        DataError: a directory has nothing of this kind.
    """
    if not path.is_dir() or any((path / name).exists() for name in _SAVED_BY_DATASETS):
        return [path]
    files = [file for file in sorted(path.glob("data-*")) if file.suffix in _SUFFIXES]
    if not files:
        raise DataError(
            f"{path} is neither a directory that datasets saved nor one with data-*.parquet or "
            "data-*.jsonl; give one of these, or a file in it"
        )
    return files


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a problem and of a response to it, whatever the columns were called.

    Attributes:
        question: the problem's text.
        answer: the right answer, None where the row has none.
        response: a demonstration, or what a model wrote; None where there is none.
        graph: JSON of the graph, None where the row has none.
        id: None where the row has none.
        chain_of_thought: as somebody wrote it, in free text; None where the row has none.
    """

    question: str
    answer: str | None
    response: str | None
    graph: str | None
    id: str | None
    chain_of_thought: str | None = None


def fields_of(row: RowValues) -> Fields:
    """Read a row of our own sets and exports, of TRL's and verl's formats, or with plain columns.

    Raises:
        RowError: no question, or a column of the wrong kind.
    """
    extra = row.get("extra_info")
    more = extra if isinstance(extra, Mapping) else {}
    return Fields(
        question=_question(row),
        response=_response(row),
        answer=_answer(row),
        graph=text_cell(_first(row, "graph") or more.get("graph"), "graph"),
        id=cell_text(row.get("id", more.get("id")), "id"),
        chain_of_thought=text_cell(row.get("chain_of_thought"), "chain_of_thought"),
    )


def _question(row: RowValues) -> str:
    question = _first(row, "question")
    if question is None:
        question = _last_message(_first(row, "messages", "prompt"), "user")
    text = text_cell(question, "question")
    if text is None or not text.strip():
        raise RowError(
            f"no question: name the column question, prompt or messages (there {_columns_of(row)})"
        )
    return text


def _response(row: RowValues) -> str | None:
    response = text_cell(row.get("response"), "response")
    if response is None:
        written = _last_message(_first(row, "completion", "messages"), "assistant")
        response = text_cell(written, "response")
    return response


def _answer(row: RowValues) -> str | None:
    answer = cell_text(_first(row, "answer"), "answer")
    reward_model = row.get("reward_model")
    if answer is None and isinstance(reward_model, Mapping):
        answer = cell_text(reward_model.get("ground_truth"), "reward_model.ground_truth")
    return answer or None


def _first(row: RowValues, *names: str) -> Any:
    """The first of these columns that has something in it; None where none has."""
    for name in names:
        value = row.get(name)
        if not is_missing(value) and value not in ("", []):
            return value
    return None


def _columns_of(row: RowValues) -> str:
    names = ", ".join(list(map(str, row))[:_SHOWN_COLUMNS])
    if len(row) > 1:
        return f"are {names}"
    return f"is {names or 'none'}"


def _last_message(messages: Any, role: str) -> Any:
    """The text of the last message of a role; plain text is a message of any role."""
    if messages is None or isinstance(messages, str):
        return messages
    are_messages = isinstance(messages, list) and all(isinstance(m, Mapping) for m in messages)
    if not are_messages:
        raise RowError(
            "messages, prompt and completion have to be text, or lists of role and content"
        )
    for message in reversed(messages):
        if message.get("role") == role:
            return message.get("content")
    return None
