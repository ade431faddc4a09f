"""Small tensors of known shape, and tokens, in flight: the two ends of such a transfer, for which copying costs less than care.

Like the transfers of ``rendezvous``, with the same messages; what differs: both ends have one buffer for all steps, whose request
is made once (``transport.base.Channel``). The sender copies the value into it, so nothing of a step is held by a message under
way; the receiver copies it out, so the array that it takes is its own. Measured in one process, this costs a message a third of
what the general ends cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt.compiler.program import Transfer
from mpirt.graph.op_def import Blocked
from mpirt.runtime.rendezvous import DeadTensor, Incoming, Outgoing, Wait
from mpirt.transport.base import Channel, Transport

SMALL_NBYTES = 4096  # two copies of as much take 0.1 us; MPI sends it at once, whatever the network


def is_small(transfer: Transfer) -> bool:
    """Whether a transfer has these ends."""
    nbytes = transfer.nbytes
    return nbytes is not None and nbytes <= SMALL_NBYTES


class SmallIncoming(Incoming):
    """The receiving end of a small transfer."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> None:
        super().__init__(transport, transfer, tag, wait)
        self._buffer = self._form.buffer()
        self._channel: Channel | None = None  # made when it is first needed
        self._posted = False
        self._copies = self._form.kind == "fixed"

    def post(self) -> None:
        """Post the receive of a step."""
        channel = self._channel
        if channel is None:
            assert self._buffer is not None
            channel = self._channel = self._transport.receiving(self._buffer, self._transfer.src_rank, self._tag)
        channel.start()
        self._posted = True

    def take(self) -> Any:
        """Wait for the tensor and return it (None for a token); see `Incoming.take`."""
        channel = self._channel
        assert channel is not None and self._posted, f"{self._transfer}: taken before it was posted"
        if not channel.test():
            if self._wait is None:
                raise Blocked(self)
            self._wait(channel.test, self.describe)
        self._posted = False
        if not channel.nbytes():
            raise DeadTensor
        return self._buffer.copy() if self._copies else self._other()  # type: ignore[union-attr]

    def ready(self) -> bool:
        """Whether the message is here."""
        assert self._channel is not None and self._posted, f"{self._transfer}: taken before it was posted"
        return self._channel.test()

    def result(self) -> Any:
        """The tensor, once ready."""
        return self.take()

    def _other(self) -> Any:
        form = self._form
        return None if form.kind == "token" else np.empty(form.shape, form.dtype.np_dtype)

    def drained(self) -> bool:
        """Whether nothing is to come; takes in what nobody took."""
        if self._posted:
            if not self.ready():
                return False
            self._posted = False
        return True


class SmallOutgoing(Outgoing):
    """The sending end of a small transfer."""

    def __init__(self, transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> None:
        super().__init__(transport, transfer, tag, wait)
        form = self._form
        self._buffer = form.buffer() if form.kind == "fixed" else np.ones(1, np.uint8)
        self._channel: Channel | None = None  # made when it is first needed
        self._copies = form.kind == "fixed"
        self._numpy_dtype = form.dtype.np_dtype

    def send(self, value: Any = None) -> None:
        """Start to send the value of this step (nothing for a token)."""
        channel = self._channel
        if channel is None:
            channel = self._channel = self._transport.sending(self._buffer, self._transfer.dst_rank, self._tag)
        if self._requests or not channel.test():
            self._finish_last()
        if self._copies:
            if value.__class__ is not np.ndarray:
                value = np.asarray(value)
            if value.dtype != self._numpy_dtype or value.shape != self._form.shape:
                raise self._broken_promise(value)
            self._buffer[...] = value
        channel.start()

    def pending(self) -> bool:
        """Whether a message is still under way."""
        under_way = self._channel is not None and not self._channel.test()
        return super().pending() or under_way
