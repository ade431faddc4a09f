"""Reductions of rows by segment number, and counts of numbers.

Sorted segments need non-decreasing numbers; unsorted ones take any, and rows with a negative number are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import INDEX, NUMERIC, REAL
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, compatible, text
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.cast_ops import cast
from mpirt.ops.row_updates import change_rows

__all__ = [
    "bincount", "segment_max", "segment_mean", "segment_min", "segment_prod", "segment_sum", "unsorted_segment_max",
    "unsorted_segment_mean", "unsorted_segment_min", "unsorted_segment_prod", "unsorted_segment_sqrt_n", "unsorted_segment_sum",
]  # fmt: skip

Grads = list[Tensor | None]


def _lowest(dtype: Any) -> Any:
    return np.finfo(dtype).min if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max


def _gather(x: Any, ids: Any) -> Tensor:
    result: Tensor = apply_op("GatherV2", x, ids, 0)
    return result


# ---------------------------------------------------------------------------------------------- sorted


def segment_sum(data: Any, segment_ids: Any, name: str | None = None) -> Tensor:
    """Sum of the rows of each segment; 0 where a number is missing.

    Parameters
    ----------
    data : Tensor, shape [N, ...]
    segment_ids : Tensor, shape [N], integers from 0 that don't decrease
    name : name of the operation
    """
    return _segment("SegmentSum", data, segment_ids, name)


def segment_mean(data: Any, segment_ids: Any, name: str | None = None) -> Tensor:
    """Mean of the rows of each segment; arguments as in ``segment_sum``."""
    return _segment("SegmentMean", data, segment_ids, name)


def segment_prod(data: Any, segment_ids: Any, name: str | None = None) -> Tensor:
    """Product of the rows of each segment, 1 where a number is missing; arguments as in ``segment_sum``."""
    return _segment("SegmentProd", data, segment_ids, name)


def segment_max(data: Any, segment_ids: Any, name: str | None = None) -> Tensor:
    """Largest of the rows of each segment; arguments as in ``segment_sum``."""
    return _segment("SegmentMax", data, segment_ids, name)


def segment_min(data: Any, segment_ids: Any, name: str | None = None) -> Tensor:
    """Smallest of the rows of each segment; arguments as in ``segment_sum``."""
    return _segment("SegmentMin", data, segment_ids, name)


def _segment(op_type: str, data: Any, segment_ids: Any, name: str | None) -> Tensor:
    result: Tensor = apply_op(op_type, data, segment_ids, name=name)
    return result


def _segment_shape(ctx: ShapeContext) -> list[Shape]:
    data, ids = ctx.shape("data"), ctx.shape("segment_ids")
    if ids is not None and len(ids) != 1:
        raise ValueError(f"segment_ids must be a vector, not of shape {text(ids)}")
    if data is None:
        return [None]
    if not data:
        raise ValueError("data must have at least one dimension")
    if not compatible(data[:1], ids):
        raise ValueError(f"data has {data[0]} rows, but segment_ids has {ids[0] if ids else None} numbers")
    known = ctx.const("segment_ids")
    return [((int(known[-1]) + 1 if known.size else 0) if known is not None else None, *data[1:])]


for _name in ("Sum", "Mean", "Prod", "Max", "Min"):
    register_op(
        f"Segment{_name}", inputs=["data: T", "segment_ids: Tindices"], outputs=["output: T"],
        T=REAL if _name[0] == "M" and _name != "Mean" else NUMERIC, Tindices=INDEX,
    )(_segment_shape)  # fmt: skip


def _starts(ctx: KernelContext, data: Any, ids: Any) -> tuple[Any, Any, int]:
    """First row of each segment that there is, its number, and how many segments the result has."""
    if ids.ndim != 1 or data.ndim < 1 or data.shape[0] != ids.shape[0]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: segment_ids of shape {ids.shape} don't name the rows of data of shape {data.shape}.", op=ctx.op
        )
    if not ids.size:
        return np.zeros(0, np.intp), ids, 0
    steps = np.diff(ids)
    if np.any(steps < 0) or ids[0] < 0:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: segment ids are negative or decrease: {ids[:16].tolist()}.", op=ctx.op)
    starts = np.concatenate([[0], np.flatnonzero(steps) + 1])
    return starts, ids[starts], int(ids[-1]) + 1


def reduce_sorted(ctx: KernelContext, ufunc: Any, data: Any, ids: Any, neutral: Any) -> Any:
    starts, numbers, count = _starts(ctx, data, ids)
    if not starts.size:
        return np.empty((0, *data.shape[1:]), data.dtype)
    rows = ufunc.reduceat(data, starts, axis=0, dtype=data.dtype)
    if len(numbers) == count:
        return rows
    out = np.full((count, *data.shape[1:]), neutral, data.dtype)
    out[numbers] = rows
    return out


@register_kernel("SegmentSum", devices=("CPU",))
def _segment_sum(ctx: KernelContext, data: Any, ids: Any) -> Any:
    return reduce_sorted(ctx, np.add, data, ids, 0)


@register_kernel("SegmentProd", devices=("CPU",))
def _segment_prod(ctx: KernelContext, data: Any, ids: Any) -> Any:
    return reduce_sorted(ctx, np.multiply, data, ids, 1)


@register_kernel("SegmentMax", devices=("CPU",))
def _segment_max(ctx: KernelContext, data: Any, ids: Any) -> Any:
    return reduce_sorted(ctx, np.maximum, data, ids, 0)


@register_kernel("SegmentMin", devices=("CPU",))
def _segment_min(ctx: KernelContext, data: Any, ids: Any) -> Any:
    return reduce_sorted(ctx, np.minimum, data, ids, 0)


@register_kernel("SegmentMean", devices=("CPU",))
def _segment_mean(ctx: KernelContext, data: Any, ids: Any) -> Any:
    total = reduce_sorted(ctx, np.add, data, ids, 0)
    counts = np.maximum(np.bincount(ids, minlength=len(total)), 1).reshape((-1,) + (1,) * (data.ndim - 1))
    if data.dtype.kind in "iu":
        return (np.sign(total) * (abs(total) // counts)).astype(data.dtype)
    return (total / counts.astype(total.real.dtype)).astype(data.dtype, copy=False)


@register_gradient("SegmentSum")
def _segment_sum_grad(op: Operation, dy: Tensor) -> Grads:
    return [_gather(dy, op.inputs[1]), None]


@register_gradient("SegmentMean")
def _segment_mean_grad(op: Operation, dy: Tensor) -> Grads:
    data, ids = op.inputs
    counts = segment_sum(_ones_beside(ids, data, dy), ids)
    return [_gather(dy / counts, ids), None]


def _ones_beside(ids: Tensor, data: Tensor, dy: Tensor) -> Tensor:
    """A one for each row of ``data``, of shape [N, 1, ...], in the dtype of ``dy``."""
    ndim = apply_op("Rank", data)
    shape = apply_op("ConcatV2", [apply_op("Shape", ids), apply_op("Fill", [ndim - 1], 1)], 0)
    result: Tensor = apply_op("Fill", shape, apply_op("Cast", 1, DstT=dy.dtype.base_dtype))
    return result


@register_gradient("SegmentMax", "SegmentMin")
def _segment_extreme_grad(op: Operation, dy: Tensor) -> Grads:
    """Shared equally by all rows that hold the extreme."""
    data, ids = op.inputs
    chosen = cast(apply_op("Equal", data, _gather(op.outputs[0], ids)), dy.dtype)
    return [chosen * _gather(dy / segment_sum(chosen, ids), ids), None]


@register_gradient("SegmentProd")
def _segment_prod_grad(op: Operation, dy: Tensor) -> Grads:
    data, ids = op.inputs
    others = _product_of_others(data, ids, lambda rows: segment_prod(rows, ids), lambda rows: segment_sum(rows, ids), op.outputs[0])
    return [_gather(dy, ids) * others, None]


def _product_of_others(data: Tensor, ids: Tensor, product: Any, total: Any, whole: Tensor) -> Tensor:
    """For each row the product of the other rows of its segment, right also where one row is 0."""
    zero = apply_op("Equal", data, 0)
    zeros = _gather(total(cast(zero, dtypes.int32)), ids)
    filled = apply_op("SelectV2", zero, 1, data)
    without_zeros = _gather(product(filled), ids)
    if_zero = apply_op("SelectV2", apply_op("Equal", zeros, 1), without_zeros, 0)
    result: Tensor = apply_op("SelectV2", zero, if_zero, _gather(whole, ids) / filled)
    return result


# ---------------------------------------------------------------------------------------------- unsorted


def unsorted_segment_sum(data: Any, segment_ids: Any, num_segments: Any, name: str | None = None) -> Tensor:
    """Sum of the rows of each segment; 0 where a number is missing.

    Parameters
    ----------
    data : Tensor whose first dimensions are those of ``segment_ids``
    segment_ids : integer Tensor, any order; rows with a negative number are left out
    num_segments : how many segments the result has
    name : name of the operation
    """
    return _unsorted("UnsortedSegmentSum", data, segment_ids, num_segments, name)


def unsorted_segment_prod(data: Any, segment_ids: Any, num_segments: Any, name: str | None = None) -> Tensor:
    """Product of the rows of each segment, 1 where a number is missing; arguments as in ``unsorted_segment_sum``."""
    return _unsorted("UnsortedSegmentProd", data, segment_ids, num_segments, name)


def unsorted_segment_max(data: Any, segment_ids: Any, num_segments: Any, name: str | None = None) -> Tensor:
    """Largest of the rows of each segment, the dtype's lowest value where a number is missing."""
    return _unsorted("UnsortedSegmentMax", data, segment_ids, num_segments, name)


