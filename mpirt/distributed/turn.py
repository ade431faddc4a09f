"""Turns: threads of one process that each start a short step elsewhere take turns, so that each finds its answer at once.

To wake a sleeping thread costs Python as much as two short steps. So the thread that runs starts its step, polls until the
answer is there, and goes on with its next one; the others sleep, and after some steps the turn is handed to the one that has
waited longest. So it is at once when a step turns out not to be short.
"""

from __future__ import annotations

import threading
from collections import deque

SHORT_S = 100e-6  # a step that takes no longer where it runs is short
_STEPS = 64  # a thread hands the turn over after so many, if another one waits
_LOOK_S = 2e-3  # the first that waits looks this often whether the turn was left lying, the second half as often


class Turn:
    """A lock whose holder may take it again at once, but not for ever."""

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._streak = 0

    def take(self) -> None:
        """Wait for the turn."""
        if self._held.acquire(False):
            self._streak += 1
            return
        bell = threading.Lock()
        bell.acquire()
        self._waiting.append(bell)
        look_s = _LOOK_S * len(self._waiting)
        try:
            while not bell.acquire(timeout=look_s):
                if self._held.acquire(False):  # then nobody can be handing it over
                    self._waiting.remove(bell)
                    break
        except BaseException:  # an interrupt of this thread
            try:
                self._waiting.remove(bell)
            except ValueError:  # it has been handed the turn
                self._held.release()
            raise
        self._streak = 1

    def give(self, goes_on: bool = True) -> None:
        """Give the turn up: leave it lying if this thread ``goes_on`` with another step soon and hasn't had many, else hand it over."""
        if self._waiting and (self._streak >= _STEPS or not goes_on):
            self._waiting.popleft().release()
        else:
            self._held.release()
