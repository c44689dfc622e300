"""From a recipe to demonstrations: vary, plan, inject, keep to the budget, render, check."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bi_ray.config.recipes import RecipeConfig
from bi_ray.injection.behaviors import Behavior, make_behavior, settle
from bi_ray.injection.filler import fill
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import (
    Plan,
    Span,
    Step,
    StepKind,
    join,
    mark,
    plan_in_order,
    vanilla_plan,
)
from bi_ray.tasks.base import Problem, Task

CountTokens = Callable[[str], int]
# attempts at an order of premises or steps that no other copy has; if there are few orders, some
# appear twice
_DRAWS = 20


class InjectionError(ValueError):
    """A demonstration that the checker refuses: a bug of a behavior or of a task's wording."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response that an arm's SFT learns from.

    Attributes:
        problem: the problem that it solves, as the copy asks it.
        response: the response, as text.
        spans: characters of the response that each injected behavior wrote.
        copy: number of the copy, which distinguishes the demonstrations of one problem.
    """

    problem: Problem
    response: str
    spans: list[Span]
    copy: int = 0


class Recipe:
    """Applies an arm's behaviors to problems, in the order of the configuration.

    Args:
        config: what the demonstrations look like; ``copies`` counts as 1 where it is None
            (``RecipeConfig.for_task``).
        seed: the data seed; a demonstration depends on it, the recipe's own seed, the problem and
            the copy alone.
        count_tokens: length of a response in tokens; needed for ``max_trace_tokens`` and
            ``same_length_as``.

    Raises:
        ValueError: a behavior of the configuration is unknown, or ``count_tokens`` is needed and
            missing.
        ConfigError: a behavior at an import path cannot be loaded.
    """

    def __init__(
        self, config: RecipeConfig, seed: int, count_tokens: CountTokens | None = None
    ) -> None:
        if count_tokens is None and config.counts_tokens:
            raise ValueError(
                "filler and max_trace_tokens are counted in tokens and need a tokenizer"
            )
        self.config = config
        self.behaviors: list[Behavior] = list(map(make_behavior, config.behaviors))
        self.seed = seed
        self.count_tokens = count_tokens
        self.length_reference: Recipe | None = None
        if config.same_length_as:
            self.length_reference = Recipe(config.same_length_as, seed, count_tokens)

    def demonstrate(self, task: Task, problem: Problem) -> Demonstration:
        """The first demonstration for ``problem``.

        It is proven right by the checker; a problem without a graph has its own.

        Raises:
            InjectionError: a line of the demonstration is wrong, or it is longer than
                ``max_trace_tokens`` even without any behavior; or the problem has neither a graph
                nor a response.
        """
        return next(self.demonstrations(task, problem))

    def demonstrations(self, task: Task, problem: Problem) -> Iterator[Demonstration]:
        """``copies`` demonstrations for ``problem``, as different as its copies can be.

        Raises:
            InjectionError: see ``demonstrate``.
        """
        graph = problem.graph
        if graph is None:
            yield self._own_demonstration(problem)
            return
        seen: set[str] = set()
        for copy in range(self.config.copies or 1):
            name = problem.id
            if self.config.seed or copy:
                name = f"{self.config.seed}/{problem.id}/{copy}"
            varied, plan = problem, vanilla_plan(graph)
            if self.config.vary:
                rng = random.Random(f"{self.seed}/vary/{name}")
                varied, plan = self._vary(problem, graph, rng, copy, seen)
            yield self._demonstrate(task, varied, graph, plan, name, copy)

    def _own_demonstration(self, problem: Problem) -> Demonstration:
        """The response that a problem without a graph brings along."""
        rewrites = self.behaviors or self.config.vary or self.length_reference
        if rewrites or not problem.response:
            raise InjectionError(
                f"{problem.id}: no graph, so it needs a response of its own, and takes no behaviors"
            )
        return Demonstration(problem, problem.response, list(problem.spans))

    def _vary(
        self, problem: Problem, graph: Graph, rng: random.Random, copy: int, seen: set[str]
    ) -> tuple[Problem, Plan]:
        """The copy's question and plain plan; the first copy is the problem as it is."""
        plan = vanilla_plan(graph)
        for _ in range(_DRAWS):
            if copy and self.config.vary == "premises":
                problem = replace(problem, question=shuffle_premises(problem.question, rng))
            elif copy and self.config.vary == "order":
                plan = plan_in_order(random_order(graph, rng))
            order = [step.node for step in plan]
            copy_key = "\n".join([problem.question, *order])
            if copy_key not in seen:
                seen.add(copy_key)
                break
        return problem, plan

    def _demonstrate(
        self, task: Task, problem: Problem, graph: Graph, plan: Plan, name: str, copy: int
    ) -> Demonstration:
        applied: Counter[type[Behavior]] = Counter()
        for behavior in self.behaviors:
            earlier = applied[type(behavior)]
            applied[type(behavior)] += 1
            stream = f"{self.seed}/recipe/{name}/{behavior_name(behavior)}/{earlier}"
            plan = settle(behavior.apply(plan, graph, random.Random(stream)), graph)
        response, spans = self._within_budget(task, plan, problem.id, graph)
        if self.length_reference:
            assert self.count_tokens is not None  # checked in the constructor
            longer = self.length_reference.demonstrate(task, problem).response
            length = self.count_tokens(longer)
            response = fill(response, task.parse_trace(response), length, self.count_tokens)
        report = check_trace(task.parse_trace(response), graph, task.notation)
        if not report.valid or task.parse_answer(response) != problem.answer:
            raise InjectionError(f"{problem.id}, line {report.first_bad_step}: {report.reason}")
        return Demonstration(problem, response, spans, copy)

    def _within_budget(
        self, task: Task, plan: Plan, name: str, graph: Graph
    ) -> tuple[str, list[Span]]:
        """The rendered plan; behaviors are taken out until it is short enough."""
        limit = self.config.max_trace_tokens
        response, spans = join(task.render(plan, graph))
        if limit is None or self.count_tokens is None:
            return response, spans
        while (tokens := self.count_tokens(response)) > limit:
            shorter = without_last(plan)
            if shorter is None:
                raise InjectionError(
                    f"{name}: {tokens} tokens without any behavior; "
                    f"raise max_trace_tokens ({limit})"
                )
            plan = shorter
            response, spans = join(task.render(plan, graph))
        return response, spans


