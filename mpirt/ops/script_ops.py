"""py_func: a Python function of the user as an operation.

An operation carries a token, not code: nothing is pickled or evaluated. The token is made of the operation's name and of
where the function was defined, so that it is the same on every rank that runs the same script, and the function can run
on any of them. A rank that never built the operation has no function for the token and says so.
"""

from __future__ import annotations

import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import DType
from mpirt.graph.graph import Graph, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape
from mpirt.ops.apply import convert_to_tensor, to_array

__all__ = ["py_func"]

_lock = threading.Lock()
_graphs: list[weakref.ref[Graph]] = []  # those that have functions, in the order of their first


def py_func(func: Callable[..., Any], inp: Sequence[Any], Tout: Any, stateful: bool = True, name: str | None = None) -> Any:  # noqa: N803
    """Call a Python function with numpy arrays in each step.

    Parameters
    ----------
    func : takes one array an input, which it must not change, and returns as many values as ``Tout`` has types: a list or
        tuple, or the value itself for one, or None for none
    inp : tensors
    Tout : element type of the result, or a list of types
    stateful : False promises that equal inputs give equal results
    name : name of the operation

    Returns
    -------
    Tensor of unknown shape, a list of them if ``Tout`` is a list, or the operation if ``Tout`` is empty

    Raises
    ------
    In the step, with the function's traceback in the text: InvalidArgumentError for TypeError and ValueError and for
    results of another number or type, OutOfRangeError for StopIteration, UnimplementedError for NotImplementedError,
    ResourceExhaustedError for MemoryError, an error of this library as it is, UnknownError for others.

    Notes
    -----
    It runs on the CPU of the operation's task, on the rank that hosts it. Every rank must build the operation.
    """
    if not callable(func):
        raise ValueError(f"Expected func to be callable. Received func={func!r} of type {type(func)}.")
    graph = get_default_graph()
    is_list = isinstance(Tout, list | tuple)
    types = [dtypes.as_dtype(t).base_dtype for t in (Tout if is_list else [Tout])]
    op_type = "PyFunc" if stateful else "PyFuncStateless"
    inputs = [convert_to_tensor(value, name=f"input_{i}") for i, value in enumerate(inp)]
    op = graph.create_op(op_type, inputs, {"token": "", "Tout": types}, name)
    token = f"{op.qualified_name}:{_describe(func)}"
    op.set_attr("token", token)
    _register(graph, token, func)
    if not types:
        return op
    return list(op.outputs) if is_list else op.outputs[0]


def _describe(func: Any) -> str:
    inner = getattr(func, "func", func)  # of a functools.partial
    inner = getattr(inner, "__func__", inner)
    code = getattr(inner, "__code__", None)
    return f"{getattr(inner, '__qualname__', type(inner).__qualname__)}:{code.co_firstlineno if code else 0}"


def _register(graph: Graph, token: str, func: Callable[..., Any]) -> None:
    with _lock:
        if __name__ not in graph.ops_state:
            graph.ops_state[__name__] = {}
            _graphs[:] = [ref for ref in _graphs if ref() is not None] + [weakref.ref(graph)]
        graph.ops_state[__name__][token] = func


def _function(ctx: KernelContext, token: str) -> Callable[..., Any]:
    """The function of ``token``: of the operation's graph, or of the newest graph that has it if this one was imported."""
    with _lock:
        for graph in (ctx.op.graph, *(ref() for ref in reversed(_graphs))):
            found = None if graph is None else graph.ops_state.get(__name__, {}).get(token)
            if found is not None:
                function: Callable[..., Any] = found
                return function
    raise errors.InvalidArgumentError(
        f"{ctx.op.name!r} ({ctx.op.type}): no function is registered for token {token!r} on this rank.",
        op=ctx.op,
        hint="every rank must build the same graph with tf.py_func; a graph imported from a file has no Python functions.",
    )


_PY_FUNC = {"token": "string", "Tin": "list(type)", "Tout": "list(type)"}


@register_op("PyFunc", inputs=["input: Tin"], outputs=["output: Tout"], attrs=_PY_FUNC, stateful=True)
@register_op("PyFuncStateless", inputs=["input: Tin"], outputs=["output: Tout"], attrs=_PY_FUNC)
def _py_func_shape(ctx: ShapeContext) -> list[Shape]:
    return [None] * ctx.num_outputs


@register_kernel("PyFunc", "PyFuncStateless", devices=("CPU",))
def _py_func(ctx: KernelContext, *inputs: Any, token: str, Tout: list[DType]) -> list[Any]:  # noqa: N803
    function = _function(ctx, token)
    try:
        result = function(*[_read_only(value) for value in inputs])
    except errors.OpError:
        raise
    except Exception as error:
        raise _error_class(error)(
            f"{ctx.op.name!r} ({ctx.op.type}): the Python function failed with"
            f" {type(error).__name__}: {error}\n{_user_trace(error)}",
            op=ctx.op,
        ) from error
    return _results(ctx, result, Tout)


def _read_only(value: Any) -> Any:
    """A view that can't be written: the array may be shared with a variable or another operation."""
    if value.dtype == object and not value.ndim:
        return value[()]  # a string scalar is given as bytes
    view = np.asarray(value).view()
    view.flags.writeable = False
    return view


_CLASSES: tuple[tuple[type[Exception], type[errors.OpError]], ...] = (
    (StopIteration, errors.OutOfRangeError),
    (MemoryError, errors.ResourceExhaustedError),
    (NotImplementedError, errors.UnimplementedError),
    (TypeError, errors.InvalidArgumentError),
    (ValueError, errors.InvalidArgumentError),
)


def _error_class(error: Exception) -> type[errors.OpError]:
    return next((ours for theirs, ours in _CLASSES if isinstance(error, theirs)), errors.UnknownError)


def _user_trace(error: Exception) -> str:
    """The traceback from the function on: the frames of the runtime say nothing to its author."""
    frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _results(ctx: KernelContext, result: Any, types: list[DType]) -> list[Any]:
    if result is None:
        values = []
    else:
        values = list(result) if isinstance(result, list | tuple) else [result]
    if len(values) != len(types):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): the Python function returned {len(values)} value(s), but Tout has"
            f" {len(types)}: {[t.name for t in types]}.",
            op=ctx.op,
        )
    return [_result(ctx, i, value, dtype) for i, (value, dtype) in enumerate(zip(values, types, strict=True))]


def _result(ctx: KernelContext, position: int, value: Any, wanted: DType) -> Any:
    try:
        # A copy: the function may keep its array and write to it later.
        array = np.array(value) if isinstance(value, np.ndarray) and value.dtype.kind not in "SUO" else _converted(value)
        kind = dtypes.as_dtype(array.dtype)
    except (TypeError, ValueError) as error:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): value {position} of the Python function can't be a tensor: {error}", op=ctx.op
        ) from None
    if kind is not wanted:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): value {position} of the Python function has type {kind.name}, but Tout says"
            f" {wanted.name}.",
            op=ctx.op,
            hint=f"return a numpy array of {wanted.name}, or change Tout.",
        )
    return array


def _converted(value: Any) -> np.ndarray[Any, Any]:
    """As numpy reads it (Python floats are float64), strings as bytes."""
    array = np.asarray(value)
    return to_array(value) if array.dtype.kind in "SUO" else array


no_gradient("PyFunc", "PyFuncStateless", reason="the derivative of a Python function is not known")
