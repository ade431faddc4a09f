"""Functions of one tensor, element by element, and the operations their gradients use.

Owns: the elementwise functions of ``tf.math`` apart from erf, gamma and
their like (``special_ops``), activations (``activation_ops``) and complex parts (``complex_ops``).
Gradients that TensorFlow gives an op of their own (TanhGrad and the like) have one here too: exported graphs hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpirt import dtypes, errors
from mpirt.dtypes import COMPLEX, FLOATING, NUMERIC, DType
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import (
    KernelContext,
    ShapeContext,
    no_gradient,
    register_direct_kernel,
    register_gradient,
    register_kernel,
    register_op,
)
from mpirt.graph.shapes import Shape, merge
from mpirt.ops.apply import apply_op, convert_to_tensor, set_operator
from mpirt.ops.complex_ops import conj
from mpirt.ops.indexed_slices import IndexedSlices

__all__ = [
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh",
    "exp", "expm1", "floor", "is_finite", "is_inf", "is_nan", "log", "log1p", "log_sigmoid", "negative",
    "reciprocal", "rint", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
]  # fmt: skip

Grads = list[Tensor | None]

_ANALYTIC = FLOATING + COMPLEX
_SIGNED = (*FLOATING, dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64)


def _same_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.inputs[0].static_shape]


def _register(op_type: str, types: tuple[DType, ...] = _ANALYTIC, direct: str = "", output: str = "T") -> None:
    register_op(op_type, inputs=["x: T"], outputs=[f"y: {output}"], T=types)(_same_shape)
    if direct:
        register_direct_kernel(direct, op_type)


def _register_grad(op_type: str) -> None:
    """Register the op ``z = f'(x) dy`` written in terms of the function's value ``y``."""

    @register_op(op_type, inputs=["y: T", "dy: T"], outputs=["z: T"], T=_ANALYTIC)
    def shape(ctx: ShapeContext) -> list[Shape]:
        return [merge(ctx.shape("y"), ctx.shape("dy"))]


def _out(array: Any) -> Any:
    """``array`` as the place for a ufunc's result; ufuncs of scalars have none."""
    return array if array.ndim else None


# ---------------------------------------------------------------------------------------------- sign and size


def negative(x: Any, name: str | None = None) -> Tensor:
    """``-x``."""
    return _apply("Neg", x, name)


def _apply(op_type: str, x: Any, name: str | None) -> Tensor:
    result: Tensor = apply_op(op_type, x, name=name)
    return result


_register("Neg", (*_SIGNED, *COMPLEX), "negative")


@register_gradient("Neg")
def _neg_grad(op: Operation, dy: Any) -> list[Any]:
    if isinstance(dy, IndexedSlices):
        return [IndexedSlices(negative(dy.values), dy.indices, dy.dense_shape)]
    return [negative(dy)]


def abs(x: Any, name: str | None = None) -> Tensor:
    """Absolute value; the modulus of complex numbers."""
    x = convert_to_tensor(x)
    if x.dtype.is_complex:
        result: Tensor = apply_op("ComplexAbs", x, Tout=x.dtype.real_dtype, name=name)
        return result
    return _apply("Abs", x, name)


_register("Abs", _SIGNED, "absolute")


@register_gradient("Abs")
def _abs_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * sign(op.inputs[0])]


def sign(x: Any, name: str | None = None) -> Tensor:
    """-1, 0 or 1; ``x / |x|`` of complex numbers."""
    return _apply("Sign", x, name)


_register("Sign", (*_SIGNED, *COMPLEX), "sign")


@register_gradient("Sign")
def _sign_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("ZerosLike", dy)]


def square(x: Any, name: str | None = None) -> Tensor:
    """``x * x``."""
    return _apply("Square", x, name)


_register("Square", NUMERIC, "square")


@register_gradient("Square")
def _square_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * (conj(op.inputs[0]) * 2)]


# ---------------------------------------------------------------------------------------------- exponentials


def exp(x: Any, name: str | None = None) -> Tensor:
    """``e ** x``."""
    return _apply("Exp", x, name)


_register("Exp", direct="exp")


@register_gradient("Exp")
def _exp_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * conj(op.outputs[0])]


def expm1(x: Any, name: str | None = None) -> Tensor:
    """``exp(x) - 1``, accurate near 0."""
    return _apply("Expm1", x, name)


