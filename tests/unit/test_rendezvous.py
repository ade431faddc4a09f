"""Both ends of one transfer: what travels, dead tensors, credit, and waits that are given up half-way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.program import FETCH, Transfer
from mpirt.graph.graph import Graph, Tensor
from mpirt.runtime.rendezvous import HEADER_BYTES, DeadTensor, Incoming, Outgoing
from mpirt.transport import base
from mpirt.transport.base import wait_until
from mpirt.transport.loopback import LoopbackTransport, LoopbackWorld

SEEDS = [None, *range(6)]


class GivenUp(Exception):  # noqa: N818
    """The deadline of this test's waits."""


def patient(ready: Callable[[], bool], what: Callable[[], str]) -> None:
    wait_until(ready, what, timeout_s=10)


def impatient(ready: Callable[[], bool], what: Callable[[], str]) -> None:
    for _ in range(200):  # more than an adversary holds a message back
        if ready():
            return
    raise GivenUp(what())


def transfer_of(source: Tensor, reason: str) -> Transfer:
    shape = source.static_shape
    known = None if shape is None or None in shape else tuple(size for size in shape if size is not None)
    return Transfer(0, source.name, source.dtype.base_dtype, known, 0, 1, Task("a", 0), reason)


class Pair:
    """Sender on rank 0 and receiver on rank 1 of one transfer."""

    def __init__(self, source: Tensor, seed: int | None = None, wait: Any = patient, reason: str = "/job:b/task:0"):
        world = LoopbackWorld(2, seed=seed)
        self.transports: list[LoopbackTransport] = [world.transport(0), world.transport(1)]
        transfer = transfer_of(source, reason)
        self.outgoing = Outgoing(self.transports[0], transfer, 5, wait)
        self.incoming = Incoming(self.transports[1], transfer, 5, wait)

    def send(self, value: Any) -> Any:
        self.incoming.post()
        self.outgoing.send(value)
        return self.incoming.take()

    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not self.transports[0].world._channels


def tensor(dtype: Any, shape: Any) -> Tensor:
    with Graph().as_default():
        found: Tensor = tf.placeholder(dtype, shape, name="x")
        return found