def unsorted_segment_min(data: Any, segment_ids: Any, num_segments: Any, name: str | None = None) -> Tensor:
    """Smallest of the rows of each segment, the dtype's highest value where a number is missing."""
    return _unsorted("UnsortedSegmentMin", data, segment_ids, num_segments, name)


def _unsorted(op_type: str, data: Any, segment_ids: Any, num_segments: Any, name: str | None) -> Tensor:
    result: Tensor = apply_op(op_type, data, segment_ids, num_segments, name=name)
    return result


def unsorted_segment_mean(data: Any, segment_ids: Any, num_segments: Any, name: str | None = None) -> Tensor:
    """Mean of the rows of each segment, 0 where a number is missing; arguments as in ``unsorted_segment_sum``."""
    with get_default_graph().name_scope(name or "UnsortedSegmentMean"):
        data, ids = convert_to_tensor(data), convert_to_tensor(segment_ids)
        return unsorted_segment_sum(data, ids, num_segments) / _counts(data, ids, num_segments)


def unsorted_segment_sqrt_n(data: Any, segment_ids: Any, num_segments: Any, name: str | None = None) -> Tensor:
    """Sum of the rows of each segment over the root of their number; arguments as in ``unsorted_segment_sum``."""
    with get_default_graph().name_scope(name or "UnsortedSegmentSqrtN"):
        data, ids = convert_to_tensor(data), convert_to_tensor(segment_ids)
        root: Tensor = apply_op("Sqrt", _counts(data, ids, num_segments))
        return unsorted_segment_sum(data, ids, num_segments) / root


