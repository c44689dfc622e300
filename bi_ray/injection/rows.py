"""Behavior injection into rows that somebody has: row by row, each proven right before it is given
back.

A row's graph is its own (column ``graph``), or read from a templated question by the task, or, for
free text, extracted by a language model. Whatever does not come out right is a reject with its
place and reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from bi_ray.config import RECIPES, BehaviorConfig, ConfigError, RecipeConfig
from bi_ray.data.columns import extra_columns
from bi_ray.data.processes import in_processes
from bi_ray.data.seen import Seen
from bi_ray.injection.behaviors import BEHAVIORS
from bi_ray.injection.recipes import CountTokens, Demonstration, InjectionError, Recipe
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields, NumberedRow, fields_of
from bi_ray.rows.rejects import DataError, Place, Rejects, RowValues
from bi_ray.tasks.base import Problem, Task
from bi_ray.tasks.reading import problem_of

# For rows of free text: the task that words each one's chain of thought with its problem, or why
# there is none.
Extractor = Callable[[Sequence[Fields]], list[tuple[Task, Problem] | RowError]]
_ROWS_PER_EXTRACTION = 256  # asked for together
_ROWS_PER_CALL = 64  # that a process injects at a time


def recipe_of(
    name: str | None = None,
    behaviors: Iterable[str | BehaviorConfig] = (),
    arms: Mapping[str, RecipeConfig] | None = None,
) -> RecipeConfig:
    """A recipe by its name, or of named behaviors.

    Args:
        name: one of ``bi_ray.config.RECIPES``, or an arm of ``arms``.
        behaviors: ``name``, ``name:probability``, the same with ``package.module:Class`` for the
            name, or whole configurations; applied in this order.
        arms: recipes of a configuration.

    Raises:
        ConfigError: no such recipe or behavior, none or both of the two given, or a probability
            outside 0..1.
    """
    wanted = [behaviors] if isinstance(behaviors, str) else list(behaviors)
    if (name is None) == (not wanted):
        raise ConfigError(
            "say what to inject: a recipe (bridge, for example) or behaviors, and not both"
        )
    if name is None:
        return RecipeConfig(behaviors=tuple(map(_behavior_of, wanted)))
    known = {one: recipe for one, recipe in (RECIPES | dict(arms or {})).items() if recipe.sft}
    if name not in known:
        usable = [one for one, recipe in known.items() if not recipe.same_total_as]
        raise ConfigError(f"no recipe is called {name!r}; known: {', '.join(usable)}")
    if known[name].same_total_as:
        raise ConfigError(
            f"{name} takes more problems than there are rows: make it an arm of a run"
        )
    return known[name]


def _behavior_of(wanted: str | BehaviorConfig) -> BehaviorConfig:
    if isinstance(wanted, BehaviorConfig):
        return wanted
    name, _, probability = wanted.partition(":")
    if name not in BEHAVIORS and probability[:1].isalpha():  # module:Class
        place, _, probability = probability.partition(":")
        name = f"{name}:{place}"
    elif name not in BEHAVIORS:
        raise ConfigError(
            f"no behavior is called {name!r}; known: {', '.join(BEHAVIORS)}, or package.module:Class"
        )
    if not probability:
        return RECIPES[name].behaviors[0] if name in RECIPES else BehaviorConfig(name=name)
    try:
        return BehaviorConfig(name=name, probability=float(probability))
    except ValueError as error:
        raise ConfigError(
            f"{wanted}: write {name}:PROBABILITY with a number from 0 to 1"
        ) from error


def inject_rows(
    rows: Iterable[NumberedRow],
    task: Task | None,
    recipe: RecipeConfig,
    seed: int,
    rejects: Rejects,
    extractor: Extractor | None = None,
    count_tokens: CountTokens | None = None,
    processes: int = 1,
) -> Iterator[dict[str, Any]]:
    """The demonstrations of each good row, in the order of the rows, as they come.

    Args:
        rows: see ``bi_ray.rows.fields.rows_of``.
        task: reads templated questions and words the chains of thought; None where all is free
            text.
        recipe: what to inject.
        seed: of the recipe; what is injected into a row depends on it and the row's id.
        rejects: gets the bad rows.
        extractor: for the rows that the task does not know.
        count_tokens: length of a response in tokens, for recipes with filler or a budget.
        processes: how many inject, where nothing is to be extracted; the outcome does not depend on
            it. They are started afresh (spawn), and get the task and ``count_tokens`` pickled.

    Yields:
        id, question, answer, response, spans (start, end, behavior) and graph (JSON); then the
        row's extra columns.

    Raises:
        ConfigError: the recipe cannot be used.
    """
    if recipe.counts_tokens and count_tokens is None:
        raise ConfigError(
            "filler and max_trace_tokens are counted in tokens and need a tokenizer: --tokenizer DIR"
        )
    try:
        maker = Recipe(recipe.for_task(task.kind if task else ""), seed, count_tokens)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    done: Generator[tuple[list[NumberedRow], list[_Outcome]], None, None]
    if processes == 1 or extractor:
        blocks = _blocks(rows, _ROWS_PER_EXTRACTION if extractor else 1)
        done = ((block, _inject(block, task, maker, extractor)) for block in blocks)
    else:
        done = in_processes(
            _Injector,
            (task, recipe, seed, count_tokens),
            _blocks(rows, _ROWS_PER_CALL),
            processes,
        )
    seen = Seen()
    with closing(done):
        for block, outcomes in done:
            for (place, row), outcome in zip(block, outcomes, strict=True):
                reason = outcome.fault
                for what, key in outcome.keys:
                    before, line = len(seen), seen.first(key, place.line)
                    if len(seen) == before:
                        reason = f"duplicate {what}: line {line} has it too"
                        break
                if reason is None:
                    yield from outcome.made
                else:
                    rejects.add(place, reason, dict(row))
    # lines that are no JSON were read ahead
    rejects.rows.sort(key=lambda reject: (reject.file, reject.line))


class _Outcome(NamedTuple):
    """What became of a row: demonstrations, or a fault; and by what another row is known as the
    same.
    """

    made: Sequence[dict[str, Any]] = ()
    fault: str | None = None
    keys: Sequence[tuple[str, int]] = ()


def _inject(
    block: Sequence[NumberedRow],
    task: Task | None,
    maker: Recipe,
    extractor: Extractor | None = None,
) -> list[_Outcome]:
    return [
        _Outcome(fault=str(problem))
        if isinstance(problem, RowError)
        else _demonstrated(*problem, row, maker)
        for (_, row), problem in zip(block, _problems(block, task, extractor), strict=True)
    ]


def _demonstrated(worder: Task, problem: Problem, row: RowValues, maker: Recipe) -> _Outcome:
    keys = [
        (what, int.from_bytes(hashlib.blake2b(f"{what} {value}".encode(), digest_size=8).digest()))
        for what, value in (("question", problem.question), ("id", problem.id))
    ]
    try:
        extra = extra_columns(row)
        made = [demonstration_row(one) | extra for one in maker.demonstrations(worder, problem)]
    except (RowError, InjectionError) as error:  # the place says which row it is
        return _Outcome(fault=str(error).removeprefix(f"{problem.id}, "), keys=keys)
    return _Outcome(made, keys=keys)


class _Injector:
    """Injects a recipe into blocks of rows, in a process of its own."""

    def __init__(
        self, task: Task | None, recipe: RecipeConfig, seed: int, count_tokens: CountTokens | None
    ) -> None:
        kind = task.kind if task else ""
        self._task = task
        self._recipe = Recipe(recipe.for_task(kind), seed, count_tokens)

    def __call__(self, block: Sequence[NumberedRow]) -> list[_Outcome]:
        return _inject(block, self._task, self._recipe)


def _blocks(rows: Iterable[NumberedRow], size: int) -> Iterator[list[NumberedRow]]:
    """Rows by so many; where reading them fails, those before come first."""
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


def _problems(
    block: Sequence[NumberedRow], task: Task | None, extractor: Extractor | None
) -> Iterator[tuple[Task, Problem] | RowError]:
    """The task and problem of each row, or why there is none; free text is extracted together."""
    found = [_templated(place, row, task, free_text=extractor is not None) for place, row in block]
    unread = [one for one in found if isinstance(one, Fields)]
    extracted = iter(extractor(unread) if extractor and unread else ())
    for (place, _), one in zip(block, found, strict=True):
        problem = next(extracted) if isinstance(one, Fields) else one
        if isinstance(one, Fields) and not isinstance(problem, RowError):
            problem = problem[0], replace(problem[1], id=one.id or f"row-{place.line}")
        yield problem


def _templated(
    place: Place, row: RowValues, task: Task | None, free_text: bool
) -> tuple[Task, Problem] | Fields | RowError:
    """The problem of a row; its fields where only an extraction can say what it is."""
    try:
        fields = fields_of(row)
    except RowError as error:
        return error
    try:
        return problem_of(fields, task, place)
    except RowError as error:
        return fields if free_text and fields.graph is None else error


def demonstration_row(made: Demonstration) -> dict[str, Any]:
    """A demonstration as a row; further ones of a problem have a number behind its id."""
    problem = made.problem
    return {
        "id": f"{problem.id}/{made.copy}" if made.copy else problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "response": made.response,
        "spans": [span._asdict() for span in made.spans],
        "graph": problem.graph.to_json() if problem.graph else "",
    }
