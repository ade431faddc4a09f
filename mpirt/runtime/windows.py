"""Tensors in flight through memory that both ranks share: the two ends of such a transfer, and who gets which ends.

Like the transfers of ``rendezvous``, of which these ends are two; what differs: the tensor lies in a window (``transport.window``),
and a word tells which. The word is a small tensor, which goes through a box or in a message as any other (``packets``). Guarantees:

- the array that the receiver takes lies in the window and never changes while anybody holds it or a view of it; when nobody
  does, the sender may fill the window again. Whoever keeps values for long (variables, the user) has copies;
- a value that is produced in a window (`WindowOutgoing.buffer`) is sent without a copy; the window is filled again only when the
  sender's own rank holds nothing of it any more either;
- a sender has two windows. If the receiver has yet to take what is in one of them, the sender waits for that, by name, as for a
  message that has yet to leave; if the receiver holds both, or there is no memory, the tensor travels in a message behind the
  word: so a receiver may keep arrays as long as it likes, and nothing waits for that;
- a tensor that lies in a window of the receiver's is returned in that: an answer that is what came, or a view of all of it, is
  not copied. Neither is one that a window of this transfer holds from an earlier step (`_Sources` says when that is sure);
- a receiver that has no address space to map a window reads it into memory of its own instead;
- a dead tensor is a dead word;
- a tensor on its way is taken over also if the sender's session is closed meanwhile.

The word, of `WORD_NBYTES`: number of the window and its descriptor (RETURNED: it is the receiver's own), or PLAIN.
"""

from __future__ import annotations

import errno
import logging
import weakref
from typing import Any, Final

import numpy as np

from mpirt import errors
from mpirt.compiler.program import WORD_NBYTES, Transfer, path_of, word_of
from mpirt.runtime.packets import Packets
from mpirt.runtime.rendezvous import DeadTensor, Incoming, Outgoing, Place, Wait
from mpirt.transport.base import Transport
from mpirt.transport.window import (
    FULL,
    SOLE_HOLDER,
    Window,
    WindowView,
    hold_in_reserve,
    read_window,
    returned_in,
    window_of,
)

PLAIN: Final = 0  # in place of a window's number: the tensor comes in a message
RETURNED: Final = -1  # in place of a descriptor
_MOST_WINDOWS = 2
_LONGEST_BACK_OFF = 1 << 12  # steps

_log = logging.getLogger("mpirt")


def receiving_end(
    transport: Transport, transfer: Transfer, tag: int, wait: Wait | None, packets: Packets, place: Place | None = None
) -> Incoming:
    """The receiving end of ``transfer``, by the path that the plan has for it.

    Parameters
    ----------
    packets : of the program, which bring the words that tell of what lies in windows
    place : gives what one in place is received into
    """
    if path_of(transfer, transport.memory).window:
        return WindowIncoming(transport, transfer, tag, wait, packets)
    return Incoming(transport, transfer, tag, wait, place)


def sending_end(transport: Transport, transfer: Transfer, tag: int, wait: Wait | None, packets: Packets) -> Outgoing:
    """The sending end of ``transfer``, by the path that the plan has for it."""
    if path_of(transfer, transport.memory).window:
        return WindowOutgoing(transport, transfer, tag, wait, packets)
    return Outgoing(transport, transfer, tag, wait)


