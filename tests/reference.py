"""A second way to compute a graph, for tests: each operation in creation order, in one place, with numpy.

It shares the kernels with the product and nothing else (no placement, no programs, no session), so that the tests of
kernels need no session and the tests of sessions have an independent answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpirt.graph.function import ARG, Function
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.shapes import compatible


class Reference:
    """Evaluates tensors of ``graph``; keeps variables between calls."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.cells: dict[str, Any] = {}
        self.executions: dict[Operation, int] = {}

    def run(self, fetches: Any, feeds: Mapping[Tensor, Any] | None = None) -> Any:
        """Values of a tensor or operation, or of a list of them."""
        targets = list(fetches) if isinstance(fetches, list | tuple) else [fetches]
        targets = [t._as_tensor(False) if hasattr(t, "_as_tensor") else t for t in targets]
        values: dict[tuple[str, int], Any] = {(t.op.name, t.value_index): np.asarray(v, t.dtype.np_dtype) for t, v in (feeds or {}).items()}
        self._compute(self.graph, [t for t in targets if isinstance(t, Operation) or (t.op.name, t.value_index) not in values], values)
        out = [None if isinstance(t, Operation) else _read(values[t.op.name, t.value_index]) for t in targets]
        return out if isinstance(fetches, list | tuple) else out[0]

    def _compute(self, graph: Graph, targets: Sequence[Any], values: dict[tuple[str, int], Any]) -> None:
        needed = _ancestors([t.op if isinstance(t, Tensor) else t for t in targets], set(values))
        for op in graph.get_operations():
            if op in needed and not all((op.name, i) in values for i in range(max(len(op.outputs), 1))):
                self._execute(op, values)

    def call(self, body: Function, inputs: Sequence[Any]) -> list[Any]:
        """Outputs of the body of a functional operation."""
        values = {(t.op.name, 0): v for t, v in zip(body.inputs, inputs, strict=True)}
        self._compute(body.graph, [*body.outputs, *body.control_outputs], values)
        return [v if t.op.type == ARG else _read(v) for t in body.outputs for v in [values[t.op.name, t.value_index]]]

    def _execute(self, op: Operation, values: dict[tuple[str, int], Any]) -> None:
        kernel = op.definition.kernels["CPU"]
        inputs = []
        is_ref = [a.is_ref for a in op.definition.inputs for _ in range(_count(op, a))]
        for tensor, ref in zip(op.inputs, is_ref, strict=True):
            value = values[tensor.op.name, tensor.value_index]
            inputs.append(value if ref else _read(value) if tensor.dtype.is_ref else value)
        with np.errstate(all="ignore"):  # as the executor does: inf and NaN are values
            if kernel.direct:
                result = getattr(np, kernel.direct)(*inputs)
            else:
                assert kernel.function is not None
                result = kernel.function(_Context(self, op), *inputs, **{k: op.attrs[k] for k in kernel.attrs})
        results: Sequence[Any] = [result] if len(op.outputs) == 1 and not _is_list_output(op) else list(result or ())
        assert len(results) == len(op.outputs), f"{op.name} ({op.type}) gave {len(results)} of {len(op.outputs)} outputs"
        for tensor, value in zip(op.outputs, results, strict=True):
            if isinstance(value, np.ndarray | np.generic):
                static = tensor.static_shape
                assert value.dtype == tensor.dtype.np_dtype, f"{op.type}: dtype {value.dtype}, not {tensor.dtype.name}"
                assert compatible(static, value.shape), f"{op.type}: shape {value.shape} contradicts the static shape {static}"
                value = np.asarray(value)
            values.setdefault((op.name, tensor.value_index), value)  # one that is fed stays
        values.setdefault((op.name, 0), None)


def _is_list_output(op: Operation) -> bool:
    return len(op.definition.outputs) == 1 and op.definition.outputs[0].is_list


def _count(op: Operation, arg: Any) -> int:
    if arg.list_attr:
        return len(op.attrs[arg.list_attr])
    return int(op.attrs[arg.number_attr]) if arg.number_attr else 1


def _read(value: Any) -> Any:
    return value.read() if hasattr(value, "read") else value


def _ancestors(ops: Sequence[Operation], fed: set[tuple[str, int]]) -> set[Operation]:
    found: set[Operation] = set()
    stack = list(ops)
    while stack:
        op = stack.pop()
        if op not in found:
            found.add(op)
            stack += [t.op for t in op.inputs if (t.op.name, t.value_index) not in fed]
            stack += list(op.control_inputs)
    return found


class _Context:
    """KernelContext of the reference evaluation."""

    xp = np

    def __init__(self, owner: Reference, op: Operation) -> None:
        self.owner = owner
        self.op = op

    def resource(self, factory: Callable[[str], Any], private: bool = False) -> Any:
        name = self.op.attrs.get("shared_name") or self.op.qualified_name
        if name not in self.owner.cells:
            self.owner.cells[name] = factory(name)
        return self.owner.cells[name]

    def rng(self, seed: int, seed2: int) -> np.random.Generator:
        count = self.owner.executions.get(self.op, 0)
        self.owner.executions[self.op] = count + 1
        return np.random.Generator(np.random.Philox(key=np.array([seed, seed2], np.int64).view(np.uint64), counter=[0, 0, 0, count]))

    def run(self, body: Function, inputs: Sequence[Any]) -> list[Any]:
        return self.owner.call(body, inputs)
