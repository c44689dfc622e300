import itertools
import math
import random
from collections import Counter

import pytest

from bi_ray.config.recipes import BRIDGE, VANILLA, BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.behaviors import Reflection
from bi_ray.injection.recipes import InjectionError, Recipe
from bi_ray.reasoning.graph import NodeState
from bi_ray.reasoning.trace import Span, join, vanilla_plan
from bi_ray.tasks.base import Problem
from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.task import PromptBenchTask

COUNT = 400


@pytest.fixture(scope="module")
def task():
    return PromptBenchTask(
        PromptBenchConfig(sets={"sft": DifficultyConfig(depth=4, redundant_nodes=(3, 8))}), seed=0
    )


@pytest.fixture(scope="module")
def problems(task):
    return [task.problem("sft", i) for i in range(COUNT)]


def recipe_of(name: str, probability: float, **options: float) -> Recipe:
    behavior = BehaviorConfig(name=name, probability=probability, **options)
    return Recipe(RecipeConfig(behaviors=(behavior,)), seed=1)


def lines_of(task, demonstration):
    return task.parse_trace(demonstration.response)


def within(successes: int, trials: int, probability: float) -> bool:
    """Five standard deviations of a binomial: one false alarm in two million."""
    return (
        abs(successes - trials * probability)
        <= 5 * math.sqrt(trials * probability * (1 - probability)) + 1e-9
    )


def test_vanilla_injects_nothing(task, problems):
    recipe = Recipe(VANILLA, seed=0)
    for problem in problems[:50]:
        demonstration = recipe.demonstrate(task, problem)
        assert demonstration.spans == []
        assert (
            demonstration.response
            == join(task.render(vanilla_plan(problem.graph), problem.graph))[0]
        )


@pytest.mark.parametrize("name", ["subgoal", "analysis"])
def test_without_the_spans_of_an_exploit_the_vanilla_text_is_left(task, problems, name):
    vanilla, recipe = Recipe(VANILLA, seed=0), recipe_of(name, 0.5)
    touched = 0
    for problem in problems[:100]:
        demonstration = recipe.demonstrate(task, problem)
        rest = demonstration.response
        for start, end, behavior in reversed(demonstration.spans):
            assert behavior == name
            rest = rest[:start] + rest[end:]
            touched += 1
        assert rest == vanilla.demonstrate(task, problem).response
    assert touched > 300


def test_a_reflection_span_is_a_whole_line_and_every_such_line_has_one(task, problems):
    recipe = recipe_of("reflection", 0.5)
    for problem in problems[:100]:
        demonstration = recipe.demonstrate(task, problem)
        marked = [demonstration.response[start:end] for start, end, _ in demonstration.spans]
        lines = demonstration.response.split("\n")
        assert marked == [line for line in lines if "not known yet" in line]
        assert all(parse_line(line).missing for line in marked)


def test_spans_of_all_behaviors_together_say_what_they_cover(task, problems):
    for problem in problems[:100]:
        demonstration = Recipe(BRIDGE, seed=3).demonstrate(task, problem)
        for start, end, behavior in demonstration.spans:
            text = demonstration.response[start:end]
            expected = {
                "subgoal": (" = ", ""),
                "analysis": ("since ", ", "),
                "reflection": ("Let's solve ", "let's get back"),
            }
            first, last = expected[behavior]
            assert text.startswith(first)
            assert text.endswith(last)
            assert (behavior == "reflection") == ("\n" + text + "\n" in demonstration.response)
        covered = Counter(behavior for _, _, behavior in demonstration.spans)
        steps = lines_of(task, demonstration)
        assert covered["subgoal"] == sum(bool(step.numbers) for step in steps)
        assert covered["analysis"] == sum(bool(step.restated) for step in steps)
        assert covered["reflection"] == sum(bool(step.missing) for step in steps)


@pytest.mark.parametrize(("name", "field"), [("subgoal", "numbers"), ("analysis", "restated")])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.7, 1.0])
def test_exploits_come_at_their_rate(task, problems, name, field, probability):
    recipe = recipe_of(name, probability)
    computed = [
        step
        for problem in problems
        for step in lines_of(task, recipe.demonstrate(task, problem))
        if step.symbols
    ]
    assert within(sum(bool(getattr(step, field)) for step in computed), len(computed), probability)


def test_reflections_are_justified_and_in_their_places(task, problems):
    recipe = recipe_of("reflection", 1.0)
    seen = 0
    for problem in problems:
        steps = lines_of(task, recipe.demonstrate(task, problem))
        attempts = [bool(step.missing) for step in steps]
        assert not attempts[0]
        assert not attempts[-1]
        assert not attempts[-2]  # not before the last step either: it is never replaced
        assert not any(a and b for a, b in itertools.pairwise(attempts))
        solved: list[str] = []
        for step in steps:
            if step.missing:
                assert problem.graph.state(step.node, solved) is NodeState.LOCKED
                assert list(step.missing) == problem.graph.missing_parents(step.node, solved)
                seen += 1
            else:
                solved.append(step.node)
        assert set(solved) == problem.graph.needed
    assert seen > COUNT


