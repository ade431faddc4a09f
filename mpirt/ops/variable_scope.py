"""Variables by name: ``get_variable`` makes or shares them, ``variable_scope`` prefixes and sets their defaults.

Names of variables follow variable scopes only; operations follow name scopes, and a variable scope opens one of its own.
With a partitioner ``get_variable`` makes one variable for each slice, which are shared like any other, and one
PartitionedVariable of them.
The store of a graph's named variables lives with the graph, the open scope with (graph, thread).
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.dtypes import DType, float32
from mpirt.graph.graph import Graph, GraphKeys, Tensor, get_default_graph
from mpirt.graph.shapes import Shape, as_shape, compatible, is_static, merge, text
from mpirt.ops.apply import convert_to_tensor, graph_of, is_tensor
from mpirt.ops.init_ops import GlorotUniform, Zeros, needs_no_arguments
from mpirt.ops.partitioned_variables import (
    PartitionedVariable,
    PartitionInfo,
    cut,
    partitions_of,
    slices,
    whole_value,
)
from mpirt.ops.variables import SaveSliceInfo, Variable, VariableAggregation, VariableSynchronization

__all__ = [
    "AUTO_REUSE", "VariableScope", "get_local_variable", "get_variable", "get_variable_scope", "no_regularizer",
    "variable_op_scope", "variable_scope",
]  # fmt: skip


class _ReuseMode(enum.Enum):
    AUTO_REUSE = 1


AUTO_REUSE = _ReuseMode.AUTO_REUSE
"""For ``reuse``: share a variable that exists, make it if it doesn't."""


def no_regularizer(_: Any) -> None:
    """For ``regularizer``: none, also where the scope has one."""
    return None


class _Scopes:
    """What one thread has open in one graph: the variable scope, and how often each name was opened."""

    def __init__(self) -> None:
        self.current = VariableScope(False)
        self.opened: dict[str, int] = {}


def _scopes(graph: Graph) -> _Scopes:
    if graph.variable_scope_state is None:
        graph.variable_scope_state = _Scopes()
    scopes: _Scopes = graph.variable_scope_state
    return scopes


def _store(graph: Graph) -> dict[str, Variable]:
    """All variables of the graph that ``get_variable`` made, slices included, by name."""
    store: dict[str, Variable] = graph.ops_state.setdefault(__name__, {})
    return store


def _partitioned(graph: Graph) -> dict[str, PartitionedVariable]:
    """All variables of the graph that ``get_variable`` made in slices, by the name of the whole."""
    store: dict[str, PartitionedVariable] = graph.ops_state.setdefault(__name__ + ".partitioned", {})
    return store


