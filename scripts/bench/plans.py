"""Planning alone, with no MPI, for many tasks: python scripts/bench/plans.py

The plan of a stencil over 1,000 to 10,000 tasks, with the program of one of its ranks: the process's own seconds, and the
memory that this takes at its peak. Both should grow linearly in operations and edges: the exponent is the slope of a line
fitted to the logarithms.
"""

from __future__ import annotations

import time
import tracemalloc

from figures import Measured, Report, arguments
from graphs import stencil

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import collecting_later, make_plan

TASKS, QUICK_TASKS = [1_000, 3_000, 10_000], [500, 1_500, 5_000]
QUICK_TRACED = 1_500  # tasks up to which --quick looks at the memory, which takes five times as long
ROWS = 4  # of the stencil


def stencil_graph(tasks: int) -> tuple[tf.Graph, tf.Operation]:
    """A stencil with a point on each of many tasks, and what to fetch."""
    names = [f"/job:worker/task:{number}" for number in range(tasks)]
    with tf.Graph().as_default() as graph:
        start = []
        for name in names:
            with tf.device(name):
                start.append(tf.zeros([16]))
        ends = stencil(tf, start, ROWS, names)
        with tf.device(names[0]):
            return graph, tf.group([end.op for end in ends])


@collecting_later()
def plan(graph: tf.Graph, fetch: tf.Operation, tasks: int) -> Plan:
    """The plan of the step, and the program of rank 0, where each task has a rank; as sessions plan."""
    inventory = {Task("worker", number): ("CPU:0",) for number in range(tasks)}
    found = make_plan(graph, [fetch], (), inventory, PlacementRules(Task("worker", 0)), {})
    link(found, lambda task: task.index, 0, tasks, "owner")
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=3, quick_rounds=1)
    parser.add_argument("--tasks", type=int, nargs="+", help="of the stencils")
    args = parser.parse_args()
    tasks = sorted(args.tasks or (QUICK_TASKS if args.quick else TASKS))
    report = Report("plans")
    report.leave_out("tasks", TASKS, tasks)
    graphs = [stencil_graph(count) for count in tasks]
    seconds, nbytes = [Measured() for _ in tasks], [Measured() for _ in tasks]
    amounts = [0] * len(tasks)
    for _ in range(args.rounds):
        for position, count in enumerate(tasks):
            with report.others:
                start = time.process_time()  # it waits for nothing, so others only disturb the clock on the wall
                found = plan(*graphs[position], count)
                seconds[position].add([time.process_time() - start])
            amounts[position] = len(found.nodes) + len(found.edges)
            del found
    traced = [count for count in tasks if count <= QUICK_TRACED or not args.quick]
    report.leave_out("the memory of tasks", tasks, traced)
    for position in range(len(traced)):
        tracemalloc.start()
        plan(*graphs[position], tasks[position])
        nbytes[position].add([float(tracemalloc.get_traced_memory()[1])])
        tracemalloc.stop()
    for figure, unit, measured in (("plan and program of one rank", "s", seconds), ("memory of planning at its peak", "MiB", nbytes)):
        for count, amount, found in zip(tasks, amounts, measured, strict=True):
            if found.rounds:
                report.row(f"{count:,} tasks", figure, unit, {"mpirt": found}, note=f"{amount:,} operations and edges")
    report.growth("plan and program of one rank", amounts, seconds)
    report.growth("memory of planning at its peak", amounts[: len(traced)], nbytes[: len(traced)])
    report.finish(args.json)


if __name__ == "__main__":
    main()
