"""Packets between ranks of one host: both ends of those that go through boxes (``transport.boxes``), without a message.

As the packets of ``packets``, whose guarantees hold here too. What differs: a tensor that a kernel makes where it is sent from is made
in the box itself, and to send it is to raise a flag; the receiver looks at the flag, copies what is in the box and notes that it has
taken it. So a packet costs less than the calls of MPI alone, and only its receiver's look sees it: nothing is to be posted.

In its first step a program's ranks tell each other by a message where their boxes are. A rank that gets no memory for them says so,
and its packets travel as messages, in all steps.

Owns: when flags are raised, who waits for which. Does not own: where things lie (``transport.boxes``), which packets go this way
(``Transfer.on_board``, from the linker).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from mpirt.compiler.packets import is_small
from mpirt.compiler.program import WORD_NBYTES, Program, Recv, Send, Transfer, word_of
from mpirt.runtime.packet_layout import Array, Places, contents_of, packet_nbytes, places_in, stores_of
from mpirt.runtime.rendezvous import DeadTensor, Wait, comes_soon, described
from mpirt.transport.base import Request, Transport
from mpirt.transport.board import DEAD, TURN, turn_of
from mpirt.transport.boxes import Boxes, note_of
from mpirt.transport.window import Window, WindowView

_LOOKS, _ONE_LOOK = range(300), range(1)  # about 20 us, as in ``meetings``
_BYTE = np.dtype(np.uint8)

# What all ends look at in a step: the parity of its number, the value of its flags, its note, that of the step before, and whether
# all packets of that one which have content are known to have been taken.
_PARITY, _TURN, _NOTE, _LAST, _LEFT = range(5)
_STEPS: Final = [(step & 1, turn_of(step), note_of(step), note_of(step - 1)) for step in range(4, 8)]  # four take turns


class AllBoxes:
    """The boxes of a program on its rank, to and from all other ranks.

    Parameters
    ----------
    program : its packets and words of windows `on_board` go through boxes
    shared : the packet of each transfer that doesn't travel alone
    transport, first_tag, wait : see ``executor.Executor``
    """

    def __init__(
        self, program: Program, shared: Mapping[int, Sequence[Transfer]], transport: Transport, first_tag: int, wait: Wait | None
    ) -> None:
        self._transport = transport
        self._wait = wait
        self._step = 0
        self._now = [0, 0, 0, 0, 0]
        self._ends: list[IncomingBox] = []
        sent: dict[int, dict[int, Sequence[Transfer]]] = {}
        received: dict[int, dict[int, Sequence[Transfer]]] = {}
        for i in program.instructions:
            if isinstance(i, Send | Recv) and i.transfer.on_board:
                packet = shared.get(i.transfer.index) or (i.transfer if is_small(i.transfer) else word_of(i.transfer),)
                peers, peer = (sent, i.transfer.dst_rank) if isinstance(i, Send) else (received, i.transfer.src_rank)
                peers.setdefault(peer, {})[packet[0].index] = packet
        self._to = {rank: _To(transport, rank, _in_order(packets), first_tag) for rank, packets in sent.items()}
        self._from = {rank: _From(transport, rank, _in_order(packets), first_tag) for rank, packets in received.items()}
        self._unsettled: list[_To | _From] = [*self._to.values(), *self._from.values()]
        self._notes = [to for to in self._to.values() if to.boxes is not None and to.num_told]
        self._counts = *_traffic(sent), *_traffic(received)

    def sending_end(self, transfers: Sequence[Transfer]) -> OutgoingBox | None:
        """This rank's end of a packet that it sends; None if there is no memory for boxes, so that it is a message."""
        to = self._to[transfers[0].dst_rank]
        if to.boxes is None:
            return None
        return OutgoingBox(transfers, to, to.numbers[transfers[0].index], self._now, self._wait)

    def receiving_end(
        self, transfers: Sequence[Transfer], together: Sequence[Transfer], by_message: Callable[[Array, Places], Any], drained_here: bool
    ) -> IncomingBox:
        """This rank's end of a packet that it receives.

        Parameters
        ----------
        transfers, together : see ``packets.IncomingPacket``
        by_message : begins to receive it as a message, into a buffer with these places, if its sender has no memory for boxes
        drained_here : whether `drained` takes it if nobody else does
        """
        source = self._from[transfers[0].src_rank]
        number = source.numbers[together[0].index]
        end = IncomingBox(transfers, together, source, number, self._now, self._transport, self._wait, by_message)
        if drained_here:
            self._ends.append(end)
        return end

    def all_left(self) -> bool:
        """Whether all packets of the step before are known to have been taken, so that they may be written anew."""
        return bool(self._now[_LEFT])

    def post(self) -> None:
        """Begin a step."""
        step = self._step = self._step + 1
        now = self._now
        now[0], now[1], now[2], now[3] = _STEPS[step & 3]
        now[4] = 1
        for to in self._notes:
            if to.notes.tobytes() != to.told[now[3]]:
                now[4] = 0
        if self._unsettled:
            self._unsettled = [each for each in self._unsettled if not each.settled()]
        counters = self._transport.counters
        sent, sent_nbytes, received, received_nbytes = self._counts
        counters.boxes_sent += sent
        counters.box_bytes_sent += sent_nbytes
        counters.boxes_received += received
        counters.box_bytes_received += received_nbytes

    def drained(self) -> bool:
        """Whether all packets of the last step have come; those that nobody took are taken."""
        return not self._step or all([end.drained() for end in self._ends])

    def drain(self) -> None:
        """Wait until they have."""
        for end in self._ends:
            if self._step and not end.drained():
                assert self._wait is not None
                self._wait(end.drained, end.describe)


