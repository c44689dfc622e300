"""Versions of the policy: which weights made a token."""

from __future__ import annotations

from typing import NamedTuple, Self


class PolicyVersion(NamedTuple):
    """Which weights made a sample. Versions only grow.

    Attributes:
        incarnation: rises by one at every restart of the learners.
        step: RL steps that the weights have had.
    """

    incarnation: int
    step: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The version that ``str(version)`` wrote.

        Raises:
            ValueError: ``text`` is not a version.
        """
        incarnation, step = text.split(".")
        return cls(int(incarnation), int(step))


class VersionSpan(NamedTuple):
    """A run of tokens that one policy made.

    Attributes:
        version: of that policy.
        tokens: how many there are.
    """

    version: PolicyVersion
    tokens: int
