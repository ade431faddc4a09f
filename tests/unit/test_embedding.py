"""Embedding lookups over sharded tables: rows, gradients and refusals, against numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mpirt as tf
from mpirt import errors
from mpirt.graph.graph import Graph
from mpirt.ops.indexed_slices import IndexedSlices
from tests.evaluate import evaluate
from tests.gradient_checker import check_gradient
from tests.reference import Reference

TABLE = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def shards_of(table: npt.NDArray[Any], count: int, strategy: str) -> list[npt.NDArray[Any]]:
    return [table[k::count] for k in range(count)] if strategy == "mod" else np.array_split(table, count)


@st.composite
def lookups(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], int, str, npt.NDArray[Any]]:
    """A table, how it is cut, and ids of any shape, with repetitions or none at all."""
    rows = draw(st.integers(1, 12))
    tail = draw(st.lists(st.integers(1, 3), max_size=2))
    table = np.arange(rows * int(np.prod(tail)), dtype=np.float32).reshape(rows, *tail) + 1
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ids = draw(hnp.arrays(draw(st.sampled_from([np.int32, np.int64])), shape, elements=st.integers(0, rows - 1)))
    return table, draw(st.integers(1, rows + 2)), draw(st.sampled_from(["mod", "div"])), ids


@settings(max_examples=150)
@given(lookups())
def test_a_lookup_finds_the_rows_of_the_whole_table_however_it_is_cut(
    case: tuple[npt.NDArray[np.float32], int, str, npt.NDArray[Any]],
) -> None:
    table, count, strategy, ids = case
    shards = shards_of(table, count, strategy)
    got = evaluate(lambda i, *s: tf.nn.embedding_lookup(list(s), i, strategy), ids, *shards)
    np.testing.assert_array_equal(got, table[ids])


@settings(max_examples=60)
@given(lookups(), st.floats(0.5, 30.0))
def test_rows_longer_than_max_norm_are_scaled_to_it(
    case: tuple[npt.NDArray[np.float32], int, str, npt.NDArray[Any]], limit: float
) -> None:
    table, count, strategy, ids = case
    got = evaluate(lambda i, *s: tf.nn.embedding_lookup(list(s), i, strategy, max_norm=limit), ids, *shards_of(table, count, strategy))
    flat = table.reshape(len(table), -1).astype(np.float64)
    length = np.sqrt((flat**2).sum(axis=1, keepdims=True))
    expected = (flat * np.minimum(1.0, limit / length)).reshape(table.shape)[ids]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@settings(max_examples=60)
@given(rows=st.integers(1, 12), count=st.integers(1, 14), ids=st.lists(st.integers(0, 11), max_size=12))
def test_a_partitioned_variable_is_looked_up_like_the_whole(rows: int, count: int, ids: list[int]) -> None:
    ids = [i % rows for i in ids]
    with Graph().as_default() as graph:
        p = tf.get_variable("p", initializer=np.arange(rows * 2.0).reshape(rows, 2), partitioner=tf.fixed_size_partitioner(count))
        found = tf.nn.embedding_lookup(p, tf.constant(ids, tf.int64), partition_strategy="div")
        again = tf.nn.embedding_lookup([p], tf.constant(ids, tf.int64))  # a list of one table: the slices put together
        session = Reference(graph)
        session.run(tf.global_variables_initializer())
        expected = np.arange(rows * 2.0).reshape(rows, 2)[np.array(ids, int)]
        for value in session.run([found, again]):
            assert np.array_equal(value, expected)


def test_each_slice_is_read_where_it_is_and_the_ids_are_sorted_on_the_worker(graph: Graph) -> None:
    with tf.device(tf.train.replica_device_setter(ps_tasks=3)):
        p = tf.get_variable("p", [10, 3], partitioner=tf.fixed_size_partitioner(4))
        rows = tf.nn.embedding_lookup(p, [[1, 2], [3, 9]], partition_strategy="div")
    ops = [op for op in graph.get_operations() if op.name.startswith("embedding_lookup") and op.type != "Const"]
    where = {op.name: op.device for op in ops}
    assert rows.static_shape == (2, 2, 3)
    gathers = [name for name in where if graph.get_operation_by_name(name).type == "GatherV2"]
    assert [(name, where[name]) for name in gathers] == [
        ("embedding_lookup/GatherV2", "/job:ps/task:0"),
        ("embedding_lookup/GatherV2_1", "/job:ps/task:1"),
        ("embedding_lookup/GatherV2_2", "/job:ps/task:2"),
        ("embedding_lookup/GatherV2_3", "/job:ps/task:0"),
    ]
    assert graph.get_operation_by_name("embedding_lookup").type == "ParallelDynamicStitch"
    assert {device for name, device in where.items() if name not in gathers} == {"/job:worker"}


# --------------------------------------------------------------------------------------------------------- refusals


def test_looking_up_consecutive_rows_by_mod_is_refused() -> None:
    p = tf.get_variable("p", [10, 3], partitioner=tf.fixed_size_partitioner(3))
    with pytest.raises(ValueError) as refused:
        tf.nn.embedding_lookup(p, [1])
    assert str(refused.value) == (
        "embedding_lookup with partition_strategy='mod' would find other rows of <mpirt.PartitionedVariable 'p' shape=(10, 3)"
        " dtype=float32 slices=3>: its slices are consecutive rows.\n  Mend: partition_strategy='div'."
    )
    one = tf.get_variable("one", [10, 3], partitioner=tf.fixed_size_partitioner(1))
    assert tf.nn.embedding_lookup(one, [1]).static_shape == (1, 3)  # of one slice both mean the same


@pytest.mark.parametrize("strategy", ["mod", "div"])
def test_columns_in_slices_are_no_table(strategy: str) -> None:
    p = tf.get_variable("p", [10, 3], partitioner=tf.fixed_size_partitioner(3, axis=1))
    with pytest.raises(ValueError, match="needs a table whose rows are in one piece, but .* is cut along dimension 1"):
        tf.nn.embedding_lookup(p, [1], partition_strategy=strategy)


@pytest.mark.parametrize(
    ("strategy", "bad"), [("mod", 10), ("mod", 12), ("mod", -1), ("div", 10), ("div", 13), ("div", -1), ("div", -4)]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_id_outside_the_table_is_an_error_of_the_step(graph: Graph, strategy: str, bad: int, count: int) -> None:
    ids = tf.placeholder(tf.int32, [None])
    rows = tf.nn.embedding_lookup([tf.constant(s) for s in shards_of(TABLE, count, strategy)], ids, strategy)
    assert Reference(graph).run(rows, {ids: np.array([9, 0])}).tolist() == TABLE[[9, 0]].tolist()
    with pytest.raises(errors.InvalidArgumentError, match=r"is not in \[0, \d+\)"):
        Reference(graph).run(rows, {ids: np.array([3, bad])})


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("max_norm", [None, 4.0])
@pytest.mark.parametrize("strategy", ["mod", "div"])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_agree_with_differences(count: int, strategy: str, max_norm: float | None) -> None:
    ids = np.array([[0, 5, 2], [0, 3, 0]])
    shards = shards_of(TABLE[:7].astype(np.float64) / 3 + 1, count, strategy)
    check_gradient(lambda *s: tf.nn.embedding_lookup(list(s), tf.constant(ids), strategy, max_norm=max_norm), *shards)


@pytest.mark.parametrize("colocate", [False, True])
def test_gradients_are_rows_of_each_slice_made_on_the_worker(graph: Graph, colocate: bool) -> None:
    with tf.device(tf.train.replica_device_setter(ps_tasks=3)):
        p = tf.get_variable("p", initializer=TABLE, partitioner=tf.fixed_size_partitioner(3))
        rows = tf.nn.embedding_lookup(p, [1, 2, 1, 9], partition_strategy="div")
        grads = tf.gradients(tf.square(rows), list(p), colocate_gradients_with_ops=colocate)
    assert all(isinstance(g, IndexedSlices) for g in grads)
    assert [(g.values.device, g.indices.device) for g in grads] == [("/job:worker", "/job:worker")] * 3
    session = Reference(graph)
    session.run(tf.global_variables_initializer())
    values, indices = session.run([g.values for g in grads]), session.run([g.indices for g in grads])
    assert [i.tolist() for i in indices] == [[1, 2, 1], [], [2]]
    assert np.array_equal(values[0], 2 * TABLE[[1, 2, 1]]) and np.array_equal(values[2], 2 * TABLE[[9]])


def test_rows_of_several_workers_are_summed_on_each_before_they_meet_at_the_variable(graph: Graph) -> None:
    with tf.device("/job:ps/task:0"):
        w = tf.get_variable("w", initializer=TABLE)
    losses = []
    for task in range(2):
        with tf.device(f"/job:worker/task:{task}"):
            for ids in ([1, 2, 1], [2, 2]):
                losses.append(tf.reduce_sum((task + 1.0) * tf.nn.embedding_lookup(w, ids)))
    with tf.device("/job:worker/task:0"):
        (grad,) = tf.gradients(tf.add_n(losses), w, colocate_gradients_with_ops=True)
    assert isinstance(grad, IndexedSlices) and grad.device == "/job:ps/task:0"
    sums = [op.device for op in graph.get_operations() if op.type == "UnsortedSegmentSum"]
    assert sorted(sums) == ["/job:worker/task:0", "/job:worker/task:1"]
    session = Reference(graph)
    session.run(tf.global_variables_initializer())
    values, indices = session.run([grad.values, grad.indices])
    assert sorted(zip(indices.tolist(), values.tolist(), strict=True)) == [
        (1, [2.0] * 3),
        (1, [4.0] * 3),
        (2, [3.0] * 3),
        (2, [6.0] * 3),
    ]


WAYS: dict[str, Any] = {
    "rows behind one another": lambda a, b: tf.concat([a, b], 0),
    "the first axis from behind": lambda a, b: tf.concat([a, b, a], -2),
    "columns beside one another": lambda a, b: tf.concat([a, a], 1),
    "another precision": lambda a, b: tf.cast(tf.cast(a, tf.float64), tf.float64),
    "negative": lambda a, b: -a,
    "passed on": lambda a, b: tf.identity(tf.tuple([a, b])[0]),
    "summed": lambda a, b: tf.add_n([a, a]),
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_a_table_that_is_made_of_others_have_gradients_of_rows_and_the_right_ones(way: str) -> None:
    ids = [3, 0, 3, 1]
    a, b = TABLE[:4].astype(np.float64), TABLE[4:].astype(np.float64) / 7
    check_gradient(lambda x, y: tf.gather(WAYS[way](x, y), ids), a, b)
    check_gradient(lambda x, y: tf.gather(WAYS[way](x, y), [5, 9, 5, 4]) if "rows" in way or "first" in way else x * 1.0, a, b)
    x, y = tf.constant(a), tf.constant(b)
    assert isinstance(tf.gradients(tf.gather(WAYS[way](x, y), ids), x)[0], IndexedSlices)


def test_half_precision_rows_of_a_table_train_it_by_rows(graph: Graph) -> None:
    w = tf.get_variable("w", initializer=TABLE)
    (grad,) = tf.gradients(tf.gather(tf.cast(w, tf.float16), [2, 2]), w)
    assert isinstance(grad, IndexedSlices) and grad.dtype is tf.float32


def test_rows_of_slices_put_together_have_gradients_of_rows_of_each_slice(graph: Graph) -> None:
    p = tf.get_variable("p", initializer=TABLE, partitioner=tf.fixed_size_partitioner(3))
    rows = tf.gather(p, [9, 0, 9, 5])
    grads = tf.gradients(rows * rows, list(p))
    assert all(isinstance(g, IndexedSlices) for g in grads)
    session = Reference(graph)
    session.run(tf.global_variables_initializer())
    assert [session.run(g.indices).tolist() for g in grads] == [[0], [1], [2, 2]]
    assert np.array_equal(session.run(grads[2].values), 2 * TABLE[[9, 9]])
