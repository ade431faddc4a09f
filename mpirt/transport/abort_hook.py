"""When one rank's script fails, the whole job ends: within a second, with the culprit named and a non-zero exit status.

Without this, a rank that ends by an uncaught exception or by ``sys.exit(3)`` waits in MPI_Finalize for ranks that wait for it,
for ever, in Open MPI and MPICH alike.

Guarantee, from `install_abort_hook` on: an uncaught exception of the main thread ends the job with status 1 (an interrupt from
the keyboard with 130); a non-zero exit status, given to ``sys.exit``, ``exit`` or ``quit``, ends it with that status, unless
all ranks end within a second (each then ends by itself, e.g. all with 75 after a checkpoint). An exception that is caught
again, or one in another thread, ends nothing. SIGTERM keeps its meaning: both launchers end a job with it.

Not seen: the status of ``raise SystemExit(3)`` (Python offers no hook for it). The rank then leaves like one that succeeded;
that others wait for it is noticed by the goodbye exchange, and by the time limit of ``Transport.finalize``.
"""

from __future__ import annotations

import builtins
import dis
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from mpirt.transport.base import Transport

_LEAVING_S = 1.0  # for ranks that all end with a status of their own


def install_abort_hook(transport: Transport, describe: Callable[[], str], abort: Callable[[int], NoReturn] | None = None) -> None:
    """Make a failure of this rank's script a failure of the job. Does nothing in a job of one rank.

    Parameters
    ----------
    transport : of this rank
    describe : says which tasks this rank hosts ("/job:worker/task:0"), for the message; called at the failure
    abort : ends all ranks with an exit status; by default the transport's
    """
    if transport.size > 1:
        _Hook(transport, describe, abort or transport.abort)


class _Hook:
    def __init__(self, transport: Transport, describe: Callable[[], str], abort: Callable[[int], NoReturn]) -> None:
        self._transport = transport
        self._describe = describe
        self._abort = abort
        self._script = _script_frame()
        self._exit_code: object = None  # of the last sys.exit
        self._print_exception = sys.excepthook
        sys.excepthook = self._uncaught
        for module, name in ((sys, "exit"), (builtins, "exit"), (builtins, "quit")):
            if hasattr(module, name):  # site, which defines the last two, can be switched off
                setattr(module, name, self._recording(getattr(module, name)))
        # Like atexit, but before threads are waited for: one of the user's may wait for another rank.
        getattr(threading, "_register_atexit")(self._script_ended)  # noqa: B009 - typeshed doesn't know it

    def _recording(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        def exit(code: object = None) -> None:
            if threading.current_thread() is threading.main_thread():
                self._exit_code = code
            leave(code)

        return exit

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            head = f"{self._who()} uncaught {kind.__name__}, ending the job:\n"
            if self._print_exception is sys.__excepthook__:  # one write, or the lines of several ranks mix
                sys.stderr.write(head + "".join(traceback.format_exception(kind, error, trace)))
            else:
                sys.stderr.write(head)
                self._print_exception(kind, error, trace)
        finally:
            self._abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    def _script_ended(self) -> None:
        if self._script is None or _returned(self._script):
            return  # a SystemExit on the way was caught
        status = _exit_status(self._exit_code)
        if status == 0 and getattr(sys, "last_value", None) is not None:
            status = 1  # an uncaught exception, shown by an excepthook that replaced ours
        if status != 0 and not self._transport.all_leaving(_LEAVING_S):
            where = f"{self._script.f_code.co_filename}:{self._script.f_lineno}"
            sys.stderr.write(f"{self._who()} left the script at {where} with exit status {status}, ending the job.\n")
            self._abort(status)

    def _who(self) -> str:
        transport = self._transport
        tasks = self._describe()
        place = f"{transport.hosts[transport.rank]}, {tasks}" if tasks else transport.hosts[transport.rank]
        return f"[rank {transport.rank} of {transport.size}, {place}]"


def _script_frame() -> FrameType | None:
    """Frame of the user's script, that is of ``__main__``'s top level; None in an interactive session."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    main = vars(sys.modules["__main__"])
    found = None
    while frame is not None:
        if frame.f_globals is main and frame.f_code.co_name == "<module>":
            found = frame
        frame = frame.f_back
    return found


def _returned(frame: FrameType) -> bool:
    """Whether a frame that has ended did so by a return, not by an exception: its last instruction tells."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN")


def _exit_status(code: object) -> int:
    """Exit status that Python makes of the argument of ``sys.exit``: None is 0, and a text, which it prints, 1."""
    return 0 if code is None else code & 0xFF if isinstance(code, int) else 1
