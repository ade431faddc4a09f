"""The loop in which everything waits."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Callable

import pytest

from mpirt.errors import AbortedError, DeadlineExceededError
from mpirt.transport.base import wait_until


def after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def never() -> bool:
    return False


def unasked() -> str:
    raise AssertionError("a wait that succeeds in time must not describe itself")


def test_what_is_ready_is_tested_once() -> None:
    answers = iter([True])
    wait_until(lambda: next(answers), unasked)


@pytest.mark.parametrize("seconds", [20e-6, 100e-6, 2e-3, 50e-3])
def test_it_ends_soon_after_it_is_ready(seconds: float) -> None:
    late = []
    for _ in range(5):
        began = time.perf_counter()
        wait_until(after(seconds), unasked)
        late.append(time.perf_counter() - began - seconds)
    assert 0 <= min(late) < 1.5e-3


def test_on_idle_runs_every_100_us_at_first_and_then_once_a_sleep() -> None:
    times: list[float] = []
    wait_until(after(0.05), unasked, on_idle=lambda: times.append(time.perf_counter()))
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert 50e-6 < sorted(gaps)[len(gaps) // 2] < 5e-3
    assert len(times) < 500


def test_on_idle_can_bring_what_is_waited_for() -> None:
    arrived: list[str] = []
    wait_until(lambda: bool(arrived), unasked, on_idle=lambda: arrived.append("mail"))
    assert arrived == ["mail"]


def test_what_on_idle_raises_ends_the_wait() -> None:
    def aborted() -> None:
        raise AbortedError("rank 3 aborted the step")

    with pytest.raises(AbortedError, match="rank 3"):
        wait_until(never, unasked, on_idle=aborted)


def test_past_the_deadline_it_says_what_it_waited_for() -> None:
    with pytest.raises(DeadlineExceededError) as caught:
        wait_until(never, lambda: "tensor 'w:0' from rank 2", timeout_s=0.03)
    assert caught.value.message == "waited 0.0 s for tensor 'w:0' from rank 2; the deadline was 0.03 s."
    assert "or allow more time" in caught.value.hint


def test_the_deadline_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_TIMEOUT_S", "0.01")
    with pytest.raises(DeadlineExceededError, match="MPIRT_TIMEOUT_S"):
        wait_until(never, lambda: "nothing")


def test_a_deadline_of_0_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_TIMEOUT_S", "0.01")
    wait_until(after(0.05), unasked, timeout_s=0)


def test_a_stall_is_reported_and_again_when_the_time_has_doubled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MPIRT_STALL_S", "0.1")
    with caplog.at_level(logging.WARNING, logger="mpirt"):
        wait_until(after(0.65), lambda: "the mail")
    matches = [re.fullmatch(r"waiting for the mail since ([0-9.]+) s", record.message) for record in caplog.records]
    times = [float(match[1]) for match in matches if match]
    assert len(times) == len(matches) == 3, "at 0.1, 0.2 and 0.4 s; a busy machine makes it a little later"
    assert all(later >= 1.9 * earlier for earlier, later in zip(times, times[1:], strict=False))


def test_stall_reports_may_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_STALL_S", "0.02")
    reports: list[str] = []
    wait_until(after(0.03), lambda: "the mail", stall=reports.append)
    assert reports == ["waiting for the mail since 0.0 s"]


def test_signal_handlers_run_during_a_wait() -> None:
    rung: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        wait_until(lambda: bool(rung), unasked, timeout_s=5)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert rung == [signal.SIGALRM]
