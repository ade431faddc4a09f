"""Task-Bench-style: METG(50 %) of eleven dependence patterns on 2 ranks: mpirun -n 2 python scripts/bench/taskbench.py [--quick]

METG(50 %) is the smallest mean task time at which half of the cores' peak rate is reached (`metg`). Contestants run the same
tasks (`task_patterns`): mpirt as one graph of steps x width operations over 2 tasks, compiled once and run again and again by a
collective session; mpi4py by hand with one message per dependence, and packed with persistent requests (`taskbench_hand`); and,
as limit, all tasks in one process without anything to pass on, on both cores at once. In each round every contestant runs each
grain, one next to the other, in changing order; of 3 runs in a row the fastest counts. A round's METG comes from its own sweep, a
ratio is the median over the rounds. Every single run is checked against the serial answer. TensorFlow runs shorter graphs of tasks
of its own (`tensorflow_taskbench`), in the first rounds only.

At the end: where mpirt's time per task goes (`taskbench_profile`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import taskbench_profile
from figures import Measured, Report, Target, arguments
from metg import Point, geometric_mean, metg
from peers import Peer, Rest
from rich.console import Console
from task_patterns import PATTERNS, WORDS, Serial, TaskGraph, checksum, kernel, key_of, ledger, reference, run_task

import mpirt as tf
from mpirt.graph.op_def import no_gradient, register_kernel, register_op
from mpirt.ops.apply import apply_op

if TYPE_CHECKING:
    from mpi4py import MPI

RANKS = 2
MPIRT, PER_DEPENDENCE, PACKED, LIMIT = "mpirt", "mpi4py per dependence", "mpi4py packed", "limit"
TARGETS = {PER_DEPENDENCE: 1.0, PACKED: 1.3}
WIDTHS, QUICK_WIDTHS = (2, 4, 8), (2, 4)
TENSORFLOW, TENSORFLOW_STEPS, TENSORFLOW_ROUNDS = "tensorflow", 40, 2
TENSORFLOW_QUICK = ("stencil_1d", "all_to_all")
REPEATS = 3
ENOUGH = 0.6  # efficiency up to which grains are doubled
_MOST_ITERATIONS = 256
_PEAK_ITERATIONS = 200
_ATTEMPTS = 3  # at a round in which some contestant never reached half of the peak, which only a busy machine explains


class Contestant(Protocol):
    """Runs one task graph, of which this process has its part."""

    def run(self) -> object: ...
    def close(self) -> None: ...


# ---- mpirt


def register_task() -> None:
    """The operation type of a task: `task_patterns.run_task`, whatever reads it."""

    @register_op("BenchmarkTask", inputs=["inputs: N*uint64"], outputs=["output: uint64"], attrs={"key": "int"})
    def _shape(ctx: Any) -> list[Any]:
        return [(WORDS,)]

    @register_kernel("BenchmarkTask", devices=("CPU",), memory="own")
    def _kernel(ctx: Any, *inputs: Any, out: Any, key: int) -> Any:
        return run_task(key, inputs, np.empty(WORDS, np.uint64) if out is None else out)

    no_gradient("BenchmarkTask", reason="nothing is trained in a benchmark")


class Mpirt:
    """The graph as one step of a collective session."""

    def __init__(self, graph: TaskGraph) -> None:
        with tf.Graph().as_default() as operations:
            row: dict[int, Any] = {}
            done: list[list[Any]] = [[] for _ in range(RANKS)]
            for step in range(graph.steps):
                before, row = row, {}
                for p in graph.points(step):
                    rank = graph.rank_of(p, RANKS)
                    inputs = [before[q] for q in graph.inputs(step, p)]
                    with tf.device(f"/job:worker/task:{rank}"):
                        row[p] = apply_op("BenchmarkTask", inputs, key=key_of(step, p), N=len(inputs), name=f"t{step}_{p}")
                    done[rank].append(row[p].op)
            ends = []
            for rank in range(RANKS):
                with tf.device(f"/job:worker/task:{rank}"), tf.control_dependencies(done[rank]):
                    ends.append(tf.no_op())
        self.ends = ends
        self.session = tf.Session(graph=operations)
        self.run: Callable[[], object] = self.session.make_callable(ends)

    def close(self) -> None:
        """End the session."""
        self.session.close()


# ---- one pattern and width


class Case:
    """All contestants for one task graph."""

    def __init__(self, comm: MPI.Intracomm, graph: TaskGraph) -> None:
        import taskbench_hand as hand  # imports mpi4py's MPI, which mpirt wants to start itself

        self.graph = graph
        self._comm = comm
        self.contestants: dict[str, Contestant] = {
            MPIRT: Mpirt(graph),
            PER_DEPENDENCE: hand.MessagePerDependence(comm, graph),
            PACKED: hand.PackedPersistent(comm, graph),
        }
        self._serial = Serial(graph)
        checks = reference(graph)
        points = range(graph.width)
        self._expected = checksum(checks, [p for p in points if graph.rank_of(p, RANKS) == comm.rank])
        self._expected_serial = checksum(checks, points)
        self.metg: dict[str, Measured] = {name: Measured() for name in (*self.contestants, LIMIT)}
        self.bare: dict[str, Measured] = {name: Measured() for name in self.metg}  # seconds per task without any kernel
        for name in self.metg:  # also compiles
            self.wall(name, 0)

    def wall(self, name: str, iterations: int, repeats: int = 1) -> float:
        """Seconds that ``name`` takes, the fastest of ``repeats`` runs on the slowest rank. Checks what it computed."""
        ledger.iterations = iterations
        run = self._serial.run if name == LIMIT else self.contestants[name].run
        expected = self._expected_serial if name == LIMIT else self._expected
        fastest = float("inf")
        for _ in range(repeats):
            ledger.checksum = 0
            self._comm.Barrier()
            start = time.perf_counter()
            run()
            fastest = min(fastest, self._slowest(time.perf_counter() - start))
            if ledger.checksum != expected:
                raise AssertionError(f"{name}: wrong checksum of the tasks of rank {self._comm.rank} in {self.graph}.")
        return fastest

    def task_s(self, name: str, iterations: int, repeats: int = REPEATS) -> float:
        """Seconds of a core for each task."""
        wall = self.wall(name, iterations, repeats)
        return wall / self.graph.num_tasks if name == LIMIT else wall * RANKS / self.graph.num_tasks

    def iteration_s(self) -> float:
        """Seconds of one iteration of the kernel alone, on all cores at once: what the peak rate is."""
        self._comm.Barrier()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            kernel(_PEAK_ITERATIONS)
            times.append(time.perf_counter() - start)
        return self._slowest(min(times)) / _PEAK_ITERATIONS

    def _slowest(self, seconds: float) -> float:
        slowest: float = max(self._comm.allgather(seconds))
        return slowest

    def round(self, number: int) -> None:
        """Measure all contestants once."""
        names = list(self.metg)
        names = names[number % len(names) :] + names[: number % len(names)]
        for _ in range(_ATTEMPTS):
            sweeps = self._sweeps(names)
            found = {name: metg(points) for name, points in sweeps.items()}
            if not any(np.isnan(value) for value in found.values()):
                break
        for name, points in sweeps.items():
            self.metg[name].rounds.append([found[name]])
            self.bare[name].rounds.append([points[0].task_s])

    def _sweeps(self, names: list[str]) -> dict[str, list[Point]]:
        """All grains of all contestants: doubled until every one has reached enough."""
        walls: dict[int, dict[str, float]] = {}
        iterations, iteration_s, enough = 0, float("inf"), False
        while not enough and iterations <= _MOST_ITERATIONS:
            iteration_s = min(iteration_s, self.iteration_s())  # the peak is what the machine can do
            walls[iterations] = {name: self.task_s(name, iterations) for name in names}
            enough = iterations > 0 and all(
                any(Point(n * iteration_s, wall[name]).efficiency > ENOUGH for n, wall in walls.items()) for name in names
            )
            iterations = iterations * 2 or 1
        return {name: [Point(n * iteration_s, wall[name]) for n, wall in walls.items()] for name in names}

    def messages(self) -> int:
        """How many mpirt sends in a step, over all ranks."""
        mpirt = self.contestants[MPIRT]
        assert isinstance(mpirt, Mpirt)
        return mpirt.session.traffic(mpirt.ends)["messages"]

    def close(self) -> None:
        """End all contestants."""
        for contestant in self.contestants.values():
            contestant.close()


# ---- all of them


@dataclass(frozen=True, slots=True)
class Result:
    """What the rounds of one task graph gave."""

    metg: dict[str, Measured]
    bare: dict[str, Measured]
    tensorflow: Measured  # METG in the first rounds, perhaps none
    messages: int  # that mpirt sends in a step, over all ranks

    def whole(self) -> dict[str, Measured]:
        """The METG of each contestant in the rounds in which all have one."""
        return _whole(self.metg)

    def beside_tensorflow(self) -> dict[str, Measured]:
        """mpirt's and TensorFlow's METG in the rounds in which both have one."""
        first = self.metg[MPIRT].rounds[: len(self.tensorflow.rounds)]
        return _whole({MPIRT: Measured(first), TENSORFLOW: self.tensorflow})


def _whole(measured: dict[str, Measured]) -> dict[str, Measured]:
    columns = zip(*(m.rounds for m in measured.values()), strict=True)
    kept = [column for column in columns if not any(np.isnan(samples).any() for samples in column)]
    return {name: Measured([column[i] for column in kept]) for i, name in enumerate(measured)}


def means(results: Sequence[dict[str, Measured]]) -> dict[str, Measured]:
    """For each round the geometric mean over all graphs; graphs that lack rounds lack the last ones."""
    found: dict[str, Measured] = {}
    for name in results[0]:
        rounds = [
            [r[name].rounds[i][0] for r in results if i < len(r[name].rounds)] for i in range(len(results[0][name].rounds))
        ]
        found[name] = Measured([[geometric_mean(each)] for each in rounds if each])
    return found


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, rounds=5, quick_rounds=2)
    parser.add_argument("--steps", type=int, help="timesteps of a run")
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS, metavar="PATTERN")
    args = parser.parse_args()
    steps = args.steps or (100 if args.quick else 200)
    widths = args.widths or (QUICK_WIDTHS if args.quick else WIDTHS)
    cluster = tf.cluster({"worker": RANKS})
    if cluster.size != RANKS:
        parser.error(f"needs {RANKS} ranks, runs on {cluster.size}: mpirun -n {RANKS} python {sys.argv[0]}")

    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    register_task()
    report, rest = Report("taskbench", comm.allgather(os.getpid())), Rest(comm)
    report.leave_out("patterns", PATTERNS, args.patterns)
    report.leave_out("widths", WIDTHS, widths)
    peer = Peer(args.tensorflow, "tensorflow_peer.py") if args.tensorflow and comm.rank == 0 else None
    compared = (TENSORFLOW_QUICK if args.quick else PATTERNS) if args.tensorflow else ()
    if compared:
        report.leave_out("with TensorFlow the patterns", args.patterns, compared)
    results: dict[TaskGraph, Result] = {}
    for graph in [TaskGraph(pattern, width, steps) for pattern in args.patterns for width in widths]:
        case, tensorflow = Case(comm, graph), Measured()
        for number in range(args.rounds):
            with report.others:
                case.round(number)
            if graph.pattern not in compared or number >= (1 if args.quick else TENSORFLOW_ROUNDS):
                continue
            if comm.rank > 0:
                rest.wait()
            elif peer:
                request = {"pattern": graph.pattern, "width": graph.width, "steps": TENSORFLOW_STEPS}
                tensorflow.add([peer.ask(line="taskbench", **request)["metg"]])
                rest.wake()
        results[graph] = Result(case.metg, case.bare, tensorflow, case.messages())
        case.close()
    if peer:
        peer.close()
    parts = taskbench_profile.measure(lambda graph: Case(comm, graph), cluster, comm)
    if comm.rank != 0:
        return
    for graph, result in results.items():
        report.row(f"{graph.pattern}, width {graph.width}", "METG(50%)", "us", result.whole())
    for figure, found in (
        ("METG(50%)", [r.whole() for r in results.values()]),
        ("no kernel", [r.bare for r in results.values()]),
    ):
        mean = means(found)
        for other, at_most in TARGETS.items():
            values = {name: mean[name] for name in (MPIRT, other)}
            target = Target(ratio=f"{MPIRT} / {other}", at_most=at_most) if figure != "no kernel" else None
            note = "Task-Bench-style" if target else "time per task and core"
            report.row(f"geometric mean of {len(results)}", figure, "us", values, target, note)
    beside = {graph: found for graph, result in results.items() if (found := result.beside_tensorflow())[TENSORFLOW].rounds}
    for graph, found in beside.items():
        report.row(f"{graph.pattern}, width {graph.width}", "METG(50%) beside TensorFlow", "us", found)
    if beside:
        report.row(f"geometric mean of {len(beside)}", "METG(50%) beside TensorFlow", "us", means(list(beside.values())))
    report.finish(args.json)
    rows = [(g, r.bare[MPIRT].median, r.bare[LIMIT].median, r.messages) for g, r in results.items()]
    Console(width=170, highlight=False).print(taskbench_profile.table(parts, rows, RANKS))


if __name__ == "__main__":
    main()
