"""One step of each optimizer's rule as an operation, against the published formulas in plain numpy, row by row."""

import threading
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpirt import dtypes, errors
from mpirt.graph.graph import Graph, Tensor
from mpirt.graph.op_def import op_def, op_types
from mpirt.ops import resource_ops, state_ops, training_ops
from mpirt.ops.apply import apply_op, constant
from tests.optimizer_rules import (
    BETA1,
    BETA2,
    EPSILON,
    L1,
    L2,
    L2_SHRINKAGE,
    LR,
    LR_POWER,
    MOMENTUM,
    RHO,
    RULES,
    State,
)  # fmt: skip
from tests.reference import Reference

OPS = (resource_ops, training_ops)  # used by the names of their op types
_RATES = {
    "lr": LR, "alpha": LR, "momentum": MOMENTUM, "rho": RHO, "epsilon": EPSILON, "beta1": BETA1, "beta2": BETA2, "l1": L1, "l2": L2,
    "l2_shrinkage": L2_SHRINKAGE, "lr_power": LR_POWER,
}  # fmt: skip
SPARSE_RULES = [rule for rule, (name, *_) in RULES.items() if f"SparseApply{name}" in op_types()]


class Updated:
    """A variable with slots in a graph of its own; runs update operations on it."""

    def __init__(self, start: State, resource: bool, dtype: Any) -> None:
        self.graph, self.resource, self.dtype = Graph(), resource, dtypes.as_dtype(dtype)
        self.session = Reference(self.graph)
        self.cells: dict[str, Tensor] = {}
        with self.graph.as_default():
            for name, value in start.items():
                value = value.astype(dtype)
                if resource:
                    self.cells[name] = apply_op("VarHandleOp", dtype=self.dtype, shape=value.shape, name=name)
                    op = apply_op("AssignVariableOp", self.cells[name], constant(value))
                else:
                    self.cells[name] = state_ops.variable_op(value.shape, self.dtype, name)
                    op = state_ops.assign(self.cells[name], constant(value))
                self.session.run(op)

    def update(self, name: str, grad: Any, t: int, attrs: dict[str, Any], indices: Any = None) -> Any:
        op_type = f"{'Resource' if self.resource else ''}{'Sparse' if indices is not None else ''}Apply{name}"
        values = {**_RATES, "beta1_power": BETA1**t, "beta2_power": BETA2**t, "grad": grad, "delta": grad}
        with self.graph.as_default():
            args = []
            for arg in op_def(op_type).inputs:
                if arg.name in self.cells:
                    args.append(self.cells[arg.name])
                elif arg.name == "indices":
                    args.append(constant(indices))
                elif arg.name == "global_step":
                    args.append(constant(np.int64(t)))
                else:
                    args.append(constant(np.asarray(values[arg.name], self.dtype.np_dtype)))
            return self.session.run(apply_op(op_type, *args, **attrs))

    def values(self) -> State:
        return {name: self.session.value(name) for name in self.cells}


def start_of(slots: dict[str, float], shape: Any) -> State:
    return {"var": np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)} | {k: np.full(shape, v) for k, v in slots.items()}


KINDS = pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])


@KINDS
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-5), (np.float16, 2e-2)], ids=["64", "32", "16"])
@pytest.mark.parametrize("shape", [(), (3, 2)], ids=str)
def test_four_steps_follow_the_formula(rule: str, resource: bool, dtype: Any, rtol: float, shape: Any) -> None:
    name, slots, formula, attrs = RULES[rule]
    expected = start_of(slots, shape)
    updated = Updated(expected, resource, dtype)
    rng = np.random.default_rng(0)
    for t in range(1, 5):
        grad = rng.normal(size=shape)
        returned = updated.update(name, grad, t, attrs)
        formula(expected, grad, t)
        if not resource:  # the reference output is the variable after the update
            np.testing.assert_allclose(returned, expected["var"], rtol, rtol)
    for key, value in updated.values().items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected[key], rtol, rtol, err_msg=key)


