"""The floor under a server's speed: request, increment and reply between two busy ranks, in bare mpi4py.

One rank calls `serve` in a thread of its own; it looks for messages every 20 ms until a client wakes it, and is busy from then
until the client lets it rest. The other rank holds a `Client`. Many threads may use one client: whichever finds nobody at it
sends and polls for all, the others sleep. That was the fastest of a dozen ways over both MPIs: a thread that waits for the
interpreter's lock slows down the one that has it, and calls from several threads slow down Open MPI.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

ADD, READ, WAKE, REST, CPU, QUIT, REPLY, DATA = range(1, 9)
_REST_S = 0.02
_NAP_S = 300e-6
_PAIR = struct.Struct("<qq")


def serve(comm: MPI.Intracomm, client: int, nbytes: int) -> None:
    """Answer a client's requests until it says QUIT: ADD to a counter, READ ``nbytes`` of an array, CPU time of this process."""
    counter = np.zeros((), np.int64)
    array = np.full(nbytes // 4, 1.5, np.float32)
    status, awake = MPI.Status(), False
    improbe, isend = comm.Improbe, comm.Isend
    while True:
        message = improbe(client, MPI.ANY_TAG, status)
        if message is None:
            if not awake:
                time.sleep(_REST_S)
            continue
        kind = status.tag
        request = bytearray(status.Get_count(MPI.BYTE))
        message.Recv([request, MPI.BYTE])
        number, amount = _PAIR.unpack(request)
        if kind == READ:
            comm.Send([array, MPI.BYTE], client, DATA)
            continue
        if kind == ADD:
            counter += amount
        elif kind in (WAKE, REST):
            awake = kind == WAKE
        answer = time.process_time_ns() - time.thread_time_ns() if kind == CPU else int(counter)
        reply = isend([_PAIR.pack(number, answer), MPI.BYTE], client, REPLY)
        while not reply.Test():
            pass
        if kind == QUIT:
            return


class Client:
    """The other side of `serve`."""

    def __init__(self, comm: MPI.Intracomm, server: int) -> None:
        self._comm = comm
        self._server = server
        self._improbe = comm.Improbe
        self._status = MPI.Status()
        self._leading = threading.Lock()
        self._requests: deque[tuple[int, bytes]] = deque()
        self._replies: dict[int, int] = {}

    def ask(self, kind: int, amount: int = 0, number: int = 0) -> int:
        """Send a request and wait for its reply. Threads that ask at the same time must give different numbers."""
        self._requests.append((kind, _PAIR.pack(number, amount)))
        replies, leading = self._replies, self._leading
        while True:
            if leading.acquire(False):
                try:
                    while number not in replies:
                        self._send()
                        self._poll()
                    self._send()
                finally:
                    leading.release()
            if number in replies:
                return replies.pop(number)
            time.sleep(_NAP_S)

    def _send(self) -> None:
        while self._requests:
            kind, payload = self._requests.popleft()
            request = self._comm.Isend([payload, MPI.BYTE], self._server, kind)
            while not request.Test():
                pass

    def _poll(self) -> None:
        message = self._improbe(self._server, REPLY, self._status)
        if message is not None:
            payload = bytearray(_PAIR.size)
            receive = message.Irecv([payload, MPI.BYTE])
            while not receive.Test():
                pass
            number, answer = _PAIR.unpack(payload)
            self._replies[number] = answer

    def read(self, into: npt.NDArray[Any]) -> None:
        """Receive the server's array."""
        self._comm.Send([_PAIR.pack(0, 0), MPI.BYTE], self._server, READ)
        self._comm.Recv([into, MPI.BYTE], self._server, DATA)

    def cpu_s(self) -> float:
        """CPU seconds that the server's process has used, without the thread that answers here."""
        return self.ask(CPU) * 1e-9
