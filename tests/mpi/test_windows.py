"""Large tensors through shared memory, between real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.runtime.windows import WindowOutgoing
from mpirt.transport import window
from tests.mpirun_plugin import Mpirun

N = 1 << 17  # floats: 512 KiB


def on(task: int) -> Any:
    """Device block of a worker."""
    return tf.device(f"/job:worker/task:{task}")


@pytest.mark.ranks(3)
def test_arrays_that_a_queue_a_variable_or_the_user_keeps_are_right_after_many_steps(rank: int, nranks: int) -> None:
    """Each step's tensor goes from task 0 into a queue and a variable of the last task, and round to the user."""
    cluster = tf.cluster({"worker": nranks})
    with on(0):
        x = tf.placeholder(tf.float32, [N], "x")
        y = x + 1
    with on(nranks - 1):
        queue = tf.FIFOQueue(10, [tf.float32], [[N]])
        v = tf.Variable(tf.zeros([N]))
        put, keep, got = queue.enqueue([y]), v.assign(y), queue.dequeue()
        same = tf.identity(y)
    with on(0):
        total = tf.reduce_sum(got)
    kept: list[Any] = []
    with tf.Session() as session:
        session.run(v.initializer)
        for i in range(10):
            value = np.full(N, 10 * i, np.float32)
            kept.append(session.run([same, y, keep, put], {x: value})[:3])
        for i, arrays in enumerate(kept):
            for array in arrays:
                assert (array == 10 * i + 1).all()
                array[0] = -1.0  # the user's own
        for i in range(10):
            assert session.run(total) == N * (10 * i + 1)
        assert (session.run(v) == 91).all()
        counters = cluster.transport.counters
        if rank == 0:
            assert counters.windows_sent == counters.windows_received == 10


@pytest.mark.ranks(3)
def test_failed_steps_leave_windows_usable(rank: int, nranks: int) -> None:
    """What fails is on task 1, before or after it has taken the tensor, or on task 0, before it sends one."""
    tf.cluster({"worker": nranks})
    with on(0):
        x = tf.placeholder(tf.float32, [N], "x")
        bad = tf.placeholder(tf.int32, [], "bad")
        big = tf.random_uniform([N], minval=0.0, maxval=0.0) + tf.gather([x, x], bad)
    with on(1):
        also_bad = tf.placeholder(tf.int32, [], "also_bad")
        with tf.control_dependencies([big]):
            early = tf.gather([0.0, 1.0], also_bad)
        back = big * 2 + early
    with on(0):
        total = tf.reduce_sum(back)
    with tf.Session() as session:
        for i in range(20):
            value = np.full(N, i, np.float32)
            wrong = {3: (7, 0), 4: (0, 7), 9: (7, 7), 10: (0, 9)}.get(i, (0, 0))
            feeds = {x: value, bad: wrong[0], also_bad: wrong[1]}
            if any(wrong):
                with pytest.raises(errors.InvalidArgumentError, match="is not in"):
                    session.run(total, feeds)
            else:
                assert session.run(total, feeds) == 2 * N * i


@pytest.mark.ranks(3, timeout=90)
def test_readers_of_a_variable_that_is_changed_in_place_see_one_value_each_time(rank: int, nranks: int, shared_path: Path) -> None:
    """All ranks' clients read the variable of rank 0 on their own rank, in two threads, while others add to it."""
    server = tf.train.Server({"worker": nranks})
    with on(0):
        v = tf.Variable(tf.zeros([N]))
        grown = v.assign_add(tf.ones([N]))
    with on(rank):
        low, high = tf.reduce_min(v), tf.reduce_max(v)
        both = tf.stack([low, high])
    with tf.Session(server.target) as session:
        if rank == 0:
            session.run(v.initializer)
            (shared_path / "started").touch()
        while not (shared_path / "started").exists():
            time.sleep(1e-3)
        wrong: list[Any] = []

        def work() -> None:
            last = 0.0
            for _ in range(30):
                session.run(grown.op)
                a, b = session.run(both)
                if a != b or a <= last:
                    wrong.append((last, a, b))
                last = a

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        (shared_path / f"ended {rank}").touch()
        while not all((shared_path / f"ended {r}").exists() for r in range(nranks)):
            time.sleep(1e-3)
        assert session.run(v)[0] == 60 * nranks
    server.join()


@pytest.mark.ranks(2)
def test_a_step_given_up_at_its_deadline_leaves_windows_usable(rank: int, shared_path: Path) -> None:
    server = tf.train.Server({"worker": 2})
    with on(1):
        queue = tf.FIFOQueue(1, [tf.float32], [[]])
        put = queue.enqueue([1.0])
    with on(0):
        x = tf.placeholder(tf.float32, [N], "x")
        big = x + 1
    with on(1):
        with tf.control_dependencies([big]):
            held_up = queue.dequeue()
        total = tf.reduce_sum(big) * held_up
    if rank == 0:
        with tf.Session(server.target) as session:
            for i in range(6):
                feeds = {x: np.full(N, i, np.float32)}
                if i % 2:
                    with pytest.raises(errors.DeadlineExceededError):
                        session.run(total, feeds, options=tf.RunOptions(timeout_in_ms=100))
                else:
                    session.run(put)
                    assert session.run(total, feeds) == N * (i + 1)
    server.join()


