"""Queues on one rank, used by clients of other ranks: order, back-pressure, closing, cancelling without loss."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import values

SPEC = {"ps": 1, "worker": 3}
SEEDS = [None, 1, 2]


def jobs(capacity: int = 4, dtype: Any = tf.int64, shape: Any = ()) -> Any:
    """The shared queue of these tests, as each client's graph has it."""
    with tf.device("/job:ps/task:0"):
        return tf.FIFOQueue(capacity, [dtype], [shape], shared_name="jobs")


@pytest.mark.parametrize("seed", SEEDS)
def test_two_producers_and_a_consumer_lose_nothing_keep_each_order_and_never_hold_more_than_the_capacity(seed: int | None) -> None:
    count = 60

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            return None
        queue = jobs()
        x = tf.placeholder(tf.int64, [])
        put, get, size = queue.enqueue([x]), queue.dequeue(), queue.size()
        found, sizes = [], []
        with tf.Session(server.target, cluster=cluster) as session:
            if rank < 3:
                for i in range(count):
                    session.run(put, {x: 1000 * rank + i})
            else:
                for _ in range(2 * count):
                    sizes.append(session.run(size))
                    found.append(int(session.run(get)))
        server.join()
        return found, sizes

    _, _, _, (found, sizes) = values(4, script, SPEC, seed, timeout_s=60)
    for producer in (1, 2):
        assert [v for v in found if v // 1000 == producer] == [1000 * producer + i for i in range(count)]
    assert max(sizes) <= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_a_full_queue_holds_a_producer_back_until_another_rank_takes_something(seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            return None
        queue = jobs(capacity=2)
        x = tf.placeholder(tf.int64, [])
        put, get, size = queue.enqueue([x]), queue.dequeue(), queue.size()
        with tf.Session(server.target, cluster=cluster) as session:
            if rank == 1:
                for i in (0, 1):
                    session.run(put, {x: i})
                with pytest.raises(tf.errors.DeadlineExceededError) as caught:
                    session.run(put, {x: 99}, options=tf.RunOptions(timeout_in_ms=200))
                assert caught.value.message == (
                    f"the step did not end within its timeout of 0.2 s; it was waiting for {cluster.describe_rank(0)} to end its part"
                    " of the step (there it waits for room for an element in FIFOQueue 'jobs')."
                )
                session.run(put, {x: 2})  # blocks until rank 2 takes one
                result: Any = "put"
            elif rank == 2:
                while session.run(size) < 2:
                    time.sleep(1e-3)
                time.sleep(0.3)  # by now rank 1 waits
                result = [int(session.run(get)) for _ in range(3)]
            else:
                result = None
        server.join()
        return result

    _, producer, consumer, _ = values(4, script, SPEC, seed, timeout_s=60)
    assert producer == "put" and consumer == [0, 1, 2]  # what was cancelled never happened


@pytest.mark.parametrize("seed", SEEDS)
def test_a_remote_dequeue_many_that_its_deadline_cancels_takes_nothing(seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        found: list[Any] = []
        if rank == 1:
            queue = jobs(capacity=10)
            x = tf.placeholder(tf.int64, [None])
            put, three, size = queue.enqueue_many([x]), queue.dequeue_many(3), queue.size()
            with tf.Session(server.target, cluster=cluster) as session:
                session.run(put, {x: [1, 2]})
                for _ in range(3):
                    with pytest.raises(tf.errors.DeadlineExceededError):
                        session.run(three, options=tf.RunOptions(timeout_in_ms=50))
                    while session.run(size) != 2:  # the cancelled one gives back what it had gathered
                        time.sleep(1e-3)
                session.run(put, {x: [3, 4]})
                found = [session.run(three).tolist(), int(session.run(size))]
        server.join()
        return found

    assert values(4, script, SPEC, seed, timeout_s=60)[1] == [[1, 2, 3], 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_closing_on_one_rank_ends_a_consumer_on_another_with_out_of_range_and_cancels_a_blocked_producer(seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        found: Any = []
        if rank:
            queue = jobs(capacity=2)
            x = tf.placeholder(tf.int64, [])
            put, get, size = queue.enqueue([x]), queue.dequeue(), queue.size()
            close = queue.close(cancel_pending_enqueues=True)
            with tf.Session(server.target, cluster=cluster) as session:
                if rank == 1:  # producer: the third blocks until the queue is closed
                    with pytest.raises(tf.errors.CancelledError):
                        for i in range(5):
                            session.run(put, {x: i})
                            found.append(i)
                elif rank == 2:
                    while session.run(size) < 2:
                        time.sleep(1e-3)
                    time.sleep(0.1)
                    session.run(close)
                    with pytest.raises(tf.errors.CancelledError):
                        session.run(put, {x: 7})
                else:
                    while not session.run(queue.is_closed()):
                        time.sleep(1e-3)
                    with pytest.raises(tf.errors.OutOfRangeError):
                        while True:
                            found.append(int(session.run(get)))
        server.join()
        return found

    _, put, _, got = values(4, script, SPEC, seed, timeout_s=60)
    assert put == [0, 1] and got == [0, 1]


def test_many_blocked_steps_on_one_rank_need_no_thread_each() -> None:
    blocked = 30

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        threads: list[threading.Thread] = []
        grown, found = 0, []
        if rank == 1:
            queue = jobs(capacity=100)
            x = tf.placeholder(tf.int64, [])
            put, get, size = queue.enqueue([x]), queue.dequeue(), queue.size()
            with tf.Session(server.target, cluster=cluster) as session:
                for i in range(20):  # the programs have shown that they are short
                    session.run(put, {x: -i})
                    session.run(get)
                    session.run(size)
                pool = [t for t in threading.enumerate() if t.name == "mpirt worker of rank 0"]
                threads = [threading.Thread(target=lambda: found.append(int(session.run(get)))) for _ in range(blocked)]
                for thread in threads:
                    thread.start()
                steps = cluster.master.steps
                while len(steps) < blocked:
                    time.sleep(1e-3)
                session.run(size)
                grown = len([t for t in threading.enumerate() if t.name == "mpirt worker of rank 0"]) - len(pool)
                for i in range(blocked):
                    session.run(put, {x: i})
                for thread in threads:
                    thread.join(20)
        server.join()
        return grown, sorted(found)

    grown, found = values(2, script, {"ps": 1, "worker": 1}, timeout_s=60)[1]
    assert found == list(range(blocked))
    assert grown <= 0


def test_a_tensor_of_another_rank_goes_through_a_queue_unharmed() -> None:
    rows = np.arange(12.0).reshape(3, 4)

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        found = None
        if rank == 1:
            queue = jobs(dtype=tf.float64, shape=[4])
            with tf.device("/job:worker/task:1"):
                made = tf.constant(rows) * 2.0
            with tf.device("/job:worker/task:2"):
                taken = queue.dequeue_many(3) + 1.0
            with tf.Session(server.target, cluster=cluster) as session:
                session.run(queue.enqueue_many([made]))
                found = session.run(taken)
        server.join()
        return found

    np.testing.assert_array_equal(values(4, script, SPEC, timeout_s=30)[1], 2 * rows + 1)
