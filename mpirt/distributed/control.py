"""The control plane: small messages between ranks, and the one way in which a rank waits.

Guarantees: whatever a rank waits for, it hears meanwhile when the job is broken (a rank is dead, ranks disagree), tells
rank 0 where it stands once it has waited long, and gives up at its deadline. A message that can't be read goes back to its
sender with an error, and does no other harm.
Owns: kinds of message, errors as messages, ``wait``, which ranks are lost. Does not own: what ranks agree on
(``collective``), what services do (``worker``, ``master``), who polls (``progress``).
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NoReturn

from google.protobuf.message import DecodeError

from mpirt import config, errors
from mpirt.distributed.control_pb2 import (
    CancelStep,
    CloseSession,
    CreateSession,
    ErrorRecord,
    ExtendSession,
    Gone,
    Goodbye,
    Hello,
    Inventory,
    OperationList,
    Proposal,
    RegisterGraph,
    Rejected,
    Reply,
    Reset,
    Rest,
    RunGraph,
    SessionEnded,
    Settlement,
    Status,
    StepDone,
    StepStatus,
    Table,
    Verdict,
)
from mpirt.distributed.progress import Progress
from mpirt.runtime.rendezvous import Abandoned
from mpirt.transport.base import ControlMessage, Transport

_log = logging.getLogger("mpirt")

_STATUS_AFTER_S = 1.0  # a rank that has waited this long tells rank 0 where it stands, then each time the wait doubles
_SHORT_S = 1e-3  # a wait that is shorter looks up no setting
_LOOK_S = 0.01
_ENDING_S = 5.0  # a launcher takes less to end the ranks of an aborted job


class Kind(IntEnum):
    """Kinds of control message; each has its own message class."""

    HELLO = 1
    INVENTORY = 2
    PROPOSAL = 3
    VERDICT = 4
    OPERATIONS = 5
    SETTLEMENT = 6
    OUTCOME = 7
    STATUS = 8
    GOODBYE = 9
    LEAVE = 10
    BROKEN = 11
    TABLE = 12
    SETTLING = 13
    ENDING = 14
    QUESTION = 15
    ANSWER = 16
    CREATE_SESSION = 17
    EXTEND_SESSION = 18
    REGISTER_GRAPH = 19
    RUN_GRAPH = 20
    STEP_DONE = 21
    CANCEL_STEP = 22
    RESET = 23
    CLOSE_SESSION = 24
    REPLY = 25
    STEP_STATUS = 26
    STEP_WAITS = 27
    REJECTED = 28
    GONE = 29
    REST = 30
    REST_OVER = 31
    SESSION_ENDED = 32


_MESSAGE: dict[Kind, Any] = {
    Kind.HELLO: Hello,
    Kind.INVENTORY: Inventory,
    Kind.PROPOSAL: Proposal,
    Kind.VERDICT: Verdict,
    Kind.OPERATIONS: OperationList,
    Kind.SETTLEMENT: Settlement,
    Kind.SETTLING: Settlement,
    Kind.OUTCOME: Settlement,
    Kind.STATUS: Status,
    Kind.QUESTION: Status,
    Kind.ANSWER: Status,
    Kind.GOODBYE: Goodbye,
    Kind.LEAVE: Goodbye,
    Kind.ENDING: Goodbye,
    Kind.BROKEN: ErrorRecord,
    Kind.TABLE: Table,
    Kind.CREATE_SESSION: CreateSession,
    Kind.EXTEND_SESSION: ExtendSession,
    Kind.REGISTER_GRAPH: RegisterGraph,
    Kind.RUN_GRAPH: RunGraph,
    Kind.STEP_DONE: StepDone,
    Kind.CANCEL_STEP: CancelStep,
    Kind.RESET: Reset,
    Kind.CLOSE_SESSION: CloseSession,
    Kind.REPLY: Reply,
    Kind.STEP_STATUS: StepStatus,
    Kind.STEP_WAITS: StepStatus,
    Kind.REJECTED: Rejected,
    Kind.GONE: Gone,
    Kind.REST: Rest,
    Kind.REST_OVER: Rest,
    Kind.SESSION_ENDED: SessionEnded,
}
_PARSE: dict[int, tuple[Kind, Any]] = {int(kind): (kind, message.FromString) for kind, message in _MESSAGE.items()}

Handler = Callable[[int, Any], None]  # source, message


class ControlPlane:
    """Control messages of one rank.

    Parameters
    ----------
    transport : the ranks
    describe_rank : "rank 2 (host n1, pid 77, /job:worker/task:0)", for errors that name a rank
    """

    def __init__(self, transport: Transport, describe_rank: Callable[[int], str]) -> None:
        self.transport = transport
        self.describe_rank = describe_rank
        self.mail: dict[Kind, deque[tuple[int, Any]]] = {kind: deque() for kind in Kind}
        self.broken: Exception | None = None
        self.lost: dict[int, errors.UnavailableError] = {}  # ranks known to be gone, and how to say it
        self.on_lost: list[Callable[[int, errors.UnavailableError], None]] = []
        self.on_rejected: Callable[[int, Kind, int, Exception], bool] = lambda source, kind, number, error: False
        self.handlers: dict[Kind, Handler] = {Kind.GONE: self._hear_of_loss, Kind.REJECTED: self._hear_of_rejection}
        self.progress = Progress(self.poll)
        self._mail_lock = threading.Lock()
        self.status: Callable[[str], Status | None] = lambda waiting_for: None
        self.on_poll: Callable[[], None] = lambda: None
        self._others = [r for r in range(transport.size) if r != transport.rank]
        self._look_at = 0.0  # time of the next look at the other processes
        self._ending_until = 0.0  # a rank ends the job and has said why: its death is no news

    def origin(self, device: object = None) -> str:
        """Where an error comes from, if it comes from here: this rank, and the device if it is known."""
        here = self.describe_rank(self.transport.rank)
        return here if device is None else f"{here}, {device}"

    def serve(self, handlers: dict[Kind, Handler]) -> None:
        """Have messages of these kinds handled, also those that have come already: another rank may be up before this one."""
        self.handlers.update(handlers)
        for kind, handler in handlers.items():
            for source, message in self.take(kind, lambda s, m: True):
                self._handle(handler, source, kind, message)

    def send(self, dest: int, kind: Kind, message: Any) -> None:
        """Send a message; to oneself it is put into the mail at once."""
        if dest == self.transport.rank:
            with self._mail_lock:
                self.mail[kind].append((dest, message))
        else:
            self.transport.send_control(dest, message.SerializeToString(), int(kind))

    def send_or_handle(self, dest: int, kind: Kind, message: Any) -> None:
        """Send a message that a service handles; one to oneself is handled at once."""
        if dest == self.transport.rank:
            self.handlers[kind](dest, message)
        else:
            self.send(dest, kind, message)

    def send_all(self, kind: Kind, message: Any) -> None:
        """Send a message to all other ranks."""
        for dest in self._others:
            self.send(dest, kind, message)

    def poll(self) -> bool:
        """Handle the next message that has arrived, or put it into the mail; False if there was none."""
        message = self.transport.poll_control()
        if message is None:
            return False
        self.receive(message)
        return True

    def poll_all(self) -> None:
        """Handle all messages that have arrived."""
        while self.poll():
            pass

    def receive(self, message: ControlMessage) -> None:
        """Handle one message or put it into the mail."""
        source = message.source
        try:
            kind, parse = _PARSE[message.kind]
            content = parse(message.payload)
        except (KeyError, DecodeError, UnicodeDecodeError) as error:
            what = f"unknown kind {message.kind}" if isinstance(error, KeyError) else f"malformed {Kind(message.kind).name}"
            self.reject(source, message.kind, errors.InvalidArgumentError(
                f"control message of {len(message.payload)} bytes from {self.describe_rank(source)} refused: {what}.",
                origin=self.origin(),
            ))  # fmt: skip
            return
        handler = self.handlers.get(kind)
        if handler is not None:
            self._handle(handler, source, kind, content)
        elif kind is Kind.BROKEN:
            self.broken = self.broken or to_error(content, None)
        elif kind is Kind.ENDING:
            self._ending_until = time.perf_counter() + _ENDING_S
        else:
            with self._mail_lock:
                self.mail[kind].append((source, content))

    def _handle(self, handler: Handler, source: int, kind: Kind, content: Any) -> None:
        try:
            handler(source, content)
        except Exception as error:  # a service goes on
            if not isinstance(error, errors.OpError):
                _log.exception("[r%d] %s from rank %d failed", self.transport.rank, kind.name, source)
            self.reject(source, kind, error, getattr(content, "step", 0) or getattr(content, "request", 0))

    def reject(self, source: int, kind: int, error: Exception, number: int = 0) -> None:
        """Send a message back to whoever sent it: it can't be read, or nobody here knows what to do about it.

        ``number`` is of the step or request that waits for an answer, if that is known.
        """
        if kind != Kind.REJECTED and source != self.transport.rank:
            with contextlib.suppress(errors.OpError):
                self.send(source, Kind.REJECTED, Rejected(kind=kind, error=to_record(error), number=number))

    def _hear_of_rejection(self, source: int, message: Rejected) -> None:
        error = to_error(message.error, None)
        kind = next((kind for kind in Kind if kind == message.kind), None)
        _log.error("[r%d] rank %d refused a message of kind %s: %s", self.transport.rank, source, kind and kind.name, error)
        if kind is not None and not self.on_rejected(source, kind, message.number, error) and kind not in self.handlers:
            self.break_job(error)  # ranks that agree on their calls all need it

    def _hear_of_loss(self, source: int, message: Gone) -> None:
        if 0 <= message.rank < self.transport.size and message.rank != self.transport.rank:
            self._lose(message.rank)

    def _lose(self, rank: int) -> None:
        """Note that a rank is gone, and tell whoever has to do with it."""
        if rank not in self.lost:
            error = self.lost[rank] = errors.UnavailableError(
                f"{self.describe_rank(rank)} is gone: its process has ended.",
                hint="look for its last output (killed, out of memory, crash), then start the job again.",
            )
            for tell in list(self.on_lost):
                tell(rank, error)

    def look_for_losses(self) -> None:
        """See whether processes of this host are gone; the other hosts' ranks are told. The job isn't broken by it.

        Looks every 10 ms at most, so call it freely in a wait.
        """
        now = time.perf_counter()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        dead = self.transport.check_peers([r for r in self._others if r not in self.lost])
        if dead is not None and time.perf_counter() > self._ending_until:
            self._lose(dead)
            for dest in self._others:
                if dest not in self.lost:
                    with contextlib.suppress(errors.OpError):
                        self.send(dest, Kind.GONE, Gone(rank=dead))

    def take(self, kind: Kind, wanted: Callable[[int, Any], bool]) -> list[tuple[int, Any]]:
        """Take the messages of a kind that ``wanted(source, message)`` accepts out of the mail."""
        if not self.mail[kind]:
            return []
        with self._mail_lock:
            box = self.mail[kind]
            found = [(source, message) for source, message in box if wanted(source, message)]
            if found:
                self.mail[kind] = deque(item for item in box if not wanted(*item))
            return found

    def break_job(self, error: Exception) -> None:
        """Tell all ranks that the job can't go on, and why."""
        if self.broken is None:
            self.broken = error
            record = to_record(error)
            for dest in self._others:
                with contextlib.suppress(errors.OpError):  # a dead rank can't be told
                    self.send(dest, Kind.BROKEN, record)

    def abort(self, code: int) -> NoReturn:
        """End the job with exit status ``code``. This rank has said why; the others, told of it, don't report its death."""
        try:
            self.send_all(Kind.ENDING, Goodbye())
        finally:
            self.transport.abort(code)

    def look(self) -> None:
        """Look at the mail.

        Raises
        ------
        Abandoned
            If the job is broken.
        """
        self.poll_all()
        self.on_poll()
        if self.broken is not None:
            raise Abandoned(self.broken)

    def check(self) -> None:
        """Look at mail and peers.

        Raises
        ------
        Abandoned
            If the job is broken or a rank is dead.
        """
        self.look()
        if self.broken is None and self._others:
            dead = self.transport.check_peers(self._others)
            if dead is not None:
                self.poll_all()  # its last words may be there already
                if self.broken is None and time.perf_counter() > self._ending_until:
                    self.break_job(errors.UnavailableError(  # ranks of other hosts can't see it
                        f"{self.describe_rank(dead)} is gone: its process has ended.",
                        hint="look for its last output (killed, out of memory, crash), then start the job again.",
                    ))  # fmt: skip
        if self.broken is not None:
            raise Abandoned(self.broken)

    def wait(self, ready: Callable[[], bool], what: Callable[[], str], timeout_s: float | None = None) -> None:
        """Wait until ``ready()``; the way in which everything in a job waits.

        Raises
        ------
        Abandoned
            If the job is broken, a rank is dead, or the deadline passed, which breaks the job for all ranks.
        """
        try:
            self.progress.wait(ready, what, timeout_s, self.watch(what))
        except errors.DeadlineExceededError as error:
            error.origin = self.origin()
            self.break_job(error)
            raise Abandoned(self.broken or error) from None

    def watch(self, what: Callable[[], str]) -> Callable[[], None]:
        """What a wait does while it is idle: look at mail and peers, and tell rank 0 if it takes long."""
        clock = _Clock(self, what)

        def on_idle() -> None:
            self.check()
            clock.tick()

        return on_idle


