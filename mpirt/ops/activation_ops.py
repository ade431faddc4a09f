"""Activation functions and the operations of their gradients (ReluGrad and the like, as TensorFlow names them)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import FLOATING, REAL, DType
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, fitting, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, merge
from mpirt.ops.apply import apply_op, convert_to_tensor

__all__ = ["crelu", "elu", "leaky_relu", "relu", "relu6", "selu", "softplus", "softsign", "swish"]

Grads = list[Tensor | None]


def _apply(op_type: str, *args: Any, name: str | None = None) -> Tensor:
    result: Tensor = apply_op(op_type, *args, name=name)
    return result


def _zeros_like(x: Any) -> Tensor:
    return _apply("ZerosLike", x)


def _register(op_type: str, types: tuple[DType, ...] = FLOATING, attrs: Any = None, value: str = "features") -> None:
    """Register the function ``op_type`` and ``op_type + "Grad"``, which reads ``value``: its argument or its result."""

    @register_op(op_type, inputs=["features: T"], outputs=["activations: T"], attrs=attrs, T=types)
    def shape(ctx: ShapeContext) -> list[Shape]:
        return [ctx.shape("features")]

    @register_op(op_type + "Grad", inputs=["gradients: T", f"{value}: T"], outputs=["backprops: T"], attrs=attrs, T=types)
    def grad_shape(ctx: ShapeContext) -> list[Shape]:
        return [merge(ctx.shape("gradients"), ctx.shape(value))]


# ---------------------------------------------------------------------------------------------- rectifiers


def relu(features: Any, name: str | None = None) -> Tensor:
    """``max(x, 0)``."""
    return _apply("Relu", features, name=name)


_register("Relu", REAL)


@register_kernel("Relu", memory="own")
def _relu(ctx: KernelContext, x: Any, *, out: Any = None) -> Any:
    if out is not None:
        out = fitting(out, x.shape, x)
    if x.size < 1 << 10 or ctx.xp is not np or not x.flags.c_contiguous or out is not None and not out.flags.c_contiguous:
        return ctx.xp.maximum(x, x.dtype.type(0), out=out)
    # Beside as many zeros numpy's maximum takes a third of the time that it takes beside a single one.
    zeros = _zeros(x.dtype)
    if x.size <= len(zeros):
        return np.maximum(x, zeros[: x.size].reshape(x.shape), out=out)
    y = np.empty_like(x) if out is None else out
    flat, parts = x.reshape(-1), y.reshape(-1)
    for start in range(0, flat.size, len(zeros)):
        part = flat[start : start + len(zeros)]
        np.maximum(part, zeros[: part.size], out=parts[start : start + len(zeros)])
    return y


@functools.cache
def _zeros(dtype: Any) -> Any:
    return np.zeros(1 << 15, dtype)


@register_kernel("ReluGrad", memory="own")
def _relu_grad_kernel(ctx: KernelContext, dy: Any, x: Any, *, out: Any = None) -> Any:
    if out is not None:
        out = fitting(out, dy.shape, dy)
    return ctx.xp.multiply(dy, x > x.dtype.type(0), out=out)


@register_gradient("Relu")
def _relu_grad(op: Operation, dy: Tensor) -> Grads:
    # The result is 0 where the argument isn't positive, so it serves as well and the argument needn't be kept.
    return [_apply("ReluGrad", dy, op.outputs[0])]


@register_gradient("ReluGrad")
def _relu_grad_grad(op: Operation, dz: Tensor) -> Grads:
    return [_apply("ReluGrad", dz, op.inputs[1]), _zeros_like(op.inputs[1])]


def relu6(features: Any, name: str | None = None) -> Tensor:
    """``min(max(x, 0), 6)``."""
    return _apply("Relu6", features, name=name)


_register("Relu6", REAL)


@register_kernel("Relu6", memory="own")
def _relu6(ctx: KernelContext, x: Any) -> Any:
    return ctx.xp.minimum(ctx.xp.maximum(x, x.dtype.type(0)), x.dtype.type(6))


@register_kernel("Relu6Grad", memory="own")
def _relu6_grad_kernel(ctx: KernelContext, dy: Any, x: Any) -> Any:
    return ctx.xp.multiply(dy, (x > 0) & (x < 6))


@register_gradient("Relu6")
def _relu6_grad(op: Operation, dy: Tensor) -> Grads:
    return [_apply("Relu6Grad", dy, op.outputs[0])]


@register_gradient("Relu6Grad")
def _relu6_grad_grad(op: Operation, dz: Tensor) -> Grads:
    return [_apply("Relu6Grad", dz, op.inputs[1]), _zeros_like(op.inputs[1])]


def leaky_relu(features: Any, alpha: Any = 0.2, name: str | None = None) -> Tensor:
    """``x`` where it is positive, else ``alpha * x``; integers become float32."""
    x = convert_to_tensor(features, name="features")
    if x.dtype.is_integer:
        x = apply_op("Cast", x, DstT=dtypes.float32)
    if isinstance(alpha, Tensor):
        return _apply("Maximum", alpha * x, x, name=name)
    result: Tensor = apply_op("LeakyRelu", x, alpha=float(alpha), name=name)
    return result


_register("LeakyRelu", attrs={"alpha": ("float", float(np.float32(0.2))), "T": ("type", dtypes.float32)})


@register_kernel("LeakyRelu", memory="own")
def _leaky_relu(ctx: KernelContext, x: Any, *, alpha: float) -> Any:
    return ctx.xp.where(x > 0, x, x * x.dtype.type(alpha))


@register_kernel("LeakyReluGrad", memory="own")
def _leaky_relu_grad_kernel(ctx: KernelContext, dy: Any, x: Any, *, alpha: float) -> Any:
    return ctx.xp.where(x > 0, dy, dy * dy.dtype.type(alpha))


@register_gradient("LeakyRelu")
def _leaky_relu_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("LeakyReluGrad", dy, op.inputs[0], alpha=op.get_attr("alpha"))]


@register_gradient("LeakyReluGrad")
def _leaky_relu_grad_grad(op: Operation, dz: Tensor) -> Grads:
    return [apply_op("LeakyReluGrad", dz, op.inputs[1], alpha=op.get_attr("alpha")), _zeros_like(op.inputs[1])]


def crelu(features: Any, name: str | None = None, axis: int = -1) -> Tensor:
    """``relu(x)`` and ``relu(-x)`` side by side along ``axis``."""
    with get_default_graph().name_scope(name or "CRelu") as scope:
        x = convert_to_tensor(features, name="features")
        return relu(_apply("ConcatV2", [x, _apply("Neg", x)], axis), name=scope)


# ---------------------------------------------------------------------------------------------- exponential units


def elu(features: Any, name: str | None = None) -> Tensor:
    """``x`` where it is positive, else ``exp(x) - 1``."""
    return _apply("Elu", features, name=name)


_register("Elu", value="outputs")


@register_kernel("Elu", memory="own")
def _elu(ctx: KernelContext, x: Any) -> Any:
    zero = x.dtype.type(0)
    y = ctx.xp.expm1(ctx.xp.minimum(x, zero))
    y += ctx.xp.maximum(x, zero)
    return y


@register_kernel("EluGrad", memory="own")
def _elu_grad_kernel(ctx: KernelContext, dy: Any, y: Any) -> Any:
    z = ctx.xp.minimum(y, y.dtype.type(0))
    z += y.dtype.type(1)
    z *= dy
    return z


@register_gradient("Elu")
def _elu_grad(op: Operation, dy: Tensor) -> Grads:
    return [_apply("EluGrad", dy, op.outputs[0])]


@register_gradient("EluGrad")
def _elu_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = dy (y + 1) where y < 0, else dy: by y that is dy where y < 0, else 0.
    dy, y = op.inputs
    return [_apply("EluGrad", dz, y), _apply("SelectV2", _apply("Less", y, 0), dz * dy, 0)]


# Klambauer, Unterthiner, Mayr & Hochreiter, "Self-normalizing neural networks" (2017), section 3.
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


def selu(features: Any, name: str | None = None) -> Tensor:
    """``scale * x`` where it is positive, else ``scale * alpha * (exp(x) - 1)`` (self-normalizing networks)."""
    return _apply("Selu", features, name=name)


_register("Selu", value="outputs")


@register_kernel("Selu", memory="own")
def _selu(ctx: KernelContext, x: Any) -> Any:
    kind = x.dtype.type
    y = ctx.xp.expm1(ctx.xp.minimum(x, kind(0)))
    y *= kind(_SELU_SCALE * _SELU_ALPHA)
    y += ctx.xp.maximum(x, kind(0)) * kind(_SELU_SCALE)
    return y


@register_kernel("SeluGrad", memory="own")
def _selu_grad_kernel(ctx: KernelContext, dy: Any, y: Any) -> Any:
    kind = y.dtype.type
    return dy * ctx.xp.where(y < 0, y + kind(_SELU_SCALE * _SELU_ALPHA), kind(_SELU_SCALE))


@register_gradient("Selu")
def _selu_grad(op: Operation, dy: Tensor) -> Grads:
    return [_apply("SeluGrad", dy, op.outputs[0])]


@register_gradient("SeluGrad")
def _selu_grad_grad(op: Operation, dz: Tensor) -> Grads:
    dy, y = op.inputs
    return [_apply("SeluGrad", dz, y), _apply("SelectV2", _apply("Less", y, 0), dz * dy, 0)]


# ---------------------------------------------------------------------------------------------- smooth ones


def softplus(features: Any, name: str | None = None) -> Tensor:
    """``log(1 + exp(x))`` without overflow."""
    return _apply("Softplus", features, name=name)


_register("Softplus")


@register_kernel("Softplus", memory="own")
def _softplus(ctx: KernelContext, x: Any) -> Any:
    xp = ctx.xp
    y = xp.log1p(xp.exp(-xp.absolute(x)))
    y += xp.maximum(x, x.dtype.type(0))
    return y


@register_kernel("SoftplusGrad", memory="own")
def _softplus_grad_kernel(ctx: KernelContext, dy: Any, x: Any) -> Any:
    y = ctx.xp.exp(-x)
    y += x.dtype.type(1)
    return ctx.xp.true_divide(dy, y)


@register_gradient("Softplus")
def _softplus_grad(op: Operation, dy: Tensor) -> Grads:
    return [_apply("SoftplusGrad", dy, op.inputs[0])]


@register_gradient("SoftplusGrad")
def _softplus_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = dy sigmoid(x), and the slope of sigmoid at x is s (1 - s).
    dy, x = op.inputs
    return [_apply("SoftplusGrad", dz, x), _apply("SigmoidGrad", _apply("Sigmoid", x), dz * dy)]


def softsign(features: Any, name: str | None = None) -> Tensor:
    """``x / (1 + |x|)``."""
    return _apply("Softsign", features, name=name)


_register("Softsign")


@register_kernel("Softsign", memory="own")
def _softsign(ctx: KernelContext, x: Any) -> Any:
    y = ctx.xp.absolute(x)
    y += x.dtype.type(1)
    return ctx.xp.true_divide(x, y)


@register_kernel("SoftsignGrad", memory="own")
def _softsign_grad_kernel(ctx: KernelContext, dy: Any, x: Any) -> Any:
    y = ctx.xp.absolute(x)
    y += x.dtype.type(1)
    y *= y
    return ctx.xp.true_divide(dy, y)


@register_gradient("Softsign")
def _softsign_grad(op: Operation, dy: Tensor) -> Grads:
    return [_apply("SoftsignGrad", dy, op.inputs[0])]


@register_gradient("SoftsignGrad")
def _softsign_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = dy / (1 + |x|)^2.
    dy, x = op.inputs
    slope = op.outputs[0] * _apply("Sign", x) / (_apply("Abs", x) + 1) * -2
    return [_apply("SoftsignGrad", dz, x), dz * slope]


def swish(features: Any, beta: Any = 1.0) -> Tensor:
    """``x * sigmoid(beta * x)``."""
    with get_default_graph().name_scope("swish"):
        x = convert_to_tensor(features, name="features")
        return x * _apply("Sigmoid", x if isinstance(beta, float) and beta == 1.0 else x * beta)
