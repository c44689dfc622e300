import hashlib
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.config.files import load_config
from bi_ray.config.recipes import BRIDGE, VANILLA, BehaviorConfig, RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.trace import join, mark, vanilla_plan
from bi_ray.tasks.base import SPLIT_BUCKETS, SPLIT_RANGES, in_split
from bi_ray.tasks.promptbench import task as promptbench_task
from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.promptbench.wording import node_names

ORDERS = ("topological", "reversed", "random")
SETS = ("pretrain", "sft", "rl", "val", "test_id", "test_ood", "influence_target")
ALL_BEHAVIORS = RecipeConfig(
    behaviors=tuple(
        BehaviorConfig(name=name, probability=1.0) for name in ("reflection", "analysis", "subgoal")
    )
)


def make_task(seed=0, order="topological", sets=None, **options) -> PromptBenchTask:
    sets = sets or {name: DifficultyConfig(depth=(3, 4), redundant_nodes=(0, 5)) for name in SETS}
    return PromptBenchTask(PromptBenchConfig(order=order, sets=sets, **options), seed)


def evaluate_question(text: str) -> int:
    """The answer worked out from the text alone, by other means than the graph: rewriting into one
    Python term.
    """
    terms: dict[str, str] = {}
    *premises, question = text.split("\n")
    forms = {
        r"The value of (\w+) is (-?\d+)\.": "({1})",
        r"(\w+) gets its value by adding together the value of (\w+) and (\w+)\.": "({1} + {2})",
        r"(\w+) gets its value by subtracting the value of (\w+) from the value of "
        r"(\w+)\.": "({2} - {1})",
        r"(\w+) gets its value by multiplying together the value of (\w+) and "
        r"(\w+)\.": "({1} * {2})",
        r"(\w+) gets its value by squaring the value that (\w+) has\.": "({1})**2",
    }
    for premise in premises:
        for form, term in forms.items():
            if match := re.fullmatch(form, premise):
                assert match[1] not in terms
                terms[match[1]] = "(" + term.format(*match.groups()) + ")"
                break
        else:
            raise AssertionError(f"not understood: {premise}")
    term = re.fullmatch(r"What is the value of (\w+)\?", question)[1]
    while names := set(re.findall(r"[a-z]+", term)):
        for name in names:
            term = re.sub(rf"\b{name}\b", terms[name], term)
    return eval(term)


def depth_of(graph, name) -> int:
    parents = graph.nodes[name].parents
    return 1 + max((depth_of(graph, parent) for parent in parents), default=0)


@pytest.mark.parametrize("order", ORDERS)
def test_answers_equal_those_worked_out_from_the_text(order):
    task = make_task(order=order)
    for i in range(300):
        problem = task.problem("rl", i)
        assert evaluate_question(problem.question) == int(problem.answer)


def test_an_item_depends_on_seed_set_and_index_only():
    first, second = make_task(), make_task()
    backwards = {i: second.problem("rl", i) for i in reversed(range(20))}
    for i in range(20):
        problem = first.problem("rl", i)
        assert (problem.question, problem.id) == (backwards[i].question, backwards[i].id)
        assert problem.graph.to_json() == backwards[i].graph.to_json()
    assert make_task(seed=1).problem("rl", 0).question != first.problem("rl", 0).question
    assert first.problem("rl", 0).question != first.problem("rl", 1).question


@pytest.mark.parametrize(
    ("order", "digest"),
    [
        ("topological", "abedbc4ad965d5c5"),
        ("reversed", "b63ef42c74dd9dbe"),
        ("random", "84cfd2c939308a9f"),
    ],
)
def test_the_items_of_a_seed_stay_what_they_are(order, digest):
    """To the letter, as are the lines that solve them: the shipped base and every published figure
    rest on them.
    """
    sets = {
        name: DifficultyConfig(depth=(2, 5), redundant_nodes=(0, 8))
        for name in ("sft", "rl", "test_ood")
    }
    task = make_task(order=order, max_abs_value=100, sets=sets)
    texts = []
    for name in sets:
        for i in range(20):
            problem = task.problem(name, i)
            texts += [problem.question, problem.graph.to_json()]
            for computed in ({}, {"subgoal": True, "analysis": True}):
                plan = [mark(step, **computed) for step in vanilla_plan(problem.graph)]
                texts.append(join(task.render(plan, problem.graph))[0])
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == digest


