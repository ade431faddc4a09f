"""Operations that only order others: no_op, group, tuple; and Assert, which stops the step.

A group over several devices waits on each device for that device's operations first, so that one message a device tells
the end of all of them.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mpirt import errors
from mpirt.graph.graph import Operation, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.identity_ops import identity
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.logging_ops import summarize_value

__all__ = ["Assert", "group", "no_op", "tuple", "with_dependencies"]


def no_op(name: str | None = None) -> Operation:
    """An operation that does nothing; something to hang control dependencies on."""
    op: Operation = apply_op("NoOp", name=name)
    return op


@register_op("NoOp")
def _no_op_shape(ctx: ShapeContext) -> list[Shape]:
    return []


@register_kernel("NoOp")
def _no_op(ctx: KernelContext) -> None:
    return None


no_gradient("NoOp", reason="it has no inputs")


def group(*inputs: Any, **kwargs: Any) -> Operation:
    """One operation that is done when all ``inputs`` are.

    Parameters
    ----------
    *inputs : operations, tensors, variables, IndexedSlices, or lists of them
    name : name of the operation

    Raises
    ------
    TypeError
        If an input is something else.
    """
    name = kwargs.pop("name", None)
    if kwargs:
        raise ValueError("Unknown keyword arguments: " + ", ".join(kwargs))
    operations = list(dict.fromkeys(_operations(inputs)))
    if not operations:
        return no_op(name)
    graph = get_default_graph()
    on_device: dict[str, list[Operation]] = {}
    for op in operations:
        on_device.setdefault(op.device, []).append(op)
    with graph.name_scope(name or "group_deps") as scope:
        if len(on_device) == 1:
            ((device, ops),) = on_device.items()
            return _done(ops, device, scope)
        parts = [_done(on_device[device], device, None) for device in sorted(on_device)]
        with graph.control_dependencies(parts):
            return no_op(scope)


def _operations(inputs: Iterable[Any]) -> Iterator[Operation]:
    for item in inputs:
        if item is None:
            raise TypeError("group takes operations and tensors, not None.")
        if isinstance(item, Operation):
            yield item
        elif isinstance(item, dict):
            yield from _operations(item[key] for key in sorted(item))
        elif isinstance(item, list | builtins.tuple):
            yield from _operations(item)
        elif isinstance(item, IndexedSlices):
            yield from _operations([item.values, item.indices])
        else:
            element = get_default_graph().as_graph_element(item)
            yield element if isinstance(element, Operation) else element.op


def _done(operations: Sequence[Operation], device: str, name: str | None) -> Operation:
    graph = get_default_graph()
    with graph.control_dependencies(operations):
        if not device:
            return no_op(name)
        with graph.device(device):
            return no_op(name)


def with_dependencies(dependencies: Iterable[Any], output_tensor: Any, name: str | None = None) -> Any:
    """``output_tensor`` (a tensor or IndexedSlices), there only when all ``dependencies`` have run."""
    graph = get_default_graph()
    with (
        graph.name_scope(name or "control_dependency") as scope,
        graph.colocate_with(output_tensor.op),
        graph.control_dependencies(dependencies),
    ):
        if isinstance(output_tensor, IndexedSlices):
            return IndexedSlices(identity(output_tensor.values, scope), output_tensor.indices, output_tensor.dense_shape)
        return identity(output_tensor, scope)


def tuple(tensors: Sequence[Any], name: str | None = None, control_inputs: Iterable[Any] | None = None) -> list[Any]:
    """The same ``tensors``, none of them there before all of them and ``control_inputs`` have been computed.

    Parameters
    ----------
    tensors : tensors, IndexedSlices or None (kept as None)
    control_inputs : further operations to wait for

    Raises
    ------
    ValueError
        If there is no tensor among ``tensors``.
    """
    present = [t for t in tensors if t is not None]
    if not present:
        raise ValueError(f"Must have at least one Tensor: {tensors}")
    graph = get_default_graph()
    with graph.name_scope(name or "tuple"):
        gating = [*_operations(present), *_operations(control_inputs or ())]
        gate = group(*sorted(gating, key=lambda op: op.index))
        return [None if t is None else with_dependencies([gate], t) for t in tensors]


# ----------------------------------------------------------------------------------------------------------- assert


def Assert(condition: Any, data: Sequence[Any], summarize: int | None = None, name: str | None = None) -> Operation:  # noqa: N802
    """An operation that fails the step unless ``condition`` is true.

    Parameters
    ----------
    condition : bool tensor; every element counts
    data : tensors and strings to show in the error
    summarize : how many elements to show of each, 3 by default, -1 for all

    Returns
    -------
    Operation
        Run it, or make it a control dependency of what must not happen otherwise.

    Raises
    ------
    InvalidArgumentError
        In the step, with the data, if the condition is false.
    """
    if not isinstance(data, list | builtins.tuple):
        raise TypeError(f"the data of an Assert is a list of tensors and values, not {data!r}.")
    with get_default_graph().name_scope(name or "Assert"):
        condition = convert_to_tensor(condition, bool, "condition")
        tensors = [convert_to_tensor(item, name=f"data_{i}") for i, item in enumerate(data)]
        op: Operation = apply_op("Assert", condition, tensors, name="Assert", summarize=3 if summarize is None else summarize)
        return op


@register_op("Assert", inputs=["condition: bool", "data: T"], attrs={"T": "list(type)", "summarize": ("int", 3)}, stateful=True)
def _assert_shape(ctx: ShapeContext) -> list[Shape]:
    return []


@register_kernel("Assert", devices=("CPU",))
def _assert(ctx: KernelContext, condition: Any, *data: Any, summarize: int) -> None:
    if not condition.all():
        shown = " ".join(f"[{summarize_value(item, summarize)}]" for item in data)
        raise errors.InvalidArgumentError(f"assertion failed: {shown}", op=ctx.op)


no_gradient("Assert", reason="it has no outputs")
