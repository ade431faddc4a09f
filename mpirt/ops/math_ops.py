"""Arithmetic of two tensors with broadcasting, sums of several; the tensors' arithmetic operators.

Owns: what ``a + b`` and its like mean. A Python number takes the dtype of the tensor beside it.
Neighbours: comparisons and logic are in ``logic_ops``, functions of one tensor in ``unary_ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import COMPLEX, FLOATING, NUMERIC, REAL, DType
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import (
    KernelContext,
    ShapeContext,
    fitting,
    no_gradient,
    register_direct_kernel,
    register_gradient,
    register_kernel,
    register_op,
)
from mpirt.graph.shapes import Shape, as_shape, merge
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor, set_operator
from mpirt.ops.broadcasting import broadcast_shape, unbroadcast
from mpirt.ops.cast_ops import cast as cast  # callers of the arithmetic want it beside it
from mpirt.ops.complex_ops import conj
from mpirt.ops.indexed_slices import IndexedSlices

__all__ = [
    "accumulate_n", "add", "add_n", "atan2", "div", "div_no_nan", "divide", "floor_div", "floordiv", "floormod",
    "maximum", "minimum", "mod", "multiply", "multiply_no_nan", "pow", "realdiv", "scalar_mul",
    "squared_difference", "subtract", "truediv", "truncatediv",
    "truncatemod", "xdivy", "xlog1py", "xlogy",
]  # fmt: skip

Grads = list[Tensor | None]


def binary(op_type: str, x: Any, y: Any, name: str) -> Tensor:
    """Add the operation ``name`` of two operands; a value that is no tensor takes the other's dtype."""
    graph = get_default_graph()
    if type(x) is Tensor and type(y) is Tensor:
        return graph.create_op(op_type, (x, y), None, name).outputs[0]
    with graph.name_scope(name) as scope:
        x, y = operands(x, y)
        return graph.create_op(op_type, (x, y), None, scope).outputs[0]


