"""What a session on servers sends: one message out and one back for each rank touched, tensors straight to where they are used."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.rank_table import RankTable
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.control import Kind
from tests.loopback.serving import served, session_on
from tests.loopback.simulated_ranks import Traffic

SEEDS = [None, 3, 4]


class Meter:
    """Traffic of all ranks during something; the ranks of a simulated job share their process.

    ``control`` has the kinds of control messages that each rank sent for sessions; a rank that comes to rest says so besides.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._transports = [cluster.transport.world.transport(r) for r in range(cluster.size)]  # type: ignore[attr-defined]
        self.control: list[list[str]] = [[] for _ in self._transports]
        self.control_nbytes = [0] * len(self._transports)
        for transport in self._transports:
            transport.send_control = partial(self._note, transport.rank, transport.send_control)

    def _note(self, rank: int, send: Callable[..., None], dest: int, payload: bytes, kind: int = 0) -> None:
        if kind != Kind.REST:
            self.control[rank].append(Kind(kind).name)
            self.control_nbytes[rank] += len(payload)
        send(dest, payload, kind)

    def of(self, do: Callable[[], Any]) -> list[Traffic]:
        """Traffic while ``do()`` runs; `control` holds what was sent meanwhile."""
        before = [copy(t.counters) for t in self._transports]
        self.control[:] = [[] for _ in self._transports]
        do()
        return [Traffic.since(b, t.counters) for b, t in zip(before, self._transports, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_is_one_control_message_out_and_one_back_for_each_rank_it_touches(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            a = tf.Variable(1.0)
        with tf.device("/job:worker/task:2"):
            b = a + 1.0
        with tf.device("/job:worker/task:0"):
            c = b + 1.0
        meter = Meter(cluster)
        with session_on("worker:3", cluster) as session:
            session.run(tf.global_variables_initializer())
            for fetch, touched in ((a, [1]), (b, [1, 2]), (c, [1, 2]), (a.op, [1])):
                session.run(fetch)  # the first of its signature
                meter.of(partial(run_often, session, fetch))
                assert meter.control[0] == ["RUN_GRAPH"] * 5 * len(touched), fetch
                assert meter.control[1:] == [["STEP_DONE"] * 5 * (r in touched) for r in (1, 2, 3)], fetch

    served(4, run, seed=seed)


def run_often(session: tf.Session, fetch: Any) -> None:
    """Five steps."""
    for _ in range(5):
        session.run(fetch)


def test_tasks_that_share_a_rank_share_its_messages() -> None:
    lines = ["rank 0 = * /job:worker/task:0", *[f"rank 1 = * /job:ps/task:{i}" for i in range(3)]]
    table = RankTable.from_text("\n".join(lines), 2)

    def run(rank: int, cluster: Cluster) -> None:
        parts = []
        for i in range(3):
            with tf.device(f"/job:ps/task:{i}"):
                parts.append(tf.Variable(float(i)) + 1.0)
        meter = Meter(cluster)
        with session_on("worker:0", cluster) as session:
            meter.of(lambda: session.run(tf.global_variables_initializer()))
            assert meter.control == [["CREATE_SESSION", "EXTEND_SESSION", "REGISTER_GRAPH", "RUN_GRAPH"], ["REPLY", "STEP_DONE"]]
            meter.of(lambda: session.run(parts))
            assert meter.control == [["EXTEND_SESSION", "REGISTER_GRAPH", "RUN_GRAPH"], ["STEP_DONE"]]
            meter.of(lambda: session.run(parts))
            assert meter.control == [["RUN_GRAPH"], ["STEP_DONE"]]

    served(2, run, table)


def test_a_new_signature_of_operations_that_a_rank_has_sends_no_operations_again() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            a = tf.Variable(1.0)
            b = a + 1.0
        meter = Meter(cluster)
        with session_on("worker:1", cluster) as session:
            session.run(a.initializer)
            meter.of(lambda: session.run([a, b]))
            assert meter.control == [["EXTEND_SESSION", "REGISTER_GRAPH", "RUN_GRAPH"], ["STEP_DONE"]]
            meter.of(lambda: session.run(b))
            assert meter.control == [["REGISTER_GRAPH", "RUN_GRAPH"], ["STEP_DONE"]]

    served(2, run)


@pytest.mark.parametrize("seed", SEEDS)
def test_tensors_go_from_where_they_are_made_to_where_they_are_used_and_nowhere_else(seed: int | None) -> None:
    """Neither the target's rank (3) nor any third one sees them, and the client (0) only what it feeds and fetches."""
    n = 1000

    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            x = tf.placeholder(tf.float32, [n])
            doubled = x * 2.0
        with tf.device("/job:worker/task:2"):
            both = tf.concat([doubled, doubled], 0)
            total = tf.reduce_sum(both)
        meter = Meter(cluster)
        value = np.ones(n, np.float32)
        with session_on("worker:3", cluster) as session:
            session.run([both, total], {x: value})
            used = meter.of(lambda: session.run([both, total], {x: value}))
        assert [(t.sent_bytes, t.received_bytes) for t in used] == [
            (4 * n, 8 * n + 4),  # the feed; both fetches
            (4 * n, 4 * n),
            (8 * n + 4, 4 * n),
            (0, 0),
        ]
        assert [t.sent for t in used] == [1, 1, 2, 0]

    served(4, run, seed=seed)


def test_a_value_that_is_fed_twice_elsewhere_is_sent_once_to_each_rank() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        x = tf.placeholder(tf.float32, [10])
        found = []
        for task in (1, 1, 2):
            with tf.device(f"/job:worker/task:{task}"):
                found.append(x + float(task))
        meter = Meter(cluster)
        with session_on("worker:1", cluster) as session:
            session.run(found, {x: np.zeros(10)})
            used = meter.of(lambda: session.run(found, {x: np.zeros(10)}))
        assert (used[0].sent, used[0].sent_bytes) == (2, 80)

    served(3, run)


@pytest.mark.parametrize("seed", SEEDS)
def test_large_constants_travel_as_raw_buffers_once(seed: int | None) -> None:
    content = np.random.default_rng(0).normal(size=(1000, 500)).astype(np.float32)  # 2 MB

    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            large = tf.constant(content)
            total = tf.reduce_sum(large, 0)
        meter = Meter(cluster)
        with session_on("worker:1", cluster) as session:
            found: list[Any] = []
            first = meter.of(lambda: found.append(session.run(total)))
            np.testing.assert_array_equal(found[0], content.sum(0, dtype=np.float32))
            assert first[0].sent_bytes == content.nbytes
            assert meter.control_nbytes[0] < 5000
            again = meter.of(lambda: session.run([total, tf.reduce_max(large)]))
            assert again[0].sent_bytes == 0, "the rank has it"

    served(2, run, seed=seed)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_graph_of_ten_thousand_operations_reaches_its_rank(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> float:
        with tf.device("/job:worker/task:1"):
            x = tf.exp(tf.constant(-np.inf))
            for i in range(5_000):
                x = x + float(i % 7)
        meter = Meter(cluster)
        with session_on("worker:0", cluster) as session:
            found = float(session.run(x))
        assert meter.control_nbytes[0] > 1 << 19, "more than any MPI sends eagerly"
        return found

    assert served(2, run, seed=seed, timeout_s=60) == [float(sum(i % 7 for i in range(5_000)))]
