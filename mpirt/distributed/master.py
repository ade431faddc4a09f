"""The master service of a process: what the sessions of its clients share.

It numbers sessions, graphs, steps and requests, gives out message tags, asks ranks and waits for their answers, and knows the
steps that run on other ranks. Guarantees: the first failure of a step cancels it everywhere; a lost rank fails only the steps
and requests that touch it; every wait ends at the user's deadline or when what is waited for is lost.
Neighbours: ``master_session`` (one session: compiling and running its steps), ``worker`` (the other end).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from mpirt import config, errors
from mpirt.cluster.task import Task
from mpirt.compiler.placer import Inventory
from mpirt.distributed.control import ControlPlane, Kind, to_error
from mpirt.distributed.control_pb2 import (
    CancelStep,
    Reply,
    Reset,
    SessionEnded,
    StepDone,
    StepStatus,
)
from mpirt.distributed.runner import Deadline
from mpirt.distributed.tags import TagSpace
from mpirt.distributed.turn import Turn
from mpirt.graph.graph import Graph
from mpirt.runtime.executor import SessionState
from mpirt.runtime.rendezvous import Abandoned

if TYPE_CHECKING:
    from mpirt.distributed.master_session import MasterSession

_ANSWERED = (Kind.CREATE_SESSION, Kind.RESET, Kind.CLOSE_SESSION)


class Master:
    """The master service of one process.

    Parameters
    ----------
    plane : control messages
    rank_of : the rank that hosts a task
    inventory : devices of every task
    local : devices and state of this rank's tasks
    """

    def __init__(self, plane: ControlPlane, rank_of: Callable[[Task], int], inventory: Inventory, local: SessionState) -> None:
        transport = plane.transport
        self.plane = plane
        self.rank_of = rank_of
        self.inventory = inventory
        self.local = local
        self.rank, self.size = transport.rank, transport.size
        self.tags = TagSpace.of_master(transport.max_tag, self.rank, self.size)
        self.sessions: weakref.WeakValueDictionary[int, MasterSession] = weakref.WeakValueDictionary()  # those that are open
        self.numbers = itertools.count(1)  # of sessions, graphs, steps and requests
        self.ordinals = itertools.count()  # of sessions, for people
        self.steps: dict[int, Step] = {}
        self.serving: Callable[[], bool] = lambda: False  # whether a server runs in this process
        self.turn = Turn()
        self._requests: dict[int, _Request] = {}
        plane.serve({
            Kind.STEP_DONE: self._step_done,
            Kind.REPLY: self._reply,
            Kind.STEP_WAITS: self._step_waits,
            Kind.SESSION_ENDED: self._session_ended,
        })  # fmt: skip
        plane.on_lost.append(self._lose)
        plane.on_rejected = self._rejected

    def reset(self, containers: Sequence[str], deadline: Deadline | None) -> None:
        """Forget the state in ``containers`` on all ranks."""
        names = list(containers) or [""]
        self.local.resources.clear(names)
        number = next(self.numbers)
        others = [r for r in range(self.size) if r != self.rank]
        self.ask(number, others, Kind.RESET, Reset(request=number, containers=names), "to reset its containers", deadline)

    def ask(
        self,
        number: int,
        ranks: Collection[int],
        kind: Kind,
        message: Any,
        what: str,
        deadline: Deadline | None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send a message to ``ranks`` and wait for all their answers.

        Raises
        ------
        OpError
            What a rank answered; DeadlineExceededError with the ranks that didn't; UnavailableError if one is lost;
            CancelledError once ``given_up()``.
        """
        if not ranks:
            return
        request = self._requests[number] = _Request(set(ranks))
        try:
            for rank in ranks:
                if rank in self.plane.lost:
                    raise self.plane.lost[rank]
                self.plane.send(rank, kind, message)

            def missing() -> str:
                return f"{', '.join(map(self.plane.describe_rank, sorted(request.missing)))} {what}"

            def over() -> bool:
                return not request.missing or request.error is not None or given_up()

            self.wait(over, missing, deadline or Deadline.after(config.get("MPIRT_START_TIMEOUT_S")))
        finally:
            del self._requests[number]
        if request.error is not None:
            raise request.error
        if request.missing:
            raise closed_while_running()

    def wait(
        self, ready: Callable[[], bool], what: Callable[[], str], deadline: Deadline | None, on_idle: Callable[[], None] | None = None
    ) -> None:
        """Wait for something that a control message brings; ``on_idle`` as in ``wait_until``, by default `watch`."""
        progress, token = self.plane.progress, object()
        progress.eager.add(token)
        try:
            progress.wait(ready, what, None if deadline is None else deadline.remaining_s, on_idle or self.watch)
        except errors.DeadlineExceededError:
            if deadline is None:
                raise
            raise deadline.exceeded(what()) from None
        finally:
            progress.eager.discard(token)

    def watch(self) -> None:
        """What a wait of a session does when idle: see whether ranks are lost. Only a broken job ends it."""
        self.plane.look_for_losses()
        if self.plane.broken is not None:
            raise Abandoned(self.plane.broken)

    def _step_done(self, source: int, message: StepDone) -> None:
        step = self.steps.get(message.step)
        if step is not None:
            step.hear(source, message)

    def _step_waits(self, source: int, message: StepStatus) -> None:
        step = self.steps.get(message.step)
        if step is not None:
            step.waits[source] = message.waiting_for

    def _reply(self, source: int, message: Reply) -> None:
        request = self._requests.get(message.request)
        if request is not None:
            if message.HasField("error"):
                request.error = request.error or to_error(message.error, None)
            request.missing.discard(source)

    def _session_ended(self, source: int, message: SessionEnded) -> None:
        session = self.sessions.get(message.session)
        if session is not None:
            session.end_on(source, to_error(message.error, None))

    def _lose(self, rank: int, error: errors.UnavailableError) -> None:
        for step in list(self.steps.values()):
            if rank in step.outstanding:
                step.fail(error, rank)
                step.outstanding.discard(rank)
        for request in list(self._requests.values()):
            if rank in request.missing:
                request.error = request.error or error

    def _rejected(self, source: int, kind: Kind, number: int, error: Exception) -> bool:
        """A rank can't answer: whatever waits for that answer, or for any of that rank if it couldn't read even the number, fails."""
        for step in [step for step in self.steps.values() if kind is Kind.RUN_GRAPH and source in step.outstanding]:
            if number in (0, step.number):
                if number:
                    step.outstanding.discard(source)
                step.fail(error)
        for key, request in list(self._requests.items()):
            if kind in _ANSWERED and source in request.missing and number in (0, key):
                request.error = request.error or error
        return kind is Kind.RUN_GRAPH or kind in _ANSWERED

    def close_all(self) -> None:
        """Close the sessions that are still open."""
        for session in self.open_sessions():
            session.close()

    def open_sessions(self) -> list[MasterSession]:
        """The sessions on servers that are open. Other threads may open and close some meanwhile."""
        return [session for reference in self.sessions.valuerefs() if (session := reference()) is not None]


