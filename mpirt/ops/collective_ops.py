"""Collectives: one value made of tensors of many tasks, and wanted on many.

In the graph each is a *hub*: an ordinary operation whose inputs live on different tasks and whose outputs are read on
different tasks, behind it one Identity beside each input. So dependencies, gradients, feeds and pruning are those of any
operation. What is special is only how a step computes a hub: the tasks that hold its inputs and those that read its outputs
do it together (``compiler.exchange``); its kernel runs only where all of them are one rank.

Owns: the public functions, the hubs, what they compute (`combine`). Does not own: messages between ranks, their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import NUMERIC, REAL
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, is_static, merge, text
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.cast_ops import cast

__all__ = ["all_gather", "all_reduce", "broadcast", "reduce_scatter"]

REDUCE, GATHER, REDUCE_SCATTER = "_CollectiveReduce", "_CollectiveGather", "_CollectiveReduceScatter"
HUBS = frozenset((REDUCE, GATHER, REDUCE_SCATTER))
_REDUCTIONS = ("sum", "mean", "max", "min")

# -------------------------------------------------------------------------------------------------- what is computed


def combine(xp: ModuleType, how: str, arrays: Sequence[Any], divisor: int = 1, out: Any = None) -> Any:
    """The arrays reduced element by element, in their order; then divided by ``divisor``, integers towards zero.

    Parameters
    ----------
    xp : numpy or cupy
    how : "sum", "max" or "min"
    arrays : of one shape and type
    out : the array to fill; None makes a new one (or gives an only input itself)
    """
    function = {"sum": xp.add, "max": xp.maximum, "min": xp.minimum}[how]
    first, *rest = arrays
    if not rest:
        if out is not None:
            out[...] = first
        total = first if out is None else out
    else:
        total = function(first, rest[0]) if out is None else function(first, rest[0], out=out)
        own = out if out is not None else total if getattr(total, "ndim", 0) else None  # of arrays of no dimension numpy makes numbers
        for array in rest[1:]:
            total = function(total, array) if own is None else function(total, array, out=own)
    if divisor == 1:
        return total
    quotient = _divided(xp, total, divisor, out if out is not None or not rest or not getattr(total, "ndim", 0) else total)
    if out is None or quotient is out:
        return quotient
    out[...] = quotient
    return out


def _divided(xp: ModuleType, total: Any, divisor: int, out: Any) -> Any:
    if total.dtype.kind in "fc":
        return xp.true_divide(total, total.dtype.type(divisor), out=out)
    wide = total if total.dtype.itemsize == 8 else total.astype(np.int64)  # where the divisor fits in
    count = wide.dtype.type(divisor)
    quotient = wide // count if wide.dtype.kind == "u" else xp.sign(wide) * (abs(wide) // count)
    return quotient.astype(total.dtype)


def check_shapes(what: str, how: str, shapes: Sequence[tuple[int, ...]], places: Sequence[str], op: Operation | None = None) -> None:
    """Refuse inputs whose shapes, known only now, differ.

    Raises
    ------
    InvalidArgumentError
        Naming the first two that differ, and where they are.
    """
    for shape, place in zip(shapes, places, strict=True):
        if shape != shapes[0]:
            raise errors.InvalidArgumentError(
                f"{what!r}: the {how} needs tensors of one shape, but {places[0]} has {text(shapes[0])} and {place} has {text(shape)}.",
                op=op,
            )


# --------------------------------------------------------------------------------------------------------- functions


def all_reduce(tensors: Sequence[Any], reduction: str = "sum", name: str | None = None) -> list[Tensor]:
    """The sum, mean, maximum or minimum of tensors of several tasks, element by element, on the device of each.

    Parameters
    ----------
    tensors : one of each task, as a rule; of one type and shape, on any devices
    reduction : "sum", "mean", "max" or "min"
    name : name scope of the operations

    Returns
    -------
    list of Tensor : the same value for each input, on that input's device

    Raises
    ------
    InvalidArgumentError
        If types or shapes differ, or the type can't be reduced so; if the shapes are known only in the step, then.

    Notes
    -----
    All tasks get the same bits. The order of additions is: tensors that share a rank, as given; then the ranks. So another rank
    table may change the last digits of floating sums, a repetition doesn't. Means divide the sum, integers towards zero.
    A task whose result nobody reads only contributes: with one result read, this is a reduction to one task.

    Examples
    --------
    >>> gradients = [tf.gradients(loss, weights)[0] for loss, weights in towers]
    >>> averaged = tf.collective.all_reduce(gradients, "mean")
    """
    inputs = _inputs("all_reduce", tensors)
    _check_reduction("all_reduce", inputs, reduction)
    with get_default_graph().name_scope(name or "AllReduce"):
        return _beside(_reduced(inputs, reduction), inputs)


def broadcast(tensor: Any, devices: Sequence[Any], name: str | None = None) -> list[Tensor]:
    """The value of ``tensor``, the root, on each of ``devices``.

    Parameters
    ----------
    tensor : of any type
    devices : device names, or tensors (or operations) on whose devices the value is wanted
    name : name scope of the operations

    Returns
    -------
    list of Tensor : one on each device; the gradient of ``tensor`` is the sum of theirs, reduced to it
    """
    graph = get_default_graph()
    with graph.name_scope(name or "Broadcast"):
        (root,) = _inputs("broadcast", [tensor])
        hub = _reduced([root], "sum") if root.dtype.base_dtype in NUMERIC else root  # what has no sum has no gradient to reduce
        found = []
        for i, place in enumerate(devices):
            with graph.device(place) if isinstance(place, str) or hasattr(place, "to_string") else graph.colocate_with(place):
                found.append(_identity(hub, i))
    return found


def all_gather(tensors: Sequence[Any], axis: int = 0, name: str | None = None) -> list[Tensor]:
    """The tensors of several tasks behind one another along ``axis``, on the device of each.

    Parameters
    ----------
    tensors : of one type; sizes may differ along ``axis`` only
    axis : negative counts from the end
    name : name scope of the operations

    Returns
    -------
    list of Tensor : the same value for each input, on that input's device

    Raises
    ------
    InvalidArgumentError
        If the types or the other sizes differ, or the tensors have no dimensions.
    """
    inputs = _inputs("all_gather", tensors)
    ndim = next((len(t.static_shape) for t in inputs if t.static_shape is not None), None)
    if ndim is None and axis < 0:
        raise errors.InvalidArgumentError(
            f"all_gather: axis {axis} counts from the end, but the number of dimensions of {inputs[0].name!r} is not known.",
            hint="give the axis as a number from the front, or call set_shape.",
        )
    if ndim is not None and not -ndim <= axis < ndim:
        raise errors.InvalidArgumentError(f"all_gather: there is no dimension {axis} in {_describe(inputs[0])}.")
    at = axis % ndim if ndim is not None else axis
    first, shape = inputs[0], _but(inputs[0].static_shape, at)
    for t in inputs:
        try:
            shape = merge(shape, _but(t.static_shape, at))
        except ValueError:
            raise errors.InvalidArgumentError(
                f"all_gather along {axis} needs tensors whose other sizes are equal, but {_describe(first)} and {_describe(t)}."
            ) from None
    with get_default_graph().name_scope(name or "AllGather"):
        with get_default_graph().colocate_with(inputs[0].op):
            hub: Tensor = apply_op(GATHER, inputs, axis=at, name="gather")
        return _beside(hub, inputs)


def reduce_scatter(tensors: Sequence[Any], reduction: str = "sum", name: str | None = None) -> list[Tensor]:
    """The reduction of tensors of several tasks, of which each task gets its own part along dimension 0.

    Parameters
    ----------
    tensors : of one type and shape, whose dimension 0 can be divided by their number. Fast if all shapes are known; else
        everybody gets the whole reduction and cuts its part out of it
    reduction : "sum", "mean", "max" or "min"
    name : name scope of the operations

    Returns
    -------
    list of Tensor : part i of the reduction on the device of input i

    Raises
    ------
    InvalidArgumentError
        If types or shapes differ, the type can't be reduced so, or dimension 0 can't be divided.
    """
    inputs = _inputs("reduce_scatter", tensors)
    shape = _check_reduction("reduce_scatter", inputs, reduction)
    if shape == () or (shape and shape[0] is not None and shape[0] % len(inputs)):
        raise errors.InvalidArgumentError(
            f"reduce_scatter over {len(inputs)} tensors needs a first dimension that can be divided by {len(inputs)},"
            f" but {_describe(inputs[0])}.",
            hint="pad the tensors, or use all_reduce and slice its results.",
        )
    graph = get_default_graph()
    with graph.name_scope(name or "ReduceScatter"):
        if not _alike(inputs):
            return [_cut(whole, i, len(inputs)) for i, whole in enumerate(_beside(_reduced(inputs, reduction), inputs))]
        found = []
        for i, (part, tensor) in enumerate(zip(_scattered(inputs, reduction), inputs, strict=True)):
            with graph.colocate_with(tensor.op):
                found.append(_identity(part, i))
    return found


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all shapes are known and equal."""
    return is_static(tensors[0].static_shape) and len({t.static_shape for t in tensors}) == 1


