"""Which reductions may share messages: many small tensors, packed side by side into a bucket, cost as few as one.

Owns: what may share, and how much. Neighbours: ``schedule`` brings them next to one another, ``exchange`` packs neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mpirt.compiler.partition import message_nbytes
from mpirt.graph.graph import Operation
from mpirt.graph.shapes import is_static
from mpirt.ops.collective_ops import HUBS, REDUCE

BUCKET_NBYTES = 1 << 20  # of a full bucket; larger tensors gain nothing by company


def is_collective(op: Operation) -> bool:
    """Whether several tasks compute ``op`` together."""
    return op.type in HUBS


def kind_of(op: Operation) -> object:
    """Equal for reductions that may share a bucket if the same tasks take part; None for an operation that never does."""
    if op.type != REDUCE:
        return None
    first = op.inputs[0].static_shape
    if not is_static(first) or any(t.static_shape != first for t in op.inputs) or nbytes_of(op) > BUCKET_NBYTES:
        return None
    return op.attrs["reduction"], op.attrs["divisor"], op.inputs[0].dtype.base_dtype


def nbytes_of(op: Operation) -> int:
    """Bytes that a reduction takes in its bucket."""
    return message_nbytes(op.inputs[0].dtype.base_dtype, op.inputs[0].static_shape) or 0


def filled(ops: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Reductions of one kind, in order, in as many buckets as they need."""
    bucket: list[Operation] = []
    nbytes = 0
    for op in ops:
        if bucket and nbytes + nbytes_of(op) > BUCKET_NBYTES:
            yield bucket
            bucket, nbytes = [], 0
        bucket.append(op)
        nbytes += nbytes_of(op)
    if bucket:
        yield bucket
