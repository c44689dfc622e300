"""The files of readiness as dataclasses: measured before RL, by real steps, and during RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bi_ray.intervals import Interval
from bi_ray.runs.records import damaged, read_jsonl, read_record


class BehaviorPart(NamedTuple):
    """What one behavior contributes to a query's influence; a list in JSON.

    Attributes:
        tokens: number of tokens that the behavior wrote.
        dj: the part of ``dj`` that these tokens carry.
    """

    tokens: int
    dj: float


@dataclass(frozen=True, slots=True)
class Influence:
    """What training on one query does to the target, per unit of learning rate.

    Attributes:
        k_plus: mean over its right rollouts of <v, grad log pi(o|q)>; None if none is right.
        k_minus: the same over the wrong ones.
        dj: the influence: mean over its rollouts of A(q, o) <v, grad log pi(o|q)>.
        behaviors: number of tokens and part of ``dj``, by behavior; empty if nobody asked.
    """

    k_plus: float | None
    k_minus: float | None
    dj: float
    behaviors: dict[str, BehaviorPart]


@dataclass(frozen=True, slots=True)
class AllAgainstAll:
    """Mean influence of a query on all queries, and the part that it has on itself."""

    dj: float
    self_term: float


@dataclass(frozen=True, slots=True)
class MeasuredQuery:
    """A row of ``queries.jsonl``.

    Attributes:
        id: id of the query.
        right: number of its rollouts that are right.
        of: number of its rollouts.
        response_tokens: see ``accuracy.ResponseSummary``, also for the next four.
        entropy: nats per token, over its rollouts.
        influence: by token scale.
        all_against_all: None where the gradients did not fit into memory.
    """

    id: str
    right: int
    of: int
    response_tokens: float
    truncated: float
    format_right: float
    trace_valid: float | None
    behaviors: dict[str, float]
    influence: dict[str, Influence]
    entropy: float
    all_against_all: AllAgainstAll | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as the file holds it."""
        return _without_none(asdict(self), "all_against_all")


@dataclass(frozen=True, slots=True)
class Target:
    """How large the target is, and its mean reward, the estimate of J."""

    queries: int
    rollouts: int
    reward: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Sum and number of pairwise influences between two accuracy groups.

    Attributes:
        row: number of right rollouts of the queries that are acted on.
        column: number of right rollouts of the queries that are trained on.
        sum: sum of the influences, without those of a query on itself.
        count: number of these influences.
    """

    row: int
    column: int
    sum: float
    count: int


@dataclass(frozen=True, slots=True)
class MeasuredPolicy:
    """``readiness.json``: what belongs to the policy as a whole.

    Attributes:
        target: on which influence was measured.
        direction_norm: Euclidean length of the target's gradient, by token scale.
        halves_cosine: ``influence.direction_in_halves``, by token scale.
        pairs: None where the gradients did not fit into memory.
        perplexity: of each held-out demonstration, by whose demonstrations they are.
    """

    target: Target | None = None
    direction_norm: dict[str, float] = field(default_factory=dict)
    halves_cosine: dict[str, float | None] = field(default_factory=dict)
    pairs: list[Pair] | None = None
    perplexity: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The policy as the file holds it."""
        return _without_none(asdict(self), "pairs")


@dataclass(frozen=True, slots=True)
class Step:
    """Change of expected reward by one real SGD step, predicted and realized.

    Attributes:
        predicted: to first order.
        realized: of the step ahead, with its 95 % interval ``low`` to ``high``.
        odd: half of ahead minus back, with its 95 % interval ``odd_low`` to ``odd_high``.
    """

    predicted: float
    realized: float
    low: float
    high: float
    odd: float
    odd_low: float
    odd_high: float

    @property
    def step_interval(self) -> Interval:
        """The change by the step ahead alone."""
        return Interval(self.realized, self.low, self.high)

    @property
    def odd_interval(self) -> Interval:
        """The change to first order."""
        return Interval(self.odd, self.odd_low, self.odd_high)


@dataclass(frozen=True, slots=True)
class Point(Step):
    """The step along one query, with the query's id and how many of its rollouts are right."""

    query: str
    right: int
    of: int


@dataclass(frozen=True, slots=True)
class UnchangedPolicy:
    """How much fresh samples of one and the same policy differ."""

    noise_floor: float


@dataclass(frozen=True, slots=True)
class Realized:
    """``realized.json``.

    Attributes:
        points: a real step along each query.
        control: a step along the target's own gradient, the most that such a step can do.
        unchanged_policy: the noise of the measurement.
        step_norm: Euclidean length of every step.
    """

    points: list[Point]
    control: Step
    unchanged_policy: UnchangedPolicy
    step_norm: float


@dataclass(frozen=True, slots=True)
class WatchedQuery:
    """A query of an analysis during RL; see ``Influence``."""

    right: int
    of: int
    k_plus: float | None
    k_minus: float | None
    dj: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The target's reward at one step of RL, held against an earlier forecast.

    Attributes:
        target_reward: mean reward on the target.
        target_se: its standard error.
        since: the earlier step that made the forecast; None if there is nothing to compare with,
            also for the next three.
        predicted: change of expected reward since then, to first order.
        realized: the same, from fresh samples of the problems that both steps have.
        noise: standard error of ``realized``.
    """

    target_reward: float
    target_se: float
    since: int | None = None
    predicted: float | None = None
    realized: float | None = None
    noise: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Comparison):
    """A row of ``influence.jsonl``: an analysis during RL.

    Attributes:
        step: number of RL steps that the policy has behind it.
        queries: the informative queries of the step.
    """

    step: int
    queries: list[WatchedQuery]


def _without_none(row: dict[str, Any], name: str) -> dict[str, Any]:
    if row[name] is None:
        del row[name]
    return row


def read_queries(files: Sequence[Path]) -> list[list[MeasuredQuery]]:
    """The measured queries of each seed; all were measured in the same way.

    Raises:
        RunError: a file is missing, empty, damaged or measured in another way; the message names
            it, and the line.
    """
    seeds = []
    for file in files:
        rows = read_jsonl(file, MeasuredQuery)
        if not rows:
            raise damaged(file, "it is empty")
        seeds.append(rows)
    first = seeds[0][0]
    for file, rows in zip(files, seeds, strict=True):
        for number, row in enumerate(rows, start=1):
            if not _measured_alike(row, first):
                raise damaged(file, f"line {number} does not fit the first one")
    return seeds


def _measured_alike(row: MeasuredQuery, first: MeasuredQuery) -> bool:
    same_scales = row.influence.keys() == first.influence.keys()
    same_behaviors = row.behaviors.keys() == first.behaviors.keys()
    return same_scales and same_behaviors and row.of == first.of and 0 <= row.right <= row.of


def read_policy(file: Path, query: MeasuredQuery) -> MeasuredPolicy:
    """The policy's own record.

    Raises:
        RunError: it is missing or damaged, or lacks what goes with a query such as ``query``.
    """
    policy = read_record(file, MeasuredPolicy)
    if query.all_against_all is not None and policy.pairs is None:
        raise damaged(file, "pairs is missing")
    return policy