def _cut(whole: Tensor, index: int, count: int) -> Tensor:
    with get_default_graph().colocate_with(whole.op):
        parts: list[Tensor] = apply_op("Split", 0, whole, num_split=count)
    return parts[index] if count > 1 else whole


def _inputs(what: str, tensors: Any) -> list[Tensor]:
    if not isinstance(tensors, list | tuple) or not tensors:
        raise TypeError(f"{what} takes a list of tensors, at least one, not {tensors!r}.")
    found = [convert_to_tensor(t) for t in tensors]
    first = found[0]
    for t in found:
        if t.dtype.base_dtype is not first.dtype.base_dtype:
            raise errors.InvalidArgumentError(f"{what} needs tensors of one type, but {_describe(first)} and {_describe(t)}.")
    return found


def _check_reduction(what: str, inputs: Sequence[Tensor], reduction: str) -> Shape:
    """The shape that all inputs have, as far as it is known."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{what}: reduction must be one of {', '.join(_REDUCTIONS)}, not {reduction!r}.")
    dtype = inputs[0].dtype.base_dtype
    if dtype not in (REAL if reduction in ("max", "min") else NUMERIC):
        mend = "cast it to an integer type: min is `and`, max is `or`." if dtype is dtypes.bool else "cast them to a number type."
        raise errors.InvalidArgumentError(f"{what}: there is no {reduction} of type {dtype.name}; {_describe(inputs[0])}.", hint=mend)
    shape: Shape = None
    for t in inputs:
        try:
            shape = merge(shape, t.static_shape)
        except ValueError:
            other = next(o for o in inputs if not _fits(o, t))
            raise errors.InvalidArgumentError(f"{what} needs tensors of one shape, but {_describe(other)} and {_describe(t)}.") from None
    return shape


def _fits(a: Tensor, b: Tensor) -> bool:
    try:
        merge(a.static_shape, b.static_shape)
    except ValueError:
        return False
    return True


def _describe(t: Tensor) -> str:
    """``'a:0' on /job:worker/task:0 is float32 (3,)``, for messages."""
    where = f" on {t.op.device}" if t.op.device else ""
    return f"{t.name!r}{where} is {t.dtype.base_dtype.name} {text(t.static_shape)}"


def _but(shape: Shape, axis: int) -> Shape:
    return None if shape is None or axis >= len(shape) else (*shape[:axis], None, *shape[axis + 1 :])


def _reduced(inputs: Sequence[Tensor], reduction: str) -> Tensor:
    """The hub that reduces ``inputs``."""
    divisor = len(inputs) if reduction == "mean" else 1
    with get_default_graph().colocate_with(inputs[0].op, ignore_existing=True):
        hub: Tensor = apply_op(REDUCE, inputs, reduction="sum" if reduction == "mean" else reduction, divisor=divisor, name="reduce")
    return hub


def _scattered(inputs: Sequence[Tensor], reduction: str) -> list[Tensor]:
    divisor = len(inputs) if reduction == "mean" else 1
    with get_default_graph().colocate_with(inputs[0].op, ignore_existing=True):
        parts: list[Tensor] = apply_op(
            REDUCE_SCATTER, inputs, reduction="sum" if reduction == "mean" else reduction, divisor=divisor, name="scatter"
        )
    return parts


def _beside(hub: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The hub's value on the device of each input."""
    found = []
    for i, tensor in enumerate(inputs):
        with get_default_graph().colocate_with(tensor.op):
            found.append(_identity(hub, i))
    return found


