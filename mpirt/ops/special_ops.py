"""Error function, gamma function and their like, as operations.

The mathematics is in ``special_functions``; here are the operations, their kernels and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import FLOATING
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape
from mpirt.ops import special_functions
from mpirt.ops.apply import apply_op
from mpirt.ops.broadcasting import broadcast_shape, unbroadcast
from mpirt.ops.unary_ops import exp, negative, square

__all__ = ["digamma", "erf", "erfc", "erfinv", "lgamma", "ndtri", "polygamma", "zeta"]

Grads = list[Tensor | None]


def _apply(op_type: str, x: Any, name: str | None) -> Tensor:
    result: Tensor = apply_op(op_type, x, name=name)
    return result


def erf(x: Any, name: str | None = None) -> Tensor:
    """Error function."""
    return _apply("Erf", x, name)


def erfc(x: Any, name: str | None = None) -> Tensor:
    """Complementary error function, ``1 - erf(x)`` without the loss of digits."""
    return _apply("Erfc", x, name)


def erfinv(x: Any, name: str | None = None) -> Tensor:
    """Inverse of the error function, for ``x`` in (-1, 1)."""
    return _apply("Erfinv", x, name)


def ndtri(x: Any, name: str | None = None) -> Tensor:
    """Quantile of the standard normal distribution, for ``x`` in (0, 1)."""
    return _apply("Ndtri", x, name)


def lgamma(x: Any, name: str | None = None) -> Tensor:
    """Logarithm of the absolute value of the gamma function."""
    return _apply("Lgamma", x, name)


def digamma(x: Any, name: str | None = None) -> Tensor:
    """Derivative of ``lgamma``."""
    return _apply("Digamma", x, name)


def polygamma(a: Any, x: Any, name: str | None = None) -> Tensor:
    """The ``a``-th derivative of digamma, for a whole number ``a`` and ``x`` > -1000."""
    result: Tensor = apply_op("Polygamma", a, x, name=name)
    return result


def zeta(x: Any, q: Any, name: str | None = None) -> Tensor:
    """Hurwitz zeta function, the sum of ``(q + k) ** -x`` over k from 0, for ``x`` > 1 and ``q`` > 0."""
    result: Tensor = apply_op("Zeta", x, q, name=name)
    return result


def _register_special(op_type: str, function: Callable[..., Any]) -> None:
    """Computed in float64 and rounded to the type of the input."""

    @register_op(op_type, inputs=["x: T"], outputs=["y: T"], T=FLOATING)
    def shape(ctx: ShapeContext) -> list[Shape]:
        return [ctx.shape("x")]

    @register_kernel(op_type)
    def kernel(ctx: KernelContext, x: Any) -> Any:
        return function(ctx.xp, x.astype(np.float64, copy=False)).astype(x.dtype, copy=False)


for _special in (
    special_functions.erf, special_functions.erfc, special_functions.erfinv, special_functions.ndtri,
    special_functions.lgamma, special_functions.digamma,
):  # fmt: skip
    _register_special(_special.__name__.capitalize(), _special)

register_op("Polygamma", inputs=["a: T", "x: T"], outputs=["z: T"], T=(dtypes.float32, dtypes.float64))(broadcast_shape)
register_op("Zeta", inputs=["x: T", "q: T"], outputs=["z: T"], T=(dtypes.float32, dtypes.float64))(broadcast_shape)


@register_kernel("Polygamma")
def _polygamma(ctx: KernelContext, a: Any, x: Any) -> Any:
    double = special_functions.polygamma(ctx.xp, a.astype(np.float64, copy=False), x.astype(np.float64, copy=False))
    return double.astype(x.dtype, copy=False)


@register_kernel("Zeta")
def _zeta(ctx: KernelContext, x: Any, q: Any) -> Any:
    double = special_functions.zeta(ctx.xp, x.astype(np.float64, copy=False), q.astype(np.float64, copy=False))
    return double.astype(x.dtype, copy=False)


@register_gradient("Erf")
def _erf_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * (exp(negative(square(op.inputs[0]))) * (2 / math.sqrt(math.pi)))]


@register_gradient("Erfc")
def _erfc_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * (exp(negative(square(op.inputs[0]))) * (-2 / math.sqrt(math.pi)))]


@register_gradient("Erfinv")
def _erfinv_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * (exp(square(op.outputs[0])) * (math.sqrt(math.pi) / 2))]


@register_gradient("Ndtri")
def _ndtri_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * (exp(square(op.outputs[0]) * 0.5) * math.sqrt(2 * math.pi))]


@register_gradient("Lgamma")
def _lgamma_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * digamma(op.inputs[0])]


@register_gradient("Digamma")
def _digamma_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * polygamma(1, op.inputs[0])]


@register_gradient("Polygamma")
def _polygamma_grad(op: Operation, dy: Tensor) -> Grads:
    # The order is a whole number, so there is no derivative by it.
    a, x = op.inputs
    gx = dy * polygamma(a + 1, x)
    return [None, unbroadcast(a, x, gx, gx)[1]]


@register_gradient("Zeta")
def _zeta_grad(op: Operation, dy: Tensor) -> Grads:
    # The derivative by the exponent has no closed form; TensorFlow gives none either.
    x, q = op.inputs
    gq = dy * (negative(x) * zeta(x + 1, q))
    return [None, unbroadcast(x, q, gq, gq)[1]]
