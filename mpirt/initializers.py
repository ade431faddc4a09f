"""``tf.initializers``: initial values of variables, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.init_ops import (
    constant_initializer as constant, glorot_normal_initializer as glorot_normal,
    glorot_uniform_initializer as glorot_uniform, he_normal, he_uniform, identity_initializer as identity, lecun_normal,
    lecun_uniform, ones_initializer as ones, random_normal_initializer as random_normal,
    random_uniform_initializer as random_uniform, truncated_normal_initializer as truncated_normal,
    variance_scaling_initializer as variance_scaling, zeros_initializer as zeros,
)  # fmt: skip

__all__ = [
    "constant", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "identity", "lecun_normal", "lecun_uniform",
    "ones", "random_normal", "random_uniform", "truncated_normal", "variance_scaling", "zeros",
]  # fmt: skip
