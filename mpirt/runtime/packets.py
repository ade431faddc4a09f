"""Small tensors in flight: both ends of a packet, which is one message with one or several small tensors of static shape.

As the transfers of ``rendezvous``, whose guarantees hold here too. What differs: a packet has a buffer and a request on each
side that every step uses again, so that a tensor costs two short copies and starting a message next to nothing. The first
tensor of a packet waits until the packet of the step before has left, the last one sends it. If something failed before the
last one, the packet is sent empty: all its tensors are dead.
Does not own: which tensors share a packet (``compiler.packets``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpirt.compiler.packets import is_small, packed_nbytes
from mpirt.compiler.program import Program, Transfer
from mpirt.graph.op_def import Blocked
from mpirt.runtime.rendezvous import DeadTensor, Wait, broken_promise, comes_soon, described
from mpirt.transport.base import Prepared, Request, Transport

Array = np.ndarray[Any, Any]

_NOTHING = np.empty(0, np.uint8)


class Packets:
    """The ends of all packets of a program on its rank.

    Parameters
    ----------
    program : its small transfers travel in packets, alone or together
    transport, first_tag, wait : see ``executor.Executor``
    """

    def __init__(self, program: Program, transport: Transport, first_tag: int, wait: Wait | None) -> None:
        self._transport = transport
        self._first_tag = first_tag
        self._wait = wait
        self._shared = {t.index: packet for packet in program.packets for t in packet}
        self._outgoing: dict[int, OutgoingPart] = {}  # by transfer
        self._incoming: dict[int, IncomingPart] = {}
        self._packets: list[IncomingPacket] = []
        self._receives: list[Prepared] = []
        self._sends: list[Prepared] = []
        self._left = [False]  # whether all sends of the last step are known to have left

    def sending_end(self, transfer: Transfer) -> OutgoingPart | None:
        """This rank's end of a transfer that it sends; None if the transfer travels otherwise."""
        if not is_small(transfer):
            return None
        if transfer.index not in self._outgoing:
            together = self._shared.get(transfer.index, (transfer,))
            packet = OutgoingPacket(together, self._transport, self._first_tag, self._wait)
            self._sends.append(packet.request)
            self._outgoing.update((t.index, OutgoingPart(packet, t, place, self._left)) for t, place in packet.places)
        return self._outgoing[transfer.index]

    def receiving_end(self, transfer: Transfer) -> IncomingPart | None:
        """This rank's end of a transfer that it receives; None if the transfer travels otherwise."""
        if not is_small(transfer):
            return None
        if transfer.index not in self._incoming:
            together = self._shared.get(transfer.index, (transfer,))
            packet = IncomingPacket(together, self._transport, self._first_tag)
            self._packets.append(packet)
            self._receives.append(packet.request)
            self._incoming.update((t.index, IncomingPart(packet, t, place, self._wait)) for t, place in packet.places)
        return self._incoming[transfer.index]

    def post(self) -> None:
        """Post the receives of a step."""
        if self._receives:
            self._transport.start_all(self._receives)
        if self._sends:
            self._left[0] = self._transport.test_all(self._sends)

    def drained(self) -> bool:
        """Whether nothing is to come."""
        return all([receive.test() for receive in self._receives])

    def drain(self) -> None:
        """Let receives that nobody took run to their end."""
        for packet in self._packets:
            if not packet.request.test():
                assert self._wait is not None
                self._wait(packet.request.test, packet.describe)


class OutgoingPacket:
    """The sending end of a packet."""

    def __init__(self, transfers: Sequence[Transfer], transport: Transport, first_tag: int, wait: Wait | None) -> None:
        self.first, self.last = transfers[0], transfers[-1]
        self._transport = transport
        self._tag = first_tag + self.first.index
        self._wait = wait
        self._dead: list[Request] = []
        buffer, self.places = _layout(transfers)
        self.request = transport.prepare_send(buffer, self.first.dst_rank, self._tag)

    def __del__(self) -> None:
        # The session was closed, or its program dropped, perhaps while the last step's packet is still being received.
        if hasattr(self, "request"):
            self._transport.release([self.request])
            self._transport.keep(self._dead)

    def pending(self) -> bool:
        """Whether a message is still under way."""
        self._dead = [r for r in self._dead if not r.test()]
        return bool(self._dead) or not self.request.test()

    def finish_last(self) -> None:
        """Wait until the last step's packet has left."""
        first, left = self.first, self.request.test
        assert self._wait is not None, f"{first}: sent again before the last step's value has left"
        self._wait(left, lambda: f"rank {first.dst_rank} to receive {first.name!r} of the step before")

    def send_dead(self) -> None:
        """Tell the receiver that nothing will come in this step. Waits for nothing, so that a failure can't be held up."""
        self._dead.append(self._transport.isend(_NOTHING, self.first.dst_rank, self._tag))


