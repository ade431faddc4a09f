"""Gradients that touch few rows: values, the rows they belong to, and the shape of the whole.

Rows may repeat; their values then add up. Turned into a dense tensor only where an operation needs one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mpirt.dtypes import DType, int32
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.ops.apply import apply_op


class IndexedSlicesValue(NamedTuple):
    """Value of ``IndexedSlices``: what is fetched or fed for it."""

    values: Any
    indices: Any
    dense_shape: Any


class IndexedSlices:
    """Rows ``values[i]`` of row number ``indices[i]`` of a tensor of shape ``dense_shape``.

    Parameters
    ----------
    values : Tensor, shape [N, ...]
    indices : Tensor, shape [N], int32 or int64
    dense_shape : Tensor, shape of the whole, or None if not known
    """

    def __init__(self, values: Tensor, indices: Tensor, dense_shape: Tensor | None = None) -> None:
        self.values = values
        self.indices = indices
        self.dense_shape = dense_shape

    @property
    def name(self) -> str:
        """Name of ``values``."""
        return self.values.name

    @property
    def op(self) -> Operation:
        """Operation that makes ``values``."""
        return self.values.op

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.values.dtype

    @property
    def device(self) -> str:
        """Device asked for by ``values``."""
        return self.values.device

    @property
    def graph(self) -> Any:
        """The graph of ``values``."""
        return self.values.graph

    def _as_tensor(self, as_ref: bool) -> Tensor:
        """The whole tensor, repeated rows added up; ValueError if ``dense_shape`` is not known."""
        if self.dense_shape is None:
            raise ValueError(f"can't make a dense tensor of IndexedSlices {self.name!r} without dense_shape.")
        rows = apply_op("StridedSlice", self.dense_shape, [0], [1], [1], shrink_axis_mask=1)
        dense: Tensor = apply_op("UnsortedSegmentSum", self.values, self.indices, rows)
        return dense

    def __repr__(self) -> str:
        return f"<IndexedSlices values={self.values!r} indices={self.indices!r} dense_shape={self.dense_shape!r}>"


def summed_rows(slices: IndexedSlices) -> IndexedSlices:
    """The same with each row named once; summed where ``slices`` is, so that no row is sent twice from there."""
    graph = get_default_graph()
    with graph.colocate_with(slices.values.op, ignore_existing=True), graph.name_scope("summed_rows"):
        unique, positions = apply_op("Unique", slices.indices, out_idx=int32)
        count = apply_op("StridedSlice", apply_op("Shape", unique), [0], [1], [1], shrink_axis_mask=1)
        values = apply_op("UnsortedSegmentSum", slices.values, positions, count)
    return IndexedSlices(values, unique, slices.dense_shape)
