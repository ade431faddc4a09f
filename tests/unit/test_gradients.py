"""gradients(): which operations it adds, where, and what they give; against closed forms and finite differences."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.compiler.prune import prune
from mpirt.graph.graph import Graph
from mpirt.graph.op_def import op_def
from mpirt.ops.apply import apply_op
from tests.gradient_checker import check_gradient
from tests.reference import Reference


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    # ``mpirt.gradients`` is the function at the front door; the module of that name is behind it.
    monkeypatch.setattr(sys.modules["mpirt.gradients"], "_registered", {})
    with tf.Graph().as_default() as g:
        yield g


def value(fetch: Any, feeds: Any = None) -> Any:
    return Reference(tf.get_default_graph()).run(fetch, feeds)


def names(g: Graph, prefix: str = "gradients") -> list[str]:
    return [op.name for op in g.get_operations() if op.name.startswith(prefix)]


# ---- values


def test_the_derivative_of_a_polynomial(graph: Graph) -> None:
    x = tf.constant([1.0, -2.0, 3.0])
    (grad,) = tf.gradients(x * x * x + 2 * x, x)
    np.testing.assert_allclose(value(grad), 3 * np.array([1.0, -2.0, 3.0]) ** 2 + 2)


def test_a_network_of_many_kinds_of_operations_agrees_with_finite_differences() -> None:
    rng = np.random.default_rng(0)

    def network(x: Any, w: Any, b: Any) -> Any:
        hidden = tf.nn.relu(tf.matmul(x, w) + b)
        joined = tf.concat([hidden, tf.tanh(hidden[:, 1:])], axis=1)
        return tf.nn.log_softmax(joined) * tf.sigmoid(tf.reduce_mean(joined, axis=1, keepdims=True))

    check_gradient(network, rng.normal(size=(3, 4)), rng.normal(size=(4, 3)), rng.normal(size=3))


# Expressions of two leaves: a random graph in which leaves and parts are used several times.
OPERATIONS: list[Any] = [tf.add, tf.subtract, tf.multiply, lambda a, b: tf.tanh(a) * b, lambda a, b: tf.maximum(a, b + 0.37)]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8))
def test_random_graphs_with_shared_parts_agree_with_finite_differences(recipe: list[tuple[int, int, int]]) -> None:
    def build(x: Any, y: Any) -> Any:
        made = [x, y]
        for which, left, right in recipe:
            made.append(OPERATIONS[which](made[left % len(made)], made[right % len(made)]))
        return made[-1]

    check_gradient(build, np.array([0.31, -0.72]), np.array([0.53, 0.11]), rtol=1e-4, unknown_shapes=False)


def test_several_ys_add_up_and_their_gradients_may_be_given(graph: Graph) -> None:
    x = tf.constant([1.0, 2.0])
    ys = [x * x, 3 * x]
    assert value(tf.gradients(ys, x)[0]).tolist() == [5.0, 7.0]
    assert value(tf.gradients(ys, x, grad_ys=[[10.0, 0.0], None])[0]).tolist() == [23.0, 3.0]
    assert value(tf.gradients([ys[0], ys[0]], x)[0]).tolist() == [4.0, 8.0]


def test_a_y_that_is_an_x_has_ones_and_what_else_depends_on_it(graph: Graph) -> None:
    x = tf.constant([1.0, 2.0])
    y = x * x
    assert [value(g).tolist() for g in tf.gradients([y, 5 * y], [y, x])] == [[6.0, 6.0], [12.0, 24.0]]


def test_an_x_in_the_middle_does_not_stop_the_way_to_one_behind_it(graph: Graph) -> None:
    x = tf.constant(3.0)
    middle = x * x
    dx, dmiddle = tf.gradients(middle * middle, [x, middle])
    assert (value(dx), value(dmiddle)) == (4 * 27.0, 18.0)


def test_the_gradient_of_a_gradient(graph: Graph) -> None:
    x = tf.constant([2.0])
    (first,) = tf.gradients(x * x * x, x)
    (second,) = tf.gradients(first, x)
    assert value(second).tolist() == [12.0]


def test_hessians_hold_the_second_derivatives(graph: Graph) -> None:
    x = tf.constant([[1.0, 2.0]])
    y = x[0, 0] * x[0, 0] * x[0, 1] + x[0, 1] * x[0, 1]
    (hessian,) = tf.hessians(y, x)
    np.testing.assert_allclose(value(hessian), [[[[4.0, 2.0]], [[2.0, 2.0]]]][0:1])
    with pytest.raises(ValueError, match="hessians needs the full shape"):
        tf.hessians(tf.placeholder(tf.float32, [None]) * 1.0, tf.placeholder(tf.float32, [None]))


def test_broadcasting_is_undone_also_where_shapes_are_unknown() -> None:
    check_gradient(lambda a, b: a * b + b, np.ones((2, 1, 3)), np.array([[1.0], [2.0]]))


# ---- variables


@pytest.mark.parametrize("how", ["variable", "reference", "snapshot"])
def test_a_variable_may_be_given_as_itself_its_reference_or_its_snapshot(graph: Graph, how: str) -> None:
    v = tf.Variable([1.0, 2.0])
    x = {"variable": v, "reference": v.op.outputs[0], "snapshot": v.value()}[how]
    (grad,) = tf.gradients(v * v, x)
    session = Reference(graph)
    session.run(v.initializer)
    assert session.run(grad).tolist() == [2.0, 4.0]


def test_all_reads_of_a_variable_count(graph: Graph) -> None:
    v = tf.Variable(3.0)
    (grad,) = tf.gradients(v.value() * v.read_value(), v)
    session = Reference(graph)
    session.run(v.initializer)
    assert session.run(grad) == 6.0


def test_a_handles_reads_count_as_the_variables(graph: Graph) -> None:
    handle = apply_op("VarHandleOp", dtype=tf.float32, shape=())
    assign = apply_op("AssignVariableOp", handle, tf.constant(3.0))
    reads = [apply_op("ReadVariableOp", handle, dtype=tf.float32) for _ in range(2)]
    (grad,) = tf.gradients(reads[0] * reads[1], handle)
    session = Reference(graph)
    session.run(assign)
    assert session.run(grad) == 6.0


# ---- rows


def test_rows_gathered_several_times_give_slices_side_by_side(graph: Graph) -> None:
    v = tf.Variable(np.zeros((4, 2), np.float32), name="v")
    (grad,) = tf.gradients(tf.reduce_sum(tf.gather(v, [3, 0])) + 2 * tf.reduce_sum(tf.gather(v, [3])), v)
    assert isinstance(grad, tf.IndexedSlices)
    got = [np.array(a).tolist() for a in value([grad.values, grad.indices, grad.dense_shape])]
    assert sorted(zip(got[1], got[0], strict=True)) == [(0, [1.0, 1.0]), (3, [1.0, 1.0]), (3, [2.0, 2.0])]
    assert got[2] == [4, 2]


def test_slices_of_both_index_types_are_put_together_as_int64(graph: Graph) -> None:
    v = tf.Variable(np.zeros((4, 2), np.float32))
    parts = [tf.gather(v, tf.constant([1], tf.int32)), tf.gather(v, tf.constant([2], tf.int64))]
    (grad,) = tf.gradients([tf.reduce_sum(p) for p in parts], v)
    assert grad.indices.dtype is tf.int64
    assert sorted(value(grad.indices)) == [1, 2]


def test_rows_and_a_whole_gradient_together_are_whole(graph: Graph) -> None:
    v = tf.Variable(np.zeros((3, 1), np.float32))
    (grad,) = tf.gradients(tf.reduce_sum(tf.gather(v, [2, 2])) + tf.reduce_sum(5 * v), v)
    assert isinstance(grad, tf.Tensor)
    session = Reference(graph)
    session.run(v.initializer)
    assert session.run(grad).tolist() == [[5.0], [5.0], [7.0]]


# ---- what isn't connected


def test_what_no_y_depends_on_gets_none_or_zeros(graph: Graph) -> None:
    x, other = tf.constant([1.0, 2.0]), tf.constant([[1.0]])
    variable, handle = tf.Variable([1.0, 1.0]), apply_op("VarHandleOp", dtype=tf.float32, shape=(1,))
    assert tf.gradients(x * x, [other, x])[0] is None
    zeros = tf.gradients(x, [other, variable], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    session = Reference(graph)
    session.run([variable.initializer, apply_op("AssignVariableOp", handle, tf.constant([5.0]))])
    assert [session.run(z).tolist() for z in zeros] == [[[0.0]], [0.0, 0.0]]
    assert session.run(tf.gradients(x, handle, unconnected_gradients="zero")[0]).tolist() == [0.0]


def test_no_gradient_flows_through_integers_or_stop_gradient(graph: Graph) -> None:
    x = tf.constant([1.5, 2.5])
    assert tf.gradients(tf.cast(tf.cast(x, tf.int32), tf.float32), x) == [None]
    assert tf.gradients(tf.stop_gradient(x) * 2.0, x) == [None]
    assert tf.gradients(tf.argmax(x), x) == [None]


def test_stop_gradients_makes_tensors_constants(graph: Graph) -> None:
    a = tf.constant(2.0)
    b = 3 * a
    stopped = tf.gradients(a + b, [a, b], stop_gradients=[a, b])
    assert [value(g) for g in stopped] == [1.0, 1.0]
    assert value(tf.gradients(a + b, [a])[0]) == 4.0


def test_only_operations_between_the_xs_and_the_ys_are_differentiated(graph: Graph) -> None:
    x, other = tf.constant(1.0, name="x"), tf.constant(2.0, name="other")
    aside = tf.exp(other, name="aside")
    y = tf.multiply(tf.sin(x, name="sine"), aside, name="product")
    tf.exp(y, name="behind")
    tf.gradients(y, x)
    scopes = {name.split("/")[1] for name in names(graph)}
    assert {s for s in scopes if s.endswith("_grad")} == {"sine_grad", "product_grad"}


# ---- names, scopes, devices


def test_names_and_structure_are_tensorflows(graph: Graph) -> None:
    x = tf.placeholder(tf.float32, [2], name="x")
    with tf.name_scope("layer"):
        y = tf.negative(tf.negative(x), name="minus")
    with tf.name_scope("loss"):
        total = tf.add(tf.identity(x), y)
    tf.gradients(total, x)
    found = {op.name: op.type for op in graph.get_operations() if op.name.startswith("gradients")}
    assert found["gradients/Shape"] == "Const"
    assert found["gradients/grad_ys_0/Const"] == "Const"
    assert found["gradients/grad_ys_0"] == "Fill"
    assert found["gradients/AddN"] == "AddN"
    assert found["gradients/layer/minus_grad/Neg"] == "Neg"
    tf.gradients(total, x)
    assert "gradients_1/AddN" in names(graph)
    tf.gradients(total, x, grad_ys=[[1.0, 1.0]], name="mine")
    assert graph.get_operation_by_name("mine/grad_ys_0").type == "Identity"


def test_gradients_take_the_scope_in_force_or_on_request_the_operations_own_device(graph: Graph) -> None:
    x = tf.constant([1.0])
    with graph.device("/job:worker/task:1"):
        y = tf.sin(x, name="sine")
    with graph.device("/job:chief"):
        tf.gradients(y, x)
        tf.gradients(y, x, colocate_gradients_with_ops=True, name="colocated")

    def made(prefix: str) -> set[str]:
        return {op.device for op in graph.get_operations() if op.name.startswith(prefix)}

    assert made("gradients/") == {"/job:chief"}
    assert made("colocated/") == {"/job:worker/task:1"}
    assert all(op.colocated_with() == ["sine"] for op in graph.get_operations() if op.name.startswith("colocated/"))


def test_paths_are_summed_where_they_are_before_they_cross_to_another_device(graph: Graph) -> None:
    start = tf.constant([1.0])
    x = tf.identity(start)
    parts = []
    for task in (0, 1, 0, 1):
        with graph.device(f"/job:worker/task:{task}"):
            parts.append(tf.sin(x))
    (grad,) = tf.gradients(parts, start, colocate_gradients_with_ops=True)
    sums = [op for op in graph.get_operations() if op.type == "AddN"]
    assert sorted(op.device for op in sums[:2]) == ["/job:worker/task:0", "/job:worker/task:1"]
    assert [len({t.device for t in op.inputs}) for op in sums] == [1, 1, 2]
    assert grad.op is sums[2]
    assert all(op.colocated_with() == op.inputs[0].op.colocated_with() for op in sums)
    np.testing.assert_allclose(value(grad), 4 * np.cos([1.0]), rtol=1e-6)


def test_gated_gradients_wait_for_each_other_on_their_own_devices(graph: Graph) -> None:
    with graph.device("/job:worker"):
        a, b = tf.constant([[1.0]], name="a"), tf.constant([[2.0]], name="b")
        product = tf.matmul(a, b)
        grads = tf.gradients(product, [a, b], gate_gradients=True)
    assert [g.op.type for g in grads] == ["Identity", "Identity"]
    assert {g.device for g in grads} == {"/job:worker"}
    (gate,) = {g.op.control_inputs for g in grads}
    assert {c.name for c in gate[0].control_inputs} == {g.op.inputs[0].op.name for g in grads}
    assert [value(g).tolist() for g in grads] == [[[2.0]], [[1.0]]]


def test_gated_gradients_do_not_wait_for_what_leads_to_no_x(graph: Graph) -> None:
    """The first layer's product for the images costs as much as that for the weights, and nobody wants it."""
    images = tf.placeholder(tf.float32, [4, 3])
    weights = [tf.get_variable("a", [3, 5]), tf.get_variable("b", [5, 2])]
    loss = tf.reduce_sum(tf.matmul(tf.matmul(images, weights[0]), weights[1]))
    gradients = tf.gradients(loss, weights, gate_gradients=True)
    products = [op for op in prune(gradients) if op.type == "MatMul"]
    assert [p.outputs[0].static_shape for p in products] == [(4, 5), (4, 5), (5, 2), (3, 5)]  # forward, below, a gradient of each
    (grad,) = tf.gradients(loss, [images], gate_gradients=True)
    assert grad.static_shape == (4, 3)


