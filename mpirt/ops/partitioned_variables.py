"""Variables that are cut into slices along one dimension, and the functions that say into how many.

A partitioner is a function of ``shape`` and ``dtype`` that gives the number of slices for each dimension; at most one number
is above 1. The slices of ``p`` are variables ``p/part_0``, ``p/part_1``, ...; where they can't be equal, the first ones have
one row more. Each is placed like any variable, so a device setter spreads them over its tasks.
Neighbours: ``variable_scope`` makes and shares partitioned variables; ``embedding_ops`` reads their rows slice by slice.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mpirt import dtypes
from mpirt.dtypes import DType
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.graph.shapes import TensorShape, as_shape, is_static, num_elements, text
from mpirt.ops import slice_ops
from mpirt.ops.apply import convert_to_tensor, is_tensor, to_array
from mpirt.ops.concat_ops import concat, split
from mpirt.ops.identity_ops import identity
from mpirt.ops.init_ops import needs_no_arguments
from mpirt.ops.variables import Variable

__all__ = [
    "PartitionInfo", "PartitionedVariable", "Partitioner", "fixed_size_partitioner", "min_max_variable_partitioner",
    "variable_axis_size_partitioner",
]  # fmt: skip

Partitioner = Callable[..., Sequence[int]]


# ----------------------------------------------------------------------------------------------------- partitioners


def fixed_size_partitioner(num_shards: int, axis: int = 0) -> Partitioner:
    """A partitioner that gives ``num_shards`` slices along ``axis``, or as many as there are rows."""
    if num_shards < 1:
        raise ValueError(f"fixed_size_partitioner: num_shards must be positive, not {num_shards}.")

    def partitioner(shape: Any, dtype: Any = None) -> list[int]:
        return _along(shape, axis, lambda rows, elements: num_shards)

    return partitioner


def variable_axis_size_partitioner(
    max_shard_bytes: int, axis: int = 0, bytes_per_string_element: int = 16, max_shards: int | None = None
) -> Partitioner:
    """A partitioner that gives slices along ``axis`` of at most ``max_shard_bytes``, of at least one row each.

    Parameters
    ----------
    max_shard_bytes : limit on the size of a slice
    axis : dimension to cut
    bytes_per_string_element : what a string counts
    max_shards : limit on the number of slices, which goes before ``max_shard_bytes``
    """
    if max_shard_bytes < 1 or bytes_per_string_element < 1:
        raise ValueError(
            "variable_axis_size_partitioner: max_shard_bytes and bytes_per_string_element must be positive, not "
            f"{max_shard_bytes} and {bytes_per_string_element}."
        )
    if max_shards is not None and max_shards < 1:
        raise ValueError(f"variable_axis_size_partitioner: max_shards must be positive, not {max_shards}.")

    def partitioner(shape: Any, dtype: Any) -> list[int]:
        size = _element_bytes(dtype, bytes_per_string_element)

        def shards(rows: int, elements: int) -> int:
            row_bytes = elements // rows * size
            rows_each = max(1, max_shard_bytes // row_bytes) if row_bytes else rows
            wanted = -(-rows // rows_each)
            return wanted if max_shards is None else min(wanted, max_shards)

        return _along(shape, axis, shards)

    return partitioner


def min_max_variable_partitioner(
    max_partitions: int = 1, axis: int = 0, min_slice_size: int = 256 << 10, bytes_per_string_element: int = 16
) -> Partitioner:
    """A partitioner that gives up to ``max_partitions`` slices along ``axis``, fewer for a small variable.

    Parameters
    ----------
    max_partitions : limit on the number of slices
    axis : dimension to cut
    min_slice_size : bytes that a slice should have at least; the last one counts as one if it is smaller
    bytes_per_string_element : what a string counts
    """
    if max_partitions < 1 or min_slice_size < 1:
        raise ValueError(
            "min_max_variable_partitioner: max_partitions and min_slice_size must be positive, not "
            f"{max_partitions} and {min_slice_size}."
        )

    def partitioner(shape: Any, dtype: Any) -> list[int]:
        size = _element_bytes(dtype, bytes_per_string_element)
        return _along(shape, axis, lambda rows, elements: min(max_partitions, math.ceil(elements * size / min_slice_size)))

    return partitioner


def _along(shape: Any, axis: int, shards: Callable[[int, int], int]) -> list[int]:
    """One slice for each dimension but ``axis``, there ``shards(rows, elements of the whole)``, between 1 and the rows."""
    sizes = as_shape(shape)
    if not is_static(sizes):
        raise ValueError(f"a partitioner needs a fully defined shape, not {text(sizes)}.")
    assert sizes is not None
    if not -len(sizes) <= axis < len(sizes):
        raise ValueError(f"cannot partition a variable of shape {text(sizes)} along axis {axis}: it has {len(sizes)} dimension(s).")
    rows, elements = sizes[axis] or 0, num_elements(sizes) or 0
    counts = [1] * len(sizes)
    counts[axis] = max(1, min(rows, shards(rows, elements))) if rows else 1
    return counts


def _element_bytes(dtype: Any, bytes_per_string: int) -> int:
    kind = dtypes.as_dtype(dtype).base_dtype
    return bytes_per_string if kind is dtypes.string else int(kind.size)


# ----------------------------------------------------------------------------------------------------------- slices


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """Which slice of a whole an initializer makes: its argument ``partition_info``.

    Attributes
    ----------
    full_shape : sizes of the whole
    var_offset : where the slice begins, for each dimension
    """

    full_shape: list[int]
    var_offset: list[int]

    def single_offset(self, shape: Sequence[int]) -> int:
        """Where the slice of sizes ``shape`` begins in the dimension that is cut; 0 if none is."""
        axis = self.single_slice_dim(shape)
        return 0 if axis is None else self.var_offset[axis]

    def single_slice_dim(self, shape: Sequence[int]) -> int | None:
        """The dimension in which the slice of sizes ``shape`` isn't the whole; None if there is none.

        Raises
        ------
        ValueError
            If there are several.
        """
        cut = [axis for axis, (part, whole) in enumerate(zip(shape, self.full_shape, strict=True)) if part != whole]
        if len(cut) > 1:
            raise ValueError(f"a slice of sizes {list(shape)} is cut from {self.full_shape} in several dimensions: {cut}.")
        return cut[0] if cut else None


def slices(shape: Sequence[int], partitions: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """(offset, sizes) of each slice of ``shape``; the first ones have one row more if they can't be equal."""
    axis = partition_axis(partitions)
    least, extra = divmod(shape[axis], partitions[axis])
    found, start = [], 0
    for k in range(partitions[axis]):
        rows = least + (k < extra)
        offset, sizes = [0] * len(shape), list(shape)
        offset[axis], sizes[axis] = start, rows
        found.append((offset, sizes))
        start += rows
    return found