class _Clock:
    """Tells rank 0 where this rank stands, when a wait takes long."""

    def __init__(self, plane: ControlPlane, what: Callable[[], str]) -> None:
        self._plane = plane
        self._what = what
        self._start = time.perf_counter()
        self._next_s = 0.0  # not looked up yet: most waits are short

    def tick(self) -> None:
        elapsed_s = time.perf_counter() - self._start
        if not self._next_s and elapsed_s > _SHORT_S:
            self._next_s = min(_STATUS_AFTER_S, config.get("MPIRT_STALL_S") or _STATUS_AFTER_S)
        if self._next_s and elapsed_s >= self._next_s:
            self._next_s = 2 * elapsed_s
            status = self._plane.status(self._what())
            if status is not None:
                self._plane.send(0, Kind.STATUS, status)


def to_record(error: Exception, position: int = 0, traceback: str = "") -> ErrorRecord:
    """An error as a message."""
    op = getattr(error, "op", None)
    return ErrorRecord(
        kind=type(error).__name__,
        message=error.message if isinstance(error, errors.OpError) else str(error),
        hint=getattr(error, "hint", ""),
        operation=getattr(op, "qualified_name", op.name) if op is not None else "",
        origin=getattr(error, "origin", ""),
        where=getattr(error, "where", ""),
        traceback=traceback,
        position=position,
    )


_FIELD = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.OpError)}
_BUILTIN = {name: getattr(builtins, name) for name in ("ValueError", "TypeError", "RuntimeError", "KeyError")}


def to_error(record: ErrorRecord, graph: Any) -> Exception:
    """The error of a message: the same class, text and origin; its operation is looked up in ``graph``."""
    if record.kind in _BUILTIN:
        text = record.message + (f"\n  failed on {record.origin}." if record.origin else "")
        error: Exception = _BUILTIN[record.kind](text)
        return error
    kind = _FIELD.get(record.kind, errors.UnknownError)
    op = None
    if graph is not None and record.operation:
        try:
            op = graph.get_operation_by_name(record.operation)
        except KeyError:
            op = None
    result: Exception = kind(record.message, op=op, hint=record.hint, where=record.where, origin=record.origin)
    if record.traceback:
        result.add_note(f"Traceback of {record.origin or 'the other rank'}:\n{record.traceback}")
    return result
