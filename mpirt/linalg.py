"""``tf.linalg``: linear algebra, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.clip_ops import norm
from mpirt.ops.matmul_ops import matmul
from mpirt.ops.moments_ops import l2_normalize
from mpirt.ops.range_ops import eye

__all__ = [
    "eye", "l2_normalize", "matmul", "norm",
]  # fmt: skip