def test_every_bucket_belongs_to_one_set():
    owned = [bucket for buckets in SPLIT_RANGES.values() for bucket in buckets]
    assert sorted(owned) == list(range(SPLIT_BUCKETS))


def test_sets_share_no_graph():
    task = make_task(
        constants=(1, 3),
        operators=("add",),
        sets={name: DifficultyConfig(depth=3) for name in SETS},
    )
    hashes = {name: {task.problem(name, i).graph.hash() for i in range(30)} for name in SETS}
    for name, found in hashes.items():
        assert all(int(one, 16) % 1000 in SPLIT_RANGES[name] for one in found)
        assert not any(found & hashes[other] for other in SETS if other != name)
    assert not in_split("0" * 16, "sft")


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("redundant", [0, 1, 2, 3, 8])
def test_depth_and_redundant_nodes_are_exact(depth, redundant):
    task = make_task()
    rng = random.Random(f"{depth}/{redundant}")
    difficulty = DifficultyConfig(depth=depth, redundant_nodes=redundant)
    for _ in range(40):
        graph = task.draw(rng, difficulty)
        assert depth_of(graph, graph.question) == depth
        assert len(graph.nodes) - len(graph.needed) == redundant


def test_ranges_are_used_up_to_their_ends():
    task = make_task()
    rng = random.Random(0)
    drawn = [
        task.draw(rng, DifficultyConfig(depth=(2, 4), redundant_nodes=(1, 3))) for _ in range(300)
    ]
    assert {depth_of(graph, graph.question) for graph in drawn} == {2, 3, 4}
    assert {len(graph.nodes) - len(graph.needed) for graph in drawn} == {1, 2, 3}


@pytest.mark.parametrize("limit", [10, 30, 1000])
def test_every_value_is_within_the_limit(limit):
    task = make_task(max_abs_value=limit)
    values = [node.value for i in range(200) for node in task.problem("rl", i).graph.nodes.values()]
    assert max(map(abs, values)) <= limit
    assert max(map(abs, values)) > 0.8 * limit  # and the limit is no tighter than it says


def test_all_operators_occur_and_none_that_is_not_asked_for():
    def operators(**options):
        task = make_task(**options)
        return {
            node.operator for i in range(100) for node in task.problem("rl", i).graph.nodes.values()
        }

    assert operators() == {None, "add", "subtract", "multiply", "square"}
    assert operators(operators=("add", "square")) == {None, "add", "square"}


def test_orders_are_what_they_say():
    def positions(order):
        problem = make_task(order=order).problem("rl", 3)
        told = [
            line.removeprefix("The value of ").split()[0]
            for line in problem.question.split("\n")[:-1]
        ]
        return told, list(problem.graph.nodes)

    told, nodes = positions("topological")
    assert told == nodes
    told, nodes = positions("reversed")
    assert told == nodes[::-1]
    told, nodes = positions("random")
    assert sorted(told) == sorted(nodes)
    assert told not in (nodes, nodes[::-1])


def test_names_are_distinct_and_come_from_the_pool():
    assert node_names(3) == ["aaa", "aab", "aac"]
    assert len(set(node_names(17576))) == 17576
    task = make_task(name_pool=48)
    used = {name for i in range(100) for name in task.problem("rl", i).graph.nodes}
    assert used == set(node_names(48))


