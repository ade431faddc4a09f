"""Queues in a graph: ``FIFOQueue``, ``RandomShuffleQueue``, ``PaddingFIFOQueue``, ``PriorityQueue``.

A queue lives on one task; what puts elements in or takes them out runs there, whatever device blocks are open. With a
``shared_name`` all sessions that name it on that task (and container) share it; without one it is its session's own.
The queue itself, with its rules for order, closing and cancelling, is ``queues.Queue``; the operations are in ``queue_ops``.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from mpirt import dtypes as types
from mpirt.dtypes import DType
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.shapes import Shape, TensorShape, as_shape, is_static, merge, text
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.queue_ops import PRIORITY
from mpirt.ops.random_seed import get_seed

__all__ = ["FIFOQueue", "PaddingFIFOQueue", "PriorityQueue", "QueueBase", "RandomShuffleQueue"]


class QueueBase:
    """A queue whose elements are tuples of tensors; see ``FIFOQueue`` and the others for how to make one.

    Parameters
    ----------
    dtypes : element type of each component
    shapes : shape of each component, None if any will do
    names : name of each component, or None; with names an element is a dict
    queue_ref : handle of the queue
    """

    def __init__(self, dtypes: Sequence[Any], shapes: Sequence[Any] | None, names: Sequence[str] | None, queue_ref: Tensor) -> None:
        for what, given in (("shapes", shapes), ("names", names)):
            if given is not None and len(given) != len(dtypes):
                raise ValueError(f"Queue {what} must have the same length as dtypes, but there are {len(given)} and {len(dtypes)}.")
        self._dtypes = [types.as_dtype(dtype) for dtype in dtypes]
        self._shapes = [TensorShape(shape) for shape in (shapes if shapes is not None else [None] * len(dtypes))]
        self._names = list(names) if names is not None else None
        self._queue_ref = queue_ref
        self._name = queue_ref.op.name.rpartition("/")[2]

    @staticmethod
    def from_list(index: Any, queues: Sequence[QueueBase]) -> QueueBase:
        """The queue ``queues[index]``, chosen in each step; all of them must be on one task.

        Raises
        ------
        TypeError
            If it is no list of queues, or they differ in types or names of components.
        """
        if not queues or not isinstance(queues, list | tuple) or not all(isinstance(q, QueueBase) for q in queues):
            raise TypeError(f"A list of queues expected, not {queues!r}.")
        first = queues[0]
        for what in ("dtypes", "names"):
            if any(getattr(q, what) != getattr(first, what) for q in queues):
                raise TypeError(f"Queues do not have matching component {what}: {', '.join(f'{getattr(q, what)}' for q in queues)}.")
        shapes = [reduce(_common, (q.shapes[i].dims_tuple for q in queues)) for i in range(len(first.dtypes))]
        handles = apply_op("Pack", [q.queue_ref for q in queues], axis=0, name="stack")
        return QueueBase(first.dtypes, shapes, first.names, apply_op("GatherV2", handles, index, 0))

    @property
    def queue_ref(self) -> Tensor:
        """Handle of the queue."""
        return self._queue_ref

    @property
    def name(self) -> str:
        """Name of the queue's operation."""
        return self._queue_ref.op.name

    @property
    def dtypes(self) -> list[DType]:
        """Element type of each component."""
        return self._dtypes

    @property
    def shapes(self) -> list[TensorShape]:
        """Shape of each component."""
        return self._shapes

    @property
    def names(self) -> list[str] | None:
        """Name of each component, or None."""
        return self._names

    def enqueue(self, vals: Any, name: str | None = None) -> Operation:
        """Put in one element; the step waits while the queue is full.

        Parameters
        ----------
        vals : tensor, list or tuple of one for each component, or dict by the components' names
        name : name of the operation

        Raises
        ------
        ValueError, TypeError
            If ``vals`` doesn't fit the queue's components.
        CancelledError
            In the step, if the queue is closed, or is closed with ``cancel_pending_enqueues`` while this waits.
        """
        with get_default_graph().name_scope(name or f"{self._name}_enqueue") as scope:
            tensors = self._components(vals)
            for tensor, shape in zip(tensors, self._shapes, strict=True):
                merge(tensor.static_shape, shape.dims_tuple)
            op: Operation = apply_op("QueueEnqueueV2", self._queue_ref, tensors, name=scope)
            return op

    def enqueue_many(self, vals: Any, name: str | None = None) -> Operation:
        """Put in one element for each row of ``vals``; the step waits until all are in.

        They go in as room comes, in order, with nothing of other producers between them.

        Parameters
        ----------
        vals : as for ``enqueue``, each with one more dimension in front
        name : name of the operation

        Raises
        ------
        As ``enqueue``. If the step is cancelled or times out while this waits, all elements are withdrawn, unless some have left the
        queue already: these and the others that are in stay.
        """
        with get_default_graph().name_scope(name or f"{self._name}_EnqueueMany") as scope:
            tensors = self._components(vals)
            rows: Shape = None
            for tensor, shape in zip(tensors, self._shapes, strict=True):
                batch = tensor.shape.with_rank_at_least(1)
                rows = merge(rows, batch[:1].dims_tuple)
                merge(batch[1:].dims_tuple, shape.dims_tuple)
            op: Operation = apply_op("QueueEnqueueManyV2", self._queue_ref, tensors, name=scope)
            return op

    def dequeue(self, name: str | None = None) -> Any:
        """Take one element; the step waits until there is one.

        Returns
        -------
        The tensor of its component, a list of tensors if it has several, or a dict if they have names

        Raises
        ------
        OutOfRangeError
            In the step, if the queue is closed and empty.
        """
        tensors = apply_op("QueueDequeueV2", self._queue_ref, name=name or f"{self._name}_Dequeue", component_types=self._dtypes)
        return self._element(tensors)

    def dequeue_many(self, n: Any, name: str | None = None) -> Any:
        """Take ``n`` elements as one batch; the step waits until there are so many.

        Parameters
        ----------
        n : int or int32 scalar
        name : name of the operation

        Returns
        -------
        As ``dequeue``, with a dimension of size ``n`` in front of each component

        Raises
        ------
        OutOfRangeError
            In the step, if the queue is closed and has fewer left; these stay. InvalidArgumentError if its shapes weren't given.
        """
        return self._batch("QueueDequeueManyV2", n, name or f"{self._name}_DequeueMany")

    def dequeue_up_to(self, n: Any, name: str | None = None) -> Any:
        """As ``dequeue_many``, but once the queue is closed take what is left, unless that is nothing."""
        return self._batch("QueueDequeueUpToV2", n, name or f"{self._name}_DequeueUpTo")

    def close(self, cancel_pending_enqueues: bool = False, name: str | None = None) -> Operation:
        """Take in no more elements: enqueues that come later fail, dequeues go on until the queue is empty.

        Parameters
        ----------
        cancel_pending_enqueues : fail the enqueues that wait for room, too; else the close waits for them
        name : name of the operation

        Raises
        ------
        CancelledError
            In the step, if the queue is closed already and ``cancel_pending_enqueues`` is False.
        """
        op: Operation = apply_op(
            "QueueCloseV2", self._queue_ref, name=name or f"{self._name}_Close", cancel_pending_enqueues=cancel_pending_enqueues
        )
        return op

    def is_closed(self, name: str | None = None) -> Tensor:
        """Whether the queue is closed, a bool scalar."""
        closed: Tensor = apply_op("QueueIsClosedV2", self._queue_ref, name=name or f"{self._name}_Is_Closed")
        return closed

    def size(self, name: str | None = None) -> Tensor:
        """How many elements the queue has, an int32 scalar; those that a waiting ``dequeue_many`` is going to get don't count."""
        size: Tensor = apply_op("QueueSizeV2", self._queue_ref, name=name or f"{self._name}_Size")
        return size

    def _components(self, vals: Any) -> list[Tensor]:
        """One tensor for each component."""
        if isinstance(vals, Mapping):
            if self._names is None:
                raise ValueError("Queue must have names to enqueue a dictionary.")
            if set(vals) != set(self._names):
                raise ValueError(
                    f"Keys in dictionary to enqueue do not match names of Queue: {sorted(vals, key=str)} instead of {sorted(self._names)}."
                )
            vals = [vals[name] for name in self._names]
        elif self._names is not None:
            raise ValueError(f"You must enqueue a dictionary in a Queue with names {self._names}.")
        vals = list(vals) if isinstance(vals, list | tuple) else [vals]
        if len(vals) != len(self._dtypes):
            raise ValueError(
                f"an element of {self.name!r} has {len(self._dtypes)} component(s), {[d.name for d in self._dtypes]},"
                f" but {len(vals)} are to be enqueued."
            )
        return [convert_to_tensor(val, dtype, f"component_{i}") for i, (val, dtype) in enumerate(zip(vals, self._dtypes, strict=True))]

    def _batch(self, op_type: str, n: Any, name: str) -> Any:
        tensors = apply_op(op_type, self._queue_ref, n, name=name, component_types=self._dtypes)
        size = constants.value(tensors[0].op.inputs[1]) if op_type == "QueueDequeueManyV2" else None
        return self._element(tensors, [None if size is None else int(size)])

    def _element(self, tensors: list[Tensor], front: list[int | None] | None = None) -> Any:
        """What ``dequeue`` returns."""
        for tensor, shape in zip(tensors, self._shapes, strict=True):
            tensor.set_shape(TensorShape(front or []).concatenate(shape))
        if self._names is not None:
            return dict(zip(self._names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else tensors


def _common(a: Shape, b: Shape) -> Shape:
    """What two shapes have in common."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


class FIFOQueue(QueueBase):
    """Elements leave in the order in which they came.

    Parameters
    ----------
    capacity : how many elements it holds; negative for no limit
    dtypes : element type of each component, or one for a single component
    shapes : full shape of each component, or one for a single component; without them elements may differ in shape, but
        not be dequeued in batches
    names : name of each component; elements are dicts then
    shared_name : share the queue under this name with other sessions
    name : name of the operation

    Raises
    ------
    ValueError, TypeError
        If the lists differ in length or a shape isn't known fully. In the step InvalidArgumentError, if its task has another queue of
        that ``shared_name`` that was declared otherwise.
    """

    def __init__(
        self, capacity: int, dtypes: Any, shapes: Any = None, names: Any = None, shared_name: str | None = None, name: str = "fifo_queue"
    ) -> None:
        kinds, full, labels = _type_list(dtypes), _shape_list(shapes), _name_list(names)
        super().__init__(kinds, full, labels, _queue_op("FIFOQueueV2", name, capacity, shared_name, kinds, full))


class RandomShuffleQueue(QueueBase):
    """Elements leave in random order, each of those that are there with the same probability.

    Parameters
    ----------
    capacity, dtypes, shapes, names, shared_name, name : see ``FIFOQueue``
    min_after_dequeue : how many elements must stay until the queue is closed, so that they are mixed well; dequeues wait for more
    seed : seed of this queue, see ``set_random_seed``

    Raises
    ------
    As ``FIFOQueue``; and ValueError unless 0 <= ``min_after_dequeue`` < ``capacity``.
    """

    def __init__(
        self,
        capacity: int,
        min_after_dequeue: int,
        dtypes: Any,
        shapes: Any = None,
        names: Any = None,
        seed: int | None = None,
        shared_name: str | None = None,
        name: str = "random_shuffle_queue",
    ) -> None:
        kinds, full, labels = _type_list(dtypes), _shape_list(shapes), _name_list(names)
        seed1, seed2 = get_seed(seed)
        if seed is None and seed1 is not None and shared_name is not None:
            # All who share the queue must declare the same seeds, however many random operations each made before (TensorFlow's formula).
            seed2 = int(hashlib.md5(f"{seed1}{shared_name}".encode()).hexdigest()[:8], 16) & 0x7FFFFFFF
        extra = {"min_after_dequeue": operator.index(min_after_dequeue), "seed": seed1 or 0, "seed2": seed2 or 0}
        super().__init__(kinds, full, labels, _queue_op("RandomShuffleQueueV2", name, capacity, shared_name, kinds, full, **extra))


class PaddingFIFOQueue(QueueBase):
    """As ``FIFOQueue``, with components whose sizes may differ: batches are filled up with zeros to the longest element's.

    Parameters
    ----------
    capacity, dtypes, names, shared_name, name : see ``FIFOQueue``
    shapes : list with the shape of each component; None is a size that may differ

    Raises
    ------
    As ``FIFOQueue``; and ValueError if there isn't a list of shapes of known numbers of dimensions.
    """

    def __init__(
        self, capacity: int, dtypes: Any, shapes: Any, names: Any = None, shared_name: str | None = None, name: str = "padding_fifo_queue"
    ) -> None:
        kinds, partial, labels = _type_list(dtypes), _partial_shape_list(shapes), _name_list(names)
        if len(partial) != len(kinds):
            raise ValueError(f"Shapes must be provided for all components, but there are {len(kinds)} dtypes and {len(partial)} shapes.")
        super().__init__(kinds, partial, labels, _queue_op("PaddingFIFOQueueV2", name, capacity, shared_name, kinds, partial))


class PriorityQueue(QueueBase):
    """The element with the smallest priority leaves first; among equals the one that came first.

    An element is enqueued and dequeued with its priority, an int64 scalar, as its first component.

    Parameters
    ----------
    capacity, shared_name, name : see ``FIFOQueue``
    types : element type of each component behind the priority
    shapes : full shape of each of these; they must be given
    names : name of each component, the priority's first

    Raises
    ------
    As ``FIFOQueue``; and TypeError if ``shapes`` isn't given.
    """

    def __init__(
        self, capacity: int, types: Any, shapes: Any = None, names: Any = None, shared_name: str | None = None, name: str = "priority_queue"
    ) -> None:
        kinds, full, labels = _type_list(types), _shape_list(shapes), _name_list(names)
        if full is None:
            raise TypeError("a PriorityQueue needs the shapes of its components: shapes=[()] for scalars.")
        if len(full) != len(kinds):
            raise ValueError(f"Queue shapes must have the same length as types, but there are {len(full)} and {len(kinds)}.")
        handle = _queue_op("PriorityQueueV2", name, capacity, shared_name, kinds, full)
        super().__init__([PRIORITY, *kinds], [(), *full], labels, handle)


def _type_list(dtypes: Any) -> list[DType]:
    return [types.as_dtype(dtype).base_dtype for dtype in (dtypes if isinstance(dtypes, list | tuple) else [dtypes])]


def _name_list(names: Any) -> list[str] | None:
    return None if names is None else list(names) if isinstance(names, list | tuple) else [names]


def _shape_list(shapes: Any) -> list[Shape] | None:
    """Full shapes of the components; one shape may stand for a list of one."""
    if shapes is None:
        return None
    if isinstance(shapes, TensorShape):
        shapes = [shapes]
    if not isinstance(shapes, list | tuple):
        raise TypeError(f"Shapes must be a TensorShape or a list or tuple of shapes, not {shapes!r}.")
    if all(shape is None or isinstance(shape, int) for shape in shapes):
        shapes = [shapes]
    full = [as_shape(shape) for shape in shapes]
    if not all(map(is_static, full)):
        raise ValueError(f"All shapes must be fully defined: {[text(shape) for shape in full]}. Sizes that differ: use a PaddingFIFOQueue.")
    return full


def _partial_shape_list(shapes: Any) -> list[Shape]:
    if not isinstance(shapes, list | tuple) or not shapes or any(shape is None or isinstance(shape, int) for shape in shapes):
        raise ValueError(f"When providing partial shapes, a list of shapes must be provided, not {shapes!r}.")
    partial = [as_shape(shape) for shape in shapes]
    if None in partial:
        raise ValueError(f"All shapes must have a defined rank: {[text(shape) for shape in partial]}.")
    return partial


def _queue_op(
    op_type: str, name: str, capacity: int, shared_name: str | None, kinds: list[DType], shapes: list[Shape] | None, **extra: Any
) -> Tensor:
    graph = get_default_graph()
    # State waits for nothing. Queues live in host memory, whatever device their task's operations use.
    with graph.control_dependencies(None), graph.device("/cpu"):
        handle: Tensor = apply_op(
            op_type,
            name=name,
            component_types=kinds,
            shapes=shapes or [],
            capacity=operator.index(capacity),
            shared_name=shared_name or "",
            **extra,
        )
        return handle
