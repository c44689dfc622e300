"""Answers in every form: what is right must be right, and what is wrong must not."""

import time
from contextlib import suppress
from functools import partial
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.answers.characters import one_form
from bi_ray.answers.checker import AnswerChecker, same_mathematics
from bi_ray.answers.extraction import find_answer, format_is_right, write_response
from bi_ray.answers.forms import readings, same_text, without_prefix
from bi_ray.answers.quantity import read_quantity
from bi_ray.config.tasks import AnswerConfig, IGSMConfig, PromptBenchConfig
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.written_numbers import numbers_in, plain_expression, value_in
from bi_ray.tasks.base import text_hash
from bi_ray.tasks.freetext import FreeTextTask
from bi_ray.tasks.registry import build_task

EXTRACTS = ("tag", "boxed", "hashes", "response")
CHECKERS = ("exact", "numeric", "math", "regex")


def checker(kind="exact", extract="response", **options):
    more = {"pattern": r"(?s)^(.*)$"} if kind == "regex" else {}
    return AnswerChecker(AnswerConfig(checker=kind, extract=extract, **more, **options))


def response_of(answer, extract):
    return answer if extract == "response" else write_response("Let me see.", answer, extract)


# Right answers as data sets write them.
ANSWERS = [
    *(
        "7",
        "-12",
        "3.0",
        "1,250",
        "2 500",
        "0.125",
        ".5",
        "5.",
        "1e21",
        "1000000000000000000000",
        "2.5e3",
    ),
    *(
        "٣٧",
        "３７",
        "3/8",
        "2 1/3",
        "¾",
        "2½",
        "10⁶",
        "10⁻³",
        "2³",
        "12 %",
        "$4.20",
        "€9",
        "9 €",
        "–8",
        "−8",
    ),
    *(
        "45 km/h",
        "90°",
        "3:45",
        "1\u202f234",
        "1 000 000.00",
        "v1.10",
        "7 or 8",
        "① and ②",
        "2516_8",
        "x = 4",
    ),
    *(
        "A",
        "(B)",
        "True",
        "no",
        "H₂O",
        "Ⅳ",
        "ﬁve",
        "µm",
        "naïve",
        "Noël",
        "東京",
        "a\u00a0b",
        "a\u200bb",
        "nan",
    ),
    *(
        "She left.",
        "9:15 p.m.",
        "Is it?",
        "wait ...",
        "The answer is 42.",
        "Answer: 42",
        "the answer is no answer",
    ),
    *(
        r"\frac{3}{8}",
        r"\text{(C)}",
        r"\dfrac34",
        r"$\sqrt{5}$",
        r"\(x^2\)",
        r"\{1, 2\}",
        "[0, 2)",
        r"2^{-1}",
    ),
    *("**bold**", "`x`", "Tom’s", "it’s “so”", "<b>x</b>", "24</s>", "café.", ": 5", ":", "."),
]


@pytest.mark.parametrize("extract", EXTRACTS)
@pytest.mark.parametrize("kind", CHECKERS)
def test_the_right_answer_itself_is_right(kind, extract):
    one = checker(kind, extract)
    assert [
        answer for answer in ANSWERS if not one.is_right(response_of(answer, extract), "?", answer)
    ] == []


WORDS = st.text(
    st.characters(
        codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="{}\\#<>"
    )
)
FORMS = st.one_of(
    st.sampled_from([": a", ":", "is it", "**", "$", "."]),
    WORDS,
    st.sampled_from(ANSWERS),
    st.integers().map(str),
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6
    ).map(str),
    st.fractions(max_denominator=99).map(str),
    st.builds(
        "{}{}".format, st.sampled_from(["The answer is ", "**", "$", "(", "Answer: "]), WORDS
    ),
    st.builds(
        "{}{}".format,
        WORDS,
        st.sampled_from([".", "..", " .", "**", "%", "$", ")", " km", "⁶", "½"]),
    ),
).filter(lambda answer: answer.strip())


