"""Initializers: what ``get_variable`` calls with a shape to make a variable's initial value.

Each is an object with ``__call__(shape, dtype=None, partition_info=None)``; ``dtype`` given in the call wins.
``partition_info`` (whole shape and offset of a variable that is made in parts) is used by those that scale with the shape
and those that give different values at different places.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import DType, float32
from mpirt.graph.graph import Tensor
from mpirt.graph.shapes import Shape, as_shape, num_elements
from mpirt.ops.apply import apply_op, constant, constant_array
from mpirt.ops.arguments import shape_tensor
from mpirt.ops.random_ops import random_normal, random_uniform, truncated_normal

__all__ = [
    "Constant", "GlorotNormal", "GlorotUniform", "Identity", "Initializer", "Ones", "Orthogonal", "RandomNormal",
    "RandomUniform", "TruncatedNormal", "UniformUnitScaling", "VarianceScaling", "Zeros", "constant_initializer",
    "glorot_normal_initializer", "glorot_uniform_initializer", "he_normal", "he_uniform", "identity_initializer",
    "lecun_normal", "lecun_uniform", "ones_initializer", "orthogonal_initializer", "random_normal_initializer",
    "random_uniform_initializer", "truncated_normal_initializer", "uniform_unit_scaling_initializer",
    "variance_scaling_initializer", "zeros_initializer",
]  # fmt: skip

_MAX_INLINE = 1000  # elements: more are filled in the step, not kept in the graph


class Initializer:
    """Base class of initializers; ``get_config`` gives the arguments to make an equal one with ``from_config``."""

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """A tensor of ``shape`` and ``dtype`` with initial values."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {k: v.name if isinstance(v, DType) else v for k, v in vars(self).items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Initializer:
        """An initializer with the arguments ``config``."""
        return cls(**config)


def _kind(own: DType, asked: Any) -> DType:
    return own if asked is None else dtypes.as_dtype(asked).base_dtype


def _filled(shape: Any, value: Any, dtype: DType, name: str) -> Tensor:
    sizes = as_shape(shape) if isinstance(shape, list | tuple) or hasattr(shape, "dims_tuple") else None
    count = num_elements(sizes)
    if count is not None and count < _MAX_INLINE:
        return constant(np.full(sizes, value, dtype.np_dtype), name=name)
    filled: Tensor = apply_op("Fill", shape_tensor(shape), constant(np.array(value, dtype.np_dtype)), name=name)
    return filled


class Zeros(Initializer):
    """All zero (False, or empty for strings)."""

    def __init__(self, dtype: Any = float32) -> None:
        self.dtype = dtypes.as_dtype(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Zeros of ``shape``."""
        kind = _kind(self.dtype, dtype)
        return _filled(shape, b"" if kind is dtypes.string else 0, kind, "zeros")


class Ones(Initializer):
    """All one (or True)."""

    def __init__(self, dtype: Any = float32) -> None:
        self.dtype = dtypes.as_dtype(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Ones of ``shape``."""
        return _filled(shape, 1, _kind(self.dtype, dtype), "ones")


class Constant(Initializer):
    """Given values.

    Parameters
    ----------
    value : number, list or array; missing last values repeat the last one
    dtype : element type where the call names none
    verify_shape : refuse a shape that isn't the value's own
    """

    def __init__(self, value: Any = 0, dtype: Any = float32, verify_shape: bool = False) -> None:
        if not (np.isscalar(value) or isinstance(value, list | tuple | np.ndarray)):
            raise TypeError(
                f"Invalid type for initial value: {type(value).__name__}. A number, list, tuple or array is needed."
            )
        self.value = value
        self.dtype = dtypes.as_dtype(dtype)
        self.verify_shape = verify_shape

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None, verify_shape: bool | None = None) -> Tensor:
        """The values in ``shape``; TypeError or ValueError if they don't fit."""
        kind = _kind(self.dtype, dtype)
        strict = self.verify_shape if verify_shape is None else verify_shape
        if np.isscalar(self.value) and not strict and kind is not dtypes.string:
            return _filled(shape, self.value, kind, "Const")
        value = np.asarray(self.value, kind.np_dtype) if kind is not dtypes.string else self.value
        whole = constant_array(value, kind, _full_shape(shape, partition_info), strict)
        return constant(_part(whole, shape, partition_info))


