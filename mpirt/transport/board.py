"""A board: memory in which a few ranks of one host compute something together, without a message.

The first of the ranks makes it, the others open it once. Each rank has a line of flags and an area that only it writes, and the
others read; there may be an area more, each part of which is written by one of them. Guarantees:

- a rank that has seen a flag of another one sees all that was written before the flag was raised;
- flags don't get lost: a rank raises one for a step, and none for the step after the next in its place, before all others have
  said that they are through with it. So two places that take turns, and two values that take turns in each, are enough.

That a rank is through with a step its next flags say: who runs in the same order on all ranks and looks at all flags of a step
before it begins another one needs nothing else (`runtime.meetings`).

Order of memory: x86 keeps stores in their order, and loads. Other processors don't, and Python has no fence that is cheap enough:
there nothing is `USABLE`, and messages do the work. A flag is one byte, so it is never seen half written.

Owns: where things lie, what flags mean. Does not own: the memory itself (`window`), when a flag is raised (`runtime.meetings`).
"""

from __future__ import annotations

import platform
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

USABLE: Final = platform.machine().lower() in ("x86_64", "amd64")

_LINE = 64  # bytes of a cache line: ranks that write side by side in one hold each other up
_FLAGS_NBYTES = 4096
HERE, DONE = 0, 2  # first of the two places of a flag: what this rank gives is in its area; what it does for the others is done

# What a flag says: the bits of TURN are 1 or 2, not what they were for the step before the last one, and beside them may be
TURN: Final = 3
DEAD: Final = 4  # nothing will come in this step
HOLDS: Final = 8  # somebody on this rank holds the result of an earlier step
_VALUE: Final = (1, 1, 2, 2)  # for step n modulo 4


def turn_of(step: int) -> int:
    """What the bits of TURN are in ``step``."""
    return _VALUE[step & 3]


class Board:
    """A board as one rank sees it.

    Parameters
    ----------
    memory : of `nbytes_of` bytes, which all ranks share
    count : how many ranks
    shape, dtype : of what each gives
    turns : areas of each rank, which take turns
    common : whether there is a common area

    Attributes
    ----------
    flags : the flag of rank ``i`` in step ``n`` is at ``line(i) + HERE + n % 2``
    areas : of each turn the array of each rank
    common : the common area, of ``shape``, to be written
    """

    __slots__ = ("flags", "areas", "common")

    def __init__(self, memory: Array, count: int, shape: tuple[int, ...], dtype: np.dtype[Any], turns: int, common: bool) -> None:
        self.flags: memoryview = memory[:_FLAGS_NBYTES].data
        nbytes, stride = prod(shape) * dtype.itemsize, _stride(shape, dtype)

        def area(number: int) -> Array:
            start = _FLAGS_NBYTES + number * stride
            return memory[start : start + nbytes].view(dtype).reshape(shape)

        self.areas = [[area(turn * count + i) for i in range(count)] for turn in range(turns)]
        self.common = area(turns * count) if common else None

    def read_only(self) -> Array:
        """The common area to be read: an array of which it can be counted how many hold it or a view of it."""
        assert self.common is not None
        return np.asarray(_ReadOnly(self.common))

    @staticmethod
    def nbytes_of(count: int, shape: tuple[int, ...], dtype: np.dtype[Any], turns: int, common: bool) -> int:
        """How much memory a board takes."""
        return _FLAGS_NBYTES + (turns * count + common) * _stride(shape, dtype)

    @staticmethod
    def line(index: int) -> int:
        """Where the flags of a rank begin."""
        return index * _LINE


def _stride(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return -(-prod(shape) * dtype.itemsize // _FLAGS_NBYTES) * _FLAGS_NBYTES


class _ReadOnly:
    """An array's memory as that of an array of its own, of which views are views, for numpy, which holds on to this."""

    __slots__ = ("array", "__array_interface__")

    def __init__(self, array: Array) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = interface["data"][0], True
        self.__array_interface__ = interface
