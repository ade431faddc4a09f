"""The services of a process while servers run: their thread, and the end of the job.

Guarantees: a rank with a server answers also while its script computes or waits for something else; the servers' ``join``
returns on every rank when all scripts have ended or joined and all sessions are closed.
A rank *rests* when its script has ended, or when all threads of its script are in ``join`` or at their end and no session of
its own is open (one that no thread is left to use is not in the way). Rank 0 is told by each rank; once all rest, it tells all.
A lost rank rests.
"""

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable

from mpirt import errors
from mpirt.cluster.task import Task
from mpirt.distributed.control import ControlPlane, Kind
from mpirt.distributed.control_pb2 import Rest
from mpirt.distributed.master import Master
from mpirt.distributed.threads import is_own
from mpirt.distributed.worker import Worker
from mpirt.runtime.rendezvous import Abandoned
from mpirt.transport.base import log_stall

_SWITCH_INTERVAL_S = 2e-4
_PYTHONS_INTERVAL_S = 5e-3
_COLLECT_S = 0.01
_LOOK_S = 0.01  # between two looks at lost ranks and at the threads of the script


class Service:
    """Master and worker service of one process.

    Parameters
    ----------
    plane : control messages
    master, worker : what is served
    """

    def __init__(self, plane: ControlPlane, master: Master, worker: Worker) -> None:
        self.plane = plane
        self.master = master
        self.worker = worker
        self._rank = plane.transport.rank
        self._size = plane.transport.size
        self._lock = threading.Lock()  # of the thread's start and stop
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._script = threading.current_thread()
        self._joining: list[threading.Thread] = []
        self._collect_s = self._collect_at = 0.0  # pause before the next collection of garbage, and its time
        self._look_at = 0.0  # time of the next look
        self._ended = False  # the script has come to its end
        self._told: bool | None = None  # what rank 0 was told last
        self.over = False  # all ranks have come to their end, but for those that are lost
        self._resting: dict[int, bool] = {}  # rank 0: of all ranks, as they told
        self._busy_with: dict[int, str] = {}
        self.share_cores: Callable[[int], None] = lambda servers: None  # told how many servers run in this process
        self._switch_interval_s = 0.0  # ours, as Python has rounded it, while it is set
        master.serving = self.serving
        worker.watch = self.watch
        plane.serve({Kind.REST: self._hear_rest, Kind.REST_OVER: self._hear_over})

    def serving(self) -> bool:
        """Whether a server runs in this process."""
        return bool(self.worker.serving)

    # ---- servers

    def start(self, task: Task) -> None:
        """A server for ``task`` runs from now on.

        Raises
        ------
        AlreadyExistsError
            If there is one.
        """
        with self._lock:
            if task in self.worker.serving:
                raise errors.AlreadyExistsError(
                    f"a server for {task} runs already in this process ({self.plane.describe_rank(self._rank)}).",
                    hint="stop() it first, or give each server its own task.",
                )
            self.worker.serving.add(task)
            self.share_cores(len(self.worker.serving))
            if self._thread is None:
                if sys.getswitchinterval() == _PYTHONS_INTERVAL_S:
                    sys.setswitchinterval(_SWITCH_INTERVAL_S)
                    self._switch_interval_s = sys.getswitchinterval()
                self._stopping = threading.Event()
                self.plane.progress.eager.add(self._stopping)
                name = f"mpirt service of rank {self._rank}"
                self._thread = threading.Thread(target=self._serve, args=(self._stopping,), name=name, daemon=True)
                self._thread.start()
        self.plane.progress.perform(self.worker.admit, "the service to admit sessions")

    def stop(self, task: Task) -> None:
        """The server for ``task`` runs no more; with the last one of this process, its sessions end."""
        with self._lock:
            self.worker.serving.discard(task)
            self.share_cores(len(self.worker.serving))
            if self.worker.serving:
                return
            thread, self._thread = self._thread, None
            stopping = self._stopping  # a new server may start meanwhile
            if self._switch_interval_s == sys.getswitchinterval():
                sys.setswitchinterval(_PYTHONS_INTERVAL_S)
        self.master.close_all()
        here = self.plane.describe_rank(self._rank)
        stopped = errors.UnavailableError(f"the server on {here} was stopped.", hint="open a new session on a server that runs.")
        self.plane.progress.perform(lambda: self.worker.stop(stopped), "the service to stop")
        self.plane.progress.eager.discard(stopping)
        stopping.set()
        if thread is not None:
            thread.join()

    def _serve(self, stopping: threading.Event) -> None:
        self.plane.progress.serve(stopping.is_set, self.watch)

    def watch(self) -> None:
        """What is looked at now and then: lost ranks, and whether this rank rests."""
        now = time.perf_counter()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self.plane.look_for_losses()
            self._tell()

    # ---- the end of the job

    def join(self) -> None:
        """Wait for the end of the job; see ``train.Server.join``."""
        me = threading.current_thread()
        self._collect_s = 0.0
        self._joining.append(me)
        try:
            self.plane.progress.wait(self._is_over, self._describe_busy, 0, self._watch_join, _quiet)
        except Abandoned as abandoned:
            raise abandoned.error.with_traceback(None) from None
        finally:
            self._joining.remove(me)
            if not self.over:  # interrupted: before the others think that this script has come to its end
                self.plane.progress.perform(self._tell, "the service to hear that the script goes on")

    def await_end(self) -> None:
        """The same for a rank whose script has ended: the others may need its server, or go on though a rank is lost.

        Raises
        ------
        Abandoned
            If the job is broken, or rank 0 is lost.
        """

        def watch() -> None:
            self.plane.look()
            self._watch_join()

        self.plane.progress.wait(self._is_over, self._describe_busy, 0, watch, stall=log_stall)

    def _is_over(self) -> bool:
        return self.over

    def _watch_join(self) -> None:
        self.watch()
        if self.master.sessions and self._joining and time.perf_counter() >= self._collect_at:
            # A session that was dropped after an error lives on in the error's traceback.
            gc.collect()
            self._collect_s = max(2 * self._collect_s, _COLLECT_S)  # not for ever as often
            self._collect_at = time.perf_counter() + self._collect_s
        if self.plane.broken is not None:
            raise Abandoned(self.plane.broken)
        if 0 in self.plane.lost:
            raise Abandoned(self.plane.lost[0])

    def end(self) -> None:
        """The script of this process has ended: its sessions are closed; the services go on until all ranks have ended."""
        self.master.close_all()
        self._ended = True
        self.worker.closed = True
        self.plane.progress.perform(self._end, "the service to hear of the script's end")

    def close(self) -> None:
        """End the service thread: no message will come any more."""
        with self._lock:
            thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            thread.join()

    def _end(self) -> None:
        self.worker.admit()
        self._tell()

    def _rests(self) -> bool:
        if self._ended or not self._joining:
            return self._ended
        threads = [t for t in threading.enumerate() if t not in self._joining and t.is_alive() and not is_own(t)]
        if self.master.open_sessions() and any(t.daemon or not _idles(t) for t in threads if t is not threading.main_thread()):
            return False
        return not any(self._is_of_script(t) for t in threads)

    def _is_of_script(self, thread: threading.Thread) -> bool:
        """Whether the script's end would wait for it."""
        if thread is self._script:
            return True
        if thread is threading.main_thread():
            return not self._script.daemon
        return not thread.daemon and not _idles(thread)

    def _tell(self) -> None:
        """Tell rank 0 whether this rank rests, if that has changed."""
        rests = self._rests()
        if rests != self._told and not self.over and 0 not in self.plane.lost:
            with contextlib.suppress(errors.OpError):  # rank 0 is gone, which is found out by others
                self.plane.send_or_handle(0, Kind.REST, Rest(resting=rests, busy_with=self._busy()))
                self._told = rests
        if self._rank == 0 and self._told:
            self._decide()

    def _busy(self) -> str:
        sessions = sorted(session.where for session in self.master.open_sessions())
        if sessions:
            return f"{len(sessions)} open session(s), the first made at {sessions[0]}"
        return "its script" if not (self._joining or self._ended) else "threads of its script"

    def _hear_rest(self, source: int, message: Rest) -> None:
        """Rank 0: note what a rank told."""
        if self._rank != 0:
            raise errors.InvalidArgumentError("only rank 0 keeps the count of the ranks that rest.")
        self._resting[source] = message.resting
        self._busy_with[source] = message.busy_with
        self._decide()

    def _decide(self) -> None:
        if not self.over and all(self._resting.get(r) or r in self.plane.lost for r in range(self._size)):
            self.plane.send_all(Kind.REST_OVER, Rest())
            self.over = True
            self.plane.progress.ring()

    def _hear_over(self, source: int, message: Rest) -> None:
        if source != 0:
            raise errors.InvalidArgumentError("only rank 0 says that the job is over.")
        self.over = True
        self.plane.progress.ring()

    def _describe_busy(self) -> str:
        busy = [r for r in range(self._size) if not self._resting.get(r) and r != self._rank] if self._rank == 0 else []
        names = [f"{self.plane.describe_rank(r)}, busy with {self._busy_with.get(r, 'its script')}" for r in busy[:4]]
        return "the job to end" + (f": {'; '.join(names)}" if names else "")


def _idles(thread: threading.Thread) -> bool:
    """Whether it is a thread of a ``ThreadPoolExecutor`` without work: it never ends, but nothing waits for it either."""
    if getattr(thread, "_target", None) is not concurrent.futures.thread._worker:
        return False
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is concurrent.futures.thread._worker.__code__


def _quiet(report: str) -> None:
    """A server that waits for the end of its job has nothing to report."""
