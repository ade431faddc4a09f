"""A plan run on paper: the programs of all ranks replayed by a discrete-event simulation against a table of costs.

Guarantees: pure functions; `programs_of` gives for each rank the very instructions that ``program.link`` gives, in time that
is linear in the plan; `replay` keeps the order of each program and lets a message be used no sooner than it can have come.
The model of a message is LogGP's (Alexandrov et al., 1995): the processor pays for sending and for receiving, the wire for
latency, and a port carries one message at a time.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpirt.cluster.task import Task
from mpirt.compiler.partition import Edge, Node, Plan
from mpirt.compiler.program import Move, Program, Read, Recv, Run, Send, link
from mpirt.graph.graph import Operation


@dataclass(frozen=True, slots=True)
class RankProgram:
    """The program of one rank, and what its transfers' rank numbers mean: ``ranks[transfer.dst_rank]`` is the rank."""

    program: Program
    ranks: Sequence[int]


def programs_of(plan: Plan, rank_of: Callable[[Task], int], num_ranks: int) -> list[RankProgram]:
    """The programs of all ranks in a collective session with ``fetch_on="owner"``.

    ``link`` looks at the whole plan for each rank. Here it is given only what touches the rank, with the ranks that the rank
    talks to numbered from 1 on: so a plan for 10,000 ranks takes no longer than its parts.

    Raises
    ------
    ValueError
        If ranks meet in a collective: what passes between them then is known of all together only.
    """
    if plan.collectives:
        raise ValueError(f"a plan with collectives can't be replayed, and this one has {next(iter(plan.collectives)).name!r}")
    nodes: list[list[Node]] = [[] for _ in range(num_ranks)]
    edges: list[list[Edge]] = [[] for _ in range(num_ranks)]
    for node in plan.nodes:
        nodes[rank_of(node.device.task)].append(node)
    for edge in plan.edges:
        src, dst = rank_of(edge.src), rank_of(edge.dst)
        if src != dst:
            edges[src].append(edge)
            edges[dst].append(edge)
    owners = {rank_of(plan.device_of(fetch).task) for fetch in plan.fetches}
    fed = set(plan.feeds)
    programs = []
    for rank in range(num_ranks):
        partners = set(range(num_ranks)) if rank in owners else set(owners)
        for edge in edges[rank]:
            partners |= {rank_of(edge.src), rank_of(edge.dst)}
        ranks = [rank, *sorted(partners - {rank})]
        local = {number: position for position, number in enumerate(ranks)}
        feeds = {node.fed: None for node in nodes[rank] if node.fed is not None}
        feeds |= {edge.source: None for edge in edges[rank] if edge.source in fed}  # type: ignore[misc]
        feeds |= {fetch: None for fetch in plan.fetches if fetch in fed}  # type: ignore[misc]
        part = dataclasses.replace(plan, nodes=tuple(nodes[rank]), edges=tuple(edges[rank]), feeds=tuple(feeds))
        programs.append(RankProgram(link(part, lambda task, local=local: local.get(rank_of(task), -1), 0, len(ranks), "owner"), ranks))
    return programs


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that things take.

    Attributes
    ----------
    run_s : of an operation: its kernel and the call of it
    call_s : of another instruction, such as the reading of a variable
    begin_s : of a step, before its first instruction and behind its last
    send_s, recv_s : what sending and receiving a message costs its ranks' processors, whatever its size
    message_s : from the end of a send until the message can be received, by its bytes
    port_s : for how long a message keeps its ranks' ports from others, by its bytes
    receiver_copies : on one host: the bytes move while the receiver waits for them, not before
    cores : that the ranks share; None - each rank has its own
    """

    run_s: Callable[[Operation], float]
    call_s: float
    begin_s: float
    send_s: float
    recv_s: float
    message_s: Callable[[int], float]
    port_s: Callable[[int], float]
    receiver_copies: bool = False
    cores: int | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave.

    Attributes
    ----------
    step_s : the last step's time on rank 0, as a caller there would measure it
    busy_s : of each rank, in one step: kernels, calls, sending and receiving
    messages, nbytes : of one step, over all ranks
    """

    step_s: float
    busy_s: list[float]
    messages: int
    nbytes: int


def replay(programs: Sequence[RankProgram], costs: Costs, steps: int = 3) -> Replayed:
    """Run ``steps`` steps, each rank as fast as it can; the first ones let the ranks fall into their rhythm.

    Raises
    ------
    ValueError
        If a message has no size while compiling, or nobody sends what a rank waits for.
    """
    return _Replay(programs, costs).run(steps)


