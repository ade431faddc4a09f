"""Reductions on boards: the ranks of a host that have parts of one put them where all can read, and take what they need.

Two ways. *Whole*: each rank reads all that the others have, and reduces it for itself; its area is one of two that take turns, since
others may still read the last one. *In parts*: each rank reduces one part of the elements, straight into an array that lies on the
board once for all ranks, and waits until the others have done theirs. Guarantees:

- as for messages (``rendezvous``): nobody waits without a name, a deadline and a way out; whoever has nothing to give because
  something failed says so, and all that meet there end the step dead; after a failed step `Meetings.drain` waits until all have
  come, so that nothing is left behind;
- each element is reduced in the order of ranks, and the array that a rank gets never changes while anybody on it holds it or a view
  of it: if somebody on any rank does so when the next step comes, all ranks learn it from each other's flags, and each gets an array
  of its own in that step;
- no message, but one in the first step: the first of the ranks makes the board and tells the others where it is. If it can't, they
  ask again in the next step, and that one fails on it with the reason.

Owns: when flags are raised, who reads what. Does not own: the board (``transport.board``), what a reduction computes
(``ops.collective_ops``), which collectives meet (``compiler.exchange``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from mpirt import errors
from mpirt.compiler.program import WORD_NBYTES, Meet, Program
from mpirt.ops.collective_ops import combine
from mpirt.runtime.folding import FUNCTIONS, reduce_into
from mpirt.runtime.rendezvous import SOLE_HOLDER, DeadTensor, Wait, broken_promise, described, references
from mpirt.transport.base import Request, Transport
from mpirt.transport.board import DEAD, DONE, HERE, HOLDS, TURN, Board, turn_of
from mpirt.transport.window import Window, WindowView

Array = np.ndarray[Any, Any]

_LOOKS = range(300)  # about 20 us, which is what it takes to begin a wait
_YIELDS = range(500)  # see ``rendezvous.comes_soon``
_PAGE_NBYTES = 4096
_NOTHING: Final = np.empty(0, np.uint8)


class Meetings:
    """All meetings of a program on its rank: their steps have the same numbers.

    Parameters
    ----------
    program, transport, first_tag, wait : see ``executor.Executor``

    Attributes
    ----------
    ends : this rank's end of each, by the slot of its result
    makers : the ends, by the slot of what the rank brings: which it may make in an array of theirs
    """

    def __init__(self, program: Program, transport: Transport | None, first_tag: int, wait: Wait | None) -> None:
        self.ends: dict[int, Meeting] = {}
        self.makers: dict[int, Meeting] = {}
        self._transport = transport
        self._step = [0]
        sent: list[int] = []  # bytes of each thing that is read where it lies, in place of a message
        received: list[int] = []
        for meet in program.instructions:
            if isinstance(meet, Meet):
                assert transport is not None and wait is not None, f"nothing here can wait for {meet}"
                kind = _Whole if meet.whole else _InParts
                self.ends[meet.target] = self.makers[meet.source] = kind(transport, meet, first_tag, wait, self._step)
                for transfer in meet.transfers:
                    (sent if transfer.src_rank == meet.rank else received).append(transfer.nbytes or 0)
        self._all = list(self.ends.values())
        self._without_board = self._all
        self._wait = wait
        self._counts = len(sent), sum(sent), len(received), sum(received)

    def post(self) -> None:
        """Begin a step."""
        self._step[0] += 1
        if self._without_board:
            self._without_board = [meeting for meeting in self._without_board if meeting.invite()]
        assert self._transport is not None
        counters = self._transport.counters
        sent, sent_nbytes, received, received_nbytes = self._counts
        counters.windows_sent += sent
        counters.window_bytes_sent += sent_nbytes
        counters.windows_received += received
        counters.window_bytes_received += received_nbytes

    def drained(self) -> bool:
        """Whether all have come to all meetings of the last step."""
        return all([meeting.drained() for meeting in self._all])

    def drain(self) -> None:
        """Wait until they have."""
        for meeting in self._all:
            if not meeting.drained():
                assert self._wait is not None
                self._wait(meeting.drained, meeting.describe)


class Meeting:
    """This rank's end of a meeting.

    Attributes
    ----------
    call : comes to the meeting with this rank's array, and returns the reduction
    """

    _flags: Sequence[int]  # which flags this way has
    _turns: int  # areas of each rank
    _common: bool  # whether there is a common area
    call: Callable[[Any], Any]

    def __init__(self, transport: Transport, meet: Meet, first_tag: int, wait: Wait, step: list[int]) -> None:
        self._transport = transport
        self._meet = meet
        self._wait = wait
        self._step = step
        self._dtype = meet.dtype.np_dtype
        self._index = meet.ranks.index(meet.rank)
        self._others = [i for i in range(len(meet.ranks)) if i != self._index]
        self._lines = [Board.line(i) for i in self._others]
        self._awaited = {i: next(t for t in meet.transfers if t.src_rank == meet.ranks[i]) for i in self._others}
        self._board: Board | None = None
        self._memory: Window | WindowView | None = None  # holds it
        self._why = ""  # there is none
        self._word: Array = np.empty(WORD_NBYTES // 8, np.int64)
        self._letters: list[Request] = []
        self._tags = {t.dst_rank: first_tag + t.index for t in reversed(meet.transfers) if t.src_rank == meet.ranks[0]}

    def __del__(self) -> None:
        if hasattr(self, "_tags") and self._index == 0:
            self._transport.keep(self._letters)

    # ---- the board

    def invite(self) -> bool:
        """Before a step: tell the others where the board is, or be ready to hear it. False if all know: the last step ended with it."""
        ranks = self._meet.ranks
        if self._board is not None:
            if isinstance(self._memory, Window):
                self._transport.keep(self._letters)
                assert self._memory.state >= 0  # to look at it closes its descriptor, since others have opened it
            self._letters = []
            return False
        if self._index:
            self._letters = [self._transport.irecv(self._word, ranks[0], self._tags[self._meet.rank])]
            return True
        letter = _NOTHING
        try:
            window = self._memory = Window((self._nbytes(),), np.dtype(np.uint8))
            self._begin(window.array)
            letter = self._word
            letter[:] = window.serial, window.descriptor
        except OSError as error:
            self._why = str(error)
        self._letters = [self._transport.isend(letter, rank, self._tags[rank], WORD_NBYTES) for rank in ranks[1:]]
        return True

    def _nbytes(self) -> int:
        return Board.nbytes_of(len(self._meet.ranks), self._meet.shape, self._dtype, self._turns, self._common)

    def _begin(self, memory: Array) -> None:
        self._board = Board(memory, len(self._meet.ranks), self._meet.shape, self._dtype, self._turns, self._common)

    def _knows(self) -> bool:
        """Whether this rank knows if there is a board in this step; opens it."""
        if self._board is not None or self._index == 0 or not self._letters:
            return True
        if not self._letters[0].test():
            return False
        if self._letters[0].nbytes():
            serial, descriptor = self._word.tolist()
            pid = self._transport.pids[self._meet.ranks[0]]
            try:
                self._memory = WindowView(pid, descriptor, serial, (self._nbytes(),), np.dtype(np.uint8), readonly=False)
            except OSError as error:  # too many open files: the others wait for this rank, and it waits that this passes
                self._why = f"; its memory can't be opened: {error}"
                return False
            self._begin(self._memory.take())
        self._letters = []
        return True

    def _open(self) -> Board:
        """The board; waits for it.

        Raises
        ------
        ResourceExhaustedError
            If this rank couldn't make it.
        DeadTensor
            If another rank couldn't.
        """
        if not self._knows():
            self._wait(self._knows, self.describe)
        if self._board is not None:
            return self._board
        if self._index:
            raise DeadTensor
        raise errors.ResourceExhaustedError(
            f"{self._meet.name!r} needs {self._nbytes()} bytes of memory that ranks share: {self._why}",
            hint="give the job more memory, or switch shared memory off: MPIRT_SHM=0.",
        )

    # ---- flags

    def _missing(self, which: int, step: int) -> list[int]:
        """Those of the others whose flag for ``step`` isn't up."""
        assert self._board is not None
        flags, at, turn = self._board.flags, which + (step & 1), turn_of(step)
        return [i for i in self._others if flags[Board.line(i) + at] & TURN != turn]

    def _await(self, which: int, step: int) -> int:
        """Wait until all others have raised a flag; what they say with it.

        Raises
        ------
        DeadTensor
            If one of them has nothing to give.
        """
        assert self._board is not None
        flags, turn, said = self._board.flags, turn_of(step), 0
        for line in self._lines:
            flag = line + which + (step & 1)
            if flags[flag] & TURN != turn and not self._comes_soon(flags, flag, turn):
                self._wait(lambda flag=flag: flags[flag] & TURN == turn, self.describe)  # type: ignore[misc]
            said |= flags[flag]
        if said & DEAD:
            raise DeadTensor
        return said

    def _comes_soon(self, flags: memoryview, flag: int, turn: int) -> bool:
        """As ``rendezvous.comes_soon``; a flag is looked at faster than a message."""
        if not self._transport.crowded:
            for _ in _LOOKS:  # noqa: SIM110 - a generator would cost a look or two
                if flags[flag] & TURN == turn:
                    return True
            return False
        for _ in _YIELDS:
            os.sched_yield()
            if flags[flag] & TURN == turn:
                return True
        return False

    def _raise(self, which: int, step: int, more: int = 0) -> None:
        assert self._board is not None
        self._board.flags[Board.line(self._index) + which + (step & 1)] = turn_of(step) | more

    def send_dead(self) -> None:
        """Tell the others that nothing (more) comes in this step. Waits for nothing: without the board yet, `drained` tells them."""
        if self._knows() and self._board is not None:
            step, flags = self._step[0], self._board.flags
            for which in self._flags:
                if flags[Board.line(self._index) + which + (step & 1)] & TURN != turn_of(step):
                    self._raise(which, step, DEAD)

    def pending(self) -> bool:
        """Whether a message is still under way."""
        return self._index == 0 and not all([letter.test() for letter in self._letters])

    def drained(self) -> bool:
        """Whether all have come to the last step, and this rank too."""
        step = self._step[0]
        if not step:
            return True
        if not self._knows():
            return False
        self.send_dead()
        return self._board is None or not any([self._missing(which, step) for which in self._flags])

    def describe(self) -> str:
        """What is waited for."""
        late = self._others
        if self._board is not None:
            step = self._step[0]
            late = next((missing for which in self._flags if (missing := self._missing(which, step))), late)
        return described(self._awaited[late[0]]) + self._why

    def take(self) -> Array:
        """An array in which this rank may make what it brings, so that it needn't be copied."""
        raise NotImplementedError

    def _checked(self, value: Any) -> Array:
        """What this rank gives, as the plan says that it is."""
        array = value if value.__class__ is np.ndarray else np.asarray(value)
        if array.shape != self._meet.shape or array.dtype != self._dtype:
            raise broken_promise(next(t for t in self._meet.transfers if t.src_rank == self._meet.rank), array)
        return array