def test_a_difficulty_that_no_set_can_have_is_named(monkeypatch):
    monkeypatch.setattr(promptbench_task, "_MAX_DRAWS", 300)
    task = make_task(
        constants=(1, 1),
        operators=("add",),
        sets={name: DifficultyConfig(depth=1) for name in SETS},
    )  # one single problem, which belongs to one set
    homeless = [
        name
        for name in SETS
        if not in_split(task.draw(random.Random(0), DifficultyConfig(depth=1)).hash(), name)
    ]
    assert len(homeless) == len(SETS) - 1
    with pytest.raises(ValueError, match=f"no problem of set '{homeless[0]}'"):
        task.problem(homeless[0], 0)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(
    index=st.integers(0, 10**6),
    order=st.sampled_from(ORDERS),
    limit=st.sampled_from([20, 100, 1000]),
)
def test_demonstrations_read_back_as_valid_traces(index, order, limit):
    """Three recipes each: 2,100 demonstrations of problems of every order."""
    task = make_task(order=order, max_abs_value=limit)
    problem = task.problem("sft", index)
    for config in (VANILLA, BRIDGE, ALL_BEHAVIORS):
        response = Recipe(config, seed=index).demonstrate(task, problem).response
        report = check_trace(task.parse_trace(response), problem.graph, task.notation)
        assert report.valid, (report.reason, response)
        assert set(report.solved) == problem.graph.needed
        assert task.parse_answer(response) == str(evaluate_question(problem.question))
        assert task.format_is_right(response)


# The wording of the paper, line by line.
WORKED_LINES = [
    ("Let's solve aaa, aaa is 9", {"node": "aaa", "value": 9}),
    ("Let's solve aab, aab = aaa^2 = 81", {"node": "aab", "value": 81, "symbols": "aaa^2"}),
    ("Let's solve aae, aae = aad - aac = 0", {"node": "aae", "value": 0, "symbols": "aad - aac"}),
    (
        "Let's solve aae, aae = aad - aac = 5 - 5 = 0",
        {
            "node": "aae",
            "value": 0,
            "symbols": "aad - aac",
            "numbers": ("5 - 5",),
            "subgoal": True,
        },
    ),
    (
        "Let's solve aae, since aad is 5 and aac is 5, aae = aad - aac = 0",
        {
            "node": "aae",
            "value": 0,
            "symbols": "aad - aac",
            "restated": (("aad", 5), ("aac", 5)),
        },
    ),
    (
        "Let's solve aap, aaf and aao are not known yet, wait, aap seems to be not solvable "
        "yet, let's get back",
        {"node": "aap", "missing": ("aaf", "aao")},
    ),
    (
        "Let's solve aap, aaf is not known yet, wait, aap seems to be not solvable yet, "
        "let's get back",
        {"node": "aap", "missing": ("aaf",)},
    ),
]


@pytest.mark.parametrize(("line", "fields"), WORKED_LINES)
def test_worked_lines_are_read(line, fields):
    step = parse_line(line)
    empty = {"value": None, "symbols": None, "numbers": (), "restated": (), "missing": ()}
    for name, value in (empty | fields).items():
        assert getattr(step, name) == value, name


@pytest.mark.parametrize(
    "premise",
    [
        "The value of aac is 5.",
        "aaf gets its value by adding together the value of aab and aae.",
        "aap gets its value by subtracting the value of aao from the value of aaf.",
        "aas gets its value by multiplying together the value of aaq and aar.",
        "aab gets its value by squaring the value that aaa has.",
        "What is the value of aap?",
    ],
)
def test_premises_are_worded_as_in_the_paper(premise):
    """With the names taken out; and the subtraction is the first named taken from the second."""
    bare = re.compile(
        r"\b(?:aa[a-z]|[a-z]{3}(?= gets)|(?<=of )[a-z]{3}\b|(?<=and )[a-z]{3}\b|(?<=that "
        r")[a-z]{3}\b)"
    )
    task = make_task()
    forms = {
        re.sub(r"\d+", "5", bare.sub("N", line))
        for i in range(50)
        for line in task.problem("rl", i).question.split("\n")
    }
    assert bare.sub("N", premise) in forms


