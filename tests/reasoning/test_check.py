"""The checker against traces that are wrong on purpose, each refused at the right line for the
right reason.
"""

from collections import Counter

import pytest

from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.expression import Operator
from bi_ray.reasoning.graph import Graph, Node
from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.task import PromptBenchTask

GRAPH = Graph(
    [
        Node("aaa", 5),
        Node("aab", -3),
        Node("aac", 8, Operator.SUBTRACT, ("aaa", "aab")),
        Node("aad", 64, Operator.SQUARE, ("aac",)),
        Node("aae", 9, Operator.SQUARE, ("aab",)),
        Node("aaf", 73, Operator.ADD, ("aad", "aae")),
        Node("aag", 2),
        Node("aah", 10, Operator.MULTIPLY, ("aaa", "aag")),
    ],
    question="aaf",
)

RIGHT = [
    "Let's solve aaa, aaa is 5",
    "Let's solve aab, aab is -3",
    "Let's solve aac, aac = aaa - aab = 5 - (-3) = 8",
    "Let's solve aad, aad = aac^2 = 8^2 = 64",
    "Let's solve aae, since aab is -3, aae = aab^2 = (-3)^2 = 9",
    "Let's solve aaf, aaf = aad + aae = 73",
]


def report_of(lines):
    return check_trace([parse_line(line) for line in lines], GRAPH, PromptBenchTask.notation)


def attempt(node: str, *missing: str) -> str:
    verb = "are" if len(missing) > 1 else "is"
    return (
        f"Let's solve {node}, {' and '.join(missing)} {verb} not known yet, wait, "
        f"{node} seems to be not solvable yet, let's get back"
    )


def check(node: str, symbols: str, numbers: str, value: int, target: str) -> str:
    return f"Let's check {node}, {symbols} = {numbers} = {value}, {target} is {value}, right"


PLAN = "Plan: aaf needs aad and aae, aad needs aac, aae needs aab, aac needs aaa and aab"


@pytest.mark.parametrize(
    "lines",
    [
        RIGHT,
        [PLAN, *RIGHT],
        [*RIGHT[:3], check("aac", "aac + aab", "8 + (-3)", 5, "aaa"), *RIGHT[3:]],
        # it follows
        [
            *RIGHT[:3],
            check("aac", "aac - aaa + aab + aaa", "8 - 5 + (-3) + 5", 5, "aaa"),
            *RIGHT[3:],
        ],
        [*RIGHT[:4], check("aad", "aac * aac", "8 * 8", 64, "aad"), *RIGHT[4:]],
        [*RIGHT, check("aaf", "aaf - aae", "73 - 9", 64, "aad")],
        [
            *RIGHT[:2],
            "Let's solve aac, aac = aaa - aab = 2, wait, that is wrong, aac = 8",
            *RIGHT[3:],
        ],
        [RIGHT[0], "so let us go on ...", *RIGHT[1:]],
        [RIGHT[0], attempt("aac", "aab"), *RIGHT[1:]],
        [attempt("aaf", "aad", "aae"), *RIGHT],
        [attempt("aaf", "aae", "aad"), *RIGHT],  # in any order
        [RIGHT[0], attempt("aah", "aag"), *RIGHT[1:]],  # a redundant node
        [RIGHT[1], RIGHT[4], RIGHT[0], *RIGHT[2:4], RIGHT[5]],  # another topological order
        [*RIGHT, "Let's solve aag, aag is 2"],  # more than was asked
        [
            *RIGHT[:2],
            "Let's solve aac, since aaa is 5 and aab is -3, aac = aaa - aab = 8",
            *RIGHT[3:],
        ],
    ],
)
def test_right_traces_are_valid(lines):
    report = report_of(lines)
    assert report.valid, report.reason
    assert (report.first_bad_step, report.reason, report.steps) == (None, None, len(lines))
    assert report.solved["aaf"] == 73


def test_behaviors_are_counted():
    lines = [attempt("aaf", "aad", "aae"), RIGHT[0], attempt("aac", "aab"), *RIGHT[1:]]
    shown = Counter(name for line in lines for name in parse_line(line).behaviors)
    assert shown == {"reflection": 2, "analysis": 1, "subgoal": 3}
    assert report_of(lines).right_reflections == 2


def change(position: int, *lines: str) -> list[str]:
    """The right trace with one line replaced by ``lines``."""
    return [*RIGHT[:position], *lines, *RIGHT[position + 1 :]]


