"""What the runtime asks of the bytes between ranks, and the one loop in which it waits.

``Transport`` is the interface of `loopback` (ranks are threads of one process) and `mpi` (ranks are MPI processes); the same
tests hold both to it. Guarantees:

- Messages with the same source, destination and tag arrive in the order sent. Nothing blocks: a send or receive gives a
  ``Request`` to test.
- A message may be shorter than the receive posted for it, down to zero bytes; a longer one is an error at the receiver.
- Control messages are a plane of their own: any size, no receive posted, in order between a pair of ranks.

Owns: the interface, the rule for large messages, how to wait. Does not own: what messages mean (runtime, distributed).
Background: MPI-4.0 section 3.5 for order; the back-off was measured against blocking calls (as fast for two ranks on two
cores; with more ranks than cores idle ranks use 1-4 % of a core, where blocking receives use up to 77 %).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mpirt import config
from mpirt.errors import DeadlineExceededError

Buffer: TypeAlias = npt.NDArray[Any]
"""A C-contiguous array, moved as raw bytes."""

CHUNK_NBYTES = 2**30
"""Larger messages travel as several. MPI before version 4 counts bytes in a signed 32-bit integer."""

_log = logging.getLogger("mpirt")


def chunk_count(nbytes: int) -> int:
    """Number of messages that a receive of ``nbytes`` waits for. Zero bytes are one empty message."""
    return max(1, -(-nbytes // CHUNK_NBYTES))


def as_bytes(buffer: Buffer) -> npt.NDArray[np.uint8]:
    """The bytes of ``buffer``, of any dtype and shape, without a copy."""
    return buffer.reshape(-1).view(np.uint8)


class Request(Protocol):
    """A message under way. It keeps its buffer alive. One thread at a time may use it.

    A buffer may not be written (send) or looked at (receive) before ``test`` has given True.
    """

    def test(self) -> bool:
        """Whether it is complete; raises when it failed. Once True, always True."""
        ...

    def nbytes(self) -> int:
        """Bytes that the message had. Only after completion."""
        ...

    def cancel(self) -> bool:
        """Take a receive back; True: no message went into it and none will. False: one came first, test it as before.

        A send can't be taken back: False.
        """
        ...


class Prepared(Request, Protocol):
    """A message that is sent or received again and again, with the same buffer: starting it costs a tenth of making a request.

    It may be started when it is complete; before its first start it is.
    """

    def start(self) -> None:
        """Begin to send or receive it once more."""
        ...


class PreparedReceive(Prepared, Protocol):
    """A receive that is started many times."""

    def soon(self, looks: range) -> int:
        """Bytes of the message once it is complete, `PENDING` if it isn't after as many looks; as many tests in one call."""
        ...


PENDING: Final = -1
"""In place of the number of bytes of a message that isn't here."""


class ControlMessage(NamedTuple):
    """A message of the control plane: who sent it, its kind (a small number of the sender's choice) and content."""

    source: int
    kind: int
    payload: bytes


@dataclass(slots=True)
class Counters:
    """Traffic of one rank since its start; a message counts once however many chunks it travels in.

    Sent: when handed to the transport. Received: when the receiver learns of it. A tensor in a window (`window`) counts with its
    bytes as one there, and the word that tells of it as any other small tensor. So does what is read on boards (`board`). What goes
    through boxes (`boxes`) is counted when its step begins.
    """

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    control_sent: int = 0
    control_received: int = 0
    windows_sent: int = 0
    window_bytes_sent: int = 0
    windows_received: int = 0
    window_bytes_received: int = 0
    boxes_sent: int = 0
    box_bytes_sent: int = 0
    boxes_received: int = 0
    box_bytes_received: int = 0


