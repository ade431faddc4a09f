"""The memory of a step at its peak, beside what its plan says: python scripts/bench/memory.py

What Python's allocators have given out (``tracemalloc``, to which numpy tells its arrays), from before the step's plan is made to
the peak of a later step: the buffers that every step uses again and all values at one time, without variables and feeds. The
plan (``compiler.buffers``) says the same, without what a kernel takes for itself while it runs. *Kept* is by how much the memory
in use grew over 20 more steps.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments
from graphs import digits

import mpirt as tf
from mpirt.compiler.buffers import assign_buffers
from mpirt.compiler.linker import link
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan

STEPS = 20


def chain(nbytes: int) -> Any:
    """Ten elementwise operations, one behind the other."""
    y = x = tf.Variable(tf.fill([nbytes // 4], np.float32(1.0)))
    for number in range(10):
        y = tf.add(y, 0.5) if number % 2 else tf.multiply(y, x)
    return y


def products(side: int) -> Any:
    """Eight products of matrices that are all needed at the end."""
    x = tf.Variable(tf.fill([side, side], np.float32(0.01)))
    return tf.add_n([tf.tanh(tf.matmul(x, x)) for _ in range(8)])


def training(layers: tuple[int, ...], batch: int) -> Any:
    """One step of training on one task."""
    return digits(tf, ["/job:worker/task:0"], ["/job:worker/task:0"], batch, layers)


CASES: dict[str, Callable[[], Any]] = {
    "chain on 16 MiB": partial(chain, 16 * 2**20),
    "8 products of 1 MiB": partial(products, 512),
    "digits, batch 2048": partial(training, (64, 256, 128, 10), 2048),
    "784-1024-1024-10, batch 128": partial(training, (784, 1024, 1024, 10), 128),
}


def measure(build: Callable[[], Any], cluster: Any) -> tuple[int, int, int]:
    """Bytes: the peak of a step, what the plan says, and what 20 more steps keep."""
    with tf.Graph().as_default() as graph, tf.Session(fetch_on="owner") as session:
        fetch = build()
        session.run(tf.global_variables_initializer())
        inventory = {task: ("CPU:0",) for task in cluster.table.tasks}
        plan = make_plan(graph, [fetch], (), inventory, PlacementRules(next(iter(inventory))), {})
        said = assign_buffers(link(plan, lambda task: 0, 0, 1, "owner")).peak_nbytes
        call = session.make_callable(fetch)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            call()
            call()
            gc.collect()
            tracemalloc.reset_peak()
            call()
            current, peak = tracemalloc.get_traced_memory()
            for _ in range(STEPS):
                call()
            gc.collect()
            return peak - before, said, tracemalloc.get_traced_memory()[0] - current
        finally:
            tracemalloc.stop()


def main() -> None:
    args = arguments(__doc__, rounds=3, quick_rounds=1).parse_args()
    cluster = tf.cluster()
    report = Report("memory")
    for name, build in CASES.items():
        peak, plan, kept = Measured(), Measured(), Measured()
        for _ in range(args.rounds):
            found, said, grown = measure(build, cluster)
            peak.add([float(found)])
            plan.add([float(said)])
            kept.add([float(grown)])
        target = Target(ratio="mpirt / plan", at_least=0.9, at_most=1.1)
        note = f"kept after {STEPS} more steps: {kept.median / 2**20:.3f} MiB"
        report.row(name, "memory of a step at its peak", "MiB", {"mpirt": peak, "plan": plan}, target, note)
    report.finish(args.json)


if __name__ == "__main__":
    main()
