"""Random numbers: uniform, normal, truncated normal, shuffled, categorical.

Guarantee: the numbers depend on the two seeds and on how often the operation ran, not on rank, device, thread or order:
a kernel draws them from its operation's own counter-based stream (``KernelContext.rng``), on the host.
Numbers are not TensorFlow's: only their distribution is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, FLOATING, INDEX, REAL, DType
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.arguments import shape_tensor, sizes_of
from mpirt.ops.random_seed import seed_attrs

__all__ = ["categorical", "multinomial", "random_normal", "random_shuffle", "random_uniform", "truncated_normal"]

_SEEDS: dict[str, Any] = {"seed": ("int", 0), "seed2": ("int", 0)}
_NO_REASON = "random numbers don't depend on what they are drawn with in a way that can be differentiated"


def random_uniform(
    shape: Any,
    minval: Any = 0,
    maxval: Any = None,
    dtype: Any = dtypes.float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Numbers uniform in [minval, maxval).

    Parameters
    ----------
    shape : sizes or integer tensor
    minval, maxval : scalars of ``dtype``; the default of ``maxval`` is 1 for floating types, integers need one
    dtype : a floating type, int32 or int64
    seed : seed of this operation, see ``set_random_seed``

    Raises
    ------
    ValueError
        If ``dtype`` is neither, or an integer range has no end.
    """
    kind = dtypes.as_dtype(dtype)
    if kind not in (*FLOATING, *INDEX):
        raise ValueError(f"random_uniform can't draw {kind.name}; its types are float16, float32, float64, int32, int64.")
    if maxval is None:
        if kind.is_integer:
            raise ValueError(f"Must specify maxval for integer dtype {kind.name}.")
        maxval = 1
    with get_default_graph().name_scope(name or "random_uniform") as scope:
        sizes = shape_tensor(shape)
        if not kind.is_integer and _is(minval, 0) and _is(maxval, 1):
            unit: Tensor = apply_op("RandomUniform", sizes, dtype=kind, **seed_attrs(seed))
            return unit
        low, high = convert_to_tensor(minval, kind, "min"), convert_to_tensor(maxval, kind, "max")
        if kind.is_integer:
            drawn: Tensor = apply_op("RandomUniformInt", sizes, low, high, name=scope, **seed_attrs(seed))
            return drawn
        unit = apply_op("RandomUniform", sizes, dtype=kind, **seed_attrs(seed))
        scaled = apply_op("Mul", unit, apply_op("Sub", high, low, name="sub"), name="mul")
        moved: Tensor = apply_op("AddV2", scaled, low, name=scope)
        return moved


def _is(value: Any, number: int) -> bool:
    return type(value) in (int, float) and value == number


def _drawn_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.const_shape("shape")]


for _type in ("RandomUniform", "RandomStandardNormal", "TruncatedNormal"):
    register_op(_type, inputs=["shape: T"], outputs=["output: dtype"], attrs=_SEEDS, stateful=True, dtype=FLOATING, T=INDEX)(
        _drawn_shape
    )


@register_kernel("RandomUniform", host=("shape",))
def _random_uniform(ctx: KernelContext, shape: Any, *, seed: int, seed2: int, dtype: DType) -> Any:
    sizes, rng = sizes_of(ctx, shape), ctx.rng(seed, seed2)
    if dtype is dtypes.float16:
        # Rounding a float32 below 1 could give 1; every k / 2048 is a float16.
        return ctx.xp.asarray((rng.integers(0, 2048, sizes, np.int16) / np.float32(2048)).astype(np.float16))
    return ctx.xp.asarray(rng.random(sizes, dtype.np_dtype))


@register_op(
    "RandomUniformInt",
    inputs=["shape: T", "minval: Tout", "maxval: Tout"],
    outputs=["output: Tout"],
    attrs=_SEEDS,
    stateful=True,
    Tout=INDEX,
    T=INDEX,
)
def _random_uniform_int_shape(ctx: ShapeContext) -> list[Shape]:
    with_rank(ctx.shape("minval"), 0, "minval")
    with_rank(ctx.shape("maxval"), 0, "maxval")
    return [ctx.const_shape("shape")]


