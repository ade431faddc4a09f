"""Arithmetic and logic of two tensors: against numpy, gradients against differences, and what Python numbers become."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops import cast_ops, logic_ops, math_ops
from mpirt.ops.apply import apply_op, constant
from tests.gradient_checker import check_gradient
from tests.reference import Reference

X = np.array([[-2.5, -1.0, 0.5], [1.5, 2.0, 7.0]])
Y = np.array([[3.0, -0.75, 2.0], [-1.6, 0.23, 2.5]])
POSITIVE = np.abs(Y)


def value(build: Callable[[], Any]) -> Any:
    """Value of what ``build`` builds in a graph of its own."""
    graph = Graph()
    with graph.as_default():
        fetches = build()
    return Reference(graph).run(fetches)


BINARY = {
    "add": (math_ops.add, np.add, X, Y),
    "subtract": (math_ops.subtract, np.subtract, X, Y),
    "multiply": (math_ops.multiply, np.multiply, X, Y),
    "realdiv": (math_ops.realdiv, np.divide, X, Y),
    "truediv": (math_ops.truediv, np.divide, X, Y),
    "div": (math_ops.div, np.divide, X, Y),
    "div_no_nan": (math_ops.div_no_nan, np.divide, X, Y),
    "multiply_no_nan": (math_ops.multiply_no_nan, np.multiply, X, Y),
    "floormod": (math_ops.floormod, np.mod, X, Y),
    "truncatemod": (math_ops.truncatemod, np.fmod, X, Y),
    "pow": (math_ops.pow, np.power, POSITIVE, X),
    "maximum": (math_ops.maximum, np.maximum, X, Y),
    "minimum": (math_ops.minimum, np.minimum, X, Y),
    "squared_difference": (math_ops.squared_difference, lambda x, y: (x - y) ** 2, X, Y),
    "atan2": (math_ops.atan2, np.arctan2, X, Y),
    "xdivy": (math_ops.xdivy, np.divide, X, Y),
    "xlogy": (math_ops.xlogy, lambda x, y: x * np.log(y), X, POSITIVE),
    "xlog1py": (math_ops.xlog1py, lambda x, y: x * np.log1p(y), X, POSITIVE),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arithmetic_agrees_with_numpy_and_keeps_the_dtype(name: str, dtype: Any) -> None:
    function, oracle, x, y = BINARY[name]
    got = value(lambda: function(constant(x.astype(dtype)), constant(y.astype(dtype))))
    assert got.dtype == dtype
    tolerance = {2: 5e-3, 4: 2e-6, 8: 1e-13}[np.dtype(dtype).itemsize]
    np.testing.assert_allclose(got, oracle(x.astype(dtype), y.astype(dtype)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BINARY)
def test_gradients_of_arithmetic_agree_with_differences(name: str) -> None:
    function, _, x, y = BINARY[name]
    check_gradient(lambda a, b: function(a, b), x, y)


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "truediv", "maximum", "squared_difference", "xlogy"])
@pytest.mark.parametrize(
    "shapes", [((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 3), ()), ((1, 3), (3,)), ((1, 1), (3,))]
)
def test_gradients_through_broadcasting_have_the_shape_of_the_operand(name: str, shapes: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(0.5, 2.0, s) for s in shapes)
    check_gradient(lambda a, b: BINARY[name][0](a, b), x, y)


def test_equal_static_shapes_need_no_reduction_in_the_gradient() -> None:
    graph = Graph()
    with graph.as_default():
        x, y = constant(X), constant(Y)
        tf.gradients(x * y, [x, y])
        bias = apply_op("Placeholder", dtype=tf.float32, shape=(None, 3)) + constant(np.ones(3, np.float32))
        tf.gradients(bias, bias.op.inputs[0])
    types = [op.type for op in graph.get_operations()]
    assert types.count("BroadcastGradientArgs") == 0
    assert types.count("Sum") == 1  # of the bias' gradient over the unknown batch


@settings(max_examples=40)
@given(st.data())
def test_broadcast_sums_are_numpys_for_any_two_shapes(data: st.DataObject) -> None:
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
    rng = np.random.default_rng(7)
    x, y = (rng.integers(-9, 9, s).astype(np.float64) for s in shapes.input_shapes)
    graph = Graph()
    with graph.as_default():
        a, b = constant(x), constant(y)
        c = a - b
        assert c.static_shape == shapes.result_shape
        ga, gb = tf.gradients(c, [a, b])
    got = Reference(graph).run([c, ga, gb])
    np.testing.assert_array_equal(got[0], x - y)
    count = np.prod(shapes.result_shape, dtype=int)
    np.testing.assert_array_equal(got[1], np.full(x.shape, count / max(x.size, 1)))
    np.testing.assert_array_equal(got[2], np.full(y.shape, -count / max(y.size, 1)))


def test_shapes_that_cannot_be_broadcast_are_refused_while_building() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match=r"\(2, 3\) and \(2,\) can't be broadcast"):
        constant(X) + constant([1.0, 2.0], tf.float64)


# ------------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda t: t + 2, [3.5, 0.0]),
        (lambda t: 2 + t, [3.5, 0.0]),
        (lambda t: t - 0.5, [1.0, -2.5]),
        (lambda t: 1 - t, [-0.5, 3.0]),
        (lambda t: t * [2, 3], [3.0, -6.0]),
        (lambda t: 3 / t, [2.0, -1.5]),
        (lambda t: t // 2, [0.0, -1.0]),
        (lambda t: t % 2, [1.5, 0.0]),
        (lambda t: t**2, [2.25, 4.0]),
        (lambda t: 2**t, [2**1.5, 0.25]),
        (lambda t: -t, [-1.5, 2.0]),
        (lambda t: abs(t), [1.5, 2.0]),
        (lambda t: np.array([1.0, 1.0]) + t, [2.5, -1.0]),
    ],
)
def test_operators_take_python_numbers_in_the_tensors_dtype(build: Any, expected: list[float]) -> None:
    got = value(lambda: build(constant([1.5, -2.0])))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_comparisons_and_logic_by_operator() -> None:
    def build() -> list[Any]:
        t, a, b = constant([1.0, 2.0, 3.0]), constant([True, True, False]), constant([True, False, False])
        i, j = constant([6, 5]), constant([3, 4])
        return [t < 2, t <= 2, t > 2, t >= 2, a & b, a | b, a ^ b, ~a, i & j, i | j, i ^ j, ~i]

    got = [v.tolist() for v in value(build)]
    assert got[:4] == [[True, False, False], [True, True, False], [False, False, True], [False, True, True]]
    assert got[4:8] == [[True, False, False], [True, True, False], [False, True, False], [False, False, True]]
    assert got[8:] == [[2, 4], [7, 5], [5, 1], [-7, -6]]


def test_an_operator_names_its_operation_and_constant_as_tensorflow_does() -> None:
    graph = Graph()
    with graph.as_default():
        a = constant(1.0, name="a")
        assert [(a + 2).op.name, (a + 3).op.name, (2 - a).op.name, (a / 2).op.name] == ["add", "add_1", "sub", "truediv"]
        assert (a + 2).op.type == "AddV2"
    assert graph.get_operation_by_name("add_1/y").type == "Const"


def test_a_number_that_the_dtype_cannot_hold_is_refused() -> None:
    with Graph().as_default(), pytest.raises(TypeError, match=r"Expected int32, got 2\.5"):
        constant([1, 2]) + 2.5


def test_integer_division_follows_python_3_and_div_python_2() -> None:
    def build() -> list[Any]:
        x, y = constant([7, -7, 7, -7]), constant([2, 2, -2, -2])
        return [
            x / y,
            x // y,
            x % y,
            math_ops.div(x, y),
            math_ops.truncatediv(x, y),
            math_ops.truncatemod(x, y),
            apply_op("Div", x, y),
        ]

    got = value(build)
    assert got[0].dtype == np.float64 and got[0].tolist() == [3.5, -3.5, -3.5, 3.5]
    assert [g.tolist() for g in got[1:]] == [
        [3, -4, -4, 3],
        [1, 1, -1, -1],
        [3, -4, -4, 3],
        [3, -3, -3, 3],
        [1, -1, 1, -1],
        [3, -3, -3, 3],
    ]
    assert all(g.dtype == np.int32 for g in got[1:])
    assert value(lambda: constant(np.int8([3])) / np.int8([2])).dtype == np.float32


@pytest.mark.parametrize("op_type", ["FloorDiv", "TruncateDiv", "FloorMod", "TruncateMod", "Mod", "Div"])
def test_integer_division_by_zero_is_an_error(op_type: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"'{op_type}': integer division by zero in {op_type}"):
        value(lambda: apply_op(op_type, constant([1, 2]), constant([1, 0])))


def test_floor_division_of_floats_rounds_the_quotient_down() -> None:
    assert value(lambda: constant([1.0, -1.0, 1.0]) // constant([0.1, 0.3, 0.0])).tolist() == [10.0, -4.0, np.inf]


def test_no_nan_functions_are_zero_where_the_rule_says() -> None:
    def build() -> list[Any]:
        x, zero = constant([0.0, 1.0, np.inf]), constant([0.0, 0.0, 0.0])
        return [
            math_ops.div_no_nan(x, zero),
            math_ops.multiply_no_nan(x, zero),
            math_ops.xdivy(zero, zero),
            math_ops.xlogy(zero, zero),
            math_ops.xlog1py(zero, zero - 1),
        ]

    assert all(v.tolist() == [0.0, 0.0, 0.0] for v in value(build))


def test_integers_have_no_negative_powers() -> None:
    assert value(lambda: constant([2, -3]) ** 3).tolist() == [8, -27]
    with pytest.raises(tf.errors.InvalidArgumentError, match="integers to negative integer powers"):
        value(lambda: constant([2]) ** -1)


def test_gradient_of_a_square_written_as_a_power() -> None:
    check_gradient(lambda x: x**2, X)
    check_gradient(lambda x: x**3, X)


def test_power_of_a_negative_base_has_no_gradient_by_the_exponent() -> None:
    graph = Graph()
    with graph.as_default():
        x, y = constant([-2.0, 0.0]), constant([3.0, 2.0])
        grad = tf.gradients(x**y, y)[0]
    assert Reference(graph).run(grad).tolist() == [0.0, 0.0]


def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals() -> None:
    graph = Graph()
    with graph.as_default():
        x, y = constant([1.0, 2.0]), constant([1.0, 3.0])
        grads = tf.gradients(math_ops.maximum(x, y), [x, y]) + tf.gradients(math_ops.minimum(x, y), [x, y])
    assert [g.tolist() for g in Reference(graph).run(grads)] == [[1, 0], [0, 1], [1, 1], [0, 0]]


def test_strings_are_joined() -> None:
    assert value(lambda: constant(["a", "b"]) + constant("c")).tolist() == [b"ac", b"bc"]
    assert value(lambda: math_ops.add(constant("a"), "b")).tolist() == b"ab"


# ------------------------------------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("name", ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"])
def test_comparisons_agree_with_numpy(name: str) -> None:
    x, y = np.array([[1, 2, 3], [4, 5, 6]]), np.array([3, 5, 3])
    got = value(lambda: getattr(logic_ops, name)(constant(x), constant(y)))
    np.testing.assert_array_equal(got, getattr(np, name)(x, y))
    assert got.dtype == np.bool_


def test_strings_are_equal_by_value() -> None:
    assert value(lambda: logic_ops.equal(constant(["a", "b"]), "a")).tolist() == [True, False]
    assert value(lambda: logic_ops.not_equal(constant("a"), "a")).tolist() is False


def test_shapes_that_do_not_fit_are_unequal_if_asked_for() -> None:
    def build() -> list[Any]:
        x, y = constant([1, 2]), constant([1, 2, 3])
        fitting = apply_op("Equal", x, constant(1), incompatible_shape_error=False)
        return [apply_op(t, x, y, incompatible_shape_error=False) for t in ("Equal", "NotEqual")] + [fitting]

    got = value(build)
    assert [g.tolist() for g in got] == [False, True, [True, False]]


def test_approximately_equal_unsigned_numbers_do_not_wrap() -> None:
    x, y = np.array([0, 5], np.uint8), np.array([1, 5], np.uint8)
    assert value(lambda: apply_op("ApproximateEqual", x, y, tolerance=2.0)).tolist() == [True, True]
    assert value(lambda: apply_op("ApproximateEqual", constant([1.0]), constant([1.1]))).tolist() == [False]


def test_shifts_beyond_the_width_are_cut() -> None:
    got = value(
        lambda: [
            apply_op("LeftShift", constant([1, 1]), constant([3, 40])),
            apply_op("RightShift", constant([-8]), constant([1])),
        ]
    )
    assert [g.tolist() for g in got] == [[8, -(2**31)], [-4]]


# ------------------------------------------------------------------------------------------------------- sums, casts


def test_add_n_sums_tensors_of_one_shape() -> None:
    parts = [X, Y, X * Y]
    np.testing.assert_allclose(value(lambda: math_ops.add_n([constant(p) for p in parts])), sum(parts))
    np.testing.assert_allclose(value(lambda: math_ops.accumulate_n([constant(p) for p in parts])), sum(parts))
    check_gradient(lambda a, b, c: math_ops.add_n([a, b, c]), *parts)
    with Graph().as_default(), pytest.raises(ValueError, match="not compatible"):
        math_ops.add_n([constant(X), constant([1.0], tf.float64)])


def test_add_n_never_changes_its_inputs() -> None:
    graph = Graph()
    with graph.as_default():
        x = constant(X)
        total = math_ops.add_n([x, x, x])
    got = Reference(graph).run([x, total])
    np.testing.assert_array_equal(got[0], X)
    np.testing.assert_allclose(got[1], 3 * X)


@pytest.mark.parametrize("target", [np.bool_, np.int32, np.uint8, np.float16, np.float64, np.complex64])
def test_cast_follows_numpy(target: Any) -> None:
    x = np.array([0.0, 1.5, 200.7])
    got = value(lambda: cast_ops.cast(constant(x), target))
    np.testing.assert_array_equal(got, x.astype(target))
    assert got.dtype == target


def test_cast_to_the_own_dtype_is_the_tensor_itself() -> None:
    with Graph().as_default():
        x = constant(1.0)
        assert cast_ops.cast(x, tf.float32) is x


def test_casts_pass_gradients_between_floating_types_only() -> None:
    graph = Graph()
    with graph.as_default():
        x = constant(X)
        through_float = tf.gradients(cast_ops.cast(x, tf.float32) * 3, x)[0]
        through_int = tf.gradients(cast_ops.cast(cast_ops.cast(x, tf.int32), tf.float64), x)[0]
    got = Reference(graph).run(through_float)
    assert through_int is None
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, np.full(X.shape, 3.0))


def test_saturating_casts_stop_at_the_ends() -> None:
    got = value(lambda: cast_ops.saturate_cast(constant([1e10, -1e10, 3.7]), tf.int32))
    assert got[1] == -(2**31) and got[2] == 3
    assert 2**31 - 200 < got[0] < 2**31
    assert value(lambda: cast_ops.saturate_cast(constant([300, -5]), tf.uint8)).tolist() == [255, 0]


def test_complex_gradients_follow_tensorflows_convention() -> None:
    """The gradient by z = a + jb is dL/da + j dL/db, here of L = Re(w z) + Im(z z)."""
    z, w = 1.5 - 0.5j, 2.0 + 1.0j
    graph = Graph()
    with graph.as_default():
        t = constant(np.complex128(z))
        loss = tf.real(t * constant(np.complex128(w))) + tf.imag(t * t) + tf.abs(t)
        grad = tf.gradients(loss, t)[0]
    h = 1e-6

    def f(v: complex) -> float:
        return (w * v).real + (v * v).imag + abs(v)

    expected = (f(z + h) - f(z - h)) / (2 * h) + 1j * (f(z + 1j * h) - f(z - 1j * h)) / (2 * h)
    np.testing.assert_allclose(Reference(graph).run(grad), expected, rtol=1e-8)


def test_complex_numbers_are_made_of_and_taken_apart_into_parts() -> None:
    def build() -> list[Any]:
        z = tf.complex(constant([3.0, 0.0]), constant([4.0, -1.0]))
        return [z, tf.real(z), tf.imag(z), tf.conj(z), tf.abs(z), tf.angle(z)]

    z = np.array([3 + 4j, -1j], np.complex64)
    for got, expected in zip(value(build), [z, z.real, z.imag, z.conj(), abs(z), np.angle(z)], strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    check_gradient(lambda a, b: tf.abs(tf.complex(a, b)) + tf.angle(tf.complex(a, b)), np.array([1.0, -2.0]), np.array([0.5]))