@KINDS
@pytest.mark.parametrize("rule", SPARSE_RULES)
@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_sparse_steps_touch_the_named_rows_only_and_repeated_rows_in_order(rule: str, resource: bool, index_type: Any) -> None:
    name, slots, formula, attrs = RULES[rule]
    expected = start_of(slots, (5, 2))
    updated = Updated(expected, resource, np.float64)
    rng = np.random.default_rng(0)
    for t, rows in enumerate([[3, 0], [1, 1, 3, 1], [], [4, 2, 4]], start=1):
        grad = rng.normal(size=(len(rows), 2))
        updated.update(name, grad, t, attrs, np.array(rows, index_type))
        for row, g in zip(rows, grad, strict=True):
            part = {key: value[row] for key, value in expected.items()}
            formula(part, g, t)
            for key in expected:
                expected[key][row] = part[key]
    for key, value in updated.values().items():
        np.testing.assert_allclose(value, expected[key], 1e-12, err_msg=key)


def test_all_rules_have_the_sparse_forms_that_tensorflow_has() -> None:
    assert set(RULES) - set(SPARSE_RULES) == {"descent", "adam", "nadam"}


@KINDS
def test_a_value_that_was_read_before_an_update_does_not_change(resource: bool) -> None:
    updated = Updated({"var": np.zeros(3), "accum": np.zeros(3)}, resource, np.float32)
    before = updated.session.cells["var"].read()
    updated.update("Momentum", np.ones(3), 1, {})
    # By the device: a GPU's copy that some other stream makes may come before what it reads.
    assert updated.session.in_host_memory(before).tolist() == [0, 0, 0]


def test_an_update_works_in_place_when_nobody_else_holds_the_value() -> None:
    updated = Updated({"var": np.zeros(1000), "m": np.zeros(1000), "v": np.zeros(1000)}, False, np.float32)
    updated.update("Adam", np.ones(1000), 1, {})  # the first one may copy: the initial values are constants of the graph
    addresses = [id(cell.read()) for cell in updated.session.cells.values()]
    updated.update("Adam", np.ones(1000), 2, {})
    assert addresses == [id(cell.read()) for cell in updated.session.cells.values()]


