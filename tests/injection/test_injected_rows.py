"""Rows turned into demonstrations: proven, in order, the same for the same seed; bad ones told with
their reason.
"""

import json

import pytest

from bi_ray.config.base import ConfigError
from bi_ray.config.recipes import BRIDGE, BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.data.generation import distinct_problems
from bi_ray.injection.user_rows import inject_rows, recipe_of
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.rows.cells import RowError
from bi_ray.rows.fields import fields_of
from bi_ray.rows.rejects import DataError, Place, Rejects
from bi_ray.tasks.base import Problem
from bi_ray.tasks.reading import problem_of
from bi_ray.tasks.registry import build_task

CONFIG = PromptBenchConfig(
    name_pool=48, max_abs_value=100, sets={"sft": {"depth": 3, "redundant_nodes": [0, 4]}}
)
TASK = build_task(CONFIG, 0)
ROWS = [row for _, row in distinct_problems(CONFIG, 0, "sft", 40)]


def numbered(rows):
    return [(Place("mine.jsonl", line), row) for line, row in enumerate(rows, 1)]


def injected(rows, recipe=BRIDGE, seed=0, rejects=None, **options):
    return list(
        inject_rows(numbered(rows), TASK, recipe, seed, rejects or Rejects(strict=True), **options)
    )


def test_every_row_is_right_and_says_what_is_in_it():
    made = injected(
        ROWS, RecipeConfig(behaviors=(BehaviorConfig(name="reflection", probability=0.5),))
    )
    assert [row["id"] for row in made] == [row["id"] for row in ROWS]
    reflections = 0
    for row, before in zip(made, ROWS, strict=True):
        graph = Graph.from_json(row["graph"])
        report = check_trace(TASK.parse_trace(row["response"]), graph, TASK.notation)
        assert report.valid
        assert TASK.parse_answer(row["response"]) == row["answer"] == before["answer"]
        assert all(
            row["response"][span["start"] : span["end"]].endswith("get back")
            for span in row["spans"]
        )
        reflections += report.right_reflections
        assert report.right_reflections == len(row["spans"])
    assert reflections > 20


def test_the_seed_and_the_id_decide_what_is_injected():
    assert injected(ROWS) == injected(ROWS)
    assert injected(ROWS) != injected(ROWS, seed=1)
    assert injected(ROWS[20:]) == injected(ROWS)[20:]


def test_copies_of_a_row_have_ids_of_their_own():
    made = injected(ROWS[:5], recipe_of("rc_aug"))
    assert [row["id"] for row in made] == [
        name for row in ROWS[:5] for name in (row["id"], f"{row['id']}/1")
    ]


def test_filler_counts_tokens():
    with pytest.raises(
        ConfigError, match=r"filler and max_trace_tokens .* need a tokenizer: --tokenizer DIR"
    ):
        injected(ROWS, recipe_of("filler"))
    filled, plain = (
        injected(ROWS, recipe_of("filler"), count_tokens=len),
        injected(ROWS, recipe_of("vanilla")),
    )
    lengths = [len(row["response"]) for row in injected(ROWS)]
    assert sum(len(row["response"]) for row in filled) > sum(len(row["response"]) for row in plain)
    assert all(
        len(row["response"]) <= max(a, len(b["response"]))
        for row, a, b in zip(filled, lengths, plain, strict=True)
    )


def test_a_recipe_that_needs_more_problems_belongs_into_a_run():
    with pytest.raises(ConfigError, match="vanilla_tokens takes more problems than there are rows"):
        recipe_of("vanilla_tokens")


class Nothing:
    """A behavior of somebody's own."""

    def __init__(self, config):
        assert config.probability == 0.5

    def apply(self, plan, graph, rng):
        return list(plan)


def test_a_behavior_of_ones_own_by_import_path():
    path = f"{__name__}:Nothing"
    recipe = recipe_of(behaviors=[f"tests.injection.{path}:0.5", "subgoal"])
    assert [(one.name, one.probability) for one in recipe.behaviors] == [
        ("tests.injection.test_injected_rows:Nothing", 0.5), ("subgoal", 1.0)
    ]  # fmt: skip
    assert injected(ROWS, recipe) == injected(ROWS, recipe_of("subgoal"))


def test_a_graph_that_is_not_the_question_s_is_refused():
    changed = ROWS[0] | {"question": ROWS[1]["question"], "answer": None}
    unreadable = ROWS[0] | {"question": "What is the capital of France?"}
    rejects = Rejects()
    assert len(injected([changed, unreadable, ROWS[2]], rejects=rejects)) == 1
    assert [reject.reason.partition(":")[0] for reject in rejects.rows] == [
        "its graph is not that of its question", "its question cannot be read"
    ]  # fmt: skip


def test_a_row_that_comes_twice_is_told():
    rejects = Rejects()
    again = (
        ROWS[0] | {"id": "another"},
        ROWS[1]
        | {"question": ROWS[5]["question"], "graph": ROWS[5]["graph"], "answer": ROWS[5]["answer"]},
    )
    assert len(injected([*ROWS[:3], *again], rejects=rejects)) == 3
    assert [reject.reason for reject in rejects.rows] == [
        "duplicate question: line 1 has it too", "duplicate id: line 2 has it too"
    ]  # fmt: skip


def test_a_templated_question_is_read():
    templated = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
    made = injected(templated)
    assert [Graph.from_json(row["graph"]).hash() for row in made] == [row["hash"] for row in ROWS]
    assert [row["id"] for row in made] == [f"row-{line}" for line in range(1, 41)]


