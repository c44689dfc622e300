"""Sets of problems and of demonstrations on disk: Arrow data sets with a manifest beside them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, disable_progress_bars, load_from_disk
from pydantic import ConfigDict
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from bi_ray.config import (
    AnswerConfig,
    ModelConfig,
    ReasoningGymConfig,
    RecipeConfig,
    RunConfig,
    SetName,
    UserDataConfig,
)
from bi_ray.export import PROBLEM_SCHEMA, Counts
from bi_ray.files import damaged, read_record
from bi_ray.generation import Seen, distinct, problems
from bi_ray.injection.recipes import Demonstration, Recipe
from bi_ray.policy.chat import check_tokens, encode_prompt, end_of_turn
from bi_ray.policy.spans import encode_with_ends, token_spans
from bi_ray.reading import MANIFEST
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Span
from bi_ray.rows import REJECTS, DataError, Place, Rejects
from bi_ray.shards import ShardWriter
from bi_ray.tasks.base import FiniteTask, Problem, Task, text_hash
from bi_ray.tasks.userdata import TRAINING_SETS, UserDataTask, refuse_tested

__all__ = [
    "MANIFEST",
    "DataError",
    "DemonstrationsManifest",
    "ProblemRow",
    "SetManifest",
    "SetSummary",
    "demonstrate",
    "describe",
    "read_problems",
    "write_demonstrations",
    "write_problems",
]

_TOKENS = ("prompt_tokens", pa.list_(pa.int64()))
_TEXT = [(name, pa.string()) for name in ("reference", "response", "spans", "place")]
_SCHEMA = pa.schema([*[PROBLEM_SCHEMA.field(name) for name in ("id", "question", "answer", "graph")], _TOKENS])
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
        return Problem(self.id, self.question, graph, answer, self.reference, self.response, self.spans, self.place)


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


@dataclass(frozen=True, slots=True)
class DemonstrationsManifest:
    """What the manifest of an arm's demonstrations has that a run reads again: how many there are."""

    demonstrations: int


def write_problems(
    task: Task,
    name: SetName,
    count: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
    directory: Path,
    exactly: bool = True,
) -> dict[str, Any]:
    """Make the first ``count`` problems of a set that differ from one another; returns the manifest.

    Args:
        task: their source. Of a ``FiniteTask`` those that cannot be used are added to its ``rejects`` and left out.
        name: the set.
        count: None: all that a ``FiniteTask`` has.
        tokenizer: of the policy.
        model: its limits.
        directory: gets the data set and the manifest.
        exactly: fewer than ``count`` are an error.

    Raises:
        DataError: a prompt is longer than ``model.max_prompt_tokens``, the set repeats itself too often, or there are
            too few problems.
    """
    directory.mkdir(parents=True, exist_ok=True)
    counts, hashes, writer = _TokenCounts(), list[str](), ShardWriter(directory, "arrow", _SCHEMA)
    finite = task if isinstance(task, FiniteTask) else None
    found = problems(task, name) if finite else distinct(problems(task, name), Problem.hash, name, count or 1, Seen())
    for _, problem in found:
        if finite and len(hashes) == count:
            break
        tokens = encode_prompt(tokenizer, task.system_prompt, problem.question)
        if len(tokens) > model.max_prompt_tokens:
            reason = f"{len(tokens)} tokens; raise model.max_prompt_tokens ({model.max_prompt_tokens})"
            if finite and problem.place:
                finite.rejects.add(problem.place, f"prompt too long: {reason}", problem.question)
                continue
            raise DataError(f"{problem.id}: its prompt has {reason} or make the problems of task.sets.{name} smaller")
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
        return Counts.summary(self) | {"prompt_tokens_mean": mean, "prompt_tokens_max": self.most_tokens}