def behavior_name(behavior: Behavior) -> str:
    """Name of a behavior; its class's where a user's class has none."""
    return getattr(behavior, "name", type(behavior).__name__)


def without_last(plan: Plan) -> Plan | None:
    """The plan with one behavior less, None where it has none.

    Attempts and corrections are removed first, then the others, each from the end. The plan stays
    right.
    """
    for position in reversed(range(len(plan))):
        step = plan[position]
        if step.kind is StepKind.ATTEMPT:
            return [*plan[:position], *plan[position + 1 :]]
        if step.mistake is not None:
            return _with_step(plan, position, mark(step, mistake=None))
    for position in reversed(range(len(plan))):
        step = plan[position]
        if step.kind is not StepKind.SOLVE:
            return [*plan[:position], *plan[position + 1 :]]
        if step.analysis:
            return _with_step(plan, position, mark(step, analysis=False))
        if step.subgoal:
            return _with_step(plan, position, mark(step, subgoal=False))
    return None


def _with_step(plan: Plan, position: int, step: Step) -> Plan:
    changed = list(plan)
    changed[position] = step
    return changed


def random_order(graph: Graph, rng: random.Random) -> list[str]:
    """The needed nodes in a random topological order (RC-Aug).

    Each position gets one of the nodes that can be solved by then.
    """
    waiting = graph.needed_order
    order: dict[str, None] = {}
    while waiting:
        unlocked = [name for name in waiting if not graph.missing_parents(name, order)]
        name = rng.choice(unlocked)
        order[name] = None
        waiting.remove(name)
    return list(order)


_SENTENCE_END = re.compile(r"(?<=[.?!])(\s+)")


def shuffle_premises(question: str, rng: random.Random) -> str:
    """The question with its statements in another order (PP-Aug); sentences that ask stay put."""
    parts = _SENTENCE_END.split(question)  # sentences, and the spaces between them
    positions: list[int] = []
    for position in range(0, len(parts), 2):
        if not parts[position].endswith("?"):
            positions.append(position)
    statements = [parts[position] for position in positions]
    rng.shuffle(statements)
    for position, statement in zip(positions, statements, strict=True):
        parts[position] = statement
    return "".join(parts)
