"""Numbers as answers write them, with their units: "$1,234.50", "12 %", "3/4 cup", "5 × 10³ km"."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

from bi_ray.answers.characters import one_form
from bi_ray.answers.forms import readings, same_text


class Quantity(NamedTuple):
    """A number as an answer writes it.

    Attributes:
        value: of the digits, exact: 12 for "12 %".
        percent: whether a percent sign follows.
        unit: in small letters and singular, "" where there is none.
    """

    value: Fraction
    percent: bool
    unit: str


_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_SPELLINGS = {
    **{"usd": "dollar", "eur": "euro", "gbp": "pound", "jpy": "yen", "inr": "rupee"},
    **_CURRENCIES,
    **{"kilogram": "kg", "gram": "g", "milligram": "mg"},
    **{"kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m"},
    **{"centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm"},
    **{"liter": "l", "litre": "l", "milliliter": "ml", "millilitre": "ml"},
    **{"second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h"},
    **{"feet": "ft", "foot": "ft", "inch": "in", "inche": "in", "mile": "mi"},
}
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\times|\\cdot|×|·"), "*"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)"), "\N{DEGREE SIGN}"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\,|\\!|')(?=[0-9]{3})"), ","),
    (re.compile(r"\\[,;:! ]|~"), " "),
)
_NAME = re.compile(r"(?:[^\W\d_]\w{0,20}\s*)?=\s*(?=[-+$€£¥₹.\d])")  # of an unknown: "x = 24"
_DIGITS = r"(?:\d{1,3}(?:[, _]\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_QUANTITY = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]?)\s*(?P<sign2>[+-]?)\s*"
    rf"(?:(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)"
    rf"|(?:(?P<factor>{_DIGITS})\s*[*xX]\s*)?(?P<base>\d{{1,9}})\s*\^\s*[{{(]?\s*(?P<power>[+-]?\d{{1,3}})\s*[)}}]?"
    rf"|(?P<number>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?(?:\s*/\s*(?P<divisor>{_DIGITS}))?)"
    r"\s*(?P<percent>%|percent\b)?"
    r"\s*(?P<unit>[$€£¥₹]|(?:[^\W\d_]|°)(?:[^\d,;:!?=]|(?<=[a-z^])[23]){0,30})?",
    re.IGNORECASE,
)
_NO_UNITS = {"or", "and", "to", "not", "is", "x"}  # "5 or six" is not a number of "or six"
_MOST_CHARACTERS = 200  # of a number: longer ones cost more than they can be worth


def read_quantity(text: str) -> Quantity | None:
    r"""The one number that a text is, None where it is anything else.

    Read: signs, thousands separators (comma, space, underscore or apostrophe between groups of three), decimals, powers
    ("1.5e3", "5 × 10^3", "2³"; exponents up to 999), fractions ("3/4", ``\frac{3}{4}``), mixed numbers ("1 1/2"),
    percent, currencies before or after it, units after it, and the name of an unknown before it ("x = 24"). The layers
    of ``answer_forms.readings`` may be around it.
    """
    if len(text) > _MOST_CHARACTERS:
        return None
    for reading in readings(text):
        if quantity := _read(reading):
            return quantity
    return None


def _read(text: str) -> Quantity | None:
    text = one_form(text)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = _NAME.sub("", text.strip(), count=1).strip() if "=" in text else text.strip()
    match = _QUANTITY.fullmatch(text)
    if not match or (match["sign"] and match["sign2"]):
        return None
    written = match["unit"] or ""
    if _NO_UNITS & set(written.casefold().split()) or (
        match["currency"] and written in _CURRENCIES
    ):
        return None
    try:
        value = _value(match)
    except (ZeroDivisionError, InvalidOperation):
        return None
    negative = "-" in (match["sign"], match["sign2"])
    unit = _unit(written) or _CURRENCIES.get(match["currency"], "")
    return Quantity(-value if negative else value, match["percent"] is not None, unit)


def _value(match: re.Match[str]) -> Fraction:
    if match["whole"]:
        return Fraction(match["whole"]) + Fraction(int(match["over"]), int(match["under"]))
    if match["base"]:
        power: Fraction = Fraction(match["base"]) ** int(match["power"])
        return power * (_fraction(match["factor"]) if match["factor"] else 1)
    value = _fraction(match["number"]) * Fraction(10) ** int(match["exponent"] or 0)
    return value / (_fraction(match["divisor"]) if match["divisor"] else 1)


def _fraction(digits: str) -> Fraction:
    return Fraction(Decimal(re.sub(r"[, _]", "", digits)))


def _unit(text: str) -> str:
    name = " ".join(text.casefold().replace("^", "").split()).rstrip(".")
    name = name[:-1] if len(name) > 2 and name.endswith("s") and not name.endswith("ss") else name
    return _SPELLINGS.get(name, name)


def same_quantity(given: str, answer: str, tolerance: float) -> bool:
    """Whether two texts are the same number, within ``tolerance`` of the right one (of 1 where that
    is 0).

    Two units have to be the same one; one unit is as good as none. "12 %" is both 12 and 0.12 to a
    number without a percent sign: data sets write the answer to "what percentage?" either way. The
    same text is the same.
    """
    found, right = read_quantity(given), read_quantity(answer)
    if found is None or right is None:
        return same_text(given, answer)
    if found.unit and right.unit and found.unit != right.unit:
        return False
    values = [found.value, found.value * (Fraction(1, 100) if found.percent else 100)]
    if found.percent == right.percent:
        del values[1]
    room = Fraction(tolerance) * (abs(right.value) or 1)
    return any(abs(value - right.value) <= room for value in values)
