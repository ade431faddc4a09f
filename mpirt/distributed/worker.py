"""The worker service of a rank: runs partitions of graphs on behalf of any master.

A master opens its session here, sends operations and programs once, and starts each step with one small message, which is
answered by one when the step has ended on this rank. Tensors go between the ranks directly. Guarantees:

- a step that must wait (for a tensor, for an element of a queue) is suspended, not blocking anybody: whoever leads the
  progress engine carries it on;
- a short program runs in the thread that received the message; a long one, and one that calls Python functions, in a
  thread of its own, so that this rank goes on answering;
- a failed or cancelled step still sends all its messages, dead, so nothing is left behind; its executor is used again only
  once all has come;
- whatever a message says, the service lives on.

Does not own: compiling (``master``), what messages look like (``graph_messages``), who calls (``progress``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial

from mpirt import errors
from mpirt.cluster.task import Task
from mpirt.compiler.placer import DeviceName, device_name
from mpirt.compiler.program import Program
from mpirt.distributed.control import ControlPlane, Kind, to_record
from mpirt.distributed.control_pb2 import (
    CancelStep,
    CloseSession,
    CreateSession,
    ErrorRecord,
    ExtendSession,
    RegisterGraph,
    Reply,
    Reset,
    RunGraph,
    SessionEnded,
    StepDone,
    StepStatus,
)
from mpirt.distributed.graph_messages import NodeTable, read_program
from mpirt.distributed.tags import TagSpace
from mpirt.distributed.threads import Threads
from mpirt.distributed.turn import SHORT_S
from mpirt.graph.op_def import Pending
from mpirt.runtime.device import Device
from mpirt.runtime.executor import Executor, Failure, SessionState, StepFailed, blocking, op_error
from mpirt.runtime.resources import ResourceManager
from mpirt.transport.base import Request

_SHORT_S = 1e-3  # a program that took less time runs in whatever thread received the message: handing it to another one takes as long


class Worker:
    """The worker service of one rank.

    Parameters
    ----------
    plane : control messages
    devices : this rank's, by (task, local name)
    resources : state of this rank's tasks, which all sessions share
    """

    def __init__(self, plane: ControlPlane, devices: Mapping[tuple[Task, str], Device], resources: ResourceManager) -> None:
        self.plane = plane
        self.rank = plane.transport.rank
        self.devices = devices
        self.resources = resources
        self.threads = Threads(f"mpirt worker of rank {self.rank}")
        self.serving: set[Task] = set()  # tasks whose servers run
        self.closed = False  # no server will be started any more
        self.watch: Callable[[], None] = lambda: None  # what whoever waits here looks at meanwhile
        self._sessions: dict[tuple[int, int], _Session] = {}  # by rank of the master and its number
        self._programs: dict[tuple[int, int], _Program] = {}
        self._steps: dict[tuple[int, int], _Step] = {}
        self._early: list[tuple[int, CreateSession]] = []  # came before there was a server
        self._well_done = StepDone()  # the answer to most steps; to make one anew costs as much as a small kernel
        plane.serve({
            Kind.CREATE_SESSION: self._create_session,
            Kind.EXTEND_SESSION: self._extend_session,
            Kind.REGISTER_GRAPH: self._register_graph,
            Kind.RUN_GRAPH: self._run_graph,
            Kind.CANCEL_STEP: self._cancel_step,
            Kind.STEP_STATUS: self._step_status,
            Kind.RESET: self._reset,
            Kind.CLOSE_SESSION: self._close_session,
        })  # fmt: skip
        plane.on_lost.append(self._lose)

    @property
    def num_sessions(self) -> int:
        """Sessions of other ranks' masters that use this rank."""
        return len(self._sessions)

    def admit(self) -> None:
        """Answer those who came before there was a server, or hear that there will be none. Under the leadership."""
        early, self._early = self._early, []
        for source, message in early:
            self._create_session(source, message)

    # ---- sessions

    def _create_session(self, source: int, message: CreateSession) -> None:
        if not self.serving and not self.closed:
            self._early.append((source, message))
            return
        reply = Reply(request=message.request)
        key = (source, message.session)
        here = self.plane.describe_rank(self.rank)
        if not self.serving:
            reply.error.CopyFrom(to_record(errors.UnavailableError(
                f"no server runs on {here}.",
                hint="start a tf.train.Server there and keep it until the clients are done: end the script with server.join().",
            )))  # fmt: skip
        elif key in self._sessions:
            reply.error.CopyFrom(to_record(errors.AlreadyExistsError(f"session {message.session} is open already on {here}.")))
        else:
            resources = ResourceManager() if message.isolate else self.resources
            self._sessions[key] = _Session(SessionState(resources, self.devices))
        self.plane.send(source, Kind.REPLY, reply)

    def _session(self, source: int, number: int) -> _Session:
        session = self._sessions.get((source, number))
        if session is None:
            raise errors.AbortedError(f"session {number} of rank {source} is not open on {self.plane.describe_rank(self.rank)}.")
        return session

    def _extend_session(self, source: int, message: ExtendSession) -> None:
        session = self._session(source, message.session)
        try:
            for array, tag in session.table.extend(message):
                session.loading.append(self.plane.transport.irecv(array, source, self._tag(source, tag, 1)))
        except Exception as error:
            session.error = session.error or op_error(error, None)  # told with the answer to the first step

    def _register_graph(self, source: int, message: RegisterGraph) -> None:
        key = (source, message.graph)
        if key in self._programs:
            raise errors.AlreadyExistsError(f"graph {message.graph} of rank {source} is registered already.")
        program = self._programs[key] = _Program(self._session(source, message.session))
        try:
            if program.session.error is not None:
                raise program.session.error
            devices = [device_name(task, local) for task, local in self.devices]
            transport = self.plane.transport
            found = read_program(message.program, program.session.table, self.rank, transport.size, devices)
            program.bind(Executor(found, program.session.state, transport, 0), found)
        except Exception as error:
            program.error = op_error(error, None)

    def _reset(self, source: int, message: Reset) -> None:
        self.resources.clear(message.containers)
        self.plane.send(source, Kind.REPLY, Reply(request=message.request))

    def _close_session(self, source: int, message: CloseSession) -> None:
        self._early = [(rank, early) for rank, early in self._early if (rank, early.session) != (source, message.session)]
        session = self._sessions.pop((source, message.session), None)
        answer = partial(self.plane.send, source, Kind.REPLY, Reply(request=message.request))
        if session is not None:
            self._end(session, answer)
        else:
            answer()

    def _end(self, session: _Session, then: Callable[[], None] = lambda: None) -> None:
        """Cancel what runs of a session and forget its programs. ``then`` is called once no message comes into its memory any more."""
        for step in [step for step in self._steps.values() if step.program.session is session]:
            step.cancel(errors.CancelledError("the session was closed."))
        for key in [key for key, program in self._programs.items() if program.session is session]:
            del self._programs[key]
        session.state.close()
        if session.idle():
            then()
        else:
            self.plane.progress.when(session.idle, then)

    def _lose(self, rank: int, error: errors.UnavailableError) -> None:
        self._early = [item for item in self._early if item[0] != rank]
        for key in [key for key in self._sessions if key[0] == rank]:
            self._end(self._sessions.pop(key))

    def stop(self, error: errors.OpError) -> None:
        """Cancel all steps and forget all sessions; their masters are told, since nobody may answer here any more. Under the leadership."""
        for step in list(self._steps.values()):
            step.cancel(error)
        record = to_record(error)
        for source, number in list(self._sessions):
            self._end(self._sessions.pop((source, number)))
            with contextlib.suppress(errors.OpError):  # it is gone
                self.plane.send(source, Kind.SESSION_ENDED, SessionEnded(session=number, error=record))

    # ---- steps

    def _run_graph(self, source: int, message: RunGraph) -> None:
        if (source, message.step) in self._steps:
            raise errors.AlreadyExistsError(f"step {message.step} of rank {source} runs already.")
        program = self._programs.get((source, message.graph))
        if program is None or program.error is not None:
            error = program.error if program is not None else errors.AbortedError(
                f"graph {message.graph} of rank {source} is not registered on {self.plane.describe_rank(self.rank)}.",
                hint="its session was closed, or the server was started anew: open a new session.",
            )  # fmt: skip
            assert error is not None
            self.done(source, message.step, self.record(error))
            return
        try:
            executor = program.executors.get(message.tag) or program.executor(self._tag(source, message.tag, program.num_tags))
            if executor in program.session.running:
                raise errors.AlreadyExistsError(f"a step with the tag {message.tag} runs already.")
        except errors.OpError as error:
            self.done(source, message.step, self.record(error))
            return
        session = program.session
        if program.has_messages or program.threaded or session.loading:
            step = self._steps[source, message.step] = _Step(self, source, message.step, program, executor)
            if step.may_begin():
                step.begin()
            else:
                self.plane.progress.when(step.may_begin, step.begin)
            return
        # Short and all by itself: nothing to note, unless it turns out to be blocked.
        start = time.perf_counter()
        executor.start({})
        try:
            ended = executor.advance()
        except StepFailed as failed:
            assert failed.failure is not None
            self.done(source, message.step, self.record(failed.failure.error, failed.failure.device, failed.failure.traceback))
            return
        except BaseException as error:
            self.done(source, message.step, self.record(_interrupted(error)))
            raise
        if ended:
            seconds = time.perf_counter() - start
            self._answer_well(source, message.step, seconds > SHORT_S)
            program.took(seconds)
        else:
            step = self._steps[source, message.step] = _Step(self, source, message.step, program, executor)
            step.suspend()

    def _tag(self, master: int, tag: int, count: int) -> int:
        """``tag``, if it and those behind it are the master's to give."""
        transport = self.plane.transport
        if not TagSpace.of_master(transport.max_tag, master, transport.size).holds(tag, count):
            raise errors.InvalidArgumentError(f"{count} tag(s) from {tag} on: they don't belong to the master on rank {master}.")
        return tag

    def _cancel_step(self, source: int, message: CancelStep) -> None:
        step = self._steps.get((source, message.step))
        if step is not None:  # else it has ended meanwhile
            step.cancel(errors.CancelledError("the step was cancelled."))

    def _step_status(self, source: int, message: StepStatus) -> None:
        step = self._steps.get((source, message.step))
        what = "nothing: it doesn't run here" if step is None else step.describe()
        self.plane.send(source, Kind.STEP_WAITS, StepStatus(step=message.step, waiting_for=what))

    def record(self, error: Exception, device: DeviceName | None = None, traceback: str = "") -> ErrorRecord:
        """An error of a step as a message, saying where it comes from."""
        record = to_record(error, traceback=traceback)
        record.origin = record.origin or self.plane.origin(device)
        return record

    def done(self, source: int, step: int, error: ErrorRecord | None = None, dead: bool = False, long: bool = False) -> None:
        """Answer for a step."""
        self._steps.pop((source, step), None)
        if error is None and not dead:
            self._answer_well(source, step, long)
            return
        with contextlib.suppress(errors.OpError):  # the master is gone; whoever finds out tells
            self.plane.send(source, Kind.STEP_DONE, StepDone(step=step, error=error, dead=dead and error is None))

    def _answer_well(self, source: int, step: int, long: bool) -> None:
        message = self._well_done
        message.step = step
        message.long = long
        try:
            self.plane.send(source, Kind.STEP_DONE, message)
        except errors.OpError:
            pass  # as above


