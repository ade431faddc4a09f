"""Choice element by element, and the positions of true elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import ALL, NUMERIC
from mpirt.dtypes import bool as bool_
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, broadcast, compatible, merge, text
from mpirt.ops.apply import apply_op, constant, convert_to_tensor
from mpirt.ops.array_ops import zeros_like
from mpirt.ops.broadcasting import unbroadcast

__all__ = ["where", "where_v2"]


def where(condition: Any, x: Any = None, y: Any = None, name: str | None = None) -> Tensor:
    """Elements of ``x`` where ``condition`` holds, else of ``y``; without both, the positions of true elements.

    Parameters
    ----------
    condition : bool, of the shape of ``x``; or a vector that chooses whole rows; or one bool
    x, y : of one shape
    name : name of the operation

    Returns
    -------
    Tensor of the shape of ``x``; or int64 of shape [count, ndim of ``condition``], in row-major order
    """
    return _where("Select", condition, x, y, name)


def where_v2(condition: Any, x: Any = None, y: Any = None, name: str | None = None) -> Tensor:
    """As ``where``, but ``condition``, ``x`` and ``y`` are broadcast together."""
    return _where("SelectV2", condition, x, y, name)


def _where(op_type: str, condition: Any, x: Any, y: Any, name: str | None) -> Tensor:
    out: Tensor
    if x is None and y is None:
        out = apply_op("Where", condition, name=name)
    elif x is None or y is None:
        raise ValueError("x and y must both be non-None or both be None.")
    else:
        out = apply_op(op_type, convert_to_tensor(condition, bool_), x, y, name=name)
    return out


@register_op("Select", inputs=["condition: bool", "t: T", "e: T"], outputs=["output: T"], T=ALL)
def _select_shape(ctx: ShapeContext) -> list[Shape]:
    out, condition = merge(ctx.shape("t"), ctx.shape("e")), ctx.shape("condition")
    if out is None or condition is None or condition == ():
        return [out]
    if len(condition) == 1 and len(out) != 1:
        if len(out) == 0 or not compatible(condition, out[:1]):
            raise ValueError(f"a condition of shape {text(condition)} can't choose rows of tensors of shape {text(out)}")
        return [(*(merge(condition, out[:1]) or ()), *out[1:])]
    return [merge(condition, out)]


@register_kernel("Select", memory="own")
def _select(ctx: KernelContext, condition: Any, x: Any, y: Any) -> Any:
    if x.shape != y.shape or (condition.shape not in ((), x.shape) and condition.shape != x.shape[:1]):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: condition of shape {text(condition.shape)} can't choose between tensors of shapes"
            f" {text(x.shape)} and {text(y.shape)}.",
            op=ctx.op,
            hint="x and y need one shape, which the condition has too, unless it is a vector for their rows or one bool.",
        )
    if condition.ndim == 1 and x.ndim > 1:
        condition = condition.reshape((-1,) + (1,) * (x.ndim - 1))
    return ctx.xp.where(condition, x, y)


@register_gradient("Select")
def _select_grad(op: Operation, dy: Any) -> list[Any]:
    dy = convert_to_tensor(dy)
    condition, zero = op.inputs[0], zeros_like(dy)
    return [None, apply_op("Select", condition, dy, zero), apply_op("Select", condition, zero, dy)]


@register_op("SelectV2", inputs=["condition: bool", "t: T", "e: T"], outputs=["output: T"], T=ALL)
def _select_v2_shape(ctx: ShapeContext) -> list[Shape]:
    return [broadcast(ctx.shape("condition"), broadcast(ctx.shape("t"), ctx.shape("e")))]


@register_kernel("SelectV2", memory="own")
def _select_v2(ctx: KernelContext, condition: Any, x: Any, y: Any) -> Any:
    try:
        return ctx.xp.where(condition, x, y)
    except ValueError:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: condition, x and y of shapes {text(condition.shape)}, {text(x.shape)} and {text(y.shape)}"
            " can't be broadcast together.",
            op=ctx.op,
        ) from None


@register_gradient("SelectV2")
def _select_v2_grad(op: Operation, dy: Any) -> list[Any]:
    condition, x, y = op.inputs
    dy = convert_to_tensor(dy)
    zero = constant(np.zeros((), dy.dtype.base_dtype.np_dtype))
    out = op.outputs[0]
    to_x, to_y = apply_op("SelectV2", condition, dy, zero), apply_op("SelectV2", condition, zero, dy)
    return [None, unbroadcast(x, out, to_x, to_x)[0], unbroadcast(y, out, to_y, to_y)[0]]


@register_op("Where", inputs=["input: T"], outputs=["index: int64"], attrs={"T": ("type", bool_)}, T=(*NUMERIC, bool_))
def _where_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("input")
    return [(None, None if known is None else len(known))]


@register_kernel("Where")
def _where_kernel(ctx: KernelContext, x: Any) -> Any:
    return ctx.xp.argwhere(x).astype(np.int64, copy=False)


no_gradient("Where", reason="its values are positions")
