"""``tf.debugging``: checks of values, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.check_ops import assert_equal
from mpirt.ops.identity_ops import check_numerics
from mpirt.ops.unary_ops import is_finite

__all__ = [
    "assert_equal", "check_numerics", "is_finite",
]  # fmt: skip
