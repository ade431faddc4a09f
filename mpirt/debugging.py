"""``tf.debugging``: checks of values, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.check_ops import (
    assert_equal,
    assert_greater,
    assert_greater_equal,
    assert_integer,
    assert_less,
    assert_less_equal,
    assert_near,
    assert_negative,
    assert_non_negative,
    assert_non_positive,
    assert_none_equal,
    assert_positive,
    assert_rank,
    assert_rank_at_least,
    assert_rank_in,
    assert_same_float_dtype,
    assert_scalar,
    assert_type,
    is_numeric_tensor,
)  # fmt: skip
from mpirt.ops.control_flow_ops import Assert
from mpirt.ops.identity_ops import check_numerics
from mpirt.ops.unary_ops import is_finite, is_inf, is_nan

__all__ = [
    "Assert", "assert_equal", "assert_greater", "assert_greater_equal", "assert_integer", "assert_less", "assert_less_equal",
    "assert_near", "assert_negative", "assert_non_negative", "assert_non_positive", "assert_none_equal", "assert_positive",
    "assert_rank", "assert_rank_at_least", "assert_rank_in", "assert_same_float_dtype", "assert_scalar", "assert_type",
    "check_numerics", "is_finite", "is_inf", "is_nan", "is_numeric_tensor",
]  # fmt: skip
