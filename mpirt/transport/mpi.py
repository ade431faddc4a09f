"""The transport over MPI, and the only place that imports mpi4py.

Guarantees: importing this module starts nothing; MPI starts with the first `MpiTransport`, unless the user has started it.
Traffic runs on private duplicates of the communicator we are given, so it can't meet the user's own messages. Who started MPI
ends it. Nothing here blocks, except MPI_Init and MPI_Finalize themselves: they end the process after MPIRT_START_TIMEOUT_S
and MPIRT_EXIT_TIMEOUT_S.

Neighbours: `mpi_requests` (messages under way), `mpi_control` (control messages), `peers` (who of this host is gone), `abort_hook`
(what an uncaught exception does to the job).
Background: MPI-4.0 sections 3.7 (nonblocking), 11.6 (threads).
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from mpirt import config
from mpirt.errors import DeadlineExceededError, FailedPreconditionError, InternalError, OpError, UnavailableError
from mpirt.transport import base
from mpirt.transport.base import PENDING, Buffer, ControlMessage, Counters, Prepared, Request, wait_until
from mpirt.transport.mpi_control import ControlChannel
from mpirt.transport.mpi_requests import ChunkedReceive, ChunkedSend, PreparedReceive, PreparedSend, Receive, Send
from mpirt.transport.peers import Identity, PeerWatch
from mpirt.transport.window import Beacon

if TYPE_CHECKING:
    from mpi4py import MPI

# An abort waits this long: launchers drop what ranks printed but they haven't read yet, and the same error mostly fails
# several ranks, each with something to say.
_LAST_WORDS_S = 0.2

_FEW = 4  # requests cost less one by one: MPI's calls for all at once take 0.3 us before they do anything


class MpiTransport:
    """One rank of a communicator, MPI_COMM_WORLD by default. See `base.Transport`.

    Every rank of the communicator must create one, at about the same time.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        Which ranks. It stays the user's.
    expected_size : int, optional
        How many processes the launcher says it started.

    Raises
    ------
    FailedPreconditionError
        If the launcher started several processes but MPI sees one; if MPI was started without MPI_THREAD_MULTIPLE or has
        ended; in a child process of ``multiprocessing``.
    DeadlineExceededError
        If the other ranks don't create theirs within MPIRT_START_TIMEOUT_S.
    """

    def __init__(self, comm: MPI.Intracomm | None = None, *, expected_size: int | None = None) -> None:
        self.mpi, self._started_mpi = _start_mpi(expected_size)
        comm = self.mpi.COMM_WORLD if comm is None else comm
        self.rank = comm.rank
        self.size = comm.size
        vendor, version = self.mpi.get_vendor()
        self.name = f"{vendor} {'.'.join(map(str, version))}"
        self.byte = self.mpi.BYTE
        self._new_status = self.mpi.Status
        self.counters = Counters()

        timeout_s = config.get("MPIRT_START_TIMEOUT_S")
        self._data: MPI.Intracomm
        self._control: MPI.Intracomm
        self._data, data_ready = comm.Idup()
        self._control, control_ready = comm.Idup()
        large, large_ready = comm.Idup()
        what = f"all {self.size} ranks to start their transport (this is rank {self.rank})"
        wait_until(lambda: data_ready.Test() and control_ready.Test() and large_ready.Test(), lambda: what, timeout_s=timeout_s)
        self._communicators = (self._data, self._control, large)
        for private in self._communicators:
            private.Set_errhandler(self.mpi.ERRORS_RETURN)
        if "Open MPI" not in self.name:
            _survive_the_launchers_notice()
        max_tag = self._data.Get_attr(self.mpi.TAG_UB) or 0  # never absent: MPI demands at least 32767
        self.max_tag = max_tag - 1  # the largest one is the control channel's
        self._isend = self._data.Isend
        self._irecv = self._data.Irecv
        self._start_all = self.mpi.Prequest.Startall

        def exchanged(own: Any, records: Any) -> Any:
            """``records`` filled with what every rank gives as its ``own``."""
            exchange = self._control.Iallgather([own, self.byte], [records, self.byte])
            wait_until(exchange.Test, lambda: what, timeout_s=timeout_s)
            return records

        records = exchanged(Identity.of_this_process().to_record(), Identity.empty_records(self.size))
        identities = [Identity.from_record(record) for record in records]
        self.hosts = tuple(identity.host for identity in identities)
        self.pids = tuple(identity.pid for identity in identities)
        self.crowded = self.hosts.count(self.hosts[self.rank]) > (os.cpu_count() or 1)
        beacon = Beacon()
        lit = exchanged(beacon.record, Beacon.empty_records(self.size))
        here = identities[self.rank]
        neighbours = [r for r, other in enumerate(identities) if (other.host, other.boot) == (here.host, here.boot)]
        domain = beacon.domain(self.rank, neighbours, self.pids, lit)
        self.memory = tuple(exchanged(np.array([domain], np.int64), np.empty(self.size, np.int64)).tolist())
        beacon.put_out()
        self._peers = PeerWatch(self.rank, identities)
        self.peer_alive: Callable[[int], bool] = self._peers.alive
        self.check_peers: Callable[[Iterable[int]], int | None] = self._peers.check

        self._control_lock = threading.Lock()  # of the next two
        self._channel = ControlChannel(self.mpi, self._control, large, max_tag)
        self._outgoing: list[MPI.Request] = []
        self._kept: deque[Request] = deque()
        self._released: deque[PreparedSend | PreparedReceive] = deque()
        self._prepared: set[PreparedSend | PreparedReceive] = set()  # those that are not free yet
        self._leaving: MPI.Request | None = None
        self._finalized = False

    def isend(self, buffer: Buffer, dest: int, tag: int, expected_nbytes: int | None = None) -> Request:
        """See `base.Transport`."""
        nbytes = buffer.nbytes
        if nbytes > base.CHUNK_NBYTES or (expected_nbytes is not None and expected_nbytes > base.CHUNK_NBYTES):
            return ChunkedSend(self, buffer, dest, tag, nbytes if expected_nbytes is None else expected_nbytes)
        counters = self.counters
        counters.messages_sent += 1
        counters.bytes_sent += nbytes
        request = Send()
        request.owner = self
        request.buffer = buffer
        request.dest = dest
        request.tag = tag
        try:
            # A list of array and type takes any dtype and shape, also of 0 elements. The array alone takes no float16, and
            # buffer.view(uint8) costs 0.3 us.
            request.mpi = self._isend([buffer, self.byte], dest, tag)
        except self.mpi.Exception as error:
            raise request.translated(error) from None
        return request

    def irecv(self, buffer: Buffer, source: int, tag: int) -> Request:
        """See `base.Transport`."""
        if buffer.nbytes > base.CHUNK_NBYTES:
            return ChunkedReceive(self, buffer, source, tag)
        request = Receive()
        request.owner = self
        request.buffer = buffer
        request.source = source
        request.tag = tag
        request.received = PENDING
        request.status = self._new_status()
        try:
            request.mpi = self._irecv([buffer, self.byte], source, tag)
        except self.mpi.Exception as error:
            raise request.translated(error) from None
        return request

    def prepare_send(self, buffer: Buffer, dest: int, tag: int) -> Prepared:
        """See `base.Transport`."""
        request = PreparedSend()
        request.owner = self
        request.buffer = buffer
        request.dest = dest
        request.tag = tag
        request.counters = self.counters
        request.size = buffer.nbytes
        request.left = True
        try:
            request.mpi = self._data.Send_init([buffer, self.byte], dest, tag)
        except self.mpi.Exception as error:
            raise request.translated(error) from None
        request.mpi_start = request.mpi.Start
        request.mpi_test = request.mpi.Test
        self._prepared.add(request)
        return request

    def prepare_receive(self, buffer: Buffer, source: int, tag: int) -> PreparedReceive:
        """See `base.Transport`."""
        request = PreparedReceive()
        request.owner = self
        request.buffer = buffer
        request.source = source
        request.tag = tag
        request.received = 0
        request.status = self._new_status()
        request.counters = self.counters
        request.byte = self.byte
        try:
            request.mpi = self._data.Recv_init([buffer, self.byte], source, tag)
        except self.mpi.Exception as error:
            raise request.translated(error) from None
        request.mpi_start = request.mpi.Start
        request.mpi_test = request.mpi.Test
        self._prepared.add(request)
        return request

    def start_all(self, receives: Sequence[Prepared]) -> None:
        """See `base.Transport`."""
        if len(receives) <= _FEW:
            for receive in receives:
                receive.start()
            return
        requests = cast("Sequence[PreparedReceive]", receives)
        for request in requests:
            request.received = PENDING
        try:
            self._start_all([request.mpi for request in requests])
        except self.mpi.Exception as error:
            raise requests[0].translated(error) from None

    def test_all(self, sends: Sequence[Prepared]) -> bool:
        """See `base.Transport`."""
        for send in cast("Sequence[PreparedSend]", sends):  # noqa: SIM110 - a generator costs as much as a test
            if not send.left and not send.test():
                return False
        return True

    def release(self, requests: Iterable[Prepared]) -> None:
        """See `base.Transport`."""
        self._released.extend(requests)  # type: ignore[arg-type]  # they are ours

    def keep(self, sends: Iterable[Request]) -> None:
        """See `base.Transport`."""
        self._kept.extend(sends)

    def send_control(self, dest: int, payload: bytes, kind: int = 0) -> None:
        """See `base.Transport`."""
        try:
            under_way = self._channel.send(dest, payload, kind)
        except self.mpi.Exception as error:
            raise self.translated(error, f"control message of {len(payload)} bytes to", dest, kind) from None
        self.counters.control_sent += 1
        if under_way:
            with self._control_lock:
                self._outgoing += under_way

    def poll_control(self) -> ControlMessage | None:
        """See `base.Transport`. None also while another thread is polling."""
        if not self._control_lock.acquire(False):
            return None
        try:
            return self._poll()
        except self.mpi.Exception as error:
            if not self._tells_of_a_failure(error):
                raise
            self._control.Ack_failed(self.size)  # or every probe of any source fails from now on; the ranks see by themselves who is gone
            return None
        except UnavailableError:  # of a message to a process that is gone: nobody waits for it
            return None
        finally:
            self._control_lock.release()

    def _poll(self) -> ControlMessage | None:
        if self._kept:
            for _ in range(len(self._kept)):  # others may append meanwhile
                send = self._kept.popleft()
                if not send.test():
                    self._kept.append(send)
        if self._released:
            for _ in range(len(self._released)):
                prepared = self._released.popleft()
                if prepared.test():
                    self._prepared.discard(prepared)
                    prepared.free()
                else:
                    self._released.append(prepared)
        if self._outgoing:
            self._outgoing = [request for request in self._outgoing if not request.Test()]
        message = self._channel.poll()
        if message is not None:
            self.counters.control_received += 1
        return message

    def all_leaving(self, timeout_s: float) -> bool:
        """See `base.Transport`. Control messages that come meanwhile are dropped."""
        try:
            self._wait_for_all_to_leave(timeout_s)
        except (DeadlineExceededError, UnavailableError):
            return False
        return True

    def abort(self, code: int = 1) -> NoReturn:
        """See `base.Transport`. The status is never 0: a code that the system would cut to 0 becomes 1."""
        code = code & 0xFF or 1
        _say_last_words()
        if not self.mpi.Is_finalized():
            self.mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def exit(self, code: int = 1) -> NoReturn:
        """See `base.Transport`. No MPI_Abort: after the loss of a rank Open MPI's launcher sometimes never ends when ranks call it."""
        _say_last_words()
        os._exit(code)

    def finalize(self) -> None:
        """See `base.Transport`. If the other ranks don't leave in time, or one of them is gone, ends the job with status 1."""
        if self._finalized:
            return
        timeout_s = config.get("MPIRT_EXIT_TIMEOUT_S")
        try:
            self._wait_for_all_to_leave(timeout_s)
        except OpError as error:
            sys.stderr.write(f"[rank {self.rank} of {self.size}, {self.hosts[self.rank]}] can't leave the job: {error}\n")
            self.abort(1)
        self._finalized = True
        self._peers.close()
        for prepared in self._prepared:
            prepared.free()
        self._prepared.clear()
        with _ends_this_process_after(timeout_s):
            self._channel.close()
            if self._started_mpi:
                self.mpi.Finalize()
            else:
                for private in self._communicators:
                    private.Free()

    def translated(self, error: MPI.Exception, what: str, peer: int, tag: int) -> OpError:
        """Our error for MPI's: the peer is gone, or the runtime has broken its own rules."""
        reason = " ".join(error.Get_error_string().split())
        place = f"{self.hosts[peer]}, " if 0 <= peer < self.size else ""
        text = f"{what} rank {peer} ({place}tag {tag}) failed on rank {self.rank} of {self.size}: {reason}."
        if self._tells_of_a_failure(error) or not self.peer_alive(peer):
            return UnavailableError(text, hint=f"see why the process of rank {peer} ended; its own output comes first.")
        return InternalError(text, hint="sender and receiver disagree on the plan; please report this.")

    def _tells_of_a_failure(self, error: MPI.Exception) -> bool:
        """Whether a process is gone: an MPI with ULFM says so, at any call that has to do with it."""
        gone = {self.mpi.ERR_PROC_FAILED, self.mpi.ERR_PROC_FAILED_PENDING, self.mpi.ERR_REVOKED} - {self.mpi.ERR_UNKNOWN}
        return error.Get_error_class() in gone

    def _wait_for_all_to_leave(self, timeout_s: float) -> None:
        if self._finalized:
            return
        leaving = self._leaving = self._leaving or self._control.Ibarrier()

        def all_here() -> bool:
            try:
                return leaving.Test() and not self._outgoing
            except self.mpi.Exception as error:
                raise self.translated(error, "the barrier at the end of the job, over all ranks, also", self.rank, 0) from None

        def look_around() -> None:
            while self.poll_control() is not None:  # lets the others' last messages end
                pass
            gone = self.check_peers(range(self.size))
            if gone is not None and not all_here():
                raise UnavailableError(f"rank {gone} ({self.hosts[gone]}, pid {self.pids[gone]}) is gone without a goodbye.")

        wait_until(
            all_here,
            lambda: f"the other {self.size - 1} ranks to end too",
            timeout_s=timeout_s,
            on_idle=look_around,
        )


