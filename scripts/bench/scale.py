"""Scale on paper: plans of steps replayed against measured costs: mpirun -n 2 python scripts/bench/scale.py

1. Measures what this job's messages, calls and kernels cost, each by the slope between a few and many of them in one step.
2. Predicts the time of steps that it can also run, on the ranks of this job, and compares (`replay.py` does the prediction).
3. Predicts the same graphs on 64 to 10,000 ranks, one task a rank, each rank with a core of its own: once with messages that
   cost what they cost here, once with a network's latency and bandwidth (--latency-us, --gb-per-s; assumed, not measured).

Costs and checked steps are the least of many samples: a model can only tell of what nobody disturbed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from functools import partial
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed
from graphs import digits, stencil, tree_sum
from peers import Rest
from replay import Costs, RankProgram, programs_of, replay

import mpirt as tf
from mpirt.cluster.launchers import detect
from mpirt.cluster.task import Task
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Run

SIZES = (8, 4 * 2**10, 64 * 2**10, 2**20, 4 * 2**20)  # of messages whose cost is measured; others lie between
FEW, MANY = 4, 24
RANKS, QUICK_RANKS = (64, 256, 1024, 4096, 10_000), (64, 256)
DIGITS_RANKS = 1024  # beyond, the graph of all workers takes minutes to build
Build = Callable[[Sequence[str]], Any]  # the fetch of a step, on these tasks
Programs = dict[Any, list[RankProgram]]


def task_names(count: int) -> list[str]:
    return [f"/job:worker/task:{number}" for number in range(count)]


# ---------------------------------------------------------------------------------------------------- steps to predict


def stencil_step(devices: Sequence[str], side: int) -> Any:
    """Four rows of a stencil over matrices, each with a product of its own."""
    start = []
    for device in devices:
        with tf.device(device):
            start.append(tf.Variable(tf.fill([side, side], np.float32(0.01))))
    ends = start
    for _ in range(4):
        products = []
        for device, end in zip(devices, ends, strict=True):
            with tf.device(device):
                products.append(tf.matmul(end, end))
        ends = stencil(tf, products, 1, devices)
    return _all(ends, devices)


def tree_step(devices: Sequence[str], floats: int) -> Any:
    """An all-reduce of ordinary operations."""
    leaves = []
    for device in devices:
        with tf.device(device):
            leaves.append(tf.Variable(tf.fill([floats], np.float32(1.0))))
    return _all(tree_sum(tf, leaves, devices), devices)


def ring_step(devices: Sequence[str], floats: int) -> Any:
    """A tensor that goes round all tasks four times."""
    with tf.device(devices[0]):
        value = tf.Variable(tf.fill([floats], np.float32(1.0)))
    for device in [*devices[1:], devices[0]] * 4:
        with tf.device(device):
            value = tf.add(value, 1.0)
    return value.op


def digits_step(devices: Sequence[str]) -> Any:
    """A synchronous training step: parameters on every 32nd task, at least two, workers on the others, or on all of few."""
    servers = devices[: max(2, len(devices) // 32)]
    return digits(tf, servers, devices if len(devices) <= 4 else devices[len(servers) :], 64)


def _all(ends: Sequence[Any], devices: Sequence[str]) -> Any:
    with tf.device(devices[0]):
        return tf.group([end.op for end in ends])


CHECKS: dict[str, Build] = {
    "ring, 8 B": partial(ring_step, floats=2),
    "ring, 256 KiB": partial(ring_step, floats=64 * 2**10),
    "stencil, 64 x 64": partial(stencil_step, side=64),
    "stencil, 256 x 256": partial(stencil_step, side=256),
    "tree, 1 KiB": partial(tree_step, floats=256),
    "tree, 1 MiB": partial(tree_step, floats=256 * 2**10),
    "digits": digits_step,
}
ON_PAPER: dict[str, tuple[Build, int]] = {
    "digits": (digits_step, DIGITS_RANKS),
    "stencil, 256 x 256": (partial(stencil_step, side=256), 10**9),
    "tree, 1 MiB": (partial(tree_step, floats=256 * 2**10), 10**9),
}


# ------------------------------------------------------------------------------------------------------------ measuring


class Bench:
    """Times steps on the ranks of this job; every rank makes the same calls, rank 0 uses the answers."""

    def __init__(self, report: Report, comm: Any, seconds: float) -> None:
        self.report = report
        self._comm = comm
        self._seconds = seconds

    def step(self, build: Callable[[], tuple[Any, dict[Any, Any]]]) -> float:
        """Seconds of a step of a graph that ``build`` makes, the fetch and the feeds: those of the least disturbed one."""
        with tf.Graph().as_default(), tf.Session(fetch_on="owner") as session:
            fetch, feeds = build()
            session.run(tf.global_variables_initializer())
            call = session.make_callable(fetch, list(feeds))
            values = list(feeds.values())
            with self.report.others:
                first = timed(lambda: call(*values), 5, warmup=2)
                count = self._comm.bcast(max(10, min(5000, int(self._seconds / min(first)))))
                return min(first + timed(lambda: call(*values), count))

    def slope(self, build: Callable[[int], tuple[Any, dict[Any, Any]]], few: int = FEW, many: int = MANY) -> float:
        """Seconds that one more of what ``build`` makes some of adds to a step."""
        costs = [self.step(partial(build, count)) for count in (few, many)]
        return max(0.0, (costs[1] - costs[0]) / (many - few))


class Kernels:
    """Seconds of operations, each measured once for each type, attributes and shapes: kernel and call."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._known: dict[Any, float] = {}

    def __call__(self, op: tf.Operation) -> float:
        key = self._key(op)
        if key not in self._known:
            self._known[key] = self._bench.slope(partial(self._copies, op), 2, 10)
        return self._known[key]

    def learn(self, programs: Sequence[RankProgram]) -> None:
        """Measure what is new in ``programs``. All ranks in the same order."""
        for program in programs:
            for instruction in program.program.instructions:
                if isinstance(instruction, Run):
                    self(instruction.op)

    def _key(self, op: tf.Operation) -> Any:
        attrs = sorted((name, str(value)) for name, value in op.attrs.items() if name not in ("_class", "container", "shared_name"))
        return op.type, tuple(attrs), tuple((t.dtype.name, t.static_shape) for t in op.inputs)

    @staticmethod
    def _copies(op: tf.Operation, count: int) -> tuple[Any, dict[Any, Any]]:
        """A step of ``count`` such operations on rank 0, none of which needs another."""
        graph, feeds, inputs = tf.get_default_graph(), {}, []
        with tf.device("/job:worker/task:0"):
            for tensor in op.inputs:
                shape, dtype = tensor.static_shape, tensor.dtype.base_dtype
                if shape is None or None in shape:
                    raise ValueError(f"can't measure {op.name!r} ({op.type}): {tensor.name!r} has no shape while compiling")
                if tensor.op.type == "Const":
                    inputs.append(graph.create_op("Const", [], tensor.op.attrs).outputs[0])
                elif tensor.dtype.is_ref:
                    inputs.append(tf.Variable(tf.ones(shape, dtype))._as_graph_element())
                else:
                    inputs.append(tf.placeholder(dtype, shape))
                    feeds[inputs[-1]] = np.ones([int(size or 0) for size in shape], dtype.as_numpy_dtype)
            attrs = {name: value for name, value in op.attrs.items() if name != "_class"}
            copies = [graph.create_op(op.type, inputs, attrs) for _ in range(count)]
            return tf.group(copies), feeds