def _counts(data: Tensor, ids: Tensor, num_segments: Any) -> Tensor:
    """Rows of each segment, at least 1, of a shape that divides the sums."""
    ones = apply_op("Fill", apply_op("Shape", ids), apply_op("Cast", 1, DstT=data.dtype.base_dtype))
    counts = apply_op("Maximum", unsorted_segment_sum(ones, ids, num_segments), 1)
    inner = apply_op("Rank", data) - apply_op("Rank", ids)
    shape = apply_op("ConcatV2", [apply_op("Shape", counts), apply_op("Fill", apply_op("ExpandDims", inner, 0), 1)], 0)
    result: Tensor = apply_op("Reshape", counts, shape)
    return result


def _unsorted_shape(ctx: ShapeContext) -> list[Shape]:
    data, ids, count = ctx.shape("data"), ctx.shape("segment_ids"), ctx.const("num_segments")
    if data is None or ids is None:
        return [None]
    if len(ids) > len(data) or not compatible(data[: len(ids)], ids):
        raise ValueError(f"segment_ids of shape {text(ids)} don't name rows of data of shape {text(data)}")
    return [(None if count is None else int(count.reshape(())), *data[len(ids) :])]


for _name in ("Sum", "Prod", "Max", "Min"):
    register_op(
        f"UnsortedSegment{_name}",
        inputs=["data: T", "segment_ids: Tindices", "num_segments: Tnumsegments"], outputs=["output: T"],
        attrs={"Tnumsegments": ("type", dtypes.int32)},
        T=REAL if _name[0] == "M" else NUMERIC,
        Tindices=(dtypes.int16, *INDEX) if _name == "Sum" else INDEX, Tnumsegments=INDEX,
    )(_unsorted_shape)  # fmt: skip


