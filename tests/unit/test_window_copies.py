"""Tensors in windows that needn't be copied: answers that are what came, and arrays that haven't changed since they were sent."""

from __future__ import annotations

import errno
import gc
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpirt import dtypes, errors
from mpirt.dtypes import DType
from mpirt.ops.state_ops import VariableCell
from mpirt.transport import board, window
from mpirt.transport.window import FREE, HELD
from tests.unit.test_windows import BOXES, WAYS, Ends, N, Pair, Way


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


class Round:
    """A tensor from rank 0 to rank 1, and an answer back."""

    def __init__(self, way: Way = None, answer: tuple[DType, tuple[int, ...]] = (dtypes.uint8, (N,))) -> None:
        self.there = Pair(way)
        self.back = Ends(self.there.world, way, 1, 6, *answer)
        self.answering = self.back.outgoing
        self.windows_back = self.answering._windows

    def send(self, value: Any) -> Any:
        return self.there.step(value)

    def answer(self, value: Any) -> Any:
        return self.back.step(value)

    def is_free(self) -> bool:
        """The first window."""
        return self.windows[0].free

    @property
    def windows(self) -> list[window.Window]:
        return self.there.outgoing._windows


# ------------------------------------------------------------------------------------------------------- an answer that is what came


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_what_came_lies_in_the_asker_s_own_window(way: Way) -> None:
    pair = Round(way)
    for i in range(5):
        back = pair.answer(pair.send(pair.there.full(i)))
        assert address(back) == address(pair.windows[0].array) and set(back.tolist()) == {i}
        assert not back.flags.writeable and back.shape == (N,) and back.dtype == np.uint8
        del back
    assert pair.there.states == [FREE] and pair.windows_back == []
    counters = pair.there.receiver.counters
    words = counters.bytes_sent + counters.box_bytes_sent - (16 if way == BOXES else 0)  # but the one that says where the boxes are
    assert (counters.windows_sent, counters.window_bytes_sent, words) == (5, 5 * N, 5 * 16)


