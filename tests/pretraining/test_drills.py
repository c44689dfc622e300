"""Every equation, value and listing that the base model practices is true."""

import random
import re
from collections import Counter

import pytest

from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.tasks import DifficultyConfig, IGSMConfig, PromptBenchConfig
from bi_ray.pretraining import drills
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.tasks.base import in_split
from bi_ray.tasks.igsm.task import IGSMTask
from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.task import PromptBenchTask

TASK = PromptBenchTask(
    PromptBenchConfig(
        max_abs_value=100,
        name_pool=48,
        sets={"pretrain": DifficultyConfig(depth=(2, 4), redundant_nodes=(0, 8))},
    ),
    seed=0,
)
PREMISE = {
    r"The value of (\w+) is (-?\d+)\.": None,
    r"(\w+) gets its value by adding together the value of (\w+) and (\w+)\.": Operator.ADD,
    r"(\w+) gets its value by subtracting the value of (\w+) from the value of (\w+)\.": (
        Operator.SUBTRACT
    ),
    r"(\w+) gets its value by multiplying together the value of (\w+) and (\w+)\.": (
        Operator.MULTIPLY
    ),
    r"(\w+) gets its value by squaring the value that (\w+) has\.": Operator.SQUARE,
}
TRUTH = {
    Operator.ADD: lambda a, b: a + b,
    Operator.SUBTRACT: lambda b, a: a - b,  # as the sentence names them
    Operator.MULTIPLY: lambda a, b: a * b,
    Operator.SQUARE: lambda a: a**2,
}


def graph_of(text: str, question: str) -> Graph:
    """The graph that premises describe, read by this file's own means."""
    nodes: dict[str, Node] = {}
    for line in text.split("\n"):
        form, operator = next((f, o) for f, o in PREMISE.items() if re.fullmatch(f, line))
        name, *rest = re.fullmatch(form, line).groups()
        if operator is None:
            nodes[name] = Node(name, int(rest[0]))
            continue
        value = TRUTH[operator](*(nodes[parent].value for parent in rest))
        parents = tuple(reversed(rest)) if operator is Operator.SUBTRACT else tuple(rest)
        nodes[name] = Node(name, value, operator, parents)
    return Graph(nodes.values(), question)


def many(maker, count=300):
    rng = random.Random(0)
    return [maker(TASK, rng, i / count) for i in range(count)]


def test_copies_are_copies():
    times = set()
    for prompt, response, *_ in many(drills.copying):
        lines = response.split("\n")
        assert set(lines) == {prompt}
        times.add(len(lines))
    assert len(times) > 1


def test_recalled_values_are_those_given():
    reordered = 0
    for prompt, response, *_ in many(drills.recall):
        *premises, order = prompt.split("\n")
        given = dict(
            re.fullmatch(r"The value of (\w+) is (-?\d+)\.", premise).groups()
            for premise in premises
        )
        listed = re.findall(r"Let's solve (\w+), \1 is (-?\d+)(?:\n|$)", response)
        assert dict(listed) == given
        assert "".join(name for name, _ in listed) == order
        assert len(listed) == response.count("\n") + 1
        reordered += [name for name, _ in listed] != list(given)
    assert reordered > 200


def test_equations_over_given_values_are_true():
    forms = set()
    for prompt, response, *_ in many(drills.equations):
        for line in response.split("\n"):
            step = parse_line(line)
            graph = graph_of(prompt, step.node)
            given = [
                parse_line(f"Let's solve {p}, {p} is {graph.nodes[p].value}")
                for p in graph.nodes[step.node].parents
            ]
            report = check_trace([*given, step], graph, TASK.notation)
            assert report.valid, report.reason
            assert abs(step.value) <= 100
            assert not step.restated
            forms.add((bool(step.numbers), TASK.notation.parse(step.symbols)[0]))
    assert len(forms) == 8  # with and without numbers, four operators


def test_bare_equations_are_true():
    operators = set()
    for prompt, response, *_ in many(drills.arithmetic):
        terms = prompt.split("\n")
        lines = response.split("\n")
        assert len(set(terms)) == len(lines)
        for asked, line in zip(terms, lines, strict=True):
            term, result = line.split(" = ")
            assert term == asked
            assert re.fullmatch(r"[-+*^() \d]+", term)
            assert eval(term.replace("^", "**")) == int(result)
            assert not re.search(r"[-+*] -", term)  # a negative operand stands in brackets
            operators |= set(re.findall(r"\^2| [-+*] ", term))
    assert operators == {"^2", " + ", " - ", " * "}


def test_problems_are_right_and_of_the_pretraining_buckets():
    for prompt, response, *_ in many(drills.problems, 150):
        *premises, question = prompt.split("\n")
        graph = graph_of(
            "\n".join(premises), re.fullmatch(r"What is the value of (\w+)\?", question)[1]
        )
        assert in_split(graph.hash(), "pretrain")
        report = check_trace(TASK.parse_trace(response), graph, TASK.notation)
        assert report.valid, report.reason
        assert not {name for step in TASK.parse_trace(response) for name in step.behaviors} - {
            "subgoal"
        }
        assert TASK.parse_answer(response) == str(graph.answer)


IGSM = IGSMTask(
    IGSMConfig(max_abs_value=100, sets={"pretrain": {"ops": [1, 4], "redundant_nodes": [0, 3]}}), 0
)


