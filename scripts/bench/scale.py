"""Scale on paper: plans of steps replayed against measured costs: mpirun -n 2 python scripts/bench/scale.py

1. Measures what this job's messages cost (`message_costs`) and what the instructions of programs take (`rehearsal`).
2. Predicts the time of steps that it can also run, on the ranks of this job, and compares (`replay` does the prediction). Costs,
   rehearsals and the step itself take turns, twice within half a second: in others the machine may be half as fast.
3. Predicts steps on 64 to 10,000 ranks, one task a rank, each rank with a core of its own, on a host of its own: so all that they
   tell each other are messages. Once these cost what MPI's messages cost between ranks of this host, once they have a network's
   latency and bandwidth (--latency-us, --gb-per-s; assumed, not measured).

Nothing is fitted: no cost is taken from a step that is checked. Costs and checked steps are the 10th percentile of many samples.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed
from message_costs import MEETINGS, SAMPLES, SIZES, WAITS_S, MessageCosts
from peers import Rest
from rehearsal import Rehearsal, Together, quiet
from replay import Replayed, programs_of, replay
from scale_steps import CHECKS, ON_PAPER, Build, task_names
from tracks import WHOLE, Costs, networked, tracks_of

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
CALLS, ROUNDS_OF_CALLS = 20, 10
# Of each check: costs, rehearsals and steps take turns, so that they see the same moments of the machine.
SLICES, REHEARSED_S = 2, 0.03
HOLD_S, LOOKS_S = 0.05, 4e-3
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Planned:
    """A step on paper: its graph, the programs of all ranks, and the ``Transport.memory`` for which these were linked."""

    graph: tf.Graph
    programs: list[Program]
    memory: Sequence[int]

    def replayed(self, rehearsal: Rehearsal, costs: Costs) -> Replayed:
        """What the replay says of it."""
        return replay(tracks_of(self.programs, rehearsal, costs, self.memory), costs, STEPS)


def planned(build: Build, tasks: int, one_host: bool) -> Planned:
    """A step with a rank for each task, all of them on one host or each on its own."""
    memory: Sequence[int] = (0,) * tasks if one_host else range(tasks)
    with tf.Graph().as_default() as graph:
        fetch = build(task_names(tasks))
    inventory = {Task("worker", number): ("CPU:0",) for number in range(tasks)}
    plan = make_plan(graph, [fetch], (), inventory, PlacementRules(Task("worker", 0)), {})
    return Planned(graph, programs_of(plan, lambda task: task.index, tasks, memory), memory)


class Bench:
    """Times steps on the ranks of this job; every rank makes the same calls, rank 0 uses the answers."""

    def __init__(self, report: Report, comm: Any, seconds: float) -> None:
        self.report = report
        self._comm = comm
        self._seconds = seconds
        self._empty: Callable[[], object] | None = None
        self._begins: deque[list[float]] = deque(maxlen=SAMPLES)

    def step(self, build: Build) -> Step:
        """A step to be timed."""
        return Step(build, self.report, self._comm, self._seconds)

    def sample_begin(self) -> None:
        """Time once more what rank 0's processor does in a step that does nothing, so that there is nothing to tell of its end either."""
        if self._empty is None:
            with tf.Graph().as_default():
                session = tf.Session(fetch_on="owner")
                with tf.device("/job:worker/task:0"):
                    self._empty = session.make_callable(tf.no_op())
        call, samples = self._empty, []
        for _ in range(ROUNDS_OF_CALLS):
            self._comm.Barrier()
            call()
            start = time.thread_time()  # where ranks share cores, of the wall's clock it has a part only
            for _ in range(CALLS):
                call()
            samples.append((time.thread_time() - start) / CALLS)
        self._begins.append(samples)

    def begin_s(self) -> float:
        """What the beginning and the end of a step cost, by the last samples."""
        return float(quiet(np.concatenate(self._begins)))


