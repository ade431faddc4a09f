"""Operations on queues: making one, putting in, taking out, closing, looking.

The value of a queue's handle is the ``queues.Queue`` itself, so a handle never leaves its device and its users run beside it.
A kernel that must wait raises ``Blocked`` with its attempt. The faces for users are in ``data_flow_ops``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpirt import dtypes as types
from mpirt import errors
from mpirt.dtypes import DType
from mpirt.graph.graph import Tensor
from mpirt.graph.op_def import Blocked, KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, as_shape, is_static, merge, text, with_rank
from mpirt.ops.queues import Attempt, Queue, QueueSpec

__all__: list[str] = []

PRIORITY = types.int64  # type of the first component of a PriorityQueue's elements

# ------------------------------------------------------------------------------------------------------- the queue op

_KINDS = {f"{kind}V2": kind for kind in ("FIFOQueue", "RandomShuffleQueue", "PaddingFIFOQueue", "PriorityQueue")}
_NAMES: dict[str, Any] = {"capacity": ("int", -1), "container": ("string", ""), "shared_name": ("string", "")}
_DECLARED: dict[str, Any] = {"component_types": "list(type)", "shapes": ("list(shape)", []), **_NAMES}
_SHUFFLED: dict[str, Any] = {"min_after_dequeue": ("int", 0), "seed": ("int", 0), "seed2": ("int", 0)}


@register_op("FIFOQueueV2", outputs=["handle: resource"], attrs=_DECLARED, stateful=True)
@register_op("PaddingFIFOQueueV2", outputs=["handle: resource"], attrs=_DECLARED, stateful=True)
@register_op("RandomShuffleQueueV2", outputs=["handle: resource"], attrs=_DECLARED | _SHUFFLED, stateful=True)
@register_op(
    "PriorityQueueV2",
    outputs=["handle: resource"],
    attrs={"component_types": ("list(type)", []), "shapes": "list(shape)", **_NAMES},
    stateful=True,
)
def _queue_shape(ctx: ShapeContext) -> list[Shape]:
    spec = _spec_of(ctx.definition.name, ctx.attrs)
    shapes = spec.shapes
    if not spec.dtypes:
        raise ValueError("a queue needs at least one component")
    if types.resource in spec.dtypes:
        raise ValueError("a queue can't hold handles of resources")
    if (shapes or spec.kind == "PaddingFIFOQueue") and len(shapes) != len(spec.dtypes):
        raise ValueError(f"there are {len(shapes)} shapes for {len(spec.dtypes)} components")
    if spec.kind == "PaddingFIFOQueue" and None in shapes or spec.kind != "PaddingFIFOQueue" and not all(map(is_static, shapes)):
        raise ValueError(f"the shapes {', '.join(map(text, shapes))} aren't known as far as a {spec.kind} needs")
    if spec.min_after_dequeue < 0:
        raise ValueError(f"min_after_dequeue {spec.min_after_dequeue} must be >= 0")
    if 0 <= spec.capacity <= spec.min_after_dequeue and spec.kind == "RandomShuffleQueue":
        raise ValueError(f"min_after_dequeue {spec.min_after_dequeue} must be < capacity {spec.capacity}")
    return [()]


def _spec_of(op_type: str, attrs: Mapping[str, Any]) -> QueueSpec:
    """The declaration that a queue op makes."""
    front = [PRIORITY] if op_type == "PriorityQueueV2" else []
    shapes: list[Shape] = [as_shape(shape) for shape in attrs["shapes"]]
    return QueueSpec(
        _KINDS[op_type],
        max(-1, attrs["capacity"]),
        (*front, *attrs["component_types"]),
        ((),) * len(front) + tuple(shapes),
        attrs.get("min_after_dequeue", 0),
        (attrs.get("seed", 0), attrs.get("seed2", 0)),
    )


def declared(handle: Tensor) -> QueueSpec | None:
    """How the queue behind ``handle`` is declared, None if the handle doesn't come straight from its op."""
    while True:
        outer = handle.graph.outer_tensor(handle)
        if outer is not None:
            handle = outer
        elif handle.op.type == "Identity":
            handle = handle.op.inputs[0]
        else:
            return _spec_of(handle.op.type, handle.op.attrs) if handle.op.type in _KINDS else None