_register("Expm1", direct="expm1")


@register_gradient("Expm1")
def _expm1_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy * exp(conj(op.inputs[0]))]


def log(x: Any, name: str | None = None) -> Tensor:
    """Natural logarithm."""
    return _apply("Log", x, name)


_register("Log", direct="log")


@register_gradient("Log")
def _log_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy / conj(op.inputs[0])]


def log1p(x: Any, name: str | None = None) -> Tensor:
    """``log(1 + x)``, accurate near 0."""
    return _apply("Log1p", x, name)


_register("Log1p", direct="log1p")


@register_gradient("Log1p")
def _log1p_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy / (conj(op.inputs[0]) + 1)]


# ---------------------------------------------------------------------------------------------- roots and reciprocals


def sqrt(x: Any, name: str | None = None) -> Tensor:
    """Square root."""
    return _apply("Sqrt", x, name)


def _zero_where_unused(ctx: KernelContext, dy: Any, z: Any) -> Any:
    """``z``, but 0 where no gradient arrives: an infinite slope that nobody follows is no NaN (TensorFlow's rule too)."""
    return ctx.xp.where(dy == 0, dy, z)


_register("Sqrt", direct="sqrt")
_register_grad("SqrtGrad")


@register_kernel("SqrtGrad", memory="own")
def _sqrt_grad_kernel(ctx: KernelContext, y: Any, dy: Any) -> Any:
    z = ctx.xp.true_divide(dy, ctx.xp.conjugate(y) if y.dtype.kind == "c" else y)
    z *= y.dtype.type(0.5)
    return _zero_where_unused(ctx, dy, z)


@register_gradient("Sqrt")
def _sqrt_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("SqrtGrad", op.outputs[0], dy)]


@register_gradient("SqrtGrad")
def _sqrt_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = dy / (2 y), so dz/dy' = 1 / (2 y) and dz/dy = -z / y.
    y = conj(op.inputs[0])
    scaled = dz / y
    return [negative(scaled * conj(op.outputs[0])), scaled * 0.5]


def rsqrt(x: Any, name: str | None = None) -> Tensor:
    """``1 / sqrt(x)``."""
    return _apply("Rsqrt", x, name)


_register("Rsqrt")
_register_grad("RsqrtGrad")


@register_kernel("Rsqrt", memory="own")
def _rsqrt(ctx: KernelContext, x: Any) -> Any:
    root = ctx.xp.sqrt(x)
    return ctx.xp.reciprocal(root, out=_out(root))


@register_kernel("RsqrtGrad", memory="own")
def _rsqrt_grad_kernel(ctx: KernelContext, y: Any, dy: Any) -> Any:
    y = ctx.xp.conjugate(y) if y.dtype.kind == "c" else y
    z = y * y
    z *= y
    z *= dy
    z *= y.dtype.type(-0.5)
    return _zero_where_unused(ctx, dy, z)


@register_gradient("Rsqrt")
def _rsqrt_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("RsqrtGrad", op.outputs[0], dy)]


@register_gradient("RsqrtGrad")
def _rsqrt_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = -dy y^3 / 2.
    y, dy = conj(op.inputs[0]), conj(op.inputs[1])
    return [dz * dy * square(y) * -1.5, apply_op("RsqrtGrad", op.inputs[0], dz)]


def reciprocal(x: Any, name: str | None = None) -> Tensor:
    """``1 / x``."""
    return _apply("Reciprocal", x, name)


_register("Reciprocal", (*_SIGNED, *COMPLEX))
_register("Inv", (*_SIGNED, *COMPLEX))
_register_grad("ReciprocalGrad")
_register_grad("InvGrad")


@register_kernel("Reciprocal", "Inv", memory="own")
def _reciprocal(ctx: KernelContext, x: Any) -> Any:
    if x.dtype.kind == "i":
        if not ctx.xp.all(x):
            raise errors.InvalidArgumentError(f"{ctx.op.name!r}: integer division by zero in {ctx.op.type}.", op=ctx.op)
        return ctx.xp.where(ctx.xp.absolute(x) == 1, x, x.dtype.type(0))
    return ctx.xp.reciprocal(x)


