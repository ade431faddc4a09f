"""Values that are known while the graph is built: what shape functions may look at.

Only operations that build shapes are followed (Const, Shape, Pack, slices of them, ...), never a user's computation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpirt.graph.shapes import Shape, is_static

if TYPE_CHECKING:
    from mpirt.graph.graph import Tensor

_MAX_ELEMENTS = 1 << 16  # larger values are data, not shapes
_MAX_DEPTH = 32


def value(tensor: Tensor, depth: int = 0) -> np.ndarray[Any, Any] | None:
    """The value of ``tensor`` if the graph fixes it, else None. Not to be changed."""
    op = tensor.op
    kind = op.type
    if kind == "Const":
        constant: np.ndarray[Any, Any] = op.attrs["value"]
        return constant
    if depth > _MAX_DEPTH or op.control_inputs:
        return None
    if kind == "Shape":
        shape = op.inputs[0].static_shape
        return np.array(shape, op.outputs[0].dtype.np_dtype) if is_static(shape) else None
    if kind == "Rank":
        shape = op.inputs[0].static_shape
        return None if shape is None else np.array(len(shape), np.int32)
    if kind == "Size":
        shape = op.inputs[0].static_shape
        return np.array(np.prod(shape, dtype=np.int64), op.outputs[0].dtype.np_dtype) if is_static(shape) else None  # type: ignore[arg-type]
    if kind not in _FOLDED:
        return None
    inputs = [value(t, depth + 1) for t in op.inputs]
    if any(v is None or v.size > _MAX_ELEMENTS for v in inputs):
        return None
    return _fold(kind, op.attrs, inputs, tensor)  # type: ignore[arg-type]


_FOLDED = frozenset(("Cast", "Identity", "Pack", "ConcatV2", "Fill", "Range", "Add", "AddV2", "Sub", "Mul", "FloorDiv",
                     "Maximum", "Minimum", "StridedSlice", "Prod", "Reshape", "ExpandDims", "Squeeze"))  # fmt: skip


def _fold(kind: str, attrs: dict[str, Any], v: list[np.ndarray[Any, Any]], tensor: Tensor) -> np.ndarray[Any, Any] | None:
    dtype = tensor.dtype.base_dtype.np_dtype
    if kind == "Cast":
        return v[0].astype(dtype)
    if kind == "Identity":
        return v[0]
    if kind == "Pack":
        return np.stack(v, attrs["axis"])
    if kind == "ConcatV2":
        return np.concatenate(v[:-1], int(v[-1]))
    if kind == "Fill":
        return np.full(v[0], v[1]) if np.prod(v[0]) <= _MAX_ELEMENTS else None
    if kind == "Range":
        return np.arange(v[0], v[1], v[2], dtype=dtype)
    if kind == "Prod":
        return np.asarray(np.prod(v[0], axis=tuple(np.atleast_1d(v[1]).tolist()), keepdims=attrs["keep_dims"], dtype=dtype))
    if kind == "Reshape":
        return v[0].reshape(v[1])
    if kind == "ExpandDims":
        return np.expand_dims(v[0], int(v[1].reshape(())))
    if kind == "Squeeze":
        return np.squeeze(v[0], tuple(attrs["squeeze_dims"]) or None)
    if kind == "StridedSlice":
        return np.asarray(v[0][slice_index(attrs, v[1], v[2], v[3])])
    function = {"Add": np.add, "AddV2": np.add, "Sub": np.subtract, "Mul": np.multiply, "FloorDiv": np.floor_divide,
                "Maximum": np.maximum, "Minimum": np.minimum}[kind]  # fmt: skip
    if kind == "FloorDiv" and not np.all(v[1]):
        return None
    return np.asarray(function(v[0], v[1]), dtype)


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
    if op.type == "Shape":
        return op.inputs[0].static_shape
    if op.type in ("Identity", "Cast"):
        return shape(op.inputs[0], depth + 1)
    if op.type == "Pack" and op.attrs["axis"] == 0:
        return tuple(_scalar(t, depth) for t in op.inputs)
    if op.type == "ConcatV2":
        parts = [shape(t, depth + 1) for t in op.inputs[:-1]]
        return None if any(p is None for p in parts) else tuple(d for p in parts for d in p)  # type: ignore[union-attr]
    if op.type == "StridedSlice":
        source, args = shape(op.inputs[0], depth + 1), [value(t) for t in op.inputs[1:]]
        if source is not None and all(a is not None and a.size == 1 for a in args) and not op.attrs["shrink_axis_mask"]:
            index = slice_index(op.attrs, *args)  # type: ignore[arg-type]
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
