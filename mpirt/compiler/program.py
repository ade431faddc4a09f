"""Programs: the flat list of instructions that one rank runs, and the transfers between ranks.

Pure data: the linker (``linker``) makes it from a plan, a rank without the graph reads it from a message, and the executor turns
each instruction into a bound call once. Owns: what instructions there are, and the path that a transfer takes (`path_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from mpirt import dtypes
from mpirt.cluster.task import Task
from mpirt.compiler.exchange import JOIN, Fold, Make, Part, View
from mpirt.compiler.packets import BOX_NBYTES, Packet, is_small
from mpirt.compiler.partition import message_nbytes
from mpirt.compiler.placer import DeviceName
from mpirt.dtypes import DType
from mpirt.graph.graph import Operation, Tensor

FETCH = "fetch"  # reason of a transfer that only brings a fetched value to a rank
END = "the end of the step"  # reason of a token by which a rank tells another that all that it knows of has run (``ends``)
HOST = ""  # the memory space of all CPUs of a rank; a GPU's space is its device name
NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message of every step: a tensor, or a token that says that an operation has run.

    It knows all that both ends must agree on, so that a rank without the graph can be one of them.
    """

    index: int
    name: str  # ``w:0``, or ``^train`` for a token
    dtype: DType | None  # None for a token
    shape: tuple[int, ...] | None  # None if only known at run time
    src_rank: int
    dst_rank: int
    src: Task
    reason: str  # who needs it: a task, FETCH, or END
    in_place: bool = False  # it is received into a part of another array
    on_board: bool = False  # no message: of a collective that its ranks compute on a board, or it, or its word, goes through a box
    op: Operation | None = field(default=None, compare=False, repr=False)  # that made the tensor, where the graph is at hand

    @property
    def nbytes(self) -> int | None:
        """Bytes of the message, None if only known at run time, 1 for a token."""
        return message_nbytes(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.name} from {self.src} (rank {self.src_rank}) to rank {self.dst_rank}"


class Run(NamedTuple):
    """Call the operation's kernel."""

    op: Operation
    device: DeviceName
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]  # NO_SLOT where nobody reads


@dataclass(frozen=True, slots=True)
class Read:
    """Take the value of a variable at this point of the order."""

    op: Operation  # the consumer
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Move:
    """Copy between the memory spaces of one rank."""

    tensor: Tensor
    source: int
    target: int
    from_space: str
    to_space: str


@dataclass(frozen=True, slots=True)
class Send:
    """Start a transfer; never blocks."""

    transfer: Transfer
    source: int  # NO_SLOT for a token
    part: Part | None = None  # which elements of the flattened array, if not the array


@dataclass(frozen=True, slots=True)
class Recv:
    """Wait for a transfer, whose receive was posted when the step started."""

    transfer: Transfer
    target: int  # NO_SLOT for a token
    part: Part | None = None  # the elements of the array in ``target`` (of a `Make`) that it fills, if it isn't an array of its own


@dataclass(frozen=True, slots=True)
class Meet:
    """Reduce what all ranks of a collective have, on a board (`transport.board`); all of them do it."""

    name: str  # of the collective
    how: str  # sum, max, min
    number: int  # what the result is divided by
    rank: int
    ranks: tuple[int, ...]  # in their order; the first makes the board
    dtype: DType
    shape: tuple[int, ...]
    whole: bool  # each rank reads all that the others have; else each reduces a part, for all
    last: bool  # nothing can fail behind it on any rank: who has seen the others here knows that the step has ended well
    source: int
    target: int
    transfers: tuple[Transfer, ...]  # in place of which it is: those from and to this rank
    op: Operation | None = field(default=None, compare=False, repr=False)  # where the graph is at hand


Instruction = Run | Read | Move | Send | Recv | Make | Fold | View | Meet

WINDOW_NBYTES = BOX_NBYTES + 1  # smaller tensors are there about as soon in a message or a box, and need no memory of their own
WORD_NBYTES = 16  # what tells of a tensor in a window: its number, and where the window is


@dataclass(frozen=True, slots=True)
class Path:
    """How a transfer gets to its rank.

    Attributes
    ----------
    window : through memory that both ranks share, with a word that tells of it (`word_of`); else in the message
    why : for people
    """

    window: bool
    why: str


def path_of(transfer: Transfer, memory: Sequence[int]) -> Path:
    """How ``transfer`` travels; both its ends decide by this one rule.

    Parameters
    ----------
    memory : ``Transport.memory``; ranks of the same number can share windows
    """
    nbytes = transfer.nbytes
    if transfer.dtype is None:
        return Path(False, "a token")
    if nbytes is None:
        return Path(False, "size known at run time only")
    if nbytes < WINDOW_NBYTES:
        return Path(False, "small")
    if memory[transfer.src_rank] != memory[transfer.dst_rank]:
        return Path(False, "no shared memory")
    if transfer.reason == FETCH:
        return Path(False, "becomes the user's own array")
    if transfer.in_place:
        return Path(False, "straight into its place")
    return Path(True, "large, on one host")


