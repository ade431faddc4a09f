"""The one order of a step: what the longest chain waits for comes first.

All programs are projections of this order. It is a topological order because an operation's level is greater than
that of everything that depends on it; equal levels keep creation order, so every rank finds the same one.
Small reductions of the same kind over the same tasks come next to one another, so that they can share messages
(``compiler.exchange``), if none depends on another: see `bring_together`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence, Set

from mpirt.compiler.buckets import filled, is_collective, kind_of
from mpirt.compiler.placer import Placement
from mpirt.compiler.prune import control_producers
from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.collective_ops import HUBS

_OP_COST = 1
_CROSSING_COST = 8  # a message costs as much as some small operations


def schedule(needed: Sequence[Operation], placement: Placement, feeds: Set[Tensor] = frozenset()) -> list[Operation]:
    """The operations ``needed`` (in creation order) in the order in which a step runs them."""
    level = dict.fromkeys(needed, _OP_COST)
    for op in reversed(needed):
        device, beside = placement[op], level[op] + _OP_COST
        for tensor in op.inputs:
            producer = tensor.op
            if tensor not in feeds:
                there = placement[producer]
                before = beside if there is device or there.task == device.task else beside + _CROSSING_COST
                if level[producer] < before:
                    level[producer] = before
        for producer in control_producers(op, feeds) if op.control_inputs else ():
            before = beside if placement[producer].task == device.task else beside + _CROSSING_COST
            level[producer] = max(level[producer], before)
    return bring_together(sorted(needed, key=level.__getitem__, reverse=True), placement, feeds)  # equal ones keep their order


def bring_together(order: Sequence[Operation], placement: Placement, feeds: Set[Tensor] = frozenset()) -> list[Operation]:
    """A topological order in which reductions that may share messages are neighbours; otherwise as close to ``order`` as that allows.

    No cycle can come of it: those that are brought together have the same *depth*, the largest number of collectives on a way to
    them. So none is on a way to another; and every way from such a group to a collective behind it leads to a greater depth, so
    none leads from a group, through others, back to it.
    """
    if HUBS.isdisjoint([op.type for op in order]):
        return list(order)
    depth: dict[Operation, int] = {}
    alike: dict[object, list[Operation]] = {}
    for op in order:
        kind = kind_of(op)
        depth[op] = before = max([depth[p] + is_collective(p) for p in _producers(op, feeds)], default=0)
        if kind is not None:
            tasks = tuple([placement[t.op].task for t in op.inputs])
            alike.setdefault((before, kind, tasks), []).append(op)
    units = [unit for group in alike.values() for unit in filled(group) if len(unit) > 1]
    if not units:
        return list(order)
    unit_of = {op: tuple(unit) for unit in units for op in unit}
    position = {op: i for i, op in enumerate(order)}
    waiting: dict[tuple[Operation, ...], int] = {}
    readers: dict[tuple[Operation, ...], list[tuple[Operation, ...]]] = {}
    for op in order:
        unit = unit_of.get(op, (op,))
        producers = {unit_of.get(p, (p,)) for p in _producers(op, feeds)}
        waiting[unit] = waiting.get(unit, 0) + len(producers)
        for producer in producers:
            readers.setdefault(producer, []).append(unit)
    ready = [(position[unit[-1]], unit) for unit, count in waiting.items() if not count]
    heapq.heapify(ready)
    found: list[Operation] = []
    while ready:
        _, unit = heapq.heappop(ready)
        found.extend(unit)
        for reader in readers.get(unit, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (position[reader[-1]], reader))
    assert len(found) == len(order), "reductions that were brought together depend on one another"
    return found


def _producers(op: Operation, feeds: Set[Tensor]) -> list[Operation]:
    return [t.op for t in op.inputs if t not in feeds] + control_producers(op, feeds)
