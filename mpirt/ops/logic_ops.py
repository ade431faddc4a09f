"""Comparisons, logic of booleans, bits of integers; the tensors' operators for them.

``==`` on tensors compares objects, as in TensorFlow 1: use ``equal``. Nothing here has a gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import ALL, INTEGER, NUMERIC, REAL
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_direct_kernel, register_kernel, register_op
from mpirt.graph.shapes import Shape, is_static, merge
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor, set_operator
from mpirt.ops.broadcasting import broadcast_shape
from mpirt.ops.math_ops import binary

__all__ = [
    "equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor",
    "not_equal",
]  # fmt: skip


def _same_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.inputs[0].static_shape]


# ---------------------------------------------------------------------------------------------- comparisons


def equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether ``x == y``, element by element."""
    return binary("Equal", x, y, name or "Equal")


def not_equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether ``x != y``, element by element."""
    return binary("NotEqual", x, y, name or "NotEqual")


def _equal_shape(ctx: ShapeContext) -> list[Shape]:
    if ctx.attr("incompatible_shape_error"):
        return broadcast_shape(ctx)
    if not all(is_static(t.static_shape) for t in ctx.inputs):
        return [None]
    try:
        return broadcast_shape(ctx)
    except ValueError:
        return [()]


_COMPARABLE = tuple(t for t in ALL if t is not dtypes.resource)
for _name in ("Equal", "NotEqual"):
    register_op(
        _name, inputs=["x: T", "y: T"], outputs=["z: bool"], attrs={"incompatible_shape_error": ("bool", True)}, T=_COMPARABLE
    )(_equal_shape)


@register_kernel("Equal", memory="own")
def _equal(ctx: KernelContext, x: Any, y: Any, *, incompatible_shape_error: bool) -> Any:
    if not incompatible_shape_error and not _fits(x, y):
        return ctx.xp.zeros((), bool)
    return _boolean(ctx.xp.equal(x, y))


@register_kernel("NotEqual", memory="own")
def _not_equal(ctx: KernelContext, x: Any, y: Any, *, incompatible_shape_error: bool) -> Any:
    if not incompatible_shape_error and not _fits(x, y):
        return ctx.xp.ones((), bool)
    return _boolean(ctx.xp.not_equal(x, y))


def _boolean(result: Any) -> Any:
    """Scalars of strings compare to a Python bool."""
    return np.asarray(result) if isinstance(result, bool) else result


def _fits(x: Any, y: Any) -> bool:
    return all(a == b or a == 1 or b == 1 for a, b in zip(reversed(x.shape), reversed(y.shape), strict=False))


def less(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether ``x < y``, element by element."""
    return binary("Less", x, y, name or "Less")


def less_equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether ``x <= y``, element by element."""
    return binary("LessEqual", x, y, name or "LessEqual")


def greater(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether ``x > y``, element by element."""
    return binary("Greater", x, y, name or "Greater")


