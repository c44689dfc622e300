"""The checker against hundreds of traces broken on purpose, and thousands of right ones."""

import itertools
import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.config.recipes import VANILLA, BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import (
    DifficultyConfig,
    IGSMConfig,
    IGSMDifficultyConfig,
    PromptBenchConfig,
)
from bi_ray.injection.behaviors import BEHAVIORS
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.check import ParsedStep, check_trace
from bi_ray.reasoning.trace import FILLER_WORDS, StepKind, is_filler
from bi_ray.tasks.registry import build_task
from tests.reasoning.wrong_traces import MUTATIONS, Trace, wrong_traces

TASKS = {
    "small": PromptBenchConfig(sets={"sft": DifficultyConfig(depth=3, redundant_nodes=(2, 6))}),
    "large": PromptBenchConfig(
        sets={"sft": DifficultyConfig(depth=5, redundant_nodes=(0, 8))}, max_abs_value=100
    ),
    "sums": PromptBenchConfig(
        sets={"sft": DifficultyConfig(depth=4)}, operators=("add", "subtract"), constants=(-9, 9)
    ),
    "truths": PromptBenchConfig(
        sets={"sft": DifficultyConfig(depth=5, redundant_nodes=(2, 6))}, logic="boolean"
    ),
    "igsm": IGSMConfig(sets={"sft": IGSMDifficultyConfig(ops=(8, 14))}),
}
PROBLEMS = 6


@cache
def task_and_problem(kind: str, index: int):
    task = build_task(TASKS[kind], seed=1)
    return task, task.problem("sft", index)


@cache
def right_trace(kind: str, index: int) -> Trace:
    task, problem = task_and_problem(kind, index)
    response = Recipe(VANILLA, seed=0).demonstrate(task, problem).response
    return Trace(task.parse_trace(response), problem.graph, task.notation)


@pytest.mark.parametrize("kind", TASKS)
def test_broken_traces_are_refused_where_they_break_for_what_breaks_them(kind):
    seen = Counter()
    for index in range(PROBLEMS):
        trace = right_trace(kind, index)
        assert check_trace(*trace).valid
        for name, wrong in wrong_traces(trace, random.Random(index)):
            report = check_trace(wrong.steps, trace.graph, trace.notation)
            assert not report.valid, name
            assert report.first_bad_step == wrong.place, (name, report.reason)
            assert wrong.reason in report.reason, name
            seen[name] += 1
    assert seen.total() >= 200
    assert len(seen) >= len(MUTATIONS) - 2  # some need an operator that a task has not got


@pytest.mark.parametrize("kind", TASKS)
def test_what_the_mutations_change_was_right_before(kind):
    """The verification and the plan that are broken there pass as long as they are whole."""
    from tests.reasoning.wrong_traces import _verification, outline

    trace = right_trace(kind, 0)
    for seed in range(20):
        place, step = _verification(trace, random.Random(seed))
        report = check_trace(trace.with_line(place, step), trace.graph, trace.notation)
        assert report.valid, report.reason
    plan = ParsedStep(
        text="", node=trace.graph.question, kind=StepKind.OUTLINE, needs=tuple(outline(trace.graph))
    )  # fmt: skip
    assert check_trace([plan, *trace.steps], trace.graph, trace.notation).valid


rates = st.floats(0, 1)
mixes = st.permutations(list(BEHAVIORS)).flatmap(
    lambda names: st.tuples(
        *[
            st.builds(
                BehaviorConfig,
                name=st.just(name),
                probability=rates,
                by_in_degree=st.lists(rates, max_size=4).map(tuple),
                most=st.none() | st.integers(1, 4),
                checks=st.sampled_from(["steps", "answer"]),
            )
            for name in names[: len(names) - 1]
        ]
    )
)


