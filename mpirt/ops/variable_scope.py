"""Variables by name: ``get_variable`` makes or shares them, ``variable_scope`` prefixes and sets their defaults.

Names of variables follow variable scopes only; operations follow name scopes, and a variable scope opens one of its own.
The open scope lives with (graph, thread). Does not own: making and sharing of a variable whose full name is known
(``variable_store``).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from mpirt import dtypes
from mpirt.dtypes import float32
from mpirt.graph.graph import Graph, GraphKeys, get_default_graph
from mpirt.ops.apply import graph_of, is_tensor, to_array
from mpirt.ops.variable_store import make_or_share, no_regularizer
from mpirt.ops.variables import Variable, VariableAggregation, VariableSynchronization

__all__ = [
    "AUTO_REUSE", "VariableScope", "create_partitioned_variables", "get_local_variable", "get_variable", "get_variable_scope",
    "no_regularizer", "variable_op_scope", "variable_scope",
]  # fmt: skip


class _ReuseMode(enum.Enum):
    AUTO_REUSE = 1


AUTO_REUSE = _ReuseMode.AUTO_REUSE
"""For ``reuse``: share a variable that exists, make it if it doesn't."""


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
    name: str | None,
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
    name : name inside the scope; None for the scope's own
    shape : sizes, all known unless ``initializer`` is a value
    dtype : element type, by default that of an initial value, else the scope's (float32)
    initializer : object called with the shape, or a value or tensor; by default the scope's, else Glorot's uniform for
        floating types and zeros for others
    regularizer : function of the variable whose tensor joins REGULARIZATION_LOSSES when the variable is made
    partitioner : function of ``shape`` and ``dtype`` that says into how many slices to cut the variable along which
        dimension; the result is then a PartitionedVariable, unless the shape is a scalar's
    custom_getter : function ``(getter, name, *args, **kwargs)`` that is called instead, with all arguments by keyword, and
        may call ``getter``; by default those of the scopes, the innermost first
    trainable, collections, caching_device, validate_shape, use_resource, constraint, synchronization, aggregation :
        as for ``Variable``

    Raises
    ------
    ValueError
        If the variable exists and the scope doesn't share, if it doesn't exist and the scope only shares, if shape or
        dtype are not those of the one that exists, or if the initial value has another type than ``dtype``.
    """
    scope = get_variable_scope()
    if partitioner is not None and not callable(partitioner):
        raise ValueError(f"Partitioner must be callable, but received: {partitioner!r}")
    if dtype is not None and initializer is not None and not callable(initializer):
        initializer = _of_type(initializer, dtypes.as_dtype(dtype).base_dtype)
    defaults = {
        "dtype": dtype, "initializer": initializer, "regularizer": regularizer, "caching_device": caching_device,
        "partitioner": partitioner, "use_resource": use_resource, "constraint": constraint,
    }  # fmt: skip
    arguments: dict[str, Any] = {key: getattr(scope, key) if value is None else value for key, value in defaults.items()}
    arguments.update(
        shape=shape, reuse=scope.reuse, trainable=trainable, collections=collections, validate_shape=validate_shape,
        synchronization=synchronization, aggregation=aggregation,
    )  # fmt: skip
    getter = scope.custom_getter if custom_getter is None else custom_getter
    full_name = scope.name if name is None else f"{scope.name}/{name}" if scope.name else name
    # Only variable scopes name variables, so the name scope is left for the time of making one.
    with get_default_graph().name_scope(None):
        if getter is None:
            return make_or_share(name=full_name, **arguments)
        return getter(getter=make_or_share, name=full_name, **arguments)


def _of_type(value: Any, dtype: dtypes.DType) -> Any:
    """The initial value ``value`` in the type that was asked for: of what has a type of its own, only that."""
    if not is_tensor(value) and not hasattr(value, "dtype"):
        return to_array(value, dtype)
    given = dtypes.as_dtype(value.dtype).base_dtype
    if given is not dtype:
        raise ValueError(f"Initializer type '{given!r}' and explicit dtype '{dtype!r}' don't match.")
    return value


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


def create_partitioned_variables(
    shape: Any,
    slicing: Sequence[int],
    initializer: Any,
    dtype: Any = float32,
    trainable: bool = True,
    collections: Sequence[str] | None = None,
    name: str | None = None,
    reuse: Any = None,
) -> list[Variable]:
    """The slices of a variable that is cut into ``slicing[i]`` parts along dimension i (TensorFlow's oldest way).

    Parameters
    ----------
    shape : sizes of the whole
    slicing : number of slices for each dimension, at most one above 1
    initializer, dtype, trainable, collections : as for ``get_variable``
    name : the slices are called ``name/part_0``, ...; by default a name of their own
    reuse : as for ``variable_scope``, whose name is ``name``

    Raises
    ------
    ValueError
        If ``shape`` can't be cut so, or what ``get_variable`` refuses.
    """
    with variable_scope(name, "PartitionedVariable", reuse=reuse):
        whole = get_variable(None, shape, dtype, initializer, None, trainable, collections, None, lambda shape, dtype: slicing)
    return list(whole)
