"""Where the results of a program live: buffers that are used again in every step, or new arrays.

Elementwise functions of static shape run one behind the other are gathered into *segments*, whose results live in buffers of
the executor. Guarantees:

- a result is in a buffer only if nobody can hold it beyond its last use: it is not fetched, sent at most in a packet, which is
  a copy, and read only by kernels registered with ``memory="own"`` (they keep no input and return no view), also where they
  read a view of it;
- two results share a buffer only if their lifetimes don't overlap, or if the second is written over the first by the
  function that reads that for the last time;
- in a *chain* - functions over large arrays of one shape, run block by block - a result that only the chain reads has a
  block, not an array;
- the values are those of the same functions called one by one on whole arrays, to the last bit: what could change them
  (complex numbers over their own memory, arrays of another layout) is left out here or refused when the step runs.

Linear in instructions. Pure: the executor makes the buffers (``runtime.segments``).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from mpirt.compiler.exchange import Fold, Make, View
from mpirt.compiler.packets import is_small
from mpirt.compiler.program import HOST, NO_SLOT, Meet, Move, Program, Read, Recv, Run, Send, is_state
from mpirt.graph.graph import Operation, Tensor

BLOCK_NBYTES = 1 << 18  # of each array of a chain: two or three of them fit into a core's second cache
SMALL_NBYTES = 1 << 12  # to copy so few bytes costs less than to hand an array over
_REAL = "biuf"  # kinds of numbers whose functions give the same bits over their own memory and block by block


@dataclass(frozen=True, slots=True)
class Form:
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int = field(compare=False)
    nbytes: int = field(compare=False)


Call = tuple[int, str, tuple[int, ...], int]  # position, ufunc, slots of inputs, slot of the output


@dataclass(frozen=True, slots=True)
class Input:
    """What a segment takes from outside when it begins."""

    slot: int  # with the value, or with the variable that is read
    target: int  # the slot by which the calls know it
    position: int  # of the instruction that reads the variable; -1: it is a value
    form: Form


@dataclass(frozen=True, slots=True)
class Part:
    """Calls of a segment that run one by one, or, if ``block`` is not 0, all over so many elements, then over the next ones."""

    calls: tuple[Call, ...]
    block: int = 0


Home = tuple[int, Form]  # a buffer, and the form of the array in it


@dataclass(frozen=True, slots=True)
class Segment:
    """The instructions from ``first`` to ``last``, run as one.

    Attributes
    ----------
    parts : the calls, in order
    inputs : what is taken from outside; into a buffer if it has a home, else as it is
    outputs : results that others may keep: copies of their buffers, or new arrays if they have no home
    homes : buffers by slot; within a chain an array of one block
    told : what it reads where kernels were told to write it, which they needn't have done
    """

    first: int
    last: int
    parts: tuple[Part, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[int, Form], ...]
    homes: dict[int, Home]
    told: tuple[int, ...] = ()


@dataclass(slots=True)
class Buffers:
    """The segments of a program, and the buffers that it needs.

    Attributes
    ----------
    nbytes : of each buffer
    segments : in the order of the program
    kept : the homes of results that are read outside their segment
    held : slots whose values somebody may keep beyond their last use in the step
    into : by position, the slots whose kernels are told where to write: to the slot's home, or, if it has none, into the packet
        that it is sent in
    peak_nbytes : the most that the values of a step take at one time, all buffers included; without what kernels need while
        they run, and without variables, constants and feeds
    unknown : tensors whose size is only known at run time, so that they are missing there
    """

    nbytes: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    kept: dict[int, Home] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    into: dict[int, int] = field(default_factory=dict)
    peak_nbytes: int = 0
    unknown: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people (``MPIRT_DUMP_PROGRAM``)."""
        again = f"{sum(self.nbytes)} B of it in {len(self.nbytes)} buffers that every step uses again"
        lines = [f"memory: {self.peak_nbytes} B at most, {again}"]
        lines += [f"  and {name}, whose size is known at run time only" for name in self.unknown]
        place = partial(_place, self.kept)
        lines += [f"instruction {p} writes to {place(s)}{'' if s in self.kept else ' in its packet'}" for p, s in self.into.items()]
        for number, segment in enumerate(self.segments):
            homes = {**self.kept, **segment.homes}
            place = partial(_place, homes)
            lines.append(f"segment {number}: instructions {segment.first}-{segment.last}")
            for i in segment.inputs:
                lines.append(f"  take  {place(i.target)} = {'variable ' if i.position >= 0 else ''}s{i.slot}")
            for part in segment.parts:
                lines += [f"  in blocks of {part.block} elements:"] if part.block else []
                for _, ufunc, inputs, output in part.calls:
                    lines.append(f"  call  {place(output)} = {ufunc}({', '.join(map(place, inputs))})")
            for slot, _ in segment.outputs:
                lines.append(f"  give  s{slot}" + (f" = copy of {place(slot)}" if slot in homes else ""))
        return "\n".join(lines) + "\n"


