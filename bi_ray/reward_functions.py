"""Values for ``verifier.reward_function`` for checkpoints without this project's format."""

from __future__ import annotations

import re

_INTEGER = re.compile(r"-?\d+")


def last_number(question: str, answer: str, response: str) -> float:
    """1 if the last whole number of the response is the answer, else 0; ``1,000`` is 1000."""
    numbers = _INTEGER.findall(response.replace(",", ""))
    if not numbers:
        return 0.0
    return float(int(numbers[-1]) == int(answer))
