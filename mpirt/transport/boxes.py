"""Boxes: memory through which one rank hands small packets to another rank of its host, without a message.

The sender makes it, the receiver opens it once. Each packet has a box of its own: two flags, and what is in it right behind them,
in the same cache line if it is short. The receiver notes in a line of its own what it has taken. Guarantees:

- a receiver that has seen the flag of a step sees all that was written into the box before the flag was raised;
- nothing gets lost: a box is filled for a step when the receiver has taken the step before out of it. A flag alone, which says that
  nothing will come, may be raised one step ahead of that: there are two, which take turns, and two values, which take turns in each.

For the order of memory see ``board``: where that isn't `board.USABLE`, there are no boxes. A flag and a note are one byte each, so
they are never seen half written.

Owns: where things lie, what flags and notes say. Does not own: the memory itself (`window`), what is in a packet, when flags are
raised (`runtime.boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_LINE = 64  # bytes of a cache line
_BEFORE = 16  # of a box, in front of what is in it: the flags, and what aligns it


def note_of(step: int) -> int:
    """What the receiver notes when it has taken a packet of ``step``; steps count from 1, since 0 is what nobody has written."""
    return step & 3


class Boxes:
    """The boxes from one rank to another, as one of them sees them.

    Parameters
    ----------
    memory : of `nbytes_of` bytes, which both share
    sizes : of each packet in bytes

    Attributes
    ----------
    bytes : all of it: the flag of a packet in step ``n`` is at ``flags[packet] + n % 2``, the note at ``packet``
    flags : where the flags of each packet are
    contents : of each packet, to be written by the sender
    """

    __slots__ = ("bytes", "flags", "contents")

    def __init__(self, memory: npt.NDArray[np.uint8], sizes: Sequence[int]) -> None:
        self.bytes: memoryview = memory.data
        self.flags: list[int] = []
        self.contents: list[npt.NDArray[Any]] = []
        start = _lines(len(sizes))
        for nbytes in sizes:
            self.flags.append(start)
            self.contents.append(memory[start + _BEFORE : start + _BEFORE + nbytes])
            start += _lines(_BEFORE + nbytes)

    @staticmethod
    def nbytes_of(sizes: Sequence[int]) -> int:
        """How much memory they take."""
        return _lines(len(sizes)) + sum([_lines(_BEFORE + nbytes) for nbytes in sizes])


def _lines(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE
