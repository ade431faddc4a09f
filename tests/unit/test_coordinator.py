"""Coordinator and LooperThread: who hears of a stop, and what join raises. Expected behaviour is TensorFlow's."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpirt as tf
from mpirt.train import Coordinator, LooperThread


class Threads:
    """Starts threads, and lets those that wait for ``release`` go at the end of the test."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.started: list[threading.Thread] = []

    def start(self, target: Callable[..., Any], name: str | None = None) -> threading.Thread:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self.started.append(thread)
        return thread

    def stuck(self, name: str) -> threading.Thread:
        return self.start(self.release.wait, name)


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.release.set()
    for thread in made.started:
        thread.join(10)


def out_of_range() -> tf.errors.OutOfRangeError:
    return tf.errors.OutOfRangeError(None, None, "no more input")


def fail(error: BaseException) -> None:
    raise error


# ------------------------------------------------------------------------------------------------------------- stop


def test_a_stop_is_seen_by_all_threads_and_ends_their_waits(threads: Threads) -> None:
    coord = Coordinator()
    assert not coord.should_stop() and not coord.wait_for_stop(0)
    waiting = [threads.start(coord.wait_for_stop) for _ in range(3)]
    coord.request_stop()
    assert coord.should_stop() and coord.wait_for_stop()
    coord.join(waiting)
    assert coord.joined and not any(t.is_alive() for t in waiting)


def test_join_raises_the_first_exception_and_later_ones_count_as_its_consequences() -> None:
    coord = Coordinator()
    first = KeyError("first")
    coord.request_stop(first)
    coord.request_stop(ValueError("second"))
    for _ in range(2):  # and again for whoever joins again
        with pytest.raises(KeyError) as raised:
            coord.join()
        assert raised.value is first
    assert coord.joined
    plain = Coordinator()
    plain.request_stop()
    plain.request_stop(ValueError("after the stop"))
    plain.join()


def test_the_traceback_is_that_of_the_thread_that_failed(threads: Threads) -> None:
    coord = Coordinator()

    def fails() -> None:
        with coord.stop_on_exception():
            raise ValueError("in the thread")

    with pytest.raises(ValueError, match="in the thread") as raised:
        coord.join([threads.start(fails)])
    assert raised.traceback[-1].name == "fails"


def test_the_end_of_the_input_is_a_clean_end() -> None:
    coord = Coordinator()
    coord.request_stop(out_of_range())
    coord.request_stop(ValueError("after the stop"))
    coord.join()
    assert coord.should_stop()


def test_what_a_clean_end_is_can_be_chosen() -> None:
    coord = Coordinator(clean_stop_exception_types=(KeyError,))
    coord.request_stop(KeyError("enough"))
    coord.join()
    other = Coordinator(clean_stop_exception_types=(KeyError,))
    other.request_stop(out_of_range())
    with pytest.raises(tf.errors.OutOfRangeError):
        other.join()


def test_an_exception_may_come_as_exc_info_and_nothing_else_is_one() -> None:
    coord = Coordinator()
    try:
        raise ValueError("caught")
    except ValueError:
        coord.request_stop(sys.exc_info())
    with pytest.raises(ValueError, match="caught"):
        coord.raise_requested_exception()
    with pytest.raises(TypeError, match=r"request_stop takes an exception or sys.exc_info\(\), not 'no'"):
        coord.request_stop("no")  # type: ignore[arg-type]


def test_stop_on_exception_turns_any_exception_of_its_block_into_a_stop() -> None:
    for error in (ValueError("v"), SystemExit(3), KeyboardInterrupt()):
        coord = Coordinator()
        with coord.stop_on_exception():
            fail(error)
        assert coord.should_stop()
        with pytest.raises(type(error)):
            coord.join()


def test_after_join_an_exception_is_raised_where_it_is_reported_since_nobody_else_would() -> None:
    coord = Coordinator()
    coord.request_stop()
    coord.join()
    coord.request_stop()
    coord.request_stop(out_of_range())
    with pytest.raises(ValueError, match="late"):
        coord.request_stop(ValueError("late"))


def test_a_cleared_stop_is_forgotten_with_its_exception() -> None:
    coord = Coordinator()
    coord.request_stop(ValueError("old"))
    coord.clear_stop()
    assert not coord.should_stop()
    coord.join()
    coord.clear_stop()
    assert not coord.joined


# ------------------------------------------------------------------------------------------------------------- join


