"""Transfers through shared memory: whose a window is, kept arrays, dead tensors, and what happens without memory."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mpirt import dtypes, errors
from mpirt.cluster.task import Task
from mpirt.compiler import program
from mpirt.compiler.program import FETCH, NO_SLOT, Path, Program, Recv, Send, Transfer, path_of
from mpirt.dtypes import DType
from mpirt.runtime.packets import Packets
from mpirt.runtime.rendezvous import DeadTensor, Incoming, Outgoing
from mpirt.runtime.windows import WindowIncoming, WindowOutgoing, receiving_end, sending_end
from mpirt.transport import base, board, window
from mpirt.transport.loopback import LoopbackWorld
from mpirt.transport.window import FREE, FULL, HELD, Beacon, Window, WindowView
from tests.unit.test_rendezvous import SEEDS, GivenUp, impatient, patient

N = 1 << 16


BOXES = "boxes"
Way = int | str | None
"""How the words that tell of tensors travel: through boxes, or in messages that come late (a number: by chance) or not."""

WAYS: list[Way] = [BOXES, *SEEDS] if board.USABLE else [*SEEDS]


class Ends:
    """Both ends of one large tensor, from rank ``src`` to the other one."""

    def __init__(
        self, world: LoopbackWorld, way: Way, src: int, tag: int, dtype: DType, shape: tuple[int, ...], wait: Any = patient
    ) -> None:
        transfer = Transfer(0, "x:0", dtype, shape, src, 1 - src, Task("a", 0), "/job:b/task:0", on_board=way == BOXES)
        programs = {rank: Program(rank, [kind(transfer, NO_SLOT)], transfers=[transfer]) for kind, rank in ((Send, src), (Recv, 1 - src))}
        self.packets = {rank: Packets(programs[rank], world.transport(rank), tag, wait) for rank in (src, 1 - src)}
        self.src = src
        outgoing = sending_end(world.transport(src), transfer, tag, wait, self.packets[src])
        incoming = receiving_end(world.transport(1 - src), transfer, tag, wait, self.packets[1 - src])
        assert isinstance(outgoing, WindowOutgoing) and isinstance(incoming, WindowIncoming)
        self.outgoing, self.incoming = outgoing, incoming

    def begin_to_send(self) -> None:
        self.packets[self.src].post()

    def begin_to_receive(self) -> None:
        self.packets[1 - self.src].post()
        self.incoming.post()

    def begin(self) -> None:
        self.begin_to_send()
        self.begin_to_receive()

    def step(self, value: Any) -> Any:
        self.begin()
        self.outgoing.send(value)
        return self.incoming.take()


class Pair(Ends):
    """Sender on rank 0 and receiver on rank 1 of one large tensor."""

    def __init__(self, way: Way = None, dtype: DType = dtypes.uint8, shape: tuple[int, ...] = (N,), wait: Any = patient) -> None:
        self.world = LoopbackWorld(2, seed=None if isinstance(way, str) else way)
        self.sender, self.receiver = self.world.transport(0), self.world.transport(1)
        super().__init__(self.world, way, 0, 5, dtype, shape, wait)

    def full(self, i: int) -> Any:
        return np.full(N, i, np.uint8)

    @property
    def states(self) -> list[int]:
        return [w.state for w in self.outgoing._windows]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128", "bool", "int64"])
def test_what_arrives_is_what_was_sent_in_any_type_and_order_of_memory(dtype: str, way: Way) -> None:
    numpy_dtype = np.dtype(dtype)
    pair = Pair(way, getattr(dtypes, dtype), (300, 400))
    rng = np.random.default_rng(3)
    for i in range(6):
        value = rng.integers(0, 2, (400, 300) if i % 2 else (300, 400)).astype(numpy_dtype)
        value = value.T if i % 2 else value
        found = pair.step(value)
        assert found.dtype == numpy_dtype and not found.flags.writeable
        np.testing.assert_array_equal(found, value)
    assert not pair.world._channels, "nothing is under way"


@pytest.mark.parametrize("way", WAYS)
def test_one_window_and_one_word_a_step_do_while_the_receiver_lets_go(way: Way) -> None:
    pair = Pair(way)
    for i in range(10):
        assert set(pair.step(pair.full(i)).tolist()) == {i}
    assert pair.states == [FREE]
    out, into = pair.sender.counters, pair.receiver.counters
    words, messages = ((10, 160), (1, 16)) if way == BOXES else ((0, 0), (10, 160))  # one message says where the boxes are
    assert (out.boxes_sent, out.box_bytes_sent) == (into.boxes_received, into.box_bytes_received) == words
    assert (out.messages_sent, out.bytes_sent, out.windows_sent, out.window_bytes_sent) == (*messages, 10, 10 * N)
    assert (into.messages_received, into.bytes_received, into.windows_received, into.window_bytes_received) == (*messages, 10, 10 * N)


@pytest.mark.parametrize("way", WAYS)
def test_arrays_and_views_that_are_kept_never_change(way: Way) -> None:
    """Of ten, two in windows; the others had to travel whole. When a window is let go it is used again."""
    pair = Pair(way)
    kept = [pair.step(pair.full(i)) if i % 2 else pair.step(pair.full(i)).reshape(4, -1)[1:3, 5:] for i in range(10)]
    for _ in range(2):
        assert [np.unique(a).tolist() for a in kept] == [[i] for i in range(10)]
        assert pair.states == [HELD, HELD] and pair.sender.counters.windows_sent == 2
    words = 1 if way == BOXES else 10  # in messages
    assert pair.sender.counters.messages_sent == words + 8
    assert pair.sender.counters.bytes_sent == words * 16 + 8 * N
    del kept[0]
    assert sorted(pair.states) == [FREE, HELD]
    last = pair.step(pair.full(99))
    assert pair.sender.counters.windows_sent == 3 and set(last.tolist()) == {99}
    assert [np.unique(a).tolist() for a in kept] == [[i] for i in range(1, 10)]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_sent_may_change_at_the_sender_at_once(way: Way) -> None:
    pair = Pair(way)
    value = pair.full(7)
    pair.begin_to_send()
    pair.outgoing.send(value)
    value[:] = 8
    pair.begin_to_receive()
    assert set(pair.incoming.take().tolist()) == {7}


@pytest.mark.parametrize("way", WAYS)
def test_dead_tensors_and_good_ones_alternate(way: Way) -> None:
    pair = Pair(way)
    for i in range(6):
        pair.begin()
        if i % 2:
            pair.outgoing.send(pair.full(i))
            assert set(pair.incoming.take().tolist()) == {i}
        else:
            pair.outgoing.send_dead()
            with pytest.raises(DeadTensor):
                pair.incoming.take()
    assert pair.states == [FREE] and not pair.world._channels


@pytest.mark.parametrize("way", WAYS)
def test_what_nobody_takes_goes_back_to_the_sender(way: Way) -> None:
    pair = Pair(way)
    kept = []
    for i in range(5):  # the last of these travel whole, since both windows are held
        kept.append(pair.step(pair.full(i)))
        pair.begin()
        pair.outgoing.send(pair.full(100))
        pair.incoming.drain()
        assert not pair.outgoing.pending()
    assert HELD in pair.states and FULL not in pair.states
    kept.clear()
    assert pair.states == [FREE, FREE] and not pair.world._channels


def test_a_sender_two_tensors_ahead_waits_by_name_and_goes_on_when_one_was_taken() -> None:
    pair = Pair(wait=impatient)
    for i in range(2):
        pair.begin_to_send()
        pair.outgoing.send(pair.full(i))
    assert pair.states == [FULL, FULL] and pair.outgoing.pending()
    with pytest.raises(GivenUp, match="^rank 1 to receive 'x:0' of the step before$"):
        pair.outgoing.send(pair.full(2))
    assert pair.sender.counters.messages_sent == 2
    pair.begin_to_receive()
    first = pair.incoming.take()
    with pytest.raises(GivenUp):  # one is held, the other has yet to be taken
        pair.outgoing.send(pair.full(2))
    del first
    pair.outgoing.send(pair.full(2))
    for i in (1, 2):
        pair.begin_to_receive()
        assert set(pair.incoming.take().tolist()) == {i}
    assert pair.states == [FREE, FREE] and not pair.outgoing.pending()


@pytest.mark.skipif(not board.USABLE, reason="ranks share no boxes on this processor")
def test_a_sender_whose_last_word_lies_in_its_box_waits_by_name_and_has_filled_nothing_if_that_is_given_up() -> None:
    pair = Pair(BOXES, wait=impatient)
    pair.begin()
    pair.outgoing.send(pair.full(1))
    pair.begin_to_send()
    pair.outgoing.buffer()
    with pytest.raises(GivenUp, match="^rank 1 to receive 'x:0' of the step before$"):
        pair.outgoing.send(pair.full(2))
    assert pair.states == [FULL, FREE]
    pair.outgoing.send_dead()  # as a step does that failed
    assert set(pair.incoming.take().tolist()) == {1}
    pair.begin_to_receive()
    with pytest.raises(DeadTensor):
        pair.incoming.take()
    assert not pair.outgoing.pending() and set(pair.step(pair.full(3)).tolist()) == {3}


@pytest.mark.parametrize("cycle", [False, True], ids=["let go", "found by the garbage collector"])
@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_on_its_way_arrives_although_the_sender_is_gone(way: Way, cycle: bool) -> None:
    pair = Pair(way)
    pair.begin_to_send()
    pair.outgoing.send(pair.full(7))
    if cycle:
        circle: list[Any] = [pair.outgoing, pair.packets.pop(0)]
        circle.append(circle)
        del circle
    del pair.outgoing
    pair.packets.pop(0, None)
    gc.collect()
    pair.sender.poll_control()
    pair.begin_to_receive()
    assert set(pair.incoming.take().tolist()) == {7}
    pair.sender.poll_control()
    assert not pair.sender._kept


def test_a_window_whose_owner_the_garbage_collector_found_takes_back_the_tensor_that_its_reader_returns() -> None:
    sent = Window((8,), np.dtype(np.uint8))
    serial, view = sent.serial, WindowView(os.getpid(), sent.descriptor, sent.serial, (8,), np.dtype(np.uint8))
    sent.array[...] = 7
    sent.fill()
    array = view.take()
    assert sent.state == HELD and sent.descriptor < 0 and window.returned_in(array, os.getpid()) == serial
    circle: list[Any] = [sent]
    circle.append(circle)
    del circle, sent, array
    gc.collect()
    assert window.window_of(serial).accept((8,), np.dtype(np.uint8)).tolist() == [7] * 8


@pytest.mark.parametrize("module", ["__main__", "os", "weakref"])
def test_a_window_that_is_not_taken_back_before_the_interpreter_ends_says_nothing(module: str) -> None:
    """Modules go one by one: what a module holds that was imported early goes when those that a window needs have gone."""
    script = f"""
