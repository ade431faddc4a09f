"""Tensors of which only some elements are kept: their coordinates, their values, and the shape of the whole.

A SparseTensor is three tensors, and nothing else in the graph: it is placed, fed, fetched and sent through these.
Neighbours: ``sparse_ops`` computes with sparse tensors, ``embedding_ops`` looks up the ids in one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mpirt import dtypes
from mpirt.dtypes import DType, int64
from mpirt.graph import constants
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.graph.shapes import Shape, TensorShape, as_shape, merge, with_rank
from mpirt.ops.apply import convert_to_tensor, is_tensor
from mpirt.ops.identity_ops import placeholder, placeholder_with_default

__all__ = ["SparseTensor", "SparseTensorValue", "convert_to_tensor_or_sparse_tensor", "sparse_placeholder"]


class SparseTensorValue(NamedTuple):
    """Value of a ``SparseTensor``: what is fetched or fed for it."""

    indices: Any
    values: Any
    dense_shape: Any


class SparseTensor:
    """Element ``values[i]`` at the coordinates ``indices[i]`` of a tensor of shape ``dense_shape``, else 0.

    Parameters
    ----------
    indices : int64, shape [N, ndim]; most operations want them in order, as ``sparse_reorder`` puts them
    values : shape [N]
    dense_shape : int64, shape [ndim]

    Raises
    ------
    ValueError
        If the static shapes of the three don't fit each other.
    """

    def __init__(self, indices: Any, values: Any, dense_shape: Any) -> None:
        with get_default_graph().name_scope("SparseTensor"):
            self.indices = convert_to_tensor(indices, int64, "indices")
            self.values = convert_to_tensor(values, name="values")
            self.dense_shape = convert_to_tensor(dense_shape, int64, "dense_shape")
        coordinates = with_rank(self.indices.static_shape, 2, "indices")
        count = with_rank(self.values.static_shape, 1, "values")
        ndim = with_rank(self.dense_shape.static_shape, 1, "dense_shape")
        merge(coordinates, count + ndim)  # [N, ndim]
        self._static = constants.shape(self.dense_shape)

    @classmethod
    def from_value(cls, sparse_tensor_value: Any) -> SparseTensor:
        """The constant of a SparseTensorValue or (indices, values, dense_shape); a SparseTensor itself."""
        if isinstance(sparse_tensor_value, SparseTensor):
            return sparse_tensor_value
        if not isinstance(sparse_tensor_value, tuple) or len(sparse_tensor_value) != 3:
            raise TypeError(f"Argument `sparse_tensor_value` must be a SparseTensor or SparseTensorValue: {sparse_tensor_value!r}")
        return cls(*sparse_tensor_value)

    def with_values(self, new_values: Any) -> SparseTensor:
        """Other values at the same coordinates."""
        return SparseTensor(self.indices, new_values, self.dense_shape)

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.values.dtype

    @property
    def shape(self) -> TensorShape:
        """What is known of the shape while the graph is built."""
        return TensorShape(self._static)

    def get_shape(self) -> TensorShape:
        """What is known of the shape (TensorFlow 1's spelling)."""
        return self.shape

    def set_shape(self, shape: Any) -> None:
        """Add what is known of the shape; ValueError if it contradicts what was known."""
        self._static = merge(self._static, as_shape(shape))

    @property
    def op(self) -> Operation:
        """Operation that makes ``values``."""
        return self.values.op

    @property
    def graph(self) -> Graph:
        """The graph of the three tensors."""
        return self.values.graph

    def consumers(self) -> list[Operation]:
        """Operations that use one of the three tensors."""
        found = (op for part in (self.indices, self.values, self.dense_shape) for op in part.consumers())
        return list(dict.fromkeys(found))

    def eval(self, feed_dict: Any = None, session: Any = None) -> Any:
        """Value in ``session`` or the default session: a SparseTensorValue."""
        parts = [part.eval(feed_dict, session) for part in (self.indices, self.values, self.dense_shape)]
        return SparseTensorValue(*parts)

    def __repr__(self) -> str:
        return f"<mpirt.SparseTensor {self.values.name!r} shape={self.shape} dtype={self.dtype.name}>"


def sparse_placeholder(dtype: Any, shape: Any = None, name: str | None = None) -> SparseTensor:
    """A sparse tensor that is fed to ``Session.run`` as a SparseTensorValue or tuple (indices, values, dense_shape).

    Parameters
    ----------
    dtype : element type
    shape : sizes, None for an unknown one (or a tensor); None if any shape may be fed
    name : prefix of the names of the three placeholders, ``name/indices`` and so on
    """
    def named(part: str) -> str | None:
        return None if name is None else f"{name}/{part}"

    known: Shape = None
    if shape is None:
        ndim: int | None = None
        dense_shape = placeholder(int64, [None], named("shape"))
    else:
        if not is_tensor(shape):
            known = tuple(None if size == -1 else size for size in as_shape(shape) or ())
            shape = [-1 if size is None else size for size in known]
        default = convert_to_tensor(shape, int64, named("shape_default"))
        (ndim,) = with_rank(default.static_shape, 1, "shape")
        dense_shape = placeholder_with_default(default, default.static_shape, named("shape"))
    values, indices = placeholder(dtype, [None], named("values")), placeholder(int64, [None, ndim], named("indices"))
    made = SparseTensor(indices, values, dense_shape)
    made.set_shape(known)
    return made


def convert_to_tensor_or_sparse_tensor(value: Any, dtype: Any = None, name: str | None = None) -> Tensor | SparseTensor:
    """A SparseTensor of a sparse value, else what ``convert_to_tensor`` gives.

    Raises
    ------
    RuntimeError
        If a sparse value isn't of ``dtype`` (TensorFlow's class for it).
    """
    if isinstance(value, SparseTensorValue):
        value = SparseTensor.from_value(value)
    if not isinstance(value, SparseTensor):
        return convert_to_tensor(value, dtype, name)
    if dtype is not None and dtypes.as_dtype(dtype).base_dtype is not value.dtype.base_dtype:
        raise RuntimeError(f"Sparse dtype mismatch. Requested: {dtypes.as_dtype(dtype).name}, Actual: {value.dtype.name}")
    return value
