"""Constants of a step: what the graph fixes is computed once while planning, and every task that needs it has it from the start.

Guarantees:

- a folded tensor is what its operations' own kernels give, bit for bit; what they refuse is left to the step, which says it best;
- a value depends on the graph alone, so all ranks and all steps find the same one;
- what is fetched, fed, waits for something, or may have an effect still runs; nothing is folded that a GPU would compute.

Small constants, given or folded, then have no edges: they are copied to their consumers while planning (in a session on servers:
sent once). Large ones would take memory in every task, so they stay where they are.
Neighbours: ``prune`` cuts the graph at what is found here; which operations may be folded says ``graph.constants``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any

import numpy as np

from mpirt.compiler.placer import Placement
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import op_def
from mpirt.graph.shapes import is_static, num_elements
from mpirt.ops.collective_ops import HUBS

CONSTANT_NBYTES = 1 << 16  # larger ones are sent; a message with the nodes of a session holds smaller ones as they are
MOST_NBYTES = 1 << 24  # of all values that are held while planning; what is left over runs in the step

Constants = dict[Tensor, Operation]  # what every task knows from the start, with the Const that holds its value


def fold_constants(needed: Iterable[Operation], leaves: Sequence[Tensor | Operation], fed: Set[Tensor], placement: Placement) -> Constants:
    """The tensors that the step's operations read and that no task has to compute or to send.

    Parameters
    ----------
    needed : operations of the step, in creation order
    leaves : what is fetched
    fed : tensors that values stand for
    placement : devices of ``needed``
    """
    fetched = set(leaves)
    values: dict[Tensor, Operation | np.ndarray[Any, Any]] = {}
    read: dict[Tensor, None] = {}  # of ``values``, by operations that run
    kept: set[Tensor] = set()  # that must stay where they are
    nbytes = 0
    for op in needed:
        inputs = op.inputs
        if not inputs:
            if op.type == "Const" and not op.control_inputs and op.outputs[0] not in fed and _is_small(op.outputs[0]):
                values[op.outputs[0]] = op
            continue
        found = None
        if op.type in constants.FOLDED and not op.control_inputs and nbytes <= MOST_NBYTES:
            for tensor in inputs:
                if tensor not in values:
                    break
            else:
                if fed.isdisjoint(op.outputs) and placement[op].type == "CPU" and all(map(_is_small, op.outputs)):
                    found = _outputs(op, [_array(values[t]) for t in inputs])
        if found is not None:
            values.update(zip(op.outputs, found, strict=True))
            nbytes += sum(array.nbytes for array in found)
            if op not in fetched and fetched.isdisjoint(op.outputs):
                continue
        if op.type in HUBS:  # whose inputs are where their tasks are
            kept.update(inputs)
        read.update((t, None) for t in inputs if t in values)
    return {t: _constant(t, values[t]) for t in read if t not in kept and t not in fetched and t.op not in fetched}


def _is_small(tensor: Tensor) -> bool:
    """Whether a tensor may be a constant everywhere: numbers, of a known size that isn't large."""
    dtype, shape = tensor.dtype, tensor.static_shape
    if dtype.is_ref or dtype.size == 0 or not is_static(shape):
        return False
    return (num_elements(shape) or 0) * dtype.size < CONSTANT_NBYTES


def _array(value: Operation | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return value.attrs["value"] if isinstance(value, Operation) else value


def _outputs(op: Operation, inputs: Collection[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]] | None:
    """The outputs of ``op``, in memory of their own that nobody writes to; None if they aren't what was promised."""
    found = constants.computed(op, list(inputs))
    if found is None or len(found) != len(op.outputs):
        return None
    arrays = []
    for array, tensor in zip(found, op.outputs, strict=True):
        if array.dtype != tensor.dtype.np_dtype or array.shape != tensor.static_shape:
            return None
        own = np.array(array, order="C")
        own.flags.writeable = False
        arrays.append(own)
    return arrays


def _constant(tensor: Tensor, value: Operation | np.ndarray[Any, Any]) -> Operation:
    """The Const of a tensor: the same one for all steps, so that a server is told of it once. No user can give it this name."""
    if isinstance(value, Operation):
        return value
    known: dict[Tensor, Operation] = tensor.graph.ops_state.setdefault(__name__, {})
    if tensor not in known:
        source, dtype = tensor.op, tensor.dtype
        attrs = {"dtype": dtype, "value": value}
        op = Operation(source.graph, f"_folded/{source.name}/{tensor.value_index}", op_def("Const"), (), attrs, source.traceback)
        op.outputs = (Tensor(op, 0, dtype, tensor.static_shape),)
        op.index = source.index
        known.setdefault(tensor, op)
    return known[tensor]
