"""One tensor from task A to task B and its answer back: mpirun -n 2 python scripts/bench/edge.py

B gives back what came. Where the tensor comes from makes the case. *Variable*: A's, which doesn't change, so that from the third
step on nothing is copied where A and B share memory. *Feed*: an array of the user, who may have changed it, so that it is copied
once to go out; the answer isn't. *Produced*: A computes the tensor (x + 1) and B its answer (x + 1), so that a kernel may write
where the other side reads; the time of the two kernels, measured beside it with numpy and no message, is taken off. Bare MPI
sends the array in each case; from 16 KiB on all three are measured, below only the variable. Contestants:

mpirt      the step by ``make_callable``; *mpirt run* by ``session.run``
mpi4py     persistent requests on fixed buffers, receives posted before the send, kernels with ``out=`` into the send buffer
tensorflow the same step on two servers (gRPC)
limit      what one ``memcpy`` there and one back take
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed
from peers import Peer, Rest

import mpirt as tf

SIZES = [8, 1024, 64 * 2**10, 2**20, 16 * 2**20, 64 * 2**20, 256 * 2**20]
QUICK = [8, 64 * 2**10, 2**20, 16 * 2**20]
ROUND_S = 0.25  # about as long each contestant runs in a round
SETTLED = 5  # steps before the first round: until then windows are made, get large pages, and variables turn out not to change
WINDOW_NBYTES = 16 * 2**10  # from here on, tasks of one host may share memory


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


VARIABLE, FEED, PRODUCED = "variable", "feed", "produced"


def graph(nbytes: int, source: str) -> tuple[Any, Any, Any]:
    """What goes from task A, its answer, and what to run in a step."""
    with tf.device("/job:a/task:0"):
        if source == FEED:
            x = tf.placeholder(tf.float32, [nbytes // 4])
        else:
            x = tf.Variable(tf.fill([nbytes // 4], np.float32(1.5)))
        out = tf.add(x, 1.0) if source == PRODUCED else x
    with tf.device("/job:b/task:0"):
        there = tf.add(out, 1.0) if source == PRODUCED else tf.identity(out)
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
        for source in (VARIABLE, FEED, PRODUCED) if nbytes >= WINDOW_NBYTES else (VARIABLE,):
            with tf.Graph().as_default(), tf.Session(fetch_on="owner") as session:
                measure(args, report, comm, rest, peer, session, nbytes, source)
    if rank == 0:
        report.finish(args.json)
    if peer:
        peer.close()


def measure(args: Any, report: Report, comm: Any, rest: Rest, peer: Peer | None, session: Any, nbytes: int, source: str) -> None:
    """All rounds of one case; on rank 0 its row."""
    produced = source == PRODUCED
    x, back, step = graph(nbytes, source)
    session.run(tf.global_variables_initializer())
    expected = 3.5 if produced else 1.5
    feeds = [x] if source == FEED else []
    values = [np.full(nbytes // 4, 1.5, np.float32)] if feeds else []
    for _ in range(3):
        for value in values:
            expected = value[-1] = value[0] = value[0] + 1.0
        answer = session.run(back, dict(zip(feeds, values, strict=True)))
        assert comm.Get_rank() == 1 or (answer[0] == answer[-1] == expected), "the answer is another tensor"
        del answer
    one_step = session.make_callable(step, feeds)
    call = partial(one_step, *values)
    for _ in range(SETTLED):
        call()
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
                assert raw.incoming[-1] == (3.5 if produced else 1.5), "bare MPI brought another tensor"
            else:
                raw.answer(steps + 1)
            of["mpirt"].add(timed(call, steps, warmup=1))
            if not produced:
                of["mpirt run"].add(timed(partial(session.run, step, dict(zip(feeds, values, strict=True))), steps, warmup=1))
            if not first:
                rest.wait()
                continue
            (kernels if produced else of["limit"]).add(timed(local, steps, warmup=1))
        if peer and source == VARIABLE:
            few = max(3, steps // 20)
            of["tensorflow"].add(peer.ask(line="edge", nbytes=nbytes, count=few, warmup=2)["samples"])
        rest.wake()
    raw.free()
    if not first:
        return
    name = size_name(nbytes)
    large = nbytes >= 2**20
    if source == VARIABLE:
        at_most = 1.5 if nbytes < WINDOW_NBYTES else 0.1 if large else 1.05
        note = "on one host: no copy, since the variable doesn't change" if large else ""
        report.row(name, "round trip", "us", of, Target(ratio="mpirt / mpi4py", at_most=at_most), note)
        return
    if source == FEED:
        note = "on one host: one copy, of the feed" if large else ""
        report.row(name, "round trip of a feed", "us", of, Target(ratio="mpirt / mpi4py", at_most=0.35 if large else 1.05), note)
        return
    for measured in (of["mpirt"], of["mpi4py"]):
        for number, samples in enumerate(kernels.rounds):
            measured.rounds[number] = [sample - float(np.median(samples)) for sample in measured.rounds[number]]
    goal = Target(ratio="mpirt / mpi4py", at_most=0.1) if large else None
    net = {"mpirt": of["mpirt"], "mpi4py": of["mpi4py"]}
    report.row(name, "round trip without the kernels that make the tensors", "us", net, goal, f"kernels: {kernels.median * 1e6:,.1f} us")


if __name__ == "__main__":
    main()
