"""``tf.linalg``: linear algebra, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.array_ops import matrix_transpose
from mpirt.ops.array_ops import matrix_transpose as transpose
from mpirt.ops.clip_ops import global_norm, norm
from mpirt.ops.matmul_ops import matmul, tensordot
from mpirt.ops.matrix_diag_ops import matrix_band_part as band_part
from mpirt.ops.matrix_diag_ops import matrix_diag as diag
from mpirt.ops.matrix_diag_ops import matrix_diag_part as diag_part
from mpirt.ops.matrix_diag_ops import matrix_set_diag as set_diag
from mpirt.ops.moments_ops import l2_normalize
from mpirt.ops.range_ops import diag as tensor_diag
from mpirt.ops.range_ops import diag_part as tensor_diag_part
from mpirt.ops.range_ops import eye

__all__ = [
    "band_part", "diag", "diag_part", "eye", "global_norm", "l2_normalize", "matmul", "matrix_transpose", "norm", "set_diag",
    "tensor_diag", "tensor_diag_part", "tensordot", "transpose",
]  # fmt: skip