CASES: list[tuple[Any, Any, Any]] = [
    (tf.float32, [2, 3], np.arange(6, dtype=np.float32).reshape(2, 3)),
    (tf.float32, [2, 3], np.arange(6, dtype=np.float32).reshape(3, 2).T),  # not in C order
    (tf.float64, [], np.float64(1.5)),
    (tf.bool, [3], np.array([True, False, True])),
    (tf.int8, [0, 4], np.empty((0, 4), np.int8)),
    (tf.int64, None, np.int64(7)),
    (tf.int64, [None], np.arange(3)),
    (tf.int64, [None], np.arange((HEADER_BYTES - 24) // 8)),  # the last that fits behind its header
    (tf.int64, [None], np.arange((HEADER_BYTES - 24) // 8 + 1)),
    (tf.int64, None, np.zeros((2, 0, 3), np.int64)),
    (tf.complex64, [None, None], np.full((40, 50), 1j, np.complex64).T),
    (tf.string, [2], np.array([b"", b"\x00" * 3000], object)),
    (tf.string, None, np.array(b"one", object)),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("dtype", "shape", "value"), CASES)
def test_what_arrives_is_what_was_sent(dtype: Any, shape: Any, value: Any, seed: int | None) -> None:
    pair = Pair(tensor(dtype, shape), seed)
    for _ in range(3):
        found = pair.send(value)
        assert found.shape == value.shape and found.dtype == value.dtype and found.tolist() == value.tolist()
    assert pair.empty()


def test_a_tensor_of_static_shape_travels_alone_and_an_unknown_one_behind_a_header_of_its_size() -> None:
    cases: list[tuple[Tensor, Any, int, int]] = [
        (tensor(tf.float32, [10]), np.zeros(10, np.float32), 1, 40),
        (tensor(tf.float32, [0]), np.zeros(0, np.float32), 1, 1),
        (tensor(tf.float32, [None]), np.zeros(10, np.float32), 1, 24 + 40),
        (tensor(tf.float32, [None, 1]), np.zeros((1000, 1), np.float32), 2, 32 + 4000),
    ]
    for source, value, messages, nbytes in cases:
        pair = Pair(source)
        pair.send(value)
        counters = pair.transports[0].counters
        assert (counters.messages_sent, counters.bytes_sent) == (messages, nbytes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [[4], [0], None, [1000]], ids=str)
def test_a_dead_tensor_tells_the_receiver_and_the_next_step_is_a_good_one(shape: Any, seed: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(base, "CHUNK_NBYTES", 100)  # so that some of these travel in several messages
    value = np.ones(5000 if shape is None else shape)
    pair = Pair(tensor(tf.float64, shape), seed)
    for step in range(6):
        pair.incoming.post()
        if step % 2:
            pair.outgoing.send(value)
            assert pair.incoming.take().tolist() == value.tolist()
        else:
            pair.outgoing.send_dead()
            with pytest.raises(DeadTensor):
                pair.incoming.take()
    assert pair.empty()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wait_given_up_between_header_and_tensor_goes_on_where_it_stopped(seed: int | None) -> None:
    pair = Pair(tensor(tf.float64, [None]), seed, impatient)
    header = np.array([8000, 1, 1000], np.int64).view(np.uint8)
    content = np.arange(1000.0)
    for finish in (pair.incoming.drain, pair.incoming.take):
        pair.incoming.post()
        pair.transports[0].isend(header, 1, 5, HEADER_BYTES)
        with pytest.raises(GivenUp, match=r"^tensor 'x:0' from /job:a/task:0 on rank 0 \(for /job:b/task:0\)$"):
            pair.incoming.take()
        with pytest.raises(GivenUp):  # again and again; no second receive is posted
            pair.incoming.drain()
        pair.transports[0].isend(content, 1, 5)
        found = finish()
        assert found is None or found.tolist() == content.tolist()
        assert pair.empty()
    assert pair.send(np.arange(2.0)).tolist() == [0.0, 1.0]


def test_a_receive_that_was_taken_or_never_posted_needs_no_draining() -> None:
    pair = Pair(tensor(tf.float64, [1]))
    pair.incoming.drain()
    pair.send(np.ones(1))
    pair.incoming.drain()
    assert pair.transports[1].counters.messages_received == 1


def test_a_second_send_waits_for_the_first_but_the_news_of_a_failure_does_not() -> None:
    pair = Pair(tensor(tf.float64, [1]), wait=impatient)
    pair.outgoing._requests.append(Never())
    with pytest.raises(GivenUp, match="^rank 1 to receive 'x:0' of the step before$"):
        pair.outgoing.send(np.ones(1))
    assert pair.outgoing.pending() and pair.transports[0].counters.messages_sent == 0
    pair.outgoing.send_dead()
    assert pair.transports[0].counters.messages_sent == 1
    pair.incoming.post()
    with pytest.raises(DeadTensor):
        pair.incoming.take()


class Never:
    """A send that never completes."""

    def test(self) -> bool:
        return False

    def nbytes(self) -> int:
        return 0

    def cancel(self) -> bool:
        return False


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros(2, np.float32), np.zeros((1, 2))], ids=["size", "type", "ndim"])
def test_a_value_that_breaks_its_static_shape_is_not_sent(value: Any) -> None:
    pair = Pair(tensor(tf.float64, [2]))
    with pytest.raises(tf.errors.InternalError) as caught:
        pair.outgoing.send(value)
    assert caught.value.message == (
        f"'x:0' has shape {value.shape} and type {value.dtype}, but its static shape is (2,) and its type float64."
    )
    assert pair.transports[0].counters.messages_sent == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [[3], None])
def test_memory_of_the_user_is_copied_where_only_a_fetch_wants_it(seed: int, shape: Any) -> None:
    pair = Pair(tensor(tf.float64, shape), seed, reason=FETCH)
    value = np.ones(3)
    view = value.view()
    view.flags.writeable = False
    pair.outgoing.send(view)
    value[:] = -1.0
    pair.incoming.post()
    assert pair.incoming.take().tolist() == [1.0] * 3


def test_each_step_s_array_is_the_receiver_s_own() -> None:
    """Large buffers are used again, but only when nobody holds the array or a view of it."""
    n = 1 << 20
    pair = Pair(tensor(tf.uint8, [n]))
    held = [pair.send(np.full(n, i, np.uint8)) for i in range(3)]
    view = pair.send(np.full(n, 9, np.uint8))[5:7]
    for i in range(3):
        pair.send(np.full(n, 100 + i, np.uint8))
    assert [set(np.unique(a).tolist()) for a in held] == [{0}, {1}, {2}] and view.tolist() == [9, 9]
