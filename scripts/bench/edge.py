"""One tensor from task A to task B and its answer back: mpirun -n 2 python scripts/bench/edge.py

Two cases. *Echo*: B gives back what came; A's variable must be copied once to go out, B's answer once more. *Produced*: A
computes the tensor (x + 1) and B its answer (x + 1), so that a kernel may write where the other side reads; the time of the two
kernels, measured beside it with numpy and no message, is taken off. Contestants:

mpirt      the step by ``make_callable``; *mpirt run* by ``session.run``
mpi4py     persistent requests on fixed buffers, receives posted before the send, kernels with ``out=`` into the send buffer
tensorflow the same step on two servers (gRPC)
limit      what one ``memcpy`` there and one back take
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed
from peers import Peer, Rest

import mpirt as tf

SIZES = [8, 1024, 64 * 2**10, 2**20, 16 * 2**20, 64 * 2**20, 256 * 2**20]
QUICK = [8, 64 * 2**10, 2**20, 16 * 2**20]
ROUND_S = 0.25  # about as long each contestant runs in a round
WINDOW_NBYTES = 64 * 2**10  # from here on, tasks of one host may share memory


def size_name(nbytes: int) -> str:
    """``64 KiB``."""
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= scale:
            return f"{nbytes // scale} {unit}"
    return f"{nbytes} B"


def steps_of(nbytes: int, quick: bool) -> int:
    """Steps of one contestant in a round."""
    guess_s = 10e-6 + nbytes / 2e9
    return max(3, min(2000, int(ROUND_S / guess_s))) // (5 if quick else 1) or 1


class RawEcho:
    """The round trip by hand. Rank 0 calls `step`, rank 1 `answer` as often."""

    def __init__(self, comm: Any, nbytes: int, produced: bool) -> None:
        from mpi4py import MPI

        other = 1 - comm.Get_rank()
        self.value = np.full(nbytes // 4, 1.5, np.float32)
        self.incoming = np.empty_like(self.value)
        self.produced = produced
        # What goes out: A's value; B's answer is what came in, in place. Produced: a buffer that the kernel fills each time.
        self.outgoing = np.empty_like(self.value) if produced else self.value if comm.Get_rank() == 0 else self.incoming
        self.send = comm.Send_init([self.outgoing, MPI.BYTE], other, 0)
        self.receive = comm.Recv_init([self.incoming, MPI.BYTE], other, 0)

    def step(self) -> None:
        self.receive.Start()
        if self.produced:
            np.add(self.value, 1.0, out=self.outgoing)
        self.send.Start()
        self.receive.Wait()
        self.send.Wait()

    def answer(self, count: int) -> None:
        send, receive = self.send, self.receive
        receive.Start()
        for left in range(count - 1, -1, -1):
            receive.Wait()
            if self.produced:
                np.add(self.incoming, 1.0, out=self.outgoing)
            send.Start()
            if self.produced and left:
                receive.Start()
            send.Wait()
            if left and not self.produced:
                receive.Start()

    def free(self) -> None:
        self.send.Free()
        self.receive.Free()


def graph(nbytes: int, produced: bool) -> tuple[Any, Any, Any]:
    """The variable of task A, its answer, and what to run in a step."""
    with tf.device("/job:a/task:0"):
        x = tf.Variable(tf.fill([nbytes // 4], np.float32(1.5)))
        out = tf.add(x, 1.0) if produced else x
    with tf.device("/job:b/task:0"):
        there = tf.add(out, 1.0) if produced else tf.identity(out)
    with tf.device("/job:a/task:0"):
        back = tf.identity(there)
    return x, back, back.op


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="multiples of 4")
    args = parser.parse_args()
    sizes = args.sizes or (QUICK if args.quick else SIZES)
    cluster = tf.cluster({"a": 1, "b": 1})
    if cluster.size != 2:
        parser.error(f"needs 2 ranks, runs on {cluster.size}: mpirun -n 2 python scripts/bench/edge.py")

    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    rank, rest = comm.Get_rank(), Rest(comm)
    report = Report("edge", comm.allgather(os.getpid()))
    report.leave_out("sizes", [size_name(nbytes) for nbytes in SIZES], [size_name(nbytes) for nbytes in sizes])
    peer = Peer(args.tensorflow, "tensorflow_peer.py") if args.tensorflow and rank == 0 else None
    for nbytes in sizes:
        for produced in (False, True) if nbytes >= WINDOW_NBYTES else (False,):
            with tf.Graph().as_default(), tf.Session(fetch_on="owner") as session:
                measure(args, report, comm, rest, peer, session, nbytes, produced)
    if rank == 0:
        report.finish(args.json)
    if peer:
        peer.close()


def measure(args: Any, report: Report, comm: Any, rest: Rest, peer: Peer | None, session: Any, nbytes: int, produced: bool) -> None:
    """All rounds of one size; on rank 0 its row."""
    x, back, step = graph(nbytes, produced)
    session.run(tf.global_variables_initializer())
    expected = 3.5 if produced else 1.5
    answer = session.run(back)
    assert comm.Get_rank() == 1 or (answer == expected).all(), "the answer is another tensor"
    del answer
    call = session.make_callable(step)
    raw = RawEcho(comm, nbytes, produced)
    spare = np.empty_like(raw.value)
    steps = steps_of(nbytes, args.quick)
    first = comm.Get_rank() == 0
    of = {name: Measured() for name in ("mpirt", "mpirt run", "mpi4py", "tensorflow", "limit")}
    kernels = Measured()

    def local() -> None:
        if produced:
            np.add(raw.value, 1.0, out=spare)
            np.add(spare, 1.0, out=raw.incoming)
        else:
            np.copyto(spare, raw.value)
            np.copyto(raw.incoming, spare)

    for _ in range(args.rounds):
        comm.Barrier()
        with report.others:
            if first:
                of["mpi4py"].add(timed(raw.step, steps, warmup=1))
                assert raw.incoming[-1] == expected, "bare MPI brought another tensor"
            else:
                raw.answer(steps + 1)
            of["mpirt"].add(timed(call, steps, warmup=1))
            if not produced:
                of["mpirt run"].add(timed(lambda: session.run(step), steps, warmup=1))
            if not first:
                rest.wait()
                continue
            (kernels if produced else of["limit"]).add(timed(local, steps))
        if peer and not produced:
            few = max(3, steps // 20)
            of["tensorflow"].add(peer.ask(line="edge", nbytes=nbytes, count=few, warmup=2)["samples"])
        rest.wake()
    raw.free()
    if not first:
        return
    name = size_name(nbytes)
    if not produced:
        at_most = 1.5 if nbytes < WINDOW_NBYTES else 1.05 if nbytes < 2**20 else 0.35
        note = "on one host: one copy each way, through a shared window" if nbytes >= 2**20 else ""
        report.row(name, "round trip", "us", of, Target(ratio="mpirt / mpi4py", at_most=at_most), note)
        return
    for measured in (of["mpirt"], of["mpi4py"]):
        for number, samples in enumerate(kernels.rounds):
            measured.rounds[number] = [sample - float(np.median(samples)) for sample in measured.rounds[number]]
    goal = Target(ratio="mpirt / mpi4py", at_most=0.1) if nbytes >= 2**20 else None
    values = {"mpirt": of["mpirt"], "mpi4py": of["mpi4py"]}
    report.row(name, "round trip without the kernels that make the tensors", "us", values, goal, f"kernels: {kernels.median * 1e6:,.1f} us")


if __name__ == "__main__":
    main()
