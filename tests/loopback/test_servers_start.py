"""Sessions that begin before the servers that they need: they wait for them, up to a deadline that says for whom."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest

import mpirt as tf
from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.control import Kind
from mpirt.distributed.control_pb2 import CreateSession
from mpirt.transport.loopback import LoopbackWorld
from tests.loopback.simulated_ranks import values


def test_a_session_that_is_opened_on_a_rank_still_starting_is_not_forgotten() -> None:
    transport = LoopbackWorld(1).transport(0)
    transport.send_control(0, CreateSession(request=1, session=1).SerializeToString(), Kind.CREATE_SESSION)
    cluster = Cluster(transport, ClusterSpec({"worker": 1}))  # its start reads that message among its own
    with tf.train.Server(cluster):
        assert cluster.service.worker.num_sessions == 1


def described(rank: int, tasks: str) -> str:
    """How an error names a rank."""
    return rf"rank {rank} \(host \S+, pid \d+, {tasks}\)"


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("by", ["config", "options"])
def test_a_deadline_covers_the_opening_of_a_session_and_names_the_ranks_without_a_server(by: str, seed: int | None) -> None:
    """Rank 1 has none yet but answers messages; rank 2 is busy in Python and doesn't even poll."""
    heard = threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 2:
            heard.wait(10)  # polls nothing
        if rank:
            return None
        server = tf.train.Server(cluster)
        parts = []
        for task in (1, 2):
            with tf.device(f"/job:worker/task:{task}"):
                parts.append(tf.constant(1.0) + 1.0)
        config = tf.ConfigProto(operation_timeout_in_ms=300 if by == "config" else 0)
        options = tf.RunOptions(timeout_in_ms=300) if by == "options" else None
        texts = []
        with tf.Session(server.target, cluster=cluster, config=config) as session:
            for fetch in (parts[1], parts):
                start = time.perf_counter()
                with pytest.raises(errors.DeadlineExceededError) as caught:
                    session.run(fetch, options=options)
                assert 0.3 <= time.perf_counter() - start < 0.8
                texts.append(caught.value.message)
        heard.set()
        server.join()
        return texts

    # Rank 1's script ends only when rank 2's does: until then it is not known that there will be no server.
    def waiting(rank: int, cluster: Cluster) -> Any:
        if rank == 1:
            heard.wait(10)
        return script(rank, cluster)

    first, both = values(3, waiting, {"worker": 3}, seed)[0]
    what = "to open the session (is a tf.train.Server running there?)."
    start = "the step did not end within its timeout of 0.3 s; it was waiting for "
    two = described(2, "/job:worker/task:2")
    assert re.fullmatch(f"{re.escape(start)}{two} {re.escape(what)}", first)
    assert re.fullmatch(f"{re.escape(start)}{described(1, '/job:worker/task:1')}, {two} {re.escape(what)}", both)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_session_whose_opening_was_given_up_opens_once_the_servers_are_there(seed: int | None) -> None:
    """One rank had opened it, the other not: both start anew, and nothing of the first attempt is left."""
    gave_up = threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 2:
            gave_up.wait(10)
        server = tf.train.Server(cluster)
        found = None
        if rank == 0:
            parts = []
            for task in (1, 2):
                with tf.device(f"/job:worker/task:{task}"):
                    parts.append(tf.constant(1.0) + 1.0)
            with tf.Session(server.target, cluster=cluster) as session:
                for _ in range(2):
                    with pytest.raises(errors.DeadlineExceededError):
                        session.run(parts, options=tf.RunOptions(timeout_in_ms=100))
                gave_up.set()
                found = session.run(parts, options=tf.RunOptions(timeout_in_ms=5000))
        server.join()
        return found, cluster.service.worker.num_sessions

    assert values(3, script, {"worker": 3}, seed) == [([2, 2], 0), (None, 0), (None, 0)]


def test_a_client_that_gave_up_and_closed_leaves_nothing_for_a_server_that_comes_later() -> None:
    closed = threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 1:
            closed.wait(10)
            cluster.plane.poll_all()  # it hears of the session's beginning and end before it has a server
        server = tf.train.Server(cluster)
        if rank == 0:
            with tf.device("/job:worker/task:1"):
                far = tf.constant(1.0) + 1.0
            with tf.Session(server.target, cluster=cluster) as session, pytest.raises(errors.DeadlineExceededError):
                session.run(far, options=tf.RunOptions(timeout_in_ms=100))
            closed.set()
        server.join()
        return cluster.service.worker.num_sessions

    assert values(2, script, {"worker": 2}) == [0, 0]


class CountedLock:
    """A lock that tells how often it was asked for."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.attempts = 0
        self.release = lock.release

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        self.attempts += 1
        return bool(self._lock.acquire(*args, **kwargs))

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: Any) -> None:
        self.release()


class Watched:
    """A lock that tells when somebody comes to it."""

    def __init__(self, lock: Any) -> None:
        self.lock, self.wanted = lock, threading.Event()
        self.release = lock.release

    def acquire(self, **how: Any) -> bool:
        self.wanted.set()
        return bool(self.lock.acquire(**how))

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self.lock.release()


@pytest.mark.parametrize("how", ["deadline", "close"])
def test_a_thread_that_waits_while_another_opens_the_session_keeps_its_deadline_and_hears_of_the_end(how: str) -> None:
    done = threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 1:
            done.wait(10)
            return None
        server = tf.train.Server(cluster)
        with tf.device("/job:worker/task:1"):
            far = tf.constant(1.0) + 1.0
        near = tf.constant(1.0) + 2.0
        session = tf.Session(server.target, cluster=cluster)
        caught: dict[str, BaseException] = {}

        def run(name: str, fetch: Any, options: Any = None) -> None:
            try:
                session.run(fetch, options=options)
            except BaseException as error:
                caught[name] = error

        threads = [threading.Thread(target=run, args=("opens", far))]
        threads[0].start()
        while not session._runner._compiling.locked():  # type: ignore[attr-defined]
            time.sleep(1e-3)
        start = time.perf_counter()
        if how == "deadline":
            run("waits", near, tf.RunOptions(timeout_in_ms=200))
            assert 0.1 < time.perf_counter() - start < 0.6
            session.close()
        else:
            session._runner._compiling = watched = Watched(session._runner._compiling)  # type: ignore[attr-defined]
            threads.append(threading.Thread(target=run, args=("waits", near)))
            threads[1].start()
            assert watched.wanted.wait(10)
            start = time.perf_counter()
            session.close()
            assert time.perf_counter() - start < 0.3
        for thread in threads:
            thread.join(1)
        done.set()
        server.join()
        return caught

    caught = values(2, script, {"worker": 2})[0]
    closed = "the session was closed while this step was running."
    assert isinstance(caught["opens"], errors.CancelledError) and caught["opens"].message == closed
    if how == "deadline":
        assert isinstance(caught["waits"], errors.DeadlineExceededError)
        assert caught["waits"].message == (
            "the step did not end within its timeout of 0.2 s; it was waiting for another thread to prepare a step of this session."
        )
    else:
        assert isinstance(caught["waits"], errors.CancelledError) and caught["waits"].message == closed