def test_join_without_a_stop_waits_for_threads_that_end_by_themselves(threads: Threads) -> None:
    coord = Coordinator()
    thread = threads.stuck("slow")
    threading.Timer(0.1, threads.release.set).start()
    coord.join([thread], stop_grace_period_secs=0)
    assert not thread.is_alive() and not coord.should_stop()


def test_threads_that_outlive_the_grace_period_are_named_with_what_they_do(threads: Threads) -> None:
    coord = Coordinator()
    stuck = [threads.stuck("reader"), threads.stuck("writer"), threads.start(lambda: None, "done")]
    coord.request_stop()
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as raised:
        coord.join(stuck, stop_grace_period_secs=0.2)
    assert 0.2 <= time.monotonic() - begin < 5, "one grace period for all of them together"
    place = r"in wait \(.*threading.py:\d+\)"
    assert re.fullmatch(
        "Coordinator stopped with threads still running: reader writer\n"
        f"  reader is {place}\n"
        f"  writer is {place}\n"
        r"  The grace period was 0.2 s.\n"
        r"  Mend: let threads ask should_stop\(\), close what they wait for, or allow more with stop_grace_period_secs.",
        str(raised.value),
    )
    assert coord.joined


def test_threads_that_outlive_the_grace_period_can_be_ignored_and_never_hide_the_exception(threads: Threads) -> None:
    coord = Coordinator()
    coord.request_stop()
    coord.join([threads.stuck("a")], stop_grace_period_secs=0.01, ignore_live_threads=True)
    failed = Coordinator()
    failed.request_stop(ValueError("the reason"))
    with pytest.raises(ValueError, match="the reason"):
        failed.join([threads.stuck("b")], stop_grace_period_secs=0.01)


def test_registered_threads_are_joined_beside_those_given_and_once_only(threads: Threads) -> None:
    coord = Coordinator()
    coord.register_thread(threads.stuck("registered"))
    coord.request_stop()
    with pytest.raises(RuntimeError, match="still running: registered given\n"):
        coord.join([threads.stuck("given")], stop_grace_period_secs=0)
    coord.join(stop_grace_period_secs=0)


# ----------------------------------------------------------------------------------------------------------- loopers


def test_a_looper_calls_its_target_until_the_stop() -> None:
    coord = Coordinator()
    calls: list[Any] = []

    def turn(first: int, *, second: int) -> None:
        calls.append((first, second))
        if len(calls) == 4:
            coord.request_stop()

    looper = LooperThread.loop(coord, None, turn, args=(1,), kwargs={"second": 2})
    coord.join()  # it has registered itself
    assert calls == [(1, 2)] * 4
    assert looper.daemon and not looper.is_alive()


def test_a_timed_looper_starts_at_once_and_keeps_its_pace() -> None:
    coord = Coordinator()
    times: list[float] = []

    def turn() -> None:
        times.append(time.monotonic())
        time.sleep(0.02)  # the time of a turn is part of the interval
        if len(times) == 4:
            coord.request_stop()

    begin = time.monotonic()
    LooperThread.loop(coord, 0.1, turn)
    coord.join()
    assert times[-1] - begin >= 0.3
    assert times[1] - times[0] >= 0.05


def test_a_looper_that_fails_stops_all_and_join_raises_why() -> None:
    coord = Coordinator()
    log: list[str] = []

    class Looper(LooperThread):
        def start_loop(self) -> None:
            log.append("start")

        def run_loop(self) -> None:
            log.append("turn")
            if len(log) == 3:
                raise ValueError("in a turn")

        def stop_loop(self) -> None:
            log.append("stop")

    Looper(coord, None).start()
    with pytest.raises(ValueError, match="in a turn"):
        coord.join()
    assert log == ["start", "turn", "turn"]


def test_a_subclass_hears_of_start_and_stop() -> None:
    coord = Coordinator()
    log: list[str] = []

    class Looper(LooperThread):
        def start_loop(self) -> None:
            log.append("start")

        def run_loop(self) -> None:
            log.append("turn")
            coord.request_stop()

        def stop_loop(self) -> None:
            log.append("stop")

    looper = Looper(coord, 60)
    looper.start()
    coord.join()
    assert log == ["start", "turn", "stop"] and not looper.is_alive()


def test_a_looper_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="'coord' argument must be a Coordinator: 3"):
        LooperThread(3, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="require that you also pass 'target'"):
        LooperThread(Coordinator(), 1, args=(3,))
