"""Sessions on servers between real processes: what the simulated ranks of tests/loopback can't show."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors


def on(task: int) -> Any:
    """Device block of a worker."""
    return tf.device(f"/job:worker/task:{task}")


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another rank does, as a file shows."""
    end = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < end, "it didn't come"
        time.sleep(1e-3)


def put(path: Path, text: str) -> None:
    """Make a file that is whole as soon as it is there."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.rename(path)


@pytest.mark.ranks([1, 3], timeout=90)
def test_clients_on_all_ranks_and_threads_add_on_all_ranks_and_nothing_is_lost(rank: int, nranks: int, shared_path: Path) -> None:
    server = tf.train.Server({"worker": nranks})
    variables = []
    for task in range(nranks):
        with on(task):
            variables.append(tf.Variable(0.0))
    ups = [v.assign_add(1.0) for v in variables]
    start = tf.global_variables_initializer()
    with tf.Session(server.target) as session:
        if rank == 0:
            session.run(start)
            (shared_path / "started").touch()
        until((shared_path / "started").exists)
        wrong: list[BaseException] = []

        def work(number: int) -> None:
            try:
                with tf.Session(f"mpi:///job:worker/task:{(rank + number) % nranks}", session.graph) as mine:
                    for i in range(100):
                        mine.run(ups if i % 2 else ups[i // 2 % nranks])
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        (shared_path / f"added {rank}").touch()
        until(lambda: all((shared_path / f"added {r}").exists() for r in range(nranks)))
        alone = [len(range(task, 50, nranks)) for task in range(nranks)]
        assert session.run(variables) == [3 * nranks * (50 + n) for n in alone]
    server.join()


@pytest.mark.ranks(3, timeout=90)
def test_large_graphs_constants_feeds_and_fetches_cross_processes_whole(rank: int) -> None:
    server = tf.train.Server({"worker": 3})
    if rank == 0:
        content = np.random.default_rng(0).normal(size=(1 << 20,))  # 8 MiB
        with on(1):
            large = tf.constant(content)
            x: Any = tf.constant(0.0)
            for i in range(3000):
                x = x + float(i % 7)
        with on(2):
            fed = tf.placeholder(tf.float64, [None])
            both = tf.concat([large, fed], 0)
            words = tf.py_func(lambda: np.array([b"", b"\0\xff", b"x" * 100_000], object), [], tf.string)
        with tf.Session("mpi:///job:worker/task:2") as session:
            assert session.run(x) == sum(i % 7 for i in range(3000))
            for _ in range(3):
                value = np.random.default_rng(1).normal(size=300_000)
                np.testing.assert_array_equal(session.run(both, {fed: value}), np.concatenate([content, value]))
            with pytest.raises(errors.InvalidArgumentError, match="no function is registered for token"):
                session.run(words)  # a function of this rank's script alone
    server.join()


@pytest.mark.ranks(2)
def test_a_python_function_runs_where_that_ranks_own_script_has_registered_it(rank: int) -> None:
    tf.cluster({"worker": 2})
    with on(1):
        found = tf.py_func(os.getpid, [], tf.int64)
        mine = tf.identity(rank)
    server = tf.train.Server({"worker": 2})  # once both are built: from now on the other rank may ask for it
    with tf.Session(server.target) as session:
        assert (session.run(found) == os.getpid()) == (rank == 1)
        assert session.run(mine) == rank, "each client runs its own graph"
    server.join()


@pytest.mark.ranks(3)
def test_a_step_is_one_message_out_and_one_back_for_each_rank_it_touches(rank: int) -> None:
    cluster = tf.cluster({"worker": 3})
    server = tf.train.Server(cluster)
    if rank == 0:
        with on(1):
            v = tf.Variable(1.0)
        with on(2):
            y = v * 2.0
        with tf.Session("mpi:///job:worker/task:1") as session:
            session.run(v.initializer)
            for fetch, touched in ((v.op, 1), (y, 2)):
                session.run(fetch)
                counters = cluster.transport.counters
                sent, received, tensors = counters.control_sent, counters.control_received, counters.bytes_received
                for _ in range(100):
                    session.run(fetch)
                assert counters.control_sent - sent == 100 * touched
                # A rank that comes to rest says so, once.
                assert 100 * touched <= counters.control_received - received <= 100 * touched + 2
                assert counters.bytes_received - tensors == (400 if fetch is y else 0)
    server.join()


@pytest.mark.ranks(3)
def test_a_session_opens_late_servers_after_deadlines_that_named_them(rank: int, shared_path: Path) -> None:
    """Rank 1 computes in Python without a server or a call of ours; rank 2 comes late."""
    tf.cluster({"worker": 3})
    put(shared_path / f"pid {rank}", str(os.getpid()))
    if rank:
        until((shared_path / "gave up").exists)
    server = tf.train.Server()
    if rank == 0:
        until(lambda: all((shared_path / f"pid {r}").exists() for r in (1, 2)))
        pids = [(shared_path / f"pid {r}").read_text() for r in range(3)]
        with on(1):
            a = tf.constant(1.0) + 1.0
        with on(2):
            b = a + 1.0
        with tf.Session("mpi:///job:worker/task:1", config=tf.ConfigProto(operation_timeout_in_ms=300)) as session:
            for _ in range(2):
                with pytest.raises(errors.DeadlineExceededError, match=rf"rank 1 \(host \S+, pid {pids[1]}, /job:worker/task:1\) to open"):
                    session.run(b)
            (shared_path / "gave up").touch()
            assert session.run(b, options=tf.RunOptions(timeout_in_ms=20_000)) == 3
    server.join()


@pytest.mark.ranks(2)
def test_a_clash_on_a_shared_variable_names_both_files_and_lines(rank: int, shared_path: Path) -> None:
    server = tf.train.Server({"worker": 2})
    with on(1):
        if rank == 0:
            v = tf.Variable(0.0, name="shared")
        else:
            v = tf.Variable([0], name="shared")
    with tf.Session(server.target) as session:
        if rank == 0:
            session.run(v.initializer)
            put(shared_path / "place", v.op.location)
        else:
            until((shared_path / "place").exists)
            with pytest.raises(errors.InvalidArgumentError) as caught:
                session.run(v.initializer)
            assert caught.value.where == v.op.location
            assert caught.value.message.endswith(f"declared at {(shared_path / 'place').read_text()}.")
    server.join()


@pytest.mark.ranks(2)
def test_ctrl_c_during_a_step_leaves_a_session_that_works(rank: int) -> None:
    def slow(x: Any) -> Any:
        time.sleep(0.3 if x > 50 else 0)
        return x

    x = tf.placeholder(tf.float32, [])
    with on(1):
        y = tf.py_func(slow, [x], tf.float32)
        y.set_shape([])
    with on(0):
        z = y * 2.0
    server = tf.train.Server({"worker": 2})  # now that this rank knows its function
    if rank == 0:
        with tf.Session(server.target) as session:
            assert session.run(z, {x: 1.0}) == 2
            for _ in range(2):
                timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
                timer.start()
                start = time.perf_counter()
                with pytest.raises(KeyboardInterrupt):
                    session.run(z, {x: 100.0})
                assert time.perf_counter() - start < 1.3
                assert [float(session.run(z, {x: float(i)})) for i in range(3)] == [0, 2, 4]
    server.join()


@pytest.mark.ranks(3)
def test_close_ends_blocked_steps_within_100_ms_and_the_servers_serve_the_next_session(rank: int, shared_path: Path) -> None:
    def wait(x: Any) -> Any:
        (shared_path / "reached").touch()
        until((shared_path / "go on").exists)
        return x

    with on(1):
        held = tf.py_func(wait, [tf.constant(1.0)], tf.float32)
    with on(2):
        y = tf.identity(held)
    server = tf.train.Server({"worker": 3})  # now that this rank knows its function
    if rank == 0:
        session = tf.Session(server.target)
        ended: list[tuple[float, BaseException]] = []

        def work() -> None:
            try:
                session.run(y)
            except BaseException as error:
                ended.append((time.perf_counter(), error))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        until((shared_path / "reached").exists)
        start = time.perf_counter()
        session.close()
        for thread in threads:
            thread.join(10)
        assert [type(error) for _, error in ended] == [errors.CancelledError] * 2
        # 100 ms where each rank has a core; here two cores are shared by what else runs.
        assert max(t for t, _ in ended) - start < (0.1 if (os.cpu_count() or 1) > 3 else 0.25)
        (shared_path / "go on").touch()
        with tf.Session(server.target) as session:
            assert session.run(y) == 1
    server.join()


@pytest.mark.ranks(3)
def test_a_failing_rank_of_three_is_named_and_the_next_step_is_whole(rank: int) -> None:
    server = tf.train.Server({"worker": 3})
    x = tf.placeholder(tf.float32, [3])
    with on(1):
        picked = tf.gather(x, tf.cast(x[0], tf.int32), name="pick")
    with on(2):
        y = picked * 2.0
    if rank == 0:
        with tf.Session(server.target) as session:
            for i in range(20):
                assert session.run(y, {x: [1, i, 0]}) == 2 * i
                with pytest.raises(errors.InvalidArgumentError) as caught:
                    session.run(y, {x: [9, i, 0]})
                assert caught.value.op is picked.op and caught.value.where == picked.op.location
                assert re.match(r"rank 1 \(host \S+, pid \d+, /job:worker/task:1\), ", caught.value.origin)
    server.join()


@pytest.mark.ranks(2, timeout=90)
def test_two_hundred_sessions_come_and_go(rank: int) -> None:
    cluster = tf.cluster({"worker": 2})
    server = tf.train.Server(cluster)
    if rank == 0:
        used = []
        for i in range(200):
            with tf.Graph().as_default():
                x = tf.placeholder(tf.float32, [1000 + i])
                with on(1):
                    y = tf.reduce_sum(x) + tf.constant(np.ones(20_000, np.float32))[i]
                with tf.Session(server.target) as session:
                    assert session.run(y, {x: np.ones(1000 + i)}) == 1001 + i
            used.append(cluster.master.tags._next)
        assert used[-1] == used[20], "the same tags again"
    server.join()
    assert cluster.service.worker.num_sessions == 0


@pytest.mark.ranks(3, timeout=120)
def test_three_ranks_that_compute_and_step_at_once_all_get_on_with_it(rank: int) -> None:
    """More busy ranks than this machine may have cores: each is client, server and computes in Python besides."""
    server = tf.train.Server({"worker": 3})
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    x = tf.placeholder(tf.float32, [])
    y: Any = x
    for task in range(3):
        with on((rank + task) % 3):
            y = y + 1.0
    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    longest = 0.0
    with tf.Session(server.target) as session:
        for i in range(150):
            start = time.perf_counter()
            assert session.run(y, {x: float(i)}) == i + 3
            if i:  # the first waits for the other ranks to start
                longest = max(longest, time.perf_counter() - start)
    stop.set()
    thread.join()
    assert longest < 5, longest
    server.join()
