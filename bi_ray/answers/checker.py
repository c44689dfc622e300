r"""Answers in free text: where a response says its own, and whether it is the right one.

Found: in the last ``<answer>...</answer>``, in the last ``\boxed{...}``, after the last ``####``, or it is the whole
response. Compared: as text, as numbers, as mathematics (math-verify), by a pattern, or by a function of the user.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Literal

from bi_ray.answers.characters import one_form
from bi_ray.answers.forms import readings, same_text, without_prefix, without_special_tokens
from bi_ray.answers.quantity import read_quantity, same_quantity
from bi_ray.config import AnswerConfig
from bi_ray.config.importing import load_object

Extract = Literal["tag", "boxed", "hashes", "response"]

SYSTEM_PROMPTS: dict[Extract, str] = {
    "tag": "Think step by step inside <think> and </think>, then write <answer> The final answer is ... </answer>.",
    "boxed": r"Think step by step, then put the final answer into \boxed{...}.",
    "hashes": "Think step by step, then write the final answer on a line of its own, after ####.",
    "response": "Answer with the answer alone.",
}
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAGGED = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
# A box that opens, a number or letter behind \boxed without braces, and the braces that are not
# escaped.
_OPENS = r"\\(?:boxed|fbox)(?![A-Za-z])"
_WORD = r"(?P<word>[^\s{}$\\]*[0-9][^\s{}$\\]*|[A-Za-z](?![^\s{}$\\.,]))"
_BOX = rf"(?P<box>{_OPENS}[ \t]*\{{)|{_OPENS}[ \t]*{_WORD}"
_BOXES = re.compile(rf"{_BOX}|\\(?!{_OPENS}).|(?P<brace>[{{}}])", re.DOTALL)
_FIRST_BOX = re.compile(_BOX)
# Of an answer: on longer ones, and on deeply nested ones, math-verify can take many seconds.
_MOST_MATH_CHARACTERS, _MOST_BRACKETS = 1000, 300


class AnswerError(ValueError):
    """A checker that failed: the response is neither right nor wrong."""


def find_answer(response: str, extract: Extract) -> str | None:
    """What a response gives as its answer, without spaces around it; None where there is none, or
    an empty one.

    It is as it was written but for a sentence around it: "The final answer is 5." gives 5.
    """
    found = without_special_tokens(_content(response, extract))
    if (rest := without_prefix(found)) != found:
        found = rest.removeprefix(":").removesuffix(".").strip()
    return found or None


def find_readings(response: str, extract: Extract) -> list[str]:
    """What a response gives as its answer, in every form in which it can be taken
    (``answer_forms.readings``).
    """
    return readings(_content(response, extract))


def _content(response: str, extract: Extract) -> str:
    """The place of the answer: what is there, "" where there is none. The time grows with the
    length alone.
    """
    if extract == "tag":
        start = response.rfind("<answer>", 0, max(0, response.rfind("</answer>")))
        if start < 0:
            return ""
        start += len("<answer>")
        return response[start : response.find("</answer>", start)]
    if extract == "boxed":
        return _last_boxed(response)
    if extract == "hashes":
        start = response.rfind("####")
        return response[start + 4 :].partition("\n")[0] if start >= 0 else ""
    return response


def _last_boxed(response: str) -> str:
    r"""Content of the last \boxed{...} or \fbox{...} that ends, or the word behind the last \boxed without braces."""
    if not (first := _FIRST_BOX.search(response)):
        return ""
    last = (-1, -1)  # start and end of the content
    opened: list[int | None] = []  # where the content of each open brace starts, if it is a box's
    for match in _BOXES.finditer(response, first.start()):
        if match["box"]:
            opened.append(match.end())
        elif match["brace"] == "{":
            opened.append(None)
        elif match["brace"]:
            start = opened.pop() if opened else None
            if start is not None:
                last = max(last, (start, match.start()))
        elif match["word"]:
            last = max(last, match.span("word"))
    return response[slice(*last)] if last[0] >= 0 else ""


def write_response(chain_of_thought: str, answer: str, extract: Extract) -> str:
    """A demonstration: the chain of thought, then the answer where ``find_answer`` looks for it."""
    thought = chain_of_thought.strip()
    if extract == "tag":
        return f"<think>\n{thought}\n</think>\n<answer> The final answer is {answer} </answer>"
    if extract == "boxed":
        return f"{thought}\nThe answer is \\boxed{{{answer}}}."
    return f"{thought}\n#### {answer}" if extract == "hashes" else f"{thought}\n{answer}"


def format_is_right(response: str, extract: Extract) -> bool:
    """Whether there is one answer at its place and, with tags, one chain of thought before it and
    nothing else.
    """
    if find_answer(response, extract) is None:
        return False
    if extract == "tag":
        return has_each_tag_once(response) and _TAGGED.fullmatch(response) is not None
    if extract == "boxed":
        return len(_FIRST_BOX.findall(response)) == 1
    return extract == "response" or response.count("####") == 1


def has_each_tag_once(response: str) -> bool:
    """Whether <think> and <answer> open and close once each.

    To be asked before a pattern looks for them: with many tags it would try all pairs of them.
    """
    return all(response.count(tag) == 1 for tag in _TAGS)


class AnswerChecker:
    """Says whether an answer is the right one.

    Args:
        config: how.
    """

    def __init__(self, config: AnswerConfig) -> None:
        self.config = config
        self._function: Callable[..., Any] | None = None  # loaded where it is asked first

    def prepare(self) -> None:
        """Import what a check needs, so that no time limit ends a check amid an import.

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
        if checker == "numeric" and read_quantity(answer) is None:
            return "the answer is no number, which checker numeric needs"
        if checker == "math" and _too_long_for_math(answer):
            return "the answer is too long for checker math; try checker exact"
        if checker == "math" and all(isinstance(part, str) for part in _parse_math(answer)):
            return "math-verify cannot read the answer; try checker exact"
        if checker == "function":
            self._load()
        return None

    def is_right(self, response: str, question: str, answer: str) -> bool:
        """Whether a response gives the right answer; not to find one in it is wrong.

        Raises:
            AnswerError: the user's function returned neither True nor False. What it raises goes
                through.
            ConfigError: it cannot be loaded.
        """
        config = self.config
        if config.checker == "function":
            return self._ask(response, question, answer)
        found = without_special_tokens(_content(response, config.extract))
        if not found:
            return False
        if config.checker == "numeric":
            return same_quantity(found, answer, config.tolerance)
        if config.checker == "math":
            return same_mathematics(found, answer)
        if config.checker == "regex":
            return self._matches(found, answer)
        return same_text(found, answer, config.ignore_case)

    def _matches(self, found: str, answer: str) -> bool:
        """Whether the group of the pattern's last match is the right answer, in any form of what
        was found.
        """
        for reading in readings(found):
            matches = list(re.finditer(self.config.pattern or "", reading))
            group = matches[-1][1] if matches else None
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
            self._function = load_object(
                self.config.function or "", f"task.answer.function: {self.config.function}"
            )
        return self._function


