"""The problem sets of a run on disk: Arrow data sets with a manifest beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, disable_progress_bars, load_from_disk
from pydantic import ConfigDict
from transformers import PreTrainedTokenizerBase

from bi_ray.config.base import SetName
from bi_ray.config.run import ModelConfig
from bi_ray.data.export import Counts, CountsSummary, Manifest
from bi_ray.data.generation import Row, distinct, problems
from bi_ray.data.seen import Seen
from bi_ray.data.shards import ShardWriter
from bi_ray.policy.chat import encode_prompt
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Span
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.rejects import DataError, Place
from bi_ray.runs.records import damaged
from bi_ray.tasks.base import FiniteTask, Problem, Task

Tokens = Sequence[int]

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "question": pa.string(),
        "answer": pa.string(),
        "graph": pa.string(),
        "prompt_tokens": pa.list_(pa.int64()),
    }
)
_TEXT_SCHEMA = pa.schema(  # of free text
    [*_SCHEMA, *[(name, pa.string()) for name in ("reference", "response", "spans", "place")]]
)
disable_progress_bars()  # a run shows its own


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """A problem as the engines and the verifier need it; see ``Problem`` for the rest.

    Attributes:
        graph: JSON of ``Graph``, "" where there is none.
        prompt_tokens: the prompt, chat template included.
    """

    id: str
    question: str
    answer: str
    graph: str
    prompt_tokens: tuple[int, ...]
    reference: str = ""
    response: str = ""
    spans: tuple[Span, ...] = ()
    place: Place | None = None

    def problem(self) -> Problem:
        """The problem that was written as this row."""
        graph = Graph.from_json(self.graph) if self.graph else None
        return Problem(
            self.id,
            self.question,
            graph,
            None if graph else self.answer,
            self.reference,
            self.response,
            self.spans,
            self.place,
        )


@dataclass(frozen=True, slots=True)
class SetManifest:
    """The part of a set's manifest that a run reads again: ``Problem.hash`` of every problem."""

    hashes: list[str]


class SetSummary(CountsSummary):
    """What a set's manifest has that a report shows.

    Attributes:
        prompt_tokens_mean: mean length of the prompts, in tokens.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    prompt_tokens_mean: float


def write_problems(
    task: Task,
    name: SetName,
    count: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
    directory: Path,
    exactly: bool = True,
) -> Manifest:
    """Make the first ``count`` different problems of a set; returns the manifest.

    Args:
        task: their source. Of a ``FiniteTask`` those that cannot be used are added to its
            ``rejects`` and left out.
        name: the set.
        count: how many; None: all that a ``FiniteTask`` has.
        tokenizer: of the policy.
        model: its limits.
        directory: gets the data set and the manifest.
        exactly: fewer than ``count`` are an error.

    Raises:
        DataError: a prompt is longer than ``model.max_prompt_tokens``, the set repeats itself too
            often, or there are too few problems.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(task, FiniteTask):
        usable = _usable_problems(task, name, count, tokenizer, model)
    else:
        usable = _drawn_problems(task, name, count or 1, tokenizer, model)
    writer = ShardWriter(directory, "arrow", _SCHEMA)
    counts = Counts()
    hashes: list[str] = []
    lengths: list[int] = []  # of the prompts, in tokens
    for problem, tokens in usable:
        if problem.graph is None and not hashes:
            writer = ShardWriter(directory, "arrow", _TEXT_SCHEMA)
        hashes.append(problem.hash())
        lengths.append(len(tokens))
        counts.add_answer(problem.answer)
        writer.write(_as_row(problem) | {"prompt_tokens": tokens})
    if isinstance(task, FiniteTask):
        least = max(1, count or 0) if exactly else 1
        if len(hashes) < least:
            raise DataError(_too_few(task, name, len(hashes), count))
    writer.close()
    manifest = {
        **counts.summary(),
        "prompt_tokens_mean": sum(lengths) / max(1, len(lengths)),
        "prompt_tokens_max": max(lengths, default=0),
        "set": name,
        "hashes": hashes,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest))
    return manifest


def _drawn_problems(
    task: Task,
    name: SetName,
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
) -> Iterator[tuple[Problem, Tokens]]:
    """The first ``count`` different problems with the tokens of their prompts.

    Raises:
        DataError: a prompt is too long, or the set repeats itself too often.
    """
    for _, problem in distinct(problems(task, name), Problem.hash, name, count, Seen()):
        tokens = encode_prompt(tokenizer, task.system_prompt, problem.question)
        if len(tokens) > model.max_prompt_tokens:
            raise _long_prompt(problem, tokens, model, name)
        yield problem, tokens


def _usable_problems(
    task: FiniteTask,
    name: SetName,
    count: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
) -> Iterator[tuple[Problem, Tokens]]:
    """At most ``count`` problems with the tokens of their prompts; too long ones are rejected.

    Raises:
        DataError: a prompt is too long, and no row of a file is to blame.
    """
    usable = 0
    for _, problem in problems(task, name):
        if usable == count:
            return
        tokens = encode_prompt(tokenizer, task.system_prompt, problem.question)
        if len(tokens) <= model.max_prompt_tokens:
            usable += 1
            yield problem, tokens
            continue
        if problem.place is None:
            raise _long_prompt(problem, tokens, model, name)
        reason = f"prompt too long: {_too_long(tokens, model)}"
        task.rejects.add(problem.place, reason, problem.question)


def _long_prompt(problem: Problem, tokens: Tokens, model: ModelConfig, name: SetName) -> DataError:
    return DataError(
        f"{problem.id}: its prompt has {_too_long(tokens, model)} or make the problems of "
        f"task.sets.{name} smaller"
    )


def _too_long(tokens: Tokens, model: ModelConfig) -> str:
    return f"{len(tokens)} tokens; raise model.max_prompt_tokens ({model.max_prompt_tokens})"


def _as_row(problem: Problem) -> Row:
    """The columns of a problem; those of free text only where it is free text."""
    row: Row = {"id": problem.id, "question": problem.question, "answer": problem.answer}
    if problem.graph is not None:
        return row | {"graph": problem.graph.to_json()}
    place = [problem.place.file, problem.place.line] if problem.place else None
    return row | {
        "graph": "",
        "reference": problem.reference,
        "response": problem.response,
        "spans": json.dumps(problem.spans),
        "place": json.dumps(place),
    }


def _too_few(task: FiniteTask, name: SetName, usable: int, wanted: int | None) -> str:
    asked = f", and task.sets.{name}.problems asks for {wanted}" if wanted else ""
    first = f"set {name}: {usable} usable problems{asked}; add rows, or ask for fewer"
    return "\n".join([first, *task.rejects.summary()])


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
        columns = {**row, "prompt_tokens": tuple(row["prompt_tokens"])}
        if "spans" in row:
            place = json.loads(row["place"])
            columns["spans"] = tuple(Span(*span) for span in json.loads(row["spans"]))
            columns["place"] = Place(*place) if place else None
        yield ProblemRow(**columns)


def _load(directory: Path) -> Dataset:
    if not directory.is_dir():
        raise FileNotFoundError("there is no such folder")
    data = load_from_disk(str(directory))
    assert isinstance(data, Dataset), "several splits"
    data.data.validate(full=True)  # reading the rows of an invalid table may end the process
    return data
