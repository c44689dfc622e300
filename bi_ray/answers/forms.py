"""Forms in which people and models write one and the same answer, taken off layer by layer.

What is taken off a response's answer is taken off the right one too: an answer of which only one
side of a comparison loses its full stop is never right.
"""

from __future__ import annotations

import re

from bi_ray.answers.characters import one_form

_MOST_LAYERS = 8  # that anybody would write
_SPECIAL_TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>")
_PREFIX = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:(?:the|my)\s+)?(?:(?:final|correct|right)\s+){0,2}"
    r"answer(?:\s+is\b|\s*:)\s*",
    re.IGNORECASE,
)
_MARKS = (("**", "**"), ("`", "`"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textrm|textit|mathrm|mathbf|mbox)[ \t]*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_ZERO_DECIMALS = re.compile(r"([+-]?[0-9]{1,30})\.0{1,30}")
_POWER = re.compile(r"(-?)([0-9]{1,9}) ?\^ ?\{?([0-9]{1,3})\}?")
_MOST_DIGITS = 1000  # of a power that is worked out
_TRUTHS = ("true", "false")


def without_special_tokens(text: str) -> str:
    """A text without special tokens that a tokenizer let through, and without spaces around it."""
    return (_SPECIAL_TOKEN.sub("", text) if "<" in text else text).strip()


def without_prefix(text: str) -> str:
    """What follows "The answer is" at the start of a text; the text itself where it does not start
    so.
    """
    return text[match.end() :] if (match := _PREFIX.match(text)) else text


def readings(text: str) -> list[str]:
    r"""An answer as it is, then with one layer after the other taken off; none of them is empty.

    Layers: "The final answer is", emphasis (``**24**``), dollar signs, LaTeX's text and boxes (``\textbf{(E)}``), the
    brackets of a choice, and a full stop.
    """
    reading = without_special_tokens(text)
    found: list[str] = []
    while reading and reading not in found and len(found) <= _MOST_LAYERS:
        found.append(reading)
        reading = _one_layer_less(reading)
    return found


def _one_layer_less(text: str) -> str:
    if (rest := without_prefix(text)) != text:
        return rest
    if text.startswith(":"):  # "The answer is: 5"
        return text[1:].lstrip()
    for start, end in _MARKS:
        inner = text[len(start) : -len(end)]
        if text == f"{start}{inner}{end}" and start not in inner and end not in inner:
            return inner.strip()
    if (match := _COMMAND.match(text)) and closing_brace(text, match.end()) == len(text) - 1:
        return text[match.end() : -1].strip()
    if match := _CHOICE.fullmatch(text):
        return match[1]
    return text.removesuffix(".").rstrip()


def closing_brace(text: str, start: int) -> int | None:
    """Where the brace that is open at ``start`` closes; None where it does not. Escaped braces do
    not count.
    """
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def same_text(given: str, answer: str, ignore_case: bool = False) -> bool:
    """Whether two answers are the same text, but for layers (``readings``), spaces and forms of
    characters.

    Whole numbers are compared by value (3.0 is 3, and 10^6 is 1000000), and so are true and True.
    """
    wanted = {_canonical(reading, ignore_case) for reading in readings(answer)}
    return any(_canonical(reading, ignore_case) in wanted for reading in readings(given))


def _canonical(text: str, ignore_case: bool) -> str:
    text = " ".join(one_form(text).split())
    if match := _ZERO_DECIMALS.fullmatch(text):
        return match[1]
    match = _POWER.fullmatch(text)
    if match and len(match[2]) * int(match[3]) <= _MOST_DIGITS:
        return f"{match[1]}{int(match[2]) ** int(match[3])}"
    return text.casefold() if ignore_case or text.casefold() in _TRUTHS else text
