"""The part of a graph that a step needs: what the fetches depend on, cut at the fed tensors."""

from __future__ import annotations

from collections.abc import Iterable, Set
from operator import attrgetter

from mpirt.graph.graph import Operation, Tensor

PLACEHOLDERS = ("Placeholder", "PlaceholderV2")  # operations that can't run


def prune(fetches: Iterable[Tensor | Operation], feeds: Set[Tensor] = frozenset()) -> list[Operation]:
    """Operations that must run, in creation order.

    A fed tensor replaces the output of its operation, which runs only if another of its outputs, or its effect, is needed.
    """
    needed: set[Operation] = set()
    stack = [f if isinstance(f, Operation) else f.op for f in fetches if f not in feeds]
    while stack:
        op = stack.pop()
        if op in needed:
            continue
        needed.add(op)
        for tensor in op.inputs:
            if tensor.op not in needed and tensor not in feeds:
                stack.append(tensor.op)
        if op.control_inputs:
            stack.extend(control_producers(op, feeds))
    return sorted(needed, key=attrgetter("index"))


def control_producers(op: Operation, feeds: Set[Tensor]) -> list[Operation]:
    """Operations that must have run before ``op``; a placeholder that is fed doesn't run, its value is there from the start."""
    return [c for c in op.control_inputs if not (c.type in PLACEHOLDERS and c.outputs[0] in feeds)]
