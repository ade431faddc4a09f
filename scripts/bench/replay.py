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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracks import FLAG, Costs, Message, Piece, Track

from mpirt.cluster.task import Task
from mpirt.compiler.linker import _Linker
from mpirt.compiler.partition import Node, Plan
from mpirt.compiler.program import HOST, Program
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
        shared = [_Core(self, costs, range(core, count, cores)) for core in range(cores)]
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
        core = self.core_of[rank] if self.core_of is not None else None
        if core is None or core.has(rank):
            self._taken(rank, now, now + self.costs.late_s(now - self.since[rank]) + self._turns_s(rank))
            return
        # Ranks that wait side by side look in turns. One that comes to its turn behind another's work may have just looked, or not.
        share = 1.0 if core.waits() else 0.5
        core.ask(rank, now, lambda rank, later: self._back(rank, later, share))

    def _back(self, rank: int, now: float, share: float) -> None:
        """A rank is on a core again, and finds what it waits for."""
        self.since[rank] = now
        self._taken(rank, now, now + share * self._turns_s(rank))

    def _turns_s(self, rank: int) -> float:
        """What it costs a rank that others on its core wait as well."""
        if self.core_of is None:
            return 0.0
        return self.costs.turns_s * any([self.since[other] >= 0 for other in self.core_of[rank].ranks if other != rank])

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

    def __init__(self, replayed: _Replay, costs: Costs, ranks: Sequence[int]) -> None:
        self.ranks = ranks
        self._replay = replayed
        self._spin_s = costs.spin_s
        self._slice_s = costs.slice_s
        self._holder = -1
        self._waits_since = -1.0  # if the holder waits
        self._queue: deque[tuple[int, Callable[[int, float], None]]] = deque()

    def has(self, rank: int) -> bool:
        """Whether the rank is on the core."""
        return rank == self._holder

    def waits(self) -> bool:
        """Whether who is on the core waits."""
        return self._waits_since >= 0

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
