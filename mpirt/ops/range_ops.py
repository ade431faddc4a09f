"""Sequences of numbers, one-hot vectors, diagonals, and what is composed of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, COMPLEX, FLOATING, INDEX, REAL, DType, int32, int64
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, broadcast, is_static, merge, text, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor, to_array
from mpirt.ops.arguments import shape_tensor
from mpirt.ops.array_ops import expand_dims, rank, reshape, shape, size
from mpirt.ops.cast_ops import cast
from mpirt.ops.logic_ops import equal, greater_equal
from mpirt.ops.math_ops import maximum
from mpirt.ops.select_ops import where_v2
from mpirt.ops.tile_ops import broadcast_dynamic_shape, broadcast_to

__all__ = ["diag", "diag_part", "eye", "lin_space", "linspace", "meshgrid", "one_hot", "range", "sequence_mask"]

# --------------------------------------------------------------------------------------------- sequences of numbers

_INFERENCE_ORDER = (int32, int64, dtypes.float32, dtypes.float64)


def range(start: Any, limit: Any = None, delta: Any = 1, dtype: Any = None, name: str = "range") -> Tensor:
    """Numbers from ``start`` in steps of ``delta`` while below (above, if ``delta`` is negative) ``limit``.

    Parameters
    ----------
    start : number; with ``limit`` left out it is the limit, and the numbers start at 0
    limit : number, not reached
    delta : number, not 0
    dtype : type of the result; by default the widest of int32, int64, float32, float64 among the arguments
    name : name of the operation
    """
    if limit is None:
        start, limit = 0, start
    kind = _common_dtype([start, limit, delta]) if dtype is None else dtypes.as_dtype(dtype)
    out: Tensor = apply_op("Range", *(_number(v, kind) for v in (start, limit, delta)), name=name)
    return out


def _common_dtype(values: list[Any]) -> DType:
    found = [_dtype_of(v) for v in values]
    if all(d in _INFERENCE_ORDER for d in found):
        return max(found, key=_INFERENCE_ORDER.index)
    typed = [d for v, d in zip(values, found, strict=True) if is_tensor(v) or isinstance(v, np.ndarray | np.generic)]
    if any(d is not typed[0] for d in typed):
        raise TypeError(f"range can't mix the types {', '.join(d.name for d in typed)}; cast its arguments or pass dtype.")
    return typed[0]


def _dtype_of(value: Any) -> DType:
    return convert_to_tensor(value).dtype.base_dtype if is_tensor(value) else dtypes.as_dtype(to_array(value).dtype)


def _number(value: Any, dtype: DType) -> Any:
    if not is_tensor(value):
        return convert_to_tensor(value, dtype)
    tensor = convert_to_tensor(value)
    return tensor if tensor.dtype.base_dtype is dtype else apply_op("Cast", tensor, DstT=dtype)


@register_op(
    "Range",
    inputs=["start: Tidx", "limit: Tidx", "delta: Tidx"],
    outputs=["output: Tidx"],
    attrs={"Tidx": ("type", int32)},
    Tidx=tuple(t for t in REAL if t is not dtypes.uint8),
)
def _range_shape(ctx: ShapeContext) -> list[Shape]:
    values = []
    for name in ("start", "limit", "delta"):
        with_rank(ctx.shape(name), 0, name)
        values.append(ctx.const(name))
    if any(v is None for v in values):
        return [(None,)]
    try:
        return [(_range_size(*[v.item() for v in values]),)]  # type: ignore[union-attr]
    except errors.InvalidArgumentError as error:
        raise ValueError(error.message) from None


def _range_size(start: Any, limit: Any, delta: Any, op: Operation | None = None) -> int:
    if delta == 0 or (limit - start) * delta < 0:
        raise errors.InvalidArgumentError(f"can't count from {start} to {limit} in steps of {delta}.", op=op)
    if isinstance(start, int):
        return int(-((start - limit) // delta))  # rounded up
    return math.ceil(abs(float((limit - start) / delta)))


@register_kernel("Range", host=("start", "limit", "delta", "output"))
def _range(ctx: KernelContext, start: Any, limit: Any, delta: Any) -> Any:
    count = _range_size(start.item(), limit.item(), delta.item(), ctx.op)
    return start + np.arange(count).astype(start.dtype) * delta


def linspace(start: Any, stop: Any, num: Any, name: str | None = None, axis: int = 0) -> Tensor:
    """``num`` evenly spaced numbers from ``start`` to ``stop``, both included, along a new dimension.

    Parameters
    ----------
    start, stop : numbers or tensors of one type, which broadcast; of integers the numbers are float64
    num : how many
    name : name of the result
    axis : where the new dimension is
    """
    with get_default_graph().name_scope(name or "linspace") as scope:
        start = convert_to_tensor(start, name="start")
        stop = convert_to_tensor(stop, start.dtype.base_dtype, "stop")
        if not (start.dtype.is_floating or start.dtype.is_complex):
            start, stop = cast(start, dtypes.float64), cast(stop, dtypes.float64)
        count = cast(num, int32)
        both = broadcast_dynamic_shape(shape(start), shape(stop))
        first, last = (expand_dims(broadcast_to(end, both), axis) for end in (start, stop))
        ndim = rank(first)
        along = where_v2(equal(range(ndim), axis if axis >= 0 else ndim + axis), count, 1)
        number = reshape(range(count), along)
        steps = maximum(count - 1, 1)
        value = first + (last - first) / cast(steps, first.dtype) * cast(number, first.dtype)
        out: Tensor = where_v2(greater_equal(number, steps), last, value, name=scope)
        known = broadcast(start.static_shape, stop.static_shape)
        if known is not None:
            place = axis if axis >= 0 else len(known) + 1 + axis
            size = constants.value(count)
            out.set_shape((*known[:place], None if size is None else int(size), *known[place:]))
        return out


lin_space = linspace


@register_op(
    "LinSpace",
    inputs=["start: T", "stop: T", "num: Tidx"],
    outputs=["output: T"],
    attrs={"Tidx": ("type", int32)},
    T=FLOATING,
    Tidx=INDEX,
)
def _linspace_shape(ctx: ShapeContext) -> list[Shape]:
    for name in ("start", "stop", "num"):
        with_rank(ctx.shape(name), 0, name)
    num = ctx.const("num")
    if num is not None and num <= 0:
        raise ValueError(f"num must be at least 1, not {int(num)}")
    return [(None if num is None else int(num),)]


@register_kernel("LinSpace", host=("start", "stop", "num"))
def _linspace(ctx: KernelContext, start: Any, stop: Any, num: Any) -> Any:
    if num <= 0:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: num must be at least 1, not {int(num)}.", op=ctx.op)
    return ctx.xp.linspace(start.item(), stop.item(), int(num)).astype(start.dtype)


no_gradient("Range", "LinSpace", reason="not differentiable in TensorFlow either: the number of values would change too")


# ----------------------------------------------------------------------------------------------------------- one-hot


def one_hot(
    indices: Any,
    depth: Any,
    on_value: Any = None,
    off_value: Any = None,
    axis: int | None = None,
    dtype: Any = None,
    name: str | None = None,
) -> Tensor:
    """Vectors of length ``depth`` that are ``on_value`` at the index and ``off_value`` elsewhere (everywhere if it is outside).

    Parameters
    ----------
    indices : integers of any shape
    depth : number of classes
    on_value, off_value : by default 1 and 0
    axis : where the new dimension goes, by default at the end
    dtype : by default that of the values, or float32
    name : name of the operation
    """
    kind = None if dtype is None else dtypes.as_dtype(dtype)
    for value in (on_value, off_value):
        if value is None:
            continue
        found = _dtype_of(value) if kind is None or is_tensor(value) else kind
        if kind is not None and found is not kind:
            raise TypeError(f"dtype {found.name} of on_value or off_value does not match dtype parameter {kind.name}.")
        kind = found
    kind = kind or dtypes.float32
    on = convert_to_tensor(np.ones((), kind.np_dtype) if on_value is None else on_value, kind)
    off = convert_to_tensor(np.zeros((), kind.np_dtype) if off_value is None else off_value, kind)
    out: Tensor = apply_op("OneHot", indices, depth, on, off, name=name, axis=-1 if axis is None else axis)
    return out


@register_op(
    "OneHot",
    inputs=["indices: TI", "depth: int32", "on_value: T", "off_value: T"],
    outputs=["output: T"],
    attrs={"axis": ("int", -1), "TI": ("type", int64)},
    T=ALL,
    TI=(dtypes.uint8, dtypes.int8, int32, int64),
)
def _one_hot_shape(ctx: ShapeContext) -> list[Shape]:
    known, depth, axis = ctx.shape("indices"), ctx.const("depth"), ctx.attr("axis")
    for name in ("depth", "on_value", "off_value"):
        with_rank(ctx.shape(name), 0, name)
    if depth is not None and depth < 0:
        raise ValueError(f"depth must not be negative: {int(depth)}")
    if known is None:
        return [None]
    if not -1 <= axis <= len(known):
        raise ValueError(f"axis {axis} is outside [-1, {len(known)}] for indices of shape {text(known)}")
    at = len(known) if axis == -1 else axis
    return [(*known[:at], None if depth is None else int(depth), *known[at:])]


@register_kernel("OneHot", host=("depth",))
def _one_hot(ctx: KernelContext, indices: Any, depth: Any, on: Any, off: Any, *, axis: int) -> Any:
    xp, n = ctx.xp, int(depth)
    if n < 0 or not -1 <= axis <= indices.ndim:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: depth {n} and axis {axis} don't fit {text(indices.shape)}.", op=ctx.op)
    flat = indices.reshape(-1)
    out = xp.full((flat.size, n), off, on.dtype)
    rows = xp.flatnonzero((flat >= 0) & (flat < n))
    out[rows, flat[rows]] = on
    return xp.moveaxis(out.reshape((*indices.shape, n)), -1, indices.ndim if axis == -1 else axis)


no_gradient("OneHot", reason="its values are chosen by indices; the two values are taken as constants, as in TensorFlow")


# --------------------------------------------------------------------------------------------------------- diagonals

_DIAGONAL_TYPES = (*FLOATING, int32, int64, *COMPLEX)


def diag(diagonal: Any, name: str | None = None) -> Tensor:
    """A tensor of shape ``diagonal.shape + diagonal.shape`` with ``diagonal`` on its diagonal and zeros elsewhere."""
    out: Tensor = apply_op("Diag", diagonal, name=name)
    return out


@register_op("Diag", inputs=["diagonal: T"], outputs=["output: T"], T=_DIAGONAL_TYPES)
def _diag_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("diagonal")
    return [None if known is None else known + known]


@register_kernel("Diag")
def _diag(ctx: KernelContext, x: Any) -> Any:
    return ctx.xp.diag(x.reshape(-1)).reshape(x.shape + x.shape)


@register_gradient("Diag")
def _diag_grad(op: Operation, dy: Any) -> list[Any]:
    return [diag_part(dy)]


def diag_part(input: Any, name: str | None = None) -> Tensor:
    """The diagonal of a tensor of shape ``s + s``, of shape ``s``."""
    out: Tensor = apply_op("DiagPart", input, name=name)
    return out


@register_op("DiagPart", inputs=["input: T"], outputs=["diagonal: T"], T=_DIAGONAL_TYPES)
def _diag_part_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("input")
    if known is None:
        return [None]
    half = len(known) // 2
    if len(known) % 2 or not known:
        raise ValueError(f"the shape {text(known)} isn't made of two equal halves")
    return [merge(known[:half], known[half:])]


@register_kernel("DiagPart")
def _diag_part(ctx: KernelContext, x: Any) -> Any:
    half = x.shape[: x.ndim // 2]
    if x.shape != half + half or not half:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: the shape {text(x.shape)} isn't made of two equal halves.", op=ctx.op)
    n = math.prod(half)
    return ctx.xp.diagonal(x.reshape(n, n)).reshape(half)


@register_gradient("DiagPart")
def _diag_part_grad(op: Operation, dy: Any) -> list[Any]:
    return [diag(dy)]


# ---------------------------------------------------------------------------------------------------------- composed


def eye(num_rows: Any, num_columns: Any = None, batch_shape: Any = None, dtype: Any = dtypes.float32, name: str | None = None) -> Tensor:
    """An identity matrix of ``num_rows`` by ``num_columns``, or a batch of them."""
    columns = num_rows if num_columns is None else num_columns
    matrix = one_hot(range(num_rows), columns, dtype=dtype, name=name or "eye")
    if batch_shape is None:
        return matrix
    head = shape_tensor(batch_shape, "batch_shape")
    tail = shape_tensor([num_rows, columns])
    if tail.dtype.base_dtype is not head.dtype.base_dtype:
        tail = _number(tail, head.dtype.base_dtype)
    return broadcast_to(matrix, apply_op("ConcatV2", [head, tail], 0))


def meshgrid(*args: Any, **kwargs: Any) -> list[Tensor]:
    """Coordinate grids of vectors: output i holds ``args[i]`` along its own axis and repeats it along all others.

    Parameters
    ----------
    *args : vectors
    indexing : "xy" (the default: the first two axes are exchanged) or "ij"
    name : accepted for TensorFlow's sake
    """
    indexing = kwargs.pop("indexing", "xy")
    kwargs.pop("name", None)
    if kwargs:
        raise TypeError(f"'{sorted(kwargs)[0]}' is an invalid keyword argument for this function.")
    if indexing not in ("xy", "ij"):
        raise ValueError(f"Argument `indexing` must be 'xy' or 'ij', not {indexing!r}.")
    vectors = [convert_to_tensor(a) for a in args]
    order = np.arange(len(vectors)).tolist()
    if indexing == "xy" and len(vectors) > 1:
        order[0], order[1] = 1, 0
    sizes: list[Any] = [0] * len(vectors)
    columns = []
    for vector, axis in zip(vectors, order, strict=True):
        form = [1] * len(vectors)
        form[axis] = -1
        columns.append(reshape(vector, form))
        known = vector.static_shape
        sizes[axis] = math.prod(known) if is_static(known) else size(vector)  # type: ignore[arg-type]
    return [broadcast_to(column, sizes) for column in columns]


def sequence_mask(lengths: Any, maxlen: Any = None, dtype: Any = dtypes.bool, name: str | None = None) -> Tensor:
    """Rows whose first ``lengths[i]`` of ``maxlen`` (by default the largest length) elements are true.

    Parameters
    ----------
    lengths : integers of any shape
    maxlen : length of the rows
    dtype : type of the result, bool or a number
    name : name of the operation
    """
    lengths = convert_to_tensor(lengths)
    kind = lengths.dtype.base_dtype
    if maxlen is None:
        known = constants.value(lengths)
        maxlen = apply_op("Max", reshape(lengths, [-1]), [0]) if known is None or not known.size else known.max()
        maxlen = apply_op("Maximum", maxlen, np.zeros((), kind.np_dtype)) if is_tensor(maxlen) else maxlen
    steps = range(np.zeros((), kind.np_dtype), _number(maxlen, kind), np.ones((), kind.np_dtype))
    mask: Tensor = apply_op("Less", steps, expand_dims(lengths, -1), name=name)
    out = dtypes.as_dtype(dtype)
    if out is not dtypes.bool:
        mask = apply_op("Cast", mask, DstT=out)
    return mask
