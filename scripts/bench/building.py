"""Time to build a graph and to run its first step, by the number of operations: python scripts/bench/building.py

Two chains of multiply and add on two tasks, with 10 tensors that cross in each thousand operations. Medians of several
rounds with the spread; the time for one operation should not grow with the graph.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import mpirt as tf

CROSSINGS_PER_1000 = 10


def round_of(count: int) -> tuple[float, float, float]:
    """Seconds to build ``count`` operations, to run the first step, and to run one more."""
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [10])
        start = time.perf_counter()
        chains = [x, x]
        for i in range(count // 4):
            for task in range(2):
                other = chains[1 - task] if i % (1000 // CROSSINGS_PER_1000 // 2) == 0 else x
                with tf.device(f"/job:worker/task:{task}"):
                    chains[task] = tf.add(tf.multiply(chains[task], other), x)
        built = time.perf_counter()
        feeds, fetches = {x: np.zeros(10, np.float32)}, [y.op for y in chains]
        session.run(fetches, feeds)
        first = time.perf_counter()
        session.run(fetches, feeds)
        return built - start, first - built, time.perf_counter() - first


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cluster = tf.cluster({"worker": 2})
    table = Table("operations", "build s", "us/op", "first run s", "us/op", "later run ms", title="medians (lowest - highest)")
    for count in args.sizes:
        rounds = [round_of(count) for _ in range(args.rounds)]
        build, first, later = (sorted(column) for column in zip(*rounds, strict=True))
        cells = []
        for column in (build, first):
            middle = statistics.median(column)
            cells += [f"{middle:.3f} ({column[0]:.3f} - {column[-1]:.3f})", f"{middle / count * 1e6:.1f}"]
        table.add_row(f"{count:,}", *cells, f"{statistics.median(later) * 1e3:.1f}")
    if cluster.rank == 0:
        Console().print(table)


if __name__ == "__main__":
    main()