def reduce_unsorted(ctx: KernelContext, ufunc: str, data: Any, ids: Any, num_segments: Any, neutral: Any) -> Any:
    xp, count = ctx.xp, int(num_segments)
    if count < 0 or data.shape[: ids.ndim] != ids.shape:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: {count} segments by ids of shape {tuple(ids.shape)} don't fit data {tuple(data.shape)}.",
            op=ctx.op,
        )
    inner = data.shape[ids.ndim :]
    rows, ids = data.reshape((-1, *inner)) if data.size else data.reshape((ids.size, *inner)), ids.reshape(-1)
    out = xp.full((count, *inner), neutral, data.dtype)
    if not ids.size:
        return out
    if ids.max() >= count:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: segment id {ids.max()} is out of range [0, {count}).", op=ctx.op)
    if xp is not np:
        used = ids >= 0
        change_rows(xp, ufunc, out, ids[used], rows[used])
        return out
    if ids.min() < 0:
        used = ids >= 0
        rows, ids = rows[used], ids[used]
        if not ids.size:
            return out
    if rows.ndim == 1:  # numpy's own loop; 40 times faster than sorting
        getattr(np, ufunc).at(out, ids, rows)
        return out
    # Rows brought together by a stable sort and reduced run by run: ufunc.at is many times slower on rows.
    if np.any(ids[1:] < ids[:-1]):
        order = np.argsort(ids, kind="stable")
        rows, ids = rows[order], ids[order]
    starts = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    out[ids[starts]] = getattr(np, ufunc).reduceat(rows, starts, axis=0, dtype=data.dtype)
    return out


@register_kernel("UnsortedSegmentSum", host=("num_segments",))
def _unsorted_sum(ctx: KernelContext, data: Any, ids: Any, num_segments: Any) -> Any:
    return reduce_unsorted(ctx, "add", data, ids, num_segments, 0)


@register_kernel("UnsortedSegmentProd", devices=("CPU",))  # a GPU has no atomic product
def _unsorted_prod(ctx: KernelContext, data: Any, ids: Any, num_segments: Any) -> Any:
    return reduce_unsorted(ctx, "multiply", data, ids, num_segments, 1)


@register_kernel("UnsortedSegmentMax", host=("num_segments",))
def _unsorted_max(ctx: KernelContext, data: Any, ids: Any, num_segments: Any) -> Any:
    return reduce_unsorted(ctx, "maximum", data, ids, num_segments, _lowest(data.dtype))


@register_kernel("UnsortedSegmentMin", host=("num_segments",))
def _unsorted_min(ctx: KernelContext, data: Any, ids: Any, num_segments: Any) -> Any:
    return reduce_unsorted(ctx, "minimum", data, ids, num_segments, _highest(data.dtype))


