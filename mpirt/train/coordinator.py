"""One stop signal for several threads, and the first error that one of them had.

Pure Python threads: no graph, no session. The first request to stop counts, with its exception if it has one; what fails
after it is taken for a consequence. ``join`` waits for the threads, then raises that exception.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias

from mpirt import errors

__all__ = ["Coordinator", "LooperThread"]

_ExcInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

# How often a join that waits for threads looks whether a stop was asked for, which no thread's end would tell.
_LOOK_S = 0.05


class Coordinator:
    """Lets threads ask each other to stop, and whoever joins them see why.

    Parameters
    ----------
    clean_stop_exception_types : exceptions that are an orderly end when they come with a request to stop; by default
        OutOfRangeError, which a queue gives when there is no more input
    """

    def __init__(self, clean_stop_exception_types: Iterable[type[BaseException]] | None = None) -> None:
        clean = (errors.OutOfRangeError,) if clean_stop_exception_types is None else clean_stop_exception_types
        self._clean = tuple(clean)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._exception: BaseException | None = None
        self._joined = False
        self._threads: dict[threading.Thread, None] = {}  # in the order in which they came

    def request_stop(self, ex: BaseException | _ExcInfo | None = None) -> None:
        """Ask all threads to stop.

        Parameters
        ----------
        ex : exception, or what ``sys.exc_info()`` gives, that ``join`` is to raise; looked at in the first request only, and
            raised here if the threads are joined already

        Raises
        ------
        TypeError
            If ``ex`` is neither.
        """
        exception = self._real(_exception_of(ex))
        with self._lock:
            if not self._joined:
                if not self._stop.is_set():
                    self._exception = exception
                    self._stop.set()
                return
        if exception is not None:  # nobody will join again to hear of it
            raise exception

    def _real(self, exception: BaseException | None) -> BaseException | None:
        """``exception``, None for one of the clean ones."""
        return None if isinstance(exception, self._clean) else exception

    def clear_stop(self) -> None:
        """Forget the stop and its exception; threads may be joined again."""
        with self._lock:
            self._joined = False
            self._exception = None
            self._stop.clear()

    def should_stop(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    @contextmanager
    def stop_on_exception(self) -> Iterator[None]:
        """Context manager: an exception of the block becomes a request to stop, and goes no further."""
        try:
            yield
        except BaseException as exception:
            self.request_stop(exception)

    def wait_for_stop(self, timeout: float | None = None) -> bool:
        """Wait until a stop is asked for, at most ``timeout`` seconds; whether it was."""
        return self._stop.wait(timeout)

    def register_thread(self, thread: threading.Thread) -> None:
        """Add a thread to those that ``join`` waits for."""
        with self._lock:
            self._threads[thread] = None

    def join(
        self,
        threads: Iterable[threading.Thread] | None = None,
        stop_grace_period_secs: float = 120,
        ignore_live_threads: bool = False,
    ) -> None:
        """Wait until the threads have ended; once a stop is asked for, no longer than the grace period.

        Parameters
        ----------
        threads : those to wait for, beside the registered ones
        stop_grace_period_secs : time that threads have to end after the stop
        ignore_live_threads : don't mind threads that take longer

        Raises
        ------
        The exception that the stop was asked with; else RuntimeError if threads outlive the grace period, with their names and
        what they are doing.
        """
        with self._lock:
            waited = list(self._threads | dict.fromkeys(threads or ()))
        while any(t.is_alive() for t in waited) and not self.wait_for_stop(_LOOK_S):
            pass
        until = time.monotonic() + stop_grace_period_secs
        for thread in waited:
            thread.join(max(0.0, until - time.monotonic()))
        late = [thread for thread in waited if thread.is_alive()]
        with self._lock:
            self._joined = True
            self._threads.clear()
        self.raise_requested_exception()
        if late and not ignore_live_threads:
            raise RuntimeError(
                f"Coordinator stopped with threads still running: {' '.join(t.name for t in late)}\n"
                + "".join(f"  {t.name} is {_doing(t)}\n" for t in late)
                + f"  The grace period was {stop_grace_period_secs:g} s.\n"
                + "  Mend: let threads ask should_stop(), close what they wait for, or allow more with stop_grace_period_secs."
            )

    @property
    def joined(self) -> bool:
        """Whether ``join`` has waited for the threads, also if it then raised."""
        return self._joined

    def raise_requested_exception(self) -> None:
        """Raise the exception that the stop was asked with, if there is one."""
        with self._lock:
            exception = self._exception
        if exception is not None:
            raise exception


def _exception_of(ex: Any) -> BaseException | None:
    found = ex[1] if isinstance(ex, tuple) and len(ex) == 3 else ex
    if found is not None and not isinstance(found, BaseException):
        raise TypeError(f"request_stop takes an exception or sys.exc_info(), not {ex!r}.")
    return found


def _doing(thread: threading.Thread) -> str:
    """Where ``thread`` is, for a report."""
    frame = None if thread.ident is None else sys._current_frames().get(thread.ident)
    return "gone" if frame is None else f"in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


class LooperThread(threading.Thread):
    """A thread that calls something again and again until its coordinator is asked to stop.

    It registers itself with the coordinator. An exception in it asks for the stop. It is a daemon: a script can end without it.

    Parameters
    ----------
    coord : Coordinator
    timer_interval_secs : seconds from one call to the next, which doesn't drift; None: without a pause
    target : what to call; without it, a subclass's ``run_loop``
    args, kwargs : its arguments

    Raises
    ------
    ValueError
        If ``coord`` is no Coordinator, or there are arguments without a target.
    """

    def __init__(
        self,
        coord: Coordinator,
        timer_interval_secs: float | None,
        target: Callable[..., Any] | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(coord, Coordinator):
            raise ValueError(f"'coord' argument must be a Coordinator: {coord!r}")
        if target is None and (args or kwargs):
            raise ValueError("'args' and 'kwargs' argument require that you also pass 'target'")
        super().__init__(daemon=True)
        self._coord = coord
        self._interval_s = timer_interval_secs
        self._call = target
        self._call_args = tuple(args or ())
        self._call_kwargs = dict(kwargs or {})
        coord.register_thread(self)

    @staticmethod
    def loop(
        coord: Coordinator,
        timer_interval_secs: float | None,
        target: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> LooperThread:
        """Start a looper thread that calls ``target``, and return it."""
        looper = LooperThread(coord, timer_interval_secs, target, args, kwargs)
        looper.start()
        return looper

    def run(self) -> None:
        """What the thread does."""
        with self._coord.stop_on_exception():
            self.start_loop()
            following = time.monotonic()
            while not self._coord.wait_for_stop(max(0.0, following - time.monotonic())):
                if self._interval_s is not None:
                    following += self._interval_s
                self.run_loop()
            self.stop_loop()

    def start_loop(self) -> None:
        """For subclasses: called before the first turn."""

    def stop_loop(self) -> None:
        """For subclasses: called after the last turn, unless that failed."""

    def run_loop(self) -> None:
        """One turn: calls ``target``."""
        if self._call is not None:
            self._call(*self._call_args, **self._call_kwargs)