class VariableScope:
    """Prefix and defaults of variables; ``variable_scope`` opens one, ``get_variable_scope`` gives the open one."""

    def __init__(
        self,
        reuse: Any,
        name: str = "",
        initializer: Any = None,
        regularizer: Any = None,
        caching_device: Any = None,
        partitioner: Any = None,
        custom_getter: Any = None,
        name_scope: str = "",
        dtype: Any = float32,
        use_resource: bool | None = None,
        constraint: Any = None,
    ) -> None:
        self.name = name
        self.reuse = reuse
        self.initializer = initializer
        self.regularizer = regularizer
        self.caching_device = caching_device
        self.partitioner = partitioner
        self.custom_getter = custom_getter
        self.dtype = dtype
        self.use_resource = use_resource
        self.constraint = constraint
        self.original_name_scope = name_scope

    def reuse_variables(self) -> None:
        """From now on share variables, which must exist."""
        self.reuse = True

    def set_initializer(self, initializer: Any) -> None:
        """Set the default initializer."""
        self.initializer = initializer

    def set_regularizer(self, regularizer: Any) -> None:
        """Set the default regularizer."""
        self.regularizer = regularizer

    def set_caching_device(self, caching_device: Any) -> None:
        """Set the default device of snapshots."""
        self.caching_device = caching_device

    def set_partitioner(self, partitioner: Any) -> None:
        """Set the default partitioner."""
        self.partitioner = partitioner

    def set_custom_getter(self, custom_getter: Any) -> None:
        """Set the function that wraps ``get_variable``."""
        self.custom_getter = custom_getter

    def set_dtype(self, dtype: Any) -> None:
        """Set the default element type."""
        self.dtype = dtype

    def set_use_resource(self, use_resource: bool) -> None:
        """Accepted; see ``Variable``."""
        self.use_resource = use_resource

    def get_collection(self, name: str) -> list[Any]:
        """Items of the collection whose name starts with this scope's."""
        return get_default_graph().get_collection(name, self.name + "/" if self.name else "")

    def trainable_variables(self) -> list[Any]:
        """Variables of this scope that optimizers train."""
        return self.get_collection(GraphKeys.TRAINABLE_VARIABLES)

    def global_variables(self) -> list[Any]:
        """Global variables of this scope."""
        return self.get_collection(GraphKeys.GLOBAL_VARIABLES)

    def local_variables(self) -> list[Any]:
        """Local variables of this scope."""
        return self.get_collection(GraphKeys.LOCAL_VARIABLES)

    def _changed(self, reuse: Any, name: str, name_scope: str, **defaults: Any) -> VariableScope:
        """A copy with another name and those of ``defaults`` that aren't None."""
        kept = {
            key: getattr(self, key) if value is None else value for key, value in defaults.items() if key != "custom_getter"
        }
        getter = _chained(defaults.get("custom_getter"), self.custom_getter)
        return VariableScope(reuse, name, custom_getter=getter, name_scope=name_scope, **kept)


def _chained(inner: Any, outer: Any) -> Any:
    """A getter that calls ``inner`` with a getter that calls ``outer``."""
    if inner is None or outer is None:
        return inner or outer
    return lambda getter, *args, **kwargs: inner(partial(outer, getter), *args, **kwargs)


def get_variable_scope() -> VariableScope:
    """The open variable scope."""
    return _scopes(get_default_graph()).current


# --------------------------------------------------------------------------------------------------- variable_scope


