"""What crosses ranks is what the plan says, to the byte; once a signature has run, nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pytest

import mpirt as tf
from mpirt.transport import base, board
from mpirt.transport.base import Counters


@pytest.fixture(autouse=True)
def cluster(nranks: int) -> Iterator[tf.Cluster]:
    """One worker a rank."""
    yield tf.cluster({"worker": nranks})


def on(task: int) -> str:
    return f"/job:worker/task:{task}"


def traffic_of(cluster: tf.Cluster, steps: int, step: Callable[[], object]) -> dict[str, int]:
    """What this rank's transport counted during ``steps`` calls of ``step``, when all messages have been received."""
    before = Counters(**asdict(cluster.transport.counters))
    for _ in range(steps):
        step()
    return {name: value - asdict(before)[name] for name, value in asdict(cluster.transport.counters).items()}


NO_WINDOWS = {"windows_sent": 0, "window_bytes_sent": 0, "windows_received": 0, "window_bytes_received": 0}
NO_MESSAGES = {"messages_sent": 0, "bytes_sent": 0, "messages_received": 0, "bytes_received": 0}
NO_BOXES = {"boxes_sent": 0, "box_bytes_sent": 0, "boxes_received": 0, "box_bytes_received": 0}
NO_CONTROL = {"control_sent": 0, "control_received": 0}


