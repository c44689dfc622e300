"""What a quantity is computed by: values, operators and expressions over names, as data and as
text.

An expression is a name, a value, or a tuple of an operator and its operands: ``("add", 9,
("subtract", "a", "b"))`` is 9 + (a - b). Logic has three values, as deduction needs them (DyVal,
arXiv:2309.17167): what cannot be known is N/A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias


class Truth(StrEnum):
    """A value of logic."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "N/A"


Value: TypeAlias = "int | Fraction | Truth"
# a tuple: (Operator, Expression, ...)
Expression: TypeAlias = "str | int | Fraction | Truth | tuple[Any, ...]"


class Operator(StrEnum):
    """What turns operands into a value."""

    ADD = "add"
    SUBTRACT = "subtract"
    MULTIPLY = "multiply"
    DIVIDE = "divide"
    SQUARE = "square"
    SAME = "same"  # as much as another quantity
    AND = "and"
    OR = "or"
    NOT = "not"
    IF = "if"  # a premise that implies the quantity: true where the premise is, else unknown
    CAUSE_AND = "cause_and"  # one of two facts of which the conjunction implies the operand
    CAUSE_OR = "cause_or"  # ... of which the disjunction implies it
    CAUSE_NOT = "cause_not"  # the fact whose negation implies it

    @property
    def arity(self) -> int:
        """Number of operands that the operator takes; with ``takes_more`` the least number."""
        return 2 if self in _BINARY else 1

    @property
    def takes_more(self) -> bool:
        """Whether it takes any number of operands from ``arity`` up."""
        return self in _VARIADIC

    @property
    def commutes(self) -> bool:
        """Whether the order of the operands is of no consequence."""
        return self in _VARIADIC


_VARIADIC = frozenset({Operator.ADD, Operator.MULTIPLY, Operator.AND, Operator.OR})
_BINARY = _VARIADIC | {Operator.SUBTRACT, Operator.DIVIDE}
_ARITHMETIC = frozenset(
    {Operator.ADD, Operator.SUBTRACT, Operator.MULTIPLY, Operator.DIVIDE, Operator.SQUARE}
)
_NUMBERS = (int, Fraction)
_T, _F, _U = Truth.TRUE, Truth.FALSE, Truth.UNKNOWN


def _and(*operands: Truth) -> Truth:
    return _F if _F in operands else _U if _U in operands else _T


def _or(*operands: Truth) -> Truth:
    return _T if _T in operands else _U if _U in operands else _F


def _divide(a: int | Fraction, b: int | Fraction) -> int | Fraction:
    return tidy(Fraction(a) / Fraction(b))


_COMPUTE: dict[Operator, Callable[..., Any]] = {
    Operator.ADD: lambda *operands: sum(operands),
    Operator.SUBTRACT: lambda a, b: a - b,
    Operator.MULTIPLY: lambda *operands: math.prod(operands),
    Operator.DIVIDE: _divide,
    Operator.SQUARE: lambda a: a * a,
    Operator.SAME: lambda a: a,
    Operator.AND: _and,
    Operator.OR: _or,
    Operator.NOT: lambda a: {_T: _F, _F: _T, _U: _U}[a],
    Operator.IF: lambda a: _T if a is _T else _U,
    Operator.CAUSE_AND: lambda a: _U,  # the other of the two may be the false one
    Operator.CAUSE_OR: lambda a: _F if a is _F else _U,
    Operator.CAUSE_NOT: lambda a: _T if a is _F else _U,
}


def tidy(value: Fraction) -> int | Fraction:
    """A whole number as an int."""
    return value.numerator if value.denominator == 1 else value


def compute(operator: Operator, operands: Iterable[Value]) -> Any:
    """Value of ``operator`` on ``operands``, in their order.

    Raises:
        ZeroDivisionError, TypeError: the operator is not defined on them, or there are too few or
        too many.
    """
    given = tuple(operands)
    # Truth is a str, and Python would repeat and concatenate those
    if operator is not Operator.SAME:
        kind = _NUMBERS if operator in _ARITHMETIC else Truth
        for operand in given:
            if not isinstance(operand, kind):
                raise TypeError(f"{operator} is not defined on {operand!r}")
    return _COMPUTE[operator](*given)


def evaluate(expression: Expression, values: Mapping[str, Value]) -> Any:
    """The value of an expression.

    Raises:
        KeyError: a name has no value.
        ZeroDivisionError, TypeError: an operator is not defined on its operands.
    """
    if isinstance(expression, tuple):
        return compute(expression[0], [evaluate(operand, values) for operand in expression[1:]])
    if type(expression) is str:
        return values[expression]
    return expression


def names_in(expression: Expression) -> tuple[str, ...]:
    """The names of an expression, each once, in the order in which they come."""
    found: dict[str, None] = {}
    _collect_names((expression,), found)
    return tuple(found)


def _collect_names(parts: tuple[Any, ...], found: dict[str, None]) -> None:
    for part in parts:
        if type(part) is str:
            found[part] = None
        elif isinstance(part, tuple):
            _collect_names(part[1:], found)


