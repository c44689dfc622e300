"""Demonstrations made for the arms of a run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bi_ray.config import (
    AnswerConfig,
    ModelConfig,
    ReasoningGymConfig,
    RecipeConfig,
    RunConfig,
    UserDataConfig,
)
from bi_ray.data.generation import distinct, problems
from bi_ray.data.problems import ProblemRow, SetManifest, read_problems
from bi_ray.data.seen import Seen
from bi_ray.injection.recipes import Demonstration, Recipe
from bi_ray.policy.chat import check_tokens, encode_prompt, end_of_turn
from bi_ray.policy.spans import encode_with_ends, token_spans
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.rejects import REJECTS, DataError, Rejects
from bi_ray.runs.records import read_record
from bi_ray.tasks.base import Problem, Task, text_hash
from bi_ray.tasks.userdata import TRAINING_SETS, UserDataTask, refuse_tested


@dataclass(frozen=True, slots=True)
class DemonstrationsManifest:
    """What the manifest of an arm's demonstrations has that a run reads again: how many there are."""

    demonstrations: int


def write_demonstrations(
    task: Task,
    config: RecipeConfig,
    run: RunConfig,
    problems: Path,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> dict[str, Any]:
    """Write an arm's demonstrations for the problems of a directory, or those of its own file;
    returns their manifest.

    Bad rows of a user's file are left out and written beside them (``rejects.jsonl``).

    Under ``same_total_as`` further problems of the set ``sft`` are demonstrated until there are as
    many tokens.

    Raises:
        DataError: a demonstration is longer than ``model.max_response_tokens``; no row of a file
            can be used; or there are too few problems.
    """
    rejects = Rejects(run.task.strict if isinstance(run.task, UserDataConfig) else False)
    if config.demonstrations:
        source = _demonstrations_of_file(
            task, config.demonstrations, run, problems.parent, tokenizer, rejects
        )
    else:
        source = read_problems(problems)
    rows = demonstrate(task, config, run, source, tokenizer, rejects)
    if not rows:
        raise DataError(
            "\n".join([f"{out.name}: no demonstration can be used", *rejects.summary()])
        )
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
        "behaviors_per_demonstration": {
            name: count / len(rows) for name, count in sorted(behaviors.items())
        },
        "rejected": rejects.summary(),
    }
    (out / MANIFEST).write_text(json.dumps(manifest))
    if rejects.rows:
        rejects.write(out / REJECTS)
    return manifest


def _demonstrations_of_file(
    task: Task,
    path: str,
    run: RunConfig,
    data: Path,
    tokenizer: PreTrainedTokenizerBase,
    rejects: Rejects,
) -> list[ProblemRow]:
    """The rows of an arm's own file, without those that the run tests with."""
    reader: UserDataTask
    if isinstance(task, UserDataTask):
        reader, tested = task, task.tested()
    else:  # the file's fields have their usual names, and its answers are where the task's are
        extract = run.task.extract if isinstance(run.task, ReasoningGymConfig) else "tag"
        reader = UserDataTask(
            UserDataConfig(kind="jsonl", answer=AnswerConfig(extract=extract), sets={}), 0
        )
        names = [name for name in run.task.sets if name not in TRAINING_SETS]
        tested = {
            text_hash(row.question): name for name in names for row in read_problems(data / name)
        }
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
    """Demonstrations of problems of the set ``sft`` beyond those in ``known``, as near to
    ``tokens`` as can be.
    """
    seen = Seen([int(graph_hash, 16) for graph_hash in known])
    # Every known problem took a draw of its own, so what is new comes behind so many draws.
    for _, problem in distinct(
        problems(task, "sft", len(known)), Problem.hash, "sft", sys.maxsize, seen
    ):
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
    """The demonstrations of each problem: text, tokens of prompt and response, and the behaviors'
    spans of both.

    ``spans`` are of characters of ``response``, ``token_spans`` of ``response_tokens``
    (``policy.spans``).

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
                raise DataError(
                    f"{row.id}: its demonstration has {reason} or make the problems of its set smaller"
                )
            rows.append(made)
    return rows


def _too_long(row: Mapping[str, Any], model: ModelConfig) -> str | None:
    """What to change where a demonstration, or a prompt that it varies, has too many tokens."""
    for name, limit in (
        ("prompt", model.max_prompt_tokens),
        ("response", model.max_response_tokens),
    ):
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
        "token_spans": [
            span._asdict() for span in token_spans(tokenizer, tokens, response, demonstration.spans)
        ],
    }
