"""How the ops layer adds operations: values become tensors, then ``apply_op`` adds one operation of the registry.

Owns: conversion of Python values to tensors (constants included) and the dtype that a mixed list of arguments takes.
Neighbours: ``graph.create_op`` checks and stores; the families beside this file call ``apply_op``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import DType
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.graph.op_def import ArgDef, OpDef, arg_ranges, no_gradient, op_def, register_kernel, register_op
from mpirt.graph.operation import set_operator
from mpirt.graph.shapes import Shape, as_shape

__all__ = ["apply_op", "constant", "convert_to_tensor", "graph_of", "is_tensor", "set_operator"]


@register_op("Const", outputs=["output: dtype"], attrs={"value": "tensor"}, dtype=dtypes.ALL)
def _const_shape(ctx: Any) -> list[Shape]:
    return [ctx.attr("value").shape]


@register_kernel("Const")
def _const(ctx: Any, *, value: np.ndarray[Any, Any]) -> Any:
    return ctx.xp.asarray(value) if value.dtype != object else value


no_gradient("Const", reason="it has no inputs")


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a tensor or stands for one (a variable, IndexedSlices)."""
    return isinstance(x, Tensor) or hasattr(x, "_as_tensor")


def constant(value: Any, dtype: Any = None, shape: Any = None, name: str = "Const", verify_shape: bool = False) -> Tensor:
    """A tensor with a fixed value.

    Parameters
    ----------
    value : number, string, list or array
    dtype : element type; by default float32 for Python floats, int32 for ints, else numpy's
    shape : shape of the result; a single value fills it, missing last values repeat the last one
    name : name of the operation
    verify_shape : refuse a value whose own shape is not ``shape``

    Raises
    ------
    TypeError
        If the value is not of ``dtype``; ValueError if it doesn't fit into ``shape``.
    """
    return _constant_of(constant_array(value, dtype, shape, verify_shape), name)


def constant_array(value: Any, dtype: Any = None, shape: Any = None, verify_shape: bool = False) -> np.ndarray[Any, Any]:
    """The value of ``constant`` with these arguments."""
    array = to_array(value, None if dtype is None else dtypes.as_dtype(dtype))
    if shape is not None:
        wanted = as_shape(shape)
        if wanted is None or None in wanted:
            raise ValueError(f"a constant needs a full shape, not {shape!r}.")
        if verify_shape and array.shape != wanted:
            raise TypeError(f"expected a value of shape {wanted}, got {array.shape}.")
        count = int(np.prod(wanted, dtype=np.int64))  # type: ignore[arg-type]
        if array.size > count or (array.size == 0 and count > 0):
            raise ValueError(f"a value of shape {array.shape} doesn't fit into shape {wanted}.")
        flat = array.reshape(-1)
        if flat.size < count:
            flat = np.concatenate([flat, np.full(count - flat.size, flat[-1], flat.dtype)])
        array = flat.reshape(wanted)
    return array


def _constant_of(array: np.ndarray[Any, Any], name: str) -> Tensor:
    array = np.array(array, order="C")  # a copy: the user may change the original later
    array.flags.writeable = False
    attrs = {"value": array, "dtype": dtypes.as_dtype(array.dtype)}
    return get_default_graph().create_op("Const", (), attrs, name).outputs[0]


