"""Variables that belong to another variable (optimizer slots, moving averages) and live beside it.

A slot of ``w`` for the optimizer ``Adam`` is named ``w/Adam`` (then ``w/Adam_1``, ...), is not trainable, and is
colocated with ``w``. A slot of the shape of a slice is a slice too, of the slots of all slices.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from mpirt.graph.graph import get_default_graph
from mpirt.graph.shapes import is_static
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.init_ops import zeros_initializer
from mpirt.ops.variable_scope import get_variable, variable_scope
from mpirt.ops.variables import Variable

__all__ = ["create_slot", "create_slot_with_initializer", "create_zeros_slot"]


def create_slot(primary: Any, val: Any, name: str, colocate_with_primary: bool = True) -> Any:
    """A variable beside ``primary`` that starts as ``val``, a tensor or value.

    Parameters
    ----------
    primary : variable, or a tensor
    val : initial value; its shape is the slot's
    name : the slot is called ``<primary>/<name>``
    colocate_with_primary : put the slot where ``primary`` is, else where the scope in force says
    """
    return _create(primary, name, colocate_with_primary, initializer=val)


def create_slot_with_initializer(
    primary: Any, initializer: Any, shape: Any, dtype: Any, name: str, colocate_with_primary: bool = True
) -> Any:
    """A variable beside ``primary`` of the given shape and type, started by ``initializer``."""
    return _create(primary, name, colocate_with_primary, initializer=initializer, shape=shape, dtype=dtype)


def create_zeros_slot(primary: Any, name: str, dtype: Any = None, colocate_with_primary: bool = True) -> Any:
    """A variable beside ``primary``, of its shape (also if that is known only in the step), that starts as zeros."""
    dtype = primary.dtype.base_dtype if dtype is None else dtype
    if is_static(primary.shape.dims_tuple):
        return _create(primary, name, colocate_with_primary, initializer=zeros_initializer(), shape=primary.shape, dtype=dtype)
    value = primary.initialized_value() if hasattr(primary, "initialized_value") else convert_to_tensor(primary)
    return _create(primary, name, colocate_with_primary, initializer=apply_op("ZerosLike", value))


def _create(primary: Any, name: str, colocate: bool, **how: Any) -> Any:
    graph = get_default_graph()
    beside = graph.colocate_with(primary) if colocate else nullcontext()
    with variable_scope(None, f"{primary.op.name}/{name}") as scope, beside:
        scope.set_partitioner(None)  # a slot is where its variable is, whole
        slot = get_variable("", trainable=False, **how)
    of = primary._get_save_slice_info() if isinstance(primary, Variable) else None
    if of is not None and slot.shape.dims_tuple == primary.shape.dims_tuple:
        slot._set_save_slice_info(replace(of, full_name=slot.op.name.replace(primary.op.name, of.full_name)))
    return slot
