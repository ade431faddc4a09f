"""Small tensors in flight: both ends of a packet, which is one message with one or several small tensors of static shape.

As the transfers of ``rendezvous``, whose guarantees hold here too. What differs: a packet has a buffer and a request on each
side that every step uses again, so that a tensor costs two short copies and starting a message next to nothing; and a tensor
that nobody keeps beyond the step stays where it came (`IncomingPacket.lend`), without the second copy. A packet waits until that
of the step before has left. If something failed before it is sent, it is sent empty: all its tensors are dead.
Packets between ranks of one host go through ``boxes`` instead, which have ends of their own.
Does not own: which tensors share a packet (``compiler.packets``), where in it they lie (``packet_layout``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpirt.compiler.packets import is_small
from mpirt.compiler.program import Program, Transfer
from mpirt.graph.op_def import Blocked
from mpirt.runtime.boxes import AllBoxes, IncomingBox, OutgoingBox
from mpirt.runtime.packet_layout import Array, Places, contents_of, packet_nbytes, places_in, stores_of
from mpirt.runtime.rendezvous import DeadTensor, Wait, comes_soon, described
from mpirt.transport.base import PENDING, Prepared, Request, Transport

_NOTHING = np.empty(0, np.uint8)
_LOOKS, _ONE_LOOK = range(250), range(1)  # about 30 us, as in ``rendezvous.comes_soon``


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
        self._incoming: list[IncomingPacket] = []
        self._receives: list[Prepared] = []
        self._sends: list[Prepared] = []
        self._left = [False]  # whether all sends of the last step are known to have left
        on_board = any([t.on_board for t in program.transfers])
        self._boxes = AllBoxes(program, self._shared, transport, first_tag, wait) if on_board else None

    def together(self, transfer: Transfer) -> Sequence[Transfer]:
        """What travels in the same packet, in the order in which it is sent; nothing if the transfer travels otherwise."""
        return self._shared.get(transfer.index, (transfer,)) if is_small(transfer) else ()

    def sending_end(self, transfers: Sequence[Transfer]) -> OutgoingPacket | OutgoingBox:
        """This rank's end of the packet of these transfers (see `together`), which it sends."""
        box = self._boxes.sending_end(transfers) if self._boxes is not None and transfers[0].on_board else None
        if box is not None:
            return box
        packet = OutgoingPacket(transfers, self._transport, self._first_tag, self._wait, self._left)
        self._sends.append(packet.request)
        return packet

    def receiving_end(self, transfers: Sequence[Transfer], drained_here: bool = True) -> IncomingPacket | IncomingBox:
        """This rank's end of the packet of these transfers, in any order, which it receives.

        What nobody takes in a step `drained` takes, if that is ``drained_here``: else it is the caller's to take.
        """
        together = self.together(transfers[0])

        def by_message(buffer: Array, places: Places) -> IncomingPacket:
            packet = IncomingPacket(transfers, together[0], buffer, places, self._transport, self._first_tag, self._wait)
            self._incoming.append(packet)
            self._receives.append(packet.request)
            return packet

        if self._boxes is not None and transfers[0].on_board:
            return self._boxes.receiving_end(transfers, together, by_message, drained_here)
        buffer: Array = np.ones(packet_nbytes(together), np.uint8)
        return by_message(buffer, places_in(buffer, together))

    def all_left(self) -> bool:
        """Whether all packets of the step before are known to have left, so that they may be written anew."""
        return (self._left[0] or not self._sends) and (self._boxes is None or self._boxes.all_left())

    def post(self) -> None:
        """Post the receives of a step."""
        if self._boxes is not None:
            self._boxes.post()
        if self._receives:
            self._transport.start_all(self._receives)
        if self._sends:
            self._left[0] = self._transport.test_all(self._sends)

    def drained(self) -> bool:
        """Whether nothing is to come."""
        return (self._boxes is None or self._boxes.drained()) and all([receive.test() for receive in self._receives])

    def drain(self) -> None:
        """Let receives that nobody took run to their end."""
        if self._boxes is not None:
            self._boxes.drain()
        for packet in self._incoming:
            if not packet.ready():
                assert self._wait is not None
                self._wait(packet.ready, packet.describe)


