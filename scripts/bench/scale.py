"""Scale on paper: plans of steps replayed against measured costs: mpirun -n 2 python scripts/bench/scale.py

1. Measures what this job's messages cost (`message_costs`) and what the instructions of programs take (`rehearsal`).
2. Predicts the time of steps that it can also run, on the ranks of this job, and compares (`replay` does the prediction).
3. Predicts steps on 64 to 10,000 ranks, one task a rank, each rank with a core of its own: once with messages that
   cost what they cost here, once with a network's latency and bandwidth (--latency-us, --gb-per-s; assumed, not measured).

Nothing is fitted: no cost is taken from a step that is checked. Costs and checked steps are the 10th percentile of many samples.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed
from message_costs import SIZES, WAITS_S, MessageCosts
from peers import Rest
from rehearsal import Rehearsal, quiet
from replay import PACKET, Costs, Replayed, programs_of, replay, tracks_of
from scale_steps import CHECKS, ON_PAPER, Build, task_names

import mpirt as tf
from mpirt.cluster.launchers import detect
from mpirt.cluster.task import Task
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Program
from mpirt.runtime.rendezvous import comes_soon
from mpirt.transport import base

RANKS, QUICK_RANKS = (64, 256, 1024, 10_000), (256,)
STEPS = 4
CALLS, ROUNDS_OF_CALLS = 50, 20
HOLD_S = 0.05
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Planned:
    """A step on paper: its graph, and the programs of all ranks."""

    graph: tf.Graph
    programs: list[Program]

    def replayed(self, rehearsal: Rehearsal, costs: Costs, one_host: bool) -> Replayed:
        """What the replay says of it."""
        ranks = len(self.programs)
        tracks = tracks_of(self.programs, rehearsal, costs, (0,) * ranks if one_host else range(ranks))
        return replay(tracks, costs, STEPS)


def planned(build: Build, tasks: int, memory: Sequence[int] | None = None) -> Planned:
    """A step with a rank for each task; for ``memory`` see ``program.link``."""
    with tf.Graph().as_default() as graph:
        fetch = build(task_names(tasks))
    inventory = {Task("worker", number): ("CPU:0",) for number in range(tasks)}
    plan = make_plan(graph, [fetch], (), inventory, PlacementRules(Task("worker", 0)), {})
    return Planned(graph, programs_of(plan, lambda task: task.index, tasks, memory))


class Bench:
    """Times steps on the ranks of this job; every rank makes the same calls, rank 0 uses the answers."""

    def __init__(self, report: Report, comm: Any, seconds: float) -> None:
        self.report = report
        self._comm = comm
        self._seconds = seconds

    def step_s(self, build: Build) -> float:
        """Seconds of a step on rank 0."""
        with tf.Graph().as_default(), tf.Session(fetch_on="owner") as session:
            fetch = build(task_names(self._comm.Get_size()))
            session.run(tf.global_variables_initializer())
            call = session.make_callable(fetch)
            with self.report.others:
                first = timed(call, 5, warmup=2)
                count = self._comm.bcast(max(10, min(2000, int(self._seconds / min(first)))))
                return float(quiet(timed(call, count)))

    def begin_s(self) -> float:
        """Seconds of rank 0's processor that a step takes which does nothing, so that there is nothing to tell of its end either."""
        with tf.Graph().as_default(), tf.Session(fetch_on="owner") as session:
            with tf.device("/job:worker/task:0"):
                call = session.make_callable(tf.no_op())
            samples = []
            for _ in range(ROUNDS_OF_CALLS):
                self._comm.Barrier()
                call()
                start = time.thread_time()  # where ranks share cores, of the wall's clock it has a part only
                for _ in range(CALLS):
                    call()
                samples.append((time.thread_time() - start) / CALLS)
        return float(quiet(samples))


def rehearse(rehearsal: Rehearsal, steps: Sequence[Planned], comm: Any, at_once: int) -> None:
    """Measure what isn't known of ``steps``, ``at_once`` ranks at a time, each one a program: as they do in a step."""
    size, rank = comm.Get_size(), comm.Get_rank()
    for step in steps:
        programs = rehearsal.missing(step.programs)
        for first in range(0, len(programs), at_once):
            mine = programs[first + rank] if rank < at_once and first + rank < len(programs) else None
            if mine is not None:
                rehearsal.learn(step.graph, mine)
            done = comm.allgather(rehearsal(mine) if mine is not None else None)
            for program, seconds in zip(programs[first : first + size], done, strict=False):
                if seconds is not None:
                    rehearsal.add(program, seconds)


