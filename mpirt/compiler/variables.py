"""Who uses the variables of a step: what looks at the value of each, and what changes it.

To look is to read the variable or, on its own task, to compute with what was read or with a view of that: as long as this is to
come the array is held, and a change would have to copy it. What other tasks compute with is what came in a message.
Owns: which operations that take a variable itself don't change it. Fetches are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

from mpirt import dtypes
from mpirt.compiler.placer import Placement, resource_inputs
from mpirt.graph.function import VARIABLE_HANDLE
from mpirt.graph.graph import Operation, Tensor

# They take a variable itself, but only look. Any other operation that takes one may change it.
_LOOKING = frozenset(
    {
        "IsVariableInitialized", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarIsInitializedOp", "VariableShape",
        "_InitializedValue",
    }
)  # fmt: skip


class Uses(NamedTuple):
    """Of one variable: operations, by their positions among those of the step. None both looks and changes."""

    looks: list[int]
    changes: list[int]


def uses_of_variables(needed: Sequence[Operation], placement: Placement, feeds: Set[Tensor]) -> list[Uses]:
    """Of each variable that some of the operations ``needed`` (in creation order) look at and others change."""
    variable: dict[Tensor, Tensor] = {}  # behind each tensor that is a variable itself
    found: dict[Tensor, Uses] = {}
    for i, op in enumerate(needed):
        handles = resource_inputs(op) if op.definition.takes_handles else ()
        for handle in handles:
            variable.setdefault(handle, handle)
        if handles:
            variable.update((t, variable[handles[0]]) for t in op.outputs if t.dtype.is_ref or t.dtype is dtypes.resource)
            if op.type not in _LOOKING and op.type != VARIABLE_HANDLE:
                for each in _variables(handles, variable):
                    found.setdefault(each, Uses([], [])).changes.append(i)
    if found:
        _find_looks(needed, placement, feeds, {tensor: each for tensor, each in variable.items() if each in found}, found)
    return [uses for uses in found.values() if uses.looks]


def _find_looks(
    needed: Sequence[Operation], placement: Placement, feeds: Set[Tensor], variable: dict[Tensor, Tensor], found: dict[Tensor, Uses]
) -> None:
    """Add who looks at the variables in ``found``; ``variable`` is what is behind the tensors that are them."""
    held = dict(variable)  # also behind each tensor that is a variable's array or a view of it
    for i, op in enumerate(needed):
        inputs = op.inputs
        if held.keys().isdisjoint(inputs) or op.type == VARIABLE_HANDLE:
            continue
        task = placement[op].task
        changed = _variables(resource_inputs(op), variable) if op.type not in _LOOKING else ()
        for tensor in dict.fromkeys(inputs):
            each = held.get(tensor)
            if each is None or each in changed:
                continue
            here = task == placement[each.op].task
            if (here or tensor in variable) and found[each].looks[-1:] != [i]:
                found[each].looks.append(i)
            if here and tensor is inputs[0] and _may_keep(op) and op.outputs[0] not in feeds:
                held[op.outputs[0]] = each


def _variables(handles: Sequence[Tensor], variable: dict[Tensor, Tensor]) -> dict[Tensor, None]:
    return dict.fromkeys([variable[t] for t in handles if t in variable])


def _may_keep(op: Operation) -> bool:
    """Whether the result may be the first input, or the value of the variable that this is, or a view of it."""
    kernel = op.definition.kernels.get("CPU")
    return op.type == "ReadVariableOp" or kernel is not None and kernel.memory == "view"
