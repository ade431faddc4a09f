"""Training beside hand-written mpi4py and TensorFlow: mpirun -n 4 (or 2) python scripts/bench/training.py

The digits job and a network of 1.9 million parameters. On 4 ranks: 2 ps tasks and 2 workers, synchronous and asynchronous. On
2 ranks: the same four tasks, a ps task and a worker on each rank, and all-reduce between two workers. Contestants take the same
first values and the same batches in the same order. Before anything is timed, the losses of all of them are compared step
by step in every form that is deterministic (asynchronous: with one worker); a difference ends the benchmark. Samples count
on all workers, from the first one's start to the last one's end, by the clock that the processes of a host share.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import training_graphs
import training_problem
from figures import Measured, Report, arguments
from tensorflow_training import TensorFlow
from threadpoolctl import threadpool_limits
from training_problem import WORKERS, Contestant, Problem

import mpirt as tf
from mpirt.cluster.rank_table import RankTable

FORMS = ("sync", "async", "all-reduce")
TARGET_ACCURACY, TEST_EVERY = 0.95, 10
STEPS = {"digits": (1000, 200), "784-1024-1024-10": (40, 8)}  # of a round: full, quick. TensorFlow: a tenth of the digits', at least 4
CHECKED = {"digits": 20, "784-1024-1024-10": 4}
TOLERANCE = 1e-3  # relative, of a loss: products of matrices are summed in different orders
MPI4PY, TF_DIGITS, TF_BIG = 1 / 1.15, 8.0, 1.8  # samples/s of mpirt to those of the others, at least
FOLDED = "\n".join(f"rank {i} = * /job:{job}/task:{i}" for i in range(2) for job in ("ps", "worker"))

Clock = Callable[[], float]


class Served:
    """mpirt's asynchronous form: the worker of this rank trains in a session on its own server; ps tasks are served meanwhile."""

    def __init__(self, problem: Problem, worker: int | None, targets: dict[int, str]) -> None:
        self._graph: training_graphs.Asynchronous | None = None
        self._worker = worker
        if worker is not None:
            with tf.Graph().as_default():
                self._graph = training_graphs.Asynchronous(tf, problem, worker)
                self._graph.session = tf.Session(targets[worker])
                if worker == 0:
                    self._graph.session.run(self._graph.initialize)

    def reset(self) -> None:
        """See `Contestant`."""
        if self._graph is not None and self._worker == 0:
            self._graph.reset()

    def steps(self, count: int, stop: Callable[[], bool] | None = None) -> list[float]:
        """See `Contestant`."""
        return self._graph.steps(count, stop) if self._graph is not None else []

    def accuracy(self) -> float:
        """See `Contestant`."""
        assert self._graph is not None
        return self._graph.accuracy()

    def close(self) -> None:
        """Close the session."""
        if self._graph is not None:
            self._graph.session.close()


