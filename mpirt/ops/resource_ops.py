"""Operations on a variable's handle, as TensorFlow's resource variables use them in exported graphs.

The value of a handle is the variable's ``VariableCell`` itself, so a handle never leaves its device. Our own ``Variable``
is a reference variable: its snapshots are as consistent as these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX, NUMERIC, DType
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, merge, text
from mpirt.ops.apply import apply_op
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.scatter_state_ops import check_indices, flat_index
from mpirt.ops.state_ops import VariableCell, add_to, cell_of, check_shape, subtract_from

__all__: list[str] = []


def handle_shape(handle: Tensor) -> Shape:
    """Static shape of the variable behind ``handle``, None if the handle doesn't come straight from its op."""
    while handle.op.type == "Identity":
        handle = handle.op.inputs[0]
    shape: Shape = handle.op.attrs["shape"] if handle.op.type == "VarHandleOp" else None
    return shape


@register_op(
    "VarHandleOp",
    outputs=["resource: resource"],
    attrs={
        "container": ("string", ""), "shared_name": ("string", ""), "debug_name": ("string", ""), "shape": "shape",
        "allowed_devices": ("list(string)", []),
    },
    stateful=True,
    dtype=ALL,
)  # fmt: skip
def _var_handle_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("VarHandleOp")
def _var_handle(ctx: KernelContext, *, dtype: DType, shape: Shape) -> VariableCell:
    return cell_of(ctx, dtype, shape)


no_gradient("VarHandleOp", reason="it has no inputs")


@register_op("ReadVariableOp", inputs=["resource: resource"], outputs=["value: dtype"], stateful=True, dtype=ALL)
def _read_variable_shape(ctx: ShapeContext) -> list[Shape]:
    return [handle_shape(ctx.tensor("resource"))]


@register_kernel("ReadVariableOp")
def _read_variable(ctx: KernelContext, cell: VariableCell) -> Any:
    return cell.read()


@register_gradient("ReadVariableOp")
def _read_variable_grad(op: Operation, dy: Any) -> list[Any]:
    return [dy]


@register_op(
    "AssignVariableOp",
    inputs=["resource: resource", "value: dtype"],
    attrs={"validate_shape": ("bool", False)},
    stateful=True,
    dtype=ALL,
)
def _assign_variable_shape(ctx: ShapeContext) -> list[Shape]:
    merge(handle_shape(ctx.tensor("resource")), ctx.shape("value"))
    return []


@register_kernel("AssignVariableOp")
def _assign_variable(ctx: KernelContext, cell: VariableCell, value: Any) -> None:
    # TensorFlow lets a graph replace another graph's value by one of another shape; the readers' static shapes are then wrong.
    check_shape(ctx, cell, value, cell.shape)
    cell.assign(value)


@register_op("AssignAddVariableOp", inputs=["resource: resource", "value: dtype"], stateful=True, dtype=NUMERIC)
@register_op("AssignSubVariableOp", inputs=["resource: resource", "value: dtype"], stateful=True, dtype=NUMERIC)
def _assign_add_variable_shape(ctx: ShapeContext) -> list[Shape]:
    merge(handle_shape(ctx.tensor("resource")), ctx.shape("value"))
    return []


@register_kernel("AssignAddVariableOp", memory="own")
def _assign_add_variable(ctx: KernelContext, cell: VariableCell, value: Any) -> None:
    add_to(ctx, cell, value)


@register_kernel("AssignSubVariableOp", memory="own")
def _assign_sub_variable(ctx: KernelContext, cell: VariableCell, value: Any) -> None:
    subtract_from(ctx, cell, value)


no_gradient(
    "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", reason="a change of state is not a function of its inputs"
)


@register_op("VarIsInitializedOp", inputs=["resource: resource"], outputs=["is_initialized: bool"], stateful=True)
def _var_is_initialized_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("VarIsInitializedOp", host=("is_initialized",))
def _var_is_initialized(ctx: KernelContext, cell: VariableCell) -> Any:
    return np.array(cell.initialized)


@register_op(
    "VariableShape",
    inputs=["input: resource"],
    outputs=["output: out_type"],
    attrs={"out_type": ("type", dtypes.int32)},
    stateful=True,
    out_type=INDEX,
)
def _variable_shape_shape(ctx: ShapeContext) -> list[Shape]:
    shape = handle_shape(ctx.tensor("input"))
    return [(None if shape is None else len(shape),)]


