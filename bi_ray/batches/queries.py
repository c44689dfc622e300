"""Which queries an RL step trains on: a pure function of the seed and the step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from bi_ray.batches.groups import JudgedGroup, refill
from bi_ray.config.training import RLConfig


def next_queries(
    problems: int,
    asked: Sequence[int],
    judged: Sequence[JudgedGroup],
    rounds: int,
    step: int,
    rl: RLConfig,
    seed: int,
) -> list[int]:
    """Indices of the queries that ``step`` samples next; empty when it has enough.

    The first round takes those of ``step_prompts``. With dynamic sampling, further ones make up
    for the groups that teach nothing (``groups.refill``).

    Args:
        problems: number of problems.
        asked: indices that the step has sampled so far, in order.
        judged: their groups, without those that failed.
        rounds: rounds of sampling so far.
        step: the RL step, 1-based.
        rl: sizes of a step.
        seed: the run's sampling seed.
    """
    if rounds == 0:
        return step_prompts(problems, rl.prompts_per_step, step, seed)
    return refill_prompts(problems, asked, refill(judged, rounds, rl), step, seed)


def step_prompts(problems: int, prompts_per_step: int, step: int, seed: int) -> list[int]:
    """Indices of the queries of ``step`` (1-based), from an endless stream of shuffled passes.

    No query comes twice before all have come once; a step that reaches the end of a pass over the
    ``problems`` problems continues with the next pass.
    """
    start = (step - 1) * prompts_per_step
    positions = range(start, start + prompts_per_step)
    return [_query_at(problems, position, seed) for position in positions]


def refill_prompts(
    problems: int, asked: Sequence[int], count: int, step: int, seed: int
) -> list[int]:
    """``count`` more queries for ``step`` (see ``groups.refill``), or as many as are left.

    They come from a separate shuffle, so that the stream of ``step_prompts`` is the same whatever
    was refilled.

    Args:
        problems: number of problems.
        asked: indices that the step already has; none of them comes again.
        count: number of queries wanted.
        step: the RL step, 1-based.
        seed: the run's sampling seed.
    """
    if not count:
        return []
    order = list(range(problems))
    random.Random(f"{seed}/refill/{step}").shuffle(order)
    taken = set(asked)
    return [index for index in order if index not in taken][:count]


def _query_at(problems: int, position: int, seed: int) -> int:
    """The query at a position of the stream, from 0."""
    epoch, offset = divmod(position, problems)
    return _shuffled(problems, epoch, seed)[offset]


@lru_cache(maxsize=2)
def _shuffled(problems: int, epoch: int, seed: int) -> list[int]:
    order = list(range(problems))
    random.Random(f"{seed}/queries/{epoch}").shuffle(order)
    return order
