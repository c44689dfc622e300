import signal
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_ray.answers.checker import AnswerChecker, AnswerError, same_mathematics
from bi_ray.answers.extraction import find_answer, format_is_right, write_response
from bi_ray.answers.quantity import read_quantity, same_quantity
from bi_ray.config.base import ConfigError
from bi_ray.config.tasks import AnswerConfig


@pytest.mark.parametrize(
    ("extract", "response", "found"),
    [
        ("tag", "<think>x</think><answer> 5 </answer>", "5"),
        ("tag", "<answer>4</answer> no, <answer>5</answer>", "5"),
        ("tag", "<answer> The final answer is 5 </answer>", "5"),
        ("tag", "<answer>Final answer: 5.</answer>", "5"),
        ("tag", "<answer>the answer is\n5</answer>", "5"),
        ("tag", "<answer>Paris\nFrance</answer>", "Paris\nFrance"),
        ("tag", "<answer> </answer>", None),
        ("tag", "<answer>5", None),
        ("tag", "5", None),
        ("boxed", r"so \boxed{5}", "5"),
        ("boxed", r"\boxed{4} or \boxed{5}.", "5"),
        ("boxed", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("boxed", r"\boxed{4} and \boxed{5", "4"),
        ("boxed", r"\boxed{\text{a \boxed{5}}", "5"),
        ("boxed", r"\boxed{}", None),
        ("boxed", "\\boxed{5\\", None),
        ("boxed", "boxed{5}", None),
        ("hashes", "2 + 3 = 5\n#### 5", "5"),
        ("hashes", "#### 4\nno\n#### 5\nthat is it", "5"),
        ("hashes", "####1,234", "1,234"),
        ("hashes", "####\n5", None),
        ("hashes", "### 5", None),
        ("response", " Paris \n", "Paris"),
        ("response", "  ", None),
    ],
)
def test_where_the_answer_stands(extract, response, found):
    assert find_answer(response, extract) == found


@pytest.mark.parametrize("extract", ["tag", "boxed", "hashes"])
@given(thought=st.text(alphabet="ab #<>\\{}\n", max_size=30), number=st.integers())
def test_what_is_written_is_found_whatever_was_thought(extract, thought, number):
    response = write_response(thought, str(number), extract)
    assert find_answer(response, extract) == str(number)


@pytest.mark.parametrize(
    ("extract", "response", "right"),
    [
        ("tag", "<think>x</think>\n<answer>5</answer>", True),
        ("tag", "<answer>5</answer>", False),
        ("tag", "<think>x</think><answer>5</answer> bye", False),
        ("tag", "<think>x</think><answer>4</answer><answer>5</answer>", False),
        ("tag", "<think>x</think><answer></answer>", False),
        ("boxed", r"x \boxed{5}", True),
        ("boxed", r"\boxed{4} \boxed{5}", False),
        ("hashes", "x\n#### 5", True),
        ("hashes", "#### 4\n#### 5", False),
        ("response", "5", True),
        ("response", "", False),
    ],
)
def test_the_format_is_one_answer_at_its_place(extract, response, right):
    assert format_is_right(response, extract) is right


@pytest.mark.parametrize(
    ("text", "value", "percent", "unit"),
    [
        ("12", 12, False, ""),
        ("-12", -12, False, ""),
        ("\N{MINUS SIGN}12", -12, False, ""),
        ("+ 12.50", Fraction(25, 2), False, ""),
        (".5", Fraction(1, 2), False, ""),
        ("5.", 5, False, ""),
        ("1,234,567", 1234567, False, ""),
        ("1 234", 1234, False, ""),
        ("1_234", 1234, False, ""),
        ("$1,234.50", Fraction(2469, 2), False, "dollar"),
        ("-$5", -5, False, "dollar"),
        ("$-5", -5, False, "dollar"),
        (r"\$5", 5, False, "dollar"),
        ("$5$", 5, False, ""),
        ("5 USD", 5, False, "dollar"),
        ("€5", 5, False, "euro"),
        ("3/4", Fraction(3, 4), False, ""),
        ("-3/4", Fraction(-3, 4), False, ""),
        ("1 1/2", Fraction(3, 2), False, ""),
        ("1½", Fraction(3, 2), False, ""),
        ("½", Fraction(1, 2), False, ""),
        ("3/4 cup", Fraction(3, 4), False, "cup"),
        ("1.5e3", 1500, False, ""),
        ("2E-2", Fraction(1, 50), False, ""),
        ("12 %", 12, True, ""),
        (r"12\%", 12, True, ""),
        ("12 percent", 12, True, ""),
        ("18 miles per hour", 18, False, "miles per hour"),
        ("3 apples.", 3, False, "apple"),
        ("18 m²", 18, False, "m2"),
        ("18 m^2", 18, False, "m2"),
        ("25 °C", 25, False, "°c"),
    ],
)
def test_numbers_that_are_read(text, value, percent, unit):
    assert read_quantity(text) == (Fraction(value), percent, unit)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "abc",
            "1,23",
            "12,34,567",
            "1,234,",
            "5 or six",
            "5 and 6",
            "3, 4",
            "1/0",
            "1 1/0",
            "--5",
            "1..2",
        ),
        *(
            "0x12",
            "1e99999",
            "9" * 300,
            "5 = 5",
            "①",
            "about 5",
            "5 x 3",
            "5!",
            "$",
            "%",
            "3 / ",
            "1:30",
        ),
        *("NaN", "inf"),
    ],
)
def test_what_is_no_number(text):
    assert read_quantity(text) is None


