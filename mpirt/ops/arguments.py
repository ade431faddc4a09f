"""How the array families read their arguments: shapes and axes, while building and inside kernels.

Neighbours: ``apply`` turns values into tensors; ``graph.shapes`` computes with static shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import errors
from mpirt.graph.graph import Tensor
from mpirt.graph.op_def import KernelContext
from mpirt.graph.shapes import Dimension, TensorShape
from mpirt.ops.apply import constant, convert_to_tensor, is_tensor


def shape_tensor(value: Any, name: str = "shape") -> Tensor:
    """The integer tensor of a shape-like argument: a TensorShape, sizes, Dimensions, or a list that holds tensors."""
    if is_tensor(value):
        return convert_to_tensor(value)
    if isinstance(value, TensorShape):
        value = value.as_list()
    if isinstance(value, list | tuple):
        value = [v.value if isinstance(v, Dimension) else v for v in value]
        if any(is_tensor(v) for v in value):
            return convert_to_tensor(value, name=name)
        if None in value:
            raise ValueError(f"a shape with unknown sizes {value} can't be a tensor; use -1 or tf.shape of a tensor.")
    array = np.asarray(value)
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"a shape is made of integers, not {value!r}.")
    if not isinstance(value, np.ndarray | np.generic):
        narrow = array.astype(np.int32)
        array = narrow if np.array_equal(narrow, array) else array.astype(np.int64)
    return constant(array, name=name)


def sizes_of(ctx: KernelContext, sizes: Any, what: str = "shape") -> tuple[int, ...]:
    """The Python ints of a shape input of a kernel; InvalidArgumentError if one is negative."""
    out = tuple(sizes.reshape(-1).tolist())
    if any(d < 0 for d in out):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: {what} {list(out)} has a negative size.", op=ctx.op)
    return out


def axis_of(ctx: KernelContext, axis: Any, ndim: int, what: str = "axis") -> int:
    """The axis input of a kernel counted from the front; InvalidArgumentError if it is out of range."""
    value = int(axis)
    if not -ndim <= value < ndim:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: {what} {value} is outside [-{ndim}, {ndim}).", op=ctx.op)
    return value + ndim if value < 0 else value


def either(new: str, value: Any, old: str, old_value: Any) -> Any:
    """The value of an argument that has an older name too; ValueError if both or neither are given."""
    if value is not None and old_value is not None:
        raise ValueError(f"cannot specify both {new!r} and {old!r} (its older name).")
    if value is None and old_value is None:
        raise ValueError(f"must specify the argument {new!r}.")
    return old_value if value is None else value
