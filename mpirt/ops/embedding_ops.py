"""Rows of a table that may be cut into shards on several tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.ops.apply import apply_op, convert_to_tensor, unimplemented
from mpirt.ops.array_ops import reshape, shape, size
from mpirt.ops.concat_ops import concat
from mpirt.ops.gather_ops import gather
from mpirt.ops.partition_ops import dynamic_partition
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
    params : the table, or a list of its shards
    ids : integers of any shape
    partition_strategy : where row ``i`` of n shards lies: "mod", in shard ``i % n``; "div", in shards of consecutive rows, of
        which the first have one more row if they can't be equal
    name : name scope of the operations
    validate_indices : ignored, as in TensorFlow; ids are always checked
    max_norm : not supported

    Returns
    -------
    Tensor of shape ``ids.shape + params[0].shape[1:]``

    Notes
    -----
    A variable made with a partitioner is cut into consecutive rows: "div" is the strategy that finds them.
    """
    if max_norm is not None:
        raise unimplemented("embedding_lookup with max_norm")
    if partition_strategy not in ("mod", "div"):
        raise ValueError(f"partition_strategy must be 'mod' or 'div', not {partition_strategy!r}.")
    shards = list(params) if isinstance(params, list | tuple) or hasattr(params, "_get_variable_list") else [params]
    if not shards:
        raise ValueError("Need at least one param")
    graph = get_default_graph()
    with graph.name_scope(name or "embedding_lookup"):
        ids = convert_to_tensor(ids)
        if len(shards) == 1:
            with graph.colocate_with(_owner(shards[0])):
                return gather(shards[0], ids)
        flat = reshape(ids, [-1])
        owner, row = (_mod if partition_strategy == "mod" else _div)(flat, shards)
        n = len(shards)
        rows = dynamic_partition(row, owner, n)
        places = dynamic_partition(apply_op("Range", 0, size(flat), 1), owner, n)
        found = []
        for shard, part in zip(shards, rows, strict=True):
            with graph.colocate_with(_owner(shard)):
                found.append(gather(shard, part))
        merged = apply_op("ParallelDynamicStitch", places, found)
        return _shaped(merged, ids, found[0])


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
