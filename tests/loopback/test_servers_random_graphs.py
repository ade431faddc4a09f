"""Random graphs run by sessions on servers give bit for bit what the reference evaluation gives, whoever is client and target.

The same graphs run by collective sessions and in one process give the same, so all modes agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.rank_table import RankTable
from mpirt.distributed.cluster import Cluster
from mpirt.graph.graph import Graph, Tensor
from tests.loopback.serving import served, session_on
from tests.loopback.simulated_ranks import values
from tests.loopback.test_random_graphs import KINDS, NUM_STEPS, Built, as_bytes
from tests.reference import Reference

MORE_KINDS = (*KINDS, "cond", "while", "python", "random")
NUMBER = st.integers(0, 1 << 30)
NODES = st.lists(
    st.tuples(st.sampled_from(MORE_KINDS), st.one_of(st.none(), st.integers(0, 3)), NUMBER, NUMBER, NUMBER), min_size=2, max_size=14
)
Nodes = list[tuple[str, int | None, int, int, int]]


class Grown(Built):
    """A random graph with bodies that read variables of any task, Python functions and seeded random numbers besides."""

    def __init__(self, nodes: Nodes, length: int) -> None:
        self.length = length
        self.variables = []  # that no operation of a step changes: a body's reads of others would have no place in its order
        for task in range(4):
            with tf.device(f"/job:worker/task:{task}"):
                self.variables.append(tf.Variable(np.full(length, task + 3, np.float32), name="far"))
        super().__init__(nodes, length)
        self.initializers += [v.initializer for v in self.variables]

    def _add(self, kind: str, length: int, a: int, b: int, c: int) -> None:
        x, truth = self.numbers[a % len(self.numbers)], self.truths[c % len(self.truths)]
        if kind == "cond":
            v = self.variables[b % len(self.variables)]
            self.numbers.append(tf.cond(tf.reduce_any(truth), lambda: tf.reshape(x, [length]) + v, lambda: v * 2.0))
        elif kind == "while":
            v = self.variables[b % len(self.variables)]
            start = [tf.constant(0), tf.reshape(x, [length])]
            self.numbers.append(tf.while_loop(lambda i, _: i < c % 4, lambda i, value: (i + 1, value * 0.5 + v), start)[1])
        elif kind == "python":
            self.numbers.append(tf.py_func(halved, [x], tf.float32))
        elif kind == "random":
            self.numbers.append(x + tf.random_normal([length], seed=a % 50 + 1))
        else:
            super()._add(kind, length, a, b, c)

    def fed_in(self, step: int, length: int, also: list[int]) -> dict[Tensor, Any]:
        """Feeds of a step: the placeholders, and in step 1 results of operations."""
        feeds = self.values_of(step, length)
        if step == 1:
            for i in also:
                feeds[self.numbers[i % len(self.numbers)]] = np.full(length, i % 5, np.float32)
        return feeds


def halved(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A Python function of the client's script."""
    return x / np.float32(2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    nodes=NODES,
    length=st.sampled_from([0, 1, 3, 400]),
    wanted=st.lists(NUMBER, min_size=1, max_size=5),
    also_fed=st.lists(NUMBER, max_size=2),
    ranks=st.integers(1, 4),
    hosts=st.tuples(*[st.integers(0, 3)] * 4),
    clients=st.sets(st.integers(0, 3), min_size=1, max_size=3),
    target=st.integers(0, 3),
    seed=st.one_of(st.none(), st.integers(0, 1 << 20)),
    mode=st.sampled_from(["servers", "servers", "servers", "collective"]),
)
def test_random_graphs_give_the_same_bits_in_sessions_on_servers(
    nodes: Nodes,
    length: int,
    wanted: list[int],
    also_fed: list[int],
    ranks: int,
    hosts: tuple[int, ...],
    clients: set[int],
    target: int,
    seed: int | None,
    mode: str,
) -> None:
    with Graph().as_default() as graph, np.errstate(all="ignore"):
        built = Grown(nodes, length)
        reference = Reference(graph)
        reference.run(built.initializers)
        fetches = [built.results[i % len(built.results)] for i in wanted]
        expected = [as_bytes(reference.run(fetches, built.fed_in(i, length, also_fed))) for i in range(NUM_STEPS)]

    def steps(session: tf.Session, built: Grown) -> list[list[Any]]:
        fetches = [built.results[i % len(built.results)] for i in wanted]
        session.run(built.initializers)
        structure = {"all": fetches, "twice": (fetches[0], [fetches])}
        nested = [session.run(structure, built.fed_in(i, length, also_fed)) for i in range(NUM_STEPS)]
        for found in nested:
            assert as_bytes([found["twice"][0], *found["twice"][1][0]]) == as_bytes([found["all"][0], *found["all"]])
        return [as_bytes(found["all"]) for found in nested]

    def client(rank: int, cluster: Cluster) -> list[Any]:
        with tf.container(f"client {rank}"), session_on(f"worker:{target}", cluster) as session:
            return steps(session, Grown(nodes, length))

    def together(rank: int, cluster: Cluster) -> list[Any]:
        with tf.Session(cluster=cluster) as session:
            return steps(session, Grown(nodes, length))

    table = table_of_four(ranks, hosts)
    if mode == "servers":
        found = served(ranks, client, table, clients={c % ranks for c in clients}, seed=seed)
    else:
        found = values(ranks, together, table, seed)
    for one in found:
        assert one == expected


