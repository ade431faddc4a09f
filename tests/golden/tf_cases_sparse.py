"""Golden cases: sparse tensors, reductions of chosen rows, embeddings of sparse examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.tf_case import Builder, case

INDICES = np.array([[0, 1], [0, 3], [2, 0], [2, 2], [2, 3]], np.int64)
SHAPE = np.array([3, 4], np.int64)


def sparse(tf: Any, b: Builder, values: Any = None, indices: Any = INDICES, shape: Any = SHAPE, known: Any = ...) -> Any:
    """A sparse tensor of placeholders."""
    values = b.normal(len(indices)) if values is None else values
    sizes = b.ph(np.array(shape, np.int64)) if known is ... else tf.constant(shape, tf.int64)
    return tf.SparseTensor(b.ph(np.array(indices, np.int64)), b.ph(values), sizes)


@case(dynamic=True)
def sparse_to_dense(tf: Any, b: Builder) -> None:
    for dtype in (np.float32, np.float64, np.int32):
        sp = sparse(tf, b, b.normal(5, dtype=np.float64).astype(dtype))
        b.out(tf.sparse_tensor_to_dense(sp), tf.sparse_tensor_to_dense(sp, default_value=dtype(7)))
    words = sparse(tf, b, np.array([b"a", b"b", b"c", b"d", b"e"]))
    b.out(tf.sparse_tensor_to_dense(words), tf.sparse_tensor_to_dense(words, default_value="none"))
    b.out(tf.sparse_to_dense(b.ph(np.int32(2)), [4], b.ph(np.float32(3))))
    b.out(tf.sparse_to_dense(b.ph(np.array([1, 3], np.int32)), [4], b.ph(np.float32(3)), 0.5))
    b.out(tf.sparse_to_dense([[3], [1]], [4], [1.0, 2.0], validate_indices=False))


@case
def sparse_to_dense_grads(tf: Any, b: Builder) -> None:
    values, default = b.ph(b.normal(5)), b.ph(np.float32(0.5))
    b.grad(tf.sparse_to_dense(INDICES, SHAPE, values, default), [values, default])


@case
def sparse_to_dense_refused(tf: Any, b: Builder) -> None:
    indices = b.ph(np.array([[0, 1], [0, 1]], np.int64), shape=[None, 2])
    dense = tf.sparse_to_dense(indices, SHAPE, [1.0, 2.0])
    for bad in ([[0, 1], [0, 1]], [[1, 1], [0, 1]], [[0, 1], [0, 4]], [[0, 1], [3, 0]], [[-1, 1], [0, 1]]):
        b.run(dense, feeds={indices: np.array(bad, np.int64)}, error="InvalidArgumentError")
    b.run(dense, feeds={indices: np.array([[0, 1], [2, 0]], np.int64)})


@case(dynamic=True)
def sparse_dense_products(tf: Any, b: Builder) -> None:
    for dtype in (np.float32, np.complex64):
        values = (b.normal(5) + (1j * b.normal(5) if dtype is np.complex64 else 0)).astype(dtype)
        for adjoint_a in (False, True):
            for adjoint_b in (False, True):
                inner = 3 if adjoint_a else 4
                dense = b.normal(*((2, inner) if adjoint_b else (inner, 2))).astype(dtype)
                b.out(tf.sparse_tensor_dense_matmul(sparse(tf, b, values, known=1), b.ph(dense), adjoint_a, adjoint_b))


@case
def sparse_dense_product_grads(tf: Any, b: Builder) -> None:
    for dtype in (np.float64, np.complex128):
        for adjoint_a in (False, True):
            for adjoint_b in (False, True):
                imaginary = 1j if dtype is np.complex128 else 0
                values = b.ph((b.normal(5) + imaginary * b.normal(5)).astype(dtype))
                inner = 3 if adjoint_a else 4
                size = (2, inner) if adjoint_b else (inner, 2)
                dense = b.ph((b.normal(*size) + imaginary * b.normal(*size)).astype(dtype))
                product = tf.sparse_tensor_dense_matmul(tf.SparseTensor(INDICES, values, SHAPE), dense, adjoint_a, adjoint_b)
                b.grad(product, [values, dense])


@case(dynamic=True)
def sparse_order_and_shape(tf: Any, b: Builder) -> None:
    shuffled = sparse(tf, b, indices=INDICES[[3, 0, 4, 1, 2]])
    ordered = tf.sparse_reorder(shuffled)
    b.out(ordered.indices, ordered.values, ordered.dense_shape)
    for shape in ([2, 6], [12], [-1, 2], [2, -1, 3], [1, 12, 1]):
        reshaped = tf.sparse_reshape(ordered, shape)
        b.out(reshaped.indices, reshaped.values, reshaped.dense_shape)
    nothing = tf.sparse_reshape(tf.SparseTensor(b.ph(np.zeros((0, 2), np.int64)), b.ph(np.zeros(0, np.float32)), [0, 3]), [3, -1])
    b.out(nothing.indices, nothing.dense_shape)


@case
def sparse_reorder_grads(tf: Any, b: Builder) -> None:
    values = b.ph(b.normal(5))
    ordered = tf.sparse_reorder(tf.SparseTensor(INDICES[[3, 0, 4, 1, 2]], values, SHAPE))
    b.grad(ordered.values, values)


@case
def sparse_reshape_refused(tf: Any, b: Builder) -> None:
    shape = b.ph(np.array([2, 6], np.int64))
    reshaped = tf.sparse_reshape(sparse(tf, b), shape)
    for bad in ([2, 5], [5, -1], [0, -1], [-2, 6]):
        b.run(reshaped.indices, feeds={**b.feeds, shape: np.array(bad, np.int64)}, error="InvalidArgumentError")


@case(dynamic=True)
def sparse_elements(tf: Any, b: Builder) -> None:
    sp = sparse(tf, b)
    kept = tf.sparse_retain(sp, b.ph(np.array([True, False, True, True, False])))
    filled, empty = tf.sparse_fill_empty_rows(sp, -1.0)
    both, none = tf.sparse_fill_empty_rows(sparse(tf, b, indices=np.zeros((0, 2)), values=np.zeros(0, np.float32)), 2.0)
    for found in (kept, filled, both):
        b.out(found.indices, found.values, found.dense_shape)
    b.out(empty, none)
    for dense in (np.array([[0.0, 2.0], [3.0, 0.0]], np.float32), np.array([b"", b"x"]), np.array([[[1, 0]], [[0, 5]]])):
        found = tf.sparse.from_dense(b.ph(dense))
        b.out(found.indices, found.values, found.dense_shape)
    rows = tf.IndexedSlices(b.ph(b.normal(4, 2)), b.ph(np.array([5, 1, 7, 2])), tf.constant([8, 2]))
    rest = tf.sparse_mask(rows, [1, 7])
    b.out(rest.values, rest.indices)


@case
def sparse_fill_empty_rows_grads(tf: Any, b: Builder) -> None:
    values, default = b.ph(b.normal(5)), b.ph(np.float32(0.5))
    filled, _ = tf.sparse_fill_empty_rows(tf.SparseTensor(INDICES, values, SHAPE), default)
    b.grad(filled.values, [values, default])


@case(dynamic=True)
def sparse_segments(tf: Any, b: Builder) -> None:
    data = b.ph(b.normal(6, 3))
    for kind in (np.int32, np.int64):
        indices, ids = b.ph(np.array([5, 0, 0, 3, 1], kind)), b.ph(np.array([0, 0, 2, 2, 3], kind))
        for reduce in (tf.sparse_segment_sum, tf.sparse_segment_mean, tf.sparse_segment_sqrt_n):
            b.out(reduce(data, indices, ids), reduce(data, indices, ids, num_segments=6))
    nothing = b.ph(np.zeros(0, np.int32))
    b.out(tf.sparse_segment_sum(data, nothing, nothing), tf.sparse_segment_mean(data, nothing, nothing, num_segments=2))
    b.out(tf.sparse_segment_sum(b.ph(np.arange(8).reshape(4, 2)), [0, 3], [1, 1]))


@case
def sparse_segment_grads(tf: Any, b: Builder) -> None:
    data = b.ph(b.normal(6, 3, dtype=np.float64))
    reduces = (tf.sparse_segment_sum, tf.sparse_segment_mean, tf.sparse_segment_sqrt_n)
    for sparse_gradient in (False, True):
        for count in (None, 6):
            outs = [r(data, [5, 0, 0, 3, 1], [0, 0, 2, 2, 3], None, count, sparse_gradient) for r in reduces]
            b.grad(outs, data)


@case
def sparse_segments_refused(tf: Any, b: Builder) -> None:
    indices, ids = b.ph(np.array([0, 1], np.int32)), b.ph(np.array([0, 1], np.int32))
    for out in (tf.sparse_segment_sum([1.0, 2.0], indices, ids), tf.sparse_segment_mean([1.0, 2.0], indices, ids, num_segments=2)):
        for bad in (([0, 2], [0, 1]), ([-1, 1], [0, 1]), ([0, 1], [1, 0]), ([0, 1], [-1, 0])):
            b.run(out, feeds={indices: np.array(bad[0], np.int32), ids: np.array(bad[1], np.int32)}, error="InvalidArgumentError")
    b.run(out, feeds={indices: np.array([0, 1], np.int32), ids: np.array([0, 2], np.int32)}, error="InvalidArgumentError")


def examples(tf: Any, b: Builder, dtype: Any = np.int64) -> tuple[Any, Any]:
    """Ids of 6 examples, of which one has none and the last isn't there, and their weights."""
    indices = np.array([[0, 0], [0, 1], [1, 0], [3, 0], [3, 1], [3, 2], [4, 0]], np.int64)
    ids = sparse(tf, b, np.array([1, 6, 1, 9, 1, 9, 0], dtype), indices, [6, 3])
    return ids, tf.SparseTensor(ids.indices, b.ph(np.array([1, 2, 0.5, 3, 1, 1, 0], np.float32)), ids.dense_shape)


