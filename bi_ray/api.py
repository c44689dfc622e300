"""The Python API: ``bi_ray.generate``, ``bi_ray.inject`` and ``bi_ray.check``, on
`datasets.Dataset` objects.

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

from bi_ray.config import (
    BehaviorConfig,
    Config,
    ConfigError,
    RecipeConfig,
    RunConfig,
    SetName,
    TaskConfig,
    VerifierConfig,
    load_config,
)
from bi_ray.data.columns import ExtraColumns
from bi_ray.data.export import DEMONSTRATION_SCHEMA, PROBLEM_SCHEMA
from bi_ray.data.generation import distinct_problems
from bi_ray.data.sets import read_manifest
from bi_ray.injection.recipes import CountTokens
from bi_ray.injection.rows import Extractor, inject_rows, recipe_of
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
_GRADE_SCHEMA = pa.schema(
    {"id": pa.string()}
    | dict.fromkeys(("right", "format_right", "trace_valid"), pa.bool_())
    | dict.fromkeys(
        ("steps", "first_bad_step", "bad_response_line", "right_reflections"), pa.int64()
    )
    | dict.fromkeys(("bad_line", "reason"), pa.string())
    | {"behaviors": _BEHAVIORS}
)


def generate(
    config: RunConfig | str | Path,
    set: SetName = "sft",
    problems: int | None = None,
    processes: int = 1,
) -> Dataset:
    """The first problems of a set that differ from one another, in memory.

    Args:
        config: of a run, or its YAML file; its task and data seed are used.
        set: which set.
        problems: how many; None: as many as the configuration says.
        processes: how many make them; the outcome does not depend on it. With more than one, a
            script needs the usual ``if __name__ == "__main__":``.

    Returns:
        Columns id, question, answer, graph (JSON) and hash (of the graph).

    Raises:
        ConfigError: the configuration is faulty, or has no such set.
        DataError: there are not so many different problems.
    """
    run = config if isinstance(config, RunConfig) else load_config(config, RunConfig)
    configured = problems_of(run, set)
    count = configured if problems is None else problems
    if count is not None and count < 1:
        raise ConfigError(f"problems: {count} is not 1 or more")
    task = build_task(run.task, run.seeds.data, run.verifier)
    made = distinct_problems(run.task, run.seeds.data, set, count, processes, task=task)
    return _dataset([row for _, row in made], PROBLEM_SCHEMA)


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
    """Demonstrations with behaviors in them, each recomputed line by line before it is given back.

    Args:
        dataset: rows with a question, and a graph or a question that ``task`` can read; or the path
            of a .jsonl or .parquet file, a `datasets` directory, or what `bi-ray data` wrote.
        behaviors: such as ``["reflection:0.2", "subgoal"]``; applied in this order.
        recipe: in their place, a recipe such as ``"bridge"``.
        task: words the chains of thought: a task, its configuration, a RunConfig or the YAML file
            of one. None: what the directory's manifest says, where `bi-ray` made it.
        seed: what is injected into a row depends on it and the row's id.
        extractor: for free text, see ``bi_ray.injection.rows``.
        tokenizer: directory of one, for recipes with filler or a token budget.
        strict: whether the first bad row is an error; else it is left out, with a warning at the
            end.
        rejects: takes what was left out, without a warning; its own ``strict`` counts then.
        processes: how many inject, where no ``extractor`` is given; see ``generate``.

    Returns:
        Columns id, question, answer, response, spans (start, end, behavior: characters of the
        response) and graph; then the rows' further columns (``bi_ray.data.columns``).

    Raises:
        ConfigError: no such recipe or behavior, or no task.
        DataError: a bad row, where ``strict``; or a file that cannot be read.
    """
    wanted = recipe if isinstance(recipe, RecipeConfig) else recipe_of(recipe, behaviors)
    worder = None if extractor and task is None else task_of(task, dataset)
    left_out = Rejects(strict) if rejects is None else rejects
    rows = list(
        inject_rows(
            _numbered(dataset, left_out), worder, wanted, seed, left_out, extractor,
            token_counter(tokenizer) if tokenizer else None, processes,
        )
    )  # fmt: skip
    _warn(left_out, rejects)
    extra = ExtraColumns(rows)
    schema = pa.schema([*DEMONSTRATION_SCHEMA, *extra.schema])
    return _dataset([row | extra.of(row) for row in rows], schema)


def token_counter(tokenizer: str | Path) -> CountTokens:
    """Counts the tokens of a text with the tokenizer of a directory; other processes can be given
    it.
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
    """Responses graded, whoever wrote them: the answer, the format, and every line of the chain of
    thought.

    They are judged in a process of their own. A response whose judgment fails, or takes longer than
    ``sample_timeout_s``, is left out like a row with nothing to grade.

    Args:
        dataset: as for ``inject``, with a response (or completion, or messages) in every row.
        task: as for ``inject``.
        strict: whether a row with nothing to grade is an error; else it is left out, with a warning
            at the end.
        rejects: as for ``inject``.
        verifier: the limits; None: those of ``task`` where it is a RunConfig or its file, else the
            defaults.

    Returns:
        A row per graded response with the fields of ``bi_ray.verification.grading.Grade``;
        behaviors with how many lines show each.

    Raises:
        ConfigError, DataError: as ``inject``.
    """
    left_out, rows = Rejects(strict) if rejects is None else rejects, []
    limits = verifier or _limits_of(task)
    for _, grade in grade_rows(
        _numbered(dataset, left_out), task_of(task, dataset), left_out, limits
    ):
        shown = [{"behavior": name, "lines": lines} for name, lines in grade.behaviors.items()]
        rows.append(grade.as_json() | {"behaviors": shown})
    _warn(left_out, rejects)
    return _dataset(rows, _GRADE_SCHEMA)


