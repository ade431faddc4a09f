"""Moments and what is normalized with them: functions made of other operations."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.graph.shapes import is_static
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.cast_ops import cast
from mpirt.ops.math_ops import maximum, squared_difference
from mpirt.ops.reduction_ops import count_nonzero, first_given, reduce_mean, reduce_sum
from mpirt.ops.unary_ops import reciprocal, rsqrt, square

__all__ = [
    "batch_normalization", "l2_normalize", "moments", "normalize_moments", "sufficient_statistics", "weighted_moments",
    "zero_fraction",
]  # fmt: skip


def _stop(x: Tensor) -> Tensor:
    result: Tensor = apply_op("StopGradient", x)
    return result


def _axes(axes: Any) -> Any:
    return list(axes) if isinstance(axes, tuple) else axes


def moments(
    x: Any, axes: Any, shift: Any = None, name: str | None = None, keep_dims: Any = None, keepdims: Any = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``x`` over ``axes``.

    Parameters
    ----------
    x : Tensor, floating; float16 is computed in float32
    axes : axes to reduce
    shift : not used, as in TensorFlow
    name : name scope of the operations
    keep_dims, keepdims : keep the reduced dimensions as size 1

    Returns
    -------
    mean, variance : the variance is divided by n, not n - 1

    Notes
    -----
    Two passes: the one-pass form loses all digits in float32 when mean/std nears 3e3 (Chan, Golub & LeVeque 1983). The
    mean inside the variance has no gradient of its own, since that is 0.
    """
    keep = bool(first_given("keepdims", keepdims, "keep_dims", keep_dims))
    axes = _axes(axes)
    with get_default_graph().name_scope(name or "moments"):
        x = convert_to_tensor(x, name="x")
        narrow = x.dtype.base_dtype is dtypes.float16
        wide: Tensor = cast(x, dtypes.float32) if narrow else x
        mean = reduce_mean(wide, axes, keepdims=True, name="mean")
        variance = reduce_mean(squared_difference(wide, _stop(mean)), axes, keepdims=True, name="variance")
        if not keep:
            mean, variance = _squeeze(mean, wide, axes), _squeeze(variance, wide, axes)
        return (cast(mean, dtypes.float16), cast(variance, dtypes.float16)) if narrow else (mean, variance)


def _squeeze(y: Tensor, x: Tensor, axes: Any) -> Tensor:
    """``y`` without the dimensions of ``x`` that were reduced."""
    if isinstance(axes, int | np.integer):
        axes = [axes]
    ndim = None if x.static_shape is None else len(x.static_shape)
    if axes is None and ndim is not None:
        axes = range(ndim)
    if axes is None or isinstance(axes, Tensor):
        result: Tensor = apply_op("Reshape", y, apply_op("Shape", reduce_sum(x, axes)))
    elif not len(axes):
        result = y
    else:
        result = apply_op("Squeeze", y, squeeze_dims=[int(a) for a in axes])
    return result


def sufficient_statistics(
    x: Any, axes: Any, shift: Any = None, keep_dims: Any = None, name: str | None = None, keepdims: Any = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Count, sum and sum of squares of ``x`` over ``axes``, of values less ``shift`` if it is given, and ``shift``."""
    keep = bool(first_given("keepdims", keepdims, "keep_dims", keep_dims))
    axes = _axes(axes)
    with get_default_graph().name_scope(name or "sufficient_statistics"):
        x = convert_to_tensor(x, name="x")
        chosen = [axes] if isinstance(axes, int | np.integer) else axes
        known = x.static_shape
        count: Tensor
        if known is not None and is_static(tuple(known[a] for a in chosen)):
            count = convert_to_tensor(int(np.prod([known[a] for a in chosen])), x.dtype.base_dtype, "count")
        else:
            sizes = apply_op("GatherV2", apply_op("Shape", x), np.array(chosen, np.int32), 0)
            count = cast(apply_op("Prod", sizes, 0), x.dtype)
        if shift is not None:
            shift = convert_to_tensor(shift, x.dtype.base_dtype, "shift")
            first, second = x - shift, squared_difference(x, shift)
        else:
            first, second = x, square(x)
        return count, reduce_sum(first, axes, keep, "mean_ss"), reduce_sum(second, axes, keep, "var_ss"), shift


def normalize_moments(
    counts: Any, mean_ss: Any, variance_ss: Any, shift: Any, name: str | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance from what ``sufficient_statistics`` gives."""
    with get_default_graph().name_scope(name or "normalize"):
        divisor = reciprocal(counts, name="divisor")
        shifted = mean_ss * divisor
        mean = shifted if shift is None else shifted + shift
        return mean, variance_ss * divisor - square(shifted)


def weighted_moments(
    x: Any, axes: Any, frequency_weights: Any, name: str | None = None, keep_dims: Any = None, keepdims: Any = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``x`` over ``axes``, each element counted with its weight."""
    keep = bool(first_given("keepdims", keepdims, "keep_dims", keep_dims))
    axes = _axes(axes)
    with get_default_graph().name_scope(name or "weighted_moments"):
        x = convert_to_tensor(x, name="x")
        weights = convert_to_tensor(frequency_weights, x.dtype.base_dtype, "frequency_weights")
        # Broadcast first, so that the sum of the weights counts each of them as often as it is used.
        spread = weights + apply_op("ZerosLike", x)
        total = reduce_sum(spread, axes, keepdims=True)
        mean = reduce_sum(spread * x, axes, keepdims=True) / total
        variance = reduce_sum(spread * squared_difference(x, _stop(mean)), axes, keepdims=True) / total
        return (mean, variance) if keep else (_squeeze(mean, x, axes), _squeeze(variance, x, axes))


def batch_normalization(
    x: Any, mean: Any, variance: Any, offset: Any, scale: Any, variance_epsilon: Any, name: str | None = None
) -> Tensor:
    """``(x - mean) / sqrt(variance + variance_epsilon) * scale + offset``; ``offset`` and ``scale`` may be None."""
    with get_default_graph().name_scope(name or "batchnorm"):
        x = convert_to_tensor(x)
        factor = rsqrt(convert_to_tensor(variance, x.dtype.base_dtype) + variance_epsilon)
        if scale is not None:
            factor = factor * scale
        base = apply_op("Neg", mean * factor) if offset is None else offset - mean * factor
        result: Tensor = x * factor + base
        return result


def l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12, name: str | None = None, dim: Any = None) -> Tensor:
    """``x`` over its Euclidean norm along ``axis``; a squared norm below ``epsilon`` counts as ``epsilon``."""
    axis = first_given("axis", axis, "dim", dim)
    with get_default_graph().name_scope(name or "l2_normalize") as scope:
        x = convert_to_tensor(x, name="x")
        result: Tensor = apply_op("Mul", x, rsqrt(maximum(reduce_sum(square(x), axis, keepdims=True), epsilon)), name=scope)
        return result


def zero_fraction(value: Any, name: str | None = None) -> Tensor:
    """Share of the elements that are 0, as float32."""
    with get_default_graph().name_scope(name or "zero_fraction"):
        x = convert_to_tensor(value, name="value")
        size: Tensor = cast(apply_op("Size", x, out_type=dtypes.int64), dtypes.float32)
        nonzero: Tensor = cast(count_nonzero(x), dtypes.float32)
        return (size - nonzero) / size