def _identity(hub: Tensor, index: int) -> Tensor:
    result: Tensor = apply_op("Identity", hub, name=f"result_{index}")
    return result


# -------------------------------------------------------------------------------------------------------------- hubs

_REDUCTION: dict[str, str | tuple[str, Any]] = {"reduction": "string", "divisor": ("int", 1)}


@register_op(REDUCE, inputs=["inputs: N*T"], outputs=["output: T"], attrs=_REDUCTION, T=NUMERIC)
def _reduce_shape(ctx: ShapeContext) -> list[Shape]:
    return [_merged(ctx)]


def _merged(ctx: ShapeContext) -> Shape:
    shape: Shape = None
    for other in ctx.shapes("inputs"):
        shape = merge(shape, other)
    return shape


@register_kernel(REDUCE)
def _reduce(ctx: KernelContext, *inputs: Any, reduction: str, divisor: int) -> Any:
    places = [f"{t.name!r}" for t in ctx.op.inputs]
    check_shapes(ctx.op.name, reduction, [x.shape for x in inputs], places, ctx.op)
    return combine(ctx.xp, reduction, inputs, divisor)


def hub_gradient(parts: Sequence[Tensor], hub: Tensor) -> Tensor:
    """Sum of the gradients that arrive at a hub's output from the tasks that read it: a reduction of the same kind."""
    with get_default_graph().colocate_with(hub.op, ignore_existing=True):
        total: Tensor = apply_op(REDUCE, parts, reduction="sum", name="reduce")
    return total


