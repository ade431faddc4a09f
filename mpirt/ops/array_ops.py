"""Shapes as values, changes of shape, and tensors of one value.

Owns: ``Shape`` to ``Transpose``, ``Fill`` and the ``*Like`` family. Neighbours: ``identity_ops`` (placeholders, identity),
``tile_ops`` (broadcast, tile, pad, reverse), ``range_ops`` (range, one_hot, diag), ``select_ops`` (where), ``slice_ops``,
``concat_ops``, ``gather_ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX, DType, int32
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, as_shape, is_static, normalize_axis, num_elements, text, with_rank
from mpirt.ops.apply import apply_op, constant, convert_to_tensor, is_tensor
from mpirt.ops.arguments import axis_of, either, shape_tensor, sizes_of

__all__ = [
    "expand_dims", "fill", "invert_permutation", "matrix_transpose", "ones", "ones_like", "rank", "reshape", "shape", "shape_n",
    "size", "squeeze", "transpose", "zeros", "zeros_like",
]  # fmt: skip

_OUT_INT32 = {"out_type": ("type", int32)}
_SMALL = 1000  # zeros and ones of fewer elements are constants, as in TensorFlow


# -------------------------------------------------------------------------------------------------- shapes as values


def shape(input: Any, name: str | None = None, out_type: Any = None) -> Tensor:
    """The shape of ``input`` as a vector; a constant if it is known while building."""
    tensor, dtype = convert_to_tensor(input), dtypes.as_dtype(out_type or int32)
    if is_static(tensor.static_shape):
        return constant(np.array(tensor.static_shape, dtype.np_dtype), name=name or "Shape")
    out: Tensor = apply_op("Shape", tensor, name=name, out_type=dtype)
    return out


@register_op("Shape", inputs=["input: T"], outputs=["output: out_type"], attrs=_OUT_INT32, T=ALL, out_type=INDEX)
def _shape_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("input")
    return [(None if known is None else len(known),)]


@register_kernel("Shape", host=("output",), memory="own")
def _shape(ctx: KernelContext, x: Any, *, out_type: DType) -> Any:
    return np.array(x.shape, out_type.np_dtype)


def shape_n(input: Sequence[Any], out_type: Any = int32, name: str | None = None) -> list[Tensor]:
    """The shapes of several tensors, as vectors."""
    out: list[Tensor] = apply_op("ShapeN", list(input), name=name, out_type=dtypes.as_dtype(out_type))
    return out


@register_op("ShapeN", inputs=["input: N*T"], outputs=["output: N*out_type"], attrs=_OUT_INT32, T=ALL, out_type=INDEX)
def _shape_n_shape(ctx: ShapeContext) -> list[Shape]:
    return [(None if s is None else len(s),) for s in ctx.shapes("input")]


@register_kernel("ShapeN", host=("output",), memory="own")
def _shape_n(ctx: KernelContext, *xs: Any, out_type: DType) -> Any:
    return [np.array(x.shape, out_type.np_dtype) for x in xs]


def size(input: Any, name: str | None = None, out_type: Any = None) -> Tensor:
    """The number of elements of ``input``; a constant if it is known while building."""
    tensor, dtype = convert_to_tensor(input), dtypes.as_dtype(out_type or int32)
    count = num_elements(tensor.static_shape)
    if count is not None:
        return constant(np.array(count, dtype.np_dtype), name=name or "Size")
    out: Tensor = apply_op("Size", tensor, name=name, out_type=dtype)
    return out


@register_op("Size", inputs=["input: T"], outputs=["output: out_type"], attrs=_OUT_INT32, T=ALL, out_type=INDEX)
def _size_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("Size", host=("output",), memory="own")
def _size(ctx: KernelContext, x: Any, *, out_type: DType) -> Any:
    return np.array(x.size, out_type.np_dtype)


def rank(input: Any, name: str | None = None) -> Tensor:
    """The number of dimensions of ``input``; a constant if it is known while building."""
    tensor = convert_to_tensor(input)
    if tensor.static_shape is not None:
        return constant(np.array(len(tensor.static_shape), np.int32), name=name or "Rank")
    out: Tensor = apply_op("Rank", tensor, name=name)
    return out


@register_op("Rank", inputs=["input: T"], outputs=["output: int32"], T=ALL)
def _rank_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("Rank", host=("output",), memory="own")
def _rank(ctx: KernelContext, x: Any) -> Any:
    return np.array(x.ndim, np.int32)


no_gradient("Shape", "ShapeN", "Size", "Rank", reason="its integers don't depend on the input's values")


# -------------------------------------------------------------------------------------------------- changes of shape


def reshape(tensor: Any, shape: Any, name: str | None = None) -> Tensor:
    """The elements of ``tensor`` in row-major order as ``shape``, in which one size may be -1 (what remains).

    Raises
    ------
    ValueError
        If the number of elements can't be that of ``shape``; InvalidArgumentError if that shows only in the step.
    """
    out: Tensor = apply_op("Reshape", tensor, shape_tensor(shape), name=name)
    return out


@register_op(
    "Reshape",
    inputs=["tensor: T", "shape: Tshape"],
    outputs=["output: T"],
    attrs={"Tshape": ("type", int32)},
    T=ALL,
    Tshape=INDEX,
)
def _reshape_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.const("shape")
    if known is not None and (np.count_nonzero(known < 0) > 1 or np.any(known < -1)):
        raise ValueError(f"the shape {known.tolist()} may have at most one -1 and no other negative size")
    sizes, count = ctx.const_shape("shape"), num_elements(ctx.shape("tensor"))
    if sizes is None or count is None:
        return [sizes]
    product = int(np.prod([d for d in sizes if d is not None], dtype=np.int64))
    unknown = sum(d is None for d in sizes)
    if (unknown == 0 and product != count) or (unknown == 1 and product and count % product):
        raise ValueError(f"Cannot reshape a tensor with {count} elements to shape {text(sizes)} ({product} elements)")
    if unknown == 1 and product:
        return [tuple(count // product if d is None else d for d in sizes)]
    return [sizes]


@register_kernel("Reshape", host=("shape",), memory="view")
def _reshape(ctx: KernelContext, x: Any, sizes: Any) -> Any:
    wanted = sizes.reshape(-1).tolist()
    if 0 in wanted and -1 in wanted and x.size == 0:
        # numpy can't infer a size beside a 0; TensorFlow divides what is left without the zeros on both sides.
        left = int(np.prod([d for d in x.shape if d], dtype=np.int64))
        wanted[wanted.index(-1)] = left // int(np.prod([d for d in wanted if d > 0], dtype=np.int64))
    try:
        return x.reshape(wanted)
    except ValueError:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: a tensor of shape {text(x.shape)} with {x.size} elements can't be reshaped to {sizes.tolist()}.",
            op=ctx.op,
        ) from None


def reshape_like(dy: Any, x: Tensor) -> Tensor:
    """``dy`` in the shape of ``x``: the gradient of everything that only moves sizes."""
    return reshape(dy, shape(x))


@register_gradient("Reshape")
def _reshape_grad(op: Operation, dy: Any) -> list[Any]:
    return [reshape_like(dy, op.inputs[0]), None]


def expand_dims(input: Any, axis: Any = None, name: str | None = None, dim: Any = None) -> Tensor:
    """``input`` with a dimension of size 1 put in at ``axis`` (-1: at the end); ``dim`` is the old name of ``axis``."""
    out: Tensor = apply_op("ExpandDims", input, either("axis", axis, "dim", dim), name=name)
    return out


@register_op("ExpandDims", inputs=["input: T", "dim: Tdim"], outputs=["output: T"], attrs={"Tdim": ("type", int32)}, T=ALL, Tdim=INDEX)
def _expand_dims_shape(ctx: ShapeContext) -> list[Shape]:
    known, dim = ctx.shape("input"), ctx.const("dim")
    if known is None:
        return [None]
    if dim is None:
        return [(None,) * (len(known) + 1)]
    if dim.size != 1:
        raise ValueError(f"the axis of expand_dims must be one number, not {dim.tolist()}")
    axis = normalize_axis(int(dim.reshape(())), len(known) + 1)
    return [(*known[:axis], 1, *known[axis:])]


@register_kernel("ExpandDims", host=("dim",), memory="view")
def _expand_dims(ctx: KernelContext, x: Any, dim: Any) -> Any:
    axis, shape = axis_of(ctx, dim.reshape(()), x.ndim + 1), x.shape
    return x.reshape(*shape[:axis], 1, *shape[axis:])


def squeeze(input: Any, axis: Any = None, name: str | None = None, squeeze_dims: Any = None) -> Tensor:
    """``input`` without its dimensions of size 1, or without those in ``axis`` (old name ``squeeze_dims``)."""
    given = None if axis is None and squeeze_dims is None else either("axis", axis, "squeeze_dims", squeeze_dims)
    axes = [] if given is None else [int(a) for a in np.atleast_1d(given)]
    out: Tensor = apply_op("Squeeze", input, name=name, squeeze_dims=axes)
    return out


@register_op("Squeeze", inputs=["input: T"], outputs=["output: T"], attrs={"squeeze_dims": ("list(int)", [])}, T=ALL)
def _squeeze_shape(ctx: ShapeContext) -> list[Shape]:
    known, dims = ctx.shape("input"), ctx.attr("squeeze_dims")
    if known is None:
        return [None]
    if not dims:
        return [None if None in known else tuple(d for d in known if d != 1)]
    axes = {normalize_axis(d, len(known)) for d in dims}
    for axis in sorted(axes):
        if known[axis] not in (None, 1):
            raise ValueError(f"Can not squeeze dim[{axis}], expected a dimension of 1, got {known[axis]}")
    return [tuple(d for i, d in enumerate(known) if i not in axes)]


@register_kernel("Squeeze", memory="view")
def _squeeze(ctx: KernelContext, x: Any, *, squeeze_dims: list[int]) -> Any:
    axes = {axis_of(ctx, d, x.ndim) for d in squeeze_dims} if squeeze_dims else {i for i, d in enumerate(x.shape) if d == 1}
    if any(x.shape[a] != 1 for a in axes):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: can't squeeze axes {sorted(axes)} of a tensor of shape {text(x.shape)}: not all are of size 1.",
            op=ctx.op,
        )
    return x.reshape([d for i, d in enumerate(x.shape) if i not in axes])


@register_gradient("ExpandDims")
def _expand_dims_grad(op: Operation, dy: Any) -> list[Any]:
    return [reshape_like(dy, op.inputs[0]), None]


@register_gradient("Squeeze")
def _squeeze_grad(op: Operation, dy: Any) -> list[Any]:
    return [reshape_like(dy, op.inputs[0])]


def transpose(a: Any, perm: Any = None, name: str = "transpose", conjugate: bool = False) -> Tensor:
    """``a`` with its dimensions in the order ``perm`` (by default reversed); complex conjugated if asked."""
    tensor = convert_to_tensor(a)
    if perm is None:
        if tensor.static_shape is not None:
            perm = np.arange(len(tensor.static_shape) - 1, -1, -1, dtype=np.int32)
        else:
            ndim = apply_op("Rank", tensor)
            perm = apply_op("Range", apply_op("Sub", ndim, 1), -1, -1)
    op_type = "ConjugateTranspose" if conjugate and tensor.dtype.is_complex else "Transpose"
    out: Tensor = apply_op(op_type, tensor, shape_tensor(perm, "perm"), name=name)
    return out


def matrix_transpose(a: Any, name: str = "matrix_transpose", conjugate: bool = False) -> Tensor:
    """``a`` with its last two dimensions exchanged; ValueError if it has fewer."""
    tensor = convert_to_tensor(a)
    if tensor.static_shape is None:
        ndim = apply_op("Rank", tensor)
        head = apply_op("Range", 0, apply_op("Sub", ndim, 2), 1)
        tail = apply_op("Pack", [apply_op("Sub", ndim, 1), apply_op("Sub", ndim, 2)])
        return transpose(tensor, apply_op("ConcatV2", [head, tail], 0), name, conjugate)
    ndim = len(tensor.static_shape)
    if ndim < 2:
        raise ValueError(f"matrix_transpose needs at least 2 dimensions, but {tensor!r} has {ndim}.")
    return transpose(tensor, [*range(ndim - 2), ndim - 1, ndim - 2], name, conjugate)


_PERM_INT32 = {"Tperm": ("type", int32)}


@register_op("Transpose", inputs=["x: T", "perm: Tperm"], outputs=["y: T"], attrs=_PERM_INT32, T=ALL, Tperm=INDEX)
@register_op("ConjugateTranspose", inputs=["x: T", "perm: Tperm"], outputs=["y: T"], attrs=_PERM_INT32, T=ALL, Tperm=INDEX)
def _transpose_shape(ctx: ShapeContext) -> list[Shape]:
    known, perm, length = ctx.shape("x"), ctx.const("perm"), with_rank(ctx.shape("perm"), 1, "perm")[0]
    if known is None and length is None:
        return [None]
    known = with_rank(known, length if length is not None else len(known or ()), "x")
    if perm is None:
        return [(None,) * len(known)]
    order = [normalize_axis(int(p), len(known), "perm") for p in perm]
    if sorted(order) != list(range(len(known))):
        raise ValueError(f"{perm.tolist()} is not a permutation of the dimensions of a tensor of shape {text(known)}")
    return [tuple(known[p] for p in order)]


def _transposed(ctx: KernelContext, x: Any, perm: Any) -> Any:
    order = perm.tolist()
    try:
        return x.transpose(order)
    except ValueError:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: {order} is not a permutation of the dimensions of a tensor of shape {text(x.shape)}.", op=ctx.op
        ) from None


@register_kernel("Transpose", host=("perm",), memory="view")
def _transpose(ctx: KernelContext, x: Any, perm: Any) -> Any:
    return _transposed(ctx, x, perm)


@register_kernel("ConjugateTranspose", host=("perm",))
def _conjugate_transpose(ctx: KernelContext, x: Any, perm: Any) -> Any:
    return ctx.xp.conj(_transposed(ctx, x, perm))


@register_gradient("Transpose", "ConjugateTranspose")
def _transpose_grad(op: Operation, dy: Any) -> list[Any]:
    perm = constants.value(op.inputs[1])
    inverse = invert_permutation(op.inputs[1]) if perm is None else np.argsort(perm % max(len(perm), 1)).astype(perm.dtype)
    return [transpose(dy, inverse, conjugate=op.type == "ConjugateTranspose"), None]


def invert_permutation(x: Any, name: str | None = None) -> Tensor:
    """The permutation that undoes ``x``: ``y[x[i]] == i``."""
    out: Tensor = apply_op("InvertPermutation", shape_tensor(x, "x"), name=name)
    return out


@register_op("InvertPermutation", inputs=["x: T"], outputs=["y: T"], attrs={"T": ("type", int32)}, T=INDEX)
def _invert_permutation_shape(ctx: ShapeContext) -> list[Shape]:
    return [with_rank(ctx.shape("x"), 1, "x")]


@register_kernel("InvertPermutation", host=("x", "y"))
def _invert_permutation(ctx: KernelContext, x: Any) -> Any:
    n = x.size
    if not np.array_equal(np.sort(x), np.arange(n)):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: {x.tolist()} is not a permutation of 0 to {n - 1}.", op=ctx.op)
    y = np.empty_like(x)
    y[x] = np.arange(n, dtype=x.dtype)
    return y


no_gradient("InvertPermutation", reason="its values are indices")


# -------------------------------------------------------------------------------------------- tensors of one value


def fill(dims: Any, value: Any, name: str | None = None, layout: Any = None) -> Tensor:
    """A tensor of shape ``dims`` that is ``value`` everywhere; ``layout`` is accepted for TensorFlow's sake."""
    out: Tensor = apply_op("Fill", shape_tensor(dims, "dims"), value, name=name)
    return out