class Transport(Protocol):
    """Bytes between the ranks of one job. Every method may be called from any thread.

    Attributes
    ----------
    rank, size : this rank, and the number of ranks
    name : what moves the bytes: ``"loopback"``, ``"Open MPI 5.0.11"``
    hosts, pids : host name and process id of each rank
    memory : for each rank a number; those of the same number can open each other's windows (`window`)
    crowded : whether this host has more ranks than cores, so that who waits had better leave its core to others
    max_tag : largest tag of a data message and kind of a control message
    counters : traffic so far
    """

    rank: int
    size: int
    name: str
    hosts: tuple[str, ...]
    pids: tuple[int, ...]
    memory: tuple[int, ...]
    crowded: bool
    max_tag: int
    counters: Counters

    def isend(self, buffer: Buffer, dest: int, tag: int, expected_nbytes: int | None = None) -> Request:
        """Begin to send ``buffer``.

        ``expected_nbytes`` is the size of the posted receive where that may differ from the buffer's size: the sender
        makes as many messages as the receive waits for, the last ones empty if need be.
        """
        ...

    def irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        """Post a receive into ``buffer``."""
        ...

    def prepare_send(self, buffer: Buffer, dest: int, tag: int) -> Prepared:
        """A send of ``buffer``, of at most `CHUNK_NBYTES`, that is started many times."""
        ...

    def prepare_receive(self, buffer: Buffer, source: int, tag: int) -> PreparedReceive:
        """A receive into ``buffer``, of at most `CHUNK_NBYTES`, that is started many times."""
        ...

    def start_all(self, receives: Sequence[Prepared]) -> None:
        """Start prepared receives."""
        ...

    def test_all(self, sends: Sequence[Prepared]) -> bool:
        """Whether all of these sends are complete."""
        ...

    def release(self, requests: Iterable[Prepared]) -> None:
        """Nobody starts these again: free each when it is complete. Calls no MPI, as `keep`."""
        ...

    def keep(self, sends: Iterable[Request]) -> None:
        """Hold sends that nobody will ask about again until they are complete: their buffers are still read.

        Calls no MPI, so that it may be called from anywhere, also by the garbage collector.
        """
        ...

    def send_control(self, dest: int, payload: bytes, kind: int = 0) -> None:
        """Send a control message; never blocks, also to oneself."""
        ...

    def poll_control(self) -> ControlMessage | None:
        """The next control message that has arrived, or None. Also moves control messages being sent."""
        ...

    def peer_alive(self, rank: int) -> bool:
        """False if the process of ``rank`` is known to be gone; True if it runs or nothing is known."""
        ...

    def check_peers(self, ranks: Iterable[int]) -> int | None:
        """A rank of ``ranks`` whose process is gone, or None. Looks at most every 10 ms, so call it freely in a wait."""
        ...

    def all_leaving(self, timeout_s: float) -> bool:
        """Whether every rank has come to its end, i.e. called this or ``finalize``; waits ``timeout_s`` for them."""
        ...

    def abort(self, code: int = 1) -> NoReturn:
        """End all ranks of the job now with exit status ``code``; what was printed is flushed first."""
        ...

    def exit(self, code: int = 1) -> NoReturn:
        """End this process alone, with exit status ``code``: no goodbye is possible since a rank is lost, and the others end too."""
        ...

    def finalize(self) -> None:
        """Leave the job, when all ranks do; waits for them up to MPIRT_EXIT_TIMEOUT_S. Calling it again does nothing."""
        ...


_SPIN_S = 50e-6
_YIELD_S = 150e-6  # ends this long after the wait began, or something happened
IDLE_EVERY_S = 100e-6
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S, _SLEEP_GROWTH = 50e-6, 1e-3, 1.5
_SLEEP_SHARE, _LONG_SLEEP_S = 1 / 100, 5e-3  # a sleep of so much of a wait in vain makes that hardly longer, and costs ever less


def log_stall(report: str) -> None:
    """Tell of a wait that takes long: a warning of the ``mpirt`` logger."""
    _log.warning("%s", report)


