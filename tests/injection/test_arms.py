"""Recipes as arms: copies, budgets, fillers; lengths by a real tokenizer."""

from collections import Counter

import pytest

from bi_ray.config.recipes import BRIDGE, RECIPES, BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.behaviors import BEHAVIORS
from bi_ray.injection.recipes import (
    InjectionError,
    Recipe,
    random_order,
    shuffle_premises,
    without_last,
)
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.trace import StepKind, is_filler, vanilla_plan
from bi_ray.tasks.registry import build_task

SETS = {"sft": DifficultyConfig(depth=4, redundant_nodes=(3, 6))}
TASK = build_task(PromptBenchConfig(sets=SETS, order="random"), seed=0)
PROBLEMS = [TASK.problem("sft", i) for i in range(40)]
EVERYTHING = RecipeConfig(
    behaviors=tuple(BehaviorConfig(name=name, probability=0.7) for name in BEHAVIORS)
)


@pytest.fixture(scope="module", params=["tiny-base", "bytes"])
def count_tokens(request):
    if request.param == "bytes":
        return lambda text: len(text.encode())
    tokenizer = load_tokenizer("models/tiny-base")
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def test_the_paper_s_factors():
    for name, kind, copies in (
        ("pp_aug", "igsm", 4),
        ("rc_aug", "promptbench", 2),
        ("bridge", "igsm", 1),
    ):
        assert RECIPES[name].for_task(kind).copies == copies
    assert RecipeConfig(vary="order", copies=3).for_task("igsm").copies == 3


def test_premises_are_shuffled_and_nothing_else():
    recipe = Recipe(RECIPES["pp_aug"].for_task("igsm"), seed=0)
    for problem in PROBLEMS:
        found = list(recipe.demonstrations(TASK, problem))
        questions = [demonstration.problem.question for demonstration in found]
        assert questions[0] == problem.question
        assert len(set(questions)) == 4
        assert len({tuple(sorted(question.split("\n"))) for question in questions}) == 1
        assert len({question.split("\n")[-1] for question in questions}) == 1
        assert len({demonstration.response for demonstration in found}) == 1
        assert [demonstration.copy for demonstration in found] == [0, 1, 2, 3]


def test_the_question_may_stand_anywhere():
    import random

    text = "How many A? B is 2.5 of C. D is 3. E is 4."
    orders = {shuffle_premises(text, random.Random(seed)) for seed in range(60)}
    assert len(orders) == 6
    assert all(order.startswith("How many A? ") for order in orders)
    assert "How many A? E is 4. B is 2.5 of C. D is 3." in orders


def test_solutions_come_in_other_topological_orders():
    recipe = Recipe(RECIPES["rc_aug"].for_task("igsm"), seed=0)
    distinct = Counter()
    for problem in PROBLEMS:
        found = list(recipe.demonstrations(TASK, problem))
        assert (
            found[0].response == Recipe(RecipeConfig(), seed=0).demonstrate(TASK, problem).response
        )
        assert all(demonstration.problem.question == problem.question for demonstration in found)
        distinct[len({demonstration.response for demonstration in found})] += 1
    assert distinct[4] > 30


def test_every_topological_order_is_drawn_about_as_it_may():
    import random

    from bi_ray.reasoning.expression import Operator
    from bi_ray.reasoning.graph import Graph, Node

    graph = Graph([Node("a", 1), Node("b", 2), Node("c", 3, Operator.ADD, ("a", "b"))], "c")
    orders = Counter("".join(random_order(graph, random.Random(seed))) for seed in range(400))
    assert set(orders) == {"abc", "bac"}
    assert min(orders.values()) > 150


def test_copies_of_behaviors_differ():
    recipe = Recipe(BRIDGE.model_copy(update={"copies": 3}), seed=0)
    assert (
        sum(
            len({d.response for d in recipe.demonstrations(TASK, problem)}) > 1
            for problem in PROBLEMS
        )
        > 30
    )


