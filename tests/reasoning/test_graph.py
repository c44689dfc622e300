import random

import pytest

from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Graph, Node, NodeState


def diamond() -> Graph:
    """(a - b) * (a - b)^2 with a redundant r over a: 2, -1 -> d = 3, s = 9, q = 27."""
    return Graph(
        [
            Node("a", 2),
            Node("b", -1),
            Node("d", 3, Operator.SUBTRACT, ("a", "b")),
            Node("r", 4, Operator.SQUARE, ("a",)),
            Node("s", 9, Operator.SQUARE, ("d",)),
            Node("q", 27, Operator.MULTIPLY, ("d", "s")),
        ],
        question="q",
    )


def rebuilt(graph: Graph, names=None, parents=None, operators=None, values=None) -> Graph:
    """The graph with some parts replaced; values are worked out again."""
    names, parents, operators, values = names or {}, parents or {}, operators or {}, values or {}
    done: dict[str, Node] = {}
    for node in graph.nodes.values():
        operator = operators.get(node.name, node.operator)
        family = parents.get(node.name, node.parents)
        inputs = [done[parent].value for parent in family]
        value = values.get(node.name, node.value)
        if operator:
            value = {
                "add": lambda x, y=0: x + y,
                "subtract": lambda x, y=0: x - y,
                "multiply": lambda x, y=0: x * y,
                "square": lambda x: x**2,
            }[operator](*inputs)
        renamed = tuple(names.get(parent, parent) for parent in family)
        done[node.name] = Node(names.get(node.name, node.name), value, operator, renamed)
    return Graph(done.values(), names.get(graph.question, graph.question))


def test_states_follow_what_is_solved():
    graph = diamond()
    assert graph.state("a", []) is NodeState.UNLOCKED
    assert graph.state("a", ["a"]) is NodeState.SOLVED
    assert graph.state("d", ["a"]) is NodeState.LOCKED
    assert graph.state("d", ["a", "b"]) is NodeState.UNLOCKED
    assert graph.missing_parents("q", ["a"]) == ["d", "s"]
    assert graph.missing_parents("q", ["s"]) == ["d"]
    assert graph.missing_parents("q", ["s", "d"]) == []


def test_needed_leaves_the_redundant_out():
    graph = diamond()
    assert graph.needed == {"a", "b", "d", "s", "q"}
    assert graph.needed_order == ["a", "b", "d", "s", "q"]
    assert graph.answer == 27


def test_a_parent_used_twice_is_missing_once():
    graph = Graph([Node("a", 3), Node("q", 6, Operator.ADD, ("a", "a"))], "q")
    assert graph.missing_parents("q", []) == ["a"]


@pytest.mark.parametrize(
    ("nodes", "question", "words"),
    [
        ([Node("a", 1), Node("a", 2)], "a", "defined twice"),
        ([Node("q", 1, Operator.SQUARE, ("a",)), Node("a", 1)], "q", "not a topological order"),
        ([Node("q", 1, Operator.SQUARE, ("z",))], "q", "not a topological order"),
        ([Node("q", 1, Operator.SQUARE, ("q",))], "q", "not a topological order"),
        ([Node("a", 1), Node("q", 1, Operator.ADD, ("a",))], "q", "does not take 1 parents"),
        ([Node("a", 1), Node("q", 1, None, ("a",))], "q", "does not take 1 parents"),
        (
            [Node("a", 3), Node("q", 8, Operator.SQUARE, ("a",))],
            "q",
            "given as 8, but its parents give 9",
        ),
        ([Node("a", 1)], "q", "no node of the graph"),
    ],
)
def test_wrong_graphs_are_refused(nodes, question, words):
    with pytest.raises(ValueError, match=words):
        Graph(nodes, question)


def test_hash_ignores_names_and_operand_order_where_it_is_of_no_consequence():
    graph = diamond()
    assert (
        rebuilt(graph, names={name: f"x{i}" for i, name in enumerate(graph.nodes)}).hash()
        == graph.hash()
    )
    assert rebuilt(graph, parents={"q": ("s", "d")}).hash() == graph.hash()