CHAIN = """
import hashlib, os
import numpy as np
import mpirt as tf

if os.environ.get("OFF_ON", "none") in (os.environ.get("OMPI_COMM_WORLD_RANK"), os.environ.get("PMI_RANK")):
    os.environ["MPIRT_SHM"] = "0"
cluster = tf.cluster({"worker": 3})
rng = np.random.default_rng(1)
with tf.device("/job:worker/task:0"):
    w = tf.Variable(rng.standard_normal((300, 200)).astype(np.float32))
with tf.device("/job:worker/task:1"):
    x = tf.placeholder(tf.float32, [200, 300])
    y = tf.matmul(x, w)
with tf.device("/job:worker/task:2"):
    z = tf.tanh(y) - tf.transpose(y)
with tf.device("/job:worker/task:0"), tf.control_dependencies([z]):
    step = w.assign_add(w * 0.01)
with tf.Session() as session:
    session.run(w.initializer)
    digest = hashlib.sha256()
    for _ in range(12):
        value = rng.standard_normal((200, 300)).astype(np.float32)
        a, b = session.run([z, step], {x: value})
        digest.update(a.tobytes() + b.tobytes())
sent = cluster.transport.counters.windows_sent
os.write(1, f"rank {cluster.rank}: {digest.hexdigest()} {sent}\\n".encode())
"""


def test_results_are_the_same_with_windows_without_and_where_one_rank_has_none(mpirun: Mpirun) -> None:
    told = []
    for env in ({}, {"MPIRT_SHM": "0"}, {"OFF_ON": "1"}, {"OFF_ON": "0"}):
        lines = sorted(line for line in mpirun(3, CHAIN, env=env).stdout.splitlines() if line.startswith("rank "))
        told.append([line.split()[2:] for line in lines])
    assert len({digest for each in told for digest, _ in each}) == 1
    # w goes from 0 to 1, y from 1 to 2, in each of 12 steps.
    assert [[int(n) for _, n in each] for each in told] == [[12, 12, 0], [0, 0, 0], [0, 0, 0], [0, 12, 0]]


KILLED = """
import os, signal
import numpy as np
import mpirt as tf
cluster = tf.cluster({"worker": 2})
with tf.device("/job:worker/task:0"):
    x = tf.placeholder(tf.float32, [1 << 20])
    y = tf.identity(x)
with tf.device("/job:worker/task:1"):
    total = y[0] + y[-1]
session = tf.Session(fetch_on="owner")
value = np.ones(1 << 20, np.float32)
for _ in range(2):
    session.run(total, {x: value})
os.write(1, f"rank {cluster.rank}: {os.getpid()} {cluster.transport.counters.windows_sent}\\n".encode())
while True:
    session.run(total, {x: value})
"""


def windows_in_memory() -> set[str]:
    """Those that any process has mapped or open, by inode: the memory of others is free."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            for line in (process / "maps").read_text().splitlines():
                if "memfd:mpirt-window" in line:
                    found.add(line.split()[4])
            for link in (process / "fd").iterdir():
                if "memfd:mpirt-window" in os.readlink(link):
                    found.add(str(link.stat().st_ino))
    return found


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_leaves_no_shared_memory_behind(mpirun: Mpirun, victim: int) -> None:
    names = set(os.listdir("/dev/shm"))
    with mpirun.start(2, KILLED) as job:
        for rank in (0, 1):
            job.wait_for(f"rank {rank}: ")
        pids = [int(line.split()[2]) for line in sorted(job.read("stdout").splitlines()) if line.startswith("rank ")]
        maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in pids]
        windows = [{line.split()[4] for line in lines if "memfd:mpirt-window" in line} for lines in maps]
        assert windows[0] == windows[1] and windows[0] <= windows_in_memory(), "both ranks have mapped the same memory"
        assert windows[0]
        job.signal(victim, signal.SIGKILL)
        result = job.wait(30)
    assert result.rc != 0 and not result.leftovers, result
    assert not windows[0] & windows_in_memory()
    assert not [name for name in set(os.listdir("/dev/shm")) - names if "mpirt" in name]


@pytest.mark.ranks(3)
def test_what_a_kernel_produces_is_sent_from_where_it_was_written(rank: int, nranks: int) -> None:
    """Each task's sum goes to the next, is also used where it was made, and is kept by a variable there: all are right."""
    cluster = tf.cluster({"worker": nranks})
    kept, values = [], []
    with on(0):
        x = tf.placeholder(tf.float32, [N], "x")
        y = x * 2.0 + 1.0
    for task in range(nranks):
        with on(task):
            y = y * 2.0 + 1.0
            v = tf.Variable(tf.zeros([N]))
            values.append(v)
            kept.append(v.assign(y))
    with on(0):
        back = tf.reduce_sum(y)
    copies: list[Any] = []
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for i in range(12):
            got, *stored = session.run([back, *kept], {x: np.full(N, i, np.float32)})
            copies.append(stored)
            assert got == np.float32(N) * ((2 * i + 2) * 2**nranks - 1)
    for i, stored in enumerate(copies):
        for task, array in enumerate(stored):
            assert (array == (2 * i + 2) * 2 ** (task + 1) - 1).all()
    assert cluster.transport.counters.windows_sent == 12


