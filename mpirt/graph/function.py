"""Bodies of functional operations (If, While): graphs of their own, made of the user's function.

A ``FuncGraph`` is built like any graph. A tensor of the graph outside that is used in it is captured: it comes in as an
argument, so outside it is an ordinary input of the operation that owns the body, computed where it lives and sent by the
ordinary edges. A variable's own tensor comes in as the variable itself if the body may change it, else as its value.
A ``Function`` is the finished body, the value of an attribute of kind "func".
Does not own: the operations with bodies (``ops.functional_ops``), compiling bodies (``compiler.body``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from mpirt import errors
from mpirt.cluster import device_spec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.dtypes import DType
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.op_def import arg_ranges
from mpirt.graph.shapes import Shape

ARG = "_Arg"  # operation type of an argument (TensorFlow's name)

VARIABLE_HANDLE = "_VariableHandle"  # operation type of what stands for a variable among the inputs of an operation with bodies

_REFUSED = {
    "Placeholder": "a placeholder", "PlaceholderV2": "a placeholder", "PlaceholderWithDefault": "a placeholder",
    "VariableV2": "a variable", "Variable": "a variable", "VarHandleOp": "a variable",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Function:
    """A finished body. It never changes; a body with more outputs is another Function of the same graph.

    ``control_outputs`` run in each call though no output needs them: what the user's function returned as operations, and
    all that has an effect.
    """

    name: str
    graph: FuncGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    control_outputs: tuple[Operation, ...] = ()

    @property
    def stateful(self) -> bool:
        """Whether two calls with equal inputs may differ, or a call has an effect."""
        return any(has_effect(op) for op in self.graph.get_operations())

    def with_outputs(self, more: Sequence[Tensor]) -> Function:
        """The same body with further outputs, under a name of its own."""
        outputs = (*self.outputs, *more)
        return Function(self.graph.unique_function_name(self.name), self.graph, self.inputs, outputs, self.control_outputs)

    def __repr__(self) -> str:
        return f"<mpirt.Function {self.name!r} of {self.graph.version} operations>"


def has_effect(op: Operation) -> bool:
    """Whether ``op`` keeps state, or changes that of a variable."""
    return op.type != ARG and (op.definition.stateful or op.definition.takes_refs)


def has_body(op: Operation) -> bool:
    """Whether ``op`` runs bodies."""
    return op.definition.takes_functions and any(isinstance(value, Function) for value in op.attrs.values())


class FuncGraph(Graph):
    """A body while it is built.

    Parameters
    ----------
    name : wanted name; ``name`` is it made unique among the bodies of the outermost graph
    outer : the graph around it, whose tensors it may use

    Attributes
    ----------
    captures : dict of tensors outside to their arguments, in the order of first use
    outer_controls : operations outside that something inside was told to wait for; the whole body waits for them
    """

    def __init__(self, name: str, outer: Graph) -> None:
        super().__init__()
        self.outer = outer
        self.captures: dict[Tensor, Tensor] = {}
        self.outer_controls: dict[Operation, None] = {}
        self._arguments: dict[Tensor, Tensor] = {}  # the way back
        inside, outside = self._scopes, outer._scopes
        inside.device, inside.container, inside.variable = outside.device, outside.container, outside.variable
        inside.attrs, inside.gradient_overrides = outside.attrs, outside.gradient_overrides
        self.seed = outer.seed
        self.ops_state = outer.ops_state
        self._collections = {key: list(items) for key, items in outer._collections.items()}
        self._outer_device = self._scopes.device
        self.name = self.unique_function_name(re.sub(r"[^A-Za-z0-9_]", "_", name))
        self.qualifier = f"{self.name}/"

    def unique_function_name(self, name: str) -> str:
        """``name``, with a number if a body around the outermost graph has it."""
        names: dict[str, int] = self.ops_state.setdefault(__name__, {})
        while name in names:
            names[name] += 1
            name = f"{name}_{names[name]}"
        names[name] = 0
        return name

    # ---- arguments

    def add_input(self, dtype: DType, shape: Shape, name: str = "arg") -> Tensor:
        """A new argument."""
        text = re.sub(r"[^a-z0-9_]", "_", name.lower()).strip("_")
        exact = self.unique_name(text if text[:1].isalpha() else f"arg_{text}", absolute=True)
        with self.control_dependencies(None):
            op = super().create_op(ARG, (), {"T": dtype, "index": 0}, exact + "/")
        op.device = ""
        op.outputs[0].static_shape = shape
        return op.outputs[0]

    def capture(self, tensor: Tensor) -> Tensor:
        """The argument that stands for a tensor outside; ``tensor`` itself if it is of this graph."""
        if tensor.graph is self:
            return tensor
        if not self.sees(tensor.graph):
            raise ValueError(f"{tensor!r} is neither of the body {self.name!r} nor of a graph around it.")
        if isinstance(self.outer, FuncGraph):
            tensor = self.outer.capture(tensor)
        if tensor not in self.captures:
            self.captures[tensor] = argument = self.add_input(tensor.dtype, tensor.static_shape, tensor.op.name)
            self._arguments[argument] = tensor
        return self.captures[tensor]

    def sees(self, graph: Graph) -> bool:
        """Whether ``graph`` is one of those around this one."""
        around = self.outer
        while around is not graph and isinstance(around, FuncGraph):
            around = around.outer
        return around is graph

    def outer_tensor(self, tensor: Tensor) -> Tensor | None:
        """The tensor outside for which the argument ``tensor`` stands, None if it stands for no captured one."""
        return self._arguments.get(tensor)

    def changed_variables(self) -> set[Tensor]:
        """The captured variables' tensors, outside, that something in this body may change."""
        changed: set[Tensor] = set()
        for op in self._operations:
            ranges = arg_ranges(op.definition.inputs, op.attrs) if op.definition.takes_refs else {}
            for arg in op.definition.inputs:
                if arg.is_ref:
                    changed.update(self._arguments[t] for t in op.inputs[ranges[arg.name]] if t in self._arguments)
        return changed

    def read_only(self, variables: Iterable[Tensor]) -> None:
        """Let the captured ``variables`` come in as values: nothing changes them while the body runs."""
        for tensor in variables:
            argument = self.captures.get(tensor)
            if argument is not None:
                argument.dtype = argument.dtype.base_dtype
                argument.op.set_attr("T", argument.dtype)

    def lay_into(self, outer: Graph, captured: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Make ``outer`` the graph around this body, and ``captured`` its pairs of a tensor there and an argument."""
        self.outer = outer
        self.captures = dict(captured)
        self._arguments = {argument: tensor for tensor, argument in self.captures.items()}
        self.read_only(self.captures)

    # ---- building

    def create_op(
        self,
        op_type: str,
        inputs: Sequence[Tensor],
        attrs: Mapping[str, Any] | None = None,
        name: str | None = None,
        frames: tuple[tuple[str, int], ...] | None = None,
    ) -> Operation:
        """Add an operation; see ``Graph.create_op``. Inputs may be tensors of a graph around this one.

        Raises
        ------
        InvalidArgumentError
            If it would be a placeholder or a variable.
        """
        if op_type in _REFUSED:
            raise errors.InvalidArgumentError(
                f"{_REFUSED[op_type]} ({name or op_type!r}) can't be made inside the body {self.name!r} of a cond or while_loop.",
                hint="make it outside and use it inside: it is captured.",
            )
        op = super().create_op(op_type, [self.capture(t) for t in inputs], attrs, name, frames)
        if op.device:
            self._keep_task(op)
        return op

    def _keep_task(self, op: Operation) -> None:
        """A body runs on one task: of a device that is asked for inside, only type and index count."""
        asked = device_spec.parse(op.device)
        op.device = DeviceSpec(device_type=asked.device_type, device_index=asked.device_index).to_string()
        if self._scopes.device is self._outer_device or _warned or (asked.job, asked.task) == (None, None):
            return
        around = None if self._outer_device is None else self._outer_device.folded
        outside = device_spec.parse(around or "")
        if (asked.job, asked.task) != (outside.job, outside.task):
            _warned.append(op.name)
            warnings.warn(
                f"{op.name!r} asks for {str(asked)!r} inside the body {self.name!r}: a body runs on the task of its cond or"
                " while_loop, so job and task are ignored. Compute outside what another task should compute; it is captured.",
                stacklevel=4,
            )

    def as_graph_element(self, obj: Any, allow_tensor: bool = True, allow_operation: bool = True) -> Tensor | Operation:
        """As ``Graph.as_graph_element``; what belongs to a graph around this one is returned as it is."""
        convert = getattr(obj, "_as_graph_element", None)
        element = convert() if convert is not None else obj
        kinds = (Tensor,) * allow_tensor + (Operation,) * allow_operation
        if isinstance(element, kinds) and self.sees(element.graph):
            return element
        return super().as_graph_element(element, allow_tensor, allow_operation)

    @contextmanager
    def control_dependencies(self, control_inputs: Iterable[Any] | None) -> Iterator[None]:
        """As ``Graph.control_dependencies``; for an operation outside, the whole body waits."""
        inside: list[Operation] | None = None
        if control_inputs is not None:
            inside = []
            for item in control_inputs:
                element = self.as_graph_element(getattr(item, "op", item) if not isinstance(item, Operation) else item)
                op = element.op if isinstance(element, Tensor) else element
                if op.graph is self:
                    inside.append(op)
                else:
                    self.outer_controls[op] = None
        with super().control_dependencies(inside):
            yield

    @contextmanager
    def colocate_with(self, op: Any, ignore_existing: bool = False) -> Iterator[None]:
        """As ``Graph.colocate_with``; without effect for an operation outside, whose place the body has anyway or can't have."""
        element = None if op is None else self.as_graph_element(op)
        outside = element is not None and element.graph is not self
        with nullcontext() if outside else super().colocate_with(element, ignore_existing):
            yield

    def finish(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], controls: Sequence[Operation] = ()) -> Function:
        """The finished body with its arguments in the order ``inputs``."""
        for index, tensor in enumerate(inputs):
            tensor.op.set_attr("index", index)
        effects = [op for op in self._operations if has_effect(op)]
        return Function(self.name, self, tuple(inputs), tuple(outputs), tuple(dict.fromkeys([*controls, *effects])))

    def __repr__(self) -> str:
        return f"<mpirt.FuncGraph {self.name!r} of {len(self._operations)} operations>"


_warned: list[str] = []  # whether the warning about devices inside bodies was given (once a process)
