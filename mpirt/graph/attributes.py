"""Attributes of an operation: the given ones, those its inputs imply, and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.op_def import REQUIRED, ArgDef, OpDef, Signature, arg_dtypes
from mpirt.graph.operation import Tensor
from mpirt.graph.shapes import TensorShape


def signature(definition: OpDef, inputs: Sequence[Tensor], given: Mapping[str, Any] | None) -> Signature:
    """All attributes of an operation and the types of its outputs; what ``complete_attrs`` raises.

    Operations to which no attributes are given share these by the types of their inputs, on which alone they depend.
    """
    known = definition.signatures
    if given or known is None:
        return _signature(definition, inputs, given or {})
    types = tuple([tensor.dtype.enum for tensor in inputs])
    found = known.get(types)
    if found is None:
        found = known[types] = _signature(definition, inputs, {})
    return found


def _signature(definition: OpDef, inputs: Sequence[Tensor], given: Mapping[str, Any]) -> Signature:
    attrs = complete_attrs(definition, inputs, given)
    return Signature(attrs, tuple([dtype for arg in definition.outputs for dtype in arg_dtypes(arg, attrs)]))


def complete_attrs(definition: OpDef, inputs: Sequence[Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """All attributes of an operation: the given ones, those the inputs imply, and defaults; checked.

    Raises
    ------
    TypeError
        If an input's type or number doesn't fit; ValueError for unknown or missing attributes.
    """
    attrs = dict(given)
    known = definition.attrs
    for key in attrs:
        if key not in known and key[0] != "_":
            raise ValueError(f"operation type {definition.name} has no attribute {key!r}; it has {sorted(known)}.")
    position = 0
    for arg in definition.inputs:
        position = _imply_attrs(definition, arg, inputs, position, attrs)
    if position != len(inputs):
        raise TypeError(f"{definition.name} takes {position} input(s), not {len(inputs)}: {describe_inputs(inputs)}.")
    for key, attr in known.items():
        value = attrs.get(key, REQUIRED)
        if value is REQUIRED:
            if attr.default is REQUIRED:
                raise ValueError(f"operation type {definition.name} needs the attribute {key!r} ({attr.kind}).")
            attrs[key] = value = attr.default
        if attr.kind == "float":  # as an AttrValue holds it, so that a graph means the same here and after its export
            attrs[key] = value = float(np.float32(value))
        if attr.allowed and value not in attr.allowed and not isinstance(value, (list, tuple)):
            raise TypeError(
                f"{definition.name} can't take {key} = {value!r}; its types are {', '.join(t.name for t in attr.allowed)}."
                f" Inputs: {describe_inputs(inputs)}."
            )
    return attrs


def _imply_attrs(definition: OpDef, arg: ArgDef, inputs: Sequence[Tensor], position: int, attrs: dict[str, Any]) -> int:
    """Check one argument against the inputs from ``position``; returns the position behind it."""
    if arg.list_attr:
        if arg.list_attr not in attrs:
            attrs[arg.list_attr] = [t.dtype.base_dtype for t in inputs[position:]]
        count = len(attrs[arg.list_attr])
    elif arg.number_attr:
        if arg.number_attr not in attrs:
            attrs[arg.number_attr] = len(inputs) - position - _fixed_after(definition, arg)
        count = attrs[arg.number_attr]
    else:
        count = 1
    if position + count > len(inputs):
        raise TypeError(f"{definition.name} lacks its input {arg.name!r}; it has {describe_inputs(inputs)}.")
    for offset in range(count):
        tensor = inputs[position + offset]
        base = tensor.dtype.base_dtype
        if arg.list_attr:
            wanted = attrs[arg.list_attr][offset]
        elif arg.dtype is not None:
            wanted = arg.dtype
        else:
            wanted = attrs.setdefault(arg.type_attr, base)
        if base is not wanted:
            raise TypeError(
                f"input {arg.name!r} of {definition.name} has type {base.name}, but {wanted.name} is needed: {describe_inputs(inputs)}."
            )
        if arg.is_ref and not tensor.dtype.is_ref and base is not dtypes.resource:
            raise TypeError(f"input {arg.name!r} of {definition.name} must be a variable, not {tensor!r}.")
    return position + count


def _fixed_after(definition: OpDef, arg: ArgDef) -> int:
    """How many tensors the arguments behind the list argument ``arg`` take (they are single ones)."""
    names = [a.name for a in definition.inputs]
    return len(names) - 1 - names.index(arg.name)


def describe_inputs(inputs: Sequence[Tensor]) -> str:
    """Names, types and shapes of tensors, for messages."""
    return "[" + ", ".join(f"{t.name} {t.dtype.name}{TensorShape(t.static_shape)}" for t in inputs) + "]"