@case(dynamic=True)
def sparse_embeddings(tf: Any, b: Builder) -> None:
    table = b.normal(10, 2)
    shards = {
        "mod": [b.ph(table[0::3]), b.ph(table[1::3]), b.ph(table[2::3])],
        "div": [b.ph(t) for t in np.array_split(table, 3)],
    }
    for combiner in ("sum", "mean", "sqrtn", None):
        for strategy, params in shards.items():
            ids, weights = examples(tf, b, np.int64 if strategy == "mod" else np.int32)
            for weight in (None, weights):
                b.out(tf.nn.embedding_lookup_sparse(params, ids, weight, strategy, combiner=combiner))
        b.out(tf.nn.embedding_lookup_sparse(b.ph(table), ids, weights, combiner=combiner, max_norm=0.7))


@case
def sparse_embedding_grads(tf: Any, b: Builder) -> None:
    shards = [b.ph(t) for t in np.array_split(b.normal(10, 2, dtype=np.float64), 3)]
    for combiner in ("sum", "mean", "sqrtn"):
        ids, _ = examples(tf, b)
        scale = b.ph(b.normal(7, dtype=np.float64) + 3)
        weights = tf.SparseTensor(ids.indices, scale, ids.dense_shape)
        b.grad(tf.nn.embedding_lookup_sparse(shards, ids, None, "div", combiner=combiner, max_norm=0.7), shards)
        b.grad(tf.nn.embedding_lookup_sparse(shards, ids, weights, "div", combiner=combiner), [*shards, scale])