class _Replay:
    def __init__(self, programs: Sequence[RankProgram], costs: Costs) -> None:
        self.costs = costs
        self.code = [_compile(program, costs) for program in programs]
        self.mail: dict[tuple[object, int], tuple[float, float]] = {}  # when its head is there, when all of it is
        self.waiting: dict[tuple[object, int], tuple[int, float]] = {}
        self.out_free = [0.0] * len(programs)
        self.in_free = [0.0] * len(programs)
        self.cores = [0.0] * (costs.cores or 0)
        self.busy = [0.0] * len(programs)
        self.events: list[tuple[float, int]] = []

    def run(self, steps: int) -> Replayed:
        count = len(self.code)
        place = [(0, 0)] * count  # step, position in the program
        ends: list[list[float]] = [[] for _ in range(count)]
        self.events = [(self.costs.begin_s, rank) for rank in range(count)]
        heapq.heapify(self.events)
        while self.events:
            now, rank = heapq.heappop(self.events)
            step, position = place[rank]
            code = self.code[rank]
            if position == len(code):
                ends[rank].append(now)
                place[rank] = (step + 1, 0)
                if step + 1 < steps:
                    heapq.heappush(self.events, (now + self.costs.begin_s, rank))
                continue
            kind, key, amount, other = code[position]
            if kind == "recv" and (key, step) not in self.mail:
                self.waiting[key, step] = (rank, now)
                continue
            place[rank] = (step, position + 1)
            if kind == "recv":
                end = self._receive(now, rank, self.mail.pop((key, step)), amount)
            elif kind == "send":
                end = self._send(now, rank, other, (key, step), amount)
            else:
                end = self._compute(now, rank, amount)
            heapq.heappush(self.events, (end, rank))
        stuck = [rank for rank in range(count) if len(ends[rank]) < steps]
        if stuck:
            who = f"{len(stuck)} ranks, rank {stuck[0]} the first of them, wait"
            raise ValueError(f"{who} for messages that nobody sends: {list(self.waiting)[:3]} (source, destination, number; step)")
        sent = [amount for code in self.code for kind, _, amount, _ in code if kind == "send"]
        last = ends[0][-1] - (ends[0][-2] if steps > 1 else 0.0)
        return Replayed(last, [seconds / steps for seconds in self.busy], len(sent), int(sum(sent)))

    def _compute(self, now: float, rank: int, seconds: float) -> float:
        self.busy[rank] += seconds
        if not self.cores:
            return now + seconds
        start = max(now, heapq.heappop(self.cores))
        heapq.heappush(self.cores, start + seconds)
        return start + seconds

    def _send(self, now: float, rank: int, to: int, key: tuple[object, int], nbytes: float) -> float:
        costs, size = self.costs, int(nbytes)
        end = self._compute(now, rank, costs.send_s)
        head = max(end, self.out_free[rank]) + costs.message_s(0)
        port_s = costs.port_s(size)
        whole = max(head - costs.message_s(0) + costs.message_s(size), self.in_free[to] + port_s)
        if not costs.receiver_copies:
            self.out_free[rank] = max(end, self.out_free[rank]) + port_s
            self.in_free[to] = whole
        self.mail[key] = (head, whole)
        if key in self.waiting:
            waiter, since = self.waiting.pop(key)
            heapq.heappush(self.events, (max(since, now), waiter))
        return end

    def _receive(self, now: float, rank: int, came: tuple[float, float], nbytes: float) -> float:
        head, whole = came
        costs = self.costs
        if not costs.receiver_copies:
            return self._compute(max(now, whole), rank, costs.recv_s)
        return self._compute(max(now, head), rank, costs.recv_s + costs.message_s(int(nbytes)) - costs.message_s(0))


_Code = tuple[str, object, float, int]  # what, which message, seconds or bytes, the other rank


def _compile(linked: RankProgram, costs: Costs) -> list[_Code]:
    """What the simulation must know of each instruction. The k-th transfer between two ranks is the same one on both sides."""
    code: list[_Code] = []
    numbers: dict[int, int] = {}
    pairs: dict[tuple[int, int], int] = defaultdict(int)
    for transfer in linked.program.transfers:
        pair = (transfer.src_rank, transfer.dst_rank)
        numbers[transfer.index] = pairs[pair]
        pairs[pair] += 1
    for instruction in linked.program.instructions:
        if isinstance(instruction, Send | Recv):
            transfer = instruction.transfer
            if transfer.nbytes is None:
                raise ValueError(f"the size of {transfer} isn't known while compiling; give its tensor a static shape")
            src, dst = linked.ranks[transfer.src_rank], linked.ranks[transfer.dst_rank]
            key = (src, dst, numbers[transfer.index])
            code.append(("send" if isinstance(instruction, Send) else "recv", key, float(transfer.nbytes), dst))
        elif isinstance(instruction, Run):
            code.append(("run", None, costs.run_s(instruction.op), -1))
        else:
            assert isinstance(instruction, Read | Move), instruction
            code.append(("run", None, costs.call_s, -1))
    return code
