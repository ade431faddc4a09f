"""Packets through boxes: what is taken is what was sent, in every step; flags and notes don't get lost; without memory, messages."""

from __future__ import annotations

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
from mpirt.compiler.program import FETCH, NO_SLOT, Program, Recv, Send, Transfer
from mpirt.runtime import boxes as boxes_module
from mpirt.runtime.boxes import OutgoingBox
from mpirt.runtime.packets import Packets
from mpirt.runtime.rendezvous import DeadTensor
from mpirt.transport import board
from mpirt.transport.base import wait_until
from mpirt.transport.boxes import Boxes
from mpirt.transport.loopback import LoopbackWorld
from tests.unit.planning import inventory

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

    def __init__(self, wait: Any = patient, lent: Sequence[int] = ()) -> None:
        self.world = LoopbackWorld(2)
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


def test_every_step_s_packets_arrive_as_they_were_sent_and_no_message_tells_of_them() -> None:
    pair = Pair()
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
    counters = pair.world.transport(0).counters
    assert counters.messages_sent == 1, "the first step's, which says where the boxes are"
    assert (counters.boxes_sent, counters.box_bytes_sent) == (9 * 3, 9 * NBYTES)
    counters = pair.world.transport(1).counters
    assert (counters.boxes_received, counters.box_bytes_received) == (9 * 3, 9 * NBYTES)
    assert not pair.world._channels


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


def test_a_closed_sender_s_last_packets_are_taken_all_the_same() -> None:
    pair = Pair()
    pair.post()
    pair.send(0)
    del pair.sender, pair.outgoing, pair.sends
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