def describe(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over a set: how often the answer is zero, and what the best constant answer would score."""
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
            raise DataError(f"{directory}, row {number}: no answer; every problem needs one to be verified")
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


def write_demonstrations(
    task: Task, config: RecipeConfig, run: RunConfig, problems: Path, tokenizer: PreTrainedTokenizerBase, out: Path
) -> dict[str, Any]:
    """Write an arm's demonstrations for the problems of a directory, or those of its own file; returns their manifest.

    Bad rows of a user's file are left out and written beside them (``rejects.jsonl``).

    Under ``same_total_as`` further problems of the set ``sft`` are demonstrated until there are as many tokens.

    Raises:
        DataError: a demonstration is longer than ``model.max_response_tokens``; no row of a file can be used; or there
            are too few problems.
    """
    rejects = Rejects(run.task.strict if isinstance(run.task, UserDataConfig) else False)
    if config.demonstrations:
        source = _demonstrations_of_file(task, config.demonstrations, run, problems.parent, tokenizer, rejects)
    else:
        source = read_problems(problems)
    rows = demonstrate(task, config, run, source, tokenizer, rejects)
    if not rows:
        raise DataError("\n".join([f"{out.name}: no demonstration can be used", *rejects.summary()]))
    if config.same_total_as:
        wanted = _tokens_of(demonstrate(task, config.same_total_as, run, source, tokenizer))
        known = read_record(problems / MANIFEST, SetManifest).hashes
        rows += _until(wanted - _tokens_of(rows), task, config, run, known, tokenizer)
    behaviors = Counter(span["behavior"] for row in rows for span in row["spans"])
    Dataset.from_list(rows).save_to_disk(out)
    from_file = config.demonstrations or isinstance(run.task, UserDataConfig)
    known_by = "question" if from_file else "problem"  # a file may have several rows of one problem
    manifest = {
        "demonstrations": len(rows),
        "problems": len({row[known_by] for row in rows}),
        "response_tokens": _tokens_of(rows),
        "response_tokens_mean": _tokens_of(rows) / len(rows),
        "behaviors_per_demonstration": {name: count / len(rows) for name, count in sorted(behaviors.items())},
        "rejected": rejects.summary(),
    }
    (out / MANIFEST).write_text(json.dumps(manifest))
    if rejects.rows:
        rejects.write(out / REJECTS)
    return manifest


def _demonstrations_of_file(
    task: Task, path: str, run: RunConfig, data: Path, tokenizer: PreTrainedTokenizerBase, rejects: Rejects
) -> list[ProblemRow]:
    """The rows of an arm's own file, without those that the run tests with."""
    reader: UserDataTask
    if isinstance(task, UserDataTask):
        reader, tested = task, task.tested()
    else:  # the file's fields have their usual names, and its answers are where the task's are
        extract = run.task.extract if isinstance(run.task, ReasoningGymConfig) else "tag"
        reader = UserDataTask(UserDataConfig(kind="jsonl", answer=AnswerConfig(extract=extract), sets={}), 0)
        names = [name for name in run.task.sets if name not in TRAINING_SETS]
        tested = {text_hash(row.question): name for name in names for row in read_problems(data / name)}
    return [
        ProblemRow(
            id=f"{Path(path).stem}-{row.place.line}",
            question=row.question,
            answer=row.answer,
            graph="",
            prompt_tokens=tuple(encode_prompt(tokenizer, task.system_prompt, row.question)),
            response=row.response,
            spans=row.spans,
            place=row.place,
        )
        for row in reader.read_demonstrations(path, rejects)
        if not refuse_tested(row, tested, rejects)
    ]


def _tokens_of(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(row["response_tokens"]) for row in rows)


def _until(
    tokens: int,
    task: Task,
    config: RecipeConfig,
    run: RunConfig,
    known: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[dict[str, Any]]:
    """Demonstrations of problems of the set ``sft`` beyond those in ``known``, as near to ``tokens`` as can be."""
    seen = Seen([int(graph_hash, 16) for graph_hash in known])
    # Every known problem took a draw of its own, so what is new comes behind so many draws.
    for _, problem in distinct(problems(task, "sft", len(known)), Problem.hash, "sft", sys.maxsize, seen):
        prompt = encode_prompt(tokenizer, task.system_prompt, problem.question)
        graph = problem.graph.to_json() if problem.graph else ""
        row = ProblemRow(problem.id, problem.question, problem.answer, graph, tuple(prompt))
        for demonstration in demonstrate(task, config, run, [row], tokenizer):
            length = len(demonstration["response_tokens"])
            if 2 * tokens < length:  # without it the total is nearer
                return
            tokens -= length
            yield demonstration


def demonstrate(
    task: Task,
    config: RecipeConfig,
    run: RunConfig,
    problems: Sequence[ProblemRow],
    tokenizer: PreTrainedTokenizerBase,
    rejects: Rejects | None = None,
) -> list[dict[str, Any]]:
    """The demonstrations of each problem: text, tokens of prompt and response, and the behaviors' spans of both.

    ``spans`` are of characters of ``response``, ``token_spans`` of ``response_tokens`` (``policy.spans``).

    A row of a user's file whose demonstration is too long goes to ``rejects``, where there is one.

    Raises:
        DataError: a demonstration, or a prompt that it varies, is too long.
    """
    recipe = make_recipe(config, run, tokenizer)
    rows: list[dict[str, Any]] = []
    for row in problems:
        for demonstration in recipe.demonstrations(task, row.problem()):
            made = _sft_row(row, demonstration, task, tokenizer)
            if reason := _too_long(made, run.model):
                if row.place and rejects is not None:
                    rejects.add(row.place, f"demonstration too long: {reason}", row.response)
                    continue
                raise DataError(f"{row.id}: its demonstration has {reason} or make the problems of its set smaller")
            rows.append(made)
    return rows


def _too_long(row: Mapping[str, Any], model: ModelConfig) -> str | None:
    """What to change where a demonstration, or a prompt that it varies, has too many tokens."""
    for name, limit in (("prompt", model.max_prompt_tokens), ("response", model.max_response_tokens)):
        if (length := len(row[f"{name}_tokens"])) > limit:
            return f"{length} tokens of {name}; raise model.max_{name}_tokens ({limit})"
    return None


def make_recipe(config: RecipeConfig, run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """A recipe for the run's task, that counts in the policy's tokens."""
    return Recipe(
        config.for_task(run.task.kind),
        run.seeds.data,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
    )


def _sft_row(
    row: ProblemRow, demonstration: Demonstration, task: Task, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    question, response = demonstration.problem.question, demonstration.response
    prompt = list(row.prompt_tokens)
    if question != row.question:
        prompt = encode_prompt(tokenizer, task.system_prompt, question)
    tokens = [*encode_with_ends(tokenizer, response)[0], end_of_turn(tokenizer)]
    check_tokens(tokenizer, tokens)
    return {
        "id": f"{row.id}/{demonstration.copy}" if demonstration.copy else row.id,
        "problem": row.id,
        "question": question,
        "response": response,
        "spans": [span._asdict() for span in demonstration.spans],
        "prompt_tokens": prompt,
        "response_tokens": tokens,
        "token_spans": [span._asdict() for span in token_spans(tokenizer, tokens, response, demonstration.spans)],
    }