@settings(max_examples=200, deadline=None)
@given(mixes, st.sampled_from(list(TASKS)), st.integers(0, 1000), st.sampled_from([None, "order"]))
def test_every_mix_of_behaviors_in_every_order_is_right(behaviors, kind, seed, vary):
    recipe = Recipe(RecipeConfig(behaviors=behaviors, vary=vary, copies=2), seed)
    for index in range(PROBLEMS):
        task, problem = task_and_problem(kind, index)
        for demonstration in recipe.demonstrations(task, problem):
            steps = task.parse_trace(demonstration.response)
            report = check_trace(steps, problem.graph, task.notation)
            assert report.valid, report.reason
            assert report.progress == 1
            assert task.behavior_spans(demonstration.response) == demonstration.spans
            kinds = [step.kind for step in steps if step.kind in (StepKind.ATTEMPT, StepKind.SOLVE)]
            assert (StepKind.ATTEMPT, StepKind.ATTEMPT) not in itertools.pairwise(kinds)
            assert report.right_reflections == kinds.count(StepKind.ATTEMPT)
            for behavior in behaviors:
                if behavior.most:
                    shown = sum(behavior.name in step.behaviors for step in steps)
                    assert shown <= behavior.most


def test_progress_cannot_be_had_by_padding_or_by_stopping():
    trace = right_trace("large", 0)
    needed = len(trace.graph.needed)
    attempt = ParsedStep(
        text="",
        node=trace.graph.question,
        kind=StepKind.ATTEMPT,
        missing=trace.graph.nodes[trace.graph.question].parents,
    )
    for steps, solved in (
        ([], 0),
        (trace.steps[:3], 3),
        ([attempt] * 50, 0),
        ([*trace.steps[:2], *[attempt] * 50, *trace.steps[2:4]], 4),
        ([*trace.steps[:2], ParsedStep(text="?"), *trace.steps[2:]], 2),
        (trace.steps, needed),
    ):
        assert check_trace(steps, trace.graph, trace.notation).progress == solved / needed


def test_filler_lines_count_for_nothing():
    trace = right_trace("small", 0)
    line = ParsedStep(text=f"- {' '.join(FILLER_WORDS)} ...")
    padded = [line, *itertools.chain.from_iterable((step, line) for step in trace.steps)]
    assert check_trace(padded, trace.graph, trace.notation).valid
    broken = [line, line, ParsedStep(text="so go on to aaa"), *trace.steps]
    assert check_trace(broken, trace.graph, trace.notation).first_bad_step == 2
    assert not any(map(is_filler, ["", "-", "so what", "so, now", "1"]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            ParsedStep,
            text=st.text(max_size=5),
            node=st.none() | st.sampled_from(["q", "x", *(f"aa{c}" for c in "abcdefg")]),
            kind=st.sampled_from(list(StepKind)),
            value=st.none() | st.integers(-99, 99),
            symbols=st.none() | st.text(alphabet="ab +-*^2()9", max_size=30),
            numbers=st.lists(st.text(alphabet="12 +-*^2()9", max_size=30), max_size=3).map(tuple),
            target=st.none() | st.sampled_from(["aaa", "q"]),
            missing=st.lists(st.sampled_from(["aaa", "q"]), max_size=3).map(tuple),
            needs=st.lists(st.tuples(st.just("q"), st.just(("aaa",))), max_size=2).map(tuple),
        ),
        max_size=4,
    )
)
def test_no_line_breaks_the_checker(steps):
    trace = right_trace("small", 0)
    names = iter(trace.graph.nodes)
    known = {"q": trace.graph.question} | {f"aa{c}": next(names) for c in "abcdefg"}
    for step in steps:
        object.__setattr__(step, "node", known.get(step.node, step.node))
    for lines in (steps, [*trace.steps, *steps]):
        report = check_trace(lines, trace.graph, trace.notation)
        assert report.valid == (report.reason is None)


def test_numbers_that_explode_are_refused_in_time():
    trace = right_trace("small", 0)
    place = trace.computed(random.Random(0))
    step = trace.steps[place]
    graph = trace.graph
    node = graph.nodes[step.node]
    from bi_ray.reasoning.expression import substitute

    first = trace.notation.text(
        substitute(node.formula, {n: graph.nodes[n].value for n in node.parents})
    )
    tower = "(" * 60 + "9^2" + ")^2" * 60
    bad = ParsedStep(
        text="", node=node.name, value=node.value, symbols=step.symbols, numbers=(first, tower)
    )
    report = check_trace(trace.changed(place, bad), graph, trace.notation)
    assert report.first_bad_step == place
