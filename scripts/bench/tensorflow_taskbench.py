"""The task graphs of `taskbench.py` on two of TensorFlow's servers.

A task is the sum of its inputs and a kernel, both TensorFlow's own: the product of a 1 x 1 matrix of many entries, all in one place,
with a row of 64 numbers multiplies and adds 64 numbers for each entry, on one thread. (A Python kernel as the others have would
add 40 us a task.) The entries add up to 1, so a task gives the sum of its inputs; once, all of them are compared with numpy's.
The peak rate is that of this kernel, on both servers at once. Nothing rewrites the graphs: equal tasks would become one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from metg import HALF, Point, metg
from task_patterns import TaskGraph
from tensorflow_servers import tf

ROW = 64
DEVICES = ("/job:worker/task:0", "/job:ps/task:0")
PEAK_ENTRIES, PEAK_TASKS = 20_000, 10  # that stay in a core's cache, one behind the other
REPEATS = 3
MOST_GRAINS = 12

Run = Callable[[], object]


class _Kernels:
    """On each server the matrix whose number of entries is the grain; a graph's session has it as ``kernels``."""

    def __init__(self) -> None:
        self._count = tf.placeholder(tf.int64, [])
        self._matrices, assigned = [], []
        for number, device in enumerate(DEVICES):
            with tf.device(device):
                places = tf.Variable(tf.zeros([1, 2], tf.int64), validate_shape=False, name=f"taskbench_places{number}")
                values = tf.Variable(tf.ones([1], tf.float64), validate_shape=False, name=f"taskbench_values{number}")
                assigned.append(tf.assign(places, tf.zeros([self._count, 2], tf.int64), validate_shape=False).op)
                each = tf.fill([self._count], 1 / tf.cast(self._count, tf.float64))
                assigned.append(tf.assign(values, each, validate_shape=False).op)
                self._matrices.append((places, values))
        self._assign = tf.group(assigned)

    def __call__(self, rank: int, row: Any) -> Any:
        """The kernel on a row."""
        places, values = self._matrices[rank]
        return tf.raw_ops.SparseTensorDenseMatMul(a_indices=places, a_values=values, a_shape=[1, 1], b=row)

    def set(self, session: Any, entries: int) -> None:
        """Let the next steps have that grain."""
        session.run(self._assign, {self._count: max(1, entries)})


def _session(target: str) -> Any:
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    session = tf.Session(target, config=config)
    session.run(tf.global_variables_initializer())
    return session


def _all(by_rank: list[list[Any]]) -> Any:
    ends = []
    for device, done in zip(DEVICES, by_rank, strict=True):
        with tf.device(device), tf.control_dependencies(done):
            ends.append(tf.no_op())
    return ends


class Tasks:
    """A task graph as one step."""

    def __init__(self, graph: TaskGraph, target: str) -> None:
        self.num_tasks = graph.num_tasks
        with tf.Graph().as_default():
            self._kernels = _Kernels()
            row: dict[int, Any] = {}
            found, expected, sums = [], [], {}
            done: list[list[Any]] = [[] for _ in DEVICES]
            for step in range(graph.steps):
                before, row = row, {}
                sums_before, sums = sums, {}
                for p in graph.points(step):
                    rank = graph.rank_of(p, len(DEVICES))
                    inputs = graph.inputs(step, p)
                    with tf.device(DEVICES[rank]):
                        start = tf.add_n([before[q] for q in inputs]) if inputs else tf.constant(p + 1.0, tf.float64, [1, ROW])
                        row[p] = self._kernels(rank, start)
                    sums[p] = sum(sums_before[q] for q in inputs) if inputs else p + 1.0
                    done[rank].append(row[p].op)
                    found.append(row[p])
                    expected.append(sums[p])
            ends = _all(done)
            self._session = _session(target)
            self._kernels.set(self._session, 3)
            np.testing.assert_allclose(np.array(self._session.run(found))[:, 0, :].T, np.tile(expected, (ROW, 1)), rtol=1e-9)
            self._call: Run = self._session.make_callable(ends)

    def task_s(self, entries: int) -> float:
        """Seconds of a core for each task, the fastest of some runs."""
        self._kernels.set(self._session, entries)
        return _fastest(self._call) * len(DEVICES) / self.num_tasks

    def close(self) -> None:
        """End the session."""
        self._session.close()


def _fastest(call: Run, repeats: int = REPEATS) -> float:
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


@lru_cache(maxsize=1)
def _peak(target: str) -> Callable[[], float]:
    """What measures the seconds of one entry of the kernel, alone on both servers at once."""
    with tf.Graph().as_default():
        kernels = _Kernels()
        done = []
        for rank, device in enumerate(DEVICES):
            with tf.device(device):
                row = tf.ones([1, ROW], tf.float64)
                for _ in range(PEAK_TASKS):
                    row = kernels(rank, row)
                done.append([row.op])
        ends = _all(done)
        session = _session(target)
        call = session.make_callable(ends)

    least = float("inf")

    def measure() -> float:
        nonlocal least
        seconds = []
        for entries in (1, PEAK_ENTRIES):
            kernels.set(session, entries)
            seconds.append(_fastest(call))
        # Without what the step itself costs; the peak is what the machine can do.
        least = min(least, (seconds[1] - seconds[0]) / (PEAK_ENTRIES - 1) / PEAK_TASKS)
        return least

    return measure


_tasks: dict[TaskGraph, Tasks] = {}


def taskbench(request: Mapping[str, Any], target: str) -> dict[str, Any]:
    """METG(50 %) of a task graph and its time per task without a kernel, in seconds; nan where half of the peak isn't reached."""
    graph = TaskGraph(request["pattern"], request["width"], request["steps"])
    if graph not in _tasks:
        for other in _tasks.values():
            other.close()
        _tasks.clear()
        _tasks[graph] = Tasks(graph, target)
    tasks, entry_s = _tasks[graph], _peak(target)()
    bare = tasks.task_s(0)
    points = [Point(0.0, bare)]
    # Half of the peak is expected where the kernel takes as long as all else: from there, up or down to where it is.
    entries = max(1, round(bare / entry_s))
    while len(points) < MOST_GRAINS:
        points.append(Point(entries * entry_s, tasks.task_s(entries)))
        reached = [point.efficiency >= HALF for point in points[1:]]
        if any(reached) and not all(reached):
            break
        entries = max(1, entries // 2 if reached[0] else entries * 2)
    return {"metg": metg(points), "bare": bare}
