"""``tf.random``: random numbers, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.random_ops import (
    categorical, multinomial, random_normal as normal, random_shuffle as shuffle, random_uniform as uniform,
    truncated_normal,
)  # fmt: skip
from mpirt.ops.random_seed import set_random_seed

__all__ = [
    "categorical", "multinomial", "normal", "set_random_seed", "shuffle", "truncated_normal", "uniform",
]  # fmt: skip