@pytest.mark.parametrize("extract", EXTRACTS)
@pytest.mark.parametrize("kind", ["exact", "numeric", "math", "regex"])
@settings(max_examples=60, deadline=None)
@given(answer=FORMS)
def test_the_right_answer_itself_is_right_whatever_it_is(kind, extract, answer):
    assert checker(kind, extract).is_right(response_of(answer, extract), "?", answer)


@given(
    # "The answer is." announces an answer, and has none.
    answer=FORMS.filter(lambda answer: any(map(str.isalnum, without_prefix(f"{answer} ")))),
    end=st.sampled_from(["", ".", " ", "\n"]),
)
@settings(deadline=None)
def test_a_full_stop_more_or_less_does_not_matter(answer, end):
    assert checker().is_right(answer + end, "?", answer)
    assert checker().is_right(answer, "?", answer + end)


NUMBERS = [
    # right answer, given answer, whether it is right, by every checker
    ("10⁶", "1000000", True),
    ("10⁶", "10⁶", True),
    ("10⁶", "10^6", True),
    ("10⁶", "106", False),
    ("106", "10⁶", False),
    ("2³", "23", False),
    ("37", "３７", True),
    ("37", "٣٧", True),
    ("-8", "–8", True),
    ("-8", "−8", True),
    ("8", "–8", False),
]

PAIRS = [
    # checker, extract, right answer, response, whether it is right
    ("exact", "tag", "Dogs bark.", "<answer>Dogs bark.</answer>", True),
    ("exact", "tag", "Dogs bark.", "<answer>Dogs bark</answer>", True),
    ("exact", "tag", "Dogs bark", "<answer> The final answer is Dogs bark. </answer>", True),
    ("exact", "tag", "Dogs bark.", "<answer>Cats bark.</answer>", False),
    ("exact", "tag", "7", "<answer> The answer is: 7 </answer>", True),
    ("exact", "tag", "7", "<answer>So the correct answer is 7.</answer>", True),
    ("exact", "tag", "7.0", "<answer>7</answer>", True),
    ("exact", "tag", "7.5", "<answer>7</answer>", False),
    ("exact", "tag", "1.10", "<answer>1.1</answer>", False),
    ("exact", "tag", "007", "<answer>7</answer>", False),
    ("exact", "tag", "True", "<answer>true</answer>", True),
    ("exact", "tag", "7", "<answer>8</answer> or rather <answer>7</answer>", True),
    ("exact", "tag", "7", "<answer>7</answer> and <answer>", True),
    ("exact", "tag", "7", "<answer>7</answer> </answer>", True),
    ("exact", "tag", "7", "<answer>7", False),
    ("exact", "hashes", "7", "#### 8\nno\n####7", True),
    ("exact", "response", "7", "7<|eot_id|>", True),
    ("exact", "boxed", "7", r"\boxed{8}, no, \boxed 7.", True),
    ("exact", "boxed", "7", r"\boxed {7}", True),
    ("exact", "boxed", "7", r"\fbox{7}", True),
    ("exact", "boxed", "7", r"\boxed7", True),
    ("exact", "boxed", "7", r"\boxed{7} goes into the \boxed form", True),
    ("exact", "boxed", "E", r"\boxed{\textbf{(E)}}", True),
    ("exact", "boxed", "E", r"\boxed{\textbf{(D)}}", False),
    *(
        (kind, "tag", answer, f"<answer>{given}</answer>", right)
        for kind, (answer, given, right) in product(("exact", "numeric", "math"), NUMBERS)
    ),
    ("exact", "tag", "H₂O", "<answer>H₂O</answer>", True),
    ("exact", "tag", "log₂8", "<answer>log28</answer>", False),
    ("exact", "tag", "①", "<answer>①</answer>", True),
    ("exact", "tag", "①", "<answer>②</answer>", False),
    ("numeric", "tag", "10⁻³", "<answer>0.001</answer>", True),
    ("numeric", "tag", "2½", "<answer>2.5</answer>", True),
    ("numeric", "tag", "1,234", "<answer>1\u202f234</answer>", True),
    ("numeric", "tag", "1234", "<answer>1'234</answer>", True),
    ("math", "tag", "2½", "<answer>2.5</answer>", True),
    ("math", "tag", "½", "<answer>0.5</answer>", True),
    ("math", "tag", "x²", "<answer>x^2</answer>", True),
    ("math", "tag", "x²", "<answer>x2</answer>", False),
    ("numeric", "hashes", "31", "#### **31**", True),
    ("numeric", "hashes", "31", "#### 31€", True),
    ("numeric", "hashes", "31", "#### 31 $", True),
    ("numeric", "hashes", "31 dollars", "#### $31", True),
    ("numeric", "hashes", "31 euros", "#### $31", False),
    ("numeric", "hashes", "31", "#### x = 31", True),
    ("numeric", "hashes", "31", "#### \\boxed{31}", True),
    ("numeric", "hashes", "31", "#### 31<|im_end|>", True),
    ("numeric", "hashes", "31", "#### 31 32", False),
    ("numeric", "hashes", "31", "#### 3 x 31", False),
    ("numeric", "hashes", "0.75", "#### \\frac{3}{4}", True),
    ("numeric", "hashes", "5000", "#### 5 \\times 10^{3}", True),
    ("numeric", "hashes", "6 kg", "#### 6 kilograms", True),
    ("numeric", "hashes", "6 kg", "#### 6 grams", False),
    ("numeric", "hashes", "90 seconds", "#### 90 s", True),
    ("numeric", "hashes", "4:45", "#### 4:45", True),
    ("numeric", "hashes", "4:45", "#### 4:54", False),
    ("math", "boxed", "12 300", r"\boxed{12300}", True),
    ("math", "boxed", "2.5e3", r"\boxed{2500}", True),
    ("math", "boxed", "317_8", r"\boxed{317_{9}}", False),
    ("math", "boxed", "317_8", r"\boxed{317_{8}}", True),
    ("math", "boxed", "E", r"\boxed{\textbf{(E)}}", True),
    ("math", "boxed", "The answer is 8", r"\boxed{8}", True),
    ("math", "boxed", "x^{1/2}", r"\boxed{\sqrt{x}}", True),
]