@register_op(
    "Fill",
    inputs=["dims: index_type", "value: T"],
    outputs=["output: T"],
    attrs={"index_type": ("type", int32)},
    T=ALL,
    index_type=INDEX,
)
def _fill_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.const("dims")
    if known is not None and np.any(known < 0):
        raise ValueError(f"the shape {known.tolist()} has a negative size")
    with_rank(ctx.shape("value"), 0, "value")
    return [ctx.const_shape("dims")]


@register_kernel("Fill", host=("dims",), memory="own")
def _fill(ctx: KernelContext, dims: Any, value: Any) -> Any:
    out = ctx.xp.empty(sizes_of(ctx, dims, "dims"), value.dtype)
    out[...] = value
    return out


@register_gradient("Fill")
def _fill_grad(op: Operation, dy: Any) -> list[Any]:
    dy = convert_to_tensor(dy)
    return [None, apply_op("Sum", dy, apply_op("Range", 0, rank(dy), 1))]


def _filled(dims: Any, value: Any, dtype: DType, name: str) -> Tensor:
    number = np.array(value, dtype.np_dtype)
    if not is_tensor(dims) and not (isinstance(dims, list | tuple) and any(is_tensor(d) for d in dims)):
        known = as_shape(dims)
        count = num_elements(known)
        if count is not None and count < _SMALL:
            return constant(np.full(known, number, dtype.np_dtype), name=name)
    return fill(dims, constant(number), name)


