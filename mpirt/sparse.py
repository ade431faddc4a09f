"""``tf.sparse``: sparse tensors, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.sparse_ops import from_dense
from mpirt.ops.sparse_ops import sparse_fill_empty_rows as fill_empty_rows
from mpirt.ops.sparse_ops import sparse_mask as mask
from mpirt.ops.sparse_ops import sparse_reorder as reorder
from mpirt.ops.sparse_ops import sparse_reshape as reshape
from mpirt.ops.sparse_ops import sparse_retain as retain
from mpirt.ops.sparse_ops import sparse_tensor_dense_matmul as matmul
from mpirt.ops.sparse_ops import sparse_tensor_dense_matmul as sparse_dense_matmul
from mpirt.ops.sparse_ops import sparse_tensor_to_dense as to_dense
from mpirt.ops.sparse_segment_ops import sparse_segment_mean as segment_mean
from mpirt.ops.sparse_segment_ops import sparse_segment_sqrt_n as segment_sqrt_n
from mpirt.ops.sparse_segment_ops import sparse_segment_sum as segment_sum
from mpirt.ops.sparse_tensor import SparseTensor
from mpirt.ops.sparse_tensor import sparse_placeholder as placeholder

__all__ = [
    "SparseTensor", "fill_empty_rows", "from_dense", "mask", "matmul", "placeholder", "reorder", "reshape", "retain",
    "segment_mean", "segment_sqrt_n", "segment_sum", "sparse_dense_matmul", "to_dense",
]  # fmt: skip
