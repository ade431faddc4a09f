"""Learning rates that depend on the global step.

Each function gives a tensor of the learning rate's type; it is computed anew in every step. A rate, and the other
numbers, may be Python numbers or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mpirt import dtypes
from mpirt.dtypes import DType
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.ops import logic_ops, select_ops, unary_ops
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.math_ops import cast, minimum, pow

__all__ = [
    "cosine_decay", "exponential_decay", "inverse_time_decay", "natural_exp_decay", "piecewise_constant",
    "piecewise_constant_decay", "polynomial_decay",
]  # fmt: skip

# Their op types are used by name.
_REGISTERED_BY = (logic_ops, select_ops, unary_ops)


def exponential_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False, name: str | None = None
) -> Tensor:
    """``learning_rate * decay_rate ** (global_step / decay_steps)``.

    Parameters
    ----------
    learning_rate : initial rate
    global_step : scalar, not negative
    decay_steps : after so many steps the rate has shrunk by ``decay_rate``
    staircase : shrink only after whole multiples of ``decay_steps``

    Raises
    ------
    ValueError
        If ``global_step`` is None.
    """
    with _scope(name, "ExponentialDecay") as scope:
        rate, dtype = _rate(learning_rate, global_step)
        power = _fraction(global_step, decay_steps, dtype, staircase)
        return _named("Mul", rate, pow(_number(decay_rate, dtype, "decay_rate"), power), scope=scope)


def natural_exp_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False, name: str | None = None
) -> Tensor:
    """``learning_rate * exp(-decay_rate * global_step / decay_steps)``; see ``exponential_decay``."""
    with _scope(name, "NaturalExpDecay") as scope:
        rate, dtype = _rate(learning_rate, global_step)
        power = _fraction(global_step, decay_steps, dtype, staircase)
        return _named("Mul", rate, apply_op("Exp", -_number(decay_rate, dtype, "decay_rate") * power), scope=scope)


def inverse_time_decay(
    learning_rate: Any, global_step: Any, decay_steps: Any, decay_rate: Any, staircase: bool = False, name: str | None = None
) -> Tensor:
    """``learning_rate / (1 + decay_rate * global_step / decay_steps)``; see ``exponential_decay``."""
    with _scope(name, "InverseTimeDecay") as scope:
        rate, dtype = _rate(learning_rate, global_step)
        power = _fraction(global_step, decay_steps, dtype, staircase)
        return _named("RealDiv", rate, 1 + _number(decay_rate, dtype, "decay_rate") * power, scope=scope)


def polynomial_decay(
    learning_rate: Any,
    global_step: Any,
    decay_steps: Any,
    end_learning_rate: Any = 0.0001,
    power: Any = 1.0,
    cycle: bool = False,
    name: str | None = None,
) -> Tensor:
    """From ``learning_rate`` to ``end_learning_rate`` in ``decay_steps`` steps, along a polynomial.

    ``(learning_rate - end_learning_rate) * (1 - global_step / decay_steps) ** power + end_learning_rate``

    Parameters
    ----------
    learning_rate, end_learning_rate : first and last rate
    global_step : scalar, not negative; beyond ``decay_steps`` the last rate stays
    power : 1 for a straight line
    cycle : instead of staying, start again with ``decay_steps`` stretched to its next multiple
    """
    with _scope(name, "PolynomialDecay") as scope:
        rate, dtype = _rate(learning_rate, global_step)
        last = _number(end_learning_rate, dtype, "end_learning_rate")
        step, steps = _number(global_step, dtype, "global_step"), _number(decay_steps, dtype, "decay_steps")
        if cycle:
            one = convert_to_tensor(1.0, dtype)
            steps = steps * select_ops.where(logic_ops.equal(step, 0), one, apply_op("Ceil", step / steps))
        else:
            step = minimum(step, steps)
        shrunk = (rate - last) * pow(1 - step / steps, _number(power, dtype, "power"))
        return _named("AddV2", shrunk, last, scope=scope)


def cosine_decay(learning_rate: Any, global_step: Any, decay_steps: Any, alpha: Any = 0.0, name: str | None = None) -> Tensor:
    """From ``learning_rate`` to ``alpha * learning_rate`` in ``decay_steps`` steps, along half a cosine wave.

    References
    ----------
    Loshchilov & Hutter, SGDR: stochastic gradient descent with warm restarts, ICLR 2017.
    """
    with _scope(name, "CosineDecay") as scope:
        rate, dtype = _rate(learning_rate, global_step)
        steps = _number(decay_steps, dtype, "decay_steps")
        done = minimum(_number(global_step, dtype, "global_step"), steps) / steps
        wave = 0.5 * (1.0 + apply_op("Cos", math.pi * done))
        least = _number(alpha, dtype, "alpha")
        return _named("Mul", rate, (1 - least) * wave + least, scope=scope)


def piecewise_constant(x: Any, boundaries: Sequence[Any], values: Sequence[Any], name: str | None = None) -> Tensor:
    """``values[0]`` while ``x <= boundaries[0]``, ``values[1]`` up to ``boundaries[1]``, ..., the last value beyond.

    Parameters
    ----------
    x : scalar, for example the global step
    boundaries : ascending, of the type of ``x``
    values : one more than boundaries, all of one type

    Raises
    ------
    ValueError
        If the lengths or types don't fit.
    """
    if len(boundaries) != len(values) - 1:
        raise ValueError(
            f"The length of boundaries should be 1 less than the length of values: {len(boundaries)}, {len(values)}."
        )
    with _scope(name, "PiecewiseConstant") as scope:
        step = convert_to_tensor(x)
        edges = [_boundary(b, step) for b in boundaries]
        first = convert_to_tensor(values[0])
        rates = [first] + [convert_to_tensor(v) for v in values[1:]]
        for rate in rates:
            if rate.dtype.base_dtype is not first.dtype.base_dtype:
                raise ValueError(f"Values must have the same dtype: {first.dtype.name} and {rate.dtype.name}.")
        chosen = rates[-1]
        for edge, rate in zip(reversed(edges), reversed(rates[:-1]), strict=True):
            chosen = apply_op("Select", logic_ops.less_equal(step, edge), rate, chosen)
        return _named("Identity", chosen, scope=scope)


piecewise_constant_decay = piecewise_constant


def _boundary(boundary: Any, x: Tensor) -> Tensor:
    edge = convert_to_tensor(boundary)
    wanted = x.dtype.base_dtype
    if edge.dtype.base_dtype is wanted:
        return edge
    if edge.dtype.base_dtype is dtypes.int32 and wanted is dtypes.int64:  # steps are int64, Python numbers int32
        widened: Tensor = cast(edge, wanted)
        return widened
    raise ValueError(f"boundaries (dtype {edge.dtype.name}) must have the same dtype as x ({wanted.name}).")


def _scope(name: str | None, default: str) -> Any:
    return get_default_graph().name_scope(name or default)


def _rate(learning_rate: Any, global_step: Any) -> tuple[Tensor, DType]:
    """The initial rate and its type, which is that of all numbers."""
    if global_step is None:
        raise ValueError("global_step is required: a decayed learning rate depends on it.")
    rate = convert_to_tensor(learning_rate, name="learning_rate")
    return rate, rate.dtype.base_dtype


def _number(value: Any, dtype: DType, name: str) -> Tensor:
    """``value`` as a tensor of ``dtype``; whole numbers and steps are converted."""
    if isinstance(value, int | float):
        return convert_to_tensor(value, dtype, name)
    number: Tensor = cast(convert_to_tensor(value, name=name), dtype)
    return number


def _fraction(global_step: Any, decay_steps: Any, dtype: DType, staircase: bool) -> Tensor:
    """``global_step / decay_steps``, rounded down for a staircase."""
    fraction = _number(global_step, dtype, "global_step") / _number(decay_steps, dtype, "decay_steps")
    return apply_op("Floor", fraction) if staircase else fraction


def _named(op_type: str, *args: Tensor, scope: str) -> Tensor:
    """The last operation of a decay, which has the name of its scope."""
    result: Tensor = apply_op(op_type, *args, name=scope)
    return result
