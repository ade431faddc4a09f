"""``tf.linalg``: linear algebra, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.array_ops import transpose
from mpirt.ops.clip_ops import norm
from mpirt.ops.matmul_ops import matmul
from mpirt.ops.moments_ops import l2_normalize
from mpirt.ops.range_ops import diag, diag_part, eye

__all__ = [
    "diag", "diag_part", "eye", "l2_normalize", "matmul", "norm", "transpose",
]  # fmt: skip
