"""Behavior injection into a user's rows; each demonstration is proven right before it is returned.

A row's graph is its own (column ``graph``), or read from a templated question by the task, or, for
free text, extracted by a language model. A row that fails becomes a reject with its place and the
reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from bi_ray.config.base import ConfigError
from bi_ray.config.recipes import RECIPES, BehaviorConfig, RecipeConfig
from bi_ray.data.columns import extra_columns
from bi_ray.data.processes import in_processes
from bi_ray.data.seen import Seen
from bi_ray.injection.behaviors import BEHAVIORS
from bi_ray.injection.recipes import CountTokens, Demonstration, InjectionError, Recipe
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields, NumberedRow, fields_of
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues
from bi_ray.tasks.base import Problem, Task
from bi_ray.tasks.reading import id_of, problem_of

# a problem, and the task that words its chain of thought
Worded = tuple[Task, Problem]
# for rows of free text: the worded problem of each, or why there is none
Extractor = Callable[[Sequence[Fields]], list[Worded | RowError]]
_ROWS_PER_EXTRACTION = 256
_ROWS_PER_JOB = 64  # of a process


def recipe_of(
    name: str | None = None,
    behaviors: Iterable[str | BehaviorConfig] = (),
    arms: Mapping[str, RecipeConfig] | None = None,
) -> RecipeConfig:
    """A recipe by its name, or one of named behaviors.

    Args:
        name: one of ``bi_ray.config.RECIPES``, or an arm of ``arms``.
        behaviors: ``name``, ``name:probability``, the same with ``package.module:Class`` as the
            name, or whole configurations; applied in this order.
        arms: recipes of a configuration.

    Raises:
        ConfigError: no such recipe or behavior, neither or both of the two given, or a probability
            outside 0..1.
    """
    listed = [behaviors] if isinstance(behaviors, str) else list(behaviors)
    if (name is None) == (not listed):
        raise ConfigError(
            "say what to inject: a recipe (bridge, for example) or behaviors, and not both"
        )
    if name is None:
        return RecipeConfig(behaviors=tuple(map(_behavior_of, listed)))
    return _recipe_named(name, RECIPES | dict(arms or {}))


def _recipe_named(name: str, recipes: Mapping[str, RecipeConfig]) -> RecipeConfig:
    recipe = recipes.get(name)
    if recipe is None or not recipe.sft:
        usable: list[str] = []
        for other, config in recipes.items():
            if config.sft and not config.same_total_as:
                usable.append(other)
        raise ConfigError(f"no recipe is called {name!r}; known: {', '.join(usable)}")
    if recipe.same_total_as:
        raise ConfigError(
            f"{name} takes more problems than there are rows: make it an arm of a run"
        )
    return recipe


def _behavior_of(wanted: str | BehaviorConfig) -> BehaviorConfig:
    if isinstance(wanted, BehaviorConfig):
        return wanted
    name, _, probability = wanted.partition(":")
    if name not in BEHAVIORS:
        if not probability[:1].isalpha():
            raise ConfigError(
                f"no behavior is called {name!r}; known: {', '.join(BEHAVIORS)}, "
                "or package.module:Class"
            )
        class_name, _, probability = probability.partition(":")
        name = f"{name}:{class_name}"
    if probability:
        try:
            return BehaviorConfig(name=name, probability=float(probability))
        except ValueError as error:
            raise ConfigError(
                f"{wanted}: write {name}:PROBABILITY with a number from 0 to 1"
            ) from error
    if name in RECIPES:
        return RECIPES[name].behaviors[0]
    return BehaviorConfig(name=name)


def inject_rows(
    rows: Iterable[NumberedRow],
    task: Task | None,
    recipe: RecipeConfig,
    seed: int,
    rejects: Rejects,
    extractor: Extractor | None = None,
    count_tokens: CountTokens | None = None,
    processes: int = 1,
) -> Iterator[Row]:
    """The demonstrations of each good row, in the order of the rows.

    Args:
        rows: see ``bi_ray.rows.fields.rows_of``.
        task: reads templated questions and words the chains of thought; None where all is free
            text.
        recipe: what to inject.
        seed: seed of the recipe; what is injected into a row depends on it and the row's id.
        rejects: gets the bad rows.
        extractor: for the rows that the task cannot read.
        count_tokens: length of a response in tokens, for recipes with filler or a budget.
        processes: number of processes, used where there is no ``extractor``; the result does not
            depend on it. They are spawned, and get the task and ``count_tokens`` pickled.

    Yields:
        id, question, answer, response, spans (start, end, behavior) and graph (JSON); then the
        row's extra columns.

    Raises:
        ConfigError: the recipe cannot be used.
    """
    if recipe.counts_tokens and count_tokens is None:
        raise ConfigError(
            "filler and max_trace_tokens are counted in tokens and need a tokenizer: "
            "--tokenizer DIR"
        )
    settings = (task, recipe, seed, count_tokens)
    try:
        injector = _Injector(*settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if processes > 1 and extractor is None:
        blocks = _blocks(rows, _ROWS_PER_JOB)
        results = in_processes(_Injector, settings, blocks, processes)
    else:
        results = _in_this_process(rows, injector, extractor)
    seen = Seen()
    with closing(results):
        for block, outcomes in results:
            for (place, row), outcome in zip(block, outcomes, strict=True):
                reason = _duplicate(outcome, place, seen)
                if reason is None:
                    reason = outcome.fault
                if reason is None:
                    yield from outcome.demonstrations
                else:
                    rejects.add(place, reason, dict(row))
    # lines that are not JSON were read ahead
    rejects.rows.sort(key=lambda reject: (reject.file, reject.line))


Row = dict[str, Any]  # of a file, whose extra columns may hold anything


class _Outcome(NamedTuple):
    """What became of a row.

    Attributes:
        demonstrations: as ``inject_rows`` yields them.
        fault: why there are none.
        keys: hashes of what no two rows may share, with its name.
    """

    demonstrations: Sequence[Row] = ()
    fault: str | None = None
    keys: Sequence[tuple[str, int]] = ()


def _in_this_process(
    rows: Iterable[NumberedRow], injector: _Injector, extractor: Extractor | None
) -> Generator[tuple[list[NumberedRow], list[_Outcome]], None, None]:
    """Blocks of rows, each with the outcomes of its rows."""
    size = _ROWS_PER_EXTRACTION if extractor else 1
    for block in _blocks(rows, size):
        yield block, injector(block, extractor)


def _duplicate(outcome: _Outcome, place: Place, seen: Seen) -> str | None:
    """The reason to reject a row that has the question or the id of an earlier one."""
    for what, key in outcome.keys:
        before = len(seen)
        line = seen.first(key, place.line)
        if len(seen) == before:
            return f"duplicate {what}: line {line} has it too"
    return None


class _Injector:
    """Makes the demonstrations of blocks of rows.

    Raises:
        ValueError, ConfigError: see ``Recipe``.
    """

    def __init__(
        self,
        task: Task | None,
        recipe: RecipeConfig,
        seed: int,
        count_tokens: CountTokens | None,
    ) -> None:
        self.task = task
        kind = task.kind if task else ""
        self.recipe = Recipe(recipe.for_task(kind), seed, count_tokens)

    def __call__(
        self, block: Sequence[NumberedRow], extractor: Extractor | None = None
    ) -> list[_Outcome]:
        """The outcome of each row; those that only ``extractor`` can read go to it together."""
        read = [self._read(place, row, extractor is not None) for place, row in block]
        unread = [fields for fields in read if isinstance(fields, Fields)]
        extracted = iter(extractor(unread) if extractor and unread else ())
        outcomes: list[_Outcome] = []
        for (place, row), problem in zip(block, read, strict=True):
            if isinstance(problem, Fields):
                problem = _named(next(extracted), problem, place)
            outcomes.append(self._outcome(problem, row))
        return outcomes

    def _read(self, place: Place, row: RowValues, is_extracted: bool) -> Worded | Fields | RowError:
        """The problem of a row; its fields if only an extraction can tell what it is."""
        try:
            fields = fields_of(row)
        except RowError as error:
            return error
        try:
            return problem_of(fields, self.task, place)
        except RowError as error:
            if is_extracted and fields.graph is None:
                return fields
            return error

    def _outcome(self, problem: Worded | RowError, row: RowValues) -> _Outcome:
        if isinstance(problem, RowError):
            return _Outcome(fault=str(problem))
        task, content = problem
        keys = [_key("question", content.question), _key("id", content.id)]
        try:
            extra = extra_columns(row)
            demonstrations: list[Row] = []
            for demonstration in self.recipe.demonstrations(task, content):
                demonstrations.append(demonstration_row(demonstration) | extra)
        except (RowError, InjectionError) as error:
            # the place says which row it is
            reason = str(error).removeprefix(f"{content.id}, ")
            return _Outcome(fault=reason, keys=keys)
        return _Outcome(demonstrations, keys=keys)


def _named(extracted: Worded | RowError, fields: Fields, place: Place) -> Worded | RowError:
    """An extracted problem under the row's own id."""
    if isinstance(extracted, RowError):
        return extracted
    task, problem = extracted
    return task, replace(problem, id=id_of(fields, place))


def _key(what: str, value: str) -> tuple[str, int]:
    digest = hashlib.blake2b(f"{what} {value}".encode(), digest_size=8).digest()
    return what, int.from_bytes(digest)


def _blocks(rows: Iterable[NumberedRow], size: int) -> Iterator[list[NumberedRow]]:
    """Rows in blocks of ``size``; if reading fails, the partial block comes before the error."""
    block: list[NumberedRow] = []
    try:
        for row in rows:
            block.append(row)
            if len(block) == size:
                yield block
                block = []
    except DataError:
        if block:
            yield block
        raise
    if block:
        yield block


def demonstration_row(demonstration: Demonstration) -> Row:
    """A demonstration as a row; the id of a further copy ends with its number."""
    problem, copy = demonstration.problem, demonstration.copy
    return {
        "id": f"{problem.id}/{copy}" if copy else problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "response": demonstration.response,
        "spans": [span._asdict() for span in demonstration.spans],
        "graph": problem.graph.to_json() if problem.graph else "",
    }