def same_mathematics(given: str, answer: str) -> bool:
    """Whether two texts, LaTeX or plain, mean the same by math-verify, or are the same.

    It sets no timer of its own here: its timers are alarm signals of whole seconds, which would
    take the place of the verifier's. Whoever calls this limits its time.
    """
    from math_verify import verify

    if same_text(given, answer):
        return True
    if _too_long_for_math(given) or _too_long_for_math(answer) or _differ_in_base(given, answer):
        return False
    return bool(verify(_parse_math(answer), _parse_math(given), timeout_seconds=None))


def _too_long_for_math(text: str) -> bool:
    return len(text) > _MOST_MATH_CHARACTERS or sum(map(text.count, "{[(")) > _MOST_BRACKETS


_BASED = re.compile(r"([0-9A-Za-z]+)_\{?([0-9]+)\}?")  # 2516_8
# What math-verify reads as something else: it sees 1 in 1 1/2, 2.5 in 2.5e3, and 10^1 2 in 10^12.
_FOR_MATH_VERIFY = (
    (re.compile(r"(?<![\w/.^_})])([0-9]+) ([0-9]+)/([0-9]+)(?![\w/])"), r"\1\\frac{\2}{\3}"),
    (
        re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})(?!\w)"),
        r"\1 \\times 10^{\2}",
    ),
    (re.compile(r"([\^_])([+-]?[0-9]{2,}|[+-][0-9])"), r"\1{\2}"),
)
_SPACED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+")


def _differ_in_base(given: str, answer: str) -> bool:
    """Whether both are numbers that name their base, and not the same one; math-verify overlooks
    it.
    """
    found, right = (
        _BASED.fullmatch(readings(text)[-1]) if readings(text) else None for text in (given, answer)
    )
    return bool(found and right and found[2] != right[2])


def _parse_math(text: str) -> list[Any]:
    """What math-verify makes of an answer: expressions and texts; of one that it cannot read, no
    expression.
    """
    from math_verify import parse

    # it warns of the timers that it does not set
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    forms = readings(text)
    text = one_form(forms[-1]) if forms else ""
    for pattern, plain in _FOR_MATH_VERIFY:
        text = pattern.sub(plain, text)
    text = text.replace(" ", "") if _SPACED.fullmatch(text) else text
    return parse(f"${text.strip().strip('$')}$", parsing_timeout=None)
