"""What has been drawn already, so that no problem is drawn twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_RECENT = 4096  # hashes kept in a mapping before they join the sorted ones


class Seen:
    """The hashes met so far, each with a number of the caller's, for a million in 12 MB.

    They are in sorted arrays, the newest ones in a small mapping.

    Args:
        hashes: met already (64 bits), each with the number 0.
    """

    def __init__(self, hashes: ArrayLike = ()) -> None:
        self._sorted = np.unique(np.asarray(hashes, dtype=np.uint64))
        self._numbers = np.zeros(len(self._sorted), dtype=np.uint32)
        self._recent: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, hash_: int) -> bool:
        """Remember a hash; False where it was known."""
        before = len(self)
        self.first(hash_, before)
        return len(self) > before

    def first(self, hash_: int, number: int) -> int:
        """The number that a hash was first met with; a new one is remembered with ``number``."""
        known = self._recent.get(hash_)
        if known is not None:
            return known
        position = np.searchsorted(self._sorted, np.uint64(hash_))
        if position < len(self._sorted) and self._sorted[position] == hash_:
            return int(self._numbers[position])
        self._recent[hash_] = number
        if len(self._recent) == _RECENT:
            self._sort_recent()
        return number

    def _sort_recent(self) -> None:
        fresh = sorted(self._recent.items())
        hashes = np.array([hash_ for hash_, _ in fresh], dtype=np.uint64)
        numbers = np.array([number for _, number in fresh], dtype=np.uint32)
        positions = np.searchsorted(self._sorted, hashes)
        self._sorted = np.insert(self._sorted, positions, hashes)
        self._numbers = np.insert(self._numbers, positions, numbers)
        self._recent.clear()