def zeros(shape: Any, dtype: Any = dtypes.float32, name: str | None = None, layout: Any = None) -> Tensor:
    """A tensor of zeros (``False``, empty strings) of the given shape."""
    kind = dtypes.as_dtype(dtype).base_dtype
    return _filled(shape, b"" if kind is dtypes.string else 0, kind, name or "zeros")


def ones(shape: Any, dtype: Any = dtypes.float32, name: str | None = None, layout: Any = None) -> Tensor:
    """A tensor of ones (``True``) of the given shape."""
    return _filled(shape, 1, dtypes.as_dtype(dtype).base_dtype, name or "ones")


def zeros_like(tensor: Any, dtype: Any = None, name: str | None = None, optimize: bool = True) -> Tensor:
    """Zeros in the shape of ``tensor`` and its type or ``dtype``; a constant if the shape is known and ``optimize``."""
    tensor = convert_to_tensor(tensor)
    kind = tensor.dtype.base_dtype if dtype is None else dtypes.as_dtype(dtype).base_dtype
    if (optimize and is_static(tensor.static_shape)) or kind is not tensor.dtype.base_dtype:
        return zeros(_shape_for_like(tensor, optimize), kind, name or "zeros_like")
    out: Tensor = apply_op("ZerosLike", tensor, name=name or "zeros_like")
    return out


