"""Threads for steps that compute for long: made when needed, kept for a while, gone when idle."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

_IDLE_S = 2.0  # a thread without work ends after this
_OWN = "mpirt "  # how the names of the runtime's threads begin


def is_own(thread: threading.Thread) -> bool:
    """Whether it is a thread of the runtime, not of the user's script."""
    return thread.name.startswith(_OWN)


class Threads:
    """A pool without a limit: a step that blocks its thread never keeps another one from starting."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0

    def run(self, job: Callable[[], None]) -> None:
        """Call ``job()``, which must not raise, in a thread of the pool."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._idle:  # else a job is on its way to this thread
                        self._idle -= 1
                        return
                continue
            job()
            del job
            with self._lock:
                self._idle += 1