# ---- gradients of the user's own


def test_an_overridden_gradient_is_used_for_the_operations_made_inside(graph: Graph) -> None:
    @tf.RegisterGradient("Tenfold")
    def _tenfold(op: Any, grad: Any) -> Any:
        return 10 * grad

    x = tf.constant(2.0)
    plain = tf.sin(x)
    with graph.gradient_override_map({"Sin": "Tenfold"}):
        overridden, other = tf.sin(x), tf.cos(x)
    assert value(tf.gradients(overridden, x)[0]) == 10.0
    np.testing.assert_allclose(value(tf.gradients([plain, other], x)[0]), np.cos(2.0) - np.sin(2.0), rtol=1e-6)


def test_an_overriding_gradient_gets_zeros_for_outputs_that_nothing_depends_on(graph: Graph) -> None:
    seen = []

    @tf.RegisterGradient("Halves")
    def _halves(op: Any, *grads: Any) -> Any:
        seen.extend(grads)
        return [None, tf.concat(grads, 0)]

    x = tf.constant([1.0, 2.0])
    with graph.gradient_override_map({"Split": "Halves"}):
        first, _ = tf.split(x, 2)
    assert value(tf.gradients(first, x)[0]).tolist() == [1.0, 0.0]
    assert len(seen) == 2


