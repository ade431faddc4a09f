"""QueueRunner: how the end of the input, errors and stops go through threads, queues and their coordinator."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.train import Coordinator, QueueRunner

I = tf.int32  # noqa: E741


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def counting(limit: int = 2**31 - 1, capacity: int = 5) -> tuple[tf.FIFOQueue, tf.Operation]:
    """A queue, and an operation that puts in 0, 1, ... and is out of range after ``limit`` - 1."""
    counter = tf.Variable(0, trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
    q = tf.FIFOQueue(capacity, I, shapes=[()], name="q")
    return q, q.enqueue(tf.count_up_to(counter, limit))


def initialised() -> tf.Session:
    session = tf.Session()
    session.run(tf.local_variables_initializer())
    return session


def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
    assert [t.name for t in threads if t.is_alive()] == []


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(20_000):
        if condition():
            return
        pause.wait(0.001)
    pytest.fail("it never happened")


def take_all(session: tf.Session, fetch: Any) -> list[Any]:
    """Values until the input has ended."""
    call, values = session.make_callable(fetch), []
    while True:
        try:
            values.append(call())
        except tf.errors.OutOfRangeError:
            return values


def test_a_runner_fills_its_queue_and_closes_it_when_the_input_has_ended() -> None:
    q, put = counting(20)
    runner = QueueRunner(q, [put])
    with initialised() as session:
        threads = runner.create_threads(session, start=True)
        assert take_all(session, q.dequeue()) == list(range(20))
        ended(threads)
        assert session.run(q.is_closed())
    assert runner.exceptions_raised == []


def test_the_queue_is_closed_by_the_last_of_several_threads() -> None:
    q, put = counting(200)
    other = tf.Variable(1000, trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
    put_other = q.enqueue(tf.count_up_to(other, 1003))
    runner = QueueRunner(q, [put] * 3 + [put_other])
    with initialised() as session:
        threads = runner.create_threads(session, start=True)
        assert [t.name for t in threads] == ["QueueRunnerThread-q-q_enqueue"] * 3 + ["QueueRunnerThread-q-q_enqueue_1"]
        assert sorted(take_all(session, q.dequeue())) == [*range(200), 1000, 1001, 1002]
        ended(threads)


def test_a_stop_ends_the_enqueues_that_wait_and_closes_the_queue() -> None:
    q, put = counting()
    coord = Coordinator()
    with initialised() as session:
        threads = QueueRunner(q, [put, put]).create_threads(session, coord, start=True)
        assert [t.name for t in threads[2:]] == ["QueueRunnerThread-q-close_on_stop"]
        until(lambda: session.run(q.size()) == 5)
        coord.request_stop()
        coord.join(stop_grace_period_secs=20)
        assert session.run(q.is_closed())
        ended(threads)


def test_an_error_of_a_thread_stops_the_others_and_is_raised_by_join() -> None:
    q, put = counting()
    x = tf.placeholder(I, [], name="x")
    bad = q.enqueue(x)
    coord = Coordinator()
    with initialised() as session:
        threads = QueueRunner(q, [put, bad]).create_threads(session, coord, start=True)
        with pytest.raises(tf.errors.InvalidArgumentError, match="You must feed a value for placeholder tensor 'x'"):
            coord.join(stop_grace_period_secs=20)
        ended(threads)
        assert session.run(q.is_closed())


def test_without_a_coordinator_errors_are_kept_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    q, _ = counting()
    runner = QueueRunner(q, [q.enqueue(tf.placeholder(I, [], name="x"), name="bad")])
    with initialised() as session, caplog.at_level(logging.ERROR, "mpirt"):
        ended(runner.create_threads(session, start=True))
        (error,) = runner.exceptions_raised
        assert isinstance(error, tf.errors.InvalidArgumentError)
        assert not session.run(q.is_closed())
        assert caplog.messages == [f"a thread that runs bad for queue 'q' ended with InvalidArgumentError: {error}"]
        ended(runner.create_threads(session, start=True))
        assert len(runner.exceptions_raised) == 1, "those of the last start"


def test_other_errors_may_mean_the_end_of_the_input() -> None:
    q, _ = counting()
    put = q.enqueue(tf.placeholder(I, []))
    runner = QueueRunner(q, [put], queue_closed_exception_types=(tf.errors.InvalidArgumentError, tf.errors.AbortedError))
    with initialised() as session:
        ended(runner.create_threads(session, start=True))
        assert session.run(q.is_closed()) and runner.exceptions_raised == []
    assert runner.queue_closed_exception_types == (tf.errors.InvalidArgumentError, tf.errors.AbortedError)


def test_the_operations_that_close_may_be_given() -> None:
    q, put = counting(3)
    flags = [tf.Variable(False, collections=[tf.GraphKeys.LOCAL_VARIABLES]) for _ in range(2)]
    close, cancel = (tf.group(tf.assign(flag, True)) for flag in flags)
    runner = QueueRunner(q, [put], close, cancel)
    assert (runner.queue, runner.enqueue_ops, runner.close_op, runner.cancel_op, runner.name) == (q, [put], close, cancel, "q")
    coord = Coordinator()
    with initialised() as session:
        threads = runner.create_threads(session, coord, start=True)
        ended(threads[:1])
        assert session.run(flags) == [True, False]
        coord.request_stop()
        coord.join()
        assert session.run(flags) == [True, True]


def test_threads_that_never_wait_see_the_stop() -> None:
    q, put = counting(capacity=-1)
    coord = Coordinator()
    with initialised() as session:
        threads = QueueRunner(q, [put], cancel_op=tf.no_op()).create_threads(session, coord, start=True)
        until(lambda: session.run(q.size()) > 5)
        coord.request_stop()
        coord.join(stop_grace_period_secs=20)
        ended(threads)
        assert not session.run(q.is_closed())


def test_threads_that_run_are_not_made_twice_for_one_session() -> None:
    q, put = counting()
    runner = QueueRunner(q, [put])
    coord = Coordinator()
    with initialised() as first, initialised() as second:
        threads = runner.create_threads(first, coord, start=True)
        assert runner.create_threads(first, coord) == []
        threads += runner.create_threads(second, coord, start=True)
        assert len(threads) == 4
        coord.request_stop()
        coord.join()
        assert len(runner.create_threads(first)) == 1, "they have ended"


def test_a_session_that_closes_ends_its_runners() -> None:
    q, put = counting()
    coord = Coordinator()
    session = initialised()
    threads = QueueRunner(q, [put]).create_threads(session, coord, start=True)
    until(lambda: session.run(q.size()) == 5)
    session.close()
    with pytest.raises((tf.errors.CancelledError, RuntimeError)):
        coord.join(stop_grace_period_secs=20)
    ended(threads)


def test_what_makes_no_runner_is_refused() -> None:
    q, put = counting()
    for arguments in ({}, {"queue": q}, {"queue": q, "enqueue_ops": []}, {"enqueue_ops": [put]}):
        with pytest.raises(ValueError, match=r"^Must provide queue and enqueue_ops\.$"):
            QueueRunner(**arguments)
    for kinds in ((), [tf.errors.OutOfRangeError], (ValueError,), (3,), tf.errors.OutOfRangeError):
        told = f"queue_closed_exception_types must be a tuple of classes of tf.errors, not {kinds!r}."
        with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
            QueueRunner(q, [put], queue_closed_exception_types=kinds)  # type: ignore[arg-type]
    with pytest.raises(tf.errors.UnimplementedError, match=r"^a QueueRunner from a QueueRunnerDef is not supported by mpirt\.$"):
        QueueRunner(queue_runner_def=object())


# --------------------------------------------------------------------------------------------------- all runners of a graph


def test_all_runners_of_a_graph_are_started_and_stopped_together() -> None:
    """The classic input pipeline: names, examples, batches."""
    names, put_names = counting(12, capacity=2)
    examples = tf.RandomShuffleQueue(6, 3, [I, tf.float32], shapes=[(), (2,)])
    name = names.dequeue()
    put_examples = examples.enqueue([name, tf.stack([tf.to_float(name), 0.5])])
    tf.train.add_queue_runner(QueueRunner(names, [put_names]))
    tf.train.add_queue_runner(QueueRunner(examples, [put_examples] * 2))
    batch = examples.dequeue_many(4)
    coord = tf.train.Coordinator()
    seen = []
    with initialised() as session:
        threads = tf.train.start_queue_runners(sess=session, coord=coord)
        assert len(threads) == 5 and all(t.daemon for t in threads)
        try:
            while not coord.should_stop():
                labels, values = session.run(batch)
                np.testing.assert_array_equal(values, np.stack([labels, np.full(4, 0.5)], 1))
                seen += labels.tolist()
        except tf.errors.OutOfRangeError:
            coord.request_stop()
        coord.join(threads)
    assert sorted(seen) == list(range(12))


def test_the_default_session_is_used_if_none_is_given_and_only_sessions_will_do(caplog: pytest.LogCaptureFixture) -> None:
    q, put = counting(3)
    tf.train.add_queue_runner(QueueRunner(q, [put]), collection="mine")
    told = "Cannot start queue runners: there is no default session."
    with pytest.raises(ValueError, match=re.escape(told)):
        tf.train.start_queue_runners()
    with pytest.raises(TypeError, match=r"^sess must be a `tf\.Session` object, not 3\.$"):
        tf.train.start_queue_runners(3)
    with initialised() as session, caplog.at_level(logging.WARNING, "mpirt"):
        assert tf.train.start_queue_runners() == []
        assert caplog.messages == ["start_queue_runners() was called, but the graph has no queue runners."]
        (thread,) = tf.train.start_queue_runners(start=False, daemon=False, collection="mine")
        assert not thread.is_alive() and not thread.daemon
        with tf.Graph().as_default():  # the runners are those of the session's graph
            assert tf.train.start_queue_runners(session, start=False, collection="mine") == []
            assert caplog.messages[1:] == []
        thread.start()
        assert take_all(session, q.dequeue()) == [0, 1, 2]
        ended([thread])
