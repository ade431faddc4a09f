"""A plan run on paper: the programs of all ranks replayed by a discrete-event simulation against a table of costs.

Guarantees: pure functions; `programs_of` gives the very programs that ``program.link`` gives each rank, in time that is linear
in the plan; `replay` keeps the order of each program, counts a packet as the one message that it is, and lets a message be used
no sooner than it can have come. So a step takes at least as long as its busiest rank works, and as its critical path.

The model of a message is LogGP's (Alexandrov et al., 1995): processors pay for posting, sending and taking, the wire for
latency, and on a network a port carries one message at a time. On one host the receiver's processor moves the bytes of large
messages, while it waits for whatever it may be. Where ranks share cores, a rank that waits keeps its core for a while, then
yields it to those that have something to do; these take turns.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from mpirt.cluster.task import Task
from mpirt.compiler.buffers import signature_of
from mpirt.compiler.linker import _Linker
from mpirt.compiler.packets import is_small
from mpirt.compiler.partition import Node, Plan
from mpirt.compiler.program import HOST, Meet, Program, Recv, Run, Send, Transfer, path_of
from mpirt.graph.graph import Operation, Tensor

# ---------------------------------------------------------------------------------------------- programs of all ranks


class _Shared(_Linker):
    """What the programs of all ranks have in common, numbered once, and what of it touches which rank."""

    def __init__(self, plan: Plan, rank_of: Callable[[Task], int], num_ranks: int, memory: Sequence[int] | None) -> None:
        self.starting: list[dict[Operation, list[int]]] = [{} for _ in range(num_ranks)]
        super().__init__(plan, rank_of, -1, num_ranks, "owner", memory)

    def _transfer(self, found: Any, source: Tensor | Operation, after: Operation, src: int, *rest: Any) -> int:
        before = len(self.sources)
        index = super()._transfer(found, source, after, src, *rest)
        if index == before:
            self.starting[src].setdefault(after, []).append(index)
        return index

    def program_of(self, rank: int, nodes: Sequence[Node]) -> Program:
        """The program of one rank, to which ``nodes`` belong."""
        one = _Linker.__new__(_Linker)
        for name, value in vars(self).items():  # what is still empty is the rank's own
            setattr(one, name, type(value)() if isinstance(value, dict | set | list) and not value else value)
        one.rank, one.program = rank, Program(rank, transfers=self.program.transfers, packets=self.program.packets)
        one.plan = dataclasses.replace(self.plan, nodes=tuple(nodes))
        one.slots, one.behind = {HOST: {}}, self.starting[rank]
        return one.link()


def programs_of(plan: Plan, rank_of: Callable[[Task], int], num_ranks: int, memory: Sequence[int] | None = None) -> list[Program]:
    """The programs of all ranks in a collective session with ``fetch_on="owner"``; for ``memory`` see ``program.link``.

    ``link`` looks at the whole plan for each rank. Here what all ranks find alike is found once, and each rank is shown what
    belongs to it: so a plan for 10,000 ranks takes no longer than its parts.
    """
    shared = _Shared(plan, rank_of, num_ranks, memory)
    nodes: list[list[Node]] = [[] for _ in range(num_ranks)]
    for node in plan.nodes:
        ranks = {rank_of(node.device.task)}
        exchange = shared.exchanges.get(node.op) if node.fed is None else None
        if exchange is not None:
            ranks.update(exchange.ranks, [rank_of(plan.placement[c.op].task) for c in exchange.collectives])
        for rank in ranks:
            nodes[rank].append(node)
    return [shared.program_of(rank, nodes[rank]) for rank in range(num_ranks)]


# ------------------------------------------------------------------------------------------------------- what it costs

PACKET, MESSAGE, WINDOW, PRODUCED = "packet", "message", "window", "produced in a window"  # how a message travels
FLAG = "flag on a board"  # tells others that a rank has come to a meeting: no message, but they wait for it as for one
Cost = Callable[[str, int], float]  # seconds, by how it travels and its bytes


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that things take; those of a rank's processor unless said.

    Attributes
    ----------
    begin_s : of a step, before its first instruction and behind its last
    post_s : to post the receive of a message, when the step begins
    send_s, take_s : to send a message, and to take one that is there
    put_s, get_s : for each further tensor of a packet
    meet_s : of a reduction on a board, when all have come: by the number of ranks, the bytes of each, and whether each reads all
    flight_s : from the beginning of a send until the message can be taken
    copy_s : what the receiver does beside `take_s` to have the bytes moved, as soon as it waits or takes
    late_s : how much later a rank finds what it has waited for so long
    port_s : on a network: for how long a message keeps its ranks' ports from others, by its bytes
    cores : that all ranks share, in turn: rank r is on core r modulo ``cores``; None - each rank has its own
    spin_s : for how long a rank that waits keeps its core from others
    slice_s : after so long a rank that computes lets others have its core
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
    late_s: Callable[[float], float] = lambda waited_s: 0.0
    port_s: Callable[[int], float] | None = None
    cores: int | None = None
    spin_s: float = 0.0
    slice_s: float = float("inf")


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
    memory : as ``Transport.memory``: ranks of the same number send large tensors through windows

    Raises
    ------
    ValueError
        If a message has no size while compiling.
    """
    messages = _Messages(programs[0], memory)
    return [_track(program, seconds(program), messages, costs) for program in programs]