_GRAPH = json.loads(ROWS[0]["graph"])
_WRONG_VALUE = json.dumps(_GRAPH | {"nodes": [node | {"value": 7777} for node in _GRAPH["nodes"]]})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "3"}, "no question: name the column"),
        ({"question": "What is love?"}, "its question cannot be read"),
        (
            {"question": "The value of aaa is 4.\nWhat is the value of aab?"},
            "its question cannot be read",
        ),
        (ROWS[0] | {"answer": "12345"}, "its answer is 12345, but its question comes to"),
        (ROWS[0] | {"graph": "{}"}, "its graph cannot be read"),
        (ROWS[0] | {"graph": "[1"}, "its graph cannot be read"),
        (ROWS[0] | {"graph": _WRONG_VALUE}, "its graph cannot be read: node"),
    ],
)
def test_bad_rows_are_left_out_with_their_reason(row, reason):
    rejects = Rejects()
    made = injected([ROWS[1], row, ROWS[2]], rejects=rejects)
    assert [one["id"] for one in made] == [ROWS[1]["id"], ROWS[2]["id"]]
    [reject] = rejects.rows
    assert (reject.file, reject.line) == ("mine.jsonl", 2)
    assert reason in reject.reason
    with pytest.raises(DataError, match=r"mine\.jsonl, line 2"):
        injected([ROWS[1], row, ROWS[2]])


def test_free_text_goes_to_the_extractor_and_comes_back_in_place():
    asked = []

    def extract(fields):
        asked.append([one.question for one in fields])
        graphs = [Graph.from_json(ROWS[5]["graph"]), None]
        return [
            RowError("a cycle")
            if graph is None
            else (TASK, Problem(f"text-{i}", one.question, graph))
            for i, (one, graph) in enumerate(zip(fields, graphs, strict=True))
        ]

    rejects = Rejects()
    rows = [
        ROWS[0],
        {"question": "Ann has 3 apples.", "answer": "3"},
        ROWS[1],
        {"question": "Bob?", "answer": "1"},
    ]
    made = injected(rows, rejects=rejects, extractor=extract)
    assert asked == [["Ann has 3 apples.", "Bob?"]]
    assert [row["id"] for row in made] == [ROWS[0]["id"], "row-2", ROWS[1]["id"]]
    assert [(reject.line, reject.reason) for reject in rejects.rows] == [(4, "a cycle")]


def test_a_row_without_a_task_says_what_is_missing():
    with pytest.raises(RowError, match="no task to read it by"):
        problem_of(fields_of(ROWS[0]), None, Place("x", 1))


def test_recipes_by_name_and_by_behaviors():
    assert recipe_of("bridge") == BRIDGE
    assert recipe_of("mine", arms={"mine": RecipeConfig()}) == RecipeConfig()
    assert [one.name for one in recipe_of("reflection").behaviors] == ["reflection"]
    wanted = recipe_of(behaviors=["reflection:0.4", "subgoal"]).behaviors
    assert [(one.name, one.probability) for one in wanted] == [
        ("reflection", 0.4),
        ("subgoal", 1.0),
    ]


@pytest.mark.parametrize(
    ("name", "behaviors", "reason"),
    [
        (None, [], "say what to inject"),
        ("bridge", ["subgoal"], "not both"),
        ("nobody", [], "no recipe is called 'nobody'; known: vanilla"),
        (None, ["nothing:0.1"], "no behavior is called 'nothing'; known: subgoal"),
        (None, ["subgoal:2"], "subgoal:PROBABILITY with a number from 0 to 1"),
        (None, ["subgoal:x"], "subgoal:PROBABILITY"),
    ],
)
def test_recipes_that_are_none(name, behaviors, reason):
    with pytest.raises(ConfigError, match=reason):
        recipe_of(name, behaviors)


@pytest.mark.parametrize("recipe", ["bridge", "rc_aug", "filler"])
def test_any_number_of_processes_gives_the_same_rows_and_rejects(recipe):
    rows = [
        *ROWS,
        ROWS[3],
        {"question": "Why?"},
        ROWS[5] | {"answer": "123456"},
        *({**row, "id": "0"} for row in ROWS),
    ]
    # more than one call
    rows = [row | {"id": f"{number}-{row.get('id')}"} for number in range(3) for row in rows]
    found = []
    for processes in (1, 2, 3):
        rejects = Rejects()
        made = injected(
            rows, recipe_of(recipe), rejects=rejects, count_tokens=len, processes=processes
        )
        found.append((made, rejects.rows))
    assert found[0] == found[1] == found[2]
    assert {reject.reason.partition(":")[0] for reject in found[0][1]} >= {
        "duplicate question",
        "its question cannot be read",
    }


def test_strict_stops_at_the_first_bad_row_also_where_others_are_read_ahead():
    def read():
        yield from numbered([ROWS[0], ROWS[0], *ROWS[1:]])
        Rejects(strict=True).add(Place("mine.jsonl", 99), "no valid JSON")

    for processes in (1, 2):
        with pytest.raises(DataError, match="line 2: duplicate question: line 1 has it too"):
            list(inject_rows(read(), TASK, BRIDGE, 0, Rejects(strict=True), processes=processes))


def test_what_comes_before_a_line_that_cannot_be_read_is_injected():
    def read():
        yield from numbered(ROWS)
        raise DataError("no such line")

    whole = inject_rows(read(), TASK, BRIDGE, 0, Rejects(), processes=2)
    assert [next(whole)["id"] for _ in ROWS] == [row["id"] for row in ROWS]
    with pytest.raises(DataError, match="no such line"):
        next(whole)


def test_lines_of_one_number_in_two_files_are_two_lines():
    places = [(Place("a.jsonl", 1), ROWS[0]), (Place("b.jsonl", 1), ROWS[0])]
    rejects = Rejects()
    assert len(list(inject_rows(places, TASK, BRIDGE, 0, rejects))) == 1
    assert rejects.rows[0].file == "b.jsonl"