@pytest.mark.parametrize(("kind", "extract", "answer", "response", "right"), PAIRS)
def test_pairs(kind, extract, answer, response, right):
    assert checker(kind, extract).is_right(response, "?", answer) is right


def test_mathematics_too_long_to_be_compared_is_told_where_it_is_the_right_answer():
    assert "too long" in checker("math").fault_of("(" * 400)
    assert not same_mathematics("(" * 400, "5")
    assert same_mathematics("1" * 2000, "1" * 2000)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("10⁶ and 10⁻³", "10^6 and 10^-3"),
        ("x₁₂", "x_12"),
        ("2ˣ", "2^x"),
        ("5 m² or 5㎡", "5 m^2 or 5m^2"),
        ("1½", "1 1/2"),
        ("1¹⁄₂", "1 1/2"),
        ("①", "①"),
        ("Ⅻ ﬁ µ １２ ٣ 𝟑 – − ’", "XII fi μ 12 3 3 - - '"),
        ("e\u0301", "é"),
        ("a\u00a0b\u202fc\u00adx", "a b cx"),
    ],
)
def test_characters_have_one_form_and_keep_what_they_mean(text, plain):
    assert one_form(text) == plain


@settings(deadline=None)
@given(st.text())
def test_one_form_of_one_form_is_itself(text):
    assert one_form(one_form(text)) == one_form(text)


def test_questions_that_differ_in_a_raised_digit_are_two():
    assert text_hash("Compute 2³.") != text_hash("Compute 23.")
    assert text_hash("Compute log₂8.") != text_hash("Compute log28.")
    assert text_hash("What is ①?") != text_hash("What is 1?")
    assert text_hash("What  is １２ - 5?") == text_hash("what is 12 − 5?")


