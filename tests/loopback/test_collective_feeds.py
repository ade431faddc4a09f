"""Feeds of collective sessions on simulated ranks: a value counts on the rank that hosts the tensor; all ranks mean one step."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.distributed import control
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import run_ranks, values
from tests.loopback.test_collective_session import traffic_of, worker

SEEDS = [None, 1, 2]


@pytest.fixture(autouse=True)
def quick_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_STATUS_AFTER_S", 0.05)


@pytest.fixture
def no_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where control messages are counted: on a busy machine a wait may take long without a reason."""
    monkeypatch.setattr(control, "_STATUS_AFTER_S", 60.0)


@pytest.mark.parametrize("feeding", [[0, 1, 2], [1], [0, 1], [1, 2]], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("no_statuses")
def test_only_the_value_on_the_host_rank_counts(feeding: list[int], seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.placeholder(tf.float32, [2])
        with worker(0):
            y = x * 2.0
        with tf.Session(cluster=cluster) as session:
            feeds = {x: [rank, 10.0]} if rank in feeding else {}
            session.run(y, feeds)
            return session.run(y, feeds).tolist(), traffic_of(session, cluster, y, feeds).control

    assert values(3, script, {"worker": 2}, seed) == [([2.0, 20.0], 0)] * 3


def test_a_value_that_fits_on_the_host_is_enough_what_others_pass_is_not_looked_at() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.placeholder(tf.float32, [2])
            y = x + 1.0
        with tf.Session(cluster=cluster) as session:
            return session.run(y, {x: [1.0, 2.0] if rank == 1 else "anything"}).tolist()

    assert values(2, script, {"worker": 2}) == [[2.0, 3.0]] * 2


@pytest.mark.usefixtures("no_statuses")
def test_a_rank_may_leave_the_key_of_a_placeholder_out_now_and_then() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.placeholder(tf.float32, [])
            y = x + 1.0
        with tf.Session(cluster=cluster) as session:
            found = []
            for i in range(6):
                before = cluster.transport.counters.control_sent
                found.append(float(session.run(y, {x: i} if rank == 1 or i % 2 == 0 else {})))
                assert i == 0 or cluster.transport.counters.control_sent == before
            return found

    assert values(2, script, {"worker": 2}) == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 2


def test_a_feed_that_is_given_only_elsewhere_is_refused_on_every_rank_and_the_session_goes_on() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.placeholder(tf.float32, [], name="x")
            y = x + 1.0
        with tf.Session(cluster=cluster) as session:
            found: list[Any] = []
            for _ in range(2):
                tags = cluster._tags
                with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                    session.run(y, {x: 1.0} if rank != 1 else {})
                assert cluster._tags == tags
                found.append((str(caught.value), caught.value.op.name))
            found.append(float(session.run(y, {x: 1.0})))
            return found, cluster.describe_rank(1)

    for found, where in values(3, script, {"worker": 2}):
        for text, op in found[:2]:
            assert op == "x"
            assert re.sub(r"defined at .*\.py:\d+", "defined at HERE", text) == (
                f"'x:0' is fed on rank(s) 0, 2, but it lives on {where}, which doesn't feed it.\n"
                "  defined at HERE.\n"
                "  Mend: feed 'x:0' on rank 1 (or on every rank: values count only there), or pin it to another task."
            )
        assert found[2] == 2.0


def test_a_missing_feed_is_refused_on_every_rank_before_anything_runs() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.placeholder(tf.float32, [None, 2], name="x")
            y = x + 1.0
        with tf.Session(cluster=cluster) as session:
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                session.run(y)
            sent = cluster.transport.counters.messages_sent
            return caught.value.message, sent, session.run(y, {x: np.zeros((0, 2))}).shape

    message = "You must feed a value for placeholder tensor 'x' with dtype float32 and shape (?, 2)."
    assert values(2, script, {"worker": 2}) == [(message, 0, (0, 2))] * 2


@pytest.mark.parametrize("seed", SEEDS)
def test_fed_and_unfed_steps_alternate_on_all_ranks_and_never_mix_up(seed: int | None) -> None:
    """The usual flag: fed by all in some steps. Rank 0 can't see from its own keys what rank 1 passes."""

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            flag = tf.placeholder_with_default(np.float32(-1.0), [])
        with worker(0):
            count = tf.Variable(0.0)
            y = count.assign_add(flag)
        with tf.Session(cluster=cluster) as session:
            session.run(count.initializer)
            return [float(session.run(y, {flag: 10.0} if fed else {})) for fed in pattern]

    for pattern in ([1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1]):
        expected = np.cumsum([10.0 if fed else -1.0 for fed in pattern]).tolist()
        assert values(2, script, {"worker": 2}, seed) == [expected] * 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_default_fed_on_its_own_rank_only_in_some_steps_is_agreed_upon_each_time(seed: int | None) -> None:
    pattern = [1, 1, 0, 1, 1, 0, 0, 1]

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            flag = tf.placeholder_with_default(np.float32(-1.0), [])
        with worker(0):
            count = tf.Variable(0.0)
            y = count.assign_add(flag)
        with tf.Session(cluster=cluster) as session:
            session.run(count.initializer)
            return [float(session.run(y, {flag: 10.0} if fed and rank == 1 else {})) for fed in pattern]

    assert values(2, script, {"worker": 2}, seed) == [np.cumsum([10.0 if fed else -1.0 for fed in pattern]).tolist()] * 2


def test_a_default_first_fed_later_and_on_its_own_rank_only_ends_in_one_error_that_says_how_to_feed() -> None:
    """Rank 0 can't know: by its own keys the step is the one that has always been."""

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            flag = tf.placeholder_with_default(-1.0, [], name="flag")
        with worker(0):
            y = tf.negative(flag, name="y")
        session = tf.Session(cluster=cluster)
        with pytest.raises(tf.errors.AbortedError) as caught:  # a rank that is behind may hear of it in the first call already
            session.run(y)
            session.run(y, {flag: 10.0} if rank == 1 else {})
        return re.sub(r"at [^ ]*\.py:\d+", "at HERE", str(caught.value)), cluster.describe_rank(1)

    for outcome in run_ranks(3, script, {"worker": 2}):
        text, where = outcome.result()
        assert text == (
            f"ranks feed different tensors in call 1, run([y:0]) of session 0 at HERE: {where} changed which keys it passes, so that"
            " its step is not the one that the other ranks run.\n"
            "  Mend: pass the same feed keys on every rank when they change from step to step; values count only where the"
            " placeholder lives."
        )


def test_feeding_an_intermediate_tensor_instead_of_its_source_is_another_step() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.placeholder(tf.float32, [])
            middle = x * 10.0
        with worker(0):
            y = middle + 1.0
        with tf.Session(cluster=cluster) as session:
            return [float(session.run(y, {x: i} if i % 2 else {middle: i})) for i in range(5)]

    assert values(2, script, {"worker": 2}) == [[1.0, 11.0, 3.0, 31.0, 5.0]] * 2


BAD_FEEDS: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": ([1.0, 2.0, 3.0], ValueError, "Cannot feed value of shape (3,) for Tensor 'x:0', which has shape (2,)"),
    "none": (None, TypeError, "the value of the feed 'x:0' is None."),
    "lossy": (
        [1j, 0], TypeError,
        "Cannot feed a value of type complex128 for Tensor 'x:0' of type float32: something would be lost."
        " Convert it yourself if that is meant, e.g. value.astype('float32').",
    ),
    "text": (["a", "b"], ValueError, "Cannot feed a value of type <U1 for Tensor 'x:0' of type float32."),
}  # fmt: skip


class Broken:
    """A value that can't be looked at."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no memory for this")

    def __repr__(self) -> str:
        return "Broken()"


BAD_FEEDS["raises"] = (Broken(), ValueError, "Cannot feed Broken() for Tensor 'x:0' of type float32: no memory for this")


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("hosted_on", [0, 1])
@pytest.mark.parametrize("case", BAD_FEEDS.values(), ids=BAD_FEEDS)
def test_a_feed_that_does_not_fit_is_the_same_error_on_all_ranks_and_the_session_goes_on(
    case: tuple[Any, type[Exception], str], hosted_on: int, seed: int | None
) -> None:
    bad, kind, message = case

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(hosted_on):
            x = tf.placeholder(tf.float32, [2], name="x")
        with worker(1 - hosted_on):
            y = x * 2.0
        with worker(hosted_on):
            z = tf.reduce_sum(y)
        with tf.Session(cluster=cluster) as session:
            texts = []
            for i in range(4):
                with pytest.raises(kind) as caught:
                    session.run(z, {x: bad})
                texts.append(f"{type(caught.value).__name__}: {caught.value}")
                assert session.run(z, {x: [i, 1.0]}) == 2.0 * (i + 1)
            return texts, cluster.describe_rank(hosted_on)

    for texts, where in values(3, script, {"worker": 2}, seed):
        assert texts == [f"{kind.__name__}: {message}\n  failed on {where}."] * 4


def test_a_key_that_only_some_graphs_have_ends_in_one_error_on_every_rank() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            y = tf.constant(1.0)
        other = tf.placeholder(tf.float32, [], name="only_here") if rank == 1 else None
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            tf.Session(cluster=cluster).run(y, {other: 1.0} if other is not None else {})
        return caught.value.message, cluster.describe_rank(0)

    for outcome in run_ranks(2, script, {"worker": 2}):
        message, where = outcome.result()
        assert message == (
            f"ranks built different graphs: 'only_here:0', which is fed on rank(s) 1, is not in the graph of {where}."
        )
