"""The distinct problems of a set, made in any number of processes, always the same.

Item i of a set is a pure function of the task's configuration, the set, the seed and i, so each
process makes slices of the set by itself. Which items are kept is decided in the order of i, by the
hash of their graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

from bi_ray.config.base import SetName
from bi_ray.data.processes import T, in_processes
from bi_ray.data.seen import Seen
from bi_ray.rows.rejects import DataError
from bi_ray.tasks.base import FiniteTask, Problem, Task
from bi_ray.tasks.registry import build_task

Row = dict[str, Any]  # of a set, see ``problem_row``
Numbered = Generator[tuple[int, Row], None, None]
_ITEMS_PER_CALL = 64  # that a process makes at a time
_DRAWS_PER_PROBLEM = 20  # before a set is said to repeat itself too often


def problem_row(problem: Problem) -> Row:
    """A problem as data: id, question, answer, graph (JSON) and hash.

    The hash is the graph's, 16 hexadecimal digits. Without a graph it is the question's, and graph
    is "".
    """
    return {
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "graph": problem.graph.to_json() if problem.graph else "",
        "hash": problem.hash(),
    }


def problems(
    task: Task, name: SetName, first: int = 0
) -> Generator[tuple[int, Problem], None, None]:
    """Every item of a set from ``first`` on, with its index; a set of files ends."""
    indices: Iterable[int] = itertools.count(first)
    if isinstance(task, FiniteTask):
        indices = range(first, task.available(name))
    for index in indices:
        yield index, task.problem(name, index)


def items(task: Task, name: SetName, first: int = 0) -> Numbered:
    """The items of ``problems`` as rows."""
    for index, problem in problems(task, name, first):
        yield index, problem_row(problem)


def items_of_processes(
    config: Any, seed: int, name: SetName, processes: int, first: int = 0
) -> Numbered:
    """The same as ``items``, made by several processes; to be closed by who stops asking.

    Args:
        config: of the task.
        seed: the data seed.
        name: which set.
        processes: how many make problems. They are started afresh (spawn), so a script that calls
            this needs the usual ``if __name__ == "__main__":``.
        first: index of the first item.

    Raises:
        DataError: a process died.
        ValueError: the configuration yields no problem of this set.
    """
    jobs = ((name, start) for start in itertools.count(first, _ITEMS_PER_CALL))
    with closing(in_processes(_Maker, (config, seed), jobs, processes)) as slices:
        for (_, start), rows in slices:
            yield from enumerate(rows, start)


def distinct(
    numbered: Iterator[tuple[int, T]],
    hash_of: Callable[[T], str],
    name: SetName,
    count: int | None,
    seen: Seen,
) -> Iterator[tuple[int, T]]:
    """The items that differ from all before them, until ``seen`` holds ``count``.

    Args:
        numbered: the items with their indices.
        hash_of: hexadecimal hash of an item; equal ones have the same.
        name: of the set, for messages.
        count: how many; None: all, until the items end.
        seen: the hashes of what came before; it grows.

    Raises:
        DataError: the set repeats itself too often, or ends.
    """
    while count is None or len(seen) < count:
        index, item = next(numbered, (-1, None))
        if item is None:
            if count is None:
                return
            raise DataError(too_few(name, len(seen), count))
        if seen.add(int(hash_of(item), 16)):
            yield index, item
        elif count is not None and index > _DRAWS_PER_PROBLEM * count:
            raise DataError(
                f"set {name}: only {len(seen)} different problems in {index} draws; ask for fewer, "
                f"or make task.sets.{name} harder (raise its depth or redundant_nodes)"
            )


def too_few(name: SetName, usable: int, count: int) -> str:
    """Says that a set ends before ``count`` problems."""
    return (
        f"set {name}: {usable} usable problems, and {count} are asked for; add rows, or ask for "
        "fewer"
    )


def distinct_problems(
    config: Any,
    seed: int,
    name: SetName,
    count: int | None,
    processes: int = 1,
    first: int = 0,
    seen: Seen | None = None,
    task: Task | None = None,
) -> Numbered:
    """The first ``count`` problems of a set that differ from one another, with their indices.

    Args:
        config: of the task.
        seed: the data seed.
        name: which set.
        count: how many; None: all, which only a set of files has.
        processes: how many make them, where they are not read from files; the outcome does not
            depend on it.
        first: where to continue, with ``seen`` the hashes of what came before.
        seen: see ``first``; it grows.
        task: of this configuration, where there is one already.

    Raises:
        DataError, ValueError: there are fewer.
    """
    # Also where processes make the problems: a fault of the configuration shows as itself.
    task = task or build_task(config, seed)
    if processes == 1 or isinstance(task, FiniteTask):
        source = items(task, name, first)
    else:
        source = items_of_processes(config, seed, name, processes, first)
    if seen is None:
        seen = Seen()
    with closing(source):
        yield from distinct(source, lambda row: row["hash"], name, count, seen)


class _Maker:
    """Makes slices of a set as rows, in a process of its own."""

    def __init__(self, config: Any, seed: int) -> None:
        self._task = build_task(config, seed)

    def __call__(self, job: tuple[SetName, int]) -> list[Row]:
        name, first = job
        indices = range(first, first + _ITEMS_PER_CALL)
        return [problem_row(self._task.problem(name, index)) for index in indices]
