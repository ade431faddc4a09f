"""Message tags: who may use which.

The lower half belongs to the collective sessions, whose ranks all reserve alike. The upper half is shared out among the
ranks: the master service of a rank numbers the transfers of its sessions within its own part, so two masters never give
the same tag to one pair of ranks.
"""

from __future__ import annotations

import threading
from bisect import bisect

from mpirt import errors


class TagSpace:
    """A range of tags.

    Parameters
    ----------
    first, end : the tags ``first`` ... ``end - 1``
    """

    def __init__(self, first: int, end: int) -> None:
        self._next = self._first = first
        self._end = end
        self._free: list[tuple[int, int]] = []  # (first, count) of blocks that were given back, in order, no two of them neighbours
        self._lock = threading.Lock()

    @classmethod
    def collective(cls, max_tag: int) -> TagSpace:
        """The part of the collective sessions."""
        return cls(0, max_tag // 2)

    @classmethod
    def of_master(cls, max_tag: int, rank: int, size: int) -> TagSpace:
        """The part of the master service of ``rank``."""
        share = (max_tag - max_tag // 2) // size
        first = max_tag // 2 + rank * share
        return cls(first, first + share)

    def take(self, count: int) -> int:
        """First of ``count`` tags in a row.

        Raises
        ------
        ResourceExhaustedError
            If there are no more.
        """
        with self._lock:
            for i, (first, size) in enumerate(self._free):
                if size >= count:
                    self._free[i : i + 1] = [(first + count, size - count)] if size > count else []
                    return first
            first = self._next
            if first + count > self._end:
                raise errors.ResourceExhaustedError(
                    f"this job has used up its {self._end - self._first} message tags.",
                    hint="run the same fetches again instead of building new ones for each step, and close sessions that are done.",
                )
            self._next = first + count
            return first

    def holds(self, first: int, count: int) -> bool:
        """Whether ``count`` tags from ``first`` on belong to this space."""
        return self._first <= first and first + count <= self._end

    def give_back(self, first: int, count: int) -> None:
        """No message with these tags is under way any more."""
        with self._lock:
            i = bisect(self._free, (first, count))
            if i < len(self._free) and self._free[i][0] == first + count:
                count += self._free.pop(i)[1]
            if i and sum(self._free[i - 1]) == first:
                i -= 1
                first, count = self._free[i][0], self._free.pop(i)[1] + count
            if first + count == self._next:
                self._next = first
            else:
                self._free.insert(i, (first, count))
