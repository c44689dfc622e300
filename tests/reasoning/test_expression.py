"""Expressions against Python's own reading of them, Kleene's tables and what must not be read at
all.
"""

import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bi_ray.reasoning.expression import (
    Notation,
    Operator,
    Truth,
    compute,
    evaluate,
    flatten,
    from_json,
    names_in,
    reductions,
    substitute,
    to_json,
    value_of,
)

O = Operator  # noqa: E741
T, F, U = Truth.TRUE, Truth.FALSE, Truth.UNKNOWN
ARITHMETIC = Notation({O.ADD: "+", O.SUBTRACT: "-", O.MULTIPLY: "*", O.DIVIDE: "/", O.SQUARE: "^2"})
LOGIC = Notation({O.AND: "and", O.OR: "or", O.NOT: "not"})
VALUES = {"a": 7, "b": -3, "c": Fraction(5, 2), "d": 0}
TRUTHS = {"p": T, "q": F, "r": U}

numbers = st.one_of(
    st.integers(-40, 40), st.fractions(min_value=-5, max_value=5, max_denominator=6)
)


def trees(leaves, unary, binary, variadic):
    def grow(inner):
        return st.one_of(
            st.tuples(st.sampled_from(unary), inner),
            st.tuples(st.sampled_from(binary), inner, inner),
            st.lists(inner, min_size=2, max_size=4).flatmap(
                lambda operands: st.sampled_from(variadic).map(
                    lambda operator: (operator, *operands)
                )
            ),
        )

    return st.recursive(leaves, grow, max_leaves=8)


VARIADIC = [O.ADD, O.MULTIPLY]
arithmetic = trees(
    st.one_of(numbers, st.sampled_from(list(VALUES))),
    [O.SQUARE, O.SAME],
    [O.SUBTRACT, O.DIVIDE, *VARIADIC],
    VARIADIC,
)
logic = trees(st.sampled_from([*Truth, *TRUTHS]), [O.NOT], [O.AND, O.OR], [O.AND, O.OR])


def worth(expression, values):
    try:
        return evaluate(expression, values)
    except ZeroDivisionError:
        return None


def operations(expression):
    return 1 + sum(map(operations, expression[1:])) if isinstance(expression, tuple) else 0


@given(arithmetic)
def test_what_is_written_is_read_back(expression):
    assert ARITHMETIC.parse(ARITHMETIC.text(expression)) == flatten(expression)
    assert worth(flatten(expression), VALUES) == worth(expression, VALUES)


@given(logic)
def test_logic_is_read_back(expression):
    assert LOGIC.parse(LOGIC.text(expression)) == flatten(expression)
    assert evaluate(flatten(expression), TRUTHS) == evaluate(expression, TRUTHS)


@given(arithmetic)
def test_the_text_means_to_python_what_it_means_here(expression):
    value = worth(expression, VALUES)
    text = re.sub(r"\d+", r"Fraction(\g<0>)", ARITHMETIC.text(expression).replace("^2", "**two"))
    try:
        theirs = eval(
            text,
            {"Fraction": Fraction, "two": 2, **{name: Fraction(v) for name, v in VALUES.items()}},
        )
    except ZeroDivisionError:
        theirs = None
    assert theirs == value


@given(logic)
def test_logic_is_kleene_s(expression):
    """And, or, not are minimum, maximum and 1 - x of 0, 1/2 and 1."""
    scale = {F: 0, U: Fraction(1, 2), T: 1}

    def kleene(e):
        if not isinstance(e, tuple):
            return scale[e if isinstance(e, Truth) else TRUTHS[e]]
        operands = [kleene(operand) for operand in e[1:]]
        return 1 - operands[0] if e[0] is O.NOT else (min if e[0] is O.AND else max)(operands)

    assert scale[evaluate(expression, TRUTHS)] == kleene(expression)


@given(logic)
def test_logic_without_the_unknown_is_python_s(expression):
    known = {"p": T, "q": F, "r": F}
    plain = substitute(expression, known)
    assume(U not in str(plain))
    assert evaluate(expression, known) == str(eval(LOGIC.text(plain)))


@given(arithmetic)
def test_reductions_do_one_operation_at_a_time(expression):
    over_values = substitute(expression, VALUES)
    value = worth(over_values, {})
    assume(value is not None)
    sides = reductions(over_values)
    if not isinstance(over_values, tuple):
        assert sides == ()
        return
    assert sides[0] == over_values
    assert all(worth(side, {}) == value for side in sides)
    # A sum of n operands is n - 1 operations.
    costs = [cost(side) for side in sides]
    assert costs == list(range(costs[0], 0, -1))


