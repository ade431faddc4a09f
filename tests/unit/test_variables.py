"""``Variable``: the operations it is made of, its face, and the functions over collections of variables."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.graph.graph import Graph
from mpirt.ops.variables import Variable
from tests.reference import Reference


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


@pytest.fixture
def run(graph: Graph) -> Any:
    return Reference(graph).run


def described(graph: Graph) -> list[tuple[Any, ...]]:
    return [(op.name, op.type, [t.name for t in op.inputs], op.device, op.attrs.get("_class")) for op in graph.get_operations()]


# What TensorFlow 2.21 (compat.v1, reference variables) builds for the same lines.


def test_a_variable_of_a_value_is_the_four_operations_tensorflow_builds(graph: Graph) -> None:
    tf.Variable(3.0, name="v")
    assert described(graph) == [
        ("v/initial_value", "Const", [], "", None),
        ("v", "VariableV2", [], "", None),
        ("v/Assign", "Assign", ["v:0", "v/initial_value:0"], "", ["loc:@v"]),
        ("v/read", "Identity", ["v:0"], "", ["loc:@v"]),
    ]


def test_a_variable_of_a_function_initialises_beside_itself(graph: Graph) -> None:
    with tf.device("/job:ps"):
        tf.Variable(lambda: tf.random_normal([2, 3]), name="w", caching_device="/cpu:0")
    beside = ["loc:@w"]
    start = "w/Initializer/random_normal"
    assert described(graph) == [
        (f"{start}/shape", "Const", [], "", beside),
        (f"{start}/mean", "Const", [], "", beside),
        (f"{start}/stddev", "Const", [], "", beside),
        (f"{start}/RandomStandardNormal", "RandomStandardNormal", [f"{start}/shape:0"], "", beside),
        (f"{start}/mul", "Mul", [f"{start}/RandomStandardNormal:0", f"{start}/stddev:0"], "", beside),
        (start, "AddV2", [f"{start}/mul:0", f"{start}/mean:0"], "", beside),
        ("w", "VariableV2", [], "/job:ps", beside),
        ("w/Assign", "Assign", ["w:0", f"{start}:0"], "/job:ps", beside),
        ("w/read", "Identity", ["w:0"], "/job:ps/device:CPU:0", None),
    ]


def test_a_device_function_is_asked_once_for_the_variable_and_never_for_its_initialiser(graph: Graph) -> None:
    asked: list[str] = []

    def place(op: Any) -> str:
        asked.append(op.type)
        return "/job:ps"

    with tf.device(place):
        tf.Variable(lambda: tf.random_uniform([2]))
    assert asked == ["VariableV2"]  # Assign and read are colocated


def test_names_are_made_unique_and_default_to_variable(graph: Graph) -> None:
    names = [tf.Variable(0.0).name, tf.Variable(0.0).name, tf.Variable(0.0, name="v").name, tf.Variable(0.0, name="v").name]
    assert names == ["Variable:0", "Variable_1:0", "v:0", "v_1:0"]


def test_its_face_is_tensorflows(graph: Graph) -> None:
    v = tf.Variable([[1.0, 2.0]], name="v")
    assert (v.name, v.op.name, v.dtype, v.dtype.base_dtype, v.shape.as_list()) == (
        "v:0",
        "v",
        tf.float32.ref,
        tf.float32,
        [1, 2],
    )
    assert v.get_shape() == v.shape and v.graph is graph and v.device == "" and v.trainable
    assert v.initializer.name == "v/Assign" and v.initial_value.name == "v/initial_value:0"
    assert v.value().name == "v/read:0" and v.value() is v.value()
    assert v.read_value().name == "read:0"
    assert repr(v) == "<mpirt.Variable 'v:0' shape=(1, 2) dtype=float32_ref>"
    assert graph.as_graph_element(v).name == "v:0"


def test_values_survive_and_change(graph: Graph, run: Any) -> None:
    v = tf.Variable([1.0, 2.0])
    run(v.initializer)
    assert run(v).tolist() == [1, 2]
    assert run(v.assign([3.0, 4.0])).tolist() == [3, 4]
    assert run(v.assign_add([1.0, 1.0])).tolist() == [4, 5]
    assert run(v.assign_sub([0.5, 0.5])).tolist() == [3.5, 4.5]
    assert run(v.value()).tolist() == [3.5, 4.5]
    assert v.assign([0.0, 0.0], read_value=False).type == "Assign"


def test_rows_change_by_indexed_slices(graph: Graph, run: Any) -> None:
    v = tf.Variable([[4.0], [6.0]])
    run(v.initializer)
    row = tf.IndexedSlices(tf.constant([[2.0]]), tf.constant([1]))
    for change, expected in (
        (v.scatter_add, 8.0), (v.scatter_sub, 6.0), (v.scatter_mul, 12.0), (v.scatter_div, 6.0), (v.scatter_max, 6.0),
        (v.scatter_min, 2.0), (v.scatter_update, 2.0),
    ):  # fmt: skip
        assert run(change(row)).tolist() == [[4.0], [expected]]
    assert run(v.sparse_read([1, 0])).tolist() == [[2.0], [4.0]]
    assert run(v.scatter_nd_add([[0, 0]], [1.0])).tolist() == [[5.0], [2.0]]
    with pytest.raises(TypeError, match="not IndexedSlices"):
        v.scatter_add(tf.constant(1.0))  # type: ignore[arg-type]


def test_operators_use_the_shared_snapshot(graph: Graph, run: Any) -> None:
    v, n = tf.Variable(5.0, name="v"), tf.Variable(7, name="n")
    run(tf.global_variables_initializer())
    results = [v + 1, 1 + v, v - 1, 1 - v, v * 2, 2 * v, v / 2, 10 / v, v**2, 2**v, -v, abs(-v), v > 4, v < 4, v >= 5, v <= 4]
    expected = [6, 6, 4, -4, 10, 10, 2.5, 2, 25, 32, -5, 5, True, False, True, False]
    assert [float(run(r)) for r in results] == expected
    assert [int(run(r)) for r in (n // 2, 15 // n, n % 4, 15 % n)] == [3, 2, 3, 1]
    assert {t.name for r in results[:2] for t in r.op.inputs} >= {"v/read:0"}
    m = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
    run(m.initializer)
    assert run(m @ m).tolist() == [[7, 10], [15, 22]] and run(m[1]).tolist() == [3, 4]
    assert run(np.ones((2, 2), np.float32) * m).tolist() == [[1, 2], [3, 4]]


def test_it_is_a_key_and_has_no_truth_and_no_items(graph: Graph) -> None:
    v = tf.Variable(1.0)
    assert {v: 1}[v] == 1
    with pytest.raises(TypeError, match="is not iterable"):
        iter(v)
    with pytest.raises(TypeError, match="truth"):
        bool(v)


def test_types_come_from_the_value_unless_asked_for(graph: Graph) -> None:
    assert tf.Variable(1).dtype.base_dtype is tf.int32
    assert tf.Variable(1.5).dtype.base_dtype is tf.float32
    assert tf.Variable(np.ones(2)).dtype.base_dtype is tf.float64
    assert tf.Variable(1, dtype=tf.float64).dtype.base_dtype is tf.float64
    assert tf.Variable("s").dtype.base_dtype is tf.string
    with pytest.raises(ValueError, match="float64"):
        tf.Variable(tf.constant(1.0), dtype=tf.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "initial_value must be specified"),
        ({"initial_value": 1.0, "collections": "variables"}, "the collections of a variable are a list"),
        ({"initial_value": 1.0, "constraint": 3}, "`constraint` argument must be a callable"),
    ],
)
def test_bad_arguments_are_refused(graph: Graph, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variable(**arguments)


def test_an_initial_value_of_unknown_shape_needs_validate_shape_false(graph: Graph, run: Any) -> None:
    x = tf.placeholder(tf.float32)
    with pytest.raises(ValueError, match="initial_value must have a shape specified"):
        tf.Variable(x)
    v = tf.Variable(x, validate_shape=False)
    assert v.shape.dims is None
    Reference(graph).run(v.initializer, {x: [1.0, 2.0]})


def test_a_variable_made_of_variables_is_initialised_in_one_run(graph: Graph, run: Any) -> None:
    v = tf.Variable(tf.random_uniform([2], 1.0, 2.0), name="v")
    w = tf.Variable(v * 2.0 + v.read_value(), name="w")
    u = tf.Variable(w.initialized_value() + 1.0, name="u")
    run([w.initializer, u.initializer])  # v itself isn't initialised yet
    run(tf.global_variables_initializer())
    first = run([v, w, u])
    np.testing.assert_allclose(first[1], first[0] * 3.0, rtol=1e-6)
    np.testing.assert_allclose(first[2], first[1] + 1.0, rtol=1e-6)
    run(v.assign([10.0, 20.0]))
    run(w.initializer)
    assert run(w).tolist() == [30, 60]


def test_initialisers_ignore_control_dependencies_around_them(graph: Graph) -> None:
    with tf.control_dependencies([tf.no_op()]):
        v = tf.Variable(lambda: tf.zeros([2]))
    assert not v.initializer.control_inputs and not v.op.control_inputs and not v.initial_value.op.control_inputs


# ------------------------------------------------------------------------------------------------------- collections


def test_collections_say_what_kind_a_variable_is(graph: Graph) -> None:
    a = tf.Variable(0.0, name="net/a")
    b = tf.Variable(0.0, name="b", trainable=False)
    c = tf.Variable(0.0, name="c", trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
    d = tf.Variable(0.0, name="d", collections=[])
    assert tf.global_variables() == [a, b] and tf.trainable_variables() == [a, d] and tf.local_variables() == [c]
    assert tf.global_variables("net") == [a] and tf.all_variables() == [a, b]
    assert tf.model_variables() == [] and tf.moving_average_variables() == []


def test_initialising_all_is_one_operation_that_names_each_initialiser(graph: Graph) -> None:
    for task in (0, 0, 1):
        with tf.device(f"/job:ps/task:{task}"):
            tf.Variable(0.0, name="v")
    init = tf.global_variables_initializer()
    assert init.name == "init"
    assert [(op.device, [c.name for c in op.control_inputs]) for op in init.control_inputs] == [
        ("/job:ps/task:0", ["v/Assign", "v_1/Assign"]),
        ("/job:ps/task:1", ["v_2/Assign"]),
    ]
    assert tf.local_variables_initializer().type == "NoOp"


def test_uninitialised_variables_are_reported_by_name(graph: Graph, run: Any) -> None:
    v, w = tf.Variable(0.0, name="v"), tf.Variable(0.0, name="w", collections=[tf.GraphKeys.LOCAL_VARIABLES])
    report, flag = tf.report_uninitialized_variables(), tf.is_variable_initialized(w)
    check = tf.assert_variables_initialized()
    assert check is not None
    assert run(report).tolist() == [b"v", b"w"] and not run(flag)
    run(w.initializer)
    assert run(report).tolist() == [b"v"] and run(flag)
    with pytest.raises(errors.FailedPreconditionError, match="uninitialized value v"):
        run(check)
    run(v.initializer)
    run(check)
    assert run(report).tolist() == []
    assert run(tf.report_uninitialized_variables([])).tolist() == []
    assert tf.assert_variables_initialized([]) is None


@pytest.mark.parametrize("plain_use", ["tf.cast(v, tf.float64)", "tf.identity(v)", "v + v", "v[0:]", "v.value()", "tf.stack([v])", "-v"])
def test_a_plain_use_in_a_control_dependencies_block_sees_the_changes_waited_for(graph: Graph, run: Any, plain_use: str) -> None:
    v = tf.Variable([1.0], name="v")
    before = v + 0.0  # shares the snapshot "v/read" with all uses that wait for nothing
    with tf.control_dependencies([v.assign_add([4.0])]):
        used = eval(plain_use)
    run(v.initializer)
    values = run([before, used])
    assert np.ravel(values[1])[0] == {"v + v": 10.0, "-v": -5.0}.get(plain_use, 5.0)
    assert before.op.inputs[0].name == "v/read:0"


def test_outside_of_control_dependencies_all_plain_uses_share_one_snapshot(graph: Graph) -> None:
    v = tf.Variable([1.0], name="v")
    with tf.control_dependencies([]):
        uses = [v + 1.0, -v, tf.exp(v)]
    with tf.control_dependencies([uses[0]]), tf.control_dependencies(None):
        uses.append(tf.square(v))
    assert {use.op.inputs[0].name for use in uses} == {"v/read:0"}
