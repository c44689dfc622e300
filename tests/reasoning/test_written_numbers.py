from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_ray.reasoning.expression import Notation, Operator, evaluate, value_of
from bi_ray.reasoning.written_numbers import decimal_text, numbers_in, plain_expression, value_in

NOTATION = Notation(
    {Operator.ADD: "+", Operator.SUBTRACT: "-", Operator.MULTIPLY: "*", Operator.DIVIDE: "/"}
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("72.", 72),
        ("$1,200.50", Fraction(2401, 2)),
        ("1,200,300 people", 1200300),
        ("-5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("−7 degrees", -7),
        ("$.75", Fraction(3, 4)),
        ("1/2", Fraction(1, 2)),
        ("2 1/2 hours", Fraction(5, 2)),
        ("50 %", 50),
        ("50 cents", 50),
        ("5k", 5000),
        ("3 million", 3_000_000),
        ("The answer is 14.", 14),
        ("a 10-year loan", 10),
        ("twenty-five apples", 25),
        ("Two hundred and five", 205),
        ("three thousand two hundred", 3200),
        ("one million", 1_000_000),
        ("3-5", None),
        ("2 or 3", None),
        ("two, three", None),
        ("10,5", None),
        ("many", None),
        ("", None),
        ("m2", None),
        ("9" * 31, None),
    ],
)
def test_one_value(text, value):
    assert value_in(text) == value


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Tim has 3 boxes of 12 at $1.50", {3, 12, Fraction(3, 2)}),
        ("20% of 50 cents", {20, Fraction(1, 5), 50, Fraction(1, 2)}),
        ("two-thirds of 9", {2, 3, Fraction(1, 3), 9}),
        ("half of it", {2, Fraction(1, 2)}),
        ("twice, then a dozen", {2, 12}),
        ("3/4 cup", {Fraction(3, 4), 3, 4}),
        ("from 7:30 to 9", {7, 30, 9}),
        ("the 3rd of 5th", {3, 5}),
        ("-4 degrees", {4}),
        ("nothing", set()),
    ],
)
def test_all_numbers(text, numbers):
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1,200 * 12.5%", 150),
        ("48 clips / 2", 24),
        ("3 x 4 × 2 ÷ 8", 3),
        ("(100% - 20%) * $50", 40),
        ("0.5% * 1000", 5),
        (".5 * 4", 2),
        ("5 − 7", -2),
    ],
)
def test_expressions_as_people_write_them(text, value):
    assert evaluate(NOTATION.parse(plain_expression(text)), {}) == value


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_read_back_with_separators(number):
    assert value_in(f"${number:,}") == number
    assert numbers_in(f"it is {abs(number):,}.") == {abs(number)}


@given(st.fractions(-(10**15), 10**15, max_denominator=2000))
def test_written_decimals_are_read_back(number):
    value = int(number) if number.denominator == 1 else number
    assert value_of(decimal_text(value)) == value


@given(st.integers(0, 999_999))
def test_spelled_numbers_are_read_back(number):
    assert value_in(spelled(number)) == number


def spelled(number: int) -> str:
    small = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen "
        "fourteen fifteen sixteen"
    )
    words = [*small.split(), "seventeen", "eighteen", "nineteen"]
    if number < 20:
        return words[number]
    if number < 100:
        tens = "twenty thirty forty fifty sixty seventy eighty ninety"
        ten = tens.split()[number // 10 - 2]
        return ten + (f"-{words[number % 10]}" if number % 10 else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = f" {spelled(number % unit)}" if number % unit else ""
    return f"{spelled(number // unit)} {name}{rest}"
