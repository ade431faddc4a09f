"""Reductions of chosen rows by segment number: ``segment_sum(gather(data, indices), segment_ids)`` without the rows between.

What ``embedding_lookup_sparse`` combines the rows of an example with. The kernels work on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import FLOATING, INDEX, NUMERIC
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, merge, with_rank
from mpirt.ops.apply import apply_op
from mpirt.ops.array_ops import shape
from mpirt.ops.gather_ops import check_indices
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.segment_ops import reduce_sorted, reduce_unsorted

__all__ = ["sparse_segment_mean", "sparse_segment_sqrt_n", "sparse_segment_sum"]


def sparse_segment_sum(
    data: Any, indices: Any, segment_ids: Any, name: str | None = None, num_segments: Any = None, sparse_gradient: bool = False
) -> Tensor:
    """Sum of the rows ``indices`` of ``data`` in each segment; 0 where a number is missing.

    Parameters
    ----------
    data : Tensor, shape [R, ...]
    indices : row numbers, shape [N]; may repeat
    segment_ids : shape [N], integers from 0 that don't decrease: segment of each of ``indices``
    name : name of the operation
    num_segments : how many segments the result has, by default the last one's number + 1
    sparse_gradient : whether the gradient of ``data`` is IndexedSlices

    Raises
    ------
    InvalidArgumentError
        In the step, if a row or segment isn't there or the segments decrease.
    """
    return _segment("Sum", data, indices, segment_ids, name, num_segments, sparse_gradient)


def sparse_segment_mean(
    data: Any, indices: Any, segment_ids: Any, name: str | None = None, num_segments: Any = None, sparse_gradient: bool = False
) -> Tensor:
    """Mean of the rows of each segment; arguments as in ``sparse_segment_sum``."""
    return _segment("Mean", data, indices, segment_ids, name, num_segments, sparse_gradient)


def sparse_segment_sqrt_n(
    data: Any, indices: Any, segment_ids: Any, name: str | None = None, num_segments: Any = None, sparse_gradient: bool = False
) -> Tensor:
    """Sum of the rows of each segment over the root of their number; arguments as in ``sparse_segment_sum``."""
    return _segment("SqrtN", data, indices, segment_ids, name, num_segments, sparse_gradient)


def _segment(
    kind: str, data: Any, indices: Any, segment_ids: Any, name: str | None, num_segments: Any, sparse_gradient: bool
) -> Tensor:
    args = [data, indices, segment_ids] + ([] if num_segments is None else [num_segments])
    op_type = f"SparseSegment{kind}" + ("" if num_segments is None else "WithNumSegments")
    result: Tensor = apply_op(op_type, *args, name=name, sparse_gradient=sparse_gradient)
    return result


def _shape(ctx: ShapeContext) -> list[Shape]:
    merge(with_rank(ctx.shape("indices"), 1, "indices"), with_rank(ctx.shape("segment_ids"), 1, "segment_ids"))
    data = ctx.shape("data")
    if data == ():
        raise ValueError("data must have at least one dimension")
    counted = any(arg.name == "num_segments" for arg in ctx.definition.inputs)
    count = ctx.const("num_segments") if counted else None
    return [None if data is None else (None if count is None else int(count), *data[1:])]


_INPUTS = ["data: T", "indices: Tidx", "segment_ids: Tsegmentids"]
_ATTRS: dict[str, Any] = {
    "Tidx": ("type", dtypes.int32), "Tsegmentids": ("type", dtypes.int32), "sparse_gradient": ("bool", False),
}  # fmt: skip
for _kind in ("Sum", "Mean", "SqrtN"):
    register_op(
        f"SparseSegment{_kind}", inputs=_INPUTS, outputs=["output: T"], attrs=_ATTRS,
        T=NUMERIC if _kind == "Sum" else FLOATING, Tidx=INDEX, Tsegmentids=INDEX,
    )(_shape)  # fmt: skip
    register_op(
        f"SparseSegment{_kind}WithNumSegments", inputs=[*_INPUTS, "num_segments: Tnumsegments"], outputs=["output: T"],
        attrs={**_ATTRS, "Tnumsegments": ("type", dtypes.int32)},
        T=NUMERIC if _kind == "Sum" else FLOATING, Tidx=INDEX, Tsegmentids=INDEX, Tnumsegments=INDEX,
    )(_shape)  # fmt: skip


def _sums(ctx: KernelContext, data: Any, indices: Any, ids: Any, num_segments: Any) -> tuple[Any, Any]:
    """Sum and number of the rows of each segment; the number is at least 1, and of a shape that divides the sum."""
    if ids.shape != indices.shape:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: segment_ids of shape {ids.shape} and indices of shape {indices.shape} must be alike.", op=ctx.op
        )
    check_indices(ctx, indices, data.shape[0])
    sums = reduce_sorted(ctx, np.add, data[indices], ids, 0)
    if num_segments is not None:
        count = int(num_segments)
        if len(sums) > count:
            raise errors.InvalidArgumentError(f"{ctx.op.name!r}: segment id {ids[-1]} is out of range [0, {count}).", op=ctx.op)
        sums = np.concatenate([sums, np.zeros((count - len(sums), *data.shape[1:]), data.dtype)])
    rows = np.maximum(np.bincount(ids, minlength=len(sums)), 1).astype(data.dtype)
    return sums, rows.reshape(-1, *[1] * (data.ndim - 1))


@register_kernel("SparseSegmentSum", devices=("CPU",))
def _sum(ctx: KernelContext, data: Any, indices: Any, ids: Any) -> Any:
    return _sums(ctx, data, indices, ids, None)[0]


@register_kernel("SparseSegmentSumWithNumSegments", devices=("CPU",))
def _sum_of(ctx: KernelContext, data: Any, indices: Any, ids: Any, num_segments: Any) -> Any:
    return _sums(ctx, data, indices, ids, num_segments)[0]


@register_kernel("SparseSegmentMean", devices=("CPU",))
def _mean(ctx: KernelContext, data: Any, indices: Any, ids: Any) -> Any:
    return _mean_of(ctx, data, indices, ids, None)


@register_kernel("SparseSegmentMeanWithNumSegments", devices=("CPU",))
def _mean_of(ctx: KernelContext, data: Any, indices: Any, ids: Any, num_segments: Any) -> Any:
    sums, rows = _sums(ctx, data, indices, ids, num_segments)
    return sums / rows


@register_kernel("SparseSegmentSqrtN", devices=("CPU",))
def _sqrt_n(ctx: KernelContext, data: Any, indices: Any, ids: Any) -> Any:
    return _sqrt_n_of(ctx, data, indices, ids, None)


@register_kernel("SparseSegmentSqrtNWithNumSegments", devices=("CPU",))
def _sqrt_n_of(ctx: KernelContext, data: Any, indices: Any, ids: Any, num_segments: Any) -> Any:
    sums, rows = _sums(ctx, data, indices, ids, num_segments)
    return sums / np.sqrt(rows)


# ---------------------------------------------------------------------------------------------------------- gradients


for _kind in ("Sum", "Mean", "SqrtN"):
    register_op(
        f"SparseSegment{_kind}Grad",
        inputs=["grad: T", "indices: Tidx", "segment_ids: Tsegmentids", "output_dim0: int32"], outputs=["output: T"],
        attrs={"Tidx": ("type", dtypes.int32), "Tsegmentids": ("type", dtypes.int32)},
        T=FLOATING, Tidx=INDEX, Tsegmentids=INDEX,
    )(lambda ctx: [_rows_of(ctx, ctx.const("output_dim0"))])  # fmt: skip
    register_op(
        f"SparseSegment{_kind}GradV2",
        inputs=["grad: T", "indices: Tidx", "segment_ids: Tsegmentids", "dense_output_dim0: int32"],
        outputs=["output: T", "sorted_unique_indices: Tidx"],
        attrs={"Tidx": ("type", dtypes.int32), "Tsegmentids": ("type", dtypes.int32)},
        T=FLOATING, Tidx=INDEX, Tsegmentids=INDEX,
    )(lambda ctx: [_rows_of(ctx, None), (None,)])  # fmt: skip


def _rows_of(ctx: ShapeContext, count: Any) -> Shape:
    """``count`` rows like those of the gradient."""
    grad = ctx.shape("grad")
    merge(with_rank(ctx.shape("indices"), 1, "indices"), with_rank(ctx.shape("segment_ids"), 1, "segment_ids"))
    return None if grad is None else (None if count is None else int(count), *grad[1:])


@register_kernel(*(f"SparseSegment{kind}Grad" for kind in ("Sum", "Mean", "SqrtN")), devices=("CPU",))
def _grad(ctx: KernelContext, grad: Any, indices: Any, ids: Any, rows: Any) -> Any:
    check_indices(ctx, indices, int(rows))
    return reduce_unsorted(ctx, "add", _spread(ctx, grad, ids), indices, rows, 0)


@register_kernel(*(f"SparseSegment{kind}GradV2" for kind in ("Sum", "Mean", "SqrtN")), devices=("CPU",))
def _sparse_grad(ctx: KernelContext, grad: Any, indices: Any, ids: Any, rows: Any) -> Any:
    check_indices(ctx, indices, int(rows))
    used, places = np.unique(indices, return_inverse=True)
    return [reduce_unsorted(ctx, "add", _spread(ctx, grad, ids), places, len(used), 0), used]


def _spread(ctx: KernelContext, grad: Any, ids: Any) -> Any:
    """The part of each chosen row in the gradient of its segment."""
    check_indices(ctx, ids, grad.shape[0], "segment_ids")
    parts = grad[ids]
    if "Sum" in ctx.op.type:
        return parts
    rows = np.bincount(ids, minlength=1).astype(grad.dtype)[ids]
    return parts / (rows if "Mean" in ctx.op.type else np.sqrt(rows)).reshape(-1, *[1] * (grad.ndim - 1))


@register_gradient(*(f"SparseSegment{kind}{end}" for kind in ("Sum", "Mean", "SqrtN") for end in ("", "WithNumSegments")))
def _segment_grad(op: Operation, dy: Tensor) -> list[Any]:
    data, indices, ids = op.inputs[:3]
    whole = shape(data)
    args, rest = (dy, indices, ids, whole[0]), [None] * (len(op.inputs) - 1)
    kind = op.type.removesuffix("WithNumSegments")
    if op.get_attr("sparse_gradient"):
        values, rows = apply_op(kind + "GradV2", *args)
        return [IndexedSlices(values, rows, whole), *rest]
    return [apply_op(kind + "Grad", *args), *rest]


no_gradient(
    *(f"SparseSegment{kind}Grad{end}" for kind in ("Sum", "Mean", "SqrtN") for end in ("", "V2")),
    reason="TensorFlow has no second gradient of it either",
)
