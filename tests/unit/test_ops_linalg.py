"""Decompositions of matrices, and the initializer that is made with one; against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops.apply import apply_op
from tests.evaluate import evaluate


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_q_has_orthonormal_columns_and_r_is_the_triangle_that_gives_the_matrix(shape: Any, full: bool, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=shape) + (1j * rng.normal(size=shape) if dtype is np.complex128 else 0)).astype(dtype)
    q, r = evaluate(lambda m: apply_op("Qr", m, full_matrices=full), matrix)
    inner = shape[-2] if full else min(shape[-2:])
    assert q.shape == (*shape[:-1], inner) and r.shape == (*shape[:-2], inner, shape[-1])
    accuracy = {"rtol": 1e-5, "atol": 1e-5} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(q @ r, matrix, **accuracy)
    np.testing.assert_allclose(q.conj().swapaxes(-1, -2) @ q, np.broadcast_to(np.eye(inner), (*shape[:-2], inner, inner)), **accuracy)
    assert not np.tril(r, -1).any()


def test_a_gradient_through_it_is_refused_rather_than_left_out() -> None:
    with Graph().as_default():
        x = tf.constant(np.eye(2))
        with pytest.raises(LookupError, match=r"No gradient defined for operation 'Qr' \(op type: Qr\)"):
            tf.gradients(apply_op("Qr", x)[0], x)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6), (2, 3, 4), (2, 2, 9)], ids=str)
def test_orthogonal_initial_values_have_orthogonal_rows_or_columns_of_length_gain(shape: Any) -> None:
    with Graph().as_default():
        initializer = tf.orthogonal_initializer(gain=2.0, seed=3, dtype=tf.float64)
        v = tf.get_variable("v", shape, tf.float64, initializer)
        with tf.Session() as session:
            session.run(v.initializer)
            value = session.run(v)
    assert initializer.get_config() == {"gain": 2.0, "dtype": "float64", "seed": 3}
    matrix = value.reshape(-1, shape[-1])
    product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(product, 4 * np.eye(min(matrix.shape)), atol=1e-12)


def test_orthogonal_matrices_are_uniform() -> None:
    """Each entry of a uniform one has mean 0 and variance 1/n; without the choice of signs the diagonal has not mean 0."""
    with Graph().as_default():
        draws = tf.stack([tf.initializers.orthogonal(dtype=tf.float64, seed=k)([2, 2]) for k in range(400)])
        with tf.Session() as session:
            value = session.run(draws)
    assert np.abs(value.mean(axis=0)).max() < 4 * np.sqrt(0.5 / 400)
    assert np.abs((value**2).mean(axis=0) - 0.5).max() < 4 * np.sqrt(0.125 / 400)


def test_vectors_are_not_made_orthogonal() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match=r"at least two-dimensional, not of shape \[3\]"):
        tf.initializers.orthogonal()([3])
