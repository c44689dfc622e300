"""Numbers as people write them: "$1,200.50", "12.5 %", "2 1/2 hours", "twenty-five", "half as
many".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

# Figures: with or without thousands separators, a decimal point, or as a fraction; bounded, as
# Notation bounds them.
_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?:\.[0-9]{1,30})?|[0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})(?![0-9])"
_FIGURE = re.compile(
    rf"(?P<sign>(?<![\w)] )(?<![\w)%])[-−] ?)?(?:[$€£¥] ?)?(?P<minus>[-−])?"
    r"(?<![\w.])(?:(?:(?P<whole>[0-9]{1,9}) )?(?P<top>[0-9]{1,9})/(?P<bottom>[0-9]{1,9})(?![0-9])"
    rf"|(?P<plain>{_PLAIN}))"
    r"(?: ?(?P<unit>%|¢|percent\b|per cent\b|cents?\b|thousand\b|million\b|billion\b|k\b))?",
    re.IGNORECASE,
)
_SCALES = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9}
_HUNDREDTHS = frozenset({"%", "¢", "percent", "per cent", "cent", "cents"})
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SPELLED = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * place for place, word in enumerate(_TENS.split(), start=2)
}
_PARTS = ["half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
# Words that state a number, or (half: 1/2 and 2) one of two.
_MEANINGS: dict[str, tuple[Fraction, ...]] = {
    **{word: (Fraction(1, n), Fraction(n)) for n, word in enumerate(_PARTS, start=2)},
    **{f"{word}s": (Fraction(1, n), Fraction(n)) for n, word in enumerate(_PARTS, start=2)},
    **dict.fromkeys(
        ("twice", "double", "doubles", "doubled", "couple", "pair", "pairs", "both"), (Fraction(2),)
    ),
    **dict.fromkeys(("thrice", "triple", "triples", "tripled", "triplets"), (Fraction(3),)),
    **dict.fromkeys(("quadruple", "quadruples", "quadrupled"), (Fraction(4),)),
    **dict.fromkeys(("dozen", "dozens"), (Fraction(12),)),
    "once": (Fraction(1),),
}
_MEANINGS |= dict.fromkeys(("halves", "halved"), _MEANINGS["half"])
_MEANINGS |= dict.fromkeys(("fourth", "fourths"), _MEANINGS["quarter"])


def numbers_in(text: str) -> set[Fraction]:
    """Every number that a text states, without its sign, in figures or in words.

    A percentage and an amount of cents count as they stand and as hundredths; a fraction counts
    with its parts; "half" is 1/2 and 2.
    """
    found = set(_spelled(text))
    for match in _FIGURE.finditer(text):
        number = abs(_number(match))
        found.add(number)
        if match["top"]:
            found |= {Fraction(match[part]) for part in ("whole", "top", "bottom") if match[part]}
        unit = (match["unit"] or "").lower()
        if unit in _HUNDREDTHS:
            found.add(number / 100)
        elif unit:
            found.add(number * _SCALES[unit])
    for word in re.findall(r"[a-z]+", text.lower()):
        found.update(_MEANINGS.get(word, ()))
    return found


def value_in(text: str) -> Fraction | None:
    """The one number that a text states as a value, units aside: 1200.5 of "$1,200.50", 25 of
    "twenty-five apples".

    "50 %" is 50, and "50 cents" is 50. None where the text states no number or several.
    """
    matches = list(_FIGURE.finditer(text))
    if not matches:
        spelled = list(_spelled(text))
        return spelled[0] if len(spelled) == 1 else None
    if len(matches) > 1:
        return None
    unit = (matches[0]["unit"] or "").lower()
    return _number(matches[0]) * _SCALES.get(unit, 1)


def plain_expression(text: str) -> str:
    """An expression in figures and signs that ``Notation`` reads.

    Money signs, thousands separators and units behind a number are left out, 12.5 % becomes (12.5 /
    100), and the signs that people use for products, quotients and differences become * / and -.
    """
    text = re.sub(r"[$€£¥]", "", text)
    text = (
        text.replace("×", "*")
        .replace("·", "*")
        .replace("÷", "/")
        .replace("−", "-")
        .replace("–", "-")
    )
    text = re.sub(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(])", " * ", text)
    text = re.sub(
        r"(?<![\w,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])",
        lambda match: match[0].replace(",", ""),
        text,
    )
    text = re.sub(r"(?<![\w.])\.(?=[0-9])", "0.", text)
    text = re.sub(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)\s*(?:%|percent\b)", r"(\1 / 100)", text)
    # no name can follow a number: what does is a unit
    return re.sub(r"(?<![\w.])([0-9.]+)\s+[A-Za-z]+(?=\s*(?:[-+*/)]|$))", r"\1", text).strip()


def decimal_text(value: int | Fraction) -> str:
    """A number as people write it: 2.5 where that is exact and short, else 10/3."""
    if value.denominator == 1:
        return str(value.numerator)
    for digits in range(1, 13):
        if 10**digits % value.denominator == 0:
            scaled = abs(value.numerator) * 10**digits // value.denominator
            whole, part = divmod(scaled, 10**digits)
            return f"{'-' if value < 0 else ''}{whole}.{part:0{digits}d}"
    return str(value)


def _number(match: re.Match[str]) -> Fraction:
    sign = -1 if match["sign"] or match["minus"] else 1
    if match["top"] and not int(match["bottom"]):
        return Fraction(0)  # "3/0" states nothing that could be computed with
    if match["top"]:
        return sign * (
            Fraction(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
        )
    return sign * Fraction(match["plain"].replace(",", ""))


def _spelled(text: str) -> Iterator[Fraction]:
    """Numbers written in words: "two hundred and five" is 205, "twenty-five" is 25, "two, three"
    are two numbers.
    """
    total: int | None = None
    for token in [*re.findall(r"[a-z]+|[^a-z\s-]", text.lower()), ""]:
        if token == "and" and total is not None and total >= 100:
            continue
        value = _SPELLED.get(token)
        if total is not None and value is not None and _continues(total, value):
            total += value
        elif total is not None and (scale := _SCALES.get(token)):
            low = total % 1000 if scale == 100 else total
            total += low * (scale - 1)
        else:
            if total is not None:
                yield Fraction(total)
            total = _SCALES.get(token) if value is None and token != "k" else value


def _continues(total: int, value: int) -> bool:
    """Whether a word goes on with the number so far: "five" behind "twenty" or "hundred", "twenty"
    behind "hundred".
    """
    return (total % 10 == 0 and total % 100 >= 20 and 0 < value < 10) or (
        total >= 100 and total % 100 == 0
    )