def test_layers_come_off_one_by_one():
    assert readings(" The answer is **$5$.** ") == [
        "The answer is **$5$.**",
        "**$5$.**",
        "$5$.",
        "$5$",
        "5",
    ]
    assert readings(r"\text{a} and \text{b}") == [r"\text{a} and \text{b}"]
    assert readings(" </s> ") == []
    assert len(readings("`" * 1000 + "x" + "`" * 1000)) < 20


TASKS = {
    "promptbench": build_task(PromptBenchConfig(sets={"rl": {}}), 0),
    "logic": build_task(PromptBenchConfig(logic="deductive", sets={"rl": {}}), 0),
    "igsm": build_task(IGSMConfig(sets={"rl": {}}), 0),
    "text": FreeTextTask(),
}


def readers():
    """Everything that reads a response, by name."""
    found = {
        "readings": readings,
        "read_quantity": read_quantity,
        "one_form": one_form,
        "text_hash": text_hash,
    }
    found |= {"numbers_in": numbers_in, "value_in": value_in, "plain_expression": plain_expression}
    for extract in EXTRACTS:
        found[f"find {extract}"] = lambda text, extract=extract: find_answer(text, extract)
        found[f"format {extract}"] = lambda text, extract=extract: format_is_right(text, extract)
        for kind in ("exact", "numeric", "math"):
            found[f"{kind} {extract}"] = partial(is_right, checker(kind, extract))
    for name, task in TASKS.items():
        graph = TASKS["promptbench" if name == "text" else name].problem("rl", 0).graph
        found[f"trace of {name}"] = lambda text, task=task, graph=graph: check_trace(
            task.parse_trace(text), graph, task.notation
        )
        for method in ("parse_answer", "format_is_right", "behavior_spans"):
            found[f"{method} of {name}"] = getattr(task, method)
        found[f"question of {name}"] = lambda text, task=task: asked(task, text)
    return found


def is_right(one, text):
    return one.is_right(text, "?", "5")


def asked(task, text):
    with suppress(ValueError):
        task.parse_question(text)


HOSTILE = [
    *(
        "\\boxed{",
        "<answer>",
        "<answer></answer>",
        "</think><answer>",
        "{",
        "\\",
        "#",
        " ",
        "\\boxed 5 ",
        "</s>",
        "**",
    ),
    *(
        "the ",
        "9",
        "1,000,",
        "⁶",
        "½",
        "A b ",
        " = 5",
        "Let's solve a, since b, ",
        "Let's check a, a = 1 ",
        "a and ",
    ),
    *(
        "So a = b. ",
        "a. So b = 1",
        "Plan: a needs b, ",
        "- let's check a: 1 = 1, and ",
        "the number of each ",
        "'s ",
    ),
    *(
        "The number of each a's b equals ",
        "How many a does each ",
        "twenty ",
        "\u2028",
        "\n",
        "(",
        "$",
    ),
]
FRAMES = [
    ("", ""),
    ("<think>\n", "\n</think>\n<answer> The final answer is 5 </answer>"),
    ("<answer>", "</answer>"),
]
# of the processor for 50,000 characters, which take hundredths; all pairs of places would take
# minutes
MOST_S = 0.5


def seconds(reader, text):
    began = time.process_time()
    reader(text)
    return time.process_time() - began


def too_slow(characters, most_s, hostile=HOSTILE, frames=FRAMES):
    """The readers that take too long, with what. Lengths grow, so that a slow one is found while it
    is still quick.
    """
    found = []
    for name, reader in readers().items():
        for piece in hostile:
            for start, end in frames:
                for length in (characters // 16, characters // 4, characters):
                    text = start + piece * (length // len(piece)) + end
                    if seconds(reader, text) > most_s:
                        found.append((name, piece, start, length))
                        break
    return found


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_response_takes_longer_than_its_length_lets_it(piece):
    assert not too_slow(50_000, MOST_S, [piece], FRAMES[:2])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_characters_take_about_a_second():
    assert not too_slow(1_000_000, 4 * MOST_S)


def test_a_power_with_thousands_of_digits_is_a_wrong_answer_and_not_an_error():
    assert not same_text("99999^999", "24")
    assert same_text("99999^999", "99999^999")
    assert same_text("10^6", "1000000")
