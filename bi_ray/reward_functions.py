"""Reward functions to name in ``verifier.reward_function``, for checkpoints that do not know this
project's format.
"""

from __future__ import annotations

import re

_INTEGER = re.compile(r"-?\d+")


def last_number(question: str, answer: str, response: str) -> float:
    """1 where the last whole number that the response writes is the answer, else 0. ``1,000`` is
    read as 1000.
    """
    numbers = _INTEGER.findall(response.replace(",", ""))
    return float(bool(numbers) and int(numbers[-1]) == int(answer))
