"""Embeddings of sparse examples over sharded tables: combined rows, gradients, where things run, refusals; against numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops.indexed_slices import IndexedSlices
from tests.reference import Reference

TABLE = np.arange(20, dtype=np.float64).reshape(10, 2) - 7


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def combined(ids: list[list[int]], weights: list[list[float]], combiner: str) -> npt.NDArray[np.float64]:
    """The definition, example by example; zeros where nothing is to be divided by."""
    out = np.zeros((len(ids), 2))
    for row, (some, by) in enumerate(zip(ids, weights, strict=True)):
        total = sum((w * TABLE[i] for i, w in zip(some, by, strict=True)), np.zeros(2))
        scale = {"sum": 1.0, "mean": sum(by), "sqrtn": sum(w * w for w in by) ** 0.5}[combiner]
        out[row] = total / scale if scale else 0
    return out


def sparse(rows: list[list[Any]], dtype: Any) -> tf.SparseTensor:
    indices = [[i, j] for i, row in enumerate(rows) for j in range(len(row))]
    values = np.array([v for row in rows for v in row], dtype)
    return tf.SparseTensor(np.array(indices, np.int64).reshape(-1, 2), values, [len(rows), 4])


@settings(max_examples=100)
@given(
    ids=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6),
    combiner=st.sampled_from(["sum", "mean", "sqrtn"]),
    strategy=st.sampled_from(["mod", "div"]),
    count=st.integers(1, 12),
    data=st.data(),
)
def test_rows_are_combined_as_the_definition_says_however_the_table_is_cut(
    ids: list[list[int]], combiner: str, strategy: str, count: int, data: st.DataObject
) -> None:
    weights = [[data.draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in row] for row in ids]
    shards = [TABLE[k::count] for k in range(count)] if strategy == "mod" else np.array_split(TABLE, count)
    with Graph().as_default() as graph:
        params = [tf.constant(s) for s in shards]
        plain = tf.nn.embedding_lookup_sparse(params, sparse(ids, np.int64), None, strategy, combiner=combiner)
        weighed = tf.nn.embedding_lookup_sparse(params, sparse(ids, np.int64), sparse(weights, np.float32), strategy, combiner=combiner)
        safe = tf.nn.safe_embedding_lookup_sparse(params, sparse(ids, np.int64), None, combiner, partition_strategy=strategy)
        found = Reference(graph).run([plain, weighed, safe])
    while ids and not ids[-1]:  # TensorFlow's rule: the last example is the last one that has an id
        ids, weights = ids[:-1], weights[:-1]
    np.testing.assert_allclose(found[0], combined(ids, [[1.0] * len(row) for row in ids], combiner), atol=1e-9)
    np.testing.assert_allclose(found[1], combined(ids, weights, combiner), atol=1e-9)
    np.testing.assert_array_equal(found[2][: len(ids)], found[0])
    assert not found[2][len(ids) :].any()


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_slices_of_a_variable_give_what_the_whole_gives_and_each_distinct_row_is_read_once(graph: Graph, combiner: str) -> None:
    ids = [[1, 1, 9], [], [9, 4, 1]]
    with tf.device(tf.train.replica_device_setter(ps_tasks=3)):
        p = tf.get_variable("p", initializer=TABLE, partitioner=tf.fixed_size_partitioner(3))
        out = tf.nn.embedding_lookup_sparse(p, sparse(ids, np.int64), None, "div", combiner=combiner)
        grads = tf.gradients(out, list(p))
    gathers = [op for op in graph.get_operations() if op.type == "GatherV2" and op.inputs[0].op.name.startswith("p/part")]
    assert [op.device for op in gathers] == [f"/job:ps/task:{k}" for k in range(3)]
    session = Reference(graph)
    session.run(tf.global_variables_initializer())
    np.testing.assert_allclose(session.run(out), combined(ids, [[1.0] * len(row) for row in ids], combiner))
    assert [session.run(op.inputs[1]).tolist() for op in gathers] == [[1], [0], [2]], "ids 1, 4 and 9, once each"
    assert all(isinstance(g, IndexedSlices) for g in grads)
    assert [session.run(g.indices).tolist() for g in grads] == [[1], [0], [2]]


def test_a_table_of_consecutive_rows_is_not_looked_up_by_mod() -> None:
    p = tf.get_variable("p", initializer=TABLE, partitioner=tf.fixed_size_partitioner(3))
    with pytest.raises(ValueError, match="partition_strategy='mod' would find other rows .*\n  Mend: partition_strategy='div'"):
        tf.nn.embedding_lookup_sparse(p, sparse([[1]], np.int64), None)
    assert tf.nn.safe_embedding_lookup_sparse(p, sparse([[1]], np.int64)).shape.as_list() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"combiner": "max"}, ValueError, "combiner must be one of 'mean', 'sqrtn' or 'sum', got max"),
        ({"sp_ids": [1, 2]}, TypeError, "sp_ids must be SparseTensor, got <class 'list'>"),
        ({"sp_weights": [1, 2]}, TypeError, "sp_weights must be either None or SparseTensor, got <class 'list'>"),
        ({"params": []}, ValueError, "Need at least one param"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"params": tf.constant(TABLE), "sp_ids": sparse([[1]], np.int64), "sp_weights": None}
    with pytest.raises(error, match=message):
        tf.nn.embedding_lookup_sparse(**{**good, **arguments})


def test_weights_of_other_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Shapes \(1,\) and \(2,\) are not compatible"):
        tf.nn.embedding_lookup_sparse(TABLE, sparse([[1]], np.int64), sparse([[1.0, 2.0]], np.float32))
    with pytest.raises(ValueError, match="Missing embedding_weights None"):
        tf.nn.safe_embedding_lookup_sparse(None, sparse([[1]], np.int64))