class _Messages:
    """The messages of a plan, by transfer: alike for all ranks."""

    def __init__(self, program: Program, memory: Sequence[int]) -> None:
        self._memory = memory
        self.packets = {transfer.index: packet for packet in program.packets for transfer in packet}
        self._numbers: dict[int, Message] = {}
        pairs: dict[tuple[int, int], int] = defaultdict(int)
        for transfer in program.transfers:
            pair = (transfer.src_rank, transfer.dst_rank)
            self._numbers[transfer.index] = (*pair, pairs[pair])
            pairs[pair] += 1

    def number_of(self, transfer: Transfer) -> Message:
        """What tells a transfer from all others."""
        return self._numbers[transfer.index]

    def of(self, transfer: Transfer, produced: bool = False) -> tuple[Message, str, int]:
        """The message that carries a transfer, how it travels, its bytes."""
        packet = self.packets.get(transfer.index)
        if packet is not None:
            return self._numbers[packet[0].index], PACKET, sum(t.nbytes or 1 for t in packet)
        if transfer.nbytes is None:
            raise ValueError(f"the size of {transfer} isn't known while compiling; give its tensor a static shape")
        if path_of(transfer, self._memory).window:
            way = PRODUCED if produced else WINDOW
        else:
            way = PACKET if is_small(transfer) else MESSAGE
        return self._numbers[transfer.index], way, transfer.nbytes


def _track(program: Program, seconds: Sequence[float], messages: _Messages, costs: Costs) -> Track:
    pieces: list[Piece] = []
    posts: list[tuple[str, int]] = []
    produced: set[int] = set()
    work = 0.0
    taken: set[Message] = set()
    for instruction, own_s in zip(program.instructions, seconds, strict=True):
        if not isinstance(instruction, Send | Recv | Meet):
            work += own_s
            if isinstance(instruction, Run) and len(instruction.outputs) == 1 and _may_write_elsewhere(instruction):
                produced.add(instruction.outputs[0])
            continue
        if isinstance(instruction, Meet):
            if work:
                pieces.append(Piece("work", work))
            pieces += _meeting(instruction, messages)
            work = costs.meet_s(len(instruction.ranks), prod(instruction.shape) * instruction.dtype.size, instruction.whole)
            continue
        transfer = instruction.transfer
        sends = isinstance(instruction, Send)
        whole = sends and instruction.part is None and instruction.source in produced  # type: ignore[union-attr]
        message, way, nbytes = messages.of(transfer, whole)
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
        pieces.append(Piece("send" if sends else "take", 0.0, message, way, nbytes))
    if work:
        pieces.append(Piece("work", work))
    return Track(tuple(pieces), tuple(posts))


def _may_write_elsewhere(run: Run) -> bool:
    """Whether the result of an operation can be made in a window."""
    return signature_of(run) is not None or run.device.type == "CPU" and run.op.definition.kernels["CPU"].takes_out


def _meeting(meet: Meet, messages: _Messages) -> list[Piece]:
    """Tell all that this rank has come, and wait until they have."""
    told = {(t.src_rank, t.dst_rank): messages.number_of(t) for t in reversed(meet.transfers)}
    others = [rank for rank in meet.ranks if rank != meet.rank]
    found = [Piece("send", 0.0, told[meet.rank, other], FLAG) for other in others]
    return [*found, *[Piece("take", 0.0, told[other, meet.rank], FLAG) for other in others]]


