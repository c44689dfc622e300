"""The behaviors of section 3 of arXiv:2505.18917 and three beyond it, each a rewrite of a plan.

Exploit: subgoal computation and information analysis make a step more reliable; verification and
planning look at it from another side. Explore: reflection starts on a locked node, names what is
missing, and turns back; correction writes a wrong value, notices and corrects it.

Behaviors are applied in the order of the configuration. Each takes any plan that is right and gives
one that is right, so any order will do, and each draws from a random stream of its own: without
caps, only reflection (which may solve a later node early) changes where the others' marks fall.

A behavior that adds, moves or marks steps of known kinds is one class with the protocol
``Behavior``: name it in the configuration as ``package.module:Class``, or put it into
``BEHAVIORS``. A behavior with words of its own needs more: a ``StepKind`` or a field of ``Step``
(``reasoning.trace``), the rule that checks it (``reasoning.check``), its wording and its reading in
each task (``igsm/wording`` and ``igsm/parse``, ``promptbench/lines``, ``freetext``), and a count in
``verification.verdicts``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

from bi_ray.config.base import ConfigError
from bi_ray.config.importing import load_object
from bi_ray.config.recipes import BehaviorConfig
from bi_ray.injection.mistakes import plausible_mistakes
from bi_ray.reasoning.graph import Graph, NodeState
from bi_ray.reasoning.trace import Plan, Step, StepKind, another_way, mark

Kind = Literal["explore", "exploit"]
# looking up a member of an enumeration is slow
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
    """The probability of a behavior: a constant, or one by the number of the node's parents."""

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
    ) -> list[int]:
        """Positions of the computing steps that get the behavior, in ascending order.

        Where there are more than the configured ``most``, ``most`` of them.
        """
        nodes, uniform = graph.nodes, rng.random
        positions: list[int] = []
        for position, step in enumerate(plan):
            if step.kind is not _SOLVE or nodes[step.node].operator is None:
                continue
            if suits is not None and not suits(step):
                continue
            if uniform() < self.of(step.node, graph):
                positions.append(position)
        most = self.config.most
        if most is not None and len(positions) > most:
            return sorted(rng.sample(positions, most))
        return positions


class _StepMark:
    """A behavior that sets the field of its name in computing steps."""

    name: ClassVar[str]
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Mark computing steps."""
        result = list(plan)
        for position in self.rate.draw(plan, graph, rng):
            result[position] = mark(plan[position], **{self.name: True})
        return result


class Subgoal(_StepMark):
    """Write intermediate results out: one operation per "="."""

    name: ClassVar[str] = "subgoal"


class Analysis(_StepMark):
    """Restate a relation, or its known quantities, before it is used."""

    name: ClassVar[str] = "analysis"


class Correction:
    """Write a plausible wrong value, notice it, and correct it."""

    name: ClassVar[str] = "correction"
    kind: ClassVar[Kind] = "explore"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Give computing steps a mistake (``mistakes.plausible_mistakes``)."""

        def suits(step: Step) -> bool:
            return bool(plausible_mistakes(step.node, graph))

        result = list(plan)
        for position in self.rate.draw(plan, graph, rng, suits):
            mistakes = plausible_mistakes(plan[position].node, graph)
            result[position] = mark(plan[position], mistake=rng.choice(mistakes))
        return result


