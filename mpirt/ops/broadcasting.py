"""Gradients through broadcasting: a gradient of the result's shape is summed down to each operand's shape.

Owns: the decision which axes to sum. It is taken while building wherever the static shapes allow it, so that operands of
one shape cost nothing; otherwise ``BroadcastGradientArgs`` decides when the graph runs.
"""

from __future__ import annotations

from mpirt.graph.graph import Tensor
from mpirt.graph.op_def import ShapeContext
from mpirt.graph.shapes import Shape, broadcast
from mpirt.ops.apply import apply_op

Axes = tuple[tuple[int, ...], tuple[int, ...]]


def broadcast_shape(ctx: ShapeContext) -> list[Shape]:
    """Shape function of an elementwise operation of two inputs."""
    x, y = ctx.inputs
    return [broadcast(x.static_shape, y.static_shape)]


def unbroadcast(x: Tensor, y: Tensor, gx: Tensor, gy: Tensor) -> list[Tensor | None]:
    """Gradients of the operands ``x`` and ``y`` from ``gx`` and ``gy``, which have the shape of the broadcast result."""
    if x is y:
        return [gx, gy]
    axes_x = _axes(x.static_shape, y.static_shape)
    axes_y = _axes(y.static_shape, x.static_shape)
    if axes_x is not None and axes_y is not None:
        return [_sum(gx, axes_x), _sum(gy, axes_y)]
    shape_x, shape_y = apply_op("Shape", x), apply_op("Shape", y)
    rx, ry = apply_op("BroadcastGradientArgs", shape_x, shape_y)
    return [
        _sum(gx, axes_x) if axes_x is not None else apply_op("Reshape", apply_op("Sum", gx, rx), shape_x),
        _sum(gy, axes_y) if axes_y is not None else apply_op("Reshape", apply_op("Sum", gy, ry), shape_y),
    ]


def _axes(shape: Shape, other: Shape) -> Axes | None:
    """Axes of the result to sum for the operand of ``shape``: those it lacks, and those where its size is 1.

    None if that depends on sizes that aren't known.
    """
    if shape is None or other is None:
        return None
    ndim = max(len(shape), len(other))
    missing = ndim - len(shape)
    kept = []
    for i in range(missing, ndim):
        size = shape[i - missing]
        j = i - (ndim - len(other))
        facing = other[j] if j >= 0 else 1
        if facing == 1:
            continue
        if size is None:
            return None
        if size == 1:
            kept.append(i)
    return tuple(range(missing)), tuple(kept)


def _sum(grad: Tensor, axes: Axes) -> Tensor:
    missing, kept = axes
    if kept:
        grad = apply_op("Sum", grad, list(kept), keep_dims=True)
    return apply_op("Sum", grad, list(missing)) if missing else grad