@register_kernel("ReciprocalGrad", "InvGrad", memory="own")
def _reciprocal_grad_kernel(ctx: KernelContext, y: Any, dy: Any) -> Any:
    y = ctx.xp.conjugate(y) if y.dtype.kind == "c" else y
    z = y * y
    z *= dy
    return _zero_where_unused(ctx, dy, ctx.xp.negative(z, out=_out(z)))


@register_gradient("Reciprocal", "Inv")
def _reciprocal_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("ReciprocalGrad", op.outputs[0], dy)]


@register_gradient("ReciprocalGrad", "InvGrad")
def _reciprocal_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = -dy y^2.
    y, dy = conj(op.inputs[0]), conj(op.inputs[1])
    return [dz * dy * y * -2, apply_op("ReciprocalGrad", op.inputs[0], dz)]


# ---------------------------------------------------------------------------------------------- circular and hyperbolic


def sin(x: Any, name: str | None = None) -> Tensor:
    """Sine."""
    return _apply("Sin", x, name)


def cos(x: Any, name: str | None = None) -> Tensor:
    """Cosine."""
    return _apply("Cos", x, name)


def tan(x: Any, name: str | None = None) -> Tensor:
    """Tangent."""
    return _apply("Tan", x, name)


def asin(x: Any, name: str | None = None) -> Tensor:
    """Inverse sine, in [-pi/2, pi/2]."""
    return _apply("Asin", x, name)


def acos(x: Any, name: str | None = None) -> Tensor:
    """Inverse cosine, in [0, pi]."""
    return _apply("Acos", x, name)


def atan(x: Any, name: str | None = None) -> Tensor:
    """Inverse tangent, in (-pi/2, pi/2)."""
    return _apply("Atan", x, name)


def sinh(x: Any, name: str | None = None) -> Tensor:
    """Hyperbolic sine."""
    return _apply("Sinh", x, name)


def cosh(x: Any, name: str | None = None) -> Tensor:
    """Hyperbolic cosine."""
    return _apply("Cosh", x, name)


def asinh(x: Any, name: str | None = None) -> Tensor:
    """Inverse hyperbolic sine."""
    return _apply("Asinh", x, name)


def acosh(x: Any, name: str | None = None) -> Tensor:
    """Inverse hyperbolic cosine."""
    return _apply("Acosh", x, name)


def atanh(x: Any, name: str | None = None) -> Tensor:
    """Inverse hyperbolic tangent."""
    return _apply("Atanh", x, name)


# Each with its ufunc and its derivative as a function of the (conjugated) argument.
_CIRCULAR: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
    ("Sin", "sin", lambda x: cos(x)),
    ("Cos", "cos", lambda x: negative(sin(x))),
    ("Tan", "tan", lambda x: square(reciprocal(cos(x)))),
    ("Asin", "arcsin", lambda x: rsqrt(1 - square(x))),
    ("Acos", "arccos", lambda x: negative(rsqrt(1 - square(x)))),
    ("Atan", "arctan", lambda x: reciprocal(square(x) + 1)),
    ("Sinh", "sinh", lambda x: cosh(x)),
    ("Cosh", "cosh", lambda x: sinh(x)),
    ("Asinh", "arcsinh", lambda x: rsqrt(square(x) + 1)),
    # Two roots: the root of x^2 - 1 has the wrong sign in the left half of the complex plane.
    ("Acosh", "arccosh", lambda x: rsqrt(x - 1) * rsqrt(x + 1)),
    ("Atanh", "arctanh", lambda x: reciprocal(1 - square(x))),
)


def _register_circular(op_type: str, ufunc: str, derivative: Callable[[Tensor], Tensor]) -> None:
    _register(op_type, direct=ufunc)

    @register_gradient(op_type)
    def gradient(op: Operation, dy: Tensor) -> Grads:
        return [dy * derivative(conj(op.inputs[0]))]


for _entry in _CIRCULAR:
    _register_circular(*_entry)


def tanh(x: Any, name: str | None = None) -> Tensor:
    """Hyperbolic tangent."""
    return _apply("Tanh", x, name)


_register("Tanh", direct="tanh")
_register_grad("TanhGrad")


@register_kernel("TanhGrad", memory="own")
def _tanh_grad_kernel(ctx: KernelContext, y: Any, dy: Any) -> Any:
    y = ctx.xp.conjugate(y) if y.dtype.kind == "c" else y
    z = ctx.xp.square(y)
    z = ctx.xp.subtract(y.dtype.type(1), z, out=_out(z))
    z *= dy
    return z


