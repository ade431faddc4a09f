"""A session on a server: the master of its steps, whatever server it names.

A session on a server is driven by the process that opened it: it knows the whole cluster, so to go through another rank
would cost a hop and bring nothing. The server that is named as target is the session's master task: it decides the
placement of what has no device, is asked when the session is opened, and must be there. Guarantees:

- one message to each rank that a step touches, one back; tensors never pass through here: a fed value goes straight to
  where it is used, a fetched one comes straight from where it is;
- steps of several threads run at the same time; each has tags of its own;
- the first failure of a step cancels it everywhere and is what the client gets; a lost rank fails only the steps that
  touch it;
- every wait ends at the user's deadline, at `close`, or when what is waited for is lost.

Data flows: leaves, feeds -> compiler -> ``graph_messages`` to the workers; then for each step RunGraph, this rank's own part
(runtime.executor), StepDone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from mpirt import errors
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import DeviceName, Inventory, PlacementRules
from mpirt.compiler.planning import collecting_later, make_plan
from mpirt.compiler.program import Program
from mpirt.distributed.control import ControlPlane, Kind
from mpirt.distributed.control_pb2 import (
    CloseSession,
    CreateSession,
    RegisterGraph,
    RunGraph,
    StepStatus,
)
from mpirt.distributed.graph_messages import extension, operations_of, program_def
from mpirt.distributed.master import Master, Step, closed_while_running
from mpirt.distributed.reports import dump_program, print_placement
from mpirt.distributed.results import as_results
from mpirt.distributed.runner import Deadline, Leaves, Places, closed_error, not_run_error, traffic_of
from mpirt.distributed.turn import SHORT_S
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.op_def import Pending
from mpirt.graph.user_code import caller_line
from mpirt.runtime.executor import Executor, SessionState, StepFailed
from mpirt.runtime.feeds import feed_array
from mpirt.runtime.rendezvous import Abandoned
from mpirt.runtime.resources import ResourceManager

CLIENT = DeviceName(Task("_client", 0), "CPU", 0)  # where the feeds come in: the process of the session

_LONG_STEPS = 3  # so many long steps in a row, and the next one is expected to be long
_GRACE_S = 1.0  # after a failure, the time that the other ranks have to end their parts before the client hears of it
_SHORT_GRACE_S = 0.05  # the same after the user's deadline
_ASK_AFTER_S = 1.0  # a rank that takes this long is asked what it waits for
_LOOK_S = 0.02  # a thread that waits for another one to compile looks around this often
_CLOSE_S = 0.5  # how long closing waits for the ranks' answers


class _Lane:
    """Tags, and this rank's executor with them: what one step of a signature needs for itself."""

    __slots__ = ("executor", "message", "interrupted")

    def __init__(self, executor: Executor | None, message: RunGraph) -> None:
        self.executor = executor
        self.message = message
        self.interrupted = False  # in the middle of a step: what it sent isn't known, so its tags are not used again


class _Signature:
    """A compiled step: the plan, this rank's program, the ranks that take part."""

    def __init__(self, number: int, plan: Plan, program: Program, executor: Executor, ranks: Sequence[int]) -> None:
        self.number = number
        self.plan = plan
        self.program = program
        self.executor = executor
        self.ranks = tuple(ranks)  # the other ones
        self.num_tags = max(1, len(program.transfers))
        self.feed_slots = tuple(program.feeds.items())
        feeds = frozenset(plan.feeds)
        self.fed_fetches = tuple(fetch in feeds for fetch in plan.fetches)
        self.received = program.received()
        self.lanes: list[_Lane] = []  # those that no step uses
        self.all_tags: list[int] = []
        self.long_steps = 0  # in a row, as the ranks that they ran on said


