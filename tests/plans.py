"""Plans that tests share."""

from __future__ import annotations

import random

from bi_ray.reasoning.expression import Truth, Value
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.trace import Plan, Step, StepKind, another_way, vanilla_plan


def every_behavior(graph: Graph, rng: random.Random) -> Plan:
    """A plan that shows each behavior wherever possible."""
    plan = []
    if graph.nodes[graph.question].parents:
        plan.append(Step(graph.question, kind=StepKind.OUTLINE))
    solved: set[str] = set()
    for step in vanilla_plan(graph):
        node = graph.nodes[step.node]
        locked = [name for name in graph.nodes if graph.missing_parents(name, solved)]
        if locked:
            plan.append(Step(rng.choice(locked), kind=StepKind.ATTEMPT))
        if node.operator is None:
            plan.append(step)
        else:
            plan.append(Step(node.name, subgoal=True, analysis=True, mistake=_wrong(node, rng)))
        if another_way(node):
            plan.append(Step(node.name, kind=StepKind.VERIFY))
        solved.add(node.name)
    return plan


def _wrong(node: Node, rng: random.Random) -> Value:
    if isinstance(node.value, Truth):
        return rng.choice([value for value in Truth if value is not node.value])
    return node.value + rng.choice((-10, -1, 1, 7))
