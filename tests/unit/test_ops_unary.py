"""Functions of one tensor: against numpy and the math module, gradients and second derivatives against differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops import activation_ops, special_ops, unary_ops
from mpirt.ops.apply import apply_op, constant
from tests.gradient_checker import check_gradient
from tests.reference import Reference

ANY = np.array([-2.3, -0.7, 0.4, 1.6])
POSITIVE = np.array([0.3, 0.9, 1.7, 4.0])
INSIDE = np.array([-0.8, -0.2, 0.3, 0.9])  # of (-1, 1)
ABOVE_1 = np.array([1.2, 2.0, 3.5])


def value(build: Callable[[], Any]) -> Any:
    """Value of what ``build`` builds in a graph of its own."""
    graph = Graph()
    with graph.as_default():
        fetches = build()
    return Reference(graph).run(fetches)


def each(function: Callable[[float], float]) -> Callable[[Any], Any]:
    """``function`` of a number, for arrays."""
    return lambda x: np.array([function(float(v)) for v in np.ravel(x)]).reshape(np.shape(x))


_ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805
SMOOTH: dict[str, tuple[Any, Any, Any]] = {
    "negative": (unary_ops.negative, np.negative, ANY),
    "abs": (unary_ops.abs, np.abs, ANY),
    "sign": (unary_ops.sign, np.sign, ANY),
    "square": (unary_ops.square, np.square, ANY),
    "exp": (unary_ops.exp, np.exp, ANY),
    "expm1": (unary_ops.expm1, np.expm1, ANY),
    "log": (unary_ops.log, np.log, POSITIVE),
    "log1p": (unary_ops.log1p, np.log1p, POSITIVE),
    "sqrt": (unary_ops.sqrt, np.sqrt, POSITIVE),
    "rsqrt": (unary_ops.rsqrt, lambda x: x**-0.5, POSITIVE),
    "reciprocal": (unary_ops.reciprocal, lambda x: 1 / x, ANY),
    "inv": (lambda x: apply_op("Inv", x), lambda x: 1 / x, ANY),
    "sin": (unary_ops.sin, np.sin, ANY),
    "cos": (unary_ops.cos, np.cos, ANY),
    "tan": (unary_ops.tan, np.tan, ANY),
    "asin": (unary_ops.asin, np.arcsin, INSIDE),
    "acos": (unary_ops.acos, np.arccos, INSIDE),
    "atan": (unary_ops.atan, np.arctan, ANY),
    "sinh": (unary_ops.sinh, np.sinh, ANY),
    "cosh": (unary_ops.cosh, np.cosh, ANY),
    "asinh": (unary_ops.asinh, np.arcsinh, ANY),
    "acosh": (unary_ops.acosh, np.arccosh, ABOVE_1),
    "atanh": (unary_ops.atanh, np.arctanh, INSIDE),
    "tanh": (unary_ops.tanh, np.tanh, ANY),
    "sigmoid": (unary_ops.sigmoid, lambda x: 1 / (1 + np.exp(-x)), ANY),
    "log_sigmoid": (unary_ops.log_sigmoid, lambda x: -np.log1p(np.exp(-x)), ANY),
    "erf": (special_ops.erf, each(math.erf), ANY),
    "erfc": (special_ops.erfc, each(math.erfc), ANY),
    "lgamma": (special_ops.lgamma, each(math.lgamma), ANY),
    "relu": (activation_ops.relu, lambda x: np.where(x > 0, x, 0), ANY),
    "relu6": (activation_ops.relu6, lambda x: np.clip(x, 0, 6), ANY * 4),
    "elu": (activation_ops.elu, lambda x: np.where(x > 0, x, np.exp(x) - 1), ANY),
    "selu": (activation_ops.selu, lambda x: _SCALE * np.where(x > 0, x, _ALPHA * (np.exp(x) - 1)), ANY),
    "leaky_relu": (activation_ops.leaky_relu, lambda x: np.where(x > 0, x, np.float64(np.float32(0.2)) * x), ANY),
    "softplus": (activation_ops.softplus, lambda x: np.log(1 + np.exp(x)), ANY),
    "softsign": (activation_ops.softsign, lambda x: x / (1 + np.abs(x)), ANY),
    "swish": (activation_ops.swish, lambda x: x / (1 + np.exp(-x)), ANY),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_functions_agree_with_numpy_and_keep_the_dtype(name: str, dtype: Any) -> None:
    function, oracle, x = SMOOTH[name]
    x = x.astype(dtype)
    got = value(lambda: [function(constant(x)), function(constant(x[0]))])
    tolerance = {2: 4e-3, 4: 2e-6, 8: 1e-13}[np.dtype(dtype).itemsize]
    for array, argument in zip(got, (x, x[0]), strict=True):
        assert array.dtype == dtype
        np.testing.assert_allclose(array, oracle(argument.astype(np.float64)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_agree_with_differences(name: str) -> None:
    function, _, x = SMOOTH[name]
    check_gradient(lambda t: function(t), x)


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_agree_with_differences(name: str) -> None:
    function, _, x = SMOOTH[name]
    check_gradient(lambda t: tf.gradients(function(t) * t, t)[0], x, rtol=2e-5)


GRAD_OPS = {  # op type: (its value from y or x and dy, argument)
    "SqrtGrad": (lambda y, dy: dy / (2 * y), POSITIVE),
    "RsqrtGrad": (lambda y, dy: -0.5 * dy * y**3, POSITIVE),
    "ReciprocalGrad": (lambda y, dy: -dy * y * y, ANY),
    "InvGrad": (lambda y, dy: -dy * y * y, ANY),
    "TanhGrad": (lambda y, dy: dy * (1 - y * y), ANY),
    "SigmoidGrad": (lambda y, dy: dy * y * (1 - y), ANY),
}


@pytest.mark.parametrize("op_type", GRAD_OPS)
def test_gradient_operations_agree_with_numpy_and_have_gradients(op_type: str) -> None:
    oracle, y = GRAD_OPS[op_type]
    dy = np.linspace(-1.0, 2.0, y.size)
    np.testing.assert_allclose(value(lambda: apply_op(op_type, constant(y), constant(dy))), oracle(y, dy), rtol=1e-14)
    check_gradient(lambda a, b: apply_op(op_type, a, b), y, dy)


@pytest.mark.parametrize(("function", "at"), [(tf.sqrt, 0.0), (tf.rsqrt, 0.0), (tf.reciprocal, 0.0)])
def test_an_infinite_slope_that_nobody_follows_gives_no_gradient_instead_of_nan(function: Any, at: float) -> None:
    """What a masked loss does, or a norm of a row that isn't used; TensorFlow's kernels agree."""

    def gradient() -> Any:
        x = constant([at, 4.0])
        return tf.gradients(function(x), x, constant([0.0, 0.0]))[0]

    assert value(gradient).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("op_type", ["Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign"])
def test_gradient_operations_of_activations_have_gradients(op_type: str) -> None:
    x = np.array([-3.1, -0.4, 0.7, 6.5])
    check_gradient(lambda dy, t: apply_op(op_type + "Grad", dy, t), np.array([1.0, -2.0, 0.5, 3.0]), x)


def test_the_argument_of_a_rectifiers_gradient_may_be_its_result_or_its_argument() -> None:
    x, dy = np.float32([-1, 0, 2, 7]), np.float32([1, 2, 3, 4])
    for op_type, expected in (("Relu", [0, 0, 3, 4]), ("Relu6", [0, 0, 3, 0])):

        def build(op_type: str = op_type) -> list[Any]:
            return [apply_op(op_type + "Grad", dy, features) for features in (constant(x), apply_op(op_type, constant(x)))]

        got = value(build)
        assert got[0].tolist() == got[1].tolist() == expected


def test_rectifiers_keep_nan_and_integers() -> None:
    assert np.isnan(value(lambda: activation_ops.relu(constant([math.nan])))).all()
    got = value(lambda: activation_ops.relu(constant([-3, 4])))
    assert got.dtype == np.int32 and got.tolist() == [0, 4]
    assert value(lambda: activation_ops.leaky_relu(constant([-5, 5]))).tolist() == [-1.0, 5.0]
    assert value(lambda: activation_ops.crelu(constant([[-1.0, 2.0]]))).tolist() == [[0, 2, 1, 0]]


def test_steep_functions_do_not_overflow() -> None:
    x = np.float32([-1e4, -100, 0, 100, 1e4])
    got = value(lambda: [f(constant(x)) for f in (unary_ops.sigmoid, activation_ops.softplus, unary_ops.log_sigmoid, activation_ops.elu)])
    np.testing.assert_allclose(got[0], [0, 0, 0.5, 1, 1], atol=1e-38)
    np.testing.assert_allclose(got[1], [0, 0, math.log(2), 100, 1e4], rtol=1e-6, atol=1e-38)
    np.testing.assert_allclose(got[2], [-1e4, -100, -math.log(2), 0, 0], rtol=1e-6, atol=1e-38)
    np.testing.assert_allclose(got[3], [-1, -1, 0, 100, 1e4])


# ------------------------------------------------------------------------------------------------------- special functions

WIDE = np.concatenate([np.linspace(-6, 6, 1201), [-26.0, 10.5, 26.0, 1e-8, 1e-300, 0.46875, 4.0]])


def test_error_functions_are_right_to_a_few_units_in_the_last_place() -> None:
    got = value(lambda: [special_ops.erf(constant(WIDE)), special_ops.erfc(constant(WIDE))])
    np.testing.assert_allclose(got[0], each(math.erf)(WIDE), rtol=2e-15)
    np.testing.assert_allclose(got[1], each(math.erfc)(WIDE), rtol=1e-14)


def test_error_functions_at_the_ends() -> None:
    x = np.array([-np.inf, np.inf, np.nan, 0.0])
    got = value(lambda: [special_ops.erf(constant(x)), special_ops.erfc(constant(x))])
    np.testing.assert_array_equal(got[0], [-1, 1, np.nan, 0])
    np.testing.assert_array_equal(got[1], [2, 0, np.nan, 1])


def test_inverse_error_function_inverts() -> None:
    y = np.concatenate([np.linspace(-0.999, 0.999, 301), [1 - 1e-12, 1e-20]])
    x = value(lambda: special_ops.erfinv(constant(y)))
    # Where erf is flat, its argument is known only as well as y is: compare what the inverse is for.
    np.testing.assert_allclose(each(math.erf)(x), y, rtol=3e-15)
    np.testing.assert_array_equal(value(lambda: special_ops.erfinv(constant(np.array([-1.0, 1.0, 1.5])))), [-np.inf, np.inf, np.nan])
    check_gradient(special_ops.erfinv, INSIDE)


def test_normal_quantile_inverts_the_normal_distribution() -> None:
    p = np.concatenate([np.linspace(0.001, 0.999, 201), 10.0 ** -np.arange(4, 300, 30)])
    x = value(lambda: special_ops.ndtri(constant(p)))
    np.testing.assert_allclose(0.5 * each(math.erfc)(-x / math.sqrt(2)), p, rtol=1e-11)
    check_gradient(special_ops.ndtri, np.array([0.1, 0.5, 0.8]))


def test_logarithm_of_gamma_and_its_slope() -> None:
    x = np.concatenate([np.linspace(-9.75, 30, 637), [1e-10, 1.0, 2.0, 1e5, 1e300]])
    x = x[~((x <= 0) & (x == np.rint(x)))]
    got = value(lambda: special_ops.lgamma(constant(x)))
    expected = each(math.lgamma)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(
        value(lambda: special_ops.lgamma(constant([0.0, -1.0, np.inf, np.nan]))), [np.inf, np.inf, np.inf, np.nan]
    )


def test_digamma_satisfies_its_recurrence_and_known_values() -> None:
    euler = 0.57721566490153286
    x = np.array([1.0, 2.0, 0.5, 0.25, 1e4])
    known = [-euler, 1 - euler, -euler - 2 * math.log(2), -math.pi / 2 - 3 * math.log(2) - euler, 9.210290371142849]
    np.testing.assert_allclose(value(lambda: special_ops.digamma(constant(x))), known, rtol=1e-13)
    y = np.linspace(-7.3, 20.0, 100)
    below, above = value(lambda: [special_ops.digamma(constant(y)), special_ops.digamma(constant(y + 1))])
    np.testing.assert_allclose(above - below, 1 / y, rtol=1e-9)
    np.testing.assert_array_equal(value(lambda: special_ops.digamma(constant([0.0, -2.0, np.inf]))), [-np.inf, np.nan, np.inf])
    check_gradient(special_ops.digamma, POSITIVE)


def test_zeta_and_polygamma_have_known_values() -> None:
    got = value(lambda: special_ops.zeta(np.array([2.0, 4.0, 3.0, 1.0, 0.5]), constant(np.array([1.0, 1.0, 1.0, 2.0, 2.0]))))
    np.testing.assert_allclose(got[:3], [math.pi**2 / 6, math.pi**4 / 90, 1.2020569031595943], rtol=1e-14)
    assert got[3] == np.inf and np.isnan(got[4])
    poly = value(lambda: special_ops.polygamma(np.array([0.0, 1.0, 1.0, 2.0]), constant(np.array([1.0, 1.0, 0.5, 1.0]))))
    np.testing.assert_allclose(poly, [-0.57721566490153286, math.pi**2 / 6, math.pi**2 / 2, -2 * 1.2020569031595943], rtol=1e-13)
    shifted = value(lambda: special_ops.polygamma(np.ones(3), constant(np.array([-0.5, -7.25, -3.0]))))
    np.testing.assert_allclose(shifted[0], math.pi**2 / 2 + 4, rtol=1e-13)  # psi'(x) = psi'(x + 1) + 1 / x^2
    reflected = value(lambda: special_ops.polygamma(np.ones(1), constant(np.array([8.25]))))
    np.testing.assert_allclose(shifted[1], 2 * math.pi**2 - reflected[0], rtol=1e-13)  # + psi'(1 - x) = (pi / sin(pi x))^2
    assert shifted[2] == np.inf
    check_gradient(lambda q: special_ops.zeta(3.0, q), POSITIVE)
    check_gradient(lambda x: special_ops.polygamma(2.0, x), POSITIVE)


# ------------------------------------------------------------------------------------------------------- rounding, tests


def test_rounding_takes_the_even_of_two_neighbours() -> None:
    x = np.array([-2.5, -1.5, -0.4, 0.5, 1.5, 2.6])
    got = value(lambda: [f(constant(x)) for f in (unary_ops.floor, unary_ops.ceil, unary_ops.rint, unary_ops.round)])
    for array, oracle in zip(got, (np.floor, np.ceil, np.rint, np.round), strict=True):
        np.testing.assert_array_equal(array, oracle(x))
    assert value(lambda: apply_op("Round", constant([3, -4]))).tolist() == [3, -4]


def test_numbers_are_tested_for_being_finite() -> None:
    x = [0.0, np.inf, -np.inf, np.nan]
    got = value(lambda: [f(constant(x)) for f in (unary_ops.is_nan, unary_ops.is_inf, unary_ops.is_finite)])
    assert [g.tolist() for g in got] == [[0, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert all(g.dtype == np.bool_ for g in got)


def test_integer_functions_keep_their_dtype() -> None:
    x = np.int8([-3, 0, 4])
    got = value(lambda: [f(constant(x)) for f in (unary_ops.negative, unary_ops.abs, unary_ops.sign, unary_ops.square)])
    assert all(g.dtype == np.int8 for g in got)
    assert [g.tolist() for g in got] == [[3, 0, -4], [3, 0, 4], [-1, 0, 1], [9, 0, 16]]
    assert value(lambda: unary_ops.reciprocal(constant([1, -1, 5]))).tolist() == [1, -1, 0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="integer division by zero"):
        value(lambda: unary_ops.reciprocal(constant([1, 0])))


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "rsqrt", "reciprocal", "sin", "tanh", "sigmoid", "square", "acosh"])
def test_complex_functions_have_the_gradient_of_an_analytic_function(name: str) -> None:
    z = np.array([1.3 - 0.4j, -0.6 + 0.9j])
    graph = Graph()
    with graph.as_default():
        t = constant(z)
        y = getattr(unary_ops, name)(t)
        grad = tf.gradients(y, t, grad_ys=[constant(np.ones(2, np.complex128))])[0]
        fed = [getattr(unary_ops, name)(constant(z + h)) for h in (1e-6, -1e-6)]
    got, up, down = Reference(graph).run([grad, *fed])
    # Of an analytic f the gradient by z is the conjugate of f'(z), whatever the output's gradient 1 stands for.
    np.testing.assert_allclose(got, np.conj((up - down) / 2e-6), rtol=1e-7)