import os, sys, weakref
import numpy as np
from mpirt.transport.window import Window
window = sys.modules[{module!r}].kept = Window((8,), np.dtype(np.uint8))
window.fill()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_windows_may_be_abandoned_while_those_that_are_free_again_are_looked_for() -> None:
    def circle() -> None:
        each: list[Any] = [Window((8,), np.dtype(np.uint8))]
        each[0].fill()
        each.append(each)

    gc.collect()
    threshold = gc.get_threshold()
    gc.disable()
    try:
        for _ in range(20):
            circle()
        gc.collect()
        abandoned = len(window._abandoned)
        assert abandoned >= 20
        for _ in range(20):
            circle()
        taken = [(i,) * 2 for i in range(4000)]  # so that the interpreter has no old tuples left, and counts new ones
        gc.set_threshold(gc.get_count()[0] + 10)  # it collects in the midst of what follows
        gc.enable()
        window._forget_free_windows()
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    gc.collect()
    assert len(taken) == 4000 and len(window._abandoned) == abandoned + 20
    for each in window._abandoned.values():
        each._header[window._STATE] = FREE
    window._forget_free_windows()
    assert not window._abandoned


@pytest.mark.parametrize("way", WAYS)
def test_an_array_outlives_both_ends_of_its_transfer(way: Way) -> None:
    pair = Pair(way)
    found = pair.step(pair.full(5))
    del pair.outgoing, pair.incoming
    gc.collect()
    assert set(found.tolist()) == {5}


