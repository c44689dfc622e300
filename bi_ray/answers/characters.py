"""One form for characters that mean the same, and none for those that do not.

Unicode's compatibility form (NFKC) makes 106 of 10⁶, 23 of 2³, H2O of H₂O, and 1 of ①. Here raised
and lowered characters keep what they mean (10^6, H_2O), fractions stay fractions, and circled
characters stay what they are.
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
    "\u00ba": "\N{DEGREE SIGN}",  # the ordinal indicator is what many keyboards have for it
    "\u066b": ".",  # Arabic decimal and thousands separators
    "\u066c": ",",
    **dict.fromkeys("\u00ad\u200b\u200e\u200f\u2060\ufeff", ""),  # nobody sees these
}
_MARKS = {"<super>": "^", "<sub>": "_"}
# what becomes of a fraction of raised and lowered digits
_SLASHED = re.compile(r"\^([0-9]{1,9})/_([0-9]{1,9})")


def one_form(text: str) -> str:
    """A text with one form for every character that has several.

    Digits of every script and width, ligatures, styled letters, dashes, quotation marks and spaces
    become the plain ones; 10⁻³ becomes 10^-3, H₂O becomes H_2O, and 1½ becomes 1 1/2.
    """
    if text.isascii():
        return text
    parts: list[str] = []
    for mark, group in groupby(unicodedata.normalize("NFC", text), _mark):
        spelled = "".join([_spelled(character) for character in group])
        parts.append(f"{mark}{spelled}" if spelled else "")
    return unicodedata.normalize("NFC", _SLASHED.sub(r" \1/\2", "".join(parts)))


@lru_cache(maxsize=4096)
def _mark(character: str) -> str:
    """What a raised or lowered character needs before it; characters with the same one in a row
    share it.
    """
    return _MARKS.get(_tag(character), "")


@lru_cache(maxsize=4096)
def _spelled(character: str) -> str:
    """A character by plain ones, without its mark."""
    if character.isascii():
        return character
    if (same := _SAME.get(character)) is not None:
        return same
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    tag = _tag(character)
    if not tag or tag == "<circle>":
        return character
    plain = "".join(
        [chr(int(code, 16)) for code in unicodedata.decomposition(character).split()[1:]]
    )
    if tag in _MARKS:
        return "".join(map(_spelled, plain))
    return f" {one_form(plain)}" if tag == "<fraction>" else one_form(plain)


def _tag(character: str) -> str:
    """How Unicode says that a character is a form of others: "<super>", "<wide>"; "" where it is
    none.
    """
    tag = unicodedata.decomposition(character).partition(" ")[0]
    return tag if tag.startswith("<") else ""
