"""Several ranks in one process, for tests of collective sessions without an MPI.

Each rank is a thread with a cluster of its own over a ``LoopbackWorld`` and a default graph of its own; nothing of the
process's own cluster or graph is touched. Like a process under ``mpirun``, a rank whose function ends waits for the others.
Bounded in time: ranks that hang fail the test with the stacks of all threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.rank_table import RankTable
from mpirt.distributed.cluster import Cluster
from mpirt.graph.graph import Graph
from mpirt.runtime.rendezvous import Abandoned
from mpirt.transport.base import Counters
from mpirt.transport.loopback import LoopbackWorld

Body = Callable[[int, Cluster], Any]
Spec = ClusterSpec | RankTable | dict[str, Any] | None


@dataclass(slots=True)
class Outcome:
    """How the function of one rank ended, and what the rank heard when it wanted to leave the job then."""

    value: Any = None
    error: BaseException | None = None
    farewell: Exception | None = None

    def result(self) -> Any:
        """What the function returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one rank's transport did during something; what goes through boxes counts as what goes in messages."""

    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    control: int  # sent; a control message that comes in may be another rank's farewell

    @staticmethod
    def since(before: Counters, now: Counters) -> Traffic:
        """Difference of two states of the counters."""
        return Traffic(
            now.messages_sent + now.boxes_sent - before.messages_sent - before.boxes_sent,
            now.bytes_sent + now.box_bytes_sent - before.bytes_sent - before.box_bytes_sent,
            now.messages_received + now.boxes_received - before.messages_received - before.boxes_received,
            now.bytes_received + now.box_bytes_received - before.bytes_received - before.box_bytes_received,
            now.control_sent - before.control_sent,
        )


def run_ranks(n: int, function: Body, spec: Spec = None, seed: int | None = None, timeout_s: float = 10) -> list[Outcome]:
    """Run ``function(rank, cluster)`` on ``n`` simulated ranks.

    Parameters
    ----------
    spec : the cluster that every rank asks for
    seed : makes the transport an adversary, see ``mpirt.transport.loopback``
    timeout_s : ranks that run longer fail the test
    """
    world = LoopbackWorld(n, seed=seed)
    asked = ClusterSpec(spec) if isinstance(spec, dict) else spec
    outcomes = [Outcome() for _ in range(n)]

    def run(rank: int) -> None:
        outcome = outcomes[rank]
        try:
            cluster = Cluster(world.transport(rank), asked)
        except BaseException as error:
            outcome.error = error
            return
        try:
            with Graph().as_default():
                outcome.value = function(rank, cluster)
        except BaseException as error:  # given to the caller
            outcome.error = error
        try:
            if world.alive(rank):  # not cluster.leave(): that would end the other ranks before they hear why
                cluster.service.end()
                if n > 1:
                    cluster.collective.leave(cluster.service.await_end)
        except Abandoned as abandoned:
            outcome.farewell = abandoned.error
        except errors.AbortedError as error:  # the test gave up
            outcome.farewell = error
        finally:
            cluster.service.close()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    end = time.perf_counter() + timeout_s
    for thread in threads:
        thread.join(max(0.0, end - time.perf_counter()))
    if any(thread.is_alive() for thread in threads):
        report = _stacks(threads, outcomes)
        with contextlib.suppress(errors.AbortedError):
            world.abort(-1, 1)  # lets the threads that hang end
        pytest.fail(f"simulated ranks did not end within {timeout_s:g} s\n{report}", pytrace=False)
    return outcomes


def values(n: int, function: Body, spec: Spec = None, seed: int | None = None, timeout_s: float = 10) -> list[Any]:
    """What ``function`` returned on each rank; every rank must have succeeded and left in peace."""
    outcomes = run_ranks(n, function, spec, seed, timeout_s)
    found = [outcome.result() for outcome in outcomes]
    assert [outcome.farewell for outcome in outcomes] == [None] * n, "a rank could not leave the job in peace"
    return found


def _stacks(threads: list[threading.Thread], outcomes: list[Outcome]) -> str:
    frames = sys._current_frames()
    parts = []
    for thread, outcome in zip(threads, outcomes, strict=True):
        frame = frames.get(thread.ident or 0)
        if thread.is_alive() and frame is not None:
            parts.append(f"--- {thread.name}\n{''.join(traceback.format_stack(frame))}")
        else:
            parts.append(f"--- {thread.name}: ended, {outcome.error!r}")
    return "\n".join(parts)