def substitute(expression: Expression, values: Mapping[str, Expression]) -> Expression:
    """The expression with names replaced; names without a value stay."""
    if isinstance(expression, tuple):
        # most of them
        if len(expression) == 3 and type(expression[1]) is str and type(expression[2]) is str:
            operator, a, b = expression
            return (operator, values.get(a, a), values.get(b, b))
        parts = [substitute(part, values) if type(part) is tuple else part for part in expression]
        return tuple([values.get(part, part) if type(part) is str else part for part in parts])
    return values.get(expression, expression) if type(expression) is str else expression


@lru_cache(maxsize=4096)  # whoever checks a line soon wants those of who wrote it
def reductions(expression: Expression) -> tuple[Expression, ...]:
    """An expression over values and what it becomes by one operation at a time, down to its value
    (left out).
    """
    found = [expression]
    if (
        isinstance(expression, tuple)
        and len(expression) <= 3
        and not any([isinstance(o, tuple) for o in expression])
    ):
        return tuple(found)
    while isinstance(found[-1], tuple):
        found.append(_reduce(found[-1]))
    return tuple(found[:-1])


def _reduce(expression: tuple[Any, ...]) -> Expression:
    operator, operands = expression[0], expression[1:]
    for place, operand in enumerate(operands):
        if isinstance(operand, tuple):
            return (operator, *operands[:place], _reduce(operand), *operands[place + 1 :])
    if len(operands) <= 2:
        return compute(operator, operands)
    return (operator, compute(operator, operands[:2]), *operands[2:])


class Notation:
    """How expressions are written: sums and products as usual, logic in words.

    Args:
        signs: a sign per operator. One of two operands stands between them (or, for ``SQUARE``,
            behind its operand), any other one before its operand; ``SAME`` is not written at all.
    """

    def __init__(self, signs: Mapping[Operator, str]) -> None:
        self.signs = dict(signs)
        self._infix = {sign: operator for operator, sign in signs.items() if operator.arity == 2}
        self._prefix = {
            sign: o for o, sign in signs.items() if o.arity == 1 and o is not Operator.SQUARE
        }
        words = sorted(
            [
                *self._infix,
                *self._prefix,
                *([signs[Operator.SQUARE]] if Operator.SQUARE in signs else []),
            ]
        )
        marks = "|".join(
            rf"{re.escape(word)}(?!\w)" if word[-1].isalpha() else re.escape(word)
            for word in sorted(words, key=len, reverse=True)
        )
        self._tokens = re.compile(rf"\s*(?:({_NUMBER})|({marks}|[()])|(N/A|\w+))")
        # What is written is soon checked or written again, and what is read is much the same as
        # before.
        self.parse = lru_cache(maxsize=4096)(self._parse)
        self._known_text = lru_cache(maxsize=4096)(self._text)

    def __reduce__(self) -> tuple[type[Notation], tuple[Any, ...]]:
        return Notation, (self.signs,)  # a cache does not travel

    def text(self, expression: Expression) -> str:
        """The expression as it is written; names as they are."""
        if not isinstance(expression, tuple):
            return self.leaf(expression)
        if len(expression) == 3:
            operator, a, b = expression
            if operator in _BINARY and type(a) is not tuple and type(b) is not tuple:
                return f"{self.leaf(a)} {self.signs[operator]} {self.leaf(b)}"
        return self._known_text(expression)

    def _text(self, expression: tuple[Any, ...]) -> str:
        operator, operands = expression[0], expression[1:]
        if operator is Operator.SAME:
            return self.text(operands[0])
        sign = self.signs[operator]
        if operator in _BINARY:
            first, *rest = operands
            texts = [
                self._operand(first, operator, right=False),
                *[self._operand(o, operator, True) for o in rest],
            ]
            return f" {sign} ".join(texts)
        inner = (
            f"({self.text(operands[0])})"
            if isinstance(operands[0], tuple)
            else self.leaf(operands[0])
        )
        return f"{inner}{sign}" if operator is Operator.SQUARE else f"{sign} {inner}"

    @staticmethod
    def leaf(leaf: Any) -> str:
        """A name or a value as an operand: negative numbers and fractions in brackets, so that no
        signs touch.
        """
        if type(leaf) is str:
            return leaf
        if type(leaf) is int:
            return str(leaf) if leaf >= 0 else f"({leaf})"
        text = str(leaf)
        return (
            f"({text})" if text[:1] == "-" or (isinstance(leaf, Fraction) and "/" in text) else text
        )

    def _operand(self, operand: Expression, outer: Operator, right: bool) -> str:
        while isinstance(operand, tuple) and operand[0] is Operator.SAME:
            operand = operand[1]
        if not isinstance(operand, tuple):
            return self.leaf(operand)
        text = self.text(operand)
        if operand[0].arity == 1:
            return text
        inner = _PRECEDENCE[operand[0]]
        return (
            f"({text})"
            if inner < _PRECEDENCE[outer] or (right and inner == _PRECEDENCE[outer])
            else text
        )

    def _parse(self, text: str) -> Expression | None:
        """The expression that a text writes, ``flatten``-ed; None where it writes none, or one
        longer than any is.
        """
        if text.count("(") > _MOST_BRACKETS:
            return None
        tokens: list[str] = []
        place = 0
        while place < len(text):
            match = self._tokens.match(text, place)
            if match is None or match.end() == place or len(tokens) == _MOST_TOKENS:
                return None
            tokens.append(match.group(match.lastindex or 0))
            place = match.end()
        reader = _Reader(tokens, self)
        try:
            expression = reader.sum_of(0)
            return flatten(expression) if reader.place == len(tokens) else None
        except (_NoExpressionError, RecursionError):  # hundreds of brackets are no equation either
            return None


