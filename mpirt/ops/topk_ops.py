"""The largest elements of each row, sorted rows, and whether a class is among the largest."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import INDEX, REAL, DType, int32
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, text, with_rank
from mpirt.ops.apply import apply_op
from mpirt.ops.array_ops import expand_dims, reshape, shape, size
from mpirt.ops.slice_ops import strided_slice

__all__ = ["in_top_k", "top_k"]

_INDEX16 = (dtypes.int16, *INDEX)

# ------------------------------------------------------------------------------------------------------------- top_k


def top_k(input: Any, k: Any = 1, sorted: bool = True, index_type: Any = int32, name: str | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` largest elements along the last dimension and their positions; of equal ones the first comes first.

    Parameters
    ----------
    input : Tensor of real numbers with at least one dimension
    k : how many
    sorted : whether the largest must come first; here it always does
    index_type : type of the positions
    name : name of the operation
    """
    values, indices = apply_op("TopKV2", input, k, name=name, sorted=sorted, index_type=dtypes.as_dtype(index_type))
    return values, indices


@register_op(
    "TopKV2",
    inputs=["input: T", "k: Tk"],
    outputs=["values: T", "indices: index_type"],
    attrs={"sorted": ("bool", True), "Tk": ("type", int32), "index_type": ("type", int32)},
    T=REAL,
    Tk=_INDEX16,
    index_type=_INDEX16,
)
def _top_k_v2_shape(ctx: ShapeContext) -> list[Shape]:
    k = ctx.const("k")
    with_rank(ctx.shape("k"), 0, "k")
    return _top_k_shapes(ctx.shape("input"), None if k is None else int(k))


@register_op("TopK", inputs=["input: T"], outputs=["values: T", "indices: int32"], attrs={"k": "int", "sorted": ("bool", True)}, T=REAL)
def _top_k_v1_shape(ctx: ShapeContext) -> list[Shape]:
    return _top_k_shapes(ctx.shape("input"), ctx.attr("k"))


def _top_k_shapes(known: Shape, k: int | None) -> list[Shape]:
    if k is not None and k < 0:
        raise ValueError(f"Need k >= 0, got {k}")
    if known is None:
        return [None, None]
    if not known:
        raise ValueError("input must have at least 1 dimension")
    if k is not None and known[-1] is not None and known[-1] < k:
        raise ValueError(f"input must have last dimension >= k = {k} but is {known[-1]}")
    return [(*known[:-1], k)] * 2


def _largest(ctx: KernelContext, x: Any, k: int, index_type: DType) -> list[Any]:
    if x.ndim == 0 or not 0 <= k <= x.shape[-1]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: input must have at least k columns: k is {k}, its shape {text(x.shape)}.", op=ctx.op
        )
    # A stable ascending sort of the reversed row, read backwards: descending, and the first of equal elements first.
    order = x.shape[-1] - 1 - ctx.xp.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    order = order[..., :k]
    return [ctx.xp.take_along_axis(x, order, -1), order.astype(index_type.np_dtype)]


@register_kernel("TopKV2", host=("k",))
def _top_k_v2(ctx: KernelContext, x: Any, k: Any, *, index_type: DType) -> Any:
    return _largest(ctx, x, int(k), index_type)


@register_kernel("TopK")
def _top_k_v1(ctx: KernelContext, x: Any, *, k: int) -> Any:
    return _largest(ctx, x, k, int32)


@register_gradient("TopKV2")
def _top_k_v2_grad(op: Operation, dy: Any, _: Any) -> list[Any]:
    return [_top_k_grad(op, dy), None]


@register_gradient("TopK")
def _top_k_v1_grad(op: Operation, dy: Any, _: Any) -> list[Any]:
    return [_top_k_grad(op, dy)]


