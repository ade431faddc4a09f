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


def test_a_turn_that_is_left_lying_is_found() -> None:
    turn, found = Turn(), threading.Event()
    turn.take()

    def wait() -> None:
        turn.take()
        found.set()
        turn.give()

    thread = threading.Thread(target=wait)
    thread.start()
    while not turn._waiting:
        time.sleep(1e-4)
    turn.give()  # not after so many steps that it would be handed over
    assert found.wait(10)
    thread.join(10)


def test_the_turn_is_handed_to_the_one_that_has_waited_longest_after_so_many_steps() -> None:
    turn, order = Turn(), []
    turn.take()

    def wait(number: int) -> None:
        turn.take()
        order.append(number)
        turn._streak = module._STEPS
        turn.give()

    threads = [threading.Thread(target=wait, args=(i,)) for i in range(4)]
    for i, thread in enumerate(threads):
        thread.start()
        while len(turn._waiting) <= i:
            time.sleep(1e-4)
    turn._streak = module._STEPS
    turn.give()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]


def test_the_turn_is_handed_over_at_once_by_a_thread_that_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 100.0)  # nobody finds it lying
    turn, handed = Turn(), threading.Event()
    turn.take()

    def wait() -> None:
        turn.take()
        handed.set()
        turn.give(False)

    thread = threading.Thread(target=wait)
    thread.start()
    while not turn._waiting:
        time.sleep(1e-4)
    turn.give(False)
    assert handed.wait(10)
    thread.join(10)
    turn.take()  # with nobody waiting it was left lying
