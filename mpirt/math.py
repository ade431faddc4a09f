"""``tf.math``: mathematical functions, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.activation_ops import softplus, softsign
from mpirt.ops.array_ops import invert_permutation
from mpirt.ops.cast_ops import bitcast, cast, saturate_cast
from mpirt.ops.complex_ops import angle, conj, imag, real
from mpirt.ops.cumulative_ops import cumprod, cumsum, cumulative_logsumexp
from mpirt.ops.logic_ops import (
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    not_equal,
)  # fmt: skip
from mpirt.ops.math_ops import (
    accumulate_n,
    add,
    add_n,
    atan2,
    div,
    div_no_nan,
    divide,
    floor_div,
    floordiv,
    floormod,
    maximum,
    minimum,
    mod,
    multiply,
    multiply_no_nan,
    pow,
    realdiv,
    scalar_mul,
    squared_difference,
    subtract,
    truediv,
    truncatediv,
    truncatemod,
    xdivy,
    xlog1py,
    xlogy,
)  # fmt: skip
from mpirt.ops.math_ops import (
    div_no_nan as divide_no_nan,
)
from mpirt.ops.moments_ops import l2_normalize, zero_fraction
from mpirt.ops.nn_ops import log_softmax, softmax
from mpirt.ops.reduction_ops import (
    arg_max,
    arg_min,
    argmax,
    argmin,
    count_nonzero,
    reduce_all,
    reduce_any,
    reduce_euclidean_norm,
    reduce_logsumexp,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_prod,
    reduce_std,
    reduce_sum,
    reduce_variance,
)  # fmt: skip
from mpirt.ops.segment_ops import (
    bincount,
    segment_max,
    segment_mean,
    segment_min,
    segment_prod,
    segment_sum,
    unsorted_segment_max,
    unsorted_segment_mean,
    unsorted_segment_min,
    unsorted_segment_prod,
    unsorted_segment_sqrt_n,
    unsorted_segment_sum,
)  # fmt: skip
from mpirt.ops.special_ops import digamma, erf, erfc, erfinv, lgamma, ndtri, polygamma, zeta
from mpirt.ops.topk_ops import in_top_k, top_k
from mpirt.ops.unary_ops import (
    abs,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atanh,
    ceil,
    cos,
    cosh,
    exp,
    expm1,
    floor,
    is_finite,
    is_inf,
    is_nan,
    log,
    log1p,
    log_sigmoid,
    negative,
    reciprocal,
    rint,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    tan,
    tanh,
)  # fmt: skip

__all__ = [
    "abs", "accumulate_n", "acos", "acosh", "add", "add_n", "angle", "arg_max", "arg_min", "argmax", "argmin", "asin",
    "asinh", "atan", "atan2", "atanh", "bincount", "bitcast", "cast", "ceil", "conj", "cos", "cosh", "count_nonzero",
    "cumprod", "cumsum", "cumulative_logsumexp", "digamma", "div", "div_no_nan", "divide", "divide_no_nan", "equal", "erf",
    "erfc", "erfinv", "exp", "expm1", "floor", "floor_div", "floordiv", "floormod", "greater", "greater_equal", "imag",
    "in_top_k", "invert_permutation", "is_finite", "is_inf", "is_nan", "l2_normalize", "less", "less_equal", "lgamma", "log",
    "log1p", "log_sigmoid", "log_softmax", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum",
    "mod", "multiply", "multiply_no_nan", "ndtri", "negative", "not_equal", "polygamma", "pow", "real", "realdiv",
    "reciprocal", "reduce_all", "reduce_any", "reduce_euclidean_norm", "reduce_logsumexp", "reduce_max", "reduce_mean",
    "reduce_min", "reduce_prod", "reduce_std", "reduce_sum", "reduce_variance", "rint", "round", "rsqrt", "saturate_cast",
    "scalar_mul", "segment_max", "segment_mean", "segment_min", "segment_prod", "segment_sum", "sigmoid", "sign", "sin",
    "sinh", "softmax", "softplus", "softsign", "sqrt", "square", "squared_difference", "subtract", "tan", "tanh", "top_k",
    "truediv", "truncatediv", "truncatemod", "unsorted_segment_max", "unsorted_segment_mean", "unsorted_segment_min",
    "unsorted_segment_prod", "unsorted_segment_sqrt_n", "unsorted_segment_sum", "xdivy", "xlog1py", "xlogy", "zero_fraction",
    "zeta",
]  # fmt: skip
