"""Kernels and shape functions of the operations on a variable's state, run by tests.reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt import dtypes, errors
from mpirt.gradients import gradients
from mpirt.graph.graph import Graph, Tensor
from mpirt.graph.op_def import op_def, op_types
from mpirt.ops import resource_ops, scatter_state_ops, state_ops
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.identity_ops import identity, placeholder
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.math_ops import multiply
from tests.reference import Reference

FAMILY = (resource_ops, scatter_state_ops, state_ops)
HOW = ("Update", "Add", "Sub", "Mul", "Div", "Min", "Max")


class Variables:
    """A graph with its reference evaluation; variables start with given values."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.reference = Reference(self.graph)

    def ref(self, value: Any, shape: Any = "its own", name: str = "v") -> Tensor:
        value = np.asarray(value)
        with self.graph.as_default():
            declared = value.shape if shape == "its own" else shape
            ref = state_ops.variable_op(declared, dtypes.as_dtype(value.dtype), name)
            self.reference.run(state_ops.assign(ref, constant(value, dtypes.as_dtype(value.dtype)), shape == "its own"))
        return ref

    def handle(self, value: Any, shape: Any = "its own", name: str = "h") -> Tensor:
        value = np.asarray(value)
        kind = dtypes.as_dtype(value.dtype)
        with self.graph.as_default():
            handle: Tensor = apply_op("VarHandleOp", dtype=kind, shape=value.shape if shape == "its own" else shape, name=name)
            self.reference.run(apply_op("AssignVariableOp", handle, constant(value, kind)))
        return handle

    def run(self, build: Any, *args: Any, **kwargs: Any) -> Any:
        with self.graph.as_default():
            return self.reference.run(build(*args, **kwargs))

    def read(self, variable: Tensor) -> Any:
        if variable.dtype is dtypes.resource:
            return self.run(apply_op, "ReadVariableOp", variable, dtype=variable.op.attrs["dtype"])
        return self.reference.run(variable)


@pytest.fixture
def v() -> Variables:
    return Variables()


# ------------------------------------------------------------------------------------------------------ the registry


def test_every_operation_of_the_family_has_a_cpu_kernel_and_a_gradient_or_a_reason() -> None:
    changing = [n for n in op_types() if n.startswith(("Scatter", "ResourceScatter", "Assign", "Variable", "Resource"))]
    assert len(changing) > 30
    for name in changing:
        definition = op_def(name)
        assert "CPU" in definition.kernels, name
        assert definition.gradient or definition.no_gradient_reason, name


# ------------------------------------------------------------------------------------------------------------ assign


def test_assign_sets_and_returns_the_variable(v: Variables) -> None:
    ref = v.ref([1.0, 2.0])
    out = v.run(state_ops.assign, ref, [5.0, 6.0])
    np.testing.assert_array_equal(out, np.array([5.0, 6.0]))
    np.testing.assert_array_equal(v.read(ref), np.array([5.0, 6.0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.complex64])
def test_assign_add_and_sub_keep_the_type(v: Variables, dtype: Any) -> None:
    ref = v.ref(np.array([5, 6, 7], dtype))
    v.run(state_ops.assign_add, ref, np.array([1, 2, 3], dtype))
    out = v.run(state_ops.assign_sub, ref, np.array([2, 2, 2], dtype))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, np.array([4, 6, 8], dtype))


def test_a_value_read_before_an_update_stays(v: Variables) -> None:
    ref = v.ref([1.0])
    with v.graph.as_default():
        before = identity(ref)
        with v.graph.control_dependencies([before]):
            add = state_ops.assign_add(ref, [10.0])
        assert [float(x[0]) for x in v.reference.run([before, add])] == [1.0, 11.0]


def test_a_variable_added_to_itself_is_doubled(v: Variables) -> None:
    ref = v.ref([1.0, 3.0])
    with v.graph.as_default():
        np.testing.assert_array_equal(v.reference.run(state_ops.assign_add(ref, identity(ref))), [2.0, 6.0])


