"""A rank that is lost while servers run: what needs it fails at once and says so, what doesn't goes on, and the job's end tells.

The ranks are threads; a lost one stops to answer and looks dead to the others. With real processes: ``tests/mpi/test_server_failures.py``.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import Any

import pytest

import mpirt as tf
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import Outcome, run_ranks

GONE = r"rank {rank} \(host \S+, pid \d+, /job:{job}/task:{index}\) is gone: its process has ended\."


def gone(outcome: Outcome, rank: int, job: str, index: int) -> bool:
    """Whether a rank heard at its end that another one is lost: its exit status is then not 0."""
    return re.match(GONE.format(rank=rank, job=job, index=index), str(outcome.farewell)) is not None


def run(session: tf.Session, element: Any) -> None:
    """A step of a rank that will be lost."""
    with contextlib.suppress(tf.errors.OpError):
        session.run(element)


def counter(session: tf.Session, task: int) -> Any:
    with session.graph.as_default(), tf.device(f"/job:ps/task:{task}"):
        v = tf.get_variable(f"v{task}", initializer=0.0)
        session.run(v.initializer)
        return v.assign_add(1.0)


@pytest.mark.parametrize("seed", [None, 1])
def test_a_lost_server_fails_the_steps_that_need_it_at_once_and_no_others(seed: int | None) -> None:
    dead, ready = threading.Event(), threading.Barrier(4)

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 1:
            ready.wait(10)
            time.sleep(0.05)
            died.append(time.perf_counter())
            cluster.transport.world.kill(1)  # type: ignore[attr-defined]
            dead.set()
            return None
        if rank == 0:
            server.join()
            return "joined"
        session = tf.Session(server.target, cluster=cluster)
        if rank == 2:  # doesn't need it
            grown = counter(session, 0)
            session.run(grown)
            ready.wait(10)
            for _ in range(50):
                session.run(grown)
            dead.wait(5)
            time.sleep(0.2)
            for _ in range(50):
                last = session.run(grown)
            session.close()
            return last
        if rank == 3:  # a step after the other
            grown = counter(session, 1)
            session.run(grown)
        else:  # a step that is blocked there
            with tf.device("/job:ps/task:1"):
                grown = tf.FIFOQueue(1, tf.float32).dequeue()
        ready.wait(10)
        with pytest.raises(tf.errors.UnavailableError) as caught:
            while True:
                session.run(grown)
        took = time.perf_counter() - died[0]
        with pytest.raises(tf.errors.UnavailableError, match="is gone"):
            session.run(grown)
        session.close()
        return took, caught.value.message

    died: list[float] = []
    outcomes = run_ranks(5, script, {"ps": 2, "worker": 3}, seed, timeout_s=30)
    assert outcomes[0].result() == "joined" and outcomes[2].result() == 101.0
    for rank in (3, 4):
        took, message = outcomes[rank].result()
        assert re.fullmatch(GONE.format(rank=1, job="ps", index=1), message), message
        assert took < 0.5
    assert all(gone(outcomes[rank], 1, "ps", 1) for rank in (0, 2, 3, 4)), "a rank left in peace"


def test_a_server_finds_out_by_itself_that_its_only_client_is_lost_though_all_that_waits_there_is_the_clients_step() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 1:
            session = tf.Session(server.target, cluster=cluster)
            with tf.device("/job:ps/task:0"):
                element = tf.FIFOQueue(1, tf.float32).dequeue()
            threading.Thread(target=run, args=(session, element), daemon=True).start()
            blocked.wait(10)
            cluster.transport.world.kill(1)  # type: ignore[attr-defined]
            return None
        worker = cluster.service.worker
        while not worker._steps:
            time.sleep(0.001)
        time.sleep(0.05)  # the step runs in a thread, the first time, and waits there
        blocked.set()
        end = time.perf_counter() + 2
        while worker._steps or worker._sessions:
            assert time.perf_counter() < end, "the lost client's step still waits"
            time.sleep(0.001)
        return None

    blocked = threading.Event()
    outcomes = run_ranks(2, script, {"ps": 1, "worker": 1}, timeout_s=20)
    assert outcomes[0].error is None and gone(outcomes[0], 1, "worker", 0)


def test_what_a_lost_client_had_on_a_server_is_there_for_the_next() -> None:
    dead, ready = threading.Event(), threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 0:
            workers.append(cluster.service.worker)
            server.join()
            return None
        with tf.device("/job:ps/task:0"):
            queue = tf.FIFOQueue(5, tf.float32, shared_name="jobs")
            element = queue.dequeue()
        session = tf.Session(server.target, cluster=cluster)
        if rank == 1:
            threading.Thread(target=run, args=(session, element), daemon=True).start()
            while not (workers and workers[0]._steps):
                time.sleep(0.001)
            cluster.transport.world.kill(1)  # type: ignore[attr-defined]
            dead.set()
            ready.wait(10)
            return None
        dead.wait(5)
        end = time.perf_counter() + 2
        while any(source == 1 for source, _ in workers[0]._sessions) or workers[0]._steps:
            assert time.perf_counter() < end, "the lost client's session or step is still there"
            time.sleep(0.001)
        with session:
            session.run(queue.enqueue(7.0))
            value = session.run(element)
        ready.set()
        server.join()
        return value

    workers: list[Any] = []
    outcomes = run_ranks(3, script, {"ps": 1, "worker": 2}, timeout_s=30)
    assert outcomes[2].result() == 7.0
    assert gone(outcomes[0], 1, "worker", 0) and gone(outcomes[2], 1, "worker", 0)


def test_ranks_in_join_hear_of_the_loss_of_rank_0_which_keeps_the_count() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 0:
            time.sleep(0.05)
            cluster.transport.world.kill(0)  # type: ignore[attr-defined]
            return None
        server.join()
        return "joined"

    for outcome in run_ranks(3, script, {"ps": 1, "worker": 2}, timeout_s=10)[1:]:
        assert isinstance(outcome.error, tf.errors.UnavailableError)
        assert re.fullmatch(GONE.format(rank=0, job="ps", index=0), outcome.error.message)


def test_ranks_whose_scripts_have_ended_let_the_others_go_on_after_a_loss() -> None:
    dead = threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 3:
            time.sleep(0.05)
            cluster.transport.world.kill(3)  # type: ignore[attr-defined]
            dead.set()
        if rank == 1:  # rank 2's script has ended meanwhile
            dead.wait(5)
            time.sleep(0.2)
            with tf.Session(server.target, cluster=cluster) as session:
                grown = counter(session, 0)
                return [float(session.run(grown)) for _ in range(3)]
        if rank == 0:
            server.join()
        return None

    outcomes = run_ranks(4, script, {"ps": 1, "worker": 3}, timeout_s=20)
    assert outcomes[1].result() == [1.0, 2.0, 3.0]
    assert all(gone(outcomes[rank], 3, "worker", 2) for rank in (0, 1, 2)), "a rank left in peace"


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_first_error_of_a_step_cancels_it_on_all_ranks(seed: int | None) -> None:
    """One part fails while two others are blocked: one by itself, one because it waits for a tensor of the first."""

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank != 3:
            server.join()
            return len(cluster.service.worker._steps)
        with tf.Session(server.target, cluster=cluster) as session:
            with tf.device("/job:w/task:0"):
                v = tf.Variable(1.0, name="v")
                bad = tf.check_numerics(v / 0.0, "boom", name="bad")
            with tf.device("/job:w/task:1"):
                blocked = tf.FIFOQueue(1, tf.float32).dequeue()
            with tf.device("/job:w/task:2"):
                waits = tf.FIFOQueue(1, tf.float32).dequeue() + tf.identity(bad)
            session.run(v.initializer)
            began = time.perf_counter()
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                session.run([blocked, waits, bad])
            took = time.perf_counter() - began
            assert session.run(v) == 1.0
        server.join()
        return took, str(caught.value)

    outcomes = run_ranks(4, script, {"w": 4}, seed, timeout_s=20)
    took, text = outcomes[3].result()
    assert "boom : Tensor had Inf" in text and re.search(r"failed on rank 0 \(host \S+, pid \d+, /job:w/task:0\)", text), text
    assert took < 0.9, "within the time for which failed parts are waited for"
    assert [outcomes[rank].result() for rank in range(3)] == [0, 0, 0], "steps are left"
