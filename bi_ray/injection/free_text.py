"""Graphs for rows of free text: a language model finds them, exact arithmetic proves them.

See docs/extract.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bi_ray.config.extraction import ExtractConfig
from bi_ray.injection.user_rows import Extractor
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
    """The extractor that ``inject`` calls for the rows that no task can read.

    Args:
        options: the endpoint and its limits.
        cache_dir: where its answers are kept; the same rows cost nothing a second time.
        on_progress: called with the number of rows done, and of rows asked about together.
    """

    def extract_all(rows: Sequence[Fields]) -> list[tuple[Task, Problem] | RowError]:
        contents = list(map(_content_of, rows))
        with ThreadPoolExecutor(1) as thread:  # its own event loop, also where a notebook runs one
            result = thread.submit(extract, contents, options, cache_dir, on_progress).result()
        task = FreeTextTask(result.rows)
        outcomes: dict[int, tuple[Task, Problem] | RowError] = {}
        for row in result.rows:
            outcomes[row.number] = (task, task.problem_of(row))
        for reject in result.rejects:
            outcomes[reject.number] = RowError(reject.reason)
        return [outcomes[number] for number in range(len(rows))]

    return extract_all


def _content_of(row: Fields) -> dict[str, str]:
    """A row as the extraction reads it."""
    return {
        "question": row.question,
        "chain_of_thought": row.chain_of_thought or row.response or "",
        "answer": row.answer or "",
    }
