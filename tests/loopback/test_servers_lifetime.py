"""Sessions on servers that run for long, or come and go by hundreds, leave nothing behind and use the same tags again."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.distributed.cluster import Cluster
from mpirt.graph.graph import Graph
from tests.loopback.serving import served, session_on


def on(task: int) -> Any:
    """Device block of a worker."""
    return tf.device(f"/job:worker/task:{task}")


class Everything:
    """What the services of all simulated ranks hold; rank 0 looks, the others only tell."""

    def __init__(self, size: int) -> None:
        self.clusters: dict[int, Cluster] = {}
        self._size = size
        self._all_here = threading.Barrier(size)

    def add(self, rank: int, cluster: Cluster) -> None:
        """Every rank's first call."""
        self.clusters[rank] = cluster
        self._all_here.wait()

    def held(self) -> dict[str, int]:
        """Numbers of things, once the ranks have come to rest."""
        end = time.perf_counter() + 10
        while any(cluster.plane.progress._suspended for cluster in self.clusters.values()) and time.perf_counter() < end:
            time.sleep(1e-3)
        world = self.clusters[0].transport.world  # type: ignore[attr-defined]
        found = {"channels": len(world._channels)}
        for rank, cluster in self.clusters.items():
            worker, master = cluster.service.worker, cluster.master
            found |= {
                f"sessions of {rank}": len(worker._sessions) + len(master.sessions),
                f"programs of {rank}": len(worker._programs),
                f"steps of {rank}": len(worker._steps) + len(master.steps),
                f"requests of {rank}": len(master._requests),
                f"suspended of {rank}": len(cluster.plane.progress._suspended),
                f"tags of {rank}": master.tags._next - master.tags._first,
                f"mail of {rank}": sum(map(len, cluster.plane.mail.values())),
            }
        return found


@pytest.mark.parametrize("seed", [None, 1])
def test_ten_thousand_steps_use_the_same_lanes_and_hold_nothing(seed: int | None) -> None:
    everything = Everything(3)
    num_steps = 10_000 if seed is None else 1000

    def run(rank: int, cluster: Cluster) -> None:
        everything.add(rank, cluster)
        if rank:
            return
        x = tf.placeholder(tf.float32, [])
        with on(1):
            v = tf.Variable(0.0)
            up = v.assign_add(x)
        with on(2):
            y = up * 1.0
        with session_on("worker:0", cluster) as session:
            session.run(v.initializer)
            session.run(y, {x: 1.0})
            signature = list(session._runner._signatures.values())[-1]  # type: ignore[attr-defined]
            before = everything.held()
            for i in range(2, num_steps + 1):
                found = session.run(y, {x: 1.0})
                if i % 1000 == 0:
                    assert found == i
            # An adversary's message may be under way when the next step begins, which then needs another lane.
            lanes = len(signature.all_tags)
            assert lanes == 1 if seed is None else lanes <= 4
            after = everything.held()
            after["tags of 0"] -= (lanes - 1) * signature.num_tags
            assert after == before

    served(3, run, clients=[0, 1, 2], seed=seed, timeout_s=120)


@pytest.mark.parametrize("seed", [None, 1])
def test_steps_of_five_threads_need_five_lanes(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> int:
        with on(1):
            v = tf.Variable(0.0)
        with on(2):
            y = v + 1.0
        with session_on("worker:0", cluster) as session:
            session.run(v.initializer)
            session.run(y)

            def work() -> None:
                for _ in range(50):
                    assert session.run(y) == 1

            threads = [threading.Thread(target=work) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return len(list(session._runner._signatures.values())[-1].all_tags)  # type: ignore[attr-defined]

    assert 1 <= served(3, run, seed=seed, timeout_s=60)[0] <= 5


@pytest.mark.parametrize("seed", [None, 1])
def test_two_hundred_sessions_with_failures_and_large_constants_leave_nothing_and_use_the_same_tags(seed: int | None) -> None:
    everything = Everything(3)
    num_sessions = 200 if seed is None else 40

    def run(rank: int, cluster: Cluster) -> None:
        everything.add(rank, cluster)
        if rank:
            return
        held = []
        for i in range(num_sessions):
            with Graph().as_default() as graph:
                x = tf.placeholder(tf.int32, [])
                with on(1):
                    large = tf.constant(np.full(20_000, i, np.float32))
                    picked = tf.gather(large, x)
                with on(2):
                    y = picked + tf.constant(np.full(i % 3 + 1, i, np.float32))
                with tf.Session(f"mpi:///job:worker/task:{i % 3}", graph, cluster=cluster) as session:
                    assert session.run(y, {x: i}).tolist() == [2 * i] * (i % 3 + 1)
                    with pytest.raises(errors.InvalidArgumentError):
                        session.run(y, {x: 20_000})
                    assert session.run(picked, {x: i}) == i
            del session
            if i % 20 == 10:
                gc.collect()
                held.append(everything.held())
        for later in held[1:]:
            assert later == held[0]
        assert held[0]["programs of 1"] == held[0]["sessions of 2"] == held[0]["channels"] == held[0]["tags of 0"] == 0

    served(3, run, clients=[0, 1, 2], seed=seed, timeout_s=120)


@pytest.mark.parametrize("seed", range(6))
def test_large_constants_are_whole_on_a_gpu_also_if_they_come_after_the_program(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "1")

    def run(rank: int, cluster: Cluster) -> None:
        for i in range(10):
            with Graph().as_default() as graph:
                with tf.device("/job:worker/task:1/gpu:0"):
                    y = tf.reduce_max(tf.constant(np.full(20_000 + i, i, np.float32)))
                with tf.Session("mpi:///job:worker/task:0", graph, cluster=cluster) as session:
                    assert session.run(y) == i

    served(2, run, seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_a_session_that_closes_before_its_large_constants_have_come_waits_for_them(seed: int) -> None:
    """Else their buffers would be gone, or a later session's tensors would go into them."""

    def run(rank: int, cluster: Cluster) -> None:
        for i in range(10):
            with Graph().as_default() as graph:
                with on(1):
                    y = tf.reduce_max(tf.constant(np.full(20_000 + i, i, np.float32)))
                with tf.Session("mpi:///job:worker/task:0", graph, cluster=cluster) as session:
                    if i % 2:
                        assert session.run(y) == i
                    else:
                        session._runner._find((y,), (), None)  # type: ignore[attr-defined]  # compiled and sent, not run
                assert not cluster.transport.world._channels  # type: ignore[attr-defined]

    served(2, run, seed=seed)
