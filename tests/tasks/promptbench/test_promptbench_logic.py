"""Boolean, deductive and abductive problems: what they say, what they ask, and the traces that
solve them.
"""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import every_behavior
from pydantic import ValidationError

from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.recipes import BehaviorConfig, RecipeConfig
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator, Truth
from bi_ray.reasoning.trace import Step, join, vanilla_plan
from bi_ray.tasks.base import in_split
from bi_ray.tasks.promptbench.task import PromptBenchTask

LOGICS = ("boolean", "deductive", "abductive")
ORDERS = ("topological", "reversed", "random")
ANSWERS = {
    "boolean": {"True", "False"},
    "deductive": {"True", "N/A"},
    "abductive": {"True", "False", "N/A"},
}


def make_task(
    logic, order="topological", depth=(3, 5), redundant=(0, 6), seed=0, **options
) -> PromptBenchTask:
    difficulty = DifficultyConfig(depth=depth, redundant_nodes=redundant)
    sets = {name: difficulty for name in ("sft", "rl", "test_id", "test_ood")}
    return PromptBenchTask(PromptBenchConfig(logic=logic, order=order, sets=sets, **options), seed)


def answer_of(text: str) -> str:
    """The answer from the text alone, by other means than the graph's: an unknown fact may be
    either way.
    """
    *premises, question = text.split("\n")
    facts, rules, equal = {}, [], {}
    for line in premises:
        if match := re.fullmatch(r"(\w+) is (True|False)\.", line):
            facts[match[1]] = match[2] == "True"
        elif match := re.fullmatch(r"\((.+)\) -> (\w+)\.", line):
            rules.append((match[1], match[2]))
        else:
            match = re.fullmatch(r"The value of (\w+) equals to \((.+)\)\.", line)
            equal[match[1]] = match[2].lower()
    if match := re.fullmatch(
        r"Given (\w+) is (True|False), what is the value of (\w+)\?", question
    ):
        return _abduced(rules, match[1], match[2] == "True", match[3])
    asked = re.fullmatch(r"What is the value of (\w+)\?", question)[1]
    known: dict[str, bool | None] = dict(facts)
    formulas = equal or {conclusion: premise.lower() for premise, conclusion in rules}
    while asked not in known:
        for name, formula in formulas.items():
            if name not in known and all(
                part in known for part in re.findall(r"\b(?!and|not)[a-z]{3}\b", formula)
            ):
                unknown = [
                    part for part in re.findall(r"\w+", formula) if known.get(part, True) is None
                ]
                outcomes = {
                    eval(
                        formula, {}, known | {u: bool(bits >> i & 1) for i, u in enumerate(unknown)}
                    )
                    for bits in range(2 ** len(unknown))
                }
                outcome = outcomes.pop() if len(outcomes) == 1 else None
                known[name] = outcome if equal else (True if outcome else None)
    return {True: "True", False: "False", None: "N/A"}[known[asked]]


