"""What ``x[...]`` means: Python's slices, numbers and ``...``, ``tf.newaxis``, tensors as numbers, boolean masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.graph import Tensor
from mpirt.graph.shapes import Dimension
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor, set_operator
from mpirt.ops.gather_ops import boolean_mask

__all__ = ["newaxis"]

newaxis = None  # TensorFlow's name, as numpy's


def getitem(x: Any, key: Any) -> Tensor:
    """``x[key]``.

    Parameters
    ----------
    x : Tensor
    key : an int, a scalar integer tensor, a slice of these, ``...``, ``tf.newaxis``, or a tuple of such; or a boolean mask

    Raises
    ------
    TypeError
        If the key is anything else; lists of indices need ``tf.gather``.
    IndexError, ValueError
        If it can't fit the static shape of ``x``.
    """
    if _is_mask(key):
        return boolean_mask(x, key)
    keys = key if isinstance(key, tuple) else (key,)
    begin: list[Any] = []
    end: list[Any] = []
    strides: list[Any] = []
    begin_mask = end_mask = ellipsis_mask = new_axis_mask = shrink_axis_mask = 0
    for i, item in enumerate(keys):
        bit = 1 << i
        b: Any = 0
        e: Any = 0
        s: Any = 1
        if item is Ellipsis:
            ellipsis_mask |= bit
        elif item is None:
            new_axis_mask |= bit
        elif isinstance(item, slice):
            b, e, s = (None if v is None else _number(v, key) for v in (item.start, item.stop, item.step))
            begin_mask |= bit * (b is None)
            end_mask |= bit * (e is None)
            b, e, s = 0 if b is None else b, 0 if e is None else e, 1 if s is None else s
        else:
            # The end isn't read where a dimension is dropped; for a number it is what Python would write.
            b = _number(item, key)
            e = 0 if is_tensor(b) else b + 1
            shrink_axis_mask |= bit
        begin.append(b)
        end.append(e)
        strides.append(s)
    masks = {
        "begin_mask": begin_mask, "end_mask": end_mask, "ellipsis_mask": ellipsis_mask, "new_axis_mask": new_axis_mask,
        "shrink_axis_mask": shrink_axis_mask,
    }  # fmt: skip
    out: Tensor = apply_op("StridedSlice", x, *_vectors(begin, end, strides), name="strided_slice", **masks)
    return out


def _is_mask(key: Any) -> bool:
    if isinstance(key, np.ndarray):
        return bool(key.dtype == np.bool_)
    return is_tensor(key) and convert_to_tensor(key).dtype.base_dtype is dtypes.bool


def _number(item: Any, key: Any) -> Any:
    """A Python int or a scalar integer tensor."""
    if isinstance(item, Dimension):
        item = item.value
    if is_tensor(item):
        tensor = convert_to_tensor(item)
        if tensor.dtype.is_integer and tensor.static_shape in (None, ()):
            return tensor
    elif (
        isinstance(item, np.ndarray)
        and item.ndim == 0
        and item.dtype.kind in "iu"
        or isinstance(item, int | np.integer)
        and not isinstance(item, bool)
    ):
        return int(item)
    raise TypeError(
        "Only integers, slices (`:`), ellipsis (`...`), tf.newaxis (`None`) and scalar integer tensors are valid indices,"
        f" got {item!r} in {key!r}. For several indices along a dimension use tf.gather."
    )


def _vectors(*lists: list[Any]) -> list[Any]:
    """The index vectors, all of one type: int64 if a tensor is, or if a number needs it."""
    items = [v for values in lists for v in values]
    tensors = [v for v in items if is_tensor(v)]
    wide = any(v.dtype.base_dtype is not dtypes.int32 for v in tensors) or any(
        not -(2**31) <= v < 2**31 for v in items if isinstance(v, int)
    )
    dtype = dtypes.int64 if wide else dtypes.int32
    out: list[Any] = []
    for values in lists:
        if any(is_tensor(v) for v in values):
            out.append(apply_op("Pack", [_cast(v, dtype) for v in values]))
        else:
            out.append(np.array(values, dtype.np_dtype))
    return out


def _cast(value: Any, dtype: dtypes.DType) -> Tensor:
    tensor = convert_to_tensor(value, None if is_tensor(value) else dtype)
    if tensor.dtype.base_dtype is not dtype:
        tensor = apply_op("Cast", tensor, DstT=dtype)
    return tensor


set_operator("getitem", getitem)
