"""The requests of the MPI transport: of one message, or of one in several chunks.

Guarantee: a wrapped request costs about 0.5 us a message, sender and receiver together, over mpi4py's own; in return it
knows its peer when it fails, counts the traffic, and can tell how long a message was.
Owns: what follows after a request was posted. Does not own: posting (`mpi`). No import of mpi4py: its objects come from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mpirt.errors import OpError
from mpirt.transport import base
from mpirt.transport.base import PENDING, Buffer, Counters, Request, as_bytes, chunk_count

if TYPE_CHECKING:
    from mpirt.transport.mpi import MpiTransport

CANCELLED: Final = -2
_ONE_LOOK = range(1)


class Send:
    """A send of one message. Its attributes are set by `mpi.MpiTransport.isend`: an ``__init__`` would cost 0.1 us more."""

    __slots__ = ("owner", "mpi", "buffer", "dest", "tag")
    owner: MpiTransport
    mpi: Any  # mpi4py.MPI.Request
    buffer: Buffer
    dest: int
    tag: int

    def test(self) -> bool:
        """See `base.Request`."""
        try:
            return self.mpi.Test()  # type: ignore[no-any-return]  # again and again True: MPI_REQUEST_NULL is complete
        except self.owner.mpi.Exception as error:
            raise self.translated(error) from None

    def nbytes(self) -> int:
        """See `base.Request`."""
        return self.buffer.nbytes

    def cancel(self) -> bool:
        """See `base.Request`."""
        return False

    def translated(self, error: Any) -> OpError:
        """Our error for MPI's."""
        return self.owner.translated(error, f"send of {self.buffer.nbytes} bytes to", self.dest, self.tag)


class Receive:
    """A receive of one message. Its attributes are set by `mpi.MpiTransport.irecv`."""

    __slots__ = ("owner", "mpi", "status", "buffer", "source", "tag", "received")
    owner: MpiTransport
    mpi: Any  # mpi4py.MPI.Request
    status: Any  # mpi4py.MPI.Status
    buffer: Buffer
    source: int
    tag: int
    received: int  # bytes, or PENDING or CANCELLED

    def test(self) -> bool:
        """See `base.Request`."""
        if self.received >= 0:
            return True
        try:
            if not self.mpi.Test(self.status):
                return False
        except self.owner.mpi.Exception as error:
            raise self.translated(error) from None
        owner = self.owner
        self.received = nbytes = self.status.Get_count(owner.byte)
        counters = owner.counters
        counters.messages_received += 1
        counters.bytes_received += nbytes
        return True

    def nbytes(self) -> int:
        """See `base.Request`."""
        assert self.received >= 0, "nbytes() of a receive that isn't complete"
        return self.received

    def cancel(self) -> bool:
        """See `base.Request`."""
        if self.received == PENDING:
            self.mpi.Cancel()
            if self.mpi.Test(self.status):
                if self.status.Is_cancelled():
                    self.received = CANCELLED
                self.mpi = _Arrived()
        return self.received == CANCELLED

    def translated(self, error: Any) -> OpError:
        """Our error for MPI's."""
        return self.owner.translated(error, f"receive of {self.buffer.nbytes} bytes from", self.source, self.tag)


class _Arrived:
    """In place of MPI's request when a message came before it could be cancelled: the status is filled already."""

    def Test(self, status: Any) -> bool:  # noqa: N802 - MPI's name
        return True


class PreparedSend(Send):
    """A send that is started many times (a persistent request of MPI).

    What can wait comes after the start, while the receiver is at work: counting, and the look whether a small message has left.
    """

    __slots__ = ("counters", "size", "mpi_start", "mpi_test", "left")
    counters: Counters
    size: int  # in bytes
    mpi_start: Callable[[], None]
    mpi_test: Callable[[], bool]
    left: bool  # known to be complete

    def start(self) -> None:
        """See `base.Prepared`."""
        try:
            self.mpi_start()
            self.left = self.mpi_test()
        except self.owner.mpi.Exception as error:
            raise self.translated(error) from None
        counters = self.counters
        counters.messages_sent += 1
        counters.bytes_sent += self.size

    def test(self) -> bool:
        """See `base.Request`."""
        if not self.left:
            try:
                self.left = self.mpi_test()
            except self.owner.mpi.Exception as error:
                raise self.translated(error) from None
        return self.left

    def free(self) -> None:
        """Give MPI's request back."""
        self.mpi.Free()