@register_gradient(REDUCE)
def _reduce_grad(op: Operation, dy: Any) -> list[Any]:
    dy = convert_to_tensor(dy)
    if op.get_attr("reduction") == "sum":
        return [_quotient(dy, op.get_attr("divisor"))] * len(op.inputs)
    # As reduce_max: shared equally by all tensors that have the extreme.
    graph = get_default_graph()
    chosen = []
    for tensor in op.inputs:
        with graph.colocate_with(tensor.op, ignore_existing=True):
            chosen.append(cast(apply_op("Equal", op.outputs[0], tensor), tensor.dtype))
    count = _reduced(chosen, "sum")
    grads = []
    for won in chosen:
        with graph.colocate_with(won.op, ignore_existing=True):
            grads.append(won * (dy / count))
    return grads


def _quotient(dy: Tensor, divisor: int) -> Tensor:
    """``dy`` divided; a sum over tasks that is made for this alone is divided as it is made."""
    if divisor == 1:
        return dy
    with get_default_graph().colocate_with(dy.op, ignore_existing=True):
        if _is_plain_sum(dy.op):
            mean: Tensor = apply_op(REDUCE, list(dy.op.inputs), reduction="sum", divisor=divisor, name="reduce")
            return mean
        return dy / divisor


def _is_plain_sum(op: Operation) -> bool:
    return op.type == REDUCE and op.get_attr("reduction") == "sum" and op.get_attr("divisor") == 1


@register_op(GATHER, inputs=["inputs: N*T"], outputs=["output: T"], attrs={"axis": "int"}, T=dtypes.ALL)
def _gather_shape(ctx: ShapeContext) -> list[Shape]:
    axis: int = ctx.attr("axis")
    total: int | None = 0
    shape: Shape = None
    for other in ctx.shapes("inputs"):
        size = None if other is None else other[axis]
        total = None if total is None or size is None else total + size
        shape = merge(shape, _but(other, axis))
    return [None if shape is None else (*shape[:axis], total, *shape[axis + 1 :])]


@register_kernel(GATHER)
def _gather(ctx: KernelContext, *inputs: Any, axis: int) -> Any:
    return gathered(ctx.xp, inputs, axis, ctx.op.name, [f"{t.name!r}" for t in ctx.op.inputs], ctx.op)


