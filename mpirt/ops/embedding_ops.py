"""Rows of a table that may be cut into shards on several tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.array_ops import rank, reshape, shape, size
from mpirt.ops.clip_ops import clip_by_norm
from mpirt.ops.concat_ops import concat
from mpirt.ops.gather_ops import gather
from mpirt.ops.partition_ops import dynamic_partition
from mpirt.ops.partitioned_variables import PartitionedVariable
from mpirt.ops.select_ops import where
from mpirt.ops.slice_ops import strided_slice

__all__ = ["embedding_lookup"]


def embedding_lookup(
    params: Any,
    ids: Any,
    partition_strategy: str = "mod",
    name: str | None = None,
    validate_indices: bool = True,
    max_norm: Any = None,
) -> Tensor:
    """The rows ``ids`` of a table, each read on the task of its shard.

    Parameters
    ----------
    params : the table, a list of its shards, or a variable made with a partitioner along its first dimension
    ids : integers of any shape
    partition_strategy : where row ``i`` of n shards lies: "mod", in shard ``i % n``; "div", in shards of consecutive rows, of
        which the first have one more row if they can't be equal
    name : name scope of the operations
    validate_indices : ignored, as in TensorFlow; ids are always checked
    max_norm : rows that are longer (their Euclidean norm over all but the first dimension) are scaled to this length

    Returns
    -------
    Tensor of shape ``ids.shape + params[0].shape[1:]``

    Raises
    ------
    ValueError
        If a variable that is cut into consecutive rows is to be looked up by "mod", which would find other rows (TensorFlow
        returns these), or isn't cut along its first dimension.
    InvalidArgumentError
        In the step, for an id outside the table.

    Notes
    -----
    The ids go to the tasks of the shards, and the rows come back. The gradient of each shard is IndexedSlices, in which
    optimizers sum the rows of repeated ids before they are sent.
    """
    if partition_strategy not in ("mod", "div"):
        raise ValueError(f"partition_strategy must be 'mod' or 'div', not {partition_strategy!r}.")
    shards = _shards(params, partition_strategy)
    graph = get_default_graph()
    with graph.name_scope(name or "embedding_lookup") as scope:
        ids = convert_to_tensor(ids, name="ids")
        if len(shards) == 1:
            with graph.colocate_with(_owner(shards[0])):
                return _clipped(gather(shards[0], ids, name=scope if max_norm is None else None), ids, max_norm)
        flat = reshape(ids, [-1])
        owner, row = (_mod if partition_strategy == "mod" else _div)(flat, shards)
        n = len(shards)
        rows = dynamic_partition(row, owner, n)
        places = dynamic_partition(apply_op("Range", 0, size(flat), 1), owner, n)
        found = []
        for shard, part in zip(shards, rows, strict=True):
            with graph.colocate_with(_owner(shard)):
                found.append(gather(shard, part))
        merged = apply_op("ParallelDynamicStitch", places, found, name=scope)
        return _clipped(_shaped(merged, ids, found[0]), ids, max_norm)


def _shards(params: Any, strategy: str) -> list[Any]:
    """The tables that ``strategy`` chooses from."""
    if isinstance(params, PartitionedVariable):
        axis = params._partition_axes()[0]
        if axis != 0:
            raise ValueError(
                f"embedding_lookup needs a table whose rows are in one piece, but {params!r} is cut along dimension {axis}.\n"
                f"  Mend: make it with a partitioner along axis 0."
            )
        if strategy == "mod" and len(params) > 1:
            raise ValueError(
                f"embedding_lookup with partition_strategy='mod' would find other rows of {params!r}: its slices are"
                " consecutive rows.\n  Mend: partition_strategy='div'."
            )
        return list(params)
    if not isinstance(params, list | tuple):
        return [params]
    if not params:
        raise ValueError("Need at least one param")
    return [p.as_tensor() if isinstance(p, PartitionedVariable) else p for p in params]


def _clipped(rows: Tensor, ids: Tensor, max_norm: Any) -> Tensor:
    """``rows``, one for each of ``ids``, with norms of at most ``max_norm``."""
    if max_norm is None:
        return rows
    if ids.static_shape is not None and rows.static_shape is not None:
        axes: Any = list(range(len(ids.static_shape), len(rows.static_shape)))
    else:
        axes = apply_op("Range", rank(ids), rank(rows), 1)
    clipped: Tensor = clip_by_norm(rows, max_norm, axes)
    return clipped


def _owner(shard: Any) -> Any:
    return shard if isinstance(shard, Tensor) or hasattr(shard, "_as_graph_element") else getattr(shard, "op", shard)


def _mod(ids: Tensor, shards: list[Any]) -> tuple[Tensor, Tensor]:
    n = np.array(len(shards), ids.dtype.np_dtype)
    return _int32(apply_op("FloorMod", ids, n)), apply_op("FloorDiv", ids, n)


def _div(ids: Tensor, shards: list[Any]) -> tuple[Tensor, Tensor]:
    """The first ``total % n`` shards have one row more than the others."""
    kind = ids.dtype.base_dtype
    known = [_static_rows(s) for s in shards]
    total: Any
    if None not in known:
        total = sum(k for k in known if k is not None)
        rows, extra = (np.array(v, kind.np_dtype) for v in divmod(total, len(shards)))
        one_more = np.array(rows + 1, kind.np_dtype)
    else:
        counts = []
        for shard in shards:
            with get_default_graph().colocate_with(_owner(shard)):
                counts.append(strided_slice(shape(shard, out_type=kind), [0], [0], [1], shrink_axis_mask=1))
        total, n = apply_op("AddN", counts), np.array(len(shards), kind.np_dtype)
        rows, extra = apply_op("FloorDiv", total, n), apply_op("FloorMod", total, n)
        one_more = apply_op("Add", rows, np.ones((), kind.np_dtype))
    behind = apply_op("Sub", ids, extra)
    # Where no shard has a row beside the extra ones the division is by 0 for rows that the first case takes.
    at_least_one = apply_op("Maximum", rows, np.ones((), kind.np_dtype))
    owner = apply_op("Maximum", apply_op("FloorDiv", ids, one_more), apply_op("FloorDiv", behind, at_least_one))
    early = apply_op("Less", owner, extra)
    row = where(early, apply_op("FloorMod", ids, one_more), apply_op("FloorMod", behind, at_least_one))
    return _int32(owner), row


def _static_rows(shard: Any) -> int | None:
    known = convert_to_tensor(shard).static_shape
    return None if known is None else known[0]


def _int32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is dtypes.int32 else apply_op("Cast", tensor, DstT=dtypes.int32)


def _shaped(merged: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """The rows ``merged`` in the shape of ``ids``."""
    tail = rows.static_shape[1:] if rows.static_shape is not None else None
    if tail is not None and None not in tail:
        end: Any = np.array(tail, np.int32)
    else:
        end = strided_slice(shape(rows), [1], [0], [1], end_mask=1)
    out = reshape(merged, concat([shape(ids), end], 0))
    if ids.static_shape is not None and tail is not None:
        out.set_shape(ids.static_shape + tail)
    return out
