"""Filler: lines that make a demonstration as long as another one and say nothing.

It is the control for behaviors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.trace import FILLER_WORDS

_MOST_WORDS = 4096


def fill(
    response: str, steps: Sequence[ParsedStep], tokens: int, count_tokens: Callable[[str], int]
) -> str:
    """The response with filler lines spread evenly between its own, at most ``tokens`` long.

    It ends up shorter by less than one word, and by nothing where single full stops are tokens. A
    response that is long enough already, or has a single line, comes back unchanged.

    Args:
        response: a demonstration.
        steps: its lines, each with its text.
        tokens: length to reach.
        count_tokens: length of a text in tokens.
    """
    positions = _line_starts(response, steps)[1:]
    if not positions or count_tokens(response) >= tokens:
        return response

    def length(words: int, stops: int) -> int:
        return count_tokens(_insert(response, positions, words, stops))

    words = bisect_right(range(1, _MOST_WORDS), tokens, key=lambda count: length(count, 0))
    # a longer text may have fewer tokens, so the search may overshoot
    while words and length(words, 0) > tokens:
        words -= 1
    if not words:
        return response
    stops = 0
    while stops < 2 * tokens and length(words, stops + 1) <= tokens:
        stops += 1
    return _insert(response, positions, words, stops)


def _line_starts(response: str, steps: Sequence[ParsedStep]) -> list[int]:
    starts: list[int] = []
    end = 0
    for step in steps:
        start = response.index(step.text, end)
        end = start + len(step.text)
        starts.append(start)
    return starts


def _insert(response: str, positions: Sequence[int], words: int, stops: int) -> str:
    """The response with a filler line at each position.

    ``words`` words are dealt out evenly; the last line ends with ``stops`` full stops.
    """
    vocabulary = cycle(FILLER_WORDS)
    lines: list[str] = []
    dealt = 0
    for number in range(1, len(positions) + 1):
        due = words * number // len(positions)
        lines.append(" ".join(islice(vocabulary, due - dealt)))
        dealt = due
    parts: list[str] = []
    end = 0
    for position, line in zip(positions, lines, strict=True):
        parts.append(response[end:position])
        if line:
            parts.append(f"{line}\n")
            last = len(parts) - 1
        end = position
    if stops and words:
        parts[last] = parts[last].replace("\n", "." * stops + "\n")
    return "".join([*parts, response[end:]])
