"""Programs as the replay sees them: what each rank does, and what that costs.

A *track* is a program with all that takes no time left out: pieces of work, and messages that are sent and taken. Guarantees: a
track has the order of its program; what doesn't travel, because another rank's kernel made it where it is read or it lies there
already, is no bytes but the word that tells of it; and what a kernel takes longer because another core holds what it reads or
writes is part of its work.
Owns: how a transfer travels and what is read and written on the way. Does not own: the costs themselves (``message_costs``,
``rehearsal``), when anything happens (``replay``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from mpirt.compiler.buffers import signature_of
from mpirt.compiler.exchange import Fold, View
from mpirt.compiler.packets import is_small
from mpirt.compiler.program import Instruction, Meet, Program, Read, Recv, Run, Send, Transfer, path_of

# ------------------------------------------------------------------------------------------------------- what it costs

# How a message travels: short ones through memory that both ranks share or by MPI, long ones by MPI or through a window.
BOX, PACKET, MESSAGE, WINDOW, PRODUCED = "packet in a box", "packet", "message", "window", "produced in a window"
STAYS = "stays in a window"  # an array that is the same in all steps, and copied in the first one
WHOLE, IN_PARTS = "each reads all", "in parts"  # how ranks reduce on a board
FLAG = "flag on a board"  # tells others that a rank has come to a meeting: no message, but they wait for it as for one
Cost = Callable[[str, int], float]  # seconds, by how it travels and its bytes


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that things take; those of a rank's processor unless said.

    Attributes
    ----------
    begin_s : of a step, before its first instruction and behind its last
    post_s : to post the receive of a message, when the step begins
    send_s, take_s : to send a message, with what its request costs later on, and to take one that is there
    put_s, get_s : for each further tensor of a packet
    read_s, write_s : how much longer it takes to read an array that another rank has just written, and to write one that another
        rank reads, since they lie in that one's cache; of all its kernels the first that reads it pays
    meet_s : of a reduction on a board, when all have come: by the number of ranks, the bytes of each, and whether each reads all
    flight_s : from the beginning of a send until the message can be taken
    copy_s : what the receiver does beside `take_s` to have the bytes moved, as soon as it waits or takes
    late_s : how much later a rank finds what it has waited for so long
    port_s : on a network: for how long a message keeps its ranks' ports from others, by its bytes
    cores : that all ranks share, in turn: rank r is on core r modulo ``cores``; None - each rank has its own
    spin_s : for how long a rank that waits keeps its core from others
    slice_s : after so long a rank that computes lets others have its core
    turns_s : how much later a rank looks for what it waits for, if others that share its core wait too
    """

    begin_s: float
    post_s: Cost
    send_s: Cost
    take_s: Cost
    put_s: float
    get_s: float
    flight_s: Cost
    meet_s: Callable[[int, int, bool], float] = lambda ranks, nbytes, whole: 0.0
    copy_s: Cost = lambda way, nbytes: 0.0
    read_s: Cost = lambda way, nbytes: 0.0
    write_s: Cost = lambda way, nbytes: 0.0
    late_s: Callable[[float], float] = lambda waited_s: 0.0
    port_s: Callable[[int], float] | None = None
    cores: int | None = None
    spin_s: float = 0.0
    slice_s: float = float("inf")
    turns_s: float = 0.0


def networked(costs: Costs, latency_s: float, byte_s: float) -> Costs:
    """As ``costs``, but with all messages on a network that isn't here.

    A rank's processor pays what a message costs it here: a packet with the copies that make it; of a large one the requests only,
    since its bytes move without the processor.
    """

    def own(cost: Cost) -> Cost:
        return lambda way, nbytes: cost(way, nbytes) if way == PACKET else cost(MESSAGE, 0)

    send_s = own(costs.send_s)
    return replace(
        costs,
        post_s=own(costs.post_s),
        send_s=send_s,
        take_s=own(costs.take_s),
        copy_s=lambda way, nbytes: 0.0,
        flight_s=lambda way, nbytes: send_s(way, nbytes) + latency_s + nbytes * byte_s,
        port_s=lambda nbytes: nbytes * byte_s,
    )


# ------------------------------------------------------------------------------------------ programs as the replay sees them

