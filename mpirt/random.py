"""``tf.random``: random numbers, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.random_ops import (
    categorical,
    multinomial,
    truncated_normal,
)  # fmt: skip
from mpirt.ops.random_ops import (
    random_normal as normal,
)
from mpirt.ops.random_ops import (
    random_shuffle as shuffle,
)
from mpirt.ops.random_ops import (
    random_uniform as uniform,
)
from mpirt.ops.random_seed import get_seed, set_random_seed

__all__ = [
    "categorical", "get_seed", "multinomial", "normal", "set_random_seed", "shuffle", "truncated_normal", "uniform",
]  # fmt: skip
