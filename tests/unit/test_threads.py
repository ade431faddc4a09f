"""The pool for long steps: never too few threads, none left when idle."""

from __future__ import annotations

import threading
import time

import pytest

from mpirt.distributed import threads as module
from mpirt.distributed.threads import Threads


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pool of the test"]


def test_jobs_that_wait_for_later_ones_all_run() -> None:
    pool, barrier = Threads("pool of the test"), threading.Barrier(20)
    done = threading.Semaphore(0)

    def job() -> None:
        barrier.wait(10)  # until twenty of them run at once
        done.release()

    for _ in range(20):
        pool.run(job)
    assert all(done.acquire(timeout=10) for _ in range(20))


def test_a_thread_is_used_again_and_ends_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.2)
    pool, done, seen = Threads("pool of the test"), threading.Event(), set()

    def job() -> None:
        seen.add(threading.get_ident())
        done.set()

    for _ in range(10):
        done.clear()
        pool.run(job)
        assert done.wait(10)
        while not pool._idle:
            time.sleep(1e-4)
    assert len(seen) == 1
    end = time.perf_counter() + 10
    while names() and time.perf_counter() < end:
        time.sleep(0.01)
    assert names() == []
    done.clear()
    pool.run(job)
    assert done.wait(10)