class variable_scope:  # noqa: N801
    """Context manager: variables made inside by ``get_variable`` are called ``name/...`` and take these defaults.

    Parameters
    ----------
    name_or_scope : name, appended to the open scope's, or a VariableScope to open again
    default_name : name to make unique if ``name_or_scope`` is None
    values : tensors that must be of the current graph
    initializer, regularizer, caching_device, partitioner, custom_getter, dtype, constraint : defaults; None inherits
    reuse : True: variables must exist and are shared; AUTO_REUSE: share or make; None or False: inherit
    use_resource : accepted; see ``Variable``
    auxiliary_name_scope : False opens no name scope

    Raises
    ------
    ValueError
        If there is no name, or ``reuse`` comes with a default name only.
    """

    def __init__(
        self,
        name_or_scope: str | VariableScope | None,
        default_name: str | None = None,
        values: Sequence[Any] | None = None,
        initializer: Any = None,
        regularizer: Any = None,
        caching_device: Any = None,
        partitioner: Any = None,
        custom_getter: Any = None,
        reuse: Any = None,
        dtype: Any = None,
        use_resource: bool | None = None,
        constraint: Any = None,
        auxiliary_name_scope: bool = True,
    ) -> None:
        if default_name is None and name_or_scope is None:
            raise TypeError("If default_name is None then name_or_scope is required")
        if name_or_scope is not None and not isinstance(name_or_scope, str | VariableScope):
            raise TypeError(f"VariableScope: name_or_scope must be a string or VariableScope, not {name_or_scope!r}.")
        if reuse not in (None, False, True, AUTO_REUSE):
            raise ValueError(f"The reuse parameter must be True or False or None or AUTO_REUSE, not {reuse!r}.")
        if reuse and name_or_scope is None:
            raise ValueError("reuse=True cannot be used without a name_or_scope")
        if not isinstance(auxiliary_name_scope, bool):
            raise TypeError(f"The auxiliary_name_scope must be `True` or `False`, while get {auxiliary_name_scope!r}")
        self._name_or_scope = name_or_scope
        self._default_name = default_name
        self._reuse = reuse or None
        self._auxiliary_name_scope = auxiliary_name_scope
        self._defaults = {
            "initializer": initializer, "regularizer": regularizer, "caching_device": caching_device,
            "partitioner": partitioner, "custom_getter": custom_getter, "dtype": dtype, "use_resource": use_resource,
            "constraint": constraint,
        }  # fmt: skip
        self._graph = graph_of(*(values or ()))
        self._exit = ExitStack()

    def __enter__(self) -> VariableScope:
        scopes = _scopes(self._graph)
        outer, opened = scopes.current, dict(scopes.opened)
        with ExitStack() as stack:
            if isinstance(self._name_or_scope, VariableScope):
                asked = self._name_or_scope
                self._open_name_scope(stack, asked.name.rpartition("/")[2])
                name, base, reuse = asked.name, asked, self._reuse or asked.reuse
                name_scope = asked.original_name_scope
            else:
                name_scope = self._open_name_scope(
                    stack, self._name_or_scope if self._name_or_scope is not None else self._default_name
                )
                last = self._name_or_scope if self._name_or_scope is not None else self._unused_name(scopes)
                name = f"{outer.name}/{last}" if outer.name else last
                base, reuse = outer, self._reuse or outer.reuse
            entered = base._changed(reuse, name, name_scope, **self._defaults)
            scopes.opened[name] = scopes.opened.get(name, 0) + 1
            scopes.current = entered
            stack.callback(self._leave, scopes, outer, name, opened)
            self._exit = stack.pop_all()
        return entered

    def __exit__(self, type_arg: Any, value_arg: Any, traceback_arg: Any) -> None:
        self._exit.close()

    def _open_name_scope(self, stack: ExitStack, name: str | None) -> str:
        """Open the name scope; returns it."""
        if not self._auxiliary_name_scope:
            current = self._graph.get_name_scope()
            return current + "/" if current else ""
        if not name:
            return ""  # the root scope leaves the name scope as it is
        scope: str = stack.enter_context(self._graph.name_scope(name))
        return scope

    def _unused_name(self, scopes: _Scopes) -> str:
        """The default name, numbered if it was opened inside the open scope before."""
        name = self._default_name or ""
        prefix = scopes.current.name + "/" if scopes.current.name else ""
        if not scopes.opened.get(prefix + name):
            return name
        number = 1
        while scopes.opened.get(f"{prefix}{name}_{number}"):
            number += 1
        return f"{name}_{number}"

    def _leave(self, scopes: _Scopes, outer: VariableScope, name: str, opened: dict[str, int]) -> None:
        scopes.current = outer
        if isinstance(self._name_or_scope, VariableScope):
            scopes.opened = opened | {name: opened.get(name, 0) + 1}
        else:  # numbers of default names start again when the scope is opened again
            scopes.opened = {k: 0 if k.startswith(name + "/") else v for k, v in scopes.opened.items()}