class _Whole(Meeting):
    """Each rank reduces all."""

    _flags = (HERE,)
    _turns = 2
    _common = False

    def __init__(self, transport: Transport, meet: Meet, first_tag: int, wait: Wait, step: list[int]) -> None:
        super().__init__(transport, meet, first_tag, wait, step)
        self.call = self._caller()

    def take(self) -> Array:
        """See `Meeting`."""
        if self._board is None:
            return np.empty(self._meet.shape, self._dtype)
        return self._board.areas[self._step[0] & 1][self._index]

    def _caller(self) -> Callable[[Any], Any]:
        """`call` as a closure, because a look at an attribute costs a tenth of what all of it takes."""
        steps, shape, dtype, check = self._step, self._meet.shape, self._dtype, self._checked
        how, number, two = self._meet.how, self._meet.number, len(self._meet.ranks) == 2 and self._meet.number == 1
        function, looks = FUNCTIONS[how], range(1) if self._transport.crowded else _LOOKS
        last = self._meet.last  # then memory for the result comes before the flag, since nothing may fail behind it
        flags: Any = None
        of_step: list[tuple[int, int, Array, list[int], list[Array]]] = []

        def call(value: Any) -> Any:
            nonlocal flags
            array = value if value.__class__ is np.ndarray and value.dtype is dtype and value.shape == shape else check(value)
            step = steps[0]
            if flags is None:
                flags = self._open().flags
                of_step.extend(map(self._of_step, range(4)))
            turn, mine, own, theirs, areas = of_step[step & 3]
            if array is not own:
                own[...] = array
            out = np.empty(shape, dtype) if last else None
            flags[mine] = turn
            if two:
                for _ in looks:
                    if flags[theirs[0]] == turn:
                        break
                else:
                    self._await(HERE, step)
                first, second = areas
                return function(first, second) if out is None else function(first, second, out=out)
            for flag in theirs:
                if flags[flag] != turn:
                    self._await(HERE, step)
                    break
            return combine(np, how, areas, number, out)

        return call

    def _of_step(self, step: int) -> tuple[int, int, Array, list[int], list[Array]]:
        """What a step needs: the value of its flags, this rank's flag and area, the others' flags, all areas. Four take turns."""
        assert self._board is not None
        at, areas = HERE + (step & 1), self._board.areas[step & 1]
        flags = [Board.line(i) + at for i in self._others]
        return turn_of(step), Board.line(self._index) + at, areas[self._index], flags, areas


