"""Gathers, scatters, partitions, distinct values, the largest elements, embeddings: against numpy and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpirt import errors
from mpirt.gradients import gradients
from mpirt.graph.graph import Graph
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.embedding_ops import embedding_lookup
from mpirt.ops.gather_ops import (
    batch_gather,
    boolean_mask,
    gather,
    gather_nd,
    scatter_nd,
    tensor_scatter_add,
    tensor_scatter_sub,
    tensor_scatter_update,
)  # fmt: skip
from mpirt.ops.identity_ops import placeholder
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.partition_ops import dynamic_partition, dynamic_stitch, setdiff1d, unique, unique_with_counts
from mpirt.ops.sort_ops import argsort, sort
from mpirt.ops.topk_ops import in_top_k, top_k
from tests.evaluate import evaluate
from tests.gradient_checker import check_gradient
from tests.reference import Reference

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7


# --- gather


@given(st.integers(-3, 2), st.data())
def test_gather_takes_slices_along_an_axis(axis: int, data: Any) -> None:
    indices = data.draw(
        hnp.arrays(np.int32, hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), elements=st.integers(0, X.shape[axis] - 1))
    )
    assert np.array_equal(evaluate(lambda x, i: gather(x, i, axis=axis), X, indices), np.take(X, indices, axis))


def test_gather_of_batches_gathers_in_each_batch() -> None:
    indices = np.array([[0, 2], [1, 0]], np.int32)
    got = evaluate(lambda x, i: gather(x, i, batch_dims=1), X, indices)
    assert np.array_equal(got, np.stack([X[b][indices[b]] for b in range(2)]))
    got = evaluate(lambda x, i: gather(x, i, axis=2, batch_dims=1), X, indices)
    assert np.array_equal(got, np.stack([X[b][:, indices[b]] for b in range(2)]))
    with Graph().as_default() as graph:
        both = batch_gather(constant(X), constant(np.array([[[3], [2], [0]]] * 2, np.int32)))
    assert np.array_equal(Reference(graph).run(both)[..., 0], np.stack([[b[0, 3], b[1, 2], b[2, 0]] for b in X]))


def test_gather_of_no_rows_and_of_strings() -> None:
    assert evaluate(gather, X, np.zeros((0, 2), np.int64)).shape == (0, 2, 3, 4)
    assert evaluate(lambda x, i: gather(x, i, batch_dims=1), X, np.zeros((2, 0), np.int32)).shape == (2, 0, 4)
    words = np.array([b"a", b"b"], object)
    assert evaluate(gather, words, np.int32(1)).item() == b"b"
    assert evaluate(gather, words, np.array([1, 0])).tolist() == [b"b", b"a"]


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_index_outside_is_refused_with_its_place(bad: int) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=rf"indices\[0, 1\] = {bad} is not in \[0, 3\)"):
        evaluate(lambda x, i: gather(x, i, axis=1), X, np.array([[0, bad]], np.int32))
    with pytest.raises(errors.InvalidArgumentError, match=rf"indices = {bad} is not in \[0, 3\)"):
        evaluate(lambda x, i: apply_op("Gather", x, i), X[0], np.int64(bad))


def test_gradient_of_a_gather_of_rows_is_the_rows() -> None:
    with Graph().as_default() as graph:
        x = placeholder("float32", [None, 2])
        (g,) = gradients(gather(x, [[2, 0], [2, 1]]), x, grad_ys=constant(np.arange(8, dtype=np.float32).reshape(2, 2, 2)))
        assert isinstance(g, IndexedSlices)
        fetched = [g.values, g.indices, g.dense_shape]
    values, indices, dense_shape = Reference(graph).run(fetched, {x: np.zeros((5, 2))})
    assert values.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and indices.tolist() == [2, 0, 2, 1]
    assert dense_shape.tolist() == [5, 2]


def test_gradients_of_gathers() -> None:
    i = np.array([[0, 2], [1, 1]], np.int32)
    check_gradient(lambda x, i: gather(x, i), X[0], i)
    check_gradient(lambda x, i: apply_op("Gather", x, i), X[0], i)
    check_gradient(lambda x, i: [gather(x, i, axis=1), gather(x, i, axis=-2)], X[:, :, :2], i)
    check_gradient(lambda x, i, axis: gather(x, i, axis=axis), X[:, :, :2], i, np.int32(1))
    check_gradient(lambda x, i: [gather(x, i, batch_dims=1), gather(x, i, axis=2, batch_dims=1)], X[:, :, :3], i.astype(np.int64))


def test_static_shape_of_gather() -> None:
    with Graph().as_default():
        x, i = placeholder("float32", [None, 3]), placeholder("int32", [None, 2])
        assert gather(x, i).static_shape == (None, 2, 3)
        assert gather(x, i, axis=1).static_shape == (None, None, 2)
        assert gather(x, i, axis=1, batch_dims=1).static_shape == (None, 2)
        assert gather(x, i, axis=placeholder("int32", [])).static_shape == (None, None, None)
        with pytest.raises(ValueError, match="batch_dims 2 must be at most axis 1"):
            gather(x, i, axis=1, batch_dims=2)


# --- gather_nd and scatter_nd


@given(st.integers(0, 3), hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), st.data())
def test_gather_nd_takes_what_is_at_the_coordinates(k: int, form: tuple[int, ...], data: Any) -> None:
    columns = [data.draw(hnp.arrays(np.int64, form, elements=st.integers(0, d - 1))) for d in X.shape[:k]]
    indices = np.stack(columns, -1) if k else np.zeros((*form, 0), np.int64)
    expected = X[tuple(columns)] if k else np.broadcast_to(X, form + X.shape)
    assert np.array_equal(evaluate(gather_nd, X, indices), expected)


def test_gather_nd_of_batches() -> None:
    indices = np.array([[[2], [0]], [[1], [1]]])
    got = evaluate(lambda x: gather_nd(x, indices, batch_dims=1), X)
    assert np.array_equal(got, np.stack([X[b][indices[b, :, 0]] for b in range(2)]))


def test_coordinates_outside_are_refused_or_ignored_as_asked() -> None:
    bad = np.array([[0, 1], [1, 3]], np.int32)
    with pytest.raises(errors.InvalidArgumentError, match=r"indices\[1\] = \[1, 3\] does not index into the shape \(2, 3, 4\)"):
        evaluate(gather_nd, X, bad)
    got = evaluate(lambda x, i: gather_nd(x, i, bad_indices_policy="IGNORE"), X, bad)
    assert np.array_equal(got, np.stack([X[0, 1], np.zeros(4)]))
    with pytest.raises(errors.InvalidArgumentError, match=r"indices\[0\] = \[5\]"):
        evaluate(lambda u: scatter_nd([[5]], u, [3]), np.ones(1, np.float32))
    assert evaluate(lambda u: scatter_nd([[5], [1]], u, [3], bad_indices_policy="IGNORE"), np.ones(2, np.float32)).tolist() == [0, 1, 0]


@given(hnp.arrays(np.int32, (4, 1), elements=st.integers(0, 2)))
def test_scatter_nd_adds_up_what_goes_to_one_place(indices: Any) -> None:
    updates = np.arange(8.0).reshape(4, 2)
    expected = np.zeros((3, 2))
    for i, row in zip(indices[:, 0], updates, strict=True):
        expected[i] += row
    assert np.array_equal(evaluate(lambda i, u: scatter_nd(i, u, [3, 2]), indices, updates), expected)


def test_tensor_scatters_leave_their_input_alone() -> None:
    x, u = np.arange(4.0), np.array([10.0, 20.0])
    for function, expected in (
        (tensor_scatter_update, [0, 10, 2, 20]), (tensor_scatter_add, [0, 11, 2, 23]), (tensor_scatter_sub, [0, -9, 2, -17]),
    ):  # fmt: skip
        assert evaluate(lambda t, v, f=function: f(t, [[1], [3]], v), x, u).tolist() == expected
    assert x.tolist() == [0, 1, 2, 3]


def test_gradients_of_gather_nd_and_scatters() -> None:
    x, u = X[0], X[1, :2]
    check_gradient(lambda t: [gather_nd(t, [[0, 1], [2, 3], [0, 1]]), gather_nd(t, [[[2]]])], x)
    check_gradient(lambda t: gather_nd(t, constant([[1], [0], [1]])), x)
    check_gradient(lambda v: scatter_nd([[1], [1]], v, [3, 4]), u)
    for function in (tensor_scatter_update, tensor_scatter_add, tensor_scatter_sub):
        check_gradient(lambda t, v, f=function: f(t, [[2], [0]], v), x, u)


def test_updates_of_another_shape_are_refused() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match=r"updates must have shape \(2, 2\), not \(2, 3\)"):
        scatter_nd([[0], [1]], np.zeros((2, 3)), [4, 2])
    graph = Graph()
    with graph.as_default():
        u = placeholder("float32")
        y = scatter_nd([[0], [1]], u, [4, 2])
    with pytest.raises(errors.InvalidArgumentError, match=r"updates must have shape \(2, 2\), not \(2, 3\)"):
        Reference(graph).run(y, {u: np.zeros((2, 3))})


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_boolean_mask_of_several_dimensions(axis: int) -> None:
    ndim = 2 if axis == 0 else 1
    mask = np.arange(6).reshape(2, 3) % 2 == 0 if ndim == 2 else np.array([True, False, True])
    expected = X[mask] if ndim == 2 else X[:, mask]
    with Graph().as_default() as graph:
        x, m = placeholder("float32", X.shape), placeholder("bool", mask.shape)
        y = boolean_mask(x, m, axis=axis)
    assert y.static_shape == ((None, 4) if ndim == 2 else (2, None, 4))
    assert np.array_equal(Reference(graph).run(y, {x: X, m: mask}), expected)
    check_gradient(lambda t: boolean_mask(t, mask, axis=0 if ndim == 2 else 1), X[:, :, :2])


# --- partition and stitch


@given(hnp.arrays(np.int32, (5,), elements=st.integers(0, 3)))
def test_stitching_the_partitions_of_rows_gives_the_rows(partitions: Any) -> None:
    rows = np.arange(10.0).reshape(5, 2)
    parts = evaluate(lambda x, p: dynamic_partition(x, p, 4), rows, partitions)
    for i, part in enumerate(parts):
        assert np.array_equal(part, rows[partitions == i])

    def build(x: Any, p: Any) -> Any:
        return dynamic_stitch(dynamic_partition(np.arange(5, dtype=np.int32), p, 4), dynamic_partition(x, p, 4))

    assert np.array_equal(evaluate(build, rows, partitions), rows)


def test_the_last_row_counts_where_an_index_is_repeated_and_gaps_are_zero() -> None:
    got = evaluate(lambda a, b: dynamic_stitch([[1, 3], [1]], [a, b]), np.array([10, 30]), np.array([20]))
    assert got.tolist() == [0, 20, 0, 30]
    with Graph().as_default():
        merged = dynamic_stitch([[1, 3], [[0]]], [placeholder("int32", [2, 7]), placeholder("int32")])
        assert merged.static_shape == (4, 7)


def test_gradients_of_partition_and_stitch() -> None:
    p = np.array([1, 0, 1], np.int32)
    check_gradient(lambda x, p: dynamic_partition(x, p, 3)[1:], X[0], p)
    check_gradient(lambda a, b: dynamic_stitch([[2, 0], [1]], [a, b]), X[0, :2], X[0, 2:])


def test_partitions_and_stitch_indices_outside_are_refused() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"partitions\[1\] = 2 is not in \[0, 2\)"):
        evaluate(lambda x: dynamic_partition(x, [0, 2], 2), np.arange(2))
    with pytest.raises(errors.InvalidArgumentError, match=r"indices\[0\] = -1 is not in \[0, 2\)"):
        evaluate(lambda x: dynamic_stitch([[-1, 1]], [x]), np.arange(2))


# --- distinct values


@given(hnp.arrays(np.int32, st.integers(0, 12), elements=st.integers(-3, 3)))
def test_unique_keeps_the_order_of_first_appearance(x: Any) -> None:
    y, idx, count = evaluate(unique_with_counts, x)
    assert y.tolist() == list(dict.fromkeys(x.tolist()))
    assert np.array_equal(y[idx], x) and idx.dtype == np.int32
    assert count.tolist() == [x.tolist().count(v) for v in y]
    also_y, also_idx = evaluate(lambda t: unique(t, np.int64), x)
    assert np.array_equal(also_y, y) and np.array_equal(also_idx, idx) and also_idx.dtype == np.int64


def test_unique_of_strings_and_of_nans() -> None:
    y, idx = evaluate(unique, np.array([b"b", b"a", b"b"], object))
    assert y.tolist() == [b"b", b"a"] and idx.tolist() == [0, 1, 0]
    y, idx = evaluate(unique, np.array([np.nan, 1, np.nan], np.float32))
    assert idx.tolist() == [0, 1, 2]


def test_setdiff1d_keeps_what_the_other_has_not() -> None:
    out, idx = evaluate(setdiff1d, np.array([4, 1, 4, 7, 1]), np.array([4, 9]))
    assert out.tolist() == [1, 7, 1] and idx.tolist() == [1, 3, 4] and idx.dtype == np.int32


# --- the largest elements


@given(hnp.arrays(np.int8, (2, 6), elements=st.integers(-3, 3)), st.integers(0, 6))
def test_top_k_is_sorted_and_takes_the_first_of_equal_elements(x: Any, k: int) -> None:
    values, indices = evaluate(lambda t: top_k(t, k), x)
    for row, v, i in zip(x.tolist(), values, indices, strict=True):
        expected = sorted(range(6), key=lambda j, r=row: (-r[j], j))[:k]  # type: ignore[misc]
        assert i.tolist() == expected and v.tolist() == [row[j] for j in expected]
    assert values.dtype == np.int8 and indices.dtype == np.int32


def test_top_k_of_unsigned_numbers_and_with_k_from_the_step() -> None:
    values, indices = evaluate(lambda t, k: top_k(t, k, index_type=np.int64), np.array([0, 255, 7], np.uint8), np.int32(2))
    assert values.tolist() == [255, 7] and indices.dtype == np.int64
    with pytest.raises(errors.InvalidArgumentError, match=r"k is 4, its shape \(3,\)"):
        evaluate(top_k, np.arange(3), np.int32(4))
    with Graph().as_default(), pytest.raises(ValueError, match="last dimension >= k = 4 but is 3"):
        top_k(np.zeros((2, 3), np.float32), 4)


def test_gradient_of_top_k_goes_to_the_elements_taken() -> None:
    x = np.array([[3.0, 1.0, 2.0, 5.0], [0.5, -1.0, 4.0, 2.0]])
    check_gradient(lambda t: top_k(t, 2)[0], x)
    check_gradient(lambda t, k: top_k(t, k)[0], x, np.int32(3))
    check_gradient(lambda t: apply_op("TopK", t, k=2)[0], x)


@given(hnp.arrays(st.sampled_from([np.int8, np.uint8, np.float32]), (3, 4), elements=st.integers(0, 100)), st.integers(-2, 1))
def test_sort_and_argsort_are_numpys_stable_ones(x: Any, axis: int) -> None:
    with Graph().as_default() as graph:
        t = constant(x)
        fetches = [f(t, axis=axis, direction=d) for f in (sort, argsort) for d in ("ASCENDING", "DESCENDING")]
    up, down, order_up, order_down = Reference(graph).run(fetches)
    assert np.array_equal(up, np.sort(x, axis)) and np.array_equal(down, np.flip(np.sort(x, axis), axis))
    assert np.array_equal(order_up, np.argsort(x, axis, kind="stable"))
    assert np.array_equal(order_down, np.argsort(-x.astype(int), axis, kind="stable"))


def test_sort_takes_the_smallest_integer_and_has_a_gradient() -> None:
    assert evaluate(sort, np.array([3, -128, 127, -127], np.int8)).tolist() == [-128, -127, 3, 127]
    check_gradient(sort, np.array([[3.0, 1.0, 2.0], [0.5, -1.0, 4.0]]))


# --- in_top_k


def test_in_top_k_counts_larger_predictions_only() -> None:
    p = np.array([[1, 5, 3, 5], [0, -1, 0, 2]], np.float32)
    for targets, k, expected in (([1, 3], 1, [True, True]), ([3, 0], 1, [True, False]), ([2, 0], 2, [False, True]),
                                 ([0, 1], 3, [False, False]), ([9, -1], 4, [False, False])):  # fmt: skip
        assert evaluate(lambda p, t, k=k: in_top_k(p, t, k), p, np.array(targets, np.int32)).tolist() == expected
        assert evaluate(lambda p, t, k=k: apply_op("InTopK", p, t, k=k), p, np.array(targets)).tolist() == expected


def test_in_top_k_is_false_where_a_prediction_is_not_finite() -> None:
    p = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [0, 1, 2]], np.float32)
    assert evaluate(lambda p: in_top_k(p, [2, 0, 2], 1), p).tolist() == [False, False, True]


# --- embeddings


@pytest.mark.parametrize("strategy", ["mod", "div"])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_embedding_lookup_finds_each_row_in_its_shard(strategy: str, rows: int, dtype: Any) -> None:
    table = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    shards = [table[i::3] for i in range(3)] if strategy == "mod" else np.array_split(table, 3)
    ids = np.random.default_rng(rows).permutation(np.repeat(np.arange(rows, dtype=dtype), 2)).reshape(2, rows)
    got = evaluate(lambda i, *s: embedding_lookup(list(s), i, strategy), ids, *shards)
    assert np.array_equal(got, table[ids])


def test_embedding_lookup_reads_each_shard_where_it_is() -> None:
    with Graph().as_default() as graph:
        shards = []
        for task in range(2):
            with graph.device(f"/job:ps/task:{task}"):
                shards.append(placeholder("float32", [3, 4]))
        with graph.device("/job:worker"):
            y = embedding_lookup(shards, placeholder("int32", [5]))
        reads = [op for op in graph.get_operations() if op.type == "GatherV2"]
    assert [op.device for op in reads] == ["/job:ps/task:0", "/job:ps/task:1"]
    assert y.op.device == "/job:worker" and y.static_shape == (5, 4)


def test_gradients_of_an_embedding_are_rows_of_each_shard() -> None:
    ids = np.array([0, 5, 2, 0, 3], np.int32)
    check_gradient(lambda a, b, i: embedding_lookup([a, b], i), X[0, :, :2], X[1, :, :2], ids)
    with Graph().as_default():
        a, b = placeholder("float32", [3, 2]), placeholder("float32", [3, 2])
        found = gradients(embedding_lookup([a, b], constant(ids)), [a, b])
    assert all(isinstance(g, IndexedSlices) for g in found)


def test_embedding_lookup_refuses_what_it_does_not_know() -> None:
    with Graph().as_default():
        x = constant(X[0])
        with pytest.raises(ValueError, match="must be 'mod' or 'div', not 'hash'"):
            embedding_lookup([x, x], [0], "hash")
        with pytest.raises(ValueError, match="Need at least one param"):
            embedding_lookup([], [0])
