"""Reductions over axes, and positions of extremes.

Owns: how axes are named (a Python number or list, or an integer tensor) and the shapes that follow from it.
Neighbours: running sums are in ``cumulative_ops``, sums by segment number in ``segment_ops``, norms in ``clip_ops``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import INDEX, NUMERIC, REAL, DType
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, fitting, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, is_static, normalize_axis, num_elements
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.arguments import axis_of
from mpirt.ops.cast_ops import cast
from mpirt.ops.complex_ops import conj
from mpirt.ops.cumulative_ops import cumprod
from mpirt.ops.math_ops import squared_difference

__all__ = [
    "arg_max", "arg_min", "argmax", "argmin", "count_nonzero", "reduce_all",
    "reduce_any", "reduce_euclidean_norm", "reduce_logsumexp", "reduce_max", "reduce_mean", "reduce_min", "reduce_prod",
    "reduce_std", "reduce_sum", "reduce_variance",
]  # fmt: skip

Grads = list[Tensor | None]

# ---------------------------------------------------------------------------------------------- arguments and shapes


def first_given(new: str, value: Any, old: str, old_value: Any) -> Any:
    """The value of an optional argument that has an older name too; ValueError if both are given."""
    if value is not None and old_value is not None:
        raise ValueError(f"cannot specify both {new!r} and {old!r} (its older name).")
    return old_value if value is None else value


def _axes_input(x: Tensor, axis: Any) -> Any:
    """The axes as an input of the op: all of them for None."""
    if axis is not None:
        return axis
    shape = x.static_shape
    if shape is not None:
        return np.arange(len(shape), dtype=np.int32)
    return apply_op("Range", 0, apply_op("Rank", x), 1)


def _reduce(
    op_type: str, x: Any, axis: Any, keepdims: Any, name: str | None, reduction_indices: Any = None, keep_dims: Any = None
) -> Tensor:
    axis = first_given("axis", axis, "reduction_indices", reduction_indices)
    keep = bool(first_given("keepdims", keepdims, "keep_dims", keep_dims))
    x = convert_to_tensor(x, name="input_tensor")
    result: Tensor = apply_op(op_type, x, _axes_input(x, axis), keep_dims=keep, name=name)
    return result


def _reduction_shape(ctx: ShapeContext) -> list[Shape]:
    x, axes, keep = ctx.inputs[0].static_shape, ctx.const("reduction_indices"), ctx.attr("keep_dims")
    if x is None:
        return [None]
    if axes is None:
        return [(None,) * len(x) if keep else None]
    gone = {normalize_axis(a, len(x), "Invalid reduction dimension:") for a in np.atleast_1d(axes).tolist()}
    return [tuple(1 if i in gone else d for i, d in enumerate(x) if keep or i not in gone)]


def _axes_of(ctx: KernelContext, x: Any, axes: Any) -> tuple[int, ...]:
    """Axes of a kernel's input as Python ints, checked."""
    found: tuple[int, ...] = tuple(axes.tolist()) if axes.ndim else (int(axes),)
    ndim = x.ndim
    for a in found:
        if not -ndim <= a < ndim:
            raise errors.InvalidArgumentError(
                f"{ctx.op.name!r}: invalid reduction dimension {a} for an input of shape {tuple(x.shape)}.",
                op=ctx.op,
            )
    if len(found) > 1 and len({a % ndim for a in found}) < len(found):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: the reduction dimensions {list(found)} repeat one.", op=ctx.op)
    return found


def _register(op_type: str, types: tuple[DType, ...] | None) -> None:
    kind = "T" if types else "bool"
    table = {"Tidx": INDEX} if types is None else {"T": types, "Tidx": INDEX}
    attrs = {"keep_dims": ("bool", False), "Tidx": ("type", dtypes.int32)}
    inputs = [f"input: {kind}", "reduction_indices: Tidx"]
    register_op(op_type, inputs=inputs, outputs=[f"output: {kind}"], attrs=attrs, stateful=False, **table)(_reduction_shape)


# ---------------------------------------------------------------------------------------------- sum, mean, product


