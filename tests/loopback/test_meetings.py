"""Reductions on boards, over simulated ranks: what numpy gives, whoever fails, whoever holds what, and whether there is a board or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt import errors
from mpirt.compiler import exchange
from mpirt.distributed.cluster import Cluster
from mpirt.runtime import meetings
from mpirt.transport import board
from mpirt.transport.window import Window
from tests.loopback.simulated_ranks import run_ranks, values
from tests.loopback.test_random_graphs import table

Array = np.ndarray[Any, Any]
WHOLE, IN_PARTS = 1 << 30, 0  # `exchange.ALL_PAIRS_NBYTES` that make reductions of any size go one way

pytestmark = pytest.mark.skipif(not board.USABLE or not hasattr(os, "memfd_create"), reason="ranks share no boards here")


@contextmanager
def way(limit: int) -> Iterator[None]:
    with mock.patch.object(exchange, "ALL_PAIRS_NBYTES", limit):
        yield


def feeds(count: int, shape: tuple[int, ...], dtype: Any = np.float32) -> list[tf.Tensor]:
    xs = []
    for i in range(count):
        with tf.device(f"/job:worker/task:{i}"):
            xs.append(tf.placeholder(dtype, shape, f"x{i}"))
    return xs


def random(step: int, task: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return (np.random.default_rng([step, task]).normal(size=shape) * 100).astype(dtype)


def in_order(arrays: list[Array], reduction: str) -> Array:
    """The reduction from the first to the last, with the roundings of the type."""
    functions: dict[str, Any] = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}
    total = arrays[0]
    for array in arrays[1:]:
        total = functions[reduction](total, array)
    return (total / total.dtype.type(len(arrays))).astype(total.dtype) if reduction == "mean" else total


@settings(max_examples=25)
@given(
    ranks=st.integers(2, 5),
    sizes=st.lists(st.sampled_from([1, 2, 5, 63, 1000, 1024, 3001, 20_000]), min_size=1, max_size=3),
    reductions=st.lists(st.sampled_from(["sum", "mean", "max", "min"]), min_size=3, max_size=3),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    limit=st.sampled_from([WHOLE, IN_PARTS, 4000]),
    scalar=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_all_ranks_get_the_bits_of_the_reduction_in_rank_order_step_after_step_with_no_message(
    ranks: int, sizes: list[int], reductions: list[str], dtype: Any, limit: int, scalar: bool, seed: int | None
) -> None:
    shapes: list[tuple[int, ...]] = [(), *[(size,) for size in sizes]][not scalar :]
    steps = 5

    def script(rank: int, cluster: Cluster) -> Any:
        xs = [feeds(ranks, shape, dtype) for shape in shapes]
        found = []
        with tf.Session(cluster=cluster, fetch_on="owner") as session:
            all_ys = [tf.collective.all_reduce(x, how) for x, how in zip(xs, reductions, strict=False)]
            for step in range(steps):
                fed = {x: random(step, i, shape, dtype) for tower, shape in zip(xs, shapes, strict=True) for i, x in enumerate(tower)}
                found.append([y[rank] for y in session.run(all_ys, fed)])
        return found

    with way(limit):
        found = values(ranks, script, {"worker": ranks}, seed)
    for of_rank in found:
        for step, here in enumerate(of_rank):
            for value, shape, how in zip(here, shapes, reductions, strict=False):
                expected = in_order([random(step, i, shape, dtype) for i in range(ranks)], how)
                assert value.dtype == dtype and np.asarray(value).tobytes() == np.asarray(expected).tobytes(), (step, shape, how)


@pytest.mark.parametrize("limit", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_after_the_first_step_a_reduction_takes_no_message_and_reads_the_bytes_of_its_plan(limit: int) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        xs = feeds(3, (3000,))
        ys = tf.collective.all_reduce(xs)
        sums = []
        for y, task in zip(ys, range(3), strict=True):
            with tf.device(f"/job:worker/task:{task}"):
                sums.append(tf.identity(y))
        counters = cluster.transport.counters
        with tf.Session(cluster=cluster, fetch_on="owner") as session:
            fed = {x: random(0, i, (3000,)) for i, x in enumerate(xs)}
            session.run(sums, fed)
            before = counters.messages_sent, counters.windows_sent, counters.window_bytes_sent, counters.window_bytes_received
            session.run(sums, fed)
            after = counters.messages_sent, counters.windows_sent, counters.window_bytes_sent, counters.window_bytes_received
            return [b - a for a, b in zip(before, after, strict=True)], session.traffic(sums, fed)

    with way(limit):
        found = values(3, script, {"worker": 3})
    totals = np.sum([counts for counts, _ in found], 0).tolist()
    planned = found[0][1]
    assert totals[0] == planned["messages"] == 0, "who has met the others knows that they have come to their end"
    assert totals[2] == totals[3] == planned["window_nbytes"] == (6 if limit == WHOLE else 4) * 12_000


@pytest.mark.parametrize("limit", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_without_shared_memory_the_same_bits_come_in_messages(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        xs = feeds(3, (777,))
        with tf.Session(cluster=cluster) as session:
            ys = tf.collective.all_reduce(xs)
            found = [session.run(ys, {x: random(step, i, (777,)) for i, x in enumerate(xs)}) for step in range(2)]
            return [y.tobytes() for here in found for y in here], cluster.transport.counters.windows_sent

    with way(limit):
        on_boards = values(3, script, {"worker": 3})
        monkeypatch.setenv("MPIRT_SHM", "0")
        in_messages = values(3, script, {"worker": 3})
    assert [bits for bits, _ in on_boards] == [bits for bits, _ in in_messages]
    assert all(count for _, count in on_boards) and not any(count for _, count in in_messages)


def test_a_result_that_a_function_keeps_stays_what_it_is_whatever_rank_keeps_it() -> None:
    """Large results lie on the board, where the next step would write over them."""
    shape, steps = (5000,), 6

    def script(rank: int, cluster: Cluster) -> Any:
        kept: list[Array] = []

        def keep(y: Array, step: Array) -> Array:
            if step in (1, 2, 4):
                kept.append(y[10:] if step == 2 else y)  # also a part holds the whole
            return np.float32(y[0])

        xs, number = feeds(2, shape), tf.placeholder(tf.int32, [], "step")
        y = tf.collective.all_reduce(xs)
        with tf.device("/job:worker/task:1"):
            first = tf.py_func(keep, [y[1], number], tf.float32)
        with tf.Session(cluster=cluster) as session:
            for step in range(steps):
                found = session.run([first, y[0]], {number: step, **{x: random(step, i, shape) for i, x in enumerate(xs)}})
                expected = random(step, 0, shape) + random(step, 1, shape)
                assert found[0] == expected[0] and (found[1] == expected).all(), step
        return kept

    with way(IN_PARTS):
        none, kept = values(2, script, {"worker": 2})
    assert not none and len(kept) == 3
    for step, array in zip((1, 2, 4), kept, strict=True):
        assert (array == (random(step, 0, shape) + random(step, 1, shape))[10 if step == 2 else 0 :]).all(), step


def test_two_reductions_of_the_same_tensors_are_two_meetings() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        xs = feeds(2, (100,))
        ys = [tf.collective.all_reduce(xs, how) for how in ("sum", "max", "min")]
        with tf.Session(cluster=cluster) as session:
            return [y[rank] for y in session.run(ys, {x: random(0, i, (100,)) for i, x in enumerate(xs)})]

    a, b = random(0, 0, (100,)), random(0, 1, (100,))
    for total, high, low in values(2, script, {"worker": 2}):
        assert (total == a + b).all() and (high == np.maximum(a, b)).all() and (low == np.minimum(a, b)).all()


@pytest.mark.parametrize("limit", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_a_bucket_and_tensors_of_one_rank_are_made_on_the_board(limit: int) -> None:
    """Four tasks on two ranks, five small tensors each: one bucket."""

    def script(rank: int, cluster: Cluster) -> Any:
        towers = [feeds(4, (7 + n,)) for n in range(5)]
        ys = [tf.collective.all_reduce(xs, "mean") for xs in towers]
        with tf.Session(cluster=cluster) as session:
            found = []
            for step in range(4):
                fed = {x: random(step, i, (7 + n,)) for n, xs in enumerate(towers) for i, x in enumerate(xs)}
                found.append([y[2 + rank] for y in session.run(ys, fed)])
            return found

    with way(limit):
        found = values(2, script, table(2, (0, 1, 0, 1)))
    for of_rank in found:
        for step, here in enumerate(of_rank):
            for n, value in enumerate(here):
                x = [random(step, i, (7 + n,)) for i in range(4)]
                assert (value == ((x[0] + x[2]) + (x[1] + x[3])) / np.float32(4)).all()


# ---- failures


@settings(max_examples=15)
@given(
    limit=st.sampled_from([WHOLE, IN_PARTS]),
    failing=st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=3, max_size=7),
    seed=st.integers(0, 1 << 20),
)
def test_whoever_fails_in_whatever_step_all_ranks_end_it_and_the_next_one_is_well(
    limit: int, failing: list[int | None], seed: int
) -> None:
    """Also in the first one, in which nobody knows yet where the board is, and in several in a row."""

    def script(rank: int, cluster: Cluster) -> list[Any]:
        xs, well = feeds(3, (50,)), feeds(3, ())
        checked = []
        for i in range(3):
            with tf.device(f"/job:worker/task:{i}"), tf.control_dependencies([tf.assert_less(tf.constant(0.5), well[i])]):
                checked.append(tf.identity(xs[i]))
        first = tf.collective.all_reduce(checked)
        second = tf.collective.all_reduce(first, "max")
        found: list[Any] = []
        with tf.Session(cluster=cluster) as session:
            for step, failure in enumerate([*failing, None]):
                fed = {x: random(step, i, (50,)) for i, x in enumerate(xs)}
                fed.update({w: np.float32(i != failure) for i, w in enumerate(well)})
                try:
                    found.append(session.run(second, fed)[rank])
                except errors.InvalidArgumentError as error:
                    found.append(str(error).splitlines()[0])
        return found

    with way(limit):
        outcomes = values(3, script, {"worker": 3}, seed)
    for step, failure in enumerate([*failing, None]):
        here = [found[step] for found in outcomes]
        if failure is not None:
            assert isinstance(here[0], str) and len(set(here)) == 1, "all ranks report the same failure"
        else:
            expected = in_order([random(step, i, (50,)) for i in range(3)], "sum")
            assert all((value == expected).all() for value in here), step


@pytest.mark.parametrize("limit", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_a_board_for_which_there_is_no_memory_is_an_error_on_all_ranks_and_is_asked_for_again(limit: int) -> None:
    refusals = iter([True, False])

    class Scarce(Window):
        def __init__(self, *args: Any) -> None:
            self.descriptor = -1
            if next(refusals, False):
                raise OSError("8192 bytes of shared memory are more than half of the 12 bytes that are left here.")
            super().__init__(*args)

    def script(rank: int, cluster: Cluster) -> Any:
        xs = feeds(2, (50,))
        ys = tf.collective.all_reduce(xs)
        fed = {x: random(0, i, (50,)) for i, x in enumerate(xs)}
        with tf.Session(cluster=cluster) as session:
            with pytest.raises(errors.ResourceExhaustedError) as caught:
                session.run(ys, fed)
            return str(caught.value), session.run(ys, fed)[rank]

    with way(limit), mock.patch.object(meetings, "Window", Scarce):
        found = values(2, script, {"worker": 2})
    for message, value in found:
        assert "bytes of memory that ranks share: 8192 bytes of shared memory are more than half" in message and "MPIRT_SHM=0" in message
        assert (value == random(0, 0, (50,)) + random(0, 1, (50,))).all()


@pytest.mark.parametrize("limit", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
@pytest.mark.parametrize("late", [0, 1])
def test_who_comes_late_is_named_by_those_that_wait(limit: int, late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_TIMEOUT_S", "0.5")

    def script(rank: int, cluster: Cluster) -> None:
        import threading

        xs, waits = [], threading.Event()
        for i in range(2):
            with tf.device(f"/job:worker/task:{i}"):
                x = tf.constant([1.0])
                xs.append(tf.py_func(lambda v: (waits.wait(1.5), v)[1], [x], tf.float32) if i == late else x)
                xs[-1].set_shape([1])
        ys = tf.collective.all_reduce(xs, name="meeting")
        with tf.Session(cluster=cluster) as session:
            session.run(ys)

    with way(limit):
        error = run_ranks(2, script, {"worker": 2})[1 - late].error
    assert isinstance(error, errors.DeadlineExceededError)
    assert f"'meeting/reduce:0' from /job:worker/task:{late} on rank {late} (for meeting/reduce, " in str(error)
