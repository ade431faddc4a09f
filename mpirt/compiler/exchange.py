"""How the ranks of a collective compute it together: ordinary messages, and instructions for what happens between them.

An exchange is one collective, or several reductions packed into a bucket (``buckets``), bound to ranks. `Exchange` decides
how it goes, lists its messages alike on every rank, and gives the instructions of one rank. Guarantees:

- what is reduced is reduced in one order: tensors of one rank as given, then the ranks in ascending order. Each element is
  reduced either on one rank, which sends it to the others, or on all in the same order: so all ranks have the same bits, and
  it makes no difference which way an exchange goes, or what else is in its bucket;
- every rank sends what it gives before it waits for anything (in a tree: for anything but what comes from below), so the place
  of an exchange in the plan's order is all that a proof against deadlock needs;
- a rank that needs no result sends, and receives nothing that only it would use. So whatever can fail is an ancestor of a
  fetch, and every rank learns of every failure.

The ways of a reduction, by size and number of ranks:

=========  ======================================================================================================
all pairs  every rank sends all it has to every rank that needs the result. One message time; up to `ALL_PAIRS_NBYTES`
chunks     each rank reduces a chunk and sends it to those that need it. Two message times, each byte twice in all; a chunk goes
           in segments, so that one is added while the next is on its way, and straight into its place in the result. In
           messages, not through windows: these would cost a copy more
tree       more ranks than `ALL_PAIRS_RANKS`: reduced in a tree of ranks, sent back down the tree: messages grow
           linearly with the ranks, message times with their logarithm
one        only one rank has inputs: it sends the result down a tree
=========  ======================================================================================================

Where all ranks have inputs, want the result and share memory, all pairs and chunks go without messages: each rank puts what it has on
a board (`transport.board`), and reads what it needs of the others'. Then large results lie there too, once for all ranks.

Pure: plans and ranks in, data out. Neighbours: ``program`` numbers the messages and owns the slots, ``runtime.folding`` runs
the instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from mpirt.cluster.task import Task
from mpirt.compiler import buckets
from mpirt.compiler.partition import Collective
from mpirt.dtypes import DType
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.shapes import is_static, num_elements
from mpirt.ops.collective_ops import GATHER, REDUCE_SCATTER

ALL_PAIRS_NBYTES = 1 << 15
ALL_PAIRS_RANKS = 8
SEGMENT_NBYTES = 1 << 21
KEPT_NBYTES = 1 << 16  # results from this size on are made in an array that is used again

Part = tuple[int, int]  # from and to, in elements of the flattened array


@dataclass(frozen=True, slots=True)
class Make:
    """An array of this step, without content, which the instructions and receives that follow fill; used again when nobody holds it."""

    target: int
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Make one array of several: reduced in their order, or behind one another; new, or in a part of the array in a slot."""

    name: str  # of the collective
    how: str  # sum, max, min; or JOIN
    number: int  # what a reduction is divided by; the axis of a join
    inputs: tuple[int, ...]
    parts: tuple[Part | None, ...]  # of each input
    target: int
    into: Part | None
    labels: tuple[str, ...] = ()  # where each input is from, if the shapes must be compared
    op: Operation | None = field(default=None, compare=False, repr=False)  # where the graph is at hand


@dataclass(frozen=True, slots=True)
class View:
    """The array in a slot, or a part of it, in another shape; a copy only if it doesn't lie in one piece."""

    source: int
    target: int
    part: Part | None
    shape: tuple[int, ...]


JOIN = "join"


MessageKey = tuple[str, int, int, int]


class Message(NamedTuple):
    """One message of an exchange."""

    role: str
    src: int
    dst: int
    number: int  # of the input, output, or segment
    tensor: Tensor  # that it is part of
    shape: tuple[int, ...] | None  # None if only known at run time
    in_place: bool = False  # received into a part of an array that is made for the step

    @property
    def key(self) -> MessageKey:
        """What tells it from all others of its exchange."""
        return self.role, self.src, self.dst, self.number


