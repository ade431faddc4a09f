"""Tensors in flight between ranks: both ends of each transfer of a program.

A sender never blocks for its receiver, and a receive is posted before the step needs it. Guarantees:

- the value that arrives is the value that was sent, in a buffer of the receiver's own, which never changes while
  anybody holds it;
- a sender that has nothing to send because something failed sends an empty message, a *dead tensor*: so every message
  of a plan is always sent, a failed step leaves nothing behind in MPI, and whoever waits learns of the failure;
- at most one tensor of a transfer is under way: the next step's send waits for the last one's (credit of one);
- a value under way arrives also if the sender's session is closed meanwhile;
- a wait that is given up leaves both ends as they were: `drain` (or the next `take`) goes on where it stopped.

A tensor of static shape travels alone. One whose shape is only known at run time, and every string tensor, travels behind
a small header, in the same message if it is small. Small tensors of static shape, and the ends of operations, have ends of
another kind (``packets``), unless they are received into a part of another array.
Does not own: matching and order (transport), which transfers there are (``compiler.program``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mpirt import dtypes, errors
from mpirt.compiler.exchange import KEPT_NBYTES
from mpirt.compiler.program import END, FETCH, Transfer
from mpirt.dtypes import DType
from mpirt.graph.op_def import Blocked
from mpirt.graph.shapes import text
from mpirt.transport.base import Request, Transport

HEADER_BYTES = 1024  # header and, if it fits, the tensor behind it
_MAX_NDIM = 64
_LOOKS = range(150)  # about 30 us; a wait under the control plane takes 4-8 us from look to look at first, and then yields the core
_YIELDS = range(500)  # about 0.3 ms where nobody else wants the core; sleeping would cost 0.1 ms at least


Place = Callable[[], np.ndarray[Any, Any]]
"""Gives the memory, a part of a larger array, into which the message of the next step goes."""


class Wait(Protocol):
    """How a step waits: until ``ready()``, under a name, with the job's deadline and ways out."""

    def __call__(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """Return once ``ready()`` is true."""


class DeadTensor(Exception):  # noqa: N818  (it is news, not an error of this rank)
    """What was waited for will not come, because something before it failed on another rank."""


class Abandoned(Exception):  # noqa: N818  (carries the error that the user gets)
    """A wait was given up because the job can't go on as it is; ``error`` says why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def references(arrays: list[np.ndarray[Any, Any]], index: int) -> int:
    """How many hold an array of a list; `SOLE_HOLDER` if only the list does."""
    return sys.getrefcount(arrays[index])


SOLE_HOLDER = references([np.empty(0)], 0)


class Incoming:
    """The receiving end of a transfer. While a step is blocked on it, it is what the step waits for (``op_def.Pending``)."""

    on_ready: Callable[[], None] | None = None  # never called: MPI tells nobody, so it is polled

    def __init__(
        self,
        transport: Transport,
        transfer: Transfer,
        tag: int,
        wait: Wait | None,
        place: Place | None = None,
    ) -> None:
        self._transport = transport
        self._transfer = transfer
        self._tag = tag
        self._wait = wait
        self._form = _Form(transfer)
        self._place = place if self._form.kind == "fixed" else None  # where it goes, if not into a buffer of its own
        self._buffer: np.ndarray[Any, Any] | None = None
        self._request: Request | None = None
        self._rest: tuple[Request, np.ndarray[Any, Any]] | None = None  # the tensor, where it comes behind its header
        # Large buffers are used again: the pages of a new one cost more than the message.
        nbytes = transfer.nbytes or 0
        self._keeps = self._form.kind == "fixed" and nbytes >= KEPT_NBYTES
        self._kept: list[np.ndarray[Any, Any]] = []

    def post(self) -> None:
        """Post the receive of a step."""
        if self._place is not None:
            self._buffer = self._place()
            self._request = self._transport.irecv(self._buffer, self._transfer.src_rank, self._tag)
            return
        free = self._kept and references(self._kept, 0) == SOLE_HOLDER  # nobody has kept last step's array, or a view
        self._buffer = self._kept[0] if free else self._form.buffer()
        if self._keeps:
            self._kept = [self._buffer]
        self._request = self._transport.irecv(self._buffer, self._transfer.src_rank, self._tag)

    def take(self) -> Any:
        """Wait for the tensor and return it.

        Raises
        ------
        DeadTensor
            If it will not come because something failed before it.
        Blocked
            If it is not there yet and this end has no way to wait.
        """
        if not self.ready():
            if self._wait is None:
                raise Blocked(self)
            if not comes_soon(self.ready, self._transport.crowded):
                self._wait(self.ready, self.describe)
        return self.result()

    def ready(self) -> bool:
        """Whether all of the message is here."""
        request, buffer = self._request, self._buffer
        assert request is not None and buffer is not None, f"{self._transfer}: taken before it was posted"
        if not request.test():
            return False
        if self._form.kind != "variable":
            return True
        if self._rest is None:
            nbytes = request.nbytes()
            content, missing = (0, 0) if nbytes == 0 else self._behind_header(buffer[:nbytes])
            if not missing:
                return True
            rest = np.empty(content, np.uint8)
            self._rest = self._transport.irecv(rest, self._transfer.src_rank, self._tag), rest
        return self._rest[0].test()

    def result(self) -> Any:
        """The tensor, once ready."""
        request, buffer, rest, form = self._request, self._buffer, self._rest, self._form
        assert request is not None and buffer is not None
        self._request = self._buffer = self._rest = None
        nbytes = request.nbytes()
        if nbytes == 0:
            raise DeadTensor
        if form.kind == "fixed":
            return buffer
        if form.kind == "empty":
            return np.empty(form.shape, form.dtype.np_dtype)
        ndim = int(buffer[8:16].view(np.int64)[0])
        end = 16 + 8 * ndim
        shape = tuple(buffer[16:end].view(np.int64).tolist())
        return _decode(buffer[end:nbytes] if rest is None else rest[1], shape, form.dtype)

    def cancel(self) -> bool:
        """True: the step goes on without it. The message that the plan promises still comes, alive or dead: see `drained`."""
        return True

    def _behind_header(self, message: np.ndarray[Any, Any]) -> tuple[int, int]:
        """Bytes of a tensor that travels with a header, and how many of them are still to come."""
        nbytes, ndim = message[:16].view(np.int64).tolist()
        return nbytes, nbytes - (message.size - 16 - 8 * ndim)

    def drained(self) -> bool:
        """Whether nothing is to come; takes in what nobody took."""
        if self._request is not None:
            if not self.ready():
                return False
            self._request = self._buffer = self._rest = None
        return True

    def drain(self) -> None:
        """Let a receive that nobody took run to its end."""
        if not self.drained():
            assert self._wait is not None
            self._wait(self.drained, self.describe)

    def describe(self) -> str:
        """What is waited for."""
        return described(self._transfer)


class Outgoing:
    """The sending end of a transfer."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> None:
        self._transport = transport
        self._requests: list[Request] = []
        self._transfer = transfer
        self._tag = tag
        self._wait = wait
        self._form = _Form(transfer)

    def __del__(self) -> None:
        # The session was closed, or its program dropped, while the last step's value is still being received.
        self._transport.keep(self._requests)

    def send(self, value: Any) -> None:
        """Start to send the value of this step."""
        if self._requests:
            self._finish_last()
        form = self._form
        if form.kind in ("fixed", "variable"):
            array = np.asarray(value)
            if self._transfer.reason == FETCH and not array.flags.writeable:
                # The user's own memory (a feed or a view of one): nothing that this rank waits for says that it has been sent.
                array = array.copy()
        if form.kind == "fixed":
            if array.dtype != form.dtype.np_dtype or array.shape != form.shape:
                raise broken_promise(self._transfer, array)
            self._send_fixed(array)
        elif form.kind == "variable":
            self._send_variable(array)
        else:
            self._start(_EMPTY)

    def send_dead(self) -> None:
        """Tell the receiver that nothing will come in this step. Waits for nothing, so that a failure can't be held up."""
        self._start(_NOTHING)

    def pending(self) -> bool:
        """Whether a message is still under way."""
        self._requests = [r for r in self._requests if not r.test()]
        return bool(self._requests)

    def _send_fixed(self, array: np.ndarray[Any, Any]) -> None:
        self._start(np.ascontiguousarray(array))

    def _send_variable(self, array: np.ndarray[Any, Any]) -> None:
        content = _encode(array, self._form.dtype)
        header = np.array([content.size, array.ndim, *array.shape], np.int64).view(np.uint8)
        if header.size + content.size <= HEADER_BYTES:
            self._start(np.concatenate([header, content]))
        else:
            self._start(header)
            self._requests.append(self._transport.isend(content, self._transfer.dst_rank, self._tag))

    def _start(self, buffer: np.ndarray[Any, Any]) -> None:
        t = self._transfer
        self._requests.append(self._transport.isend(buffer, t.dst_rank, self._tag, self._form.message_nbytes))

    def _finish_last(self) -> None:
        if self.pending():
            assert self._wait is not None, f"{self._transfer}: sent again before the last step's value has left"
            self._wait(lambda: not self.pending(), self._describe)

    def _describe(self) -> str:
        t = self._transfer
        return f"rank {t.dst_rank} to receive {t.name!r} of the step before"


def comes_soon(ready: Callable[[], bool], crowded: bool) -> bool:
    """Whether something comes in the time that it takes to begin a wait: most messages of small operations do.

    With more ranks than cores (``Transport.crowded``) the one that is waited for may need this core: it is left to others at once.
    """
    if not crowded:
        return any(ready() for _ in _LOOKS)
    for _ in _YIELDS:
        if ready():
            return True
        os.sched_yield()
    return ready()


def described(transfer: Transfer) -> str:
    """What a rank that waits for ``transfer`` waits for."""
    if transfer.reason == END:  # the operation may have run on another rank
        return f"the end of operation {transfer.name.lstrip('^')!r} from rank {transfer.src_rank} (for {END})"
    what = "the end of operation" if transfer.dtype is None else "tensor"
    return f"{what} {transfer.name.lstrip('^')!r} from {transfer.src} on rank {transfer.src_rank} (for {transfer.reason})"


def broken_promise(transfer: Transfer, array: np.ndarray[Any, Any]) -> errors.InternalError:
    """The error for a value that is not what the plan says."""
    assert transfer.dtype is not None
    return errors.InternalError(
        f"{transfer.name!r} has shape {array.shape} and type {array.dtype}, but its static shape is"
        f" {text(transfer.shape)} and its type {transfer.dtype.name}.",
        op=transfer.op,
        hint="a kernel broke the promise of its shape function; please report it.",
    )


_EMPTY = np.ones(1, np.uint8)  # an empty tensor's message, since one without bytes is a dead tensor
_NOTHING = np.empty(0, np.uint8)


class _Form:
    """How a transfer travels: in a buffer of fixed size, as an empty array, or behind a header."""

    __slots__ = ("kind", "shape", "dtype", "message_nbytes")

    def __init__(self, transfer: Transfer) -> None:
        nbytes = transfer.nbytes
        self.shape: tuple[int, ...] = ()
        assert transfer.dtype is not None, f"{transfer} is no tensor"
        self.dtype: DType = transfer.dtype
        if nbytes is None:
            self.kind, self.message_nbytes = "variable", HEADER_BYTES
            return
        assert transfer.shape is not None
        self.shape = transfer.shape
        self.kind, self.message_nbytes = ("empty", 1) if nbytes == 0 else ("fixed", nbytes)

    def buffer(self) -> np.ndarray[Any, Any]:
        """A new receive buffer."""
        if self.kind == "fixed":
            return np.empty(self.shape, self.dtype.np_dtype)
        return np.empty(self.message_nbytes, np.uint8)


def _encode(array: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    """The bytes of an array; of a string array the lengths, then the strings."""
    if array.ndim > _MAX_NDIM:
        raise errors.InvalidArgumentError(f"a tensor of {array.ndim} dimensions can't cross ranks; at most {_MAX_NDIM}.")
    if dtype is not dtypes.string:
        return np.ascontiguousarray(array, dtype.np_dtype).reshape(-1).view(np.uint8)
    items = [bytes(v) for v in array.reshape(-1).tolist()]
    lengths = np.array([len(v) for v in items], np.int64)
    return np.concatenate([lengths.view(np.uint8), np.frombuffer(b"".join(items), np.uint8)])


def _decode(content: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: DType) -> np.ndarray[Any, Any]:
    if dtype is not dtypes.string:
        return content.copy().view(dtype.np_dtype).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    lengths = content[: 8 * count].copy().view(np.int64)
    raw, out, start = content[8 * count :].tobytes(), np.empty(count, object), 0
    for i, length in enumerate(lengths.tolist()):
        out[i] = raw[start : start + length]
        start += length
    return out.reshape(shape)