def operands(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors, constants in the dtype of the other operand."""
    if is_tensor(y) and not is_tensor(x):
        y = convert_to_tensor(y)
        return convert_to_tensor(x, y.dtype.base_dtype, "x"), y
    x = convert_to_tensor(x, name="x")
    return x, convert_to_tensor(y, None if is_tensor(y) else x.dtype.base_dtype, "y")


def _register(op_type: str, types: tuple[DType, ...], direct: str = "", names: tuple[str, str] = ("x", "y")) -> None:
    register_op(op_type, inputs=[f"{n}: T" for n in names], outputs=["z: T"], T=types)(broadcast_shape)
    if direct:
        register_direct_kernel(direct, op_type)


def _check_divisor(ctx: KernelContext, y: Any) -> None:
    """Integers: no zero in the divisor. On a GPU looking stops the stream, as it does for the indices of a gather."""
    if y.dtype.kind in "iu" and not ctx.xp.all(y):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: integer division by zero in {ctx.op.type}.", op=ctx.op)


# ---------------------------------------------------------------------------------------------- sum and product


def add(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x + y``; strings are joined."""
    if type(x) is Tensor and type(y) is Tensor:
        return binary("Add" if x.dtype.kind == "O" else "AddV2", x, y, name or "Add")
    with get_default_graph().name_scope(name or "Add") as scope:
        left, right = operands(x, y)
        return binary("Add" if left.dtype.kind == "O" else "AddV2", left, right, scope)


def _add_operator(x: Any, y: Any) -> Tensor:
    tensor = x if type(x) is Tensor else y
    return binary("Add" if tensor.dtype.kind == "O" else "AddV2", x, y, "add")


_register("AddV2", NUMERIC, "add")
_register("Add", (*NUMERIC, dtypes.string))


@register_kernel("Add", memory="own")
def _add(ctx: KernelContext, x: Any, y: Any) -> Any:
    if x.dtype == object:
        return np.asarray(x + y, object)
    return ctx.xp.add(x, y)


@register_gradient("Add", "AddV2")
def _add_grad(op: Operation, dy: Tensor) -> Grads:
    return unbroadcast(op.inputs[0], op.inputs[1], dy, dy)


def subtract(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x - y``."""
    return binary("Sub", x, y, name or "Sub")


_register("Sub", NUMERIC, "subtract")


@register_gradient("Sub")
def _sub_grad(op: Operation, dy: Tensor) -> Grads:
    # The sign is turned after the sum: less to turn.
    gx, gy = unbroadcast(op.inputs[0], op.inputs[1], dy, dy)
    return [gx, apply_op("Neg", gy)]


def multiply(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x * y``, element by element."""
    return binary("Mul", x, y, name or "Mul")


_register("Mul", NUMERIC, "multiply")


@register_gradient("Mul")
def _mul_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(x, y, dy * conj(y), dy * conj(x))


def scalar_mul(scalar: Any, x: Any, name: str | None = None) -> Any:
    """``scalar * x`` for a tensor or IndexedSlices ``x``; ValueError if ``scalar`` has dimensions."""
    dtype = x.dtype.base_dtype if is_tensor(x) else None
    factor = convert_to_tensor(scalar, dtype, "scalar")
    if factor.static_shape not in (None, ()):
        raise ValueError(f"Only scalar multiply works, got shape {factor.shape}.")
    if isinstance(x, IndexedSlices):
        return IndexedSlices(multiply(factor, x.values, name), x.indices, x.dense_shape)
    return multiply(factor, x, name)


# ---------------------------------------------------------------------------------------------- quotients


def realdiv(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x / y`` of floating or complex numbers."""
    return binary("RealDiv", x, y, name or "RealDiv")


_register("RealDiv", FLOATING + COMPLEX, "true_divide")


def truediv(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Quotient as in Python 3: integers become float64 (8 and 16 bits: float32) first."""
    return _true_divide(x, y, name or "truediv")


def divide(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Quotient as in Python 3, the same as ``truediv``."""
    return _true_divide(x, y, name or "truediv")


def _true_divide(x: Any, y: Any, name: str) -> Tensor:
    if type(x) is Tensor and type(y) is Tensor and x.dtype.kind in "fc":
        return binary("RealDiv", x, y, name)
    graph = get_default_graph()
    with graph.name_scope(name) as scope:
        x, y = operands(x, y)
        if x.dtype.base_dtype is not y.dtype.base_dtype:
            raise TypeError(f"`x` and `y` must have the same dtype, got {x.dtype.name} and {y.dtype.name}.")
        if x.dtype.is_integer:
            wide = dtypes.float32 if x.dtype.size <= 2 else dtypes.float64
            x, y = cast(x, wide), cast(y, wide)
        return graph.create_op("RealDiv", (x, y), None, scope).outputs[0]


def div(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Quotient as in Python 2: ``floordiv`` for integers, ``truediv`` for others."""
    graph = get_default_graph()
    with graph.name_scope(name or "div") as scope:
        x, y = operands(x, y)
        return graph.create_op("FloorDiv" if x.dtype.is_integer else "RealDiv", (x, y), None, scope).outputs[0]


_register("Div", NUMERIC)


@register_kernel("Div", memory="own")
def _div(ctx: KernelContext, x: Any, y: Any) -> Any:
    return _truncate_div(ctx, x, y) if x.dtype.kind in "iu" else ctx.xp.true_divide(x, y)


@register_gradient("RealDiv", "Div")
def _div_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    if not x.dtype.is_floating and not x.dtype.is_complex:
        return [None, None]
    gx = dy / conj(y)
    return unbroadcast(x, y, gx, apply_op("Neg", gx * conj(op.outputs[0])))


def floordiv(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Quotient rounded towards minus infinity; integers stay integers."""
    return binary("FloorDiv", x, y, name or "floordiv")


def floor_div(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Quotient rounded towards minus infinity, the same as ``floordiv``."""
    return binary("FloorDiv", x, y, name or "FloorDiv")


_register("FloorDiv", REAL)


@register_kernel("FloorDiv", memory="own")
def _floor_div(ctx: KernelContext, x: Any, y: Any) -> Any:
    if x.dtype.kind == "f":
        # numpy's floor_divide goes by way of the remainder, so that 1.0 // 0.1 is 9; TensorFlow's answer is 10.
        return ctx.xp.floor(ctx.xp.true_divide(x, y))
    _check_divisor(ctx, y)
    return ctx.xp.floor_divide(x, y)


def truncatediv(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Quotient rounded towards zero, as in C."""
    return binary("TruncateDiv", x, y, name or "TruncateDiv")


_register("TruncateDiv", REAL)


@register_kernel("TruncateDiv", memory="own")
def _truncate_div(ctx: KernelContext, x: Any, y: Any) -> Any:
    if x.dtype.kind == "f":
        return ctx.xp.trunc(ctx.xp.true_divide(x, y))
    _check_divisor(ctx, y)
    quotient = ctx.xp.floor_divide(x, y)
    if x.dtype.kind == "i":
        quotient += (quotient < 0) & (quotient * y != x)
    return quotient


no_gradient("FloorDiv", "TruncateDiv", reason="the rounded quotient is piecewise constant")


def floormod(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Remainder of ``floordiv``: it has the sign of ``y``."""
    return binary("FloorMod", x, y, name or "FloorMod")


def mod(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Remainder of ``floordiv``, the same as ``floormod``."""
    return binary("FloorMod", x, y, name or "FloorMod")


_register("FloorMod", REAL)


@register_kernel("FloorMod", memory="own")
def _floor_mod(ctx: KernelContext, x: Any, y: Any) -> Any:
    _check_divisor(ctx, y)
    if ctx.xp is not np and x.dtype.kind == "f":
        # cupy's own is x - floor(x / y) * y: NaN for an infinite y, and rounded twice. C's fmod is exact.
        rest = ctx.xp.fmod(x, y)
        return ctx.xp.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, ctx.xp.copysign(rest, ctx.xp.where(rest != 0, rest, y)))
    return ctx.xp.remainder(x, y)


@register_gradient("FloorMod")
def _floor_mod_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(x, y, dy, dy * apply_op("Neg", floordiv(x, y)))


def truncatemod(x: Any, y: Any, name: str | None = None) -> Tensor:
    """Remainder of ``truncatediv``: it has the sign of ``x``, as in C."""
    return binary("TruncateMod", x, y, name or "TruncateMod")


_MOD_TYPES = (dtypes.int32, dtypes.int64, *FLOATING)
_register("TruncateMod", _MOD_TYPES)
_register("Mod", _MOD_TYPES)


@register_kernel("TruncateMod", "Mod", memory="own")
def _truncate_mod(ctx: KernelContext, x: Any, y: Any) -> Any:
    _check_divisor(ctx, y)
    return ctx.xp.fmod(x, y)


@register_gradient("TruncateMod", "Mod")
def _truncate_mod_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(x, y, dy, dy * apply_op("Neg", truncatediv(x, y)))


def div_no_nan(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x / y``, and 0 where ``y`` is 0."""
    return binary("DivNoNan", x, y, name or "div_no_nan")


_register("DivNoNan", FLOATING + COMPLEX)


@register_kernel("DivNoNan", memory="own")
def _div_no_nan(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.where(y == 0, x.dtype.type(0), ctx.xp.true_divide(x, y))


@register_gradient("DivNoNan")
def _div_no_nan_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    gx = div_no_nan(dy, conj(y))
    return unbroadcast(x, y, gx, apply_op("Neg", gx * conj(op.outputs[0])))


def multiply_no_nan(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x * y``, and 0 where ``y`` is 0 even if ``x`` is infinite or NaN."""
    return binary("MulNoNan", x, y, name or "multiply_no_nan")


_register("MulNoNan", FLOATING + COMPLEX)


@register_kernel("MulNoNan", memory="own")
def _mul_no_nan(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.where(y == 0, x.dtype.type(0), ctx.xp.multiply(x, y))


@register_gradient("MulNoNan")
def _mul_no_nan_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(x, y, multiply_no_nan(dy, conj(y)), multiply_no_nan(conj(x), dy))


# ---------------------------------------------------------------------------------------------- powers and logarithms


def pow(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x`` to the power ``y``; integers can't have negative powers."""
    return binary("Pow", x, y, name or "Pow")


_register("Pow", (*FLOATING, dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64, *COMPLEX))


@register_kernel("Pow", memory="own")
def _pow(ctx: KernelContext, x: Any, y: Any) -> Any:
    if y.dtype.kind == "i" and ctx.xp.any(y < 0):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: integers to negative integer powers are not allowed.", op=ctx.op)
    if ctx.xp is np and y.ndim == 0 and y == 2:
        return np.square(x)
    return ctx.xp.power(x, y)


@register_gradient("Pow")
def _pow_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    z = op.outputs[0]
    exponent = constants.value(y)
    cy = conj(y)
    if exponent is not None and exponent.ndim == 0 and exponent == 2:
        gx = dy * (conj(x) * 2)
    else:
        gx = dy * (cy * pow(conj(x), cy - 1))
    # The derivative by the exponent is taken as 0 where the logarithm isn't real, as in TensorFlow.
    mask = apply_op("NotEqual", x, 0) if x.dtype.is_complex else apply_op("Greater", x, 0)
    log_x = apply_op("Log", apply_op("SelectV2", mask, x, 1)) if not x.dtype.is_integer else apply_op("ZerosLike", x)
    return unbroadcast(x, y, gx, dy * conj(z) * conj(log_x))


def xdivy(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x / y``, and 0 where ``x`` is 0."""
    return binary("Xdivy", x, y, name or "xdivy")


def xlogy(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x * log(y)``, and 0 where ``x`` is 0."""
    return binary("Xlogy", x, y, name or "xlogy")


def xlog1py(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``x * log(1 + y)``, and 0 where ``x`` is 0."""
    return binary("Xlog1py", x, y, name or "xlog1py")


for _name in ("Xdivy", "Xlogy", "Xlog1py"):
    _register(_name, FLOATING + COMPLEX)


@register_kernel("Xdivy", memory="own")
def _xdivy(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.where(x == 0, x.dtype.type(0), ctx.xp.true_divide(x, y))


@register_kernel("Xlogy", memory="own")
def _xlogy(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.where(x == 0, x.dtype.type(0), x * ctx.xp.log(y))


@register_kernel("Xlog1py", memory="own")
def _xlog1py(ctx: KernelContext, x: Any, y: Any) -> Any:
    return ctx.xp.where(x == 0, x.dtype.type(0), x * ctx.xp.log1p(y))


def _nonzero(x: Tensor) -> Tensor:
    """1 where ``x`` isn't 0, in the dtype of ``x``."""
    result: Tensor = cast(apply_op("NotEqual", x, 0), x.dtype)
    return result


@register_gradient("Xdivy")
def _xdivy_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(
        x, y, dy * xdivy(_nonzero(x), conj(y)), dy * xdivy(apply_op("Neg", conj(x)), apply_op("Square", conj(y)))
    )


@register_gradient("Xlogy")
def _xlogy_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(x, y, dy * xlogy(_nonzero(x), conj(y)), dy * xdivy(conj(x), conj(y)))


@register_gradient("Xlog1py")
def _xlog1py_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    return unbroadcast(x, y, dy * xlog1py(_nonzero(x), conj(y)), dy * xdivy(conj(x), conj(y) + 1))


# ---------------------------------------------------------------------------------------------- larger, smaller, distance


def maximum(x: Any, y: Any, name: str | None = None) -> Tensor:
    """The larger of both, element by element."""
    return binary("Maximum", x, y, name or "Maximum")


def minimum(x: Any, y: Any, name: str | None = None) -> Tensor:
    """The smaller of both, element by element."""
    return binary("Minimum", x, y, name or "Minimum")


_register("Maximum", REAL, "maximum")
_register("Minimum", REAL, "minimum")


@register_gradient("Maximum")
def _maximum_grad(op: Operation, dy: Tensor) -> Grads:
    return _choice_grad(op, dy, "GreaterEqual")


@register_gradient("Minimum")
def _minimum_grad(op: Operation, dy: Tensor) -> Grads:
    return _choice_grad(op, dy, "LessEqual")


def _choice_grad(op: Operation, dy: Tensor, comparison: str) -> Grads:
    """The gradient goes to the operand that was taken; to ``x`` if both are equal."""
    x, y = op.inputs
    took_x = apply_op(comparison, x, y)
    return unbroadcast(x, y, apply_op("SelectV2", took_x, dy, 0), apply_op("SelectV2", took_x, 0, dy))


def squared_difference(x: Any, y: Any, name: str | None = None) -> Tensor:
    """``(x - y)`` squared; the squared modulus for complex numbers."""
    return binary("SquaredDifference", x, y, name or "SquaredDifference")


_register("SquaredDifference", (*FLOATING, dtypes.int32, dtypes.int64, *COMPLEX))


@register_kernel("SquaredDifference", memory="own")
def _squared_difference(ctx: KernelContext, x: Any, y: Any) -> Any:
    d = ctx.xp.subtract(x, y)
    d *= d if d.dtype.kind != "c" else ctx.xp.conjugate(d)
    return d


@register_gradient("SquaredDifference")
def _squared_difference_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    gx = dy * 2 * (x - y)
    gx_sum, gy_sum = unbroadcast(x, y, gx, gx)
    return [gx_sum, apply_op("Neg", gy_sum)]


def atan2(y: Any, x: Any, name: str | None = None) -> Tensor:
    """Angle of the point (x, y) in radians, in [-pi, pi]."""
    return binary("Atan2", y, x, name or "Atan2")


_register("Atan2", FLOATING, "arctan2", names=("y", "x"))


@register_gradient("Atan2")
def _atan2_grad(op: Operation, dz: Tensor) -> Grads:
    y, x = op.inputs
    scaled = dz / (apply_op("Square", x) + apply_op("Square", y))
    return unbroadcast(y, x, scaled * x, scaled * apply_op("Neg", y))


# ---------------------------------------------------------------------------------------------- sums of several tensors


def add_n(inputs: Sequence[Any], name: str | None = None) -> Tensor:
    """Sum of tensors of one shape; a single one is returned as it is unless a name is given.

    Raises
    ------
    ValueError
        If ``inputs`` is no list or is empty, or the shapes differ.
    """
    tensors = _several(inputs)
    if len(tensors) == 1:
        return apply_op("Identity", tensors[0], name=name) if name else tensors[0]
    result: Tensor = apply_op("AddN", tensors, name=name)
    return result


def accumulate_n(inputs: Sequence[Any], shape: Any = None, tensor_dtype: Any = None, name: str | None = None) -> Tensor:
    """Sum of tensors of one shape; ``shape`` and ``tensor_dtype`` are checked if given.

    Raises
    ------
    ValueError
        If the inputs don't share a shape; TypeError if ``tensor_dtype`` isn't theirs.
    """
    tensors = _several(inputs)
    full = as_shape(shape)
    for tensor in tensors:
        full = merge(full, tensor.static_shape)
    if tensor_dtype is not None and tensors[0].dtype.base_dtype is not dtypes.as_dtype(tensor_dtype):
        raise TypeError(f"tensor_dtype is {dtypes.as_dtype(tensor_dtype).name}, but input is of type {tensors[0].dtype.name}.")
    if len(tensors) == 1:
        return apply_op("Identity", tensors[0], name=name) if name else tensors[0]
    result: Tensor = apply_op("AccumulateNV2", tensors, shape=full, name=name)
    return result


def _several(inputs: Sequence[Any]) -> list[Tensor]:
    if not isinstance(inputs, list | tuple) or not inputs:
        raise ValueError("inputs must be an iterable of at least one Tensor/IndexedSlices with the same dtype and shape.")
    return [convert_to_tensor(x) for x in inputs]


@register_op("AddN", inputs=["inputs: N*T"], outputs=["sum: T"], T=NUMERIC)
def _add_n_shape(ctx: ShapeContext) -> list[Shape]:
    shape: Shape = None
    for other in ctx.shapes("inputs"):
        shape = merge(shape, other)
    return [shape]


@register_op("AccumulateNV2", inputs=["inputs: N*T"], outputs=["sum: T"], attrs={"shape": "shape"}, T=NUMERIC)
def _accumulate_n_shape(ctx: ShapeContext) -> list[Shape]:
    return [merge(ctx.attr("shape"), _add_n_shape(ctx)[0])]


@register_kernel("AddN", "AccumulateNV2", memory="own")
def _add_n(ctx: KernelContext, *inputs: Any, out: Any = None) -> Any:
    first = inputs[0]
    shape = first.shape
    if len(inputs) == 1:
        return ctx.xp.positive(first, out=out if out is None else fitting(out, shape, first))
    if inputs[1].shape != shape or len(inputs) > 2 and any([x.shape != shape for x in inputs]):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: the inputs of {ctx.op.type} must have one shape, not {[tuple(x.shape) for x in inputs]}.",
            op=ctx.op,
        )
    if out is not None:
        out = fitting(out, shape, first)
    total = ctx.xp.add(first, inputs[1], out=out)
    for x in inputs[2:]:
        total += x
    return total


@register_gradient("AddN", "AccumulateNV2")
def _add_n_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy] * len(op.inputs)


# ---------------------------------------------------------------------------------------------- operators

set_operator("add", _add_operator)
set_operator("sub", lambda x, y: binary("Sub", x, y, "sub"))
set_operator("mul", lambda x, y: binary("Mul", x, y, "mul"))
set_operator("truediv", lambda x, y: _true_divide(x, y, "truediv"))
set_operator("floordiv", lambda x, y: binary("FloorDiv", x, y, "floordiv"))
set_operator("mod", lambda x, y: binary("FloorMod", x, y, "mod"))
set_operator("pow", lambda x, y: binary("Pow", x, y, "pow"))
