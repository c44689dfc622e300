import itertools

import pytest
from igsm_tools import make_task

from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.reasoning.parse import ParseError
from bi_ray.reasoning.trace import StepKind, join, vanilla_plan
from bi_ray.tasks.igsm.parse import parse_line, parse_question, parse_relation, parse_trace
from bi_ray.tasks.igsm.vocabulary import WORLDS, World
from bi_ray.tasks.igsm.wording import NOTATION, relation

ADD, SUBTRACT, MULTIPLY = Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY
KINDS = list(itertools.product(("paper", "clean"), ("shuffled", "in_order"), ("last", "first")))

# The relations of the paper, and those that it leaves to the reader.
RELATIONS = [
    ("6", 6),
    ("each A's B", "A's B"),
    (
        "0 more than each Oakwood Middle School's Pottery Classroom",
        (ADD, 0, "Oakwood Middle School's Pottery Classroom"),
    ),
    ("9 more than the sum of each A's B and each C's D", (ADD, 9, "A's B", "C's D")),
    ("5 times each E's F", (MULTIPLY, 5, "E's F")),
    ("the difference of each G's H and each I's J", (SUBTRACT, "G's H", "I's J")),
    ("the sum of each A's B, each C's D and each E's F", (ADD, "A's B", "C's D", "E's F")),
    ("3 times the sum of each A's B and each C's D", (MULTIPLY, 3, (ADD, "A's B", "C's D"))),
    (
        "4 more than the difference of each A's B and each C's D",
        (ADD, 4, (SUBTRACT, "A's B", "C's D")),
    ),
    ("each A's B times each B's D", (MULTIPLY, "A's B", "B's D")),
    (
        "the sum of each A's B times each B's D and each A's C times each C's D",
        (ADD, (MULTIPLY, "A's B", "B's D"), (MULTIPLY, "A's C", "C's D")),
    ),
]


@pytest.mark.parametrize(("text", "formula"), RELATIONS)
def test_relations_are_read_and_written(text, formula):
    assert parse_relation(text) == formula
    assert relation(formula) == text


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("5 times as much as each A's B", (MULTIPLY, 5, "A's B")),
        ("the sum of each A's B, each C's D, and each E's F", (ADD, "A's B", "C's D", "E's F")),
    ],
)
def test_relations_in_other_words_are_read(text, formula):
    assert parse_relation(text) == formula


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 less than each A's B",
        "the sum of each A's B",
        "each A",
        "half",
        "2 more than",
        "the difference of each A's B",
        "the difference of each A's B, each C's D and each E's F",
        "1/2",
        "-",
        "some of each A's B",
    ],
)
def test_what_is_no_relation_is_none(text):
    assert parse_relation(text) is None


def assert_round_trip(count):
    """``count`` problems over every mode, order and place of the question: graph -> text -> graph,
    exact.
    """
    tasks = [
        make_task(mode, ops=(1, 40), redundant_nodes=(0, 5), premises=p, question=q)
        for mode, p, q in KINDS
    ]
    for index in range(count):
        problem = tasks[index % len(tasks)].problem("rl", index)
        graph = parse_question(problem.question)
        assert graph.nodes == problem.graph.nodes
        assert graph.question == problem.graph.question
        assert graph.hash() == problem.graph.hash()


def test_texts_are_read_back_into_their_graphs():
    assert_round_trip(240)


@pytest.mark.slow
def test_ten_thousand_texts_of_every_mode_are_read_back_into_their_graphs():
    assert_round_trip(20_000)  # half of them in each mode


def test_chains_of_thought_are_read_back_into_the_needed_part_of_their_graphs():
    task = make_task("paper")
    for index in range(60):
        graph = task.problem("rl", index).graph
        steps = task.parse_trace(join(task.render(vanilla_plan(graph), graph))[0])
        report = check_trace(steps, graph, NOTATION)
        assert report.valid, report.reason
        assert report.solved == {name: graph.values[name] for name in graph.needed_order}