class _To:
    """The boxes to one rank, which this one makes.

    Attributes
    ----------
    boxes : None if there is no memory for them
    numbers : of the packets, by the index of their first transfer; those with content come first
    num_told : how many packets have content
    notes, told : the receiver's notes of these, and what they are when all have been taken, by note
    """

    def __init__(self, transport: Transport, rank: int, packets: Sequence[Sequence[Transfer]], first_tag: int) -> None:
        self._transport = transport
        self._rank = rank
        self._tag = first_tag + packets[0][0].index
        self._letter: Request | None = None
        self._word: Array = np.empty(0, np.int64)
        self.numbers = {packet[0].index: number for number, packet in enumerate(packets)}
        self.num_told = sum(map(_has_content, packets))
        sizes = [packet_nbytes(packet) for packet in packets]
        self.boxes: Boxes | None = None
        self._window: Window | None = None
        try:
            self._window = Window((Boxes.nbytes_of(sizes),), _BYTE)
        except OSError:
            return
        self._window.fill()  # until the other rank has opened it and let it go, it is not to be given up
        self._word = np.array([self._window.serial, self._window.descriptor])
        assert self._word.nbytes == WORD_NBYTES
        self.boxes = Boxes(self._window.array, sizes)
        self.notes = self.boxes.bytes[: self.num_told]
        self.told = [bytes([note_of(step)]) * self.num_told for step in range(4)]

    def __del__(self) -> None:
        letter: Request | None = getattr(self, "_letter", None)
        if letter is not None:
            self._transport.keep([letter])

    def settled(self) -> bool:
        """Tell the other rank where the boxes are; True once it has opened them, or knows that there are none."""
        if self._letter is None:
            self._letter = self._transport.isend(self._word, self._rank, self._tag, WORD_NBYTES)
        if not self._letter.test():
            return False
        if self._window is None:
            return True
        assert self._window.state >= 0  # to look at it closes its descriptor, if the other rank has opened it
        return self._window.descriptor < 0


