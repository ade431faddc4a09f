"""Collectives against the MPI library's own: mpirun -n 2 (or 4) python scripts/bench/collectives.py

One task a rank. The size is that of the whole result (of reduce_scatter, of each input). Up to 64 KiB a step has a chain of 20
collectives, each of the last one's result, and a figure is a twentieth of it: a model has many of them in a step. From 64 KiB on
also one in a step, with all that a step costs besides. Contestants:

mpirt      the step by ``make_callable``: inputs are kept, results are arrays of their own
mpi4py     Allreduce, Bcast, Allgather, Reduce_scatter_block with MPI_IN_PLACE, which overwrite their input
limit      one ``memcpy`` of the size

Each result is checked once before anything is timed. Ranks are in step by a barrier before each round.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed

import mpirt as tf

SIZES = [2**10, 16 * 2**10, 64 * 2**10, 256 * 2**10, 2**20, 4 * 2**20, 16 * 2**20, 64 * 2**20]
QUICK = [2**10, 2**20, 16 * 2**20]
KINDS = ("all_reduce", "broadcast", "all_gather", "reduce_scatter")
CHAIN = 20
CHAIN_NBYTES = 64 * 2**10  # the largest tensor of a chain
ROUND_S = 0.2  # about as long each contestant runs in a round
MOST_STEPS = 500


def size_name(nbytes: int) -> str:
    """``64 KiB``."""
    return f"{nbytes // 2**20} MiB" if nbytes >= 2**20 else f"{nbytes // 2**10} KiB"


def collective(kind: str, xs: list[Any]) -> list[Any]:
    """One of them over the tasks' tensors."""
    if kind == "broadcast":
        return list(tf.collective.broadcast(xs[0], xs))
    return list(getattr(tf.collective, kind)(xs))


def graph(kind: str, nbytes: int, ranks: int, chain: int) -> tuple[list[Any], list[Any]]:
    """The tasks' variables, and the last results."""
    count = nbytes // 4 // (ranks if kind == "all_gather" else 1)
    xs = []
    for i in range(ranks):
        with tf.device(f"/job:worker/task:{i}"):
            xs.append(tf.Variable(tf.fill([count], np.float32(1.0)), name=f"x{i}"))
    ys = [x.read_value() for x in xs]
    for _ in range(chain):
        ys = collective(kind, ys)
    return xs, ys


def by_hand(comm: Any, kind: str, nbytes: int) -> tuple[Callable[[], Any], np.ndarray[Any, Any]]:
    """The library's call, and the array that it fills."""
    from mpi4py import MPI

    buffer = np.ones(nbytes // 4, np.float32)
    share = buffer.size // comm.Get_size()
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: comm.Allreduce(MPI.IN_PLACE, buffer),
        "broadcast": lambda: comm.Bcast(buffer),
        "all_gather": lambda: comm.Allgather(MPI.IN_PLACE, [buffer, share, MPI.FLOAT]),
        "reduce_scatter": lambda: comm.Reduce_scatter_block(MPI.IN_PLACE, buffer),
    }
    return calls[kind], buffer


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="multiples of 16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()

    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    cluster = tf.cluster({"worker": comm.Get_size()})
    report = Report("collectives", comm.allgather(os.getpid()))
    sizes = args.sizes or (QUICK if args.quick else SIZES)
    report.leave_out("sizes", [size_name(nbytes) for nbytes in SIZES], [size_name(nbytes) for nbytes in sizes])
    for kind in args.kinds:
        for nbytes in sizes:
            chains = [CHAIN] if nbytes <= CHAIN_NBYTES and kind != "reduce_scatter" and kind != "all_gather" else []
            for chain in [*chains, *([1] if nbytes >= CHAIN_NBYTES or not chains else [])]:
                with tf.Graph().as_default(), tf.Session(fetch_on="owner") as session:
                    measure(args, report, comm, session, kind, nbytes, chain)
    if cluster.rank == 0:
        report.finish(args.json)


def measure(args: Any, report: Report, comm: Any, session: Any, kind: str, nbytes: int, chain: int) -> None:
    """All rounds of one case; on rank 0 its row."""
    ranks = comm.Get_size()
    xs, ys = graph(kind, nbytes, ranks, chain)
    session.run(tf.global_variables_initializer())
    expected = float(ranks**chain) if kind in ("all_reduce", "reduce_scatter") else 1.0
    found = session.run(ys)[comm.Get_rank()]
    assert (found == expected).all(), f"{kind} of {nbytes} bytes gave {found}"
    del found
    call = session.make_callable([y.op for y in ys])
    raw, buffer = by_hand(comm, kind, nbytes)
    spare = np.empty_like(buffer)
    of = {name: Measured() for name in ("mpirt", "mpi4py", "limit")}

    def library() -> None:
        for _ in range(chain):
            raw()

    slower = max(comm.allgather(max(*timed(call, 2), *timed(library, 2))))
    steps = max(2, min(MOST_STEPS, int(ROUND_S / slower))) // (4 if args.quick else 1) or 1
    for _ in range(args.rounds):
        with report.others:
            for name, contestant in (("mpi4py", library), ("mpirt", call)):
                buffer[:] = 0.0  # sums of sums would overflow
                comm.Barrier()
                of[name].add([seconds / chain for seconds in timed(contestant, steps, warmup=2)])
            of["limit"].add(timed(lambda: np.copyto(spare, buffer), 3))
    if comm.Get_rank():
        return
    target: Target | None = None
    if kind == "all_reduce":
        target = Target(ratio="mpirt / mpi4py", at_most=0.4 if nbytes >= 64 * 2**20 else 1.05)
    note = f"one of a chain of {chain} in a step" if chain > 1 else "alone in a step, with all that a step costs"
    case = f"{size_name(nbytes)}{', chain' if chain > 1 else ''}"
    report.row(case, f"{kind} on {ranks} ranks", "us", of, target, note)


if __name__ == "__main__":
    main()