def test_assign_of_another_static_shape_is_refused_while_building(v: Variables) -> None:
    ref = v.ref([1.0, 2.0])
    with v.graph.as_default(), pytest.raises(ValueError, match=r"Shapes \(2,\) and \(3,\) are not compatible"):
        state_ops.assign(ref, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("change", [state_ops.assign, state_ops.assign_add, state_ops.assign_sub])
def test_a_value_of_another_shape_is_refused_in_the_step_and_changes_nothing(v: Variables, change: Any) -> None:
    ref = v.ref(np.zeros((2, 3)))
    with v.graph.as_default():
        x = placeholder(dtypes.float64)
        op = change(ref, x)
    with pytest.raises(
        errors.InvalidArgumentError, match=r"value of shape \(3,\) doesn't fit the variable 'v' of shape \(2, 3\)"
    ):
        v.reference.run(op, {x: np.ones(3)})
    np.testing.assert_array_equal(v.read(ref), np.zeros((2, 3)))


def test_a_variable_without_declared_shape_changes_its_shape_on_request_only(v: Variables) -> None:
    ref = v.ref([1.0, 2.0], shape=None)
    assert ref.static_shape is None
    assert v.run(state_ops.assign, ref, [[3.0]], validate_shape=False).shape == (1, 1)
    with pytest.raises(errors.InvalidArgumentError, match=r"of shape \(1, 1\)"):
        v.run(state_ops.assign, ref, [1.0, 2.0])


def test_a_declared_shape_is_never_left(v: Variables) -> None:
    ref = v.ref([1.0, 2.0])
    with pytest.raises(errors.InvalidArgumentError, match="made with validate_shape=False"):
        v.run(state_ops.assign, ref, [1.0, 2.0, 3.0], validate_shape=False)


@pytest.mark.parametrize("kind", ["ref", "handle"])
def test_two_graphs_that_declare_a_variable_differently_are_refused_with_both_sides(kind: str) -> None:
    first, second = Variables(), Variables()
    second.reference.cells = first.reference.cells  # one task
    getattr(first, kind)(np.zeros(2, np.float32), name="w")
    for value, described in ((np.zeros(3, np.float32), r"float32 \(3,\)"), (np.zeros(2, np.int32), r"int32 \(2,\)")):
        with pytest.raises(errors.InvalidArgumentError) as error:
            getattr(second, kind)(value, name="w")
        line = rf"'w' declares the variable 'w' as {described}, but on this task it is float32 \(2,\), declared at .*ops_state"
        assert error.match(line)
        second.graph = Graph()
        second.reference.graph = second.graph
    np.testing.assert_array_equal(first.reference.value("w"), np.zeros(2))


def test_a_name_that_belongs_to_another_kind_of_resource_is_refused(v: Variables) -> None:
    v.reference.cells["v"] = "a queue"
    with pytest.raises(errors.InvalidArgumentError, match="'v' wants a variable, but the resource of that name is 'a queue'"):
        v.ref([1.0])


def test_shared_name_makes_two_operations_one_variable(v: Variables) -> None:
    with v.graph.as_default():
        a = state_ops.variable_op((), dtypes.float32, "a", shared_name="s")
        b = state_ops.variable_op((), dtypes.float32, "b", shared_name="s")
        v.reference.run(state_ops.assign(a, 3.0))
        assert v.reference.run(b) == 3.0


def test_initialisation_is_seen_and_reading_before_it_fails(v: Variables) -> None:
    with v.graph.as_default():
        ref = state_ops.variable_op((2,), dtypes.float32, "v")
        flag = apply_op("IsVariableInitialized", ref)
        assert not v.reference.run(flag)
        for op in (identity(ref), state_ops.assign_add(ref, [1.0, 1.0]), scatter_state_ops.scatter_add(ref, [0], [1.0])):
            with pytest.raises(errors.FailedPreconditionError, match="uninitialized value v"):
                v.reference.run(op)
        v.reference.run(state_ops.assign(ref, [1.0, 1.0]))
        assert v.reference.run(flag)


def test_the_older_variable_type_takes_an_empty_shape_as_unknown(v: Variables) -> None:
    with v.graph.as_default():
        ref = apply_op("Variable", shape=(), dtype=dtypes.float32)
        assert ref.static_shape is None
        v.reference.run(state_ops.assign(ref, [1.0, 2.0], validate_shape=False))
        assert v.reference.run(ref).tolist() == [1.0, 2.0]


def test_initialized_value_is_the_value_if_there_is_one_else_the_initial_value(v: Variables) -> None:
    with v.graph.as_default():
        ref = state_ops.variable_op((), dtypes.float32, "v")
        value = apply_op("_InitializedValue", ref, constant(7.0), name="start")
        assert v.reference.run(value) == 7.0
        v.reference.run(state_ops.assign(ref, 2.0))
        assert v.reference.run(value) == 2.0


def test_count_up_to_counts_and_then_is_out_of_range(v: Variables) -> None:
    ref = v.ref(np.int32(0))
    with v.graph.as_default():
        up = state_ops.count_up_to(ref, 2)
    assert [int(v.reference.run(up)), int(v.reference.run(up))] == [0, 1]
    with pytest.raises(errors.OutOfRangeError, match="'v' reached its limit of 2"):
        v.reference.run(up)
    assert v.read(ref) == 2


def test_what_changes_a_variable_is_colocated_with_it(v: Variables) -> None:
    with v.graph.as_default():
        with v.graph.device("/job:ps/task:1"):
            ref = state_ops.variable_op((2,), dtypes.float32, "v")
        with v.graph.device("/job:worker"):
            ops = [
                state_ops.assign(ref, [1.0, 2.0]).op,
                state_ops.assign_add(ref, [1.0, 2.0]).op,
                scatter_state_ops.scatter_add(ref, [0], [1.0]).op,
                apply_op("IsVariableInitialized", ref).op,
            ]
            plain = identity(ref).op
    assert {op.device for op in ops} == {"/job:ps/task:1"}
    assert all(op.colocated_with() == ["v"] for op in ops)
    assert plain.device == "/job:worker"


# ----------------------------------------------------------------------------------------------------------- scatter


def one_by_one(value: np.ndarray[Any, Any], rows: Any, updates: Any, how: str) -> np.ndarray[Any, Any]:
    out = value.copy()
    for row, update in zip(np.ravel(rows), np.reshape(updates, (np.size(rows), *value.shape[1:])), strict=True):
        if how == "Update":
            out[row] = update
        elif how == "Add":
            out[row] = out[row] + update
        elif how == "Sub":
            out[row] = out[row] - update
        elif how == "Mul":
            out[row] = out[row] * update
        elif how == "Div":
            quotient = out[row] / update
            out[row] = np.trunc(quotient) if out.dtype.kind in "iu" else quotient
        else:
            out[row] = np.minimum(out[row], update) if how == "Min" else np.maximum(out[row], update)
    return out


row_lists = st.lists(st.integers(0, 4), max_size=8)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [np.float64, np.int32])
@given(rows=row_lists, seed=st.integers(0, 2**32 - 1))
def test_scatter_is_the_same_as_row_by_row(how: str, dtype: Any, rows: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = rng.integers(-20, 20, (5, 2)).astype(dtype)
    updates = rng.integers(1, 5, (len(rows), 2)).astype(dtype)
    expected = one_by_one(value, np.array(rows, int), updates, how)
    v = Variables()
    index = np.array(rows, np.int32)
    out = v.run(apply_op, f"Scatter{how}", v.ref(value), index, updates)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    assert out.dtype == dtype
    handle = v.handle(value)
    v.run(apply_op, f"ResourceScatter{how}", handle, index, updates, dtype=dtypes.as_dtype(dtype))
    np.testing.assert_allclose(v.read(handle), expected, rtol=1e-12)


def test_scatter_takes_indices_of_any_shape_and_a_scalar_update(v: Variables) -> None:
    ref = v.ref(np.zeros((4, 2)))
    index = np.array([[0, 1], [1, 3]], np.int64)
    updates = np.arange(8.0).reshape(2, 2, 2)
    out = v.run(scatter_state_ops.scatter_add, ref, index, updates)
    np.testing.assert_array_equal(out, one_by_one(np.zeros((4, 2)), index, updates, "Add"))
    out = v.run(scatter_state_ops.scatter_update, ref, index, constant_of(v, 7.0))
    np.testing.assert_array_equal(out, [[7, 7], [7, 7], [0, 0], [7, 7]])


def constant_of(v: Variables, value: float) -> Tensor:
    with v.graph.as_default():
        return constant(value, dtypes.float64)


@pytest.mark.parametrize("bad", [-1, 3])
def test_scatter_of_an_index_out_of_range_names_it_and_changes_nothing(v: Variables, bad: int) -> None:
    ref, handle = v.ref(np.zeros((3, 2))), v.handle(np.zeros((3, 2)))
    index = np.array([0, bad], np.int32)
    message = rf"indices\[1\] = {bad} is not in \[0, 3\)"
    with pytest.raises(errors.InvalidArgumentError, match=message):
        v.run(scatter_state_ops.scatter_add, ref, index, np.ones((2, 2)))
    with pytest.raises(errors.InvalidArgumentError, match=message):
        v.run(apply_op, "ResourceScatterUpdate", handle, index, np.ones((2, 2)))
    for variable in (ref, handle):
        np.testing.assert_array_equal(v.read(variable), np.zeros((3, 2)))


def test_scatter_of_a_single_index_out_of_range_is_named_without_a_position(v: Variables) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"indices = 9 is not in \[0, 3\)"):
        v.run(scatter_state_ops.scatter_add, v.ref(np.zeros(3)), np.int32(9), 1.0)


