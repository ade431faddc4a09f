"""Tensors in flight through memory that both ranks share: the two ends of such a transfer, and who gets which ends.

Like the transfers of ``rendezvous``, of which these ends are two; what differs: the tensor lies in a window (``transport.window``),
and the message tells which. Guarantees:

- the array that the receiver takes lies in the window and never changes while anybody holds it or a view of it; when nobody
  does, the sender may fill the window again. Whoever keeps values for long (variables, the user) has copies;
- a value that is produced in a window (`WindowOutgoing.buffer`) is sent without a copy; the window is filled again only when the
  sender's own rank holds nothing of it any more either;
- a sender has two windows. If the receiver has yet to take what is in one of them, the sender waits for that, by name, as for a
  message that has yet to leave; if the receiver holds both, or there is no memory, the tensor travels behind the message, as any
  other: so a receiver may keep arrays as long as it likes, and nothing waits for that;
- a dead tensor is an empty message here too;
- a tensor on its way is taken over also if the sender's session is closed meanwhile.

The message is always of `WORD_NBYTES`: number of the window and its descriptor, or PLAIN.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Final

import numpy as np

from mpirt import errors
from mpirt.compiler.program import WORD_NBYTES, Transfer, path_of
from mpirt.runtime.rendezvous import DeadTensor, Incoming, Outgoing, Place, Wait
from mpirt.transport.base import Transport
from mpirt.transport.window import FREE, FULL, SOLE_HOLDER, Window, WindowView

PLAIN: Final = 0  # in place of a window's number: the tensor comes in a message of its own
_MOST_WINDOWS = 2

_log = logging.getLogger("mpirt")


def receiving_end(transport: Transport, transfer: Transfer, tag: int, wait: Wait | None, place: Place | None = None) -> Incoming:
    """The receiving end of ``transfer``, by the path that the plan has for it; ``place`` gives what one in place is received into."""
    if path_of(transfer, transport.memory).window:
        return WindowIncoming(transport, transfer, tag, wait)
    return Incoming(transport, transfer, tag, wait, place)


def sending_end(transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> Outgoing:
    """The sending end of ``transfer``, by the path that the plan has for it."""
    kind = WindowOutgoing if path_of(transfer, transport.memory).window else Outgoing
    return kind(transport, transfer, tag, wait)


class WindowIncoming(Incoming):
    """The receiving end of a transfer through windows."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> None:
        super().__init__(transport, transfer, tag, wait)
        self._word = np.empty(WORD_NBYTES // 8, np.int64)
        self._news = transport.prepare_receive(self._word, transfer.src_rank, tag)
        self._views: dict[int, WindowView] = {}

    def __del__(self) -> None:
        if hasattr(self, "_news"):
            self._transport.release([self._news])

    def post(self) -> None:
        """Post the receive of a step."""
        self._news.start()
        self._request = self._news

    def ready(self) -> bool:
        """Whether all is here."""
        request = self._request
        assert request is not None, f"{self._transfer}: taken before it was posted"
        if not request.test():
            return False
        if self._rest is None:
            if not request.nbytes() or self._word[0] != PLAIN:
                return True
            buffer = self._form.buffer()
            self._rest = self._transport.irecv(buffer, self._transfer.src_rank, self._tag), buffer
        return self._rest[0].test()

    def result(self) -> Any:
        """The tensor, once ready."""
        request, rest = self._request, self._rest
        assert request is not None
        self._request = self._rest = None
        if not request.nbytes():
            raise DeadTensor
        if rest is not None:
            return rest[1]
        counters = self._transport.counters
        counters.windows_received += 1
        counters.window_bytes_received += self._form.message_nbytes
        return self._view().take()

    def drained(self) -> bool:
        """Whether nothing is to come; takes in what nobody took."""
        if self._request is not None:
            if not self.ready():
                return False
            told = self._rest is None and self._request.nbytes() > 0
            self._request = self._rest = None
            if told:
                with contextlib.suppress(errors.ResourceExhaustedError):
                    self._view().give_back()
        return True

    def _view(self) -> WindowView:
        serial, descriptor = self._word.tolist()
        view = self._views.get(serial)
        if view is None:
            transfer, form = self._transfer, self._form
            try:
                pid = self._transport.pids[transfer.src_rank]
                view = self._views[serial] = WindowView(pid, descriptor, serial, form.shape, form.dtype.np_dtype)
            except OSError as error:
                raise errors.ResourceExhaustedError(
                    f"the memory that rank {transfer.src_rank} shares for {transfer.name!r} ({form.message_nbytes} bytes) can't be"
                    f" opened on rank {transfer.dst_rank}: {error}",
                    hint="allow more open files and address space (ulimit -n, -v), or switch shared memory off: MPIRT_SHM=0.",
                ) from None
        return view


class WindowOutgoing(Outgoing):
    """The sending end of a transfer through windows."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> None:
        super().__init__(transport, transfer, tag, wait)
        self._windows: list[Window] = []
        self._word = np.empty(WORD_NBYTES // 8, np.int64)
        self._news = transport.prepare_send(self._word, transfer.dst_rank, tag)
        self._most = _MOST_WINDOWS
        self._lent = -1  # position of the window that this step's value is produced into

    def __del__(self) -> None:
        if hasattr(self, "_news"):
            self._transport.release([self._news])
            self._transport.keep([*self._requests, *[_Taken(w) for w in self._windows if w.state == FULL]])

    def pending(self) -> bool:
        """Whether a message is still under way, or a tensor waits in a window to be taken."""
        return not self._left() or any([window.state == FULL for window in self._windows])

    def buffer(self) -> np.ndarray[Any, Any]:
        """An array that this step's value may be produced into: in a window if one is free, so that it needn't be copied there.

        It may be used otherwise, or not at all. Never waits.
        """
        self._lent = self._first_free()
        if self._lent < 0:
            self._lent = self._new_window()
        return self._form.buffer() if self._lent < 0 else self._windows[self._lent].array

    def _send_fixed(self, array: np.ndarray[Any, Any]) -> None:
        if not self._news.test():
            self._await(self._left)
        position, self._lent = self._lent, -1
        produced = position >= 0 and array is self._windows[position].array
        if not produced:
            position = self._free()
        if position < 0:
            self._word[0] = PLAIN
            self._news.start()
            t = self._transfer
            content = np.ascontiguousarray(array)
            self._requests.append(self._transport.isend(content, t.dst_rank, self._tag, self._form.message_nbytes))
            return
        window = self._windows[position]
        if not produced:
            window.array[...] = array
        window.fill()
        counters = self._transport.counters
        counters.windows_sent += 1
        counters.window_bytes_sent += self._form.message_nbytes
        self._word[0], self._word[1] = window.serial, window.descriptor
        self._news.start()

    def _start(self, buffer: np.ndarray[Any, Any]) -> None:
        self._requests.append(self._transport.isend(buffer, self._transfer.dst_rank, self._tag))

    def _left(self) -> bool:
        """Whether all messages have left."""
        return not super().pending() and self._news.test()

    def _finish_last(self) -> None:
        if not self._left():
            self._await(self._left)

    def _first_free(self) -> int:
        """Position of a window that is the sender's, and of which its own rank holds nothing; -1 if there is none."""
        for position, window in enumerate(self._windows):
            if window.state == FREE and window.references() == SOLE_HOLDER:
                return position
        return -1

    def _new_window(self) -> int:
        """Position of a new window, -1 if there may be no more."""
        if len(self._windows) >= self._most:
            return -1
        try:
            window = Window(self._form.shape, self._form.dtype.np_dtype)
        except OSError as error:
            self._most = len(self._windows)
            _log.warning("%s travels in messages, not in shared memory: %s", self._transfer, error)
            return -1
        self._windows.append(window)
        return len(self._windows) - 1

    def _free(self) -> int:
        """Position of a window for the next value; -1 if it must do without."""
        position = self._first_free()
        if position < 0:
            position = self._new_window()
        if position < 0 and any([window.state == FULL for window in self._windows]):
            # The receiver is behind. It takes or drains whatever was sent, so this ends; what it holds it may hold for ever.
            self._await(lambda: self._first_free() >= 0 or all([window.state != FULL for window in self._windows]))
            position = self._first_free()
        return position

    def _await(self, ready: Any) -> None:
        assert self._wait is not None, f"{self._transfer}: sent again before the last step's value was taken"
        self._wait(ready, self._describe)


class _Taken:
    """Holds a window until its tensor was taken (a ``Request`` for ``Transport.keep``)."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def test(self) -> bool:
        return self._window.state != FULL

    def nbytes(self) -> int:
        return self._window.array.nbytes

    def cancel(self) -> bool:
        return False