Message = tuple[int, int, int]  # source, destination, which of theirs


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that a rank does: computes for so long, or sends or takes a message."""

    what: str  # "work", "send", "take"
    seconds: float = 0.0
    message: Message = (-1, -1, -1)
    way: str = ""
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Track:
    """What a rank does in each step, and the receives that it posts before: how each message travels, and its bytes."""

    pieces: tuple[Piece, ...]
    posts: tuple[tuple[str, int], ...]


Seconds = Callable[[Program], Sequence[float]]  # for each instruction of a program; those of messages don't count


def tracks_of(programs: Sequence[Program], seconds: Seconds, costs: Costs, memory: Sequence[int]) -> list[Track]:
    """What the replay must know of ``programs``.

    Parameters
    ----------
    seconds : what the instructions of a program take
    memory : as ``Transport.memory``, for which the programs were linked: ranks of the same number send large tensors through windows

    Raises
    ------
    ValueError
        If a message has no size while compiling.
    """
    messages = _Messages(programs, memory)
    return [_track(program, seconds(program), messages, costs) for program in programs]


class _Messages:
    """The messages of a plan, by transfer: alike for all ranks."""

    def __init__(self, programs: Sequence[Program], memory: Sequence[int]) -> None:
        program = programs[0]
        self.packets = {transfer.index: packet for packet in program.packets for transfer in packet}
        self._numbers: dict[int, Message] = {}
        pairs: dict[tuple[int, int], int] = defaultdict(int)
        through_windows = set()
        for transfer in program.transfers:
            pair = (transfer.src_rank, transfer.dst_rank)
            self._numbers[transfer.index] = (*pair, pairs[pair])
            pairs[pair] += 1
            if transfer.index not in self.packets and path_of(transfer, memory).window:
                through_windows.add(transfer.index)
        self._ways: dict[int, str] = {}  # of those through windows
        self.read: set[int] = set()  # of these, what a kernel of the receiver reads
        if through_windows:
            for each in programs:
                self._look_at(each, through_windows)

    def _look_at(self, program: Program, through_windows: set[int]) -> None:
        """Note what a rank does with what it sends and receives through windows."""
        produced: set[int] = set()
        read: set[int] = set()
        variables: dict[int, int] = {}  # what is a variable's value, by slot
        changed: set[int] = set()
        for instruction in program.instructions:
            if isinstance(instruction, Run) and instruction.inputs:
                changed.update(instruction.inputs)  # a variable is no operation's input but of one that changes it
                if _reads(instruction):
                    read.update(instruction.inputs)
                if len(instruction.outputs) == 1 and _may_write_elsewhere(instruction):
                    produced.add(instruction.outputs[0])
            elif isinstance(instruction, Fold):
                read.update(instruction.inputs)
            elif isinstance(instruction, Read):
                variables[instruction.target] = instruction.source
        for instruction in program.instructions:
            if isinstance(instruction, Send | Recv) and instruction.transfer.index in through_windows:
                index = instruction.transfer.index
                if isinstance(instruction, Recv):
                    if instruction.target in read:
                        self.read.add(index)
                elif instruction.part is None and instruction.source in produced:
                    self._ways[index] = PRODUCED
                elif instruction.part is None and variables.get(instruction.source, -1) not in {-1, *changed}:
                    self._ways[index] = STAYS
                else:
                    self._ways[index] = WINDOW

    def number_of(self, transfer: Transfer) -> Message:
        """What tells a transfer from all others."""
        return self._numbers[transfer.index]

    def of(self, transfer: Transfer) -> tuple[Message, str, int]:
        """The message that carries a transfer, how it travels, its bytes."""
        packet = self.packets.get(transfer.index)
        if packet is not None:
            return self._numbers[packet[0].index], BOX if packet[0].on_board else PACKET, sum(t.nbytes or 1 for t in packet)
        if transfer.nbytes is None:
            raise ValueError(f"the size of {transfer} isn't known while compiling; give its tensor a static shape")
        way = self._ways.get(transfer.index) or ((BOX if transfer.on_board else PACKET) if is_small(transfer) else MESSAGE)
        return self._numbers[transfer.index], way, transfer.nbytes


def _track(program: Program, seconds: Sequence[float], messages: _Messages, costs: Costs) -> Track:
    pieces: list[Piece] = []
    posts: list[tuple[str, int]] = []
    leaves: dict[int, _Far] = {}  # results that are made where another rank reads them
    for instruction in program.instructions:
        if isinstance(instruction, Send) and instruction.transfer.index in messages.read:
            _, way, nbytes = messages.of(instruction.transfer)
            if way == PRODUCED:
                leaves[instruction.source] = _Far(way, nbytes)
        elif isinstance(instruction, Meet) and not instruction.whole:
            leaves[instruction.source] = _Far(IN_PARTS, prod(instruction.shape) * instruction.dtype.size)
    far: dict[int, _Far] = {}  # arrays that another rank has just written, and nobody has read here
    work = 0.0
    taken: set[Message] = set()
    for instruction, own_s in zip(program.instructions, seconds, strict=True):
        if not isinstance(instruction, Send | Recv | Meet):
            work += own_s
            if far or leaves:
                work += _moved_s(instruction, far, leaves, costs)
            continue
        if isinstance(instruction, Meet):
            if work:
                pieces.append(Piece("work", work))
            pieces += _meeting(instruction, messages)
            nbytes = prod(instruction.shape) * instruction.dtype.size
            work = costs.meet_s(len(instruction.ranks), nbytes, instruction.whole)
            if not instruction.whole:
                far[instruction.target] = _Far(IN_PARTS, nbytes, instruction.dtype.size)
            continue
        transfer = instruction.transfer
        sends = isinstance(instruction, Send)
        message, way, nbytes = messages.of(transfer)
        packet = messages.packets.get(transfer.index)
        if sends and packet is not None and transfer.index != packet[-1].index:
            work += costs.put_s
            continue
        if not sends and message in taken:
            work += costs.get_s
            continue
        if work:
            pieces.append(Piece("work", work))
            work = 0.0
        if not sends:
            taken.add(message)
            posts.append((way, nbytes))
            if transfer.index in messages.read:
                far[instruction.target] = _Far(way, nbytes)  # type: ignore[union-attr]
        pieces.append(Piece("send" if sends else "take", 0.0, message, way, nbytes))
    if work:
        pieces.append(Piece("work", work))
    return Track(tuple(pieces), tuple(posts))


class _Far(NamedTuple):
    """An array that another core holds: how it got there, its bytes, and those of an element."""

    way: str
    nbytes: int
    item_nbytes: int = 0


def _moved_s(instruction: Instruction, far: dict[int, _Far], leaves: dict[int, _Far], costs: Costs) -> float:
    """How much longer an instruction takes for arrays that lie in another core's cache."""
    seconds = 0.0
    if isinstance(instruction, View):
        if instruction.source in far:
            whole = far[instruction.source]
            far[instruction.target] = whole._replace(nbytes=prod(instruction.shape) * whole.item_nbytes)
    elif isinstance(instruction, Run) and not _reads(instruction):
        if instruction.inputs and instruction.inputs[0] in far:
            far[instruction.outputs[0]] = far[instruction.inputs[0]]
    elif isinstance(instruction, Run | Fold):
        for slot in instruction.inputs:
            if slot in far:
                seconds += costs.read_s(far[slot].way, far[slot].nbytes)
                del far[slot]
        if isinstance(instruction, Run):
            seconds += sum([costs.write_s(leaves[slot].way, leaves[slot].nbytes) for slot in instruction.outputs if slot in leaves])
    return seconds


def _reads(run: Run) -> bool:
    """Whether an operation reads its inputs, rather than gives its only one another shape."""
    kernel = run.op.definition.kernels.get(run.device.type)
    return kernel is None or kernel.memory != "view" or len(run.op.inputs) - len(kernel.host) > 1


def _may_write_elsewhere(run: Run) -> bool:
    """Whether the result of an operation can be made in a window."""
    return signature_of(run) is not None or run.device.type == "CPU" and run.op.definition.kernels["CPU"].takes_out


def _meeting(meet: Meet, messages: _Messages) -> list[Piece]:
    """Tell all that this rank has come, and wait until they have."""
    told = {(t.src_rank, t.dst_rank): messages.number_of(t) for t in reversed(meet.transfers)}
    others = [rank for rank in meet.ranks if rank != meet.rank]
    found = [Piece("send", 0.0, told[meet.rank, other], FLAG) for other in others]
    return [*found, *[Piece("take", 0.0, told[other, meet.rank], FLAG) for other in others]]
