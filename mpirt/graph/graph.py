"""What the user builds: ``Graph``, ``Operation``, ``Tensor`` and the scopes that are open while building.

Guarantees: operations are kept in creation order and every input exists before its consumer, so creation order is a
topological order; scopes belong to (graph, thread); each operation remembers the user's file and line.
Does not own: what an operation means (``op_def``), devices of the cluster (the placer), values (the runtime).
Background: device scopes follow TensorFlow 1 as observed; None is a barrier, functions see what is further in.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.cluster import device_spec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.dtypes import DType
from mpirt.graph import constants
from mpirt.graph.op_def import REQUIRED, ArgDef, OpDef, ShapeContext, arg_dtypes, op_def
from mpirt.graph.shapes import Shape, TensorShape, as_shape, merge

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_OP_NAME = re.compile(r"^[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*$")
_SCOPE_NAME = re.compile(r"^[A-Za-z0-9_.\\/>-]*$")
_MAX_FRAMES = 8

DeviceFunction = Callable[["Operation"], Any]


class GraphKeys:
    """Names of the standard collections (TensorFlow's)."""

    GLOBAL_VARIABLES = "variables"
    VARIABLES = "variables"
    LOCAL_VARIABLES = "local_variables"
    MODEL_VARIABLES = "model_variables"
    TRAINABLE_VARIABLES = "trainable_variables"
    METRIC_VARIABLES = "metric_variables"
    MOVING_AVERAGE_VARIABLES = "moving_average_variables"
    CONCATENATED_VARIABLES = "concatenated_variables"
    REGULARIZATION_LOSSES = "regularization_losses"
    LOSSES = "losses"
    SUMMARIES = "summaries"
    SUMMARY_OP = "summary_op"
    QUEUE_RUNNERS = "queue_runners"
    TABLE_INITIALIZERS = "table_initializer"
    ASSET_FILEPATHS = "asset_filepaths"
    WEIGHTS = "weights"
    BIASES = "biases"
    ACTIVATIONS = "activations"
    UPDATE_OPS = "update_ops"
    SAVERS = "savers"
    SAVEABLE_OBJECTS = "saveable_objects"
    INIT_OP = "init_op"
    LOCAL_INIT_OP = "local_init_op"
    READY_OP = "ready_op"
    READY_FOR_LOCAL_INIT_OP = "ready_for_local_init_op"
    GLOBAL_STEP = "global_step"
    TRAIN_OP = "train_op"
    COND_CONTEXT = "cond_context"
    WHILE_CONTEXT = "while_context"


class Tensor:
    """One output of an operation. It has no value; a session computes it."""

    __slots__ = ("op", "value_index", "dtype", "static_shape")
    __array_priority__ = 100  # numpy leaves ``array + tensor`` to us

    def __init__(self, op: Operation, value_index: int, dtype: DType, static_shape: Shape) -> None:
        self.op = op
        self.value_index = value_index
        self.dtype = dtype
        self.static_shape = static_shape

    @property
    def name(self) -> str:
        """Name as in feeds and fetches: ``op:index``."""
        return f"{self.op.name}:{self.value_index}"

    @property
    def graph(self) -> Graph:
        """The graph this tensor belongs to."""
        return self.op.graph

    @property
    def device(self) -> str:
        """Device asked for by the operation, as written."""
        return self.op.device

    @property
    def shape(self) -> TensorShape:
        """Static shape."""
        return TensorShape(self.static_shape)

    def get_shape(self) -> TensorShape:
        """Static shape (TensorFlow 1's spelling)."""
        return TensorShape(self.static_shape)

    def set_shape(self, shape: Any) -> None:
        """Add what is known of the shape; ValueError if it contradicts what was known."""
        self.static_shape = merge(self.static_shape, as_shape(shape))

    def consumers(self) -> list[Operation]:
        """Operations that read this tensor."""
        return [op for op in self.graph.get_operations() if any(t is self for t in op.inputs)]

    def eval(self, feed_dict: Any = None, session: Any = None) -> Any:
        """Value in ``session`` or the default session."""
        return _session(session, "eval()").run(self, feed_dict)

    def __iter__(self) -> Iterator[Tensor]:
        if self.static_shape is None or not self.static_shape or self.static_shape[0] is None:
            raise TypeError(f"can't iterate over {self!r}: the size of its first dimension is not known.")
        return iter([self[i] for i in range(self.static_shape[0])])

    def __bool__(self) -> bool:
        raise TypeError(
            f"the truth of {self!r} is not known while the graph is built. "
            "Use `if t is not None:` to test for a tensor, and tf.cond or tf.where for a choice made in the graph."
        )

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<mpirt.Tensor {self.name!r} shape={TensorShape(self.static_shape)} dtype={self.dtype.name}>"

    # Operators build operations; the functions come from the ops layer (``set_operator``).
    def __add__(self, other: Any) -> Tensor:
        return _operators["add"](self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _operators["add"](other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _operators["sub"](self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _operators["sub"](other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _operators["mul"](self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _operators["mul"](other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _operators["truediv"](self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _operators["truediv"](other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return _operators["floordiv"](self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return _operators["floordiv"](other, self)

    def __mod__(self, other: Any) -> Tensor:
        return _operators["mod"](self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return _operators["mod"](other, self)

    def __pow__(self, other: Any) -> Tensor:
        return _operators["pow"](self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return _operators["pow"](other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _operators["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _operators["matmul"](other, self)

    def __neg__(self) -> Tensor:
        return _operators["neg"](self)

    def __abs__(self) -> Tensor:
        return _operators["abs"](self)

    def __and__(self, other: Any) -> Tensor:
        return _operators["and"](self, other)

    def __rand__(self, other: Any) -> Tensor:
        return _operators["and"](other, self)

    def __or__(self, other: Any) -> Tensor:
        return _operators["or"](self, other)

    def __ror__(self, other: Any) -> Tensor:
        return _operators["or"](other, self)

    def __xor__(self, other: Any) -> Tensor:
        return _operators["xor"](self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return _operators["xor"](other, self)

    def __invert__(self) -> Tensor:
        return _operators["invert"](self)

    def __lt__(self, other: Any) -> Tensor:
        return _operators["less"](self, other)

    def __le__(self, other: Any) -> Tensor:
        return _operators["less_equal"](self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _operators["greater"](self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _operators["greater_equal"](self, other)

    def __getitem__(self, key: Any) -> Tensor:
        return _operators["getitem"](self, key)


_operators: dict[str, Callable[..., Tensor]] = {}


def set_operator(name: str, function: Callable[..., Tensor]) -> None:
    """Give the tensors' operator ``name`` its meaning; called once by the ops layer."""
    assert name not in _operators, f"operator {name} is set twice"
    _operators[name] = function


class Operation:
    """One node of a graph: a type, inputs, attributes, the device asked for, and where the user made it."""

    __slots__ = ("graph", "name", "type", "definition", "inputs", "control_inputs", "outputs", "attrs", "device", "index", "_frames")

    def __init__(
        self,
        graph: Graph,
        name: str,
        definition: OpDef,
        inputs: tuple[Tensor, ...],
        attrs: dict[str, Any],
        frames: tuple[tuple[str, int], ...],
    ) -> None:
        self.graph = graph
        self.name = name
        self.type = definition.name
        self.definition = definition
        self.inputs = inputs
        self.control_inputs: tuple[Operation, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()
        self.attrs = attrs
        self.device = ""
        self.index = -1  # position in creation order
        self._frames = frames

    def get_attr(self, name: str) -> Any:
        """Value of the attribute ``name``; ValueError if there is none."""
        try:
            return self.attrs[name]
        except KeyError:
            raise ValueError(f"operation {self.name!r} ({self.type}) has no attribute {name!r}; it has {sorted(self.attrs)}.") from None

    @property
    def location(self) -> str:
        """The user's file and line, ``"train.py:41"``; empty if unknown."""
        return f"{self._frames[0][0]}:{self._frames[0][1]}" if self._frames else ""

    @property
    def traceback(self) -> tuple[tuple[str, int], ...]:
        """(file, line) of the user's frames, innermost first."""
        return self._frames

    @property
    def node_def(self) -> Any:
        """NodeDef of this operation (``tensorboard.compat.proto``)."""
        from mpirt.graph.graph_def import to_node_def

        return to_node_def(self)

    @property
    def op_def(self) -> OpDef:
        """Definition of the operation's type."""
        return self.definition

    def colocation_groups(self) -> list[str]:
        """Names of the operations whose device this one must share; its own name if none were asked for."""
        asked = [text[5:] for text in self.attrs.get("_class", ()) if text.startswith("loc:@")]
        return asked or [self.name]

    def run(self, feed_dict: Any = None, session: Any = None) -> None:
        """Run this operation in ``session`` or the default session."""
        _session(session, "run()").run(self, feed_dict)

    def _set_device(self, device: Any) -> None:
        """Ask for another device; text is checked, as in a ``device`` block."""
        self.device = str(device_spec.parse(device) if isinstance(device, str) else device)

    def __repr__(self) -> str:
        return f"<mpirt.Operation {self.name!r} type={self.type}>"


class _DeviceScope:
    """One open device block, linked to the one outside it.

    ``folded`` is the merge of all blocks from here to the barrier, None if a function is among them.
    """

    __slots__ = ("parent", "spec", "function", "barrier", "folded")

    def __init__(self, parent: _DeviceScope | None, spec: str = "", function: DeviceFunction | None = None, barrier: bool = False) -> None:
        self.parent = parent
        self.spec = spec
        self.function = function
        self.barrier = barrier
        outer = parent.folded if parent is not None else ""
        self.folded: str | None
        if barrier:
            self.folded = ""
        elif function is not None or outer is None:
            self.folded = None
        else:
            self.folded = merge_devices(outer, spec)


class _Scopes(threading.local):
    """What is open in this thread for one graph."""

    def __init__(self) -> None:
        self.device: _DeviceScope | None = None
        self.name = ""  # with a trailing slash unless empty
        self.control: tuple[_ControlScope, ...] = ()
        self.colocation: tuple[Operation, ...] = ()
        self.container = ""
        self.variable: Any = None  # variable scope, owned by the ops layer
        self.attrs: tuple[Mapping[str, Any], ...] = ()
        self.gradient_overrides: Mapping[str, str] = {}


class _ControlScope:
    """One open ``control_dependencies`` block: what to wait for, and the operations made inside it."""

    __slots__ = ("operations", "inside")

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self.inside: set[Operation] = set()


class Graph:
    """A dataflow graph. One is current in each thread (``as_default``); a process has a default one."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._by_name: dict[str, Operation] = {}
        self._names_in_use: dict[str, int] = {}
        self._collections: dict[str, list[Any]] = {}
        self._scopes = _Scopes()
        self._lock = threading.RLock()
        self._finalized = False
        self.seed: int | None = None
        self.ops_state: dict[str, Any] = {}  # what the ops layer keeps for a graph, by the owner's module

    # ---- looking

    @property
    def version(self) -> int:
        """Grows with each operation."""
        return len(self._operations)

    @property
    def finalized(self) -> bool:
        """Whether the graph refuses new operations."""
        return self._finalized

    def finalize(self) -> None:
        """Refuse new operations from now on."""
        self._finalized = True

    def get_operations(self) -> list[Operation]:
        """All operations in creation order."""
        return list(self._operations)

    def operations_from(self, start: int) -> list[Operation]:
        """Operations in creation order from position ``start``."""
        return self._operations[start:]

    def get_operation_by_name(self, name: str) -> Operation:
        """The operation ``name``; KeyError if there is none."""
        if not isinstance(name, str):
            raise TypeError(f"an operation's name is a string, not {name!r}.")
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"The name {name!r} refers to an Operation not in the graph.") from None

    def get_tensor_by_name(self, name: str) -> Tensor:
        """The tensor ``op:index``; ValueError if malformed, KeyError if there is none."""
        if not isinstance(name, str):
            raise TypeError(f"a tensor's name is a string, not {name!r}.")
        op_name, colon, index = name.rpartition(":")
        if not colon or not index.isdigit():
            raise ValueError(f"The name {name!r} looks like an operation's, not a tensor's: a tensor's is \"<op>:<index>\".")
        if op_name not in self._by_name:
            raise KeyError(f"The name {name!r} refers to a Tensor which does not exist: the operation {op_name!r} is not in the graph.")
        op = self._by_name[op_name]
        if int(index) >= len(op.outputs):
            raise KeyError(f"The name {name!r} refers to a Tensor which does not exist: {op_name!r} has {len(op.outputs)} output(s).")
        return op.outputs[int(index)]

    def as_graph_element(self, obj: Any, allow_tensor: bool = True, allow_operation: bool = True) -> Tensor | Operation:
        """The tensor or operation that ``obj`` (an object or a name) stands for.

        Raises
        ------
        ValueError
            If it belongs to another graph.
        KeyError, TypeError
            If there is no such name, or the kind isn't allowed.
        """
        convert = getattr(obj, "_as_graph_element", None)
        if convert is not None:
            obj = convert()
        if isinstance(obj, str):
            if ":" in obj and allow_tensor:
                return self.get_tensor_by_name(obj)
            if allow_operation:
                return self.get_operation_by_name(obj)
            raise ValueError(f"{obj!r} is not a tensor's name: write {obj + ':0'!r}.")
        if isinstance(obj, Tensor) and allow_tensor:
            if obj.graph is not self:
                raise ValueError(f"{obj!r} is not an element of this graph.")
            return obj
        if isinstance(obj, Operation) and allow_operation:
            if obj.graph is not self:
                raise ValueError(f"{obj!r} is not an element of this graph.")
            return obj
        kinds = " or ".join(k for k, ok in (("a Tensor", allow_tensor), ("an Operation", allow_operation)) if ok)
        raise TypeError(f"Can not convert a {type(obj).__name__} into {kinds}.")

    def as_graph_def(self, from_version: int | None = None, add_shapes: bool = False, use_pybind11_proto: bool = False) -> Any:
        """The graph as a GraphDef (``tensorboard.compat.proto``)."""
        from mpirt.graph.graph_def import to_graph_def

        return to_graph_def(self, from_version or 0, add_shapes)

    # ---- building

    def create_op(
        self,
        op_type: str,
        inputs: Sequence[Tensor],
        attrs: Mapping[str, Any] | None = None,
        name: str | None = None,
        frames: tuple[tuple[str, int], ...] | None = None,
    ) -> Operation:
        """Add an operation. Inputs are tensors of this graph in the flat order of the op's arguments.

        Type and number attributes that the inputs imply are filled in; the others take their default.

        Raises
        ------
        InvalidArgumentError, TypeError, ValueError
            If types, attributes or shapes don't fit; RuntimeError if the graph is finalized.
        """
        definition = op_def(op_type)
        if frames is None:
            frames = user_frames()
        full = complete_attrs(definition, inputs, attrs or {})
        scopes = self._scopes
        with self._lock:
            if self._finalized:
                raise RuntimeError("Graph is finalized and cannot be modified.")
            for tensor in inputs:
                if tensor.op.graph is not self:
                    raise ValueError(f"{tensor!r}, input of the new {op_type} {name or ''!r}, is from another graph.")
            op = Operation(self, self._op_name(name, op_type), definition, tuple(inputs), full, frames)
            out_types = [t for arg in definition.outputs for t in arg_dtypes(arg, full)]
            context = ShapeContext(definition, inputs, full, len(out_types), constants.value, constants.shape)
            try:
                shapes = definition.shape_function(context)
            except ValueError as error:
                self._names_in_use.pop(op.name.lower(), None)
                raise ValueError(f"{error}, for {op.name!r} ({op_type}) with inputs {_describe(inputs)}.") from None
            assert len(shapes) == len(out_types), f"{op_type}: {len(shapes)} shapes for {len(out_types)} outputs"
            op.outputs = tuple([Tensor(op, i, t, s) for i, (t, s) in enumerate(zip(out_types, shapes, strict=True))])
            if scopes.attrs:
                for extra in scopes.attrs:
                    full.update(extra)
            if op_type in scopes.gradient_overrides:
                full["_gradient_op_type"] = scopes.gradient_overrides[op_type]
            if scopes.container and "container" in full and not full["container"]:
                full["container"] = scopes.container
            if scopes.control:
                op.control_inputs = _control_inputs(scopes.control, op)
            if scopes.colocation:
                groups = sorted({g for target in scopes.colocation for g in target.colocation_groups()})
                full["_class"] = [f"loc:@{group}" for group in groups]
                op.device = scopes.colocation[-1].device
            else:
                self._apply_device(op, scopes.device)
            op.index = len(self._operations)
            self._operations.append(op)
            self._by_name[op.name] = op
        return op

    def _op_name(self, name: str | None, op_type: str) -> str:
        if name is not None and name.endswith("/"):  # an exact name, from a name scope (which has reserved it)
            exact = name[:-1]
            if exact in self._by_name:
                return self.unique_name(exact, absolute=True)
            self._names_in_use.setdefault(exact.lower(), 1)
            return exact
        name = name or op_type
        if not _OP_NAME.match(name):
            raise ValueError(f"{name!r} is not a valid operation name: letters, digits and . _ - / \\ >, not starting with _ - or /.")
        return self.unique_name(name)

    def unique_name(self, name: str, mark_as_used: bool = True, absolute: bool = False) -> str:
        """``name`` inside the open name scope, with ``_1``, ``_2``, ... added if it is taken (case doesn't count)."""
        full = name if absolute else self._scopes.name + name
        taken = self._names_in_use
        key = full.lower()
        count = taken.get(key)
        if count is None:
            if mark_as_used:
                taken[key] = 1
            return full
        while True:
            candidate = f"{full}_{count}"
            count += 1
            if candidate.lower() not in taken:
                break
        if mark_as_used:
            taken[key] = count
            taken[candidate.lower()] = 1
        return candidate

    def _apply_device(self, op: Operation, scope: _DeviceScope | None) -> None:
        if scope is None:
            return
        if scope.folded is not None:
            op.device = scope.folded
            return
        while scope is not None and not scope.barrier:
            if scope.function is not None:
                op.device = _function_result(scope.function, op)
            else:
                op.device = merge_devices(scope.spec, op.device)
            scope = scope.parent
        if _device_check is not None:
            _device_check(op.device)

    # ---- scopes

    @contextmanager
    def as_default(self) -> Iterator[Graph]:
        """Make this the current graph of this thread inside the block."""
        stack = _default.stack
        stack.append(self)
        try:
            yield self
        finally:
            if stack[-1] is not self:
                raise AssertionError("Nesting violated for the default graph: leave `as_default` blocks in reverse order.")
            stack.pop()

    @contextmanager
    def device(self, device_name_or_function: Any) -> Iterator[None]:
        """Ask for a device for the operations made inside the block; see ``mpirt.device``."""
        scopes = self._scopes
        outer = scopes.device
        scopes.device = entered = _enter_device(outer, device_name_or_function)
        try:
            yield
        finally:
            if scopes.device is not entered:
                raise RuntimeError("Exiting device scope without proper scope nesting.")
            scopes.device = outer

    @contextmanager
    def name_scope(self, name: str | None) -> Iterator[str]:
        """Put ``name/`` before the names of operations made inside; None or "" goes back to the top."""
        scopes = self._scopes
        outer = scopes.name
        if not name:
            scopes.name = ""
        elif name.endswith("/"):
            scopes.name = name
        else:
            valid = _SCOPE_NAME if outer else _OP_NAME
            if not valid.match(name):
                raise ValueError(f"{name!r} is not a valid scope name: letters, digits and . _ - / \\ >.")
            scopes.name = self.unique_name(name) + "/"
        try:
            yield scopes.name
        finally:
            scopes.name = outer

    def get_name_scope(self) -> str:
        """The open name scope, without a trailing slash."""
        return self._scopes.name.rstrip("/")

    @contextmanager
    def control_dependencies(self, control_inputs: Iterable[Any] | None) -> Iterator[None]:
        """Make the operations of the block wait for ``control_inputs``; None forgets all outer blocks."""
        scopes = self._scopes
        outer = scopes.control
        if control_inputs is None:
            scopes.control = ()
        else:
            operations = []
            for item in control_inputs:
                item = getattr(item, "op", item) if not isinstance(item, Operation) else item
                element = self.as_graph_element(item)
                operations.append(element.op if isinstance(element, Tensor) else element)
            scopes.control = (*outer, _ControlScope(tuple(dict.fromkeys(operations))))
        try:
            yield
        finally:
            scopes.control = outer

    @contextmanager
    def colocate_with(self, op: Any, ignore_existing: bool = False) -> Iterator[None]:
        """Put the operations of the block on the device of ``op``, whatever device blocks are open."""
        scopes = self._scopes
        outer, outer_device = scopes.colocation, scopes.device
        if op is None:
            if not ignore_existing:
                raise ValueError("Trying to reset colocation (op is None) but ignore_existing is not True.")
            scopes.colocation, scopes.device = (), None
        else:
            element = self.as_graph_element(op)
            target = element.op if isinstance(element, Tensor) else element
            scopes.colocation = (target,) if ignore_existing else (*outer, target)
        try:
            yield
        finally:
            scopes.colocation, scopes.device = outer, outer_device

    @contextmanager
    def container(self, container_name: str) -> Iterator[str]:
        """Put the state of stateful operations made inside into the container ``container_name``."""
        scopes = self._scopes
        outer = scopes.container
        scopes.container = container_name
        try:
            yield container_name
        finally:
            scopes.container = outer

    @contextmanager
    def attr_scope(self, attrs: Mapping[str, Any]) -> Iterator[None]:
        """Add ``attrs`` to the operations made inside (names that start with an underscore)."""
        scopes = self._scopes
        outer = scopes.attrs
        scopes.attrs = (*outer, attrs)
        try:
            yield
        finally:
            scopes.attrs = outer

    @contextmanager
    def gradient_override_map(self, op_type_map: Mapping[str, str]) -> Iterator[None]:
        """Give operations of the types ``op_type_map`` made inside the gradients registered under the names it maps to."""
        if not isinstance(op_type_map, Mapping) or not all(isinstance(n, str) for pair in op_type_map.items() for n in pair):
            raise TypeError(f"op_type_map must map operation types to names of gradients, not {op_type_map!r}.")
        scopes = self._scopes
        outer = scopes.gradient_overrides
        scopes.gradient_overrides = {**outer, **op_type_map}
        try:
            yield
        finally:
            scopes.gradient_overrides = outer

    @property
    def variable_scope_state(self) -> Any:
        """The open variable scope of this thread (kept for the ops layer)."""
        return self._scopes.variable

    @variable_scope_state.setter
    def variable_scope_state(self, value: Any) -> None:
        self._scopes.variable = value

    # ---- collections

    def add_to_collection(self, name: str, value: Any) -> None:
        """Append ``value`` to the collection ``name``."""
        self._collections.setdefault(name, []).append(value)

    def add_to_collections(self, names: Any, value: Any) -> None:
        """Append ``value`` to each of the collections ``names``."""
        for name in dict.fromkeys((names,) if isinstance(names, str) else names):
            self.add_to_collection(name, value)

    def get_collection(self, name: str, scope: str | None = None) -> list[Any]:
        """A copy of the collection; with ``scope`` only items whose name matches that prefix (a regular expression)."""
        items = self._collections.get(name, [])
        if scope is None:
            return list(items)
        matches = re.compile(scope).match
        return [item for item in items if hasattr(item, "name") and matches(item.name)]

    def get_collection_ref(self, name: str) -> list[Any]:
        """The collection itself, made if there is none."""
        return self._collections.setdefault(name, [])

    def get_all_collection_keys(self) -> list[str]:
        """Names of all collections that aren't empty."""
        return [name for name, items in self._collections.items() if items]

    def clear_collection(self, name: str) -> None:
        """Empty the collection ``name``."""
        self._collections.pop(name, None)

    def __repr__(self) -> str:
        return f"<mpirt.Graph of {len(self._operations)} operations>"


# ---------------------------------------------------------------------------------------------- attributes of an op


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
        raise TypeError(f"{definition.name} takes {position} input(s), not {len(inputs)}: {_describe(inputs)}.")
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
                f" Inputs: {_describe(inputs)}."
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
        raise TypeError(f"{definition.name} lacks its input {arg.name!r}; it has {_describe(inputs)}.")
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
                f"input {arg.name!r} of {definition.name} has type {base.name}, but {wanted.name} is needed: {_describe(inputs)}."
            )
        if arg.is_ref and not tensor.dtype.is_ref and base is not dtypes.resource:
            raise TypeError(f"input {arg.name!r} of {definition.name} must be a variable, not {tensor!r}.")
    return position + count


def _fixed_after(definition: OpDef, arg: ArgDef) -> int:
    """How many tensors the arguments behind the list argument ``arg`` take (they are single ones)."""
    names = [a.name for a in definition.inputs]
    return len(names) - 1 - names.index(arg.name)


def _describe(inputs: Sequence[Tensor]) -> str:
    return "[" + ", ".join(f"{t.name} {t.dtype.name}{TensorShape(t.static_shape)}" for t in inputs) + "]"


# ------------------------------------------------------------------------------------------------- scopes of an op


def _enter_device(outer: _DeviceScope | None, device: Any) -> _DeviceScope:
    if device is None:
        return _DeviceScope(outer, barrier=True)
    if callable(device) and not isinstance(device, (str, DeviceSpec)):
        return _DeviceScope(outer, function=device)
    if not isinstance(device, (str, DeviceSpec)):
        raise TypeError(f"a device is a string, a DeviceSpec, a function or None, not {device!r}.")
    scope = _DeviceScope(outer, spec=device_spec.parse(device).to_string() if isinstance(device, str) else device.to_string())
    if scope.folded and _device_check is not None:
        _device_check(scope.folded)
    return scope


def merge_devices(outer: str, inner: str) -> str:
    """``outer`` with ``inner`` put over it, field by field; warns once where a task leaks into another job."""
    if not outer:
        return inner
    if not inner:
        return outer
    if device_spec.leaks_task(outer, inner) and not _leak.warned:
        _leak.warned = True
        merged = device_spec.merge(outer, inner)
        frames = user_frames()
        warnings.warn(
            f"device {inner!r} inside {outer!r} keeps the outer task: operations go to {merged!r}"
            f" ({frames[0][0]}:{frames[0][1]}). Name the task too, or open the block outside, if that isn't meant."
            if frames
            else f"device {inner!r} inside {outer!r} keeps the outer task: operations go to {merged!r}.",
            stacklevel=5,
        )
    return device_spec.merge(outer, inner)


class _Leak:
    """Whether the warning about a leaked task was given (once a process)."""

    warned = False


_leak = _Leak()


def _function_result(function: DeviceFunction, op: Operation) -> str:
    result = function(op)
    if isinstance(result, DeviceSpec):
        return result.to_string()
    if not isinstance(result, str):
        raise TypeError(f"device function {getattr(function, '__name__', function)!r} returned {result!r} for {op.name!r}; it must return a string.")
    return device_spec.parse(result).to_string()


_device_check: Callable[[str], None] | None = None


def set_device_check(check: Callable[[str], None] | None) -> None:
    """Have each device that is asked for checked at the user's line, once the cluster is known."""
    global _device_check
    _device_check = check


def _control_inputs(scopes: tuple[_ControlScope, ...], op: Operation) -> tuple[Operation, ...]:
    """What ``op`` must wait for; blocks that one of its inputs already waited in are left out."""
    producers = [t.op for t in op.inputs]
    found: dict[Operation, None] = {}
    for scope in scopes:
        if not any(p in scope.inside for p in producers):
            for control in scope.operations:
                if control not in producers:
                    found[control] = None
        scope.inside.add(op)
    return tuple(found)


def caller_line() -> str:
    """``file:line`` of the nearest caller outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def user_frames() -> tuple[tuple[str, int], ...]:
    """(file, line) of the callers outside this package, innermost first."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    found: list[tuple[str, int]] = []
    while frame is not None and len(found) < _MAX_FRAMES:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


# ------------------------------------------------------------------------------------------------- current graph


class _DefaultGraph(threading.local):
    def __init__(self) -> None:
        self.stack: list[Graph] = []


_default = _DefaultGraph()
_global_graph: Graph | None = None


def get_default_graph() -> Graph:
    """The graph that operations are added to in this thread."""
    global _global_graph
    if _default.stack:
        return _default.stack[-1]
    if _global_graph is None:
        _global_graph = Graph()
    return _global_graph


def reset_default_graph() -> None:
    """Start a new default graph; AssertionError inside an ``as_default`` block."""
    global _global_graph
    if _default.stack:
        raise AssertionError("Do not use reset_default_graph() inside a `with graph.as_default()` block.")
    _global_graph = Graph()


class _DefaultSession(threading.local):
    def __init__(self) -> None:
        self.stack: list[Any] = []


_default_session = _DefaultSession()


def default_session_stack() -> list[Any]:
    """This thread's stack of default sessions (pushed by ``Session.as_default``)."""
    return _default_session.stack


def _session(session: Any, what: str) -> Any:
    if session is not None:
        return session
    if not _default_session.stack:
        raise ValueError(f"Cannot use {what}: no default session is open. Use `with sess.as_default():` or pass session=sess.")
    return _default_session.stack[-1]


def device(device_name_or_function: Any) -> Any:
    """Ask for a device for the operations made inside the block.

    Parameters
    ----------
    device_name_or_function : str, DeviceSpec, function or None
        ``"/job:ps/task:0/cpu:0"`` in part or whole: what is further in wins, field by field. A function gets each
        operation and returns its device. None forgets all outer blocks.

    Raises
    ------
    ValueError
        If the text is malformed; InvalidArgumentError if the cluster is known and has no such job or task.
    """
    return get_default_graph().device(device_name_or_function)


def name_scope(name: str | None, default_name: str | None = None, values: Any = None) -> Any:
    """Put ``name/`` (or ``default_name/``) before the names of operations made inside the block."""
    return get_default_graph().name_scope(name if name is not None else default_name)


def control_dependencies(control_inputs: Iterable[Any] | None) -> Any:
    """Make the operations of the block wait for ``control_inputs``."""
    return get_default_graph().control_dependencies(control_inputs)


def colocate_with(op: Any, ignore_existing: bool = False) -> Any:
    """Put the operations of the block on the device of ``op``."""
    return get_default_graph().colocate_with(op, ignore_existing)


def container(container_name: str) -> Any:
    """Keep the state of operations made inside in the container ``container_name``."""
    return get_default_graph().container(container_name)


def add_to_collection(name: str, value: Any) -> None:
    """Append ``value`` to a collection of the default graph."""
    get_default_graph().add_to_collection(name, value)


def add_to_collections(names: Any, value: Any) -> None:
    """Append ``value`` to collections of the default graph."""
    get_default_graph().add_to_collections(names, value)


def get_collection(key: str, scope: str | None = None) -> list[Any]:
    """A copy of a collection of the default graph."""
    return get_default_graph().get_collection(key, scope)


def get_collection_ref(key: str) -> list[Any]:
    """A collection of the default graph itself."""
    return get_default_graph().get_collection_ref(key)