class Emitter(Protocol):
    """What an exchange asks of the program that it becomes part of."""

    def new_slot(self) -> int:
        """A slot for one more value."""

    def emit(self, instruction: Make | Fold | View) -> None:
        """Add an instruction."""

    def value(self, op: Operation, tensor: Tensor) -> int:
        """Slot in host memory with the value that ``tensor``, made on this rank, has for ``op`` here."""

    def send(self, message: MessageKey, slot: int, part: Part | None = None) -> None:
        """Start a message of this exchange."""

    def receive(self, message: MessageKey, into: tuple[int, Part] | None = None) -> int:
        """Wait for a message of this exchange; gives its slot, or that of the array into a part of which it came."""

    def meet(self, how: str, number: int, source: int) -> int:
        """Have all ranks of this exchange compute it on a board; gives the slot of the result."""

    def give(self, tensor: Tensor, slot: int) -> None:
        """Note where the value of an output is."""


class Exchange:
    """One or more collectives, carried out by ranks together. The same on every rank."""

    def __init__(
        self, collectives: Sequence[Collective], rank_of: Callable[[Task], int], memory: Sequence[int] | None = None
    ) -> None:
        first = collectives[0]
        self.collectives = tuple(collectives)
        self.op = first.op
        self.sources = tuple([rank_of(task) for task in first.sources])  # rank of each input
        self.targets = tuple([tuple(sorted({rank_of(task) for task in tasks})) for tasks in first.targets])  # ranks of each output
        self.senders = tuple(sorted(set(self.sources)))
        self.receivers = tuple(sorted({rank for ranks in self.targets for rank in ranks}))
        self.ranks = tuple(sorted({*self.senders, *self.receivers}))
        self.dtype = first.op.inputs[0].dtype.base_dtype
        self._memory = memory
        self._tasks = {rank_of(task): task for task in reversed(first.tasks)}  # of each rank the first that takes part

    def task_at(self, rank: int) -> Task:
        """A task of ``rank`` that takes part."""
        return self._tasks[rank]

    @property
    def name(self) -> str:
        """For people: the name of the collective, and how many more there are."""
        more = len(self.collectives) - 1
        return f"{self.op.name} and {more} more" if more else self.op.name

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of what each rank gives to a reduction: of a bucket its length; None if not known."""
        if len(self.collectives) > 1:
            return (sum(_size(c.op.inputs[0]) or 0 for c in self.collectives),)
        shapes = {t.static_shape for t in self.op.inputs}
        if len(shapes) != 1 or not is_static(next(iter(shapes))):
            return None
        return tuple([size for size in next(iter(shapes)) or () if size is not None])

    @cached_property
    def size(self) -> int:
        """Elements of ``shape``."""
        return num_elements(self.shape) or 0

    @cached_property
    def way(self) -> str:
        """How it goes: see the table above."""
        if self.op.type == GATHER:
            return "in place" if self._gathers_in_place else "pieces"
        if self.op.type == REDUCE_SCATTER:
            return "blocks"
        if len(self.senders) == 1:
            return "one"
        if self.shape is not None and self.size * self.dtype.size > ALL_PAIRS_NBYTES and len(self.ranks) <= ALL_PAIRS_RANKS:
            return "chunks"
        return "all pairs" if len(self.ranks) <= ALL_PAIRS_RANKS else "tree"

    @cached_property
    def meets(self) -> bool:
        """Whether its ranks do it on a board (see `transport.board`) rather than by messages."""
        if self._memory is None or self.way not in ("all pairs", "chunks") or self.senders != self.receivers:
            return False
        return self.size * self.dtype.size > 0 and len({self._memory[rank] for rank in self.ranks}) == 1

    @property
    def _gathers_in_place(self) -> bool:
        """Whether each input is one piece of the result, at a place that is known."""
        axis = self.op.attrs["axis"]
        output = self.op.outputs[0].static_shape
        static = all(is_static(t.static_shape) for t in self.op.inputs)
        return static and self.dtype.size > 0 and output is not None and all(size == 1 for size in output[:axis])

    # ---- messages

    def messages(self) -> Iterator[Message]:
        """All messages of all ranks, in an order that all ranks find alike."""
        tensor = self.op.outputs[0]
        if self.op.type == GATHER:
            for index, (src, piece) in enumerate(zip(self.sources, self.op.inputs, strict=True)):
                for dst in self.receivers:
                    if dst != src:
                        yield Message("piece", src, dst, index, piece, self._piece_shape(index), self.way == "in place")
        elif self.op.type == REDUCE_SCATTER:
            for dst in self.receivers:
                for number, (start, stop) in enumerate(self._blocks(dst)):
                    others = [src for src in self.senders if src != dst]
                    yield from (Message("block", src, dst, number, tensor, (stop - start,), in_place=True) for src in others)
        elif self.way == "one":
            yield from (Message("result", src, dst, 0, tensor, self.shape) for src, dst in _down(self._informed))
        elif self.way == "all pairs":
            yield from (Message("all", src, dst, 0, tensor, self.shape) for src in self.senders for dst in self.receivers if src != dst)
        elif self.way == "tree":
            yield from (Message("up", dst, src, 0, tensor, self.shape) for src, dst in _down(self.senders))
            yield from (Message("result", src, dst, 0, tensor, self.shape) for src, dst in _down(self._informed))
        else:
            for owner in self.senders:
                for number, (start, stop) in enumerate(self._segments(owner)):
                    shape = (stop - start,)
                    others = [src for src in self.senders if src != owner]
                    yield from (Message("to add", src, owner, number, tensor, shape, in_place=True) for src in others)
                    others = [dst for dst in self.receivers if dst != owner]
                    yield from (Message("sum", owner, dst, number, tensor, shape, in_place=True) for dst in others)

    @cached_property
    def _informed(self) -> tuple[int, ...]:
        """The tree down which the result goes: the first that sends, then the others that need it."""
        return (self.senders[0], *[rank for rank in self.receivers if rank != self.senders[0]])

    def _segments(self, owner: int) -> list[Part]:
        """What ``owner`` reduces, in pieces."""
        index, count = self.senders.index(owner), len(self.senders)
        start, stop = self.size * index // count, self.size * (index + 1) // count
        return _pieces(start, stop, SEGMENT_NBYTES // self.dtype.size)

    def _blocks(self, rank: int) -> list[Part]:
        """The parts of the input that ``rank`` needs reduced."""
        size = self.size // len(self.targets)
        found: list[Part] = []
        for index, ranks in enumerate(self.targets):
            if rank in ranks:
                start = found.pop()[0] if found and found[-1][1] == index * size else index * size
                found.append((start, (index + 1) * size))
        return found

    def _piece_shape(self, index: int) -> tuple[int, ...] | None:
        shape = self.op.inputs[index].static_shape
        if self.way == "in place":
            return (_size(self.op.inputs[index]) or 0,)
        return None if shape is None or None in shape else tuple([size for size in shape if size is not None])

    # ---- the instructions of one rank

    def emit(self, rank: int, program: Emitter) -> None:
        """Have ``rank`` do its part."""
        _Part(self, rank, program).emit()


def _size(tensor: Tensor) -> int | None:
    return num_elements(tensor.static_shape)


def _pieces(start: int, stop: int, size: int) -> list[Part]:
    """From ``start`` to ``stop`` in equal pieces of ``size`` at most."""
    count = max(1, -(-(stop - start) // size))
    ends = [start + (stop - start) * i // count for i in range(count + 1)]
    return list(zip(ends[:-1], ends[1:], strict=True))


def _down(ranks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(parent, child) of the binomial tree over ``ranks`` with the first as its root; a parent's nearest child last."""
    for child in range(1, len(ranks)):
        yield ranks[_above(child)], ranks[child]


