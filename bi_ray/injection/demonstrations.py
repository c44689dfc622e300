"""Demonstrations made for the arms of a run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bi_ray.config.base import SetName
from bi_ray.config.recipes import RecipeConfig
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.config.tasks import AnswerConfig, ReasoningGymConfig, UserDataConfig
from bi_ray.data.generation import distinct, problems
from bi_ray.data.problems import ProblemRow, SetManifest, read_problems
from bi_ray.data.seen import Seen
from bi_ray.injection.recipes import Demonstration, Recipe
from bi_ray.policy.chat import check_tokens, encode_prompt, end_of_turn
from bi_ray.policy.spans import encode_with_ends, token_spans
from bi_ray.reasoning.trace import Span
from bi_ray.rows.fields import MANIFEST
from bi_ray.rows.rejects import REJECTS, DataError, Rejects
from bi_ray.runs.records import read_record
from bi_ray.tasks.base import Problem, Task, text_hash
from bi_ray.tasks.userdata import TRAINING_SETS, UserDataTask, refuse_tested


@dataclass(frozen=True, slots=True)
class DemonstrationsManifest:
    """The part of the manifest of an arm's demonstrations that a run reads again.

    Attributes:
        demonstrations: their number.
    """

    demonstrations: int


class SpanRow(TypedDict):
    """A ``Span`` in a row: of characters or of tokens, the end exclusive."""

    start: int
    end: int
    behavior: str


class SFTRow(TypedDict):
    """A demonstration as SFT reads it.

    ``spans`` are of characters of ``response``, ``token_spans`` are of ``response_tokens``.
    """

    id: str
    problem: str
    question: str
    response: str
    spans: list[SpanRow]
    prompt_tokens: list[int]
    response_tokens: list[int]
    token_spans: list[SpanRow]


def write_demonstrations(
    task: Task,
    config: RecipeConfig,
    run: RunConfig,
    problems: Path,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> dict[str, Any]:
    """Write an arm's demonstrations for the problems of a directory, or those of its own file.

    Bad rows of a user's file are left out and written beside them (``rejects.jsonl``). Under
    ``same_total_as`` further problems of the set ``sft`` are demonstrated until there are as many
    response tokens.

    Returns:
        Their manifest.

    Raises:
        DataError: a demonstration is longer than ``model.max_response_tokens``; no row of a file
            can be used; or there are too few problems.
    """
    is_strict = isinstance(run.task, UserDataConfig) and run.task.strict
    rejects = Rejects(is_strict)
    if config.demonstrations:
        source = _demonstrations_of_file(
            task, config.demonstrations, run, problems.parent, tokenizer, rejects
        )
    else:
        source = read_problems(problems)
    rows = demonstrate(task, config, run, source, tokenizer, rejects)
    if not rows:
        lines = [f"{out.name}: no demonstration can be used", *rejects.summary()]
        raise DataError("\n".join(lines))
    if config.same_total_as:
        longer = demonstrate(task, config.same_total_as, run, source, tokenizer)
        missing = _tokens_of(longer) - _tokens_of(rows)
        known = read_record(problems / MANIFEST, SetManifest).hashes
        rows += _until(missing, task, config, run, known, tokenizer)
    Dataset.from_list(list(map(dict, rows))).save_to_disk(out)
    # a file may have several rows of one problem
    is_from_file = config.demonstrations or isinstance(run.task, UserDataConfig)
    if is_from_file:
        distinct_problems = {row["question"] for row in rows}
    else:
        distinct_problems = {row["problem"] for row in rows}
    manifest = {
        "demonstrations": len(rows),
        "problems": len(distinct_problems),
        "response_tokens": _tokens_of(rows),
        "response_tokens_mean": _tokens_of(rows) / len(rows),
        "behaviors_per_demonstration": _behaviors_per_row(rows),
        "rejected": rejects.summary(),
    }
    (out / MANIFEST).write_text(json.dumps(manifest))
    if rejects.rows:
        rejects.write(out / REJECTS)
    return manifest


def _behaviors_per_row(rows: Sequence[SFTRow]) -> dict[str, float]:
    """Mean number of spans of each behavior."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(span["behavior"] for span in row["spans"])
    return {name: count / len(rows) for name, count in sorted(counts.items())}


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
    else:
        reader, tested = _usual_reader(run), _tested_questions(run, data)
    rows: list[ProblemRow] = []
    for row in reader.read_demonstrations(path, rejects):
        if refuse_tested(row, tested, rejects):
            continue
        prompt = encode_prompt(tokenizer, task.system_prompt, row.question)
        rows.append(
            ProblemRow(
                id=f"{Path(path).stem}-{row.place.line}",
                question=row.question,
                answer=row.answer,
                graph="",
                prompt_tokens=tuple(prompt),
                response=row.response,
                spans=row.spans,
                place=row.place,
            )
        )
    return rows


