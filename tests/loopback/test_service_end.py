"""``Server.join`` and ``Server.stop``: the job ends by itself, whoever ends first; what was stopped is gone.

The ranks are threads here. What only processes can show (exit statuses, scripts that raise, ranks that die) is in
``tests/mpi/test_server_failures.py``.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.distributed.cluster import Cluster
from tests.loopback.serving import session_on
from tests.loopback.simulated_ranks import values

PS_AND_TWO = {"ps": 1, "worker": 2}


def until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    end = time.perf_counter() + timeout_s
    while not condition():
        assert time.perf_counter() < end, "waited in vain"
        time.sleep(0.001)


def two(session: tf.Session, task: str = "/job:ps/task:0") -> float:
    """1 + 1, computed on a task."""
    with session.graph.as_default(), tf.device(task):
        return float(session.run(tf.constant(1.0) + tf.placeholder_with_default(np.float32(1.0), [])))


def table_of(hosts: list[list[str]]) -> tf.RankTable:
    """The rank table in which each rank hosts the tasks of one list."""
    lines = [f"rank {rank} = * {task}" for rank, tasks in enumerate(hosts) for task in tasks]
    return tf.RankTable.from_text("\n".join(["fold = true", *lines]), len(hosts))


# ---- join

ENDS = ["closes and joins", "closes and ends", "forgets to close and ends", "drops its session and joins"]


@pytest.mark.parametrize(("ps", "seed"), [(0, None), (0, 1), (1, None), (2, 2)])
@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_join_returns_when_all_have_come_to_their_end_in_whatever_way(first: str, second: str, ps: int, seed: int | None) -> None:
    """Rank 0, which keeps the count, is a parameter server or a client."""
    both = threading.Barrier(2)
    kept: list[tf.Session] = []

    def script(rank: int, cluster: Cluster) -> str:
        server = tf.train.Server(cluster)
        if rank == ps:
            server.join()
            return "joined"
        how = first if rank == min({0, 1, 2} - {ps}) else second
        session = tf.Session(server.target, cluster=cluster)
        assert two(session, f"/job:t{ps}/task:0") == 2.0
        both.wait(5)
        if how.startswith("closes"):
            session.close()
        elif how.startswith("forgets"):
            kept.append(session)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError):  # its traceback keeps the session in a cycle
                session.run(tf.check_numerics(tf.constant(np.inf), "no number"))
            del session
        if how.endswith("joins"):
            server.join()
        return how

    found = values(3, script, {"t0": 1, "t1": 1, "t2": 1}, seed)
    assert sorted(found) == sorted(["joined", first, second])


def test_join_waits_for_the_last_session_and_the_last_script() -> None:
    at = [threading.Event() for _ in range(3)]
    joined = threading.Event()

    def script(rank: int, cluster: Cluster) -> bool:
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            joined.set()
            return True
        session = tf.Session(server.target, cluster=cluster)
        assert two(session) == 2.0
        at[rank].set()
        if rank == 1:  # its session is closed, but its script goes on
            session.close()
            at[2].wait(5)
            early = joined.wait(0.1)
            return not early
        at[1].wait(5)  # its script has come to join(), but its session is open
        closer = threading.Timer(0.15, session.close)
        closer.daemon = True
        closer.start()
        server.join()
        return not closer.is_alive() or session._closed

    assert values(3, script, PS_AND_TWO) == [True, True, True]


@pytest.mark.parametrize("how", ["a thread", "a thread pool"])
def test_join_waits_for_threads_of_the_script_that_work_but_not_for_those_of_an_idle_pool(how: str) -> None:
    joined = threading.Event()
    release = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(int).result()  # a thread made here is no daemon, as one that a rank's thread makes is
    began = threading.Event()

    def work() -> bool:
        began.set()
        release.wait(5)
        return joined.is_set()

    def script(rank: int, cluster: Cluster) -> bool:
        server = tf.train.Server(cluster)
        if rank == 0:
            early: list[bool] = []
            if how == "a thread":
                thread = threading.Thread(target=lambda: early.append(work()), daemon=False)
                thread.start()
            else:
                future = pool.submit(work)
            began.wait(5)
            threading.Timer(0.1, release.set).start()
            server.join()
            joined.set()
            early.append(thread.join(5) is None and early.pop() if how == "a thread" else future.result(5))
            return not early[0]
        return True

    try:
        assert values(2, script, {"ps": 1, "worker": 1}) == [True, True]
        assert how == "a thread" or any(t.name.startswith("ThreadPool") for t in threading.enumerate()), "no idle pool was there"
    finally:
        pool.shutdown()


@pytest.mark.parametrize("rank_of_spare", [0, 2])
def test_spare_ranks_and_folded_tasks_end_with_the_job(rank_of_spare: int) -> None:
    hosts = [["spare"], ["/job:ps/task:0", "/job:worker/task:0"], ["/job:worker/task:1"]]
    table = table_of(hosts if rank_of_spare == 0 else hosts[1:] + hosts[:1])

    def script(rank: int, cluster: Cluster) -> str:
        if not cluster.tasks:
            with pytest.raises(tf.errors.FailedPreconditionError) as caught:
                tf.train.Server(cluster)
            return caught.value.message
        servers = [tf.train.Server(cluster, *task) for task in cluster.tasks]
        if len(servers) == 1:
            with tf.Session(servers[0].target, cluster=cluster) as session:
                assert two(session) == two(session, "/job:worker/task:0") == 2.0
        for server in servers:
            server.join()
        return "ended"

    found = values(3, script, table)
    assert found.pop(rank_of_spare) == f"rank {rank_of_spare} is a spare: it hosts no task that a server could serve."
    assert found == ["ended", "ended"]


def test_join_in_threads_for_several_servers_of_one_process() -> None:
    def script(rank: int, cluster: Cluster) -> float:
        servers = [tf.train.Server(cluster, *task) for task in cluster.tasks]
        threads = [threading.Thread(target=server.join, daemon=False) for server in servers[1:]]  # the script's end waits for them
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert all(thread.is_alive() for thread in threads), "the job was over before the script had begun"
        with tf.Session(servers[0].target, cluster=cluster) as session:
            value = two(session)
        servers[0].join()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        return value

    assert values(1, script, PS_AND_TWO) == [2.0]


def test_an_interrupted_join_leaves_a_script_that_goes_on() -> None:
    joined, done = threading.Event(), threading.Event()

    def script(rank: int, cluster: Cluster) -> float:
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            joined.set()
            return 0.0
        if rank == 2:  # keeps the job from its end until the other one was interrupted
            done.wait(5)
            return 0.0
        me = ctypes.c_ulong(threading.get_ident())
        interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc
        timer = threading.Timer(0.05, interrupt, (me, ctypes.py_object(KeyboardInterrupt)))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            server.join()
        done.set()
        assert not joined.wait(0.1), "the job was over though this script goes on"
        with tf.Session(server.target, cluster=cluster) as session:
            return two(session)

    assert values(3, script, PS_AND_TWO) == [0.0, 2.0, 0.0]


# ---- stop


def test_a_hundred_starts_and_stops_leak_neither_threads_nor_memory() -> None:
    """With a client in this process and one on another rank, each time; the last one's steps are cut off by the stop."""
    turn = threading.Barrier(2)
    grown: list[int] = []

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 1:
            server = tf.train.Server(cluster)
            for _ in range(110):
                turn.wait(10)  # the server of rank 0 is up
                with tf.Graph().as_default(), session_on("ps:0", cluster) as session:
                    assert two(session) == 2.0
                turn.wait(10)
            return server.join()

        def once() -> None:
            with tf.Graph().as_default(), tf.train.Server(cluster) as server:
                turn.wait(10)
                with tf.Session(server.target, cluster=cluster) as session:
                    assert two(session) == two(session, "/job:worker/task:0") == 2.0
                turn.wait(10)

        for i in range(110):
            once()
            if i in (9, 109):
                gc.collect()
                if i == 9:
                    tracemalloc.start()
                    threads = threading.active_count()
                    objects = len(gc.get_objects())
                    allocated = tracemalloc.get_traced_memory()[0]
        grown.extend([
            threading.active_count() - threads,
            len(gc.get_objects()) - objects,
            tracemalloc.get_traced_memory()[0] - allocated,
        ])  # fmt: skip
        tracemalloc.stop()
        worker, progress = cluster.service.worker, cluster.plane.progress
        assert not worker._sessions and not worker._programs and not worker._steps and not worker._early
        assert not progress._suspended and not progress._followers and not progress.eager
        tf.train.Server(cluster).join()

    values(2, script, {"ps": 1, "worker": 1}, timeout_s=60)
    threads, objects, nbytes = grown
    assert threads <= 1  # one of the pool may come or go
    assert objects < 500 and nbytes < 200_000, (objects, nbytes)  # of 100 rounds: 5 objects or 2 kB each would show