@register_kernel("VariableShape", host=("output",))
def _variable_shape(ctx: KernelContext, cell: VariableCell, *, out_type: DType) -> Any:
    return np.array(cell.read().shape, out_type.np_dtype)


@register_op("DestroyResourceOp", inputs=["resource: resource"], attrs={"ignore_lookup_error": ("bool", True)}, stateful=True)
def _destroy_resource_shape(ctx: ShapeContext) -> list[Shape]:
    return []


@register_kernel("DestroyResourceOp")
def _destroy_resource(ctx: KernelContext, cell: VariableCell, *, ignore_lookup_error: bool) -> None:
    if not cell.initialized and not ignore_lookup_error:
        raise errors.NotFoundError(f"{ctx.op.name!r}: the variable {cell.name!r} has no value to destroy.", op=ctx.op)
    cell.clear()


no_gradient("VarIsInitializedOp", "VariableShape", "DestroyResourceOp", reason="it has no number to follow")


# ----------------------------------------------------------------------------------------------------------- gather


@register_op(
    "ResourceGather",
    inputs=["resource: resource", "indices: Tindices"],
    outputs=["output: dtype"],
    attrs={"batch_dims": ("int", 0), "validate_indices": ("bool", True)},
    stateful=True,
    dtype=ALL,
    Tindices=INDEX,
)
def _resource_gather_shape(ctx: ShapeContext) -> list[Shape]:
    if ctx.attr("batch_dims"):
        raise ValueError("ResourceGather with batch_dims is not supported by mpirt")
    shape, indices = handle_shape(ctx.tensor("resource")), ctx.shape("indices")
    if shape == ():
        raise ValueError("can't gather rows of a scalar")
    return [None if shape is None or indices is None else indices + shape[1:]]


@register_kernel("ResourceGather", host=("indices",))
def _resource_gather(ctx: KernelContext, cell: VariableCell, indices: Any) -> Any:
    value = cell.read()
    check_indices(ctx, indices, value.shape[0])
    return ctx.xp.take(value, ctx.xp.asarray(indices), axis=0)


@register_gradient("ResourceGather")
def _resource_gather_grad(op: Operation, dy: Any) -> list[Any]:
    handle, indices = op.inputs
    shape = apply_op("VariableShape", handle)
    rows = apply_op("Reshape", indices, [-1])
    inner = apply_op("StridedSlice", shape, [1], [0], [1], end_mask=1)
    values = apply_op("Reshape", dy, apply_op("ConcatV2", [[-1], inner], 0))
    return [IndexedSlices(values, rows, shape), None]


@register_op(
    "ResourceGatherNd",
    inputs=["resource: resource", "indices: Tindices"],
    outputs=["output: dtype"],
    stateful=True,
    dtype=ALL,
    Tindices=INDEX,
)
def _resource_gather_nd_shape(ctx: ShapeContext) -> list[Shape]:
    shape, indices = handle_shape(ctx.tensor("resource")), ctx.shape("indices")
    if shape is None or not indices or indices[-1] is None:
        return [None]
    if indices[-1] > len(shape):
        raise ValueError(f"an index of {indices[-1]} numbers is too long for a variable of shape {text(shape)}")
    return [indices[:-1] + shape[indices[-1] :]]


@register_kernel("ResourceGatherNd", host=("indices",))
def _resource_gather_nd(ctx: KernelContext, cell: VariableCell, indices: Any) -> Any:
    value = cell.read()
    inner = value.shape[indices.shape[-1] :]
    flat = flat_index(ctx, indices, value.shape)
    rows = value.reshape((-1, *inner))
    return ctx.xp.take(rows, ctx.xp.asarray(flat), axis=0).reshape(indices.shape[:-1] + inner)


@register_gradient("ResourceGatherNd")
def _resource_gather_nd_grad(op: Operation, dy: Any) -> list[Any]:
    handle, indices = op.inputs
    return [apply_op("ScatterNd", indices, dy, apply_op("VariableShape", handle, out_type=indices.dtype.base_dtype)), None]
