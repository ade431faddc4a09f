"""group, tuple, no_op, Assert and the assertions built on it, Print."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.graph.graph import Graph
from mpirt.ops import check_ops
from mpirt.ops.control_flow_ops import with_dependencies
from mpirt.ops.logging_ops import summarize_value
from tests.gradient_checker import check_gradient
from tests.reference import Reference


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


@pytest.fixture
def run(graph: Graph) -> Any:
    return Reference(graph).run


def waits(op: Any) -> list[tuple[str, str, list[str]]]:
    return [(c.name, c.device, [d.name for d in c.control_inputs]) for c in op.control_inputs]


# ----------------------------------------------------------------------------------------------------- group and tuple


def test_a_group_waits_on_each_device_first() -> None:
    with tf.device("/cpu:0"):
        p = tf.no_op(name="p")
    with tf.device("/cpu:1"):
        q, r = tf.no_op(name="q"), tf.constant(1.0, name="r")
    g = tf.group(p, q, r, name="g")
    assert (g.name, g.type, g.device) == ("g", "NoOp", "")
    assert waits(g) == [("g/NoOp", "/device:CPU:0", ["p"]), ("g/NoOp_1", "/device:CPU:1", ["q", "r"])]


def test_a_group_of_one_device_is_one_operation() -> None:
    with tf.device("/cpu:0"):
        p, q = tf.no_op(name="p"), tf.no_op(name="q")
    g = tf.group(p, q, p)
    assert (g.name, g.device, [c.name for c in g.control_inputs]) == ("group_deps", "/device:CPU:0", ["p", "q"])


def test_a_group_of_nothing_is_a_no_op() -> None:
    g = tf.group(name="g")
    assert (g.name, g.type, g.control_inputs) == ("g", "NoOp", ())


def test_a_group_takes_nested_lists_variables_and_slices() -> None:
    v = tf.Variable(1.0, name="v")
    s = tf.IndexedSlices(tf.constant([1.0], name="values"), tf.constant([0], name="indices"))
    p, q = tf.no_op(name="p"), tf.no_op(name="q")
    assert [c.name for c in tf.group([p, (q,)], v, s).control_inputs] == ["p", "q", "v", "values", "indices"]


@pytest.mark.parametrize("bad", [None, 3, [None]])
def test_a_group_refuses_what_is_no_operation(bad: Any) -> None:
    with pytest.raises(TypeError):
        tf.group(bad)
    with pytest.raises(ValueError, match="Unknown keyword arguments: nme"):
        tf.group(nme="g")


def test_running_a_group_runs_its_members(run: Any) -> None:
    v, w = tf.Variable(1.0), tf.Variable(2.0)
    run(tf.global_variables_initializer())
    run(tf.group(v.assign(5.0), w.assign_add(1.0)))
    assert (run(v), run(w)) == (5, 3)


def test_a_tuple_gives_its_tensors_after_all_of_them(run: Any) -> None:
    a, b, p = tf.constant(1.0, name="a"), tf.constant([2, 3], name="b"), tf.no_op(name="p")
    out = tf.tuple([a, None, b], name="t", control_inputs=[p])
    assert out[1] is None and [t.name for t in (out[0], out[2])] == ["t/control_dependency:0", "t/control_dependency_1:0"]
    for tensor, source in ((out[0], "a"), (out[2], "b")):
        (gate,) = tensor.op.control_inputs
        assert [c.name for c in gate.control_inputs] == ["a", "b", "p"]
        assert tensor.op.colocated_with() == [source]
    assert run(out[0]) == 1 and run(out[2]).tolist() == [2, 3]
    with pytest.raises(ValueError, match="Must have at least one Tensor"):
        tf.tuple([None])


def test_a_dependency_keeps_slices_slices(run: Any) -> None:
    s = tf.IndexedSlices(tf.constant([1.0]), tf.constant([4]), tf.constant([9]))
    out = with_dependencies([tf.no_op(name="p")], s)
    assert isinstance(out, tf.IndexedSlices) and run(out.values).tolist() == [1] and out.indices is s.indices
    assert [c.name for c in out.values.op.control_inputs] == ["p"]


# -------------------------------------------------------------------------------------------------------------- Assert


def test_assert_shows_its_data_when_the_condition_is_false(run: Any) -> None:
    c = tf.placeholder(tf.bool)
    check = tf.Assert(c, [tf.constant([[1.0, 2.5], [3.0, 4.0]]), "text", tf.constant([True, False])])
    run(check, {c: True})
    run(check, {c: [True, True]})
    with pytest.raises(errors.InvalidArgumentError) as error:
        run(check, {c: [True, False]})
    assert error.value.message == "assertion failed: [[1 2.5][3...]...] [text] [1 0]"
    assert error.value.op is check


def test_assert_shows_as_many_elements_as_asked_for(run: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"assertion failed: \[0 1 2 3 4\]\n"):
        run(tf.Assert(tf.constant(False), [tf.range(5)], summarize=-1))
    with pytest.raises(TypeError):
        tf.Assert(tf.constant(False), tf.range(5))  # type: ignore[arg-type]


# What TensorFlow 2.21 shows for each.
@pytest.mark.parametrize(
    ("value", "limit", "expected"),
    [
        ([[1.0, 2.5], [3.0, 4.0]], 3, "[1 2.5][3...]..."),
        ([[1.0, 2.5], [3.0, 4.0]], 2, "[1 2.5]..."),
        ([[1.0, 2.5], [3.0, 4.0]], -1, "[1 2.5][3 4]"),
        ([1.0, 2.0, 3.0, 4.0], 3, "1 2 3..."),
        ([], 3, ""),
        ([[1, 2], [3, 4], [5, 6]], 3, "[1 2][3...]..."),
        ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], 3, "[[1 2][3...]]..."),
        ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], 2, "[[1 2]]..."),
        ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], 100, "[[1 2][3 4]][[5 6][7 8]]"),
        (np.float32(0.1), 3, "0.1"),
        (np.float32(1e-8), 3, "1e-08"),
        (True, 3, "1"),
        (np.array(b"abc", object), 3, "abc"),
        (np.array([b"a", b"b", b"c", b"d"], object), 3, "a b c..."),
    ],
)
def test_values_are_shown_as_tensorflow_shows_them(value: Any, limit: int, expected: str) -> None:
    assert summarize_value(np.asarray(value), limit) == expected


COMPARISONS: list[tuple[Callable[..., Any], Any, Any, Any]] = [
    (check_ops.assert_equal, [1, 2], [1, 2], [1, 3]),
    (check_ops.assert_none_equal, [1, 2], [2, 1], [1, 3]),
    (check_ops.assert_less, [1, 2], [2, 3], [2, 2]),
    (check_ops.assert_less_equal, [1, 2], [1, 2], [1, 1]),
    (check_ops.assert_greater, [1, 2], [0, 1], [0, 2]),
    (check_ops.assert_greater_equal, [1, 2], [1, 2], [1, 3]),
]


@pytest.mark.parametrize(("check", "x", "good", "bad"), COMPARISONS)
def test_comparisons_fail_in_the_step_for_values_of_the_step(graph: Graph, check: Any, x: Any, good: Any, bad: Any) -> None:
    y = tf.placeholder(tf.int32, [2])
    op = check(x, y, message="my words")
    run = Reference(graph).run
    run(op, {y: good})
    with pytest.raises(
        errors.InvalidArgumentError, match=r"^assertion failed: \[my words\] \[Condition x .* did not hold"
    ) as error:
        run(op, {y: bad})
    assert f"[{bad[0]} {bad[1]}]" in str(error.value)


@pytest.mark.parametrize(("check", "x", "good", "bad"), COMPARISONS)
def test_comparisons_of_known_values_fail_at_once(check: Any, x: Any, good: Any, bad: Any) -> None:
    assert check(x, good).type == "NoOp"
    with pytest.raises(errors.InvalidArgumentError, match="^my words\nCondition x .* did not hold element-wise:\nx .* = \n"):
        check(x, bad, message="my words")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_ops.assert_positive, [0.5, 1.0], [0.5, 0.0]),
        (check_ops.assert_negative, [-0.5, -1.0], [-0.5, 0.0]),
        (check_ops.assert_non_negative, [0.0, 1.0], [0.5, -0.5]),
        (check_ops.assert_non_positive, [0.0, -1.0], [0.5, -0.5]),
    ],
)
def test_signs_are_checked(graph: Graph, check: Any, good: Any, bad: Any) -> None:
    x = tf.placeholder(tf.float32)
    op = check(x)
    run = Reference(graph).run
    run(op, {x: good})
    run(op, {x: []})
    with pytest.raises(errors.InvalidArgumentError, match="did not hold element-wise"):
        run(op, {x: bad})
    assert check(good).type == "NoOp"
    with pytest.raises(errors.InvalidArgumentError):
        check(bad)


def test_a_tensor_equals_itself_without_running() -> None:
    x = tf.placeholder(tf.float32)
    assert check_ops.assert_equal(x, x).type == "NoOp"


def test_nearness_is_relative_and_absolute(graph: Graph) -> None:
    x = tf.placeholder(tf.float32)
    run = Reference(graph).run
    run(check_ops.assert_near(x, [1.0, 100.0], rtol=0.1, atol=0.0), {x: [1.05, 95.0]})
    with pytest.raises(errors.InvalidArgumentError, match="x and y not equal to tolerance"):
        run(check_ops.assert_near(x, [1.0, 100.0]), {x: [1.0, 100.1]})


def test_ranks_are_checked_at_once_or_in_the_step(graph: Graph) -> None:
    known, x = tf.zeros([2, 3], name="z"), tf.placeholder(tf.float32)
    assert check_ops.assert_rank(known, 2).type == "NoOp" and check_ops.assert_rank_in(known, (0, 2)).type == "NoOp"
    with pytest.raises(ValueError, match=r"^mine.  Tensor z:0 must have rank 0.  Received rank 2, shape \(2, 3\)"):
        check_ops.assert_rank(known, 0, message="mine")
    with pytest.raises(ValueError, match="must have rank at least 3"):
        check_ops.assert_rank_at_least(known, 3)
    with pytest.raises(ValueError, match="Rank must be a scalar"):
        check_ops.assert_rank(known, [1, 2])
    run = Reference(graph).run
    for op, good, bad in (
        (check_ops.assert_rank(x, 1), [1.0], [[1.0]]),
        (check_ops.assert_rank_at_least(x, 1), [[1.0]], 1.0),
        (check_ops.assert_rank_in(x, [0, 2]), [[1.0]], [1.0]),
    ):
        run(op, {x: good})
        with pytest.raises(errors.InvalidArgumentError, match="must have rank"):
            run(op, {x: bad})


def test_types_are_checked_at_once() -> None:
    x, n = tf.constant(1.0, name="x"), tf.constant([1])
    assert check_ops.assert_type(x, tf.float32).type == "NoOp" and check_ops.assert_integer(n).type == "NoOp"
    assert check_ops.assert_scalar(x) is x
    with pytest.raises(TypeError, match="x:0 must be of type int32, not float32"):
        check_ops.assert_type(x, tf.int32)
    with pytest.raises(TypeError, match='Expected "x" to be integer type.  Found: float32'):
        check_ops.assert_integer(x)
    with pytest.raises(ValueError, match=r"Expected scalar shape for .*, saw shape: \(1,\)"):
        check_ops.assert_scalar(n)
    assert check_ops.assert_same_float_dtype([x, x]) is tf.float32 and check_ops.assert_same_float_dtype() is tf.float32
    with pytest.raises(ValueError, match="Expected floating point type"):
        check_ops.assert_same_float_dtype([n])
    assert check_ops.is_numeric_tensor(x) and check_ops.is_numeric_tensor(tf.Variable(1.0))
    assert not check_ops.is_numeric_tensor(tf.constant("s")) and not check_ops.is_numeric_tensor(1.0)


# --------------------------------------------------------------------------------------------------------------- Print


def test_print_writes_a_line_to_stderr_and_passes_its_input_on(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    x = tf.constant([1.0, 2.0])
    out = tf.Print(x, [x, tf.constant("s"), tf.constant([[1, 2], [3, 4]])], "msg: ")
    assert run(out).tolist() == [1, 2] and out.shape.as_list() == [2]
    assert capfd.readouterr().err == "msg: [1 2][s][[1 2][3...]...]\n"


def test_print_stops_after_first_n(graph: Graph, capfd: pytest.CaptureFixture[str]) -> None:
    x = tf.constant(1)
    first, always = tf.Print(x, [x], first_n=2), tf.Print(x, [x], "b", summarize=1)
    run = Reference(graph).run
    for _ in range(4):
        run([first, always])
    assert capfd.readouterr().err.splitlines() == ["[1]", "b[1]", "[1]", "b[1]", "b[1]", "b[1]"]


def test_the_gradient_goes_through_print(capfd: pytest.CaptureFixture[str]) -> None:
    check_gradient(lambda x: tf.Print(x, [x]), np.array([1.0, 2.0]))
    capfd.readouterr()
