"""Sorting rows into groups and back, and the distinct values of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX, DType, int32, int64
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, compatible, merge, text, with_rank
from mpirt.ops.apply import apply_op
from mpirt.ops.array_ops import reshape, reshape_like, shape, size
from mpirt.ops.concat_ops import zeros_for_missing
from mpirt.ops.gather_ops import check_indices
from mpirt.ops.row_updates import set_rows

__all__ = ["dynamic_partition", "dynamic_stitch", "setdiff1d", "unique", "unique_with_counts"]

# --------------------------------------------------------------------------------------------- partition and stitch


def dynamic_partition(data: Any, partitions: Any, num_partitions: int, name: str | None = None) -> list[Tensor]:
    """The rows of ``data`` in ``num_partitions`` tensors, each row in the one that ``partitions`` says, in order.

    Parameters
    ----------
    data : Tensor whose shape begins with that of ``partitions``
    partitions : int32 in [0, num_partitions)
    num_partitions : number of results
    name : name of the operation
    """
    out: list[Tensor] = apply_op("DynamicPartition", data, partitions, name=name, num_partitions=num_partitions)
    return out


@register_op("DynamicPartition", inputs=["data: T", "partitions: int32"], outputs=["outputs: num_partitions*T"], T=ALL)
def _dynamic_partition_shape(ctx: ShapeContext) -> list[Shape]:
    data, partitions, count = ctx.shape("data"), ctx.shape("partitions"), ctx.attr("num_partitions")
    if data is None or partitions is None:
        return [None] * count
    if len(partitions) > len(data) or not compatible(data[: len(partitions)], partitions):
        raise ValueError(f"the shape {text(data)} of data doesn't begin with {text(partitions)}, the shape of partitions")
    return [(None, *data[len(partitions) :])] * count


@register_kernel("DynamicPartition")
def _dynamic_partition(ctx: KernelContext, data: Any, partitions: Any, *, num_partitions: int) -> Any:
    if data.shape[: partitions.ndim] != partitions.shape:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: the shape {text(data.shape)} of data doesn't begin with {text(partitions.shape)}, the shape of partitions.",
            op=ctx.op,
        )
    check_indices(ctx, partitions, num_partitions, "partitions")
    return [data[partitions == i] for i in range(num_partitions)]


@register_gradient("DynamicPartition")
def _dynamic_partition_grad(op: Operation, *dys: Any) -> list[Any]:
    data, partitions = op.inputs
    places = reshape_like(apply_op("Range", 0, size(partitions), 1), partitions)
    where_from = apply_op("DynamicPartition", places, partitions, num_partitions=len(dys))
    merged = apply_op("ParallelDynamicStitch", where_from, zeros_for_missing(op, dys))
    return [reshape(merged, shape(data)), None]


def dynamic_stitch(indices: Sequence[Any], data: Sequence[Any], name: str | None = None) -> Tensor:
    """One tensor whose row ``indices[m][i]`` is ``data[m][i]``; the last one counts where an index is repeated.

    Rows that no index names are zeros.
    """
    out: Tensor = apply_op("DynamicStitch", list(indices), list(data), name=name)
    return out


@register_op("DynamicStitch", inputs=["indices: N*int32", "data: N*T"], outputs=["merged: T"], T=ALL)
@register_op("ParallelDynamicStitch", inputs=["indices: N*int32", "data: N*T"], outputs=["merged: T"], T=ALL)
def _dynamic_stitch_shape(ctx: ShapeContext) -> list[Shape]:
    count = ctx.attr("N")
    tail: Shape = None
    rows: int | None = 0
    for tensor, form, data in zip(ctx.inputs[:count], ctx.shapes("indices"), ctx.shapes("data"), strict=True):
        value = constants.value(tensor)
        rows = None if value is None or rows is None else max(rows, int(value.max(initial=-1)) + 1)
        if form is None or data is None:
            continue
        if len(form) > len(data) or not compatible(data[: len(form)], form):
            raise ValueError(f"the shape {text(data)} of data doesn't begin with {text(form)}, the shape of its indices")
        tail = merge(tail, data[len(form) :])
    return [None if tail is None else (rows, *tail)]


@register_kernel("DynamicStitch", "ParallelDynamicStitch")
def _dynamic_stitch(ctx: KernelContext, *inputs: Any) -> Any:
    indices, data = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    tail = data[0].shape[indices[0].ndim :]
    for m, (i, d) in enumerate(zip(indices, data, strict=True)):
        if d.shape != i.shape + tail:
            raise errors.InvalidArgumentError(
                f"{ctx.op.name!r}: data[{m}] must have shape {text(i.shape + tail)}, not {text(d.shape)}.", op=ctx.op
            )
    rows = max((int(i.max()) + 1 for i in indices if i.size), default=0)
    out = ctx.xp.zeros((rows, *tail), data[0].dtype) if data[0].dtype != object else np.full((rows, *tail), b"", object)
    for i, d in zip(indices, data, strict=True):
        check_indices(ctx, i, max(rows, 0))
        set_rows(ctx.xp if out.dtype != object else np, out, i.reshape(-1), d.reshape(i.size, *tail))
    return out


@register_gradient("DynamicStitch", "ParallelDynamicStitch")
def _dynamic_stitch_grad(op: Operation, dy: Any) -> list[Any]:
    count = op.get_attr("N")
    return [None] * count + [apply_op("GatherV2", dy, indices, 0) for indices in op.inputs[:count]]


# ----------------------------------------------------------------------------------------------------- distinct values


def unique(x: Any, out_idx: Any = int32, name: str | None = None) -> tuple[Tensor, Tensor]:
    """The distinct values ``y`` of the vector ``x`` in the order of their first appearance, and ``idx``: ``y[idx] == x``."""
    y, idx = apply_op("Unique", x, name=name, out_idx=dtypes.as_dtype(out_idx))
    return y, idx


def unique_with_counts(x: Any, out_idx: Any = int32, name: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As ``unique``, and how often each value appears."""
    y, idx, count = apply_op("UniqueWithCounts", x, name=name, out_idx=dtypes.as_dtype(out_idx))
    return y, idx, count


