"""while_loop: iterations against Python's own loops, effects, shapes, gradients, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.graph.graph import Graph
from tests.evaluate import evaluate
from tests.gradient_checker import check_gradient


@pytest.fixture(autouse=True)
def _graph() -> Any:
    with Graph().as_default():
        yield


def run(fetches: Any, feeds: Any = None) -> Any:
    with tf.Session() as session:
        return session.run(fetches, feeds)


# ------------------------------------------------------------------------------------------------------------- values


def collatz_steps(n: int) -> int:
    steps = 0
    while n > 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def test_collatz_steps_are_those_of_the_python_loop() -> None:
    n = tf.placeholder(tf.int64, [])
    steps, last = tf.while_loop(
        lambda k, m: m > 1,
        lambda k, m: (k + 1, tf.cond(tf.equal(m % 2, 0), lambda: m // 2, lambda: 3 * m + 1)),
        [tf.constant(0), n],
    )
    with tf.Session() as session:
        for start in (1, 2, 7, 27, 97):
            assert session.run([steps, last], {n: start}) == [collatz_steps(start), 1]


@settings(max_examples=20)
@given(target=st.floats(0.01, 1e6))
def test_newtons_iteration_finds_the_square_root(target: float) -> None:
    def root(a: Any) -> Any:
        return tf.while_loop(lambda r: tf.abs(r * r - a) > 1e-12 * a, lambda r: (r + a / r) / 2.0, [a])

    with Graph().as_default():
        np.testing.assert_allclose(run(root(tf.constant(target, tf.float64))), np.sqrt(target), rtol=1e-9)


def test_a_loop_in_a_loop_in_a_branch() -> None:
    def build(p: Any, n: Any) -> Any:
        def table() -> Any:
            def row(i: Any, total: Any) -> Any:
                _, inner = tf.while_loop(lambda j, t: j < i, lambda j, t: (j + 1, t + i * j), [tf.constant(0), total])
                return i + 1, inner

            return tf.while_loop(lambda i, t: i < n, row, [tf.constant(0), tf.constant(0)])[1]

        return tf.cond(p, table, lambda: -n)

    expected = sum(i * j for i in range(6) for j in range(i))
    assert evaluate(build, np.array(True), np.int32(6)) == expected
    assert evaluate(build, np.array(False), np.int32(6)) == -6


def test_no_turn_gives_the_loop_variables_themselves() -> None:
    x = np.array([1.0, 2.0], np.float32)
    got = evaluate(lambda t: tf.while_loop(lambda v: tf.constant(False), lambda v: v * 2.0, [t]), x)
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize(("limit", "turns"), [(0, 0), (3, 3), (50, 10)])
def test_maximum_iterations_ends_the_loop(limit: int, turns: int) -> None:
    assert run(tf.while_loop(lambda i: i < 10, lambda i: i + 1, [0], maximum_iterations=limit)) == turns
    assert run(tf.while_loop(lambda i: i < 10, lambda i: i + 1, [0], maximum_iterations=tf.constant(limit, tf.int64))) == turns


def test_nested_structures_of_loop_variables_come_back() -> None:
    start = {"n": tf.constant(0), "pair": (tf.constant(1.0), [tf.constant(2.0), None])}

    def body(n: Any, state: Any) -> Any:
        return n + 1, {"n": state["n"] + n, "pair": (state["pair"][0] * 2.0, [state["pair"][1][0] + 1.0, None])}

    n, state = tf.while_loop(lambda n, s: n < 4, body, (tf.constant(0), start))
    assert run([n, state["n"], state["pair"][0], state["pair"][1][0]]) == [4, 6, 16.0, 6.0]
    assert state["pair"][1][1] is None


def test_one_loop_variable_is_returned_alone_unless_its_structure_is_asked_for() -> None:
    assert isinstance(tf.while_loop(lambda i: i < 3, lambda i: i + 1, [0]), tf.Tensor)
    assert isinstance(tf.while_loop(lambda i: i < 3, lambda i: [i + 1], [0], return_same_structure=True), list)


def test_a_loop_variable_may_grow_where_its_invariant_says_so() -> None:
    x = tf.constant([1.0])
    i, grown = tf.while_loop(
        lambda i, v: i < 3,
        lambda i, v: (i + 1, tf.concat([v, v * 2.0], 0)),
        [0, x],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None])],
    )
    assert grown.static_shape == (None,)
    assert run(grown).tolist() == [1.0, 2.0, 2.0, 4.0, 2.0, 4.0, 4.0, 8.0]


def test_strings_are_loop_variables_too() -> None:
    got = tf.while_loop(lambda i, s: i < 2, lambda i, s: (i + 1, tf.stack([s[1], s[0]])), [0, tf.constant(["a", "b"])])
    assert run(got[1]).tolist() == [b"a", b"b"]


# ------------------------------------------------------------------------------------------------------------ effects


def test_each_turn_sees_what_the_turn_before_did_to_a_variable() -> None:
    v = tf.Variable(1.0, name="v")

    def body(i: Any, total: Any) -> Any:
        before = v.read_value()
        with tf.control_dependencies([before]), tf.control_dependencies([v.assign(before * 2.0)]):
            return i + 1, total + before

    _, total = tf.while_loop(lambda i, t: v.read_value() < 100.0, body, [0, tf.constant(0.0)])
    assert total.op.type == "While"
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(total) == 1.0 + 2 + 4 + 8 + 16 + 32 + 64
        assert session.run(v) == 128.0


def test_a_variable_that_no_turn_changes_is_passed_as_its_value() -> None:
    v = tf.Variable(2.0, name="v")
    got = tf.while_loop(lambda x: x < 100.0, lambda x: x * v.read_value(), [tf.constant(1.0)])
    assert got.op.type == "StatelessWhile"
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(got) == 128.0


def test_effects_happen_once_a_turn(capfd: pytest.CaptureFixture[str]) -> None:
    run(tf.while_loop(lambda i: i < 3, lambda i: tf.Print(i, [i], "turn ") + 1, [0]))
    assert capfd.readouterr().err.splitlines() == ["turn [0]", "turn [1]", "turn [2]"]


def test_each_turn_draws_other_numbers() -> None:
    tf.set_random_seed(1)
    _, drawn = tf.while_loop(
        lambda i, d: i < 5,
        lambda i, d: (i + 1, tf.concat([d, tf.random_uniform([1])], 0)),
        [0, tf.zeros([0])],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None])],
    )
    with tf.Session() as session:
        first, second = session.run(drawn), session.run(drawn)
    assert len({*first.tolist(), *second.tolist()}) == 10


# ---------------------------------------------------------------------------------------------------------- gradients


def test_the_gradient_of_a_power_of_a_matrix() -> None:
    def build(m: Any, v: Any) -> Any:
        return tf.while_loop(lambda i, u: i < 4, lambda i, u: (i + 1, tf.tanh(tf.matmul(m, u))), [tf.constant(0), v])[1]

    rng = np.random.default_rng(2)
    check_gradient(build, rng.normal(size=(3, 3)), rng.normal(size=(3, 2)))


def test_the_gradient_when_the_number_of_turns_depends_on_the_value() -> None:
    def build(x: Any) -> Any:
        return tf.while_loop(lambda v: tf.reduce_sum(v) < 50.0, lambda v: v * v + x, [x])

    check_gradient(build, np.array([1.1, 0.7]))


@pytest.mark.parametrize("start", [0.4, 1.7])
def test_the_gradient_of_a_cond_in_a_loop_and_a_loop_in_a_cond(start: float) -> None:
    def loop(x: Any, w: Any) -> Any:
        def turn(i: Any, v: Any) -> Any:
            return i + 1, tf.cond(tf.reduce_sum(v) > 1.0, lambda: v * tf.sin(w), lambda: tf.exp(v) + x * w)

        return tf.while_loop(lambda i, v: i < 5, turn, [tf.constant(0), x])[1]

    def branch(x: Any, w: Any) -> Any:
        grown = lambda: tf.while_loop(lambda v: tf.reduce_sum(v) < 9.0, lambda v: v * v + w * w, [x])  # noqa: E731
        return tf.cond(tf.reduce_sum(x) > 1.0, grown, lambda: x * w)

    x, w = np.array([start, 0.3]), np.array([1.3, 0.8])
    check_gradient(loop, x, w)
    check_gradient(branch, x, w)


def test_a_branch_without_a_loop_gives_no_history_of_one() -> None:
    x = tf.placeholder(tf.float64, [])
    y = tf.cond(x > 1.0, lambda: tf.while_loop(lambda v: v < 9.0, lambda v: v * v, [x]), lambda: x * 3.0)
    (grad,) = tf.gradients(y, x)
    assert "_NoHistory" in {op.type for op in y.op.attrs["else_branch"].graph.get_operations()}
    assert [run(grad, {x: 0.5}), run(grad, {x: 2.0})] == [3.0, 4 * 2.0**3]


def test_the_gradient_of_a_loop_in_a_loop() -> None:
    def build(x: Any, w: Any) -> Any:
        def outer(i: Any, v: Any) -> Any:
            _, inner = tf.while_loop(lambda j, u: j < i, lambda j, u: (j + 1, tf.sin(u) * w + v), [tf.constant(0), v])
            return i + 1, inner + x

        return tf.while_loop(lambda i, v: i < 4, outer, [tf.constant(0), x])[1]

    check_gradient(build, np.array([0.4, -0.3]), np.array([0.9, 0.5]))


def test_the_gradient_of_a_loop_variable_that_grows() -> None:
    def build(x: Any) -> Any:
        shapes = [tf.TensorShape([]), tf.TensorShape([None])]
        return tf.while_loop(
            lambda i, v: i < 3, lambda i, v: (i + 1, tf.concat([v, tf.square(v)], 0)), [tf.constant(0), x], shape_invariants=shapes
        )[1]

    check_gradient(build, np.array([0.9, -1.1]), unknown_shapes=False)


def test_two_gradients_of_one_loop_share_its_history() -> None:
    x, w = tf.placeholder(tf.float64, []), tf.placeholder(tf.float64, [])
    y = tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * v * w), [0, x])[1]
    with tf.Session() as session:
        assert session.run(y, {x: 1.5, w: 0.5}) == 1.5**8 * 0.5**7
        first = tf.gradients(y, x)
        second = tf.gradients(tf.sin(y), [x, w])
        assert (y.op.type, first[0].op.type) == ("_RecordedWhile", "_WhileGrad")
        got = session.run([first, second], {x: 1.5, w: 0.5})
    value = 1.5**8 * 0.5**7
    np.testing.assert_allclose(got[0], [8 * value / 1.5], rtol=1e-12)
    np.testing.assert_allclose(got[1], [np.cos(value) * 8 * value / 1.5, np.cos(value) * 7 * value / 0.5], rtol=1e-12)


def test_the_gradient_sees_the_random_numbers_of_each_turn() -> None:
    x = tf.placeholder(tf.float64, [50])
    y = tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * tf.random_uniform([50], dtype=tf.float64)), [0, x])[1]
    value, (slope,) = run([y, tf.gradients(y, x)], {x: np.full(50, 3.0)})
    np.testing.assert_allclose(value, 3.0 * slope, rtol=1e-12)


def test_the_gradient_of_a_loop_goes_through_a_graph_def() -> None:
    x = tf.placeholder(tf.float64, [], name="x")
    y = tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, tf.sin(v) * x), [0, x])[1]
    (grad,) = tf.gradients(y, x)
    expected = run([y, grad], {x: 0.8})
    graph_def = tf.get_default_graph().as_graph_def()
    with Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        assert graph.as_graph_def() == graph_def
        assert run([y.name, grad.name], {"x:0": 0.8}) == expected


def test_a_second_derivative_of_a_loop_is_refused_by_name() -> None:
    x = tf.placeholder(tf.float64, [])
    y = tf.while_loop(lambda v: v < 5.0, lambda v: v * v, [x], name="loop")
    (grad,) = tf.gradients(y, x)
    with pytest.raises(LookupError, match="No gradient defined for operation 'gradients/loop_grad/While'.*second time"):
        tf.gradients(grad, x)


# ------------------------------------------------------------------------------------------------------------- errors


def test_what_a_turn_may_not_do_is_refused_with_the_variable() -> None:
    x = tf.constant([1.0], name="x")
    with pytest.raises(ValueError, match=r"'x:0' enters the loop with shape \(1,\), but has shape \(2,\) after .*shape_invariants"):
        tf.while_loop(lambda v: tf.constant(True), lambda v: tf.concat([v, v], 0), [x])
    with pytest.raises(TypeError, match="x:0 enters the loop with type float32, but has type int32 after one iteration"):
        tf.while_loop(lambda v: tf.constant(True), lambda v: tf.cast(v, tf.int32), [x])
    with pytest.raises(ValueError, match=r"must return the structure of its loop variables, list\(\., \.\); it returned tuple\(\.\)"):
        tf.while_loop(lambda a, b: tf.constant(True), lambda a, b: (a,), [x, x])
    with pytest.raises(ValueError, match="shape invariant specified for x:0 is not compatible"):
        tf.while_loop(lambda v: tf.constant(True), lambda v: v, [x], shape_invariants=[tf.TensorShape([2])])


def test_conditions_and_loop_variables_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="'loop_vars' must be provided"):
        tf.while_loop(lambda: tf.constant(True), lambda: [], [])
    with pytest.raises(TypeError, match="'cond' must return a boolean tensor, not float32"):
        tf.while_loop(lambda v: v, lambda v: v, [1.0])
    with pytest.raises(ValueError, match="'cond' must return a scalar"):
        tf.while_loop(lambda v: v > 0, lambda v: v, [tf.constant([1.0])])
    with pytest.raises(TypeError, match="'body' must be callable"):
        tf.while_loop(lambda v: v > 0, None, [1.0])  # type: ignore[arg-type]


def test_an_error_in_a_turn_names_the_operation_and_the_loop() -> None:
    i = tf.while_loop(lambda i: i > -5, lambda i: i - 1 + 0 * tf.floordiv(4, i, name="divide"), [3], name="count")
    with pytest.raises(tf.errors.InvalidArgumentError, match="inside 'count_body', a body of 'count'") as caught:
        run(i)
    assert caught.value.op.name == "divide"
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(i)  # the session can be used again, and fails the same
