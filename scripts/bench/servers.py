"""Speed of servers against bare mpi4py and TensorFlow's own runtime: mpirun -n 2 python scripts/bench/servers.py

A client on one rank, a parameter server on the other that only joins. All figures come from one run, in rounds that measure
each case once, one next to the other: raw (`raw_mpi.py`), mpirt, and with --tensorflow TensorFlow (`tensorflow_servers.py`).
A figure is the median of all samples with its 10th and 90th percentile; a ratio is the median over the rounds, so a disturbance
that lasts longer than a round doesn't move it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from figures import Disturbance, Measured, spread, throughput, timed
from rich.console import Console
from rich.table import Table

import mpirt as tf

NBYTES = 64 * 2**20
STEP_TARGET_S, THREADS_TARGET_PER_S, READ_TARGET_SHARE, IDLE_TARGET_SHARE = 20e-6, 50_000, 0.8, 0.05
GAPS_S = (1e-3, 10e-3, 100e-3)


class TensorFlow:
    """The child process that runs the same cases on TensorFlow."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("tensorflow_servers.py")
        pipe = subprocess.PIPE
        self._child = subprocess.Popen([python, script], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        hello = self._answer()
        self.version, self.pids = hello["version"], hello["pids"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Run a case."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self._child.args[0]}: TensorFlow's side ended with status {self._child.wait()}.")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        self._child.communicate()


class Cases:
    """The client's side of all cases; each round of each adds to ``measured``."""

    def __init__(self, args: argparse.Namespace, session: tf.Session, raw: Any, cluster: Any, ours: list[int]) -> None:
        self.args, self.session, self.raw, self.cluster = args, session, raw, cluster
        self.tensorflow = TensorFlow(args.tensorflow) if args.tensorflow else None
        self.measured: dict[str, Measured] = defaultdict(Measured)
        self.control: list[tuple[float, float]] = []
        self.others = Disturbance(ours)
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
            self.control.append(((counters.control_sent - before[0]) / steps, (counters.control_received - before[1]) / steps))
            for name, fetch in (("fetch", self.add), ("local", self.add_here.op)):
                self._add(name, timed(lambda fetch=fetch: run(fetch), steps, warmup=steps // 10))
        if self.tensorflow:
            for name in ("step", "fetch", "local"):
                answer = self.tensorflow.ask(case=name, count=max(1, steps // 10), warmup=max(1, steps // 100))
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
            answer = self.tensorflow.ask(threads=threads, seconds=seconds)
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
                self._add(f"tensorflow {name}", self.tensorflow.ask(case=name, count=max(1, reads // 3), warmup=1)["samples"])

    def idle(self) -> tuple[float, list[tuple[float, Measured]]]:
        """Share of a core that the other rank uses while nothing happens; seconds of a step after each gap of ``GAPS_S``."""
        time.sleep(0.5)
        before, start = self.raw.cpu_s(), time.perf_counter()
        time.sleep(self.args.idle)
        share = (self.raw.cpu_s() - before) / (time.perf_counter() - start)
        reactions = []
        for gap_s in GAPS_S:
            samples = []
            for stretch in np.random.default_rng(3).uniform(0.5, 1.5, 50):  # else in step with the other side's sleeps
                time.sleep(gap_s * stretch)
                samples += timed(lambda: self.session.run(self.add.op), 1)
            reactions.append((gap_s, Measured([samples])))
        return share, reactions

    def _add(self, case: str, samples: list[float]) -> None:
        self.measured[case].rounds.append(samples)

    def _raw_awake(self) -> None:
        self.raw.ask(3)

    def _raw_rests(self) -> None:
        self.raw.ask(4)
        time.sleep(0.01)  # what woke up meanwhile on either side is asleep again


def report(cases: Cases, console: Console) -> None:
    """Print what the rounds gave."""
    of = cases.measured
    table = Table("case", "mpirt", "bare mpi4py", "mpirt / mpi4py", "TensorFlow", "TensorFlow / mpirt", "to reach")

    def row(case: str, name: str, raw: str | None, scale: float, digits: int, target: str = "") -> None:
        other = of[f"tensorflow {name}"] if cases.tensorflow else None
        table.add_row(
            case,
            of[name].text(scale, digits),
            of[raw].text(scale, digits) if raw else "",
            spread(of[name].ratios_to(of[raw]), 2) if raw else "",
            other.text(scale, digits) if other else "",
            spread(other.ratios_to(of[name]), 2) if other else "",
            target,
        )

    step, threads = of["step"].median, of["threads"].median
    read = float(np.median(of["read"].ratios_to(of["raw read"])))
    row("remote op, us", "step", "raw step", 1e6, 1, _verdict("<= 20", step <= STEP_TARGET_S))
    row("and fetch a scalar, us", "fetch", "raw step", 1e6, 1)
    row("local op, us", "local", None, 1e6, 1)
    name = f"{cases.args.threads} threads, steps/s"
    row(name, "threads", "raw threads", 1.0, 0, _verdict(">= 50,000", threads >= THREADS_TARGET_PER_S))
    row("64 MiB by run(v), ms", "read", "raw read", 1e3, 2, _verdict("<= 1.25 x mpi4py", read <= 1 / READ_TARGET_SHARE))
    row("same, mpi4py: new array", "read", "raw read fresh", 1e3, 2)
    row("64 MiB to a device, ms", "pull", "raw read", 1e3, 2)
    console.print(table)
    rates = [(n, NBYTES * 1e-9 / m.median) for n, m in of.items() if n.endswith(("read", "fresh", "pull"))]
    console.print("64 MiB, GB/s: " + ", ".join(f"{name} {rate:.1f}" for name, rate in rates))
    sent, received = (float(np.median(column)) for column in zip(*cases.control, strict=True))
    verdict = _verdict("1 + 1", sent <= 1.001 and received <= 1.001)
    console.print(f"control messages of a remote op: {sent:.3f} sent, {received:.3f} received; {verdict}")


def _verdict(target: str, reached: bool) -> str:
    return f"{target}: {'reached' if reached else '[bold]MISSED[/bold]'}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2000, help="steps a round (TensorFlow: a tenth)")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the threads, a round")
    parser.add_argument("--reads", type=int, default=12, help="of 64 MiB, a round (TensorFlow: a third)")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds for which to watch an idle server")
    parser.add_argument("--tensorflow", metavar="PYTHON", help="an interpreter that has TensorFlow, to measure that too")
    args = parser.parse_args()
    cluster = tf.cluster({"ps": 1, "worker": 1})
    if cluster.size != 2:
        parser.error(f"needs 2 ranks, runs on {cluster.size}: mpirun -n 2 python {sys.argv[0]}")

    import raw_mpi  # starts MPI if mpirt hasn't
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    pids = comm.allgather(os.getpid())
    task = cluster.tasks[0]
    server = tf.train.Server(cluster.spec, job_name=task.job, task_index=task.index)
    if task.job == "ps":
        threading.Thread(target=raw_mpi.serve, args=(comm, 1 - cluster.rank, NBYTES), daemon=True).start()
        server.join()
        return
    raw = raw_mpi.Client(comm, 1 - cluster.rank)
    with tf.Session(server.target) as session:
        cases = Cases(args, session, raw, cluster, pids)
        for _ in range(args.rounds):
            cases.round()
        share, reactions = cases.idle()
    raw.ask(raw_mpi.QUIT)
    console = Console(width=150, highlight=False)  # launchers make the output a pipe, or a terminal of any width
    versions = cluster.transport.name + (f", TensorFlow {cases.tensorflow.version}" if cases.tensorflow else "")
    console.print(f"{versions}; {args.rounds} rounds; median (10th - 90th percentile)")
    report(cases, console)
    verdict = _verdict("< 5 %", share < IDLE_TARGET_SHARE)
    console.print(f"a rank in join() while nothing happens: {share:.1%} of a core; {verdict}")
    texts = [f"{gap_s * 1e3:g} ms: {measured.text(1e6, 0)}" for gap_s, measured in reactions]
    console.print("a remote op after an idle gap (0.5 to 1.5 times as long), us: " + ", ".join(texts))
    console.print(f"other processes used {cases.others.share:.0%} of the cores meanwhile")
    if cases.tensorflow:
        cases.tensorflow.close()


if __name__ == "__main__":
    main()