class OutgoingPacket:
    """The sending end of a packet."""

    def __init__(self, transfers: Sequence[Transfer], transport: Transport, first_tag: int, wait: Wait | None, left: list[bool]) -> None:
        self._transfers = transfers
        self._first = transfers[0]
        self._transport = transport
        self._tag = first_tag + self._first.index
        self._wait = wait
        self._dead: list[Request] = []
        self._left = left
        buffer: Array = np.ones(packet_nbytes(transfers), np.uint8)
        self._places = places_in(buffer, transfers)
        self.request = transport.prepare_send(buffer, self._first.dst_rank, self._tag)

    def __del__(self) -> None:
        # The session was closed, or its program dropped, perhaps while the last step's packet is still being received.
        if hasattr(self, "request"):
            self._transport.release([self.request])
            self._transport.keep(self._dead)

    def place(self, transfer: Transfer) -> Array:
        """Where a tensor is sent from. It may be made there, if the packet of the step before has left (`Packets.all_left`)."""
        place = self._places[transfer.index]
        assert place is not None, f"{transfer} has no content"
        return place

    def sender(self, slots: Sequence[int], made_there: bool = False) -> Callable[[Sequence[Any]], None]:
        """What starts to send the values of this step: a function of all slots.

        Parameters
        ----------
        slots : where the value of each transfer is; no matter for a token
        made_there : whether all of them are likely to be in their `place` already

        Notes
        -----
        A closure, because a look at an attribute costs as much as starting the message.
        """
        places, store = stores_of(self._transfers, slots, self._places)
        all_left, left, finish_last, start = self._left, self.request.test, self._finish_last, self.request.start

        def send(values: Sequence[Any]) -> None:
            if not all_left[0] and not left():
                finish_last()
            store(values)
            start()

        def send_what_is_there(values: Sequence[Any]) -> None:
            for slot, place in places:
                if values[slot] is not place:
                    send(values)
                    return
            start()

        # Nothing has been made there but with the packet of the step before gone.
        return send_what_is_there if made_there else send

    def pending(self) -> bool:
        """Whether a message is still under way."""
        if self._dead:
            self._dead = [r for r in self._dead if not r.test()]
        return bool(self._dead) or not self.request.test()

    def await_last(self) -> None:
        """Wait until the packet of the step before has left; what sends the next one does so too."""
        if not self._left[0] and not self.request.test():
            self._finish_last()

    def _finish_last(self) -> None:
        first, left = self._first, self.request.test
        assert self._wait is not None, f"{first}: sent again before the last step's value has left"
        self._wait(left, lambda: f"rank {first.dst_rank} to receive {first.name!r} of the step before")

    def send_dead(self) -> None:
        """Tell the receiver that nothing will come in this step. Waits for nothing, so that a failure can't be held up."""
        self._dead.append(self._transport.isend(_NOTHING, self._first.dst_rank, self._tag))


class IncomingPacket:
    """The receiving end of a packet. While a step is blocked on it, it is what the step waits for (``op_def.Pending``).

    Parameters
    ----------
    transfers : what comes in it, in the order in which the caller wants it; it is waited for under the name of the first
    head : the one that is sent first
    buffer, places : what it is received into, and where each tensor is in there
    transport, first_tag, wait : see `Packets`

    Attributes
    ----------
    ready : whether it is here
    """

    on_ready: Callable[[], None] | None = None  # never called: MPI tells nobody, so it is polled

    def __init__(
        self,
        transfers: Sequence[Transfer],
        head: Transfer,
        buffer: Array,
        places: Places,
        transport: Transport,
        first_tag: int,
        wait: Wait | None,
    ) -> None:
        self._first = transfers[0]
        self._transfers = transfers
        self._transport = transport
        self._wait = wait
        self._places = places
        self.request = transport.prepare_receive(buffer, self._first.src_rank, first_tag + head.index)
        self.ready: Callable[[], bool] = self.request.test
        self._soon = self.request.soon
        self._looks = _ONE_LOOK if wait is None or transport.crowded else _LOOKS
        self._nbytes = self.request.nbytes
        self._contents: Callable[[], Any] | None = None

    def __del__(self) -> None:
        if hasattr(self, "request"):
            self._transport.release([self.request])

    def lend(self, transfer: Transfer) -> Array | None:
        """The array in which the tensor is as long as the step lasts, then the next one's; None for a token and an empty tensor."""
        return self._places[transfer.index]

    def give(self, transfers: Sequence[Transfer]) -> None:
        """Have `take` return these tensors: one by itself, several as a tuple, of none None."""
        self._contents = contents_of(transfers, self._places)

    def take(self) -> Any:
        """Wait for the packet and return what `give` was told, in arrays of the caller's own; see ``rendezvous.Incoming.take``."""
        nbytes = self._soon(self._looks)
        if nbytes <= 0:
            if nbytes == PENDING:
                if self._wait is None:
                    raise Blocked(self)
                if not (self._transport.crowded and comes_soon(self.ready, True)):
                    self._wait(self.ready, self.describe)
            return self.result()
        return None if self._contents is None else self._contents()

    def result(self) -> Any:
        """As `take`, once ready."""
        if not self._nbytes():
            raise DeadTensor
        return None if self._contents is None else self._contents()

    def cancel(self) -> bool:
        """True: the step goes on without it. The packet that the plan promises still comes, alive or dead: see `Packets.drained`."""
        return True

    def describe(self) -> str:
        """What is waited for."""
        return described(self._first)
