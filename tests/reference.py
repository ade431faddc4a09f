"""A second way to compute a graph, for tests: each operation in creation order, in one place, with numpy.

It shares the kernels with the product and nothing else (no placement, no programs, no session), so that the tests of
kernels need no session and the tests of sessions have an independent answer.

With ``pytest --gpu`` every operation that can run there uses its GPU kernel, with each value in the memory that the kernel
declares: so all tests of kernels become tests of the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.function import ARG, Function
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.op_def import ArgDef, arg_size
from mpirt.graph.shapes import compatible
from mpirt.ops.state_ops import VariableCell
from mpirt.runtime.device import CpuDevice, Device, open_device

CPU = CpuDevice()
DEVICE = "CPU:0"  # of references that name none; pytest --gpu changes it
RAN: set[str] = set()  # operation types whose kernel has run on another device than a CPU


class Reference:
    """Evaluates tensors of ``graph``; keeps variables between calls.

    Parameters
    ----------
    device : what runs the operations that have a kernel there and no strings; the others run on the CPU
    """

    def __init__(self, graph: Graph, device: Device | None = None) -> None:
        self.graph = graph
        self.device = device or open_device(DEVICE)
        self.cells: dict[str, Any] = {}
        self.executions: dict[Operation, int] = {}

    def run(self, fetches: Any, feeds: Mapping[Tensor, Any] | None = None) -> Any:
        """Values of a tensor or operation, or of a list of them."""
        targets = list(fetches) if isinstance(fetches, list | tuple) else [fetches]
        targets = [t._as_tensor(False) if hasattr(t, "_as_tensor") else t for t in targets]
        values: dict[tuple[str, int], Any] = {(t.op.name, t.value_index): np.asarray(v, t.dtype.np_dtype) for t, v in (feeds or {}).items()}
        self._compute(self.graph, [t for t in targets if isinstance(t, Operation) or (t.op.name, t.value_index) not in values], values)
        out = [None if isinstance(t, Operation) else self.in_host_memory(_read(values[t.op.name, t.value_index])) for t in targets]
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
        found = [(t, values[t.op.name, t.value_index]) for t in body.outputs]
        return [self.in_host_memory(value if t.op.type == ARG else _read(value)) for t, value in found]

    def value(self, variable: str) -> Any:
        """A copy of the value of a variable, by its name."""
        return np.array(self.in_host_memory(self.cells[variable].read()))

    def _execute(self, op: Operation, values: dict[tuple[str, int], Any]) -> None:
        kind = self.device.name.partition(":")[0]
        has_strings = any(t.dtype.base_dtype is dtypes.string for t in (*op.inputs, *op.outputs))
        device = self.device if kind in op.definition.kernels and not has_strings else CPU
        kernel = op.definition.kernels[device.name.partition(":")[0]]
        if device is not CPU:
            RAN.add(op.type)
        inputs = []
        for tensor, arg in zip(op.inputs, _flat(op, op.definition.inputs), strict=True):
            value = values[tensor.op.name, tensor.value_index]
            if tensor.dtype.is_ref and not arg.is_ref:
                value = _read(value)
            if isinstance(value, VariableCell) and value.initialized:  # nothing here puts operations beside their variables
                moved = self.in_host_memory(value.read()) if device is CPU else self._in_device_memory(value.read())
                if moved is not value.read():
                    value.assign(moved)
                del moved  # a kernel changes an array in place only if nobody else holds it
            on_host = arg.is_ref or arg.name in kernel.host or device is CPU
            inputs.append(self.in_host_memory(value) if on_host else self._in_device_memory(value))
        with np.errstate(all="ignore"), device.active():  # as the executor does: inf and NaN are values
            if kernel.direct:
                result = getattr(device.xp, kernel.direct)(*inputs)
            else:
                assert kernel.function is not None
                result = kernel.function(_Context(self, op, device), *inputs, **{k: op.attrs[k] for k in kernel.attrs})
        results: Sequence[Any] = [result] if len(op.outputs) == 1 and not _is_list_output(op) else list(result or ())
        assert len(results) == len(op.outputs), f"{op.name} ({op.type}) gave {len(results)} of {len(op.outputs)} outputs"
        for tensor, arg, value in zip(op.outputs, _flat(op, op.definition.outputs), results, strict=True):
            if hasattr(value, "dtype") and hasattr(value, "ndim"):
                static, made = tensor.static_shape, "the host's" if isinstance(value, np.ndarray | np.generic) else "the device's"
                assert value.dtype == tensor.dtype.np_dtype, f"{op.type}: dtype {value.dtype}, not {tensor.dtype.name}"
                assert compatible(static, value.shape), f"{op.type}: shape {value.shape} contradicts the static shape {static}"
                if device.xp is np or arg.name in kernel.host:
                    assert made == "the host's", f"{op.type}: {arg.name} is in {made} memory, which its kernel promises for the host"
                    value = np.asarray(value)
                else:
                    assert made == "the device's", f"{op.type}: {arg.name} is in {made} memory, not in that of {device.name}"
            values.setdefault((op.name, tensor.value_index), value)  # one that is fed stays
        values.setdefault((op.name, 0), None)

    def in_host_memory(self, value: Any) -> Any:
        """``value``, or a copy of it once it is computed if it is in the device's memory."""
        is_there = isinstance(value, np.ndarray | np.generic) or not hasattr(value, "ndim")
        return value if is_there else self.device.to_host(value)

    def _in_device_memory(self, value: Any) -> Any:
        is_elsewhere = isinstance(value, np.ndarray | np.generic) and self.device.xp is not np
        return self.device.from_host(np.asarray(value)) if is_elsewhere else value


def _is_list_output(op: Operation) -> bool:
    return len(op.definition.outputs) == 1 and op.definition.outputs[0].is_list


def _flat(op: Operation, args: Sequence[ArgDef]) -> list[ArgDef]:
    return [arg for arg in args for _ in range(arg_size(arg, op.attrs))]


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

    def __init__(self, owner: Reference, op: Operation, device: Device) -> None:
        self.owner = owner
        self.op = op
        self.xp = device.xp

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