def test_integer_division_of_rows_by_zero_is_refused(v: Variables) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="integer division by zero"):
        v.run(scatter_state_ops.scatter_div, v.ref(np.ones(3, np.int32)), [0, 1], [1, 0])


def test_scatter_never_changes_what_a_reader_holds(v: Variables) -> None:
    ref = v.ref(np.zeros((3, 2)))
    before = v.read(ref)
    v.run(scatter_state_ops.scatter_add, ref, [1], np.ones((1, 2)))
    np.testing.assert_array_equal(before, np.zeros((3, 2)))


def test_updates_that_do_not_fit_are_refused_while_building_and_in_the_step(v: Variables) -> None:
    ref = v.ref(np.zeros((3, 2)))
    with v.graph.as_default():
        with pytest.raises(ValueError, match=r"updates of shape \(2, 3\) don't fit \(2, 2\)"):
            scatter_state_ops.scatter_add(ref, [0, 1], np.ones((2, 3)))
        with pytest.raises(ValueError, match="a scalar has no rows"):
            scatter_state_ops.scatter_add(v.ref(1.0, name="s"), [0], [1.0])
        x = placeholder(dtypes.float64)
        op = scatter_state_ops.scatter_add(ref, [0, 1], x)
    with pytest.raises(errors.InvalidArgumentError, match=r"updates of shape \(1, 2\) don't fit \(2, 2\)"):
        v.reference.run(op, {x: np.ones((1, 2))})