class _Request:
    """A question to some ranks."""

    def __init__(self, missing: set[int]) -> None:
        self.missing = missing
        self.error: Exception | None = None


class Step:
    """A step that runs on other ranks too."""

    __slots__ = ("number", "outstanding", "error", "dead", "long", "waits", "_master", "_graph")

    def __init__(self, master: Master, graph: Graph, ranks: Collection[int]) -> None:
        self.number = next(master.numbers)
        self.outstanding = set(ranks)
        self.error: Exception | None = None  # the first
        self.dead = False  # a part has ended dead: some rank, perhaps this one, tells why
        self.long = False  # a part took long where it ran
        self.waits: dict[int, str] = {}  # what ranks said that they wait for
        self._master = master
        self._graph = graph

    def hear(self, source: int, message: StepDone) -> None:
        """A rank has ended its part."""
        self.dead |= message.dead
        self.long |= message.long
        if message.HasField("error"):
            self.fail(to_error(message.error, self._graph), source)
        self.outstanding.discard(source)  # last: whoever sees that all have ended sees how

    def fail(self, error: Exception, source: int | None = None) -> None:
        """Note the first error and cancel what still runs; the part of rank ``source`` doesn't."""
        if self.error is None:
            self.error = error
            message = CancelStep(step=self.number)
            for rank in sorted(self.outstanding - {source}):
                try:
                    self._master.plane.send(rank, Kind.CANCEL_STEP, message)
                except errors.OpError:  # it is gone; that is found out by others
                    self.outstanding.discard(rank)

    def over(self) -> bool:
        """Whether all ranks have ended their part, or it has failed."""
        return not self.outstanding or self.error is not None

    def ended(self) -> bool:
        """Whether all ranks have ended their part."""
        return not self.outstanding

    def describe(self) -> str:
        """The ranks that are waited for, and what they wait for as far as they have said."""
        plane = self._master.plane
        parts = []
        for rank in sorted(self.outstanding):
            said = f" (there it waits for {self.waits[rank]})" if rank in self.waits else ""
            parts.append(f"{plane.describe_rank(rank)} to end its part of the step{said}")
        return "; ".join(parts)


def closed_while_running() -> errors.CancelledError:
    """The error of a step that `close` has ended."""
    return errors.CancelledError("the session was closed while this step was running.")