def variable_op_scope(
    values: Sequence[Any],
    name_or_scope: str | VariableScope | None,
    default_name: str | None = None,
    initializer: Any = None,
    regularizer: Any = None,
    caching_device: Any = None,
    partitioner: Any = None,
    custom_getter: Any = None,
    reuse: Any = None,
    dtype: Any = None,
    use_resource: bool | None = None,
    constraint: Any = None,
) -> variable_scope:
    """The same as ``variable_scope`` with the arguments in an older order."""
    return variable_scope(
        name_or_scope, default_name, values, initializer, regularizer, caching_device, partitioner, custom_getter, reuse, dtype,
        use_resource, constraint,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- get_variable


def get_variable(
    name: str,
    shape: Any = None,
    dtype: Any = None,
    initializer: Any = None,
    regularizer: Any = None,
    trainable: bool | None = None,
    collections: Sequence[str] | None = None,
    caching_device: Any = None,
    partitioner: Any = None,
    validate_shape: bool = True,
    use_resource: bool | None = None,
    custom_getter: Any = None,
    constraint: Any = None,
    synchronization: VariableSynchronization = VariableSynchronization.AUTO,
    aggregation: VariableAggregation = VariableAggregation.NONE,
) -> Any:
    """The variable ``name`` of the open variable scope: a new one, or the one there is if the scope shares.

    Parameters
    ----------
    name : name inside the scope
    shape : sizes, all known unless ``initializer`` is a value
    dtype : element type, by default the scope's (float32)
    initializer : object called with the shape, or a value or tensor; by default the scope's, else Glorot's uniform for
        floating types and zeros for others
    regularizer : function of the variable whose tensor joins REGULARIZATION_LOSSES when the variable is made
    partitioner : function of ``shape`` and ``dtype`` that says into how many slices to cut the variable along which
        dimension; the result is then a PartitionedVariable, unless the shape is a scalar's
    custom_getter : function ``(getter, name, *args, **kwargs)`` that is called instead and may call ``getter``
    trainable, collections, caching_device, validate_shape, use_resource, constraint, synchronization, aggregation :
        as for ``Variable``

    Raises
    ------
    ValueError
        If the variable exists and the scope doesn't share, if it doesn't exist and the scope only shares, or if shape or
        dtype are not those of the one that exists.
    """
    scope = get_variable_scope()
    partitioner = scope.partitioner if partitioner is None else partitioner
    if partitioner is not None and not callable(partitioner):
        raise ValueError(f"Partitioner must be callable, but received: {partitioner!r}")
    if initializer is not None and not callable(initializer) and dtype is not None:
        given = convert_to_tensor(initializer).dtype.base_dtype if isinstance(initializer, Tensor) else None
        if given not in (None, dtypes.as_dtype(dtype).base_dtype):
            raise ValueError(f"Initializer type '{given!r}' and explicit dtype '{dtypes.as_dtype(dtype)!r}' don't match.")
    getter = _chained(custom_getter, scope.custom_getter)
    arguments: dict[str, Any] = {
        "shape": shape,
        "dtype": scope.dtype if dtype is None else dtype,
        "initializer": scope.initializer if initializer is None else initializer,
        "regularizer": scope.regularizer if regularizer is None else regularizer,
        "reuse": scope.reuse,
        "trainable": trainable,
        "collections": collections,
        "caching_device": scope.caching_device if caching_device is None else caching_device,
        "partitioner": partitioner,
        "validate_shape": validate_shape,
        "use_resource": scope.use_resource if use_resource is None else use_resource,
        "constraint": scope.constraint if constraint is None else constraint,
        "synchronization": synchronization,
        "aggregation": aggregation,
    }
    full_name = f"{scope.name}/{name}" if scope.name else name
    # Only variable scopes name variables, so the name scope is left for the time of making one.
    with get_default_graph().name_scope(None):
        if getter is not None:
            return getter(_get, full_name, **arguments)
        return _get(full_name, **arguments)


def get_local_variable(name: str, shape: Any = None, dtype: Any = None, initializer: Any = None, regularizer: Any = None,
                       trainable: bool | None = False, collections: Sequence[str] | None = None, caching_device: Any = None,
                       partitioner: Any = None, validate_shape: bool = True, use_resource: bool | None = None,
                       custom_getter: Any = None, constraint: Any = None,
                       synchronization: VariableSynchronization = VariableSynchronization.AUTO,
                       aggregation: VariableAggregation = VariableAggregation.NONE) -> Any:  # fmt: skip
    """As ``get_variable``, for a variable of the collection LOCAL_VARIABLES that isn't trained."""
    local = [*(collections or ()), GraphKeys.LOCAL_VARIABLES]
    return get_variable(
        name, shape, dtype, initializer, regularizer, False, local, caching_device, partitioner, validate_shape, use_resource,
        custom_getter, constraint, synchronization, aggregation,
    )  # fmt: skip


def _get(
    name: str,
    shape: Any = None,
    dtype: Any = float32,
    initializer: Any = None,
    regularizer: Any = None,
    reuse: Any = None,
    trainable: bool | None = None,
    collections: Iterable[str] | None = None,
    caching_device: Any = None,
    partitioner: Any = None,
    validate_shape: bool = True,
    use_resource: bool | None = None,
    constraint: Any = None,
    synchronization: VariableSynchronization = VariableSynchronization.AUTO,
    aggregation: VariableAggregation = VariableAggregation.NONE,
) -> Variable | PartitionedVariable:
    """Make or share the variable of the full name: what a custom getter gets to call."""
    how: dict[str, Any] = {
        "trainable": trainable,
        "collections": None if collections is None else list(collections),
        "validate_shape": validate_shape,
        "caching_device": caching_device,
        "constraint": constraint,
        "use_resource": use_resource,
        "synchronization": synchronization,
        "aggregation": aggregation,
    }
    wanted = as_shape(shape)
    kind = dtypes.as_dtype(dtype).base_dtype
    graph = get_default_graph()
    if name in _partitioned(graph) and (reuse or partitioner is not None):
        return _shared_partitioned(name, _partitioned(graph)[name], wanted, kind, reuse, partitioner)
    if name in _partitioned(graph):
        raise ValueError(
            f"No partitioner was provided, but a partitioned version of the variable was found: {name}/part_0."
            " Perhaps a variable of the same name was already created with partitioning?"
        )
    if partitioner is not None and wanted != () and not _is_scalar(initializer):
        return _new_partitioned(name, wanted, kind, initializer, regularizer, reuse, partitioner, how)
    return _single(name, wanted, kind, initializer, regularizer, reuse, how)


def _single(
    name: str, wanted: Shape, kind: DType, initializer: Any, regularizer: Any, reuse: Any, how: dict[str, Any], info: Any = None
) -> Variable:
    """Make or share one variable; with ``info``, the slice of a whole that it is."""
    store = _store(get_default_graph())
    if name in store:
        found = store[name]
        if not reuse:
            where = f" Originally defined at {found.op.location}." if found.op.location else ""
            raise ValueError(
                f"Variable {name} already exists, disallowed."
                f" Did you mean to set reuse=True or reuse=tf.AUTO_REUSE in VarScope?{where}"
            )
        _check_shared(name, "", found, wanted, kind)
        return found
    if reuse is True:
        raise ValueError(
            f"Variable {name} does not exist, or was not created with tf.get_variable()."
            " Did you mean to set reuse=tf.AUTO_REUSE in VarScope?"
        )
    value, own_kind = _initial_value(name, wanted, kind, initializer, info)
    variable = Variable(value, name=name, dtype=own_kind, **how)
    store[name] = variable
    if regularizer is not None and regularizer is not no_regularizer:
        graph = variable.graph
        with graph.colocate_with(variable.op), graph.name_scope(name + "/Regularizer/"):
            loss = regularizer(variable)
        if loss is not None:
            graph.add_to_collection(GraphKeys.REGULARIZATION_LOSSES, loss)
    return variable


# ------------------------------------------------------------------------------------------- variables made in slices


def _new_partitioned(
    name: str, wanted: Shape, kind: DType, initializer: Any, regularizer: Any, reuse: Any, partitioner: Any, how: dict[str, Any]
) -> PartitionedVariable:
    """Make the slices ``name/part_0``, ... and the whole."""
    graph = get_default_graph()
    if name in _store(graph):
        raise ValueError(
            f"A partitioner was provided, but an unpartitioned version of the variable was found: {name}."
            " Perhaps a variable of the same name was already created without partitioning?"
        )
    if reuse is True:
        raise ValueError(
            f"PartitionedVariable {name} does not exist, or was not created with tf.get_variable()."
            " Did you mean to set reuse=False or reuse=tf.AUTO_REUSE in VarScope?"
        )
    whole = whole_value(initializer, name, kind)
    if whole is not None:
        found = whole.static_shape if isinstance(whole, Tensor) else whole.shape
        if not compatible(wanted, found):
            raise ValueError(f"Variable {name}: the shape {text(wanted)} and that of its initial value, {text(found)}, differ.")
        wanted = merge(wanted, found)
    if not is_static(wanted) or wanted is None:
        raise ValueError(f"Shape of a new partitioned variable must be fully defined, but instead was {text(wanted)}.")
    full = [size for size in wanted if size is not None]
    partitions = partitions_of(partitioner, full, kind)
    parts = []
    for number, (offset, sizes) in enumerate(slices(full, partitions)):
        part = f"{name}/part_{number}"
        if whole is None:
            variable = _single(part, tuple(sizes), kind, initializer, regularizer, reuse, how, PartitionInfo(full, offset))
        else:
            variable = _single(part, None, kind, cut(whole, part, offset, sizes), regularizer, reuse, how)
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


def _shared_partitioned(
    name: str, found: PartitionedVariable, wanted: Shape, kind: DType, reuse: Any, partitioner: Any
) -> PartitionedVariable:
    """The one that exists, checked against what is asked for."""
    if not reuse:
        raise ValueError(
            f"Partitioned variable with name {name} already exists."
            " Did you mean to set reuse=True or reuse=tf.AUTO_REUSE in VarScope?"
        )
    _check_shared(name, "partitioned ", found, wanted, kind)
    if partitioner is not None:
        partitions = partitions_of(partitioner, found._shape, kind)
        if partitions != found._get_partitions():
            raise ValueError(
                f"Trying to reuse partitioned variable {name}, but specified partitions {partitions}"
                f" and found partitions {found._get_partitions()}."
            )
    return found


# ------------------------------------------------------------------------------------------------------ initial values


def _check_shared(name: str, sort: str, found: Any, shape: Shape, kind: DType) -> None:
    if not compatible(shape, found.shape.dims_tuple):
        raise ValueError(
            f"Trying to share {sort}variable {name}, but specified shape {text(shape)} and found shape {found.shape}."
        )
    if kind is not found.dtype.base_dtype:
        raise ValueError(
            f"Trying to share {sort}variable {name}, but specified dtype {kind.name} and found dtype {found.dtype.name}."
        )


def _initial_value(name: str, shape: Shape, kind: DType, initializer: Any, info: PartitionInfo | None) -> tuple[Any, DType | None]:
    """What ``Variable`` takes as initial value, and the dtype to ask for (None for a value: its own)."""
    if initializer is None:
        if kind.is_complex:
            raise ValueError(f"An initializer for variable {name} of {kind.name} is required.")
        if shape is None:
            raise ValueError(f"Variable {name} did not get an initializer, so its `shape` argument must be specified.")
        initializer = GlorotUniform() if kind.is_floating else Zeros()
    if not callable(initializer):
        if shape is not None:
            raise ValueError("If initializer is a constant, do not specify shape.")
        return initializer, None if isinstance(initializer, Tensor) or hasattr(initializer, "dtype") else kind
    if inspect.isclass(initializer):
        initializer = initializer()
    if is_static(shape):
        return _call(initializer, list(shape or ()), kind, info), kind
    if needs_no_arguments(initializer):
        return initializer, kind
    raise ValueError(
        f"Variable {name}: the shape {text(shape)} must be fully defined for an initializer that is called with a shape."
    )


def _call(
    initializer: Callable[..., Any], shape: list[Any], kind: DType, info: PartitionInfo | None
) -> Callable[[], Any]:
    """A function that calls ``initializer`` with those of shape, dtype and partition_info that it takes."""
    try:
        parameters = inspect.signature(initializer).parameters
    except (TypeError, ValueError):
        return lambda: initializer(shape, dtype=kind)
    named: dict[str, Any] = {}
    if "dtype" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        named["dtype"] = kind
    if info is not None and "partition_info" in parameters:
        named["partition_info"] = info
    return lambda: initializer(shape, **named) if parameters else initializer()