def test_rows_without_entries_can_be_scattered(v: Variables) -> None:
    assert v.run(scatter_state_ops.scatter_add, v.ref(np.zeros((3, 0))), [0, 2], np.zeros((2, 0))).shape == (3, 0)


@pytest.mark.parametrize("how", ["Update", "Add", "Sub"])
@given(depth=st.integers(0, 3), count=st.integers(0, 6), seed=st.integers(0, 2**32 - 1))
def test_scatter_nd_is_the_same_as_slice_by_slice(how: str, depth: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 2, 2)
    value = rng.integers(-9, 9, shape).astype(np.float64)
    index = np.stack([rng.integers(0, d, count) for d in shape[:depth]], axis=-1) if depth else np.zeros((count, 0), int)
    index = index.astype(np.int32)
    updates = rng.integers(-9, 9, (count, *shape[depth:])).astype(np.float64)
    expected = value.copy()
    for entry, update in zip(index, updates, strict=True):
        at = tuple(entry)
        expected[at] = {"Update": update, "Add": expected[at] + update, "Sub": expected[at] - update}[how]
    v = Variables()
    np.testing.assert_array_equal(v.run(apply_op, f"ScatterNd{how}", v.ref(value), index, updates), expected)
    handle = v.handle(value)
    v.run(apply_op, f"ResourceScatterNd{how}", handle, index, updates)
    np.testing.assert_array_equal(v.read(handle), expected)


def test_scatter_nd_of_an_index_out_of_range_names_it(v: Variables) -> None:
    with pytest.raises(
        errors.InvalidArgumentError, match=r"index \[0, 5\] \(number 1\) is outside a variable of shape \(2, 3\)"
    ):
        v.run(scatter_state_ops.scatter_nd_add, v.ref(np.zeros((2, 3))), [[0, 0], [0, 5]], [1.0, 1.0])


def test_scatter_nd_with_too_long_an_index_is_refused_while_building(v: Variables) -> None:
    with pytest.raises(ValueError, match="an index of 3 numbers is too long"):
        v.run(scatter_state_ops.scatter_nd_add, v.ref(np.zeros((2, 3))), [[0, 0, 0]], [1.0])


# ---------------------------------------------------------------------------------------------------------- resources