def word_of(transfer: Transfer) -> Transfer:
    """What tells of a tensor that lies in a window: a small tensor, which goes through a box or in a message as any other."""
    return replace(transfer, dtype=dtypes.int64, shape=(WORD_NBYTES // 8,))


@dataclass(slots=True)
class Program:
    """What one rank runs in each step of a signature."""

    rank: int
    instructions: list[Instruction] = field(default_factory=list)
    frees: list[tuple[int, ...]] = field(default_factory=list)  # slots to drop after each instruction
    num_slots: int = 0
    constants: list[tuple[int, Operation, DeviceName]] = field(default_factory=list)  # values known before the step
    feeds: dict[Tensor, int] = field(default_factory=dict)  # slots of the feeds that count on this rank
    fetches: list[int] = field(default_factory=list)  # a slot for each fetch, NO_SLOT where there is no value
    transfers: list[Transfer] = field(default_factory=list)  # of all ranks, alike on all ranks
    packets: list[Packet] = field(default_factory=list)  # transfers that share a message, alike on all ranks

    def received(self) -> tuple[bool, ...]:
        """For each fetch whether its value comes in a message that brings nothing else here."""
        slots = {i.target for i in self.instructions if isinstance(i, Recv) and i.transfer.reason == FETCH}
        return tuple([slot in slots for slot in self.fetches])

    def text(self, memory: Sequence[int] | None = None) -> str:
        """The program for people (``MPIRT_DUMP_PROGRAM``); with ``Transport.memory`` also how each transfer travels, and why."""
        lines = [f"rank {self.rank}: {len(self.instructions)} instructions, {self.num_slots} slots"]
        lines += [f"  feed  s{slot} = {t.name}" for t, slot in self.feeds.items()]
        lines += [f"  const s{slot} = {op.name} on {device}" for slot, op, device in self.constants]
        packed = {t.index: packet for packet in self.packets for t in packet}
        for instruction, frees in zip(self.instructions, self.frees, strict=True):
            drop = f"   # drop {', '.join(f's{i}' for i in frees)}" if frees else ""
            together = ""
            if isinstance(instruction, Send | Recv) and instruction.transfer.index in packed:
                together = f" in one packet: {', '.join(f'#{t.index}' for t in packed[instruction.transfer.index])}"
            lines.append(f"  {_line(instruction, memory)}{together}{drop}")
        lines += [f"  fetch {'-' if slot == NO_SLOT else f's{slot}'}" for slot in self.fetches]
        return "\n".join(lines) + "\n"


def _line(i: Instruction, memory: Sequence[int] | None) -> str:
    if isinstance(i, Run):
        return f"run   {_slots(i.outputs)} = {i.op.type} {i.op.name}({_slots(i.inputs)}) on {i.device}"
    if isinstance(i, Read):
        return f"read  s{i.target} = variable s{i.source} for {i.op.name}"
    if isinstance(i, Move):
        return f"move  s{i.target} = s{i.source} {i.tensor.name} {i.from_space or 'host'} -> {i.to_space or 'host'}"
    if isinstance(i, Make):
        return f"make  s{i.target} = {i.dtype.name}{list(i.shape)}"
    if isinstance(i, View):
        return f"view  s{i.target} = s{i.source}{_part(i.part)} as {list(i.shape)}"
    if isinstance(i, Meet):
        ranks, number = ", ".join(map(str, i.ranks)), f", {i.number}" if i.number != 1 else ""
        who = f"ranks {ranks}, each {'all of it' if i.whole else 'a part'}{', which ends the step' if i.last else ''}"
        return f"meet  s{i.target} = {i.how}(s{i.source}{number}) {i.dtype.name}{list(i.shape)} on a board of {who}, for {i.name}"
    if isinstance(i, Fold):
        inputs = ", ".join(f"s{slot}{_part(part)}" for slot, part in zip(i.inputs, i.parts, strict=True))
        number = f", {i.number}" if i.number != 1 or i.how == JOIN else ""
        return f"fold  s{i.target}{_part(i.into)} = {i.how}({inputs}{number}) for {i.name}"
    size = "? B" if i.transfer.nbytes is None else f"{i.transfer.nbytes} B"
    if i.transfer.on_board and is_small(i.transfer):
        size += " through a box (small, on one host)"
    elif memory is not None:
        path = path_of(i.transfer, memory)
        size += f" in a {'window' if path.window else 'message'} ({path.why})"
    word, slot = ("send", i.source) if isinstance(i, Send) else ("recv", i.target)
    return f"{word}  {_slots((slot,))}{_part(i.part)} #{i.transfer.index} {i.transfer} {size} for {i.transfer.reason}"


def _part(part: Part | None) -> str:
    return f"[{part[0]}:{part[1]}]" if part else ""


def _slots(slots: Sequence[int]) -> str:
    return ", ".join("-" if s == NO_SLOT else f"s{s}" for s in slots)


def frees_after_last_use(program: Program) -> list[tuple[int, ...]]:
    """The slots to drop after each instruction of ``program``."""
    keep = {slot for slot, _, _ in program.constants} | set(program.fetches)
    last: dict[int, int] = {}
    for position, i in enumerate(program.instructions):
        for slot in _used(i):
            last[slot] = position
    frees: dict[int, list[int]] = {}
    for slot, position in last.items():
        if slot not in keep and slot != NO_SLOT:
            frees.setdefault(position, []).append(slot)
    return [tuple(sorted(frees[position])) if position in frees else () for position in range(len(program.instructions))]


def _used(i: Instruction) -> tuple[int, ...]:
    if isinstance(i, Run):
        return i.inputs + i.outputs
    if isinstance(i, Send):
        return (i.source,)
    if isinstance(i, (Recv, Make)):
        return (i.target,)
    if isinstance(i, Fold):
        return (*i.inputs, i.target)
    return (i.source, i.target)


@lru_cache(maxsize=1024)
def memory_space(device: DeviceName) -> str:
    """Memory space of a device: host memory for a CPU, its own for a GPU."""
    return HOST if device.type == "CPU" else str(device)


def is_state(tensor: Tensor) -> bool:
    """Whether the tensor is a variable or resource itself; such never move."""
    return tensor.dtype.is_ref or tensor.dtype is dtypes.resource
