"""Speed of servers against bare mpi4py and TensorFlow's own runtime: mpirun -n 2 python scripts/bench/servers.py

A client on one rank, a parameter server on the other that only joins. Contestants: mpirt in a session on the server, bare MPI
(`raw_mpi.py`), and TensorFlow on two servers. Steps are remote operations; a read brings 64 MiB.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, throughput, timed
from peers import Peer

import mpirt as tf

NBYTES = 64 * 2**20
GAPS_S = (1e-3, 10e-3, 100e-3)


class Cases:
    """The client's side of all cases; each round of each adds to ``measured``."""

    def __init__(self, args: argparse.Namespace, session: tf.Session, raw: Any, cluster: Any, report: Report) -> None:
        self.args, self.session, self.raw, self.cluster = args, session, raw, cluster
        self.tensorflow = Peer(args.tensorflow, "tensorflow_peer.py") if args.tensorflow else None
        self.measured: dict[str, Measured] = defaultdict(Measured)
        self.control = Measured(), Measured()  # messages of a step sent and received
        self.others = report.others
        self._buffer = np.empty(NBYTES // 4, np.float32)
        with tf.device("/job:ps/task:0"):
            self.counter = tf.Variable(0, dtype=tf.int64)
            self.add = tf.assign_add(self.counter, 1)
            self.table = tf.Variable(tf.fill([NBYTES // 4], 1.5))
        with tf.device("/job:worker/task:0"):
            self.add_here = tf.assign_add(tf.Variable(0, dtype=tf.int64), 1)
            self.table_here = tf.identity(self.table)
        session.run(tf.global_variables_initializer())
        table = session.run(self.table)
        assert table.nbytes == NBYTES and (table == 1.5).all()

    def round(self) -> None:
        """Measure every case once."""
        self._steps()
        self._threads()
        self._reads()

    def _steps(self) -> None:
        steps, run = self.args.steps, self.session.run
        with self.others:
            self._raw_awake()
            self._add("raw step", timed(lambda: self.raw.ask(1, 1), steps, warmup=steps // 10))
            self._raw_rests()
            run(self.add.op)
            counters = self.cluster.transport.counters
            before = counters.control_sent, counters.control_received
            self._add("step", timed(lambda: run(self.add.op), steps))
            after = counters.control_sent, counters.control_received
            for position, measured in enumerate(self.control):
                measured.add([(after[position] - before[position]) / steps])
            for name, fetch in (("fetch", self.add), ("local", self.add_here.op)):
                self._add(name, timed(lambda fetch=fetch: run(fetch), steps, warmup=steps // 10))
        if self.tensorflow:
            for name in ("step", "fetch", "local"):
                answer = self.tensorflow.ask(line="servers", case=name, count=max(1, steps // 10), warmup=max(1, steps // 100))
                self._add(f"tensorflow {name}", answer["samples"])

    def _threads(self) -> None:
        threads, seconds, run, add = self.args.threads, self.args.seconds, self.session.run, self.add.op
        with self.others:
            self._raw_awake()
            before = self.raw.ask(1, 0)
            count, took = throughput(lambda number: self.raw.ask(1, 1, number), threads, seconds)
            assert self.raw.ask(1, 0) - before == count, "bare MPI lost steps"
            self._add("raw threads", [count / took])
            self._raw_rests()
            before = int(run(self.counter))
            count, took = throughput(lambda _: run(add), threads, seconds)
            lost = count - (int(run(self.counter)) - before)
            if lost:
                raise SystemExit(f"{threads} threads made {count:,} steps, {lost:,} of which are not in the counter.")
            self._add("threads", [count / took])
        if self.tensorflow:
            answer = self.tensorflow.ask(line="servers", threads=threads, seconds=seconds)
            assert answer["lost"] == 0, "TensorFlow lost steps"
            self._add("tensorflow threads", [answer["steps"] / answer["seconds"]])

    def _reads(self) -> None:
        reads, run = self.args.reads, self.session.run
        with self.others:
            self._raw_awake()
            self._add("raw read", timed(lambda: self.raw.read(self._buffer), reads, warmup=1))
            self._add("raw read fresh", timed(lambda: self.raw.read(np.empty_like(self._buffer)), reads))
            self._raw_rests()
            self._add("read", timed(lambda: run(self.table), reads, warmup=1))
            self._add("pull", timed(lambda: run(self.table_here.op), reads, warmup=1))
        if self.tensorflow:
            for name in ("read", "pull"):
                answer = self.tensorflow.ask(line="servers", case=name, count=max(1, reads // 3), warmup=1)
                self._add(f"tensorflow {name}", answer["samples"])

    def idle(self) -> tuple[float, list[tuple[float, Measured]]]:
        """Percent of a core that the other rank uses while nothing happens; seconds of a step after each gap of ``GAPS_S``."""
        time.sleep(0.5)
        before, start = self.raw.cpu_s(), time.perf_counter()
        time.sleep(self.args.idle)
        percent = 100 * (self.raw.cpu_s() - before) / (time.perf_counter() - start)
        reactions = []
        for gap_s in GAPS_S:
            samples = []
            for stretch in np.random.default_rng(3).uniform(0.5, 1.5, 50):  # else in step with the other side's sleeps
                time.sleep(gap_s * stretch)
                samples += timed(lambda: self.session.run(self.add.op), 1)
            reactions.append((gap_s, Measured([samples])))
        return percent, reactions

    def _add(self, case: str, samples: list[float]) -> None:
        self.measured[case].rounds.append(samples)

    def _raw_awake(self) -> None:
        self.raw.ask(3)

    def _raw_rests(self) -> None:
        self.raw.ask(4)
        time.sleep(0.01)  # what woke up meanwhile on either side is asleep again


def report_cases(report: Report, cases: Cases, idle: tuple[float, list[tuple[float, Measured]]]) -> None:
    """The rows of what the rounds gave."""
    of = cases.measured

    def row(case: str, figure: str, unit: str, name: str, raw: str | None, target: Target | None = None) -> None:
        values = {"mpirt": of[name], "mpi4py": of[raw] if raw else Measured(), "tensorflow": of[f"tensorflow {name}"]}
        report.row(case, figure, unit, values, target)

    row("remote operation", "a step", "us", "step", "raw step", Target(ratio="mpirt", at_most=20))
    row("and fetch a scalar", "a step", "us", "fetch", "raw step")
    row("local operation", "a step", "us", "local", None)
    threads = f"{cases.args.threads} threads"
    row(threads, "steps of many threads", "steps/s", "threads", "raw threads", Target(ratio="mpirt", at_least=50_000))
    row("by run(v)", "64 MiB from a server", "ms", "read", "raw read", Target(ratio="mpirt / mpi4py", at_most=1.25))
    row("by run(v); mpi4py: into a new array", "64 MiB from a server", "ms", "read", "raw read fresh")
    row("to a device", "64 MiB from a server", "ms", "pull", "raw read")
    for name, measured in zip(("sent", "received"), cases.control, strict=True):
        report.row(name, "control messages of a remote operation", "messages", {"mpirt": measured}, Target(ratio="mpirt", at_most=1.001))
    percent, reactions = idle
    figure = "a rank in join() while nothing happens"
    report.row("idle", figure, "% of a core", {"mpirt": Measured([[percent]])}, Target(ratio="mpirt", at_most=5))
    for gap_s, measured in reactions:
        report.row(f"after {gap_s * 1e3:g} ms", "a remote operation after a gap, 0.5 to 1.5 times as long", "us", {"mpirt": measured})


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, help="steps a round (default 2000, with --quick 300; TensorFlow: a tenth)")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, help="of the threads, a round (default 1, with --quick 0.3)")
    parser.add_argument("--reads", type=int, help="of 64 MiB, a round (default 12, with --quick 3; TensorFlow: a third)")
    parser.add_argument("--idle", type=float, help="seconds for which to watch an idle server (default 3, with --quick 0.5)")
    args = parser.parse_args()
    for name, (usual, quick) in {"steps": (2000, 300), "seconds": (1.0, 0.3), "reads": (12, 3), "idle": (3.0, 0.5)}.items():
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    cluster = tf.cluster({"ps": 1, "worker": 1})
    if cluster.size != 2:
        parser.error(f"needs 2 ranks, runs on {cluster.size}: mpirun -n 2 python {sys.argv[0]}")

    import raw_mpi  # starts MPI if mpirt hasn't
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    report = Report("servers", comm.allgather(os.getpid()))
    task = cluster.tasks[0]
    server = tf.train.Server(cluster.spec, job_name=task.job, task_index=task.index)
    if task.job == "ps":
        threading.Thread(target=raw_mpi.serve, args=(comm, 1 - cluster.rank, NBYTES), daemon=True).start()
        server.join()
        return
    raw = raw_mpi.Client(comm, 1 - cluster.rank)
    with tf.Session(server.target) as session:
        cases = Cases(args, session, raw, cluster, report)
        for _ in range(args.rounds):
            cases.round()
        report_cases(report, cases, cases.idle())
    raw.ask(raw_mpi.QUIT)
    report.finish(args.json)
    if cases.tensorflow:
        cases.tensorflow.close()


if __name__ == "__main__":
    main()
