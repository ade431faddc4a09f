"""Assertions about values, shapes and types: checked while building where they can be, else in the step.

Each returns an operation: make it a control dependency of what must not happen otherwise, or run it. What is known while
the graph is built is refused at once, at the user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import DType
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.shapes import TensorShape
from mpirt.ops.apply import constant, convert_to_tensor
from mpirt.ops.array_ops import rank as rank_of
from mpirt.ops.array_ops import shape as shape_of
from mpirt.ops.control_flow_ops import Assert, no_op
from mpirt.ops.logic_ops import equal, greater, greater_equal, less, less_equal, logical_or, not_equal
from mpirt.ops.math_ops import add, multiply, subtract
from mpirt.ops.reduction_ops import reduce_all
from mpirt.ops.unary_ops import abs as abs_

__all__ = [
    "assert_equal", "assert_greater", "assert_greater_equal", "assert_integer", "assert_less", "assert_less_equal",
    "assert_near", "assert_negative", "assert_non_negative", "assert_non_positive", "assert_none_equal", "assert_positive",
    "assert_rank", "assert_rank_at_least", "assert_rank_in", "assert_same_float_dtype", "assert_scalar", "assert_type",
    "is_numeric_tensor",
]  # fmt: skip


def _compare(
    sign: str,
    holds: Callable[..., Tensor],
    static: Callable[..., Any],
    x: Any,
    y: Any,
    data: Sequence[Any] | None,
    summarize: int | None,
    message: str | None,
    name: str,
) -> Operation:
    with get_default_graph().name_scope(name):
        x = convert_to_tensor(x, name="x")
        y = convert_to_tensor(y, x.dtype.base_dtype, "y")
        lines = [message] if message else []
        lines.append(f"Condition x {sign} y did not hold element-wise:")
        known = [constants.value(x), constants.value(y)]
        if all(v is not None for v in known):
            if np.all(static(*known)):
                return no_op()
            raise errors.InvalidArgumentError(
                "\n".join([*lines, f"x ({x.name}) = ", str(known[0]), f"y ({y.name}) = ", str(known[1])])
            )
        if x is y and sign == "==":
            return no_op()
        shown = [*lines, f"x ({x.name}) = ", x, f"y ({y.name}) = ", y] if data is None else [*lines, *data]
        return Assert(reduce_all(holds(x, y)), shown, summarize)


def assert_equal(
    x: Any, y: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x == y`` everywhere.

    Parameters
    ----------
    x, y : tensors of one type whose shapes broadcast
    data : what to show in the error, by default ``x`` and ``y``
    summarize : how many elements to show of each, 3 by default
    message : text before the error's

    Raises
    ------
    InvalidArgumentError
        At once if both values are known while building, else in the step.
    """
    return _compare("==", equal, np.equal, x, y, data, summarize, message, name or "assert_equal")


