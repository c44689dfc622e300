import random
from collections import Counter

import pytest
from igsm_tools import draws, make_task, operations

from bi_ray.config.recipes import BehaviorConfig
from bi_ray.injection.behaviors import Reflection
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.trace import StepKind, vanilla_plan
from bi_ray.tasks.igsm.task import is_abstract

ANALYSIS_RATES = (0, 0.1, 0.4, 0.8, 1)  # by in-degree, in the authors' code


def factors(graph):
    return [
        node.formula[1]
        for node in graph.nodes.values()
        if node.operator is Operator.MULTIPLY and isinstance(node.formula[1], int)
    ]


@pytest.mark.parametrize("ops", [4, 5, 6, 10, 20])
def test_clean_answers_are_flat_and_no_multiplier_is_zero(ops):
    graphs = draws(make_task(ops=ops), 1200)
    assert Counter(graph.answer for graph in graphs).most_common(1)[0][1] < 0.05 * len(graphs)
    assert min(factor for graph in graphs for factor in factors(graph)) >= 1


def test_clean_operations_are_uniform_over_the_range():
    counts = Counter(operations(graph) for graph in draws(make_task(ops=(3, 8)), 1800))
    assert sorted(counts) == [3, 4, 5, 6, 7, 8]
    assert all(220 < count < 380 for count in counts.values())  # 300 +- 5 standard deviations


@pytest.mark.parametrize(("mode", "limit"), [("paper", 999), ("clean", 999), ("clean", 60)])
def test_limits_hold(mode, limit):
    graphs = draws(make_task(mode, max_abs_value=limit), 300)
    assert max(abs(graph.answer) for graph in graphs) <= limit
    largest = max(abs(node.value) for graph in graphs for node in graph.nodes.values())
    assert largest <= limit if mode == "clean" else largest > limit


def paper_figures(count):
    """Means of what the authors' generator and their behaviors give at 15 to 20 operations."""
    graphs = draws(make_task("paper"), count)
    reflection = Reflection(BehaviorConfig(name="reflection", probability=0.1, redundant_share=0.3))
    rng = random.Random(1)
    totals = Counter()
    for graph in graphs:
        totals["operations"] += operations(graph)
        totals["needed"] += len(graph.needed)
        totals["redundant"] += len(graph.nodes) - len(graph.needed)
        totals["premises"] += sum(not is_abstract(name) for name in graph.nodes)
        totals["zero answers"] += graph.answer == 0
        totals["analyses"] += sum(
            ANALYSIS_RATES[len(graph.nodes[name].parents)] for name in graph.needed
        )
        plan = reflection.apply(vanilla_plan(graph), graph, rng)
        totals["reflections"] += sum(step.kind is StepKind.ATTEMPT for step in plan)
    return {name: total / count for name, total in totals.items()}


PAPER = {
    "operations": 16.3,
    "needed": 12.0,
    "redundant": 2.4,
    "premises": 11,
    "zero answers": 0.17,
    "analyses": 3.8,
    "reflections": 0.93,
}


@pytest.mark.slow
def test_paper_mode_has_the_distribution_of_the_authors():
    """Within 5 % each; 25,000 problems give the shares of zeros and reflections to 1 %."""
    figures = paper_figures(25_000)
    for name, value in PAPER.items():
        assert figures[name] == pytest.approx(value, rel=0.05), (name, figures)


def test_paper_mode_is_near_the_authors_distribution():
    figures = paper_figures(1000)
    for name, value in PAPER.items():
        assert figures[name] == pytest.approx(
            value, rel=0.3 if name in ("zero answers", "reflections") else 0.07
        ), name