@pytest.mark.parametrize(("name", "cells", "attrs", "temporaries"), [
    ("GradientDescent", 1, {}, 1), ("Momentum", 2, {"use_nesterov": False}, 1), ("Momentum", 2, {"use_nesterov": True}, 1),
    ("Adagrad", 2, {"update_slots": True}, 2), ("Adam", 3, {"use_nesterov": False}, 2), ("RMSProp", 3, {}, 2),
])  # fmt: skip
def test_a_dense_update_needs_no_more_memory_than_its_temporaries_of_a_block(name: str, cells: int, attrs: Any, temporaries: int) -> None:
    """Counted in bytes that numpy asks for while the kernel runs."""
    definition, size = op_def(f"Apply{name}"), 4 * training_ops._BLOCK + 7
    kernel = definition.kernels["CPU"].function
    variables = [state_ops.VariableCell(f"v{i}", dtypes.float32, (size,)) for i in range(cells)]
    for variable in variables:
        variable.assign(np.ones(size, np.float32))
    grad = np.full(size, 0.5, np.float32)
    args = [grad if arg.name in ("grad", "delta") else np.array(0.25, np.float32) for arg in definition.inputs[cells:]]
    before = [id(variable.read()) for variable in variables]
    tracemalloc.start()
    try:
        assert kernel is not None
        kernel(SimpleNamespace(xp=np, op=None), *variables, *args, **attrs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    block = training_ops._BLOCK * grad.itemsize
    assert block * (temporaries - 1) < peak < block * (temporaries + 0.5) < grad.nbytes
    assert [id(variable.read()) for variable in variables] == before, "an array was copied"


def test_a_step_of_nesterovs_momentum_is_these_operations_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    var, accum, grad = rng.standard_normal((3, 1000)).astype(np.float32)
    lr, momentum = np.float32(0.1), np.float32(0.9)
    cells = [state_ops.VariableCell(name, dtypes.float32, (1000,)) for name in ("var", "accum")]
    for cell, value in zip(cells, (var, accum), strict=True):
        cell.assign(value.copy())
    kernel = op_def("ApplyMomentum").kernels["CPU"].function
    assert kernel is not None
    kernel(SimpleNamespace(xp=np, op=None), *cells, np.array(lr), grad, np.array(momentum), use_nesterov=True)
    grown = accum * momentum + grad
    assert (cells[1].read() == grown).all()
    assert (cells[0].read() == var - grad * lr - grown * momentum * lr).all()


def test_a_failed_update_gives_every_lock_back() -> None:
    cells = [state_ops.VariableCell(name, dtypes.float32, (2,)) for name in ("var", "accum")]
    cells[0].assign(np.ones(2, np.float32))
    kernel = op_def("ApplyMomentum").kernels["CPU"].function
    assert kernel is not None
    one = np.array(1, np.float32)
    with pytest.raises(errors.FailedPreconditionError, match="accum"):
        kernel(SimpleNamespace(xp=np, op=None), *cells, one, np.ones(2, np.float32), one, use_nesterov=False)
    free: list[bool] = []

    def take() -> None:
        free.extend(cell.lock.acquire(blocking=False) for cell in cells)

    other = threading.Thread(target=take)  # a lock of the same thread could be taken again
    other.start()
    other.join()
    assert free == [True, True]


@KINDS
@pytest.mark.parametrize("bad", [5, -1])
def test_a_row_out_of_range_is_refused_and_nothing_changes(resource: bool, bad: int) -> None:
    updated = Updated({"var": np.ones((5, 1)), "accum": np.ones((5, 1))}, resource, np.float32)
    with pytest.raises(errors.InvalidArgumentError, match=rf"index {bad} at offset 1 in indices is out of range \[0, 5\)\."):
        updated.update("Adagrad", np.ones((3, 1)), 1, {}, np.array([0, bad, 2]))
    assert all((value == 1).all() for value in updated.values().values())


def test_a_gradient_of_another_shape_is_refused_when_the_graph_is_built() -> None:
    updated = Updated({"var": np.ones(3)}, False, np.float32)
    with pytest.raises(ValueError, match=r"Shapes \(3,\) and \(1,\) are not compatible"):
        updated.update("GradientDescent", np.ones(1), 1, {})


def test_a_gradient_of_another_shape_is_refused_in_the_step_where_shapes_are_unknown() -> None:
    updated = Updated({"var": np.ones(3)}, False, np.float32)
    with updated.graph.as_default():
        grad = state_ops.variable_op(None, dtypes.float32, "grad")
        step = apply_op("ApplyGradientDescent", updated.cells["var"], constant(1.0), grad)
    updated.session.run(apply_in(updated.graph, grad))
    # Broadcasting would hide the mistake.
    with pytest.raises(errors.InvalidArgumentError, match=r"var and grad do not have the same shape: \(3,\) and \(1,\)\."):
        updated.session.run(step)


def apply_in(graph: Graph, variable: Tensor) -> Tensor:
    with graph.as_default():
        return state_ops.assign(variable, constant([2.0]), validate_shape=False)


def test_an_uninitialised_slot_is_named() -> None:
    updated = Updated({"var": np.ones(3), "accum": np.ones(3)}, False, np.float32)
    updated.session.cells["accum"].clear()
    with pytest.raises(errors.FailedPreconditionError, match="uninitialized value accum"):
        updated.update("Momentum", np.ones(3), 1, {})


@pytest.mark.parametrize("name", ["Momentum", "Adam", "RMSProp", "Ftrl", "Adadelta", "ProximalAdagrad"])
def test_a_large_variable_is_updated_as_its_parts_would_be(name: str) -> None:
    """The kernel works in blocks: each part of the variable as a variable of its own, to the last bit."""
    definition, rng = op_def(f"Apply{name}"), np.random.default_rng(3)
    size = 2 * training_ops._BLOCK + 5
    inputs = [arg for arg in definition.inputs if not arg.is_ref]
    cells = [rng.uniform(0.5, 1, size).astype(np.float32) for arg in definition.inputs if arg.is_ref]
    grad = rng.normal(size=size).astype(np.float32)
    attrs = {name: attr.default for name, attr in definition.attrs.items() if name not in ("T", "use_locking")}

    def updated(part: slice) -> list[np.ndarray[Any, Any]]:
        variables = [state_ops.VariableCell("v", dtypes.float32, (None,)) for _ in cells]
        for variable, array in zip(variables, cells, strict=True):
            variable.assign(array[part].copy())
        args = [grad[part].copy() if arg.name == "grad" else np.array(0.25, np.float32) for arg in inputs]
        kernel = definition.kernels["CPU"].function
        assert kernel is not None
        kernel(SimpleNamespace(xp=np, op=None), *variables, *args, **attrs)
        return [variable.read() for variable in variables]

    whole = updated(slice(None))
    for start in range(0, size, 1000):
        part = slice(start, start + 1000)
        for have, want in zip(whole, updated(part), strict=True):
            np.testing.assert_array_equal(have[part], want)