def _gather_used(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``rows[ids]`` with 0 for negative ids; the ids without negative ones; which ids are used, broadcastable to rows."""
    clipped: Tensor = apply_op("Maximum", ids, 0)
    gathered = _gather(rows, clipped)
    inner = apply_op("Rank", gathered) - apply_op("Rank", ids)
    shape = apply_op("ConcatV2", [apply_op("Shape", ids), apply_op("Fill", apply_op("ExpandDims", inner, 0), 1)], 0)
    used: Tensor = apply_op("Reshape", apply_op("GreaterEqual", ids, 0), shape)
    return apply_op("SelectV2", used, gathered, 0), clipped, used


@register_gradient("UnsortedSegmentSum")
def _unsorted_sum_grad(op: Operation, dy: Tensor) -> Grads:
    return [_gather_used(dy, op.inputs[1])[0], None, None]


@register_gradient("UnsortedSegmentMax", "UnsortedSegmentMin")
def _unsorted_extreme_grad(op: Operation, dy: Tensor) -> Grads:
    """Shared equally by all rows that hold the extreme."""
    data, ids, count = op.inputs
    extreme, clipped, used = _gather_used(op.outputs[0], ids)
    chosen = cast(apply_op("LogicalAnd", apply_op("Equal", data, extreme), used), dy.dtype)
    shares = apply_op("DivNoNan", dy, unsorted_segment_sum(chosen, ids, count))
    return [chosen * _gather(shares, clipped), None, None]


@register_gradient("UnsortedSegmentProd")
def _unsorted_prod_grad(op: Operation, dy: Tensor) -> Grads:
    data, ids, count = op.inputs
    gathered, clipped, _ = _gather_used(dy, ids)
    others = _product_of_others(
        data,
        clipped,
        lambda rows: unsorted_segment_prod(rows, ids, count),
        lambda rows: unsorted_segment_sum(rows, ids, count),
        op.outputs[0],
    )
    return [gathered * others, None, None]


# ---------------------------------------------------------------------------------------------- counts


def bincount(arr: Any, weights: Any = None, minlength: Any = None, maxlength: Any = None, dtype: Any = dtypes.int32) -> Tensor:
    """How often each of 0, 1, 2, ... is in ``arr``, or the sum of its weights.

    Parameters
    ----------
    arr : Tensor of non-negative integers
    weights : Tensor of the shape of ``arr``, or None to count
    minlength, maxlength : least and greatest length of the result; larger numbers are left out
    dtype : type of the counts; with weights the result has theirs
    """
    with get_default_graph().name_scope("bincount"):
        arr = convert_to_tensor(arr, dtypes.int32, "arr")
        nonempty = cast(apply_op("Greater", apply_op("Size", arr), 0), dtypes.int32)
        size = nonempty * (apply_op("Max", apply_op("Reshape", arr, [-1]), 0) + 1)
        # Of nothing the maximum is the smallest int32, to which 1 is added before it is multiplied by 0.
        if minlength is not None:
            size = apply_op("Maximum", convert_to_tensor(minlength, dtypes.int32), size)
        if maxlength is not None:
            size = apply_op("Minimum", convert_to_tensor(maxlength, dtypes.int32), size)
        if weights is None:
            weights = np.zeros(0, dtypes.as_dtype(dtype).np_dtype)
        result: Tensor = apply_op("Bincount", arr, size, weights)
        return result


_BIN_TYPES = (dtypes.int32, dtypes.int64, dtypes.float32, dtypes.float64)


@register_op("Bincount", inputs=["arr: int32", "size: int32", "weights: T"], outputs=["bins: T"], T=_BIN_TYPES)
def _bincount_shape(ctx: ShapeContext) -> list[Shape]:
    size = ctx.const("size")
    return [(None if size is None else int(size.reshape(())),)]


_DENSE_ATTRS = {"binary_output": ("bool", False)}


@register_op(
    "DenseBincount", inputs=["input: Tidx", "size: Tidx", "weights: T"], outputs=["output: T"], attrs=_DENSE_ATTRS,
    Tidx=INDEX, T=_BIN_TYPES,
)  # fmt: skip
def _dense_bincount_shape(ctx: ShapeContext) -> list[Shape]:
    values, size = ctx.shape("input"), ctx.const("size")
    bins = None if size is None else int(size.reshape(()))
    if values is None:
        return [None]
    if len(values) > 2:
        raise ValueError(f"Shape must be at most rank 2 but is {text(values)}")
    return [(values[0], bins) if len(values) == 2 else (bins,)]


@register_kernel("Bincount", host=("size",))
def _bincount(ctx: KernelContext, arr: Any, size: Any, weights: Any) -> Any:
    return _count(ctx, arr.reshape(-1), int(size), _weights_of(ctx, arr, weights), weights.dtype)


@register_kernel("DenseBincount", host=("size",))
def _dense_bincount(ctx: KernelContext, values: Any, size: Any, weights: Any, *, binary_output: bool) -> Any:
    count, scales = int(size), _weights_of(ctx, values, weights)
    if values.ndim < 2:
        bins = _count(ctx, values.reshape(-1), count, scales, weights.dtype)
        return (bins != 0).astype(weights.dtype) if binary_output else bins
    out = ctx.xp.zeros((values.shape[0], count), weights.dtype)
    for i, row in enumerate(values):
        part = None if scales is None else scales.reshape(values.shape)[i]
        out[i] = _count(ctx, row, count, None if binary_output else part, weights.dtype)
    return (out != 0).astype(weights.dtype) if binary_output else out


def _weights_of(ctx: KernelContext, values: Any, weights: Any) -> Any:
    """The weights in a row, None if there are none."""
    if not weights.size:
        return None
    if weights.shape != values.shape:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: weights of shape {tuple(weights.shape)} don't fit numbers of shape {tuple(values.shape)}.",
            op=ctx.op,
        )
    return weights.reshape(-1)


def _count(ctx: KernelContext, values: Any, count: int, weights: Any, dtype: Any) -> Any:
    if ctx.xp is np and values.size and values.min() < 0:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: only numbers from 0 are counted, not {values.min()}.", op=ctx.op)
    inside = values < count
    return ctx.xp.bincount(values[inside], None if weights is None else weights[inside], minlength=count).astype(dtype)


no_gradient("Bincount", "DenseBincount", reason="the numbers counted are integers; TensorFlow gives the weights none either")
