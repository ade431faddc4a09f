"""Reductions, positions, running sums, segments, clipping and norms: against numpy, gradients against differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops import clip_ops, cumulative_ops, reduction_ops, segment_ops
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.indexed_slices import IndexedSlices
from tests.gradient_checker import check_gradient
from tests.reference import Reference

X = np.array([[[0.5, -1.25, 2.0, 3.0], [1.5, 0.25, -2.0, 0.75]], [[-0.5, 1.75, 0.1, -3.5], [2.5, -0.3, 4.0, 1.0]]])


def value(build: Callable[[], Any]) -> Any:
    """Value of what ``build`` builds in a graph of its own."""
    graph = Graph()
    with graph.as_default():
        fetches = build()
    return Reference(graph).run(fetches)


def placeholder(shape: Any, dtype: Any = tf.float64) -> Any:
    return apply_op("Placeholder", dtype=dtype, shape=shape)


REDUCTIONS: dict[str, tuple[Any, Any]] = {
    "reduce_sum": (reduction_ops.reduce_sum, np.sum),
    "reduce_mean": (reduction_ops.reduce_mean, np.mean),
    "reduce_prod": (reduction_ops.reduce_prod, np.prod),
    "reduce_max": (reduction_ops.reduce_max, np.max),
    "reduce_min": (reduction_ops.reduce_min, np.min),
    "reduce_logsumexp": (reduction_ops.reduce_logsumexp, lambda x, axis, keepdims: np.log(np.sum(np.exp(x), axis, keepdims=keepdims))),
    "reduce_variance": (reduction_ops.reduce_variance, np.var),
    "reduce_std": (reduction_ops.reduce_std, np.std),
    "reduce_euclidean_norm": (
        reduction_ops.reduce_euclidean_norm,
        lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis, keepdims=keepdims)),
    ),
}
AXES = [None, 0, -1, [1], [0, 2], [-1, 0], [0, 1, 2]]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_agree_with_numpy(name: str, axis: Any, keepdims: bool) -> None:
    function, oracle = REDUCTIONS[name]
    expected = oracle(X, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)
    graph = Graph()
    with graph.as_default():
        known, unknown = constant(X), placeholder(None)
        outputs = [function(known, axis, keepdims), function(unknown, axis, keepdims)]
        assert outputs[0].static_shape == np.shape(expected)
    for got in Reference(graph).run(outputs, {unknown: X}):
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [None, 1, [0, 2]], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_gradients_of_reductions_agree_with_differences(name: str, axis: Any, keepdims: bool) -> None:
    check_gradient(lambda x: REDUCTIONS[name][0](x, axis, keepdims), X)


@pytest.mark.parametrize("name", ["reduce_sum", "reduce_mean", "reduce_max", "reduce_prod"])
def test_gradients_with_a_partly_known_shape_and_computed_axes(name: str) -> None:
    graph = Graph()
    with graph.as_default():
        x, axes = placeholder((None, 2, None)), placeholder((None,), tf.int32)
        fixed = REDUCTIONS[name][0](x, [1, 2])
        computed = REDUCTIONS[name][0](x, axes)
        grads = [tf.gradients(y * [2.0, 3.0], x)[0] for y in (fixed, computed)]
    got = Reference(graph).run(grads, {x: X, axes: [-2, 2]})
    np.testing.assert_allclose(got[0], got[1])
    weights = np.array([2.0, 3.0]).reshape(2, 1, 1)
    expected = {
        "reduce_sum": np.broadcast_to(weights, X.shape),
        "reduce_mean": np.broadcast_to(weights / 8, X.shape),
        "reduce_max": weights * (X.max((1, 2), keepdims=True) == X),
        "reduce_prod": weights * X.prod((1, 2), keepdims=True) / X,
    }[name]
    np.testing.assert_allclose(got[0], expected, rtol=1e-13)


def test_gradient_of_a_product_is_right_where_elements_are_zero() -> None:
    for x in ([2.0, 0.0, 3.0], [0.0, 0.0, 3.0]):
        check_gradient(reduction_ops.reduce_prod, np.array(x))
    check_gradient(lambda x: reduction_ops.reduce_prod(x, [0, 1]), np.array([[2.0, 0.0], [1.0, 4.0]]))


def test_gradient_of_an_extreme_is_shared_by_equals() -> None:
    graph = Graph()
    with graph.as_default():
        x = constant([3.0, 1.0, 3.0, 1.0])
        grads = tf.gradients(reduction_ops.reduce_max(x), x) + tf.gradients(reduction_ops.reduce_min(x), x)
    assert [g.tolist() for g in Reference(graph).run(grads)] == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.complex64])
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_mean", "reduce_prod", "reduce_max", "reduce_min"])
def test_reductions_keep_the_dtype(name: str, dtype: Any) -> None:
    if dtype == np.complex64 and name in ("reduce_max", "reduce_min"):
        pytest.skip("complex numbers have no order")
    x = np.array([[1, 2, 4], [3, 5, 7]]).astype(dtype)
    got = value(lambda: [REDUCTIONS[name][0](constant(x), axis) for axis in (None, 0)])
    assert all(g.dtype == dtype for g in got)


def test_mean_of_integers_is_rounded_towards_zero() -> None:
    assert value(lambda: reduction_ops.reduce_mean(constant([[1, 2], [-1, -2]]), 1)).tolist() == [1, -1]


def test_mean_of_half_floats_does_not_overflow() -> None:
    assert value(lambda: reduction_ops.reduce_mean(np.full(4096, 60.0, np.float16))) == 60.0


def test_reductions_of_nothing() -> None:
    def build() -> list[Any]:
        x, i = constant(np.zeros((2, 0), np.float32)), constant(np.zeros((2, 0), np.int32))
        functions = [REDUCTIONS[n][0] for n in ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_mean")]
        return [f(x, 1) for f in functions] + [functions[2](i, 1), functions[3](i, 1)]

    got = [g.tolist() for g in value(build)]
    assert got[:4] == [[0, 0], [1, 1], [-math.inf] * 2, [math.inf] * 2]
    assert np.isnan(got[4]).all()
    assert got[5:] == [[-(2**31)] * 2, [2**31 - 1] * 2]


def test_booleans_are_reduced() -> None:
    x = np.array([[True, False], [True, True]])

    def build() -> list[Any]:
        t = constant(x)
        return [
            reduction_ops.reduce_all(t, 1),
            reduction_ops.reduce_any(t),
            reduction_ops.reduce_all(t),
            reduction_ops.reduce_any(t, 0, True),
        ]

    assert [g.tolist() for g in value(build)] == [[False, True], True, False, [[True, True]]]


def test_older_argument_names_are_accepted_but_not_both() -> None:
    assert value(lambda: reduction_ops.reduce_sum(constant(X), reduction_indices=[0, 1], keep_dims=True)).shape == (1, 1, 4)
    with Graph().as_default(), pytest.raises(ValueError, match="cannot specify both 'axis' and 'reduction_indices'"):
        reduction_ops.reduce_sum(constant(X), axis=0, reduction_indices=0)


def test_axes_out_of_range_are_refused() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match="3 is outside"):
        reduction_ops.reduce_sum(constant(X), 3)
    graph = Graph()
    with graph.as_default():
        axes = placeholder(None, tf.int32)
        y = reduction_ops.reduce_sum(constant(X), axes)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"invalid reduction dimension 3 for an input of shape \(2, 2, 4\)"):
        Reference(graph).run(y, {axes: 3})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"reduction dimensions \[0, -3\] repeat one"):
        Reference(graph).run(y, {axes: [0, -3]})


def test_logsumexp_of_large_and_of_infinite_numbers() -> None:
    x = np.array([[1000.0, 1000.0], [-np.inf, -np.inf], [np.inf, 0.0]])
    np.testing.assert_allclose(value(lambda: reduction_ops.reduce_logsumexp(constant(x), 1)), [1000 + math.log(2), -np.inf, np.inf])


def test_count_nonzero_counts_numbers_booleans_and_strings() -> None:
    def build() -> list[Any]:
        numbers = constant([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
        return [
            reduction_ops.count_nonzero(numbers),
            reduction_ops.count_nonzero(numbers, axis=1, dtype=tf.int32),
            reduction_ops.count_nonzero(constant([True, False])),
            reduction_ops.count_nonzero(constant(["", "a", "b"])),
        ]

    got = value(build)
    assert [g.tolist() for g in got] == [2, [1, 1, 0], 1, 2]
    assert [g.dtype for g in got] == [np.int64, np.int32, np.int64, np.int64]


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("output_type", [tf.int32, tf.int64])
def test_positions_of_extremes_agree_with_numpy(axis: Any, output_type: Any) -> None:
    got = value(lambda: [f(constant(X), axis, output_type=output_type) for f in (reduction_ops.argmax, reduction_ops.argmin)])
    for array, oracle in zip(got, (np.argmax, np.argmin), strict=True):
        np.testing.assert_array_equal(array, oracle(X, 0 if axis is None else axis))
        assert array.dtype == output_type.np_dtype


def test_positions_in_an_empty_dimension_are_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="is empty"):
        value(lambda: reduction_ops.argmax(constant(np.zeros((2, 0))), 1))


# ------------------------------------------------------------------------------------------------------- running


@settings(max_examples=40)
@given(
    x=hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=4, min_side=0), elements=st.integers(-5, 5)),
    data=st.data(),
    exclusive=st.booleans(),
    reverse=st.booleans(),
)
def test_running_sums_and_products_agree_with_their_definition(x: Any, data: st.DataObject, exclusive: bool, reverse: bool) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    got = value(lambda: [f(constant(x), axis, exclusive, reverse) for f in (cumulative_ops.cumsum, cumulative_ops.cumprod)])
    rows = np.moveaxis(x, axis, -1)
    for array, reduce in zip(got, (np.sum, np.prod), strict=True):
        expected = np.empty_like(rows)
        for i in range(rows.shape[-1]):
            part = rows[..., i + exclusive :] if reverse else rows[..., : i + 1 - exclusive]
            expected[..., i] = reduce(part, -1)
        np.testing.assert_array_equal(np.moveaxis(array, axis, -1), expected)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cumulative_logsumexp"])
def test_gradients_of_running_sums_agree_with_differences(name: str, exclusive: bool, reverse: bool) -> None:
    function = getattr(cumulative_ops, name)

    def build(x: Any) -> Any:
        y = function(x, 1, exclusive, reverse)
        # The log of an empty sum is the lowest number: no difference can be taken beside it.
        return tf.maximum(y, -100.0) if name == "cumulative_logsumexp" else y

    check_gradient(build, X)


def test_running_logsumexp_agrees_with_its_definition() -> None:
    got = value(lambda: cumulative_ops.cumulative_logsumexp(constant(X), 2))
    np.testing.assert_allclose(got, np.log(np.cumsum(np.exp(X), 2)), rtol=1e-13)


# ------------------------------------------------------------------------------------------------------- segments

SORTED = np.array([0, 0, 2, 2, 2])
DATA = np.array([[1.5, 2.0], [3.0, -1.0], [0.5, 4.0], [-2.0, 0.25], [1.0, 3.0]])


def segments(ids: Any, count: int, reduce: Any, empty: Any, data: Any = DATA) -> Any:
    return np.stack([reduce(data[ids == i], 0) if np.any(ids == i) else np.full(data.shape[1:], empty) for i in range(count)])


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "max", "min"])
def test_sorted_segments_agree_with_numpy(name: str) -> None:
    function = getattr(segment_ops, f"segment_{name}")
    got = value(lambda: function(constant(DATA), constant(SORTED)))
    np.testing.assert_allclose(got, segments(SORTED, 3, getattr(np, name), 1 if name == "prod" else 0))
    check_gradient(lambda x: function(x, constant(SORTED)), DATA)


@pytest.mark.parametrize("name", ["sum", "mean", "sqrt_n", "prod", "max", "min"])
def test_unsorted_segments_agree_with_numpy_and_leave_negative_ids_out(name: str) -> None:
    function = getattr(segment_ops, f"unsorted_segment_{name}")
    ids = np.array([3, 0, -1, 3, 1])
    empty = {"prod": 1, "max": np.finfo(np.float64).min, "min": np.finfo(np.float64).max}.get(name, 0)
    reduce = getattr(np, name, lambda rows, axis: rows.sum(axis) / math.sqrt(len(rows)))
    got = value(lambda: function(constant(DATA), constant(ids), 5))
    np.testing.assert_allclose(got, segments(ids, 5, reduce, empty))
    check_gradient(lambda x: tf.minimum(tf.maximum(function(x, constant(ids), 5), -1e3), 1e3), DATA)


def test_products_of_segments_with_zeros_have_a_gradient() -> None:
    data = np.array([[2.0, 0.0], [0.0, 0.0], [3.0, 5.0]])
    check_gradient(lambda x: segment_ops.segment_prod(x, constant([0, 0, 0])), data)
    check_gradient(lambda x: segment_ops.unsorted_segment_prod(x, constant([1, 1, 1]), 2), data)


def test_segment_ids_may_have_several_dimensions() -> None:
    ids = np.array([[0, 1], [1, 0]])
    x = np.arange(8.0).reshape(2, 2, 2)
    got = value(lambda: segment_ops.unsorted_segment_sum(constant(x), constant(ids), 2))
    np.testing.assert_array_equal(got, [x[0, 0] + x[1, 1], x[0, 1] + x[1, 0]])
    check_gradient(lambda t: segment_ops.unsorted_segment_sum(t, constant(ids), 2), x)


@settings(max_examples=40)
@given(
    ids=hnp.arrays(np.int32, st.integers(0, 30), elements=st.integers(-2, 6)),
    width=st.sampled_from([(), (1,), (3,), (0,)]),
    dtype=st.sampled_from([np.float32, np.int32, np.float64]),
)
def test_any_unsorted_ids_give_the_sums_of_a_loop(ids: Any, width: Any, dtype: Any) -> None:
    rows = np.arange(ids.size * int(np.prod(width, dtype=int))).reshape(ids.shape + width).astype(dtype)
    expected = np.zeros((7, *width), dtype)
    for i, row in zip(ids, rows, strict=True):
        if i >= 0:
            expected[i] += row
    got = value(lambda: segment_ops.unsorted_segment_sum(constant(rows), constant(ids), 7))
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == dtype


def test_wrong_segment_ids_are_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"negative or decrease: \[1, 0, 1, 1, 1\]"):
        value(lambda: segment_ops.segment_sum(constant(DATA), constant([1, 0, 1, 1, 1])))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"segment id 4 is out of range \[0, 3\)"):
        value(lambda: segment_ops.unsorted_segment_sum(constant(DATA), constant([0, 1, 2, 4, 0]), 3))
    with Graph().as_default(), pytest.raises(ValueError, match="data has 5 rows, but segment_ids has 2"):
        segment_ops.segment_sum(constant(DATA), constant([0, 1]))


def test_bincount_counts_and_weighs() -> None:
    def build() -> list[Any]:
        arr = constant([1, 1, 3, 7])
        return [
            segment_ops.bincount(arr),
            segment_ops.bincount(arr, minlength=10, dtype=tf.int64),
            segment_ops.bincount(arr, maxlength=4),
            segment_ops.bincount(arr, weights=constant([0.5, 0.25, 2.0, 1.0])),
            segment_ops.bincount(constant(np.zeros(0, np.int32))),
        ]

    got = value(build)
    assert [g.tolist() for g in got] == [
        [0, 2, 0, 1, 0, 0, 0, 1],
        [0, 2, 0, 1, 0, 0, 0, 1, 0, 0],
        [0, 2, 0, 1],
        [0, 0.75, 0, 2.0, 0, 0, 0, 1.0],
        [],
    ]
    assert [g.dtype for g in got[:4]] == [np.int32, np.int64, np.int32, np.float32]


def test_dense_bincount_counts_row_by_row() -> None:
    rows, none = np.array([[0, 1, 1], [2, 2, 9]]), np.zeros(0, np.float32)
    got = value(lambda: [apply_op("DenseBincount", rows, np.int64(3), none, binary_output=b) for b in (False, True)])
    assert [g.tolist() for g in got] == [[[1, 2, 0], [0, 0, 2]], [[1, 1, 0], [0, 0, 1]]]


# ------------------------------------------------------------------------------------------------------- clipping, norms


def test_values_are_clipped() -> None:
    np.testing.assert_array_equal(value(lambda: clip_ops.clip_by_value(constant(X), -1.0, 1.0)), np.clip(X, -1, 1))
    np.testing.assert_array_equal(value(lambda: apply_op("ClipByValue", X, -1.0, np.full(4, 1.0))), np.clip(X, -1, 1))
    check_gradient(lambda x: clip_ops.clip_by_value(x, -1.0, 1.0), X + 0.01)
    check_gradient(lambda x, a, b: apply_op("ClipByValue", x, a, b), X + 0.01, np.array(-1.0), np.full(4, 1.1))
    with Graph().as_default(), pytest.raises(ValueError, match="more than the tensor's"):
        clip_ops.clip_by_value(constant(1.0), constant([0.0]), 1.0)


@pytest.mark.parametrize("axes", [None, [0], [1, 2]], ids=str)
def test_norms_are_clipped(axes: Any) -> None:
    length = np.sqrt(np.sum(X**2, None if axes is None else tuple(axes), keepdims=True))
    expected = X * np.minimum(1, 3 / length)
    np.testing.assert_allclose(value(lambda: clip_ops.clip_by_norm(constant(X), 3.0, axes)), expected)
    check_gradient(lambda x: clip_ops.clip_by_norm(x, 3.0, axes), X)


def test_a_zero_norm_is_clipped_without_nan() -> None:
    graph = Graph()
    with graph.as_default():
        x = constant(np.zeros(3))
        y = clip_ops.clip_by_norm(x, 1.0)
        grad = tf.gradients(y, x)[0]
    assert [g.tolist() for g in Reference(graph).run([y, grad])] == [[0, 0, 0], [1, 1, 1]]


def test_average_norm_is_clipped() -> None:
    average = np.sqrt(np.sum(X**2)) / X.size
    got = value(lambda: [clip_ops.clip_by_average_norm(constant(X), c) for c in (average / 2, average * 2)])
    np.testing.assert_allclose(got[0], X / 2)
    np.testing.assert_allclose(got[1], X)


def test_the_global_norm_of_several_tensors_is_clipped_and_none_stays() -> None:
    a, b = np.array([3.0, 0.0]), np.array([[4.0]])
    graph = Graph()
    with graph.as_default():
        rows = IndexedSlices(constant(b), constant([2]))
        total = clip_ops.global_norm([constant(a), None, rows])
        clipped, norm = clip_ops.clip_by_global_norm([constant(a), None, rows], 2.5)
        kept, _ = clip_ops.clip_by_global_norm([constant(a)], 10.0)
    assert clipped[1] is None
    assert isinstance(clipped[2], IndexedSlices)
    got = Reference(graph).run([total, norm, clipped[0], clipped[2].values, kept[0]])
    np.testing.assert_allclose(got[0], 5.0)
    np.testing.assert_allclose(got[1], 5.0)
    np.testing.assert_allclose(got[2], a / 2)
    np.testing.assert_allclose(got[3], b / 2)
    np.testing.assert_allclose(got[4], a)


def test_an_infinite_global_norm_makes_everything_nan() -> None:
    got = value(lambda: clip_ops.clip_by_global_norm([constant([np.inf]), constant([1.0])], 1.0)[0])
    assert np.isnan(got).all()


@pytest.mark.parametrize(
    ("ord", "axis"),
    [("euclidean", None), ("euclidean", 1), (1, 0), (2, -1), (np.inf, 2), (3, 1), ("fro", [0, 1]), (1, [1, 2]), (np.inf, (0, 2))],
)
def test_norms_agree_with_numpy(ord: Any, axis: Any) -> None:
    x = X.ravel() if axis is None else X
    expected = np.linalg.norm(x, None if ord == "euclidean" else ord, tuple(axis) if isinstance(axis, list) else axis)
    np.testing.assert_allclose(value(lambda: clip_ops.norm(constant(X), ord, axis)), expected, rtol=1e-13)
    kept = value(lambda: clip_ops.norm(constant(X), ord, axis, keepdims=True))
    assert kept.ndim == 3 and kept.size == np.size(expected)
    check_gradient(lambda t: clip_ops.norm(t, ord, axis), X, unknown_shapes=False)


def test_norms_that_there_are_not_are_refused() -> None:
    with Graph().as_default():
        for ord in ("nuclear", 0, -1):
            with pytest.raises(ValueError, match="must be a supported norm"):
                clip_ops.norm(constant(X), ord)
