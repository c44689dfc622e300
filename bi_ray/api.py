"""The Python API on `datasets.Dataset` objects: ``generate``, ``inject`` and ``check``.

The commands `bi-ray data`, `inject` and `check` do the same from disk to disk, for sets larger than
memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from bi_ray.config.base import Config, ConfigError, SetName
from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.files import load_config
from bi_ray.config.recipes import BehaviorConfig, RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import TaskConfig
from bi_ray.data.columns import ExtraColumns
from bi_ray.data.export import DEMONSTRATION_SCHEMA, PROBLEM_SCHEMA
from bi_ray.data.generation import distinct_problems
from bi_ray.data.sets import read_manifest
from bi_ray.injection.recipes import CountTokens
from bi_ray.injection.user_rows import Extractor, inject_rows, recipe_of
from bi_ray.rows.cells import RowError, plain_row
from bi_ray.rows.fields import NumberedRow, rows_of
from bi_ray.rows.rejects import DataError, Place, Rejects
from bi_ray.tasks.base import Task
from bi_ray.tasks.freetext import FreeTextTask
from bi_ray.tasks.registry import build_task
from bi_ray.verification.grading import grade_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_BEHAVIORS = pa.list_(pa.struct([("behavior", pa.string()), ("lines", pa.int64())]))
_VERDICT_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "right": pa.bool_(),
        "format_right": pa.bool_(),
        "trace_valid": pa.bool_(),
        "steps": pa.int64(),
        "first_bad_step": pa.int64(),
        "bad_response_line": pa.int64(),
        "right_reflections": pa.int64(),
        "bad_line": pa.string(),
        "trace_fault": pa.string(),
        "behaviors": _BEHAVIORS,
    }
)


def generate(
    config: RunConfig | str | Path,
    set: SetName = "sft",
    problems: int | None = None,
    processes: int = 1,
) -> Dataset:
    """The first distinct problems of a set, in memory.

    Args:
        config: a run's configuration, or its YAML file; its task and data seed are used.
        set: name of the set.
        problems: number of problems; None: as many as the configuration says.
        processes: number of processes that make them; the result does not depend on it. With more
            than one, a script needs the usual ``if __name__ == "__main__":``.

    Returns:
        Columns id, question, answer, graph (JSON) and hash (of the graph).

    Raises:
        ConfigError: the configuration is faulty, or has no such set.
        DataError: there are too few distinct problems.
    """
    run = config if isinstance(config, RunConfig) else load_config(config, RunConfig)
    count = problems_of(run, set)
    if problems is not None:
        count = problems
    if count is not None and count < 1:
        raise ConfigError(f"problems: expected 1 or more, got {count}")
    task = build_task(run.task, run.seeds.data, run.verifier)
    numbered = distinct_problems(run.task, run.seeds.data, set, count, processes, task=task)
    return _dataset([row for _, row in numbered], PROBLEM_SCHEMA)


def inject(
    dataset: Dataset | Iterable[Mapping[str, Any]] | str | Path,
    *,
    behaviors: Iterable[str | BehaviorConfig] = (),
    recipe: str | RecipeConfig | None = None,
    task: Task | Config | str | Path | None = None,
    seed: int = 0,
    extractor: Extractor | None = None,
    tokenizer: str | Path | None = None,
    strict: bool = False,
    rejects: Rejects | None = None,
    processes: int = 1,
) -> Dataset:
    """Demonstrations with behaviors in them, each proven right line by line.

    Args:
        dataset: rows with a question, and a graph or a question that ``task`` can read; or the path
            of a .jsonl or .parquet file, a `datasets` directory, or one that `bi-ray data` wrote.
        behaviors: such as ``["reflection:0.2", "subgoal"]``; applied in this order.
        recipe: instead of behaviors, a recipe such as ``"bridge"``.
        task: words the chains of thought: a task, its configuration, a RunConfig or the YAML file
            of one. None: the task in the directory's manifest, where `bi-ray` made it.
        seed: what is injected into a row depends on it and the row's id.
        extractor: for free text, see ``bi_ray.injection.user_rows``.
        tokenizer: directory of a tokenizer, for recipes with filler or a token budget.
        strict: whether the first bad row is an error; else it is left out, with a warning at the
            end.
        rejects: collects what was left out, without a warning; its own ``strict`` counts then.
        processes: number of processes, used where there is no ``extractor``; see ``generate``.

    Returns:
        Columns id, question, answer, response, spans (start, end, behavior: characters of the
        response) and graph; then the rows' further columns (``bi_ray.data.columns``).

    Raises:
        ConfigError: no such recipe or behavior, or no task.
        DataError: a bad row, where ``strict``; or a file that cannot be read.
    """
    if not isinstance(recipe, RecipeConfig):
        recipe = recipe_of(recipe, behaviors)
    worder: Task | None = None
    if task is not None or extractor is None:
        worder = task_of(task, dataset)
    left_out = Rejects(strict) if rejects is None else rejects
    count_tokens = token_counter(tokenizer) if tokenizer else None
    numbered = _numbered(dataset, left_out)
    rows = list(
        inject_rows(numbered, worder, recipe, seed, left_out, extractor, count_tokens, processes)
    )
    _warn(left_out, rejects)
    extra = ExtraColumns(rows)
    schema = pa.schema([*DEMONSTRATION_SCHEMA, *extra.schema])
    return _dataset([row | extra.of(row) for row in rows], schema)


def token_counter(tokenizer: str | Path) -> CountTokens:
    """A function that counts a text's tokens with the tokenizer of a directory; it can be pickled.

    Raises:
        ConfigError: there is no such tokenizer.
    """
    from bi_ray.policy.checkpoint import load_tokenizer

    try:
        return partial(_count_tokens, load_tokenizer(str(tokenizer)))
    except ValueError as error:
        raise ConfigError(f"tokenizer {tokenizer}: {error}") from error


def _count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def check(
    dataset: Dataset | Iterable[Mapping[str, Any]] | str | Path,
    *,
    task: Task | Config | str | Path | None = None,
    strict: bool = False,
    rejects: Rejects | None = None,
    verifier: VerifierConfig | None = None,
) -> Dataset:
    """Judge responses, whoever wrote them: answer, format, and every line of the chain of thought.

    They are judged in a process of their own. A response whose judgment fails, or takes longer than
    ``sample_timeout_s``, is left out like a row with nothing to judge.

    Args:
        dataset: as for ``inject``, with a response (or completion, or messages) in every row.
        task: as for ``inject``.
        strict: whether a row with nothing to judge is an error; else it is left out, with a warning
            at the end.
        rejects: as for ``inject``.
        verifier: the limits; None: those of ``task`` where it is a RunConfig or its file, else the
            defaults.

    Returns:
        A row per judged response with the fields of ``bi_ray.verification.grading.VerdictRow``;
        behaviors is a list of behaviors, each with the number of lines that show it.

    Raises:
        ConfigError, DataError: as ``inject``.
    """
    left_out = Rejects(strict) if rejects is None else rejects
    limits = verifier or _limits_of(task)
    judge_task = task_of(task, dataset)
    rows: list[dict[str, Any]] = []
    for graded in grade_rows(_numbered(dataset, left_out), judge_task, left_out, limits):
        shown: list[dict[str, Any]] = []
        for name, lines in graded.verdict.behaviors.items():
            shown.append({"behavior": name, "lines": lines})
        rows.append({**graded.as_json(), "behaviors": shown})
    _warn(left_out, rejects)
    return _dataset(rows, _VERDICT_SCHEMA)


def problems_of(config: RunConfig, name: str) -> int | None:
    """Configured number of problems of a set; None: all that its files have.

    Raises:
        ConfigError: the configuration has no such set.
    """
    # its keys are names of sets
    sets: Mapping[str, Any] = config.task.sets  # type: ignore[assignment]
    if name not in sets:
        raise ConfigError(f"no set {name}: the configuration has {', '.join(sets)}")
    return sets[name].problems


def _limits_of(source: Any) -> VerifierConfig:
    if isinstance(source, str | Path):
        source = load_config(source, RunConfig)
    if isinstance(source, RunConfig):
        return source.verifier
    return VerifierConfig()


def task_of(source: Any, data: Any = None, seed: int = 0) -> Task:
    """The task that an argument means.

    Args:
        source: a task, its configuration, a RunConfig or its YAML file; None: the task in the
            manifest of ``data``.
        data: the path of a directory that `bi-ray data` or `bi-ray inject` made, or anything else.
        seed: seed of a bare task configuration; it does not affect how questions are read and
            worded.

    Raises:
        ConfigError: the configuration is faulty, or there is no task.
        DataError: there is no such file as ``data``.
    """
    if isinstance(data, str | Path) and not Path(data).exists():
        raise DataError(f"{data}: no such file; paths start at the working directory")
    if source is None:
        return _task_of_manifest(data, seed)
    if isinstance(source, str | Path):
        source = load_config(source, RunConfig)
    if isinstance(source, RunConfig):
        return build_task(source.task, source.seeds.data, source.verifier)
    if isinstance(source, Mapping):
        return _task_of_mapping(source, seed)
    if isinstance(source, Config):
        return build_task(source, seed)  # type: ignore[arg-type]  # any task's configuration
    if not hasattr(source, "parse_trace"):
        raise ConfigError(f"task: expected a task or its configuration, got {source!r}")
    return source


def _task_of_manifest(data: Any, seed: int) -> Task:
    """The task that made a directory."""
    origin: Mapping[str, Any] = {}
    if isinstance(data, str | Path):
        origin = read_manifest(Path(data)).get("made_from", {})
    if origin.get("task") is not None:
        return _task_of_mapping(origin["task"], origin.get("data_seed") or seed)
    if "extraction" in origin:
        return FreeTextTask()
    raise ConfigError(
        "no task given: pass the configuration of a run (task= in Python, --config on the command "
        "line)"
    )


def _task_of_mapping(content: Any, seed: int) -> Task:
    try:
        union: Any = Annotated[TaskConfig, None]
        config = TypeAdapter(union).validate_python(content)
    except ValidationError as error:
        raise ConfigError(f"unknown task {content!r:.80}: {error.errors()[0]['msg']}") from error
    return build_task(config, seed)


def _numbered(dataset: Any, rejects: Rejects) -> Iterator[NumberedRow]:
    if isinstance(dataset, str | Path):
        yield from rows_of(Path(dataset), rejects)
        return
    if hasattr(dataset, "iterrows"):  # iterating over a pandas frame gives its columns
        dataset = dataset.to_dict("records")
    if isinstance(dataset, Mapping) or not isinstance(dataset, Iterable):
        raise ConfigError(
            f"rows are a list of mappings, a Dataset or a path, not a {type(dataset).__name__}"
        )
    for number, row in enumerate(dataset, 1):
        place = Place("the dataset", number)
        if not isinstance(row, Mapping):
            rejects.add(place, f"a row has to be a mapping, found {type(row).__name__}", row)
            continue
        try:
            plain = plain_row(row)
        except RowError as error:
            rejects.add(place, str(error), dict(row))
            continue
        yield place, plain


def _dataset(rows: list[dict[str, Any]], schema: pa.Schema) -> Dataset:
    from datasets import Dataset

    return Dataset(pa.Table.from_pylist(rows, schema))


def _warn(left_out: Rejects, asked_for: Rejects | None) -> None:
    """Warn about what was left out, unless the caller collects it."""
    if left_out.rows and asked_for is None:
        warnings.warn("\n".join(left_out.summary()), stacklevel=3)
