"""Behaviors into free text: a language model finds each row's graph, exact arithmetic proves it
(docs/extract.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bi_ray.config import ExtractConfig
from bi_ray.injection.rows import Extractor
from bi_ray.reasoning.extract_client import extract
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import Fields
from bi_ray.tasks.base import Problem, Task
from bi_ray.tasks.freetext import FreeTextTask


def llm_extractor(
    options: ExtractConfig,
    cache_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Extractor:
    """What ``inject`` asks for the rows that no task can read.

    Args:
        options: the endpoint and its limits.
        cache_dir: where its answers are kept; the same rows cost nothing a second time.
        on_progress: called with the rows that are done, and how many were asked for together.
    """

    def extract_all(rows: Sequence[Fields]) -> list[tuple[Task, Problem] | RowError]:
        contents = [
            {
                "question": row.question,
                "chain_of_thought": row.chain_of_thought or row.response or "",
                "answer": row.answer or "",
            }
            for row in rows
        ]
        with ThreadPoolExecutor(1) as thread:  # its own event loop, also where a notebook runs one
            result = thread.submit(extract, contents, options, cache_dir, on_progress).result()
        task = FreeTextTask(result.rows)
        found: dict[int, tuple[Task, Problem] | RowError] = {
            row.number: (task, task.problem_of(row)) for row in result.rows
        }
        found |= {reject.number: RowError(reject.reason) for reject in result.rejects}
        return [found[number] for number in range(len(rows))]

    return extract_all
