"""What is known of a problem and of a response to it, from rows of our own sets, of exports, and of other people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.rows import DataError, Place, Rejects, RowError, RowValues, read_rows

MANIFEST = "manifest.json"
NumberedRow = tuple[Place, RowValues]
_SUFFIXES = (".jsonl", ".parquet")
_SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")


def rows_of(path: Path, rejects: Rejects) -> Iterator[NumberedRow]:
    """The rows of a .jsonl or .parquet file, a `datasets` directory, or an export of this project, as they come.

    Raises:
        DataError: it cannot be read; or from ``rejects``, which gets the lines that are no JSON.
    """
    files = [path]
    if path.is_dir() and not any((path / name).exists() for name in _SAVED_BY_DATASETS):
        files = sorted(file for file in path.iterdir() if file.name.startswith("data-") and file.suffix in _SUFFIXES)
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
    """Read a row of our own sets and exports, of TRL's and verl's formats, or of plain question, answer and response.

    Raises:
        RowError: no question, or a column of the wrong kind.
    """
    messages = row.get("messages") or row.get("prompt")
    question = row.get("question") or (messages if isinstance(messages, str) else _last(messages, "user"))
    if question is None or (isinstance(question, str) and not question.strip()):
        raise RowError(f"no question: name the column question, prompt or messages (there {_columns_of(row)})")
    if not isinstance(question, str):
        raise RowError(f"question has to be text, found {_told(question)}")
    response = row.get("response")
    if response is None:
        written = row.get("completion") or row.get("messages")
        response = written if isinstance(written, str) else _last(written, "assistant")
    answer = row.get("answer")
    if answer is None and isinstance(row.get("reward_model"), Mapping):
        answer = row["reward_model"].get("ground_truth")
    extra = row.get("extra_info")
    more = extra if isinstance(extra, Mapping) else {}
    graph, name = row.get("graph") or more.get("graph"), row.get("id", more.get("id"))
    thought = row.get("chain_of_thought")
    for column, value in (("response", response), ("graph", graph), ("chain_of_thought", thought)):
        if value is not None and not isinstance(value, str):
            raise RowError(f"{column} has to be text, found {_told(value)}")
    if isinstance(answer, Mapping | list):
        raise RowError(f"answer has to be text or a number, found {_told(answer)}")
    return Fields(
        question=question,
        answer=None if answer is None or answer == "" else str(answer),
        response=response,
        graph=graph,
        id=None if name is None else str(name),
        chain_of_thought=thought,
    )


def _told(value: object) -> str:
    """A value of the wrong kind, in the words of JSON, and its start."""
    names = {list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}
    kind = "an object" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)
    return f"{kind}: {value!r:.40}"


def _columns_of(row: Mapping[str, Any]) -> str:
    names = [str(name) for name in row]
    return f"are {', '.join(names[:12])}" if len(names) > 1 else f"is {names[0]}" if names else "is none"


def _last(messages: Any, role: str) -> str | None:
    """The text of the last message of a role."""
    if messages is None:
        return None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RowError("messages, prompt and completion have to be text, or lists of role and content")
    return next((message.get("content") for message in reversed(messages) if message.get("role") == role), None)