class _Session:
    """What a master's session has on this rank."""

    def __init__(self, state: SessionState) -> None:
        self.state = state
        self.table = NodeTable()
        self.error: errors.OpError | None = None  # of an extension
        self.loading: list[Request] = []  # large constants that are coming
        self.running: set[Executor] = set()
        self.draining: set[Executor] = set()  # messages of their last step are still under way
        self.num_steps = 0

    def loaded(self) -> bool:
        self.loading = [request for request in self.loading if not request.test()]
        return not self.loading

    def idle(self) -> bool:
        return not self.num_steps and not self.draining and self.loaded()


class _Program:
    """A registered graph."""

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.error: errors.OpError | None = None
        self.num_tags = 0
        self.threaded = True  # until it has shown that it is short
        self.has_messages = False
        self._calls_python = False
        self._first: Executor | None = None
        self.executors: dict[int, Executor] = {}  # by tag

    def bind(self, executor: Executor, program: Program) -> None:
        """Keep the executor of the program."""
        self._first = executor
        self.num_tags = max((t.index for t in program.transfers), default=0) + 1
        self.has_messages = bool(program.transfers)
        self._calls_python = executor.has_bodies or executor.calls_python

    def executor(self, tag: int) -> Executor:
        """A new executor, for the steps with this tag."""
        assert self._first is not None
        executor = self.executors[tag] = self._first.another(tag)
        return executor

    def took(self, seconds: float) -> None:
        """Learn from the time that a step computed here."""
        self.threaded = self._calls_python or seconds > _SHORT_S


