"""The user's ``Variable``: state that lives on a task and survives steps, and the collections of variables.

A variable is four operations, as TensorFlow 1 builds them: ``v`` (the state), ``v/initial_value``, ``v/Assign`` (its
initialiser) and ``v/read`` (a snapshot beside the state, which its plain uses share). Snapshots are consistent: a step's
updates never show in a value that was read before, so ``use_resource`` has nothing to add and is accepted and ignored.
Operations that an initial value's function builds get no device but the group ``loc:@v``: they run where the variable is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import DType
from mpirt.graph.graph import Graph, GraphKeys, Operation, Tensor, get_default_graph
from mpirt.graph.shapes import TensorShape, as_shape, is_static, text
from mpirt.ops import scatter_state_ops, state_ops
from mpirt.ops.apply import apply_op, constant, convert_to_tensor, unimplemented
from mpirt.ops.concat_ops import stack
from mpirt.ops.control_flow_ops import group
from mpirt.ops.gather_ops import boolean_mask
from mpirt.ops.identity_ops import identity
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.logic_ops import logical_not

__all__ = [
    "Variable", "VariableAggregation", "VariableSynchronization", "all_variables", "assert_variables_initialized",
    "global_variables", "global_variables_initializer", "initialize_all_variables", "initialize_local_variables",
    "initialize_variables", "is_variable_initialized", "local_variables", "local_variables_initializer", "model_variables",
    "moving_average_variables", "report_uninitialized_variables", "trainable_variables", "variables_initializer",
]  # fmt: skip


# Marks the operation of a variable in LOCAL_VARIABLES, one process's own: a device setter keeps it off the parameter servers.
LOCAL_VARIABLE_ATTR = "_local_variable"


class VariableSynchronization(enum.Enum):
    """When a replicated variable is synchronised; kept with the variable, and without effect here."""

    AUTO = 0
    NONE = 1
    ON_WRITE = 2
    ON_READ = 3


class VariableAggregation(enum.Enum):
    """How a replicated variable is aggregated; kept with the variable, and without effect here."""

    NONE = 0
    SUM = 1
    MEAN = 2
    ONLY_FIRST_REPLICA = 3
    ONLY_FIRST_TOWER = 3


class Variable:
    """State on a task, with an initial value.

    Parameters
    ----------
    initial_value : value, tensor, or function without arguments that makes one
        A function is called beside the variable: what it builds runs on the variable's device.
    trainable : put it into TRAINABLE_VARIABLES too (the default)
    collections : where to put it, by default GLOBAL_VARIABLES
    validate_shape : False allows an initial value of unknown shape, and later ones of other shapes
    caching_device : device of the snapshot that plain uses read, by default the variable's own
    name : name of the variable, made unique
    dtype : element type, by default that of the initial value
    constraint : function that optimizers apply to the value after each update
    use_resource : accepted; snapshots are consistent in any case
    synchronization, aggregation : kept as attributes
    shape : static shape, by default the initial value's; may leave sizes unknown

    Raises
    ------
    ValueError
        If there is no initial value, or its shape is unknown and ``validate_shape`` is set.
    """

    __array_priority__ = 100  # numpy leaves ``array + variable`` to us

    def __init__(
        self,
        initial_value: Any = None,
        trainable: bool | None = None,
        collections: Sequence[str] | None = None,
        validate_shape: bool = True,
        caching_device: Any = None,
        name: str | None = None,
        variable_def: Any = None,
        dtype: Any = None,
        expected_shape: Any = None,
        import_scope: str | None = None,
        constraint: Callable[[Any], Any] | None = None,
        use_resource: bool | None = None,
        synchronization: VariableSynchronization = VariableSynchronization.AUTO,
        aggregation: VariableAggregation = VariableAggregation.NONE,
        shape: Any = None,
    ) -> None:
        if variable_def is not None or import_scope is not None:
            raise unimplemented("Variable(variable_def=...), a variable made from a protocol buffer,")
        if initial_value is None:
            raise ValueError("initial_value must be specified.")
        if constraint is not None and not callable(constraint):
            raise ValueError("The `constraint` argument must be a callable.")
        if collections is None:
            collections = [GraphKeys.GLOBAL_VARIABLES]
        if isinstance(collections, str) or not hasattr(collections, "__iter__"):
            raise ValueError(f"the collections of a variable are a list, tuple or set of names, not {collections!r}.")
        self.trainable = trainable is None or bool(trainable)
        self.constraint = constraint
        self.synchronization = synchronization
        self.aggregation = aggregation
        graph = get_default_graph()
        wanted = None if dtype is None else dtypes.as_dtype(dtype).base_dtype
        with graph.control_dependencies(None), graph.name_scope(name or "Variable") as scope:
            made = callable(initial_value)
            beside = {"_class": ["loc:@" + scope[:-1]]}
            with graph.attr_scope(beside) if made else nullcontext():
                if made:
                    with graph.name_scope("Initializer"), graph.device(None):
                        self._initial_value = convert_to_tensor(initial_value(), wanted, "initial_value")
                else:
                    self._initial_value = convert_to_tensor(initial_value, wanted, "initial_value")
                static = as_shape(shape) if shape is not None else self._initial_value.static_shape if validate_shape else None
                if validate_shape and not is_static(self._initial_value.static_shape):
                    raise ValueError(f"initial_value must have a shape specified: {self._initial_value!r}")
                local = {LOCAL_VARIABLE_ATTR: True} if GraphKeys.LOCAL_VARIABLES in collections else {}
                with graph.attr_scope(local):
                    self._variable = state_ops.variable_op(static, self._initial_value.dtype.base_dtype, scope)
            # What is assigned: the initial value, or the same computed without reading variables that may have no value yet.
            self._start = self._initial_value if made else _without_uninitialized(self._initial_value, self.op.name)
            self._initializer = state_ops.assign(self._variable, self._start, validate_shape).op
            with graph.colocate_with(self.op) if caching_device is None else graph.device(caching_device):
                self._snapshot = identity(self._variable, "read")
        keys = list(collections)
        if self.trainable and GraphKeys.TRAINABLE_VARIABLES not in keys:
            keys.append(GraphKeys.TRAINABLE_VARIABLES)
        graph.add_to_collections(keys, self)
        graph.ops_state.setdefault(__name__, {})[self.op.name] = self

    # ---- what it is

    @property
    def name(self) -> str:
        """Name of the reference tensor: ``v:0``."""
        return self._variable.name

    @property
    def op(self) -> Operation:
        """The operation that holds the state."""
        return self._variable.op

    @property
    def dtype(self) -> DType:
        """The reference type of the elements' type, as in TensorFlow 1."""
        return self._variable.dtype

    @property
    def shape(self) -> TensorShape:
        """Static shape."""
        return self._variable.shape

    def get_shape(self) -> TensorShape:
        """Static shape (TensorFlow 1's spelling)."""
        return self._variable.shape

    def set_shape(self, shape: Any) -> None:
        """Add what is known of the shape; ValueError if it contradicts what was known."""
        self._variable.set_shape(shape)
        self._snapshot.set_shape(shape)

    @property
    def device(self) -> str:
        """Device asked for by the variable, as written."""
        return self._variable.device

    @property
    def graph(self) -> Graph:
        """The graph this variable belongs to."""
        return self._variable.graph

    @property
    def initializer(self) -> Operation:
        """The operation that sets the initial value."""
        return self._initializer

    @property
    def initial_value(self) -> Tensor:
        """The tensor of the initial value."""
        return self._initial_value

    # ---- reading

    def value(self) -> Tensor:
        """What plain uses of the variable read: a snapshot that they share, made where the variable is.

        In a ``control_dependencies`` block a snapshot of its own, so that it shows the changes waited for.
        """
        return self.read_value() if self.graph.waiting_for() else self._snapshot

    def read_value(self) -> Tensor:
        """A new snapshot, made after the operations it is told to wait for.

        It is made beside the variable (TensorFlow: in the open device scope): only there can a change come before it.
        """
        with self._variable.graph.colocate_with(self.op):
            return identity(self._variable, "read")

    def initialized_value(self) -> Tensor:
        """The value if there is one yet, else the initial value: to make another variable's initial value of."""
        value: Tensor = apply_op("_InitializedValue", self, self._start, name="initialized_value")
        return value

    def eval(self, session: Any = None) -> Any:
        """Value in ``session`` or the default session."""
        return self._variable.eval(session=session)

    def sparse_read(self, indices: Any, name: str | None = None) -> Tensor:
        """The rows ``indices`` of the value, gathered where the variable is."""
        with self.graph.colocate_with(self.op):
            rows: Tensor = apply_op("GatherV2", self.value(), indices, constant(0, name="axis"), name=name)
        return rows

    # ---- changing

    def assign(self, value: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> Any:
        """Set the value; returns the reference tensor after it, or with ``read_value=False`` the operation."""
        return _result(state_ops.assign(self._variable, value, None, use_locking, name), read_value)

    def assign_add(self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> Any:
        """Add ``delta``; returns as ``assign`` does."""
        return _result(state_ops.assign_add(self._variable, delta, use_locking, name), read_value)

    def assign_sub(self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> Any:
        """Subtract ``delta``; returns as ``assign`` does."""
        return _result(state_ops.assign_sub(self._variable, delta, use_locking, name), read_value)

    def scatter_update(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Set the rows ``sparse_delta.indices`` to ``sparse_delta.values``."""
        return self._scatter(scatter_state_ops.scatter_update, sparse_delta, use_locking, name)

    def scatter_add(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Add the rows of ``sparse_delta``."""
        return self._scatter(scatter_state_ops.scatter_add, sparse_delta, use_locking, name)

    def scatter_sub(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Subtract the rows of ``sparse_delta``."""
        return self._scatter(scatter_state_ops.scatter_sub, sparse_delta, use_locking, name)

    def scatter_mul(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Multiply by the rows of ``sparse_delta``."""
        return self._scatter(scatter_state_ops.scatter_mul, sparse_delta, use_locking, name)

    def scatter_div(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Divide by the rows of ``sparse_delta``."""
        return self._scatter(scatter_state_ops.scatter_div, sparse_delta, use_locking, name)

    def scatter_min(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Lower rows to those of ``sparse_delta`` where these are smaller."""
        return self._scatter(scatter_state_ops.scatter_min, sparse_delta, use_locking, name)

    def scatter_max(self, sparse_delta: IndexedSlices, use_locking: bool = False, name: str | None = None) -> Tensor:
        """Raise rows to those of ``sparse_delta`` where these are larger."""
        return self._scatter(scatter_state_ops.scatter_max, sparse_delta, use_locking, name)

    def _scatter(self, function: Callable[..., Tensor], delta: IndexedSlices, use_locking: bool, name: str | None) -> Tensor:
        if not isinstance(delta, IndexedSlices):
            raise TypeError(f"sparse_delta is not IndexedSlices: {delta!r}")
        return function(self._variable, delta.indices, delta.values, use_locking=use_locking, name=name)

    def scatter_nd_update(self, indices: Any, updates: Any, name: str | None = None) -> Tensor:
        """Set entries or slices; see ``tf.scatter_nd_update``."""
        return scatter_state_ops.scatter_nd_update(self._variable, indices, updates, True, name)

    def scatter_nd_add(self, indices: Any, updates: Any, name: str | None = None) -> Tensor:
        """Add to entries or slices; see ``tf.scatter_nd_update``."""
        return scatter_state_ops.scatter_nd_add(self._variable, indices, updates, True, name)

    def scatter_nd_sub(self, indices: Any, updates: Any, name: str | None = None) -> Tensor:
        """Subtract from entries or slices; see ``tf.scatter_nd_update``."""
        return scatter_state_ops.scatter_nd_sub(self._variable, indices, updates, True, name)

    def count_up_to(self, limit: int) -> Tensor:
        """The value before it grows by one; see ``tf.count_up_to``."""
        return state_ops.count_up_to(self._variable, limit)

    def load(self, value: Any, session: Any = None) -> None:
        """Set the value in ``session`` (or the default session) to an array, without a new operation."""
        self._initializer.run({self._initializer.inputs[1]: value}, session)

    # ---- how the graph layer and operators see it

    def _as_tensor(self, as_ref: bool) -> Tensor:
        return self._variable if as_ref else self.value()

    def _as_graph_element(self) -> Tensor:
        return self._variable

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError(f"{self!r} is not iterable.")

    def __bool__(self) -> bool:
        return bool(self.value())

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<mpirt.Variable {self.name!r} shape={text(self._variable.static_shape)} dtype={self.dtype.name}>"

    # One line each, as a table.
    # fmt: off
    def __getitem__(self, key: Any) -> Tensor: return self.value()[key]
    def __add__(self, other: Any) -> Tensor: return self.value().__add__(other)
    def __radd__(self, other: Any) -> Tensor: return self.value().__radd__(other)
    def __sub__(self, other: Any) -> Tensor: return self.value().__sub__(other)
    def __rsub__(self, other: Any) -> Tensor: return self.value().__rsub__(other)
    def __mul__(self, other: Any) -> Tensor: return self.value().__mul__(other)
    def __rmul__(self, other: Any) -> Tensor: return self.value().__rmul__(other)
    def __truediv__(self, other: Any) -> Tensor: return self.value().__truediv__(other)
    def __rtruediv__(self, other: Any) -> Tensor: return self.value().__rtruediv__(other)
    def __floordiv__(self, other: Any) -> Tensor: return self.value().__floordiv__(other)
    def __rfloordiv__(self, other: Any) -> Tensor: return self.value().__rfloordiv__(other)
    def __mod__(self, other: Any) -> Tensor: return self.value().__mod__(other)
    def __rmod__(self, other: Any) -> Tensor: return self.value().__rmod__(other)
    def __pow__(self, other: Any) -> Tensor: return self.value().__pow__(other)
    def __rpow__(self, other: Any) -> Tensor: return self.value().__rpow__(other)
    def __matmul__(self, other: Any) -> Tensor: return self.value().__matmul__(other)
    def __rmatmul__(self, other: Any) -> Tensor: return self.value().__rmatmul__(other)
    def __and__(self, other: Any) -> Tensor: return self.value().__and__(other)
    def __rand__(self, other: Any) -> Tensor: return self.value().__rand__(other)
    def __or__(self, other: Any) -> Tensor: return self.value().__or__(other)
    def __ror__(self, other: Any) -> Tensor: return self.value().__ror__(other)
    def __xor__(self, other: Any) -> Tensor: return self.value().__xor__(other)
    def __rxor__(self, other: Any) -> Tensor: return self.value().__rxor__(other)
    def __neg__(self) -> Tensor: return -self.value()
    def __abs__(self) -> Tensor: return abs(self.value())
    def __invert__(self) -> Tensor: return ~self.value()
    def __lt__(self, other: Any) -> Tensor: return self.value().__lt__(other)
    def __le__(self, other: Any) -> Tensor: return self.value().__le__(other)
    def __gt__(self, other: Any) -> Tensor: return self.value().__gt__(other)
    def __ge__(self, other: Any) -> Tensor: return self.value().__ge__(other)
    # fmt: on


def _result(ref: Tensor, read_value: bool) -> Tensor | Operation:
    return ref if read_value else ref.op


def _without_uninitialized(value: Tensor, name: str) -> Tensor:
    """``value`` computed from ``initialized_value()`` of the variables it depends on, so that one run initialises all."""
    variables: dict[str, Variable] = value.graph.ops_state.get(__name__, {})
    replaced: dict[Operation, Sequence[Tensor]] = {}
    # Producers come first in creation order, so no recursion is needed.
    for op in sorted(_ancestors(value.op), key=lambda op: op.index):
        if op.name in variables and op is variables[op.name].op:
            replaced[op] = [variables[op.name].initialized_value()]
        elif any(t.op in replaced for t in op.inputs) and not any(arg.is_ref for arg in op.definition.inputs):
            inputs = [replaced[t.op][t.value_index] if t.op in replaced else t for t in op.inputs]
            copied = {k: v for k, v in op.attrs.items() if k != "_class"}
            replaced[op] = value.graph.create_op(op.type, inputs, copied, f"{op.type}_{name.rpartition('/')[2]}").outputs
    return replaced[value.op][value.value_index] if value.op in replaced else value


def _ancestors(op: Operation) -> set[Operation]:
    found: set[Operation] = set()
    pending = [op]
    while pending:
        op = pending.pop()
        # The initial values behind an initialised value are safe already.
        if op not in found and op.type not in ("IsVariableInitialized", "_InitializedValue"):
            found.add(op)
            pending += [t.op for t in op.inputs]
    return found


# ------------------------------------------------------------------------------------------------------ collections


def global_variables(scope: str | None = None) -> list[Any]:
    """Variables that all tasks share; with ``scope`` those whose name matches that prefix (a regular expression)."""
    return get_default_graph().get_collection(GraphKeys.GLOBAL_VARIABLES, scope)


def all_variables() -> list[Any]:
    """The same as ``global_variables`` (TensorFlow's oldest name)."""
    return global_variables()


def local_variables(scope: str | None = None) -> list[Any]:
    """Variables of the collection LOCAL_VARIABLES: per process, not saved."""
    return get_default_graph().get_collection(GraphKeys.LOCAL_VARIABLES, scope)


def trainable_variables(scope: str | None = None) -> list[Any]:
    """Variables that optimizers train."""
    return get_default_graph().get_collection(GraphKeys.TRAINABLE_VARIABLES, scope)


def model_variables(scope: str | None = None) -> list[Any]:
    """Variables of the collection MODEL_VARIABLES."""
    return get_default_graph().get_collection(GraphKeys.MODEL_VARIABLES, scope)


def moving_average_variables(scope: str | None = None) -> list[Any]:
    """Variables that have a moving average."""
    return get_default_graph().get_collection(GraphKeys.MOVING_AVERAGE_VARIABLES, scope)


def variables_initializer(var_list: Sequence[Any], name: str = "init") -> Operation:
    """An operation that runs the initialisers of ``var_list``."""
    return group(*[v.initializer for v in var_list], name=name)


def global_variables_initializer() -> Operation:
    """An operation that initialises all global variables."""
    return variables_initializer(global_variables())


def local_variables_initializer() -> Operation:
    """An operation that initialises all local variables."""
    return variables_initializer(local_variables())


def initialize_variables(var_list: Sequence[Any], name: str = "init") -> Operation:
    """The same as ``variables_initializer`` (TensorFlow's older name)."""
    return variables_initializer(var_list, name)


def initialize_all_variables() -> Operation:
    """The same as ``global_variables_initializer`` (TensorFlow's older name)."""
    return global_variables_initializer()


def initialize_local_variables() -> Operation:
    """The same as ``local_variables_initializer`` (TensorFlow's older name)."""
    return local_variables_initializer()


def is_variable_initialized(variable: Any) -> Tensor:
    """Whether the variable has a value: a bool scalar."""
    initialized: Tensor = apply_op("IsVariableInitialized", variable)
    return initialized


def report_uninitialized_variables(
    var_list: Sequence[Any] | None = None, name: str = "report_uninitialized_variables"
) -> Tensor:
    """Names of the variables (by default all global and local ones) that have no value: a string vector."""
    found = [*global_variables(), *local_variables()] if var_list is None else list(var_list)
    graph = get_default_graph()
    with graph.name_scope(name):
        if not found:
            return constant(np.zeros(0, object), dtypes.string)
        flags = [is_variable_initialized(v) for v in found]
        with graph.device("/cpu:0"):
            missing = logical_not(stack(flags))
            return boolean_mask(constant([v.op.name for v in found]), missing)


def assert_variables_initialized(var_list: Sequence[Any] | None = None) -> Operation | None:
    """An operation that fails with FailedPreconditionError if a variable (by default of all) has no value; None without any."""
    found = [*global_variables(), *local_variables()] if var_list is None else list(var_list)
    if not found:
        return None
    graph = get_default_graph()
    reads = []
    for variable in found:
        with graph.colocate_with(variable.op):
            reads.append(variable.read_value())
    return group(*reads, name="assert_variables_initialized")
