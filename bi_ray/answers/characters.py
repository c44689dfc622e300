"""One form for characters that mean the same, and different ones for those that do not.

Unicode's compatibility form (NFKC) turns 10⁶ into 106, 2³ into 23, H₂O into H2O, and ① into 1. Here
raised and lowered characters keep their meaning (10^6, H_2O), fractions stay fractions, and circled
characters stay as they are.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import groupby

_SAME = {
    # hyphens, the en dash, and the minus sign
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    "\u2044": "/",
    "\u00ba": "\N{DEGREE SIGN}",  # the ordinal indicator, which many keyboards have in its place
    "\u066b": ".",  # Arabic decimal and thousands separators
    "\u066c": ",",
    **dict.fromkeys("\u00ad\u200b\u200e\u200f\u2060\ufeff", ""),  # invisible characters
}
_MARKS = {"<super>": "^", "<sub>": "_"}
# a fraction of raised and lowered digits, after both were spelled out
_SLASHED = re.compile(r"\^([0-9]{1,9})/_([0-9]{1,9})")


def one_form(text: str) -> str:
    """A text with one form for every character that has several.

    Digits of every script and width, ligatures, styled letters, dashes, quotation marks and spaces
    become the plain ones; 10⁻³ becomes 10^-3, H₂O becomes H_2O, and 1½ becomes 1 1/2.
    """
    if text.isascii():
        return text
    parts: list[str] = []
    for mark, characters in groupby(unicodedata.normalize("NFC", text), _mark):
        spelled = "".join(map(_spelled, characters))
        if spelled:
            parts.append(mark + spelled)
    joined = _SLASHED.sub(r" \1/\2", "".join(parts))
    return unicodedata.normalize("NFC", joined)


@lru_cache(maxsize=4096)
def _mark(character: str) -> str:
    """What is written before a run of raised or lowered characters; "" for any other character."""
    return _MARKS.get(_tag(character), "")


@lru_cache(maxsize=4096)
def _spelled(character: str) -> str:
    """A character in plain ones, without its mark."""
    if character.isascii():
        return character
    if character in _SAME:
        return _SAME[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    tag = _tag(character)
    if tag in ("", "<circle>"):
        return character
    codes = unicodedata.decomposition(character).split()[1:]
    plain = "".join(chr(int(code, 16)) for code in codes)
    if tag in _MARKS:
        return "".join(map(_spelled, plain))
    plain = one_form(plain)
    if tag == "<fraction>":
        return f" {plain}"
    return plain


def _tag(character: str) -> str:
    """How Unicode marks a character as a form of others: "<super>", "<wide>"; else ""."""
    tag = unicodedata.decomposition(character).partition(" ")[0]
    if tag.startswith("<"):
        return tag
    return ""