def _top_k_grad(op: Operation, dy: Any) -> Any:
    """Each gradient goes to the element it was taken from: rows one behind the other, one scatter."""
    if dy is None:
        return None
    x, indices = op.inputs[0], op.outputs[1]
    if indices.dtype is not int32:
        indices = apply_op("Cast", indices, DstT=int32)
    sizes = shape(x)
    columns = strided_slice(sizes, [-1], [0], [1], shrink_axis_mask=1)
    k = strided_slice(shape(indices), [-1], [0], [1], shrink_axis_mask=1)
    if indices.static_shape is not None and indices.static_shape[-1] is not None:
        k = indices.static_shape[-1]  # type: ignore[assignment]
    total = size(x)
    # With k = 0 there is nothing to scatter, but rows must not be counted by -1.
    rows = apply_op("FloorDiv", total, apply_op("Maximum", columns, 1))
    first = expand_dims(apply_op("Mul", apply_op("Range", 0, rows, 1), columns), 1)
    places = apply_op("Add", reshape(indices, [rows, k]), first)
    flat = apply_op("ScatterNd", reshape(places, [-1, 1]), reshape(dy, [-1]), expand_dims(total, 0))
    return reshape(flat, sizes)


# ---------------------------------------------------------------------------------------------------------- in_top_k


def in_top_k(predictions: Any, targets: Any, k: Any, name: str | None = None) -> Tensor:
    """Whether each target class is among the ``k`` largest predictions of its row.

    Parameters
    ----------
    predictions : float32, shape [batch, classes]
    targets : int32 or int64, shape [batch]
    k : how many
    name : name of the operation

    Returns
    -------
    bool, shape [batch]; true also for a target equal to the k-th largest; false if the target is no class, or if a
    prediction that matters isn't finite
    """
    out: Tensor = apply_op("InTopKV2", predictions, targets, k, name=name)
    return out


def _in_top_k_shape(ctx: ShapeContext) -> list[Shape]:
    rows, _ = with_rank(ctx.shape("predictions"), 2, "predictions")
    (count,) = with_rank(ctx.shape("targets"), 1, "targets")
    if rows is not None and count is not None and rows != count:
        raise ValueError(f"there are {rows} rows of predictions for {count} targets")
    return [(count if rows is None else rows,)]


register_op(
    "InTopK",
    inputs=["predictions: float32", "targets: T"],
    outputs=["precision: bool"],
    attrs={"k": "int", "T": ("type", int32)},
    T=INDEX,
)(_in_top_k_shape)
register_op(
    "InTopKV2",
    inputs=["predictions: float32", "targets: T", "k: T"],
    outputs=["precision: bool"],
    attrs={"T": ("type", int32)},
    T=INDEX,
)(_in_top_k_shape)


def _among_largest(ctx: KernelContext, predictions: Any, targets: Any, k: int) -> Any:
    if predictions.ndim != 2 or targets.shape != predictions.shape[:1]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: predictions of shape {text(predictions.shape)} and targets of shape {text(targets.shape)} don't"
            " fit; they must be [batch, classes] and [batch].",
            op=ctx.op,
        )
    xp = ctx.xp
    rows, classes = predictions.shape
    if not classes:
        return xp.zeros(rows, np.bool_)
    inside = (targets >= 0) & (targets < classes)
    wanted = predictions[xp.arange(rows), xp.where(inside, targets, 0)][:, None]
    larger = (predictions > wanted).sum(axis=1)
    return inside & xp.isfinite(predictions).all(axis=1) & (larger < k)


@register_kernel("InTopK")
def _in_top_k(ctx: KernelContext, predictions: Any, targets: Any, *, k: int) -> Any:
    return _among_largest(ctx, predictions, targets, k)


@register_kernel("InTopKV2", host=("k",))
def _in_top_k_v2(ctx: KernelContext, predictions: Any, targets: Any, k: Any) -> Any:
    return _among_largest(ctx, predictions, targets, int(k))


no_gradient("InTopK", "InTopKV2", reason="its values are true or false")
