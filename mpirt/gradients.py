"""Reverse-mode differentiation: graph in, graph out.

``gradients(ys, xs)`` adds to the graph the operations that compute d(sum of ys)/dx. Guarantees: only operations on a
path from some x to some y are differentiated; the walk is iterative and linear in the ancestors of ``ys`` (a graph of
100,000 operations in a row is fine); the order of the new operations follows creation order, so all ranks build the same.
Neighbours: each operation type brings its own gradient (``op_def.register_gradient``); what a user registers or
overrides under a name lives here.
Does not own: loops. Creation order is taken as a topological order, which holds as long as no operation feeds an older one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from mpirt import dtypes
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.graph.op_def import op_def
from mpirt.graph.shapes import is_static, num_elements, text
from mpirt.ops.apply import apply_op, constant, convert_to_tensor
from mpirt.ops.collective_ops import HUBS, hub_gradient
from mpirt.ops.control_flow_ops import tuple as tuple_
from mpirt.ops.indexed_slices import IndexedSlices, summed_rows

__all__ = [
    "AggregationMethod",
    "NoGradient",
    "NotDifferentiable",
    "RegisterGradient",
    "UnconnectedGradients",
    "gradients",
    "hessians",
    "no_gradient",
]

Gradient: TypeAlias = Tensor | IndexedSlices


class AggregationMethod:
    """How several paths into one tensor are summed. All methods give one AddN here; the names are TensorFlow's."""

    ADD_N = 0
    DEFAULT = 0
    EXPERIMENTAL_TREE = 1
    EXPERIMENTAL_ACCUMULATE_N = 2


class UnconnectedGradients(enum.Enum):
    """What ``gradients`` gives for an x that no y depends on: None, or zeros of its shape."""

    NONE = "none"
    ZERO = "zero"


# ------------------------------------------------------------------------------------ gradients registered by the user

_registered: dict[str, Callable[..., Any] | None] = {}