@register_kernel(*_KINDS, devices=("CPU",))
def _queue(ctx: KernelContext) -> Queue:
    op = ctx.op
    specs: dict[str, QueueSpec] = op.graph.ops_state.setdefault(__name__, {})
    spec = specs.get(op.name)
    if spec is None:
        spec = specs[op.name] = _spec_of(op.type, op.attrs)

    def make(name: str) -> Queue:
        rng = ctx.rng(*spec.seeds) if spec.kind == "RandomShuffleQueue" else None
        return Queue(name, spec, op.location, rng)

    queue = ctx.resource(make, private=True)
    if not isinstance(queue, Queue):
        raise errors.InvalidArgumentError(f"{op.name!r} wants a queue, but the resource of that name is {queue!r}.", op=op)
    queue.check_declared(spec, op)
    return queue


no_gradient(*_KINDS, reason="it has no inputs")


# -------------------------------------------------------------------------------------------------------------- in


_TIMEOUT: dict[str, Any] = {"timeout_ms": ("int", -1)}


def _check_components(ctx: ShapeContext, front: int) -> None:
    """ValueError if what is enqueued, without ``front`` dimensions, contradicts the queue's declaration."""
    spec, shapes = declared(ctx.tensor("handle")), ctx.shapes("components")
    if spec is None:
        return
    if tuple(ctx.attr("Tcomponents")) != spec.dtypes:
        raise ValueError(f"components {_names(ctx.attr('Tcomponents'))} don't fit a queue of {_names(spec.dtypes)}")
    for shape, wanted in zip(shapes, spec.shapes, strict=False):
        merge(None if shape is None else shape[front:], wanted)


def _names(dtypes: Sequence[DType]) -> list[str]:
    return [dtype.name for dtype in dtypes]


@register_op(
    "QueueEnqueueV2",
    inputs=["handle: resource", "components: Tcomponents"],
    attrs={"Tcomponents": "list(type)", **_TIMEOUT},
    stateful=True,
)
def _enqueue_shape(ctx: ShapeContext) -> list[Shape]:
    _check_components(ctx, 0)
    return []


@register_kernel("QueueEnqueueV2", devices=("CPU",))
def _enqueue(ctx: KernelContext, handle: Any, *components: Any, timeout_ms: int) -> None:
    _result(_queue_of(ctx, handle, timeout_ms).enqueue(components))


@register_op(
    "QueueEnqueueManyV2",
    inputs=["handle: resource", "components: Tcomponents"],
    attrs={"Tcomponents": "list(type)", **_TIMEOUT},
    stateful=True,
)
def _enqueue_many_shape(ctx: ShapeContext) -> list[Shape]:
    rows: Shape = None
    for shape in ctx.shapes("components"):
        if shape == ():
            raise ValueError("a batch of elements must have at least one dimension")
        rows = merge(rows, None if shape is None else shape[:1])
    _check_components(ctx, 1)
    return []


@register_kernel("QueueEnqueueManyV2", devices=("CPU",))
def _enqueue_many(ctx: KernelContext, handle: Any, *components: Any, timeout_ms: int) -> None:
    _result(_queue_of(ctx, handle, timeout_ms).enqueue_many(components))


def _queue_of(ctx: KernelContext, handle: Any, timeout_ms: int = -1) -> Queue:
    """The queue that ``handle`` is, which may have come through operations on arrays (``QueueBase.from_list``)."""
    if timeout_ms != -1:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): timeout_ms={timeout_ms} is not supported, as in TensorFlow.",
            op=ctx.op,
            hint="give the step a timeout: run(..., options=tf.RunOptions(timeout_in_ms=...)).",
        )
    queue = handle[()] if isinstance(handle, np.ndarray) else handle
    if not isinstance(queue, Queue):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r} ({ctx.op.type}) needs the handle of a queue, not {queue!r}.", op=ctx.op)
    return queue


def _result(attempt: Attempt) -> Any:
    if not attempt.ready():
        raise Blocked(attempt)
    return attempt.result()


no_gradient("QueueEnqueueV2", "QueueEnqueueManyV2", reason="what is done to a queue is not a function of its inputs")


# ------------------------------------------------------------------------------------------------------------- out