def test_the_interpreters_switch_interval_is_changed_only_while_a_server_runs_and_only_if_the_user_left_it() -> None:
    def script(rank: int, cluster: Cluster) -> None:
        for mine, meanwhile in ((5e-3, 2e-4), (3e-3, 3e-3)):
            sys.setswitchinterval(mine)
            with tf.train.Server(cluster):
                assert sys.getswitchinterval() == pytest.approx(meanwhile)
            assert sys.getswitchinterval() == pytest.approx(mine)

    before = sys.getswitchinterval()
    try:
        values(1, script, {"ps": 1})
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("where", ["its own client", "another rank"])
def test_stop_ends_blocked_steps_with_an_error_that_says_so(where: str) -> None:
    blocked, stopped = threading.Event(), threading.Event()

    def wait_for_ever(session: tf.Session) -> tf.errors.OpError:
        with session.graph.as_default(), tf.device("/job:ps/task:0"):
            queue = tf.FIFOQueue(1, tf.float32)
            element = queue.dequeue()
        threading.Timer(0.1, blocked.set).start()
        began = time.perf_counter()
        with pytest.raises(tf.errors.OpError) as caught:
            session.run(element)
        assert time.perf_counter() - began < 1.5
        return caught.value

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        error = None
        if rank == 0:
            if where == "its own client":
                with tf.Graph().as_default():
                    session = tf.Session(server.target, cluster=cluster)
                    pool = concurrent.futures.ThreadPoolExecutor(1)
                    future = pool.submit(wait_for_ever, session)
                    blocked.wait(5)
                    server.stop()
                    error = future.result(5)
                    pool.shutdown()
            else:
                blocked.wait(5)
                server.stop()
            stopped.set()
            again = tf.train.Server(cluster)
            with tf.Graph().as_default(), tf.Session(again.target, cluster=cluster) as session:
                assert two(session) == 2.0
            again.join()
        else:
            if where == "another rank":
                session = tf.Session(server.target, cluster=cluster)
                error = wait_for_ever(session)
                stopped.wait(5)
                with pytest.raises(tf.errors.UnavailableError, match="the server on rank 0 .* was stopped"):
                    two(session)
                session.close()
            stopped.wait(5)
            with tf.Graph().as_default(), tf.Session(server.target, cluster=cluster) as session:
                assert two(session) == 2.0
            server.join()
        return error

    found = values(2, script, {"ps": 1, "worker": 1})
    if where == "its own client":
        assert isinstance(found[0], tf.errors.CancelledError) and "the session was closed" in found[0].message
    else:
        assert isinstance(found[1], tf.errors.UnavailableError)
        assert re.fullmatch(r"the server on rank 0 \(host \S+, pid \d+, /job:ps/task:0\) was stopped\.", found[1].message)