def partition_axis(partitions: Sequence[int]) -> int:
    """The dimension that is cut; 0 if there is one slice."""
    return next((axis for axis, count in enumerate(partitions) if count > 1), 0)


def partitions_of(partitioner: Partitioner, shape: Sequence[int], dtype: DType) -> list[int]:
    """What ``partitioner`` answers, checked.

    Raises
    ------
    ValueError
        If the answer isn't one positive number for each dimension, has several above 1, or asks for more slices than rows.
    """
    asked = partitioner(shape=TensorShape(list(shape)), dtype=dtype)
    if not isinstance(asked, Sequence) or isinstance(asked, str | bytes):
        raise ValueError(f"Partitioner must return a sequence, but saw: {asked!r}")
    partitions = [int(count) for count in asked]
    if len(partitions) != len(shape):
        raise ValueError(
            f"Partitioner returned a partition list that does not match the Variable's rank: {partitions} vs. {text(tuple(shape))}"
        )
    if any(count < 1 for count in partitions):
        raise ValueError(f"Partitioner returned zero partitions for some axes: {partitions}")
    if sum(count > 1 for count in partitions) > 1:
        raise ValueError(
            f"Can only slice a variable along one dimension: shape: {text(tuple(shape))}, partitioning: {partitions}"
        )
    axis = partition_axis(partitions)
    if partitions[axis] > max(shape[axis], 1):
        raise ValueError(f"Partitioner asked for {partitions[axis]} slices of dimension {axis} of shape {text(tuple(shape))}.")
    return partitions


def whole_value(initializer: Any, name: str, kind: DType) -> Any:
    """The initial value of all slices, where ``initializer`` isn't called with a shape: a tensor, an array, or None.

    A function without arguments is called once, so that all slices are of one value, also of a random one.
    """
    if initializer is None or inspect.isclass(initializer):
        return None
    if not callable(initializer):
        return convert_to_tensor(initializer) if is_tensor(initializer) else to_array(initializer)
    if not needs_no_arguments(initializer):
        return None
    graph = get_default_graph()
    with graph.name_scope(name + "/Initializer/"), graph.control_dependencies(None):
        return convert_to_tensor(initializer(), kind)