@case
def safe_sparse_embeddings(tf: Any, b: Builder) -> None:
    table = b.normal(10, 2)
    shards = [b.ph(t) for t in np.array_split(table, 3)]
    indices = np.array([[0, 0], [0, 1], [1, 0], [3, 0], [3, 1], [3, 2], [4, 0]], np.int64)
    ids = sparse(tf, b, np.array([1, -1, -1, 9, 1, 9, 0]), indices, [6, 3])
    weights = ids.with_values(b.ph(np.array([1, 2, 0.5, -3, 1, 1, 0], np.float32)))
    for combiner in ("sum", "mean", "sqrtn"):
        for weight in (None, weights):
            for default_id in (None, 4):
                b.out(tf.nn.safe_embedding_lookup_sparse(shards, ids, weight, combiner, default_id))
    deep = sparse(tf, b, np.array([1, 2, 3]), np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]]), [2, 2, 2])
    b.out(tf.nn.safe_embedding_lookup_sparse(b.ph(table), deep, max_norm=0.5, partition_strategy="mod"))
    b.grad(tf.nn.safe_embedding_lookup_sparse(shards, ids, weights, "sum", default_id=3), shards)


@case
def sparse_placeholders(tf: Any, b: Builder) -> None:
    for shape in (None, [3, None], [3, 4]):
        sp = tf.sparse_placeholder(tf.float32, shape, name="x")
        b.feeds.update({sp.indices: INDICES, sp.values: b.normal(5), sp.dense_shape: SHAPE})
        b.out(tf.sparse_tensor_to_dense(sp), sp.indices, sp.values, sp.dense_shape)