def test_hash_ignores_where_redundant_nodes_stand():
    nodes = [Node("a", 2), Node("q", 4, Operator.SQUARE, ("a",)), Node("r", 7), Node("t", 8)]
    orders = [[0, 1, 2, 3], [2, 3, 0, 1], [0, 3, 2, 1]]
    assert len({Graph([nodes[i] for i in order], "q").hash() for order in orders}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"parents": {"d": ("b", "a")}},  # subtraction does not commute
        {"operators": {"d": Operator.ADD}},
        {"operators": {"q": Operator.SUBTRACT}},
        {"values": {"a": 3}},
        {"parents": {"r": ("b",)}},  # a redundant node over another constant
    ],
)
def test_hash_changes_with_operators_constants_and_structure(changes):
    assert rebuilt(diamond(), **changes).hash() != diamond().hash()


def test_hash_depends_on_the_question_and_on_redundant_nodes():
    graph = diamond()
    nodes = list(graph.nodes.values())
    assert Graph(nodes, "s").hash() != graph.hash()
    assert Graph([node for node in nodes if node.name != "r"], "q").hash() != graph.hash()


def test_hash_is_the_same_in_every_process():
    """A pinned value: a change would move every problem to another set."""
    assert diamond().hash() == "c43f84648851eb86"


def test_json_round_trip():
    graph = diamond()
    back = Graph.from_json(graph.to_json())
    assert (back.nodes, back.question, back.hash()) == (graph.nodes, graph.question, graph.hash())


def test_json_is_checked_as_it_is_read():
    with pytest.raises(ValueError, match="its parents give 27"):
        Graph.from_json(diamond().to_json().replace('"value": 27', '"value": 28'))


def test_needed_equals_brute_force_on_random_graphs():
    rng = random.Random(0)
    for _ in range(200):
        nodes = [Node("n0", rng.randint(1, 9)), Node("n1", rng.randint(1, 9))]
        for i in range(2, 12):
            a, b = rng.sample(nodes, 2)
            nodes.append(Node(f"n{i}", a.value + b.value, Operator.ADD, (a.name, b.name)))
        question = rng.choice(nodes)
        needed = {question.name}
        while grown := {p for n in nodes if n.name in needed for p in n.parents} - needed:
            needed |= grown
        assert Graph(nodes, question.name).needed == needed


def json_of_node(**changed: str) -> str:
    """The JSON of a graph of one node, of which some values are written as they are given."""
    node = {"name": '"a"', "value": "5", "operator": "null", "parents": "[]"} | changed
    written = ", ".join(f'"{name}": {value}' for name, value in node.items())
    return f'{{"nodes": [{{{written}}}], "question": "a"}}'


def nested(expression: str, times: int) -> str:
    return json_of_node(operator='"add"', expression=expression * times + "5" + "]" * times)


NO_GRAPHS = [
    *(
        "[" * 100_000,
        '{"a":' * 100_000,
        "[",
        "7",
        "[]",
        "{}",
        '{"nodes": 7, "question": "a"}',
        '"\\ud83c"',
    ),
    *('{"nodes": ["a"], "question": "a"}', '{"nodes": [{"name": "a"}], "question": "a"}'),
    *(
        json_of_node(value=value)
        for value in ("NaN", "Infinity", "true", '"5"', "null", "2.5", '{"value": "x"}')
    ),
    *(json_of_node(value=value) for value in ("[]", "[[]]", "9" * 5000)),
    *(json_of_node(name='["a"]'), json_of_node(operator='["add"]'), json_of_node(parents="7")),
    *(nested('["square", ', 400), nested('["add", 1, ', 900), nested("[", 900)),
]


@pytest.mark.parametrize("text", NO_GRAPHS, ids=range(len(NO_GRAPHS)))
def test_what_is_no_graph_is_refused_whatever_it_is(text):
    with pytest.raises(ValueError):
        Graph.from_json(text)


def test_a_graph_of_one_node_is_one():
    assert Graph.from_json(json_of_node()).answer == 5
