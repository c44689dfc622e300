"""Numbers as people write them: "$1,200.50", "12.5 %", "2 1/2 hours", "twenty-five", "half"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

# Figures with or without thousands separators and a decimal point, bounded as Notation bounds them.
_PLAIN = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?:\.[0-9]{1,30})?"
    r"|[0-9]{1,30}(?:\.[0-9]{1,30})?"
    r"|\.[0-9]{1,30})"
    r"(?![0-9])"
)
_FRACTION = r"(?:(?P<whole>[0-9]{1,9}) )?(?P<top>[0-9]{1,9})/(?P<bottom>[0-9]{1,9})(?![0-9])"
_UNIT = r"(?P<unit>%|¢|percent\b|per cent\b|cents?\b|thousand\b|million\b|billion\b|k\b)"
_FIGURE = re.compile(
    r"(?P<sign>(?<![\w)] )(?<![\w)%])[-−] ?)?"
    r"(?:[$€£¥] ?)?"
    r"(?P<minus>[-−])?"
    r"(?<![\w.])"
    rf"(?:{_FRACTION}|(?P<plain>{_PLAIN}))"
    rf"(?: ?{_UNIT})?",
    re.IGNORECASE,
)
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "k": 1000,
    "million": 10**6,
    "billion": 10**9,
}
_HUNDREDTHS = frozenset({"%", "¢", "percent", "per cent", "cent", "cents"})
_SMALL_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SPELLED = dict(zip(_SMALL_NUMBERS, range(20), strict=True))
_SPELLED |= dict(zip(_TENS, range(20, 100, 10), strict=True))

# Words that state a number, or (half: 1/2 and 2) one of two.
_MEANINGS: dict[str, tuple[Fraction, ...]] = {}
_PARTS = {
    2: ("half", "halfs", "halves", "halved"),
    3: ("third", "thirds"),
    4: ("quarter", "quarters", "fourth", "fourths"),
    5: ("fifth", "fifths"),
    6: ("sixth", "sixths"),
    7: ("seventh", "sevenths"),
    8: ("eighth", "eighths"),
    9: ("ninth", "ninths"),
    10: ("tenth", "tenths"),
}
for _n, _words in _PARTS.items():
    _MEANINGS |= dict.fromkeys(_words, (Fraction(1, _n), Fraction(_n)))
_MULTIPLES = {
    1: ("once",),
    2: ("twice", "double", "doubles", "doubled", "couple", "pair", "pairs", "both"),
    3: ("thrice", "triple", "triples", "tripled", "triplets"),
    4: ("quadruple", "quadruples", "quadrupled"),
    12: ("dozen", "dozens"),
}
for _n, _words in _MULTIPLES.items():
    _MEANINGS |= dict.fromkeys(_words, (Fraction(_n),))


def numbers_in(text: str) -> set[Fraction]:
    """Every number that a text states, without its sign, in figures or in words.

    A percentage and an amount of cents count as they stand and as hundredths; a fraction counts
    with its parts; "half" is 1/2 and 2.
    """
    numbers = set(_spelled(text))
    for match in _FIGURE.finditer(text):
        number = abs(_number(match))
        numbers.add(number)
        if match["top"]:
            parts = filter(None, match.group("whole", "top", "bottom"))
            numbers.update(map(Fraction, parts))
        unit = _unit(match)
        if unit in _HUNDREDTHS:
            numbers.add(number / 100)
        elif unit:
            numbers.add(number * _SCALES[unit])
    for word in re.findall(r"[a-z]+", text.lower()):
        numbers.update(_MEANINGS.get(word, ()))
    return numbers


def value_in(text: str) -> Fraction | None:
    """The one number that a text states as a value, without its unit; None: it has none or several.

    It is 1200.5 for "$1,200.50", 25 for "twenty-five apples", 50 for "50 %" and for "50 cents".
    """
    matches = list(_FIGURE.finditer(text))
    if not matches:
        spelled = list(_spelled(text))
        return spelled[0] if len(spelled) == 1 else None
    if len(matches) > 1:
        return None
    scale = _SCALES.get(_unit(matches[0]), 1)
    return _number(matches[0]) * scale


# what `plain_expression` replaces, in this order
_SIGNS = str.maketrans(
    {
        "×": "*",
        "·": "*",
        "÷": "/",
        "−": "-",
        "–": "-",
        **dict.fromkeys("$€£¥"),  # removed
    }
)
_CROSS = re.compile(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(])")
_THOUSANDS = re.compile(r"(?<![\w,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=[0-9])")
_PERCENT = re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)\s*(?:%|percent\b)")
# a name cannot follow a number, so a word that does is a unit
_UNIT_WORD = re.compile(r"(?<![\w.])([0-9.]+)\s+[A-Za-z]+(?=\s*(?:[-+*/)]|$))")


def plain_expression(text: str) -> str:
    """An expression in figures and signs that ``Notation`` reads.

    Currency signs, thousands separators and units after a number are left out, 12.5 % becomes
    (12.5 / 100), and the signs that people use for products, quotients and differences become * /
    and -.
    """
    text = text.translate(_SIGNS)
    text = _CROSS.sub(" * ", text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _BARE_POINT.sub("0.", text)
    text = _PERCENT.sub(r"(\1 / 100)", text)
    return _UNIT_WORD.sub(r"\1", text).strip()


_MOST_DECIMALS = 12


def decimal_text(value: int | Fraction) -> str:
    """A number as people write it: 2.5 where that is exact and short, else 10/3."""
    if value.denominator == 1:
        return str(value.numerator)
    for decimals in range(1, _MOST_DECIMALS + 1):
        if 10**decimals % value.denominator == 0:
            scaled = abs(value.numerator) * 10**decimals // value.denominator
            whole, part = divmod(scaled, 10**decimals)
            sign = "-" if value < 0 else ""
            return f"{sign}{whole}.{part:0{decimals}d}"
    return str(value)


def _unit(match: re.Match[str]) -> str:
    return (match["unit"] or "").lower()


def _number(match: re.Match[str]) -> Fraction:
    if match["plain"]:
        number = Fraction(match["plain"].replace(",", ""))
    elif int(match["bottom"]):
        whole = Fraction(match["whole"] or 0)
        number = whole + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        number = Fraction(0)  # "3/0" states nothing that could be computed with
    if match["sign"] or match["minus"]:
        return -number
    return number


def _spelled(text: str) -> Iterator[Fraction]:
    """Numbers written in words.

    "two hundred and five" is 205 and "twenty-five" is 25; "two, three" are two numbers.
    """
    total: int | None = None
    for token in re.findall(r"[a-z]+|[^a-z\s-]", text.lower()):
        value = _SPELLED.get(token)
        scale = _SCALES.get(token)
        if total is None:
            total = _first(token)
        elif token == "and" and total >= 100:
            continue
        elif value is not None and _continues(total, value):
            total += value
        elif scale == 100:
            total += total % 1000 * (scale - 1)
        elif scale is not None:
            total *= scale
        else:
            yield Fraction(total)
            total = _first(token)
    if total is not None:
        yield Fraction(total)


def _first(token: str) -> int | None:
    """The number that a word begins, None where it begins none."""
    if token in _SPELLED:
        return _SPELLED[token]
    if token == "k":
        return None
    return _SCALES.get(token)


def _continues(total: int, value: int) -> bool:
    """Whether a word continues the number so far.

    "five" continues "twenty" and "hundred", "twenty" continues "hundred".
    """
    after_tens = total % 10 == 0 and total % 100 >= 20 and 0 < value < 10
    after_hundreds = total >= 100 and total % 100 == 0
    return after_tens or after_hundreds
