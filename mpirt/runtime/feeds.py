"""What ``run`` is given: feed keys as tensors, feed values as arrays of the right type and shape.

A SparseTensor or IndexedSlices is fed through the tensors that it is made of.

Nothing is lost in silence: a float for an int placeholder, a number too large for its type, a complex one for a real type
are refused (TensorFlow truncates or wraps them).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mpirt.dtypes import DType
from mpirt.graph.graph import Graph, Tensor
from mpirt.graph.shapes import compatible, text
from mpirt.ops.indexed_slices import IndexedSlices, IndexedSlicesValue
from mpirt.ops.sparse_tensor import SparseTensor, SparseTensorValue


def feed_tensors(graph: Graph, feed_dict: Mapping[Any, Any]) -> dict[Tensor, Any]:
    """The feeds by tensor.

    Raises
    ------
    TypeError
        If a key is no tensor (or its name, or a variable) of the session's graph.
    """
    feeds: dict[Tensor, Any] = {}
    for whole, given in feed_dict.items():
        if whole.__class__ is Tensor and whole.op.graph is graph:  # nearly always
            feeds[whole] = given
            continue
        for key, value in _parts(whole, given):
            try:
                tensor = graph.as_graph_element(key, allow_operation=False)
            except (TypeError, ValueError, KeyError) as error:
                raise TypeError(f"Cannot interpret feed_dict key {key!r} as Tensor: {error.args[0]}") from None
            assert isinstance(tensor, Tensor)
            feeds[tensor] = value
    return feeds


def _parts(key: Any, value: Any) -> Iterable[tuple[Any, Any]]:
    """``key`` and ``value``, or those of the tensors that ``key`` is made of."""
    parts: tuple[Tensor | None, ...]
    if isinstance(key, SparseTensor):
        names, parts = SparseTensorValue._fields, (key.indices, key.values, key.dense_shape)
    elif isinstance(key, IndexedSlices):
        names, parts = IndexedSlicesValue._fields, (key.values, key.indices, key.dense_shape)
    else:
        return [(key, value)]
    if not isinstance(value, tuple | list) or len(value) not in (3, len(parts) - parts.count(None)):
        raise TypeError(f"the value of the feed {key!r} must be a tuple of {', '.join(names)}, not {reprlib.repr(value)}.")
    return [(part, given) for part, given in zip(parts, value, strict=False) if part is not None]


def feed_array(tensor: Tensor, value: Any) -> np.ndarray[Any, Any]:
    """``value`` as a read-only array that can stand for ``tensor``.

    Raises
    ------
    TypeError
        If it is a tensor or None, or conversion to the tensor's type would lose something.
    ValueError
        If its shape doesn't fit, or it is no array of that type at all.
    """
    dtype = tensor.dtype.base_dtype
    if value.__class__ is np.ndarray and value.dtype == dtype.np_dtype and value.shape == tensor.static_shape and dtype.kind != "O":
        array: np.ndarray[Any, Any] = value.view()
        array.setflags(write=False)
        return array
    if isinstance(value, Tensor) or hasattr(value, "_as_tensor"):
        raise TypeError(
            f"The value of a feed cannot be a tensor: {value!r} was given for {tensor.name!r}."
            " Acceptable feed values include Python scalars, strings, lists and numpy ndarrays."
        )
    if value is None:
        raise TypeError(f"the value of the feed {tensor.name!r} is None.")
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else _from_python(tensor, value, dtype)
    if array.dtype != dtype.np_dtype or dtype.kind == "O":
        array = _convert(tensor, array, dtype)
    if not compatible(tensor.static_shape, array.shape):
        raise ValueError(
            f"Cannot feed value of shape {array.shape} for Tensor {tensor.name!r}, which has shape {text(tensor.static_shape)}"
        )
    array = array.view()  # a view: whoever keeps it knows that the memory is the user's
    array.flags.writeable = False
    return array


def _from_python(tensor: Tensor, value: Any, dtype: DType) -> np.ndarray[Any, Any]:
    try:
        return np.array(value, object) if dtype.kind == "O" else np.array(value)
    except Exception as error:  # the value's own methods may raise anything
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"Cannot feed {reprlib.repr(value)} for Tensor {tensor.name!r} of type {dtype.name}: {error}") from None


def _convert(tensor: Tensor, array: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    if dtype.kind == "O":
        return _strings(tensor, array)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"Cannot feed a value of type {array.dtype} for Tensor {tensor.name!r} of type {dtype.name}.")
    unsigned = array.dtype.kind == "i" and dtype.kind == "u" and not np.any(array < 0)
    if array.size and not unsigned and not np.can_cast(array.dtype, dtype.np_dtype, "same_kind"):
        raise TypeError(
            f"Cannot feed a value of type {array.dtype} for Tensor {tensor.name!r} of type {dtype.name}: something would be lost."
            f" Convert it yourself if that is meant, e.g. value.astype({dtype.name!r})."
        )
    if dtype.is_integer and array.size and array.dtype.kind in "iu" and (array.min() < dtype.min or array.max() > dtype.max):
        raise TypeError(
            f"Cannot feed Tensor {tensor.name!r} of type {dtype.name}: the values {array.min()} to {array.max()} don't fit into it."
        )
    return array.astype(dtype.np_dtype)


def _strings(tensor: Tensor, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        if not isinstance(item, str | bytes):
            raise TypeError(f"Cannot feed {item!r} for Tensor {tensor.name!r} of type string.")
        out[index] = item.encode() if isinstance(item, str) else bytes(item)
    return out