def descriptors_of_windows() -> int:
    """How many this process has."""
    gc.collect()
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("mpirt-window" in link for link in links)


def test_a_window_uses_up_no_descriptor() -> None:
    before = descriptors_of_windows()
    pairs = [Pair() for _ in range(20)]
    kept = [pair.step(pair.full(i)) for i, pair in enumerate(pairs)]
    assert descriptors_of_windows() == before + 20, "they are closed when the sender looks at the window again"
    assert all(pair.states == [HELD] for pair in pairs)
    assert descriptors_of_windows() == before
    assert [int(a[0]) for a in kept] == list(range(20))


@pytest.mark.parametrize("reason", ["no memory", "no space", "not this system"])
def test_without_memory_the_tensor_travels_as_a_message_and_one_line_says_so(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair()

    def fails(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    if reason == "no memory":
        monkeypatch.setattr(window, "_memory_left", lambda: 2 * N)
    else:
        monkeypatch.setattr(os, "posix_fallocate" if reason == "no space" else "memfd_create", fails)
    descriptors = descriptors_of_windows()
    with caplog.at_level(logging.WARNING, "mpirt"):
        for i in range(4):
            assert set(pair.step(pair.full(i)).tolist()) == {i}
    said = f"{N + 4096} bytes of shared memory are more than half of the {2 * N} bytes that are left here."
    why = said if reason == "no memory" else "[Errno 28] No space left on device"
    expected = f"x:0 from /job:a/task:0 (rank 0) to rank 1 travels in messages, not in shared memory: {why}"
    assert [record.getMessage() for record in caplog.records] == [expected]
    assert pair.states == [] and descriptors_of_windows() == descriptors
    assert pair.sender.counters.bytes_sent == 4 * (16 + N)


@pytest.mark.skipif(not board.USABLE, reason="ranks share no boxes on this processor")
def test_without_memory_for_boxes_either_what_nobody_takes_in_the_first_step_is_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", fails)
    pair = Pair(BOXES, wait=impatient)
    for i in range(4):
        if i % 3:
            assert set(pair.step(pair.full(i)).tolist()) == {i}
        else:
            pair.begin()
            pair.outgoing.send(pair.full(i))
            pair.incoming.drain()
    pair.begin()
    pair.outgoing.send_dead()
    with pytest.raises(DeadTensor):
        pair.incoming.take()
    assert pair.states == [] and not pair.world._channels


def test_a_window_that_the_receiver_cannot_open_fails_the_step_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    pair.begin()
    pair.outgoing.send(pair.full(1))

    def fails(*args: Any) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        with pytest.raises(errors.ResourceExhaustedError) as caught:
            pair.incoming.take()
    assert caught.value.message == (
        f"the memory that rank 0 shares for 'x:0' ({N} bytes) can't be opened on rank 1: [Errno 24] Too many open files"
    )
    assert caught.value.hint == "allow more open files and address space (ulimit -n, -v), or switch shared memory off: MPIRT_SHM=0."
    assert set(pair.step(pair.full(2)).tolist()) == {2}, "the next step's tensor comes in the other window"


def test_another_process_s_descriptor_is_not_taken_for_a_window() -> None:
    mine = Window((N,), np.dtype("u1"))
    with pytest.raises(OSError, match=f"^descriptor {mine.descriptor} of process {os.getpid()} is not the window number 0\\.$"):
        WindowView(os.getpid(), mine.descriptor, 0, (N,), np.dtype("u1"))
    with pytest.raises(OSError, match="is not the window"):
        WindowView(os.getpid(), mine.descriptor, mine.serial, (N + 1,), np.dtype("u1"))


def test_a_large_tensor_in_chunks_when_both_windows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_NBYTES", 1000)
    pair = Pair(1)
    kept = [pair.step(pair.full(i)) for i in range(4)]
    assert [np.unique(a).tolist() for a in kept] == [[0], [1], [2], [3]]


# ------------------------------------------------------------------------------------------------------- who may use windows


def transfer(nbytes: int, reason: str = "/job:b/task:0", dst: int = 1) -> Transfer:
    return Transfer(0, "x:0", dtypes.uint8, (nbytes,), 0, dst, Task("a", 0), reason)


def test_large_tensors_of_known_size_between_ranks_that_share_memory_go_through_windows() -> None:
    memory = (0, 0, 2)
    assert path_of(transfer(N), memory) == Path(True, "large, on one host")
    assert path_of(transfer(program.WINDOW_NBYTES), memory) == Path(True, "large, on one host")
    assert path_of(transfer(program.WINDOW_NBYTES - 1), memory) == Path(False, "small")
    assert path_of(transfer(N, dst=2), memory) == Path(False, "no shared memory")
    assert path_of(transfer(N, FETCH), memory) == Path(False, "becomes the user's own array")
    unknown = Transfer(0, "x:0", dtypes.uint8, None, 0, 1, Task("a", 0), "/job:b/task:0")
    strings = Transfer(0, "x:0", dtypes.string, (N,), 0, 1, Task("a", 0), "/job:b/task:0")
    assert path_of(unknown, memory) == path_of(strings, memory) == Path(False, "size known at run time only")
    assert path_of(Transfer(0, "^x", None, None, 0, 1, Task("a", 0), "/job:b/task:0"), memory) == Path(False, "a token")


def test_the_setting_switches_windows_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_SHM", "0")
    world = LoopbackWorld(2)
    packets = [Packets(Program(rank), world.transport(rank), 5, patient) for rank in (0, 1)]
    ends = (
        sending_end(world.transport(0), transfer(N), 5, patient, packets[0]),
        receiving_end(world.transport(1), transfer(N), 5, patient, packets[1]),
    )
    assert [type(end) for end in ends] == [Outgoing, Incoming]


def test_the_plan_says_of_each_transfer_how_it_travels_and_why() -> None:
    sends = [program.Send(transfer(N), 0), program.Send(transfer(8), 0)]
    found = program.Program(0, [*sends], [(), ()], 1).text((0, 0))
    assert found == (
        "rank 0: 2 instructions, 1 slots\n"
        "  send  s0 #0 x:0 from /job:a/task:0 (rank 0) to rank 1 65536 B in a window (large, on one host) for /job:b/task:0\n"
        "  send  s0 #0 x:0 from /job:a/task:0 (rank 0) to rank 1 8 B in a message (small) for /job:b/task:0\n"
    )


def records_of(*beacons: Beacon) -> Any:
    records = Beacon.empty_records(len(beacons))
    for i, beacon in enumerate(beacons):
        records[i] = beacon.record[0]
    return records


def test_ranks_that_see_each_other_have_a_number_in_common_and_one_that_does_not_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lit = [Beacon() for _ in range(3)]
    monkeypatch.setenv("MPIRT_SHM", "0")
    dark = Beacon()
    pids = [os.getpid()] * 4
    records = records_of(lit[0], dark, lit[1], lit[2])
    assert [lit[0].domain(rank, [1, 2, 3], pids, records) for rank in (2, 3)] == [2, 2]
    assert dark.domain(1, [0, 1, 2, 3], pids, records) == 1, "it was switched off there"
    assert lit[0].domain(0, [0, 1, 2, 3], [*pids[:3], 2**22 + 1], records) == 0, "another's process can't be seen"
    assert lit[1].domain(2, [0, 1, 2, 3], [*pids[:3], 2**22 + 1], records) == 2
    records[0]["secret"] = b"0" * 32
    assert lit[1].domain(2, [0, 1, 2, 3], pids, records) == 2, "it is another process than it says"
    for beacon in (*lit, dark):
        beacon.put_out()
    assert lit[1].domain(2, [2, 3], pids, records) == 2


# ---------------------------------------------------------------------------------------------------- producing in a window


@pytest.mark.parametrize("way", WAYS)
def test_a_value_produced_in_a_window_is_sent_from_there_and_stays_while_its_own_rank_holds_it(way: Way) -> None:
    pair = Pair(way)
    held = []
    for i in range(6):
        out = pair.outgoing.buffer()
        out[...] = i
        assert (out is pair.outgoing._windows[-1].array) == (i < 2), "the first two are windows, whose arrays are held"
        held.append(out[3:])
        assert set(pair.step(out).tolist()) == {i}
        del out
    assert [np.unique(view).tolist() for view in held] == [[i] for i in range(6)]
    held.clear()
    for i in range(6):
        out = pair.outgoing.buffer()
        out[...] = i
        assert out is pair.outgoing._windows[0].array
        assert set(pair.step(out).tolist()) == {i}
        del out
    assert pair.states == [FREE, FREE]
    out = pair.outgoing.buffer()
    out[...] = 77
    out.flags.writeable = False  # a copy into it fails
    assert set(pair.step(out).tolist()) == {77}


def test_a_buffer_that_was_not_used_or_whose_step_failed_changes_nothing() -> None:
    pair = Pair()
    for i in range(4):
        pair.outgoing.buffer()[...] = 99
        pair.begin()
        if i % 2:
            pair.outgoing.send_dead()
            with pytest.raises(DeadTensor):
                pair.incoming.take()
        else:
            pair.outgoing.send(pair.full(i))
            assert set(pair.incoming.take().tolist()) == {i}
    assert pair.states == [FREE]