@register_gradient("Tanh")
def _tanh_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("TanhGrad", op.outputs[0], dy)]


@register_gradient("TanhGrad")
def _tanh_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = dy (1 - y^2).
    y, dy = conj(op.inputs[0]), conj(op.inputs[1])
    return [dz * dy * y * -2, apply_op("TanhGrad", op.inputs[0], dz)]


def sigmoid(x: Any, name: str | None = None) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return _apply("Sigmoid", x, name)


_register("Sigmoid")
_register_grad("SigmoidGrad")


@register_kernel("Sigmoid", memory="own")
def _sigmoid(ctx: KernelContext, x: Any) -> Any:
    y = ctx.xp.negative(x)
    y = ctx.xp.exp(y, out=_out(y))
    y += y.dtype.type(1)
    return ctx.xp.reciprocal(y, out=_out(y))


@register_kernel("SigmoidGrad", memory="own")
def _sigmoid_grad_kernel(ctx: KernelContext, y: Any, dy: Any) -> Any:
    y = ctx.xp.conjugate(y) if y.dtype.kind == "c" else y
    z = ctx.xp.subtract(y.dtype.type(1), y)
    z *= y
    z *= dy
    return z


@register_gradient("Sigmoid")
def _sigmoid_grad(op: Operation, dy: Tensor) -> Grads:
    return [apply_op("SigmoidGrad", op.outputs[0], dy)]


@register_gradient("SigmoidGrad")
def _sigmoid_grad_grad(op: Operation, dz: Tensor) -> Grads:
    # z = dy (y - y^2).
    y, dy = conj(op.inputs[0]), conj(op.inputs[1])
    return [dz * dy * (1 - y * 2), apply_op("SigmoidGrad", op.inputs[0], dz)]


def log_sigmoid(x: Any, name: str | None = None) -> Tensor:
    """``log(sigmoid(x))``, accurate for large negative ``x``."""
    with get_default_graph().name_scope(name or "LogSigmoid") as scope:
        x = convert_to_tensor(x, name="x")
        return negative(apply_op("Softplus", negative(x)), name=scope)


# ---------------------------------------------------------------------------------------------- rounding


def floor(x: Any, name: str | None = None) -> Tensor:
    """The largest whole number not above ``x``."""
    return _apply("Floor", x, name)


def ceil(x: Any, name: str | None = None) -> Tensor:
    """The smallest whole number not below ``x``."""
    return _apply("Ceil", x, name)


def rint(x: Any, name: str | None = None) -> Tensor:
    """The nearest whole number, the even one of two."""
    return _apply("Rint", x, name)


def round(x: Any, name: str | None = None) -> Tensor:
    """The nearest whole number, the even one of two; integers are returned as they are."""
    x = convert_to_tensor(x)
    return x if x.dtype.is_integer else _apply("Round", x, name)


_register("Floor", FLOATING, "floor")
_register("Ceil", FLOATING, "ceil")
_register("Rint", FLOATING, "rint")
_register("Round", (*_SIGNED, *COMPLEX))


@register_kernel("Round", memory="view")
def _round(ctx: KernelContext, x: Any) -> Any:
    return x if x.dtype.kind == "i" else ctx.xp.rint(x)


no_gradient("Floor", "Ceil", "Rint", "Round", reason="rounding is piecewise constant")

# ---------------------------------------------------------------------------------------------- tests of numbers


def is_nan(x: Any, name: str | None = None) -> Tensor:
    """Whether an element is NaN."""
    return _apply("IsNan", x, name)


def is_inf(x: Any, name: str | None = None) -> Tensor:
    """Whether an element is infinite."""
    return _apply("IsInf", x, name)


def is_finite(x: Any, name: str | None = None) -> Tensor:
    """Whether an element is neither infinite nor NaN."""
    return _apply("IsFinite", x, name)


_register("IsNan", FLOATING, "isnan", output="bool")
_register("IsInf", FLOATING, "isinf", output="bool")
_register("IsFinite", FLOATING, "isfinite", output="bool")
no_gradient("IsNan", "IsInf", "IsFinite", reason="a test of numbers is a boolean")

set_operator("neg", negative)
set_operator("abs", abs)
