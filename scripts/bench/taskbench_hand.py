"""Task graphs by hand in mpi4py, as an expert would write them: one message per dependence, and the best form.

Both keep outputs in rows of even and odd timesteps, and prepare every argument of a call before the run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from task_patterns import WORDS, TaskGraph, key_of, run_task

_Task = tuple[int, list[Any], Any]  # arguments of run_task


class MessagePerDependence:
    """For each row: post a receive for each input from another rank, start a send for each output that another needs, wait, compute.

    The shape of Task Bench's own nonblocking MPI version. Two tasks that read the same output get it twice.
    """

    def __init__(self, comm: MPI.Intracomm, graph: TaskGraph) -> None:
        self._comm = comm
        rank, size = comm.rank, comm.size
        rows = np.zeros((2, graph.width, WORDS), np.uint64)
        inbox: dict[tuple[int, int], Any] = {}
        self._rows: list[tuple[list[Any], list[Any], list[_Task]]] = []
        for step in range(graph.steps):
            receives, sends, tasks = [], [], []
            for p in graph.points(step):
                here, inputs = graph.rank_of(p, size), []
                for q in graph.inputs(step, p):
                    there, tag = graph.rank_of(q, size), q * graph.width + p
                    if here == there == rank:
                        inputs.append(rows[(step - 1) % 2, q])
                    elif here == rank:
                        buffer = inbox.setdefault((q, p), np.zeros(WORDS, np.uint64))
                        receives.append((buffer, there, tag))
                        inputs.append(buffer)
                    elif there == rank:
                        sends.append((rows[(step - 1) % 2, q], here, tag))
                if here == rank:
                    tasks.append((key_of(step, p), inputs, rows[step % 2, p]))
            self._rows.append((receives, sends, tasks))

    def run(self) -> None:
        """Run this rank's tasks."""
        irecv, isend, waitall = self._comm.Irecv, self._comm.Isend, MPI.Request.Waitall
        for receives, sends, tasks in self._rows:
            if receives or sends:
                requests = [irecv(*arguments) for arguments in receives]
                requests += [isend(*arguments) for arguments in sends]
                waitall(requests)
            for key, inputs, out in tasks:
                run_task(key, inputs, out)

    def close(self) -> None:
        """Nothing is held."""


class PackedPersistent:
    """One message per pair of ranks and row, by persistent requests, on its way while the rest of the row is computed.

    Rows are numbered alike on all ranks, so what a rank needs of another is one stretch of the row: it is sent from where it was
    computed to where it is read, without a copy. The receive of a row is posted before the row is computed.
    """

    def __init__(self, comm: MPI.Intracomm, graph: TaskGraph) -> None:
        rank, size, steps = comm.rank, comm.size, graph.steps
        rows = np.zeros((2, graph.width, WORDS), np.uint64)
        self._requests: dict[tuple[bool, int, int, int, int], MPI.Prequest] = {}

        def request(sends: bool, step: int, first: int, last: int, peer: int) -> MPI.Prequest:
            key = (sends, step % 2, first, last, peer)
            if key not in self._requests:
                make = comm.Send_init if sends else comm.Recv_init
                self._requests[key] = make(rows[step % 2, first : last + 1], peer, 0)
            return self._requests[key]

        crossing: list[dict[tuple[int, int], set[int]]] = []  # of each row: points that go from a rank to a rank
        for step in range(steps):
            needed: dict[tuple[int, int], set[int]] = {}
            for p in graph.points(step + 1) if step + 1 < steps else ():
                for q in graph.inputs(step + 1, p):
                    pair = graph.rank_of(q, size), graph.rank_of(p, size)
                    if pair[0] != pair[1]:
                        needed.setdefault(pair, set()).add(q)
            crossing.append(needed)
        self._rows: list[tuple[list[Any], list[Any], list[_Task], list[Any], list[_Task]]] = []
        for step in range(steps):
            mine = [p for p in graph.points(step) if graph.rank_of(p, size) == rank]
            receives, sends, needed = [], [], set()
            for (src, dst), points in sorted(crossing[step].items()):
                if dst == rank:
                    receives.append(request(False, step, min(points), max(points), src))
                elif src == rank:
                    sends.append(request(True, step, min(points), max(points), dst))
                    needed |= points
            awaited = [] if step == 0 else [*self._rows[step - 1][0], *([] if step == 1 else self._rows[step - 2][3])]
            tasks = {
                p: (key_of(step, p), [rows[(step - 1) % 2, q] for q in graph.inputs(step, p)], rows[step % 2, p]) for p in mine
            }
            first = [tasks[p] for p in mine if p in needed]
            rest = [tasks[p] for p in mine if p not in needed]
            self._rows.append((receives, awaited, first, sends, rest))

    def run(self) -> None:
        """Run this rank's tasks."""
        startall, waitall = MPI.Prequest.Startall, MPI.Request.Waitall
        for receives, awaited, first, sends, rest in self._rows:
            # What came for the row before the last is read, so its place is free.
            if len(receives) == 1:
                receives[0].Start()
            elif receives:
                startall(receives)
            if len(awaited) == 1:
                awaited[0].Wait()
            elif awaited:
                waitall(awaited)
            for key, inputs, out in first:
                run_task(key, inputs, out)
            if len(sends) == 1:
                sends[0].Start()
            elif sends:
                startall(sends)
            for key, inputs, out in rest:
                run_task(key, inputs, out)
        for _, _, _, sends, _ in self._rows[-2:]:
            waitall(sends)

    def close(self) -> None:
        """Free the requests."""
        for request in self._requests.values():
            request.Free()