class OutgoingPart:
    """The sending end of one tensor of a packet.

    Attributes
    ----------
    send : starts to send the value of this step (nothing for a token)
    """

    def __init__(self, packet: OutgoingPacket, transfer: Transfer, place: Array | None, left: list[bool]) -> None:
        self._packet = packet
        self._ends = transfer is packet.last
        self.send: Callable[..., None] = _sender(packet, transfer, place, left)

    def send_dead(self) -> None:
        """See ``rendezvous.Outgoing``. Once for a packet, since its last tensor is never sent before the others."""
        if self._ends:
            self._packet.send_dead()

    def pending(self) -> bool:
        """Whether a message is still under way."""
        return self._ends and self._packet.pending()


def _sender(packet: OutgoingPacket, transfer: Transfer, place: Array | None, all_left: list[bool]) -> Callable[..., None]:
    """What a part does to send: a closure, because a look at an attribute costs as much as starting the message."""
    starts, ends = transfer is packet.first, transfer is packet.last
    dtype, shape = None if place is None else place.dtype, transfer.shape
    left, finish_last, start = packet.request.test, packet.finish_last, packet.request.start

    def send(value: Any = None) -> None:
        if starts and not all_left[0] and not left():
            finish_last()
        if place is not None:
            array = value if value.__class__ is np.ndarray else np.asarray(value)
            if (array.dtype is not dtype and array.dtype != dtype) or array.shape != shape:
                raise broken_promise(transfer, array)
            place[...] = array
        if ends:
            start()

    return send


class IncomingPacket:
    """The receiving end of a packet."""

    def __init__(self, transfers: Sequence[Transfer], transport: Transport, first_tag: int) -> None:
        self._first = transfers[0]
        self._transport = transport
        self.crowded = transport.crowded
        buffer, self.places = _layout(transfers)
        self.request = transport.prepare_receive(buffer, self._first.src_rank, first_tag + self._first.index)

    def __del__(self) -> None:
        if hasattr(self, "request"):
            self._transport.release([self.request])

    def describe(self) -> str:
        """What is waited for."""
        return described(self._first)


class IncomingPart:
    """The receiving end of one tensor of a packet. While a step is blocked on it, it is what the step waits for (``op_def.Pending``).

    Attributes
    ----------
    ready : whether it is here
    """

    on_ready: Callable[[], None] | None = None  # never called: MPI tells nobody, so it is polled

    def __init__(self, packet: IncomingPacket, transfer: Transfer, place: Array | None, wait: Wait | None) -> None:
        self._packet = packet  # gives MPI's request back when nobody holds it any more
        self._transfer = transfer
        self._wait = wait
        self.ready: Callable[[], bool] = packet.request.test
        self._nbytes = packet.request.nbytes
        self._content: Callable[[], Any] = _no_content(transfer) if place is None else place.copy

    def take(self) -> Any:
        """Wait for the tensor and return it (None for a token); see ``rendezvous.Incoming.take``."""
        if not self.ready():
            if self._wait is None:
                raise Blocked(self)
            if not comes_soon(self.ready, self._packet.crowded):
                self._wait(self.ready, self.describe)
        if not self._nbytes():
            raise DeadTensor
        return self._content()

    def result(self) -> Any:
        """The tensor, once ready, in an array of the caller's own."""
        if not self._nbytes():
            raise DeadTensor
        return self._content()

    def cancel(self) -> bool:
        """True: the step goes on without it. The packet that the plan promises still comes, alive or dead: see `Packets.drained`."""
        return True

    def describe(self) -> str:
        """What is waited for."""
        return described(self._transfer)


def _no_content(transfer: Transfer) -> Callable[[], Any]:
    """What makes the value of a token or of an empty tensor."""
    dtype = transfer.dtype
    return (lambda: None) if dtype is None else (lambda: np.empty(transfer.shape or (), dtype.np_dtype))


def _layout(transfers: Sequence[Transfer]) -> tuple[Array, list[tuple[Transfer, Array | None]]]:
    """The buffer of a packet, and where in it each transfer's tensor is; None for a token and an empty tensor, of one byte each."""
    sizes = [packed_nbytes(t) for t in transfers]
    buffer = np.ones(sum(sizes), np.uint8)
    places: list[tuple[Transfer, Array | None]] = []
    offset = 0
    for transfer, size in zip(transfers, sizes, strict=True):
        place: Array | None = None
        if transfer.dtype is not None and transfer.nbytes:
            assert transfer.shape is not None
            place = np.ndarray(transfer.shape, transfer.dtype.np_dtype, buffer, offset)
        places.append((transfer, place))
        offset += size
    return buffer, places
