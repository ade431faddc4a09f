"""Turns of threads: one holder, nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest

from mpirt.distributed import turn as module
from mpirt.distributed.turn import Turn


def test_one_thread_has_the_turn_and_all_get_it() -> None:
    turn, inside, most, counts = Turn(), [0], [0], [0] * 6
    end = time.perf_counter() + 0.5

    def work(number: int) -> None:
        while time.perf_counter() < end:
            turn.take()
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            counts[number] += 1
            inside[0] -= 1
            turn.give()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert most == [1]
    assert min(counts) > 0


def waiting(turn: Turn, number: int) -> None:
    """Until so many threads wait."""
    while len(turn._waiting) < number:
        time.sleep(1e-4)


def test_a_turn_that_is_left_lying_is_found() -> None:
    turn, found = Turn(), threading.Event()
    turn.take()
    turn._until = time.perf_counter() + 3600  # it is not handed over

    def wait() -> None:
        turn.take()
        found.set()
        turn.give()

    thread = threading.Thread(target=wait)
    thread.start()
    waiting(turn, 1)
    turn.give()
    assert found.wait(10)
    thread.join(10)


def test_a_turn_that_its_holder_takes_again_and_again_is_not_taken_from_it_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.2)  # noise of other jobs on this machine is shorter
    turn, robbed = Turn(), threading.Event()
    turn.take()
    turn._until = time.perf_counter() + 3600

    def wait() -> None:
        turn.take()
        robbed.set()
        turn.give()

    thread = threading.Thread(target=wait)
    thread.start()
    waiting(turn, 1)
    end = time.perf_counter() + 1
    while time.perf_counter() < end:
        turn.give()
        time.sleep(0)  # it lies there for most of the time
        turn.take()
        assert not robbed.is_set()
    turn.give()
    thread.join(10)
    assert robbed.is_set()


def test_the_turn_is_handed_to_the_one_that_has_waited_longest_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 3600)  # nobody finds it by looking
    monkeypatch.setattr(module, "_TURN_S", 0)
    turn, order = Turn(), []
    turn.take()

    def wait(number: int) -> None:
        turn.take()
        order.append(number)
        turn.give()

    threads = [threading.Thread(target=wait, args=(i,)) for i in range(4)]
    for i, thread in enumerate(threads):
        thread.start()
        waiting(turn, i + 1)
    turn.give()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]