class Verification:
    """Compute or test a value by another equation (``trace.another_way``), right after its step.

    With ``checks: answer`` only the answer is verified, at the end. Quantities that have only one
    equation are left out.
    """

    name: ClassVar[str] = "verification"
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)
        self.answer_only = config.checks == "answer"

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Insert verifications after computing steps."""
        verified = {step.node for step in plan if step.kind is StepKind.VERIFY}

        def suits(step: Step) -> bool:
            if self.answer_only and step.node != graph.question:
                return False
            return step.node not in verified and another_way(graph.nodes[step.node]) is not None

        result = list(plan)
        for position in reversed(self.rate.draw(plan, graph, rng, suits)):
            result.insert(position + 1, Step(plan[position].node, kind=StepKind.VERIFY))
        return result


class Planning:
    """Begin with an outline: what the question needs, and what that needs in turn."""

    name: ClassVar[str] = "planning"
    kind: ClassVar[Kind] = "exploit"

    def __init__(self, config: BehaviorConfig) -> None:
        self.rate = Rate(config)

    def apply(self, plan: Plan, graph: Graph, rng: random.Random) -> Plan:
        """Put the outline first; a question about a given quantity needs none."""
        is_outlined = any(step.kind is StepKind.OUTLINE for step in plan)
        if is_outlined or not graph.nodes[graph.question].parents:
            return list(plan)
        if rng.random() >= self.rate.of(graph.question, graph):
            return list(plan)
        return [Step(graph.question, kind=StepKind.OUTLINE), *plan]


class Reflection:
    """Start on a locked node, name the missing parents, go back.

    Before a step, with the configured probability, another node is tried: with ``redundant_share``
    a locked redundant one (no attempt where there is none), else a needed one that comes later. A
    later node that turns out to be unlocked is solved early instead, and its verification moves
    with it. The first and the last solving step are never preceded by an attempt. ``settle``
    ensures that something is solved between two attempts, whichever behaviors made them.
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
        attempts = 0
        unsolved = sum(step.kind is _SOLVE for step in plan)
        while waiting:
            step = waiting[0]
            if step.kind is not _SOLVE:
                result.append(waiting.pop(0))
                continue
            unsolved -= 1
            if solved and unsolved and rng.random() < self.rate.of(step.node, graph):
                tried = self._try(waiting[1:], graph, solved, rng)
                if tried is None:
                    pass
                elif tried.kind is _SOLVE:
                    step = tried
                elif self.most is None or attempts < self.most:
                    result.append(tried)
                    attempts += 1
            waiting = _move(step, waiting, result)
            solved.add(step.node)
        return result

    def _try(self, later: Plan, graph: Graph, solved: set[str], rng: random.Random) -> Step | None:
        """A failed attempt, or a later step that can be solved now; None: nothing to try."""
        if rng.random() < self.redundant_share:
            locked: list[str] = []
            for name in graph.nodes:
                if name not in graph.needed and graph.state(name, solved) is NodeState.LOCKED:
                    locked.append(name)
            if not locked:
                return None
            return Step(rng.choice(locked), kind=StepKind.ATTEMPT)
        chosen = rng.choice([step for step in later if step.kind is _SOLVE])
        if graph.state(chosen.node, solved) is NodeState.UNLOCKED:
            return chosen
        return Step(chosen.node, kind=StepKind.ATTEMPT)


def _move(step: Step, waiting: Plan, result: Plan) -> Plan:
    """Append a waiting step to ``result``; returns the steps that still wait.

    The verification of a step that is moved forward comes with it.
    """
    result.append(step)
    if step is waiting[0]:
        return waiting[1:]
    rest: Plan = []
    for other in waiting:
        if other.node != step.node:
            rest.append(other)
        elif other.kind is StepKind.VERIFY:
            result.append(other)
    return rest


def settle(plan: Plan, graph: Graph) -> Plan:
    """The plan without the attempts that another behavior has made wrong or repetitive.

    Where two behaviors move steps and turn back, a node may no longer be locked when its attempt
    comes, or two attempts may follow one another: of those only the first stays.
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
        ConfigError: the class at the import path cannot be loaded, or is not a behavior.
    """
    if ":" not in config.name:
        if config.name not in BEHAVIORS:
            raise ValueError(
                f"no behavior is called {config.name!r}; known: {', '.join(BEHAVIORS)}"
            )
        return BEHAVIORS[config.name](config)
    behavior = load_object(config.name, f"behavior {config.name}", "class")
    if not isinstance(behavior, type) or not hasattr(behavior, "apply"):
        raise ConfigError(
            f"behavior {config.name}: expected a class with a method apply(plan, graph, rng)"
        )
    return behavior(config)
