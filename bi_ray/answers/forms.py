"""The forms in which people and models write the same answer, taken off layer by layer.

What is taken off a response's answer is taken off the right one too: if only one side of a
comparison lost its full stop, the answer could never be right.
"""

from __future__ import annotations

import re

from bi_ray.answers.characters import one_form

_MOST_LAYERS = 8
_SPECIAL_TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>")
_PREFIX = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:(?:the|my)\s+)?(?:(?:final|correct|right)\s+){0,2}"
    r"answer(?:\s+is\b|\s*:)\s*",
    re.IGNORECASE,
)
_MARKS = (
    ("**", "**"),
    ("`", "`"),
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
)
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textrm|textit|mathrm|mathbf|mbox)[ \t]*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_ZERO_DECIMALS = re.compile(r"([+-]?[0-9]{1,30})\.0{1,30}")
_POWER = re.compile(r"(-?)([0-9]{1,9}) ?\^ ?\{?([0-9]{1,3})\}?")
_MOST_DIGITS = 1000  # of a power that is computed
_TRUTHS = ("true", "false")


def without_special_tokens(text: str) -> str:
    """A text without surrounding spaces and special tokens that a tokenizer let through."""
    if "<" in text:
        text = _SPECIAL_TOKEN.sub("", text)
    return text.strip()


def without_prefix(text: str) -> str:
    """A text without "The answer is" at its start."""
    match = _PREFIX.match(text)
    if match is None:
        return text
    return text[match.end() :]


def readings(text: str) -> list[str]:
    r"""An answer as it is, then with one layer after the other taken off; none of them is empty.

    Layers: "The final answer is", emphasis (``**24**``), dollar signs, LaTeX's text and boxes
    (``\textbf{(E)}``), the brackets of a choice, and a full stop.
    """
    reading = without_special_tokens(text)
    forms: list[str] = []
    while reading and reading not in forms and len(forms) <= _MOST_LAYERS:
        forms.append(reading)
        reading = _one_layer_less(reading)
    return forms


def _one_layer_less(text: str) -> str:
    rest = without_prefix(text)
    if rest != text:
        return rest
    if text.startswith(":"):  # "The answer is: 5"
        return text[1:].lstrip()
    for start, end in _MARKS:
        inner = text[len(start) : -len(end)]
        if text == f"{start}{inner}{end}" and start not in inner and end not in inner:
            return inner.strip()
    command = _COMMAND.match(text)
    if command and closing_brace(text, command.end()) == len(text) - 1:
        return text[command.end() : -1].strip()
    choice = _CHOICE.fullmatch(text)
    if choice:
        return choice[1]
    return text.removesuffix(".").rstrip()


def closing_brace(text: str, start: int) -> int | None:
    """Position of the brace that closes the one open at ``start``; None where nothing closes it.

    Escaped braces do not count.
    """
    depth = 1
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
        if depth == 0:
            return match.start()
    return None


def same_text(given: str, answer: str, ignore_case: bool = False) -> bool:
    """Whether two answers are the same text, but for layers (``readings``), spaces and forms of
    characters.

    Whole numbers are compared by value (3.0 is 3, and 10^6 is 1000000), and so are true and True.
    """
    accepted = {_canonical(reading, ignore_case) for reading in readings(answer)}
    given_forms = {_canonical(reading, ignore_case) for reading in readings(given)}
    return not accepted.isdisjoint(given_forms)


def _canonical(text: str, ignore_case: bool) -> str:
    text = " ".join(one_form(text).split())
    whole = _ZERO_DECIMALS.fullmatch(text)
    if whole:
        return whole[1]
    power = _POWER.fullmatch(text)
    if power:
        sign, base, exponent = power[1], power[2], int(power[3])
        if len(base) * exponent <= _MOST_DIGITS:
            return f"{sign}{int(base) ** exponent}"
    folded = text.casefold()
    if ignore_case or folded in _TRUTHS:
        return folded
    return text