AAC = "Let's solve aac, aac = "
# position of the right line that a wrong verification follows, the verification, the reason
WRONG_CHECKS = [
    (2, check("aac", "aac + aab", "8 + (-3)", 6, "aaa"), "aac: aac + aab is 5, not 6"),
    (2, check("aac", "aac - aab", "8 - (-3)", 5, "aaa"), "aac - aab, which says nothing about it"),
    (2, check("aac", "aac + aab", "8 + 3", 5, "aaa"), "8 + 3 is not aac + aab with its numbers"),
    (2, check("aac", "aaa - aab", "5 - (-3)", 8, "aac"), "with the equation that gave it"),
    (2, check("aac", "aac + 0", "8 + 0", 8, "aac"), "aac + 0, which says nothing about it"),
    (2, check("aac", "aaa + 0", "5 + 0", 5, "aaa"), "aaa + 0, which says nothing about it"),
    (2, check("aac", "4 + 4", "4 + 4", 8, "aac"), "4 + 4, which says nothing about it"),
    (3, check("aad", "aac * 8", "8 * 8", 64, "aad"), "aac * 8, which says nothing about it"),
    (3, check("aad", "aad - aab", "64 + 3", 67, "aac"), "aad - aab, which says nothing about it"),
    (2, check("zzz", "aac + aab", "8 + (-3)", 5, "aaa"), "zzz is no quantity"),
    (2, check("aac", "aac + ", "8 + (-3)", 5, "aaa"), "no line of a known form"),
]
WRONG = [
    # wrong values
    (change(0, "Let's solve aaa, aaa is 6"), 0, "aaa is 5, not 6"),
    (change(1, "Let's solve aab, aab is 3"), 1, "aab is -3, not 3"),
    (change(2, f"{AAC}aaa - aab = 2"), 2, "aac is 8, not 2"),
    (change(2, f"{AAC}aaa - aab = 5 - (-3) = 2"), 2, "aac is 8, not 2"),
    (change(3, "Let's solve aad, aad = aac^2 = 8^2 = 16"), 3, "aad is 64, not 16"),
    (change(5, "Let's solve aaf, aaf = aad + aae = 74"), 5, "aaf is 73, not 74"),
    (change(5, "Let's solve aaf, aaf = aad + aae = -73"), 5, "aaf is 73, not -73"),
    # wrong order, missing parents
    (RIGHT[1:], 1, "solves aac before aaa"),
    (RIGHT[2:], 0, "solves aac before aaa, aab"),
    (change(1), 1, "solves aac before aab"),
    (change(2), 2, "solves aad before aac"),
    (change(4), 4, "solves aaf before aae"),
    ([RIGHT[5]], 0, "solves aaf before aad, aae"),
    ([RIGHT[0], RIGHT[4], *RIGHT[1:4], RIGHT[5]], 1, "solves aae before aab"),
    # reflections
    ([attempt("aaa", "aab"), *RIGHT], 0, "turns back from aaa, which was not locked"),
    (change(2, attempt("aac", "aaa"), RIGHT[2]), 2, "turns back from aac, which was not locked"),
    (
        [*RIGHT[:2], attempt("aac", "aaa", "aab"), *RIGHT[2:]],
        2,
        "turns back from aac, which was not locked",
    ),
    ([attempt("aac", "aab"), *RIGHT], 0, "says that aab are missing for aac; missing are aaa, aab"),
    ([RIGHT[0], attempt("aac", "aaa", "aab"), *RIGHT[1:]], 1, "missing for aac; missing are aab"),
    (
        [RIGHT[0], attempt("aac", "aag"), *RIGHT[1:]],
        1,
        "says that aag are missing for aac; missing are aab",
    ),
    ([attempt("aaf", "aac"), *RIGHT], 0, "says that aac are missing for aaf; missing are aad, aae"),
    ([RIGHT[0], attempt("aaa", "aab"), *RIGHT[1:]], 1, "aaa is already solved"),
    ([attempt("zzz", "aaa"), *RIGHT], 0, "zzz is no quantity of the problem"),
    # wrong equations
    (change(2, f"{AAC}aab - aaa = 8"), 2, "aac: aab - aaa is not what the problem states"),
    (change(2, f"{AAC}aaa - aab = -3 - 5 = 8"), 2, "aac: -3 - 5 is not"),
    (change(2, f"{AAC}aaa + aab = 8"), 2, "aac: aaa + aab is not"),
    (change(2, f"{AAC}aaa - aab = 5 + 3 = 8"), 2, "aac: 5 + 3 is not"),
    (change(2, f"{AAC}aaa - aab = 5 - 3 = 8"), 2, "aac: 5 - 3 is not"),
    (change(2, f"{AAC}aaa * aab = 8"), 2, "aac: aaa * aab is not"),
    (change(2, f"{AAC}aaa - aag = 8"), 2, "aac: aaa - aag is not"),
    (change(2, f"{AAC}aaa^2 = 8"), 2, "aac: aaa^2 is not"),
    (change(3, "Let's solve aad, aad = aac * aac = 64"), 3, "aad: aac * aac is not"),
    (change(3, "Let's solve aad, aad = aac^2 = 9^2 = 64"), 3, "aad: 9^2 is not"),
    (change(5, "Let's solve aaf, aaf = aae + aad = 73"), 5, "aaf: aae + aad is not"),
    (change(2, "Let's solve aac, aac is 8"), 2, "aac needs an equation"),
    (
        change(0, RIGHT[0], "Let's solve aag, aag = aaa^2 = 2"),
        1,
        "aag is given, yet an equation is written for it",
    ),
    (
        change(0, "Let's solve aaa, aaa = aag^2 = 5"),
        0,
        "aaa is given, yet an equation is written for it",
    ),
    # wrong restatements
    (change(4, "Let's solve aae, since aab is 3, aae = aab^2 = 9"), 4, "aae: restates aab as 3"),
    (change(4, "Let's solve aae, since aaa is 5, aae = aab^2 = 9"), 4, "aae: restates aaa as 5"),
    (
        change(2, f"Let's solve aac, since aaa is 5 and aab is -4, {AAC[17:]}aaa - aab = 8"),
        2,
        "restates aab as -4",
    ),
    # corrections
    (
        change(2, f"{AAC}aaa - aab = 8, wait, that is wrong, aac = 8"),
        2,
        "aac: takes back 8, which was right",
    ),
    (change(2, f"{AAC}aaa - aab = 2, wait, that is wrong, aac = 3"), 2, "aac is 8, not 3"),
    (
        change(2, f"{AAC}aab - aaa = -8, wait, that is wrong, aac = 8"),
        2,
        "aac: aab - aaa is not what",
    ),
    (change(2, f"{AAC}aaa - aab = 2, wait, that is wrong, aad = 8"), 2, "no line of a known form"),
    (change(2, f"{AAC}aaa - aab = 2, wait, that is wrong"), 2, "no line of a known form"),
    # verifications
    *((change(i, RIGHT[i], line), i + 1, reason) for i, line, reason in WRONG_CHECKS),
    (
        change(2, check("aac", "aac + aab", "8 + (-3)", 5, "aaa"), RIGHT[2]),
        2,
        "checks aac before it is solved",
    ),
    # plans
    (["Plan: aaf needs aad and aae", *RIGHT], 0, "plans without aac, aad, aae"),
    ([PLAN.replace("aad needs aac", "aad needs aaa"), *RIGHT], 0, "says that aad needs aaa"),
    (
        [PLAN.replace("aaf needs aad and aae", "aaf needs aad"), *RIGHT],
        0,
        "says that aaf needs aad",
    ),
    ([PLAN + ", aah needs aaa and aag", *RIGHT], 0, "plans aah, which nothing before it needs"),
    ([PLAN + ", aad needs aac", *RIGHT], 0, "plans aad twice"),
    (
        [PLAN.replace("aac needs aaa and aab", "aac needs aaf and aab"), *RIGHT],
        0,
        "says that aac needs aaf, aab",
    ),
    (
        [PLAN.replace("Plan: aaf", "Plan: aac"), *RIGHT],
        0,
        "plans aac, which nothing before it needs",
    ),
    (
        [PLAN.replace("aad needs aac", "zzz needs aac"), *RIGHT],
        0,
        "plans zzz, which nothing before it needs",
    ),
    ([RIGHT[0], PLAN, *RIGHT[1:]], 1, "plans after it has begun"),
    (["Plan: ", *RIGHT], 0, "no line of a known form"),
    # names, repeats, endings
    (change(0, "Let's solve zzz, zzz is 5"), 0, "zzz is no quantity of the problem"),
    (change(5, RIGHT[4], RIGHT[5]), 5, "aae is already solved"),
    (change(1, RIGHT[0], RIGHT[1]), 1, "aaa is already solved"),
    (RIGHT[:-1], 5, "ends before aaf is solved"),
    ([], 0, "ends before aaf is solved"),
    ([RIGHT[0], attempt("aaf", "aad", "aae")], 2, "ends before aaf is solved"),
    # lines of no known form
    (change(1, "hmm"), 1, "no line of a known form: 'hmm'"),
    (change(1, ""), 1, "no line of a known form"),
    (change(0, "Let's solve aaa, aab is 5"), 0, "no line of a known form"),
    (change(0, "Let's solve aaa, aaa is five"), 0, "no line of a known form"),
    (change(0, "Let's solve aaa, aaa is 5."), 0, "no line of a known form"),
    (change(0, "Let's solve aaa, aaa is " + "5" * 5000), 0, "no line of a known form"),
    (change(0, "Let's solve aaa, aaa is 5, aab is -3"), 0, "no line of a known form"),
    (change(2, f"{AAC}aaa - aab"), 2, "no line of a known form"),
    (change(2, f"{AAC}aaa - aab = 5 - (-3 = 8"), 2, "no line of a known form"),
    (change(2, f"{AAC}aaa - aab = 5 - (-3) = 8 = 8"), 2, "aac: repeats its result, 8"),
    # the sign is not squared
    (change(4, "Let's solve aae, aae = aab^2 = -3^2 = 9"), 4, "no line of a known form"),
    (
        change(2, attempt("aac", "aab").replace("wait, aac", "wait, aad")),
        2,
        "no line of a known form",
    ),
]


@pytest.mark.parametrize(
    ("lines", "position", "reason"), WRONG, ids=[f"{i}" for i in range(len(WRONG))]
)
def test_wrong_traces_are_refused_where_they_go_wrong(lines, position, reason):
    report = report_of(lines)
    assert not report.valid
    assert report.first_bad_step == position
    assert reason in report.reason


def test_there_are_many_of_them():
    assert len(WRONG) >= 80