class Patience:
    """One wait while it lasts: how to pass the time, when to report, when to give up.

    Parameters
    ----------
    what : says what is waited for ("tensor 'w:0' of step 17 from rank 2"); called only for a report or an error
    timeout_s : deadline in seconds, 0 = none; default is the setting MPIRT_TIMEOUT_S
    stall : is given a report after MPIRT_STALL_S seconds, and again each time the wait has doubled
    yield_s : how long to yield before the first sleep
    """

    __slots__ = (
        "start", "_what", "_timeout_s", "_deadline_s", "_next_report_s", "_stall", "_busy", "_pause_s", "_yield_s",
    )  # fmt: skip

    def __init__(
        self,
        what: Callable[[], str],
        timeout_s: float | None = None,
        stall: Callable[[str], None] = log_stall,
        yield_s: float = _YIELD_S,
    ) -> None:
        self._yield_s = yield_s
        self.start = self._busy = time.perf_counter()
        self._what = what
        self._timeout_s = timeout_s
        self._deadline_s = self._next_report_s = -1.0  # not looked up yet: most waits are short
        self._stall = stall
        self._pause_s = _SHORTEST_SLEEP_S

    def check(self) -> float:
        """Report if it is time to; returns the time, as ``time.perf_counter()``.

        Raises
        ------
        DeadlineExceededError
            When the deadline has passed.
        """
        now = time.perf_counter()
        elapsed_s = now - self.start
        if elapsed_s < _SPIN_S:
            return now
        if self._deadline_s < 0:
            self._deadline_s = config.get("MPIRT_TIMEOUT_S") if self._timeout_s is None else self._timeout_s
            self._next_report_s = config.get("MPIRT_STALL_S")
        if 0 < self._deadline_s <= elapsed_s:
            raise DeadlineExceededError(
                f"waited {elapsed_s:.1f} s for {self._what()}; the deadline was {self._deadline_s:g} s.",
                hint="find out what the other side does meanwhile (its log, its stall reports), "
                + ("or set MPIRT_TIMEOUT_S higher (0 = no deadline)." if self._timeout_s is None else "or allow more time."),
            )
        if 0 < self._next_report_s <= elapsed_s:
            self._next_report_s = 2 * elapsed_s
            self._stall(f"waiting for {self._what()} since {elapsed_s:.1f} s")
        return now

    def pause(self, now: float, sleep: Callable[[float], object] = time.sleep) -> None:
        """Let some time pass: none for 50 us after the start (or `awake`), then a yield, then longer and longer sleeps."""
        idle_s = now - self._busy
        if idle_s < _SPIN_S:
            return
        if idle_s < self._yield_s:
            os.sched_yield()
        else:
            sleep(self._pause_s)
            longest_s = min(max(_LONGEST_SLEEP_S, idle_s * _SLEEP_SHARE), _LONG_SLEEP_S)
            self._pause_s = min(self._pause_s * _SLEEP_GROWTH, longest_s)

    def awake(self) -> None:
        """Something happened: more may follow soon."""
        self._busy = time.perf_counter()
        self._pause_s = _SHORTEST_SLEEP_S


def wait_until(
    ready: Callable[[], bool],
    what: Callable[[], str],
    *,
    timeout_s: float | None = None,
    on_idle: Callable[[], None] | None = None,
    stall: Callable[[str], None] = log_stall,
) -> None:
    """Wait until ``ready()`` is true: test for 50 us, then yield the core, then sleep 50 us to 5 ms between tests.

    Parameters
    ----------
    ready : tested once before anything else, so a wait for what is there already costs next to nothing
    what, timeout_s, stall : see `Patience`
    on_idle : called every 100 us or, once the wait sleeps, after each sleep; it polls control messages and the peers, and
        what it raises ends the wait

    Raises
    ------
    DeadlineExceededError
        When ``ready()`` is still false after ``timeout_s``.

    Notes
    -----
    Python signal handlers run all the while. os.sched_yield, not time.sleep(0): that takes 78 us on Linux (timer slack).
    """
    if ready():
        return
    now = time.perf_counter()
    end = now + _SPIN_S
    while now < end:
        if ready():
            return
        now = time.perf_counter()

    patience = Patience(what, timeout_s, stall)
    patience.start -= _SPIN_S
    next_idle = now
    while True:
        if on_idle is not None and now >= next_idle:
            next_idle = now + IDLE_EVERY_S
            on_idle()
        if ready():
            return
        now = patience.check()
        patience.pause(now)
