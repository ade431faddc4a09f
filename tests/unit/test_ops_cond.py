"""cond and case: values, structures, effects, gradients, errors. Golden cases compare them with TensorFlow's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.graph import function
from mpirt.graph.fingerprint import fingerprint
from mpirt.graph.graph import Graph
from tests.evaluate import evaluate
from tests.gradient_checker import check_gradient


@pytest.fixture(autouse=True)
def _graph() -> Any:
    with Graph().as_default():
        yield


def run(fetches: Any, feeds: Any = None, init: bool = False) -> Any:
    with tf.Session() as session:
        if init:
            session.run(tf.global_variables_initializer())
        return session.run(fetches, feeds)


# ------------------------------------------------------------------------------------------------- values, structures


@pytest.mark.parametrize("flag", [True, False])
def test_the_branch_that_the_predicate_chooses_gives_the_value(flag: bool) -> None:
    x = np.array([1.0, 2.0, 3.0], np.float32)
    got = evaluate(lambda p, t: tf.cond(p, lambda: tf.reduce_sum(t * 2.0), lambda: t[0] - 1.0), np.array(flag), x)
    assert got == (12.0 if flag else 0.0)


TREES = st.recursive(
    st.one_of(st.none(), st.floats(-9, 9, width=32, allow_subnormal=False)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=25)
@given(tree=TREES, flag=st.booleans())
def test_any_nested_structure_comes_back_as_the_branches_return_it(tree: Any, flag: bool) -> None:
    def build(value: Any, scale: float) -> Any:
        if isinstance(value, dict):
            return {k: build(v, scale) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(build(v, scale) for v in value)
        return None if value is None else tf.constant(value) * scale

    def read(value: Any, session: Any) -> Any:
        if isinstance(value, dict):
            return {k: read(v, session) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(read(v, session) for v in value)
        return None if value is None else float(session.run(value))

    def expected(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: expected(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(expected(v) for v in value)
        return None if value is None else value * (2.0 if flag else 4.0)

    with Graph().as_default():
        got = tf.cond(tf.constant(flag), lambda: build(tree, 2.0), lambda: build(tree, 4.0), strict=True)
        with tf.Session() as session:
            assert read(got, session) == expected(tree)


def test_a_list_of_one_is_unpacked_unless_strict() -> None:
    p = tf.constant(True)
    assert isinstance(tf.cond(p, lambda: [tf.constant(1)], lambda: [tf.constant(2)]), tf.Tensor)
    assert isinstance(tf.cond(p, lambda: [tf.constant(1)], lambda: [tf.constant(2)], strict=True), list)


def test_python_values_variables_and_outer_tensors_are_results_too() -> None:
    v = tf.Variable([5.0], name="v")
    x = tf.constant([7.0])
    p = tf.placeholder(tf.bool, [])
    got = tf.cond(p, lambda: [v, 1, x], lambda: [x, 2, v])
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert [np.asarray(t).tolist() for t in session.run(got, {p: True})] == [[5.0], 1, [7.0]]
        assert [np.asarray(t).tolist() for t in session.run(got, {p: False})] == [[7.0], 2, [5.0]]


def test_indexed_slices_stay_rows() -> None:
    x = tf.constant([[1.0], [2.0]])
    rows = tf.IndexedSlices(x, tf.constant([4, 5]))
    got = tf.cond(tf.constant(False), lambda: rows, lambda: tf.IndexedSlices(x * 3.0, tf.constant([0, 1])))
    value = run(got)
    assert value.indices.tolist() == [0, 1] and value.values.tolist() == [[3.0], [6.0]]


def test_static_shapes_keep_what_both_branches_have() -> None:
    p = tf.placeholder(tf.bool, [])
    got = tf.cond(p, lambda: [tf.zeros([2, 3]), tf.zeros([4])], lambda: [tf.zeros([2, 5]), tf.zeros([4, 1])], strict=True)
    assert [t.static_shape for t in got] == [(2, None), None]


def test_shapes_inside_a_branch_follow_from_constants_outside() -> None:
    size = tf.constant([2, 3])
    x = tf.placeholder(tf.float32, [6])
    got = tf.cond(tf.constant(True), lambda: tf.reshape(x, size), lambda: tf.zeros(size))
    assert got.static_shape == (2, 3)


def test_branches_nest_and_see_tensors_of_all_graphs_around() -> None:
    def build(p: Any, q: Any, x: Any) -> Any:
        def outer() -> Any:
            y = x * 10.0
            return tf.cond(q, lambda: x + y, lambda: tf.cond(p, lambda: y, lambda: x))

        return tf.cond(p, outer, lambda: x)

    x = np.float32(2)
    assert evaluate(build, np.array(True), np.array(True), x) == 22.0
    assert evaluate(build, np.array(True), np.array(False), x) == 20.0
    assert evaluate(build, np.array(False), np.array(True), x) == 2.0


@pytest.mark.parametrize(("x", "expected"), [(1.0, 10.0), (3.0, 20.0), (9.0, 30.0)])
def test_case_takes_the_first_true_predicate(x: float, expected: float) -> None:
    t = tf.constant(x)
    pairs = [(t < 2.0, lambda: tf.constant(10.0)), (t < 5.0, lambda: tf.constant(20.0))]
    assert run(tf.case(pairs, default=lambda: tf.constant(30.0))) == expected


def test_case_refuses_in_the_step_what_was_excluded() -> None:
    t = tf.constant(1.0)
    pairs = [(t < 2.0, lambda: t), (t < 5.0, lambda: t)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than one predicate is true"):
        run(tf.case(pairs, default=lambda: t, exclusive=True))
    with pytest.raises(tf.errors.InvalidArgumentError, match="no predicate is true and there is no default"):
        run(tf.case([(t > 2.0, lambda: t), (t > 5.0, lambda: t)]))
    assert run(tf.case([(t > 2.0, lambda: t), (t > 0.0, lambda: t * 8.0)])) == 8.0


# ------------------------------------------------------------------------------------------------------------ effects


def test_only_the_branch_that_runs_has_effects_and_has_them_once(capfd: pytest.CaptureFixture[str]) -> None:
    p = tf.placeholder(tf.bool, [])
    x = tf.constant(1.0)
    got = tf.cond(p, lambda: tf.Print(x, [x], "taken"), lambda: tf.Print(x, [x], "other"))
    with tf.Session() as session:
        for flag in (True, True, False):
            session.run(got, {p: flag})
    assert capfd.readouterr().err.splitlines() == ["taken[1]", "taken[1]", "other[1]"]


def test_an_effect_that_nothing_is_returned_of_happens() -> None:
    v = tf.Variable(0.0, name="v")

    def branch() -> Any:
        v.assign_add(1.0)
        return tf.constant(7)

    got = tf.cond(tf.constant(True), branch, lambda: tf.constant(8))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(got) == 7
        assert session.run(v) == 1.0


def test_a_branch_changes_variables_and_control_dependencies_hold_inside() -> None:
    v = tf.Variable([1.0, 2.0], name="v")
    p = tf.placeholder(tf.bool, [])

    def add() -> Any:
        before = v.read_value()
        with tf.control_dependencies([before]), tf.control_dependencies([v.assign_add([10.0, 10.0])]):
            return before, v.read_value()

    got = tf.cond(p, add, lambda: (v.read_value(), v.assign_sub([1.0, 1.0])))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert {t.op.type for t in got[0].op.inputs if t.dtype is tf.resource} == {"_VariableHandle"}
        before, after = session.run(got, {p: True})
        assert before.tolist() == [1.0, 2.0] and after.tolist() == [11.0, 12.0]
        assert session.run(got, {p: False})[1].tolist() == [10.0, 11.0]
        assert session.run(v).tolist() == [10.0, 11.0]


def test_a_returned_operation_becomes_the_cond_itself() -> None:
    v = tf.Variable(0.0, name="v")
    op = tf.cond(tf.constant(True), lambda: tf.group(v.assign(3.0)), lambda: tf.no_op())
    assert op.type == "If"
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(op) is None
        assert session.run(v) == 3.0


def test_a_branch_waits_for_operations_outside() -> None:
    v = tf.Variable(0.0, name="v")
    change = v.assign(5.0).op

    def branch() -> Any:
        with tf.control_dependencies([change]):
            return tf.constant(1.0)

    got = tf.cond(tf.constant(True), branch, lambda: tf.constant(2.0))
    assert change in got.op.control_inputs


def test_random_numbers_inside_advance_with_each_execution_and_repeat_with_the_seed() -> None:
    def draw() -> list[float]:
        with Graph().as_default():
            tf.set_random_seed(3)
            outside = tf.random_uniform([])
            p = tf.placeholder(tf.bool, [])
            got = tf.cond(p, lambda: tf.random_uniform([]), lambda: tf.random_uniform([]))
            with tf.Session() as session:
                return [float(session.run(outside)), *(float(session.run(got, {p: f})) for f in (True, True, False, False))]

    first, second = draw(), draw()
    assert first == second
    assert len(set(first)) == 5


def test_python_functions_of_both_branches_are_kept_apart() -> None:
    def branch(k: int) -> Any:
        return tf.py_func(lambda: np.int64(k), [], tf.int64)

    p = tf.placeholder(tf.bool, [])
    got = tf.cond(p, lambda: branch(1), lambda: branch(2))
    with tf.Session() as session:
        assert [session.run(got, {p: f}) for f in (True, False)] == [1, 2]


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("flag", [True, False])
def test_the_gradient_is_that_of_the_branch_that_runs(flag: bool) -> None:
    def build(p: Any, x: Any, y: Any) -> Any:
        return tf.cond(p, lambda: [tf.sin(x) * y, x], lambda: [tf.exp(x), x * 2.0])

    check_gradient(build, np.array(flag), np.array([0.3, -1.2]), np.array([2.0, 0.5]))


@pytest.mark.parametrize(("a", "b"), [(True, True), (True, False), (False, True)])
def test_the_gradient_of_nested_conds(a: bool, b: bool) -> None:
    def build(p: Any, q: Any, x: Any) -> Any:
        def outer() -> Any:
            y = tf.square(x)
            return tf.cond(q, lambda: y * tf.sin(x), lambda: tf.exp(y))

        return tf.cond(p, outer, lambda: x / 3.0)

    check_gradient(build, np.array(a), np.array(b), np.array([0.3, -0.7]))


def test_the_gradient_sees_the_random_numbers_of_the_forward_step() -> None:
    x = tf.placeholder(tf.float32, [1000])
    got = tf.cond(tf.constant(True), lambda: x * tf.random_uniform([1000]), lambda: x)
    (grad,) = tf.gradients(got, x)
    value, slope = run([got, grad], {x: np.full(1000, 2.0, np.float32)})
    np.testing.assert_allclose(value, 2.0 * slope, rtol=1e-6)
    assert np.unique(slope).size > 900


def test_effects_are_not_repeated_by_the_gradient(capfd: pytest.CaptureFixture[str]) -> None:
    x = tf.placeholder(tf.float32, [])
    got = tf.cond(tf.constant(True), lambda: tf.square(tf.Print(x, [x], "once")), lambda: x)
    assert run(tf.gradients(got, x), {x: 3.0}) == [6.0]
    assert capfd.readouterr().err.splitlines() == ["once[3]"]


def test_the_gradient_can_be_differentiated_again() -> None:
    x = tf.placeholder(tf.float64, [])
    p = tf.placeholder(tf.bool, [])
    y = tf.cond(p, lambda: tf.sin(x) * x, lambda: x**3)
    (first,) = tf.gradients(y, x)
    (second,) = tf.gradients(first, x)
    with tf.Session() as session:
        np.testing.assert_allclose(session.run(second, {x: 0.7, p: True}), 2 * np.cos(0.7) - 0.7 * np.sin(0.7), rtol=1e-12)
        np.testing.assert_allclose(session.run(second, {x: 0.7, p: False}), 6 * 0.7, rtol=1e-12)


def test_a_step_compiled_before_the_gradient_was_built_goes_on() -> None:
    x = tf.placeholder(tf.float32, [])
    p = tf.placeholder(tf.bool, [])
    y = tf.cond(p, lambda: tf.sin(tf.square(x)), lambda: x)
    with tf.Session() as session:
        before = session.run(y, {x: 0.5, p: True})
        grads = tf.gradients(y, x)
        assert session.run(y, {x: 0.5, p: True}) == before
        np.testing.assert_allclose(session.run(grads, {x: 0.5, p: True}), [2 * 0.5 * np.cos(0.25)], rtol=1e-6)
        assert session.run(y, {x: 0.5, p: False}) == 0.5


def test_variables_read_in_a_branch_are_trained_through_it() -> None:
    w = tf.Variable(1.0, name="w")
    p = tf.placeholder(tf.bool, [])
    loss = tf.cond(p, lambda: tf.square(w - 3.0), lambda: tf.square(w + 1.0))
    train = tf.train.GradientDescentOptimizer(0.25).minimize(loss)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(30):
            session.run(train, {p: True})
        np.testing.assert_allclose(session.run(w), 3.0, rtol=1e-5)


# -------------------------------------------------------------------------------------------- GraphDef, fingerprints


def test_bodies_go_through_a_graph_def_and_back() -> None:
    x = tf.placeholder(tf.float32, [2], name="x")
    p = tf.placeholder(tf.bool, [], name="p")
    y = tf.cond(p, lambda: tf.cond(x[0] > 0, lambda: x * 2.0, lambda: -x), lambda: tf.split(x, 2)[1], name="choice")
    (grad,) = tf.gradients(y, x)
    graph_def = tf.get_default_graph().as_graph_def()
    assert len(graph_def.library.function) == 8
    again = type(graph_def).FromString(graph_def.SerializeToString())
    with Graph().as_default() as graph:
        tf.import_graph_def(again, name="")
        assert graph.as_graph_def() == graph_def
        with tf.Session() as session:
            for value in ([1.0, 5.0], [-1.0, 5.0]):
                got = session.run(["choice:0", grad.name], {"x:0": value, "p:0": True})
                sign = 2.0 if value[0] > 0 else -1.0
                assert got[0].tolist() == [sign * v for v in value] and got[1].tolist() == [sign, sign]


@pytest.mark.parametrize("damage", ["missing", "itself", "result", "input", "control"])
def test_a_graph_def_with_a_bad_library_is_refused(damage: str) -> None:
    x = tf.placeholder(tf.float32, [2], name="x")
    tf.cond(x[0] > 0.0, lambda: tf.no_op() and x * 2.0, lambda: tf.cond(x[1] > 0.0, lambda: x, lambda: -x), name="c")
    graph_def = tf.get_default_graph().as_graph_def()
    first = next(f for f in graph_def.library.function if f.signature.name == "c_false")
    if damage == "missing":
        graph_def.library.ClearField("function")
    elif damage == "itself":
        next(n for n in first.node_def if "If" in n.op).attr["then_branch"].func.name = "c_false"
    elif damage == "result":
        first.ret["output_0"] = "nothing:output:0"
    elif damage == "input":
        next(n for n in first.node_def if n.op == "Greater").input[0] = "x:output:5"
    else:
        first.control_ret["extra"] = "nothing"
    with Graph().as_default(), pytest.raises((tf.errors.InvalidArgumentError, tf.errors.NotFoundError)):
        tf.import_graph_def(graph_def, name="")


def test_the_fingerprint_covers_what_is_inside() -> None:
    def prints(factor: float) -> bytes:
        with Graph().as_default() as graph:
            x = tf.placeholder(tf.float32, [], name="x")
            tf.cond(x > 0, lambda: tf.cond(x > 1, lambda: x * factor, lambda: x), lambda: x)
            return fingerprint(graph.get_operations())

    assert prints(2.0) == prints(2.0)
    assert prints(2.0) != prints(3.0)


def test_an_argument_has_no_value_without_its_body() -> None:
    graph_def = tf.GraphDef()
    node = graph_def.node.add(name="alone", op="_Arg")
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["index"].i = 0
    tf.import_graph_def(graph_def, name="")
    with pytest.raises(tf.errors.InvalidArgumentError, match="'alone' is an argument of a body, but there is no body around it"):
        run("alone:0")


# ------------------------------------------------------------------------------------------------------------- errors


def test_branches_of_different_structure_are_refused_with_both() -> None:
    p, x = tf.constant(True), tf.constant(1.0)
    with pytest.raises(TypeError, match=r"true_fn returned list\(\., \.\), false_fn \."):
        tf.cond(p, lambda: [x, x], lambda: x)
    with pytest.raises(TypeError, match=r"true_fn returned dict\('a': \.\), false_fn dict\('b': \.\)"):
        tf.cond(p, lambda: {"a": x}, lambda: {"b": x})
    with pytest.raises(TypeError, match=r"true_fn returned None, false_fn \."):
        tf.cond(p, lambda: None, lambda: x)


def test_branches_of_different_types_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"output 0 is float32 in true_fn \(.*\) and int32 in false_fn"):
        tf.cond(tf.constant(True), lambda: tf.constant(1.0), lambda: tf.constant(1))


def test_predicates_and_branches_that_are_none_are_refused() -> None:
    x = tf.constant(1.0)
    with pytest.raises(TypeError, match="must not be a Python bool"):
        tf.cond(True, lambda: x, lambda: x)
    with pytest.raises(ValueError, match="pred must be a scalar bool tensor, not float32"):
        tf.cond(x, lambda: x, lambda: x)
    with pytest.raises(ValueError, match=r"not bool of shape \(2,\)"):
        tf.cond(tf.constant([True, False]), lambda: x, lambda: x)
    with pytest.raises(TypeError, match="true_fn must be callable"):
        tf.cond(x > 0, x, lambda: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fn1 and true_fn may not be set simultaneously"):
        tf.cond(x > 0, lambda: x, lambda: x, fn1=lambda: x)
    assert run(tf.cond(x > 0, fn1=lambda: x, fn2=lambda: -x)) == 1.0


def test_placeholders_and_variables_are_made_outside() -> None:
    x = tf.constant(1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a placeholder .* can't be made inside the body 'cond_true'"):
        tf.cond(x > 0, lambda: tf.placeholder(tf.float32, []), lambda: x)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a variable .* can't be made inside the body"):
        tf.cond(x > 0, lambda: tf.Variable(1.0), lambda: x)


def test_an_error_inside_names_the_operation_and_its_line() -> None:
    x = tf.placeholder(tf.int32, [], name="x")

    def inner() -> Any:
        return tf.floordiv(7, x, name="divide")

    got = tf.cond(x < 5, lambda: tf.cond(x < 4, inner, lambda: x, name="deep"), lambda: x, name="top")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        run(got, {x: 0})
    error = caught.value
    assert error.op.name == "divide"
    assert f"test_ops_cond.py:{inner.__code__.co_firstlineno + 1}" in str(error)
    assert "inside 'deep_true', a body of 'deep' (StatelessIf)" in str(error)
    assert "inside 'top_true', a body of 'top' (StatelessIf)" in str(error)


def test_a_tensor_of_a_branch_can_not_be_used_outside() -> None:
    kept: list[Any] = []
    x = tf.constant(1.0)

    def branch() -> Any:
        kept.append(x * 2.0)
        return x

    tf.cond(x > 0, branch, lambda: x)
    with pytest.raises(ValueError, match="is from another graph"):
        tf.identity(kept[0])


def test_a_device_block_of_another_task_inside_is_ignored_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "_warned", [])
    x = tf.constant(1.0)

    def elsewhere() -> Any:
        with tf.device("/job:ps/task:3/cpu:0"):
            return x * 2.0 + 1.0

    with pytest.warns(UserWarning, match="a body runs on the task of its cond or while_loop") as caught:
        got = tf.cond(x > 0, elsewhere, lambda: x)
    assert len(caught) == 1
    assert got.op.attrs["then_branch"].outputs[0].op.device == "/device:CPU:0"
    assert run(got) == 3.0


def test_the_device_block_around_a_cond_is_no_reason_for_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tf.device("/job:worker/task:0/cpu:0"):
            x = tf.constant(1.0)
            got = tf.cond(x > 0, lambda: x * 2.0, lambda: x)
    assert got.op.device == "/job:worker/task:0/device:CPU:0"
    assert got.op.attrs["then_branch"].outputs[0].op.device == "/device:CPU:0"


# ------------------------------------------------------------------------------------------------------- switch_case


def one() -> Any:
    return tf.constant(1.0)


@pytest.mark.parametrize(
    ("index", "functions", "default", "error", "message"),
    [
        (1, [one], None, TypeError, "'branch_index' must be a Tensor, got <class 'int'>"),
        (np.int64(1), [one], None, TypeError, "'branch_index' must be an int32 scalar, not <mpirt.Tensor"),
        (np.float32(1), [one], None, TypeError, "'branch_index' must be an int32 scalar"),
        (np.array([1], np.int32), [one], None, TypeError, "'branch_index' must be an int32 scalar"),
        (np.int32(1), [], None, ValueError, "Must provide at least one item in 'branch_fns'"),
        (np.int32(1), 3, None, TypeError, "'branch_fns' must be a list, tuple, or dict"),
        (np.int32(1), [1, 2], None, TypeError, "Each entry in 'branch_fns' must be a 2-tuple. Received 1."),
        (np.int32(1), {"a": one}, None, TypeError, "key must be a Python `int`, got <class 'str'>"),
        (np.int32(1), {0: 3}, None, TypeError, "fn for key 0 must be callable, got 3"),
        (np.int32(1), {0: one, 2: one}, one, ValueError, r"contiguous range of \[0 to 2\) but found \{0,2\}"),
        (np.int32(1), [(1, one), (1, one)], None, ValueError, r"contiguous range of \[0 to 2\) but found \{1,1\}"),
        (np.int32(1), [one], 3, TypeError, "'default' must be callable, not 3"),
        (np.int32(1), [one, lambda: 1], None, ValueError, "must return the same types"),
        (np.int32(1), [one, lambda: (one(), one())], None, TypeError, "must return the same structure"),
    ],
)
def test_a_switch_that_cannot_be_is_refused(index: Any, functions: Any, default: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        tf.switch_case(index if isinstance(index, int) else tf.constant(index), functions, default)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_only_the_chosen_function_of_a_switch_has_effects(number: int) -> None:
    v = tf.Variable(0.0)
    steps = [lambda k=k: tf.assign_add(v, 10.0**k) for k in range(3)]
    assert run(tf.switch_case(tf.constant(number), steps), init=True) == 10.0 ** min(number, 2)