class _InParts(Meeting):
    """Each rank reduces a part for all of them."""

    _flags = (HERE, DONE)
    _turns = 1
    _common = True

    def __init__(self, transport: Transport, meet: Meet, first_tag: int, wait: Wait, step: list[int]) -> None:
        super().__init__(transport, meet, first_tag, wait, step)
        self._parts = _parts(prod(meet.shape), len(meet.ranks), self._dtype.itemsize)
        self._result: list[Array] = []  # what lies on the board
        self._apart = False  # whether the last step's results were arrays of the ranks' own

    def take(self) -> Array:
        """See `Meeting`."""
        if self._board is None or self._apart:  # then others may still read out of it what this rank had reduced
            return np.empty(self._meet.shape, self._dtype)
        return self._board.areas[0][self._index]

    def _prepare(self) -> None:
        """Note where what lies on the board."""
        board, own = self._open(), self._parts[self._index]
        assert board.common is not None
        areas = self._areas = [area.reshape(-1) for area in board.areas[0]]
        self._on_board = board.areas[0][self._index]
        self._places = [(self._parts[i], areas[self._index][self._parts[i]]) for i in self._others]  # for what others reduce
        self._brought = [area[own] for area in areas]  # what all bring for this rank's part
        self._reduced = board.common.reshape(-1)[own]
        self._result = [board.read_only()]

    def call(self, value: Any) -> Array:
        """See `Meeting`."""
        array, step, index = self._checked(value), self._step[0], self._index
        if not self._result:
            self._prepare()
        flat = (array if array.flags.c_contiguous else np.ascontiguousarray(array)).reshape(-1)
        if array is not self._on_board:
            for part, place in self._places:
                place[...] = flat[part]
        held = references(self._result, 0) != SOLE_HOLDER
        self._raise(HERE, step, HOLDS if held else 0)
        brought = self._brought.copy()
        brought[index] = flat[self._parts[index]]
        self._apart = bool((self._await(HERE, step) | (HOLDS if held else 0)) & HOLDS)
        if self._apart:
            return self._finish_apart(brought)
        reduce_into(self._meet.how, brought, self._meet.number, self._reduced)
        self._raise(DONE, step)
        self._await(DONE, step)
        return self._result[0]

    def _finish_apart(self, brought: list[Array]) -> Array:
        """The rest, in an array of this rank's own: what the others reduce lies where they would have brought it to themselves."""
        step, areas, own = self._step[0], self._areas, self._parts[self._index]
        result: Array = np.empty(self._meet.shape, self._dtype)
        flat = result.reshape(-1)
        reduce_into(self._meet.how, brought, self._meet.number, flat[own])
        areas[self._index][own] = flat[own]
        self._raise(DONE, step)
        self._await(DONE, step)
        for i in self._others:
            flat[self._parts[i]] = areas[i][self._parts[i]]
        return result


def _parts(size: int, count: int, itemsize: int) -> list[slice]:
    """``size`` elements in ``count`` parts that begin on pages."""
    unit = _PAGE_NBYTES // itemsize
    pages = -(-size // unit)
    ends = [min(size, pages * i // count * unit) for i in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(ends[:-1], ends[1:], strict=True)]
