"""Collectives on simulated ranks: what numpy gives, whatever the rank table, the way of the exchange and the transport's mood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt import errors
from mpirt.compiler import exchange
from mpirt.distributed.cluster import Cluster
from tests.loopback.serving import served, session_on
from tests.loopback.simulated_ranks import run_ranks, values
from tests.loopback.test_random_graphs import table

Array = np.ndarray[Any, Any]
STEPS = 3
DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "complex64")


@contextmanager
def limits(all_pairs_nbytes: int, all_pairs_ranks: int, segment_nbytes: int) -> Iterator[None]:
    """Other limits between the ways of an exchange, so that small tensors on few ranks go every way."""
    names = {
        "ALL_PAIRS_NBYTES": all_pairs_nbytes,
        "ALL_PAIRS_RANKS": all_pairs_ranks,
        "SEGMENT_NBYTES": segment_nbytes,
    }
    before = {name: getattr(exchange, name) for name in names}
    vars(exchange).update(names)
    try:
        yield
    finally:
        vars(exchange).update(before)


@dataclass(frozen=True)
class Call:
    """One collective over four tasks' tensors, and the independent answer."""

    kind: str
    reduction: str
    dtype: str
    sizes: tuple[int, ...]  # of dimension 0 of each input
    columns: int
    axis: int
    known: bool  # whether shapes are known while the graph is built

    def shape(self, i: int) -> list[int]:
        return [self.sizes[i], self.columns] if self.axis == 0 else [self.columns, self.sizes[i]]

    def inputs(self, step: int) -> list[Array]:
        """Whole numbers, so that sums don't depend on the order; small, so that all types hold them."""
        rng = np.random.default_rng(step)
        return [rng.integers(-3, 4, self.shape(i)).astype(self.dtype) for i in range(len(self.sizes))]

    def build(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        xs = []
        for i in range(len(self.sizes)):
            with tf.device(f"/job:worker/task:{i % 4}"):
                xs.append(tf.placeholder(self.dtype, self.shape(i) if self.known else None, f"x{i}"))
        if self.kind == "all_reduce":
            return xs, tf.collective.all_reduce(xs, self.reduction)
        if self.kind == "reduce_scatter":
            return xs, tf.collective.reduce_scatter(xs, self.reduction)
        if self.kind == "all_gather":
            return xs, tf.collective.all_gather(xs, self.axis)
        return xs, tf.collective.broadcast(xs[0], [*xs, "/job:worker/task:3"])

    def expected(self, inputs: list[Array]) -> list[Array]:
        if self.kind == "all_gather":
            return [np.concatenate(inputs, self.axis)] * len(inputs)
        if self.kind == "broadcast":
            return [inputs[0]] * (len(inputs) + 1)
        functions = {"sum": np.sum, "mean": np.sum, "max": np.max, "min": np.min}
        total = functions[self.reduction](np.stack(inputs), 0).astype(self.dtype)
        if self.reduction == "mean":
            n = len(inputs)
            whole = np.sign(total) * (abs(total) // n) if np.dtype(self.dtype).kind == "i" else total / np.dtype(self.dtype).type(n)
            total = whole.astype(self.dtype)
        return [total] * len(inputs) if self.kind == "all_reduce" else np.split(total, len(inputs))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    kind = draw(st.sampled_from(["all_reduce", "reduce_scatter", "all_gather", "broadcast"]))
    count = draw(st.integers(1, 6))
    reduction = draw(st.sampled_from(["sum", "mean", "max", "min"]))
    dtype = draw(st.sampled_from(DTYPES[:-1] if reduction in ("max", "min") else DTYPES))
    size = draw(st.sampled_from([0, 1, 3, 40]))
    sizes = (size * count if kind == "reduce_scatter" else size,) * count
    if kind == "all_gather":
        sizes = tuple(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    axis = draw(st.integers(0, 1)) if kind == "all_gather" else 0
    return Call(kind, reduction, dtype, sizes, draw(st.sampled_from([1, 5])), axis, draw(st.booleans()))


def equal(found: Any, expected: Array) -> bool:
    found = np.asarray(found)
    same: bool = found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()
    return same


@settings(max_examples=60)
@given(
    call=calls(),
    wanted=st.sets(st.integers(0, 6), min_size=1),
    ranks=st.integers(1, 5),
    hosts=st.tuples(*[st.integers(0, 4)] * 4),
    ways=st.sampled_from([(64, 8, 48), (64, 8, 1 << 20), (1 << 20, 8, 64), (1 << 20, 1, 64), (64, 2, 40)]),
    fetch_on=st.sampled_from(["all", "owner"]),
    seed=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_every_collective_gives_what_numpy_gives_on_any_rank_table_by_any_way(
    call: Call, wanted: set[int], ranks: int, hosts: tuple[int, ...], ways: tuple[int, int, int], fetch_on: str, seed: int | None
) -> None:
    def script(rank: int, cluster: Cluster) -> list[list[Any]]:
        xs, ys = call.build()
        fetches = [ys[i % len(ys)] for i in sorted(wanted)]
        with tf.Session(cluster=cluster, fetch_on=fetch_on) as session:
            return [session.run(fetches, dict(zip(xs, call.inputs(step), strict=True))) for step in range(STEPS)]

    with limits(*ways):
        found = values(ranks, script, table(ranks, hosts), seed)
    for step in range(STEPS):
        answers = call.expected(call.inputs(step))
        for position, index in enumerate(sorted(wanted)):
            here = [f[step][position] for f in found if f[step][position] is not None]
            assert len(here) == (ranks if fetch_on == "all" else 1)
            assert all(equal(value, answers[index % len(answers)]) for value in here)


@settings(max_examples=25)
@given(
    call=calls(),
    ranks=st.integers(1, 4),
    client=st.integers(0, 3),
    ways=st.sampled_from([(64, 8, 48), (1 << 20, 8, 64), (1 << 20, 1, 64)]),
    seed=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_a_session_on_a_server_gives_the_same(call: Call, ranks: int, client: int, ways: tuple[int, int, int], seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> list[list[Any]]:
        xs, ys = call.build()
        with session_on("worker:0", cluster) as session:
            return [session.run(ys, dict(zip(xs, call.inputs(step), strict=True))) for step in range(STEPS)]

    with limits(*ways):
        (found,) = served(ranks, script, {"worker": 4}, clients=[client % ranks], seed=seed)
    for step in range(STEPS):
        assert all(equal(value, answer) for value, answer in zip(found[step], call.expected(call.inputs(step)), strict=True))


# ---- order of additions

FRACTIONS = [np.random.default_rng(i).normal(size=500).astype(np.float32) for i in range(4)]


def reduced(ranks: int, way: tuple[int, int, int], hosts: tuple[int, ...] = (0, 1, 2, 3)) -> list[bytes]:
    """The bits of the sum of ``FRACTIONS`` on each task, as each rank has them."""

    def script(rank: int, cluster: Cluster) -> list[bytes]:
        xs = []
        for i in range(4):
            with tf.device(f"/job:worker/task:{i}"):
                xs.append(tf.constant(FRACTIONS[i]))
        with tf.Session(cluster=cluster) as session:
            return [np.asarray(y).tobytes() for y in session.run(tf.collective.all_reduce(xs))]

    with limits(*way):
        found = values(ranks, script, table(ranks, hosts), seed=1)
    return [bits for of_rank in found for bits in of_rank]


def test_all_ranks_get_the_bits_of_the_sum_in_rank_order_whichever_way_it_goes() -> None:
    expected = (FRACTIONS[0] + FRACTIONS[1] + FRACTIONS[2] + FRACTIONS[3]).tobytes()
    assert set(reduced(4, (1 << 20, 8, 64))) == {expected}
    assert set(reduced(4, (64, 8, 96))) == {expected}


def test_tensors_of_one_rank_are_added_first() -> None:
    expected = ((FRACTIONS[0] + FRACTIONS[3]) + (FRACTIONS[1] + FRACTIONS[2])).tobytes()
    assert set(reduced(2, (1 << 20, 8, 64), (0, 1, 1, 0))) == {expected}
    assert set(reduced(2, (64, 8, 96), (0, 1, 1, 0))) == {expected}


def test_in_a_tree_all_ranks_get_the_same_bits_too() -> None:
    assert len(set(reduced(4, (1 << 20, 1, 64)))) == 1


# ---- failures


@pytest.mark.parametrize("way", [(1 << 20, 8, 64), (64, 8, 96), (1 << 20, 1, 64)], ids=["all pairs", "chunks", "tree"])
@pytest.mark.parametrize("failing", range(3))
def test_a_failure_before_a_collective_reaches_all_ranks_and_the_next_step_is_well(way: tuple[int, int, int], failing: int) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        xs, limit = [], tf.placeholder(tf.float32, [], "limit")
        for i in range(3):
            with tf.device(f"/job:worker/task:{i}"):
                x = tf.constant(np.full(100, i, np.float32))
                if i == failing:
                    with tf.control_dependencies([tf.assert_less(tf.constant(0.5), limit)]):
                        x = tf.identity(x)
                xs.append(x)
        # Only one result is read: who only contributes must hear of it as well.
        y = tf.collective.all_reduce(xs)[(failing + 1) % 3]
        with tf.Session(cluster=cluster) as session:
            session.run(y, {limit: 1.0})
            with pytest.raises(errors.InvalidArgumentError) as caught:
                session.run(y, {limit: 0.0})
            return str(caught.value).splitlines()[0], session.run(y, {limit: 1.0}).tolist()

    with limits(*way):
        found = values(3, script, {"worker": 3}, seed=5)
    assert len({message for message, _ in found}) == 1
    assert [value for _, value in found] == [[3.0] * 100] * 3


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather"])
def test_shapes_that_differ_in_the_step_are_refused_on_all_ranks_with_both_places_named(kind: str) -> None:
    def script(rank: int, cluster: Cluster) -> str:
        xs = []
        for i in range(2):
            with tf.device(f"/job:worker/task:{i}"):
                xs.append(tf.placeholder(tf.float32, None, f"x{i}"))
        ys = getattr(tf.collective, kind)(xs)
        with tf.Session(cluster=cluster) as session:
            with pytest.raises(errors.InvalidArgumentError) as caught:
                session.run(ys, {xs[0]: np.zeros((2, 3)), xs[1]: np.zeros((2, 4))})
            return str(caught.value)

    for message in values(2, script, {"worker": 2}):
        assert "'x0:0' on /job:worker/task:0" in message and "'x1:0' on /job:worker/task:1" in message
        assert "(2, 3)" in message and "(2, 4)" in message


def test_a_rank_that_comes_late_to_a_collective_is_named_by_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_TIMEOUT_S", "0.5")

    def script(rank: int, cluster: Cluster) -> str:
        xs = []
        for i in range(2):
            with tf.device(f"/job:worker/task:{i}"):
                x = tf.constant([1.0])
                xs.append(x if i == 0 else tf.py_func(_slow, [x], tf.float32, name="slow"))
                xs[-1].set_shape([1])
        y = tf.collective.all_reduce(xs, name="meeting")[0]
        with tf.Session(cluster=cluster) as session:
            session.run(y)
        return ""

    def _slow(x: Array) -> Array:
        import time

        time.sleep(1.5)
        return x

    first = run_ranks(2, script, {"worker": 2})[0]
    assert isinstance(first.error, errors.DeadlineExceededError)
    assert "'meeting/reduce:0' from /job:worker/task:1 on rank 1 (for meeting/reduce, all pairs: all 0)" in str(first.error)


def test_a_small_piece_of_a_gather_goes_to_its_place_in_a_large_result() -> None:
    """The large piece travels straight into the result, the small one in a packet."""

    def script(rank: int, cluster: Cluster) -> list[list[float]]:
        xs = []
        for i, size in enumerate((2, 20_000)):
            with tf.device(f"/job:worker/task:{i}"):
                xs.append(tf.placeholder(tf.float64, [size]))
        ys = tf.collective.all_gather(xs)
        with tf.Session(cluster=cluster) as session:
            return [
                [float(y[0]), float(y[1]), float(y.sum())]
                for step in range(3)
                for y in session.run(ys, {x: np.full(x.shape, 1.0 + i + step) for i, x in enumerate(xs)})
            ]

    expected = [[1.0 + step, 1.0 + step, 2 * (1.0 + step) + 20_000 * (2.0 + step)] for step in range(3) for _ in range(2)]
    assert values(2, script, {"worker": 2}, seed=3) == [expected] * 2


# ---- devices


def test_tensors_on_gpus_are_reduced_too_and_the_results_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "2")

    def script(rank: int, cluster: Cluster) -> list[Any]:
        xs = []
        for i, device in enumerate(["task:0/gpu:1", "task:1/gpu:0", "task:1/cpu:0"]):
            with tf.device(f"/job:worker/{device}"):
                xs.append(tf.placeholder(tf.float32, [6], f"x{i}") * 1.0)
        ys = [*tf.collective.all_reduce(xs), *tf.collective.all_gather(xs), *tf.collective.reduce_scatter(xs)]
        feeds = {x.op.inputs[0]: np.arange(6) + 10 * i for i, x in enumerate(xs)}
        with tf.Session(cluster=cluster) as session:
            found = session.run(ys, feeds)
            places = [str(session.placement()[y.op.name]).rpartition("device:")[2] for y in ys]
        return [places, [v.tolist() for v in found]]

    for places, found in values(2, script, {"worker": 2}):
        assert places == ["GPU:1", "GPU:0", "CPU:0"] * 3
        total = [30 + 3 * i for i in range(6)]
        assert found[:3] == [total] * 3
        assert found[3:6] == [[*range(6), *range(10, 16), *range(20, 26)]] * 3
        assert found[6:] == [total[:2], total[2:4], total[4:]]
