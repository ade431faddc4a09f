"""A GPU: what mpirt adds to cupy in one process, and to cupy and mpi4py between two ranks that share the GPU.

    python scripts/bench/gpu.py                  # small operations, copies, chains
    mpirun -n 2 python scripts/bench/gpu.py      # a step whose tensor goes from GPU to GPU and back

Needs a GPU that cupy sees; scripts/gpu-check runs both. Each round measures all contestants of a case, one next to the other,
until the GPU has done the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
from figures import Measured, Report, arguments, timed

import mpirt as tf
from mpirt.runtime.device import open_device


def measure(rounds: int, contestants: dict[str, Callable[[], object]], count: int) -> dict[str, Measured]:
    """Seconds of each contestant's call, interleaved."""
    found = {name: Measured() for name in contestants}
    for call in contestants.values():
        timed(call, max(2, count // 4))
    for _ in range(rounds):
        for name, call in contestants.items():
            found[name].add(timed(call, count))
    return found


def size_text(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB" if nbytes >= 1 << 10 else f"{nbytes} B"


# ------------------------------------------------------------------------------------------------------- one process


def chain(report: Report, rounds: int, case: str, shape: tuple[int, ...], length: int, op: Any, raw: Any, count: int) -> None:
    """``length`` operations one behind the other, by a session and by a loop over cupy."""
    start = np.full(shape, 1.0 / shape[-1], np.float32)
    with tf.Graph().as_default(), tf.device("/gpu:0"):
        v = tf.Variable(start)
        y = v.read_value()
        for _ in range(length):
            y = op(tf, y, v)
        session = tf.Session()
        session.run(v.initializer)
    gpu = session._runner._state.devices[tf.cluster().tasks[0], "GPU:0"]  # type: ignore[attr-defined]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        there = cupy.asarray(start)

    def by_mpirt() -> None:
        session.run(y.op)
        gpu.synchronize()

    def by_hand() -> None:
        with stream:
            value = there
            for _ in range(length):
                value = raw(value, there)
        stream.synchronize()

    report.row(case, "step", "us", measure(rounds, {"mpirt": by_mpirt, "cupy": by_hand}, count))
    session.close()


def copies(report: Report, rounds: int, nbytes: int, count: int) -> None:
    """An array to the GPU and back: a device of mpirt, cupy's own functions, and pinned memory that is there already."""
    gpu = open_device("GPU:0")
    array, stream = np.ones(nbytes // 4, np.float32), cupy.cuda.Stream(non_blocking=True)
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), np.float32, nbytes // 4)
    with stream:
        there, ours = cupy.asarray(array), gpu.from_host(array)

    def to_gpu() -> None:
        gpu.from_host(array)
        gpu.synchronize()

    def cupy_to_gpu() -> None:
        with stream:
            cupy.asarray(array)
        stream.synchronize()

    def pinned_to_gpu() -> None:
        there.set(pinned, stream)
        stream.synchronize()

    def pinned_from_gpu() -> None:
        there.get(stream, out=pinned)
        stream.synchronize()

    case = size_text(nbytes)
    to = {"mpirt": to_gpu, "cupy": cupy_to_gpu, "pinned": pinned_to_gpu}
    back = {"mpirt": lambda: gpu.to_host(ours), "cupy": lambda: cupy.asnumpy(there, stream), "pinned": pinned_from_gpu}
    report.row(case, "host to GPU", "us", measure(rounds, to, count))
    report.row(case, "GPU to host", "us", measure(rounds, back, count))


# --------------------------------------------------------------------------------------------------------- two ranks


def there_and_back(report: Report, rounds: int, comm: Any, nbytes: int, count: int) -> None:
    """Rank 0 adds 1 on the GPU and sends, rank 1 adds 1 on the GPU and sends back, rank 0 adds 1: by a step, and by hand."""
    n, rank = nbytes // 4, comm.rank
    with tf.Graph().as_default():
        with tf.device("/job:worker/task:0/gpu:0"):
            v = tf.Variable(np.ones(n, np.float32))
            sent = v + 1.0
        with tf.device("/job:worker/task:1/gpu:0"):
            returned = sent + 1.0
        with tf.device("/job:worker/task:0/gpu:0"):
            end = returned + 1.0
        session = tf.Session()
        session.run(v.initializer)
    if session.run(end).max() != 4:
        raise AssertionError("a step gives something else than 4")
    stream, other = cupy.cuda.Stream(non_blocking=True), 1 - rank
    with stream:
        there = cupy.ones(n, np.float32)
    plain = np.empty(n, np.float32)
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), np.float32, n)

    def by_hand(host: Any) -> Callable[[], None]:
        def send(value: Any) -> None:
            value.get(stream, out=host)
            stream.synchronize()
            comm.Send(host, other)

        def receive() -> Any:
            comm.Recv(host, other)
            value = cupy.empty(n, np.float32)
            value.set(host, stream)
            return value

        def step() -> None:
            with stream:
                if rank == 0:
                    send(there + 1)
                    receive() + 1
                else:
                    send(receive() + 1)
            stream.synchronize()

        return step

    contestants = {
        "mpirt": lambda: session.run(end.op),
        "cupy + mpi4py, pageable": by_hand(plain),
        "cupy + mpi4py, pinned": by_hand(pinned),
    }
    found = {name: Measured() for name in contestants}
    for round_ in range(rounds + 1):
        for name, call in contestants.items():
            comm.Barrier()
            samples = timed(call, count)
            if round_:
                found[name].add(samples)
    report.row(size_text(nbytes), "GPU to GPU and back", "us", found)
    session.close()


def main() -> None:
    """Measure what the number of ranks allows."""
    args = arguments(__doc__).parse_args()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    report, began = Report("gpu"), time.perf_counter()
    tf.cluster({"worker": comm.size})
    with report.others:
        if comm.size == 1:
            add = (lambda tf, y, v: y + v), (lambda y, v: cupy.add(y, v))
            product = (lambda tf, y, v: tf.matmul(y, v)), (lambda y, v: cupy.matmul(y, v))
            chain(report, args.rounds, "200 additions of 16 numbers", (16,), 200, *add, 20)
            chain(report, args.rounds, "10 additions of 16 MiB", (1 << 22,), 10, *add, 20)
            chain(report, args.rounds, "20 products of 256 x 256", (256, 256), 20, *product, 20)
            chain(report, args.rounds, "20 products of 2048 x 2048", (2048, 2048), 20, *product, 5)
            for nbytes in (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26):
                copies(report, args.rounds, nbytes, 50 if nbytes < 1 << 20 else 10)
        else:
            for nbytes in (8, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26):
                there_and_back(report, args.rounds, comm, nbytes, 50 if nbytes < 1 << 20 else 10)
    if comm.rank == 0:
        report.finish(args.json)
        print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