def _above(position: int) -> int:
    """Position of the parent in the tree."""
    return position - (1 << (position.bit_length() - 1))


def _children(ranks: Sequence[int], rank: int) -> list[int]:
    """The children of ``rank`` in the tree over ``ranks``, in their order."""
    position = ranks.index(rank)
    steps = (1 << level for level in range(position.bit_length(), len(ranks).bit_length()))
    return [ranks[position + step] for step in steps if position + step < len(ranks)]


def _bucket_key(collective: Collective, rank_of: Callable[[Task], int]) -> object:
    """Equal for collectives that may share an exchange; None for one that must have its own."""
    kind = buckets.kind_of(collective.op)
    if kind is None:
        return None
    sources = tuple([rank_of(task) for task in collective.sources])
    return kind, sources, frozenset(rank_of(task) for task in collective.targets[0])


def exchanges(
    order: Sequence[Collective | None], rank_of: Callable[[Task], int], memory: Sequence[int] | None = None
) -> list[Exchange]:
    """The exchanges of a plan: collectives that are next to one another in its order, alike and independent share one.

    Parameters
    ----------
    order : the collectives of the plan in its order, with None where other operations lie between
    memory : as ``Transport.memory``, where boards can be used; None: messages everywhere
    """
    found: list[Exchange] = []
    bucket: list[Collective] = []
    key: object = None
    nbytes = 0
    for collective in [*order, None]:
        mine = None if collective is None else _bucket_key(collective, rank_of)
        size = 0 if mine is None or collective is None else buckets.nbytes_of(collective.op)
        if bucket and (mine is None or mine != key or nbytes + size > buckets.BUCKET_NBYTES or _depends(collective, bucket)):
            found.append(Exchange(bucket, rank_of, memory))
            bucket, nbytes = [], 0
        if collective is not None:
            bucket.append(collective)
            key, nbytes = mine, nbytes + size
    return found


