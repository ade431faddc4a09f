"""Joining tensors along a dimension or a new one, and taking them apart again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX, int32, int64
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, merge, normalize_axis, text, with_rank
from mpirt.ops.apply import apply_op, constant, convert_to_tensor, is_tensor
from mpirt.ops.arguments import axis_of, shape_tensor
from mpirt.ops.array_ops import shape, shape_n, zeros_like
from mpirt.ops.indexed_slices import IndexedSlices

__all__ = ["concat", "parallel_stack", "split", "stack", "unstack"]

# ------------------------------------------------------------------------------------------------------------ concat


def concat(values: Any, axis: Any, name: str = "concat") -> Tensor:
    """The tensors of the list ``values`` behind one another along dimension ``axis``.

    Raises
    ------
    ValueError
        If their other sizes differ; InvalidArgumentError if that shows only in the step.
    """
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(values) == 1:
        only: Tensor = apply_op("Identity", values[0], name=name)
        return only
    out: Tensor = apply_op("ConcatV2", values, axis, name=name)
    return out


@register_op("ConcatV2", inputs=["values: N*T", "axis: Tidx"], outputs=["output: T"], attrs={"Tidx": ("type", int32)}, T=ALL, Tidx=INDEX)
def _concat_v2_shape(ctx: ShapeContext) -> list[Shape]:
    return [_concat_shape(ctx, "axis")]


@register_op("Concat", inputs=["concat_dim: int32", "values: N*T"], outputs=["output: T"], T=ALL)
def _concat_v1_shape(ctx: ShapeContext) -> list[Shape]:
    return [_concat_shape(ctx, "concat_dim")]


def _concat_shape(ctx: ShapeContext, axis_name: str) -> Shape:
    axis, known = ctx.const(axis_name), ctx.shapes("values")
    with_rank(ctx.shape(axis_name), 0, axis_name)
    ndims = {len(s) for s in known if s is not None}
    if len(ndims) > 1 or 0 in ndims:
        raise ValueError(f"can't concatenate tensors of shapes {', '.join(map(text, known))}" + (" (use stack)" if 0 in ndims else ""))
    if not ndims:
        return None
    ndim = ndims.pop()
    if axis is None:
        return (None,) * ndim
    at = normalize_axis(int(axis), ndim)
    total: int | None = 0
    merged: Shape = None
    for s in known:
        size = None if s is None else s[at]
        total = None if total is None or size is None else total + size
        merged = merge(merged, None if s is None else (*s[:at], None, *s[at + 1 :]))
    assert merged is not None
    return (*merged[:at], total, *merged[at + 1 :])


def _concatenated(ctx: KernelContext, values: Sequence[Any], axis: Any) -> Any:
    try:
        return ctx.xp.concatenate(values, int(axis))
    except ValueError:
        shapes = ", ".join(text(v.shape) for v in values)
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: tensors of shapes {shapes} can't be concatenated along dimension {int(axis)}.",
            op=ctx.op,
            hint="all dimensions but that one must be equal; scalars need tf.stack.",
        ) from None


@register_kernel("ConcatV2", host=("axis",))
def _concat_v2(ctx: KernelContext, *inputs: Any) -> Any:
    return _concatenated(ctx, inputs[:-1], inputs[-1])


@register_kernel("Concat", host=("concat_dim",))
def _concat_v1(ctx: KernelContext, axis: Any, *values: Any) -> Any:
    return _concatenated(ctx, values, axis)


@register_gradient("ConcatV2")
def _concat_v2_grad(op: Operation, dy: Any) -> list[Any]:
    return [*_concat_grad(op.inputs[:-1], op.inputs[-1], dy), None]


@register_gradient("Concat")
def _concat_v1_grad(op: Operation, dy: Any) -> list[Any]:
    return [None, *_concat_grad(op.inputs[1:], op.inputs[0], dy)]


def _concat_grad(values: Sequence[Tensor], axis: Tensor, dy: Any) -> Sequence[Any]:
    known = constants.value(axis)
    ndim = next((len(v.static_shape) for v in values if v.static_shape is not None), None)
    if isinstance(dy, IndexedSlices) and known is not None and ndim is not None:
        return _concat_rows_grad(values, int(known) % ndim, dy)
    if known is not None:
        sizes = [None if v.static_shape is None else v.static_shape[int(known)] for v in values]
        if None not in sizes:
            return split(dy, np.array(sizes, np.int64), int(known))
    if axis.dtype.base_dtype is not int32:
        axis = apply_op("Cast", axis, DstT=int32)
    shapes = shape_n(values)
    offsets = apply_op("ConcatOffset", axis, shapes)
    return [apply_op("Slice", dy, begin, size) for begin, size in zip(offsets, shapes, strict=True)]


def _concat_rows_grad(values: Sequence[Tensor], axis: int, dy: IndexedSlices) -> list[IndexedSlices]:
    """The part of each of ``values`` in the rows ``dy``: rows too, so that a table in slices gets no dense gradient."""
    shapes = [shape(v) for v in values]
    sizes = [s[axis] if v.static_shape is None else v.static_shape[axis] for v, s in zip(values, shapes, strict=True)]
    sizes = [s[axis] if size is None else size for s, size in zip(shapes, sizes, strict=True)]
    if axis > 0:
        parts = split(dy.values, convert_to_tensor(sizes, int32), axis, num=len(sizes))
        return [IndexedSlices(part, dy.indices, whole) for part, whole in zip(parts, shapes, strict=True)]
    found, start = [], constant(0, dy.indices.dtype.base_dtype)
    for size, whole in zip(sizes, shapes, strict=True):
        end = start + apply_op("Cast", size, DstT=dy.indices.dtype.base_dtype)
        inside = apply_op("LogicalAnd", apply_op("GreaterEqual", dy.indices, start), apply_op("Less", dy.indices, end))
        mine = apply_op("Reshape", apply_op("Where", inside), [-1])
        indices = apply_op("GatherV2", dy.indices, mine, 0) - start
        found.append(IndexedSlices(apply_op("GatherV2", dy.values, mine, 0), indices, whole))
        start = end
    return found


@register_op(
    "ConcatOffset",
    inputs=["concat_dim: int32", "shape: N*shape_type"],
    outputs=["offset: N*shape_type"],
    attrs={"shape_type": ("type", int32)},
    shape_type=INDEX,
)
def _concat_offset_shape(ctx: ShapeContext) -> list[Shape]:
    return [with_rank(s, 1, "shape") for s in ctx.shapes("shape")]


@register_kernel("ConcatOffset", host=("concat_dim", "shape", "offset"))
def _concat_offset(ctx: KernelContext, axis: Any, *shapes: Any) -> Any:
    at = axis_of(ctx, axis, shapes[0].size, "concat_dim")
    out, start = [], 0
    for i, sizes in enumerate(shapes):
        if sizes.shape != shapes[0].shape or np.any(np.delete(sizes != shapes[0], at)):
            raise errors.InvalidArgumentError(
                f"{ctx.op.name!r}: shape {i} is {sizes.tolist()}; all but entry {at} must be as in {shapes[0].tolist()}.",
                op=ctx.op,
            )
        offset = np.zeros_like(sizes)
        offset[at] = start
        start += int(sizes[at])
        out.append(offset)
    return out


no_gradient("ConcatOffset", reason="its values are positions")


# ------------------------------------------------------------------------------------------------- stack and unstack


def stack(values: Any, axis: int = 0, name: str = "stack") -> Tensor:
    """The tensors of the list ``values``, all of one shape, along a new dimension ``axis``."""
    if axis == 0 and not is_tensor(values) and not any(_has_tensor(v) for v in values):
        try:
            return convert_to_tensor(values, name=name)
        except (TypeError, ValueError):
            pass  # values of several types or shapes: the operation's own error says which
    if is_tensor(values):
        values = unstack(values)
    out: Tensor = apply_op("Pack", list(values), name=name, axis=axis)
    return out


def _has_tensor(value: Any) -> bool:
    return any(map(_has_tensor, value)) if isinstance(value, list | tuple) else is_tensor(value)


def parallel_stack(values: Any, name: str = "parallel_stack") -> Tensor:
    """The same as ``stack`` along dimension 0."""
    return stack(values, 0, name)


@register_op("Pack", inputs=["values: N*T"], outputs=["output: T"], attrs={"axis": ("int", 0)}, T=ALL)
def _pack_shape(ctx: ShapeContext) -> list[Shape]:
    merged: Shape = None
    for s in ctx.shapes("values"):
        merged = merge(merged, s)
    if merged is None:
        return [None]
    at = normalize_axis(ctx.attr("axis"), len(merged) + 1)
    return [(*merged[:at], ctx.attr("N"), *merged[at:])]


@register_kernel("Pack")
def _pack(ctx: KernelContext, *values: Any, axis: int) -> Any:
    try:
        return ctx.xp.stack(values, axis)
    except ValueError:
        shapes = ", ".join(text(v.shape) for v in values)
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: tensors of shapes {shapes} can't be stacked along a new dimension {axis}; they must be equal.",
            op=ctx.op,
        ) from None


@register_gradient("Pack")
def _pack_grad(op: Operation, dy: Any) -> list[Any]:
    return list(apply_op("Unpack", dy, num=len(op.inputs), axis=op.get_attr("axis")))


def unstack(value: Any, num: int | None = None, axis: int = 0, name: str = "unstack") -> list[Tensor]:
    """The tensors along dimension ``axis``, which is dropped; ``num`` of them if the size isn't known while building.

    Raises
    ------
    ValueError
        If neither ``num`` nor the size of the dimension is known.
    """
    value = convert_to_tensor(value)
    if num is None:
        known = value.static_shape
        size = None if known is None else known[normalize_axis(axis, len(known))]
        if size is None:
            raise ValueError(f"Cannot infer argument `num` from shape {text(known)}: the size of dimension {axis} is not known.")
        num = size
    out: list[Tensor] = apply_op("Unpack", value, name=name, num=num, axis=axis)
    return out


@register_op("Unpack", inputs=["value: T"], outputs=["output: num*T"], attrs={"num": "int", "axis": ("int", 0)}, T=ALL)
def _unpack_shape(ctx: ShapeContext) -> list[Shape]:
    known, num = ctx.shape("value"), ctx.attr("num")
    if known is None:
        return [None] * num
    at = normalize_axis(ctx.attr("axis"), len(known))
    if known[at] not in (None, num):
        raise ValueError(f"dimension {at} of shape {text(known)} can't be unstacked into {num} tensors")
    return [known[:at] + known[at + 1 :]] * num


@register_kernel("Unpack")
def _unpack(ctx: KernelContext, x: Any, *, num: int, axis: int) -> Any:
    at = axis_of(ctx, axis, x.ndim)
    if x.shape[at] != num:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: dimension {at} of shape {text(x.shape)} can't be unstacked into {num} tensors.", op=ctx.op
        )
    head = (slice(None),) * at
    return [x[(*head, i, ...)] for i in range(num)]


@register_gradient("Unpack")
def _unpack_grad(op: Operation, *dys: Any) -> list[Any]:
    return [apply_op("Pack", zeros_for_missing(op, dys), axis=op.get_attr("axis"))]


def zeros_for_missing(op: Operation, dys: Sequence[Any]) -> list[Any]:
    """The gradients of all outputs of ``op``, with zeros for outputs that nobody uses."""
    return [zeros_like(y) if dy is None else dy for y, dy in zip(op.outputs, dys, strict=True)]


# ------------------------------------------------------------------------------------------------------------- split


def split(value: Any, num_or_size_splits: Any, axis: Any = 0, num: int | None = None, name: str = "split") -> list[Tensor]:
    """``value`` in pieces along dimension ``axis``.

    Parameters
    ----------
    value : Tensor
    num_or_size_splits : number of equal pieces, or the sizes of the pieces, of which one may be -1 (what remains)
    axis : dimension to split
    num : number of pieces if that can't be told from the sizes
    name : name of the operation
    """
    out: list[Tensor]
    if isinstance(num_or_size_splits, int | np.integer) or hasattr(num_or_size_splits, "value"):
        out = apply_op("Split", axis, value, name=name, num_split=int(num_or_size_splits))
        return out
    sizes = shape_tensor(num_or_size_splits, "size_splits")
    if sizes.static_shape == ():
        raise ValueError("Rank-0 tensors are not supported as the num_or_size_splits argument to split.")
    if num is None:
        (num,) = with_rank(sizes.static_shape, 1, "num_or_size_splits")
        if num is None:
            raise ValueError(f"Cannot infer argument `num` from shape {text(sizes.static_shape)}")
    out = apply_op("SplitV", value, sizes, axis, name=name, num_split=num)
    return out


@register_op("Split", inputs=["split_dim: int32", "value: T"], outputs=["output: num_split*T"], T=ALL)
def _split_shape(ctx: ShapeContext) -> list[Shape]:
    known, axis, num = ctx.shape("value"), ctx.const("split_dim"), ctx.attr("num_split")
    if known is None or axis is None:
        return [None if known is None else (None,) * len(known)] * num
    at = normalize_axis(int(axis), len(known))
    size = known[at]
    if size is not None and size % num:
        raise ValueError(f"Dimension size must be evenly divisible by {num} but is {size}")
    return [(*known[:at], None if size is None else size // num, *known[at + 1 :])] * num


@register_kernel("Split", host=("split_dim",))
def _split(ctx: KernelContext, axis: Any, x: Any, *, num_split: int) -> Any:
    at = axis_of(ctx, axis, x.ndim, "split_dim")
    size, rest = divmod(x.shape[at], num_split)
    if rest:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: dimension {at} of shape {text(x.shape)} can't be split evenly into {num_split} pieces.",
            op=ctx.op,
        )
    return _pieces(x, [size] * num_split, at)


def _pieces(x: Any, sizes: Sequence[int], axis: int) -> list[Any]:
    head = (slice(None),) * axis
    return [x[(*head, slice(stop - size, stop))] for size, stop in zip(sizes, accumulate(sizes), strict=True)]


@register_op(
    "SplitV",
    inputs=["value: T", "size_splits: Tlen", "split_dim: int32"],
    outputs=["output: num_split*T"],
    attrs={"Tlen": ("type", int64)},
    T=ALL,
    Tlen=(dtypes.int8, *INDEX),
)
def _split_v_shape(ctx: ShapeContext) -> list[Shape]:
    known, axis, num = ctx.shape("value"), ctx.const("split_dim"), ctx.attr("num_split")
    (length,), sizes = with_rank(ctx.shape("size_splits"), 1, "size_splits"), ctx.const("size_splits")
    if length not in (None, num):
        raise ValueError(f"there are {length} size_splits for {num} outputs")
    if known is None:
        return [None] * num
    if axis is None:
        fits = [] if sizes is None or np.any(sizes < 0) else [i for i, d in enumerate(known) if d in (None, int(sizes.sum()))]
        if len(fits) != 1:
            return [(None,) * len(known)] * num
        axis = np.array(fits[0])  # the only dimension that these sizes can split
    at = normalize_axis(int(axis), len(known))
    total = known[at]
    found: list[int | None] = [None] * num
    if sizes is not None:
        rest = None if total is None else total - int(sizes[sizes >= 0].sum())
        if rest is not None and (rest < 0 or (rest > 0 and not np.any(sizes < 0))):
            raise ValueError(f"size_splits {sizes.tolist()} don't fit dimension {at} of shape {text(known)}")
        found = [int(s) if s >= 0 else rest for s in sizes]
    return [(*known[:at], size, *known[at + 1 :]) for size in found]


@register_kernel("SplitV", host=("size_splits", "split_dim"))
def _split_v(ctx: KernelContext, x: Any, size_splits: Any, axis: Any, *, num_split: int) -> Any:
    at = axis_of(ctx, axis, x.ndim, "split_dim")
    sizes = size_splits.tolist()
    rest = x.shape[at] - sum(s for s in sizes if s >= 0)
    open_ = sizes.count(-1)
    if len(sizes) != num_split or open_ > 1 or any(s < -1 for s in sizes) or (rest < 0 if open_ else rest != 0):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: size_splits {sizes} don't fit dimension {at} of shape {text(x.shape)}.", op=ctx.op
        )
    return _pieces(x, [rest if s == -1 else s for s in sizes], at)


@register_gradient("Split")
def _split_grad(op: Operation, *dys: Any) -> list[Any]:
    return [None, concat(zeros_for_missing(op, dys), op.inputs[0])]


@register_gradient("SplitV")
def _split_v_grad(op: Operation, *dys: Any) -> list[Any]:
    return [concat(zeros_for_missing(op, dys), op.inputs[2]), None, None]
