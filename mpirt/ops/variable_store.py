"""The named variables of a graph: made the first time, shared afterwards.

Owns the rules of sharing (what must exist, what must agree) and what an initializer is called with. With a partitioner one
variable is made for each slice, which are shared like any other, and one PartitionedVariable of them.
The store lives with the graph. Names here are full names: scopes and their defaults are ``variable_scope``'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import DType, float32
from mpirt.graph.graph import Graph, GraphKeys, Tensor, get_default_graph
from mpirt.graph.shapes import Shape, as_shape, compatible, is_static, merge, text
from mpirt.ops.apply import convert_to_tensor, is_tensor, to_array
from mpirt.ops.init_ops import GlorotUniform, Zeros, needs_no_arguments
from mpirt.ops.partitioned_variables import (
    PartitionedVariable,
    Partitioner,
    PartitionInfo,
    cut,
    partitions_of,
    slices,
    whole_value,
)
from mpirt.ops.variables import SaveSliceInfo, Variable, VariableAggregation, VariableSynchronization

__all__ = ["make_or_share", "no_regularizer"]


def no_regularizer(_: Any) -> None:
    """For ``regularizer``: none, also where the scope has one."""
    return None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What somebody asks for: the variable ``name``, how it must be, and how to make it if it isn't there.

    ``reuse`` is True (it must be there), false (it must not) or AUTO_REUSE; ``how`` are further arguments of ``Variable``.
    """

    name: str
    shape: Shape
    dtype: DType
    initializer: Any
    regularizer: Any
    reuse: Any
    how: dict[str, Any]


def make_or_share(
    name: str,
    shape: Any = None,
    dtype: Any = float32,
    initializer: Any = None,
    regularizer: Any = None,
    reuse: Any = None,
    trainable: bool | None = None,
    collections: Iterable[str] | None = None,
    caching_device: Any = None,
    partitioner: Partitioner | None = None,
    validate_shape: bool = True,
    use_resource: bool | None = None,
    constraint: Any = None,
    synchronization: VariableSynchronization = VariableSynchronization.AUTO,
    aggregation: VariableAggregation = VariableAggregation.NONE,
) -> Variable | PartitionedVariable:
    """The variable of the full name: what a custom getter gets to call. Arguments are those of ``get_variable``."""
    if initializer is not None and not callable(initializer):  # a value, which has its own type
        initializer = initializer if is_tensor(initializer) else to_array(initializer)
        dtype = initializer.dtype
    how: dict[str, Any] = {
        "trainable": trainable, "collections": None if collections is None else list(collections),
        "validate_shape": validate_shape, "caching_device": caching_device, "constraint": constraint,
        "use_resource": use_resource, "synchronization": synchronization, "aggregation": aggregation,
    }  # fmt: skip
    asked = _Asked(name, as_shape(shape), dtypes.as_dtype(dtype).base_dtype, initializer, regularizer, reuse, how)
    found = _partitioned(get_default_graph()).get(name)
    if found is not None:
        return _shared_partitioned(asked, found, partitioner)
    if partitioner is not None and asked.shape != () and not _is_scalar(initializer):
        return _new_partitioned(asked, partitioner)
    return _single(asked)


def _store(graph: Graph) -> dict[str, Variable]:
    """All variables of the graph that ``get_variable`` made, slices included, by name."""
    store: dict[str, Variable] = graph.ops_state.setdefault(__name__, {})
    return store


def _partitioned(graph: Graph) -> dict[str, PartitionedVariable]:
    """All variables of the graph that ``get_variable`` made in slices, by the name of the whole."""
    store: dict[str, PartitionedVariable] = graph.ops_state.setdefault(__name__ + ".partitioned", {})
    return store


# -------------------------------------------------------------------------------------------------------- one variable


def _single(asked: _Asked, info: PartitionInfo | None = None) -> Variable:
    """Make or share one variable; with ``info``, the slice of a whole that it is."""
    name, store = asked.name, _store(get_default_graph())
    if name in store:
        found = store[name]
        if not asked.reuse:
            where = f" Originally defined at {found.op.location}." if found.op.location else ""
            raise ValueError(
                f"Variable {name} already exists, disallowed."
                f" Did you mean to set reuse=True or reuse=tf.AUTO_REUSE in VarScope?{where}"
            )
        _check_shared(asked, "", found)
        return found
    if asked.reuse is True:
        raise ValueError(
            f"Variable {name} does not exist, or was not created with tf.get_variable()."
            " Did you mean to set reuse=tf.AUTO_REUSE in VarScope?"
        )
    variable = Variable(_initial_value(asked, info), name=name, dtype=asked.dtype, **asked.how)
    store[name] = variable
    if asked.regularizer is not None and asked.regularizer is not no_regularizer:
        graph = variable.graph
        with graph.colocate_with(variable.op), graph.name_scope(name + "/Regularizer/"):
            loss = asked.regularizer(variable)
        if loss is not None:
            graph.add_to_collection(GraphKeys.REGULARIZATION_LOSSES, loss)
    return variable


