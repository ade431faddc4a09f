"""Conversion of tensors to another dtype."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import NUMERIC, DType
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, text
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor
from mpirt.ops.indexed_slices import IndexedSlices

__all__ = ["bitcast", "cast", "saturate_cast", "to_double", "to_float", "to_int32", "to_int64"]


def cast(x: Any, dtype: Any, name: str | None = None) -> Any:
    """The values in another dtype; ``x`` itself if it has that dtype. Real parts are taken of complex numbers."""
    wanted = dtypes.as_dtype(dtype).base_dtype
    if isinstance(x, IndexedSlices):
        return IndexedSlices(cast(x.values, wanted, name), x.indices, x.dense_shape)
    x = convert_to_tensor(x, name="x" if not is_tensor(x) else None)
    if x.dtype.base_dtype is wanted:
        return x
    if x.dtype.is_complex and wanted.is_floating:
        warnings.warn("casting complex to real discards the imaginary part", stacklevel=2)
    return apply_op("Cast", x, DstT=wanted, name=name)


_CASTABLE = (*NUMERIC, dtypes.bool)


@register_op(
    "Cast", inputs=["x: SrcT"], outputs=["y: DstT"], attrs={"Truncate": ("bool", False)}, SrcT=_CASTABLE, DstT=_CASTABLE
)
def _cast_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.shape("x")]


@register_kernel("Cast", memory="view")
def _cast(ctx: KernelContext, x: Any, *, DstT: DType) -> Any:
    wanted = DstT.np_dtype
    if x.dtype.kind == "c" and wanted.kind not in "cb":
        x = x.real
    return x.astype(wanted, copy=False)


@register_gradient("Cast")
def _cast_grad(op: Operation, dy: Tensor | IndexedSlices) -> list[Any]:
    source, target = op.inputs[0].dtype.base_dtype, dy.dtype.base_dtype
    if source.kind in "fc" and target.kind in "fc":
        if isinstance(dy, IndexedSlices):
            return [IndexedSlices(apply_op("Cast", dy.values, DstT=source), dy.indices, dy.dense_shape)]
        return [apply_op("Cast", dy, DstT=source)]
    return [None]


def bitcast(input: Any, type: Any, name: str | None = None) -> Tensor:
    """The bytes of ``input`` read as another dtype; a last dimension appears or goes where the sizes differ."""
    tensor: Tensor = apply_op("Bitcast", input, type=dtypes.as_dtype(type), name=name)
    return tensor


@register_op("Bitcast", inputs=["input: T"], outputs=["output: type"], T=NUMERIC, type=NUMERIC)
def _bitcast_shape(ctx: ShapeContext) -> list[Shape]:
    shape, old, new = ctx.shape("input"), ctx.dtype("input").size, ctx.attr("type").size
    if shape is None or old == new:
        return [shape]
    if old > new:
        return [(*shape, old // new)]
    if not shape or shape[-1] not in (None, new // old):
        raise ValueError(f"Cannot bitcast {text(shape)} to a type {new // old} times as large: the last size must be {new // old}")
    return [shape[:-1]]


@register_kernel("Bitcast", memory="view")
def _bitcast(ctx: KernelContext, x: Any, *, type: DType) -> Any:
    shape, old, new = x.shape, x.dtype.itemsize, type.size
    out = ctx.xp.ascontiguousarray(x).reshape(-1).view(type.np_dtype)
    return out.reshape(shape if old == new else (*shape, old // new) if old > new else shape[:-1])


no_gradient("Bitcast", reason="bytes read as another type are no smooth function of the number")


def saturate_cast(value: Any, dtype: Any, name: str | None = None) -> Tensor:
    """Cast with values beyond the range of ``dtype`` set to its ends."""
    wanted = dtypes.as_dtype(dtype)
    with get_default_graph().name_scope(name or "saturate_cast"):
        value = convert_to_tensor(value, name="value")
        source = value.dtype
        if source.min < wanted.min:
            value = apply_op("Maximum", value, _representable(wanted.min, source))
        if source.max > wanted.max:
            value = apply_op("Minimum", value, _representable(wanted.max, source))
        result: Tensor = cast(value, wanted)
        return result


def _representable(limit: Any, dtype: DType) -> Any:
    """``limit`` in ``dtype``, rounded towards 0 so that it can be cast back."""
    value = dtype.as_numpy_dtype(limit)
    if dtype.is_floating and abs(int(value)) > abs(int(limit)):
        value = np.nextafter(value, dtype.as_numpy_dtype(0))
    return value


def to_float(x: Any, name: str = "ToFloat") -> Any:
    """Cast to float32."""
    return cast(x, dtypes.float32, name)


def to_double(x: Any, name: str = "ToDouble") -> Any:
    """Cast to float64."""
    return cast(x, dtypes.float64, name)


def to_int32(x: Any, name: str = "ToInt32") -> Any:
    """Cast to int32."""
    return cast(x, dtypes.int32, name)


def to_int64(x: Any, name: str = "ToInt64") -> Any:
    """Cast to int64."""
    return cast(x, dtypes.int64, name)