@pytest.mark.ranks([2, 4])
@pytest.mark.parametrize("shared", [True, False], ids=["through boxes", "in messages"])
def test_a_steady_step_moves_the_bytes_of_its_plan_and_sends_no_control_message(
    cluster: tf.Cluster, nranks: int, rank: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank's vector goes to rank 0, once though two operations read it; their sum, fetched, goes to all others."""
    if not shared:
        monkeypatch.setattr(cluster.transport, "memory", range(nranks))  # as on hosts of their own
    vectors = []
    for task in range(nranks):
        with tf.device(on(task)):
            x = tf.placeholder(tf.float32, [1000], f"x{task}")
            vectors.append((x, x * 2))
    with tf.device(on(0)):
        total = tf.add_n([v for _, v in vectors]) + tf.add_n([v for _, v in vectors])
    feeds = {x: np.full(1000, task, np.float32) for task, (x, _) in enumerate(vectors)}
    others = nranks - 1
    with tf.Session() as session:
        expected = np.full(1000, 4.0 * sum(range(nranks)))
        np.testing.assert_array_equal(session.run(total, feeds), expected)
        counted = traffic_of(cluster, 10, lambda: session.run(total, feeds))
        promised = session.traffic(total, feeds)
    packets = 10 * (others if rank == 0 else 1)  # as many come as go
    through = {"sent": packets, "bytes_sent": packets * 4000, "received": packets, "bytes_received": packets * 4000}
    if shared:
        assert promised == {"messages": 0, "nbytes": 0, "window_nbytes": 2 * others * 4000}
        boxed = {f"{'box' if 'bytes' in name else 'boxes'}_{name}": count for name, count in through.items()}
        assert counted == {**NO_MESSAGES, **NO_WINDOWS, **boxed, **NO_CONTROL}
    else:
        assert promised == {"messages": 2 * others, "nbytes": 2 * others * 4000, "window_nbytes": 0}
        sent = {name if "bytes" in name else f"messages_{name}": count for name, count in through.items()}
        assert counted == {**sent, **NO_WINDOWS, **NO_BOXES, **NO_CONTROL}


@pytest.mark.ranks(3)
@pytest.mark.parametrize("boxes", [True, False], ids=["word in a box", "word in a message"])
def test_a_large_tensor_goes_through_a_window_and_a_word_tells_of_it(
    cluster: tf.Cluster, nranks: int, rank: int, boxes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 MiB goes round all ranks and comes back; what is fetched goes to the others as a message."""
    if not boxes:
        monkeypatch.setattr(board, "USABLE", False)  # as on a processor that doesn't keep stores in order
    n = 1 << 18
    with tf.device(on(0)):
        x = tf.placeholder(tf.float32, [n], "x")
        y = x + 1
    for task in range(1, nranks):
        with tf.device(on(task)):
            y = 2 * y
    with tf.device(on(0)):
        back = tf.identity(y, name="back")
    sent = np.arange(n, dtype=np.float32)
    others = nranks - 1
    with tf.Session() as session:
        np.testing.assert_array_equal(session.run(back, {x: sent}), (sent + 1) * 2**others)
        counted = traffic_of(cluster, 10, lambda: session.run(back, {x: sent}))
        promised = session.traffic(back, {x: sent})
    words = 0 if boxes else nranks  # in messages
    assert promised == {"messages": words + others, "nbytes": 16 * words + others * 4 * n, "window_nbytes": nranks * 4 * n}
    whole_out, whole_in = (others, 0) if rank == 0 else (0, 1)
    boxed, word = (1, 0) if boxes else (0, 1)
    assert counted == {
        "messages_sent": 10 * (word + whole_out),
        "bytes_sent": 10 * (16 * word + whole_out * 4 * n),
        "messages_received": 10 * (word + whole_in),
        "bytes_received": 10 * (16 * word + whole_in * 4 * n),
        "windows_sent": 10,
        "window_bytes_sent": 10 * 4 * n,
        "windows_received": 10,
        "window_bytes_received": 10 * 4 * n,
        "boxes_sent": 10 * boxed,
        "box_bytes_sent": 160 * boxed,
        "boxes_received": 10 * boxed,
        "box_bytes_received": 160 * boxed,
        **NO_CONTROL,
    }


@pytest.mark.ranks(3)
def test_of_what_its_owner_alone_gets_the_others_hear_in_one_byte(cluster: tf.Cluster, rank: int) -> None:
    with tf.device(on(1)):
        v = tf.Variable(np.arange(6.0), name="v")
        grown = v.assign_add(np.ones(6))
    with tf.Session(fetch_on="owner") as session:
        session.run(v.initializer)
        session.run(grown)
        counted = traffic_of(cluster, 5, lambda: session.run(grown))
        assert session.traffic(grown) == {"messages": 0, "nbytes": 0, "window_nbytes": 2}
        value = session.run(grown)
    sent, received = (2, 0) if rank == 1 else (0, 1)
    assert counted["boxes_sent"] == counted["box_bytes_sent"] == 5 * sent
    assert counted["boxes_received"] == counted["box_bytes_received"] == 5 * received
    assert counted["messages_sent"] == counted["messages_received"] == 0
    assert counted["control_sent"] == counted["control_received"] == 0
    if rank == 1:
        np.testing.assert_array_equal(value, np.arange(6.0) + 7)
    else:
        assert value is None


@pytest.mark.ranks(2)
def test_a_control_edge_between_ranks_is_one_byte(cluster: tf.Cluster, rank: int) -> None:
    with tf.device(on(0)):
        v = tf.Variable(0.0, name="v")
        grown = v.assign_add(1.0).op
    with tf.device(on(1)), tf.control_dependencies([grown]):
        after = tf.constant(2.0, name="after")
    with tf.Session() as session:
        session.run(v.initializer)
        session.run(after)
        promised = session.traffic(after)
        assert promised == {"messages": 0, "nbytes": 0, "window_nbytes": 1 + 4}, "the edge, and the fetched value on its way back"
        counted = traffic_of(cluster, 3, lambda: session.run(after))
    assert counted["box_bytes_sent"] == 3 * (1 if rank == 0 else 4)
    assert counted["box_bytes_received"] == 3 * (4 if rank == 0 else 1)
    assert counted["messages_sent"] == counted["messages_received"] == 0
    assert counted["control_sent"] == counted["control_received"] == 0


@pytest.mark.ranks(3)
@pytest.mark.parametrize("static", [True, False], ids=["known shape", "unknown shape"])
def test_a_tensor_larger_than_a_message_may_be_travels_in_chunks(
    cluster: tf.Cluster, nranks: int, rank: int, monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    """A chunk of 1 MiB stands for the 1 GiB of real life: 5 MiB and a bit go round all ranks and come back."""
    monkeypatch.setattr(base, "CHUNK_NBYTES", 2**20)
    monkeypatch.setattr(cluster.transport, "memory", range(nranks))  # as on hosts of their own: no windows
    sent = np.random.default_rng(7).integers(0, 256, 5 * 2**20 + 3, np.uint8)
    with tf.device(on(0)):
        x = tf.placeholder(tf.uint8, [sent.size] if static else [None], "x")
        y = tf.identity(x)
    for task in range(1, nranks):
        with tf.device(on(task)):
            y = 255 - y
    with tf.device(on(0)):
        back = tf.identity(y, name="back")
    with tf.Session(fetch_on="owner") as session:
        for _ in range(2):
            got = session.run(back, {x: sent})
        counted = traffic_of(cluster, 2, lambda: session.run(back, {x: sent}))
    if rank == 0:
        np.testing.assert_array_equal(got, sent if nranks % 2 else 255 - sent)
    else:
        assert got is None
    headers = 0 if static else 1  # of 24 bytes: size, ndim, length
    told, heard = (nranks - 1, 0) if rank == 0 else (0, 1)  # that the fetch is there: a byte each
    assert counted["messages_sent"] == 2 * (1 + headers + told)
    assert counted["messages_received"] == 2 * (1 + headers + heard)
    assert counted["bytes_sent"] == 2 * (sent.size + 24 * headers + told)
    assert counted["bytes_received"] == 2 * (sent.size + 24 * headers + heard)
    assert counted["control_sent"] == counted["control_received"] == 0


@pytest.mark.ranks(3)
def test_tensors_whose_shape_is_not_known_cross_with_their_shape(cluster: tf.Cluster) -> None:
    with tf.device(on(1)):
        x = tf.placeholder(tf.float64, name="x")
        doubled = x * 2
    with tf.device(on(0)):
        shape, total = tf.shape(doubled), tf.reduce_sum(doubled)
    values: list[npt.NDArray[np.float64]] = [np.ones(each) for each in ((), (2, 0, 3), (1, 2, 3), (300, 7), (4,))]
    with tf.Session() as session:
        for value in values:
            got, its_shape, its_sum = session.run([doubled, shape, total], {x: value})
            np.testing.assert_array_equal(got, 2 * value)
            assert np.shape(got) == np.shape(value)
            assert tuple(its_shape) == np.shape(value) and its_sum == 2 * np.sum(value)


@pytest.mark.ranks(3)
def test_strings_cross_ranks_byte_for_byte(cluster: tf.Cluster) -> None:
    with tf.device(on(1)):
        words = tf.placeholder(tf.string, [None, None], "words")
        same = tf.identity(words)
    with tf.device(on(0)):
        picked = tf.gather(same, [1, 0])
    with tf.Session() as session:
        values: list[list[list[bytes]]] = [[[b"", b"\0\xff\0"], ["größe".encode(), b"x" * 5000]], [[], []], [[b"a"], [b""]]]
        for value in values:
            got, swapped = session.run([same, picked], {words: value})
            assert got.tolist() == value
            assert swapped.tolist() == value[::-1]
            assert got.shape == np.array(value, object).shape