def to_array(value: Any, dtype: DType | None = None) -> np.ndarray[Any, Any]:
    """The array of a Python value, in the type TensorFlow gives it; nothing is lost by conversion.

    Raises
    ------
    TypeError
        If the value can't be of ``dtype``.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "SU" or array.dtype == object:
            array = _string_array(value)
        if dtype is not None and dtypes.as_dtype(array.dtype) is not dtype.base_dtype:
            array = array.astype(dtype.np_dtype) if dtype.kind != "O" and array.dtype != object else _mismatch(value, dtype)
        return array
    if value is None:
        raise TypeError("None values are not supported.")
    if hasattr(value, "dims_tuple"):  # TensorShape
        value = value.as_list()
        if None in value:
            raise ValueError(f"can't make a tensor of a partly unknown shape {value}.")
        return np.array(value, (dtype or dtypes.int32).np_dtype)
    if isinstance(value, DType):
        return np.array(value.enum, np.int32)
    array = np.array(value) if not _has_strings(value) else _string_array(value)
    if array.dtype == object and not _has_strings(value):
        raise TypeError(f"can't make a tensor of {value!r}.")
    kind = array.dtype.kind
    if dtype is None:
        if kind == "f" and not _has_numpy(value):
            return array.astype(np.float32)
        if kind in "iu" and not _has_numpy(value):
            narrow = array.astype(np.int32)
            return narrow if np.array_equal(narrow, array) else array
        return array
    dtype = dtype.base_dtype
    order = "biufc"
    if dtype.kind == "O" or kind == "O":
        return array if dtype.kind == kind else _mismatch(value, dtype)
    if array.size and (order.index(kind) > order.index("i" if dtype.kind == "u" else dtype.kind) or (kind == "b") != (dtype.kind == "b")):
        return _mismatch(value, dtype)
    if dtype.is_integer and array.size and (array.min() < dtype.min or array.max() > dtype.max):
        raise TypeError(f"the value {value!r} doesn't fit into {dtype.name}.")
    return array.astype(dtype.np_dtype)


def _mismatch(value: Any, dtype: DType) -> np.ndarray[Any, Any]:
    raise TypeError(f"Expected {dtype.name}, got {value!r} of type {type(value).__name__!r} instead.")


def _first_leaf(value: Any) -> Any:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value


def _has_strings(value: Any) -> bool:
    return isinstance(_first_leaf(value), str | bytes)


def _has_numpy(value: Any) -> bool:
    return isinstance(_first_leaf(value), np.ndarray | np.generic)


def _string_array(value: Any) -> np.ndarray[Any, Any]:
    array = np.array(value, object)
    flat = array.reshape(-1)
    for i, item in enumerate(flat):
        if not isinstance(item, str | bytes):
            raise TypeError(f"can't make a tensor of {item!r} among strings.")
        flat[i] = item.encode() if isinstance(item, str) else bytes(item)
    return flat.reshape(array.shape)


def convert_to_tensor(
    value: Any,
    dtype: Any = None,
    name: str | None = None,
    preferred_dtype: Any = None,
    dtype_hint: Any = None,
    *,
    as_ref: bool = False,
) -> Tensor:
    """The tensor of ``value``: itself, a variable's value, or a new constant; a list that holds tensors is packed.

    Raises
    ------
    TypeError, ValueError
        If ``value`` can't be of ``dtype``.
    """
    wanted = None if dtype is None else dtypes.as_dtype(dtype)
    if hasattr(value, "_as_tensor"):
        value = value._as_tensor(as_ref)
    if isinstance(value, Tensor):
        if wanted is not None and value.dtype.base_dtype is not wanted.base_dtype:
            raise ValueError(f"Tensor conversion requested dtype {wanted.name} for Tensor with dtype {value.dtype.name}: {value!r}")
        return value
    if isinstance(value, Operation):
        raise TypeError(f"can't convert the operation {value.name!r} to a tensor; use one of its outputs.")
    if isinstance(value, list | tuple) and _holds_tensor(value):
        found = wanted or _dtype_inside(value)
        parts = [convert_to_tensor(v, found) for v in value]
        return get_default_graph().create_op("Pack", parts, {"axis": 0}, name or "packed").outputs[0]
    preferred = preferred_dtype if preferred_dtype is not None else dtype_hint
    if wanted is None and preferred is not None:
        try:
            return _constant_of(to_array(value, dtypes.as_dtype(preferred)), name or "Const")
        except TypeError:
            pass
    return _constant_of(to_array(value, wanted), name or "Const")


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensor(v) for v in value)
    return is_tensor(value)


def _dtype_inside(value: Any) -> DType | None:
    """Type of the first tensor inside nested lists."""
    if isinstance(value, list | tuple):
        return next((d for d in map(_dtype_inside, value) if d is not None), None)
    if not is_tensor(value):
        return None
    found: DType = value.dtype.base_dtype
    return found


def graph_of(*values: Any) -> Graph:
    """The current graph; ValueError if a tensor among ``values`` belongs to another one."""
    graph = get_default_graph()
    for value in values:
        if isinstance(value, Tensor) and value.graph is not graph:
            raise ValueError(f"{value!r} must be from the current graph.")
    return graph


def apply_op(op_type: str, *args: Any, name: str | None = None, **attrs: Any) -> Any:
    """Add an operation of the registry.

    Parameters
    ----------
    op_type : name of the type
    *args : one value for each argument of the op's definition, in order; a sequence for a list argument
    name : name of the operation, by default its type
    **attrs : attributes that the inputs don't imply

    Returns
    -------
    The output tensor; a list of tensors for several outputs or one list output (a list inside for a list output among
    several); the operation if it has no output
    """
    definition = op_def(op_type)
    if len(args) != len(definition.inputs):
        raise TypeError(f"{op_type} takes {len(definition.inputs)} argument(s), not {len(args)}.")
    types: dict[str, DType] = {k: v for k, v in attrs.items() if isinstance(v, DType)}
    if len(args) > 1 or (args and definition.inputs[0].is_list):
        for arg, value in zip(definition.inputs, args, strict=True):
            if arg.type_attr and arg.type_attr not in types:
                found = _dtype_inside(value)
                if found is not None:
                    types[arg.type_attr] = found
    inputs: list[Tensor] = []
    for arg, value in zip(definition.inputs, args, strict=True):
        try:
            if arg.is_list:
                _append_list(arg, value, types, attrs, inputs, definition)
            else:
                inputs.append(_input(arg, value, types, definition))
        except (TypeError, ValueError) as error:
            raise type(error)(f"argument {arg.name!r} of {op_type}: {error}") from None
    graph = get_default_graph()
    changed = [t.op for arg, t in zip(definition.inputs, inputs, strict=False) if arg.is_ref]
    if changed:  # what changes a variable runs where the variable is
        with ExitStack() as stack:
            for op in changed:
                stack.enter_context(graph.colocate_with(op))
            op = graph.create_op(op_type, inputs, attrs, name)
    else:
        op = graph.create_op(op_type, inputs, attrs, name)
    if not definition.outputs:
        return op
    if len(definition.outputs) == 1:
        return list(op.outputs) if definition.outputs[0].is_list else op.outputs[0]
    ranges = arg_ranges(definition.outputs, op.attrs)
    return [list(op.outputs[ranges[a.name]]) if a.is_list else op.outputs[ranges[a.name].start] for a in definition.outputs]


def _input(arg: ArgDef, value: Any, types: dict[str, DType], definition: OpDef) -> Tensor:
    if type(value) is Tensor:
        return value
    dtype = arg.dtype or types.get(arg.type_attr)
    name = arg.name if not is_tensor(value) else None
    default = definition.attrs[arg.type_attr].default if dtype is None and arg.type_attr else None
    preferred = default if isinstance(default, DType) else None  # the type of [] where only the op knows it
    tensor = convert_to_tensor(value, dtype, name, preferred, as_ref=arg.is_ref)
    if arg.type_attr:
        types.setdefault(arg.type_attr, tensor.dtype.base_dtype)
    return tensor


def _append_list(
    arg: ArgDef, value: Any, types: dict[str, DType], attrs: dict[str, Any], inputs: list[Tensor], definition: OpDef
) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"a list is needed, not {value!r}.")
    start = len(inputs)
    for item in value:
        inputs.append(_input(ArgDef(arg.name, arg.dtype, arg.type_attr, is_ref=arg.is_ref), item, types, definition))
    if arg.number_attr:
        attrs.setdefault(arg.number_attr, len(value))
    if arg.list_attr:
        attrs.setdefault(arg.list_attr, [t.dtype.base_dtype for t in inputs[start:]])


def unimplemented(what: str) -> errors.UnimplementedError:
    """The error for an argument of TensorFlow's that mpirt doesn't have."""
    return errors.UnimplementedError(f"{what} is not supported by mpirt.")
