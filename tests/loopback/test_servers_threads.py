"""Many threads, sessions and clients at once on the same servers: every step is whole, and no increment is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.progress import Progress
from mpirt.distributed.turn import SHORT_S
from mpirt.graph.graph import Graph
from mpirt.ops.state_ops import VariableCell
from tests.loopback.serving import served, session_on
from tests.loopback.simulated_ranks import values

SEEDS = [None, 1, 2]


def on(task: int) -> Any:
    """Device block of a worker."""
    return tf.device(f"/job:worker/task:{task}")


def together(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Results of ``jobs``, each in a thread; the first error is raised."""
    results: list[Any] = [None] * len(jobs)
    failures: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        try:
            start.wait()
            results[i] = jobs[i]()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def add_often(session: tf.Session, v: Any, up: Any, times: int) -> list[float]:
    """``times`` increments; what each saw."""
    return [float(session.run(up)) for _ in range(times)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("where", [0, 1])
def test_increments_by_threads_of_one_session_are_all_there_and_each_sees_another_sum(where: int, seed: int | None) -> None:
    """The same signature in all threads: on another rank, and on the client's own."""

    def run(rank: int, cluster: Cluster) -> None:
        with on(where):
            v = tf.Variable(0.0)
            up = v.assign_add(1.0)
        with session_on("worker:0", cluster) as session:
            session.run(v.initializer)
            seen = together([lambda: add_often(session, v, up, 60)] * 6)
            assert session.run(v) == 360
            assert all(one == sorted(one) for one in seen)
            # A sum is read after its own increment, perhaps also after others' (as in TensorFlow), never before.
            assert max(map(max, seen)) == 360

    served(2, run, seed=seed, timeout_s=60)


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_of_one_session_run_different_signatures_over_three_ranks_with_feeds_of_their_own(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        x = tf.placeholder(tf.float32, [None])
        with on(1):
            doubled = x * 2.0
        with on(2):
            v = tf.Variable(0.0)
            summed = tf.reduce_sum(doubled)
            up = v.assign_add(tf.reduce_sum(x))
        with on(0):
            both = summed + x[0]
        with session_on("worker:1", cluster) as session:
            session.run(v.initializer)

            def work(number: int) -> Callable[[], None]:
                def go() -> None:
                    rng = np.random.default_rng(number)
                    for i in range(20):
                        value = rng.integers(0, 9, size=1 + (number + i) % 4).astype(np.float32)
                        total = float(value.sum())
                        kind = (number + i) % 4
                        if kind == 0:
                            assert session.run(doubled, {x: value}).tolist() == (2 * value).tolist()
                        elif kind == 1:
                            assert session.run(summed, {x: value}) == 2 * total
                        elif kind == 2:
                            assert session.run([both, doubled], {x: value})[0] == 2 * total + value[0]
                        else:
                            session.run(up, {x: [1.0]})

                return go

            together([work(number) for number in range(8)])
            assert session.run(v) == 8 * 20 / 4

    served(3, run, seed=seed, timeout_s=60)


@pytest.mark.parametrize("seed", SEEDS)
def test_increments_of_all_clients_in_several_sessions_on_several_servers_and_threads_are_all_there(seed: int | None) -> None:
    """Three clients, each with a thread and session for each of the three servers, each adding to every rank's counter."""
    here = threading.Barrier(3)

    def run(rank: int, cluster: Cluster) -> Any:
        def build() -> tuple[Graph, list[Any], list[Any]]:
            with Graph().as_default() as graph:
                variables = []
                for task in range(3):
                    with on(task):
                        variables.append(tf.Variable(0.0, name=f"count_{task}"))
                return graph, variables, [v.assign_add(1.0) for v in variables]

        graph, variables, _ = build()
        with tf.Session("mpi:///job:worker/task:0", graph, cluster=cluster) as session:
            if rank == 0:
                session.run([v.initializer for v in variables])
            here.wait()

            def work(server: int) -> None:
                graph, _, up = build()
                with tf.Session(f"mpi:///job:worker/task:{server}", graph, cluster=cluster) as mine:
                    for i in range(15):
                        mine.run(up[i % 3] if i % 2 else up)

            together([partial(work, server) for server in range(3)])
            here.wait()
            return session.run(variables)

    # 15 steps: 8 of all three counters, 7 of one: counters 1, 0, 2, 1, 0, 2, 1.
    expected = [9.0 * (8 + 2), 9.0 * (8 + 3), 9.0 * (8 + 2)]
    assert served(3, run, clients=[0, 1, 2], seed=seed, timeout_s=60) == [expected] * 3


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_of_a_session_without_a_server_run_at_once_too(seed: int | None) -> None:
    """``Session()`` of one process: state of its own, steps of several threads, also with bodies and Python functions."""

    def script(rank: int, cluster: Cluster) -> None:
        x = tf.placeholder(tf.float32, [])
        v = tf.Variable(0.0)
        up = v.assign_add(1.0)
        looped = tf.while_loop(lambda i, _: i < 10, lambda i, y: (i + 1, y + x), [tf.constant(0), x])[1]
        python = tf.py_func(lambda y: y * 3, [x], tf.float32)
        with tf.Session(cluster=cluster) as session, tf.Session(cluster=cluster) as other:
            session.run(v.initializer)

            def work(number: int) -> None:
                for i in range(40):
                    value = float(100 * number + i)
                    assert session.run([looped, python], {x: value}) == [11 * value, 3 * value]
                    session.run(up.op)

            together([partial(work, number) for number in range(6)])
            assert session.run(v) == 240
            with pytest.raises(errors.FailedPreconditionError):
                other.run(v)

    values(1, script, seed=seed, timeout_s=30)


def test_steps_of_two_threads_overlap() -> None:
    """A step that waits in a Python function holds up no other, on the client's own rank and elsewhere."""

    def run(rank: int, cluster: Cluster) -> None:
        for task in (0, 1):
            meeting = threading.Barrier(3)

            def meet(x: Any, meeting: threading.Barrier = meeting) -> Any:
                meeting.wait(5)
                return x

            x = tf.placeholder(tf.float32, [])
            with on(task):
                y = tf.py_func(meet, [x], tf.float32)
            with session_on("worker:0", cluster) as session:
                assert together([partial(session.run, y, {x: value}) for value in (1.0, 2.0, 3.0)]) == [1, 2, 3]

    served(2, run)


def test_a_graph_may_grow_while_other_threads_run_steps() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with on(1):
            v = tf.Variable(0.0)
            up = v.assign_add(1.0)
        graph = tf.get_default_graph()
        stop = threading.Event()
        with session_on("worker:0", cluster) as session:
            session.run(v.initializer)

            def steps() -> int:
                count = 0
                while not stop.is_set():
                    session.run(up)
                    count += 1
                return count

            def grow() -> int:
                try:
                    with graph.as_default():
                        for i in range(60):
                            with on(i % 2):
                                assert session.run(tf.constant(float(i)) * 2.0) == 2 * i
                finally:
                    stop.set()
                return 0

            counts = together([steps, grow, steps])
            assert session.run(v) == sum(counts)

    served(2, run, timeout_s=60)


def test_steps_that_their_rank_calls_long_take_no_turns_until_it_calls_one_short() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        seconds, turns = [0.0], [0]

        def pause() -> np.float32:
            time.sleep(seconds[0])
            return np.float32(0)

        with on(1):
            step = tf.py_func(pause, [], tf.float32).op
        turn = cluster.master.turn
        take = turn.take

        def counted() -> None:
            turns[0] += 1
            take()

        turn.take = counted  # type: ignore[method-assign]

        def turns_of(steps: int) -> int:
            turns[0] = 0
            for _ in range(steps):
                session.run(step)
            return turns[0]

        with session_on("worker:0", cluster) as session:
            seconds[0] = 2 * SHORT_S
            assert turns_of(10) == 4
            assert turns_of(5) == 0
            signature = list(session._runner._signatures.values())[-1]
            with on(1):
                quick = tf.no_op()
            session.run(quick)
            assert signature.long_steps > 4
            found = list(session._runner._signatures.values())[-1]
            for _ in range(200):  # the machine may make a step of nothing long, but not all
                session.run(quick)
                if not found.long_steps:
                    return
            pytest.fail("no step of nothing was short")

    served(2, run, timeout_s=60)


def computing_client(monkeypatch: pytest.MonkeyPatch, other: Callable[[tf.Session, Any], Any]) -> tuple[int, Any]:
    """Interrupts of rank 0's client, which computes for itself until ``other(session, variable)`` on rank 1 has ended, and what that
    returned. The variable is rank 0's, whose service thread sleeps meanwhile.
    """
    done, ready = threading.Event(), threading.Barrier(2)

    def serve(progress: Progress, stopped: Callable[[], bool], watch: Callable[[], None]) -> None:
        done.wait(30)
        served_by_thread(progress, stopped, watch)

    served_by_thread = Progress.serve
    monkeypatch.setattr(Progress, "serve", serve)

    def run(rank: int, cluster: Cluster) -> Any:
        with on(0):
            v = tf.Variable(0.0)
            x = tf.placeholder_with_default(np.ones([64, 64], np.float32), [64, 64])
            computed = tf.reduce_max(tf.matmul(tf.matmul(x, x), x))
        with session_on(f"worker:{rank}", cluster) as session:
            if rank == 0:
                session.run(v.initializer)
            ready.wait(30)
            if rank == 1:
                try:
                    return other(session, v)
                finally:
                    done.set()
            interrupted = 0
            while not done.is_set():
                try:
                    assert session.run(computed) == 64 * 64
                except KeyboardInterrupt:
                    interrupted += 1
            return interrupted

    interrupted, result = served(2, run, clients=[0, 1])
    return interrupted, result


def test_a_client_that_only_computes_answers_others_between_its_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(session: tf.Session, v: Any) -> float:
        with on(0):
            up = v.assign_add(1.0)
        return [float(session.run(up)) for _ in range(20)][-1]

    assert computing_client(monkeypatch, count) == (0, 20.0)


@pytest.mark.parametrize("fetched", [True, False], ids=["with a message", "without messages"])
def test_an_interrupt_of_a_client_that_answers_meanwhile_is_told_to_both_and_both_go_on(
    monkeypatch: pytest.MonkeyPatch, fetched: bool
) -> None:
    interrupting = False
    writable = VariableCell.writable

    def interrupted(cell: VariableCell) -> Any:
        if interrupting:
            raise KeyboardInterrupt
        return writable(cell)

    monkeypatch.setattr(VariableCell, "writable", interrupted)

    def other(session: tf.Session, v: Any) -> float:
        nonlocal interrupting
        with on(0):
            up = v.assign_add(1.0)
            step = up if fetched else up.op
        session.run(step)  # the first runs in a thread of its own
        session.run(step)
        for _ in range(3):
            interrupting = True
            with pytest.raises(errors.AbortedError, match="was interrupted: KeyboardInterrupt"):
                session.run(step)
            interrupting = False
            session.run(step)
        return float(session.run(v))

    assert computing_client(monkeypatch, other) == (3, 5.0)
