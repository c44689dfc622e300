"""Versions of the policy."""

from __future__ import annotations

from typing import NamedTuple


def parse_version(text: str) -> PolicyVersion:
    """The version that ``str(version)`` wrote."""
    incarnation, step = text.split(".")
    return PolicyVersion(int(incarnation), int(step))


class PolicyVersion(NamedTuple):
    """Which weights made a sample. Versions only ever grow: the incarnation rises at every restart
    of the learners.
    """

    incarnation: int
    step: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"


class VersionSpan(NamedTuple):
    """A run of tokens that one policy made."""

    version: PolicyVersion
    tokens: int
