"""Products of matrices and contractions: against numpy, gradients against differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.matmul_ops import matmul, tensordot
from tests.gradient_checker import check_gradient
from tests.reference import Reference


def value(build: Callable[[], Any]) -> Any:
    """Value of what ``build`` builds in a graph of its own."""
    graph = Graph()
    with graph.as_default():
        fetches = build()
    return Reference(graph).run(fetches)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("outer", [((), ()), ((2,), (2,)), ((2, 1), (3,))])
def test_products_agree_with_numpy_and_so_do_their_gradients(transpose_a: bool, transpose_b: bool, outer: Any) -> None:
    a = numbers(*outer[0], *((4, 2) if transpose_a else (2, 4)))
    b = numbers(*outer[1], *((3, 4) if transpose_b else (4, 3)))
    expected = (a.swapaxes(-1, -2) if transpose_a else a) @ (b.swapaxes(-1, -2) if transpose_b else b)
    got = value(lambda: matmul(constant(a), constant(b), transpose_a=transpose_a, transpose_b=transpose_b))
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)
    check_gradient(lambda x, y: matmul(x, y, transpose_a=transpose_a, transpose_b=transpose_b), a, b)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_gradients_of_the_two_dimensional_op_agree_with_differences(transpose_a: bool, transpose_b: bool) -> None:
    a, b = numbers(*((4, 2) if transpose_a else (2, 4))), numbers(*((3, 4) if transpose_b else (4, 3)))
    check_gradient(lambda x, y: apply_op("MatMul", x, y, transpose_a=transpose_a, transpose_b=transpose_b), a, b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.complex64])
@pytest.mark.parametrize("outer", [(), (3,)])
def test_products_keep_the_dtype(dtype: Any, outer: tuple[int, ...]) -> None:
    a, b = (numbers(*outer, 3, 3, seed=s) * 4 for s in (1, 2))
    a, b = (np.abs(v).astype(dtype) for v in (a, b))
    got = value(lambda: matmul(constant(a), constant(b)))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.matmul(a.astype(np.complex128), b.astype(np.complex128)), rtol=2e-3)


def test_an_adjoint_is_the_conjugate_transposed() -> None:
    a = numbers(3, 2) + 1j * numbers(3, 2, seed=1)
    for x in (a, np.stack([a, 2 * a])):
        got = value(lambda x=x: matmul(constant(x), constant(x), adjoint_a=True))
        np.testing.assert_allclose(got, np.conj(x.swapaxes(-1, -2)) @ x)
        got = value(lambda x=x: matmul(constant(x), constant(x), transpose_b=True))
        np.testing.assert_allclose(got, x @ x.swapaxes(-1, -2))
    with Graph().as_default(), pytest.raises(ValueError, match="Only one of transpose_a and adjoint_a"):
        matmul(constant(a), constant(a), transpose_a=True, adjoint_a=True)


def test_two_matrices_use_matmul_and_stacks_the_batched_op() -> None:
    with Graph().as_default():
        flat, stack = constant(np.ones((2, 2))), constant(np.ones((5, 2, 2)))
        unknown = apply_op("Placeholder", dtype=tf.float64, shape=None)
        assert (flat @ flat).op.type == "MatMul"
        assert [matmul(a, b).op.type for a, b in ((stack, flat), (flat, stack), (unknown, flat))] == ["BatchMatMulV2"] * 3
        assert matmul(stack, flat).static_shape == (5, 2, 2)
        assert matmul(unknown, flat).static_shape is None
        assert matmul(apply_op("Placeholder", dtype=tf.float64, shape=(None, 2)), flat).static_shape == (None, 2)


def test_products_of_unfit_matrices_are_refused() -> None:
    with Graph().as_default():
        with pytest.raises(ValueError, match=r"are 3 and 2, for the product of shapes \(2, 3\) and \(2, 3\)"):
            matmul(constant(np.ones((2, 3))), constant(np.ones((2, 3))))
        with pytest.raises(ValueError, match="the second matrix must have 2 dimension"):
            matmul(constant(np.ones((2, 3))), constant(np.ones(3)))
        with pytest.raises(ValueError, match="can't be broadcast together"):
            matmul(constant(np.ones((2, 2, 3))), constant(np.ones((3, 3, 2))))
    graph = Graph()
    with graph.as_default():
        a = apply_op("Placeholder", dtype=tf.float32, shape=(None, None))
        product = matmul(a, constant(np.ones((3, 2), np.float32)))
        stacks = apply_op("BatchMatMulV2", a, a)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"shapes \(2, 2\) and \(3, 2\) have no product"):
        Reference(graph).run(product, {a: np.ones((2, 2))})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"shapes \(2, 3\) and \(2, 3\) have no product"):
        Reference(graph).run(stacks, {a: np.ones((2, 3))})


def test_empty_inner_dimension_gives_zeros() -> None:
    assert value(lambda: matmul(constant(np.ones((2, 0))), constant(np.ones((0, 3))))).tolist() == [[0, 0, 0]] * 2


def test_narrow_integers_are_multiplied_in_the_type_asked_for() -> None:
    a = np.full((2, 3), 100, np.int8)
    got = value(lambda: matmul(constant(a), constant(a.T), output_type=tf.int32))
    assert got.dtype == np.int32
    assert got.tolist() == [[30000, 30000]] * 2


@pytest.mark.parametrize("axes", [0, 1, 2, [[1], [0]], [[0, 2], [2, 1]], ([-1], [0]), (2, 0), [[], []]])
def test_contractions_agree_with_numpy(axes: Any) -> None:
    sizes = {
        "0": ((2,), (3,)),
        "2": ((2, 3, 4), (3, 4, 5)),
        "[[0, 2], [2, 1]]": ((2, 3, 4), (5, 4, 2)),
        "[[], []]": ((2,), (3,)),
    }
    shape_a, shape_b = sizes.get(
        str(axes), ((2, 3, 4), (4, 5)) if str(axes) in ("1", "([-1], [0])", "(2, 0)") else ((2, 3), (3, 4))
    )
    a, b = numbers(*shape_a), numbers(*shape_b)
    expected = np.tensordot(a, b, axes)
    np.testing.assert_allclose(value(lambda: tensordot(constant(a), constant(b), axes)), expected, rtol=1e-13, atol=1e-14)
    check_gradient(lambda x, y: tensordot(x, y, axes), a, b, unknown_shapes=False)
    graph = Graph()
    with graph.as_default():
        x, y = (apply_op("Placeholder", dtype=tf.float64, shape=(None,) * v.ndim) for v in (a, b))
        product = tensordot(x, y, axes)
    np.testing.assert_allclose(Reference(graph).run(product, {x: a, y: b}), expected, rtol=1e-13, atol=1e-14)


def test_contractions_with_unfit_axes_are_refused() -> None:
    with Graph().as_default():
        a = constant(np.ones((2, 3)))
        with pytest.raises(ValueError, match="Different number of contraction axes"):
            tensordot(a, a, [[0, 1], [0]])
        with pytest.raises(ValueError, match="must be an integer or have length 2"):
            tensordot(a, a, [0])
        with pytest.raises(ValueError, match="outside the 2 dimensions"):
            tensordot(a, a, [[2], [0]])
