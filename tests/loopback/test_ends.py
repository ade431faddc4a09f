"""How all ranks learn of a step's end, on enough simulated ranks for a tree with several levels."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

import mpirt as tf
from mpirt.compiler.ends import WIDTH, pairs
from mpirt.distributed import control
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import Traffic, values
from tests.loopback.test_collective_session import traffic_of, worker

TIMEOUT_S = 60  # of the tests: many threads


def tree(ranks: int) -> tuple[int, int, int]:
    """The root of the tree, which is where the group is; a rank that tells others; one that tells nobody."""
    found = list(pairs(range(ranks)))
    tells = {above for above, _ in found}
    return 0, next(below for _, below in found if below in tells), next(rank for rank in range(ranks) if rank not in tells)


def group_of(works: list[Any]) -> Any:
    """An operation on each task that calls its function, and what waits for all of them."""
    ends = []
    for task, work in enumerate(works):
        with worker(task):
            ends.append(tf.py_func(work, [], tf.float64, name=f"work{task}").op)
    with worker(0):
        return tf.group(ends, name="all")


@pytest.mark.parametrize("ranks", [17, 64])
def test_a_failure_anywhere_in_the_tree_is_every_ranks_error_and_leaves_nothing_behind(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_STATUS_AFTER_S", 60.0)  # the traffic is counted: nobody tells where it stands
    failing = [None, *tree(ranks), None]
    calls = [0] * ranks

    def script(rank: int, cluster: Cluster) -> Any:
        def work() -> float:
            number, calls[rank] = calls[rank], calls[rank] + 1
            if number < len(failing) and failing[number] == rank:
                raise ValueError(f"rank {rank} can't")
            return 1.0

        done = group_of([work] * ranks)
        found = []
        with tf.Session(cluster=cluster) as session:
            for fails in failing:
                if fails is None:
                    session.run(done)
                else:
                    with pytest.raises(tf.errors.InvalidArgumentError, match=f"^'work{fails}' .*: rank {fails} can't") as caught:
                        session.run(done)
                    found.append(str(caught.value))
            return found, traffic_of(session, cluster, done, steps=5), session.traffic(done, {})

    outcomes = values(ranks, script, {"worker": ranks}, timeout_s=TIMEOUT_S)
    above = Counter(rank for rank, _ in pairs(range(ranks)))
    assert max(above.values()) <= WIDTH < ranks - 1
    for rank, (found, traffic, promised) in enumerate(outcomes):
        assert found == outcomes[0][0] and len(found) == 3
        count = 5 * (above[rank] + (rank > 0))
        assert traffic == Traffic(count, count, count, count, 0), f"rank {rank}"
        assert promised == {"messages": 0, "nbytes": 0, "window_nbytes": 2 * (ranks - 1)}


def test_who_waits_in_vain_for_a_ranks_end_says_for_whose_and_the_others_hear_of_it() -> None:
    ranks = 17
    root, inner, _ = tree(ranks)
    gate = threading.Event()

    def wait() -> float:
        gate.wait(TIMEOUT_S)
        return 1.0

    def script(rank: int, cluster: Cluster) -> Any:
        works: list[Any] = [lambda: 1.0] * ranks
        works[inner] = wait
        done = group_of(works)
        with tf.Session(cluster=cluster) as session:
            options = tf.RunOptions(timeout_in_ms=300) if rank == root else None
            try:
                session.run(done, options=options)
            except tf.errors.DeadlineExceededError as error:
                if rank == root:
                    gate.set()
                told = str(error)
            gate.wait(TIMEOUT_S)
            session.run(done)
        return told

    outcomes = values(ranks, script, {"worker": ranks}, timeout_s=TIMEOUT_S)
    for told in outcomes:
        assert f"waiting for the end of operation 'work{inner}' from rank {inner} (for the end of the step)" in told
