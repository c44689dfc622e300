"""What is known of a problem and of a response to it, from rows of our own sets, of exports, and of
other people.
"""

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


def rows_of(path: Path, rejects: Rejects) -> Iterator[NumberedRow]:
    """The rows of a .jsonl or .parquet file, a `datasets` directory, or an export of this project,
    as they come.

    Raises:
        DataError: it cannot be read; or from ``rejects``, which gets the lines that are no JSON.
    """
    files = [path]
    if path.is_dir() and not any((path / name).exists() for name in _SAVED_BY_DATASETS):
        files = sorted(
            file
            for file in path.iterdir()
            if file.name.startswith("data-") and file.suffix in _SUFFIXES
        )
        if not files:
            raise DataError(
                f"{path} is neither a directory that datasets saved nor one with data-*.parquet or data-*.jsonl; "
                "give one of these, or a file in it"
            )
    for file in files:
        yield from read_rows(file, lambda row, place: (place, row), rejects)


@dataclass(frozen=True, slots=True)
class Fields:
    """What is known of a problem and of a response to it, whatever the columns were called.

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


def fields_of(row: Mapping[str, Any]) -> Fields:
    """Read a row of our own sets and exports, of TRL's and verl's formats, or of plain question,
    answer and response.

    Raises:
        RowError: no question, or a column of the wrong kind.
    """
    messages = _first(row, "messages", "prompt")
    question = _first(row, "question")
    if question is None:
        question = messages if isinstance(messages, str) else _last(messages, "user")
    if isinstance(question, str) and not question.strip():
        question = None
    if question is None:
        raise RowError(
            f"no question: name the column question, prompt or messages (there {_columns_of(row)})"
        )
    response = text_cell(row.get("response"), "response")
    if response is None:
        written = _first(row, "completion", "messages")
        response = written if isinstance(written, str) else _last(written, "assistant")
    answer = cell_text(_first(row, "answer"), "answer")
    if answer is None and isinstance(row.get("reward_model"), Mapping):
        answer = cell_text(row["reward_model"].get("ground_truth"), "reward_model.ground_truth")
    extra = row.get("extra_info")
    more = extra if isinstance(extra, Mapping) else {}
    return Fields(
        question=text_cell(question, "question") or "",
        answer=answer or None,
        response=text_cell(response, "response"),
        graph=text_cell(_first(row, "graph") or more.get("graph"), "graph"),
        id=cell_text(row.get("id", more.get("id")), "id"),
        chain_of_thought=text_cell(row.get("chain_of_thought"), "chain_of_thought"),
    )


def _first(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these columns that has something in it; None where none has."""
    for name in names:
        value = row.get(name)
        if not is_missing(value) and value != "" and value != []:
            return value
    return None


def _columns_of(row: Mapping[str, Any]) -> str:
    names = [str(name) for name in row]
    return (
        f"are {', '.join(names[:12])}"
        if len(names) > 1
        else f"is {names[0]}"
        if names
        else "is none"
    )


def _last(messages: Any, role: str) -> str | None:
    """The text of the last message of a role."""
    if messages is None:
        return None
    if not isinstance(messages, list) or not all(
        isinstance(message, Mapping) for message in messages
    ):
        raise RowError(
            "messages, prompt and completion have to be text, or lists of role and content"
        )
    return next(
        (message.get("content") for message in reversed(messages) if message.get("role") == role),
        None,
    )
