"""Values that are known while the graph is built: what shape functions may look at.

Only operations that shapes and axes are made with are followed (Const, Shape, Pack, slices of them, ...) and only small
values; they are computed by the operations' own CPU kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpirt import errors
from mpirt.graph.shapes import Shape, is_static, num_elements

if TYPE_CHECKING:
    from mpirt.graph.operation import Operation, Tensor

_MAX_ELEMENTS = 1 << 16  # larger values are data, not shapes
_MAX_DEPTH = 32


def value(tensor: Tensor) -> np.ndarray[Any, Any] | None:
    """The value of ``tensor`` if the graph fixes it, else None. Not to be changed."""
    if tensor.op.type == "Const":
        constant: np.ndarray[Any, Any] = tensor.op.attrs["value"]
        return constant
    return _value(tensor, {}, 0)


def _value(tensor: Tensor, done: dict[Operation, Sequence[Any] | None], depth: int) -> np.ndarray[Any, Any] | None:
    """``done`` holds the outputs of operations that were looked at already: many may share one input."""
    op = tensor.op
    if op not in done:
        done[op] = _outputs(op, done, depth)
    outputs = done[op]
    return None if outputs is None else outputs[tensor.value_index]


def _outputs(op: Operation, done: dict[Operation, Sequence[Any] | None], depth: int) -> Sequence[Any] | None:
    if op.type == "Const":
        return [op.attrs["value"]]
    if op.control_inputs:
        return None
    if op.type == "_Arg":  # of a body: the captured tensor, if it is one
        outer = op.graph.outer_tensor(op.outputs[0])
        return None if outer is None else [_value(outer, done, depth)]
    if op.type in ("Shape", "ShapeN", "Rank", "Size"):
        return [_of_shape(op.type, i.static_shape, o.dtype.np_dtype) for i, o in zip(op.inputs, op.outputs, strict=True)]
    if op.type not in FOLDED or depth >= _MAX_DEPTH:
        return None
    if any((num_elements(t.static_shape) or 0) > _MAX_ELEMENTS for t in op.outputs):
        return None
    inputs = [_value(t, done, depth + 1) for t in op.inputs]
    if any(v is None or v.size > _MAX_ELEMENTS for v in inputs):
        return None
    return computed(op, inputs)


def _of_shape(kind: str, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    if kind == "Rank":
        return None if shape is None else np.array(len(shape), dtype)
    if shape is None or not is_static(shape):
        return None
    return np.array(num_elements(shape) if kind == "Size" else shape, dtype)


FOLDED = frozenset((
    "Abs", "Add", "AddV2", "BroadcastArgs", "BroadcastGradientArgs", "BroadcastTo", "Cast", "Ceil", "Concat", "ConcatOffset",
    "ConcatV2", "DynamicPartition", "DynamicStitch", "Equal", "ExpandDims", "Fill", "Floor", "FloorDiv", "FloorMod", "Gather",
    "GatherV2", "Greater", "GreaterEqual", "Identity", "InvertPermutation", "Less", "LessEqual", "ListDiff", "LogicalAnd", "LogicalNot",
    "LogicalOr", "Max", "Maximum", "Min", "Minimum", "Mul", "Neg", "NotEqual", "OnesLike", "Pack", "ParallelDynamicStitch",
    "Prod", "Range", "RealDiv", "Reshape", "ReverseV2", "Select", "SelectV2", "Slice", "Split", "SplitV", "Squeeze",
    "StridedSlice", "Sub", "Sum", "Tile", "Transpose", "TruncateDiv", "Unpack", "ZerosLike",
))  # fmt: skip


class _Context:
    """KernelContext of an operation whose value is computed while building."""

    xp = np

    def __init__(self, op: Operation) -> None:
        self.op = op


def computed(op: Operation, inputs: Sequence[Any]) -> Sequence[Any] | None:
    """The outputs of an operation in ``FOLDED``, by its own CPU kernel; None if it refuses, which the step will say better."""
    kernel = op.definition.kernels.get("CPU")
    if kernel is None:
        return None
    try:
        with np.errstate(all="ignore"):
            if kernel.function is None:
                result = getattr(np, kernel.direct)(*inputs)
            else:
                result = kernel.function(_Context(op), *inputs, **{name: op.attrs[name] for name in kernel.attrs})
    except (errors.OpError, ValueError, TypeError, IndexError, ArithmeticError):
        return None
    single = len(op.outputs) == 1 and not op.definition.outputs[0].is_list
    return [np.asarray(r) for r in ([result] if single else result)]


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
    outer = op.graph.outer_tensor(tensor)
    if outer is not None:
        return shape(outer, depth + 1)
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


def slice_index(attrs: Mapping[str, Any], begin: Any, end: Any, strides: Any) -> tuple[Any, ...]:
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