class _Step:
    """A step of a master that runs, or waits to run, on this rank. All but `_run_in_thread` is called under the leadership."""

    def __init__(self, worker: Worker, source: int, number: int, program: _Program, executor: Executor) -> None:
        self.program = program
        self._worker = worker
        self._progress = worker.plane.progress
        self._source = source
        self._number = number
        self._executor = executor
        self._pending: Pending | None = None  # what it waits for, suspended
        self._in_thread = False
        self._began = False
        self._answered = False
        self._cancelled: errors.OpError | None = None
        self._seconds = 0.0
        self._since = time.perf_counter()
        program.session.num_steps += 1

    def may_begin(self) -> bool:
        """Whether the last step's messages and the session's constants are here."""
        session = self.program.session
        return session.loaded() and self._executor not in session.draining

    def begin(self) -> None:
        """Start to run."""
        self._began = True
        self.program.session.running.add(self._executor)
        try:
            self._executor.start({})
        except Exception as error:  # not all receives are posted: what comes for them would be taken for the next step's
            self.program.error = self._cancelled = op_error(error, None)
        if self._cancelled is not None:
            self._executor.stop()
            self._end(self._cancelled)
        elif self.program.threaded:
            self._in_thread = True
            self._worker.threads.run(self._run_in_thread)
        else:
            self._carry_on()

    def _carry_on(self) -> None:
        """Run until it ends or is suspended."""
        self._pending = None
        if self._advance():
            self.suspend()

    def suspend(self) -> None:
        """It is blocked: stop, or go on when that is over."""
        self._began = True
        self.program.session.running.add(self._executor)
        pending = self._executor.blocked
        assert pending is not None
        if self._cancelled is not None and pending.cancel():
            self._executor.stop()
            self._end(self._cancelled)
            return
        pending.on_ready = self._progress.ring
        self._pending = pending
        self._progress.when(pending.ready, self._carry_on)  # looked at in this turn or the next

    def _advance(self) -> bool:
        """Run on; True if it is blocked then, False if it has ended, also answered."""
        start = time.thread_time()  # not what other threads and processes made it wait
        try:
            ended = self._executor.advance()
        except StepFailed as failed:
            self._end(failed.failure)
            return False
        except BaseException as error:
            self._end(_interrupted(error))
            raise
        finally:
            self._seconds += time.thread_time() - start
        if ended:
            self._end(None, dead=False)
        return not ended

    def _run_in_thread(self) -> None:
        with blocking(self._block):
            while True:
                start = time.thread_time()  # not what other threads made it wait
                failure: Failure | errors.OpError | None = None
                dead = False
                try:
                    ended = self._executor.advance()
                except StepFailed as failed:
                    ended, failure, dead = True, failed.failure, failed.failure is None
                except BaseException as error:  # an interrupt in this thread: the step can't be carried on
                    self._executor.stop()
                    ended, failure = True, op_error(error, None) if isinstance(error, Exception) else errors.AbortedError(repr(error))
                self._seconds += time.thread_time() - start
                if not ended:
                    assert self._executor.blocked is not None
                    try:
                        self._block(self._executor.blocked)
                    except errors.OpError as error:
                        self._executor.stop()
                        ended, failure = True, error
                if ended:
                    break
        self._end_outside(failure, dead)

    def _end_outside(self, failure: Failure | errors.OpError | None, dead: bool) -> None:
        """Hand the end over to the leader."""
        self._progress.soon(partial(self._end, failure, dead))
        self._progress.try_turn()

    def _block(self, pending: Pending) -> None:
        """Wait in this step's own thread."""
        pending.on_ready = self._progress.ring
        self._pending = pending

        def over() -> bool:
            return pending.ready() or self._cancelled is not None

        self._progress.wait(over, self.describe, 0, self._worker.watch)
        self._pending = None
        if self._cancelled is not None and not pending.ready() and pending.cancel():
            raise self._cancelled

    def cancel(self, error: errors.OpError) -> None:
        """Stop as soon as possible: now if it waits, else where it would wait next."""
        if self._cancelled is not None:
            return
        self._cancelled = error
        if not self._began:
            self._answer(error)  # it still begins, to send what it must
        elif self._in_thread:
            self._progress.ring()
        elif self._pending is not None and self._pending.cancel():
            self._progress.forget(self._carry_on)
            self._pending = None
            self._executor.stop()
            self._end(error)

    def describe(self) -> str:
        """What it waits for."""
        pending = self._pending
        if pending is not None:
            return pending.describe()
        return "its own operations to compute" if self._began else "the messages of the step before"

    def _end(self, failure: Failure | errors.OpError | None, dead: bool = True) -> None:
        """Answer, and free the executor once its messages have come and gone."""
        session = self.program.session
        session.num_steps -= 1
        session.running.discard(self._executor)
        self._answer(failure, dead)  # first: somebody waits for it
        if self.program.has_messages and not self._executor.idle():
            session.draining.add(self._executor)
            self._progress.when(self._executor.idle, partial(session.draining.discard, self._executor))
        self.program.took(self._seconds)

    def _answer(self, failure: Failure | errors.OpError | None, dead: bool = False) -> None:
        if self._answered:
            return
        self._answered = True
        record: ErrorRecord | None = None
        if isinstance(failure, Failure):
            record = self._worker.record(failure.error, failure.device, failure.traceback)
        elif failure is not None:
            record = self._worker.record(failure)
        self._worker.done(self._source, self._number, record, dead, time.perf_counter() - self._since > SHORT_S)


def _interrupted(error: BaseException) -> errors.OpError:
    """What the master of a step hears when the thread that ran it, a client's with a step of its own, was interrupted."""
    return errors.AbortedError(f"the thread in which this part of the step ran was interrupted: {error!r}", hint="run the step again.")
