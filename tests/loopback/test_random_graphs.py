"""Random graphs, placed at random on 1-4 simulated ranks, give bit for bit what the reference evaluation gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.rank_table import RankTable
from mpirt.distributed.cluster import Cluster
from mpirt.graph.graph import Graph, Operation, Tensor
from tests.loopback.simulated_ranks import values
from tests.reference import Reference

NUM_STEPS = 3
TASKS = st.one_of(st.none(), st.integers(0, 3))
KINDS = ("constant", "fed", "fed of unknown shape", "text", "variable", "unary", "binary", "compare", "choose", "concat", "ordered")
NODES = st.lists(
    st.tuples(st.sampled_from(KINDS), TASKS, st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.integers(0, 1 << 30)),
    min_size=2,
    max_size=16,
)


class Built:
    """The graph of a description: numbers (vectors of one length), truth values and texts, each from earlier ones."""

    def __init__(self, nodes: list[tuple[str, int | None, int, int, int]], length: int) -> None:
        self.numbers: list[Tensor] = [tf.constant(np.arange(length, dtype=np.float32))]
        self.truths: list[Tensor] = [tf.constant(np.arange(length) % 2 == 0)]
        self.texts: list[Tensor] = [tf.constant(["x"] * length)]
        self.feeds: list[Tensor] = []
        self.initializers: list[Operation] = []
        for kind, task, a, b, c in nodes:
            with tf.device(None if task is None else f"/job:worker/task:{task}"):
                self._add(kind, length, a, b, c)
        self.results = [*self.numbers, *self.truths, *self.texts]

    def _add(self, kind: str, length: int, a: int, b: int, c: int) -> None:
        x, y = self.numbers[a % len(self.numbers)], self.numbers[b % len(self.numbers)]
        truth = self.truths[c % len(self.truths)]
        if kind == "constant":
            self.numbers.append(tf.constant(np.random.default_rng(a).normal(size=length).astype(np.float32)))
        elif kind.startswith("fed"):
            self.feeds.append(tf.placeholder(tf.float32, [[length], [None], None][a % 3] if "unknown" in kind else [length]))
            self.numbers.append(self.feeds[-1])
        elif kind == "text":
            texts = self.texts
            chosen = tf.where(truth, texts[a % len(texts)], texts[b % len(texts)])
            texts.append(chosen if c % 2 else tf.identity(chosen))
        elif kind == "variable":
            v = tf.Variable(np.full(length, a % 7, np.float32))
            self.initializers.append(v.initializer)
            with tf.control_dependencies([v.assign_add(tf.reshape(x, [length])).op]):
                self.numbers.append(v.read_value())
        elif kind == "unary":
            self.numbers.append([tf.negative, tf.square, tf.tanh, tf.identity][c % 4](x))
        elif kind == "binary":
            self.numbers.append([tf.add, tf.multiply, tf.maximum, tf.subtract][c % 4](x, y))
        elif kind == "compare":
            self.truths.append(tf.logical_xor(truth, tf.less(x, y)))
        elif kind == "choose":
            self.numbers.append(tf.where(truth, x, y))
        elif kind == "concat":
            self.numbers.append(tf.reduce_sum(tf.reshape(tf.concat([x, y], 0), [2, length]), 0))
        else:
            with tf.control_dependencies([y, truth]):
                self.numbers.append(tf.identity(x))

    def values_of(self, step: int, length: int) -> dict[Tensor, Any]:
        """What is fed in a step."""
        rng = np.random.default_rng(step)
        return {x: rng.normal(size=length).astype(np.float32) for x in self.feeds}


def as_bytes(values: list[Any]) -> list[Any]:
    """Values in a form in which equal means equal bit for bit."""
    arrays = [np.asarray(v, object if isinstance(v, bytes) else None) for v in values]
    return [(a.dtype.str, a.shape, a.tolist() if a.dtype == object else a.tobytes()) for a in arrays]


@settings(max_examples=60)
@given(
    nodes=NODES,
    length=st.sampled_from([0, 1, 3, 400]),
    wanted=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=5),
    ranks=st.integers(1, 4),
    hosts=st.tuples(*[st.integers(0, 3)] * 4),
    fetch_on=st.sampled_from(["all", "owner"]),
    seed=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_random_graphs_give_the_same_bits_on_any_number_of_ranks(
    nodes: list[tuple[str, int | None, int, int, int]],
    length: int,
    wanted: list[int],
    ranks: int,
    hosts: tuple[int, ...],
    fetch_on: str,
    seed: int | None,
) -> None:
    with Graph().as_default() as graph, np.errstate(all="ignore"):
        built = Built(nodes, length)
        reference = Reference(graph)
        reference.run(built.initializers)
        fetches = [built.results[i % len(built.results)] for i in wanted]
        expected = [as_bytes(reference.run(fetches, built.values_of(i, length))) for i in range(NUM_STEPS)]

    def script(rank: int, cluster: Cluster) -> list[list[Any]]:
        built = Built(nodes, length)
        fetches = [built.results[i % len(built.results)] for i in wanted]
        with tf.Session(cluster=cluster, fetch_on=fetch_on) as session:
            session.run(built.initializers)
            return [session.run(fetches, built.values_of(i, length)) for i in range(NUM_STEPS)]

    found = values(ranks, script, table(ranks, hosts), seed)
    for step in range(NUM_STEPS):
        for position, value in enumerate(expected[step]):
            here = [as_bytes([f[step][position]])[0] for f in found if f[step][position] is not None]
            assert here == [value] * (ranks if fetch_on == "all" else 1)


def table(ranks: int, hosts: tuple[int, ...]) -> RankTable | ClusterSpec:
    """Four tasks on ``ranks`` ranks, wherever the draw says; ranks that get none are spares."""
    where = [h % ranks for h in hosts]
    lines = [f"rank {rank} = * /job:worker/task:{task}" for task, rank in enumerate(where)]
    lines += [f"rank {rank} = * spare" for rank in range(ranks) if rank not in where]
    return RankTable.from_text("\n".join(lines), ranks)