def gathered(xp: ModuleType, arrays: Sequence[Any], axis: int, what: str, places: Sequence[str], op: Operation | None = None) -> Any:
    """The arrays behind one another along ``axis``.

    Raises
    ------
    InvalidArgumentError
        If their other sizes differ.
    """
    shapes = [(*a.shape[:axis], -1, *a.shape[axis + 1 :]) if axis < a.ndim else a.shape for a in arrays]
    for shape, array, place in zip(shapes, arrays, places, strict=True):
        if shape != shapes[0] or axis >= array.ndim:
            raise errors.InvalidArgumentError(
                f"{what!r}: tensors can't be gathered along dimension {axis}: {places[0]} has shape {text(arrays[0].shape)},"
                f" {place} has {text(array.shape)}.",
                op=op,
            )
    return xp.concatenate(arrays, axis)


@register_gradient(GATHER)
def _gather_grad(op: Operation, dy: Any) -> list[Any]:
    dy, axis = convert_to_tensor(dy), op.get_attr("axis")
    graph = get_default_graph()
    if axis == 0 and _alike(op.inputs) and _is_plain_sum(dy.op) and len(dy.op.inputs) == len(op.inputs):
        return list(_scattered(dy.op.inputs, "sum"))  # the sum over all tasks that has just been made would send each all of it
    if len(op.inputs) == 1:
        return [dy]
    sizes: list[Tensor] = [apply_op("Shape", t) for t in op.inputs]
    grads = []
    for tensor, begin, size in zip(op.inputs, apply_op("ConcatOffset", axis, sizes), sizes, strict=True):
        with graph.colocate_with(tensor.op, ignore_existing=True):
            grads.append(apply_op("Slice", dy, begin, size))
    return grads


@register_op(REDUCE_SCATTER, inputs=["inputs: N*T"], outputs=["outputs: N*T"], attrs=_REDUCTION, T=NUMERIC)
def _scatter_shape(ctx: ShapeContext) -> list[Shape]:
    shape, count = ctx.shapes("inputs")[0], ctx.num_outputs
    if not _alike(ctx.inputs) or not shape or shape[0] is None or shape[0] % count:
        raise ValueError(f"the inputs must be of one known shape whose first dimension can be divided by {count}")
    return [(shape[0] // count, *shape[1:])] * count


@register_kernel(REDUCE_SCATTER)
def _reduce_scatter(ctx: KernelContext, *inputs: Any, reduction: str, divisor: int) -> Any:
    check_shapes(ctx.op.name, reduction, [x.shape for x in inputs], [f"{t.name!r}" for t in ctx.op.inputs], ctx.op)
    size = inputs[0].shape[0] // len(inputs)
    return [combine(ctx.xp, reduction, [x[i * size : (i + 1) * size] for x in inputs], divisor) for i in range(len(inputs))]


@register_gradient(REDUCE_SCATTER)
def _scatter_grad(op: Operation, *dys: Any) -> list[Any]:
    graph = get_default_graph()
    parts = []
    for output, dy in zip(op.outputs, dys, strict=True):
        with graph.colocate_with(op.inputs[output.value_index].op, ignore_existing=True):
            parts.append(apply_op("ZerosLike", output) if dy is None else convert_to_tensor(dy))
    with graph.colocate_with(op, ignore_existing=True):
        total: Tensor = apply_op(GATHER, parts, axis=0, name="gather")
    if op.get_attr("reduction") == "sum":
        return [_quotient(total, op.get_attr("divisor"))] * len(op.inputs)
    with graph.colocate_with(op, ignore_existing=True):
        extreme: Tensor = apply_op(GATHER, list(op.outputs), axis=0, name="gather")
    chosen = []
    for tensor in op.inputs:
        with graph.colocate_with(tensor.op, ignore_existing=True):
            chosen.append(cast(apply_op("Equal", extreme, tensor), tensor.dtype))
    count = _reduced(chosen, "sum")
    grads = []
    for won in chosen:
        with graph.colocate_with(won.op, ignore_existing=True):
            grads.append(won * (total / count))
    return grads
