"""The one order of a step: what the longest chain waits for comes first.

All programs are projections of this order. It is a topological order because an operation's level is greater than
that of everything that depends on it; equal levels keep creation order, so every rank finds the same one.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from mpirt.compiler.placer import Placement
from mpirt.compiler.prune import control_producers
from mpirt.graph.graph import Operation, Tensor

_OP_COST = 1
_CROSSING_COST = 8  # a message costs as much as some small operations


def schedule(needed: Sequence[Operation], placement: Placement, feeds: Set[Tensor] = frozenset()) -> list[Operation]:
    """The operations ``needed`` (in creation order) in the order in which a step runs them."""
    level = dict.fromkeys(needed, _OP_COST)
    for op in reversed(needed):
        task, own = placement[op].task, level[op]
        for producer in _producers(op, feeds):
            cost = _OP_COST if placement[producer].task == task else _OP_COST + _CROSSING_COST
            if level[producer] < own + cost:
                level[producer] = own + cost
    return sorted(needed, key=lambda op: (-level[op], op.index))


def _producers(op: Operation, feeds: Set[Tensor]) -> list[Operation]:
    return [t.op for t in op.inputs if t not in feeds] + control_producers(op, feeds)
