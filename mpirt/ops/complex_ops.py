"""Complex numbers: parts, conjugate, modulus and angle.

Real tensors pass through ``conj`` and ``real`` unchanged, so gradients may call them whatever the type.
"""

from __future__ import annotations

from typing import Any

from mpirt import dtypes
from mpirt.dtypes import COMPLEX, DType
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import (
    KernelContext,
    ShapeContext,
    register_direct_kernel,
    register_gradient,
    register_kernel,
    register_op,
)
from mpirt.graph.shapes import Shape
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.broadcasting import broadcast_shape, unbroadcast

__all__ = ["angle", "complex", "conj", "imag", "real", "to_complex64", "to_complex128"]

_PARTS = (dtypes.float32, dtypes.float64)


def _same_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.inputs[0].static_shape]


def _complex_of(dtype: DType) -> DType:
    return dtypes.complex128 if dtype.base_dtype is dtypes.float64 else dtypes.complex64


def conj(x: Any, name: str | None = None) -> Tensor:
    """Complex conjugate; a real tensor is returned as it is."""
    if isinstance(x, Tensor) and x.dtype.kind != "c":
        return x
    x = convert_to_tensor(x)
    result: Tensor = apply_op("Conj", x, name=name) if x.dtype.is_complex else x
    return result


register_op("Conj", inputs=["input: T"], outputs=["output: T"], attrs={"T": ("type", dtypes.complex64)}, T=COMPLEX)(_same_shape)
register_direct_kernel("conjugate", "Conj")


@register_gradient("Conj")
def _conj_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    return [conj(dy)]


def _part(op_type: str, names: tuple[str, str] = ("input", "output")) -> None:
    """Register an op from a complex tensor to a real one."""
    source, target = names
    attrs = {"T": ("type", dtypes.complex64), "Tout": ("type", dtypes.float32)}
    register_op(op_type, inputs=[f"{source}: T"], outputs=[f"{target}: Tout"], attrs=attrs, T=COMPLEX, Tout=_PARTS)(_same_shape)


def real(input: Any, name: str | None = None) -> Tensor:
    """Real part; a real tensor is returned as it is."""
    x = convert_to_tensor(input)
    result: Tensor = apply_op("Real", x, Tout=x.dtype.real_dtype, name=name) if x.dtype.is_complex else x
    return result


_part("Real")


@register_kernel("Real")
def _real(ctx: KernelContext, x: Any) -> Any:
    return x.real


@register_gradient("Real")
def _real_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    return [complex(dy, apply_op("ZerosLike", dy))]


def imag(input: Any, name: str | None = None) -> Tensor:
    """Imaginary part; zeros for a real tensor."""
    x = convert_to_tensor(input)
    result: Tensor = apply_op("Imag", x, Tout=x.dtype.real_dtype, name=name) if x.dtype.is_complex else apply_op("ZerosLike", x)
    return result


_part("Imag")


@register_kernel("Imag")
def _imag(ctx: KernelContext, x: Any) -> Any:
    return x.imag


@register_gradient("Imag")
def _imag_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # TensorFlow's convention: dy times j, the conjugate of -j.
    return [complex(apply_op("ZerosLike", dy), dy)]


_part("ComplexAbs", ("x", "y"))
register_direct_kernel("absolute", "ComplexAbs")


@register_gradient("ComplexAbs")
def _complex_abs_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    return [complex(dy, apply_op("ZerosLike", dy)) * apply_op("Sign", op.inputs[0])]


def angle(input: Any, name: str | None = None) -> Tensor:
    """Argument of complex numbers in radians, in (-pi, pi]; 0 or pi for real ones."""
    x = convert_to_tensor(input)
    if not x.dtype.is_complex:
        x = complex(x, apply_op("ZerosLike", x))
    result: Tensor = apply_op("Angle", x, Tout=x.dtype.real_dtype, name=name)
    return result


_part("Angle")
register_direct_kernel("angle", "Angle")


@register_gradient("Angle")
def _angle_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # d(arg z) = (a db - b da) / |z|^2; as a + jb of the two partial derivatives that is j z / |z|^2 = j / conj(z).
    z = op.inputs[0]
    return [complex(apply_op("ZerosLike", dy), dy) / conj(z)]


def complex(real: Any, imag: Any, name: str | None = None) -> Tensor:
    """Complex numbers from two real tensors of one type, float32 or float64."""
    real = convert_to_tensor(real)
    result: Tensor = apply_op("Complex", real, imag, Tout=_complex_of(real.dtype), name=name)
    return result


register_op(
    "Complex", inputs=["real: T", "imag: T"], outputs=["out: Tout"],
    attrs={"T": ("type", dtypes.float32), "Tout": ("type", dtypes.complex64)}, T=_PARTS, Tout=COMPLEX,
)(broadcast_shape)  # fmt: skip


@register_kernel("Complex")
def _complex(ctx: KernelContext, re: Any, im: Any, *, Tout: DType) -> Any:
    out = ctx.xp.empty(ctx.xp.broadcast_shapes(re.shape, im.shape), Tout.np_dtype)
    out.real = re
    out.imag = im
    return out


@register_gradient("Complex")
def _complex_grad(op: Operation, dy: Tensor) -> list[Tensor | None]:
    return unbroadcast(op.inputs[0], op.inputs[1], real(dy), imag(dy))


def to_complex64(x: Any, name: str = "ToComplex64") -> Tensor:
    """Cast to complex64."""
    return _to(x, dtypes.complex64, name)


def to_complex128(x: Any, name: str = "ToComplex128") -> Tensor:
    """Cast to complex128."""
    return _to(x, dtypes.complex128, name)


def _to(x: Any, dtype: DType, name: str) -> Tensor:
    x = convert_to_tensor(x)
    result: Tensor = x if x.dtype.base_dtype is dtype else apply_op("Cast", x, DstT=dtype, name=name)
    return result