def _abduced(rules, given, value, asked) -> str:
    known = {given: value}
    while asked not in known:
        for premise, conclusion in rules:
            parts = re.findall(r"[a-z]{3}", premise.replace(" and ", " ").replace("NOT ", ""))
            if conclusion in known and parts[0] not in known:
                # then the premise is false, else nothing follows
                false = known[conclusion] is False
                sure = false and " and " not in premise
                known |= {part: ("NOT" in premise if sure else None) for part in parts}
    return {True: "True", False: "False", None: "N/A"}[known[asked]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("logic", LOGICS)
def test_answers_equal_those_worked_out_from_the_text(logic, order):
    task = make_task(logic, order)
    for i in range(150):
        problem = task.problem("rl", i)
        assert answer_of(problem.question) == problem.answer
        assert in_split(problem.graph.hash(), "rl")


@pytest.mark.parametrize("logic", LOGICS)
def test_the_best_constant_answer_is_near_chance(logic):
    """Within five standard deviations of 1 / the number of answers; and every answer there is
    occurs.
    """
    task = make_task(logic, depth=(2, 5), redundant=(1, 4))
    count = 500
    answers = Counter(task.problem("rl", i).answer for i in range(count))
    assert set(answers) == ANSWERS[logic]
    share = 1 / len(ANSWERS[logic])
    assert max(answers.values()) <= count * share + 5 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("logic", LOGICS)
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("redundant", [0, 1, 2, 5])
def test_depth_and_redundant_nodes_are_exact(logic, depth, redundant):
    task, rng = make_task(logic), random.Random(0)
    for _ in range(20):
        graph = task.draw(rng, DifficultyConfig(depth=depth, redundant_nodes=redundant))
        depths: dict[str, int] = {}
        for node in graph.nodes.values():
            depths[node.name] = 1 + max((depths[parent] for parent in node.parents), default=0)
        assert depths[graph.question] == depth
        if logic != "abductive":
            assert len(graph.nodes) - len(graph.needed) == redundant
            continue
        # the tree's other branches are not needed, either: those below its leaves are the ones
        # asked for
        assert len(graph.needed) == depth
        assert sum(deep > depth for deep in depths.values()) == redundant


@pytest.mark.parametrize("logic", LOGICS)
def test_hash_of_a_draft_is_that_of_its_graph(logic):
    task, rng = make_task(logic), random.Random(1)
    for _ in range(100):
        draft = task.drawing.draft(rng, DifficultyConfig(depth=(1, 5), redundant_nodes=(0, 6)))
        assert draft.hash() == draft.graph().hash()


def test_reachable_answers_are_those_that_are_drawn():
    for logic in LOGICS:
        for depth in (1, 2, 3):
            task, rng = make_task(logic), random.Random(depth)
            answers = {task.draw(rng, DifficultyConfig(depth=depth)).answer for _ in range(60)}
            assert answers == set(task.drawing.reachable(depth)), (logic, depth)
    assert make_task("deductive").drawing.reachable(1) == [Truth.FALSE, Truth.TRUE]
    assert make_task("deductive", operators=["not"]).drawing.reachable(3) == [Truth.UNKNOWN]


def test_no_fact_is_called_as_an_operator():
    for logic in LOGICS:
        names = make_task(logic, name_pool=17_000).names
        assert len(set(names)) == 17_000
        assert not {"and", "not"} & set(names)


def test_an_item_depends_on_seed_set_and_index_only():
    for logic in LOGICS:
        first, second = make_task(logic, "random"), make_task(logic, "random")
        backwards = {i: second.problem("rl", i) for i in reversed(range(10))}
        for i in range(10):
            assert first.problem("rl", i).question == backwards[i].question
        assert make_task(logic, "random", seed=1).problem("rl", 0).question != backwards[0].question


QUESTIONS = {
    "boolean": [
        r"\w+ is (True|False)\.",
        r"The value of \w+ equals to \((NOT \w+|\w+ (AND|OR) \w+)\)\.",
    ],
    "deductive": [r"\w+ is (True|False)\.", r"\((NOT \w+|\w+ (and|or) \w+)\) -> \w+\."],
    "abductive": [r"\((NOT \w+|\w+ (and|or) \w+)\) -> \w+\."],
}


@pytest.mark.parametrize("logic", LOGICS)
def test_sentences_have_the_forms_of_upstream(logic):
    lines = [
        line
        for i in range(40)
        for line in make_task(logic).problem("rl", i).question.split("\n")[:-1]
    ]
    seen = [[form for form in QUESTIONS[logic] if re.fullmatch(form, line)] for line in lines]
    assert all(len(forms) == 1 for forms in seen)
    assert {forms[0] for forms in seen} == set(QUESTIONS[logic])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(index=st.integers(0, 10**6), logic=st.sampled_from(LOGICS), order=st.sampled_from(ORDERS))
def test_traces_with_every_behavior_read_back_as_valid(index, logic, order):
    task = make_task(logic, order)
    problem = task.problem("sft", index)
    response, spans = join(
        task.render(every_behavior(problem.graph, random.Random(index)), problem.graph)
    )
    steps = task.parse_trace(response)
    report = check_trace(steps, problem.graph, task.notation)
    assert report.valid, (report.reason, response)
    assert task.behavior_spans(response) == spans
    shown = {name for step in steps for name in step.behaviors}
    expected = {"reflection", "analysis", "subgoal", "correction", "planning"}
    if logic == "boolean":  # deduction and abduction have no second equation for a value
        expected |= {"verification"}
    assert shown == expected
    assert task.parse_answer(response) == problem.answer
    assert task.format_is_right(response)


@pytest.mark.parametrize("logic", LOGICS)
def test_recipes_work_as_on_arithmetic(logic):
    behaviors = tuple(
        BehaviorConfig(name=name, probability=0.5) for name in ("reflection", "analysis", "subgoal")
    )
    task, recipe, shown = (
        make_task(logic),
        Recipe(RecipeConfig(behaviors=behaviors), seed=0),
        Counter(),
    )
    for i in range(40):
        # raises where the checker refuses it
        demonstration = recipe.demonstrate(task, task.problem("sft", i))
        shown.update(span.behavior for span in demonstration.spans)
    assert min(shown[name] for name in ("reflection", "analysis", "subgoal")) > 20


@pytest.mark.parametrize(
    ("line", "wrong", "reason"),
    [
        (
            "aae = aab AND aac = True AND False = False",
            "aae = aab OR aac = True OR False = True",
            "not what the problem",
        ),
        (
            "aae = aab AND aac = True AND False = False",
            "aae = aac AND aab = False",
            "not what the problem states",
        ),
        (
            "aae = aab AND aac = True AND False = False",
            "aae = aab AND aac = False AND False = False",
            "its numbers",
        ),
        (
            "aae = aab AND aac = True AND False = False",
            "aae = aab AND aac = True",
            "aae is False, not True",
        ),
        (
            "aae = aab AND aac = True AND False = False",
            "aae = aab AND aac = N/A",
            "aae is False, not N/A",
        ),
        (
            "aae = aab AND aac = True AND False = False",
            "aae = aab AND aac = 0",
            "aae is False, not 0",
        ),
        (
            "aae = aab AND aac = True AND False = False",
            "since aac is True, aae = aab AND aac = False",
            "restates aac",
        ),
        ("aae = aab AND aac = True AND False = False", "aae is False", "needs an equation"),
    ],
)
def test_wrong_lines_of_logic_are_refused(line, wrong, reason):
    task = make_task("boolean")
    graph = task.parse_question(
        "aab is True.\naac is False.\nThe value of aae equals to (aab AND aac).\nWhat is the "
        "value of aae?"
    )
    start = "Let's solve aab, aab is True\nLet's solve aac, aac is False\nLet's solve aae, "
    assert check_trace(task.parse_trace(start + line), graph, task.notation).valid
    report = check_trace(task.parse_trace(start + wrong), graph, task.notation)
    assert (report.first_bad_step, report.valid) == (2, False)
    assert reason in report.reason


def test_traces_are_worded_alike_in_every_logic():
    def last_line(logic, text):
        task = make_task(logic)
        graph = task.parse_question(text)
        plan = [*vanilla_plan(graph)[:-1], Step(graph.question, subgoal=True, analysis=True)]
        return join(task.render(plan, graph))[0].split("\n")[-3]

    assert last_line(
        "boolean", "aaa is True. The value of aac equals to (NOT aaa). What is the value of aac?"
    ) == ("Let's solve aac, since aaa is True, aac = NOT aaa = NOT True = False")
    assert last_line(
        "deductive", "aaa is True. aab is False. (aaa and aab) -> aac. What is the value of aac?"
    ) == (
        "Let's solve aac, since aaa is True and aab is False, aac = IF (aaa AND aab) = IF "
        "(True AND False) "
        "= IF False = N/A"
    )
    assert last_line(
        "abductive", "(aaa or aab) -> aac. Given aac is False, what is the value of aaa?"
    ) == ("Let's solve aaa, since aac is False, aaa = OR BEHIND aac = OR BEHIND False = False")


@pytest.mark.parametrize("logic", ["arithmetic", *LOGICS])
def test_answers_are_of_the_logic(logic):
    task = PromptBenchTask(PromptBenchConfig(logic=logic, sets={"sft": DifficultyConfig()}), 0)
    read = {}
    for answer in ("True", "False", "N/A", "7", "true", "NA"):
        response = (
            f"<think>\nLet's solve aaa, aaa is True\n</think>\n<answer> The final "
            f"answer is {answer} </answer>"
        )
        read[answer] = task.parse_answer(response)
        assert task.format_is_right(response) is (read[answer] is not None)
        assert read[answer] in (None, answer)
    right = {"arithmetic": {"7"}, "boolean": {"True", "False"}}.get(logic, {"True", "False", "N/A"})
    assert {answer for answer, one in read.items() if one} == right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logic": "boolean", "operators": ["add"]}, "boolean logic has no 'add'"),
        ({"operators": ["and"]}, "arithmetic logic has no 'and'"),
        ({"logic": "abductive", "operators": ["or"]}, "add 'not'"),
        ({"logic": "deductive", "operators": []}, "name at least one"),
        ({"logic": "modal"}, "logic"),
    ],
)
def test_operators_have_to_fit_the_logic(options, message):
    with pytest.raises(ValidationError, match=message):
        PromptBenchConfig(sets={"sft": DifficultyConfig()}, **options)


def test_operators_default_to_all_of_the_logic():
    sets = {"sft": DifficultyConfig()}
    assert PromptBenchConfig(sets=sets).operators == ("add", "subtract", "multiply", "square")
    assert set(PromptBenchConfig(logic="deductive", sets=sets).operators) == {"and", "or", "not"}
    assert make_task("boolean", operators=["or"]).operators == [Operator.OR]
    with pytest.raises(ValidationError, match="no drills"):
        PretrainConfig(name="x", task=PromptBenchConfig(logic="boolean", sets=sets))
