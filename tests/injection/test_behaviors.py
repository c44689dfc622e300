"""The behaviors beyond the paper, their rates, plug-ins, and what holds whatever they are combined
with.
"""

import itertools
import math
import random

import pytest

from bi_ray.config.base import ConfigError
from bi_ray.config.recipes import BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.behaviors import (
    BEHAVIORS,
    Planning,
    Reflection,
    Verification,
    make_behavior,
    settle,
)
from bi_ray.injection.mistakes import plausible_mistakes
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.expression import Operator, Truth
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.trace import Step, StepKind, another_way, vanilla_plan
from bi_ray.tasks.registry import build_task

TASK = build_task(
    PromptBenchConfig(sets={"sft": DifficultyConfig(depth=4, redundant_nodes=(3, 8))}), seed=0
)
PROBLEMS = [TASK.problem("sft", i) for i in range(150)]


def config_of(name, **options):
    return BehaviorConfig(name=name, **options)


def traces(*behaviors, seed=1):
    recipe = Recipe(RecipeConfig(behaviors=behaviors), seed)
    return [
        (problem, TASK.parse_trace(recipe.demonstrate(TASK, problem).response))
        for problem in PROBLEMS
    ]


def within(successes, trials, probability):
    return (
        abs(successes - trials * probability)
        <= 5 * math.sqrt(trials * probability * (1 - probability)) + 1e-9
    )


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_corrections_come_at_their_rate_and_mend_what_is_wrong(probability):
    computed = [
        (problem, step)
        for problem, steps in traces(config_of("correction", probability=probability))
        for step in steps
        if step.symbols
    ]
    mended = [(problem, step) for problem, step in computed if step.mistake is not None]
    assert within(len(mended), len(computed), probability)
    for problem, step in mended:
        assert step.mistake != step.value == problem.graph.nodes[step.node].value
        assert step.mistake in plausible_mistakes(step.node, problem.graph)


def test_verifications_stand_behind_their_step_and_come_at_their_rate():
    places = found = 0
    for problem, steps in traces(config_of("verification", probability=0.4)):
        places += sum(
            step.kind is StepKind.SOLVE and another_way(problem.graph.nodes[step.node]) is not None
            for step in steps
        )
        for before, step in itertools.pairwise(steps):
            if step.kind is StepKind.VERIFY:
                assert (before.kind, before.node) == (StepKind.SOLVE, step.node)
                found += 1
    assert within(found, places, 0.4)


def test_the_answer_alone_can_be_verified():
    for problem, steps in traces(config_of("verification", probability=1.0, checks="answer")):
        checks = [step for step in steps if step.kind is StepKind.VERIFY]
        assert [step.node for step in checks] == [problem.graph.question] * bool(
            another_way(problem.graph.nodes[problem.graph.question])
        )
        assert steps[-1].kind is StepKind.VERIFY or not checks


def test_a_plan_comes_first():
    planned = 0
    for problem, steps in traces(config_of("planning", probability=0.5)):
        kinds = [step.kind for step in steps]
        assert StepKind.OUTLINE not in kinds[1:]
        if kinds[0] is StepKind.OUTLINE:
            planned += 1
            assert {name for name, _ in steps[0].needs} == {
                n for n in problem.graph.needed if problem.graph.nodes[n].parents
            }
    assert within(planned, len(PROBLEMS), 0.5)


def test_a_given_quantity_needs_no_plan():
    graph = Graph([Node("a", 1)], "a")
    plan = vanilla_plan(graph)
    assert (
        Planning(config_of("planning", probability=1.0)).apply(plan, graph, random.Random(0))
        == plan
    )


def test_rates_by_in_degree():
    """Squares have one parent, the other operators two; given quantities none, and no analysis
    either.
    """
    counts = {1: [0, 0], 2: [0, 0]}
    for problem, steps in traces(config_of("analysis", by_in_degree=(1.0, 0.2, 0.7))):
        for step in steps:
            parents = len(problem.graph.nodes[step.node].parents)
            if parents:
                counts[parents][0] += bool(step.restated)
                counts[parents][1] += 1
            else:
                assert not step.restated
    assert within(*counts[1], 0.2)
    assert within(*counts[2], 0.7)


def test_the_last_rate_counts_for_all_higher_in_degrees():
    steps = [
        step for _, trace in traces(config_of("subgoal", by_in_degree=(0.0, 1.0))) for step in trace
    ]
    assert all(step.subgoal for step in steps if step.symbols)


@pytest.mark.parametrize("name", list(BEHAVIORS))
def test_a_cap_holds_and_is_reached(name):
    counts = [
        sum(name in step.behaviors for step in steps)
        for _, steps in traces(config_of(name, probability=1.0, most=2, redundant_share=1.0))
    ]
    assert max(counts) == (1 if name == "planning" else 2)


