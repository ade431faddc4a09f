"""What all optimizers share: gradients of a loss, slots beside the variables, update operations, the global step.

An optimizer is a graph builder; it holds no values. Guarantees: slots and updates of a variable are colocated with it;
the training operation is done when all updates are, and with a global step it is the step's increment, which waits for
them. A subclass gives ``_create_slots``, ``_prepare``, ``_apply_dense`` and ``_apply_sparse``, TensorFlow's names, so that
optimizers written for TensorFlow 1 fit.
Does not own: the arithmetic of updates (``ops.training_ops``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from mpirt import dtypes
from mpirt.dtypes import DType
from mpirt.gradients import gradients
from mpirt.graph.graph import Graph, GraphKeys, Operation, Tensor, get_default_graph
from mpirt.ops import math_ops, training_ops
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.control_flow_ops import group
from mpirt.ops.control_flow_ops import tuple as tuple_
from mpirt.ops.indexed_slices import IndexedSlices, summed_rows
from mpirt.ops.init_ops import constant_initializer
from mpirt.ops.partitioned_variables import PartitionedVariable
from mpirt.ops.state_ops import assign_add
from mpirt.ops.variables import Variable
from mpirt.train import slot_creator

__all__ = ["Optimizer"]

# Their op types must be registered before an optimizer builds its updates.
_REGISTERED_BY = (math_ops, training_ops)


class Optimizer:
    """Base class of optimizers.

    Parameters
    ----------
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations and of the slots
    use_own_namescope_for_non_slot_vars : name variables that belong to no one variable ``<name>/...``

    Raises
    ------
    ValueError
        If ``name`` is empty.
    """

    GATE_NONE = 0
    GATE_OP = 1
    GATE_GRAPH = 2

    def __init__(self, use_locking: bool, name: str, use_own_namescope_for_non_slot_vars: bool = False) -> None:
        if not name:
            raise ValueError("Must specify the optimizer name")
        self._use_locking = use_locking
        self._name = name
        self._use_own_namescope_for_non_slot_vars = use_own_namescope_for_non_slot_vars
        self._slots: dict[str, dict[Any, Any]] = {}
        self._non_slots: dict[tuple[str, Graph], Any] = {}

    def get_name(self) -> str:
        """The optimizer's name."""
        return self._name

    # ---- what users call

    def minimize(
        self,
        loss: Any,
        global_step: Any = None,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
    ) -> Operation:
        """The operation of one training step: ``compute_gradients``, then ``apply_gradients``.

        Raises
        ------
        ValueError
            If no variable has a gradient.
        """
        grads_and_vars = self.compute_gradients(
            loss,
            var_list=var_list,
            gate_gradients=gate_gradients,
            aggregation_method=aggregation_method,
            colocate_gradients_with_ops=colocate_gradients_with_ops,
            grad_loss=grad_loss,
        )
        if all(grad is None for grad, _ in grads_and_vars):
            raise ValueError(
                "No gradients provided for any variable, check your graph for ops that do not support gradients, "
                f"between variables {[str(v) for _, v in grads_and_vars]} and loss {loss}."
            )
        return self.apply_gradients(grads_and_vars, global_step=global_step, name=name)

    def compute_gradients(
        self,
        loss: Any,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
    ) -> list[tuple[Any, Any]]:
        """Pairs (gradient, variable) of ``loss``.

        Parameters
        ----------
        loss : tensor, or a function of no arguments that makes it
        var_list : variables (or tensors), of a partitioned one its slices, by default those in TRAINABLE_VARIABLES
        gate_gradients : GATE_NONE, GATE_OP (all input gradients of one operation before any of them is used) or GATE_GRAPH
            (all gradients before any is used)
        aggregation_method, colocate_gradients_with_ops : see ``gradients``
        grad_loss : gradient that arrives at the loss, by default ones

        Raises
        ------
        ValueError
            If there are no variables, or the loss or a variable isn't floating; TypeError if ``var_list`` holds others.
        """
        if callable(loss):
            loss = loss()
        if gate_gradients not in (Optimizer.GATE_NONE, Optimizer.GATE_OP, Optimizer.GATE_GRAPH):
            raise ValueError(
                "gate_gradients must be one of: Optimizer.GATE_NONE, Optimizer.GATE_OP, Optimizer.GATE_GRAPH. "
                f"Not {gate_gradients}"
            )
        self._assert_valid_dtypes([loss])
        if grad_loss is not None:
            self._assert_valid_dtypes([grad_loss])
        variables = (
            get_default_graph().get_collection(GraphKeys.TRAINABLE_VARIABLES) if var_list is None else _flatten(var_list)
        )
        if not variables:
            raise ValueError("No variables to optimize.")
        for var in variables:
            if not isinstance(var, Variable | Tensor):
                raise TypeError(f"Argument is not a variable: {var!r}")
        grads = gradients(
            loss,
            variables,
            grad_ys=grad_loss,
            gate_gradients=gate_gradients == Optimizer.GATE_OP,
            aggregation_method=aggregation_method,
            colocate_gradients_with_ops=colocate_gradients_with_ops,
        )
        if gate_gradients == Optimizer.GATE_GRAPH:
            grads = list(tuple_(grads))
        pairs = list(zip(grads, variables, strict=True))
        self._assert_valid_dtypes([v for g, v in pairs if g is not None])
        return pairs

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, Any]], global_step: Any = None, name: str | None = None
    ) -> Operation:
        """The operation that updates the variables from their gradients.

        Parameters
        ----------
        grads_and_vars : pairs (gradient, variable), as from ``compute_gradients``; a gradient of None is left out
        global_step : variable to add one to when all updates are done; the operation returned is then that increment, on
            the device of the step
        name : name of the operation, by default the optimizer's

        Raises
        ------
        TypeError
            If a gradient is no tensor or a variable no variable; ValueError if no variable has a gradient.
        """
        pairs = [(_as_gradient(grad), var) for grad, var in grads_and_vars]
        if not pairs:
            raise ValueError("No variables provided.")
        var_list = [var for grad, var in pairs if grad is not None]
        for var in var_list:
            if not isinstance(var, Variable):
                raise TypeError(f"can't apply a gradient to {var!r}: it is no variable.")
        if not var_list:
            raise ValueError(f"No gradients provided for any variable: {[v.name for _, v in pairs]}.")
        graph = get_default_graph()
        with graph.control_dependencies(None):
            self._create_slots(var_list)
        with graph.name_scope(name or self._name) as scope:
            self._prepare()
            updates: list[Operation | Tensor] = []
            for grad, var in pairs:
                if grad is not None:
                    with graph.name_scope(f"update_{var.op.name}"), graph.colocate_with(var):
                        updates.append(self._update_variable(grad, var))
            if global_step is None:
                train_op = _operation(self._finish(updates, scope))
            else:
                # Beside the step: anywhere else, each step would end with a message there and one back.
                with graph.device(global_step.device):
                    done = self._finish(updates, "update")
                with graph.control_dependencies([done]), graph.colocate_with(global_step):
                    one = convert_to_tensor(1, dtype=global_step.dtype.base_dtype, name="value")
                    train_op = _operation(assign_add(global_step, one, name=scope))
        train_ops = graph.get_collection_ref(GraphKeys.TRAIN_OP)
        if train_op not in train_ops:
            train_ops.append(train_op)
        return train_op

    def get_slot(self, var: Any, name: str) -> Any:
        """The slot ``name`` that belongs to ``var``, or None."""
        return self._slots.get(name, {}).get(var)

    def get_slot_names(self) -> list[str]:
        """Names of the slots, sorted."""
        return sorted(self._slots)

    def variables(self) -> list[Any]:
        """The optimizer's own variables of the current graph, sorted by name."""
        graph = get_default_graph()
        found = [slot for named in self._slots.values() for slot in named.values() if slot.graph is graph]
        found += [var for (_, g), var in self._non_slots.items() if g is graph]
        return sorted(found, key=lambda v: v.name)

    # ---- what a subclass gives

    def _valid_dtypes(self) -> set[DType]:
        """Types that a loss or variable may have."""
        return {*dtypes.FLOATING, *dtypes.COMPLEX}

    def _create_slots(self, var_list: list[Any]) -> None:
        """Make the slots of ``var_list``; called before each ``apply_gradients``."""

    def _prepare(self) -> None:
        """Make tensors of the hyper-parameters, inside the name scope of the updates."""

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        """The operation that updates ``var`` from a dense gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no _apply_dense")

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        """The operation that updates rows of ``var``; no row is named twice."""
        raise NotImplementedError(f"{type(self).__name__} has no _apply_sparse")

    def _apply_sparse_duplicate_indices(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        """As ``_apply_sparse``, for rows that may repeat: by default they are summed first.

        They are summed where the gradient is, so that each row is sent once to the variable's task.
        """
        return self._apply_sparse(summed_rows(grad), var)

    def _finish(self, update_ops: list[Operation | Tensor], name_scope: str) -> Operation:
        """The operation that is done when all updates are."""
        return group(*update_ops, name=name_scope)

    # ---- help for subclasses

    def _call_if_callable(self, param: Any) -> Any:
        return param() if callable(param) else param

    def _hyper(self, value: Any, name: str) -> Any:
        """A hyper-parameter (number, tensor or function) as a tensor."""
        return convert_to_tensor(self._call_if_callable(value), name=name)

    def _as_type(self, tensor: Tensor, var: Any) -> Tensor:
        """``tensor`` in the type of ``var``."""
        cast: Tensor = math_ops.cast(tensor, var.dtype.base_dtype)
        return cast

    def _update(self, op_type: str, var: Any, slots: Sequence[str], *args: Tensor, **attrs: Any) -> Tensor:
        """One of ``training_ops`` on ``var`` and its named slots."""
        cells = [self.get_slot(var, slot) for slot in slots]
        updated: Tensor = apply_op(op_type, var, *cells, *args, use_locking=self._use_locking, **attrs)
        return updated

    def _slot_dict(self, slot_name: str) -> dict[Any, Any]:
        return self._slots.setdefault(slot_name, {})

    def _get_or_make_slot(self, var: Any, val: Any, slot_name: str, op_name: str) -> Any:
        """The slot of ``var``, made with the initial value ``val`` the first time."""
        named = self._slot_dict(slot_name)
        if var not in named:
            named[var] = slot_creator.create_slot(var, val, op_name)
        return named[var]

    def _get_or_make_slot_with_initializer(
        self, var: Any, initializer: Any, shape: Any, dtype: Any, slot_name: str, op_name: str
    ) -> Any:
        """As ``_get_or_make_slot``, with an initializer for a slot of another shape or type."""
        named = self._slot_dict(slot_name)
        if var not in named:
            named[var] = slot_creator.create_slot_with_initializer(var, initializer, shape, dtype, op_name)
        return named[var]

    def _constant_slot(self, var: Any, value: float, slot_name: str, op_name: str) -> Any:
        """The slot of ``var``, of its shape and type, ``value`` everywhere at first."""
        dtype = var.dtype.base_dtype
        start = constant_initializer(value, dtype=dtype)
        return self._get_or_make_slot_with_initializer(var, start, var.shape, dtype, slot_name, op_name)

    def _zeros_slot(self, var: Any, slot_name: str, op_name: str) -> Any:
        """The slot of ``var``, zeros at first."""
        named = self._slot_dict(slot_name)
        if var not in named:
            named[var] = slot_creator.create_zeros_slot(var, op_name)
        return named[var]

    def _create_non_slot_variable(self, initial_value: Any, name: str, colocate_with: Any) -> Any:
        """A variable of the optimizer's own, beside the variable ``colocate_with``; made once a graph."""
        graph = get_default_graph()
        key = (name, graph)
        if key not in self._non_slots:
            scope = graph.name_scope(self._name) if self._use_own_namescope_for_non_slot_vars else nullcontext()
            with graph.colocate_with(colocate_with), scope:
                self._non_slots[key] = Variable(initial_value, name=name, trainable=False)
        return self._non_slots[key]

    def _get_non_slot_variable(self, name: str, graph: Graph | None = None) -> Any:
        return self._non_slots.get((name, graph or get_default_graph()))

    def _non_slot_variables(self) -> list[Any]:
        return list(self._non_slots.values())

    # ---- inside

    def _update_variable(self, grad: Tensor | IndexedSlices, var: Any) -> Operation | Tensor:
        constraint = getattr(var, "constraint", None)
        if isinstance(grad, IndexedSlices):
            if constraint is not None:
                raise RuntimeError("Cannot use a constraint function on a sparse variable.")
            return self._apply_sparse_duplicate_indices(grad, var)
        updated = self._apply_dense(grad, var)
        if constraint is None:
            return updated
        with get_default_graph().control_dependencies([updated]):
            constrained: Tensor = var.assign(constraint(var.read_value()))
            return constrained

    def _assert_valid_dtypes(self, tensors: Sequence[Any]) -> None:
        valid = self._valid_dtypes()
        for tensor in tensors:
            dtype = (
                convert_to_tensor(tensor).dtype.base_dtype
                if not hasattr(tensor, "dtype")
                else dtypes.as_dtype(tensor.dtype).base_dtype
            )
            if dtype not in valid:
                names = sorted(v.name for v in valid)
                raise ValueError(f"Invalid type {dtype.name} for {getattr(tensor, 'name', tensor)}, expected: {names}.")


def _flatten(var_list: Any) -> list[Any]:
    if isinstance(var_list, list | tuple | PartitionedVariable):
        return [var for item in var_list for var in _flatten(item)]
    return [var_list]


def _as_gradient(grad: Any) -> Tensor | IndexedSlices | None:
    if grad is None or isinstance(grad, Tensor | IndexedSlices):
        return grad
    try:
        return convert_to_tensor(grad)
    except (TypeError, ValueError):
        raise TypeError(f"Gradient must be convertible to a Tensor or IndexedSlices, or None: {grad!r}") from None


def _operation(done: Operation | Tensor) -> Operation:
    return done.op if isinstance(done, Tensor) else done