_OUT_IDX: dict[str, Any] = {"out_idx": ("type", int32)}


@register_op("Unique", inputs=["x: T"], outputs=["y: T", "idx: out_idx"], attrs=_OUT_IDX, T=ALL, out_idx=INDEX)
def _unique_shape(ctx: ShapeContext) -> list[Shape]:
    return [(None,), with_rank(ctx.shape("x"), 1, "x")]


@register_op(
    "UniqueWithCounts",
    inputs=["x: T"],
    outputs=["y: T", "idx: out_idx", "count: out_idx"],
    attrs=_OUT_IDX,
    T=ALL,
    out_idx=INDEX,
)
def _unique_with_counts_shape(ctx: ShapeContext) -> list[Shape]:
    return [(None,), with_rank(ctx.shape("x"), 1, "x"), (None,)]


@register_op(
    "UniqueV2",
    inputs=["x: T", "axis: Taxis"],
    outputs=["y: T", "idx: out_idx"],
    attrs={"Taxis": ("type", int64), **_OUT_IDX},
    T=ALL,
    Taxis=INDEX,
    out_idx=INDEX,
)
def _unique_v2_shape(ctx: ShapeContext) -> list[Shape]:
    return [(None,), with_rank(ctx.shape("x"), 1, "x")]


def _distinct(ctx: KernelContext, x: Any, out_idx: DType) -> list[Any]:
    xp = ctx.xp
    if x.ndim != 1:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: unique needs a vector, not shape {text(x.shape)}.", op=ctx.op)
    options = {"equal_nan": False} if x.dtype.kind in "fc" else {}
    y, first, inverse, count = xp.unique(x, return_index=True, return_inverse=True, return_counts=True, **options)
    order = xp.argsort(first)  # numpy sorts the values; TensorFlow keeps the order of appearance
    place = xp.empty(order.shape, out_idx.np_dtype)
    place[order] = xp.arange(order.size, dtype=out_idx.np_dtype)
    return [y[order], place[inverse.reshape(-1)], count[order].astype(out_idx.np_dtype)]


@register_kernel("Unique")
def _unique(ctx: KernelContext, x: Any, *, out_idx: DType) -> Any:
    return _distinct(ctx, x, out_idx)[:2]


@register_kernel("UniqueWithCounts")
def _unique_with_counts(ctx: KernelContext, x: Any, *, out_idx: DType) -> Any:
    return _distinct(ctx, x, out_idx)


@register_kernel("UniqueV2", host=("axis",))
def _unique_v2(ctx: KernelContext, x: Any, axis: Any, *, out_idx: DType) -> Any:
    return _distinct(ctx, x, out_idx)[:2]


def setdiff1d(x: Any, y: Any, index_dtype: Any = int32, name: str | None = None) -> tuple[Tensor, Tensor]:
    """The elements of the vector ``x`` that aren't in ``y``, in order, and their positions in ``x``."""
    out, idx = apply_op("ListDiff", x, y, name=name, out_idx=dtypes.as_dtype(index_dtype))
    return out, idx


@register_op("ListDiff", inputs=["x: T", "y: T"], outputs=["out: T", "idx: out_idx"], attrs=_OUT_IDX, T=ALL, out_idx=INDEX)
def _list_diff_shape(ctx: ShapeContext) -> list[Shape]:
    with_rank(ctx.shape("x"), 1, "x"), with_rank(ctx.shape("y"), 1, "y")
    return [(None,), (None,)]


@register_kernel("ListDiff")
def _list_diff(ctx: KernelContext, x: Any, y: Any, *, out_idx: DType) -> Any:
    keep = ctx.xp.flatnonzero(~ctx.xp.isin(x, y))
    return [x[keep], keep.astype(out_idx.np_dtype)]


no_gradient("Unique", "UniqueV2", "UniqueWithCounts", "ListDiff", reason="not differentiable in TensorFlow either")