def problems_of(config: RunConfig, name: str) -> int | None:
    """How many problems a configuration wants of a set; None: all that its files have.

    Raises:
        ConfigError: it has no such set.
    """
    sets: Mapping[str, Any] = config.task.sets  # type: ignore[assignment]  # its keys are names of sets
    if name not in sets:
        raise ConfigError(f"no set {name}: the configuration has {', '.join(sets)}")
    return sets[name].problems


def _limits_of(source: Any) -> VerifierConfig:
    run = load_config(source, RunConfig) if isinstance(source, str | Path) else source
    return run.verifier if isinstance(run, RunConfig) else VerifierConfig()


def task_of(source: Any, data: Any = None, seed: int = 0) -> Task:
    """The task that somebody means.

    Args:
        source: a task, its configuration, a RunConfig or its YAML file; None: what the manifest of
            ``data`` says.
        data: the path of a directory that `bi-ray data` or `bi-ray inject` made, or anything else.
        seed: of a task's bare configuration; it does not touch how questions are read and worded.

    Raises:
        ConfigError: the configuration is faulty, or nothing says what the task is.
        DataError: there is no such file as ``data``.
    """
    if isinstance(data, str | Path) and not Path(data).exists():
        raise DataError(f"{data}: no such file; paths start at the working directory")
    if isinstance(source, str | Path):
        source = load_config(source, RunConfig)
    if isinstance(source, RunConfig):
        return build_task(source.task, source.seeds.data, source.verifier)
    if isinstance(source, Config):
        return build_task(source, seed)  # type: ignore[arg-type]  # any of the tasks' configurations
    if source is not None and not isinstance(source, Mapping):
        if not hasattr(source, "parse_trace"):
            raise ConfigError(f"task: {source!r} is no task, and no configuration of one")
        return source
    if source is None:
        made_from = (
            read_manifest(Path(data)).get("made_from", {}) if isinstance(data, str | Path) else {}
        )
        source, seed = made_from.get("task"), made_from.get("data_seed") or seed
        if source is None and "extraction" in made_from:
            return FreeTextTask()
    if source is None:
        raise ConfigError(
            "nothing says which task this is: give the configuration of a run (task=, or --config)"
        )
    try:
        union: Any = Annotated[TaskConfig, None]
        config = TypeAdapter(union).validate_python(source)
    except ValidationError as error:
        raise ConfigError(
            f"the task {source!r:.80} is not known here: {error.errors()[0]['msg']}"
        ) from error
    return build_task(config, seed)


def _numbered(dataset: Any, rejects: Rejects) -> Iterator[NumberedRow]:
    if isinstance(dataset, str | Path):
        yield from rows_of(Path(dataset), rejects)
        return
    if hasattr(dataset, "iterrows"):  # a pandas frame gives its columns where rows are meant
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
    """Say what was left out to those who did not ask for it."""
    if left_out.rows and asked_for is None:
        warnings.warn("\n".join(left_out.summary()), stacklevel=3)