class MasterSession:
    """A ``Runner``: a session on a server.

    Parameters
    ----------
    master : of this process
    graph : the session's graph, which may grow
    rules : placement; ``rules.master`` is the target's task
    inventory : the devices that the session may use
    isolate : share no state with other sessions
    log_placement : print where operations are placed
    target : the rank that is asked whether the session may be opened; None - nobody: a session of this process alone
    """

    def __init__(
        self,
        master: Master,
        graph: Graph,
        rules: PlacementRules,
        inventory: Inventory,
        *,
        isolate: bool = False,
        log_placement: bool = False,
        target: int | None = None,
    ) -> None:
        self.num_signatures = 0
        self.where = caller_line()
        self._master = master
        self._plane = master.plane
        self._graph = graph
        self._rules = rules
        self._inventory = inventory
        self._isolate = isolate
        self._log_placement = log_placement
        self._target = target
        self.number = next(master.numbers)
        self._name = f"{next(master.ordinals)}" + (f"-of-rank-{master.rank}" if target is not None else "")
        self._state = SessionState(ResourceManager() if isolate else master.local.resources, master.local.devices)
        self._signatures: dict[tuple[Leaves, frozenset[Tensor]], _Signature] = {}
        self._sent: dict[int, set[Operation]] = {}  # operations that ranks have
        self._ended: dict[int, Exception] = {}  # ranks whose servers were stopped
        self._constant_tags: list[int] = []
        self._places = Places()
        self._compiling = threading.Lock()
        self._closing = threading.Lock()
        self._running: set[Step] = set()
        self._blocked: set[Pending] = set()  # what this rank's parts of steps wait for
        self._closed = False
        if target is not None:
            master.sessions[self.number] = self

    # ---- running

    def run(self, leaves: Leaves, feeds: dict[Tensor, Any], deadline: Deadline | None) -> list[Any]:
        """One step; see ``Runner.run``."""
        if self._closed:
            raise closed_error()
        try:
            signature = self._signatures.get((leaves, frozenset(feeds))) or self._find(leaves, feeds.keys(), deadline)
            arrays = {slot: feed_array(tensor, feeds[tensor]) for tensor, slot in signature.feed_slots}
            if signature.ranks:
                return self._run_with_others(signature, arrays, deadline)
            try:
                block = self._block if deadline is None else partial(self._block, deadline=deadline)
                values = signature.executor.run(arrays, block=block)
            except StepFailed as failed:
                assert failed.failure is not None
                raise failed.failure.error from failed.__cause__
            return as_results(values, signature.fed_fetches)
        except Abandoned as abandoned:
            raise abandoned.error.with_traceback(None) from None

    def _run_with_others(self, signature: _Signature, arrays: dict[int, Any], deadline: Deadline | None) -> list[Any]:
        master, plane = self._master, self._plane
        if plane.lost or self._ended:
            self._check_ranks(signature.ranks)
        try:
            lane = signature.lanes.pop()
        except IndexError:
            lane = self._new_lane(signature)
        step = Step(master, self._graph, signature.ranks)
        master.steps[step.number] = step
        self._running.add(step)
        message = lane.message
        message.step = step.number
        payload = message.SerializeToString()
        values: list[Any] | None = None
        try:
            if self._closed:  # meanwhile; `close` may not have seen this step
                step.outstanding.clear()  # nobody was told of it
                raise closed_while_running()
            self._start(signature, lane, step, payload)
            if lane.executor is not None:
                values = self._run_part(lane.executor, arrays, step, deadline)
            if step.outstanding:
                self._await(step, deadline)
            signature.long_steps = signature.long_steps + 1 if step.long else 0
            if step.dead and step.error is None:
                raise errors.AbortedError("the step ended, but no rank told why.", hint="this is an error of mpirt; please report it.")
        except errors.OpError as error:
            step.fail(error)
        except Exception as error:
            step.fail(error)
            raise
        except BaseException as error:  # an interrupt, which may have come between any two lines: nobody uses the lane again
            step.fail(errors.CancelledError(f"the client was interrupted: {error!r}"))
            signature.all_tags.remove(lane.message.tag)
            lane.interrupted = True
            raise
        finally:
            if step.error is not None:
                self._let_end(step)
            self._release(signature, lane, step)
        if step.error is not None:
            if isinstance(step.error, errors.UnavailableError):
                self._look_for_reason(signature.ranks)
            raise step.error
        if values is None:
            return [None] * len(signature.fed_fetches)
        return as_results(values, signature.fed_fetches, signature.received)

    def _look_for_reason(self, ranks: Collection[int]) -> None:
        """Raise the loss of a rank, which an MPI with fault tolerance has seen first, but with less to say."""

        def known() -> bool:
            return any(rank in self._plane.lost or rank in self._ended for rank in ranks)

        with contextlib.suppress(errors.DeadlineExceededError, Abandoned):
            self._plane.progress.wait(known, lambda: "news of a lost rank", _SHORT_GRACE_S, self._master.watch)
        self._check_ranks(ranks)

    def _start(self, signature: _Signature, lane: _Lane, step: Step, payload: bytes) -> None:
        """Tell the ranks to run. The end of a short step that has no part here is awaited at once, in turns with other threads."""
        send = self._plane.transport.send_control
        if lane.executor is not None or signature.long_steps > _LONG_STEPS:
            for rank in signature.ranks:
                send(rank, payload, Kind.RUN_GRAPH)
            return
        turn = self._master.turn
        turn.take()
        over = False
        try:
            for rank in signature.ranks:
                send(rank, payload, Kind.RUN_GRAPH)
            over = self._plane.progress.spin(step.over, SHORT_S)
        finally:
            turn.give(over)

    def _run_part(self, executor: Executor, arrays: dict[int, Any], step: Step, deadline: Deadline | None) -> list[Any] | None:
        """What this rank does of the step."""
        try:
            return executor.run(arrays, block=partial(self._block, deadline=deadline, step=step))
        except StepFailed as failed:
            if failed.failure is not None:
                error = failed.failure.error
                if isinstance(error, errors.OpError) and not error.origin and error is not step.error:
                    error.origin = self._plane.origin(failed.failure.device)
                step.fail(error)
            return None

    def _block(self, pending: Pending, deadline: Deadline | None = None, step: Step | None = None) -> None:
        """Wait for what this rank's part of a step is blocked on."""
        pending.on_ready = self._plane.progress.ring

        def stop() -> bool:
            return pending.ready() or self._closed or (step is not None and step.error is not None)

        try:
            self._blocked.add(pending)
            self._master.wait(stop, pending.describe, deadline)
        except errors.DeadlineExceededError:
            if pending.cancel():
                raise
            return
        finally:
            self._blocked.discard(pending)
        if not pending.ready() and pending.cancel():
            raise step.error if step is not None and step.error is not None else closed_while_running()

    def _await(self, step: Step, deadline: Deadline | None) -> None:
        """Wait for the other ranks to end their parts."""
        pause_s = _ASK_AFTER_S if deadline is None else min(_ASK_AFTER_S, deadline.remaining_s / 2)
        ask_at = time.perf_counter() + pause_s

        def watch() -> None:
            nonlocal ask_at
            self._master.watch()
            if time.perf_counter() > ask_at:
                ask_at += pause_s
                for rank in sorted(step.outstanding):
                    self._plane.send(rank, Kind.STEP_STATUS, StepStatus(step=step.number))

        self._master.wait(step.over, step.describe, deadline, watch)

    def _let_end(self, step: Step) -> None:
        """After a failure: give the other ranks some time to end their parts, so that the next step finds all at rest."""
        if self._closed:
            return  # there is no next one
        own = isinstance(step.error, errors.DeadlineExceededError)
        try:
            self._plane.progress.wait(step.ended, step.describe, _SHORT_GRACE_S if own else _GRACE_S, self._master.watch)
        except (errors.DeadlineExceededError, Abandoned):
            pass  # its lane is used again only once they have

    def _release(self, signature: _Signature, lane: _Lane, step: Step) -> None:
        """The lane is free once all parts have ended and no message is under way."""
        self._running.discard(step)
        if step.outstanding or (lane.executor is not None and not lane.executor.idle()):

            def at_rest() -> bool:
                return not step.outstanding and (lane.executor is None or lane.executor.idle())

            self._plane.progress.when(at_rest, partial(self._free, signature, lane, step))
        else:
            self._free(signature, lane, step)

    def _free(self, signature: _Signature, lane: _Lane, step: Step) -> None:
        self._master.steps.pop(step.number, None)
        if not lane.interrupted:
            signature.lanes.append(lane)

    # ---- compiling

    def _find(self, leaves: Leaves, fed: Collection[Tensor], deadline: Deadline | None) -> _Signature:
        """The compiled signature; compiled and sent to the ranks that it needs the first time."""
        key = (leaves, frozenset(fed))
        with self._alone(deadline):
            if self._target is not None and self.num_signatures == 0:
                self._open([self._target], deadline)
            if key not in self._signatures:
                self._signatures[key] = self._compile(leaves, fed, deadline)
            return self._signatures[key]

    @contextlib.contextmanager
    def _alone(self, deadline: Deadline | None) -> Iterator[None]:
        """One thread at a time compiles; one that waits for its turn keeps its deadline, and learns of `close`."""
        while not self._compiling.acquire(timeout=_LOOK_S):
            if deadline is not None and deadline.remaining_s < _LOOK_S:
                raise deadline.exceeded("another thread to prepare a step of this session")
        try:
            if self._closed:
                raise closed_while_running()
            yield
        finally:
            self._compiling.release()

    @collecting_later()
    def _compile(self, leaves: Leaves, fed: Collection[Tensor], deadline: Deadline | None) -> _Signature:
        master = self._master
        rank, size = master.rank, master.size
        plan = make_plan(self._graph, leaves, fed, self._inventory, self._rules, self._places.pinned, CLIENT)
        program = link(plan, self._rank_of, rank, size, rank)
        touched = sorted({self._rank_of(node.device.task) for node in plan.nodes} - {rank})
        programs = {r: link(plan, self._rank_of, r, size, rank) for r in touched}
        programs = {r: p for r, p in programs.items() if p.instructions}
        self._check_ranks(programs)
        self._open(programs, deadline)
        number = next(master.numbers)
        for other, theirs in programs.items():
            self._register(other, number, theirs)
        glance = self._plane.progress.glance if size > 1 and self._target is not None else None  # who is alone is asked nothing
        executor = Executor(program, self._state, master.plane.transport, glance=glance)
        signature = _Signature(number, plan, program, executor, list(programs))
        for each in (program, *programs.values()):
            dump_program(each, self._name, self.num_signatures, master.plane.transport.memory)
        if self._log_placement:
            print_placement(plan.placement, self._places.known)
        self.num_signatures += 1
        self._places.add(plan.placement)
        return signature

    def _rank_of(self, task: Task) -> int:
        return self._master.rank if task == CLIENT.task else self._master.rank_of(task)

    def _check_ranks(self, ranks: Collection[int]) -> None:
        for rank in ranks:
            error = self._plane.lost.get(rank) or self._ended.get(rank)
            if error is not None:
                raise error

    def end_on(self, rank: int, error: Exception) -> None:
        """The server of ``rank`` was stopped: this session can't use it any more, also if there is a new one."""
        self._ended[rank] = error
        self._sent.pop(rank, None)
        for step in list(self._running):
            if rank in step.outstanding:
                step.fail(error)

    def _open(self, ranks: Collection[int], deadline: Deadline | None) -> None:
        """Open the session on ranks where it isn't yet."""
        master = self._master
        if master.rank in ranks and not master.serving():
            raise errors.FailedPreconditionError(
                f"no server runs on {self._plane.describe_rank(master.rank)}, which hosts the session's target {self._rules.master}.",
                hint="make a tf.train.Server before the session, or leave the target out.",
            )
        new = [r for r in sorted(ranks) if r not in self._sent and r != master.rank]
        if new:
            request = next(master.numbers)
            message = CreateSession(request=request, session=self.number, isolate=self._isolate)
            what = "to open the session (is a tf.train.Server running there?)"
            try:
                master.ask(request, new, Kind.CREATE_SESSION, message, what, deadline, lambda: self._closed)
            except BaseException:  # the next step begins anew; those that opened it, or will, forget it
                _send_close(self._plane, self.number, new)
                raise
            for rank in new:
                self._sent[rank] = set()

    def _register(self, rank: int, number: int, program: Program) -> None:
        """Send a rank its program, and what it hasn't got yet of the operations."""
        known = self._sent[rank]
        operations = [op for op in operations_of(program) if op not in known]
        if operations:
            message, large = extension(self.number, operations, known)
            transport = self._plane.transport
            for constant, op in zip(message.constants, large, strict=True):
                constant.tag = self._master.tags.take(1)
                self._constant_tags.append(constant.tag)
                transport.keep([transport.isend(op.attrs["value"], rank, constant.tag)])
            self._plane.send(rank, Kind.EXTEND_SESSION, message)
            known.update(operations)
        self._plane.send(rank, Kind.REGISTER_GRAPH, RegisterGraph(session=self.number, graph=number, program=program_def(program)))

    def _new_lane(self, signature: _Signature) -> _Lane:
        tag = self._master.tags.take(signature.num_tags)
        signature.all_tags.append(tag)
        program = signature.program
        needed = bool(program.instructions or program.constants or program.feeds)
        executor = signature.executor.another(tag) if needed else None
        return _Lane(executor, RunGraph(graph=signature.number, tag=tag))

    # ---- looking

    def placement(self) -> dict[Operation, DeviceName]:
        """Device of every operation of the graph; see ``Runner.placement``."""
        return self._places.of(self._graph, self._inventory, self._rules)

    def traffic(self, leaves: Leaves, feed_keys: Collection[Tensor]) -> dict[str, int]:
        """Messages and bytes of one step, over all ranks; see ``Runner.traffic``."""
        signature = self._signatures.get((leaves, frozenset(feed_keys)))
        if signature is None:
            raise not_run_error()
        return traffic_of(signature.program, self._plane.transport.memory)

    # ---- the end

    def close(self) -> None:
        """Cancel what runs and free the session everywhere; waits half a second at most. Closing again does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        for step in list(self._running):
            step.fail(closed_while_running())
        self._plane.progress.ring()
        with self._compiling:  # whoever compiles has heard of it
            pass
        ranks = [rank for rank in self._sent if rank not in self._plane.lost]
        request = next(self._master.numbers)
        message = CloseSession(request=request, session=self.number)
        try:
            self._master.ask(request, ranks, Kind.CLOSE_SESSION, message, "to close the session", Deadline.after(_CLOSE_S))
            self._plane.progress.wait(lambda: not (self._running or self._blocked), lambda: "the session's steps to end", _CLOSE_S)
        except (errors.OpError, Abandoned):
            pass  # its tags are not used again
        else:
            if not self._ended:
                self._give_tags_back()
        self._signatures.clear()
        self._state.close()
        self._master.sessions.pop(self.number, None)

    def _give_tags_back(self) -> None:
        for tag in self._constant_tags:
            self._master.tags.give_back(tag, 1)
        for signature in self._signatures.values():
            for tag in signature.all_tags:
                self._master.tags.give_back(tag, signature.num_tags)

    def __del__(self) -> None:
        if not self._closed and self._sent:  # dropped without being closed: its ranks needn't keep it
            # Later: the garbage collector may have stopped this thread where it holds the locks that sending needs.
            self._plane.progress.soon(partial(_send_close, self._plane, self.number, list(self._sent)))


def _send_close(plane: ControlPlane, session: int, ranks: Collection[int]) -> None:
    """Have ranks forget a session, without asking for an answer."""
    for rank in ranks:
        with contextlib.suppress(errors.OpError):  # it is lost
            plane.send(rank, Kind.CLOSE_SESSION, CloseSession(session=session))