# ----------------------------------------------------------------------------------------------------------- the replay


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave.

    Attributes
    ----------
    step_s : time of a step, on the slowest rank; without the first step, if there are more
    busy_s : of each rank, in one step: whatever its processor does but wait
    messages, nbytes : of one step, over all ranks
    """

    step_s: float
    busy_s: list[float]
    messages: int
    nbytes: int


def replay(tracks: Sequence[Track], costs: Costs, steps: int = 3) -> Replayed:
    """Run ``steps`` steps, each rank as fast as it can; the first ones let the ranks fall into their rhythm.

    Raises
    ------
    ValueError
        If nobody sends what a rank waits for.
    """
    return _Replay(tracks, costs, steps).run()


class _Replay:
    def __init__(self, tracks: Sequence[Track], costs: Costs, steps: int) -> None:
        count = len(tracks)
        self.costs = costs
        self.tracks = tracks
        self.steps = steps
        self.begin_s = [costs.begin_s + sum(costs.post_s(*post) for post in track.posts) for track in tracks]
        self.place = [0] * count  # next piece of each rank
        self.step = [0] * count
        self.ends: list[list[float]] = [[] for _ in tracks]
        self.busy = [0.0] * count
        self.heads: dict[tuple[Message, int], float] = {}  # when a message that was sent can be taken
        self.uncopied: list[list[tuple[float, tuple[Message, int], float]]] = [[] for _ in tracks]
        self.awaited: dict[tuple[Message, int], int] = {}  # who waits for it
        self.since = [-1.0] * count  # when a rank that waits began to
        self.out_free = [0.0] * count
        self.in_free = [0.0] * count
        self.events: list[tuple[float, int, int, Callable[[int, float], None]]] = []
        self.number = 0
        cores = costs.cores if costs.cores is not None and costs.cores < count else 0
        shared = [_Core(self, costs) for _ in range(cores)]
        self.core_of: list[_Core] | None = [shared[rank % cores] for rank in range(count)] if cores else None

    # ---- time

    def at(self, when: float, rank: int, then: Callable[[int, float], None]) -> None:
        """Have ``then(rank, when)`` called."""
        self.number += 1
        heapq.heappush(self.events, (when, self.number, rank, then))

    def work(self, rank: int, now: float, seconds: float, then: Callable[[int, float], None]) -> None:
        """Let the rank's processor work, then go on."""
        self.busy[rank] += seconds
        if self.core_of is None:
            self.at(now + seconds, rank, then)
        else:
            self.core_of[rank].work(rank, now, seconds, then)

    def run(self) -> Replayed:
        for rank in range(len(self.tracks)):
            self.work(rank, 0.0, self.begin_s[rank], self.go)
        while self.events:
            now, _, rank, then = heapq.heappop(self.events)
            then(rank, now)
        stuck = [rank for rank, ends in enumerate(self.ends) if len(ends) < self.steps]
        if stuck:
            who = f"{len(stuck)} ranks, rank {stuck[0]} the first of them, wait"
            raise ValueError(f"{who} for messages that nobody sends: {list(self.awaited)[:3]} (source, destination, number; step)")
        if self.steps > 1:
            step_s = max((ends[-1] - ends[0]) / (self.steps - 1) for ends in self.ends)
        else:
            step_s = max(ends[0] for ends in self.ends)
        sent = [piece.nbytes for track in self.tracks for piece in track.pieces if piece.what == "send" and piece.way != FLAG]
        return Replayed(step_s, [seconds / self.steps for seconds in self.busy], len(sent), sum(sent))

    # ---- what a rank does

    def go(self, rank: int, now: float) -> None:
        """The next piece of a rank's track."""
        pieces = self.tracks[rank].pieces
        if self.place[rank] == len(pieces):
            self._end(rank, now)
            return
        piece = pieces[self.place[rank]]
        self.place[rank] += 1
        if piece.what == "work":
            self.work(rank, now, piece.seconds, self.go)
        elif piece.what == "send":
            self._send(rank, now, piece)
        else:
            self._take(rank, now)

    def _end(self, rank: int, now: float) -> None:
        self.ends[rank].append(now)
        self.place[rank] = 0
        self.step[rank] += 1
        if self.step[rank] < self.steps:
            self.work(rank, now, self.begin_s[rank], self.go)
        elif self.core_of is not None:
            self.core_of[rank].leave(rank, now)

    def _send(self, rank: int, now: float, piece: Piece) -> None:
        """Start a message; what it takes the rank's processor goes on while the message is on its way."""
        costs = self.costs
        to, key = piece.message[1], (piece.message, self.step[rank])
        head = now + costs.flight_s(piece.way, piece.nbytes)
        if costs.port_s is not None:
            port_s = costs.port_s(piece.nbytes)
            waits_s = max(0.0, self.out_free[rank] - now)
            self.out_free[rank] = now + waits_s + port_s
            self.in_free[to] = head = max(head + waits_s, self.in_free[to] + port_s)
        self.heads[key] = head
        copy_s = costs.copy_s(piece.way, piece.nbytes)
        if copy_s:
            heapq.heappush(self.uncopied[to], (head, key, copy_s))
        if key in self.awaited:
            self.at(head, self.awaited.pop(key), self._found)
        self.work(rank, now, costs.send_s(piece.way, piece.nbytes), self.go)

    def _take(self, rank: int, now: float) -> None:
        piece = self.tracks[rank].pieces[self.place[rank] - 1]
        key = (piece.message, self.step[rank])
        head = self.heads.get(key)
        if head is not None and head <= now:
            self._taken(rank, now, now)
            return
        self.since[rank] = now
        if self.core_of is not None:
            self.core_of[rank].wait(rank, now)
        if head is None:
            self.awaited[key] = rank
        else:
            self.at(head, rank, self._found)

    def _found(self, rank: int, now: float) -> None:
        """What a rank waits for can be taken; it finds that out by itself, if it has a core."""
        if self.core_of is None or self.core_of[rank].has(rank):
            self._taken(rank, now, now + self.costs.late_s(now - self.since[rank]))
        else:
            self.core_of[rank].ask(rank, now, self._back)

    def _back(self, rank: int, now: float) -> None:
        """A rank is on a core again, and finds what it waits for."""
        self.since[rank] = now
        self._taken(rank, now, now)

    def _taken(self, rank: int, came: float, now: float) -> None:
        """Move what has come before, then take the message. What was moved while the rank waited costs no time now."""
        if self.core_of is not None:
            self.core_of[rank].awake(rank)
        costs, piece = self.costs, self.tracks[rank].pieces[self.place[rank] - 1]
        key = (piece.message, self.step[rank])
        del self.heads[key]
        moved = self.since[rank] if self.since[rank] >= 0 else now
        self.since[rank] = -1.0
        left: list[tuple[float, tuple[Message, int], float]] = []
        uncopied = self.uncopied[rank]
        while uncopied and uncopied[0][0] <= max(came, moved):
            head, other, copy_s = heapq.heappop(uncopied)
            start = max(moved, head)
            if other != key and start >= came:  # the message is there: others can come later
                left.append((head, other, copy_s))
                continue
            moved = start + copy_s
            self.busy[rank] += copy_s
        for item in left:
            heapq.heappush(uncopied, item)
        later_s = max(0.0, moved - now)
        self.busy[rank] -= later_s
        self.work(rank, now, later_s + costs.take_s(piece.way, piece.nbytes), self.go)


