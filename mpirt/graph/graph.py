"""What the user builds: ``Graph``, ``Operation``, ``Tensor`` and the scopes that are open while building.

Guarantees: operations are kept in creation order and every input exists before its consumer, so creation order is a
topological order; scopes belong to (graph, thread); each operation remembers the user's file and line.
Does not own: what an operation means (``op_def``), devices of the cluster (the placer), values (the runtime).
Background: device scopes follow TensorFlow 1 as observed; None is a barrier, functions see what is further in.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, contextmanager
from functools import lru_cache
from typing import Any

from mpirt.graph.attributes import describe_inputs, signature
from mpirt.graph.device_scope import DeviceScope, apply_device, enter_device
from mpirt.graph.keys import GraphKeys as GraphKeys
from mpirt.graph.op_def import ShapeContext, op_def
from mpirt.graph.operation import Operation as Operation
from mpirt.graph.operation import Tensor as Tensor
from mpirt.graph.user_code import Frames, UserFrames

_OP_NAME = re.compile(r"^[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*$")
_SCOPE_NAME = re.compile(r"^[A-Za-z0-9_.\\/>-]*$")


class _Scopes:
    """What is open in one thread for one graph."""

    __slots__ = ("device", "name", "control", "colocation", "container", "variable", "attrs", "gradient_overrides")

    def __init__(self) -> None:
        self.device: DeviceScope | None = None
        self.name = ""  # with a trailing slash unless empty
        self.control: tuple[_ControlScope, ...] = ()
        self.colocation: tuple[Operation, ...] = ()
        self.container = ""
        self.variable: Any = None  # variable scope, owned by the ops layer
        self.attrs: tuple[Mapping[str, Any], ...] = ()
        self.gradient_overrides: Mapping[str, str] = {}


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.scopes = _Scopes()


class _ControlScope:
    """One open ``control_dependencies`` block: what to wait for, and the operations made inside it."""

    __slots__ = ("operations", "inside")

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self.inside: set[Operation] = set()


class DeviceBlock(ContextDecorator):
    """A ``device`` block of a graph; as a decorator, one for each call. A class, because a loop opens one for a few operations."""

    def __init__(self, graph: Graph, asked: Any) -> None:
        self._graph = graph
        self._asked = asked
        self._outer: DeviceScope | None = None
        self._entered: DeviceScope | None = None

    def _recreate_cm(self) -> DeviceBlock:
        return DeviceBlock(self._graph, self._asked)

    def __enter__(self) -> None:
        graph = self._graph
        scopes = graph._of_thread.scopes
        self._outer = scopes.device
        self._entered = scopes.device = enter_device(self._outer, self._asked, graph._device_blocks)

    def __exit__(self, *exc: object) -> None:
        scopes = self._graph._of_thread.scopes
        if scopes.device is not self._entered:
            raise RuntimeError("Exiting device scope without proper scope nesting.")
        scopes.device = self._outer


@lru_cache(maxsize=4096)
def _is_op_name(name: str) -> bool:
    return _OP_NAME.match(name) is not None


class Graph:
    """A dataflow graph. One is current in each thread (``as_default``); a process has a default one."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._by_name: dict[str, Operation] = {}
        self._names_in_use: dict[str, int] = {}
        self._collections: dict[str, list[Any]] = {}
        self._of_thread = _OfThread()
        self._device_blocks: dict[str, DeviceScope] = {}  # the outermost ones, of all threads
        self._frames = UserFrames()
        self._lock = threading.RLock()
        self._finalized = False
        self.seed: int | None = None
        self.ops_state: dict[str, Any] = {}  # what the ops layer keeps for a graph, by the owner's module
        self.qualifier = ""  # tells the operations of this graph from those of another of the same name

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

    def outer_tensor(self, tensor: Tensor) -> Tensor | None:
        """The tensor of a graph around this one that ``tensor`` stands for: None but for arguments of bodies."""
        return None

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
        frames: Frames | None = None,
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
            frames = self._frames.find()
        full, out_types = signature(definition, inputs, attrs)
        scopes = self._of_thread.scopes
        with self._lock:
            if self._finalized:
                raise RuntimeError("Graph is finalized and cannot be modified.")
            for tensor in inputs:
                if tensor.op.graph is not self:
                    raise ValueError(f"{tensor!r}, input of the new {op_type} {name or ''!r}, is from another graph.")
            op = Operation(self, self._op_name(name, op_type), definition, tuple(inputs), full, frames)
            try:
                shapes = definition.shape_function(ShapeContext(definition, inputs, full, len(out_types)))
            except ValueError as error:
                self._names_in_use.pop(op.name.lower(), None)
                raise ValueError(f"{error}, for {op.name!r} ({op_type}) with inputs {describe_inputs(inputs)}.") from None
            assert len(shapes) == len(out_types), f"{op_type}: {len(shapes)} shapes for {len(out_types)} outputs"
            if len(shapes) == 1:
                op.outputs = (Tensor(op, 0, out_types[0], shapes[0]),)
            else:
                op.outputs = tuple([Tensor(op, i, t, s) for i, (t, s) in enumerate(zip(out_types, shapes, strict=True))])
            for extra in scopes.attrs:
                op.attrs = {**op.attrs, **extra}
            if op_type in scopes.gradient_overrides:
                op.set_attr("_gradient_op_type", scopes.gradient_overrides[op_type])
            if scopes.container and "container" in full and not op.attrs["container"]:
                op.set_attr("container", scopes.container)
            if scopes.control:
                op.control_inputs = _control_inputs(scopes.control, op)
            if scopes.colocation:
                groups = sorted({g for target in scopes.colocation for g in target.colocated_with()})
                op.set_attr("_class", [f"loc:@{group}" for group in groups])
                op.device = scopes.colocation[-1].device
            else:
                apply_device(op, scopes.device)
            op.index = len(self._operations)
            self._operations.append(op)
            self._by_name[op.name] = op
        return op

    def _op_name(self, name: str | None, op_type: str) -> str:
        if name is not None and name[-1:] == "/":  # an exact name, from a name scope (which has reserved it)
            exact = name[:-1]
            if exact in self._by_name:
                return self.unique_name(exact, absolute=True)
            self._names_in_use.setdefault(exact.lower(), 1)
            return exact
        name = name or op_type
        if not _is_op_name(name):
            raise ValueError(f"{name!r} is not a valid operation name: letters, digits and . _ - / \\ >, not starting with _ - or /.")
        return self.unique_name(name)

    def unique_name(self, name: str, mark_as_used: bool = True, absolute: bool = False) -> str:
        """``name`` inside the open name scope, with ``_1``, ``_2``, ... added if it is taken (case doesn't count)."""
        full = name if absolute else self._of_thread.scopes.name + name
        taken = self._names_in_use
        key = full.lower()
        count = taken.get(key)
        if count is None:
            if mark_as_used:
                taken[key] = 1
            return full
        while (candidate := f"{key}_{count}") in taken:
            count += 1
        if mark_as_used:
            taken[key] = count + 1
            taken[candidate] = 1
        return candidate if key == full else f"{full}_{count}"

    # ---- scopes

    @property
    def _scopes(self) -> _Scopes:
        return self._of_thread.scopes

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

    def device(self, device_name_or_function: Any) -> DeviceBlock:
        """Ask for a device for the operations made inside the block; see ``mpirt.device``."""
        return DeviceBlock(self, device_name_or_function)

    @contextmanager
    def name_scope(self, name: str | None) -> Iterator[str]:
        """Put ``name/`` before the names of operations made inside; None or "" goes back to the top."""
        scopes = self._of_thread.scopes
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
        scopes = self._of_thread.scopes
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

    def waiting_for(self) -> tuple[Operation, ...]:
        """What the open ``control_dependencies`` blocks of this thread wait for."""
        return tuple(op for scope in self._scopes.control for op in scope.operations)

    @contextmanager
    def colocate_with(self, op: Any, ignore_existing: bool = False) -> Iterator[None]:
        """Put the operations of the block on the device of ``op``, whatever device blocks are open."""
        scopes = self._of_thread.scopes
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
        scopes = self._of_thread.scopes
        outer = scopes.container
        scopes.container = container_name
        try:
            yield container_name
        finally:
            scopes.container = outer

    @contextmanager
    def attr_scope(self, attrs: Mapping[str, Any]) -> Iterator[None]:
        """Add ``attrs`` to the operations made inside (names that start with an underscore)."""
        scopes = self._of_thread.scopes
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
        scopes = self._of_thread.scopes
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


def device(device_name_or_function: Any) -> DeviceBlock:
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