def test_an_operation_of_unknown_gradient_on_the_path_is_named_with_its_line(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_def("Sin"), "gradient", None)
    x = tf.constant(1.0)
    y = tf.sin(x, name="wave")
    with pytest.raises(LookupError) as error:
        tf.gradients(y * 2.0, x)
    assert str(error.value) == (
        f"No gradient defined for operation 'wave' (op type: Sin), made at {y.op.location}: it lies on a path from an x to a y.\n"
        '  Mend: write one with @RegisterGradient("Sin"), or leave the path out with stop_gradient or stop_gradients=.'
    )
    assert __file__ in y.op.location
    assert tf.gradients(y * 2.0, tf.constant(1.0)) == [None]  # off the path it does no harm
    tf.NotDifferentiable("Sin")
    assert tf.gradients(y, x) == [None]


def test_registering_a_name_twice_is_refused(graph: Graph) -> None:
    tf.RegisterGradient("Once")(lambda op, grad: grad)
    with pytest.raises(KeyError, match="Once"):
        tf.NoGradient("Once")
    with pytest.raises(TypeError, match="op_type must be a string, not 3"):
        tf.RegisterGradient(3)  # type: ignore[arg-type]


# ---- bad input


def test_bad_input_is_refused_with_what_was_given(graph: Graph) -> None:
    x = tf.constant([1.0, 2.0], name="x")
    with pytest.raises(ValueError, match=r"^ys has 1 tensor\(s\), but grad_ys 2\.$"):
        tf.gradients(x, x, grad_ys=[x, x])
    with pytest.raises(TypeError, match=r"^grad_ys\[0\] has type int32, but its y .* is float32"):
        tf.gradients(x, x, grad_ys=tf.constant([1, 2]))
    with pytest.raises(TypeError, match="dtype bool can't be differentiated"):
        tf.gradients(x > 1.0, x)
    with pytest.raises(TypeError, match=r"^Gradients of complex tensors .* must set grad_ys \(y.dtype = complex64\)"):
        tf.gradients(tf.constant(1j, tf.complex64), x)
    with pytest.raises(ValueError, match="^Invalid aggregation_method specified 9"):
        tf.gradients(x, x, aggregation_method=9)
    tf.RegisterGradient("TooFew")(lambda op, grad: [grad])
    with graph.gradient_override_map({"Mul": "TooFew"}):
        y = tf.multiply(x, x, name="y")
    with pytest.raises(ValueError, match=r"^the gradient of 'y' \(Mul\) gave 1 value\(s\) for 2 input\(s\)"):
        tf.gradients(y, x)
    tf.RegisterGradient("WrongShape")(lambda op, grad: tf.constant([1.0, 2.0, 3.0]))
    with graph.gradient_override_map({"Sin": "WrongShape"}):
        wrong = tf.sin(x, name="wrong")
    with pytest.raises(ValueError, match=r"^the gradient of 'wrong' \(Sin\) gave shape \(3,\) for its input 'x:0' of shape \(2,\)\.$"):
        tf.gradients(wrong, x)
    graph.finalize()
    with pytest.raises(RuntimeError, match="the graph is finalized"):
        tf.gradients(x, x)


# ---- size


def test_a_chain_of_a_hundred_thousand_operations_is_no_recursion_and_linear_in_time(graph: Graph) -> None:
    x = y = tf.constant(1.0)
    for _ in range(100_000):
        y = apply_op("Neg", y)
    start = time.monotonic()
    (grad,) = tf.gradients(y, x)
    assert time.monotonic() - start < 60  # about 4 s alone; quadratic time would be hours
    assert len(names(graph)) == 100_003


def test_gradients_of_a_small_part_of_a_large_graph_cost_little(graph: Graph) -> None:
    large = tf.constant(1.0)
    for _ in range(50_000):
        large = apply_op("Neg", large)
    x = tf.constant(1.0)
    y = tf.sin(x)
    start = time.monotonic()
    for _ in range(200):
        tf.gradients(y, x)
    assert time.monotonic() - start < 10  # 0.1 s alone; a walk over all operations each time would be 100 times that