def shared_cores(costs: Costs, cluster: tf.Cluster, comm: Any) -> Costs:
    """The costs, with what is known of cores that ranks share."""
    cores = len(CORES)
    if cluster.size <= cores:
        return costs
    transport, neighbour = cluster.transport, (cluster.rank + 1) % cluster.size
    nothing, tag = np.zeros(1, np.uint8), cluster.reserve_tags(1)
    request = transport.irecv(nothing, neighbour, tag)
    comm.Barrier()
    spin_s = _hold_s(lambda: comes_soon(request.test, transport.crowded))
    comm.Barrier()
    sent = transport.isend(nothing, (cluster.rank - 1) % cluster.size, tag)
    while not (request.test() and sent.test()):
        pass
    comm.Barrier()
    slice_s = _hold_s(lambda: None)
    start = time.perf_counter()
    comes_soon(lambda: False, False)
    longest_s = time.perf_counter() - start + base._SPIN_S  # from then on the wait itself yields
    spin_s, slice_s = np.mean(comm.allgather((min(spin_s, longest_s), slice_s)), axis=0).tolist()
    return changed(costs, cores=cores, spin_s=spin_s, slice_s=slice_s)


def _hold_s(act: Callable[[], object]) -> float:
    """How long this process keeps its core while all ranks do this all the time: MPI may yield it at every look."""
    before, start = _switches(), time.thread_time()
    end = time.perf_counter() + HOLD_S
    while time.perf_counter() < end:
        act()
    return (time.thread_time() - start) / max(1, _switches() - before)


def _switches() -> int:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_nvcsw + usage.ru_nivcsw


def main() -> None:
    parser = arguments(__doc__, rounds=5, quick_rounds=1)
    parser.add_argument("--ranks", type=int, nargs="*", help="numbers of ranks on paper")
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), help=f"of {', '.join(map(repr, CHECKS))}")
    parser.add_argument("--seconds", type=float, help="of each measured step (default 0.3, with --quick 0.05)")
    parser.add_argument("--latency-us", type=float, default=1.5, help="of the assumed network (default 1.5)")
    parser.add_argument("--gb-per-s", type=float, default=12.0, help="of the assumed network (default 12)")
    args = parser.parse_args()
    launched = detect(os.environ)
    ranks = launched.size if launched else 1
    if ranks < 2:
        parser.error("needs 2 ranks or more: mpirun -n 2 python scripts/bench/scale.py")
    if ranks > len(CORES):  # where the system puts them is chance, and for as long as they run
        os.sched_setaffinity(0, {CORES[launched.rank % len(CORES)]} if launched else CORES)
    sizes: Sequence[int] = QUICK_RANKS if args.quick else RANKS
    if args.ranks is not None or ranks > 2:  # on paper the ranks of this job don't count: once is enough
        sizes = args.ranks or ()
    # Graphs for more tasks than this job has, before the cluster starts: from then on device blocks are checked against it.
    checked = {name: planned(CHECKS[name], ranks, (0,) * ranks) for name in args.checks}
    on_paper = {}
    if launched is not None and launched.rank == 0:
        on_paper = {(name, n): planned(build, n) for name, (build, most) in ON_PAPER.items() for n in sizes if n <= most}
    cluster = tf.cluster({"worker": ranks})

    from mpi4py import MPI

    report = Report("scale", MPI.COMM_WORLD.allgather(os.getpid()))
    report.leave_out("ranks on paper", RANKS if ranks == 2 else (), sizes)
    rest = Rest(MPI.COMM_WORLD)
    bench = Bench(report, MPI.COMM_WORLD.Dup(), args.seconds or (0.05 if args.quick else 0.3))
    costs = check(args, report, bench, checked, cluster)
    if cluster.rank == 0:
        predict(args, report, costs, on_paper)
        rest.wake()
        report.finish(args.json)
    else:
        rest.wait()