class Line:
    """All rounds of one problem in one form, on every rank."""

    def __init__(self, args: Any, comm: Any, cluster: tf.Cluster, report: Report, tensorflow: TensorFlow | None) -> None:
        self.args, self.comm, self.cluster, self.report, self.tensorflow = args, comm, cluster, report, tensorflow
        self.places = {job: [cluster.table.rank_of(job, i) for i in range(2)] for job in ("ps", "worker")}
        workers = self.places["worker"]
        self.worker = workers.index(comm.rank) if comm.rank in workers else None
        self.chief = workers[0]

    def barrier(self) -> None:
        """Wait for all ranks without taking their cores: some only serve while others train."""
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(0.001)

    def run(self, problem: Problem, form: str, contestants: dict[str, Contestant]) -> None:
        """Compare the losses, then measure."""
        others = self.tensorflow if form != "all-reduce" else None
        if others is not None:
            others.prepare(problem, form)
        self._check(problem, form, contestants, others)
        speeds: dict[str, Measured] = defaultdict(Measured)
        times: dict[str, Measured] = defaultdict(Measured)
        examples = WORKERS * problem.batch
        steps = STEPS[problem.name][self.args.quick]
        with self.report.others:
            for _ in range(self.args.rounds):
                for name, contestant in contestants.items():
                    speeds[name].add([examples * steps / self._timed(contestant, steps)])
                if self.tensorflow is not None and others is not None:
                    fewer = max(4, steps // 10)
                    speeds["tensorflow"].add([examples * fewer / self._ask(lambda n=fewer: others.timed(n))])
                if problem.test is not None:
                    for name, contestant in contestants.items():
                        times[name].add([self._until(contestant, form)])
                    if others is not None:
                        times["tensorflow"].add([self._ask(lambda: others.until(TARGET_ACCURACY, TEST_EVERY))])
        if self.comm.rank == 0:
            self._rows(problem, form, speeds, times)

    def _ask(self, question: Callable[[], float]) -> float:
        """TensorFlow's answer, while all ranks wait."""
        seconds = question() if self.comm.rank == 0 else 0.0
        self.barrier()
        return float(self.comm.bcast(seconds))

    def _timed(self, contestant: Contestant, count: int) -> float:
        self.barrier()
        contestant.steps(max(2, count // 20))  # until all run
        start = time.perf_counter()
        contestant.steps(count)
        return self._elapsed(start)

    def _elapsed(self, start: float) -> float:
        """Seconds from the first worker's start to the last one's end, which is now."""
        end = time.perf_counter()
        self.barrier()
        spans = [span for span in self.comm.allgather((start, end) if self.worker is not None else None) if span]
        return float(max(end for _, end in spans) - min(start for start, _ in spans))

    def _until(self, contestant: Contestant, form: str) -> float:
        """Seconds from the first values to the target accuracy on the test images; measuring it is part of the time."""
        self.barrier()
        contestant.reset()
        self.barrier()
        start = time.perf_counter()
        if form == "async":
            end = self._race(contestant)
            self.barrier()
            return float(self.comm.bcast(end - start, self.chief))
        while True:
            contestant.steps(TEST_EVERY)
            if contestant.accuracy() >= TARGET_ACCURACY:
                return self._elapsed(start)

    def _race(self, contestant: Contestant) -> float:
        """All workers train until the chief has the accuracy; when that was."""
        comm, end, calls = self.comm, 0.0, 0

        def reached() -> bool:
            nonlocal end, calls
            calls += 1
            if calls % TEST_EVERY or contestant.accuracy() < TARGET_ACCURACY:
                return False
            end = time.perf_counter()
            for rank in self.places["worker"][1:]:
                comm.send(None, rank)
            return True

        contestant.steps(10**9, reached if comm.rank == self.chief else lambda: comm.iprobe(self.chief))
        if self.worker is not None and comm.rank != self.chief:
            comm.recv(source=self.chief)
        return end

    def _check(self, problem: Problem, form: str, contestants: dict[str, Contestant], others: TensorFlow | None) -> None:
        """End the benchmark if the contestants' losses differ."""
        count = CHECKED[problem.name]
        found = {}
        for name, contestant in contestants.items():
            self.barrier()
            contestant.reset()
            self.barrier()
            losses = contestant.steps(count if form != "async" or self.worker == 0 else 0)
            self.barrier()
            found[name] = self.comm.bcast(losses, self.chief)
        if self.tensorflow is not None:
            losses = others.losses(count) if others is not None and self.comm.rank == 0 else None
            losses = self.comm.bcast(losses)
            if losses is not None:
                found["tensorflow"] = losses
        (first, wanted), *rest = found.items()
        for name, losses in rest:
            if len(losses) != count or not np.allclose(losses, wanted, rtol=TOLERANCE, atol=0):
                raise SystemExit(f"{problem.name}, {form}: the losses of {first} and {name} differ:\n{wanted}\n{losses}")

    def _rows(self, problem: Problem, form: str, speeds: dict[str, Measured], times: dict[str, Measured]) -> None:
        case, row = f"{problem.name}, {form}", self.report.row
        pair = {name: speeds[name] for name in ("mpirt", "mpi4py")}
        row(case, "training", "samples/s", pair, {"ratio": "mpirt / mpi4py", "at_least": MPI4PY})
        if "tensorflow" in speeds:
            least = TF_DIGITS if problem.name == "digits" else TF_BIG
            pair = {name: speeds[name] for name in ("mpirt", "tensorflow")}
            row(case, "training beside TensorFlow", "samples/s", pair, {"ratio": "mpirt / tensorflow", "at_least": least})
        if times:
            row(case, f"time to {TARGET_ACCURACY:.0%} of the test digits", "ms", times)


def contestants(line: Line, problem: Problem, form: str, targets: dict[int, str]) -> dict[str, Any]:
    """mpirt and the hand-written version, ready to train."""
    import training_by_hand  # starts MPI if mpirt hasn't

    ps, workers = line.places["ps"], line.places["worker"]
    if form == "async":
        return {
            "mpirt": Served(problem, line.worker, targets),
            "mpi4py": training_by_hand.Asynchronous(line.comm, problem, ps, workers),
        }
    with tf.Graph().as_default():
        graph = (training_graphs.Synchronous if form == "sync" else training_graphs.AllReduce)(tf, problem)
        graph.session = tf.Session()
        graph.session.run(graph.initialize)
    if form == "sync":
        return {"mpirt": graph, "mpi4py": training_by_hand.Synchronous(line.comm, problem, ps, workers)}
    return {"mpirt": graph, "mpi4py": training_by_hand.AllReduce(line.comm, problem, workers)}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, rounds=5, quick_rounds=2)
    parser.add_argument("--forms", default="all", help=f"some of {', '.join(FORMS)}, with commas between")
    parser.add_argument("--problems", default="all", help="some of digits, big, with commas between")
    args = parser.parse_args()
    from mpi4py import MPI

    size = MPI.COMM_WORLD.size
    if size not in (2, 4):
        parser.error(f"runs on 2 or 4 ranks, not on {size}.")
    cluster = tf.cluster(RankTable.from_text(FOLDED, 2) if size == 2 else {"ps": 2, "worker": 2})
    threadpool_limits(1)  # ranks and not threads share the cores, for all contestants alike
    comm = MPI.COMM_WORLD.Dup()
    forms = FORMS[: 3 if size == 2 else 2] if args.forms == "all" else args.forms.split(",")
    problems = [getattr(training_problem, name)() for name in ("digits", "big") if args.problems == "all" or name in args.problems]
    tensorflow = None
    if args.tensorflow and (size == 2 or not args.quick):
        tensorflow = TensorFlow(args.tensorflow if cluster.rank == 0 else None)
    report = Report("training", comm.allgather(os.getpid()) + (comm.bcast(tensorflow.pids) if tensorflow else []))
    report.leave_out("contestants", ["tensorflow"] if args.tensorflow else [], ["tensorflow"] if tensorflow else [])
    line = Line(args, comm, cluster, report, tensorflow)
    servers: dict[str, Any] = {}
    for form in sorted(forms, key=lambda form: form == "async"):  # servers last: they serve from then on
        targets = {}
        if form == "async":
            servers = {str(task): tf.train.Server(cluster.spec, job_name=task.job, task_index=task.index) for task in cluster.tasks}
            targets = {task.index: servers[str(task)].target for task in cluster.tasks if task.job == "worker"}
        for problem in problems:
            if form == "all-reduce" and not hasattr(tf, "collective"):
                continue
            racing = contestants(line, problem, form, targets)
            line.run(problem, form, racing)
            if form == "async":
                line.barrier()
            for contestant in racing.values():
                getattr(contestant, "close", getattr(getattr(contestant, "session", None), "close", None))()
    if tensorflow is not None and cluster.rank == 0:
        tensorflow.close()
    if cluster.rank == 0:
        report.finish(args.json)


if __name__ == "__main__":
    main()