def cost(side):
    if not isinstance(side, tuple):
        return 0
    return max(1, len(side) - 2) + sum(map(cost, side[1:]))


@given(arithmetic)
def test_json_keeps_an_expression(expression):
    assert from_json(to_json(expression)) == expression


def test_substitute_and_names():
    expression = (O.ADD, "a", (O.MULTIPLY, "b", "a", 3))
    assert names_in(expression) == ("a", "b")
    assert substitute(expression, {"a": 1}) == (O.ADD, 1, (O.MULTIPLY, "b", 1, 3))
    assert names_in(T) == ()  # though it is a str


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b * c", (O.ADD, "a", (O.MULTIPLY, "b", "c"))),
        ("(a + b) * c", (O.MULTIPLY, (O.ADD, "a", "b"), "c")),
        ("a - b - c", (O.SUBTRACT, (O.SUBTRACT, "a", "b"), "c")),
        ("a - (b - c)", (O.SUBTRACT, "a", (O.SUBTRACT, "b", "c"))),
        ("a - b + c", (O.ADD, (O.SUBTRACT, "a", "b"), "c")),
        ("a + b + c", (O.ADD, "a", "b", "c")),
        ("a + (b + c)", (O.ADD, "a", (O.ADD, "b", "c"))),
        ("a * b^2", (O.MULTIPLY, "a", (O.SQUARE, "b"))),
        ("(-3)^2", (O.SQUARE, -3)),
        ("5 - (-3)", (O.SUBTRACT, 5, -3)),
        ("-3", -3),
        ("a-3", (O.SUBTRACT, "a", 3)),
        ("2.5", (O.DIVIDE, 5, 2)),
        ("5/2", (O.DIVIDE, 5, 2)),
    ],
)
def test_precedence_and_negative_numbers(text, expected):
    assert ARITHMETIC.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not p and q", (O.AND, (O.NOT, "p"), "q")),
        ("not (p and q)", (O.NOT, (O.AND, "p", "q"))),
        ("p or q and r", (O.OR, "p", (O.AND, "q", "r"))),
        ("N/A or not notable", (O.OR, U, (O.NOT, "notable"))),
    ],
)
def test_precedence_of_logic(text, expected):
    assert LOGIC.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            " ",
            "a b",
            "a +",
            "+ a",
            "a + + b",
            "(a",
            "a)",
            "()",
            "a ** b",
            "-3^2",
            "a^2^2",
            "a = b",
            "5 5",
            "a, b",
        ],
        *["33a4 +", "é + ?", "(" * 5000, "(" * 3000 + "a" + ")" * 3000, "1 + " * 9000 + "1"],
    ],
)
def test_what_is_no_expression_is_refused(text):
    assert ARITHMETIC.parse(text) is None


@given(st.text(alphabet="ab12+-*/^() \n.", max_size=40))
def test_no_text_breaks_the_reader(text):
    expression = ARITHMETIC.parse(text)
    if expression is not None:
        assert ARITHMETIC.parse(ARITHMETIC.text(expression)) == expression


@pytest.mark.parametrize(
    ("operator", "operands"),
    [
        (O.MULTIPLY, (T, 10**12)),  # Python would write "True" that often
        (O.ADD, (T, F)),
        (O.AND, (1, T)),
        (O.NOT, (0,)),
        (O.SQUARE, ("a",)),
        (O.SUBTRACT, (1,)),
    ],
)
def test_an_operator_refuses_what_it_is_not_defined_on(operator, operands):
    with pytest.raises(TypeError):
        compute(operator, operands)


def test_deduction_and_abduction():
    """Truth tables of the premises of DyVal's logic: what follows, and what may have caused it."""
    assert [compute(O.IF, [t]) for t in (T, F, U)] == [T, U, U]
    assert [compute(O.CAUSE_AND, [t]) for t in (T, F, U)] == [U, U, U]
    assert [compute(O.CAUSE_OR, [t]) for t in (T, F, U)] == [U, F, U]
    assert [compute(O.CAUSE_NOT, [t]) for t in (T, F, U)] == [U, T, U]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-7", -7),
        ("6/4", Fraction(3, 2)),
        ("8/4", 2),
        ("2.50", Fraction(5, 2)),
        ("N/A", U),
        ("True", T),
    ],
)
def test_values_as_text(text, value):
    assert value_of(text) == value
    assert value_of(str(value)) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "--1", "1e3", "٣", "1" * 31, "true"])
def test_what_is_no_value(text):
    assert value_of(text) is None