def cut(whole: Any, part: str, offset: Sequence[int], sizes: Sequence[int]) -> Any:
    """The initial value of the slice named ``part``, from that of the whole."""
    if not isinstance(whole, Tensor):
        return whole[tuple(slice(begin, begin + size) for begin, size in zip(offset, sizes, strict=True))]
    graph = get_default_graph()
    with graph.name_scope(part + "/PartitionedInitializer/"), graph.control_dependencies(None):
        return slice_ops.slice(whole, list(offset), list(sizes))


# ----------------------------------------------------------------------------------------------- PartitionedVariable


class PartitionedVariable:
    """A variable whose value is kept in slices: a list of these, and as a tensor their concatenation.

    Made by ``get_variable`` with a partitioner. The slices are what collections hold and optimizers train; the concatenation
    is made where it is used, so the whole value travels: ``embedding_lookup`` reads rows instead.

    Parameters
    ----------
    name : full name of the whole
    shape : sizes of the whole
    dtype : element type
    variable_list : the slices, in order
    partitions : number of slices for each dimension
    """

    __array_priority__ = 100  # numpy leaves ``array + variable`` to us, instead of iterating over the slices

    def __init__(
        self, name: str, shape: Sequence[int], dtype: DType, variable_list: Sequence[Variable], partitions: Sequence[int]
    ) -> None:
        self._name = name
        self._shape = list(shape)
        self._dtype = dtype.base_dtype
        self._variable_list = list(variable_list)
        self._partitions = list(partitions)

    @property
    def name(self) -> str:
        """Full name of the whole, without an output number: it is no tensor."""
        return self._name

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> TensorShape:
        """Static shape of the whole."""
        return TensorShape(self._shape)

    def get_shape(self) -> TensorShape:
        """Static shape of the whole (TensorFlow 1's spelling)."""
        return self.shape

    @property
    def graph(self) -> Graph:
        """The graph this variable belongs to."""
        return self._variable_list[0].graph

    def __iter__(self) -> Iterator[Variable]:
        return iter(self._variable_list)

    def __len__(self) -> int:
        return len(self._variable_list)

    def _get_variable_list(self) -> list[Variable]:
        return list(self._variable_list)

    def _get_partitions(self) -> list[int]:
        return list(self._partitions)

    def _partition_axes(self) -> list[int]:
        return [partition_axis(self._partitions)]

    # ---- reading

    def as_tensor(self) -> Tensor:
        """The whole value: the slices put together on the device in force."""
        graph = get_default_graph()
        whole: Any = self._variable_list[0]
        if len(self._variable_list) > 1:
            with graph.name_scope(self._name + "/ConcatPartitions/"):
                whole = concat(self._variable_list, partition_axis(self._partitions))
        with graph.name_scope(None):
            return identity(whole, self._name)

    def _as_tensor(self, as_ref: bool) -> Tensor:
        if as_ref:
            raise TypeError(f"{self!r} is no single variable. Mend: name its slices, list(variable).")
        return self.as_tensor()

    # ---- changing

    def assign(self, value: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> list[Any]:
        """Set the value; returns what ``Variable.assign`` gives for each slice.

        Parameters
        ----------
        value : the whole (tensor or value), or a list of tensors, one for each slice
        use_locking, name, read_value : as for ``Variable.assign``
        """
        return self._change(Variable.assign, value, use_locking, name, read_value)

    def assign_add(self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> list[Any]:
        """Add ``delta``; arguments and result are those of ``assign``."""
        return self._change(Variable.assign_add, delta, use_locking, name, read_value)

    def assign_sub(self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> list[Any]:
        """Subtract ``delta``; arguments and result are those of ``assign``."""
        return self._change(Variable.assign_sub, delta, use_locking, name, read_value)

    def _change(
        self, change: Callable[..., Tensor | Operation], value: Any, use_locking: bool, name: str | None, read_value: bool
    ) -> list[Any]:
        if isinstance(value, list | tuple) and any(hasattr(v, "static_shape") or isinstance(v, Variable) for v in value):
            if len(value) != len(self):
                raise ValueError(f"{self!r} takes {len(self)} parts, one for each slice, not {len(value)}.")
            parts = list(value)
        elif len(self) == 1:
            parts = [value]
        else:
            axis = partition_axis(self._partitions)
            whole = convert_to_tensor(value, self._dtype)
            parts = split(whole, [sizes[axis] for _, sizes in slices(self._shape, self._partitions)], axis)
        return [change(v, part, use_locking, name, read_value) for v, part in zip(self._variable_list, parts, strict=True)]

    def __repr__(self) -> str:
        return (
            f"<mpirt.PartitionedVariable {self._name!r} shape={text(tuple(self._shape))} dtype={self._dtype.name} "
            f"slices={len(self)}>"
        )
