"""Input pipelines made of queues: producers that give out items epoch by epoch, and batches of what a pipeline computes.

Each function adds queues and their runners to the graph and returns what comes out; ``start_queue_runners`` starts the
threads. When the epochs are over every queue closes behind the last item, and who takes more gets OutOfRangeError.
Epochs are counted in local variables: run ``local_variables_initializer()`` first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpirt import dtypes
from mpirt.graph.graph import GraphKeys, Tensor, get_default_graph
from mpirt.graph.shapes import Shape, TensorShape, as_shape, merge
from mpirt.ops.apply import convert_to_tensor, is_tensor
from mpirt.ops.array_ops import shape as shape_of
from mpirt.ops.array_ops import size as size_of
from mpirt.ops.control_flow_ops import Assert
from mpirt.ops.data_flow_ops import FIFOQueue, PaddingFIFOQueue, QueueBase, RandomShuffleQueue
from mpirt.ops.gather_ops import gather
from mpirt.ops.identity_ops import identity
from mpirt.ops.logic_ops import greater
from mpirt.ops.random_ops import random_shuffle
from mpirt.ops.range_ops import range as range_of
from mpirt.ops.state_ops import count_up_to
from mpirt.ops.variables import Variable
from mpirt.train.queue_runner import QueueRunner, add_queue_runner

__all__ = [
    "batch", "batch_join", "input_producer", "limit_epochs", "range_input_producer", "shuffle_batch", "shuffle_batch_join",
    "slice_input_producer", "string_input_producer",
]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- producers


def limit_epochs(tensor: Any, num_epochs: int | None = None, name: str | None = None) -> Tensor:
    """``tensor``, that can be computed ``num_epochs`` times and then is out of range; None: for ever.

    Raises
    ------
    ValueError
        If ``num_epochs`` isn't positive.
    """
    if num_epochs is None:
        return convert_to_tensor(tensor)
    if num_epochs <= 0:
        raise ValueError(f"num_epochs must be > 0 not {num_epochs}.")
    graph = get_default_graph()
    with graph.name_scope(name or "limit_epochs") as scope:
        value = convert_to_tensor(tensor)
        with graph.control_dependencies(None):
            epochs = Variable(0, dtype=dtypes.int64, name="epochs", trainable=False, collections=[GraphKeys.LOCAL_VARIABLES])
        with graph.control_dependencies([count_up_to(epochs, num_epochs)]):
            return identity(value, name=scope)


def input_producer(
    input_tensor: Any,
    element_shape: Any = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    capacity: int = 32,
    shared_name: str | None = None,
    summary_name: str | None = None,
    name: str | None = None,
    cancel_op: Any = None,
) -> QueueBase:
    """A queue of the rows of ``input_tensor``, which its runner fills epoch by epoch.

    Parameters
    ----------
    input_tensor : tensor with the items along its first dimension
    element_shape : shape of an item, where it can't be seen
    num_epochs : how often each item comes; None for ever
    shuffle : mix the items anew in each epoch
    seed : of the mixing
    capacity : of the queue
    shared_name : shares the queue with other sessions
    summary_name : accepted as in TensorFlow, no summary is made
    name : name of the operations
    cancel_op : of the runner

    Raises
    ------
    ValueError
        If the shape of an item isn't known fully, or there are no items.
    """
    with get_default_graph().name_scope(name or "input_producer") as scope:
        items = convert_to_tensor(input_tensor, name="input_tensor")
        shape = merge(items.shape.with_rank_at_least(1)[1:].dims_tuple, as_shape(element_shape))
        if not TensorShape(shape).is_fully_defined():
            raise ValueError(f"Either `input_tensor` must have a fully defined shape or `element_shape` must be specified: {items!r}.")
        if shuffle:
            items = random_shuffle(items, seed)
        items = limit_epochs(items, num_epochs)
        queue = FIFOQueue(capacity, [items.dtype.base_dtype], [shape], shared_name=shared_name, name=scope)
        add_queue_runner(QueueRunner(queue, [queue.enqueue_many([items])], cancel_op=cancel_op))
        return queue


def string_input_producer(
    string_tensor: Any,
    num_epochs: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    capacity: int = 32,
    shared_name: str | None = None,
    name: str | None = None,
    cancel_op: Any = None,
) -> QueueBase:
    """A queue of strings, the names of files for instance; see ``input_producer``.

    Raises
    ------
    ValueError
        If there are no strings; InvalidArgumentError in the step if that isn't known before.
    """
    told = "string_input_producer requires a non-null input tensor"
    if not is_tensor(string_tensor) and not len(string_tensor):
        raise ValueError(told)
    graph = get_default_graph()
    with graph.name_scope(name or "input_producer") as scope:
        strings = convert_to_tensor(string_tensor, dtypes.string)
        with graph.control_dependencies([Assert(greater(size_of(strings), 0), [told])]):
            strings = identity(strings)
        return input_producer(strings, [], num_epochs, shuffle, seed, capacity, shared_name, None, scope, cancel_op)


def range_input_producer(
    limit: Any,
    num_epochs: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    capacity: int = 32,
    shared_name: str | None = None,
    name: str | None = None,
) -> QueueBase:
    """A queue of the integers from 0 to ``limit`` - 1; see ``input_producer``."""
    with get_default_graph().name_scope(name or "input_producer") as scope:
        return input_producer(range_of(limit), [], num_epochs, shuffle, seed, capacity, shared_name, None, scope)


def slice_input_producer(
    tensor_list: Sequence[Any],
    num_epochs: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    capacity: int = 32,
    shared_name: str | None = None,
    name: str | None = None,
) -> list[Tensor]:
    """One row of each tensor, the same of all of them; see ``input_producer``.

    Returns
    -------
    list of tensors, one for each of ``tensor_list`` without its first dimension

    Raises
    ------
    ValueError
        If ``tensor_list`` is empty.
    """
    if not tensor_list:
        raise ValueError("Expected at least one tensor in slice_input_producer().")
    with get_default_graph().name_scope(name or "input_producer"):
        tensors = [convert_to_tensor(tensor) for tensor in tensor_list]
        rows = shape_of(tensors[0])[0]
        index = range_input_producer(rows, num_epochs, shuffle, seed, capacity, shared_name).dequeue()
        return [gather(tensor, index) for tensor in tensors]


# ---------------------------------------------------------------------------------------------------------- batches


def batch(
    tensors: Any,
    batch_size: Any,
    num_threads: int = 1,
    capacity: int = 32,
    enqueue_many: bool = False,
    shapes: Any = None,
    dynamic_pad: bool = False,
    allow_smaller_final_batch: bool = False,
    shared_name: str | None = None,
    name: str | None = None,
) -> Any:
    """Batches of what ``tensors`` are, computed again and again by threads and kept in a queue.

    Parameters
    ----------
    tensors : list, tuple or dict of tensors, or one
    batch_size : int or int32 scalar
    num_threads : how many threads compute; with more than one the order isn't kept
    capacity : of the queue
    enqueue_many : ``tensors`` are batches themselves: each row is an example
    shapes : shapes of an example, where they can't be seen
    dynamic_pad : examples may differ in the sizes that aren't known; batches are filled up with zeros
    allow_smaller_final_batch : the last batch may be smaller; else what is left at the end is dropped
    shared_name : shares the queue with other sessions
    name : name of the operations

    Returns
    -------
    The batches: a dict if ``tensors`` is one, else a list of tensors, or one tensor for one

    Raises
    ------
    ValueError
        If there are no tensors, or the shapes of an example aren't known (their numbers of dimensions with ``dynamic_pad``).
    """
    return _batch("batch", [tensors], batch_size, num_threads, capacity, enqueue_many, shapes, allow_smaller_final_batch,
                  shared_name, name, dynamic_pad)  # fmt: skip


def batch_join(
    tensors_list: Sequence[Any],
    batch_size: Any,
    capacity: int = 32,
    enqueue_many: bool = False,
    shapes: Any = None,
    dynamic_pad: bool = False,
    allow_smaller_final_batch: bool = False,
    shared_name: str | None = None,
    name: str | None = None,
) -> Any:
    """As ``batch``, from several sources at once: one thread for each entry of ``tensors_list``, which are alike in types and shapes."""
    return _batch("batch_join", _sources(tensors_list), batch_size, 1, capacity, enqueue_many, shapes, allow_smaller_final_batch,
                  shared_name, name, dynamic_pad)  # fmt: skip


def shuffle_batch(
    tensors: Any,
    batch_size: Any,
    capacity: int,
    min_after_dequeue: int,
    num_threads: int = 1,
    seed: int | None = None,
    enqueue_many: bool = False,
    shapes: Any = None,
    allow_smaller_final_batch: bool = False,
    shared_name: str | None = None,
    name: str | None = None,
) -> Any:
    """As ``batch``, in random order.

    Parameters
    ----------
    capacity, min_after_dequeue, seed : of the ``RandomShuffleQueue``: the larger ``min_after_dequeue``, the better the mixing
    """
    return _batch("shuffle_batch", [tensors], batch_size, num_threads, capacity, enqueue_many, shapes, allow_smaller_final_batch,
                  shared_name, name, mixing=(min_after_dequeue, seed))  # fmt: skip


def shuffle_batch_join(
    tensors_list: Sequence[Any],
    batch_size: Any,
    capacity: int,
    min_after_dequeue: int,
    seed: int | None = None,
    enqueue_many: bool = False,
    shapes: Any = None,
    allow_smaller_final_batch: bool = False,
    shared_name: str | None = None,
    name: str | None = None,
) -> Any:
    """As ``batch_join``, in random order; see ``shuffle_batch``."""
    return _batch("shuffle_batch_join", _sources(tensors_list), batch_size, 1, capacity, enqueue_many, shapes,
                  allow_smaller_final_batch, shared_name, name, mixing=(min_after_dequeue, seed))  # fmt: skip


def _sources(tensors_list: Any) -> list[Any]:
    """The entries of ``tensors_list``."""
    if not isinstance(tensors_list, list | tuple) or not tensors_list:
        raise ValueError(f"tensors_list must be a list with at least one entry, not {tensors_list!r}.")
    return list(tensors_list)


def _batch(
    function: str,
    sources: list[Any],
    batch_size: Any,
    num_threads: int,
    capacity: int,
    enqueue_many: bool,
    shapes: Any,
    allow_smaller: bool,
    shared_name: str | None,
    name: str | None,
    dynamic_pad: bool = False,
    mixing: tuple[int, int | None] | None = None,
) -> Any:
    """A queue that each of ``sources`` is put into by ``num_threads`` threads, and a batch of it; ``mixing`` if that is random."""
    keys = _keys(sources)
    with get_default_graph().name_scope(name or function) as scope:
        lists = [_tensor_list(source, keys) for source in sources]
        if not lists[0]:
            raise ValueError(f"Expected at least one tensor in {function}().")
        types = [tensor.dtype.base_dtype for tensor in lists[0]]
        for other in lists[1:]:
            if [tensor.dtype.base_dtype for tensor in other] != types:
                raise TypeError(f"All entries of tensors_list must have the same types: {lists[0]!r}, {other!r}.")
        if shapes is None:
            shapes = [_common_shape([tensors[i] for tensors in lists], enqueue_many) for i, _ in enumerate(types)]
        queue: QueueBase
        if mixing is not None:
            minimum, seed = mixing
            queue = RandomShuffleQueue(capacity, minimum, types, shapes, seed=seed, shared_name=shared_name)
        elif dynamic_pad:
            queue = PaddingFIFOQueue(capacity, types, shapes, shared_name=shared_name)
        else:
            queue = FIFOQueue(capacity, types, shapes, shared_name=shared_name)
        put = queue.enqueue_many if enqueue_many else queue.enqueue
        enqueues = [op for tensors in lists for op in [put(tensors)] * num_threads]
        add_queue_runner(QueueRunner(queue, enqueues))
        take = queue.dequeue_up_to if allow_smaller else queue.dequeue_many
        taken = take(batch_size, name=scope)
        if keys is None:
            return taken
        return dict(zip(keys, taken if isinstance(taken, list) else [taken], strict=True))


def _keys(sources: Sequence[Any]) -> list[Any] | None:
    """Keys of the sources if they are dicts."""
    if not any(isinstance(source, Mapping) for source in sources):
        return None
    if not all(isinstance(source, Mapping) and set(source) == set(sources[0]) for source in sources):
        raise ValueError(f"All entries of tensors_list must be dictionaries with the same keys: {sources!r}.")
    return sorted(sources[0], key=str)


def _tensor_list(source: Any, keys: Sequence[Any] | None) -> list[Tensor]:
    if keys is not None:
        source = [source[key] for key in keys]
    return [convert_to_tensor(value) for value in (source if isinstance(source, list | tuple) else [source])]


def _common_shape(tensors: Sequence[Tensor], enqueue_many: bool) -> Shape:
    """Shape of an example, which all of ``tensors`` have."""
    common: Shape = None
    for tensor in tensors:
        if tensor.static_shape is None:
            raise ValueError(f"Cannot infer the rank of {tensor!r}: pass shapes.")
        common = merge(common, tensor.shape.with_rank_at_least(1)[1:].dims_tuple if enqueue_many else tensor.static_shape)
    return common