def test_a_cap_falls_anywhere_in_the_trace():
    """With one subgoal of many, the first computed step has it about as often as any other."""
    firsts = sum(
        next(step for step in steps if step.symbols).subgoal
        for _, steps in traces(config_of("subgoal", probability=1.0, most=1))
    )
    assert 0 < firsts < len(PROBLEMS) / 2


def test_a_verification_moves_with_a_step_that_is_solved_early():
    both = [
        config_of("verification", probability=1.0),
        config_of("reflection", probability=1.0, redundant_share=0.0),
    ]
    for behaviors in (both, both[::-1]):
        moved = 0
        for problem, steps in traces(*behaviors):
            solved = [step.node for step in steps if step.kind is StepKind.SOLVE]
            moved += solved != problem.graph.needed_order
        assert moved > 20


def test_settling_drops_attempts_that_are_wrong_or_repeat():
    graph = Graph(
        [
            Node("a", 1),
            Node("b", 1, Operator.SQUARE, ("a",)),
            Node("c", 1, Operator.SQUARE, ("b",)),
        ],
        "c",
    )
    solve = {name: Step(name) for name in "abc"}
    turn = {name: Step(name, kind=StepKind.ATTEMPT) for name in "abc"}
    check = Step("a", kind=StepKind.VERIFY)
    plan = [
        turn["c"],
        turn["b"],
        solve["a"],
        turn["b"],
        turn["c"],
        check,
        turn["c"],
        solve["b"],
        turn["a"],
        solve["c"],
    ]
    assert settle(plan, graph) == [turn["c"], solve["a"], turn["c"], check, solve["b"], solve["c"]]


def test_behaviors_have_streams_of_their_own():
    """What one behavior draws does not depend on which others there are."""
    alone = traces(config_of("analysis", probability=0.3))
    together = traces(
        config_of("subgoal", probability=0.5),
        config_of("correction"),
        config_of("analysis", probability=0.3),
    )
    for (_, first), (_, second) in zip(alone, together, strict=True):
        assert [step.restated for step in first] == [step.restated for step in second]


def test_mistakes_are_plausible_and_never_right():
    graph = Graph(
        [
            Node("a", 5),
            Node("b", 2),
            Node("c", 3, Operator.SUBTRACT, ("a", "b")),
            Node("d", 4, Operator.SQUARE, ("b",)),
            Node("e", 0, Operator.SUBTRACT, ("a", "a")),
        ],
        "c",
    )
    # swapped, added, off by one twice; the sign is the swap
    assert plausible_mistakes("c", graph) == [-3, 7, 4, 2]
    assert plausible_mistakes("d", graph) == [5, 3, -4]  # the double of 2 is its square
    assert plausible_mistakes("e", graph) == [10, 1, -1]


def test_mistakes_of_logic():
    values = {"p": Truth.TRUE, "q": Truth.FALSE}
    nodes = [Node(name, value) for name, value in values.items()]
    both = Node.of("r", (Operator.AND, "p", "q"), values)
    assert plausible_mistakes("r", Graph([*nodes, both], "r")) == [Truth.TRUE]
    unknown = Node.of("s", (Operator.IF, "q"), values)
    assert set(plausible_mistakes("s", Graph([*nodes, unknown], "s"))) == {Truth.TRUE, Truth.FALSE}
    assert plausible_mistakes("r", Graph([*nodes, both, unknown], "s")) == [
        Truth.TRUE,
        Truth.UNKNOWN,
    ]


def test_a_behavior_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine_behaviors.py").write_text(
        "from bi_ray.reasoning.trace import mark\n"
        "class First:\n"
        "    kind = 'exploit'\n"
        "    def __init__(self, config): self.count = config.options['count']\n"
        "    def apply(self, plan, graph, rng):\n"
        "        left, result = self.count, []\n"
        "        for step in plan:\n"
        "            suits = left and graph.nodes[step.node].parents\n"
        "            result.append(mark(step, subgoal=True) if suits else step)\n"
        "            left -= bool(suits)\n"
        "        return result\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _, steps in traces(config_of("mine_behaviors:First", options={"count": 2}))[:20]:
        assert [step.subgoal for step in steps if step.symbols][:3] == [True, True, False]
    with pytest.raises(
        ConfigError, match="behavior mine_behaviors:Last: mine_behaviors has no class 'Last'"
    ):
        make_behavior(config_of("mine_behaviors:Last"))
    with pytest.raises(ConfigError, match="nowhere_at_all does not import"):
        make_behavior(config_of("nowhere_at_all:X"))
    with pytest.raises(ConfigError, match="expected a class with a method apply"):
        make_behavior(config_of("math:sqrt"))


@pytest.mark.parametrize("kind", [Reflection, Verification])
def test_the_protocol_leaves_its_input_alone(kind):
    graph = PROBLEMS[0].graph
    plan = vanilla_plan(graph)
    before = list(plan)
    assert (
        kind(config_of(kind.name, probability=1.0)).apply(plan, graph, random.Random(0)) != before
    )
    assert plan == before