def _usual_reader(run: RunConfig) -> UserDataTask:
    """Reads a file with the usual field names, whose answers are where the task's are."""
    extract = run.task.extract if isinstance(run.task, ReasoningGymConfig) else "tag"
    answer = AnswerConfig(extract=extract)
    return UserDataTask(UserDataConfig(kind="jsonl", answer=answer, sets={}), 0)


def _tested_questions(run: RunConfig, data: Path) -> dict[str, SetName]:
    """Hash of every question that the run tests with, and the set that has it."""
    tested: dict[str, SetName] = {}
    for name in run.task.sets:
        if name not in TRAINING_SETS:
            for row in read_problems(data / name):
                tested[text_hash(row.question)] = name
    return tested


def _tokens_of(rows: Sequence[SFTRow]) -> int:
    return sum(len(row["response_tokens"]) for row in rows)


def _until(
    tokens: int,
    task: Task,
    config: RecipeConfig,
    run: RunConfig,
    known: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[SFTRow]:
    """Demonstrations of further problems of the set ``sft``, with ``tokens`` or nearly as many.

    Args:
        tokens: response tokens that are missing.
        task: makes the problems.
        config: the arm's recipe.
        run: the run.
        known: graph hashes of the set's problems that are demonstrated already.
        tokenizer: the policy's.
    """
    seen = Seen([int(graph_hash, 16) for graph_hash in known])
    # every known problem took a draw of its own, so new ones come after that many draws
    further = problems(task, "sft", len(known))
    for _, problem in distinct(further, Problem.hash, "sft", sys.maxsize, seen):
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
) -> list[SFTRow]:
    """The demonstrations of each problem: text, tokens of prompt and response, behaviors' spans.

    ``spans`` are characters of ``response``, ``token_spans`` are of ``response_tokens``
    (``policy.spans``). A row of a user's file whose demonstration is too long goes to ``rejects``,
    where there is one.

    Raises:
        DataError: a demonstration, or a prompt that it varies, is too long.
    """
    recipe = make_recipe(config, run, tokenizer)
    rows: list[SFTRow] = []
    for problem in problems:
        for demonstration in recipe.demonstrations(task, problem.problem()):
            row = _sft_row(problem, demonstration, task, tokenizer)
            reason = _too_long(row, run.model)
            if reason is None:
                rows.append(row)
            elif problem.place and rejects is not None:
                reason = f"demonstration too long: {reason}"
                rejects.add(problem.place, reason, problem.response)
            else:
                raise DataError(
                    f"{problem.id}: its demonstration has {reason} "
                    "or make the problems of its set smaller"
                )
    return rows


def _too_long(row: SFTRow, model: ModelConfig) -> str | None:
    """What to change where a demonstration, or a prompt that it varies, has too many tokens."""
    lengths = {
        "prompt": (len(row["prompt_tokens"]), model.max_prompt_tokens),
        "response": (len(row["response_tokens"]), model.max_response_tokens),
    }
    for name, (length, limit) in lengths.items():
        if length > limit:
            return f"{length} tokens of {name}; raise model.max_{name}_tokens ({limit})"
    return None


def make_recipe(config: RecipeConfig, run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """A recipe for the run's task that counts in the policy's tokens."""
    return Recipe(
        config.for_task(run.task.kind),
        run.seeds.data,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
    )


def _sft_row(
    row: ProblemRow, demonstration: Demonstration, task: Task, tokenizer: PreTrainedTokenizerBase
) -> SFTRow:
    question, response = demonstration.problem.question, demonstration.response
    prompt = list(row.prompt_tokens)
    if question != row.question:
        prompt = encode_prompt(tokenizer, task.system_prompt, question)
    tokens = [*encode_with_ends(tokenizer, response)[0], end_of_turn(tokenizer)]
    check_tokens(tokenizer, tokens)
    spans = demonstration.spans
    in_tokens = token_spans(tokenizer, tokens, response, spans)
    return {
        "id": f"{row.id}/{demonstration.copy}" if demonstration.copy else row.id,
        "problem": row.id,
        "question": question,
        "response": response,
        "spans": list(map(_span_row, spans)),
        "prompt_tokens": prompt,
        "response_tokens": tokens,
        "token_spans": list(map(_span_row, in_tokens)),
    }


def _span_row(span: Span) -> SpanRow:
    return {"start": span.start, "end": span.end, "behavior": span.behavior}
