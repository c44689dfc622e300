"""Values, operators, and expressions over names: as data and as text.

An expression is a name, a value, or a tuple of an operator and its operands: ``("add", 9,
("subtract", "a", "b"))`` is 9 + (a - b). Logic has three values, as deduction needs them (DyVal,
arXiv:2309.17167): a value that cannot be known is N/A.
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
    """An operation that turns operands into a value."""

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
    if _F in operands:
        return _F
    if _U in operands:
        return _U
    return _T


def _or(*operands: Truth) -> Truth:
    if _T in operands:
        return _T
    if _U in operands:
        return _U
    return _F


def _divide(a: int | Fraction, b: int | Fraction) -> int | Fraction:
    return tidy(Fraction(a) / Fraction(b))


# truth tables of the operators on one operand
_NOT = {_T: _F, _F: _T, _U: _U}
_IF = {_T: _T, _F: _U, _U: _U}
_CAUSE_AND = {_T: _U, _F: _U, _U: _U}  # the other of the two facts may be the false one
_CAUSE_OR = {_T: _U, _F: _F, _U: _U}
_CAUSE_NOT = {_T: _U, _F: _T, _U: _U}
_COMPUTE: dict[Operator, Callable[..., Any]] = {
    Operator.ADD: lambda *operands: sum(operands),
    Operator.SUBTRACT: lambda a, b: a - b,
    Operator.MULTIPLY: lambda *operands: math.prod(operands),
    Operator.DIVIDE: _divide,
    Operator.SQUARE: lambda a: a * a,
    Operator.SAME: lambda a: a,
    Operator.AND: _and,
    Operator.OR: _or,
    Operator.NOT: _NOT.__getitem__,
    Operator.IF: _IF.__getitem__,
    Operator.CAUSE_AND: _CAUSE_AND.__getitem__,
    Operator.CAUSE_OR: _CAUSE_OR.__getitem__,
    Operator.CAUSE_NOT: _CAUSE_NOT.__getitem__,
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
    operands = tuple(operands)
    if operator is Operator.SAME:
        return _COMPUTE[operator](*operands)
    # a Truth is a str, which Python would repeat and concatenate
    kind = _NUMBERS if operator in _ARITHMETIC else Truth
    for operand in operands:
        if not isinstance(operand, kind):
            raise TypeError(f"{operator} is not defined on {operand!r}")
    return _COMPUTE[operator](*operands)


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
    """The names in an expression, each once, in order of appearance."""
    names: dict[str, None] = {}
    _collect_names((expression,), names)
    return tuple(names)


def _collect_names(parts: tuple[Any, ...], names: dict[str, None]) -> None:
    for part in parts:
        if type(part) is str:
            names[part] = None
        elif isinstance(part, tuple):
            _collect_names(part[1:], names)


def substitute(expression: Expression, values: Mapping[str, Expression]) -> Expression:
    """The expression with its names replaced; names without a value stay."""
    if type(expression) is str:
        return values.get(expression, expression)
    if not isinstance(expression, tuple):
        return expression
    # most expressions are one operation on two names
    if len(expression) == 3 and type(expression[1]) is str and type(expression[2]) is str:
        operator, a, b = expression
        return (operator, values.get(a, a), values.get(b, b))
    parts: list[Any] = []
    for part in expression:
        if type(part) is str:
            part = values.get(part, part)
        elif type(part) is tuple:
            part = substitute(part, values)
        parts.append(part)
    return tuple(parts)


@lru_cache(maxsize=4096)  # a line is checked soon after it is written, with the same reductions
def reductions(expression: Expression) -> tuple[Expression, ...]:
    """An expression over values, and what it becomes as its operations are worked out one by one.

    Returns:
        The expression itself first, an expression of one operation last; nothing for a bare value.
    """
    if not isinstance(expression, tuple):
        return ()
    sides = [expression]
    while not _is_one_operation(sides[-1]):
        sides.append(_reduce(sides[-1]))
    return tuple(sides)


def _is_one_operation(expression: tuple[Any, ...]) -> bool:
    if len(expression) > 3:
        return False
    return tuple not in map(type, expression)


def _reduce(expression: tuple[Any, ...]) -> Any:
    """The expression with its first operation worked out."""
    operator, operands = expression[0], expression[1:]
    for position, operand in enumerate(operands):
        if isinstance(operand, tuple):
            before = operands[:position]
            after = operands[position + 1 :]
            return (operator, *before, _reduce(operand), *after)
    if len(operands) <= 2:
        return compute(operator, operands)
    first = compute(operator, operands[:2])
    return (operator, first, *operands[2:])


# the limits keep a model that repeats itself for ever from exhausting the reader's stack
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


class Notation:
    """How expressions are written: sums and products as usual, logic in words.

    Args:
        signs: a sign per operator. The sign of an operator with two operands is written between
            them, that of ``SQUARE`` after its operand, any other before it; ``SAME`` has no sign.

    Attributes:
        name_pattern: regular expression of a name, tried after numbers and signs.
    """

    name_pattern = r"N/A|\w+"

    def __init__(self, signs: Mapping[Operator, str]) -> None:
        self.signs = dict(signs)
        self._square = signs.get(Operator.SQUARE)
        self._infix: dict[str, Operator] = {}
        self._prefix: dict[str, Operator] = {}
        for operator, sign in signs.items():
            if operator.arity == 2:
                self._infix[sign] = operator
            elif operator is not Operator.SQUARE:
                self._prefix[sign] = operator
        self._tokens = re.compile(
            rf"\s*(?:({_NUMBER})|({self._mark_pattern()}|[()])|({self.name_pattern}))"
        )
        # the same few equations are written, checked and read again and again
        self.parse = lru_cache(maxsize=4096)(self._parse)
        self._known_text = lru_cache(maxsize=4096)(self._text)

    def _mark_pattern(self) -> str:
        """A regular expression of every sign, longer ones first."""
        patterns: list[str] = []
        for mark in sorted(self.signs.values(), key=len, reverse=True):
            pattern = re.escape(mark)
            if mark[-1].isalpha():
                pattern += r"(?!\w)"
            patterns.append(pattern)
        return "|".join(patterns)

    def __reduce__(self) -> tuple[type[Notation], tuple[Any, ...]]:
        return Notation, (self.signs,)  # the caches are not pickled

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
            texts = [self._operand(operands[0], operator, right=False)]
            for operand in operands[1:]:
                texts.append(self._operand(operand, operator, right=True))
            return f" {sign} ".join(texts)
        if isinstance(operands[0], tuple):
            inner = f"({self.text(operands[0])})"
        else:
            inner = self.leaf(operands[0])
        if operator is Operator.SQUARE:
            return f"{inner}{sign}"
        return f"{sign} {inner}"

    @staticmethod
    def leaf(leaf: Any) -> str:
        """A name or a value as an operand.

        Negative numbers and fractions are put in brackets, so that no two signs touch.
        """
        if type(leaf) is str:
            return leaf
        text = str(leaf)
        if type(leaf) is int:
            return text if leaf >= 0 else f"({text})"
        if text.startswith("-"):
            return f"({text})"
        if isinstance(leaf, Fraction) and "/" in text:
            return f"({text})"
        return text

    def _operand(self, operand: Expression, outer: Operator, right: bool) -> str:
        """An operand of ``outer``, in brackets where its own operator binds less tightly."""
        while isinstance(operand, tuple) and operand[0] is Operator.SAME:
            operand = operand[1]
        if not isinstance(operand, tuple):
            return self.leaf(operand)
        text = self.text(operand)
        if operand[0].arity == 1:
            return text
        # a right operand needs brackets at equal precedence too: a - (b - c)
        enough = _PRECEDENCE[outer] + right
        if _PRECEDENCE[operand[0]] < enough:
            return f"({text})"
        return text

    def _parse(self, text: str) -> Expression | None:
        """The expression that a text writes, ``flatten``-ed.

        None where the text is not an expression, or is longer than any real one.
        """
        tokens = self._tokens_of(text)
        if tokens is None:
            return None
        reader = _Reader(tokens, self)
        try:
            expression = reader.sum_of(0)
            if reader.position < len(tokens):
                return None
            return flatten(expression)
        except (_NoExpressionError, RecursionError):  # hundreds of brackets: not an equation either
            return None

    def _tokens_of(self, text: str) -> list[str] | None:
        """The tokens of an expression; None where there are too many, or something else between."""
        if text.count("(") > _MOST_BRACKETS:
            return None
        tokens: list[str] = []
        position = 0
        while position < len(text):
            match = self._tokens.match(text, position)
            if match is None or match.end() == position or len(tokens) == _MOST_TOKENS:
                return None
            tokens.append(match.group(match.lastindex or 0))
            position = match.end()
        return tokens


class _NoExpressionError(ValueError):
    pass


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str], notation: Notation) -> None:
        self.tokens = tokens
        self.notation = notation
        self.position = 0

    def _peek(self) -> str:
        """The next token, "" at the end."""
        if self.position < len(self.tokens):
            return self.tokens[self.position]
        return ""

    def _take(self) -> str:
        token = self._peek()
        if not token:
            raise _NoExpressionError
        self.position += 1
        return token

    def sum_of(self, level: int) -> Expression:
        """An expression of operators that bind as tightly as ``level`` of ``_PRECEDENCE``."""
        if level == _LEVELS:
            return self._unary()
        left = self.sum_of(level + 1)
        while True:
            operator = self.notation._infix.get(self._peek())
            if operator is None or _PRECEDENCE[operator] != level:
                return left
            self.position += 1
            left = (operator, left, self.sum_of(level + 1))

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
        if leaf is None:
            return self._squared(token)
        if token.startswith("-") and self._is_squared():
            raise _NoExpressionError  # without brackets the sign would not be squared
        return self._squared(leaf)

    def _squared(self, base: Expression) -> Expression:
        if not self._is_squared():
            return base
        self.position += 1
        return (Operator.SQUARE, base)

    def _is_squared(self) -> bool:
        square = self.notation._square
        return square is not None and self._peek() == square


def flatten(expression: Expression) -> Expression:
    """One form for expressions that are written alike.

    a + b + c is one sum of three, ``SAME`` is its operand, and a fraction is the division that
    writes it.
    """
    if isinstance(expression, Fraction):
        if expression.denominator == 1:
            return expression.numerator
        return (Operator.DIVIDE, expression.numerator, expression.denominator)
    if not isinstance(expression, tuple):
        return expression
    operator = expression[0]
    operands = [flatten(operand) for operand in expression[1:]]
    first = operands[0]
    if operator is Operator.SAME:
        return first
    if operator.takes_more and isinstance(first, tuple) and first[0] is operator:
        return (operator, *first[1:], *operands[1:])
    return (operator, *operands)


_TRUTHS = {truth.value: truth for truth in Truth}
# no more digits than a model can mean: int() refuses thousands
_MOST_DIGITS = 30
_FRACTION = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30}|/[0-9]{1,30})")


def value_of(text: str) -> Value | None:
    """The value that a text writes: a whole or decimal number, a fraction, True, False or N/A.

    None for anything else. Digits are ASCII digits.
    """
    digits = text.removeprefix("-")
    if digits.isdecimal() and digits.isascii() and len(digits) <= _MOST_DIGITS:
        return int(text)
    if text in _TRUTHS:
        return _TRUTHS[text]
    if not _FRACTION.fullmatch(text):
        return None
    try:
        return tidy(Fraction(text))
    except ZeroDivisionError:
        return None


def to_json(expression: Expression) -> Any:
    """An expression as JSON: tuples as lists, fractions and truths as mappings with their text."""
    if isinstance(expression, tuple):
        return [expression[0].value, *map(to_json, expression[1:])]
    if isinstance(expression, Fraction | Truth):
        return {"value": str(expression)}
    return expression


def from_json(content: Any) -> Any:
    """Read what ``to_json`` wrote.

    Raises:
        ValueError: the content is not an expression.
    """
    if isinstance(content, list):
        return (Operator(content[0]), *map(from_json, content[1:]))
    if isinstance(content, dict):
        value = value_of(content["value"])
        if value is None:
            raise ValueError(f"not a value: {content}")
        return value
    return content