# A model that repeats itself for ever must not exhaust the stack of who reads it.
_MOST_TOKENS, _MOST_BRACKETS = 200, 25
_NUMBER = r"(?<![\w)])-?[0-9]{1,30}(?:\.[0-9]{1,30})?(?!\w)|[0-9]{1,30}(?:\.[0-9]{1,30})?(?!\w)"
_PRECEDENCE = {
    Operator.OR: 0,
    Operator.AND: 1,
    Operator.ADD: 2,
    Operator.SUBTRACT: 2,
    Operator.MULTIPLY: 3,
    Operator.DIVIDE: 3,
}
_LEVELS = max(_PRECEDENCE.values()) + 1


class _NoExpressionError(ValueError):
    pass


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str], notation: Notation) -> None:
        self.tokens = tokens
        self.notation = notation
        self.place = 0

    def _peek(self) -> str | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def _take(self) -> str:
        token = self._peek()
        if token is None:
            raise _NoExpressionError
        self.place += 1
        return token

    def sum_of(self, level: int) -> Expression:
        if level == _LEVELS:
            return self._unary()
        left = self.sum_of(level + 1)
        while (operator := self.notation._infix.get(self._peek() or "")) and _PRECEDENCE[
            operator
        ] == level:
            self.place += 1
            left = (operator, left, self.sum_of(level + 1))
        return left

    def _unary(self) -> Expression:
        token = self._take()
        if operator := self.notation._prefix.get(token):
            return (operator, self._unary())
        if token == "(":
            inner = self.sum_of(0)
            if self._take() != ")":
                raise _NoExpressionError
            return self._squared(inner)
        if token == ")" or token in self.notation._infix:
            raise _NoExpressionError
        leaf = value_of(token)
        if (
            isinstance(leaf, int | Fraction)
            and leaf < 0
            and self._peek() == self.notation.signs.get(Operator.SQUARE)
        ):
            raise _NoExpressionError  # without brackets the sign would not be squared
        return self._squared(token if leaf is None else leaf)

    def _squared(self, base: Expression) -> Expression:
        sign = self.notation.signs.get(Operator.SQUARE)
        if sign and self._peek() == sign:
            self.place += 1
            return (Operator.SQUARE, base)
        return base


def flatten(expression: Expression) -> Expression:
    """One form for expressions that are written alike.

    a + b + c is one sum of three, ``SAME`` is its operand, and a fraction is the division that
    writes it.
    """
    if not isinstance(expression, tuple):
        if isinstance(expression, Fraction) and expression.denominator != 1:
            return (Operator.DIVIDE, expression.numerator, expression.denominator)
        return tidy(expression) if isinstance(expression, Fraction) else expression
    operator, operands = expression[0], [flatten(operand) for operand in expression[1:]]
    if operator is Operator.SAME:
        return operands[0]
    first = operands[0]
    if operator.takes_more and isinstance(first, tuple) and first[0] is operator:
        return (operator, *first[1:], *operands[1:])
    return (operator, *operands)


def value_of(text: str) -> Value | None:
    """What a text writes: a whole or decimal number, a fraction, True, False or N/A; None for
    anything else.
    """
    digits = text.removeprefix("-")
    if digits.isdecimal() and digits.isascii() and len(digits) <= _MOST_DIGITS:
        return int(text)
    if text in _TRUTHS:
        return Truth(text)
    if _FRACTION.fullmatch(text):
        top, _, bottom = text.partition("/")
        return tidy(Fraction(top) / Fraction(bottom or 1)) if not bottom or int(bottom) else None
    return None


_TRUTHS = frozenset(truth.value for truth in Truth)
# ASCII digits, and no more of them than a model can mean: int() refuses thousands.
_MOST_DIGITS = 30
_FRACTION = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30}|/[0-9]{1,30})")


def to_json(expression: Expression) -> Any:
    """As JSON keeps it: tuples as lists; fractions, which JSON does not know, as text like "5/2"."""
    if isinstance(expression, tuple):
        return [expression[0].value, *map(to_json, expression[1:])]
    if isinstance(expression, Fraction | Truth):
        return {"value": str(expression)}
    return expression


def from_json(content: Any) -> Any:
    """Read what ``to_json`` wrote.

    Raises:
        ValueError: it is no such content.
    """
    if isinstance(content, list):
        return (Operator(content[0]), *map(from_json, content[1:]))
    if isinstance(content, dict):
        value = value_of(content["value"])
        if value is None:
            raise ValueError(f"{content} is no value")
        return value
    return content
