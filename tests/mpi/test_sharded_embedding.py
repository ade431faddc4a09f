"""An embedding in slices on several ranks: training gives what one process gives, and only rows cross ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mpirt as tf
from tests.optimizer_rules import LR, MOMENTUM, State, adagrad, descent, momentum
from tests.reference import Reference

ROWS, WIDTH = 10_000, 8
SPEC = {"ps": 2, "worker": 2}
# Each id many times, so that a repeated row of a gradient costs far more than what else is sent.
IDS = [np.tile([7, 9_999, 7, 0, 5_000, 7, 4_999], 10), np.tile([3, 7, 3, 6_000, 9_999, 1, 1], 10)]
WEIGHTS = np.random.default_rng(1).standard_normal((2, len(IDS[0]), WIDTH)) / 10

OPTIMIZERS: dict[str, tuple[Callable[[], Any], Callable[[State, Any, int], None], State]] = {
    "descent": (lambda: tf.train.GradientDescentOptimizer(LR), descent, {}),
    "momentum": (lambda: tf.train.MomentumOptimizer(LR, MOMENTUM), momentum, {"accum": np.zeros(1)}),
    "adagrad": (lambda: tf.train.AdagradOptimizer(LR), adagrad, {"accum": np.full(1, 0.1)}),
}


pytestmark = pytest.mark.one_mpi


@pytest.fixture(autouse=True)
def cluster() -> Iterator[tf.Cluster]:
    """Two ps and two workers on the ranks of this test."""
    yield tf.cluster(SPEC)


def start() -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH))


def build(optimizer: Any, slices: int, workers: int = 2) -> tuple[Any, Any, list[Any]]:
    """The table, a step of training on the ids of each worker, and the placeholders of these."""
    ids, losses = [], []
    with tf.device(tf.train.replica_device_setter(cluster=tf.train.ClusterSpec(SPEC))):
        table = tf.get_variable("table", initializer=start(), partitioner=tf.fixed_size_partitioner(slices))
        for task in range(workers):
            with tf.device(f"/task:{task}"):
                ids.append(tf.placeholder(tf.int64, [None], name=f"ids_{task}"))
                rows = tf.nn.embedding_lookup(table, ids[-1], partition_strategy="div")
                losses.append(tf.reduce_sum(rows * rows * tf.constant(WEIGHTS[task])))
        step = optimizer.minimize(tf.add_n(losses), colocate_gradients_with_ops=True)
    return table, step, ids


def after(steps: int, rule: Callable[[State, Any, int], None], slots: State) -> npt.NDArray[np.float64]:
    """The table after training, by the published rule; rows that are not looked up keep their value."""
    state: State = {"var": start(), **{name: np.full((ROWS, WIDTH), value[0]) for name, value in slots.items()}}
    for t in range(1, steps + 1):
        gradient = np.zeros((ROWS, WIDTH))
        for ids, weights in zip(IDS, WEIGHTS, strict=True):
            np.add.at(gradient, ids, 2 * state["var"][ids] * weights)
        touched = np.unique(np.concatenate(IDS))
        rows = {name: value[touched] for name, value in state.items()}
        rule(rows, gradient[touched], t)
        for name, value in rows.items():
            state[name][touched] = value
    return state["var"]


@pytest.mark.ranks([1, 3, 4])
def test_training_a_table_in_slices_is_training_the_table_in_one_process() -> None:
    for which, slices in zip(OPTIMIZERS, (3, 5, 1), strict=True):
        make, rule, slots = OPTIMIZERS[which]
        with tf.Graph().as_default() as graph:
            table, step, placeholders = build(make(), slices)
            whole, init = tf.convert_to_tensor(table), tf.global_variables_initializer()
            feeds = dict(zip(placeholders, IDS, strict=True))
            one_process = Reference(graph)
            one_process.run(init)
            with tf.Session() as session:
                session.run(init)
                for _ in range(3):
                    session.run(step, feeds)
                    one_process.run(step, feeds)
                trained = session.run(whole)
                placement = session.placement()
        np.testing.assert_array_equal(trained, one_process.run(whole))
        np.testing.assert_allclose(trained, after(3, rule, slots), rtol=1e-6, atol=1e-6, err_msg=which)  # rates are float32
        for k in range(slices):
            part = {f"table/part_{k}{slot}" for slot in ("", "/Momentum", "/Adagrad")}
            places = {where for name, where in placement.items() if name in part}
            assert places == {f"/job:ps/task:{k % 2}/device:CPU:0"}, "slots are beside their slice"


@pytest.mark.ranks(4)
@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_rows_that_are_looked_up_cross_ranks_and_in_gradients_each_once(
    cluster: tf.Cluster, rank: int, workers: int
) -> None:
    """One worker's rows are summed by the optimizer, those of several where their gradients are added."""
    row, used = WIDTH * 8, IDS[:workers]
    if rank < 2:  # a ps sends each worker the rows that it asks for, repeated ones too
        payload = sum(int(((ids >= ROWS // 2) == bool(rank)).sum()) for ids in used) * row
    elif rank - 2 < workers:  # the row numbers of the lookup, and for the update each distinct one once, with its row
        payload = len(IDS[rank - 2]) * 8 + len(np.unique(IDS[rank - 2])) * (8 + row)
    else:
        payload = 0
    for which in OPTIMIZERS:
        with tf.Graph().as_default():
            _, step, placeholders = build(OPTIMIZERS[which][0](), 2, workers)
            feeds = dict(zip(placeholders, used, strict=True))
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                session.run(step, feeds)
                before = replace(cluster.transport.counters)
                for _ in range(5):
                    session.run(step, feeds)
                now = replace(cluster.transport.counters)
        sent = (now.bytes_sent - before.bytes_sent) / 5
        assert payload <= sent <= payload + 250, which  # beside it: headers, rates, ends of control edges
        assert sent < ROWS // 2 * row / 10, "the dense gradient of one slice is ten times larger"


@pytest.mark.ranks(4)
def test_a_row_that_many_examples_name_crosses_ranks_once_each_way(cluster: tf.Cluster, rank: int) -> None:
    """embedding_lookup_sparse: the worker sends each distinct id, gets its row, and sends the row's gradient."""
    ids = IDS[0]
    distinct = np.unique(ids)
    examples = np.stack([np.arange(len(ids)) // 7, np.arange(len(ids)) % 7], axis=1)
    row = WIDTH * 8
    payload = {
        0: int((distinct < ROWS // 2).sum()) * row,
        1: int((distinct >= ROWS // 2).sum()) * row,
        2: len(distinct) * 8 + len(distinct) * (8 + row),  # ids of the lookup; ids and rows of the update
        3: 0,
    }[rank]
    with tf.Graph().as_default():
        with tf.device(tf.train.replica_device_setter(cluster=tf.train.ClusterSpec(SPEC))):
            table = tf.get_variable("table", initializer=start(), partitioner=tf.fixed_size_partitioner(2))
            with tf.device("/task:0"):
                sparse = tf.sparse_placeholder(tf.int64, [10, 7])
                combined = tf.nn.embedding_lookup_sparse(table, sparse, None, "div", combiner="mean")
                loss = tf.reduce_sum(combined)
            step = tf.train.GradientDescentOptimizer(1.0).minimize(loss, colocate_gradients_with_ops=True)
        whole = tf.convert_to_tensor(table)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            feeds = {sparse: tf.SparseTensorValue(examples, ids, [10, 7])}
            session.run(step, feeds)
            before = replace(cluster.transport.counters)
            for _ in range(5):
                session.run(step, feeds)
            now = replace(cluster.transport.counters)
            trained = session.run(whole)
    sent = (now.bytes_sent - before.bytes_sent) / 5
    assert payload <= sent <= payload + 250
    expected = start()
    for _ in range(6):
        np.subtract.at(expected, ids, np.float64(1 / 7))
    np.testing.assert_allclose(trained, expected, rtol=1e-9, atol=1e-9)
