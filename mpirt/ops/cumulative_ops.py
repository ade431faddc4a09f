"""Running sums, products and log-sums along one axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import FLOATING, INDEX, NUMERIC
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, normalize_axis
from mpirt.ops.apply import apply_op
from mpirt.ops.arguments import axis_of
from mpirt.ops.complex_ops import conj

__all__ = ["cumprod", "cumsum", "cumulative_logsumexp"]

Grads = list[Tensor | None]


def cumsum(x: Any, axis: Any = 0, exclusive: bool = False, reverse: bool = False, name: str | None = None) -> Tensor:
    """Running sum along ``axis``.

    Parameters
    ----------
    x : Tensor, numeric
    axis : axis to run along
    exclusive : leave the element itself out: the first sum is 0
    reverse : run from the end
    name : name of the operation
    """
    result: Tensor = apply_op("Cumsum", x, axis, exclusive=exclusive, reverse=reverse, name=name)
    return result


def cumprod(x: Any, axis: Any = 0, exclusive: bool = False, reverse: bool = False, name: str | None = None) -> Tensor:
    """Running product along ``axis``; arguments as in ``cumsum``."""
    result: Tensor = apply_op("Cumprod", x, axis, exclusive=exclusive, reverse=reverse, name=name)
    return result


def cumulative_logsumexp(
    x: Any, axis: Any = 0, exclusive: bool = False, reverse: bool = False, name: str | None = None
) -> Tensor:
    """Running ``log(sum(exp(x)))`` along ``axis``; arguments as in ``cumsum``."""
    result: Tensor = apply_op("CumulativeLogsumexp", x, axis, exclusive=exclusive, reverse=reverse, name=name)
    return result


def _running_shape(ctx: ShapeContext) -> list[Shape]:
    x, axis = ctx.shape("x"), ctx.const("axis")
    if x is not None and axis is not None:
        normalize_axis(int(axis.reshape(())), len(x))
    return [x]


_RUNNING_ATTRS = {"exclusive": ("bool", False), "reverse": ("bool", False), "Tidx": ("type", dtypes.int32)}
for _name, _types in (("Cumsum", NUMERIC), ("Cumprod", NUMERIC), ("CumulativeLogsumexp", FLOATING)):
    register_op(_name, inputs=["x: T", "axis: Tidx"], outputs=["out: T"], attrs=_RUNNING_ATTRS, T=_types, Tidx=INDEX)(
        _running_shape
    )


def _running(ctx: KernelContext, accumulate: Any, x: Any, axis: Any, exclusive: bool, reverse: bool, neutral: Any) -> Any:
    axis = axis_of(ctx, axis, x.ndim)
    v = ctx.xp.flip(x, axis) if reverse else x
    if not exclusive:
        out = accumulate(v, axis)
    else:
        out = ctx.xp.full(x.shape, neutral, x.dtype)
        before = (slice(None),) * axis
        if x.shape[axis] > 1:
            out[(*before, slice(1, None))] = accumulate(v[(*before, slice(None, -1))], axis)
    return ctx.xp.flip(out, axis) if reverse else out


@register_kernel("Cumsum", host=("axis",))
def _cumsum(ctx: KernelContext, x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
    return _running(ctx, lambda v, a: v.cumsum(axis=a, dtype=x.dtype), x, axis, exclusive, reverse, 0)


@register_kernel("Cumprod", host=("axis",))
def _cumprod(ctx: KernelContext, x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
    return _running(ctx, lambda v, a: v.cumprod(axis=a, dtype=x.dtype), x, axis, exclusive, reverse, 1)


@register_kernel("CumulativeLogsumexp", host=("axis",), devices=("CPU",))
def _cumulative_logsumexp(ctx: KernelContext, x: Any, axis: Any, *, exclusive: bool, reverse: bool) -> Any:
    # What nothing sums up to: TensorFlow gives the smallest finite value, not -inf.
    return _running(ctx, lambda v, a: np.logaddexp.accumulate(v, axis=a), x, axis, exclusive, reverse, np.finfo(x.dtype).min)


@register_gradient("Cumsum")
def _cumsum_grad(op: Operation, dy: Tensor) -> Grads:
    return [cumsum(dy, op.inputs[1], op.get_attr("exclusive"), not op.get_attr("reverse")), None]


@register_gradient("Cumprod")
def _cumprod_grad(op: Operation, dy: Tensor) -> Grads:
    """As TensorFlow's: the quotient has no value where ``x`` is 0."""
    x, axis = op.inputs
    total = cumsum(conj(op.outputs[0]) * dy, axis, op.get_attr("exclusive"), not op.get_attr("reverse"))
    return [total / conj(x), None]


@register_gradient("CumulativeLogsumexp")
def _cumulative_logsumexp_grad(op: Operation, dy: Tensor) -> Grads:
    """``sum_j dy_j exp(x_i - y_j)`` over the sums j that hold i, as running log-sums of the positive and negative ``dy``."""
    x, axis = op.inputs
    y = op.outputs[0]
    exclusive, reverse = op.get_attr("exclusive"), not op.get_attr("reverse")
    lowest = float(dy.dtype.min)
    parts = []
    for part in (dy, apply_op("Neg", dy)):
        positive = apply_op("Greater", part, 0)
        logs = apply_op("Log", apply_op("SelectV2", positive, part, 1))
        logs = apply_op("SelectV2", positive, logs - y, lowest)
        parts.append(apply_op("Exp", cumulative_logsumexp(logs, axis, exclusive, reverse) + x))
    return [parts[0] - parts[1], None]
