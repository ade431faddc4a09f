"""The end of a collective step: which ranks tell which that all has run.

Every operation of a plan is an ancestor of a fetch, so a rank that knows that the fetches have run knows of every failure. A fetched
value that reaches all ranks says so by itself. Of the operations that nobody needs and whose value doesn't travel (*tails*) ranks
tell each other with tokens of one byte: those that run tails tell up a tree, behind all else that they do, and its root, which then
knows all, tells down a tree of all ranks. Two ranks that both run tails tell each other at once. Guarantees:

- in O(log N) hops, each rank at most `WIDTH` + 1 tokens up and as many down;
- a rank that failed sends its tokens dead, so a token that is alive says that all behind its sender went well, and one dead token
  reaches all ranks by way of the root;
- no deadlock: tokens start behind all that a rank runs, those down behind those up;
- where the plan's data flow says as much already, there is no token: where one rank runs all tails nobody tells up, and where all
  ranks meet on a board behind all else (`runtime.meetings`) nobody tells anybody: who leaves the board has seen that all have done
  their work;
- a NoOp at the end of a step (`group`), which only waits, needn't be told by those that it waits for: all ranks are told anyway.

Owns: what ends a step, the tree. Does not own: messages (``linker`` makes the tokens transfers as any other).
Background: the tree is one of ranges, so that on hosts with neighbouring ranks most tokens stay on a host.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from mpirt.cluster.task import Task
from mpirt.compiler.exchange import Exchange
from mpirt.compiler.partition import Plan
from mpirt.graph.graph import Operation, Tensor

WIDTH = 8  # children of a rank; on paper as good as any or better on 4 to 10,000 ranks, and 6 and 16 hardly worse


class Token(NamedTuple):
    """Says that all that its sender knows of has run."""

    src: int
    dst: int
    op: Operation  # of the end that it tells of


@dataclass(frozen=True, slots=True)
class Tails:
    """What a step ends with.

    Attributes
    ----------
    of_rank : for each rank that runs tails its last one; the rank that comes last in the plan's order first
    last_idle : the last NoOp behind which nothing runs, and its rank
    idle : all of them
    needless : edges that only they wait for
    """

    of_rank: dict[int, Operation]
    last_idle: tuple[Operation, int] | None
    idle: frozenset[Operation]
    needless: frozenset[int]


def find_tails(plan: Plan, rank_of: Callable[[Task], int], values_reach_all: bool) -> Tails:
    """The tails of ``plan``; ``values_reach_all``: every fetched value is sent to every rank."""
    fed = frozenset(plan.feeds)
    values = {fetch for fetch in plan.fetches if isinstance(fetch, Tensor) and values_reach_all}
    told = {tensor.op for tensor in values if tensor not in fed}
    asked = frozenset(plan.fetches) - values
    needed: set[Operation] = set()
    found: dict[int, Operation] = {}
    last_idle: tuple[Operation, int] | None = None
    idle: set[Operation] = set()
    waited, spared = set[int](), set[int]()
    for op, device, given, waits, _ in reversed(plan.nodes):
        if given is not None:  # if it doesn't fit, what was asked for fails, though nothing runs
            if given in asked or op in asked:
                found.setdefault(rank_of(device.task), op)
            continue
        if op not in needed:
            if op.type == "NoOp":
                last_idle = last_idle or (op, rank_of(device.task))
                idle.add(op)
                spared.update(waits)
                continue
            if op not in told:
                found.setdefault(rank_of(device.task), op)
        waited.update(waits)
        needed.update([t.op for t in op.inputs if t not in fed])
        needed.update(op.control_inputs)
    return Tails(found, last_idle, frozenset(idle), frozenset(spared - waited))


def meeting_at_the_end(
    plan: Plan, tails: Tails, exchanges: Mapping[Operation, Exchange], shared: Set[Operation], num_ranks: int
) -> Exchange | None:
    """The exchange at which all ranks meet on a board, with nothing behind it that can fail.

    Parameters
    ----------
    exchanges : by the last of their collectives
    shared : all collectives that ranks compute together
    """
    if not shared or any(isinstance(fetch, Tensor) and plan.device_of(fetch).type != "CPU" for fetch in plan.fetches):
        return None
    for op, device, given, waits, _ in reversed(plan.nodes):
        if given is None and op in shared:
            exchange = exchanges.get(op)
            return exchange if exchange is not None and exchange.meets and len(exchange.ranks) == num_ranks else None
        passes = op in tails.idle or op.type in ("Identity", "NoOp") and not waits and device.type == "CPU"
        if given is not None or not passes:
            return None
    return None


class End:
    """Who tells whom that a step has ended; without arguments nobody anybody.

    Parameters
    ----------
    tails : of the step
    num_ranks : of the job
    """

    def __init__(self, tails: Tails | None = None, num_ranks: int = 1) -> None:
        self._last = tails.of_rank if tails is not None and num_ranks > 1 else {}
        self._tellers: Sequence[int] = ()
        self._all: Sequence[int] = ()
        if tails is None or not self._last:
            return
        root = next(iter(self._last))
        self._asked = self._last[root]
        if tails.last_idle is not None:
            self._asked, home = tails.last_idle
            root = home if home in self._last else root
        self._tellers = [root, *sorted(self._last.keys() - {root})]
        self._all = [root, *range(root), *range(root + 1, num_ranks)]

    def tokens(self) -> Iterator[Token]:
        """All tokens of all ranks, in an order that all find alike."""
        for above, below in pairs(self._tellers):
            yield Token(below, above, self._last[below])
        for above, below in pairs(self._all):
            yield Token(above, below, self._asked)

    def of(self, rank: int) -> Iterator[tuple[int, int]]:
        """(source, destination) of the tokens that ``rank`` sends and receives, in its order."""
        if len(self._tellers) == len(self._all) == 2:
            yield from ((rank, 1 - rank), (1 - rank, rank))
            return
        above, below = relatives(self._tellers, rank)
        yield from ((each, rank) for each in below)
        if above is not None:
            yield rank, above
        above, below = relatives(self._all, rank)
        if above is not None:
            yield above, rank
        yield from ((rank, each) for each in below)


def pairs(ranks: Sequence[int], width: int = WIDTH) -> Iterator[tuple[int, int]]:
    """(parent, child) of the tree over ``ranks``, whose root is the first."""
    found = [(0, len(ranks))]
    for start, stop in found:
        below = _shares(start + 1, stop, width)
        found += below
        yield from ((ranks[start], ranks[first]) for first, _ in below)


def relatives(ranks: Sequence[int], rank: int, width: int = WIDTH) -> tuple[int | None, list[int]]:
    """Parent and children of ``rank`` in the tree over ``ranks``, which ascend behind the first; none if it isn't one of them."""
    position = 0 if ranks and ranks[0] == rank else bisect_left(ranks, rank, 1) if ranks else 0
    if position >= len(ranks) or ranks[position] != rank:
        return None, []
    above, start, stop = None, 0, len(ranks)
    while start != position:
        above = ranks[start]
        start, stop = next((first, end) for first, end in _shares(start + 1, stop, width) if position < end)
    return above, [ranks[first] for first, _ in _shares(start + 1, stop, width)]


def _shares(start: int, stop: int, width: int) -> list[tuple[int, int]]:
    """What is from ``start`` to ``stop`` in ``width`` ranges of about the same length, none of them empty."""
    count = min(width, stop - start)
    ends = [start + (stop - start) * i // count for i in range(count + 1)] if count > 0 else []
    return list(zip(ends[:-1], ends[1:], strict=True))