def test_the_recipe_s_seed_changes_its_draws():
    texts = [
        [
            Recipe(EVERYTHING.model_copy(update={"seed": seed}), 0).demonstrate(TASK, p).response
            for p in PROBLEMS[:5]
        ]
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("problem", PROBLEMS[:12], ids=lambda problem: problem.id)
def test_filler_is_as_long_as_bridge_and_says_nothing(problem, count_tokens):
    bridge = Recipe(BRIDGE, 0).demonstrate(TASK, problem)
    vanilla = Recipe(RecipeConfig(), 0).demonstrate(TASK, problem)
    filled = Recipe(RECIPES["filler"], 0, count_tokens).demonstrate(TASK, problem)
    assert count_tokens(filled.response) == count_tokens(bridge.response)
    lines = filled.response.split("\n")
    assert "\n".join(line for line in lines if not is_filler(line)) == vanilla.response
    assert filled.spans == []
    report = check_trace(TASK.parse_trace(filled.response), problem.graph, TASK.notation)
    assert report.valid
    # the last line of the trace is the solution
    assert lines[-3] == vanilla.response.split("\n")[-3]


@pytest.mark.parametrize("share", [0.95, 0.7, 0.4])
def test_a_budget_drops_exploring_steps_first(count_tokens, share):
    full, plain = Recipe(EVERYTHING, 0), Recipe(RecipeConfig(), 0)
    for problem in PROBLEMS[:15]:
        most = count_tokens(full.demonstrate(TASK, problem).response)
        least = count_tokens(plain.demonstrate(TASK, problem).response)
        budget = max(least, int(share * most))
        recipe = Recipe(EVERYTHING.model_copy(update={"max_trace_tokens": budget}), 0, count_tokens)
        steps = TASK.parse_trace(recipe.demonstrate(TASK, problem).response)
        assert count_tokens(recipe.demonstrate(TASK, problem).response) <= budget
        before = TASK.parse_trace(full.demonstrate(TASK, problem).response)
        kept, had = (
            Counter(name for step in all_ for name in step.behaviors) for all_ in (steps, before)
        )
        exploring = kept["reflection"] + kept["correction"]
        others = {"subgoal", "analysis", "verification", "planning"}
        assert exploring == 0 or all(kept[name] == had[name] for name in others)


def test_a_budget_that_nothing_fits_says_what_to_change(count_tokens):
    recipe = Recipe(EVERYTHING.model_copy(update={"max_trace_tokens": 5}), 0, count_tokens)
    with pytest.raises(
        InjectionError, match=r"tokens without any behavior; raise max_trace_tokens \(5\)"
    ):
        recipe.demonstrate(TASK, PROBLEMS[0])


def test_a_budget_needs_a_tokenizer():
    with pytest.raises(ValueError, match="need a tokenizer"):
        Recipe(RecipeConfig(max_trace_tokens=100), 0)


def test_taking_behaviors_out_one_by_one_ends_at_a_plain_plan():
    recipe = Recipe(EVERYTHING, 0)
    problem = PROBLEMS[1]
    plan = vanilla_plan(problem.graph)
    import random

    for behavior in recipe.behaviors:
        plan = behavior.apply(plan, problem.graph, random.Random(0))
    counts = []
    while (shorter := without_last(plan)) is not None:
        counts.append(
            sum(step.kind is StepKind.ATTEMPT or step.mistake is not None for step in plan)
        )
        plan = shorter
    assert sorted(step.node for step in plan) == sorted(problem.graph.needed)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0 < counts[0]


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_named_recipe_makes_demonstrations(name, count_tokens):
    recipe = Recipe(RECIPES[name].for_task("promptbench"), 0, count_tokens)
    shown = {
        span.behavior
        for problem in PROBLEMS
        for d in recipe.demonstrations(TASK, problem)
        for span in d.spans
    }
    single = {name} if name in BEHAVIORS else set()
    assert shown == ({"reflection", "analysis", "subgoal"} if name == "bridge" else single)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"copies": 2}, "they would all be the same"),
        ({"same_length_as": BRIDGE, "vary": "order"}, "remove the other options"),
        (
            {"same_total_as": RecipeConfig(same_length_as=BRIDGE)},
            "name a recipe that matches no other one itself",
        ),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RecipeConfig(**options)
