"""Where mpirt's time per task goes: parts measured one by one, counted for each task graph, and what they leave unexplained.

With no kernel at all, what a task costs a core is the work itself (checksums: the serial time), the executor's loop (with the
call of the kernel and its new output array), for each message that leaves or comes to post, send and take it, and a share of
the run itself. What is left is waiting, for the other rank and for messages on their way, and what the loop and the copies take
for each tensor that crosses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from task_patterns import WORDS, TaskGraph

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.program import NO_SLOT, Program, Recv, Send, Transfer
from mpirt.runtime.packets import Packets

if TYPE_CHECKING:
    from taskbench import Case

MESSAGES, ROUNDS, CHAIN, RUNS = 64, 200, 400, 50


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of a core."""

    run: float  # a run that does nothing but tell both ranks of its end
    task: float  # of the executor, for a task without a message
    post: float  # of a message: post its receive
    send: float  # start it
    take: float  # take what is there


class MessageCosts:
    """Both ends of some messages between the two ranks, as a program has them, without a step around."""

    def __init__(self, cluster: tf.Cluster, comm: Any) -> None:
        def patient(ready: Callable[[], bool], what: Callable[[], str]) -> None:
            while not ready():
                pass

        self._comm = comm
        rank = cluster.rank
        first = cluster.reserve_tags(2 * MESSAGES)
        near = len(set(cluster.transport.memory)) == 1  # as the linker decides
        both = [
            [
                Transfer(src * MESSAGES + i, f"x{i}:0", tf.uint64, (WORDS,), src, 1 - src, Task("worker", src), "", on_board=near)
                for i in range(MESSAGES)
            ]
            for src in (0, 1)
        ]
        program = Program(rank, [*[Send(t, 0) for t in both[rank]], *[Recv(t, NO_SLOT) for t in both[1 - rank]]])
        program.transfers = both[0] + both[1]
        ends = self._ends = Packets(program, cluster.transport, first, patient)
        self._sends = [ends.sending_end([t]).sender([0]) for t in both[rank]]
        self._incoming = [ends.receiving_end([t]) for t in both[1 - rank]]
        for end in self._incoming:
            end.give(())

    def measure(self) -> tuple[float, float, float]:
        """Seconds to post, send and take one message that nobody has to wait for: medians."""
        values = [np.zeros(WORDS, np.uint64)]
        posts, sends, takes = [], [], []
        for _ in range(ROUNDS):
            posts.append(self._timed(self._ends.post))
            sends.append(self._timed(lambda: [send(values) for send in self._sends]))
            while not all([i.ready() for i in self._incoming]):
                pass
            takes.append(self._timed(lambda: [i.take() for i in self._incoming]))
        return tuple(float(np.median(s)) / MESSAGES for s in (posts, sends, takes))  # type: ignore[return-value]

    def _timed(self, act: Callable[[], object]) -> float:
        self._comm.Barrier()
        start = time.perf_counter()
        act()
        return time.perf_counter() - start


def measure(make: Callable[[TaskGraph], Case], cluster: tf.Cluster, comm: Any) -> Parts:
    """Measure the parts; ``make`` makes the contestants for a task graph."""
    empty, chain = make(TaskGraph("trivial", 2, 1)), make(TaskGraph("no_comm", 2, CHAIN))
    run = float(np.median([empty.wall("mpirt", 0) for _ in range(RUNS)]))
    wall = float(np.median([chain.wall("mpirt", 0) for _ in range(RUNS)]))
    work = float(np.median([chain.task_s("limit", 0, 1) for _ in range(RUNS)]))
    for case in (empty, chain):
        case.close()
    return Parts(run, (wall - run) / CHAIN - work, *MessageCosts(cluster, comm).measure())


def table(parts: Parts, rows: list[tuple[TaskGraph, float, float, int]], ranks: int) -> Table:
    """The parts of each task graph's time.

    Parameters
    ----------
    parts : what each costs
    rows : graph, seconds per task of mpirt and of the work alone (both without a kernel), messages of a step over all ranks
    ranks : how many share the tasks
    """
    found = Table(
        "pattern", "width", "messages a task", "measured", "work", "loop", "post", "send", "take", "run", "waiting and the rest",
        title=f"where mpirt's time per task goes, us of a core (one message: post {parts.post * 1e6:.2f}, send {parts.send * 1e6:.2f},"
        f" take {parts.take * 1e6:.2f}; a run by itself {parts.run * 1e6:.0f})",
    )  # fmt: skip
    for graph, measured, work, messages in rows:
        share = (messages - ranks) / graph.num_tasks  # the rest tells of the end
        run = parts.run * ranks / graph.num_tasks
        explained = [work, parts.task, share * parts.post, share * parts.send, share * parts.take, run]
        figures = [measured, *explained, measured - sum(explained)]
        found.add_row(graph.pattern, str(graph.width), f"{share:.2f}", *[f"{s * 1e6:.2f}" for s in figures])
    return found
