"""Filler: lines that make a demonstration as long as another one and say nothing, the control for
behaviors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from bi_ray.reasoning.check import ParsedStep
from bi_ray.reasoning.trace import FILLER_WORDS

_MOST_WORDS = 4096


def fill(
    response: str, steps: Sequence[ParsedStep], tokens: int, count_tokens: Callable[[str], int]
) -> str:
    """The response with filler lines between its own, evenly, as long as ``tokens`` and never
    longer.

    It ends up shorter by less than one word, and where single full stops are tokens not at all. A
    response that is as long already comes back as it is; so does one of a single line.

    Args:
        response: a demonstration.
        steps: its lines, each with its text.
        tokens: wanted length.
        count_tokens: length of a text.
    """
    places = _line_starts(response, steps)[1:]
    if not places or count_tokens(response) >= tokens:
        return response

    def length(words: int, stops: int) -> int:
        return count_tokens(_insert(response, places, words, stops))

    words = bisect_right(range(1, _MOST_WORDS), tokens, key=lambda count: length(count, 0))
    # a longer text may have fewer tokens, so the search may miss
    while words and length(words, 0) > tokens:
        words -= 1
    stops = 0
    while words and stops < 2 * tokens and length(words, stops + 1) <= tokens:
        stops += 1
    return _insert(response, places, words, stops) if words else response


def _line_starts(response: str, steps: Sequence[ParsedStep]) -> list[int]:
    starts, position = list[int](), 0
    for step in steps:
        starts.append(response.index(step.text, position))
        position = starts[-1] + len(step.text)
    return starts


def _insert(response: str, places: Sequence[int], words: int, stops: int) -> str:
    """The response with so many words dealt out to the places, each share a line of its own, stops
    behind the last.
    """
    lines, dealt = list[str](), 0
    for number in range(len(places)):
        share = words * (number + 1) // len(places) - dealt
        lines.append(" ".join(FILLER_WORDS[(dealt + i) % len(FILLER_WORDS)] for i in range(share)))
        dealt += share
    written = [number for number, line in enumerate(lines) if line]
    if stops and written:
        lines[written[-1]] += "." * stops
    parts, position = list[str](), 0
    for place, line in zip(places, lines, strict=True):
        parts += [response[position:place], f"{line}\n" if line else ""]
        position = place
    return "".join([*parts, response[position:]])
