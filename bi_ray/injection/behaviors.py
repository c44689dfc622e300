"""The behaviors of section 3 of arXiv:2505.18917 and three beyond it, each a rewrite of a plan.

Exploit: subgoal computation and information analysis make a step more reliable; verification and
    planning look at it
from another side. Explore: reflection starts on a locked node, names what is missing, and turns
back; correction writes a wrong value, notices and mends it.

Behaviors are applied in the order of the configuration. Each takes any plan that is right and gives
one that is right, so any order will do, and each draws from a random stream of its own: without
caps, only reflection (which may solve a later node early) changes where the others' marks fall. To
add one, write a class with this protocol, and name it in the configuration as
``package.module:Class``, or put it into ``BEHAVIORS``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

from bi_ray.config import BehaviorConfig, ConfigError
from bi_ray.config.importing import load_object
from bi_ray.injection.mistakes import plausible_mistakes
from bi_ray.reasoning.graph import Graph, NodeState
from bi_ray.reasoning.trace import Plan, Step, StepKind, another_way, mark

Kind = Literal["explore", "exploit"]
# looking a member up in its enumeration takes longer than anything else done with it here
_SOLVE = StepKind.SOLVE


class Behavior(Protocol):
    """A rewrite of a plan that keeps it right."""

    name: ClassVar[str]
    kind: ClassVar[Kind]

    def __init__(self, config: BehaviorConfig) -> None: ...

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """A new plan with the behavior in it; ``plan`` is left as it is."""
        ...


class Rate:
    """How often a behavior comes: its probability, or one by the number of the node's parents."""

    def __init__(self, config: BehaviorConfig) -> None:
        self.config = config
        self.constant = None if config.by_in_degree else config.probability

    def of(self, node: str, graph: Graph) -> float:
        """Probability for a step on ``node``."""
        if self.constant is not None:
            return self.constant
        by_in_degree = self.config.by_in_degree
        return by_in_degree[min(len(graph.nodes[node].parents), len(by_in_degree) - 1)]

    def draw(
        self,
        plan: Plan,
        graph: Graph,
        rng: random.Random,
        suits: Callable[[Step], bool] | None = None,
    ) -> set[int]:
        """Positions of the computing steps that get the behavior; where ``most`` is exceeded,
        ``most`` of them.
        """
        nodes, uniform, constant = graph.nodes, rng.random, self.constant
        drawn = [
            place
            for place, step in enumerate(plan)
            if step.kind is _SOLVE
            and nodes[step.node].operator is not None
            and (suits is None or suits(step))
            and uniform() < (self.of(step.node, graph) if constant is None else constant)
        ]
        most = self.config.most
        return set(rng.sample(drawn, most) if most is not None and len(drawn) > most else drawn)


class Subgoal:
    """Write intermediate results out: one operation per "="."""

    name: ClassVar[str] = "subgoal"
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Mark computing steps."""
        chosen = self.rate.draw(plan, graph, rng)
        return [
            mark(step, subgoal=True) if place in chosen else step for place, step in enumerate(plan)
        ]


class Analysis:
    """Restate a relation, or its known quantities, before it is used."""

    name: ClassVar[str] = "analysis"
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Mark computing steps."""
        chosen = self.rate.draw(plan, graph, rng)
        return [
            mark(step, analysis=True) if place in chosen else step
            for place, step in enumerate(plan)
        ]


class Correction:
    """Write a plausible wrong value, notice it, and mend it."""

    name: ClassVar[str] = "correction"
    kind: ClassVar[Kind] = "explore"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Give computing steps a mistake (``mistakes.plausible_mistakes``)."""
        chosen = self.rate.draw(
            plan, graph, rng, lambda step: bool(plausible_mistakes(step.node, graph))
        )
        return [
            mark(step, mistake=rng.choice(plausible_mistakes(step.node, graph)))
            if place in chosen
            else step
            for place, step in enumerate(plan)
        ]


class Verification:
    """Compute or test a value again by another equation (``trace.another_way``), right after it was
    found.

    With ``checks: answer`` only the answer is verified, at the end. Quantities with one equation
    alone are left out.
    """

    name: ClassVar[str] = "verification"
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)
        self.answer_only = config.checks == "answer"

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Insert verifications after computing steps."""
        checked = {step.node for step in plan if step.kind is StepKind.VERIFY}

        def suits(step: Step) -> bool:
            wanted = step.node == graph.question or not self.answer_only
            return (
                wanted
                and step.node not in checked
                and another_way(graph.nodes[step.node]) is not None
            )

        chosen = self.rate.draw(plan, graph, rng, suits)
        result: Plan = []
        for place, step in enumerate(plan):
            result.append(step)
            if place in chosen:
                result.append(Step(step.node, kind=StepKind.VERIFY))
        return result