def _check_shared(asked: _Asked, sort: str, found: Any) -> None:
    if not compatible(asked.shape, found.shape.dims_tuple):
        raise ValueError(
            f"Trying to share {sort}variable {asked.name}, but specified shape {text(asked.shape)} and found shape {found.shape}."
        )
    if asked.dtype is not found.dtype.base_dtype:
        raise ValueError(
            f"Trying to share {sort}variable {asked.name}, but specified dtype {asked.dtype.name}"
            f" and found dtype {found.dtype.name}."
        )


# ------------------------------------------------------------------------------------------- variables made in slices


def _new_partitioned(asked: _Asked, partitioner: Partitioner) -> PartitionedVariable:
    """Make the slices ``name/part_0``, ... and the whole."""
    graph, name = get_default_graph(), asked.name
    if name in _store(graph):
        raise ValueError(
            f"A partitioner was provided, but an unpartitioned version of the variable was found: {name}."
            " Perhaps a variable of the same name was already created without partitioning?"
        )
    if asked.reuse is True:
        raise ValueError(
            f"PartitionedVariable {name} does not exist, or was not created with tf.get_variable()."
            " Did you mean to set reuse=False or reuse=tf.AUTO_REUSE in VarScope?"
        )
    shape, whole = asked.shape, whole_value(asked.initializer, name, asked.dtype)
    if whole is not None:
        found = whole.static_shape if isinstance(whole, Tensor) else whole.shape
        if not compatible(shape, found):
            raise ValueError(f"Variable {name}: the shape {text(shape)} and that of its initial value, {text(found)}, differ.")
        shape = merge(shape, found)
    if not is_static(shape) or shape is None:
        raise ValueError(f"Shape of a new partitioned variable must be fully defined, but instead was {text(shape)}.")
    full = [size for size in shape if size is not None]
    partitions = partitions_of(partitioner, full, asked.dtype)
    parts = []
    for number, (offset, sizes) in enumerate(slices(full, partitions)):
        part = f"{name}/part_{number}"
        if whole is None:
            variable = _single(replace(asked, name=part, shape=tuple(sizes)), PartitionInfo(full, offset))
        else:
            variable = _single(replace(asked, name=part, shape=None, initializer=cut(whole, part, offset, sizes)))
        variable._set_save_slice_info(SaveSliceInfo(name, full, offset, sizes))
        parts.append(variable)
    made = PartitionedVariable(name, full, parts[0].dtype, parts, partitions)
    _partitioned(graph)[name] = made
    return made


def _is_scalar(value: Any) -> bool:
    """Whether ``value`` is the initial value of a scalar, which can't be cut."""
    if value is None or callable(value):
        return False
    return (convert_to_tensor(value).static_shape if is_tensor(value) else np.shape(value)) == ()


def _shared_partitioned(asked: _Asked, found: PartitionedVariable, partitioner: Partitioner | None) -> PartitionedVariable:
    """The one that exists, checked against what is asked for."""
    name = asked.name
    if partitioner is None and not asked.reuse:
        raise ValueError(
            f"No partitioner was provided, but a partitioned version of the variable was found: {name}/part_0."
            " Perhaps a variable of the same name was already created with partitioning?"
        )
    if not asked.reuse:
        raise ValueError(
            f"Partitioned variable with name {name} already exists."
            " Did you mean to set reuse=True or reuse=tf.AUTO_REUSE in VarScope?"
        )
    _check_shared(asked, "partitioned ", found)
    if partitioner is not None:
        partitions = partitions_of(partitioner, found._shape, asked.dtype)
        if partitions != found._get_partitions():
            raise ValueError(
                f"Trying to reuse partitioned variable {name}, but specified partitions {partitions}"
                f" and found partitions {found._get_partitions()}."
            )
    return found


# ------------------------------------------------------------------------------------------------------ initial values


def _initial_value(asked: _Asked, info: PartitionInfo | None) -> Any:
    """What ``Variable`` takes as initial value."""
    name, shape, initializer = asked.name, asked.shape, asked.initializer
    if initializer is None:
        if asked.dtype.is_complex:
            raise ValueError(f"An initializer for variable {name} of {asked.dtype.name} is required.")
        if shape is None:
            raise ValueError(f"Variable {name} did not get an initializer, so its `shape` argument must be specified.")
        initializer = GlorotUniform() if asked.dtype.is_floating else Zeros()
    if not callable(initializer):
        if shape is not None:
            raise ValueError("If initializer is a constant, do not specify shape.")
        return initializer
    if inspect.isclass(initializer):
        initializer = initializer()
    if is_static(shape):
        return _call(initializer, list(shape or ()), asked.dtype, info)
    if needs_no_arguments(initializer):
        return initializer
    raise ValueError(
        f"Variable {name}: the shape {text(shape)} must be fully defined for an initializer that is called with a shape."
    )


def _call(
    initializer: Callable[..., Any], shape: list[Any], dtype: DType, info: PartitionInfo | None
) -> Callable[[], Any]:
    """A function that calls ``initializer`` with those of shape, dtype and partition_info that it takes."""
    try:
        parameters = inspect.signature(initializer).parameters
    except (TypeError, ValueError):
        return lambda: initializer(shape, dtype=dtype)
    named: dict[str, Any] = {}
    if "dtype" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        named["dtype"] = dtype
    if info is not None and "partition_info" in parameters:
        named["partition_info"] = info
    return lambda: initializer(shape, **named) if parameters else initializer()