def reduce_sum(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Sum over ``axis`` (a number, a list, or None for all), in the dtype of the input."""
    return _reduce("Sum", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


_register("Sum", NUMERIC)


@register_kernel("Sum", host=("reduction_indices",), memory="own")
def _sum(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool, out: Any = None) -> Any:
    found = _axes_of(ctx, x, axes)
    if ctx.xp is not np:
        return x.sum(axis=found, dtype=x.dtype, keepdims=keep_dims)
    if found == (0,) and x.ndim == 2 and not keep_dims:
        return column_sums(x, out)
    if out is not None:
        gone = {a % x.ndim for a in found}
        out = fitting(out, tuple([1 if i in gone else d for i, d in enumerate(x.shape) if keep_dims or i not in gone]), x)
    return ctx.xp.add.reduce(x, found, x.dtype, out, keep_dims)


def column_sums(x: Any, out: Any = None) -> Any:
    """Sums of the columns of a matrix, in ``out`` if that fits.

    As a product of floats with ones: the sums of a batch take a third of the time, and lose fewer digits than one number after
    the other.
    """
    if out is not None:
        out = fitting(out, x.shape[1:], x)
    rows = x.shape[0]
    if x.dtype.char in "fd" and rows <= _MOST_ROWS and x.flags.c_contiguous:
        return np.dot(_ones(x.dtype)[:rows], x, out)
    return np.add.reduce(x, 0, x.dtype, out)


_MOST_ROWS = 1 << 15


@functools.cache
def _ones(dtype: Any) -> Any:
    return np.ones(_MOST_ROWS, dtype)


@register_gradient("Sum")
def _sum_grad(op: Operation, dy: Tensor) -> Grads:
    return [_spread(op, dy), None]


def kept_dims(op: Operation, grad: Any) -> Tensor:
    """``grad``, of the shape of the reduction's result, with the reduced dimensions as size 1."""
    x, axes = op.inputs
    y = convert_to_tensor(grad)
    if op.get_attr("keep_dims"):
        return y
    known = constants.value(axes)
    if known is not None and x.static_shape is not None:
        ndim = len(x.static_shape)
        gone = sorted({a % ndim for a in np.atleast_1d(known).tolist()})
        if len(gone) == 1:
            return _expand(y, gone[0])
        sizes = [1 if i in gone else d for i, d in enumerate(x.static_shape)]
        if sizes.count(None) <= 1:
            return _reshape(y, [-1 if d is None else d for d in sizes])
        for a in gone:
            y = _expand(y, a)
        return y
    shape = apply_op("Shape", x)
    ndim_tensor = apply_op("Size", shape)
    axes = apply_op("Reshape", cast(axes, dtypes.int32), [-1])
    positive = (axes + ndim_tensor) % ndim_tensor
    ones = apply_op("OnesLike", positive)
    return _reshape(y, apply_op("DynamicStitch", [apply_op("Range", 0, ndim_tensor, 1), positive], [shape, ones]))


def _expand(x: Any, axis: int) -> Tensor:
    result: Tensor = apply_op("ExpandDims", x, axis)
    return result


def _reshape(x: Any, shape: Any) -> Tensor:
    result: Tensor = apply_op("Reshape", x, shape)
    return result


def _spread(op: Operation, dy: Any) -> Tensor:
    """``dy`` repeated along the reduced dimensions, in the shape of the reduction's input."""
    x = op.inputs[0]
    everything = op.outputs[0].static_shape == ()
    y = convert_to_tensor(dy) if everything else kept_dims(op, dy)
    shape = list(x.static_shape) if is_static(x.static_shape) else apply_op("Shape", x)  # type: ignore[arg-type]
    result: Tensor = apply_op("BroadcastTo", y, _int32(shape))
    return result


def _int32(shape: Any) -> Any:
    return np.array(shape, np.int32) if isinstance(shape, list) else shape


def reduce_mean(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Mean over ``axis``, in the dtype of the input: of integers the quotient rounded towards zero."""
    return _reduce("Mean", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


_register("Mean", NUMERIC)


@register_kernel("Mean", host=("reduction_indices",), memory="own")
def _mean(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    found = _axes_of(ctx, x, axes)
    count = 1
    for a in found:
        count *= x.shape[a]
    if x.dtype.kind in "iu":
        total = x.sum(axis=found, dtype=x.dtype, keepdims=keep_dims)
        if not count:
            return total
        quotient = abs(total) // x.dtype.type(count) if x.dtype.kind == "i" else total // x.dtype.type(count)
        return (ctx.xp.sign(total) * quotient if x.dtype.kind == "i" else quotient).astype(x.dtype, copy=False)
    if x.dtype == np.float16:
        total = x.sum(axis=found, dtype=np.float32, keepdims=keep_dims)
        return (total / ctx.xp.float32(count)).astype(np.float16)
    if ctx.xp is np:
        return ctx.xp.add.reduce(x, found, None, None, keep_dims) / x.dtype.type(count)
    return ctx.xp.true_divide(x.sum(axis=found, keepdims=keep_dims), x.dtype.type(count))


@register_gradient("Mean")
def _mean_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs[0], op.outputs[0]
    n, m = num_elements(x.static_shape), num_elements(y.static_shape)
    count: Any
    if n is not None and m is not None:
        count = n // max(m, 1)
    else:
        count = apply_op("Size", x) // apply_op("Maximum", apply_op("Size", y), 1)
        count = cast(count, dy.dtype)
    # Divided while it is small, then repeated.
    return [_spread(op, convert_to_tensor(dy) / count), None]


def reduce_prod(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Product over ``axis``, in the dtype of the input."""
    return _reduce("Prod", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


_register("Prod", NUMERIC)


@register_kernel("Prod", host=("reduction_indices",), memory="own")
def _prod(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    return x.prod(axis=_axes_of(ctx, x, axes), dtype=x.dtype, keepdims=keep_dims)


@register_gradient("Prod")
def _prod_grad(op: Operation, dy: Tensor) -> Grads:
    """Each element's gradient is the product of the others: exclusive running products from both ends, right for zeros."""
    x, axes = op.inputs
    dy = kept_dims(op, dy)
    known = constants.value(axes)
    if known is not None and known.size == 1 and x.static_shape is not None:
        axis = int(known.reshape(()))
        return [dy * (conj(cumprod(x, axis, exclusive=True)) * conj(cumprod(x, axis, exclusive=True, reverse=True))), None]
    # Several axes: brought to the front and made one.
    shape = apply_op("Shape", x)
    ndim = apply_op("Size", shape)
    reduced = apply_op("Reshape", cast(axes, dtypes.int32), [-1])
    reduced = (reduced + ndim) % ndim
    others = apply_op("ListDiff", apply_op("Range", 0, ndim, 1), reduced)[0]
    order = apply_op("ConcatV2", [reduced, others], 0)
    front = apply_op("Transpose", x, order)
    count = apply_op("Prod", apply_op("GatherV2", shape, reduced, 0), 0)
    flat = apply_op("Reshape", front, [count, apply_op("Prod", apply_op("GatherV2", shape, others, 0), 0)])
    product = cumprod(flat, 0, exclusive=True) * cumprod(flat, 0, exclusive=True, reverse=True)
    back = apply_op("Transpose", apply_op("Reshape", product, apply_op("Shape", front)), apply_op("InvertPermutation", order))
    return [dy * apply_op("Reshape", conj(back), shape), None]


# ---------------------------------------------------------------------------------------------- extremes


def reduce_max(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Largest element over ``axis``; the dtype's smallest value (-inf) of no elements."""
    return _reduce("Max", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


def reduce_min(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Smallest element over ``axis``; the dtype's largest value (inf) of no elements."""
    return _reduce("Min", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


_register("Max", REAL)
_register("Min", REAL)


@register_kernel("Max", host=("reduction_indices",), memory="own")
def _max(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    found = _axes_of(ctx, x, axes)
    if x.size:
        return x.max(axis=found, keepdims=keep_dims)
    return _of_nothing(ctx, x, found, keep_dims, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min)


@register_kernel("Min", host=("reduction_indices",), memory="own")
def _min(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    found = _axes_of(ctx, x, axes)
    if x.size:
        return x.min(axis=found, keepdims=keep_dims)
    return _of_nothing(ctx, x, found, keep_dims, np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).max)


def _of_nothing(ctx: KernelContext, x: Any, axes: tuple[int, ...], keep: bool, value: Any) -> Any:
    gone = {a % x.ndim for a in axes}
    return ctx.xp.full(tuple(1 if i in gone else d for i, d in enumerate(x.shape) if keep or i not in gone), value, x.dtype)


@register_gradient("Max", "Min")
def _extreme_grad(op: Operation, dy: Tensor) -> Grads:
    """Shared equally by all elements that are the extreme."""
    x, axes = op.inputs
    chosen = cast(apply_op("Equal", kept_dims(op, op.outputs[0]), x), x.dtype)
    count = apply_op("Sum", chosen, axes, keep_dims=True)
    return [chosen * (kept_dims(op, dy) / count), None]


# ---------------------------------------------------------------------------------------------- logic


def reduce_all(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Whether all elements over ``axis`` are true."""
    return _reduce("All", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


def reduce_any(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """Whether any element over ``axis`` is true."""
    return _reduce("Any", input_tensor, axis, keepdims, name, reduction_indices, keep_dims)


_register("All", None)
_register("Any", None)


@register_kernel("All", host=("reduction_indices",), memory="own")
def _all(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    return x.all(axis=_axes_of(ctx, x, axes), keepdims=keep_dims)


@register_kernel("Any", host=("reduction_indices",), memory="own")
def _any(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    return x.any(axis=_axes_of(ctx, x, axes), keepdims=keep_dims)


no_gradient("All", "Any", reason="booleans have no gradient")

# ---------------------------------------------------------------------------------------------- made of others


def reduce_logsumexp(
    input_tensor: Any,
    axis: Any = None,
    keepdims: Any = None,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
) -> Tensor:
    """``log(sum(exp(x)))`` over ``axis`` without overflow."""
    axis = first_given("axis", axis, "reduction_indices", reduction_indices)
    keep = bool(first_given("keepdims", keepdims, "keep_dims", keep_dims))
    with get_default_graph().name_scope(name or "ReduceLogSumExp") as scope:
        x = convert_to_tensor(input_tensor, name="input_tensor")
        largest = apply_op("StopGradient", reduce_max(x, axis, keepdims=True))
        # An infinite maximum isn't taken off: inf - inf is NaN.
        largest = apply_op("SelectV2", apply_op("IsFinite", largest), largest, apply_op("ZerosLike", largest))
        total = reduce_sum(apply_op("Exp", x - largest), axis, keepdims=keep)
        shift = largest if keep else apply_op("Reshape", largest, apply_op("Shape", total))
        result: Tensor = apply_op("Add", apply_op("Log", total), shift, name=scope)
        return result


def reduce_variance(input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Variance over ``axis``: divided by n, not n - 1; two passes."""
    with get_default_graph().name_scope(name or "reduce_variance"):
        x = convert_to_tensor(input_tensor)
        return reduce_mean(squared_difference(x, reduce_mean(x, axis, keepdims=True)), axis, keepdims=keepdims)


def reduce_std(input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Standard deviation over ``axis``, the root of ``reduce_variance``."""
    with get_default_graph().name_scope(name or "reduce_std"):
        result: Tensor = apply_op("Sqrt", reduce_variance(input_tensor, axis, keepdims))
        return result


def reduce_euclidean_norm(input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None) -> Tensor:
    """Root of the sum of squares over ``axis``."""
    return _reduce("EuclideanNorm", input_tensor, axis, keepdims, name)


_register("EuclideanNorm", NUMERIC)


@register_kernel("EuclideanNorm", host=("reduction_indices",), memory="own")
def _euclidean_norm(ctx: KernelContext, x: Any, axes: Any, *, keep_dims: bool) -> Any:
    xp = ctx.xp
    squares = (x * xp.conjugate(x)).real if x.dtype.kind == "c" else xp.square(x)
    return xp.sqrt(squares.sum(axis=_axes_of(ctx, x, axes), keepdims=keep_dims)).astype(x.dtype, copy=False)


@register_gradient("EuclideanNorm")
def _euclidean_norm_grad(op: Operation, dy: Tensor) -> Grads:
    return [op.inputs[0] * (kept_dims(op, dy) / kept_dims(op, op.outputs[0])), None]


def count_nonzero(
    input_tensor: Any = None,
    axis: Any = None,
    keepdims: Any = None,
    dtype: Any = dtypes.int64,
    name: str | None = None,
    reduction_indices: Any = None,
    keep_dims: Any = None,
    input: Any = None,
) -> Tensor:
    """How many elements over ``axis`` aren't 0, False or the empty string."""
    x = convert_to_tensor(first_given("input", input, "input_tensor", input_tensor))
    with get_default_graph().name_scope(name or "count_nonzero"):
        zero: Any = {"O": b"", "b": False}.get(x.dtype.kind, 0)
        nonzero = cast(apply_op("NotEqual", x, zero), dtypes.int64)
        return cast(_reduce("Sum", nonzero, axis, keepdims, None, reduction_indices, keep_dims), dtype)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------- positions


def argmax(
    input: Any, axis: Any = None, name: str | None = None, dimension: Any = None, output_type: Any = dtypes.int64
) -> Tensor:
    """Position of the first largest element along ``axis`` (0 by default)."""
    axis = first_given("axis", axis, "dimension", dimension)
    return arg_max(input, 0 if axis is None else axis, output_type, name)


def argmin(
    input: Any, axis: Any = None, name: str | None = None, dimension: Any = None, output_type: Any = dtypes.int64
) -> Tensor:
    """Position of the first smallest element along ``axis`` (0 by default)."""
    axis = first_given("axis", axis, "dimension", dimension)
    return arg_min(input, 0 if axis is None else axis, output_type, name)


def arg_max(input: Any, dimension: Any, output_type: Any = dtypes.int64, name: str | None = None) -> Tensor:
    """Position of the first largest element along ``dimension``."""
    result: Tensor = apply_op("ArgMax", input, dimension, output_type=dtypes.as_dtype(output_type), name=name)
    return result


def arg_min(input: Any, dimension: Any, output_type: Any = dtypes.int64, name: str | None = None) -> Tensor:
    """Position of the first smallest element along ``dimension``."""
    result: Tensor = apply_op("ArgMin", input, dimension, output_type=dtypes.as_dtype(output_type), name=name)
    return result


def _position_shape(ctx: ShapeContext) -> list[Shape]:
    x, axis = ctx.shape("input"), ctx.const("dimension")
    if x is None:
        return [None]
    if axis is None:
        return [(None,) * (len(x) - 1)]
    gone = normalize_axis(int(axis.reshape(())), len(x), "dimension")
    return [x[:gone] + x[gone + 1 :]]


_POSITION_ATTRS = {"Tidx": ("type", dtypes.int32), "output_type": ("type", dtypes.int64)}
for _name, _axis_types, _output_types in (
    ("ArgMax", (dtypes.int16, *INDEX), (dtypes.int16, dtypes.uint16, *INDEX)),
    ("ArgMin", INDEX, INDEX),
):
    register_op(
        _name, inputs=["input: T", "dimension: Tidx"], outputs=["output: output_type"], attrs=_POSITION_ATTRS,
        T=(*REAL, dtypes.bool), Tidx=_axis_types, output_type=_output_types,
    )(_position_shape)  # fmt: skip


@register_kernel("ArgMax", host=("dimension",), memory="own")
def _arg_max(ctx: KernelContext, x: Any, axis: Any, *, output_type: DType) -> Any:
    return x.argmax(axis=_position_axis(ctx, x, axis)).astype(output_type.np_dtype, copy=False)


@register_kernel("ArgMin", host=("dimension",), memory="own")
def _arg_min(ctx: KernelContext, x: Any, axis: Any, *, output_type: DType) -> Any:
    return x.argmin(axis=_position_axis(ctx, x, axis)).astype(output_type.np_dtype, copy=False)


def _position_axis(ctx: KernelContext, x: Any, axis: Any) -> int:
    found = axis_of(ctx, axis, x.ndim, "dimension")
    if not x.shape[found]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: dimension {found} of shape {tuple(x.shape)} is empty, so nothing is largest or smallest.",
            op=ctx.op,
        )
    return found


no_gradient("ArgMax", "ArgMin", reason="positions are integers")
