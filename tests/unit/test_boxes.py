"""Packets through boxes: what is taken is what was sent, in every step; flags and notes don't get lost; without memory, messages."""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import FETCH, NO_SLOT, Program, Read, Recv, Send, Transfer
from mpirt.runtime import boxes as boxes_module
from mpirt.runtime.boxes import OutgoingBox
from mpirt.runtime.packets import OutgoingPacket, Packets
from mpirt.runtime.rendezvous import DeadTensor
from mpirt.transport import board
from mpirt.transport.base import wait_until
from mpirt.transport.boxes import Boxes
from mpirt.transport.loopback import LoopbackWorld
from mpirt.transport.window import WindowView
from tests.unit.planning import inventory
from tests.unit.test_rendezvous import SEEDS
from tests.unit.test_windows import descriptors_of_windows

pytestmark = pytest.mark.skipif(not board.USABLE, reason="boxes need a processor that keeps stores in order")


def patient(ready: Any, what: Any) -> None:
    wait_until(ready, what, timeout_s=10)


def transfer(index: int, name: str, dtype: Any = None, shape: Any = None, reason: str = "/job:b/task:0") -> Transfer:
    return Transfer(index, name, dtype, shape, 0, 1, Task("a", 0), reason, on_board=True)


PACKET = (
    transfer(3, "b:0", tf.bool, (3,)),
    transfer(5, "^done"),
    transfer(6, "x:0", tf.float64, (2, 2)),
    transfer(7, "none:0", tf.int32, (0, 4)),
    transfer(9, "s:0", tf.float32, (), FETCH),
)
TOKEN = (transfer(1, "^first"),)
ALONE = (transfer(11, "y:0", tf.complex128, (5,)),)
NBYTES = (3 + 1 + 32 + 0 + 4) + 1 + 80


def values_of(step: int) -> dict[int, Any]:
    """By index of the transfer."""
    return {
        1: None,
        3: np.arange(3) % 2 == step % 2,
        5: None,
        6: np.full((2, 2), 0.5 + step).T,
        7: np.empty((0, 4), np.int32),
        9: np.float32(step),
        11: np.arange(5) * (1 + 1j * step),
    }


class Pair:
    """Rank 0, which sends three packets, and rank 1, which takes them, and keeps all but ``lent``; both in one thread."""

    def __init__(self, wait: Any = patient, lent: Sequence[int] = (), seed: int | None = None) -> None:
        self.world = LoopbackWorld(2, seed=seed)
        self.packets = (TOKEN, PACKET, ALONE)
        every = [t for packet in self.packets for t in packet]
        ends = []
        for rank, kind in enumerate((Send, Recv)):
            program = Program(rank, [kind(t, NO_SLOT) for t in every], transfers=every, packets=[PACKET])
            ends.append(Packets(program, self.world.transport(rank), 100, wait))
        self.sender, self.receiver = ends
        self.outgoing = [self.sender.sending_end(packet) for packet in self.packets]
        self.sends = [
            end.sender(list(range(len(packet)))) for end, packet in zip(self.outgoing, self.packets, strict=True)
        ]
        self.incoming = [self.receiver.receiving_end(packet) for packet in self.packets]
        self.given = [[t for t in packet if t.dtype is not None and t.index not in lent] for packet in self.packets]
        for end, given in zip(self.incoming, self.given, strict=True):
            end.give(given)
        self.lent = {t.index: self.incoming[n].lend(t) for n, packet in enumerate(self.packets) for t in packet if t.index in lent}

    def post(self) -> None:
        self.sender.post()
        self.receiver.post()

    def send(self, step: int) -> None:
        for packet, send in zip(self.packets, self.sends, strict=True):
            send([values_of(step)[t.index] for t in packet])

    def take(self) -> dict[int, Any]:
        """What has come of this step, by index."""
        found: dict[int, Any] = {}
        for end, given in zip(self.incoming, self.given, strict=True):
            values = end.take()
            found |= dict(zip([t.index for t in given], values if len(given) > 1 else [values], strict=False))
        return found

    def messages(self) -> int:
        return self.world.transport(0).counters.messages_sent