def greater_equal(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether ``x >= y``, element by element."""
    return binary("GreaterEqual", x, y, name or "GreaterEqual")


for _name, _ufunc in (("Less", "less"), ("LessEqual", "less_equal"), ("Greater", "greater"), ("GreaterEqual", "greater_equal")):
    register_op(_name, inputs=["x: T", "y: T"], outputs=["z: bool"], T=REAL)(broadcast_shape)
    register_direct_kernel(_ufunc, _name)


@register_op(
    "ApproximateEqual",
    inputs=["x: T", "y: T"],
    outputs=["z: bool"],
    attrs={"tolerance": ("float", float(np.float32(1e-5)))},
    T=NUMERIC,
)
def _approximate_equal_shape(ctx: ShapeContext) -> list[Shape]:
    return [merge(ctx.shape("x"), ctx.shape("y"))]


@register_kernel("ApproximateEqual", memory="own")
def _approximate_equal(ctx: KernelContext, x: Any, y: Any, *, tolerance: float) -> Any:
    # The smaller is taken from the larger, since unsigned integers have no negative difference.
    distance = abs(x - y) if x.dtype.kind == "c" else ctx.xp.maximum(x, y) - ctx.xp.minimum(x, y)
    return distance < tolerance


no_gradient(
    "Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "ApproximateEqual", reason="a comparison is a boolean"
)

# ---------------------------------------------------------------------------------------------- logic


def logical_and(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether both are true, element by element."""
    return _logical("LogicalAnd", x, y, name)


def logical_or(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Whether one or both are true, element by element."""
    return _logical("LogicalOr", x, y, name)


def _logical(op_type: str, x: Any, y: Any, name: str | None) -> Tensor:
    result: Tensor = apply_op(op_type, x, y, name=name)
    return result


def logical_not(x: Any, name: str | None = None) -> Tensor:
    """Whether ``x`` is false, element by element."""
    result: Tensor = apply_op("LogicalNot", x, name=name)
    return result


def logical_xor(x: Any, y: Any, name: str = "LogicalXor") -> Tensor:
    """Whether exactly one is true, element by element."""
    with get_default_graph().name_scope(name) as scope:
        x, y = convert_to_tensor(x, dtypes.bool), convert_to_tensor(y, dtypes.bool)
        return logical_and(logical_or(x, y), logical_not(logical_and(x, y)), name=scope)


for _name, _ufunc in (("LogicalAnd", "logical_and"), ("LogicalOr", "logical_or")):
    register_op(_name, inputs=["x: bool", "y: bool"], outputs=["z: bool"])(broadcast_shape)
    register_direct_kernel(_ufunc, _name)
register_op("LogicalNot", inputs=["x: bool"], outputs=["y: bool"])(_same_shape)
register_direct_kernel("logical_not", "LogicalNot")
no_gradient("LogicalAnd", "LogicalOr", "LogicalNot", reason="booleans have no gradient")

# ---------------------------------------------------------------------------------------------- bits of integers

for _name, _ufunc in (("BitwiseAnd", "bitwise_and"), ("BitwiseOr", "bitwise_or"), ("BitwiseXor", "bitwise_xor")):
    register_op(_name, inputs=["x: T", "y: T"], outputs=["z: T"], T=INTEGER)(broadcast_shape)
    register_direct_kernel(_ufunc, _name)
for _name in ("LeftShift", "RightShift"):
    register_op(_name, inputs=["x: T", "y: T"], outputs=["z: T"], T=INTEGER)(broadcast_shape)
register_op("Invert", inputs=["x: T"], outputs=["y: T"], T=INTEGER)(_same_shape)
register_direct_kernel("invert", "Invert")


@register_kernel("LeftShift", memory="own")
def _left_shift(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.left_shift(x, _within_width(ctx, y))


@register_kernel("RightShift", memory="own")
def _right_shift(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.right_shift(x, _within_width(ctx, y))


def _within_width(ctx: KernelContext, y: Any) -> Any:
    """Shifts of more than the type has bits shift by all but one, as in TensorFlow: C leaves them open."""
    bits = y.dtype.itemsize * 8
    return ctx.xp.clip(y, y.dtype.type(0), y.dtype.type(bits - 1))


no_gradient("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Invert", "LeftShift", "RightShift", reason="integers have no gradient")

# ---------------------------------------------------------------------------------------------- operators


def _bits_or_logic(bits: str, logic: str, name: str) -> Any:
    def operator(x: Any, y: Any) -> Tensor:
        tensor = convert_to_tensor(x if is_tensor(x) else y)
        return binary(logic if tensor.dtype.is_bool else bits, x, y, name)

    return operator


def _xor(x: Any, y: Any) -> Tensor:
    tensor = convert_to_tensor(x if is_tensor(x) else y)
    return logical_xor(x, y) if tensor.dtype.is_bool else binary("BitwiseXor", x, y, "xor")


set_operator("and", _bits_or_logic("BitwiseAnd", "LogicalAnd", "and"))
set_operator("or", _bits_or_logic("BitwiseOr", "LogicalOr", "or"))
set_operator("xor", _xor)
set_operator("invert", lambda x: logical_not(x) if x.dtype.is_bool else apply_op("Invert", x, name="invert"))
set_operator("less", less)
set_operator("less_equal", less_equal)
set_operator("greater", greater)
set_operator("greater_equal", greater_equal)