class Step:
    """A step on the ranks of this job, to be timed again and again."""

    def __init__(self, build: Build, report: Report, comm: Any, seconds: float) -> None:
        self._others = report.others
        with tf.Graph().as_default():
            session = self._session = tf.Session(fetch_on="owner")
            fetch = build(task_names(comm.Get_size()))
            session.run(tf.global_variables_initializer())
            self._call = session.make_callable(fetch)
        with self._others:
            first = timed(self._call, 5, warmup=2)
        self._count = comm.bcast(max(5, min(2000, int(seconds / SLICES / min(first)))))
        self.samples: list[float] = []

    def sample(self) -> None:
        """Time it for a while."""
        with self._others:
            self.samples += timed(self._call, self._count, warmup=2)

    def close(self) -> None:
        """Give its memory back."""
        self._session.close()


class SharedCores:
    """What ranks do that share cores; nothing if each has its own."""

    def __init__(self, cluster: tf.Cluster, comm: Any) -> None:
        self._transport, self._rank, self._size, self._comm = cluster.transport, cluster.rank, cluster.size, comm
        self._shared = cluster.size > len(CORES)
        self._nothing, self._tag = np.zeros(1, np.uint8), cluster.reserve_tags(1)
        self._turns: deque[float] = deque(maxlen=SAMPLES)
        self._held_s = 0.0, 0.0
        if self._shared:
            self._measure_held()

    def _measure_held(self) -> None:
        """For how long a rank keeps its core while it waits, and while it computes."""
        with self._waiting() as request:
            spin_s = _hold_s(lambda: comes_soon(request.test, self._transport.crowded))
        slice_s = _hold_s(lambda: None)
        start = time.perf_counter()
        comes_soon(lambda: False, False)
        longest_s = time.perf_counter() - start + base._SPIN_S  # from then on the wait itself yields
        spin_s, slice_s = np.mean(self._comm.allgather((min(spin_s, longest_s), slice_s)), axis=0).tolist()
        self._held_s = spin_s, slice_s

    def sample(self) -> None:
        """Time once more how often a rank looks that waits, with others on its core that wait too, and with the core for itself."""
        if not self._shared:
            return
        core, cores = self._rank // len(CORES), -(-self._size // len(CORES))
        looks_s = []
        with self._waiting() as request:
            for turn in (None, *range(cores)):
                self._comm.Barrier()
                if turn in (None, core):
                    count, end = 0, time.perf_counter() + LOOKS_S
                    while time.perf_counter() < end:
                        request.test()
                        os.sched_yield()
                        count += 1
                    looks_s.append(LOOKS_S / count)
                asleep = self._comm.Ibarrier()
                while not asleep.Test():
                    time.sleep(5e-4)
        # What comes at any time is found half the time between two looks later.
        self._turns.append(float(np.mean(self._comm.allgather(looks_s[0] - looks_s[1]))) / 2)

    def costs(self) -> dict[str, Any]:
        """By the fields of `Costs`."""
        if not self._shared:
            return {}
        spin_s, slice_s = self._held_s
        return {"cores": len(CORES), "spin_s": spin_s, "slice_s": slice_s, "turns_s": max(0.0, float(np.median(self._turns)))}

    @contextmanager
    def _waiting(self) -> Iterator[Any]:
        """A request that doesn't come; all ranks have one."""
        transport, size, rank = self._transport, self._size, self._rank
        request = transport.irecv(self._nothing, (rank + 1) % size, self._tag)
        self._comm.Barrier()
        yield request
        self._comm.Barrier()
        sent = transport.isend(self._nothing, (rank - 1) % size, self._tag)
        while not (request.test() and sent.test()):
            pass
        self._comm.Barrier()


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
    parser = arguments(__doc__, rounds=4, quick_rounds=1)
    parser.add_argument("--ranks", type=int, nargs="*", help="numbers of ranks on paper")
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), help=f"of {', '.join(map(repr, CHECKS))}")
    parser.add_argument("--seconds", type=float, help="of each measured step (default 0.2, with --quick 0.1)")
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
    checked = {name: planned(CHECKS[name], ranks, True) for name in args.checks}
    on_paper = {}
    if launched is not None and launched.rank == 0:
        on_paper = {(name, n): planned(build, n, False) for name, (build, most) in ON_PAPER.items() for n in sizes if n <= most}
    cluster = tf.cluster({"worker": ranks})

    from mpi4py import MPI

    report = Report("scale", MPI.COMM_WORLD.allgather(os.getpid()))
    report.leave_out("ranks on paper", RANKS if ranks == 2 else (), sizes)
    rest = Rest(MPI.COMM_WORLD)
    bench = Bench(report, MPI.COMM_WORLD.Dup(), args.seconds or (0.1 if args.quick else 0.2))
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
    messages, shared = MessageCosts(cluster, comm.Dup()), SharedCores(cluster, comm)
    measured = {name: Measured() for name in checked}
    predicted = {name: Measured() for name in checked}
    at_once = min(cluster.size, len(CORES))
    tables: list[Costs] = []

    def sample() -> None:
        messages.sample()
        bench.sample_begin()
        shared.sample()

    def costs_now() -> Costs:
        tables.append(changed(messages.costs(), begin_s=bench.begin_s(), **shared.costs()))
        return tables[-1]

    for _ in range(args.rounds):
        if not checked:
            sample()
            costs_now()
        for name, step in checked.items():
            rehearsal = Rehearsal(step.memory)
            together = Together(rehearsal, step.graph, step.programs, comm, at_once)
            real = bench.step(CHECKS[name])
            for _ in range(SLICES):
                sample()
                together.sample(REHEARSED_S)
                real.sample()
            real.close()
            together.learn()
            costs = costs_now()
            measured[name].add([float(quiet(real.samples))])
            predicted[name].add([step.replayed(rehearsal, costs).step_s])
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
    parts = ("post", "send", "flight", "take", "copy", "read", "write")
    for way, sizes in SIZES.items():
        for nbytes in sizes:
            values = {part: Measured([[getattr(table, f"{part}_s")(way, nbytes)] for table in tables]) for part in parts}
            report.row(f"{way}, {nbytes:,} B", "a message", "us", values)
    for way, sizes in MEETINGS.items():
        for nbytes in sizes:
            values = {"meet": Measured([[table.meet_s(2, nbytes, way == WHOLE)] for table in tables])}
            values |= {part: Measured([[getattr(table, f"{part}_s")(way, nbytes)] for table in tables]) for part in ("read", "write")}
            report.row(f"{way}, {nbytes:,} B", "a reduction of two ranks on a board", "us", values)
    for what in ("begin", "put", "get", *(("spin", "slice", "turns") if tables[0].cores else ())):
        report.row(what, "other costs", "us", {"seconds": Measured([[getattr(table, f"{what}_s")] for table in tables])})
    for waited_s in WAITS_S:
        report.row(
            f"found after {waited_s * 1e6:,.0f} us", "other costs", "us", {"seconds": Measured([[t.late_s(waited_s)] for t in tables])}
        )


def predict(args: Any, report: Report, costs: Costs, on_paper: dict[tuple[str, int], Planned]) -> None:
    """The steps of many ranks."""
    here = changed(costs, cores=None)
    network = networked(here, args.latency_us * 1e-6, 1 / (args.gb_per_s * 1e9))
    rehearsal = Rehearsal(range(max([ranks for _, ranks in on_paper], default=0)))
    for (name, ranks), step in on_paper.items():
        for program in rehearsal.missing(step.programs):
            rehearsal.learn(step.graph, program)
        local, remote = (step.replayed(rehearsal, table) for table in (here, network))
        busy = np.array(remote.busy_s) / remote.step_s
        note = f"{remote.messages:,} messages, {remote.nbytes * 1e-6:,.1f} MB a step; busy on the network: rank {int(busy.argmax())} "
        note += f"{busy.max():.0%} of the time, the median rank {np.median(busy):.0%}"
        values = {"mpirt, messages as here": Measured([[local.step_s]]), "mpirt, assumed network": Measured([[remote.step_s]])}
        report.row(f"{ranks:,} ranks", f"on paper: {name}", "ms", values, note=note)


if __name__ == "__main__":
    main()
