"""Sets of problems and of demonstrations on disk: Arrow data sets with a manifest beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, disable_progress_bars, load_from_disk
from pydantic import ConfigDict
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from bi_ray.config import (
    ModelConfig,
    SetName,
)
from bi_ray.data.export import PROBLEM_SCHEMA, Counts
from bi_ray.data.generation import distinct, problems
from bi_ray.data.seen import Seen
from bi_ray.data.shards import ShardWriter
from bi_ray.policy.chat import encode_prompt
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Span
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.rejects import DataError, Place
from bi_ray.runs.records import damaged
from bi_ray.tasks.base import FiniteTask, Problem, Task

_TOKENS = ("prompt_tokens", pa.list_(pa.int64()))
_TEXT = [(name, pa.string()) for name in ("reference", "response", "spans", "place")]
_SCHEMA = pa.schema(
    [*[PROBLEM_SCHEMA.field(name) for name in ("id", "question", "answer", "graph")], _TOKENS]
)
_TEXT_SCHEMA = pa.schema([*_SCHEMA, *_TEXT])
disable_progress_bars()  # a run shows its own


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """A problem as the engines and the verifier need it; see ``Problem`` for the last four."""

    id: str
    question: str
    answer: str
    graph: str  # JSON of Graph, "" where there is none
    prompt_tokens: tuple[int, ...]
    reference: str = ""
    response: str = ""
    spans: tuple[Span, ...] = ()
    place: Place | None = None

    def problem(self) -> Problem:
        """The problem again."""
        graph = Graph.from_json(self.graph) if self.graph else None
        answer = None if graph else self.answer
        return Problem(
            self.id,
            self.question,
            graph,
            answer,
            self.reference,
            self.response,
            self.spans,
            self.place,
        )


@dataclass(frozen=True, slots=True)
class SetManifest:
    """What a set's manifest has that a run reads again: ``Problem.hash`` of every problem."""

    hashes: list[str]


class SetSummary(TypedDict):
    """What a set's manifest has that a report shows; see ``Counts.summary``."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    problems: int
    zero_answer_share: float
    best_constant_answer: str
    best_constant_accuracy: float
    prompt_tokens_mean: float


def write_problems(
    task: Task,
    name: SetName,
    count: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
    directory: Path,
    exactly: bool = True,
) -> dict[str, Any]:
    """Make the first ``count`` problems of a set that differ from one another; returns the
    manifest.

    Args:
        task: their source. Of a ``FiniteTask`` those that cannot be used are added to its
            ``rejects`` and left out.
        name: the set.
        count: None: all that a ``FiniteTask`` has.
        tokenizer: of the policy.
        model: its limits.
        directory: gets the data set and the manifest.
        exactly: fewer than ``count`` are an error.

    Raises:
        DataError: a prompt is longer than ``model.max_prompt_tokens``, the set repeats itself too
            often, or there are too few problems.
    """
    directory.mkdir(parents=True, exist_ok=True)
    counts, hashes, writer = _TokenCounts(), list[str](), ShardWriter(directory, "arrow", _SCHEMA)
    finite = task if isinstance(task, FiniteTask) else None
    found = (
        problems(task, name)
        if finite
        else distinct(problems(task, name), Problem.hash, name, count or 1, Seen())
    )
    for _, problem in found:
        if finite and len(hashes) == count:
            break
        tokens = encode_prompt(tokenizer, task.system_prompt, problem.question)
        if len(tokens) > model.max_prompt_tokens:
            reason = (
                f"{len(tokens)} tokens; raise model.max_prompt_tokens ({model.max_prompt_tokens})"
            )
            if finite and problem.place:
                finite.rejects.add(problem.place, f"prompt too long: {reason}", problem.question)
                continue
            raise DataError(
                f"{problem.id}: its prompt has {reason} or make the problems of task.sets.{name} smaller"
            )
        if problem.graph is None and not hashes:
            writer = ShardWriter(directory, "arrow", _TEXT_SCHEMA)
        hashes.append(problem.hash())
        row = _as_row(problem) | {"prompt_tokens": tokens}
        counts.add(row)
        writer.write(row)
    if finite and (not hashes or (exactly and len(hashes) < (count or 0))):
        raise DataError(_too_few(finite, name, len(hashes), count))
    writer.close()
    manifest = counts.summary() | {"set": name, "hashes": hashes}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return manifest


def _as_row(problem: Problem) -> dict[str, Any]:
    """The columns of a problem; those of free text only where it is free text."""
    row = {"id": problem.id, "question": problem.question, "answer": problem.answer}
    if problem.graph is not None:
        return row | {"graph": problem.graph.to_json()}
    row |= {"graph": "", "reference": problem.reference, "response": problem.response}
    return row | {
        "spans": json.dumps(problem.spans),
        "place": json.dumps([problem.place.file, problem.place.line] if problem.place else None),
    }


def _too_few(task: FiniteTask, name: SetName, found: int, wanted: int | None) -> str:
    asked = f", and task.sets.{name}.problems asks for {wanted}" if wanted else ""
    rejected = "".join(f"\n{line}" for line in task.rejects.summary())
    return f"set {name}: {found} usable problems{asked}; add rows, or ask for fewer{rejected}"


@dataclass(slots=True)
class _TokenCounts(Counts):
    tokens: int = 0
    most_tokens: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        self.count(row["answer"])
        self.tokens += len(row["prompt_tokens"])
        self.most_tokens = max(self.most_tokens, len(row["prompt_tokens"]))

    def summary(self) -> dict[str, Any]:
        mean = self.tokens / max(1, self.rows)
        return Counts.summary(self) | {
            "prompt_tokens_mean": mean,
            "prompt_tokens_max": self.most_tokens,
        }


def describe(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over a set: how often the answer is zero, and what the best constant answer would
    score.
    """
    counts = _TokenCounts()
    for row in rows:
        counts.add(row)
    return counts.summary()


def read_problems(directory: Path) -> list[ProblemRow]:
    """The problems of a set.

    Raises:
        DataError: a row has no answer.
        RunError: the data set is damaged or missing.
    """
    try:
        return list(_problems(directory))
    except DataError:
        raise
    except Exception as error:  # datasets and Arrow raise errors of many kinds over damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise damaged(directory, f"{reason:.300}") from error


def _problems(directory: Path) -> Iterator[ProblemRow]:
    for number, row in enumerate(_load(directory)):
        if not row.get("answer"):
            raise DataError(
                f"{directory}, row {number}: no answer; every problem needs one to be verified"
            )
        row = {**row, "prompt_tokens": tuple(row["prompt_tokens"])}
        if "spans" in row:
            place = json.loads(row["place"])
            row |= {"spans": tuple(Span(*span) for span in json.loads(row["spans"]))}
            row |= {"place": Place(*place) if place else None}
        yield ProblemRow(**row)


def _load(directory: Path) -> Dataset:
    if not directory.is_dir():
        raise FileNotFoundError("there is no such folder")
    data = load_from_disk(str(directory))
    assert isinstance(data, Dataset), "several splits"
    data.data.validate(full=True)  # reading the rows of an invalid table may end the process
    return data