class RandomUniform(Initializer):
    """Uniform in [minval, maxval); ``maxval`` None means 1 for floating types."""

    def __init__(self, minval: Any = 0.0, maxval: Any = None, seed: int | None = None, dtype: Any = float32) -> None:
        self.minval = minval
        self.maxval = maxval
        self.seed = seed
        self.dtype = dtypes.as_dtype(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Random numbers of ``shape``."""
        kind = _kind(self.dtype, dtype)
        minval = int(self.minval) if kind.is_integer else self.minval
        return random_uniform(shape, minval, self.maxval, kind, seed=self.seed)


class RandomNormal(Initializer):
    """Normal with the given mean and standard deviation."""

    def __init__(self, mean: Any = 0.0, stddev: Any = 1.0, seed: int | None = None, dtype: Any = float32) -> None:
        self.mean = mean
        self.stddev = stddev
        self.seed = seed
        self.dtype = _floating(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Random numbers of ``shape``."""
        return random_normal(shape, self.mean, self.stddev, _kind(self.dtype, dtype), seed=self.seed)


class TruncatedNormal(RandomNormal):
    """Normal, without values two standard deviations or more from the mean."""

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Random numbers of ``shape``."""
        return truncated_normal(shape, self.mean, self.stddev, _kind(self.dtype, dtype), seed=self.seed)


class UniformUnitScaling(Initializer):
    """Uniform in +-sqrt(3 / inputs) * factor, which keeps the variance of ``x @ W`` that of ``x``."""

    def __init__(self, factor: float = 1.0, seed: int | None = None, dtype: Any = float32) -> None:
        self.factor = factor
        self.seed = seed
        self.dtype = _floating(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Random numbers of ``shape``."""
        inputs = max(math.prod(_whole(shape, partition_info)[:-1]), 1)
        limit = math.sqrt(3 / inputs) * self.factor
        return random_uniform(shape, -limit, limit, _kind(self.dtype, dtype), seed=self.seed)


class VarianceScaling(Initializer):
    """Random numbers whose variance is ``scale`` / n.

    Parameters
    ----------
    scale : positive
    mode : what n is: "fan_in" inputs of a unit, "fan_out" outputs, "fan_avg" their mean
    distribution : "normal" or "truncated_normal" (both truncated), "untruncated_normal" or "uniform"
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
        dtype: Any = float32,
    ) -> None:
        if scale <= 0.0:
            raise ValueError(f"`scale` must be a positive number, not {scale}.")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"`mode` must be fan_in, fan_out or fan_avg, not {mode!r}.")
        if distribution not in ("normal", "uniform", "truncated_normal", "untruncated_normal"):
            raise ValueError(
                f"`distribution` must be normal, truncated_normal, untruncated_normal or uniform, not {distribution!r}."
            )
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.seed = seed
        self.dtype = _floating(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """Random numbers of ``shape``."""
        kind = _kind(self.dtype, dtype)
        fan_in, fan_out = _fans(_whole(shape, partition_info))
        units = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}[self.mode]
        variance = self.scale / max(1.0, units)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return random_uniform(shape, -limit, limit, kind, seed=self.seed)
        if self.distribution == "untruncated_normal":
            return random_normal(shape, 0.0, math.sqrt(variance), kind, seed=self.seed)
        # The standard deviation of a standard normal cut off at +-2.
        return truncated_normal(shape, 0.0, math.sqrt(variance) / 0.87962566103423978, kind, seed=self.seed)


class GlorotUniform(VarianceScaling):
    """Uniform with variance 2 / (inputs + outputs) (Glorot & Bengio 2010): the default of ``get_variable``."""

    def __init__(self, seed: int | None = None, dtype: Any = float32) -> None:
        super().__init__(1.0, "fan_avg", "uniform", seed, dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"seed": self.seed, "dtype": self.dtype.name}


class GlorotNormal(VarianceScaling):
    """Truncated normal with variance 2 / (inputs + outputs) (Glorot & Bengio 2010)."""

    def __init__(self, seed: int | None = None, dtype: Any = float32) -> None:
        super().__init__(1.0, "fan_avg", "truncated_normal", seed, dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"seed": self.seed, "dtype": self.dtype.name}


class Identity(Initializer):
    """The identity matrix (zeros beside the square) times ``gain``."""

    def __init__(self, gain: float = 1.0, dtype: Any = float32) -> None:
        self.gain = gain
        self.dtype = _floating(dtype)

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """The matrix of ``shape``; ValueError unless it has two sizes."""
        if len(_whole(shape, partition_info)) != 2:
            raise ValueError(f"Identity matrix initializer can only be used for 2D matrices, not shape {shape}.")
        rows, columns = _whole(shape, partition_info)
        whole = (self.gain * np.eye(rows, columns)).astype(_kind(self.dtype, dtype).np_dtype)
        return constant(_part(whole, shape, partition_info), name="eye")


class Orthogonal(Initializer):
    """A matrix with orthogonal rows or columns, whichever are fewer, times ``gain`` (Saxe et al. 2014).

    Weights of more dimensions are matrices with all but the last one as rows. Of a variable in slices each slice is
    orthogonal, as in TensorFlow.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None, dtype: Any = float32) -> None:
        self.gain = gain
        self.dtype = _floating(dtype)
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None, partition_info: Any = None) -> Tensor:
        """A random matrix of ``shape``, uniform among the orthogonal ones; ValueError for fewer than two sizes."""
        sizes = _whole(shape, None)
        if len(sizes) < 2:
            raise ValueError(f"The tensor to initialize must be at least two-dimensional, not of shape {list(sizes)}.")
        kind = _kind(self.dtype, dtype)
        rows, columns = math.prod(sizes[:-1]), sizes[-1]
        normal = random_normal([max(rows, columns), min(rows, columns)], dtype=kind, seed=self.seed)
        q, r = apply_op("Qr", normal)
        q = q * apply_op("Sign", apply_op("DiagPart", r))  # without it the signs wouldn't be random
        if rows < columns:
            q = apply_op("Transpose", q, [1, 0])
        shaped: Tensor = apply_op("Reshape", q, shape_tensor(sizes))
        return constant(self.gain, kind) * shaped