def ones_like(tensor: Any, dtype: Any = None, name: str | None = None, optimize: bool = True) -> Tensor:
    """Ones in the shape of ``tensor`` and its type or ``dtype``; a constant if the shape is known and ``optimize``."""
    tensor = convert_to_tensor(tensor)
    kind = tensor.dtype.base_dtype if dtype is None else dtypes.as_dtype(dtype).base_dtype
    if (optimize and is_static(tensor.static_shape)) or kind is not tensor.dtype.base_dtype:
        return ones(_shape_for_like(tensor, optimize), kind, name or "ones_like")
    out: Tensor = apply_op("OnesLike", tensor, name=name or "ones_like")
    return out


def _shape_for_like(tensor: Tensor, optimize: bool) -> Any:
    static = tensor.static_shape
    return static if optimize and is_static(static) else apply_op("Shape", tensor)


@register_op("ZerosLike", inputs=["x: T"], outputs=["y: T"], T=ALL)
@register_op("OnesLike", inputs=["x: T"], outputs=["y: T"], T=tuple(t for t in ALL if t.kind != "O"))
def _like_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.shape("x")]


@register_kernel("ZerosLike", memory="own")
def _zeros_like(ctx: KernelContext, x: Any) -> Any:
    return ctx.xp.zeros(x.shape, x.dtype) if x.dtype != object else np.full(x.shape, b"", object)


@register_kernel("OnesLike", memory="own")
def _ones_like(ctx: KernelContext, x: Any) -> Any:
    return ctx.xp.ones(x.shape, x.dtype)


no_gradient("ZerosLike", "OnesLike", reason="its values don't depend on the input's values")