def tries_of(task, problems, probability: float, redundant_share: float):
    """Numbers of redundant attempts, needed attempts and places where one could stand; see the
    class for the law.
    """
    recipe = recipe_of("reflection", probability, redundant_share=redundant_share)
    redundant = needed = places = 0
    for problem in problems:
        steps = lines_of(task, recipe.demonstrate(task, problem))
        attempts = [step for step in steps if step.missing]
        redundant += sum(step.node not in problem.graph.needed for step in attempts)
        needed += sum(step.node in problem.graph.needed for step in attempts)
        places += len(problem.graph.needed) - 2
    return redundant, needed, places


def has_locked_redundant(problem) -> bool:
    """A redundant node with parents is locked all the time, since no plan solves its parents."""
    return any(
        node.parents
        for name, node in problem.graph.nodes.items()
        if name not in problem.graph.needed
    )


@pytest.mark.parametrize(
    ("probability", "share"), [(0.1, 0.3), (0.5, 0.3), (0.5, 1.0), (1.0, 0.5), (0.3, 0.0)]
)
def test_redundant_attempts_come_at_their_share(task, problems, probability, share):
    suited = [problem for problem in problems if has_locked_redundant(problem)]
    assert len(suited) > COUNT / 2
    redundant, _, places = tries_of(task, suited, probability, share)
    assert within(redundant, places, probability * share)


def test_needed_attempts_come_where_the_later_node_is_locked(task, problems):
    """Of a later node drawn at random, some are unlocked and solved early: attempts and early
    solutions add up.
    """
    probability, share = 0.4, 0.0
    attempts = early = places = 0
    for problem in problems:
        steps = lines_of(
            task,
            recipe_of("reflection", probability, redundant_share=share).demonstrate(task, problem),
        )
        waiting = list(problem.graph.needed_order)
        for step in steps:
            if step.missing:
                attempts += 1
                continue
            early += step.node != waiting[0]
            waiting.remove(step.node)
        places += len(problem.graph.needed) - 2
    assert within(attempts + early, places, probability)
    assert min(attempts, early) > 100


def test_without_probability_there_is_no_reflection(task, problems):
    assert tries_of(task, problems[:50], 0.0, 0.3)[:2] == (0, 0)


def test_a_behavior_leaves_its_input_alone(task, problems):
    plan = vanilla_plan(problems[0].graph)
    before = list(plan)
    changed = Reflection(BehaviorConfig(name="reflection", probability=1.0)).apply(
        plan, problems[0].graph, random.Random(0)
    )
    assert plan == before
    assert changed != before


def test_a_demonstration_depends_on_the_seed_and_the_problem_only(task, problems):
    first = [
        Recipe(BRIDGE, seed=5).demonstrate(task, problem).response for problem in problems[:20]
    ]
    recipe = Recipe(BRIDGE, seed=5)
    again = [recipe.demonstrate(task, problem).response for problem in reversed(problems[:20])][
        ::-1
    ]
    other = [
        Recipe(BRIDGE, seed=6).demonstrate(task, problem).response for problem in problems[:20]
    ]
    assert first == again
    assert first != other


def test_an_unknown_behavior_is_named():
    with pytest.raises(
        ValueError, match="no behavior is called 'reflexion'; known: subgoal, analysis, reflection"
    ):
        recipe_of("reflexion", 0.1)


def test_a_behavior_that_breaks_the_trace_is_caught(task, problems):
    class Forgets:
        def apply(self, plan, graph, rng):
            return plan[1:]

    recipe = Recipe(VANILLA, seed=0)
    recipe.behaviors = [Forgets()]
    with pytest.raises(InjectionError, match=f"{problems[0].id}, line .*: solves .* before"):
        recipe.demonstrate(task, problems[0])


def test_a_problem_without_a_graph_brings_its_own_demonstration(task):
    text = Problem(
        "rl-1", "?", given_answer="5", response="wait, 5", spans=(Span(0, 4, "reflection"),)
    )
    demonstration = Recipe(VANILLA, seed=0).demonstrate(task, text)
    assert (demonstration.response, demonstration.spans) == ("wait, 5", [Span(0, 4, "reflection")])
    with pytest.raises(InjectionError, match="rl-1: no graph"):
        Recipe(BRIDGE, seed=0).demonstrate(task, text)
    with pytest.raises(InjectionError, match="rl-2: no graph"):
        Recipe(VANILLA, seed=0).demonstrate(task, Problem("rl-2", "?", given_answer="5"))
    with pytest.raises(ValueError, match="neither a graph nor an answer"):
        Problem("rl-3", "?")