def measured_costs(bench: Bench, kernels: Kernels, ranks: int) -> Costs:
    """What messages and calls cost on the ranks of this job."""
    devices = task_names(2)

    def start(nbytes: int = 8) -> Any:
        with tf.device(devices[0]):
            return tf.Variable(tf.fill([nbytes // 4], np.float32(1.0)))

    def relay(nbytes: int, hops: int) -> tuple[Any, dict[Any, Any]]:
        """A tensor that goes to and fro, made anew on each side."""
        value = start(nbytes)
        for hop in range(hops):
            with tf.device(devices[(hop + 1) % 2]):
                value = tf.add(value, 1.0)
        return value.op, {}

    def fan(count: int) -> tuple[Any, dict[Any, Any]]:
        """Many small tensors from one rank to the other, and one back."""
        x = start()
        with tf.device(devices[0]):
            values = [tf.add(x, float(number)) for number in range(count)]
        with tf.device(devices[1]):
            received = tf.add_n(values)
        with tf.device(devices[0]):
            return tf.identity(received).op, {}

    def reads(count: int) -> tuple[Any, dict[Any, Any]]:
        x = start()
        with tf.device(devices[0]):
            return tf.group([tf.identity(x) for _ in range(count)]), {}

    def kernel_s(name: str, nbytes: int) -> float:
        with tf.Graph().as_default():
            x = tf.placeholder(tf.float32, [nbytes // 4])
            return kernels((tf.identity(x) if name == "identity" else tf.add(x, 1.0)).op)

    read_and_run_s, empty_s = bench.slope(reads), bench.step(partial(reads, 1))
    shared = ranks > len(os.sched_getaffinity(0))
    hops = {nbytes: bench.slope(partial(relay, nbytes)) - kernel_s("add", nbytes) for nbytes in SIZES}
    ends_s = max(1e-7, bench.slope(fan) - kernel_s("add", 8))  # one rank sends while the other receives, where each has a core
    each_s = min(ends_s / 2 if shared else ends_s, max(1e-7, hops[SIZES[0]] / 2))  # a hop has both ends, whatever the noise
    sizes = np.array([0, *SIZES], float)
    wire = np.array([0.0, *(max(1e-8, hop_s - 2 * each_s) for hop_s in hops.values())])
    wire[0] = wire[1]
    wire = np.maximum.accumulate(wire)
    last = (wire[-1] - wire[-2]) / (sizes[-1] - sizes[-2])  # seconds a byte, beyond the largest

    def message_s(nbytes: int) -> float:
        beyond = max(0.0, nbytes - sizes[-1]) * last
        return float(np.interp(nbytes, sizes, wire)) + float(beyond)

    begin_s = max(1e-6, empty_s - read_and_run_s - each_s * (ranks - 1))
    return Costs(
        kernels,
        call_s=max(0.0, read_and_run_s - kernel_s("identity", 8)),
        begin_s=begin_s,
        send_s=each_s,
        recv_s=each_s,
        message_s=message_s,
        port_s=lambda nbytes: message_s(nbytes) - message_s(0),
        receiver_copies=True,
        cores=len(os.sched_getaffinity(0)) if shared else None,
    )


# --------------------------------------------------------------------------------------------------------- the line


def plan_of(build: Build, tasks: int) -> list[RankProgram]:
    """The programs of a step with a rank for each task."""
    with tf.Graph().as_default() as graph:
        fetch = build(task_names(tasks))
        inventory = {Task("worker", number): ("CPU:0",) for number in range(tasks)}
        plan = make_plan(graph, [fetch], (), inventory, PlacementRules(Task("worker", 0)), {})
    return programs_of(plan, lambda task: task.index, tasks)


def main() -> None:
    parser = arguments(__doc__, rounds=5, quick_rounds=2)
    parser.add_argument("--ranks", type=int, nargs="*", help="numbers of ranks on paper")
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), help=f"of {', '.join(map(repr, CHECKS))}")
    parser.add_argument("--seconds", type=float, help="of each measurement (default 0.15, with --quick 0.03)")
    parser.add_argument("--latency-us", type=float, default=1.5, help="of the assumed network (default 1.5)")
    parser.add_argument("--gb-per-s", type=float, default=12.0, help="of the assumed network (default 12)")
    args = parser.parse_args()
    launched = detect(os.environ)
    ranks = launched.size if launched else 1
    if ranks < 2:
        parser.error("needs 2 ranks or more: mpirun -n 2 python scripts/bench/scale.py")
    sizes: Sequence[int] = QUICK_RANKS if args.quick else RANKS
    if args.ranks is not None or ranks > 2:  # on paper the ranks of this job don't count: once is enough
        sizes = args.ranks or ()
    # Graphs for more tasks than this job has, before the cluster starts: from then on device blocks are checked against it.
    on_paper = {(name, count): plan_of(build, count) for name, (build, most) in ON_PAPER.items() for count in sizes if count <= most}
    checked = {name: plan_of(CHECKS[name], ranks) for name in args.checks}
    cluster = tf.cluster({"worker": ranks})

    from mpi4py import MPI

    report = Report("scale", MPI.COMM_WORLD.allgather(os.getpid()))
    report.leave_out("ranks on paper", RANKS if ranks == 2 else (), sizes)
    rest = Rest(MPI.COMM_WORLD)
    bench = Bench(report, MPI.COMM_WORLD.Dup(), args.seconds or (0.03 if args.quick else 0.15))
    compare(args, report, bench, checked, on_paper, cluster)
    if cluster.rank == 0:
        rest.wake()
        report.finish(args.json)
    else:
        rest.wait()


def compare(args: Any, report: Report, bench: Bench, checked: Programs, on_paper: Programs, cluster: Any) -> None:
    """Measure costs and steps in rounds, and on rank 0 put the predictions beside them."""
    devices = task_names(cluster.size)
    measured = {name: Measured() for name in checked}
    predicted = {name: Measured() for name in checked}
    costs = None
    for _ in range(args.rounds):
        kernels = Kernels(bench)
        costs = measured_costs(bench, kernels, cluster.size)
        for name, programs in checked.items():
            kernels.learn(programs)
            measured[name].add([bench.step(lambda name=name: (CHECKS[name](devices), {}))])
            predicted[name].add([replay(programs, costs).step_s])
    assert costs is not None
    for programs in on_paper.values():
        kernels.learn(programs)
    if cluster.rank > 0:
        return
    errors = []
    for name in checked:
        values = {"mpirt": measured[name], "predicted": predicted[name]}
        report.row(name, f"a step on {cluster.size} ranks", "us", values)
        errors.append([abs(1 / ratio - 1) * 100 for ratio in measured[name].ratios_to(predicted[name])])
    if errors:
        median = Measured([[float(np.median(each))] for each in zip(*errors, strict=True)])
        report.row("median over the steps", "error of the prediction", "%", {"mpirt": median}, Target(ratio="mpirt", at_most=20.0))
    network = changed(
        costs,
        message_s=lambda nbytes: args.latency_us * 1e-6 + nbytes / (args.gb_per_s * 1e9),
        port_s=lambda nbytes: nbytes / (args.gb_per_s * 1e9),
        receiver_copies=False,
        cores=None,
    )
    here = changed(costs, cores=None)
    for (name, count), programs in on_paper.items():
        local, remote = replay(programs, here), replay(programs, network)
        busy = np.array(remote.busy_s) / remote.step_s
        note = f"{remote.messages:,} messages, {remote.nbytes * 1e-6:,.1f} MB a step; busy on the network: rank {int(busy.argmax())} "
        note += f"{busy.max():.0%} of the time, the median rank {np.median(busy):.0%}"
        values = {"mpirt, messages as here": Measured([[local.step_s]]), "mpirt, assumed network": Measured([[remote.step_s]])}
        report.row(f"{count:,} ranks", f"on paper: {name}", "ms", values, note=note)


if __name__ == "__main__":
    main()
