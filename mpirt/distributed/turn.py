"""Turns: threads of one process that each start a short step elsewhere take turns, so that each finds its answer at once.

To wake a sleeping thread costs Python as much as several short steps. So the thread that runs starts its step, polls until
the answer is there, and goes on with its next one; the others sleep, and after a while the turn is handed to the one that
has waited longest.
"""

from __future__ import annotations

import threading
import time
from collections import deque

# A thread hands the turn over after this time, if another one waits. Longer than an interpreter's slice (5 ms): the next thread
# may wake up on the core where the other rank runs, and it takes the system a millisecond to part them.
_TURN_S = 10e-3
_LOOK_S = 5e-3  # a waiting thread looks this often whether the turn was left lying


class Turn:
    """A lock whose holder may take it again at once, but not for ever."""

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._until = 0.0
        self._taken = 0

    def take(self) -> None:
        """Wait for the turn."""
        if self._held.acquire(False):
            self._taken += 1
            return
        bell = threading.Lock()
        bell.acquire()
        self._waiting.append(bell)
        try:
            seen = -1
            while not bell.acquire(timeout=_LOOK_S):
                taken = self._taken
                # Whoever has taken it since the last look lays it down between two steps only, and is the faster for not being robbed.
                if taken == seen and self._held.acquire(False):  # then nobody can be handing it over
                    self._waiting.remove(bell)
                    break
                seen = taken
        except BaseException:  # an interrupt of this thread
            try:
                self._waiting.remove(bell)
            except ValueError:  # it has been handed the turn
                self._held.release()
            raise
        self._until = time.perf_counter() + _TURN_S
        self._taken += 1

    def give(self) -> None:
        """Give the turn up: leave it lying, or hand it over."""
        if self._waiting and time.perf_counter() > self._until:
            self._waiting.popleft().release()
        else:
            self._held.release()