class _From:
    """The boxes from one rank, which it makes and this one opens.

    Attributes
    ----------
    boxes : None as long as nothing is known of them, or if there are none
    numbers : see `_To`
    why : nothing is known
    """

    def __init__(self, transport: Transport, rank: int, packets: Sequence[Sequence[Transfer]], first_tag: int) -> None:
        self._transport = transport
        self._rank = rank
        self._tag = first_tag + packets[0][0].index
        self._letter: Request | None = None
        self._word: Array = np.empty(WORD_NBYTES // 8, np.int64)
        self._sizes = [packet_nbytes(packet) for packet in packets]
        self.numbers = {packet[0].index: number for number, packet in enumerate(packets)}
        self.boxes: Boxes | None = None
        self.why = ""
        self._is_known = False

    def settled(self) -> bool:
        """Listen where the boxes are; True once that is known."""
        if self._letter is None:
            self._letter = self._transport.irecv(self._word, self._rank, self._tag)
        return self._is_known

    def known(self) -> bool:
        """Whether it is known if and where they are; opens them."""
        if self._is_known:
            return True
        assert self._letter is not None, "a packet was asked for before its step began"
        if not self._letter.test():
            return False
        if self._letter.nbytes():
            serial, descriptor = self._word.tolist()
            try:
                shape = (Boxes.nbytes_of(self._sizes),)
                view = WindowView(self._transport.pids[self._rank], descriptor, serial, shape, _BYTE, readonly=False)
            except OSError as error:  # too many open files: the other rank waits for this one, and it waits that this passes
                self.why = f"; its memory can't be opened: {error}"
                return False
            self.boxes = Boxes(view.take(), self._sizes)
            self.why = ""
        self._is_known = True
        return True


class OutgoingBox:
    """The sending end of a packet; see ``packets.OutgoingPacket``."""

    def __init__(self, transfers: Sequence[Transfer], to: _To, number: int, now: list[int], wait: Wait | None) -> None:
        assert to.boxes is not None
        self._transfers = transfers
        self._to = to  # holds the memory
        self._number = number
        self._now = now
        self._wait = wait
        self._bytes = to.boxes.bytes
        self._flags = to.boxes.flags[number]
        self._places = places_in(to.boxes.contents[number], transfers)

    def place(self, transfer: Transfer) -> Array:
        """Where a tensor is sent from; see ``packets.OutgoingPacket``."""
        place = self._places[transfer.index]
        assert place is not None, f"{transfer} has no content"
        return place

    def sender(self, slots: Sequence[int], made_there: bool = False) -> Callable[[Sequence[Any]], None]:
        """What sends the values of this step: a function of all slots; see ``packets.OutgoingPacket``."""
        places, store = stores_of(self._transfers, slots, self._places)
        note, flags, now, memory, finish_last = self._number, self._flags, self._now, self._bytes, self._finish_last
        always = not places  # to look at the note: where the receiver writes costs a look as much as the rest

        def send(values: Sequence[Any]) -> None:
            if (always or not now[4]) and memory[note] != now[3]:
                finish_last()
            store(values)
            memory[flags + now[0]] = now[1]

        def send_what_is_there(values: Sequence[Any]) -> None:
            for slot, place in places:
                if values[slot] is not place:
                    send(values)
                    return
            memory[flags + now[0]] = now[1]

        # Nothing has been made there but with the packet of the step before gone.
        return send_what_is_there if made_there else send

    def await_last(self) -> None:
        """Wait until the packet of the step before has been taken; what sends the next one does so too."""
        if not self._now[_LEFT] and not self._taken():
            self._finish_last()

    def _taken(self) -> bool:
        return self._bytes[self._number] == self._now[_LAST]

    def _finish_last(self) -> None:
        first = self._transfers[0]
        assert self._wait is not None, f"{first}: sent again before the last step's value has left"
        self._wait(self._taken, lambda: f"rank {first.dst_rank} to receive {first.name!r} of the step before")

    def send_dead(self) -> None:
        """Tell the receiver that nothing will come in this step. Waits for nothing, so that a failure can't be held up."""
        self._bytes[self._flags + self._now[_PARITY]] = self._now[_TURN] | DEAD

    def pending(self) -> bool:
        """Whether a message is still under way: it can't be."""
        return False


class IncomingBox:
    """The receiving end of a packet; see ``packets.IncomingPacket``.

    Attributes
    ----------
    take : waits for the packet and returns what `give` was told, in arrays of the caller's own
    """

    take: Callable[[], Any]

    def __init__(
        self,
        transfers: Sequence[Transfer],
        together: Sequence[Transfer],
        source: _From,
        number: int,
        now: list[int],
        transport: Transport,
        wait: Wait | None,
        by_message: Callable[[Array, Places], Any],
    ) -> None:
        self._first = transfers[0]
        self._together = together
        self._source = source
        self._number = number
        self._now = now
        self._transport = transport
        self._wait = wait
        self._by_message = by_message
        self._buffer: Array = np.ones(packet_nbytes(together), np.uint8)
        self._places = places_in(self._buffer, together)
        self._given: Sequence[Transfer] = ()
        self._message: Any = None  # the packet as one, if there are no boxes

    def lend(self, transfer: Transfer) -> Array | None:
        """The array in which the tensor is as long as the step lasts; see ``packets.IncomingPacket``."""
        return self._places[transfer.index]

    def give(self, transfers: Sequence[Transfer]) -> None:
        """Have `take` return these tensors: one by itself, several as a tuple, of none None."""
        self._given = transfers
        self.take = self._taker()

    def _taker(self) -> Callable[[], Any]:
        """`take` as a closure, because a look at an attribute costs as much as one at a flag."""
        now, number, buffer, given = self._now, self._number, self._buffer, {t.index for t in self._given}
        lends = any([place is not None and index not in given for index, place in self._places.items()])
        looks = _ONE_LOOK if self._transport.crowded else _LOOKS
        open_box, wait, memory, flags, content, contents = self._open, self._finish, None, 0, buffer, None  # type: Any, Any, Any, int, Array, Any

        def take() -> Any:
            nonlocal memory, flags, content, contents
            if memory is None:
                boxes = open_box()
                if boxes is None:
                    return self._message.take()
                flags, content = boxes.flags[number], boxes.contents[number]
                contents = contents_of(self._given, places_in(content, self._together))
                memory = boxes.bytes
            flag, turn = flags + now[0], now[1]
            for _ in looks:
                if memory[flag] == turn:
                    break
            else:
                wait()
            if lends:
                buffer[...] = content
            value = None if contents is None else contents()
            memory[number] = now[2]
            return value

        return take

    def _open(self) -> Boxes | None:
        """The boxes; waits until it is known where they are. None if the packet comes as a message."""
        source = self._source
        if not source.known():
            assert self._wait is not None, f"{self._first}: nothing here can wait"
            if not comes_soon(source.known, self._transport.crowded):
                self._wait(source.known, self.describe)
        if source.boxes is None and self._message is None:
            self._fall_back()
        return source.boxes

    def _fall_back(self) -> None:
        self._message = self._by_message(self._buffer, self._places)
        self._message.give(self._given)
        self._message.request.start()  # of this step; `Packets.post` starts the next ones

    def _finish(self) -> None:
        """Wait for the packet.

        Raises
        ------
        DeadTensor
            If it is dead.
        """
        if not self.ready() and not comes_soon(self.ready, self._transport.crowded):
            assert self._wait is not None, f"{self._first}: nothing here can wait"
            self._wait(self.ready, self.describe)
        boxes = self._source.boxes
        assert boxes is not None
        if boxes.bytes[boxes.flags[self._number] + self._now[_PARITY]] & DEAD:
            boxes.bytes[self._number] = self._now[_NOTE]
            raise DeadTensor

    def ready(self) -> bool:
        """Whether it is here, dead or alive."""
        if not self._source.known():
            return False
        boxes, now = self._source.boxes, self._now
        if boxes is None:
            if self._message is None:
                self._fall_back()
            return bool(self._message.ready())
        return boxes.bytes[boxes.flags[self._number] + now[_PARITY]] & TURN == now[_TURN]

    def drained(self) -> bool:
        """Whether the packet of the last step has come; if nobody took it, it is taken."""
        if not self._source.known():
            return False
        boxes = self._source.boxes
        if boxes is None:
            return self.ready()
        if boxes.bytes[self._number] != self._now[_NOTE]:
            if not self.ready():
                return False
            boxes.bytes[self._number] = self._now[_NOTE]
        return True

    def describe(self) -> str:
        """What is waited for."""
        return described(self._first) + self._source.why


def _traffic(peers: Mapping[int, Mapping[int, Sequence[Transfer]]]) -> tuple[int, int]:
    """How many packets there are, and their bytes."""
    found = [packet for packets in peers.values() for packet in packets.values()]
    return len(found), sum([t.nbytes or 0 for packet in found for t in packet])


def _has_content(packet: Sequence[Transfer]) -> bool:
    return any([t.dtype is not None and t.nbytes for t in packet])


def _in_order(packets: Mapping[int, Sequence[Transfer]]) -> list[Sequence[Transfer]]:
    """The packets between two ranks as both of them count them: those with content first."""
    return [packets[first] for first in sorted(packets, key=lambda first: (not _has_content(packets[first]), first))]