FOREIGN = (
    "The number of each Painting Room's Designer Bag equals 2 more than "
    "each Oakwood Middle School's Pottery Classroom. "
    "The number of each Oakwood Middle School's Pottery Classroom equals 6. "
    "The number of each Oakwood Middle School's Painting Room equals 3. "
    "How many {category} does each Oakwood Middle School have?"
)
SCHOOL = World(
    {
        "School": {"": ("Oakwood Middle School",)},
        "Classroom": {"": ("Painting Room", "Pottery Classroom")},
        "Backpack": {"": ("Designer Bag", "Manager Backpack")},
    }
)


def test_names_of_a_world_that_is_handed_over():
    graph = parse_question(FOREIGN.format(category="Classroom"), SCHOOL)
    assert graph.nodes[graph.question].formula == (
        ADD,
        "Oakwood Middle School's Painting Room",
        "Oakwood Middle School's Pottery Classroom",
    )
    assert graph.answer == 9
    assert len(graph.nodes) - len(graph.needed) == 1


def test_an_unknown_category_is_what_its_holder_holds_directly():
    text = (
        "The number of each Red Room's Tiny Bag equals 4. How many Backpack does each Red "
        "Room have?"
    )
    assert parse_question(text).answer == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            FOREIGN.format(category="Classroom"),
            "'Classroom' is not a category of a known world: pass world",
        ),
        (
            "The number of each A's B equals lots. How many B does each A have?",
            "not understood: 'lots'",
        ),
        (
            "The number of each A's B equals 1. It rains. How many B does each A have?",
            "no sentence .*'It rains.'",
        ),
        (
            "The number of each A's B equals 1. The number of each A's B equals 2. How many "
            "B does each A have?",
            "twice",
        ),
        ("The number of each A's B equals 1.", "0 questions"),
        (
            "The number of each A's B equals each C's D. How many B does each A have?",
            '"C\'s D" is used, but',
        ),
        (
            "The number of each A's B equals each A's C. The number of each A's C equals "
            "each A's B. "
            "How many B does each A have?",
            "circle",
        ),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(ParseError, match=message):
        parse_question(text)


# The wording of the paper, line by line, with names put in for its letters.
WORKED = [
    (
        "- According to the information given, the number of each X's Y is 1. Let's denote "
        "it as S. So S = 1.",
        (1, "S", None, ()),
    ),
    (
        "- Next, let Q represent the number of each X's Y. Then Q = 5 * S = 5 * 1 = 5.",
        (5, "Q", "5 * S", ("5 * 1",)),
    ),
    (
        "- Then, let's denote the number of each X's Y as v. Then v = m + Q + W = 13 + 5 + 6 = 24.",
        (24, "v", "m + Q + W", ("13 + 5 + 6",)),
    ),
    (
        "- Then, let's denote the number of each X's Y as v. Then v = m + Q + W = 13 + 5 + 6 "
        "= 18 + 6 = 24.",
        (24, "v", "m + Q + W", ("13 + 5 + 6", "18 + 6")),
    ),
    (
        "- First of all, we denote the number of each X's Y as v. Hence, v = m - Q = 24.",
        (24, "v", "m - Q", ()),
    ),
]


@pytest.mark.parametrize(("line", "expected"), WORKED)
def test_worked_lines_are_read(line, expected):
    names = {}
    step = parse_line(line, names)
    assert (step.node, step.kind) == ("X's Y", StepKind.SOLVE)
    assert (step.value, step.symbol, step.symbols, step.numbers) == expected
    assert step.subgoal == (len(expected[3]) > 1)
    assert names == {step.symbol: "X's Y"}


