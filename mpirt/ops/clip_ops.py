"""Norms, and clipping of values and of norms: functions made of other operations, and ClipByValue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import REAL
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, broadcast, text
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.broadcasting import unbroadcast
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.math_ops import add_n, maximum, minimum
from mpirt.ops.reduction_ops import first_given, reduce_max, reduce_sum

__all__ = ["clip_by_average_norm", "clip_by_global_norm", "clip_by_norm", "clip_by_value", "global_norm", "norm"]


def _apply(op_type: str, *args: Any, name: str | None = None) -> Tensor:
    result: Tensor = apply_op(op_type, *args, name=name)
    return result


def _values(t: Any) -> Tensor:
    return t.values if isinstance(t, IndexedSlices) else convert_to_tensor(t, name="t")


def _like(t: Any, values: Tensor) -> Any:
    """``values`` as IndexedSlices if ``t`` is."""
    return IndexedSlices(values, t.indices, t.dense_shape) if isinstance(t, IndexedSlices) else values


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, name: str | None = None) -> Any:
    """``t`` with values below ``clip_value_min`` and above ``clip_value_max`` set to these.

    Raises
    ------
    ValueError
        If a limit has more dimensions than ``t``.
    """
    with get_default_graph().name_scope(name or "clip_by_value") as scope:
        values = _values(t)
        clipped = maximum(minimum(values, clip_value_max), clip_value_min, name=scope)
        shape = values.static_shape
        if shape is not None and clipped.static_shape is not None and len(clipped.static_shape) > len(shape):
            raise ValueError(f"the limits have shape {text(clipped.static_shape)}, more than the tensor's {text(shape)}.")
        return _like(t, clipped)


@register_op("ClipByValue", inputs=["t: T", "clip_value_min: T", "clip_value_max: T"], outputs=["output: T"], T=REAL)
def _clip_shape(ctx: ShapeContext) -> list[Shape]:
    t = ctx.shape("t")
    for limit in ("clip_value_min", "clip_value_max"):
        joined = broadcast(t, ctx.shape(limit))
        if t is not None and joined is not None and len(joined) > len(t):
            raise ValueError(f"{limit} has shape {text(ctx.shape(limit))}, more than the tensor's {text(t)}")
    return [t]


@register_kernel("ClipByValue", memory="own")
def _clip(ctx: KernelContext, t: Any, low: Any, high: Any) -> Any:
    out = ctx.xp.minimum(ctx.xp.maximum(t, low), high)
    if out.shape != t.shape:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: limits of shapes {tuple(low.shape)} and {tuple(high.shape)} don't fit shape {tuple(t.shape)}.",
            op=ctx.op,
        )
    return out


@register_gradient("ClipByValue")
def _clip_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    t, low, high = op.inputs
    below, above = _apply("Less", t, low), _apply("Greater", t, high)
    outside = _apply("LogicalOr", below, above)
    grad_low = unbroadcast(t, low, dy, _apply("SelectV2", below, dy, 0))[1]
    grad_high = unbroadcast(t, high, dy, _apply("SelectV2", above, dy, 0))[1]
    return [_apply("SelectV2", outside, 0, dy), grad_low, grad_high]


def clip_by_norm(t: Any, clip_norm: Any, axes: Any = None, name: str | None = None) -> Any:
    """``t`` scaled so that its Euclidean norm over ``axes`` is at most ``clip_norm``."""
    with get_default_graph().name_scope(name or "clip_by_norm") as scope:
        values = _values(t)
        limit = convert_to_tensor(clip_norm, values.dtype.base_dtype)
        squared = reduce_sum(_apply("Square", values), axes, keepdims=True)
        # The root's slope at 0 is infinite, so a zero norm goes round it.
        positive = _apply("Greater", squared, 0)
        root = _apply("Sqrt", _apply("SelectV2", positive, squared, _apply("OnesLike", squared)))
        length = _apply("SelectV2", positive, root, squared)
        return _like(t, _apply("RealDiv", values * limit, maximum(length, limit), name=scope))


def clip_by_average_norm(t: Any, clip_norm: Any, name: str | None = None) -> Tensor:
    """``t`` scaled so that its norm over the number of its elements is at most ``clip_norm``."""
    with get_default_graph().name_scope(name or "clip_by_average_norm") as scope:
        x = convert_to_tensor(t, name="t")
        limit = convert_to_tensor(clip_norm, x.dtype.base_dtype)
        count = apply_op("Cast", _apply("Size", x), DstT=x.dtype.base_dtype)
        inverse = count * _apply("Rsqrt", reduce_sum(_apply("Square", x)))
        return _apply("Mul", x * limit, minimum(inverse, 1.0 / limit), name=scope)


def global_norm(t_list: Sequence[Any], name: str | None = None) -> Any:
    """Root of the sum of all squares in a list of tensors; None entries are left out, of nothing but None it is None.

    Raises
    ------
    TypeError
        If ``t_list`` is no list or tuple.
    """
    if not isinstance(t_list, list | tuple):
        raise TypeError(f"`t_list` should be a sequence of tensors. Received {type(t_list)}.")
    with get_default_graph().name_scope(name or "global_norm") as scope:
        halves = []
        for t in t_list:
            if t is not None:
                values = _values(t)
                with values.graph.colocate_with(values):
                    halves.append(_apply("L2Loss", values))
        if not halves:
            return None
        return _apply("Sqrt", add_n(halves) * 2, name=scope)


def clip_by_global_norm(
    t_list: Sequence[Any], clip_norm: Any, use_norm: Any = None, name: str | None = None
) -> tuple[list[Any], Any]:
    """All tensors of a list scaled by one factor so that their ``global_norm`` is at most ``clip_norm``.

    Returns
    -------
    list, norm : the scaled tensors (None and IndexedSlices stay what they are) and their norm before; if that is not
        finite all of them are NaN
    """
    if use_norm is None:
        use_norm = global_norm(t_list)
    if use_norm is None:
        return list(t_list), None
    with get_default_graph().name_scope(name or "clip_by_global_norm"):
        total = convert_to_tensor(use_norm)
        limit = convert_to_tensor(clip_norm, total.dtype.base_dtype)
        scale = limit * minimum(1.0 / total, 1.0 / limit)
        # An infinite norm would give the factor 0 and hide the trouble; its difference with itself is NaN.
        scale = scale + (total - total)
        clipped: list[Any] = []
        for t in t_list:
            if t is None:
                clipped.append(None)
            else:
                values = _values(t)
                with values.graph.colocate_with(values):
                    clipped.append(_like(t, values * scale))
        return clipped, total


def norm(
    tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None, name: str | None = None, keep_dims: Any = None
) -> Tensor:
    """Norm of vectors (``axis`` a number or None) or matrices (``axis`` a pair).

    Parameters
    ----------
    tensor : Tensor, floating or complex
    ord : "euclidean", 1, 2, numpy.inf or any positive number for vectors; "euclidean", "fro", 1 or numpy.inf for matrices
    axis : see above; None takes all elements as one vector
    keepdims : keep the reduced dimensions as size 1
    name : name of the operation
    keep_dims : older name of ``keepdims``

    Raises
    ------
    ValueError
        If ``ord`` is none of these; UnimplementedError for the spectral norm of matrices (2).
    """
    keep = bool(first_given("keepdims", keepdims, "keep_dims", keep_dims))
    is_matrix = isinstance(axis, list | tuple | np.ndarray) and len(axis) == 2
    if isinstance(axis, list | tuple | np.ndarray):
        if len(axis) not in (1, 2):
            raise ValueError(f"'axis' must be None, an integer, or a tuple of 2 unique integers, not {axis!r}.")
        axis = [int(a) for a in axis]
    if isinstance(ord, str):
        if ord not in ("euclidean", "fro") or (ord == "fro" and not is_matrix):
            raise ValueError(f"'ord' must be a supported norm, not {ord!r}.")
    elif ord <= 0 or (is_matrix and ord not in (1, 2, math.inf)):
        raise ValueError(f"'ord' must be a supported norm, not {ord!r}.")
    with get_default_graph().name_scope(name or "norm"):
        x = convert_to_tensor(tensor, name="tensor")
        if ord in ("fro", "euclidean") or (ord == 2 and not is_matrix):
            squares = (
                _apply("Square", x)
                if not x.dtype.is_complex
                else apply_op("Real", x * _apply("Conj", x), Tout=x.dtype.real_dtype)
            )
            return _apply("Sqrt", reduce_sum(squares, axis, keepdims=keep))
        size = _apply("Abs", x) if not x.dtype.is_complex else apply_op("ComplexAbs", x, Tout=x.dtype.real_dtype)
        if is_matrix:
            if ord == 2:
                raise errors.UnimplementedError("the spectral norm of matrices (ord=2) is not supported by mpirt.")
            summed, largest = (axis[0], axis[1]) if ord == 1 else (axis[1], axis[0])
            result = reduce_max(reduce_sum(size, summed, keepdims=True), largest, keepdims=True)
            return result if keep else _apply_squeeze(result, axis)
        if ord == math.inf:
            return reduce_max(size, axis, keepdims=keep)
        if ord == 1:
            return reduce_sum(size, axis, keepdims=keep)
        return _apply("Pow", reduce_sum(_apply("Pow", size, ord), axis, keepdims=keep), 1.0 / ord)


def _apply_squeeze(x: Tensor, axis: list[int]) -> Tensor:
    result: Tensor = apply_op("Squeeze", x, squeeze_dims=axis)
    return result
