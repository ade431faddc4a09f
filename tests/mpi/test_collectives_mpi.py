"""Collectives under a real mpirun: values against numpy by every way, bits alike on all ranks, traffic as planned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpirt as tf

Array = np.ndarray[Any, Any]


def inputs(shape: list[int], count: int, step: int) -> list[Array]:
    rng = np.random.default_rng(step)
    return [rng.integers(-8, 9, shape).astype(np.float32) for _ in range(count)]


@pytest.mark.ranks([2, 3])
def test_all_collectives_give_what_numpy_gives_for_small_and_large_tensors() -> None:
    cluster = tf.cluster({"worker": 4})
    for size in (1, 1000, 20_011):
        with tf.Graph().as_default(), tf.Session() as session:
            xs, unknown = [], []
            for i in range(4):
                with tf.device(f"/job:worker/task:{i}"):
                    xs.append(tf.placeholder(tf.float32, [4, size], f"x{i}"))
                    unknown.append(tf.placeholder(tf.float32, None, f"u{i}"))
            ops = {
                "sum": tf.collective.all_reduce(xs),
                "mean": tf.collective.all_reduce(xs, "mean"),
                "max": tf.collective.all_reduce(unknown, "max"),
                "gather": tf.collective.all_gather(xs),
                "columns": tf.collective.all_gather(xs, axis=-1),
                "scatter": tf.collective.reduce_scatter(xs),
                "broadcast": tf.collective.broadcast(xs[2], xs),
            }
            for step in range(3):
                values = inputs([4, size], 4, step)
                total = np.sum(values, 0)
                expected = {
                    "sum": [total] * 4,
                    "mean": [total / 4] * 4,
                    "max": [np.max(values, 0)] * 4,
                    "gather": [np.concatenate(values)] * 4,
                    "columns": [np.concatenate(values, 1)] * 4,
                    "scatter": np.split(total, 4),
                    "broadcast": [values[2]] * 4,
                }
                found = session.run(ops, {**dict(zip(xs, values, strict=True)), **dict(zip(unknown, values, strict=True))})
                for name, answers in expected.items():
                    for i in range(4):
                        np.testing.assert_array_equal(found[name][i], answers[i], f"{name} {size} on task {i}, rank {cluster.rank}")


@pytest.mark.ranks(4)
def test_results_stay_what_they_are_while_later_steps_run() -> None:
    """The arrays of a step are used again, but not while anybody holds them."""
    cluster = tf.cluster({"worker": 2})
    xs = []
    for i in range(2):
        with tf.device(f"/job:worker/task:{i}"):
            xs.append(tf.placeholder(tf.float32, [100_000], f"x{i}"))
    ys = [*tf.collective.all_reduce(xs), *tf.collective.all_gather(xs)]
    kept = []
    with tf.Session(fetch_on="owner") as session:
        for step in range(6):
            kept.append(session.run(ys, {x: np.full(100_000, step + i, np.float32) for i, x in enumerate(xs)}))
    for step, values in enumerate(kept):
        for value in values[:2]:
            assert value is None or (value == 2 * step + 1).all(), (step, cluster.rank)
        for value in values[2:]:
            assert value is None or ((value[:100_000] == step).all() and (value[100_000:] == step + 1).all()), (step, cluster.rank)


@pytest.mark.ranks(3)
def test_a_step_sends_the_messages_that_the_plan_promises_and_no_other() -> None:
    cluster = tf.cluster({"worker": 3})
    losses = []
    for i in range(3):
        with tf.device(f"/job:worker/task:{i}"):
            losses.append([tf.constant(np.full(n, i + 1.0, np.float32)) for n in (1, 10, 50_000)])
    ys = [tf.collective.all_reduce(list(towers)) for towers in zip(*losses, strict=True)]
    with tf.Session(fetch_on="owner") as session:
        session.run(ys)
        planned = session.traffic(ys, {})
        counters = cluster.transport.counters
        before = counters.messages_sent, counters.control_sent
        for _ in range(5):
            session.run(ys)
        sent, control = counters.messages_sent - before[0], counters.control_sent - before[1]
    assert control == 0
    total = np.zeros(1, np.int64)
    from mpi4py import MPI

    MPI.COMM_WORLD.Allreduce(np.array([sent], np.int64), total)
    assert total[0] == 5 * planned["messages"]
