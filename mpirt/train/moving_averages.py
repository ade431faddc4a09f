"""Exponential moving averages of variables and tensors, each beside what it averages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mpirt import dtypes
from mpirt.graph.graph import Graph, GraphKeys, Operation, Tensor, get_default_graph
from mpirt.ops.apply import convert_to_tensor
from mpirt.ops.control_flow_ops import group
from mpirt.ops.init_ops import zeros_initializer
from mpirt.ops.math_ops import cast, minimum, pow
from mpirt.ops.state_ops import assign_add, assign_sub
from mpirt.ops.variable_scope import get_variable
from mpirt.ops.variables import Variable
from mpirt.train import slot_creator

__all__ = ["ExponentialMovingAverage", "assign_moving_average"]

_FLOATING = (dtypes.float16, dtypes.float32, dtypes.float64)


def assign_moving_average(variable: Any, value: Any, decay: Any, zero_debias: bool = True, name: str | None = None) -> Tensor:
    """Move ``variable`` towards ``value``: ``variable -= (1 - decay) * (variable - value)``.

    Parameters
    ----------
    variable : the moving average
    value : tensor of the same shape
    decay : between 0 and 1, near 1 for slow averages
    zero_debias : correct for a start at zero (Kingma & Ba, section 3)

    Notes
    -----
    The difference is computed beside the variable, so that ``value`` is all that crosses devices.
    """
    graph = get_default_graph()
    with graph.name_scope(name or "AssignMovingAvg") as scope, graph.colocate_with(variable):
        dtype = variable.dtype.base_dtype
        weight = cast(convert_to_tensor(1.0 - decay, name="weight"), dtype)
        target = convert_to_tensor(value, dtype)
        delta = _unbiased_delta(graph, variable, target, weight) if zero_debias else (variable.value() - target) * weight
        return assign_sub(variable, delta, name=scope)


def _unbiased_delta(graph: Graph, variable: Any, value: Tensor, weight: Tensor) -> Tensor:
    """What to subtract from ``variable`` so that it is the average of all values so far, none of them the start."""
    dtype = variable.dtype.base_dtype
    with graph.control_dependencies(None):
        zeros = zeros_initializer()
        biased = get_variable(
            f"{variable.op.name}/biased", shape=variable.shape, dtype=dtype, initializer=zeros, trainable=False
        )
        count = get_variable(f"{variable.op.name}/local_step", shape=[], dtype=dtype, initializer=zeros, trainable=False)
    moved = assign_sub(biased, (biased.value() - value) * weight)
    counted = assign_add(count, convert_to_tensor(1, dtype))
    unbiased: Tensor = moved / (1 - pow(1 - weight, counted))
    delta: Tensor = variable.value() - unbiased
    return delta


class ExponentialMovingAverage:
    """Moving averages of variables: ``average -= (1 - decay) * (average - variable)`` at each ``apply``.

    Parameters
    ----------
    decay : number or tensor, near 1
    num_updates : number of steps so far; the decay is then at most ``(1 + num_updates) / (10 + num_updates)``, so that
        the first values count more
    zero_debias : correct averages of tensors for their start at zero
    name : the average of ``w`` is named ``w/<name>``
    """

    def __init__(
        self, decay: Any, num_updates: Any = None, zero_debias: bool = False, name: str = "ExponentialMovingAverage"
    ) -> None:
        self._decay = decay
        self._num_updates = num_updates
        self._zero_debias = zero_debias
        self._name = name
        self._averages: dict[Any, Any] = {}

    @property
    def name(self) -> str:
        """Name of the averages."""
        return self._name

    def apply(self, var_list: Iterable[Any] | None = None) -> Operation:
        """The operation that moves the averages of ``var_list``; makes them the first time.

        Parameters
        ----------
        var_list : variables or tensors, by default all trainable variables

        Raises
        ------
        TypeError
            If one isn't floating; ValueError if one has an average already.
        """
        graph = get_default_graph()
        chosen = list(graph.get_collection(GraphKeys.TRAINABLE_VARIABLES) if var_list is None else var_list)
        debiased = set()
        for var in chosen:
            if var.dtype.base_dtype not in _FLOATING:
                raise TypeError(f"The variables must be half, float, or double: {var.name} is {var.dtype.name}.")
            if var in self._averages:
                raise ValueError(f"Moving average already computed for: {var.name}")
            with graph.control_dependencies(None):
                if isinstance(var, Variable):
                    average = slot_creator.create_slot(var, var.initialized_value(), self._name)
                    graph.add_to_collection(GraphKeys.MOVING_AVERAGE_VARIABLES, var)
                else:
                    average = slot_creator.create_zeros_slot(var, self._name, colocate_with_primary=False)
                    if self._zero_debias:
                        debiased.add(var)
            self._averages[var] = average
        with graph.name_scope(self._name) as scope:
            decay = convert_to_tensor(self._decay, name="decay")
            if self._num_updates is not None:
                updates = cast(convert_to_tensor(self._num_updates), dtypes.float32, name="num_updates")
                decay = minimum(decay, (1.0 + updates) / (10.0 + updates))
            moved = [assign_moving_average(self._averages[v], v, decay, zero_debias=v in debiased) for v in chosen]
            return group(*moved, name=scope)

    def average(self, var: Any) -> Any:
        """The variable that holds the average of ``var``, or None."""
        return self._averages.get(var)

    def average_name(self, var: Any) -> str:
        """Name of the average of ``var`` in checkpoints, whether or not it has been made."""
        if var in self._averages:
            return str(self._averages[var].op.name)
        return str(get_default_graph().unique_name(f"{var.op.name}/{self._name}", mark_as_used=False))

    def variables_to_restore(self, moving_avg_variables: Iterable[Any] | None = None) -> dict[str, Any]:
        """Map from names in a checkpoint to variables: averaged variables are restored from their averages.

        Parameters
        ----------
        moving_avg_variables : variables that have averages, by default the trainable ones and those in
            MOVING_AVERAGE_VARIABLES; all other variables go by their own names
        """
        graph = get_default_graph()
        if moving_avg_variables is None:
            averaged = graph.get_collection(GraphKeys.TRAINABLE_VARIABLES)
            averaged += graph.get_collection(GraphKeys.MOVING_AVERAGE_VARIABLES)
        else:
            averaged = list(moving_avg_variables)
        averaged = list(dict.fromkeys(averaged))
        names = {self.average_name(v): v for v in averaged}
        for var in graph.get_collection(GraphKeys.GLOBAL_VARIABLES):
            if var not in averaged and var.op.name not in names:
                names[var.op.name] = var
        return names
