"""Reading and writing elements by index: gather, gather_nd, scatter_nd, embedding_lookup, boolean_mask.

Guarantee: an index outside its dimension is an error on every device; numpy and cupy would count from the end or wrap.
The gradient of a gather of rows is ``IndexedSlices``: it costs what the rows cost, not what the table costs.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX, int32
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, compatible, is_static, merge, normalize_axis, text, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor
from mpirt.ops.arguments import axis_of, shape_tensor, sizes_of
from mpirt.ops.array_ops import expand_dims, rank, reshape, shape, size, squeeze
from mpirt.ops.concat_ops import concat
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.row_updates import change_rows, set_rows
from mpirt.ops.select_ops import where
from mpirt.ops.slice_ops import strided_slice

__all__ = [
    "batch_gather", "boolean_mask", "gather", "gather_nd", "scatter_nd", "tensor_scatter_add", "tensor_scatter_nd_add",
    "tensor_scatter_nd_sub", "tensor_scatter_nd_update", "tensor_scatter_sub", "tensor_scatter_update",
]  # fmt: skip

_INDEX16 = (dtypes.int16, *INDEX)


def check_indices(ctx: KernelContext, indices: Any, limit: int, what: str = "indices") -> None:
    """Raise InvalidArgumentError unless all integers are in [0, limit)."""
    if not indices.size:
        return
    # Seen as unsigned, negative numbers are the largest: one pass finds both kinds of error.
    if int(indices.view(f"u{indices.dtype.itemsize}").max()) >= limit:
        bad = (indices < 0) | (indices >= limit)
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: {what}{list(at) if at else ''} = {int(indices[at])} is not in [0, {limit}).", op=ctx.op
        )


# ------------------------------------------------------------------------------------------------------------ gather


def gather(
    params: Any, indices: Any, validate_indices: Any = None, name: str | None = None, axis: Any = None, batch_dims: int = 0
) -> Tensor:
    """The slices ``indices`` of dimension ``axis`` of ``params``.

    Parameters
    ----------
    params : Tensor or variable
    indices : int32 or int64 of any shape, each in [0, size of the dimension)
    validate_indices : ignored, as in TensorFlow; indices are always checked
    name : name of the operation
    axis : by default ``batch_dims``
    batch_dims : number of leading dimensions that ``params`` and ``indices`` share, slice by slice

    Returns
    -------
    Tensor of shape ``params.shape[:axis] + indices.shape[batch_dims:] + params.shape[axis + 1:]``
    """
    axis = batch_dims if axis is None else axis
    if not is_tensor(axis) and axis == 0 and batch_dims == 0 and hasattr(params, "sparse_read"):
        read: Tensor = params.sparse_read(indices, name=name)
        return read
    out: Tensor = apply_op("GatherV2", params, shape_tensor(indices, "indices"), axis, name=name, batch_dims=batch_dims)
    return out


def batch_gather(params: Any, indices: Any, name: str | None = None) -> Tensor:
    """``gather`` along the last dimension of ``indices``, the dimensions before it being shared."""
    indices = shape_tensor(indices, "indices")
    if indices.static_shape is None:
        raise ValueError("batch_gather does not allow indices with unknown shape.")
    return gather(params, indices, name=name, axis=None, batch_dims=len(indices.static_shape) - 1)


@register_op(
    "Gather",
    inputs=["params: Tparams", "indices: Tindices"],
    outputs=["output: Tparams"],
    attrs={"validate_indices": ("bool", True)},
    Tparams=ALL,
    Tindices=INDEX,
)
def _gather_shape(ctx: ShapeContext) -> list[Shape]:
    params, indices = ctx.shape("params"), ctx.shape("indices")
    if params == ():
        raise ValueError("params must have at least 1 dimension")
    return [None if params is None or indices is None else indices + params[1:]]


@register_op(
    "GatherV2",
    inputs=["params: Tparams", "indices: Tindices", "axis: Taxis"],
    outputs=["output: Tparams"],
    attrs={"batch_dims": ("int", 0)},
    Tparams=ALL,
    Tindices=_INDEX16,
    Taxis=INDEX,
)
def _gather_v2_shape(ctx: ShapeContext) -> list[Shape]:
    params, indices, axis = ctx.shape("params"), ctx.shape("indices"), ctx.const("axis")
    with_rank(ctx.shape("axis"), 0, "axis")
    if params == ():
        raise ValueError("params must have at least 1 dimension")
    if params is None or indices is None:
        return [None]
    batch = ctx.attr("batch_dims")
    if not -len(indices) <= batch <= len(indices):
        raise ValueError(f"batch_dims {batch} is outside [-{len(indices)}, {len(indices)}], the dimensions of indices")
    batch = batch + len(indices) if batch < 0 else batch
    if axis is None:
        return [(None,) * (len(params) - 1 + len(indices) - batch)]
    at = normalize_axis(int(axis), len(params))
    if batch > at:
        raise ValueError(f"batch_dims {batch} must be at most axis {at}")
    shared = merge(params[:batch], indices[:batch]) or ()
    return [(*shared, *params[batch:at], *indices[batch:], *params[at + 1 :])]


@register_kernel("Gather")
def _gather(ctx: KernelContext, params: Any, indices: Any) -> Any:
    check_indices(ctx, indices, params.shape[0])
    return ctx.xp.take(params, indices, 0) if params.dtype != object else params[(indices, ...)]


@register_kernel("GatherV2", host=("axis",))
def _gather_v2(ctx: KernelContext, params: Any, indices: Any, axis: Any, *, batch_dims: int) -> Any:
    at = axis_of(ctx, axis, params.ndim)
    check_indices(ctx, indices, params.shape[at])
    batch = batch_dims + indices.ndim if batch_dims < 0 else batch_dims
    if not batch:
        return ctx.xp.take(params, indices, at) if params.dtype != object else params[(*(slice(None),) * at, indices, ...)]
    if batch > at or batch > indices.ndim or params.shape[:batch] != indices.shape[:batch]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: params of shape {text(params.shape)} and indices of shape {text(indices.shape)} must agree in"
            f" their first {batch} dimensions, with axis {at} behind them.",
            op=ctx.op,
        )
    # All batches are one long dimension, in which the indices of batch b begin at b * n.
    xp, n, count = ctx.xp, params.shape[at], prod(params.shape[:batch])
    rows = xp.moveaxis(params, at, batch).reshape(count * n, *params.shape[batch:at], *params.shape[at + 1 :])
    picked = (
        rows[indices.reshape(count, -1) + n * xp.arange(count)[:, None]] if indices.size else rows[:0].reshape(count, 0, *rows.shape[1:])
    )
    out = xp.moveaxis(picked, 1, 1 + at - batch)
    return out.reshape(*params.shape[:at], *indices.shape[batch:], *params.shape[at + 1 :])


@register_gradient("Gather")
def _gather_grad(op: Operation, dy: Any) -> list[Any]:
    return [_row_slices(op.inputs[0], op.inputs[1], dy), None]


def _row_slices(params: Tensor, indices: Tensor, dy: Any) -> IndexedSlices:
    """Gradient of ``gather(params, indices)`` along dimension 0."""
    with get_default_graph().colocate_with(params.op):  # so that only the shape leaves the task of a large table
        whole = shape(params)
    if indices.static_shape is not None and len(indices.static_shape) == 1:
        return IndexedSlices(convert_to_tensor(dy), indices, whole)  # as they are, where they are
    if is_static(params.static_shape):
        assert params.static_shape is not None
        values = reshape(dy, [-1, *params.static_shape[1:]] if 0 not in params.static_shape else _rows_form(indices, whole))
    else:
        values = reshape(dy, _rows_form(indices, whole))
    return IndexedSlices(values, reshape(indices, [-1]), whole)


def _rows_form(indices: Tensor, whole: Tensor) -> Tensor:
    return concat([expand_dims(size(indices), 0), strided_slice(whole, [1], [0], [1], end_mask=1)], 0)


@register_gradient("GatherV2")
def _gather_v2_grad(op: Operation, dy: Any) -> list[Any]:
    params, indices, axis = op.inputs
    at, batch = constants.value(axis), op.get_attr("batch_dims")
    if at is not None and batch == 0 and int(at) == 0:
        return [_row_slices(params, indices, dy), None, None]
    return [_dense_gather_grad(params, indices, axis, batch, dy), None, None]


def _dense_gather_grad(params: Tensor, indices: Tensor, axis: Tensor, batch: int, dy: Any) -> Tensor:
    """Gradient of a gather along another dimension than the first, or of batches.

    ``params`` is seen as [batch, outer, n, inner] and ``dy`` as [batch, outer, m, inner]; the m rows are summed by index.
    """
    whole = shape(params)
    at: Any = constants.value(axis)
    if at is None:
        at = apply_op("FloorMod", apply_op("Cast", axis, DstT=int32), rank(params))
    elif int(at) >= 0:
        at = int(at)
    else:
        at = apply_op("Add", rank(params), int(at)) if params.static_shape is None else int(at) + len(params.static_shape)
    if batch < 0:
        if indices.static_shape is None:
            raise ValueError("the gradient of gather with negative batch_dims needs indices of a known number of dimensions.")
        batch += len(indices.static_shape)
    after = apply_op("Add", at, 1) if is_tensor(at) else at + 1
    b, outer, inner = (
        _product(params, whole, 0, batch),
        _product(params, whole, batch, at),
        _product(params, whole, after, None),
    )
    n = _product(params, whole, at, after)
    m = _product(indices, shape(indices), batch, None)
    by_row = apply_op("Transpose", reshape(dy, [b, outer, m, inner]), [0, 2, 1, 3])
    first = apply_op("Mul", apply_op("Range", 0, b, 1), n)
    indices = indices if indices.dtype is int32 else apply_op("Cast", indices, DstT=int32)
    ids = apply_op("Add", reshape(indices, [b, m]), expand_dims(first, 1))
    count = apply_op("Mul", b, n) if is_tensor(b) or is_tensor(n) else b * n
    summed = apply_op("UnsortedSegmentSum", by_row, ids, count)
    return reshape(apply_op("Transpose", reshape(summed, [b, n, outer, inner]), [0, 2, 1, 3]), whole)


def _product(tensor: Tensor, sizes: Tensor, start: Any, stop: Any) -> Any:
    """Product of the sizes from dimension ``start`` up to ``stop``: a number if it is known, else a tensor."""
    if is_static(tensor.static_shape) and not is_tensor(start) and not is_tensor(stop):
        assert tensor.static_shape is not None
        return prod(d for d in tensor.static_shape[start:stop] if d is not None)
    if start == 0 and stop == 0:
        return 1
    part = strided_slice(sizes, [start], [0 if stop is None else stop], [1], end_mask=int(stop is None))
    return apply_op("Prod", part, [0])


# -------------------------------------------------------------------------------------------------------- gather_nd


def gather_nd(params: Any, indices: Any, name: str | None = None, batch_dims: int = 0, bad_indices_policy: str = "") -> Tensor:
    """The elements or slices of ``params`` at the coordinates in the last dimension of ``indices``.

    Parameters
    ----------
    params : Tensor
    indices : integers of shape [..., k], k <= ndim of ``params``
    name : name of the operation
    batch_dims : number of leading dimensions that both share, slice by slice
    bad_indices_policy : "" or "ERROR": an index outside raises InvalidArgumentError; "IGNORE": it gives zeros

    Returns
    -------
    Tensor of shape ``indices.shape[:-1] + params.shape[k:]``
    """
    params, indices = convert_to_tensor(params), shape_tensor(indices, "indices")
    if batch_dims:
        indices = _with_batch_coordinates(indices, batch_dims)
    out: Tensor = apply_op("GatherNd", params, indices, name=name, bad_indices_policy=bad_indices_policy)
    return out


def _with_batch_coordinates(indices: Tensor, batch_dims: int) -> Tensor:
    """``indices`` with the numbers of its first ``batch_dims`` dimensions before each coordinate."""
    if indices.static_shape is None:
        raise ValueError("gather_nd with batch_dims needs indices of a known number of dimensions.")
    ndim = len(indices.static_shape)
    if not 0 <= batch_dims < ndim:
        raise ValueError(f"batch_dims {batch_dims} must be less than the {ndim} dimensions of indices.")
    sizes = shape(indices, out_type=indices.dtype)
    form = concat([strided_slice(sizes, [0], [-1]), np.ones(1, indices.dtype.np_dtype)], 0)
    parts = []
    for axis in np.arange(batch_dims).tolist():
        zero, one = (np.array(v, indices.dtype.np_dtype) for v in (0, 1))
        numbers = apply_op("Range", zero, strided_slice(sizes, [axis], [0], [1], shrink_axis_mask=1), one)
        column = reshape(numbers, [1] * axis + [-1] + [1] * (ndim - 1 - axis))
        parts.append(apply_op("BroadcastTo", column, form))
    return concat([*parts, indices], -1)


_POLICIES = ("", "DEFAULT", "ERROR", "IGNORE")


def _check_policy(ctx: ShapeContext) -> None:
    if ctx.attr("bad_indices_policy") not in _POLICIES:
        raise ValueError(f"bad_indices_policy must be one of {_POLICIES}, not {ctx.attr('bad_indices_policy')!r}")


@register_op(
    "GatherNd",
    inputs=["params: Tparams", "indices: Tindices"],
    outputs=["output: Tparams"],
    attrs={"bad_indices_policy": ("string", "")},
    Tparams=ALL,
    Tindices=_INDEX16,
)
def _gather_nd_shape(ctx: ShapeContext) -> list[Shape]:
    _check_policy(ctx)
    params, indices = ctx.shape("params"), ctx.shape("indices")
    if indices == ():
        raise ValueError("indices must have at least 1 dimension")
    if params is None or indices is None or indices[-1] is None:
        return [None]
    if indices[-1] > len(params):
        raise ValueError(f"coordinates of length {indices[-1]} don't index into params of shape {text(params)}")
    return [indices[:-1] + params[indices[-1] :]]


def _coordinates(ctx: KernelContext, indices: Any, sizes: tuple[int, ...], policy: str) -> tuple[Any, Any]:
    """The flat row number of each coordinate, and which are inside (None if all must be and are)."""
    k = indices.shape[-1]
    if k > len(sizes):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: coordinates of length {k} don't index into the shape {text(sizes)}.", op=ctx.op
        )
    xp = ctx.xp
    rows = xp.zeros(indices.shape[:-1], np.int64)
    inside = xp.ones(indices.shape[:-1], np.bool_)
    for i, limit in enumerate(sizes[:k]):
        column = indices[..., i]
        inside &= (column >= 0) & (column < limit)
        rows = rows * limit + column
    if bool(inside.all()):
        return rows, None
    if policy == "IGNORE":
        return xp.where(inside, rows, 0), inside
    at = tuple(int(i) for i in np.argwhere(~inside)[0])
    raise errors.InvalidArgumentError(
        f"{ctx.op.name!r}: indices{list(at)} = {indices[at].tolist()} does not index into the shape {text(sizes)}.", op=ctx.op
    )


@register_kernel("GatherNd")
def _gather_nd(ctx: KernelContext, params: Any, indices: Any, *, bad_indices_policy: str) -> Any:
    rows, inside = _coordinates(ctx, indices, params.shape, bad_indices_policy)
    k = indices.shape[-1]
    tail = params.shape[k:]
    if not params.size:
        return ctx.xp.zeros(rows.shape + tail, params.dtype)
    out = params.reshape(prod(params.shape[:k]), *tail)[(rows, ...)]
    if inside is not None:
        out[~inside] = b"" if params.dtype == object else 0
    return out


@register_gradient("GatherNd")
def _gather_nd_grad(op: Operation, dy: Any) -> list[Any]:
    params, indices = op.inputs
    if indices.static_shape is not None and len(indices.static_shape) == 2 and indices.static_shape[1] == 1:
        return [IndexedSlices(convert_to_tensor(dy), squeeze(indices, [-1]), shape(params)), None]
    whole = shape(params, out_type=indices.dtype)
    return [apply_op("ScatterNd", indices, dy, whole, bad_indices_policy=op.get_attr("bad_indices_policy")), None]


# -------------------------------------------------------------------------------------------------------- scatter_nd


def scatter_nd(indices: Any, updates: Any, shape: Any, name: str | None = None, bad_indices_policy: str = "") -> Tensor:
    """A tensor of zeros of the given ``shape`` with ``updates`` added at the coordinates in the last dimension of ``indices``.

    Raises
    ------
    ValueError
        If ``updates`` hasn't the shape ``indices.shape[:-1] + shape[k:]``; InvalidArgumentError for an index outside.
    """
    indices = shape_tensor(indices, "indices")
    target = shape_tensor(shape)
    if target.dtype.base_dtype is not indices.dtype.base_dtype:
        target = apply_op("Cast", target, DstT=indices.dtype.base_dtype)
    out: Tensor = apply_op("ScatterNd", indices, updates, target, name=name, bad_indices_policy=bad_indices_policy)
    return out


def _check_updates(indices: Shape, updates: Shape, target: Shape) -> None:
    if indices == ():
        raise ValueError("indices must have at least 1 dimension")
    if indices is None or updates is None or target is None or indices[-1] is None:
        return
    if indices[-1] > len(target):
        raise ValueError(f"coordinates of length {indices[-1]} don't index into the shape {text(target)}")
    wanted = indices[:-1] + target[indices[-1] :]
    if not compatible(updates, wanted):
        raise ValueError(f"updates must have shape {text(wanted)}, not {text(updates)}")


@register_op(
    "ScatterNd",
    inputs=["indices: Tindices", "updates: T", "shape: Tindices"],
    outputs=["output: T"],
    attrs={"bad_indices_policy": ("string", "")},
    T=tuple(t for t in ALL if t.kind != "O"),
    Tindices=_INDEX16,
)
def _scatter_nd_shape(ctx: ShapeContext) -> list[Shape]:
    _check_policy(ctx)
    with_rank(ctx.shape("shape"), 1, "shape")
    target = ctx.const_shape("shape")
    _check_updates(ctx.shape("indices"), ctx.shape("updates"), target)
    return [target]


def _scattered(ctx: KernelContext, out: Any, indices: Any, updates: Any, policy: str, how: str) -> Any:
    """``out`` changed in place at the coordinates ``indices``."""
    rows, inside = _coordinates(ctx, indices, out.shape, policy)
    k = indices.shape[-1]
    if updates.shape != rows.shape + out.shape[k:]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: updates must have shape {text(rows.shape + out.shape[k:])}, not {text(updates.shape)}.",
            op=ctx.op,
        )
    if not updates.size:
        return out
    if inside is not None:
        rows, updates = rows[inside], updates[inside]
    flat = out.reshape(prod(out.shape[:k]), *out.shape[k:])
    rows, updates = rows.reshape(-1), updates.reshape(-1, *out.shape[k:])
    if how == "update":
        set_rows(ctx.xp, flat, rows, updates)
    else:
        change_rows(ctx.xp, how, flat, rows, updates)
    return out


@register_kernel("ScatterNd", host=("shape",))
def _scatter_nd(ctx: KernelContext, indices: Any, updates: Any, target: Any, *, bad_indices_policy: str) -> Any:
    out = ctx.xp.zeros(sizes_of(ctx, target), updates.dtype)
    return _scattered(ctx, out, indices, updates, bad_indices_policy, "add")


@register_gradient("ScatterNd")
def _scatter_nd_grad(op: Operation, dy: Any) -> list[Any]:
    return [None, apply_op("GatherNd", dy, op.inputs[0], bad_indices_policy=op.get_attr("bad_indices_policy")), None]


def tensor_scatter_nd_update(tensor: Any, indices: Any, updates: Any, name: str | None = None) -> Tensor:
    """``tensor`` with ``updates`` in place of what is at the coordinates ``indices``."""
    out: Tensor = apply_op("TensorScatterUpdate", tensor, shape_tensor(indices, "indices"), updates, name=name)
    return out


def tensor_scatter_nd_add(tensor: Any, indices: Any, updates: Any, name: str | None = None) -> Tensor:
    """``tensor`` with ``updates`` added at the coordinates ``indices``."""
    out: Tensor = apply_op("TensorScatterAdd", tensor, shape_tensor(indices, "indices"), updates, name=name)
    return out


def tensor_scatter_nd_sub(tensor: Any, indices: Any, updates: Any, name: str | None = None) -> Tensor:
    """``tensor`` with ``updates`` subtracted at the coordinates ``indices``."""
    out: Tensor = apply_op("TensorScatterSub", tensor, shape_tensor(indices, "indices"), updates, name=name)
    return out


tensor_scatter_update, tensor_scatter_add, tensor_scatter_sub = (
    tensor_scatter_nd_update, tensor_scatter_nd_add, tensor_scatter_nd_sub,
)  # fmt: skip

for _type in ("TensorScatterUpdate", "TensorScatterAdd", "TensorScatterSub"):

    @register_op(
        _type,
        inputs=["tensor: T", "indices: Tindices", "updates: T"],
        outputs=["output: T"],
        attrs={"bad_indices_policy": ("string", "")},
        T=tuple(t for t in ALL if t.name != "resource" and (_type == "TensorScatterUpdate" or t.kind != "O")),
        Tindices=(*_INDEX16, dtypes.uint16) if _type == "TensorScatterUpdate" else INDEX,
    )
    def _tensor_scatter_shape(ctx: ShapeContext) -> list[Shape]:
        _check_policy(ctx)
        _check_updates(ctx.shape("indices"), ctx.shape("updates"), ctx.shape("tensor"))
        return [ctx.shape("tensor")]


@register_kernel("TensorScatterUpdate", "TensorScatterAdd", "TensorScatterSub")
def _tensor_scatter(ctx: KernelContext, x: Any, indices: Any, updates: Any, *, bad_indices_policy: str) -> Any:
    how = {"TensorScatterUpdate": "update", "TensorScatterAdd": "add", "TensorScatterSub": "subtract"}[ctx.op.type]
    return _scattered(ctx, x.copy(), indices, updates, bad_indices_policy, how)


@register_gradient("TensorScatterUpdate", "TensorScatterAdd", "TensorScatterSub")
def _tensor_scatter_grad(op: Operation, dy: Any) -> list[Any]:
    indices, updates = op.inputs[1:]
    policy = op.get_attr("bad_indices_policy")
    to_updates = apply_op("GatherNd", dy, indices, bad_indices_policy=policy)
    if op.type == "TensorScatterAdd":
        return [dy, None, to_updates]
    if op.type == "TensorScatterSub":
        return [dy, None, apply_op("Neg", to_updates)]
    zeros = apply_op("ZerosLike", updates)
    return [apply_op("TensorScatterUpdate", dy, indices, zeros, bad_indices_policy=policy), None, to_updates]


# ------------------------------------------------------------------------------------------------------ boolean_mask


def boolean_mask(tensor: Any, mask: Any, name: str = "boolean_mask", axis: int | None = None) -> Tensor:
    """The slices of ``tensor`` where ``mask`` is true, in row-major order.

    Parameters
    ----------
    tensor : Tensor, shape [..., m1, ..., mk, ...]
    mask : bool of shape [m1, ..., mk], k >= 1
    name : name scope of the operations
    axis : where the masked dimensions begin in ``tensor``, by default 0

    Returns
    -------
    Tensor of shape [..., count of true, ...]
    """
    with get_default_graph().name_scope(name):
        tensor, mask = convert_to_tensor(tensor), convert_to_tensor(mask, dtypes.bool)
        known, form = tensor.static_shape, mask.static_shape
        if form is None:
            raise ValueError("Number of mask dimensions must be specified, even if some dimensions are None.")
        if not form:
            raise ValueError("mask cannot be scalar.")
        at = 0 if axis is None else axis
        if known is not None:
            at = normalize_axis(at, len(known))
            if len(form) > len(known) - at or not compatible(known[at : at + len(form)], form):
                raise ValueError(f"the mask of shape {text(form)} doesn't fit dimensions {at}... of a tensor of shape {text(known)}.")
        elif at < 0:
            raise ValueError("boolean_mask with a negative axis needs a tensor of a known number of dimensions.")
        if len(form) > 1:
            sizes, end = shape(tensor), at + len(form)
            head, tail = strided_slice(sizes, [0], [at]), strided_slice(sizes, [end], [0], [1], end_mask=1)
            tensor = reshape(tensor, concat([head, np.array([-1], np.int32), tail], 0))
            if known is not None:
                middle = known[at:end]
                tensor.set_shape((*known[:at], None if None in middle else prod(middle), *known[end:]))
        positions = squeeze(where(reshape(mask, [-1])), [1])
        return gather(tensor, positions, axis=at)
