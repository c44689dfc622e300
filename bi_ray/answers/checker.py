"""Whether an answer in free text is the right one.

Answers are compared as text, as a number, as mathematics (math-verify), by a pattern, or by a
function of the user.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from bi_ray.answers.characters import one_form
from bi_ray.answers.extraction import find_content
from bi_ray.answers.forms import readings, same_text, without_special_tokens
from bi_ray.answers.quantity import read_quantity, same_quantity
from bi_ray.config.importing import load_object
from bi_ray.config.tasks import AnswerConfig

# of an answer: on longer or deeply nested ones math-verify can take many seconds
_MOST_MATH_CHARACTERS, _MOST_BRACKETS = 1000, 300


class AnswerError(ValueError):
    """A checker that failed: the response is neither right nor wrong."""


class AnswerChecker:
    """Decides whether an answer is right.

    Args:
        config: how answers are found and compared.
    """

    def __init__(self, config: AnswerConfig) -> None:
        self.config = config
        self._function: Callable[..., Any] | None = None  # loaded on first use

    def prepare(self) -> None:
        """Import what a check needs, so that a time limit cannot interrupt an import half-way.

        Raises:
            ConfigError: the function cannot be loaded.
        """
        if self.config.checker == "function":
            self._load()
        elif self.config.checker == "math":
            same_mathematics(r"\frac{1}{2}", "0.5")

    def fault_of(self, answer: str) -> str | None:
        """Why no response could ever be compared with this right answer; None where it can be.

        Raises:
            ConfigError: the function cannot be loaded.
        """
        checker = self.config.checker
        if checker == "function":
            self._load()
        elif checker == "numeric" and read_quantity(answer) is None:
            return "the answer is not a number, which checker numeric needs"
        elif checker == "math":
            return _math_fault_of(answer)
        return None

    def is_right(self, response: str, question: str, answer: str) -> bool:
        """Whether a response gives the right answer; a response without an answer is wrong.

        Raises:
            AnswerError: the user's function returned neither True nor False. Its own exceptions
                pass through.
            ConfigError: it cannot be loaded.
        """
        config = self.config
        if config.checker == "function":
            return self._ask(response, question, answer)
        given = without_special_tokens(find_content(response, config.extract))
        if not given:
            return False
        if config.checker == "numeric":
            return same_quantity(given, answer, config.tolerance)
        if config.checker == "math":
            return same_mathematics(given, answer)
        if config.checker == "regex":
            return self._matches(given, answer)
        return same_text(given, answer, config.ignore_case)

    def _matches(self, given: str, answer: str) -> bool:
        """Whether the group of the pattern's last match is the right answer, in any reading."""
        pattern = re.compile(self.config.pattern or "")
        for reading in readings(given):
            group: str | None = None
            for match in pattern.finditer(reading):
                group = match[1]
            if group is not None and same_text(group, answer, self.config.ignore_case):
                return True
        return False

    def _ask(self, response: str, question: str, answer: str) -> bool:
        verdict = self._load()(question=question, answer=answer, response=response)
        if verdict not in (0, 1):  # True and False are these, and so are 1.0 and numpy's
            raise AnswerError(
                f"{self.config.function} returned {verdict!r:.80}; return True or False "
                "(graded rewards: verifier.reward_function)"
            )
        return bool(verdict)

    def _load(self) -> Callable[..., Any]:
        if self._function is None:
            path = self.config.function or ""
            self._function = load_object(path, f"task.answer.function: {path}")
        return self._function


def _math_fault_of(answer: str) -> str | None:
    if _too_long_for_math(answer):
        return "the answer is too long for checker math; try checker exact"
    if set(map(type, _parse_math(answer))) <= {str}:
        return "math-verify cannot read the answer; try checker exact"
    return None


def same_mathematics(given: str, answer: str) -> bool:
    """Whether two texts, LaTeX or plain, mean the same by math-verify, or are the same.

    There is no time limit here: math-verify's timers are alarm signals of whole seconds, which
    would replace the verifier's. The caller limits the time.
    """
    from math_verify import verify

    if same_text(given, answer):
        return True
    if _too_long_for_math(given) or _too_long_for_math(answer):
        return False
    if _differ_in_base(given, answer):
        return False
    return bool(verify(_parse_math(answer), _parse_math(given), timeout_seconds=None))


def _too_long_for_math(text: str) -> bool:
    return len(text) > _MOST_MATH_CHARACTERS or sum(map(text.count, "{[(")) > _MOST_BRACKETS


_BASED = re.compile(r"([0-9A-Za-z]+)_\{?([0-9]+)\}?")  # 2516_8
# math-verify misreads these: it sees 1 in 1 1/2, 2.5 in 2.5e3, and 10^1 2 in 10^12
_FOR_MATH_VERIFY = (
    (
        re.compile(r"(?<![\w/.^_})])([0-9]+) ([0-9]+)/([0-9]+)(?![\w/])"),
        r"\1\\frac{\2}{\3}",
    ),
    (
        re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})(?!\w)"),
        r"\1 \\times 10^{\2}",
    ),
    (
        re.compile(r"([\^_])([+-]?[0-9]{2,}|[+-][0-9])"),
        r"\1{\2}",
    ),
)
_SPACED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+")


def _differ_in_base(given: str, answer: str) -> bool:
    """Whether both are numbers with different bases, which math-verify overlooks."""
    bases = {_base_of(given), _base_of(answer)} - {None}
    return len(bases) == 2


def _base_of(text: str) -> str | None:
    """The base that a number names, None where it names none."""
    match = _BASED.fullmatch(_innermost(text))
    return match[2] if match else None


def _innermost(text: str) -> str:
    """A text without any of its layers, "" where nothing is left."""
    return ["", *readings(text)][-1]


def _parse_math(text: str) -> list[Any]:
    """What math-verify reads in an answer: expressions and texts; only texts on failure."""
    from math_verify import parse

    # it warns about the timers that are not set
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    text = one_form(_innermost(text))
    for pattern, plain in _FOR_MATH_VERIFY:
        text = pattern.sub(plain, text)
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    return parse(f"${text.strip().strip('$')}$", parsing_timeout=None)