class Planning:
    """Begin with an outline: what the question needs, and what that needs, from the target
    backwards.
    """

    name: ClassVar[str] = "planning"
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Put the outline first; a given quantity that is asked for needs none."""
        outlined = any(step.kind is StepKind.OUTLINE for step in plan)
        if (
            outlined
            or not graph.nodes[graph.question].parents
            or rng.random() >= self.rate.of(graph.question, graph)
        ):
            return list(plan)
        return [Step(graph.question, kind=StepKind.OUTLINE), *plan]


class Reflection:
    """Start on a locked node, name the missing parents, go back.

    Before a step, with the configured probability, another node is tried: with ``redundant_share``
    a locked redundant one (no attempt where there is none), else a needed one that comes later. A
    later node that turns out to be unlocked is solved early instead, and its verification moves
    with it. The first and the last solving step are never preceded by an attempt. ``settle`` sees
    to it that between two attempts, whoever made them, something is solved.
    """

    name: ClassVar[str] = "reflection"
    kind: ClassVar[Kind] = "explore"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)
        self.redundant_share = config.redundant_share
        self.most = config.most

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Insert attempts, and move steps forward where an attempted node can be solved."""
        waiting, result = list(plan), Plan()
        solved: set[str] = set()
        attempts, unsolved = 0, [step.kind for step in plan].count(_SOLVE)
        while waiting:
            step = waiting[0]
            if step.kind is not _SOLVE:
                result.append(waiting.pop(0))
                continue
            unsolved -= 1
            if solved and unsolved and rng.random() < self.rate.of(step.node, graph):
                later = [other for other in waiting[1:] if other.kind is _SOLVE]
                tried = self._try(later, graph, solved, rng)
                if tried is not None and tried.kind is _SOLVE:
                    step = tried
                elif tried is not None and (self.most is None or attempts < self.most):
                    result.append(tried)
                    attempts += 1
            result.append(step)
            if step is waiting[0]:
                del waiting[0]
            else:
                result += [
                    other
                    for other in waiting
                    if other.kind is StepKind.VERIFY and other.node == step.node
                ]
                waiting = [other for other in waiting if other.node != step.node]
            solved.add(step.node)
        return result

    def _try(self, later: Plan, graph: Graph, solved: set[str], rng: random.Random) -> Step | None:
        """A failed attempt, a later step that can be solved now, or None where nothing can be
        tried.
        """
        if rng.random() < self.redundant_share:
            locked = [
                name
                for name in graph.nodes
                if name not in graph.needed and graph.state(name, solved) is NodeState.LOCKED
            ]
            return Step(rng.choice(locked), kind=StepKind.ATTEMPT) if locked else None
        chosen = rng.choice(later)
        if graph.state(chosen.node, solved) is NodeState.UNLOCKED:
            return chosen
        return Step(chosen.node, kind=StepKind.ATTEMPT)


def settle(plan: Plan, graph: Graph) -> Plan:
    """The plan without the attempts that another behavior has made wrong or repetitive.

    Where two behaviors move steps and turn back, a node may not be locked any more when its attempt
    comes, or two attempts may meet: of those the first stays. Nobody fails twice without solving
    something in between.
    """
    result: Plan = []
    solved: set[str] = set()
    failed = False
    for step in plan:
        kind = step.kind
        if kind is _SOLVE:
            solved.add(step.node)
            failed = False
        elif kind is StepKind.ATTEMPT:
            if failed or graph.state(step.node, solved) is not NodeState.LOCKED:
                continue
            failed = True
        result.append(step)
    return result


BEHAVIORS: dict[str, type[Behavior]] = {
    behavior.name: behavior
    for behavior in (Subgoal, Analysis, Reflection, Correction, Verification, Planning)
}


def make_behavior(config: BehaviorConfig) -> Behavior:
    """The behavior that a configuration names.

    Raises:
        ValueError: no behavior has this name.
        ConfigError: the class at the import path cannot be loaded, or is no behavior.
    """
    if ":" in config.name:
        found = load_object(config.name, f"behavior {config.name}", "class")
        if not (isinstance(found, type) and callable(getattr(found, "apply", None))):
            raise ConfigError(
                f"behavior {config.name}: it is no class with a method apply(plan, graph, rng)"
            )
        return found(config)
    if config.name not in BEHAVIORS:
        raise ValueError(f"no behavior is called {config.name!r}; known: {', '.join(BEHAVIORS)}")
    return BEHAVIORS[config.name](config)