def _depends(collective: Collective | None, bucket: Sequence[Collective]) -> bool:
    if collective is None:
        return True
    producers = {t.op for t in collective.op.inputs} | set(collective.op.control_inputs)
    return any(other.op in producers for other in bucket)


class _Part:
    """What one rank does in an exchange."""

    def __init__(self, exchange: Exchange, rank: int, program: Emitter) -> None:
        self.exchange = exchange
        self.rank = rank
        self.program = program
        self.sends = rank in exchange.senders
        self.receives = rank in exchange.receivers
        self.how = exchange.op.attrs.get("reduction", JOIN)
        self.divisor = exchange.op.attrs.get("divisor", 1)

    def emit(self) -> None:
        way = self.exchange.way
        if way in ("in place", "pieces"):
            self._gather()
        elif way == "blocks":
            self._scatter()
        elif way == "one":
            self._from_one()
        elif self.exchange.meets:
            self._give(self.program.meet(self.how, self.divisor, self._local()))
        elif way == "all pairs":
            self._all_pairs()
        elif way == "tree":
            self._tree()
        else:
            self._chunks()

    # ---- reductions

    def _from_one(self) -> None:
        result = self._local(self.divisor) if self.sends else self._recv("result", self._parent("result"), 0)
        self._give(self._pass_down(result))

    def _all_pairs(self) -> None:
        local = self._local() if self.sends else -1
        for dst in self.exchange.receivers:
            if self.sends and dst != self.rank:
                self._send("all", dst, 0, local)
        if self.receives:
            slots = [local if src == self.rank else self._recv("all", src, 0) for src in self.exchange.senders]
            self._give(self._fold(slots, self.divisor, self._labels()))

    def _tree(self) -> None:
        """Up: what comes from further ranks is added behind one's own; the order of additions is that of the tree."""
        senders = self.exchange.senders
        result = -1
        if self.sends:
            children = _children(senders, self.rank)
            slots = [self._local(), *(self._recv("up", child, 0) for child in children)]
            labels = () if self.exchange.shape is not None else tuple(self._label(rank) for rank in (self.rank, *children))
            root = self.rank == senders[0]
            result = self._fold(slots, self.divisor if root else 1, labels) if children or root else slots[0]
            if not root:
                self._send("up", self._parent("up"), 0, result)
        if self.receives or self.rank == senders[0]:
            if self.rank != senders[0]:
                result = self._recv("result", self._parent("result"), 0)
            result = self._pass_down(result)
            if self.receives:
                self._give(result)

    def _chunks(self) -> None:
        ex = self.exchange
        local = self._flat(self._local()) if self.sends else -1
        segments = {owner: ex._segments(owner) for owner in ex.senders}
        for number in range(max(map(len, segments.values()))):
            for owner in _after(ex.senders, self.rank):
                if self.sends and owner != self.rank and number < len(segments[owner]):
                    self._send("to add", owner, number, local, segments[owner][number])
        out = self._make((ex.size,))
        for number, part in enumerate(segments.get(self.rank, ())):
            self._add("to add", number, local, part, out, part)
            for dst in _after(ex.receivers, self.rank):
                if dst != self.rank:
                    self._send("sum", dst, number, out, part)
        if self.receives:
            for number in range(max(map(len, segments.values()))):
                for owner in ex.senders:
                    if owner != self.rank and number < len(segments[owner]):
                        self._recv("sum", owner, number, (out, segments[owner][number]))
            self._give(self._view(out, None, ex.shape or ()))

    def _scatter(self) -> None:
        ex = self.exchange
        local = self._flat(self._local()) if self.sends else -1
        for dst in _after(ex.receivers, self.rank):
            if self.sends and dst != self.rank:
                for number, block in enumerate(ex._blocks(dst)):
                    self._send("block", dst, number, local, block)
        size = ex.size // len(ex.targets)
        for number, (start, stop) in enumerate(ex._blocks(self.rank)):
            out = self._make((stop - start,))
            self._add("block", number, local, (start, stop), out, (0, stop - start))
            for index, ranks in enumerate(ex.targets):
                if self.rank in ranks and start <= index * size < max(stop, start + 1):
                    output = ex.op.outputs[index]
                    shape = tuple([s for s in output.static_shape or () if s is not None])
                    self.program.give(output, self._view(out, (index * size - start, (index + 1) * size - start), shape))

    def _add(self, role: str, number: int, local: int, part: Part, out: int, into: Part) -> None:
        """Reduce what all ranks have of one part, in the order of ranks."""
        ex = self.exchange
        others = [src for src in ex.senders if src != self.rank]
        size = part[1] - part[0]
        room = self._make((size * len(others),))
        places = {src: (size * i, size * (i + 1)) for i, src in enumerate(others)}
        for src, place in places.items():
            self._recv(role, src, number, (room, place))
        slots = tuple([local if src == self.rank else room for src in ex.senders])
        parts = tuple([places.get(src, part) for src in ex.senders])
        self.program.emit(Fold(ex.name, self.how, self.divisor, slots, parts, out, into, op=ex.op))

    # ---- gathering

    def _gather(self) -> None:
        ex = self.exchange
        in_place = ex.way == "in place"
        own = {i: self.program.value(ex.op, t) for i, (t, src) in enumerate(zip(ex.op.inputs, ex.sources, strict=True)) if src == self.rank}
        sizes = [_size(t) or 0 for t in ex.op.inputs] if in_place else []
        for dst in _after(ex.receivers, self.rank):
            for index, slot in own.items() if dst != self.rank else ():
                self._send("piece", dst, index, slot, (0, sizes[index]) if in_place else None)
        if not self.receives:
            return
        if not in_place:
            slots = [own[i] if i in own else self._recv("piece", src, i) for i, src in enumerate(ex.sources)]
            labels = tuple(f"{t.name!r} on {task}" for t, task in zip(ex.op.inputs, ex.collectives[0].sources, strict=True))
            target = self.program.new_slot()
            none = (None,) * len(slots)
            self.program.emit(Fold(ex.name, JOIN, ex.op.attrs["axis"], tuple(slots), none, target, None, labels, ex.op))
            self.program.give(ex.op.outputs[0], target)
            return
        out = self._make((sum(sizes),))
        start = 0
        for index, (src, size) in enumerate(zip(ex.sources, sizes, strict=True)):
            part = (start, start + size)
            if src == self.rank:
                self.program.emit(Fold(ex.name, "sum", 1, (own[index],), (None,), out, part, op=ex.op))
            start += size
        start = 0
        for index, (src, size) in enumerate(zip(ex.sources, sizes, strict=True)):
            if src != self.rank:
                self._recv("piece", src, index, (out, (start, start + size)))
            start += size
        shape = tuple([s for s in ex.op.outputs[0].static_shape or () if s is not None])
        self.program.give(ex.op.outputs[0], self._view(out, None, shape))

    # ---- parts of these

    def _local(self, divisor: int = 1) -> int:
        """Slot with what this rank gives: its own tensors reduced; of a bucket side by side."""
        ex = self.exchange
        if len(ex.collectives) == 1:
            return self._fold(self._own(ex.collectives[0]), divisor, self._labels(own=True))
        bucket, start = self._make((ex.size,)), 0
        for collective in ex.collectives:
            slots, size = self._own(collective), _size(collective.op.inputs[0]) or 0
            part = (start, start + size)
            self.program.emit(Fold(ex.name, self.how, divisor, tuple(slots), (None,) * len(slots), bucket, part, op=collective.op))
            start += size
        return bucket

    def _own(self, collective: Collective) -> list[int]:
        inputs = zip(collective.op.inputs, self.exchange.sources, strict=True)
        return [self.program.value(collective.op, t) for t, src in inputs if src == self.rank]

    def _fold(self, slots: Sequence[int], divisor: int, labels: tuple[str, ...]) -> int:
        """Slot with the reduction of whole arrays."""
        ex = self.exchange
        if len(slots) == 1 and divisor == 1:
            return slots[0]
        inputs, parts = tuple(slots), (None,) * len(slots)
        if ex.shape is not None and (ex.meets or ex.size * ex.dtype.size >= KEPT_NBYTES):
            out = self._make(ex.shape)
            self.program.emit(Fold(ex.name, self.how, divisor, inputs, parts, out, (0, ex.size), op=ex.op))
            return out
        target = self.program.new_slot()
        self.program.emit(Fold(ex.name, self.how, divisor, inputs, parts, target, None, labels, ex.op))
        return target

    def _pass_down(self, result: int) -> int:
        ex = self.exchange
        for child in reversed(_children(ex._informed, self.rank)):
            self._send("result", child, 0, result)
        return result

    def _parent(self, role: str) -> int:
        ex = self.exchange
        ranks = ex.senders if role == "up" else ex._informed
        return ranks[_above(ranks.index(self.rank))]

    def _give(self, slot: int) -> None:
        """The result is there: tell where each output is."""
        ex = self.exchange
        if not self.receives:
            return
        if len(ex.collectives) == 1:
            self.program.give(ex.op.outputs[0], slot)
            return
        start = 0
        for collective in ex.collectives:
            tensor = collective.op.inputs[0]
            size = _size(tensor) or 0
            shape = tuple([s for s in tensor.static_shape or () if s is not None])
            self.program.give(collective.op.outputs[0], self._view(slot, (start, start + size), shape))
            start += size

    def _labels(self, own: bool = False) -> tuple[str, ...]:
        """Where the arrays of a reduction are from; none if their shapes are known."""
        ex = self.exchange
        if ex.shape is not None:
            return ()
        if own:
            inputs = zip(ex.op.inputs, ex.sources, ex.collectives[0].sources, strict=True)
            return tuple([f"{t.name!r} on {task}" for t, src, task in inputs if src == self.rank])
        return tuple([self._label(rank) for rank in ex.senders])

    def _label(self, rank: int) -> str:
        ex = self.exchange
        tensors = [t for t, src in zip(ex.op.inputs, ex.sources, strict=True) if src == rank]
        return f"{tensors[0].name!r} on {ex.task_at(rank)} (rank {rank})"

    def _make(self, shape: tuple[int, ...]) -> int:
        slot = self.program.new_slot()
        self.program.emit(Make(slot, self.exchange.dtype, shape))
        return slot

    def _flat(self, slot: int) -> int:
        return slot if len(self.exchange.shape or ()) == 1 else self._view(slot, None, (self.exchange.size,))

    def _view(self, slot: int, part: Part | None, shape: tuple[int, ...]) -> int:
        target = self.program.new_slot()
        self.program.emit(View(slot, target, part, shape))
        return target

    def _send(self, role: str, dst: int, number: int, slot: int, part: Part | None = None) -> None:
        self.program.send((role, self.rank, dst, number), slot, part)

    def _recv(self, role: str, src: int, number: int, into: tuple[int, Part] | None = None) -> int:
        return self.program.receive((role, src, self.rank, number), into)


def _after(ranks: Sequence[int], rank: int) -> list[int]:
    """``ranks``, beginning behind ``rank``: so that not all ranks send to the same one first."""
    return [r for r in ranks if r > rank] + [r for r in ranks if r <= rank]