def check(args: Any, report: Report, bench: Bench, checked: dict[str, Planned], cluster: tf.Cluster) -> Costs:
    """Measure costs and steps in rounds, and on rank 0 put the predictions beside them."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    messages = MessageCosts(cluster, comm.Dup())
    measured = {name: Measured() for name in checked}
    predicted = {name: Measured() for name in checked}
    at_once = min(cluster.size, len(CORES))
    tables = []
    for _ in range(args.rounds):
        costs = messages.measure()
        costs = shared_cores(changed(costs, begin_s=max(1e-7, bench.begin_s())), cluster, comm)
        tables.append(costs)
        for name, step in checked.items():
            rehearsal = Rehearsal(cluster.size)
            rehearse(rehearsal, [step], comm, at_once)
            measured[name].add([bench.step_s(CHECKS[name])])
            predicted[name].add([step.replayed(rehearsal, costs, True).step_s])
    if cluster.rank == 0:
        tell(report, tables)
        errors = []
        for name in checked:
            errors.append([abs(1 / ratio - 1) * 100 for ratio in measured[name].ratios_to(predicted[name])])
            note = f"predicted {'+' if predicted[name].median > measured[name].median else '-'}{np.median(errors[-1]):.0f} %"
            values = {"mpirt": measured[name], "predicted": predicted[name]}
            report.row(name, f"a step on {cluster.size} ranks", "us", values, note=note)
        if errors:
            median = Measured([[float(np.median(each))] for each in zip(*errors, strict=True)])
            report.row("median over the steps", "error of the prediction", "%", {"mpirt": median}, Target(ratio="mpirt", at_most=20.0))
    return sorted(tables, key=lambda table: table.begin_s)[len(tables) // 2]


def tell(report: Report, tables: Sequence[Costs]) -> None:
    """Rows of the costs that were measured."""
    parts = ("post", "send", "flight", "take", "copy")
    for way, sizes in SIZES.items():
        for nbytes in sizes:
            values = {part: Measured([[getattr(table, f"{part}_s")(way, nbytes)] for table in tables]) for part in parts}
            report.row(f"{way}, {nbytes:,} B", "a message", "us", values)
    for what in ("begin", "put", "get", *(("spin", "slice") if tables[0].cores else ())):
        report.row(what, "other costs", "us", {"seconds": Measured([[getattr(table, f"{what}_s")] for table in tables])})
    for waited_s in WAITS_S:
        report.row(
            f"found after {waited_s * 1e6:,.0f} us", "other costs", "us", {"seconds": Measured([[t.late_s(waited_s)] for t in tables])}
        )


def predict(args: Any, report: Report, costs: Costs, on_paper: dict[tuple[str, int], Planned]) -> None:
    """The steps of many ranks."""
    here = changed(costs, cores=None)
    byte_s = 1 / (args.gb_per_s * 1e9)
    send_s, take_s, post_s = (cost(PACKET, 8) for cost in (costs.send_s, costs.take_s, costs.post_s))
    network = changed(
        here,
        send_s=lambda way, nbytes: send_s,
        take_s=lambda way, nbytes: take_s,
        post_s=lambda way, nbytes: post_s,
        copy_s=lambda way, nbytes: 0.0,
        flight_s=lambda way, nbytes: send_s + args.latency_us * 1e-6 + nbytes * byte_s,
        port_s=lambda nbytes: nbytes * byte_s,
    )
    rehearsal = Rehearsal(max([ranks for _, ranks in on_paper], default=0))
    for (name, ranks), step in on_paper.items():
        for program in rehearsal.missing(step.programs):
            rehearsal.learn(step.graph, program)
        local, remote = step.replayed(rehearsal, here, True), step.replayed(rehearsal, network, False)
        busy = np.array(remote.busy_s) / remote.step_s
        note = f"{remote.messages:,} messages, {remote.nbytes * 1e-6:,.1f} MB a step; busy on the network: rank {int(busy.argmax())} "
        note += f"{busy.max():.0%} of the time, the median rank {np.median(busy):.0%}"
        values = {"mpirt, messages as here": Measured([[local.step_s]]), "mpirt, assumed network": Measured([[remote.step_s]])}
        report.row(f"{ranks:,} ranks", f"on paper: {name}", "ms", values, note=note)


if __name__ == "__main__":
    main()