class PreparedReceive(Receive):
    """A receive that is started many times (a persistent request of MPI)."""

    __slots__ = ("counters", "byte", "mpi_start", "mpi_test")
    counters: Counters
    byte: Any  # MPI's datatype
    mpi_start: Callable[[], None]
    mpi_test: Callable[[Any], bool]

    def start(self) -> None:
        """See `base.Prepared`."""
        self.received = PENDING
        try:
            self.mpi_start()
        except self.owner.mpi.Exception as error:
            raise self.translated(error) from None

    def test(self) -> bool:
        """See `base.Request`."""
        return self.received >= 0 or self.soon(_ONE_LOOK) >= 0

    def soon(self, looks: range) -> int:
        """See `base.PreparedReceive`."""
        if self.received >= 0:
            return self.received
        test, status = self.mpi_test, self.status
        try:
            for _ in looks:
                if test(status):
                    break
            else:
                return PENDING
        except self.owner.mpi.Exception as error:
            raise self.translated(error) from None
        self.received = nbytes = status.Get_count(self.byte)
        counters = self.counters
        counters.messages_received += 1
        counters.bytes_received += nbytes
        return nbytes  # type: ignore[no-any-return]

    def cancel(self) -> bool:
        """See `base.Request`. It stays: who prepares a receive takes in what comes."""
        return False

    def free(self) -> None:
        """Give MPI's request back."""
        self.mpi.Free()


class ChunkedSend:
    """A send in several messages: as many as the receiver, of ``expected_nbytes``, has posted receives. It counts as one."""

    def __init__(self, owner: MpiTransport, buffer: Buffer, dest: int, tag: int, expected_nbytes: int) -> None:
        count = chunk_count(expected_nbytes)
        self._nbytes = buffer.nbytes
        self._parts = [owner.isend(_chunk(buffer, i), dest, tag) for i in range(count)]
        owner.counters.messages_sent -= count - 1

    def test(self) -> bool:
        """See `base.Request`."""
        return all(part.test() for part in self._parts)

    def nbytes(self) -> int:
        """See `base.Request`."""
        return self._nbytes

    def cancel(self) -> bool:
        """See `base.Request`."""
        return False


class ChunkedReceive:
    """A receive in several messages, which MPI matches in the order posted. It counts as one."""

    def __init__(self, owner: MpiTransport, buffer: Buffer, source: int, tag: int) -> None:
        self._counters = owner.counters
        self._post: Callable[[int], Request] = lambda i: owner.irecv(_chunk(buffer, i), source, tag)
        self._parts = [self._post(i) for i in range(chunk_count(buffer.nbytes))]
        self._complete = False

    def test(self) -> bool:
        """See `base.Request`."""
        if not self._complete and all(part.test() for part in self._parts):
            self._complete = True
            self._counters.messages_received -= len(self._parts) - 1
        return self._complete

    def nbytes(self) -> int:
        """See `base.Request`."""
        return sum(part.nbytes() for part in self._parts)

    def cancel(self) -> bool:
        """See `base.Request`."""
        for i in reversed(range(len(self._parts))):
            if not self._parts[i].cancel():
                # The message has begun to come; the rest of it needs its receives again, in order.
                self._parts[i + 1 :] = map(self._post, range(i + 1, len(self._parts)))
                return False
        return True


def _chunk(buffer: Buffer, i: int) -> Buffer:
    return as_bytes(buffer)[i * base.CHUNK_NBYTES : (i + 1) * base.CHUNK_NBYTES]