class WindowIncoming(Incoming):
    """The receiving end of a transfer through windows."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None, packets: Packets) -> None:
        super().__init__(transport, transfer, tag, wait)
        word = word_of(transfer)
        self._news = packets.receiving_end([word], drained_here=False)
        self._news.give([])
        lent = self._news.lend(word)
        assert lent is not None
        self._word = lent
        self._expected = False  # the word of this step, which nobody has taken yet
        self._dead = False
        self._views: dict[int, WindowView] = {}
        self._owed: list[tuple[int, int]] = []  # windows that are to be given back, but couldn't be opened
        hold_in_reserve()

    def post(self) -> None:
        """Be ready for what comes in a step."""
        if self._owed:
            owed, self._owed = self._owed, []
            for serial, descriptor in owed:
                self._drop(serial, descriptor)
        self._expected, self._dead = True, False

    def take(self) -> Any:
        """Wait for the tensor and return it; see ``rendezvous.Incoming.take``."""
        if self._expected and self._wait is not None:
            self._take_word()
        return super().take() if self._rest is not None or self._expected else self.result()

    def ready(self) -> bool:
        """Whether all is here."""
        if self._expected:
            if not self._news.ready():
                return False
            self._take_word()
        return self._rest is None or self._rest[0].test()

    def _take_word(self) -> None:
        """Take the word that tells of the tensor, which is waited for; see to it that a tensor in a message is received."""
        try:
            self._news.take()
        except DeadTensor:
            self._dead = True
        self._expected = False
        if not self._dead and self._word[0] == PLAIN:
            buffer = self._form.buffer()
            self._rest = self._transport.irecv(buffer, self._transfer.src_rank, self._tag), buffer

    def result(self) -> Any:
        """The tensor, once ready."""
        if self._dead:
            raise DeadTensor
        rest, self._rest = self._rest, None
        if rest is not None:
            return rest[1]
        counters = self._transport.counters
        counters.windows_received += 1
        counters.window_bytes_received += self._form.message_nbytes
        serial, descriptor = self._word.tolist()
        view = self._views.get(serial)
        if view is not None:
            return view.take()
        if descriptor == RETURNED:
            return window_of(serial).accept(self._form.shape, self._form.dtype.np_dtype)
        return self._open(serial, descriptor)

    def drained(self) -> bool:
        """Whether nothing is to come; takes in what nobody took."""
        if self._expected:
            if not self._news.ready():
                return False
            self._take_word()
            if not self._dead and self._rest is None:
                self._drop(*self._word.tolist())
        if self._rest is not None:
            if not self._rest[0].test():
                return False
            self._rest = None
        return True

    def _drop(self, serial: int, descriptor: int) -> None:
        """Let the sender have its window back."""
        form, view = self._form, self._views.get(serial)
        if view is not None:
            view.give_back()
        elif descriptor == RETURNED:
            window_of(serial).accept(form.shape, form.dtype.np_dtype)
        else:
            try:
                pid = self._transport.pids[self._transfer.src_rank]
                read_window(pid, descriptor, serial, form.shape, form.dtype.np_dtype)
            except OSError:
                self._owed.append((serial, descriptor))

    def _open(self, serial: int, descriptor: int) -> np.ndarray[Any, Any]:
        """The tensor in a window that comes for the first time: from now on it is known, if it can be mapped."""
        transfer, form = self._transfer, self._form
        pid, dtype = self._transport.pids[transfer.src_rank], form.dtype.np_dtype
        try:
            try:
                view = self._views[serial] = WindowView(pid, descriptor, serial, form.shape, dtype)
                return view.take()
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
            try:
                array: np.ndarray[Any, Any] | None = form.buffer()
            except MemoryError:
                array = None
            read_window(pid, descriptor, serial, form.shape, dtype, array)
            if array is not None:
                return array
            reason = "no memory for a copy of it either"
        except OSError as error:
            reason = str(error)
            self._owed.append((serial, descriptor))
        raise errors.ResourceExhaustedError(
            f"the memory that rank {transfer.src_rank} shares for {transfer.name!r} ({form.message_nbytes} bytes) can't be"
            f" opened on rank {transfer.dst_rank}: {reason}",
            hint="allow more open files and address space (ulimit -n, -v), or switch shared memory off: MPIRT_SHM=0.",
        )


class WindowOutgoing(Outgoing):
    """The sending end of a transfer through windows."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None, packets: Packets) -> None:
        super().__init__(transport, transfer, tag, wait)
        self._windows: list[Window] = []
        self._word = [np.empty(WORD_NBYTES // 8, np.int64)]
        self._news = packets.sending_end([word_of(transfer)])
        self._send_word = self._news.sender([0])
        self._most = _MOST_WINDOWS
        self._lent = -1  # position of the window that this step's value is produced into
        self._sources = _Sources()
        self._pid = transport.pids[transfer.dst_rank]

    def __del__(self) -> None:
        if hasattr(self, "_windows"):
            self._transport.keep([*self._requests, *[_Taken(w) for w in self._windows if w.state == FULL]])

    def pending(self) -> bool:
        """Whether a message is still under way, or a tensor waits in a window to be taken."""
        return super().pending() or self._news.pending() or any([window.state == FULL for window in self._windows])

    def buffer(self) -> np.ndarray[Any, Any]:
        """An array that this step's value may be produced into: in a window if one is free, so that it needn't be copied there.

        It may be used otherwise, or not at all. Never waits.
        """
        self._lent = self._first_free()
        if self._lent < 0:
            self._lent = self._new_window()
        if self._lent < 0:
            return self._form.buffer()
        self._sources.forget(self._lent)
        return self._windows[self._lent].array

    def send_dead(self) -> None:
        """Tell the receiver that nothing will come in this step. Waits for nothing, so that a failure can't be held up."""
        self._news.send_dead()

    def _send_fixed(self, array: np.ndarray[Any, Any]) -> None:
        self._news.await_last()  # first: if that fails, nothing lies in a window of which nobody was told
        position, self._lent = self._lent, -1
        if position < 0 or array is not self._windows[position].array:
            serial = returned_in(array, self._pid)
            if serial:
                self._tell(serial, RETURNED)
                return
            position = self._place(array)
        if position < 0:
            self._word[0][0] = PLAIN
            self._send_word(self._word)
            t = self._transfer
            content = np.ascontiguousarray(array)
            self._requests.append(self._transport.isend(content, t.dst_rank, self._tag, self._form.message_nbytes))
            return
        window = self._windows[position]
        window.fill()
        self._tell(window.serial, window.descriptor)

    def _tell(self, serial: int, descriptor: int) -> None:
        counters = self._transport.counters
        counters.windows_sent += 1
        counters.window_bytes_sent += self._form.message_nbytes
        word = self._word[0]
        word[0], word[1] = serial, descriptor
        self._send_word(self._word)

    def _place(self, array: np.ndarray[Any, Any]) -> int:
        """Position of the sender's window that holds ``array`` now; -1 if it must do without."""
        if array.base is not None or self._sources.any:
            for position, window in enumerate(self._windows):
                if (window.holds(array) or self._sources.lie_in(position, array)) and window.free:
                    return position
        position = self._free()
        if position >= 0:
            self._windows[position].array[...] = array
            self._sources.copied(position, array)
        return position

    def _first_free(self) -> int:
        """Position of a window that is the sender's, and of which its own rank holds nothing; -1 if there is none."""
        for position, window in enumerate(self._windows):
            if window.free and window.references() == SOLE_HOLDER:
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


class _Sources:
    """Which arrays the windows of a sender hold copies of, so that an array that is sent again needn't be copied again.

    That an array is the same object doesn't say that its content is: a variable changes its own in place while nobody else holds
    it. So the array is held here, and then it can't change: the variable goes on with a copy. Only one that owns its memory is
    held, since other memory may be the user's; and only when it comes a second time, and after it turned out in vain (the next was
    another array) only when one came twice as often in a row as the last time: holding the array of a variable that changes in
    each step costs that a copy.
    """

    __slots__ = ("any", "_held", "_last", "_again", "_needed")

    def __init__(self) -> None:
        self.any = False  # held
        self._held: dict[int, np.ndarray[Any, Any]] = {}  # by position of the window
        self._last: weakref.ref[np.ndarray[Any, Any]] | None = None
        self._again = 0  # how often the last one came again
        self._needed = 1  # how often one must, to be held

    def lie_in(self, position: int, array: np.ndarray[Any, Any]) -> bool:
        """Whether that window holds ``array`` as it is now."""
        return self._held.get(position) is array

    def forget(self, position: int) -> None:
        """Something else is written into that window."""
        if self.any:
            self._held.pop(position, None)
            self.any = bool(self._held)

    def copied(self, position: int, array: np.ndarray[Any, Any]) -> None:
        """``array`` was copied there."""
        if self._last is not None and self._last() is array:
            self._again += 1
            if self._again >= self._needed:
                self._held[position] = array
                self.any = True
            return
        if self.any:
            self._held.clear()
            self.any = False
            self._needed = min(2 * self._needed, _LONGEST_BACK_OFF)
        self._again = 0
        self._last = weakref.ref(array) if array.base is None else None


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