def test_a_view_of_all_that_came_is_returned_in_its_own_shape_and_type() -> None:
    pair = Round(answer=(dtypes.int16, (4, N // 8)))
    value = np.arange(N, dtype=np.uint8)
    back = pair.answer(pair.send(value).view(np.int16).reshape(4, -1))
    assert address(back) == address(pair.windows[0].array)
    np.testing.assert_array_equal(back, value.view(np.int16).reshape(4, -1))


@pytest.mark.parametrize("kind", ["transposed", "part", "repeated", "backwards", "not the receiver's"])
def test_what_is_not_all_of_what_came_in_its_order_is_copied(kind: str) -> None:
    shape = {"transposed": (256, N // 256), "part": (N,), "repeated": (2, N // 2)}.get(kind, (N,))
    pair = Round(answer=(dtypes.uint8, shape))
    value = np.random.default_rng(1).integers(0, 256, N).astype(np.uint8)
    if kind == "part":  # of a window of twice the size
        big = Pair(shape=(2 * N,))
        twice = np.concatenate([value[::-1], value])
        came, expected = big.step(twice)[N:], value
    elif kind == "not the receiver's":  # a window of another process, as far as the sender knows
        pair.answering._pid = -1
        came = expected = pair.send(value)
    else:
        forms: dict[str, Callable[[Any], Any]] = {
            "transposed": lambda a: a.reshape(-1, 256).T,
            "repeated": lambda a: np.broadcast_to(a[: N // 2], (2, N // 2)),
            "backwards": lambda a: a[::-1],
        }
        came, expected = forms[kind](pair.send(value)), forms[kind](value)
    np.testing.assert_array_equal(pair.answer(came), expected)
    assert len(pair.windows_back) == 1, "it was copied into a window of the answer's sender"


@pytest.mark.parametrize("way", WAYS)
def test_a_window_is_not_filled_while_its_tensor_is_on_its_way_back_or_kept_there(way: Way) -> None:
    pair = Round(way)
    pair.back.begin()
    pair.answering.send(pair.send(pair.there.full(1)))  # and the answer's sender lets go of it
    assert pair.there.states == [FREE] and not pair.is_free()
    second = pair.send(pair.there.full(2))
    assert len(pair.windows) == 2, "the first is not free before the answer has come"
    first = pair.back.incoming.take()
    assert pair.is_free()
    third = pair.send(pair.there.full(3))
    assert [set(a.tolist()) for a in (first, second, third)] == [{1}, {2}, {3}], "the asker holds the first, so it isn't filled"
    del first, third
    fourth = pair.send(pair.there.full(4))
    assert address(fourth) != address(second) and set(second.tolist()) == {2} and set(fourth.tolist()) == {4}
    assert len(pair.windows) == 2


def test_an_answer_that_nobody_takes_lets_its_window_free() -> None:
    pair = Round()
    for i in range(4):
        pair.back.begin()
        pair.answering.send(pair.send(pair.there.full(i)))
        pair.back.incoming.drain()
        assert pair.is_free() and len(pair.windows) == 1


def test_an_answer_arrives_although_all_its_ends_but_the_last_are_gone() -> None:
    gc.collect()
    window._forget_free_windows()
    before = len(window._windows)
    pair = Round()
    came = pair.send(pair.there.full(7))
    del pair.there.outgoing, pair.there.incoming
    gc.collect()
    pair.there.sender.poll_control()
    back = pair.answer(came)
    assert set(back.tolist()) == {7}
    del came, pair, back
    gc.collect()
    window._forget_free_windows()
    assert len(window._windows) == before, "and then nothing of it is left"


def test_a_tensor_that_goes_to_and_fro_stays_where_it_is() -> None:
    pair = Round()
    value = pair.send(pair.there.full(9))
    where = address(pair.windows[0].array)
    for _ in range(4):
        value = pair.answer(value)
        assert address(value) == where
        value = pair.send(value)
        assert set(value.tolist()) == {9}
    assert len(pair.windows) == 1 and not pair.windows_back


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_keeping_answering_and_dropping_gives_everyone_what_was_sent(seed: int) -> None:
    """Against a plain list of what each kept array must be."""
    chance = random.Random(seed)
    pair = Round(BOXES if board.USABLE and seed % 2 else seed)
    kept: list[tuple[int, Any]] = []
    value = np.zeros(N, np.uint8)
    for step in range(150):
        if chance.random() < 0.5:
            value = np.full(N, step, np.uint8)
        came = pair.send(value)
        assert (came == value).all()
        if chance.random() < 0.5:
            back = pair.answer(came if chance.random() < 0.8 else came + np.uint8(1))
            if chance.random() < 0.4:
                kept.append((int(back[0]), back))
            del back
        if chance.random() < 0.3:
            kept.append((int(came[0]), came))
        del came
        while kept and chance.random() < 0.4:
            kept.pop(chance.randrange(len(kept)))
        for expected, array in kept:
            assert (array == expected).all(), f"step {step}"


# ------------------------------------------------------------------------------------------------------- an array that is sent again


def cell_of(value: Any) -> VariableCell:
    cell = VariableCell("v", dtypes.uint8, (N,))
    cell.assign(value)
    return cell


def test_a_variable_that_does_not_change_is_copied_twice_and_then_no_more() -> None:
    """That nothing is copied shows in what nobody may do: the array is changed although it is held."""
    pair = Pair()
    cell = cell_of(pair.full(1))
    for _ in range(2):
        assert set(pair.step(cell.read()).tolist()) == {1}
    cell.read()[:] = 99
    for _ in range(3):
        assert set(pair.step(cell.read()).tolist()) == {1}
    assert pair.sender.counters.windows_sent == 5


def test_a_variable_that_changes_arrives_as_it_is_and_seldom_costs_it_a_copy() -> None:
    pair = Pair()
    cell = cell_of(np.zeros(N, np.uint8))
    copies = 0
    for i in range(1, 201):
        before = address(cell.read())
        cell.writable()[:] += 1
        copies += address(cell.read()) != before
        assert set(pair.step(cell.read()).tolist()) == {i}
    assert 1 <= copies <= 8, "holding its array in vain doubles the steps until the next try"


@pytest.mark.parametrize("pause", [1, 2, 3, 10])
def test_a_variable_that_changes_now_and_then_arrives_as_it_is(pause: int) -> None:
    pair = Pair()
    cell = cell_of(np.zeros(N, np.uint8))
    kept = []
    for i in range(100):
        if i % pause == 0:
            cell.writable()[:] += 1
        came = pair.step(cell.read())
        assert set(came.tolist()) == {1 + i // pause}
        if i % 7 == 0:
            kept = [(1 + i // pause, came)]
        assert all(set(array.tolist()) == {value} for value, array in kept)


def test_memory_that_may_be_the_user_s_is_always_copied() -> None:
    pair = Pair()
    mine = np.zeros(N, np.uint8)
    feed = mine.view()
    feed.flags.writeable = False
    for i in range(10):
        mine[:] = i
        assert set(pair.step(feed).tolist()) == {i}


def test_a_window_that_is_produced_into_holds_no_earlier_array() -> None:
    pair = Pair()
    value = pair.full(1)
    for _ in range(4):
        pair.step(value)
    out = pair.outgoing.buffer()
    out[...] = 2
    assert set(pair.step(out).tolist()) == {2}
    del out
    assert set(pair.step(value).tolist()) == {1}


# ------------------------------------------------------------------------------------------------------- when a window can't be opened


def test_a_window_is_opened_when_the_process_has_used_up_its_descriptors() -> None:
    pairs = [Pair() for _ in range(3)]
    for pair in pairs:
        pair.begin_to_send()
        pair.outgoing.send(pair.full(1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for pair in pairs:
            pair.begin_to_receive()
            assert set(pair.incoming.take().tolist()) == {1}
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(pair.states == [FREE] for pair in pairs)


def no_address_space(*args: Any) -> Any:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_window_that_cannot_be_mapped_is_read_and_given_back_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(dtype=dtypes.int32, shape=(N // 4,))
    values = np.random.default_rng(5).integers(0, 2**31, (6, N // 4)).astype(np.int32)
    with monkeypatch.context() as patch:
        for i, value in enumerate(values[:4]):
            pair.begin()
            pair.outgoing.send(value)
            patch.setattr(window, "_mmap", no_address_space)
            if i == 2:
                pair.incoming.drain()
            else:
                found = pair.incoming.take()
                np.testing.assert_array_equal(found, value)
                assert found.base is None, "memory of the receiver's own"
            assert pair.states == [FREE] and not pair.outgoing.pending()
    for value in values[4:]:
        found = pair.step(value)
        np.testing.assert_array_equal(found, value)
        assert found.base is not None, "mapped as soon as that can be"


def test_without_memory_for_a_copy_either_the_step_fails_and_the_window_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    pair.begin()
    pair.outgoing.send(pair.full(1))

    def none(*args: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(window, "_mmap", no_address_space)
        patch.setattr(pair.incoming._form.__class__, "buffer", none)
        with pytest.raises(errors.ResourceExhaustedError) as caught:
            pair.incoming.take()
    assert caught.value.message.endswith("can't be opened on rank 1: no memory for a copy of it either")
    assert pair.states == [FREE] and set(pair.step(pair.full(2)).tolist()) == {2}


def test_a_window_that_could_not_even_be_opened_goes_back_when_that_can_be_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()

    def fails(*args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        patch.setattr(window, "_reserve", [])
        for i in range(2):  # both windows are stuck
            pair.begin()
            pair.outgoing.send(pair.full(i))
            if i:
                pair.incoming.drain()
            else:
                with pytest.raises(errors.ResourceExhaustedError, match="Too many open files"):
                    pair.incoming.take()
        assert pair.outgoing.pending()
    pair.begin()
    assert not pair.outgoing.pending() and pair.states == [FREE, FREE]


# ------------------------------------------------------------------------------------------------------- large windows


@pytest.mark.parametrize("nbytes", [4 << 20, (4 << 20) + 1, (9 << 20) - 5])
def test_a_large_window_lies_where_large_pages_fit_and_keeps_what_it_holds(nbytes: int) -> None:
    pair = Pair(shape=(nbytes,))
    rng = np.random.default_rng(nbytes)
    kept = None
    for _ in range(5):
        value = rng.integers(0, 256, nbytes).astype(np.uint8)
        came = pair.step(value)
        assert address(came) % (2 << 20) == 0
        np.testing.assert_array_equal(came, value)
        if kept is not None:
            np.testing.assert_array_equal(*kept)
        kept = came, value
        del came
    assert all(address(w.array) % (2 << 20) == 0 for w in pair.outgoing._windows)
    assert HELD in pair.states


def test_mapping_a_large_window_leaves_no_address_space_behind() -> None:
    def mapped() -> int:
        gc.collect()
        return len(Path("/proc/self/maps").read_text().splitlines())

    nbytes = (4 << 20) + 12345
    window.Window((nbytes,), np.dtype(np.uint8))
    before = mapped()
    for _ in range(10):
        window.Window((nbytes,), np.dtype(np.uint8))
    assert mapped() <= before + 2