def _element_shapes(ctx: ShapeContext, front: tuple[int | None, ...]) -> list[Shape]:
    """Shapes of what is dequeued: of the queue's components, with ``front`` before each."""
    spec, kinds = declared(ctx.tensor("handle")), ctx.attr("component_types")
    if spec is None:
        return [None] * len(kinds)
    if tuple(kinds) != spec.dtypes:
        raise ValueError(f"component_types {_names(kinds)} don't fit a queue of {_names(spec.dtypes)}")
    return [None if shape is None else front + shape for shape in spec.shapes or [None] * len(kinds)]


_TAKEN: dict[str, Any] = {"component_types": "list(type)", **_TIMEOUT}


@register_op("QueueDequeueV2", inputs=["handle: resource"], outputs=["components: component_types"], attrs=_TAKEN, stateful=True)
def _dequeue_shape(ctx: ShapeContext) -> list[Shape]:
    return _element_shapes(ctx, ())


@register_kernel("QueueDequeueV2", devices=("CPU",))
def _dequeue(ctx: KernelContext, handle: Any, *, component_types: list[DType], timeout_ms: int) -> list[Any]:
    queue = _giving(ctx, handle, component_types, timeout_ms)
    components: list[Any] = _result(queue.dequeue())
    return components


@register_op(
    "QueueDequeueManyV2", inputs=["handle: resource", "n: int32"], outputs=["components: component_types"], attrs=_TAKEN, stateful=True
)
def _dequeue_many_shape(ctx: ShapeContext) -> list[Shape]:
    with_rank(ctx.shape("n"), 0, "n")
    n = ctx.const("n")
    if n is not None and n < 0:
        raise ValueError(f"n must be 0 or more, not {int(n)}")
    return _element_shapes(ctx, (None if n is None else int(n),))


@register_op(
    "QueueDequeueUpToV2", inputs=["handle: resource", "n: int32"], outputs=["components: component_types"], attrs=_TAKEN, stateful=True
)
def _dequeue_up_to_shape(ctx: ShapeContext) -> list[Shape]:
    _dequeue_many_shape(ctx)
    return _element_shapes(ctx, (None,))


@register_kernel("QueueDequeueManyV2", "QueueDequeueUpToV2", devices=("CPU",))
def _dequeue_many(ctx: KernelContext, handle: Any, n: Any, *, component_types: list[DType], timeout_ms: int) -> list[Any]:
    queue = _giving(ctx, handle, component_types, timeout_ms)
    components: list[Any] = _result(queue.dequeue_many(int(n), up_to=ctx.op.type == "QueueDequeueUpToV2"))
    return components


def _giving(ctx: KernelContext, handle: Any, component_types: list[DType], timeout_ms: int) -> Queue:
    """The queue that ``handle`` is, whose elements have the types that the operation promises."""
    queue = _queue_of(ctx, handle, timeout_ms)
    if tuple(component_types) != queue.spec.dtypes:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}) takes elements of types {_names(component_types)},"
            f" but those of {queue} are {_names(queue.spec.dtypes)}.",
            op=ctx.op,
        )
    return queue


no_gradient("QueueDequeueV2", "QueueDequeueManyV2", "QueueDequeueUpToV2", reason="where an element came from is not known")


# ---------------------------------------------------------------------------------------------------- closing, looking


@register_op("QueueCloseV2", inputs=["handle: resource"], attrs={"cancel_pending_enqueues": ("bool", False)}, stateful=True)
def _close_shape(ctx: ShapeContext) -> list[Shape]:
    return []


@register_kernel("QueueCloseV2", devices=("CPU",))
def _close(ctx: KernelContext, handle: Any, *, cancel_pending_enqueues: bool) -> None:
    _result(_queue_of(ctx, handle).close(cancel_pending_enqueues))


@register_op("QueueIsClosedV2", inputs=["handle: resource"], outputs=["is_closed: bool"], stateful=True)
@register_op("QueueSizeV2", inputs=["handle: resource"], outputs=["size: int32"], stateful=True)
def _look_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("QueueIsClosedV2", devices=("CPU",))
def _is_closed(ctx: KernelContext, handle: Any) -> Any:
    return np.array(_queue_of(ctx, handle).is_closed)


@register_kernel("QueueSizeV2", devices=("CPU",))
def _size(ctx: KernelContext, handle: Any) -> Any:
    return np.array(_queue_of(ctx, handle).size, np.int32)


no_gradient("QueueCloseV2", "QueueIsClosedV2", "QueueSizeV2", reason="it has no number to follow")