def test_analysis_reflection_and_remembering_are_read():
    line = (
        "- Then, let's denote the number of each X's Y as y. We know that it equals the "
        "difference of "
        "each G's A and each H's B. Then y = p - v = 48 - 24 = 24."
    )
    assert parse_line(line, {}).relation == (SUBTRACT, "G's A", "H's B")
    line = (
        "- Then, let's denote the number of each G's A as y. But we haven't calculated the "
        "number of each P's B yet, "
        "thus the value of y is still unknown."
    )
    step = parse_line(line, {})
    assert (step.kind, step.node, step.symbol, step.missing) == (
        StepKind.ATTEMPT,
        "G's A",
        "y",
        ("P's B",),
    )
    line = (
        "- Now, consider the number of each G's A. Remember that it has been denoted as "
        "y. Then y = p = 3."
    )
    step = parse_line(line, {})
    assert (step.node, step.symbol, step.symbols, step.value) == ("G's A", "y", "p", 3)


def test_a_vanilla_solution_of_the_paper_is_checked():
    """The form of section 9 with names that no world of ours has."""
    nodes = [
        Node("Art Room's Bag", 1),
        Node.of("Dance Room's Bag", (MULTIPLY, 5, "Art Room's Bag"), {"Art Room's Bag": 1}),
        Node("Old School's Room", 6, ADD, ("Art Room's Bag", "Dance Room's Bag")),
    ]
    lines = [
        "- According to the information given, the number of each Art Room's Bag is 1. Let's "
        "denote it as S. So S = 1.",
        "- Next, let Q represent the number of each Dance Room's Bag. Then Q = 5 * S = 5 * 1 = 5.",
        "- Then, let's denote the number of each Old School's Room as v. Then v = S + Q = 1 "
        "+ 5 = 6.",
        "Thus, the answer is 6.",
    ]
    steps = parse_trace(
        "<think>\n" + "\n".join(lines) + "\n</think>\n<answer> The final answer is 6 </answer>"
    )
    assert check_trace(steps, Graph(nodes, "Old School's Room"), NOTATION).valid
    assert len(steps) == 3


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Thus, the answer is 6.",
        "- Next, let QQ represent the number of each X's Y. Then QQ = 5.",
        "- Next, let Q represent the number of each X's Y. Then S = 5.",
        "- Next, let Q represent the number of each X's Y. Then Q = five.",
        "- Next, let Q represent the number of each X. Then Q = 5.",
        "- So, the number of each X's Y is 1. Let's denote it as S. So S = 2.",
        "- Next, let Q represent the number of each X's Y. We know that it equals much. Then "
        "Q = S = 5.",
        "- Next, let Q represent the number of each X's Y. But we haven't calculated anything yet, "
        "thus the value of Q is still unknown.",
        "- Now, let's check Q: S + Q = 1 + 2 = 3, and S is 3, right.",
        "- Plan: to get the number of each X's Y.",
    ],
)
def test_lines_of_no_known_form_are_no_steps(line):
    assert parse_line(line, {}).node is None


def test_a_conclusion_counts_only_at_the_end_and_when_it_fits():
    line = "- So, the number of each X's Y is 1. Let's denote it as S. So S = 1."
    right = "Thus, the answer is 1."
    assert len(parse_trace(f"<think>\n{line}\n{right}\n</think>")) == 1
    assert [step.node for step in parse_trace(f"{line}\nThus, the answer is 2.")] == ["X's Y", None]
    assert [step.node for step in parse_trace(f"{right}\n{line}")] == [None, "X's Y"]


def test_our_worlds_have_four_layers_and_no_name_twice():
    assert len(WORLDS) >= 4
    names = [
        name for world in WORLDS for layer in world.groups for group in layer for name in group
    ]
    categories = [category for world in WORLDS for category in world.categories]
    assert len(set(names + categories)) == len(names) + len(categories)
    for world in WORLDS:
        assert len(world.categories) == 4
        assert all(
            len(layer) >= 2 and all(4 <= len(group) <= 5 for group in layer)
            for layer in world.groups
        )
    joints = (
        "'s ",
        " and ",
        " each ",
        " times ",
        " as ",
        " is ",
        " equals ",
        " does ",
        " have",
        ";",
        ".",
        ",",
    )
    assert not [name for name in names for joint in joints if joint in f" {name} "]