def test_a_handle_reads_and_changes_its_variable(v: Variables) -> None:
    handle = v.handle(np.array([1.0, 2.0], np.float32))
    v.run(apply_op, "AssignAddVariableOp", handle, np.array([10, 10], np.float32))
    v.run(apply_op, "AssignSubVariableOp", handle, np.array([1, 0], np.float32))
    assert v.read(handle).tolist() == [10.0, 12.0]
    assert v.run(apply_op, "VarIsInitializedOp", handle)
    assert v.run(apply_op, "VariableShape", handle).tolist() == [2]
    assert v.run(apply_op, "VariableShape", handle, out_type=dtypes.int64).dtype == np.int64


def test_the_static_shape_of_a_read_is_the_handles(v: Variables) -> None:
    with v.graph.as_default():
        handle = apply_op("VarHandleOp", dtype=dtypes.float32, shape=(None, 3))
        assert apply_op("ReadVariableOp", handle, dtype=dtypes.float32).static_shape == (None, 3)
        assert apply_op("ReadVariableOp", identity(handle), dtype=dtypes.float32).static_shape == (None, 3)
        fed = placeholder(dtypes.resource)
        assert apply_op("ReadVariableOp", fed, dtype=dtypes.float32).static_shape is None


def test_a_resource_variable_never_leaves_its_declared_shape(v: Variables) -> None:
    handle = v.handle(np.zeros(2))
    with v.graph.as_default():
        x = placeholder(dtypes.float64)
        op = apply_op("AssignVariableOp", handle, x)
    with pytest.raises(errors.InvalidArgumentError, match=r"shape \(3,\) doesn't fit the variable 'h' of shape \(2,\)"):
        v.reference.run(op, {x: np.zeros(3)})


def test_destroying_a_resource_makes_it_uninitialised(v: Variables) -> None:
    handle = v.handle(np.zeros(2))
    v.run(apply_op, "DestroyResourceOp", handle)
    assert not v.run(apply_op, "VarIsInitializedOp", handle)
    with pytest.raises(errors.FailedPreconditionError):
        v.read(handle)
    with pytest.raises(errors.NotFoundError, match="no value to destroy"):
        v.run(apply_op, "DestroyResourceOp", handle, ignore_lookup_error=False)


def test_gather_from_a_resource_takes_rows_and_entries(v: Variables) -> None:
    value = np.arange(12.0).reshape(4, 3)
    handle = v.handle(value)
    index = np.array([[3, 0], [1, 1]], np.int32)
    np.testing.assert_array_equal(v.run(apply_op, "ResourceGather", handle, index, dtype=dtypes.float64), value[index])
    entries = np.array([[1, 2], [3, 0]], np.int32)
    np.testing.assert_array_equal(v.run(apply_op, "ResourceGatherNd", handle, entries, dtype=dtypes.float64), [5.0, 9.0])
    rows = v.run(apply_op, "ResourceGatherNd", handle, entries[:, :1], dtype=dtypes.float64)
    np.testing.assert_array_equal(rows, value[[1, 3]])
    with pytest.raises(errors.InvalidArgumentError, match=r"indices\[0\] = 4 is not in \[0, 4\)"):
        v.run(apply_op, "ResourceGather", handle, np.array([4], np.int32), dtype=dtypes.float64)


def test_gradients_reach_the_handle(v: Variables) -> None:
    value, weight = np.arange(6.0).reshape(3, 2), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    handle = v.handle(value)
    with v.graph.as_default():
        read = apply_op("ReadVariableOp", handle, dtype=dtypes.float64)
        (whole,) = gradients(multiply(read, weight), [handle])
        picked = apply_op("ResourceGather", handle, np.array([2, 0, 2], np.int32), dtype=dtypes.float64)
        (rows,) = gradients(multiply(picked, weight), [handle])
        entries = apply_op("ResourceGatherNd", handle, np.array([[1, 1], [1, 1]], np.int32), dtype=dtypes.float64)
        (single,) = gradients(multiply(entries, np.array([2.0, 3.0])), [handle])
        np.testing.assert_array_equal(v.reference.run(whole), weight)
        assert isinstance(rows, IndexedSlices)
        np.testing.assert_array_equal(v.reference.run(rows.indices), [2, 0, 2])
        np.testing.assert_array_equal(v.reference.run(rows.values), weight)
        np.testing.assert_array_equal(v.reference.run(single), [[0, 0], [0, 5], [0, 0]])