def test_stopping_one_of_several_servers_of_a_process_leaves_the_others_their_sessions() -> None:
    def script(rank: int, cluster: Cluster) -> None:
        first, second, third = [tf.train.Server(cluster, *task) for task in cluster.tasks]
        with tf.Session(second.target, cluster=cluster) as session:
            assert two(session) == 2.0
            first.stop()
            third.stop()
            third.stop()
            assert two(session) == 2.0
            assert repr(first) == "<mpirt.train.Server mpi:///job:ps/task:0, stopped>"
            second.stop()
            with pytest.raises(RuntimeError, match="Attempted to use a closed Session."):
                two(session)
        with pytest.raises(tf.errors.FailedPreconditionError, match="no server runs on rank 0"):
            two(tf.Session(second.target, cluster=cluster))
        first.start()
        with tf.Session(first.target, cluster=cluster) as session:
            assert two(session) == 2.0
        first.join()

    values(1, script, PS_AND_TWO)


def test_starts_and_stops_in_several_threads_end_with_a_server_that_serves() -> None:
    """A server that starts while the last one of its process stops gets a thread of its own."""
    def script(rank: int, cluster: Cluster) -> None:
        if rank == 1:
            server = tf.train.Server(cluster)
            until(ready.is_set, 30)
            with tf.Session("mpi:///job:ps/task:0", cluster=cluster) as session:
                assert two(session) == 2.0
            done.set()
            server.join()
            return

        def flap(task: Task) -> None:
            for _ in range(60):
                tf.train.Server(cluster, *task).stop()

        threads = [threading.Thread(target=flap, args=(task,), daemon=True) for task in cluster.tasks[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        own = [t for t in threading.enumerate() if t.name == "mpirt service of rank 0"]
        assert not own, own
        tf.train.Server(cluster, "ps", 0)
        ready.set()
        assert done.wait(30)  # no thread of this rank leads but its service thread

    ready, done = threading.Event(), threading.Event()
    table = table_of([["/job:ps/task:0", "/job:x/task:0", "/job:x/task:1"], ["/job:worker/task:0"]])
    values(2, script, table, timeout_s=60)


def test_two_servers_for_one_task_are_refused() -> None:
    def script(rank: int, cluster: Cluster) -> str:
        server = tf.train.Server(cluster)
        with pytest.raises(tf.errors.AlreadyExistsError) as caught:
            tf.train.Server(cluster)
        server.start()  # a started one isn't started twice
        server.stop()
        tf.train.Server(cluster).stop()
        return str(caught.value)

    found = values(2, script, {"ps": 1, "worker": 1})
    for text, task in zip(found, ("ps", "worker"), strict=True):
        rank = 0 if task == "ps" else 1
        assert re.fullmatch(
            rf"a server for /job:{task}/task:0 runs already in this process \(rank {rank} \(host \S+, pid \d+, /job:{task}/task:0\)\)\."
            r"\n  Mend: stop\(\) it first, or give each server its own task\.",
            text,
        )


def test_a_server_for_a_task_of_another_rank_or_of_none_is_refused() -> None:
    def script(rank: int, cluster: Cluster) -> list[str]:
        told = []
        for job, index in (("ps", 0), ("worker", 1), ("worker", 7), ("boss", None), (None, None)):
            try:
                server = tf.train.Server(cluster, job, index)
                told.append(server.target)
                server.stop()
            except (ValueError, tf.errors.OpError) as error:
                told.append(f"{type(error).__name__}: {error}")
        return told

    found = values(2, script, table_of([["/job:ps/task:0"], ["/job:worker/task:0", "/job:worker/task:1"]]))
    unknown = "the cluster has no such task; its tasks are /job:ps/task:0, /job:worker/task:0, /job:worker/task:1."
    other = r"InvalidArgumentError: a server for {task} can't run on rank {rank} \(.*\): rank {host} hosts that task\.\n  Mend: start .*"
    patterns = [
        ["mpi:///job:ps/task:0", other.format(task="/job:worker/task:1", rank=0, host=1)],
        [other.format(task="/job:ps/task:0", rank=1, host=0), "mpi:///job:worker/task:1"],
    ]
    for rank in (0, 1):
        for text, pattern in zip(found[rank], patterns[rank], strict=False):
            assert re.fullmatch(pattern, text, re.DOTALL), text
        assert found[rank][2] == f"ValueError: a server for task 7 of job 'worker': {unknown}"
        assert found[rank][3] == f"ValueError: a server for job 'boss': {unknown}"
    assert found[0][4] == "mpi:///job:ps/task:0", "job and task may be left out where the rank has but one"
    assert re.fullmatch(
        r"ValueError: rank 1 \(.*\) hosts several tasks: /job:worker/task:0, /job:worker/task:1\."
        r" Say which one the server is for: Server\(cluster, job_name=\.\.\., task_index=\.\.\.\)\.",
        found[1][4],
    )
