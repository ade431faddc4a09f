"""Decompositions of matrices. The kernels work on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt.dtypes import COMPLEX, FLOATING
from mpirt.graph.graph import Operation
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape

__all__: list[str] = []


@register_op(
    "Qr", inputs=["input: T"], outputs=["q: T", "r: T"], attrs={"full_matrices": ("bool", False)}, T=FLOATING + COMPLEX
)
def _qr_shape(ctx: ShapeContext) -> list[Shape]:
    shape = ctx.shape("input")
    if shape is None:
        return [None, None]
    if len(shape) < 2:
        raise ValueError("input must have at least two dimensions")
    *batch, rows, columns = shape
    inner = rows if ctx.attr("full_matrices") else None if rows is None or columns is None else min(rows, columns)
    return [(*batch, rows, inner), (*batch, inner, columns)]


@register_kernel("Qr", devices=("CPU",))
def _qr(ctx: KernelContext, matrix: Any, *, full_matrices: bool) -> Any:
    wide = matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix
    q, r = np.linalg.qr(wide, "complete" if full_matrices else "reduced")
    return [q.astype(matrix.dtype, copy=False), r.astype(matrix.dtype, copy=False)]


@register_gradient("Qr")
def _qr_grad(op: Operation, dq: Any, dr: Any) -> list[Any]:
    raise LookupError(
        f"No gradient defined for operation {op.name!r} (op type: Qr): mpirt makes initial values with it."
        "\n  Mend: leave the path out with stop_gradient."
    )