@pytest.mark.parametrize(
    ("found", "answer", "same"),
    [
        ("18", "18", True),
        ("18.0", "18", True),
        ("$18", "18 dollars", True),
        ("18 km", "18", True),
        ("18", "18 km", True),
        ("18 kms", "18 km", True),
        ("18 m", "18 km", False),
        ("€18", "$18", False),
        ("0.5", "1/2", True),
        ("0.3333333", "1/3", True),
        ("0.333", "1/3", False),
        ("12%", "12", True),
        ("12%", "0.12", True),
        ("12", "12%", True),
        ("0.12", "12%", True),
        ("0.12%", "12%", False),
        ("12%", "1200", False),
        ("1,000", "1000", True),
        ("1000000.4", "1000000", True),
        ("1000002", "1000000", False),
        ("0.0000001", "0", True),
        ("0.001", "0", False),
        ("1e-9", "2e-9", False),
        ("-5", "5", False),
        ("five", "5", False),
        ("5 or 6", "5", False),
    ],
)
def test_when_two_numbers_are_the_same(found, answer, same):
    assert same_quantity(found, answer, 1e-6) is same


def test_the_tolerance_is_of_the_right_answer():
    assert same_quantity("3.14", "3.14159", 1e-3)
    assert not same_quantity("3.14", "3.14159", 1e-4)
    assert same_quantity("314", "314.159", 1e-3)
    assert not same_quantity("3.0000001", "3", 0)


@pytest.mark.parametrize(
    ("found", "answer", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("1/2", r"\frac{1}{2}", True),
        (r"$\frac{1}{2}$", "0.5", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"\{2, 1\}", r"\{1, 2\}", True),
        ("1,234", "1234", True),
        ("5", "x = 5", True),
        (r"50\%", "0.5", True),
        ("B", "B", True),
        ("(2, 1)", "(1, 2)", False),
        ("[0, 1]", "[0, 1)", False),
        ("(x+1)^3", "x^2+2x+1", False),
        ("A", "B", False),
        ("0.51", r"\frac{1}{2}", False),
        (r"\frac{1}{", "0.5", False),
        ("}{", "3", False),
    ],
)
def test_when_two_texts_are_the_same_mathematics(found, answer, same):
    assert same_mathematics(found, answer) is same


def test_math_verify_leaves_the_alarm_to_its_caller():
    before = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        assert same_mathematics("1/2", "0.5")
        assert signal.getsignal(signal.SIGALRM) is before
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def checker(**options):
    return AnswerChecker(AnswerConfig(**options))


