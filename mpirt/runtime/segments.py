"""Segments of a program, bound to buffers: the part of a step that runs as a bare loop over calls.

A ``Lane`` is what one step at a time needs for itself: the buffers, and the calls bound to them. Guarantees: a segment gives
what its instructions give one by one, to the last bit; nothing from outside is held when it has run; a failure is its
instruction's.

What a segment can't know before it runs it checks: an input of another shape, type or layout than the static ones (a
variable that a graph gave another shape, a transposed matrix), or an array that a kernel returned instead of the one that it
was told to write to, makes this and all later segments of the step run their instructions one by one, as if there were no
segments.
Does not own: which results live in which buffers (``compiler.buffers``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from functools import partial
from operator import itemgetter, length_hint
from types import MappingProxyType
from typing import Any

import numpy as np

from mpirt.compiler.buffers import Buffers, Form, Home, Segment
from mpirt.compiler.program import NO_SLOT
from mpirt.runtime.calls import ALL, Instruction, spread, writing_to

Array = np.ndarray[Any, Any]
_Call = tuple[Callable[..., Any], tuple[Any, ...]]

_NOWHERE: Mapping[int, Callable[[], Array]] = MappingProxyType({})
_NOTHING: Mapping[int, Array] = MappingProxyType({})
_ALIGNMENT = 64  # a cache line


def joined() -> None:
    """Function of an instruction that the one before it stands for: it is left out."""
    raise AssertionError("an instruction that another one stands for")


class Lane:
    """The instructions of a program with its segments bound to buffers of their own.

    Parameters
    ----------
    buffers : which results live where
    code, template : of the program
    produced : for slots whose values are wanted in arrays of somebody else's, what gives these (``WindowOutgoing.buffer``)
    lent : by slot, the arrays of somebody else's in which values come (``IncomingPacket.lend``)
    placed : by slot, arrays of somebody else's into which kernels write their results (``OutgoingPacket.place``)
    own_context : see ``context``

    Attributes
    ----------
    code : instructions of the step at hand, which are ``whole`` or ``careful``; that of a segment has the segment as its function
    whole : with all that is known bound to them
    careful : the same, but results go into no array of ``placed``, because what was there is still being sent
    positions : of each of them in the program
    template : slots at the beginning of a step; behind the last one is what segments tell each other
    loaded : whether the constants of GPUs are there
    context : in which a step runs, with numpy's errors off: to enter it costs a tenth of ``numpy.errstate``. None where
        the user's own functions are called, which expect theirs.
    """

    __slots__ = ("code", "whole", "careful", "positions", "template", "loaded", "context")

    def __init__(
        self,
        buffers: Buffers,
        code: Sequence[Instruction],
        template: Sequence[Any],
        produced: Mapping[int, Callable[[], Array]] = _NOWHERE,
        lent: Mapping[int, Array] = _NOTHING,
        placed: Mapping[int, Array] = _NOTHING,
        own_context: bool = False,
    ) -> None:
        self.context: Context | None = None
        if own_context:
            self.context = Context()
            self.context.run(partial(np.seterr, all="ignore"))
        arrays = _Arrays(buffers.nbytes)
        self.template = [*template, None]
        self.loaded = False
        self.code: list[Instruction] = []
        self.positions: list[int] = []
        for slot, home in buffers.kept.items():
            self.template[slot] = arrays.of(home)
        for slot, array in lent.items():
            self.template[slot] = array
        position = 0
        for segment in buffers.segments:
            self._append(code, position, segment.first)
            whole = code[segment.first : segment.last + 1]
            taken = {i.slot for i in segment.inputs}
            frees = tuple([slot for *_, slots in whole for slot in slots if slot in taken])
            self.code.append((BoundSegment(segment, arrays, self.template, whole, produced), ALL, -1, frees))
            self.positions.append(segment.first)
            position = segment.last + 1
        self._append(code, position, len(code))
        if buffers.into:
            self._tell(buffers.into, {slot: arrays.of(home) for slot, home in buffers.kept.items()}, self.positions)
        self.careful = [spread(i) for i in self.code]
        if placed:
            self._tell(buffers.into, placed, self.positions)
        self.whole = [spread(i) for i in self.code] if placed else self.careful
        self.code = self.whole

    def _tell(self, into: Mapping[int, int], places: Mapping[int, Array], positions: Sequence[int]) -> None:
        """Have kernels write to those places."""
        for index, position in enumerate(positions):
            place = places.get(into.get(position, NO_SLOT))
            if place is not None:
                call, ins, out, frees = self.code[index]
                self.code[index] = (writing_to(call, place), ins, out, frees)

    def _append(self, code: Sequence[Instruction], first: int, end: int) -> None:
        own = [position for position in range(first, end) if code[position][0] is not joined]
        self.code += [code[position] for position in own]
        self.positions += own

    def position(self, index: int) -> int:
        """Position in the program of what ``code[index]`` has reached."""
        call = self.code[index][0]
        return call.reached if isinstance(call, BoundSegment) else self.positions[index]


class _Arrays:
    """The buffers, seen as arrays."""

    def __init__(self, nbytes: Sequence[int]) -> None:
        self._memory = [_aligned(n) for n in nbytes]
        self._views: dict[Home, Array] = {}

    def of(self, home: Home) -> Array:
        """The array that a home is."""
        if home not in self._views:
            number, form = home
            self._views[home] = self._memory[number][: form.nbytes].view(form.dtype).reshape(form.shape)
        return self._views[home]


def _aligned(nbytes: int) -> Array:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


class BoundSegment:
    """A segment as a function of the slots.

    Operands that change from step to step - large inputs, new arrays - are *handed* to the calls in a list, one each.
    """

    __slots__ = ("reached", "_first", "_inputs", "_new", "_parts", "_copied", "_given", "_told", "_instructions")

    def __init__(
        self,
        segment: Segment,
        arrays: _Arrays,
        template: Sequence[Any],
        instructions: Sequence[Instruction],
        produced: Mapping[int, Callable[[], Array]],
    ) -> None:
        self.reached = segment.first
        self._first = segment.first
        self._instructions = instructions
        self._inputs: list[tuple[int, int, tuple[int, ...], np.dtype[Any], Array | None]] = []
        self._new: list[Callable[[], Array]] = []
        self._copied: list[tuple[int, Array]] = []
        self._given: list[tuple[int, int]] = []
        self._told = [(slot, template[slot]) for slot in segment.told]
        bound: dict[int, Any] = {slot: arrays.of(home) for slot, home in segment.homes.items()}
        for i in segment.inputs:
            self._inputs.append((i.slot, i.position, i.form.shape, i.form.dtype, bound.get(i.target)))
            if i.target not in bound:
                bound[i.target] = _Handed(sum(home is None for *_, home in self._inputs) - 1)
        num_inputs = sum(home is None for *_, home in self._inputs)
        for slot, form in segment.outputs:
            if slot in bound:
                self._copied.append((slot, bound[slot]))
            else:
                index = num_inputs + len(self._new)
                bound[slot] = _Handed(index)
                self._given.append((slot, index))
                self._new.append(produced.get(slot) or partial(np.empty, form.shape, form.dtype))
        self._parts: list[_Loop | _Blocks] = []
        for part in segment.parts:
            calls = []
            for position, ufunc, slots, output in part.calls:
                operands = [bound[slot] if slot in bound else template[slot] for slot in (*slots, output)]
                calls.append((position, _into(ufunc), tuple(operands)))
            self._parts.append(_Blocks(calls, part.block) if part.block else _Loop(calls))

    def __call__(self, values: list[Any]) -> None:
        """Run on the slots."""
        self.reached = self._first
        if values[-1] is not None:
            self._one_by_one(values)
            return
        for slot, place in self._told:
            if values[slot] is not place:
                self._give_up(values)
                return
        handed: list[Any] = []
        for slot, position, shape, dtype, home in self._inputs:
            value = values[slot]
            if position >= 0:
                self.reached = position
                value = value.read()
            if value.shape != shape or (value.dtype is not dtype and value.dtype != dtype) or not value.flags.c_contiguous:
                self.reached = self._first
                self._give_up(values)
                return
            if home is None:
                handed.append(value)
            else:
                home[...] = value
        for new in self._new:
            handed.append(new())
        for part in self._parts:
            try:
                part.run(handed)
            except BaseException:
                self.reached = part.reached
                raise
        for slot, array in self._copied:
            values[slot] = array.copy() if array.ndim else array[()]
        for slot, index in self._given:
            values[slot] = handed[index]

    def _give_up(self, values: list[Any]) -> None:
        values[-1] = "the static shapes don't hold"
        self._one_by_one(values)

    def _one_by_one(self, values: list[Any]) -> None:
        for call, ins, out, frees in self._instructions:
            values[out] = call(*[values[slot] for slot in ins])
            for slot in frees:
                values[slot] = None
            self.reached += 1


def _into(ufunc: str) -> Callable[..., Any]:
    """The ufunc with its output as last argument."""
    function: Callable[..., Any] = getattr(np, ufunc)
    if ufunc in ("maximum", "minimum"):  # with three arrays numpy suspects a mistake
        return lambda a, b, out: function(a, b, out=out)
    return function


class Producing:
    """A single ufunc that writes its result into somebody else's array, if its operands are as the static shapes promise.

    Parameters
    ----------
    ufunc, inputs : what to call, and the forms of its operands
    array : gives the array to write into, of the form of the result (``WindowOutgoing.buffer``)
    """

    __slots__ = ("_ufunc", "_forms", "_array")

    def __init__(self, ufunc: Callable[..., Any], inputs: Sequence[Form], array: Callable[[], Array]) -> None:
        self._ufunc = ufunc
        self._forms = [(form.shape, form.dtype) for form in inputs]
        self._array = array

    def __call__(self, *operands: Any) -> Any:
        """The result."""
        for operand, (shape, dtype) in zip(operands, self._forms, strict=True):
            if operand.shape != shape or operand.dtype != dtype:
                return self._ufunc(*operands)
        return self._ufunc(*operands, out=self._array())


class _Handed(int):
    """Stands for an operand that is handed over: its place in the list."""


class _Loop:
    """Calls one by one, each on whole arrays."""

    __slots__ = ("reached", "_calls", "_positions", "_changing")

    def __init__(self, calls: Sequence[tuple[int, Callable[..., Any], tuple[Any, ...]]]) -> None:
        self.reached = 0
        self._positions = [position for position, _, _ in calls]
        self._calls = [(ufunc, operands) for _, ufunc, operands in calls]
        self._changing = [
            (index, ufunc, operands)
            for index, (ufunc, operands) in enumerate(self._calls)
            if any(operand.__class__ is _Handed for operand in operands)
        ]

    def run(self, handed: Sequence[Array]) -> None:
        """Run all."""
        todo = self._calls
        if self._changing:
            todo = todo.copy()
            for index, ufunc, operands in self._changing:
                todo[index] = ufunc, tuple([handed[o] if o.__class__ is _Handed else o for o in operands])
        calls = iter(todo)
        try:
            for ufunc, operands in calls:
                ufunc(*operands)
        except BaseException:
            self.reached = self._positions[len(todo) - 1 - length_hint(calls)]
            raise


class _Blocks:
    """Calls over arrays of one shape, all of them over a block of elements, then over the next one."""

    __slots__ = ("reached", "_positions", "_calls", "_block", "_whole", "_local", "_single")

    def __init__(self, calls: Sequence[tuple[int, Callable[..., Any], tuple[Any, ...]]], block: int) -> None:
        self.reached = 0
        self._positions = [position for position, _, _ in calls]
        self._block = block
        every = {id(operand): operand for _, _, operands in calls for operand in operands}
        flat: dict[int, Any] = {key: o if o.__class__ is _Handed else o.reshape(-1) for key, o in every.items()}
        sizes = {key: 0 if o.__class__ is _Handed else o.size for key, o in every.items()}
        single = [key for key, size in sizes.items() if size == 1]
        local = [key for key, size in sizes.items() if size == block]
        whole = [key for key, size in sizes.items() if size not in (1, block)]  # they are larger than a block
        self._whole: list[Any] = [flat[key] for key in whole]  # to be cut
        self._local: list[Array] = [flat[key] for key in local]
        self._single: list[Array] = [flat[key] for key in single]
        place = {key: place for place, key in enumerate((*whole, *local, *single))}
        self._calls = [(ufunc, itemgetter(*[place[id(o)] for o in operands])) for _, ufunc, operands in calls]

    def run(self, handed: Sequence[Array]) -> None:
        """Run all."""
        whole: list[Array] = [handed[w].reshape(-1) if w.__class__ is _Handed else w for w in self._whole]
        size, block = whole[0].size, self._block
        rest = [*self._local, *self._single]
        calls: Iterator[Any] = iter(())
        try:
            for start in range(0, size, block):
                end = start + block
                if end > size:
                    rest = [*[array[: size - start] for array in self._local], *self._single]
                operands = [array[start:end] for array in whole]
                operands += rest
                calls = iter(self._calls)
                for ufunc, of in calls:
                    ufunc(*of(operands))
        except BaseException:
            self.reached = self._positions[len(self._calls) - 1 - length_hint(calls)]
            raise
