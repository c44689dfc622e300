"""What responses have in common in all tasks with graphs: system prompt, tags, answer, lines."""

from __future__ import annotations

import re

from bi_ray.answers.extraction import SYSTEM_PROMPTS
from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.expression import value_of
from bi_ray.reasoning.trace import StepKind

SYSTEM_PROMPT = SYSTEM_PROMPTS["tag"]
THINK_START = "<think>\n"
THINK_END = "\n</think>\n"
ANSWER = "<answer> The final answer is {answer} </answer>"


def answer_pattern(value: str) -> re.Pattern[str]:
    """What reads ``ANSWER``; its one group is the answer.

    Args:
        value: regular expression of an answer.
    """
    return re.compile(_answer_source(value))


def response_pattern(value: str) -> re.Pattern[str]:
    """What reads a whole response that is one chain of thought and one answer; see above."""
    return re.compile(rf"\s*<think>.*?</think>\s*{_answer_source(value)}\s*", re.DOTALL)


def _answer_source(value: str) -> str:
    return re.escape(ANSWER).replace(r"\{answer\}", f"({value})")


def last_answer(response: str, pattern: re.Pattern[str]) -> str | None:
    """The answer in the last <answer>; None where there is none that ``pattern`` reads."""
    match = pattern.match(response, max(0, response.rfind("<answer>")))
    return match[1] if match else None


def inside_think(response: str) -> str:
    """The text between <think> and </think>; all of it where a tag is missing."""
    start = response.find("<think>")
    start = start + len("<think>") if start >= 0 else 0
    end = response.find("</think>")
    if end < 0:
        return response[start:]
    return response[start:end]


def read_verification(line: str, match: re.Match[str]) -> ParsedStep:
    """The step of a line that verifies a node.

    Args:
        line: the line.
        match: its groups are node, symbols, numbers (" = a = b"), value and target.
    """
    return ParsedStep(
        text=line,
        node=match["node"],
        kind=StepKind.VERIFY,
        value=value_of(match["value"]),
        symbols=match["symbols"],
        numbers=tuple(match["numbers"].split(" = ")[1:]),
        target=match["target"],
    )
