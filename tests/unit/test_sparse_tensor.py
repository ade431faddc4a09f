"""SparseTensor as a value: what it is, how it is fed, fetched and passed through cond. Computing with them: the golden cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from tests.gradient_checker import check_gradient

INDICES, VALUES, SHAPE = np.array([[0, 1], [2, 0]]), np.array([5.0, 7.0], np.float32), np.array([3, 4])
DENSE = np.array([[0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 0]], np.float32)


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def same(found: Any, indices: Any = INDICES, values: Any = VALUES, shape: Any = SHAPE) -> bool:
    """Whether it is a SparseTensorValue of these arrays and their types."""
    pairs = zip(found, (np.asarray(indices, np.int64), values, np.asarray(shape, np.int64)), strict=True)
    return type(found) is tf.SparseTensorValue and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


# --------------------------------------------------------------------------------------------------------- what it is


def test_a_sparse_tensor_is_three_tensors_and_knows_its_static_shape() -> None:
    sp = tf.SparseTensor(INDICES.tolist(), VALUES, [3, 4])
    assert [t.dtype for t in (sp.indices, sp.values, sp.dense_shape)] == [tf.int64, tf.float32, tf.int64]
    assert (sp.dtype, sp.shape.as_list(), sp.get_shape().as_list()) == (tf.float32, [3, 4], [3, 4])
    assert sp.op is sp.values.op and sp.graph is tf.get_default_graph()
    assert repr(sp) == "<mpirt.SparseTensor 'SparseTensor/values:0' shape=(3, 4) dtype=float32>"
    other = sp.with_values(tf.constant([1, 2]))
    assert (other.indices, other.dense_shape, other.dtype) == (sp.indices, sp.dense_shape, tf.int32)
    used = tf.identity(sp.indices), tf.add(sp.values, 1.0)
    assert set(sp.consumers()) >= {t.op for t in used}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([[0, 1]], [1.0, 2.0], [3, 4]), r"\(1, 2\) and \(2, 2\) are not compatible"),
        (([[0, 1]], [1.0], [3, 4, 5]), r"\(1, 2\) and \(1, 3\) are not compatible"),
        (([0, 1], [1.0], [3]), "indices must have 2 dimension"),
        (([[0]], 1.0, [3]), "values must have 1 dimension"),
        (([[0]], [1.0], 3), "dense_shape must have 1 dimension"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tf.SparseTensor(*parts)


def test_values_become_sparse_tensors_and_dense_things_do_not() -> None:
    given = tf.SparseTensorValue(INDICES, VALUES, SHAPE)
    made = tf.SparseTensor.from_value(given)
    assert isinstance(made, tf.SparseTensor) and tf.SparseTensor.from_value(made) is made
    assert isinstance(tf.convert_to_tensor_or_sparse_tensor(given), tf.SparseTensor)
    assert tf.convert_to_tensor_or_sparse_tensor(made) is made
    assert isinstance(tf.convert_to_tensor_or_sparse_tensor([1.0]), tf.Tensor)
    with pytest.raises(RuntimeError, match="Sparse dtype mismatch. Requested: int32, Actual: float32"):
        tf.convert_to_tensor_or_sparse_tensor(made, tf.int32)
    with pytest.raises(TypeError, match="must be a SparseTensor or SparseTensorValue"):
        tf.SparseTensor.from_value([1, 2, 3])
    with pytest.raises(TypeError, match=r"can't make a tensor of <mpirt.SparseTensor"):
        tf.convert_to_tensor(made)
    with pytest.raises(TypeError, match="Input must be a SparseTensor, not <mpirt.Tensor"):
        tf.sparse_reorder(tf.constant([1.0]))


# -------------------------------------------------------------------------------------------------------- fed, fetched


@pytest.mark.parametrize(
    ("shape", "static", "ndim"),
    [(None, None, None), ([3, None], [3, None], 2), ([3, 4], [3, 4], 2), ([-1, 4], [None, 4], 2)],
)
def test_a_sparse_placeholder_is_fed_whole_and_fetched_whole(shape: Any, static: Any, ndim: int | None) -> None:
    sp = tf.sparse_placeholder(tf.float32, shape, name="x")
    assert (sp.shape.as_list() if sp.shape.ndims is not None else None) == static
    assert sp.indices.shape.as_list() == [None, ndim]
    assert [t.name for t in (sp.indices, sp.values, sp.dense_shape)] == ["x/indices:0", "x/values:0", "x/shape:0"]
    dense = tf.sparse_tensor_to_dense(sp)
    with tf.Session() as session:
        for fed in (tf.SparseTensorValue(INDICES, VALUES, SHAPE), (INDICES.tolist(), VALUES.tolist(), SHAPE.tolist())):
            found = session.run({"sparse": sp, "list": [sp, dense]}, {sp: fed})
            assert same(found["sparse"]) and same(found["list"][0]) and np.array_equal(found["list"][1], DENSE)
        again = session.run(sp, {sp: session.run(sp, {sp: fed})})  # what is fetched can be fed
        assert same(again) and same(sp.eval({sp: fed}, session))


def test_a_shape_known_only_in_the_step_comes_from_a_tensor() -> None:
    sp = tf.sparse_placeholder(tf.float32, shape=tf.placeholder_with_default(np.array([3, 4]), [2]))
    with tf.Session() as session:
        found = session.run(sp, {sp.indices: INDICES, sp.values: VALUES})
    assert same(found) and sp.indices.shape.as_list() == [None, 2]


def test_indexed_slices_are_fed_whole_too() -> None:
    parts = tf.placeholder(tf.float32, [None, 2]), tf.placeholder(tf.int32, [None])
    rows, sized = tf.IndexedSlices(*parts), tf.IndexedSlices(*parts, tf.placeholder(tf.int32, [2]))
    given = np.ones((1, 2), np.float32), np.array([3], np.int32)
    with tf.Session() as session:
        for fed in (given, (*given, None), tf.IndexedSlicesValue(*given, None)):
            values, indices, shape = session.run(rows, {rows: fed})
            assert (values.tolist(), indices.tolist(), shape) == ([[1, 1]], [3], None)
        assert session.run(sized, {sized: (*given, [9, 2])}).dense_shape.tolist() == [9, 2]


@pytest.mark.parametrize("bad", [3.0, (INDICES, VALUES), DENSE.tolist()[:2], None], ids=str)
def test_what_is_no_triple_is_refused(bad: Any) -> None:
    sp = tf.sparse_placeholder(tf.float32, name="x")
    message = r"the value of the feed <mpirt.SparseTensor 'x/values:0' .*> must be a tuple of indices, values, dense_shape, not "
    with tf.Session() as session, pytest.raises(TypeError, match=message):
        session.run(sp, {sp: bad})


def test_a_part_of_another_shape_or_type_is_refused_by_its_name() -> None:
    sp = tf.sparse_placeholder(tf.float32, [3, 4], name="x")
    with tf.Session() as session:
        with pytest.raises(ValueError, match=r"Cannot feed value of shape \(2, 3\) for Tensor 'x/indices:0'"):
            session.run(sp, {sp: (np.zeros((2, 3), np.int64), VALUES, SHAPE)})
        with pytest.raises(TypeError, match="for Tensor 'x/values:0' of type float32"):
            session.run(sp, {sp: (INDICES, VALUES * 1j, SHAPE)})


def test_both_branches_of_a_cond_may_give_a_sparse_tensor() -> None:
    sp = tf.SparseTensor(INDICES, VALUES, SHAPE)
    pred = tf.placeholder(tf.bool, [])
    chosen = tf.cond(pred, lambda: sp, lambda: sp.with_values(-sp.values))
    assert isinstance(chosen, tf.SparseTensor)
    with tf.Session() as session:
        assert same(session.run(chosen, {pred: True})) and same(session.run(chosen, {pred: False}), values=-VALUES)


# ------------------------------------------------------------------------------------------------------------ gradients


def test_the_gradient_of_values_at_places_of_a_vector_agrees_with_differences() -> None:
    """TensorFlow's own fails here: it takes the numbers for coordinates."""
    check_gradient(lambda v, d: tf.sparse_to_dense([1, 3], [5], v, d), np.array([2.0, 3.0]), np.array(0.5))
    check_gradient(lambda v, d: tf.sparse_to_dense([1, 3], [5], v, d), np.array(2.0), np.array(0.5))


@pytest.mark.parametrize("reduce", [tf.sparse_segment_sum, tf.sparse_segment_mean, tf.sparse_segment_sqrt_n])
def test_a_sparse_gradient_of_segments_names_each_row_once(reduce: Any) -> None:
    data = tf.constant(np.arange(12.0).reshape(6, 2))
    out = reduce(data, [5, 0, 0, 3], [0, 0, 2, 2], sparse_gradient=True)
    (rows,) = tf.gradients(out, data)
    (dense,) = tf.gradients(reduce(data, [5, 0, 0, 3], [0, 0, 2, 2]), data)
    assert isinstance(rows, tf.IndexedSlices) and isinstance(dense, tf.Tensor)
    with tf.Session() as session:
        found, whole, expected = session.run([rows, tf.convert_to_tensor(rows), dense])
    assert found.indices.tolist() == [0, 3, 5] and np.allclose(whole, expected)