class _Core:
    """A core that ranks share. Who has it keeps it while it works, up to a slice, and for a while when it waits."""

    def __init__(self, replayed: _Replay, costs: Costs) -> None:
        self._replay = replayed
        self._spin_s = costs.spin_s
        self._slice_s = costs.slice_s
        self._holder = -1
        self._waits_since = -1.0  # if the holder waits
        self._queue: deque[tuple[int, Callable[[int, float], None]]] = deque()

    def has(self, rank: int) -> bool:
        """Whether the rank is on the core."""
        return rank == self._holder

    def work(self, rank: int, now: float, seconds: float, then: Callable[[int, float], None]) -> None:
        """Let the rank work for so long, when it gets the core."""
        if rank != self._holder:
            self.ask(rank, now, lambda rank, later: self.work(rank, later, seconds, then))
        elif seconds <= self._slice_s:
            self._replay.at(now + seconds, rank, then)
        else:
            rest_s = seconds - self._slice_s
            self._replay.at(now + self._slice_s, rank, lambda rank, later: self._next_slice(rank, later, rest_s, then))

    def _next_slice(self, rank: int, now: float, seconds: float, then: Callable[[int, float], None]) -> None:
        if self._queue:
            self.leave(rank, now)
        self.work(rank, now, seconds, then)

    def ask(self, rank: int, now: float, then: Callable[[int, float], None]) -> None:
        """Go on when the rank gets the core."""
        self._queue.append((rank, then))
        if self._holder < 0:
            self._give(now)
        elif self._waits_since >= 0:
            self._replay.at(max(now, self._waits_since + self._spin_s), self._holder, self._yield)

    def wait(self, rank: int, now: float) -> None:
        """The rank, which is on the core, begins to wait."""
        assert rank == self._holder, f"rank {rank} begins to wait while it is rank {self._holder} that has the core"
        self._waits_since = now
        if self._queue:
            self._replay.at(now + self._spin_s, rank, self._yield)

    def awake(self, rank: int) -> None:
        """The rank waits no longer."""
        if rank == self._holder:
            self._waits_since = -1.0

    def leave(self, rank: int, now: float) -> None:
        """The rank, which is on the core, has ended or lets others go on."""
        self._holder, self._waits_since = -1, -1.0
        self._give(now)

    def _yield(self, rank: int, now: float) -> None:
        if rank == self._holder and self._waits_since >= 0 and now >= self._waits_since + self._spin_s and self._queue:
            self.leave(rank, now)

    def _give(self, now: float) -> None:
        if self._queue:
            self._holder, then = self._queue.popleft()
            self._replay.at(now, self._holder, then)