def _start_mpi(expected_size: int | None) -> tuple[Any, bool]:
    """mpi4py's module ``MPI``, with MPI running as we need it, and whether it was started here."""
    if multiprocessing.parent_process() is not None:
        raise FailedPreconditionError(
            f"mpirt can't start MPI in process {os.getpid()}, a child of multiprocessing: it would take its parent's rank.",
            hint="use sessions and servers in the process that mpirun started, and guard the script's entry with "
            "if __name__ == '__main__' so that children don't run it again.",
        )
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    library = MPI.Get_library_version().splitlines()[0].rstrip("\0")
    if MPI.Is_finalized():
        raise FailedPreconditionError(
            f"MPI has ended in this process and can't start again ({library}).",
            hint="keep one transport for the whole run, and call MPI.Finalize() after the last use of mpirt.",
        )
    starting = not MPI.Is_initialized()
    if starting:
        with _ends_this_process_after(config.get("MPIRT_START_TIMEOUT_S")):
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    if expected_size is not None and expected_size > 1 == MPI.COMM_WORLD.size:
        if starting:
            MPI.Finalize()
        raise FailedPreconditionError(
            f"the launcher started {expected_size} processes, but for MPI this one is alone (rank 0 of 1): launcher and "
            f"library are of different MPIs. Library: {library} ({MPI.__file__}); started by {_parent()}.",
            hint="use the mpirun that belongs to this library; with srun, name what it speaks: --mpi=pmix for Open MPI 5, "
            "--mpi=pmi2 for MPICH and Intel MPI.",
        )
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        names = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
        raise FailedPreconditionError(
            f"MPI runs with MPI_THREAD_{names[MPI.Query_thread()]}; mpirt needs MPI_THREAD_MULTIPLE ({library}).",
            hint="let mpirt start MPI, or start it with MPI.Init_thread(MPI.THREAD_MULTIPLE) (mpi4py's default); "
            "some libraries must be built for it or told so (Cray: MPICH_MAX_THREAD_SAFETY=multiple).",
        )
    return MPI, starting


def _say_last_words() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or the reader has gone
            stream.flush()
    time.sleep(_LAST_WORDS_S)


def _survive_the_launchers_notice() -> None:
    """Live with SIGUSR1, the notice of a death that MPICH's launcher sends to the other ranks with -disable-auto-cleanup."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)  # not SIG_IGN, which child processes would inherit


@contextlib.contextmanager
def _ends_this_process_after(timeout_s: float) -> Iterator[None]:
    """Bound a call during which no Python code can run: mpi4py keeps the interpreter lock in MPI_Init and MPI_Finalize.

    Past the time, a thread of faulthandler prints where the process hangs, and ends it with status 1. 0 = no bound.
    """
    if timeout_s > 0:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=2)
    try:
        yield
    finally:
        if timeout_s > 0:
            faulthandler.cancel_dump_traceback_later()


def _parent() -> str:
    """Program of the parent process: the launcher or its helper on this host."""
    try:
        return os.readlink(f"/proc/{os.getppid()}/exe")
    except OSError:
        return f"process {os.getppid()}"
