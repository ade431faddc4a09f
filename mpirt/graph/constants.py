"""Values that are known while the graph is built: what shape functions may look at.

Only operations that shapes and axes are made with are followed (Const, Shape, Pack, slices of them, ...) and only small
values; they are computed by the operations' own CPU kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mpirt import errors
from mpirt.graph.shapes import Shape, is_static

if TYPE_CHECKING:
    from mpirt.graph.op_def import Kernel
    from mpirt.graph.operation import Operation, Tensor

_MAX_ELEMENTS = 1 << 16  # larger values are data, not shapes
_MAX_DEPTH = 32


def value(tensor: Tensor, depth: int = 0) -> np.ndarray[Any, Any] | None:
    """The value of ``tensor`` if the graph fixes it, else None. Not to be changed."""
    op = tensor.op
    kind = op.type
    if kind == "Const":
        constant: np.ndarray[Any, Any] = op.attrs["value"]
        return constant
    if depth > _MAX_DEPTH or op.control_inputs or not (tensor.dtype.is_integer or tensor.static_shape == ()):
        return None
    if kind in _OF_SHAPE:
        shape = op.inputs[tensor.value_index if kind == "ShapeN" else 0].static_shape
        known = shape is not None if kind == "Rank" else is_static(shape)
        return np.asarray(_OF_SHAPE[kind](shape), tensor.dtype.np_dtype) if known else None
    kernel = op.definition.kernels.get("CPU")
    if kernel is None or op.definition.stateful or not op.inputs:
        return None
    inputs = []
    for source in op.inputs:
        known_value = value(source, depth + 1)
        if known_value is None or known_value.size > _MAX_ELEMENTS:
            return None
        inputs.append(known_value)
    if kind == "Fill" and np.prod(inputs[0]) > _MAX_ELEMENTS:
        return None
    return _evaluate(op, kernel, inputs, tensor.value_index)


_OF_SHAPE: dict[str, Callable[[Any], Any]] = {
    "Shape": tuple,
    "ShapeN": tuple,
    "Rank": len,
    "Size": lambda shape: np.prod(shape, dtype=np.int64),
}


def _evaluate(op: Operation, kernel: Kernel, inputs: list[np.ndarray[Any, Any]], index: int) -> np.ndarray[Any, Any] | None:
    """One output of a stateless operation on known values; None if its kernel refuses them."""
    try:
        if kernel.direct:
            result = getattr(np, kernel.direct)(*inputs)
        else:
            assert kernel.function is not None
            result = kernel.function(_Context(op), *inputs, **{name: op.attrs[name] for name in kernel.attrs})
    except (errors.OpError, ValueError, TypeError, ArithmeticError, LookupError):
        return None  # the step itself will say what is wrong
    outputs = op.definition.outputs
    single = len(outputs) == 1 and not outputs[0].is_list
    return np.asarray(result if single else result[index])


class _Context:
    """All that the kernel of a stateless operation may ask for."""

    xp = np

    def __init__(self, op: Operation) -> None:
        self.op = op


def shape(tensor: Tensor, depth: int = 0) -> Shape:
    """The shape that the integer vector ``tensor`` spells; unknown entries are None, an unknown length gives None."""
    known = value(tensor)
    if known is not None:
        return tuple(None if d < 0 else int(d) for d in np.atleast_1d(known).tolist())
    length = tensor.static_shape
    unknown: Shape = None if length is None or not length or length[0] is None else (None,) * length[0]
    op = tensor.op
    if depth > _MAX_DEPTH or op.control_inputs:
        return unknown
    if op.type in ("Shape", "ShapeN"):
        return op.inputs[tensor.value_index].static_shape
    if op.type in ("Identity", "Cast"):
        return shape(op.inputs[0], depth + 1)
    if op.type == "Pack" and op.attrs["axis"] == 0:
        return tuple(_scalar(t, depth) for t in op.inputs)
    if op.type == "ConcatV2":
        parts = [shape(t, depth + 1) for t in op.inputs[:-1]]
        return None if any(p is None for p in parts) else tuple(d for p in parts for d in p)  # type: ignore[union-attr]
    if op.type == "StridedSlice":
        source, args = shape(op.inputs[0], depth + 1), [value(t) for t in op.inputs[1:]]
        plain = not (op.attrs["shrink_axis_mask"] or op.attrs["new_axis_mask"])
        if source is not None and plain and all(a is not None and a.size == 1 for a in args):
            index = slice_index(op.attrs, *args)
            return tuple(np.array(source, object)[index].tolist())
    return unknown


def _scalar(tensor: Tensor, depth: int) -> int | None:
    """One entry of a shape vector."""
    known = value(tensor)
    if known is not None:
        size = int(known.reshape(()))
        return None if size < 0 else size
    op = tensor.op
    if op.type == "StridedSlice" and op.attrs["shrink_axis_mask"] == 1:
        source, begin = shape(op.inputs[0], depth + 1), value(op.inputs[1])
        if source is not None and begin is not None and begin.size == 1 and -len(source) <= int(begin[0]) < len(source):
            return source[int(begin[0])]
    return None


def slice_index(attrs: dict[str, Any], begin: Any, end: Any, strides: Any) -> tuple[Any, ...]:
    """The numpy index of a StridedSlice: slices, ints, ``None`` and ``...`` from its vectors and bit masks."""
    index: list[Any] = []
    for i, (b, e, s) in enumerate(zip(begin.tolist(), end.tolist(), strides.tolist(), strict=True)):
        bit = 1 << i
        if attrs["ellipsis_mask"] & bit:
            index.append(Ellipsis)
        elif attrs["new_axis_mask"] & bit:
            index.append(None)
        elif attrs["shrink_axis_mask"] & bit:
            index.append(b)
        else:
            index.append(slice(None if attrs["begin_mask"] & bit else b, None if attrs["end_mask"] & bit else e, s))
    return tuple(index)