def _place(homes: Mapping[int, Home], slot: int) -> str:
    return f"s{slot}[b{homes[slot][0]}]" if slot in homes else f"s{slot}"


def assign_buffers(program: Program) -> Buffers:
    """The segments and buffers of ``program``."""
    return _Assigner(program).assign()


# ---------------------------------------------------------------------------------------------- what a call can be


@lru_cache(maxsize=4096)
def _form(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
    size = prod(shape)
    return Form(shape, dtype, size, size * dtype.itemsize)


_Signature = tuple[str, Form, tuple[Form, ...]]  # ufunc, form of the result, forms of the inputs


def _form_of(tensor: Tensor) -> Form | None:
    static, dtype = tensor.static_shape, tensor.dtype.base_dtype
    if static is None or dtype.kind == "O":
        return None
    shape = tuple([size for size in static if size is not None])
    return _form(shape, dtype.np_dtype) if len(shape) == len(static) else None


def signature_of(run: Run) -> tuple[str, Form, tuple[Form, ...]] | None:
    """The ufunc that an operation is, and the forms of its result and inputs; None if it is none of static shapes on a CPU."""
    return _Signatures().of(run)


class _Signatures:
    """Of the calls of one program; most of its operations have one of few."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], _Signature | None] = {}

    def of(self, i: Run) -> _Signature | None:
        """None if the operation is not a ufunc of static shapes on a CPU that gives what its types and shapes promise."""
        op = i.op
        if i.device.type != "CPU" or not op.definition.kernels["CPU"].direct or NO_SLOT in i.outputs:
            return None
        out = op.outputs[0]
        parts: list[Any] = [op.type, out.dtype.enum, out.static_shape]
        for tensor in op.inputs:
            parts.append(tensor.dtype.enum)
            parts.append(tensor.static_shape)
        key = tuple(parts)
        if key not in self._known:
            self._known[key] = _signature(op)
        return self._known[key]


def _signature(op: Operation) -> _Signature | None:
    name = op.definition.kernels["CPU"].direct
    ufunc = getattr(np, name)
    out = _form_of(op.outputs[0])
    inputs = [_form_of(t) for t in op.inputs]
    known = tuple(form for form in inputs if form is not None)
    if not isinstance(ufunc, np.ufunc) or ufunc.nout != 1 or out is None or len(known) != len(inputs):
        return None
    if any(form.dtype.isbuiltin != 1 for form in (out, *known)):
        return None
    if ufunc.resolve_dtypes((*[form.dtype for form in known], None))[-1] != out.dtype:
        return None
    if np.broadcast_shapes(*[form.shape for form in known]) != out.shape:
        return None
    return name, out, known


# ---------------------------------------------------------------------------------------------- the pass


@dataclass(slots=True)
class _Draft:
    """A segment that is being gathered."""

    first: int = 0
    calls: list[Call] = field(default_factory=list)
    reads: dict[int, tuple[int, Read]] = field(default_factory=dict)  # by target, with their positions


@dataclass(frozen=True, slots=True)
class _Told:
    """An instruction whose kernel is told where to write its result."""

    first: int
    slot: int
    form: Form


class _Assigner:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.buffers = Buffers()
        self.forms: dict[int, Form] = {}  # of the slots that calls read or write
        self.constants = {slot for slot, op, _ in program.constants if op.attrs["value"].flags.c_contiguous}
        self.roots: dict[int, int] = {}  # of slots with views: the slot that they are views of
        self.held: set[int] = set()  # slots that somebody may keep
        self.packed: set[int] = set()  # slots that are sent in packets
        self.told: set[int] = set()  # slots with a home that kernels are told to write to
        self.staying: set[int] = set()  # slots that live on when the step has ended
        self.ends: dict[int, int] = {}  # position of the last use of a slot and all views of it; those that stay have none
        self.free: dict[int, list[int]] = {}  # buffers by size
        self.busy: list[tuple[int, int]] = []  # (last use, buffer) of what outlives its segment
        self.homes: dict[int, Home] = {}  # of the segment at hand
        self.copied: set[int] = set()  # those of its inputs that are copied into a buffer
        self.of_segment = [-1] * len(program.instructions)  # number of each instruction's segment

    def assign(self) -> Buffers:
        drafts = list(self._gather())
        self._find_holders()
        self.buffers.held = self.held
        items: list[_Draft | _Told] = [*drafts, *self._tellable()]
        for item in sorted(items, key=lambda i: i.first):
            while self.busy and self.busy[0][0] < item.first:
                self._release(heapq.heappop(self.busy)[1])
            if isinstance(item, _Draft):
                self._segment(item)
            else:
                self._tell(item)
        self._predict()
        return self.buffers

    # ---- which instructions

    def _gather(self) -> Iterator[_Draft]:
        """Runs of calls, with the reads of variables that belong to them."""
        signatures, draft = _Signatures(), _Draft()
        waiting: list[tuple[int, Read]] = []  # reads whose reader comes next
        forms = self.forms
        for position, i in enumerate(self.program.instructions):
            if isinstance(i, Read):
                waiting.append((position, i))
                continue
            signature = signatures.of(i) if isinstance(i, Run) else None
            belongs = signature is not None
            if waiting:
                belongs = belongs and all(isinstance(i, Run) and read.op is i.op for _, read in waiting)
            if draft.calls and not belongs:
                yield draft
                draft = _Draft()
            if signature is not None and isinstance(i, Run):
                own = waiting if belongs else []
                for at, read in own:
                    draft.reads[read.target] = at, read
                if not draft.calls:
                    draft.first = own[0][0] if own else position
                name, out, inputs = signature
                slots, output = i.inputs, i.outputs[0]
                draft.calls.append((position, name, slots, output))
                forms[output] = out
                for slot, form in zip(slots, inputs, strict=True):
                    forms[slot] = form
            if waiting:
                waiting = []
        if draft.calls:
            yield draft

    def _find_holders(self) -> None:
        """What may be held beyond its last use, and when that is."""
        roots, held = self.roots, self.held
        for i in self.program.instructions:
            if isinstance(i, Run):
                memory = i.op.definition.kernels[i.device.type].memory
                if memory == "own" and i.device.type == "CPU":
                    continue
                if memory == "view" and i.inputs:
                    roots[i.outputs[0]] = roots.get(i.inputs[0], i.inputs[0])
                else:
                    held.update(i.inputs)
            elif isinstance(i, View):
                roots[i.target] = roots.get(i.source, i.source)
            elif isinstance(i, Fold):
                if i.into is None:  # of a single input it may be that one
                    held.update(i.inputs)
            elif isinstance(i, Send) and is_small(i.transfer):  # it is copied into a packet, if it isn't made there
                if i.part is None and i.transfer.nbytes:
                    self.packed.add(i.source)
            elif isinstance(i, Move | Send):
                held.add(i.source)
            else:
                assert isinstance(i, (Read, Recv, Make, Meet)), f"who holds what {i} reads?"
        self.staying = {roots.get(slot, slot) for slot in self.program.fetches}
        held.update(self.staying)
        held.update([root for view, root in roots.items() if view in held])
        for position, slots in enumerate(self.program.frees):
            for slot in slots:
                self.ends[roots.get(slot, slot)] = position

    # ---- kernels that are told where to write

    def _tellable(self) -> Iterator[_Told]:
        """The kernels whose results can be had in an array of ours."""
        for position, i in enumerate(self.program.instructions):
            if isinstance(i, Run) and i.device.type == "CPU" and i.op.definition.kernels["CPU"].takes_out:
                (slot,), (tensor,) = i.outputs, i.op.outputs
                form = _form_of(tensor)
                if form is not None and slot != NO_SLOT and slot not in self.held:
                    yield _Told(position, slot, form)

    def _tell(self, told: _Told) -> None:
        self.buffers.into[told.first] = told.slot
        if told.slot not in self.packed:
            self.told.add(told.slot)
            self.homes = self.buffers.kept
            self._take(told.slot, told.form)
            heapq.heappush(self.busy, (self.ends[told.slot], self.homes[told.slot][0]))

    # ---- one segment

    def _segment(self, draft: _Draft) -> None:
        calls, inputs = self._inputs(draft)
        told = tuple(dict.fromkeys([slot for _, _, slots, _ in calls for slot in slots if slot in self.told]))
        own = [output for _, _, _, output in calls]
        outputs = [slot for slot in own if slot in self.held]
        last = calls[-1][0]
        parts = tuple(self._parts(calls))
        if not self._pays(parts, len(inputs), len(outputs)):
            return
        homes = self.homes = {}
        for i in inputs:
            if i.form.nbytes <= SMALL_NBYTES or i.form.size == 1:
                self._take(i.target, i.form)
        self.copied = set(homes)
        copies = [number for number, _ in homes.values()]
        for part in parts:
            if part.block:
                self._chain(part)
            else:
                self._one_by_one(part)
        for number in copies:
            self._release(number)
        for slot in own:
            if slot in homes:
                if slot in self.held:
                    self._release(homes[slot][0])
                elif self.ends[slot] > last:
                    heapq.heappush(self.busy, (self.ends[slot], homes[slot][0]))
                    self.buffers.kept[slot] = homes[slot]
        given = tuple([(slot, self.forms[slot]) for slot in outputs])
        self.buffers.segments.append(Segment(draft.first, last, parts, tuple(inputs), given, homes, told))

    def _inputs(self, draft: _Draft) -> tuple[list[Call], list[Input]]:
        """The calls and what they take from outside; a variable is read once."""
        found: dict[int, Input] = {}
        of_variable: dict[int, int] = {}  # target of the first read
        calls, own, reads, kept = [], set[int](), draft.reads, self.buffers.kept
        for call in draft.calls:
            position, name, slots, output = call
            for slot in slots:
                if slot in reads:
                    position_of_read, read = reads[slot]
                    target = of_variable.setdefault(read.source, slot)
                    if target != slot:
                        call = position, name, tuple([target if s == slot else s for s in call[2]]), output
                    if target not in found:
                        found[target] = Input(read.source, target, position_of_read, self.forms[target])
                elif slot not in own and slot not in found and slot not in self.constants and slot not in kept:
                    found[slot] = Input(slot, slot, -1, self.forms[slot])
            own.add(output)
            calls.append(call)
        return calls, list(found.values())

    def _parts(self, calls: list[Call]) -> Iterator[Part]:
        """Neighbours over large arrays of one shape make a chain."""
        for shape, group in itertools.groupby(calls, self._shape_in_blocks):
            part = tuple(group)
            if shape is None or len(part) == 1:
                yield Part(part)
            else:
                slots = {slot for call in part for slot in (*call[2], call[3])}
                yield Part(part, BLOCK_NBYTES // max(self.forms[slot].dtype.itemsize for slot in slots))

    def _shape_in_blocks(self, call: Call) -> tuple[int, ...] | None:
        """The shape of a call that can be part of a chain."""
        form = self.forms[call[3]]
        if form.nbytes <= BLOCK_NBYTES or form.dtype.kind not in _REAL:
            return None
        for slot in call[2]:
            other = self.forms[slot]
            if other.dtype.kind not in _REAL or other.shape != form.shape and other.size != 1:
                return None
        return form.shape

    def _pays(self, parts: Sequence[Part], num_inputs: int, num_outputs: int) -> bool:
        """Whether a segment costs less than its calls alone: a call saves about as much time as an input or output costs."""
        saved, needed = 0, 2 + num_inputs + num_outputs
        for part in parts:
            if part.block:
                return True
            saved += len(part.calls)
            for _, _, _, output in part.calls:
                if saved > needed:
                    return True
                if self.forms[output].nbytes > SMALL_NBYTES and output not in self.held:
                    saved += 2  # no memory to get and give back
        return saved > needed

    # ---- buffers

    def _take(self, slot: int, form: Form) -> None:
        """A free buffer for ``slot``."""
        free = self.free.get(form.nbytes)
        if free:
            number = free.pop()
        else:
            number = len(self.buffers.nbytes)
            self.buffers.nbytes.append(form.nbytes)
        self.homes[slot] = number, form

    def _release(self, number: int) -> None:
        self.free.setdefault(self.buffers.nbytes[number], []).append(number)

    def _one_by_one(self, part: Part) -> None:
        homes, held, ends, forms = self.homes, self.held, self.ends, self.forms
        for position, _, slots, output in part.calls:
            form = forms[output]
            dying = self._dying(slots, position)
            if output not in held:
                self._put(output, form, dying)
                if ends[output] == position:
                    dying.append(output)
            elif form.nbytes <= SMALL_NBYTES:
                self._put(output, form, dying)
            for slot in dying:
                self._release(homes[slot][0])

    def _chain(self, part: Part) -> None:
        homes, held, ends = self.homes, self.held, self.ends
        end = part.calls[-1][0]
        inside = set()
        for _, _, _, output in part.calls:
            if output not in held:
                if ends[output] <= end:
                    inside.add(output)
                else:
                    self._take(output, self.forms[output])
        whole: dict[int, None] = {}  # arrays of the segment that the chain reads for the last time: free when it has ended
        for position, _, slots, output in part.calls:
            dying = self._dying(slots, position)
            whole.update((slot, None) for slot in dying if slot not in inside)
            dying = [slot for slot in dying if slot in inside]
            if output in inside:
                self._put(output, _form((part.block,), self.forms[output].dtype), dying)
                if ends[output] == position:
                    dying.append(output)
            for slot in dying:
                self._release(homes[slot][0])
        for slot in whole:
            self._release(homes[slot][0])

    def _dying(self, slots: tuple[int, ...], position: int) -> list[int]:
        """Those of ``slots`` that have a buffer of this segment which is read for the last time at ``position``."""
        homes, held, ends = self.homes, self.held, self.ends
        dying = [s for s in slots if s in homes and ends.get(s) == position and s not in held and s not in self.copied]
        return dying if len(dying) < 2 else list(dict.fromkeys(dying))

    def _put(self, output: int, form: Form, dying: list[int]) -> None:
        """A buffer for a result: that of an input of the same form which dies there (taken out of ``dying``), or a free one."""
        if form.size > 1 and form.dtype.kind in _REAL:  # over itself, numpy takes its slow way for a single number
            for slot in dying:
                if self.homes[slot][1] == form:
                    dying.remove(slot)
                    self.homes[output] = self.homes[slot]
                    return
        self._take(output, form)

    # ---- how much memory

    def _predict(self) -> None:
        """The peak over the instructions: the buffers, and what is made anew in each step."""
        buffers = self.buffers
        change = [0] * (len(self.program.instructions) + 1)
        of_segment = self.of_segment
        for number, segment in enumerate(buffers.segments):
            of_segment[segment.first : segment.last + 1] = [number] * (segment.last + 1 - segment.first)
        for segment in buffers.segments:
            for slot, form in segment.outputs:
                self._count(change, segment.last if slot in segment.homes else segment.first, slot, form.nbytes)
        for position, i in enumerate(self.program.instructions):
            if of_segment[position] >= 0 or not isinstance(i, (Run, Recv, Move, Make, Fold)):
                continue
            for born, slot, tensor, nbytes in _made(i, position):
                if nbytes is None:
                    buffers.unknown.append(tensor)
                elif position not in buffers.into:  # else its memory stays
                    self._count(change, born, slot, nbytes)
        buffers.peak_nbytes = sum(buffers.nbytes) + max(itertools.accumulate(change))

    def _count(self, change: list[int], born: int, slot: int, nbytes: int) -> None:
        change[born] += nbytes
        if slot in self.ends and slot not in self.staying:
            end = self.ends[slot]
            number = self.of_segment[end]
            change[(self.buffers.segments[number].last if number >= 0 else end) + 1] -= nbytes


def _made(i: Run | Recv | Move | Make | Fold, position: int) -> Iterator[tuple[int, int, str, int | None]]:
    """What an instruction makes: since when it takes memory, its slot, its name, its bytes (None if unknown)."""
    if isinstance(i, Recv):
        if i.target != NO_SLOT and i.part is None:
            yield 0, i.target, i.transfer.name, i.transfer.nbytes  # its receive is posted when the step begins
    elif isinstance(i, Make):
        yield 0, i.target, f"s{i.target}", prod(i.shape) * i.dtype.size  # where receives go that are posted then
    elif isinstance(i, Fold):
        if i.into is None and i.labels:  # else it is small
            yield position, i.target, i.name, None
    elif isinstance(i, Move):
        if i.to_space == HOST:
            yield position, i.target, i.tensor.name, _nbytes(i.tensor)
    elif i.device.type == "CPU" and i.op.definition.kernels["CPU"].memory != "view":
        for slot, tensor in zip(i.outputs, i.op.outputs, strict=True):
            if not is_state(tensor):
                yield position, slot, tensor.name, _nbytes(tensor)


def _nbytes(tensor: Tensor) -> int | None:
    form = _form_of(tensor)
    return None if form is None else form.nbytes
