"""Control messages over MPI: small, of any kind, from any rank, at any time.

A message of up to 4 KiB comes into a receive that is always posted, so that to look for one costs a test of a request, a
third of a probe, and to take it out no further call. A larger one is announced by such a message and travels by itself.
Guarantees: nothing blocks; the messages of one rank to another arrive in order, large ones too.

Owns: the receive and what is under way in either direction. Does not own: locks (`mpi` has one thread at a time poll).
Background: MPI-4.0 sections 3.5 (order), 3.9 (persistent requests).
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from typing import Any, NamedTuple

from mpirt.transport.base import ControlMessage

_SMALL_NBYTES = 4096
_ANNOUNCEMENT = struct.Struct("=qqq")  # kind and size of a large message, and its tag


class _Coming(NamedTuple):
    """A message that is here, or of which the announcement is."""

    source: int
    kind: int
    payload: bytes | bytearray
    request: Any | None


class ControlChannel:
    """The control messages of one rank.

    Parameters
    ----------
    mpi : mpi4py's module ``MPI``
    small, large : communicators of all ranks, for nothing else
    max_tag : largest tag of the communicators; kinds of messages are smaller
    """

    def __init__(self, mpi: Any, small: Any, large: Any, max_tag: int) -> None:
        self._byte = mpi.BYTE
        self._large = large
        self._announce = max_tag
        self._tags = itertools.cycle(range(max_tag))
        self._buffer = memoryview(bytearray(_SMALL_NBYTES))
        self._status = mpi.Status()
        self._receive = small.Recv_init([self._buffer, mpi.BYTE], mpi.ANY_SOURCE, mpi.ANY_TAG)
        self._test = self._receive.Test
        self._start = self._receive.Start
        self._isend = small.Isend
        self._coming: deque[_Coming] = deque()
        self._start()

    def send(self, dest: int, payload: bytes, kind: int) -> list[Any]:
        """Begin to send; returns the requests that are not complete yet, whose memory they keep."""
        if len(payload) <= _SMALL_NBYTES:
            request = self._isend([payload, self._byte], dest, kind)
            return [] if request.Test() else [request]  # a small message has left by now
        tag = next(self._tags)
        announcement = self._isend([_ANNOUNCEMENT.pack(kind, len(payload), tag), self._byte], dest, self._announce)
        return [announcement, self._large.Isend([payload, self._byte], dest, tag)]

    def poll(self) -> ControlMessage | None:
        """The next message that has arrived, or None."""
        status = self._status
        if not self._test(status):
            return self._arrived() if self._coming else None
        source, kind = status.source, status.tag
        payload = bytes(self._buffer[: status.Get_count(self._byte)])
        self._start()
        if source < 0:  # the receive had ended with an error, that of a process which is gone
            return None
        if kind == self._announce:
            kind, nbytes, tag = _ANNOUNCEMENT.unpack(payload)
            memory = bytearray(nbytes)
            self._coming.append(_Coming(source, kind, memory, self._large.Irecv([memory, self._byte], source, tag)))
        elif self._coming:
            self._coming.append(_Coming(source, kind, payload, None))
        else:
            return ControlMessage(source, kind, payload)
        return self._arrived()

    def _arrived(self) -> ControlMessage | None:
        """The first message that is here, unless one of the same source is ahead of it."""
        waiting: set[int] = set()
        for i, (source, kind, payload, request) in enumerate(self._coming):
            if source not in waiting and (request is None or request.Test()):
                del self._coming[i]
                return ControlMessage(source, kind, bytes(payload))
            waiting.add(source)
        return None

    def close(self) -> None:
        """Take the posted receive back. All ranks have said that they send nothing more."""
        self._receive.Cancel()
        self._receive.Wait()
        self._receive.Free()