THINK = "<think>\nLet's solve aaa, aaa is 9\n</think>\n"
NINE = "<answer> The final answer is 9 </answer>"
EIGHT = NINE.replace("9", "8")


@pytest.mark.parametrize(
    ("response", "answer", "right_format"),
    [
        (THINK + NINE, "9", True),
        (f"  {THINK}\n{NINE}\n", "9", True),
        (THINK + NINE.replace("9", "-12"), "-12", True),
        (THINK + NINE.replace("9", "009"), "9", True),
        (THINK + NINE.replace("9", "-0"), "0", True),
        (NINE, "9", False),
        (THINK, None, False),
        ("", None, False),
        (THINK + NINE + " so", "9", False),
        ("so " + THINK + NINE, "9", False),
        (THINK + EIGHT + NINE, "9", False),
        (THINK + EIGHT + THINK + NINE, "9", False),
        (THINK + THINK + NINE, "9", False),
        # the last one has no number
        (THINK + NINE + "<answer> The final answer is x </answer>", None, False),
        (THINK + NINE + "<answer>", None, False),
        (THINK + "<answer> 9 </answer>", None, False),
        (THINK + "<answer>The final answer is 9</answer>", None, False),
        (THINK + NINE.replace("9", "9.5"), None, False),
        (THINK + NINE.replace("9", "٩"), None, False),
        (THINK + NINE.replace("9", "9" * 5000), None, False),  # int() would raise
        (f"<think>{EIGHT}</think>\n{NINE}", "9", False),
    ],
)
def test_answer_and_format(response, answer, right_format):
    task = make_task()
    assert task.parse_answer(response) == answer
    assert task.format_is_right(response) is right_format


@pytest.mark.parametrize(
    ("response", "lines"),
    [
        ("<think>\na\nb\n</think>\nc", ["a", "b"]),
        ("<think>a\n\nb</think>", ["a", "b"]),
        ("<think>\na\nb", ["a", "b"]),  # cut off
        ("a\nb</think>", ["a", "b"]),
        ("</think> a <think>", []),
        ("", []),
    ],
)
def test_the_trace_is_what_stands_between_the_tags(response, lines):
    assert [step.text for step in make_task().parse_trace(response)] == lines


def test_rendered_vanilla_trace_letter_by_letter():
    problem = make_task(
        max_abs_value=100, sets={name: DifficultyConfig(depth=2) for name in SETS}
    ).problem("rl", 1)
    graph = problem.graph
    response = join(make_task().render(vanilla_plan(graph), graph))[0]
    constants = [
        f"Let's solve {n.name}, {n.name} is {n.value}"
        for n in graph.nodes.values()
        if not n.operator
    ]
    assert response.startswith(
        "<think>\n" + "\n".join(constants) + f"\nLet's solve {graph.question}, {graph.question} = "
    )
    assert response.endswith(
        f" = {graph.answer}\n</think>\n<answer> The final answer is {graph.answer} </answer>"
    )


def test_the_papers_config_makes_the_papers_problems():
    config = load_config(Path(__file__).parents[3] / "configs/promptbench_paper.yaml", RunConfig)
    shapes = {"sft": (4, 0, 0), "rl": (5, 0, 8), "test_id": (5, 0, 8), "test_ood": (5, 20, 22)}
    task = PromptBenchTask(config.task, config.seeds.data)
    for name, (depth, least, most) in shapes.items():
        for i in range(20):
            graph = task.problem(name, i).graph
            assert depth_of(graph, graph.question) == depth
            assert least <= len(graph.nodes) - len(graph.needed) <= most
    assert (config.task.sets["sft"].problems, config.sft.epochs, config.sft.batch_examples) == (
        5000,
        2,
        128,
    )
    assert (config.rl.steps, config.rl.prompts_per_step, config.rl.samples_per_prompt) == (
        100,
        32,
        32,
    )