def _floating(dtype: Any) -> DType:
    kind = dtypes.as_dtype(dtype)
    if not kind.is_floating:
        raise ValueError(f"Expected floating point type, got {kind.name}.")
    return kind


def _full_shape(shape: Any, partition_info: Any) -> Shape:
    """The shape of the variable of which ``shape`` is a part."""
    return as_shape(shape if partition_info is None else partition_info.full_shape)


def _part(whole: np.ndarray[Any, Any], shape: Any, partition_info: Any) -> np.ndarray[Any, Any]:
    """What ``partition_info`` cuts from the whole value: ``shape`` elements from its offset on."""
    if partition_info is None:
        return whole
    ends = (begin + size for begin, size in zip(partition_info.var_offset, as_shape(shape) or (), strict=True))
    return whole[tuple(map(slice, partition_info.var_offset, ends))]


def _whole(shape: Any, partition_info: Any) -> tuple[int, ...]:
    sizes = _full_shape(shape, partition_info)
    if sizes is None or None in sizes:
        raise ValueError(f"an initializer that scales with the shape needs all sizes, not {shape}.")
    return sizes  # type: ignore[return-value]


def needs_no_arguments(function: Callable[..., Any]) -> bool:
    """Whether ``function`` can be called with nothing: it then makes a value of its own shape."""
    parameters = inspect.signature(function).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Inputs and outputs of a unit, for weights [inputs, outputs] or a convolution's [..., inputs, outputs]."""
    if not shape:
        return 1.0, 1.0
    if len(shape) == 1:
        return shape[0], shape[0]
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def he_normal(seed: int | None = None) -> VarianceScaling:
    """Truncated normal with variance 2 / inputs (He et al. 2015), for layers with ReLU."""
    return VarianceScaling(2.0, "fan_in", "truncated_normal", seed)


def he_uniform(seed: int | None = None) -> VarianceScaling:
    """Uniform with variance 2 / inputs (He et al. 2015), for layers with ReLU."""
    return VarianceScaling(2.0, "fan_in", "uniform", seed)


def lecun_normal(seed: int | None = None) -> VarianceScaling:
    """Truncated normal with variance 1 / inputs (LeCun et al. 1998)."""
    return VarianceScaling(1.0, "fan_in", "truncated_normal", seed)


def lecun_uniform(seed: int | None = None) -> VarianceScaling:
    """Uniform with variance 1 / inputs (LeCun et al. 1998)."""
    return VarianceScaling(1.0, "fan_in", "uniform", seed)


zeros_initializer = Zeros
ones_initializer = Ones
constant_initializer = Constant
random_uniform_initializer = RandomUniform
random_normal_initializer = RandomNormal
truncated_normal_initializer = TruncatedNormal
uniform_unit_scaling_initializer = UniformUnitScaling
variance_scaling_initializer = VarianceScaling
glorot_uniform_initializer = GlorotUniform
glorot_normal_initializer = GlorotNormal
identity_initializer = Identity
orthogonal_initializer = Orthogonal
