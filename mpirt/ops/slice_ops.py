"""Slices: of given begin and size, and with strides and masks.

Owns: ``Slice``, ``StridedSlice`` and its gradient. Neighbours: ``getitem`` (what ``x[...]`` means), ``concat_ops`` (split and
join), ``graph.constants.slice_index`` (numpy's index for the vectors and masks).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, is_static, text, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor, unimplemented
from mpirt.ops.arguments import shape_tensor
from mpirt.ops.array_ops import expand_dims, shape

__all__ = ["slice", "strided_slice"]

_slice = slice
_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
_MASK_ATTRS: dict[str, Any] = {mask: ("int", 0) for mask in _MASKS}

# ------------------------------------------------------------------------------------------------------------- slice


def slice(input_: Any, begin: Any, size: Any, name: str | None = None) -> Tensor:
    """``size[i]`` elements from ``begin[i]`` on along each dimension i; a size of -1 means all that remain."""
    begin, size = shape_tensor(begin, "begin"), shape_tensor(size, "size")
    if begin.dtype.base_dtype is not size.dtype.base_dtype:
        begin, size = (apply_op("Cast", v, DstT=dtypes.int64) if v.dtype.base_dtype is dtypes.int32 else v for v in (begin, size))
    out: Tensor = apply_op("Slice", input_, begin, size, name=name)
    return out


@register_op("Slice", inputs=["input: T", "begin: Index", "size: Index"], outputs=["output: T"], T=ALL, Index=INDEX)
def _slice_shape(ctx: ShapeContext) -> list[Shape]:
    known, begin, size = ctx.shape("input"), ctx.const("begin"), ctx.const("size")
    lengths = [with_rank(ctx.shape(v), 1, v)[0] for v in ("begin", "size")]
    ndim = next((n for n in (*lengths, None if known is None else len(known)) if n is not None), None)
    if ndim is None:
        return [None]
    known = with_rank(known, ndim, "input")
    if any(n not in (None, ndim) for n in lengths):
        raise ValueError(f"begin and size must have one entry for each dimension of shape {text(known)}")
    sizes = ctx.const_shape("size") or (None,) * ndim
    out: list[int | None] = []
    for i, (dim, count) in enumerate(zip(known, sizes, strict=True)):
        start = None if begin is None else int(begin[i])
        if start is not None and (start < 0 or (dim is not None and start + (count or 0) > dim)):
            raise ValueError(f"slice {i} from {start} of size {count} is outside dimension {i} of shape {text(known)}")
        if count is None and size is not None and start is not None and dim is not None:
            count = dim - start  # the size is -1
        out.append(count)
    return [tuple(out)]


@register_kernel("Slice", host=("begin", "size"))
def _slice_kernel(ctx: KernelContext, x: Any, begin: Any, size: Any) -> Any:
    starts, sizes = begin.tolist(), size.tolist()
    if len(starts) != x.ndim or len(sizes) != x.ndim:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: begin {starts} and size {sizes} must have one entry for each dimension of {text(x.shape)}.",
            op=ctx.op,
        )
    index = []
    for i, (dim, b, n) in enumerate(zip(x.shape, starts, sizes, strict=True)):
        if not 0 <= b <= dim or not -1 <= n <= dim - b:
            raise errors.InvalidArgumentError(
                f"{ctx.op.name!r}: begin {starts} and size {sizes} reach outside dimension {i} of shape {text(x.shape)}.",
                op=ctx.op,
            )
        index.append(_slice(b, dim if n == -1 else b + n))
    return x[(*index, ...)]


@register_gradient("Slice")
def _slice_grad(op: Operation, dy: Any) -> list[Any]:
    x, begin, _ = op.inputs
    dy = convert_to_tensor(dy)
    known = constants.value(begin)
    if known is not None and is_static(x.static_shape) and is_static(dy.static_shape):
        paddings = np.stack([known, np.array(x.static_shape) - known - np.array(dy.static_shape)], 1).astype(known.dtype)
        return [apply_op("Pad", dy, paddings), None, None]
    kind = begin.dtype.base_dtype
    after = apply_op("Sub", apply_op("Sub", shape(x, out_type=kind), shape(dy, out_type=kind)), begin)
    return [apply_op("Pad", dy, apply_op("ConcatV2", [expand_dims(begin, 1), expand_dims(after, 1)], 1)), None, None]


# ----------------------------------------------------------------------------------------------------- strided slice


def strided_slice(
    input_: Any,
    begin: Any,
    end: Any,
    strides: Any = None,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
    var: Any = None,
    name: str | None = None,
) -> Tensor:
    """What ``input_[begin[0]:end[0]:strides[0], ...]`` means in Python; ``x[...]`` writes it for you.

    Parameters
    ----------
    input_ : Tensor
    begin, end, strides : integer vectors of one length; strides are 1 by default
    begin_mask, end_mask : bit i leaves begin[i] / end[i] open
    ellipsis_mask : the bit of the entry that stands for all dimensions not named
    new_axis_mask : bit i puts in a dimension of size 1
    shrink_axis_mask : bit i takes the one element begin[i] and drops the dimension
    var : not supported; use ``assign`` of the variable
    name : name of the operation
    """
    if var is not None:
        raise unimplemented("strided_slice with var (assignment to a slice)")
    begin, end = shape_tensor(begin, "begin"), shape_tensor(end, "end")
    if strides is None:
        strides = apply_op("OnesLike", begin)
    masks = {
        "begin_mask": begin_mask, "end_mask": end_mask, "ellipsis_mask": ellipsis_mask, "new_axis_mask": new_axis_mask,
        "shrink_axis_mask": shrink_axis_mask,
    }  # fmt: skip
    out: Tensor = apply_op("StridedSlice", input_, begin, end, shape_tensor(strides, "strides"), name=name, **masks)
    return out


@register_op(
    "StridedSlice",
    inputs=["input: T", "begin: Index", "end: Index", "strides: Index"],
    outputs=["output: T"],
    attrs=_MASK_ATTRS,
    T=ALL,
    Index=(dtypes.int16, *INDEX),
)
def _strided_slice_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("input")
    vectors = [_entries(ctx, name) for name in ("begin", "end", "strides")]
    count = next((len(v) for v in vectors if v is not None), None)
    if count is None:
        return [None]
    begin, end, strides = ([None] * count if v is None else v for v in vectors)
    if not len(begin) == len(end) == len(strides):
        raise ValueError(f"begin, end and strides must have one length, not {len(begin)}, {len(end)} and {len(strides)}")
    kinds = [_kind(ctx.attrs, i) for i in range(count)]
    if kinds.count("ellipsis") > 1:
        raise ValueError("Multiple ellipses in slice spec not allowed")
    if known is None:
        return [None]
    named = sum(k in ("shrink", "slice") for k in kinds)
    if named > len(known):
        raise ValueError(f"Index out of range using input dim {named - 1}; input has only {len(known)} dims")
    out: list[int | None] = []
    dim = 0
    for i, kind in enumerate(kinds):
        if kind == "new":
            out.append(1)
            continue
        if kind == "ellipsis":
            out += known[dim : dim + len(known) - named]
            dim += len(known) - named
            continue
        size, b, e, s = known[dim], begin[i], end[i], strides[i]
        dim += 1
        if s == 0:
            raise ValueError(f"strides[{i}] must be non-zero")
        if kind == "shrink":
            if s is not None and s < 0:
                raise ValueError(f"only stride 1 allowed on non-range indexing (entry {i} has stride {s})")
            if b is not None and size is not None and not -size <= b < size:
                raise ValueError(f"slice index {b} of dimension {dim - 1} out of bounds: its size is {size}")
            continue
        open_b, open_e = ctx.attr("begin_mask") >> i & 1, ctx.attr("end_mask") >> i & 1
        if size is None or s is None or not ((open_b or b is not None) and (open_e or e is not None)):
            out.append(size if open_b and open_e and s in (1, -1) else None)
        else:
            out.append(len(range(*_slice(None if open_b else b, None if open_e else e, s).indices(size))))
    return [(*out, *known[dim:])]


def _entries(ctx: ShapeContext, name: str) -> list[int | None] | None:
    """Entries of an index vector as far as they are known while building; None if not even their number is."""
    (length,), value = with_rank(ctx.shape(name), 1, name), ctx.const(name)
    if value is not None:
        return [int(v) for v in value]
    partly = ctx.const_shape(name)  # entries that are known and not negative
    if partly is not None:
        return list(partly)
    return None if length is None else [None] * length


def _kind(attrs: Any, i: int) -> str:
    """What entry i of a strided slice is. An ellipsis wins over a new axis, and that over a dropped one, as in TensorFlow."""
    if attrs["ellipsis_mask"] >> i & 1:
        return "ellipsis"
    if attrs["new_axis_mask"] >> i & 1:
        return "new"
    return "shrink" if attrs["shrink_axis_mask"] >> i & 1 else "slice"


def _index(ctx: KernelContext, sizes: tuple[int, ...], begin: Any, end: Any, strides: Any) -> tuple[Any, ...]:
    """The numpy index for a tensor of shape ``sizes``; always with an ellipsis, so that the result is an array."""
    attrs = ctx.op.attrs
    index = constants.slice_index(attrs, begin, end, strides)
    named = sum(isinstance(i, int | _slice) for i in index)
    open_ = index.count(Ellipsis)
    problem = ""
    if named > len(sizes):
        problem = f"it names {named} dimensions, the tensor has {len(sizes)}"
    elif open_ > 1:
        problem = "it has more than one ellipsis"
    dim = 0
    for i in index if not problem else ():
        if i is Ellipsis:
            dim += len(sizes) - named
        elif isinstance(i, int):
            if not -sizes[dim] <= i < sizes[dim]:
                problem = f"slice index {i} of dimension {dim} out of bounds"
            dim += 1
        elif i is not None:
            if i.step == 0:
                problem = "strides must be non-zero"
            dim += 1
    if problem:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: {problem} (begin {begin.tolist()}, end {end.tolist()}, strides {strides.tolist()}, shape {text(sizes)}).",
            op=ctx.op,
        )
    return index if open_ else (*index, Ellipsis)


@register_kernel("StridedSlice", host=("begin", "end", "strides"))
def _strided_slice(ctx: KernelContext, x: Any, begin: Any, end: Any, strides: Any) -> Any:
    return x[_index(ctx, x.shape, begin, end, strides)]


@register_gradient("StridedSlice")
def _strided_slice_grad(op: Operation, dy: Any) -> list[Any]:
    x, begin, end, strides = op.inputs
    masks = {mask: op.get_attr(mask) for mask in _MASKS}
    return [apply_op("StridedSliceGrad", shape(x, out_type=begin.dtype), begin, end, strides, dy, **masks), None, None, None]


@register_op(
    "StridedSliceGrad",
    inputs=["shape: Index", "begin: Index", "end: Index", "strides: Index", "dy: T"],
    outputs=["output: T"],
    attrs=_MASK_ATTRS,
    T=ALL,
    Index=INDEX,
)
def _strided_slice_grad_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.const_shape("shape")]


@register_kernel("StridedSliceGrad", host=("shape", "begin", "end", "strides"))
def _strided_slice_grad_kernel(ctx: KernelContext, sizes: Any, begin: Any, end: Any, strides: Any, dy: Any) -> Any:
    dx = ctx.xp.zeros(sizes.tolist(), dy.dtype)
    part = dx[_index(ctx, dx.shape, begin, end, strides)]  # a view, since all entries are slices or numbers
    if part.shape != dy.shape:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: dy has shape {text(dy.shape)}, but the slice has shape {text(part.shape)}.", op=ctx.op
        )
    part[...] = dy
    return dx


@register_gradient("StridedSliceGrad")
def _strided_slice_grad_grad(op: Operation, ddx: Any) -> list[Any]:
    masks = {mask: op.get_attr(mask) for mask in _MASKS}
    return [None, None, None, None, apply_op("StridedSlice", ddx, *op.inputs[1:4], **masks)]
