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


_CURRENCIES = {
    "$": "dollar",
    "€": "euro",
    "£": "pound",
    "¥": "yen",
    "₹": "rupee",
}
_SPELLINGS = {
    **_CURRENCIES,
    "usd": "dollar",
    "eur": "euro",
    "gbp": "pound",
    "jpy": "yen",
    "inr": "rupee",
    "kilogram": "kg",
    "gram": "g",
    "milligram": "mg",
    "kilometer": "km",
    "kilometre": "km",
    "meter": "m",
    "metre": "m",
    "centimeter": "cm",
    "centimetre": "cm",
    "millimeter": "mm",
    "millimetre": "mm",
    "liter": "l",
    "litre": "l",
    "milliliter": "ml",
    "millilitre": "ml",
    "second": "s",
    "sec": "s",
    "minute": "min",
    "hour": "h",
    "hr": "h",
    "feet": "ft",
    "foot": "ft",
    "inch": "in",
    "inche": "in",
    "mile": "mi",
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
_SIGNED = r"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥₹]?)\s*(?P<sign2>[+-]?)\s*"
_MIXED = r"(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)"
_POWER = (
    rf"(?:(?P<factor>{_DIGITS})\s*[*xX]\s*)?"
    r"(?P<base>\d{1,9})\s*\^\s*[{(]?\s*(?P<power>[+-]?\d{1,3})\s*[)}]?"
)
_PLAIN = (
    rf"(?P<number>{_DIGITS})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?"
    rf"(?:\s*/\s*(?P<divisor>{_DIGITS}))?"
)
_PERCENT = r"\s*(?P<percent>%|percent\b)?"
_UNIT = r"\s*(?P<unit>[$€£¥₹]|(?:[^\W\d_]|°)(?:[^\d,;:!?=]|(?<=[a-z^])[23]){0,30})?"
_QUANTITY = re.compile(
    rf"{_SIGNED}(?:{_MIXED}|{_POWER}|{_PLAIN}){_PERCENT}{_UNIT}",
    re.IGNORECASE,
)
_NO_UNITS = {"or", "and", "to", "not", "is", "x"}  # "5 or six" is not a number of "or six"
_MOST_CHARACTERS = 200  # of a number: reading a longer one takes too long


def read_quantity(text: str) -> Quantity | None:
    r"""The one number that a text is, None where it is anything else.

    Understood are signs, thousands separators (comma, space, underscore or apostrophe between
    groups of three), decimals, powers ("1.5e3", "5 × 10^3", "2³"; exponents up to 999), fractions
    ("3/4", ``\frac{3}{4}``), mixed numbers ("1 1/2"), percent, currencies before or after the
    number, units after it, and the name of an unknown before it ("x = 24"). The layers of
    ``forms.readings`` may be around it.
    """
    if len(text) > _MOST_CHARACTERS:
        return None
    for reading in readings(text):
        if quantity := _read(reading):
            return quantity
    return None


def _read(text: str) -> Quantity | None:
    match = _QUANTITY.fullmatch(_plain(text))
    if match is None or (match["sign"] and match["sign2"]):
        return None
    unit = match["unit"] or ""
    currency = match["currency"]
    if currency and unit in _CURRENCIES:
        return None
    if not _NO_UNITS.isdisjoint(unit.casefold().split()):
        return None
    try:
        value = _value(match)
    except (ZeroDivisionError, InvalidOperation):
        return None
    if "-" in match.group("sign", "sign2"):
        value = -value
    is_percent = match["percent"] is not None
    return Quantity(value, is_percent, _unit(unit) or _CURRENCIES.get(currency, ""))


def _plain(text: str) -> str:
    """A number without LaTeX commands and without the name of an unknown before it."""
    text = one_form(text)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = text.strip()
    if "=" in text:
        text = _NAME.sub("", text, count=1).strip()
    return text


def _value(match: re.Match[str]) -> Fraction:
    if match["whole"]:
        part = Fraction(int(match["over"]), int(match["under"]))
        return Fraction(match["whole"]) + part
    if match["base"]:
        factor = _fraction(match["factor"] or "1")
        power: Fraction = Fraction(match["base"]) ** int(match["power"])
        return factor * power
    divisor = _fraction(match["divisor"] or "1")
    scale = Fraction(10) ** int(match["exponent"] or 0)
    return _fraction(match["number"]) * scale / divisor


def _fraction(digits: str) -> Fraction:
    return Fraction(Decimal(re.sub(r"[, _]", "", digits)))


def _unit(text: str) -> str:
    """A unit in its singular and in one spelling."""
    name = " ".join(text.casefold().replace("^", "").split()).rstrip(".")
    is_plural = name.endswith("s") and not name.endswith("ss")
    if is_plural and len(name) > 2:
        name = name[:-1]
    return _SPELLINGS.get(name, name)


def same_quantity(given: str, answer: str, tolerance: float) -> bool:
    """Whether two texts are the same number.

    Two units have to be the same; a number without a unit may have any. "12 %" is both 12 and 0.12
    to a number without a percent sign: data sets write the answer to "what percentage?" either way.
    Texts that are not numbers have to be the same.

    Args:
        given: the response's answer.
        answer: the right one.
        tolerance: largest relative error; absolute where the right answer is 0.
    """
    number, right = read_quantity(given), read_quantity(answer)
    if number is None or right is None:
        return same_text(given, answer)
    if number.unit and right.unit and number.unit != right.unit:
        return False
    allowed_error = Fraction(tolerance) * (abs(right.value) or 1)
    values = [number.value]
    if number.percent and not right.percent:
        values.append(number.value / 100)
    elif right.percent and not number.percent:
        values.append(number.value * 100)
    return any(abs(value - right.value) <= allowed_error for value in values)