def check(found: dict[int, Any], step: int) -> None:
    expected = values_of(step)
    for index, value in found.items():
        assert value.dtype == expected[index].dtype and value.shape == expected[index].shape
        assert value.tolist() == expected[index].tolist(), f"transfer {index} in step {step}"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_s_packets_arrive_as_they_were_sent_and_no_message_tells_of_them(seed: int | None) -> None:
    pair = Pair(seed=seed)
    kept = []
    for step in range(9):
        pair.post()
        pair.send(step)
        kept.append(pair.take())
        assert pair.receiver.drained()
    for step, found in enumerate(kept):  # later steps have not changed what was taken
        assert set(found) == {3, 6, 7, 9, 11}
        check(found, step)
        assert all(value.base is None and value.flags.writeable and value.flags.aligned for value in found.values())
        assert not any(end.pending() for end in pair.outgoing)
    counters = pair.world.transport(0).counters
    assert counters.messages_sent == 1, "the first step's, which says where the boxes are"
    assert (counters.boxes_sent, counters.box_bytes_sent) == (9 * 3, 9 * NBYTES)
    counters = pair.world.transport(1).counters
    assert (counters.boxes_received, counters.box_bytes_received) == (9 * 3, 9 * NBYTES)
    assert not pair.world._channels


@pytest.mark.parametrize("seed", SEEDS)
def test_a_receiver_opens_the_boxes_once_when_it_knows_where_they_are_and_no_descriptor_stays(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def counted(*args: Any, **more: Any) -> Any:
        opened.append(args)
        return WindowView(*args, **more)

    monkeypatch.setattr(boxes_module, "WindowView", counted)
    before = descriptors_of_windows()
    pair = Pair(seed=seed)
    assert pair.receiver.drained(), "there has been no step"
    pair.receiver.drain()
    pair.receiver.post()
    assert not any(incoming.ready() or incoming.drained() for incoming in pair.incoming), "nobody has told where the boxes are"
    assert not opened
    pair.sender.post()
    pair.send(0)
    for step in range(1, 9):
        check(pair.take(), step - 1)
        assert pair.receiver.drained() and all(incoming.ready() for incoming in pair.incoming)
        pair.post()
        pair.send(step)
    assert len(opened) == 1
    assert pair.world.transport(0).counters.messages_sent == 1 and not pair.world._channels
    assert descriptors_of_windows() <= before, "what other tests have left may go meanwhile"


def test_ends_that_travel_otherwise_have_no_boxes() -> None:
    """A program's other transfers, and what it does beside."""
    alone = dataclasses.replace(ALONE[0], index=12, on_board=False)
    every = [*PACKET, alone]
    with tf.Graph().as_default():
        sent: list[Any] = [*[Send(t, NO_SLOT) for t in every], Read(tf.no_op(), 0, 1)]
    world = LoopbackWorld(2)
    sender, receiver = (
        Packets(Program(rank, found, transfers=every, packets=[PACKET]), world.transport(rank), 100, patient)
        for rank, found in enumerate((sent, [Recv(t, NO_SLOT) for t in every]))
    )
    out, into = (sender.sending_end(PACKET), sender.sending_end([alone])), (receiver.receiving_end(PACKET), receiver.receiving_end([alone]))
    assert [type(end) for end in out] == [OutgoingBox, OutgoingPacket]
    sends = [end.sender(range(len(packet))) for end, packet in zip(out, (PACKET, [alone]), strict=True)]
    into[0].give([PACKET[2]])
    into[1].give([alone])
    for step in range(5):
        sender.post()
        receiver.post()
        assert sender.all_left()
        sends[0]([values_of(step)[t.index] for t in PACKET])
        sends[1]([values_of(step)[11]])
        check({6: into[0].take(), 11: into[1].take()}, step)
    counters = world.transport(0).counters
    assert (counters.boxes_sent, counters.box_bytes_sent, counters.messages_sent) == (5, 5 * (3 + 1 + 32 + 0 + 4), 5 + 1)


def test_what_is_lent_stays_until_the_next_step_is_taken_though_the_sender_makes_its_values_in_the_box() -> None:
    pair = Pair(lent=[6, 11])
    box = pair.outgoing[2]
    send = box.sender([0], made_there=True)
    for step in range(6):
        pair.post()
        assert pair.sender.all_left()
        place = box.place(ALONE[0])
        place[...] = values_of(step)[11]
        pair.sends[0]([None])
        pair.sends[1]([values_of(step)[t.index] for t in PACKET])
        send([place])
        check(pair.take(), step)
        place[...] = -1  # of the next step
        check({index: array for index, array in pair.lent.items() if array is not None}, step)


def test_a_packet_that_is_not_sent_is_dead_and_the_next_step_is_a_good_one() -> None:
    pair = Pair()
    for step in range(8):
        pair.post()
        if step % 3 == 1:
            pair.send(step)
            check(pair.take(), step)
        elif step % 3 == 2:  # failed behind the first packet
            pair.sends[0]([None])
            for end in pair.outgoing[1:]:
                end.send_dead()
            pair.incoming[0].take()
            with pytest.raises(DeadTensor):
                pair.incoming[1].take()
            pair.receiver.drain()
        else:
            for end in pair.outgoing:
                end.send_dead()
            for incoming in pair.incoming:
                with pytest.raises(DeadTensor):
                    incoming.take()
        assert pair.receiver.drained()


def test_a_dead_packet_leaves_its_box_when_it_is_taken() -> None:
    pair = Pair()
    for step in range(6):
        pair.post()
        assert pair.sender.all_left()
        if step % 2:
            pair.send(step)
            check(pair.take(), step)
        else:
            for end, incoming in zip(pair.outgoing, pair.incoming, strict=True):
                end.send_dead()
                with pytest.raises(DeadTensor):
                    incoming.take()


@pytest.mark.parametrize("left", range(3))
def test_all_have_left_when_every_packet_with_content_was_taken(left: int) -> None:
    """Of a token nobody writes anew what is in it."""
    pair = Pair()
    for step in range(5):
        pair.post()
        pair.send(step)
        for number, incoming in enumerate(pair.incoming):
            if number != left:
                incoming.take()
        pair.sender.post()
        assert pair.sender.all_left() == (pair.packets[left] == TOKEN)
        pair.incoming[left].take()
        pair.receiver.post()
        pair.send(step)
        pair.take()


def test_what_a_failed_step_did_not_take_is_drained_before_the_next_one() -> None:
    pair = Pair()
    pair.post()
    pair.sends[0]([None])
    assert not pair.receiver.drained()
    pair.sends[1]([values_of(0)[t.index] for t in PACKET])
    pair.outgoing[2].send_dead()
    assert pair.receiver.drained()
    pair.post()
    assert pair.sender.all_left() and not pair.receiver.drained()
    pair.send(1)
    check(pair.take(), 1)


def test_a_drain_waits_by_name_for_what_is_still_to_come() -> None:
    names: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        names.append(what())
        pair.sends[len(names)]([values_of(0)[t.index] for t in pair.packets[len(names)]])
        patient(ready, what)

    pair = Pair(wait)
    pair.post()
    pair.sends[0]([None])
    pair.receiver.drain()
    where = "from /job:a/task:0 on rank 0 (for /job:b/task:0)"
    assert names == [f"tensor 'b:0' {where}", f"tensor 'y:0' {where}"]
    pair.post()
    assert pair.sender.all_left()
    pair.send(1)
    check(pair.take(), 1)


def test_a_token_waits_until_that_of_the_step_before_was_taken() -> None:
    waits: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        waits.append(what())
        assert pair.incoming[0].take() is None
        patient(ready, what)

    pair = Pair(wait)
    pair.post()
    pair.sends[0]([None])
    for step in range(1, 8):
        pair.sender.post()
        pair.sends[0]([None])
        assert waits == ["rank 1 to receive '^first' of the step before"] * step
        pair.receiver.post()


def test_a_receiver_one_step_behind_sees_both_steps_whichever_of_them_is_dead() -> None:
    pair = Pair()
    pair.post()
    for step in range(8):
        pair.send(step)
        pair.sender.post()
        for end in pair.outgoing:  # of the next step
            end.send_dead()
        check(pair.take(), step)
        pair.receiver.post()
        for incoming in pair.incoming:
            with pytest.raises(DeadTensor):
                incoming.take()
        if step % 3:  # so that the first of both is of each of four steps in turn
            pair.post()
            pair.send(step)
            check(pair.take(), step)
        pair.post()


def test_whoever_asks_before_a_packet_is_sent_waits_for_it_in_every_step() -> None:
    waits: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        assert not ready()
        waits.append(what())
        if len(waits) == 1:
            pair.sender.post()
        pair.sends[2]([values_of(len(waits))[11]])
        patient(ready, what)

    pair = Pair(wait)
    pair.receiver.post()  # who is as early in the first step doesn't know yet where the boxes are
    for step in range(1, 13):
        check({11: pair.incoming[2].take()}, step)
        assert waits == ["tensor 'y:0' from /job:a/task:0 on rank 0 (for /job:b/task:0)"] * step
        pair.post()


def test_of_values_that_are_not_made_in_the_box_after_all_each_is_copied_there() -> None:
    pair = Pair()
    send = pair.outgoing[1].sender(list(range(len(PACKET))), made_there=True)
    for step in range(6):
        pair.post()
        pair.sends[0]([None])
        values = [values_of(step)[t.index] for t in PACKET]
        if step % 2:  # one of them is there
            place = pair.outgoing[1].place(PACKET[2])
            place[...] = values[2]
            values[2] = place
        send(values)
        pair.sends[2]([values_of(step)[11]])
        check(pair.take(), step)


def test_a_place_in_a_box_is_aligned_for_what_is_made_there() -> None:
    pair = Pair()
    places = [pair.outgoing[n].place(t) for n, t in ((1, PACKET[2]), (1, PACKET[4]), (2, ALONE[0]))]
    assert all(place.flags.aligned and place.flags.c_contiguous for place in places)


def test_the_next_step_waits_by_name_until_a_box_is_empty_and_a_dead_packet_does_not() -> None:
    waits: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        waits.append(what())
        if "step before" in waits[-1]:
            check(pair.take(), 0)  # now the receiver comes
        patient(ready, what)

    pair = Pair(wait)
    pair.post()
    pair.send(0)
    pair.sender.post()
    assert not pair.sender.all_left(), "nothing has been taken yet"
    pair.sends[1]([values_of(1)[t.index] for t in PACKET])
    assert waits == ["rank 1 to receive 'b:0' of the step before"]
    pair.sends[0]([None])
    pair.sends[2]([values_of(1)[11]])
    pair.receiver.post()
    check(pair.take(), 1)
    # One step ahead, and it fails: both are seen, one after the other.
    pair.post()
    pair.send(2)
    pair.sender.post()
    for end in pair.outgoing:
        end.send_dead()
    check(pair.take(), 2)
    pair.receiver.post()
    for incoming in pair.incoming:
        with pytest.raises(DeadTensor):
            incoming.take()
    assert len(waits) == 1


def test_a_wait_says_which_tensor_is_awaited() -> None:
    names: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        names.append(what())
        if not ready():
            pair.send(len(names))
        patient(ready, what)

    pair = Pair(wait)
    pair.post()
    pair.incoming[1].take()
    assert names == ["tensor 'b:0' from /job:a/task:0 on rank 0 (for /job:b/task:0)"]
    assert pair.incoming[0].describe() == "the end of operation 'first' from /job:a/task:0 on rank 0 (for /job:b/task:0)"


def test_a_wrong_shape_or_type_is_refused_and_names_the_tensor() -> None:
    pair = Pair()
    pair.post()
    for wrong in (np.zeros((5,), np.float32), np.zeros(4), np.float64(1)):
        text = f"'y:0' has shape {wrong.shape} and type {wrong.dtype}, but its static shape is (5,) and its type complex128."
        with pytest.raises(tf.errors.InternalError, match=re.escape(text)):
            pair.sends[2]([wrong])


def test_without_memory_for_boxes_the_packets_travel_as_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(boxes_module, "Window", no_memory)
    pair = Pair(lent=[6])
    assert not any(isinstance(end, OutgoingBox) for end in pair.outgoing)
    for step in range(5):
        pair.post()
        if step == 3:
            for end in pair.outgoing:
                end.send_dead()
            with pytest.raises(DeadTensor):
                pair.incoming[0].take()
            pair.receiver.drain()
        else:
            pair.send(step)
            check(pair.take(), step)
            check({6: pair.lent[6]}, step)
        assert pair.receiver.drained()
    assert pair.messages() == 1 + 5 * 3


def test_without_memory_what_nobody_takes_in_the_first_step_is_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(boxes_module, "Window", no_memory)
    pair = Pair()
    pair.post()
    assert not any(incoming.ready() for incoming in pair.incoming)
    pair.send(0)
    pair.receiver.drain()
    assert pair.receiver.drained() and not pair.world._channels
    for step in range(1, 5):
        pair.post()
        assert not any(incoming.ready() for incoming in pair.incoming)
        pair.send(step)
        assert all(incoming.ready() for incoming in pair.incoming)
        check(pair.take(), step)


def test_a_receiver_that_cannot_open_the_boxes_says_so_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        names.append(what())
        monkeypatch.undo()
        patient(ready, what)

    def too_many(*args: Any, **more: Any) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(boxes_module, "WindowView", too_many)
    monkeypatch.setattr(boxes_module, "comes_soon", lambda ready, crowded: ready())
    pair = Pair(wait)
    pair.post()
    pair.send(0)
    check(pair.take(), 0)
    assert len(names) == 1 and names[0].endswith("; its memory can't be opened: Too many open files")
    assert all("opened" not in incoming.describe() for incoming in pair.incoming), "it has been"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_closed_sender_s_last_packets_are_taken_all_the_same(seed: int | None) -> None:
    pair = Pair(seed=seed)
    pair.post()
    pair.send(0)
    letter = next(iter(pair.sender._boxes._to.values()))._letter
    del pair.sender, pair.outgoing, pair.sends
    gc.collect()
    assert letter in pair.world.transport(0)._kept, "MPI may still read it"
    check(pair.take(), 0)


def test_boxes_have_lines_of_their_own() -> None:
    sizes = [1, 48, 49, 4096]
    memory = np.zeros(Boxes.nbytes_of(sizes), np.uint8)
    boxes = Boxes(memory, sizes)
    lines = [range(flag // 64, (flag + 16 + size - 1) // 64 + 1) for flag, size in zip(boxes.flags, sizes, strict=True)]
    used = [line for each in lines for line in each]
    assert len(set(used)) == len(used) and 0 not in used, "line 0 is the receiver's"
    assert lines[0] == range(1, 2) and lines[1] == range(2, 3), "what is short lies beside its flag"
    assert [c.nbytes for c in boxes.contents] == sizes and max(used) * 64 + 64 == memory.size


def test_tensors_of_static_shape_between_ranks_of_one_memory_need_no_message() -> None:
    """Small ones go through boxes, of large ones a word; but what becomes the user's own doesn't lie in a window."""
    with tf.Graph().as_default() as graph:
        with tf.device("/job:worker/task:0"):
            small, most, large = [tf.placeholder(tf.float32, [n]) for n in (1024, 4095, 4096)]
            unknown, text = tf.placeholder(tf.float32, [None]), tf.placeholder(tf.string, [2])
        with tf.device("/job:worker/task:1"):
            ys = [tf.identity(x) for x in (small, most, large, unknown, text)]
        with tf.device("/job:worker/task:2"):
            ys.append(tf.identity(small))
        fed = [small, most, large, unknown, text]
        plan = make_plan(graph, ys, fed, inventory(0, worker=3), PlacementRules(Task("worker", 0)), {})
    for memory, pairs in (((7, 7, 8), {(0, 1), (1, 0)}), (None, set()), ((1, 2, 3), set())):
        program = link(plan, lambda task: task.index, 0, 3, "all", memory)
        tensors = [t for t in program.transfers if t.dtype is not None]
        assert len({(t.src_rank, t.dst_rank) for t in tensors}) > 2
        for t in tensors:
            sizes = [(1024,), (4095,)] if t.reason == FETCH else [(1024,), (4095,), (4096,)]
            assert t.on_board == ((t.src_rank, t.dst_rank) in pairs and t.shape in sizes), t
