"""What has been drawn already, so that no problem is drawn twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_RECENT = 4096  # hashes kept in a set before they join the sorted ones


class Seen:
    """Hashes met so far and where, for a million in 12 MB: sorted arrays, and a small mapping of
    the newest ones.
    """

    def __init__(self, hashes: ArrayLike = ()) -> None:
        self._sorted = np.unique(np.asarray(hashes, dtype=np.uint64))
        self._places = np.zeros(len(self._sorted), dtype=np.uint32)
        self._recent: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, number: int) -> bool:
        """Remember a hash; False where it was known."""
        before = len(self)
        self.first(number, before)
        return len(self) > before

    def first(self, number: int, place: int) -> int:
        """Where a hash was met first, 0 of those given to the constructor; it is remembered with
        ``place`` if new.
        """
        if (known := self._recent.get(number)) is not None:
            return known
        at = np.searchsorted(self._sorted, np.uint64(number))
        if at < len(self._sorted) and self._sorted[at] == number:
            return int(self._places[at])
        self._recent[number] = place
        if len(self._recent) == _RECENT:
            new = np.fromiter(sorted(self._recent), dtype=np.uint64)
            places = np.fromiter((self._recent[int(one)] for one in new), dtype=np.uint32)
            between = np.searchsorted(self._sorted, new)
            self._sorted = np.insert(self._sorted, between, new)
            self._places = np.insert(self._places, between, places)
            self._recent.clear()
        return place