@pytest.mark.ranks(2)
def test_answers_that_are_what_came_are_right_while_the_variable_changes_and_both_ranks_keep_some(rank: int) -> None:
    """Task 1 gives back what came. Queues keep it on both tasks, the user keeps it too; the variable changes now and then."""
    tf.cluster({"worker": 2})
    queues = []
    with on(0):
        v = tf.Variable(tf.zeros([N]))
        grown = v.assign_add(tf.ones([N])).op
    with on(1):
        there = tf.identity(v)
        queues.append(tf.FIFOQueue(40, [tf.float32], [[N]], name="there"))
        keep = [queues[0].enqueue([there])]
    with on(0):
        back = tf.identity(there)
        queues.append(tf.FIFOQueue(40, [tf.float32], [[N]], name="back"))
        keep.append(queues[1].enqueue([back]))
    got = [queue.dequeue() for queue in queues]
    plan = np.random.default_rng(11).random((60, 4)) < 0.4
    value, fetched, queued = 0, [], ([], [])  # type: ignore[var-annotated]
    with tf.Session() as session:
        session.run(v.initializer)
        for changes, *keeps, fetches in plan.tolist():
            if changes:
                session.run(grown)
                value += 1
            asked = [op for op, kept in zip(keep, keeps, strict=True) if kept]
            session.run([back.op, *asked])
            for expected, kept in zip(queued, keeps, strict=True):
                expected += [value] * kept
            if fetches:
                fetched.append((value, session.run(back)))
        for tensor, expected in zip(got, queued, strict=True):
            assert len(expected) > 10
            for number in expected:
                assert (session.run(tensor) == number).all()
    for number, array in fetched:
        assert (array == number).all()


@pytest.mark.ranks(2)
def test_a_round_of_a_feed_needs_one_window_of_the_asker_and_none_of_the_answerer(rank: int) -> None:
    cluster = tf.cluster({"worker": 2})
    with on(0):
        x = tf.placeholder(tf.float32, [N], "x")
    with on(1):
        there = tf.reshape(tf.identity(x), [2, N // 2])
    with on(0):
        back = there[0, 0] + there[1, -1]
    mine = np.empty(N, np.float32)
    with tf.Session() as session:
        for i in range(20):
            mine[:] = i
            assert session.run(back, {x: mine}) == 2 * i
        counters = cluster.transport.counters
        assert counters.windows_sent == counters.windows_received == 20
        made = sum(each.array.nbytes == 4 * N for each in window._windows.values())
        assert 1 <= made <= 2 if rank == 0 else made == 0


@pytest.mark.ranks(2)
def test_kernels_that_write_where_they_are_told_produce_in_the_window(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied into one."""
    tf.cluster({"worker": 2})
    with on(0):
        x = tf.placeholder(tf.float32, [128, 160], "x")
        w = tf.Variable(np.arange(160 * 192, dtype=np.float32).reshape(160, 192) % 7 - 3)
        product = tf.matmul(x, w)
        batches = tf.matmul(tf.reshape(x, [2, 64, 160]), tf.reshape(x, [2, 64, 160]), transpose_b=True)
        tall = tf.matmul(x, w)
        tied = tf.nn.bias_add(tall, np.arange(192, dtype=np.float32))
        positive = tf.nn.relu(tall)
    with on(1):
        there = [tf.reduce_sum(y, -1) for y in (product, batches, tied, positive)]
    rng = np.random.default_rng(2)
    with tf.Session() as session:
        session.run(w.initializer)
        weights = np.arange(160 * 192, dtype=np.float32).reshape(160, 192) % 7 - 3
        for _ in range(3):
            value = rng.integers(-4, 5, (128, 160)).astype(np.float32)  # whole numbers: sums are exact
            whole = value @ weights
            stacked = value.reshape(2, 64, 160)
            expected = [whole, stacked @ stacked.transpose(0, 2, 1), whole + np.arange(192, dtype=np.float32), np.maximum(whole, 0)]
            with monkeypatch.context() as patch:
                patch.setattr(WindowOutgoing, "_place", _copied)
                found = session.run(there, {x: value})
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other.sum(-1))


def _copied(*args: Any) -> Any:
    raise AssertionError("copied into a window")
