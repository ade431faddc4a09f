"""What it takes to build and plan a step, by its size: mpirun -n 2 python scripts/bench/planning.py

Build and first step of 1,000 to 100,000 operations in two chains over two tasks. It should grow linearly: the exponent is the
slope of a line fitted to the logarithms, 1 for linear. (Plans for many tasks, with no MPI: `plans.py`.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments
from graphs import two_chains
from peers import Peer, Rest

import mpirt as tf

SIZES = [1_000, 10_000, 100_000]
TENSORFLOW_LARGE = 10_000  # operations beyond which TensorFlow takes minutes: left out of --quick, else measured in one round
LARGEST_TARGET_S = 5.0


def first_step(operations: int) -> tuple[float, float]:
    """Seconds to build the graph, and to plan and run its first step."""
    with tf.Graph().as_default(), tf.Session() as session:
        start = time.perf_counter()
        x = tf.placeholder(tf.float32, [10])
        ends = two_chains(tf, x, operations, ("/job:worker/task:0", "/job:worker/task:1"))
        built = time.perf_counter()
        session.run([end.op for end in ends], {x: np.zeros(10, np.float32)})
        return built - start, time.perf_counter() - built


def main() -> None:
    parser = arguments(__doc__, rounds=3, quick_rounds=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="operations")
    args = parser.parse_args()
    cluster = tf.cluster({"worker": 2})
    report, rest = Report("planning"), None
    if cluster.size > 1:
        from mpi4py import MPI

        rest = Rest(MPI.COMM_WORLD)
        report = Report("planning", MPI.COMM_WORLD.allgather(os.getpid()))
    peer = Peer(args.tensorflow, "tensorflow_peer.py") if args.tensorflow and cluster.rank == 0 else None
    first_steps(report, args, args.sizes, peer, rest, cluster.rank)
    if cluster.rank == 0:
        report.finish(args.json)
    if peer:
        peer.close()


def first_steps(report: Report, args: Any, sizes: Sequence[int], peer: Peer | None, rest: Rest | None, rank: int) -> None:
    """Build and first step of each size, mpirt on all ranks and then TensorFlow."""
    kinds = ("build", "first", "total")
    of = {size: {kind: {"mpirt": Measured(), "tensorflow": Measured()} for kind in kinds} for size in sizes}

    def note(size: int, contestant: str, build_s: float, first_s: float) -> None:
        for kind, seconds in zip(kinds, (build_s, first_s, build_s + first_s), strict=True):
            of[size][kind][contestant].add([seconds])

    first_step(sizes[0])  # what is done once in a process isn't planning
    if args.tensorflow and args.quick:
        report.leave_out("with TensorFlow the operations", sizes, [size for size in sizes if size <= TENSORFLOW_LARGE])
    if peer:
        peer.ask(line="planning", operations=sizes[0])
    for number in range(args.rounds):
        for size in sizes:
            with report.others:
                note(size, "mpirt", *first_step(size))
            if rest and rank > 0:
                rest.wait()
            elif peer and (size <= TENSORFLOW_LARGE or number == 0 and not args.quick):
                answer = peer.ask(line="planning", operations=size)
                note(size, "tensorflow", answer["build"], answer["first"])
            if rest and rank == 0:
                rest.wake()
    if rank > 0:
        return
    for size in sizes:
        target = Target(ratio="mpirt", at_most=LARGEST_TARGET_S) if size == 100_000 else None
        for kind, figure in zip(kinds, ("build", "plan and run the first step", "build, plan and first step"), strict=True):
            ours, other = of[size][kind]["mpirt"], of[size][kind]["tensorflow"]
            report.row(f"{size:,} operations", figure, "s", {"mpirt": ours}, target if kind == "total" else None)
            if other.rounds:
                pair = {"mpirt": Measured(ours.rounds[: len(other.rounds)]), "tensorflow": other}
                report.row(f"{size:,} operations", f"{figure}, beside TensorFlow", "s", pair)
    report.growth("build, plan and first step", sizes, [of[size]["total"]["mpirt"] for size in sizes])


if __name__ == "__main__":
    main()