class RegisterGradient:
    """Decorator that gives ``fn(op, *grads)`` a name for ``Graph.gradient_override_map``, or a new op type its gradient.

    ``fn`` gets one gradient for each output (zeros where nothing depends on a floating output) and returns one for each input.

    Raises
    ------
    KeyError
        If the name is taken.
    """

    def __init__(self, op_type: str) -> None:
        if not isinstance(op_type, str):
            raise TypeError(f"op_type must be a string, not {op_type!r}.")
        self._op_type = op_type

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Register ``fn`` and return it."""
        _register(self._op_type, fn)
        return fn


def NotDifferentiable(op_type: str) -> None:  # noqa: N802  (TensorFlow's public name)
    """Declare that operations of type ``op_type`` have no gradient: ``gradients`` stops there and gives None."""
    _register(op_type, None)


NoGradient = NotDifferentiable
no_gradient = NotDifferentiable


def _register(name: str, function: Callable[..., Any] | None) -> None:
    if name in _registered:
        raise KeyError(f"Registering two gradient with name {name!r}: a gradient of that name is registered already.")
    _registered[name] = function


def _gradient_function(op: Operation) -> tuple[Callable[..., Any] | None, bool]:
    """(gradient of ``op`` or None if it has none by design, whether it expects zeros for outputs that nobody uses).

    Raises
    ------
    LookupError
        If nothing is known of its gradient.
    """
    override = op.attrs.get("_gradient_op_type")
    name = override.decode() if isinstance(override, bytes) else override or op.type
    if name in _registered:
        return _registered[name], True
    definition = op.definition if name == op.type else op_def(name) if _known(name) else None
    if definition is not None and (definition.gradient is not None or definition.no_gradient_reason):
        return definition.gradient, False
    raise LookupError(
        f"No gradient defined for operation {op.name!r} (op type: {name})"
        + (f", made at {op.location}" if op.location else "")
        + ": it lies on a path from an x to a y.\n"
        f'  Mend: write one with @RegisterGradient("{name}"), or leave the path out with stop_gradient or stop_gradients=.'
    )


def _known(name: str) -> bool:
    try:
        op_def(name)
    except Exception:  # NotFoundError: the caller says what is missing
        return False
    return True


# ------------------------------------------------------------------------------------------------------ public function


def gradients(
    ys: Any,
    xs: Any,
    grad_ys: Any = None,
    name: str = "gradients",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: bool = False,
    aggregation_method: int | None = None,
    stop_gradients: Any = None,
    unconnected_gradients: UnconnectedGradients | str = UnconnectedGradients.NONE,
) -> list[Any]:
    """Operations that compute the derivatives of ``sum(ys)`` with respect to each of ``xs``.

    Parameters
    ----------
    ys : tensor or list of tensors, floating or complex
    xs : tensor or variable, or a list of them; a variable stands for all of its reads
    grad_ys : for each y the gradient that arrives there, None for ones
    name : name scope of the new operations; those of operation ``a`` are named ``gradients/a_grad/...``
    colocate_gradients_with_ops : put the gradient of each operation on the operation's own device
    gate_gradients : wait for all input gradients of an operation before any is used
    aggregation_method : one of ``AggregationMethod``
    stop_gradients : tensors that are taken as constants
    unconnected_gradients : what an x gets that no y depends on

    Returns
    -------
    One entry for each x: a Tensor, IndexedSlices (if only some rows get a gradient), or None if no y depends on it

    Raises
    ------
    LookupError
        If an operation on a path has no gradient; the text names it and the line that made it.
    TypeError
        If a y is neither floating nor complex nor integer, or a grad_y has another type than its y.
    ValueError
        If the lengths of ``ys`` and ``grad_ys`` differ, or a gradient has another shape than its tensor.
    """
    if aggregation_method not in (None, 0, 1, 2):
        raise ValueError(f"Invalid aggregation_method specified {aggregation_method}.")
    unconnected = UnconnectedGradients(unconnected_gradients)
    y_list, x_list, stop_list = _as_list(ys), _as_list(xs), _as_list(stop_gradients)
    grad_list = [None] * len(y_list) if grad_ys is None else _as_list(grad_ys)
    if len(grad_list) != len(y_list):
        raise ValueError(f"ys has {len(y_list)} tensor(s), but grad_ys {len(grad_list)}.")
    graph = get_default_graph()
    if graph.finalized:
        raise RuntimeError("gradients() can't add operations: the graph is finalized.")
    with graph.name_scope(name or "gradients"):
        sources = [_source(x, f"x_{i}") for i, x in enumerate(x_list)]
        targets = [
            y.values if isinstance(y, IndexedSlices) else convert_to_tensor(y, name=f"y_{i}") for i, y in enumerate(y_list)
        ]
        stops = {_source(s, "stop").op for s in stop_list}
        between = _between(targets, sources, stops)
        walk = _Walk(graph, colocate_gradients_with_ops, gate_gradients, {*between, *[x.op for x in sources]})
        for i, (y, grad) in enumerate(zip(targets, grad_list, strict=True)):
            walk.add(y, _initial_gradient(y, grad, i, walk))
        for op in reversed(between):
            walk.differentiate(op)
        found = [walk.gradient(x) for x in sources]
        if unconnected is UnconnectedGradients.ZERO:
            found = [_zeros_like(x) if g is None else g for x, g in zip(sources, found, strict=True)]
    return list(found)


def hessians(
    ys: Any,
    xs: Any,
    name: str = "hessians",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: bool = False,
    aggregation_method: int | None = None,
) -> list[Tensor]:
    """Second derivatives of ``sum(ys)`` with respect to each x, shape ``x.shape + x.shape``.

    Raises
    ------
    ValueError
        If the shape of an x isn't fully known (one row of the result is built for each element), or no y depends on it.
    """
    options: dict[str, Any] = {
        "colocate_gradients_with_ops": colocate_gradients_with_ops,
        "gate_gradients": gate_gradients,
        "aggregation_method": aggregation_method,
    }
    out = []
    with get_default_graph().name_scope(name or "hessians"):
        x_list = _as_list(xs)
        for x, first in zip(x_list, gradients(ys, x_list, **options), strict=True):
            shape = convert_to_tensor(x).static_shape
            if shape is None or not is_static(shape):
                raise ValueError(f"hessians needs the full shape of {x!r}; it is {text(shape)}.")
            if first is None:
                raise ValueError(f"no y depends on {x!r}, so it has no second derivative.")
            flat = apply_op("Reshape", convert_to_tensor(first), [-1])
            rows = []
            for i in range(num_elements(shape) or 0):
                row = gradients(apply_op("StridedSlice", flat, [i], [i + 1], [1], shrink_axis_mask=1), x, **options)[0]
                rows.append(_zeros_like(convert_to_tensor(x)) if row is None else convert_to_tensor(row))
            stacked = apply_op("Pack", rows, axis=0) if rows else constant([], convert_to_tensor(x).dtype.base_dtype)
            out.append(apply_op("Reshape", stacked, [*shape, *shape]))
    return out


# ------------------------------------------------------------------------------------------------------------- the walk


class _Walk:
    """Gradients found so far, and the operations added for them; ``wanted`` are the operations that lead to some x."""

    def __init__(self, graph: Graph, colocate: bool, gate: bool, wanted: set[Operation]) -> None:
        self._graph = graph
        self._wanted = wanted
        self._colocate = colocate
        self._gate = gate
        self._parts: dict[Operation, list[list[Gradient]]] = {}

    def beside(self, op: Operation) -> AbstractContextManager[None]:
        """Where the gradient operations of ``op`` go."""
        return self._graph.colocate_with(op) if self._colocate else nullcontext()

    def add(self, tensor: Tensor, grad: Gradient) -> None:
        """Note one more path into ``tensor``."""
        parts = self._parts.get(tensor.op)
        if parts is None:
            parts = self._parts[tensor.op] = [[] for _ in tensor.op.outputs]
        parts[tensor.value_index].append(grad)

    def gradient(self, tensor: Tensor) -> Gradient | None:
        """Sum of all paths into ``tensor``; None if there is none. To be asked when all its consumers are done."""
        parts = self._parts.get(tensor.op)
        if parts is None:
            return None
        grads = parts[tensor.value_index]
        if len(grads) > 1:
            grads[:] = [self._sum(grads, tensor)]
        return grads[0] if grads else None

    def differentiate(self, op: Operation) -> None:
        """Carry the gradients of the outputs of ``op`` over to its inputs."""
        if op not in self._parts:
            return
        with self.beside(op):
            out_grads: list[Any] = [self.gradient(t) for t in op.outputs]
            if all(g is None for g in out_grads):
                return
            function, wants_zeros = _gradient_function(op)
            if function is None:
                return
            with self._graph.name_scope(f"{op.name}_grad"):
                if wants_zeros:
                    out_grads = [
                        _zeros_like(t) if g is None and _trainable(t) else g for t, g in zip(op.outputs, out_grads, strict=True)
                    ]
                result = function(op, *out_grads)
                in_grads = list(result) if isinstance(result, list | tuple) else [result]
                if len(in_grads) != len(op.inputs):
                    raise ValueError(
                        f"the gradient of {op.name!r} ({op.type}) gave {len(in_grads)} value(s) for {len(op.inputs)} input(s)."
                    )
                in_grads = [
                    _checked(op, t, g) if g is not None and _trainable(t) else None
                    for t, g in zip(op.inputs, in_grads, strict=True)
                ]
                # What leads to no x waits for nothing and is waited for by nothing: so it is never computed. TensorFlow computes
                # it where gradients are gated, which is an optimizer's default: the first layer's product for the images.
                in_grads = [g if t.op in self._wanted else None for t, g in zip(op.inputs, in_grads, strict=True)]
                if self._gate:
                    in_grads = self._gated(in_grads)
        for tensor, grad in zip(op.inputs, in_grads, strict=True):
            if grad is not None:
                self.add(tensor, grad)

    def _gated(self, grads: list[Any]) -> list[Any]:
        """The same gradients, each where it was made and ready only when all are."""
        if sum(g is not None for g in grads) < 2:
            return grads
        with self._graph.colocate_with(None, ignore_existing=True):
            return tuple_(grads)

    def _sum(self, grads: Sequence[Gradient], tensor: Tensor) -> Gradient:
        """Sum of several paths into ``tensor``: rows side by side if all are IndexedSlices, else AddN.

        What one device has is summed there first, so that one tensor leaves it instead of several, and no row twice.
        """
        slices = [g for g in grads if isinstance(g, IndexedSlices)]
        if len(slices) == len(grads):
            rows_by_device: dict[str, list[IndexedSlices]] = {}
            for part in slices:
                rows_by_device.setdefault(part.device, []).append(part)
            if len(rows_by_device) == 1:
                return _side_by_side(slices)
            summed = []
            for parts in rows_by_device.values():
                with self._graph.colocate_with(parts[0].values.op, ignore_existing=True):
                    summed.append(summed_rows(_side_by_side(parts)))
            with self._graph.colocate_with(tensor.op, ignore_existing=True):
                return _side_by_side(summed)
        by_device: dict[str, list[Tensor]] = {}
        for grad in grads:
            dense = grad if isinstance(grad, Tensor) else convert_to_tensor(grad)
            by_device.setdefault(dense.device, []).append(dense)
        by_place = [self._add_n(tensors) for tensors in by_device.values()]
        if tensor.op.type in HUBS and len(by_place) > 1:
            return hub_gradient(by_place, tensor)
        return self._add_n(by_place)

    def _add_n(self, tensors: list[Tensor]) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        with self._graph.colocate_with(tensors[0].op, ignore_existing=True):
            total: Tensor = apply_op("AddN", tensors)
            return total


def _side_by_side(slices: Sequence[IndexedSlices]) -> IndexedSlices:
    """The rows of all ``slices``."""
    if len(slices) == 1:
        return slices[0]
    indices = [s.indices for s in slices]
    if any(i.dtype.base_dtype is dtypes.int64 for i in indices):
        indices = [i if i.dtype.base_dtype is dtypes.int64 else apply_op("Cast", i, DstT=dtypes.int64) for i in indices]
    values = apply_op("ConcatV2", [s.values for s in slices], 0, name="concat")
    shape = next((s.dense_shape for s in slices if s.dense_shape is not None), None)
    return IndexedSlices(values, apply_op("ConcatV2", indices, 0, name="concat"), shape)


def _between(ys: Iterable[Tensor], xs: Iterable[Tensor], stops: set[Operation]) -> list[Operation]:
    """Operations to differentiate, in creation order: ancestors of ``ys`` with an input that depends on some x."""
    ancestors: set[Operation] = set()
    stack = [y.op for y in ys]
    while stack:
        op = stack.pop()
        if op not in ancestors:
            ancestors.add(op)
            if op not in stops:
                stack.extend(t.op for t in op.inputs if t.op not in ancestors)
    reached = {x.op for x in xs}
    found = []
    for op in sorted(ancestors, key=lambda o: o.index):
        if op not in stops and any(t.op in reached and _trainable(t) for t in op.inputs):
            reached.add(op)
            found.append(op)
    return found


def _initial_gradient(y: Tensor, grad: Any, index: int, walk: _Walk) -> Gradient:
    """The gradient that arrives at ``y``: the given one, or ones."""
    name = f"grad_ys_{index}"
    base = y.dtype.base_dtype
    with walk.beside(y.op):
        if grad is None:
            if base.is_complex:
                raise TypeError(f"Gradients of complex tensors ({y!r}) must set grad_ys (y.dtype = {base.name}).")
            if base.kind not in "fiu":
                raise TypeError(f"gradients of {y!r}: dtype {base.name} can't be differentiated; cast it to a floating type.")
            shape = constant(y.static_shape, dtypes.int32, name="Shape") if is_static(y.static_shape) else apply_op("Shape", y)
            with walk._graph.name_scope(name) as scope:
                one = constant(1, base)
                ones: Tensor = apply_op("Fill", shape, one, name=scope)
                return ones
        if isinstance(grad, IndexedSlices):
            values, base_name = grad.values, grad.values.dtype.base_dtype
            if base_name is not base:
                raise TypeError(f"grad_ys[{index}] has type {base_name.name}, but its y {y!r} is {base.name}.")
            return IndexedSlices(apply_op("Identity", values, name=name + "_values"), grad.indices, grad.dense_shape)
        tensor = convert_to_tensor(grad, preferred_dtype=base, name="grad_y")
        if tensor.dtype.base_dtype is not base:
            raise TypeError(f"grad_ys[{index}] has type {tensor.dtype.name}, but its y {y!r} is {base.name}.")
        same: Tensor = apply_op("Identity", tensor, name=name)
        return same


def _checked(op: Operation, tensor: Tensor, grad: Any) -> Gradient:
    """``grad`` as a gradient of ``tensor``, with its static shape added."""
    if isinstance(grad, IndexedSlices):
        return grad
    result = convert_to_tensor(grad)
    if tensor.dtype.base_dtype is not dtypes.resource:
        try:
            result.set_shape(tensor.static_shape)
        except ValueError:
            raise ValueError(
                f"the gradient of {op.name!r} ({op.type}) gave shape {text(result.static_shape)} for its input {tensor.name!r} "
                f"of shape {text(tensor.static_shape)}."
            ) from None
    return result


def _zeros_like(x: Tensor) -> Tensor:
    if x.dtype.base_dtype is dtypes.resource:
        x = apply_op("ReadVariableOp", x, dtype=x.op.attrs["dtype"])
    zeros: Tensor = apply_op("ZerosLike", x)
    return zeros


def _trainable(tensor: Tensor) -> bool:
    """Whether gradients flow through ``tensor``: floating, complex, or a variable's handle."""
    base = tensor.dtype.base_dtype
    return base.kind in "fc" or base is dtypes.resource


def _source(x: Any, name: str) -> Tensor:
    """The tensor that stands for x: a variable's own output (reference or handle), so that all its reads count."""
    handle = getattr(x, "handle", None)
    if isinstance(handle, Tensor) and handle.dtype.base_dtype is dtypes.resource:
        return handle
    if isinstance(x, IndexedSlices):
        return x.values
    return convert_to_tensor(x, name=name, as_ref=True)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
