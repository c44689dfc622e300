"""From a recipe to demonstrations: vary, plan, inject, keep to the budget, render, check."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bi_ray.config import RecipeConfig
from bi_ray.injection.behaviors import Behavior, make_behavior, settle
from bi_ray.injection.filler import fill
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Plan, Span, StepKind, join, mark, plan_in_order, vanilla_plan
from bi_ray.tasks.base import Problem, Task

CountTokens = Callable[[str], int]
# for an order of premises or steps that no other copy has; where there are few orders, some come
# again
_DRAWS = 20


class InjectionError(ValueError):
    """A demonstration that the checker refuses: a fault of a behavior or of a task's wording."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response that an arm's SFT learns from, with the character spans of every injected
    behavior.

    ``copy`` tells the demonstrations of one problem apart.
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
        seed: of the data; a demonstration depends on it, the recipe's own seed, the problem and the
            copy alone.
        count_tokens: length of a response in tokens; needed for ``max_trace_tokens`` and
            ``same_length_as``.

    Raises:
        ValueError: a behavior of the configuration is not known, or tokens cannot be counted but
            have to be.
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
        self.behaviors: list[Behavior] = [make_behavior(behavior) for behavior in config.behaviors]
        self.seed = seed
        self.count_tokens = count_tokens
        self.model = (
            Recipe(config.same_length_as, seed, count_tokens) if config.same_length_as else None
        )

    def demonstrate(self, task: Task, problem: Problem) -> Demonstration:
        """The first demonstration for ``problem``, proven right by the checker; of a problem
        without a graph its own.

        Raises:
            InjectionError: a line of the demonstration is wrong, or it is longer than
                ``max_trace_tokens`` even without any behavior; or there is no graph and none comes
                with the problem.
        """
        return next(self.demonstrations(task, problem))

    def demonstrations(self, task: Task, problem: Problem) -> Iterator[Demonstration]:
        """``copies`` demonstrations for ``problem``. What varies from copy to copy differs as long
        as it can.

        Raises:
            InjectionError: see ``demonstrate``.
        """
        graph = problem.graph
        if graph is None:
            if not problem.response or self.behaviors or self.config.vary or self.model:
                raise InjectionError(
                    f"{problem.id}: no graph, so it needs a response of its own, and takes no behaviors"
                )
            yield Demonstration(problem, problem.response, list(problem.spans))
            return
        seen: set[str] = set()
        for copy in range(self.config.copies or 1):
            name = (
                f"{self.config.seed}/{problem.id}/{copy}"
                if self.config.seed or copy
                else problem.id
            )
            varied, plan = problem, vanilla_plan(graph)
            if self.config.vary:
                varied, plan = self._vary(
                    problem, graph, random.Random(f"{self.seed}/vary/{name}"), copy, seen
                )
            yield self._demonstrate(task, varied, graph, plan, name, copy)

    def _vary(
        self, problem: Problem, graph: Graph, rng: random.Random, copy: int, seen: set[str]
    ) -> tuple[Problem, Plan]:
        """The copy's question, and its plan without behaviors. The first copy is the problem as it
        is.
        """
        plan = vanilla_plan(graph)
        for draw in range(_DRAWS):
            if copy and self.config.vary == "premises":
                problem = replace(problem, question=shuffle_premises(problem.question, rng))
            elif copy and self.config.vary == "order":
                plan = plan_in_order(random_order(graph, rng))
            looks = "\n".join([problem.question, *(step.node for step in plan)])
            if looks not in seen or draw == _DRAWS - 1:
                break
        seen.add(looks)
        return problem, plan

    def _demonstrate(
        self, task: Task, problem: Problem, graph: Graph, plan: Plan, name: str, copy: int
    ) -> Demonstration:
        for place, behavior in enumerate(self.behaviors):
            earlier = sum(type(other) is type(behavior) for other in self.behaviors[:place])
            rng = random.Random(f"{self.seed}/recipe/{name}/{behavior_name(behavior)}/{earlier}")
            plan = settle(behavior.apply(plan, graph, rng), graph)
        response, spans = self._within_budget(task, plan, problem.id, graph)
        if self.model:
            assert self.count_tokens is not None  # checked in the constructor
            wanted = self.count_tokens(self.model.demonstrate(task, problem).response)
            response = fill(response, task.parse_trace(response), wanted, self.count_tokens)
        report = check_trace(task.parse_trace(response), graph, task.notation)
        if not report.valid or task.parse_answer(response) != problem.answer:
            raise InjectionError(f"{problem.id}, line {report.first_bad_step}: {report.reason}")
        return Demonstration(problem, response, spans, copy)

    def _within_budget(
        self, task: Task, plan: Plan, name: str, graph: Graph
    ) -> tuple[str, list[Span]]:
        """The rendered plan, behaviors taken out until it is short enough."""
        while True:
            response, spans = join(task.render(plan, graph))
            limit = self.config.max_trace_tokens
            if (
                limit is None
                or self.count_tokens is None
                or (tokens := self.count_tokens(response)) <= limit
            ):
                return response, spans
            shorter = without_last(plan)
            if shorter is None:
                raise InjectionError(
                    f"{name}: {tokens} tokens without any behavior; raise max_trace_tokens ({limit})"
                )
            plan = shorter


def behavior_name(behavior: Behavior) -> str:
    """Its name, or its class's where a user's class has none."""
    return getattr(behavior, "name", type(behavior).__name__)


def without_last(plan: Plan) -> Plan | None:
    """The plan with one behavior less: first attempts and corrections go, then the others, each
    from the end.

    Returns:
        A shorter plan that is right where ``plan`` was, None where there is no behavior in it.
    """
    for place in reversed(range(len(plan))):
        if plan[place].kind is StepKind.ATTEMPT:
            return [*plan[:place], *plan[place + 1 :]]
        if plan[place].mistake is not None:
            return [*plan[:place], mark(plan[place], mistake=None), *plan[place + 1 :]]
    for place in reversed(range(len(plan))):
        if plan[place].kind is not StepKind.SOLVE:
            return [*plan[:place], *plan[place + 1 :]]
        for behavior in ("analysis", "subgoal"):
            if getattr(plan[place], behavior):
                return [*plan[:place], mark(plan[place], **{behavior: False}), *plan[place + 1 :]]
    return None


def random_order(graph: Graph, rng: random.Random) -> list[str]:
    """The needed nodes in a random topological order (RC-Aug): at each place one of those that can
    be solved.
    """
    waiting, order = graph.needed_order, dict[str, None]()
    while waiting:
        name = rng.choice([name for name in waiting if not graph.missing_parents(name, order)])
        order[name] = None
        waiting.remove(name)
    return list(order)


_SENTENCE_END = re.compile(r"(?<=[.?!])(\s+)")


def shuffle_premises(question: str, rng: random.Random) -> str:
    """The question with its statements in another order (PP-Aug); sentences that ask stay where
    they are.
    """
    parts = _SENTENCE_END.split(question)
    places = [place for place in range(0, len(parts), 2) if not parts[place].endswith("?")]
    shuffled = [parts[place] for place in places]
    rng.shuffle(shuffled)
    for place, sentence in zip(places, shuffled, strict=True):
        parts[place] = sentence
    return "".join(parts)