@pytest.mark.parametrize(
    ("options", "response", "answer", "right"),
    [
        ({}, "<answer>Paris</answer>", "Paris", True),
        ({}, "<answer> New \n York </answer>", "New York", True),
        ({}, "<answer>paris</answer>", "Paris", False),
        ({"ignore_case": True}, "<answer>PARIS</answer>", "Paris", True),
        ({}, "Paris", "Paris", False),
        ({"extract": "response"}, "Paris", "Paris", True),
        ({"extract": "hashes", "checker": "numeric"}, "5 + 5\n#### $10.00", "10", True),
        ({"extract": "hashes", "checker": "numeric"}, "10", "10", False),
        ({"extract": "boxed", "checker": "math"}, r"\boxed{\frac{2}{4}}", r"\frac12", True),
        ({"extract": "boxed", "checker": "math"}, r"\boxed{\frac{2}{5}}", r"\frac12", False),
        (
            {"extract": "response", "checker": "regex", "pattern": r"\(([A-E])\)"},
            "(A)? No: (C)",
            "C",
            True,
        ),
        (
            {"extract": "response", "checker": "regex", "pattern": r"\(([A-E])\)"},
            "(C)? No: (A)",
            "C",
            False,
        ),
        ({"extract": "response", "checker": "regex", "pattern": r"\(([A-E])\)"}, "C", "C", False),
        (
            {"extract": "response", "checker": "regex", "pattern": r"yes|is (\w+)"},
            "yes",
            "yes",
            False,
        ),
        (
            {"checker": "regex", "pattern": r"(\w+)$", "ignore_case": True},
            "<answer>it is No</answer>",
            "no",
            True,
        ),
    ],
)
def test_checkers(options, response, answer, right):
    assert checker(**options).is_right(response, "?", answer) is right


def test_an_answer_that_nothing_could_be_compared_with_is_a_fault():
    assert checker().fault_of("anything") is None
    assert checker(checker="numeric").fault_of("5 km") is None
    assert "not a number" in checker(checker="numeric").fault_of("five")
    assert checker(checker="math").fault_of(r"\sqrt{2}") is None
    assert "cannot read" in checker(checker="math").fault_of(r"\frac{")


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "user_checks.py").write_text(
        "def ends(question, answer, response):\n    return response.endswith(answer)\n"
        "def one(question, answer, response):\n    return 1.0\n"
        "def graded(question, answer, response):\n    return 0.7\n"
        "def nothing(question, answer, response):\n    pass\n"
        "def raises(question, answer, response):\n    raise KeyError(question)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield lambda name: checker(checker="function", function=f"user_checks:{name}")
    sys.modules.pop("user_checks", None)


def test_a_user_s_function_decides(functions):
    assert functions("ends").is_right("it is 5", "?", "5") is True
    assert functions("ends").is_right("it is 6", "?", "5") is False
    assert functions("one").is_right("", "?", "5") is True
    assert functions("ends").fault_of("5") is None


@pytest.mark.parametrize("name", ["graded", "nothing"])
def test_a_function_that_says_neither_is_an_error(functions, name):
    with pytest.raises(AnswerError, match="return True or False"):
        functions(name).is_right("5", "?", "5")


def test_what_a_function_raises_is_not_hidden(functions):
    with pytest.raises(KeyError):
        functions("raises").is_right("5", "?", "5")


def test_a_wrong_import_path_is_told_with_its_option(functions):
    with pytest.raises(
        ConfigError, match=r"task.answer.function: user_checks:no_such: user_checks has no function"
    ):
        functions("no_such").fault_of("5")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checker": "regex"}, "pattern"),
        ({"pattern": "(a)"}, "pattern: checker 'regex' needs it"),
        ({"checker": "function"}, "function"),
        ({"checker": "regex", "pattern": "(a"}, "is not a regular expression"),
        ({"checker": "regex", "pattern": "a"}, "has 0 groups"),
        ({"checker": "regex", "pattern": "(a)(b)"}, "has 2 groups"),
    ],
)
def test_a_checker_without_its_options_is_refused(options, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        AnswerConfig(**options)