def table_of_four(ranks: int, hosts: tuple[int, ...]) -> RankTable:
    """Four tasks, at least one on each rank."""
    where = [i if i < ranks else host % ranks for i, host in enumerate(hosts)]
    return RankTable.from_text("\n".join(f"rank {rank} = * /job:worker/task:{task}" for task, rank in enumerate(where)), ranks)


# ------------------------------------------------------------------------------------------- single facts, on servers


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_variables_value_an_intermediate_and_a_fetched_tensor_may_be_fed(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            v = tf.Variable(1.0)
            doubled = v * 2.0
        with tf.device("/job:worker/task:2"):
            result = doubled + v
        with session_on("worker:2", cluster) as session:
            session.run(v.initializer)
            assert session.run(result) == 3
            assert session.run(result, {v: 10.0}) == 30, "the variable's value, for this step"
            assert session.run(result, {doubled: 10.0}) == 11
            assert session.run([result, doubled, doubled], {doubled: 5.0}) == [6, 5, 5]
            assert session.run(doubled, {doubled: 7.0}) == 7, "no rank is asked"
            assert session.run(v, {v: 8.0}) == 8
            assert session.run(v) == 1

    served(3, run, seed=seed)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_strings_and_shapes_known_only_at_run_time_cross_ranks(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            words = tf.placeholder(tf.string, [None, None])
            same = tf.identity(words)
        with tf.device("/job:worker/task:2"):
            picked = tf.gather(same, [1, 0])
            x = tf.placeholder(tf.float64, None)
        with tf.device("/job:worker/task:1"):
            doubled = x + x
        with session_on("worker:1", cluster) as session:
            for value in ([[b"", b"\0\xff\0"], ["größe".encode(), b"x" * 5000]], [[], []], [[b"a"], [b""]]):
                assert session.run(picked, {words: value}).tolist() == value[::-1]
            for shape in ((), (2, 0, 3), (300, 7), (4,)):
                found = session.run(doubled, {x: np.ones(shape)})
                np.testing.assert_array_equal(found, np.full(shape, 2.0))

    served(3, run, seed=seed)


def test_control_dependencies_hold_across_ranks() -> None:
    """Each read sees the increment that it waits for, and no step begins before the one before has ended."""

    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            a = tf.Variable(0.0)
        with tf.device("/job:worker/task:2"):
            b = tf.Variable(0.0)
            with tf.control_dependencies([a.assign_add(1.0)]):
                add = b.assign_add(a.read_value())
        with tf.device("/job:worker/task:0"), tf.control_dependencies([add]):
            both = a + b
        with session_on("worker:0", cluster) as session:
            session.run(tf.global_variables_initializer())
            assert [float(session.run(both)) for _ in range(20)] == [n + n * (n + 1) / 2 for n in range(1, 21)]

    served(3, run, seed=3)


def test_a_fetched_value_is_the_clients_own() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            v = tf.Variable(np.zeros(20_000))
        with session_on("worker:1", cluster) as session:
            session.run(v.initializer)
            first = session.run(v)
            first += 1  # writeable
            second = session.run(v)
            assert first.sum() == 20_000 and second.sum() == 0

    served(2, run)


# -------------------------------------------------------------------------------------------------- random numbers


def drawn(session: tf.Session, seeded: bool) -> list[Any]:
    """Numbers of two operations on two ranks, over steps of three signatures."""
    tf.set_random_seed(7) if seeded else None
    with tf.device("/job:worker/task:0"):
        a = tf.random_uniform([3])
    with tf.device("/job:worker/task:1"):
        b = tf.random_normal([2], seed=5 if seeded else None)
    found = []
    for fetch in ([a], [b], [a, b], [b], [a], [a, b]):
        found += [np.asarray(value).tolist() for value in session.run(fetch)]
    return found


@pytest.mark.parametrize("target", ["worker:0", "worker:1"])
def test_seeded_random_numbers_are_those_of_a_collective_session_and_of_one_process(target: str) -> None:
    def together(rank: int, cluster: Cluster) -> list[Any]:
        with tf.Session(cluster=cluster) as session:
            return drawn(session, seeded=True)

    def on_servers(rank: int, cluster: Cluster) -> list[Any]:
        with session_on(target, cluster) as session:
            return drawn(session, seeded=True)

    expected = values(2, together, {"worker": 2})
    assert expected[0] == expected[1]
    assert served(2, on_servers, {"worker": 2}, clients=[0, 1]) == expected, "each session has streams of its own"
    assert values(1, together, {"worker": 2}) == expected[:1]


def test_streams_of_random_numbers_go_on_from_signature_to_signature() -> None:
    def client(rank: int, cluster: Cluster) -> list[Any]:
        with session_on("worker:0", cluster) as session:
            return drawn(session, seeded=False)

    found = served(2, client, {"worker": 2}, clients=[0, 1])
    numbers = [tuple(value) for one in found for value in one]
    assert len(set(numbers)) == len(numbers), "no draw comes twice, in one session or in two"