def test_sums_are_true_term_by_term():
    partial = 0
    for prompt, response, *_ in many(drills.sums):
        for asked, line in zip(prompt.split("\n"), response.split("\n"), strict=True):
            first, *rest = line.split(" = ")
            assert first == asked
            assert {eval(side) for side in rest} == {eval(asked)}
            terms = [side.count("+") for side in (first, *rest)]
            if len(rest) > 1:
                assert terms == list(range(terms[0], -1, -1))  # one operation at a time
                partial += 1
    assert partial > 200


def premises_of(prompt: str) -> tuple[dict[str, list[str]], str]:
    """Parents of every node by this file's own reading, and the node that is asked for."""
    parents = {}
    for line in prompt.split("\n"):
        if question := re.fullmatch(r"What is the value of (\w+)\?", line):
            return parents, question[1]
        if given := re.fullmatch(r"The value of (\w+) is (-?\d+)\.", line):
            parents[given[1]] = []
            continue
        name, *mentioned = re.findall(r"\b[a-z]{3}\b(?<!the)(?<!its)(?<!has)(?<!and)", line)
        parents[name] = mentioned
    raise AssertionError("no question")


def needed_by(parents: dict[str, list[str]], name: str) -> set[str]:
    return {name}.union(*(needed_by(parents, parent) for parent in parents[name]))


def check_answer(question: str, answer: str, known: set[str], parents, needed) -> str:
    said = [] if answer == "nothing" else answer.split(" and ")
    if match := re.fullmatch(r"Is (\w+) known\?", question):
        assert answer == ("yes" if match[1] in known else "no")
        return f"known {answer}"
    if match := re.fullmatch(r"What does (\w+) still need\?", question):
        assert set(said) == set(parents[match[1]]) - known
        return f"need {len(said)}"
    if match := re.fullmatch(r"Which of (.+) can be solved now\?", question):
        offered = match[1].split(" and ")
        free = [n for n in offered if n not in known and set(parents[n]) <= known]
        assert said == free
        return "solved now"
    offered = re.fullmatch(r"Which of (.+) matter\?", question)[1].split(" and ")
    assert said == [name for name in offered if name in needed]
    return "matter"


def test_answers_about_half_finished_traces_are_true():
    seen = Counter()
    for drill in many(drills.asking, 200):
        assert not drill.learned
        parents, question = premises_of(drill.prompt)
        known = set(re.findall(r"Let's solve (\w+),", drill.response))
        for asked, answer in drill.follow_ups:
            seen[check_answer(asked, answer, known, parents, needed_by(parents, question))] += 1
    assert min(seen[kind] for kind in ("known yes", "known no", "need 0", "need 1", "need 2")) > 20
    assert min(seen["solved now"], seen["matter"]) > 100


def test_what_a_step_waits_for_is_what_the_trace_has_not_solved():
    waiting = 0
    for prompt, response, *_ in many(drills.looking, 200):
        premises, _, last = prompt.rpartition("\n")
        assert last == drills.LOOK
        parents, _ = premises_of(premises)
        known: set[str] = set()
        for line in response.split("\n"):
            if solved := re.match(r"Let's solve (\w+),", line):
                known.add(solved[1])
            elif look := re.fullmatch(r"Look at (\w+), it waits for (.+)", line):
                named = set() if look[2] == "nothing" else set(look[2].split(" and "))
                assert named == set(parents[look[1]]) - known
                waiting += bool(named)
        plain = "\n".join(line for line in response.split("\n") if not line.startswith("Look"))
        assert TASK.format_is_right(plain)
    assert waiting > 200


def test_igsm_drills_are_right_and_of_the_pretraining_buckets():
    rng = random.Random(0)
    asked = looked = 0
    for i in range(60):
        prompt, response, *_ = drills.problems(IGSM, rng, i / 60)
        graph = IGSM.parse_question(prompt)
        assert in_split(graph.hash(), "pretrain")
        report = check_trace(IGSM.parse_trace(response), graph, IGSM.notation)
        assert report.valid, report.reason
        asked += len(drills.asking(IGSM, rng, 1.0).follow_ups)
        looked += drills.looking(IGSM, rng, 1.0).response.count("it waits for each ")
    assert asked == 60 * 8
    assert looked > 20


def practice(igsm: bool) -> drills.Practice:
    content = {"name": "test", "task": TASK.config.model_dump()}
    if igsm:
        content["igsm"] = IGSM.config.model_dump()
    return drills.Practice(PretrainConfig.model_validate(content))


def test_the_mixture_moves_from_copying_to_problems():
    for weights in zip(*drills.SCHEDULE.values(), strict=True):
        assert sum(weights) == pytest.approx(1)

    def problem_share(progress, igsm):
        rng = random.Random(1)
        drawn = [drills.draw_drill(practice(igsm), rng, progress) for _ in range(200)]
        return sum("<answer>" in drill.response for drill in drawn) / 200

    for igsm in (False, True):
        assert problem_share(0.0, igsm) < 0.2
        assert 0.4 < problem_share(0.25, igsm) < 0.7
        assert 0.4 < problem_share(1.0, igsm) < 0.7


def test_without_igsm_no_drill_is_of_it():
    assert not any(kind.startswith("igsm") for kind in practice(igsm=False).kinds())
    assert drills.SCHEDULE.keys() == practice(igsm=True).kinds().keys() == drills.MAKERS.keys()