@register_kernel("RandomUniformInt", host=("shape", "minval", "maxval"))
def _random_uniform_int(ctx: KernelContext, shape: Any, low: Any, high: Any, *, seed: int, seed2: int, Tout: DType) -> Any:
    sizes = sizes_of(ctx, shape)
    if low.ndim or high.ndim:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: minval and maxval must be scalars, not of shape {low.shape} and {high.shape}.", op=ctx.op
        )
    if 0 in sizes:
        return ctx.xp.zeros(sizes, Tout.np_dtype)
    if low >= high:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: Need minval < maxval, got {int(low)} >= {int(high)}.", op=ctx.op)
    return ctx.xp.asarray(ctx.rng(seed, seed2).integers(int(low), int(high), sizes, Tout.np_dtype))


# ----------------------------------------------------------------------------------------------------------- normal


def random_normal(
    shape: Any,
    mean: Any = 0.0,
    stddev: Any = 1.0,
    dtype: Any = dtypes.float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Numbers of a normal distribution with the given mean and standard deviation (tensors that broadcast to ``shape``)."""
    return _normal("RandomStandardNormal", "random_normal", shape, mean, stddev, dtype, seed, name)


def truncated_normal(
    shape: Any,
    mean: Any = 0.0,
    stddev: Any = 1.0,
    dtype: Any = dtypes.float32,
    seed: int | None = None,
    name: str | None = None,
) -> Tensor:
    """Normal numbers, drawn again where they are two standard deviations or more from the mean; see ``random_normal``."""
    return _normal("TruncatedNormal", "truncated_normal", shape, mean, stddev, dtype, seed, name)


def _normal(
    op_type: str, default: str, shape: Any, mean: Any, stddev: Any, dtype: Any, seed: int | None, name: str | None
) -> Tensor:
    kind = dtypes.as_dtype(dtype)
    with get_default_graph().name_scope(name or default) as scope:
        sizes = shape_tensor(shape)
        mean, stddev = convert_to_tensor(mean, kind, "mean"), convert_to_tensor(stddev, kind, "stddev")
        standard = apply_op(op_type, sizes, dtype=kind, **seed_attrs(seed))
        moved: Tensor = apply_op("AddV2", apply_op("Mul", standard, stddev, name="mul"), mean, name=scope)
        return moved


@register_kernel("RandomStandardNormal", host=("shape",))
def _random_standard_normal(ctx: KernelContext, shape: Any, *, seed: int, seed2: int, dtype: DType) -> Any:
    drawn = _standard_normal(ctx.rng(seed, seed2), sizes_of(ctx, shape), dtype)
    return ctx.xp.asarray(drawn.astype(dtype.np_dtype, copy=False))


@register_kernel("TruncatedNormal", host=("shape",))
def _truncated_normal(ctx: KernelContext, shape: Any, *, seed: int, seed2: int, dtype: DType) -> Any:
    sizes, rng = sizes_of(ctx, shape), ctx.rng(seed, seed2)
    drawn = _standard_normal(rng, sizes, dtype).reshape(-1)
    limit = np.nextafter(np.float16(2), np.float16(0)) if dtype is dtypes.float16 else 2.0  # so that rounding stays inside
    outside = np.flatnonzero(np.abs(drawn) >= limit)
    while outside.size:
        drawn[outside] = _standard_normal(rng, outside.shape, dtype)
        outside = outside[np.abs(drawn[outside]) >= limit]
    return ctx.xp.asarray(drawn.reshape(sizes).astype(dtype.np_dtype, copy=False))


def _standard_normal(rng: np.random.Generator, sizes: tuple[int, ...], dtype: DType) -> np.ndarray[Any, Any]:
    return np.asarray(rng.standard_normal(sizes, np.float64 if dtype is dtypes.float64 else np.float32))


no_gradient("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", reason=_NO_REASON)


# ---------------------------------------------------------------------------------------------------------- shuffle


def random_shuffle(value: Any, seed: int | None = None, name: str | None = None) -> Tensor:
    """``value`` with its first dimension in random order."""
    shuffled: Tensor = apply_op("RandomShuffle", value, name=name, **seed_attrs(seed))
    return shuffled


@register_op("RandomShuffle", inputs=["value: T"], outputs=["output: T"], attrs=_SEEDS, stateful=True, T=ALL)
def _random_shuffle_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.shape("value")]


@register_kernel("RandomShuffle")
def _random_shuffle(ctx: KernelContext, value: Any, *, seed: int, seed2: int) -> Any:
    if not value.ndim:
        return value
    order = ctx.rng(seed, seed2).permutation(value.shape[0])
    return ctx.xp.take(value, ctx.xp.asarray(order), axis=0)


no_gradient("RandomShuffle", reason="the order is random; TensorFlow has no gradient either")


# ------------------------------------------------------------------------------------------------------ categorical


def multinomial(
    logits: Any, num_samples: Any, seed: int | None = None, name: str | None = None, output_dtype: Any = None
) -> Tensor:
    """Class numbers drawn from categorical distributions.

    Parameters
    ----------
    logits : tensor, shape [batch, classes], log-probabilities up to a constant a row
    num_samples : scalar, draws a row
    output_dtype : int64 (the default) or int32

    Returns
    -------
    Tensor, shape [batch, num_samples]
    """
    kind = dtypes.int64 if output_dtype is None else dtypes.as_dtype(output_dtype)
    with get_default_graph().name_scope(name or "multinomial"):
        logits = convert_to_tensor(logits, name="logits")
        drawn: Tensor = apply_op("Multinomial", logits, num_samples, output_dtype=kind, **seed_attrs(seed))
        return drawn


def categorical(logits: Any, num_samples: Any, dtype: Any = None, seed: int | None = None, name: str | None = None) -> Tensor:
    """The same as ``multinomial`` (TensorFlow's newer name)."""
    return multinomial(logits, num_samples, seed, name or "categorical", dtype)


@register_op(
    "Multinomial",
    inputs=["logits: T", "num_samples: int32"],
    outputs=["output: output_dtype"],
    attrs={**_SEEDS, "output_dtype": ("type", dtypes.int64)},
    stateful=True,
    T=REAL,
    output_dtype=INDEX,
)
def _multinomial_shape(ctx: ShapeContext) -> list[Shape]:
    batch = with_rank(ctx.shape("logits"), 2, "logits")[0]
    with_rank(ctx.shape("num_samples"), 0, "num_samples")
    samples = ctx.const("num_samples")
    return [(batch, None if samples is None else int(samples))]


@register_kernel("Multinomial", devices=("CPU",))
def _multinomial(ctx: KernelContext, logits: Any, num_samples: Any, *, seed: int, seed2: int, output_dtype: DType) -> Any:
    count = int(num_samples)
    if logits.ndim != 2 or count < 0 or (logits.shape[1] == 0 and logits.shape[0] * count):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: can't draw {count} samples with logits of shape {logits.shape}; they must be [batch, classes].",
            op=ctx.op,
        )
    batch, classes = logits.shape
    drawn = np.zeros((batch, count), output_dtype.np_dtype)
    if not drawn.size:
        return drawn
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    edges = np.cumsum(weights, axis=1)
    points = ctx.rng(seed, seed2).random((batch, count)) * edges[:, -1:]
    for row in range(batch):
        drawn[row] = np.minimum(np.searchsorted(edges[row], points[row], side="right"), classes - 1)
    return drawn


no_gradient("Multinomial", reason="class numbers are integers")