def assert_none_equal(
    x: Any, y: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x != y`` everywhere; see ``assert_equal``."""
    return _compare("!=", not_equal, np.not_equal, x, y, data, summarize, message, name or "assert_none_equal")


def assert_less(
    x: Any, y: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x < y`` everywhere; see ``assert_equal``."""
    return _compare("<", less, np.less, x, y, data, summarize, message, name or "assert_less")


def assert_less_equal(
    x: Any, y: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x <= y`` everywhere; see ``assert_equal``."""
    return _compare("<=", less_equal, np.less_equal, x, y, data, summarize, message, name or "assert_less_equal")


def assert_greater(
    x: Any, y: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x > y`` everywhere; see ``assert_equal``."""
    return _compare(">", greater, np.greater, x, y, data, summarize, message, name or "assert_greater")


def assert_greater_equal(
    x: Any, y: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x >= y`` everywhere; see ``assert_equal``."""
    return _compare(">=", greater_equal, np.greater_equal, x, y, data, summarize, message, name or "assert_greater_equal")


def assert_positive(
    x: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x > 0`` everywhere; see ``assert_equal``."""
    return assert_greater(x, _zero(x), data, summarize, message, name or "assert_positive")


def assert_negative(
    x: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x < 0`` everywhere; see ``assert_equal``."""
    return assert_less(x, _zero(x), data, summarize, message, name or "assert_negative")


def assert_non_negative(
    x: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x >= 0`` everywhere; see ``assert_equal``."""
    return assert_greater_equal(x, _zero(x), data, summarize, message, name or "assert_non_negative")


def assert_non_positive(
    x: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x <= 0`` everywhere; see ``assert_equal``."""
    return assert_less_equal(x, _zero(x), data, summarize, message, name or "assert_non_positive")


def _zero(x: Any) -> Any:
    return 0 if not hasattr(x, "dtype") or isinstance(x, np.ndarray | np.generic) else constant(0, x.dtype.base_dtype)


def assert_near(
    x: Any,
    y: Any,
    rtol: Any = None,
    atol: Any = None,
    data: Any = None,
    summarize: int | None = None,
    message: str | None = None,
    name: str | None = None,
) -> Operation:
    """Fail unless ``|x - y| <= atol + rtol * |y|`` everywhere; both tolerances are 10 * eps of the type by default."""
    with get_default_graph().name_scope(name or "assert_near"):
        x = convert_to_tensor(x, name="x")
        y = convert_to_tensor(y, x.dtype.base_dtype, "y")
        kind = x.dtype.real_dtype
        eps = 10.0 * float(np.finfo(kind.np_dtype).eps)
        rtol, atol = (convert_to_tensor(eps if t is None else t, kind) for t in (rtol, atol))
        near = reduce_all(less_equal(abs_(subtract(x, y)), add(atol, multiply(rtol, abs_(y)))))
        lines = [*([message] if message else []), "x and y not equal to tolerance"]
        shown = [*lines, f"x ({x.name}) = ", x, f"y ({y.name}) = ", y] if data is None else [*lines, *data]
        return Assert(near, shown, summarize)


# ------------------------------------------------------------------------------------------- number of dimensions, type


def assert_rank(
    x: Any, rank: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x`` has ``rank`` dimensions: ValueError at once if that is known, else InvalidArgumentError in the step."""
    return _assert_rank("rank", lambda a, b: a == b, equal, x, [rank], data, summarize, message, name or "assert_rank")


def assert_rank_at_least(
    x: Any, rank: Any, data: Any = None, summarize: int | None = None, message: str | None = None, name: str | None = None
) -> Operation:
    """Fail unless ``x`` has at least ``rank`` dimensions; see ``assert_rank``."""
    return _assert_rank(
        "rank at least", lambda a, b: a >= b, greater_equal, x, [rank], data, summarize, message, name or "assert_rank_at_least"
    )


def assert_rank_in(
    x: Any,
    ranks: Sequence[Any],
    data: Any = None,
    summarize: int | None = None,
    message: str | None = None,
    name: str | None = None,
) -> Operation:
    """Fail unless the number of dimensions of ``x`` is among ``ranks``; see ``assert_rank``."""
    return _assert_rank("rank in", lambda a, b: a == b, equal, x, ranks, data, summarize, message, name or "assert_rank_in")


def _assert_rank(
    what: str,
    static: Callable[[int, int], bool],
    holds: Callable[..., Tensor],
    x: Any,
    ranks: Sequence[Any],
    data: Any,
    summarize: int | None,
    message: str | None,
    name: str,
) -> Operation:
    with get_default_graph().name_scope(name):
        x = convert_to_tensor(x, name="x")
        wanted = [convert_to_tensor(r, dtypes.int32, "rank") for r in ranks]
        for r in wanted:
            if r.static_shape not in ((), None):
                raise ValueError(f"Rank must be a scalar, not of shape {TensorShape(r.static_shape)}.")
        known = [constants.value(r) for r in wanted]
        lead = f"{message}.  " if message else ""
        if x.static_shape is not None and all(v is not None for v in known):
            numbers = [int(v) for v in known if v is not None]
            if any(static(len(x.static_shape), n) for n in numbers):
                return no_op()
            asked = str(numbers[0]) if what != "rank in" else str(tuple(numbers))
            raise ValueError(
                f"{lead}Tensor {x.name} must have {what} {asked}.  Received rank {len(x.static_shape)}, shape {x.shape}"
            )
        actual = rank_of(x)
        condition = holds(actual, wanted[0])
        for r in wanted[1:]:
            condition = logical_or(condition, holds(actual, r))
        shown = [f"{lead}Tensor {x.name} must have {what}", *wanted, "Received shape: ", shape_of(x)]
        return Assert(condition, shown if data is None else [shown[0], *data], summarize)


def assert_type(tensor: Any, tf_type: Any, message: str | None = None, name: str | None = None) -> Operation:
    """TypeError unless ``tensor`` has the type ``tf_type``."""
    kind = dtypes.as_dtype(tf_type)
    with get_default_graph().name_scope(name or "assert_type"):
        tensor = convert_to_tensor(tensor, name="tensor")
        if tensor.dtype.base_dtype is not kind.base_dtype:
            raise TypeError(
                f"{message + ': ' if message else ''}{tensor.name} must be of type {kind.name}, not {tensor.dtype.name}."
            )
        return no_op("statically_determined_correct_type")


def assert_integer(x: Any, message: str | None = None, name: str | None = None) -> Operation:
    """TypeError unless ``x`` has an integer type."""
    with get_default_graph().name_scope(name or "assert_integer"):
        x = convert_to_tensor(x, name="x")
        if not x.dtype.is_integer:
            raise TypeError(
                f'{message + ": " if message else ""}Expected "x" to be integer type.  Found: {x.dtype.name}, {x.name}.'
            )
        return no_op("statically_determined_was_integer")


def assert_scalar(tensor: Any, name: str | None = None, message: str | None = None) -> Tensor:
    """``tensor`` itself; ValueError if it is known to have dimensions."""
    with get_default_graph().name_scope(name or "assert_scalar"):
        scalar = convert_to_tensor(tensor, name="tensor")
        if scalar.static_shape not in ((), None):
            lead = f"{message}: " if message else ""
            raise ValueError(f"{lead}Expected scalar shape for {scalar.name}, saw shape: {scalar.shape}.")
        return scalar


def assert_same_float_dtype(tensors: Sequence[Any] | None = None, dtype: Any = None) -> DType:
    """The one floating type of all ``tensors`` (float32 if there are none); ValueError if they differ or aren't floating."""
    kind = None if dtype is None else dtypes.as_dtype(dtype).base_dtype
    for tensor in tensors or ():
        own = tensor.dtype.base_dtype
        if kind is not None and own is not kind:
            raise ValueError(f"Expected {kind.name} for {tensor!r}, got {own.name}.")
        kind = own
    kind = kind or dtypes.float32
    if not kind.is_floating:
        raise ValueError(f"Expected floating point type, got {kind.name}.")
    return kind


def is_numeric_tensor(tensor: Any) -> bool:
    """Whether ``tensor`` is a tensor (or variable) of numbers."""
    if hasattr(tensor, "_as_tensor"):
        tensor = tensor._as_tensor(True)
    return isinstance(tensor, Tensor) and tensor.dtype.base_dtype in dtypes.NUMERIC
