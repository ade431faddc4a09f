"""The progress engine: one thread at a time moves everything on, for all threads of the process.

Whoever waits may lead. The leader polls the control messages, carries on what was suspended (steps that other ranks'
masters started here), tests what the other waiting threads wait for, and wakes them. The others sleep meanwhile: two threads
that poll at once take the interpreter lock from each other for milliseconds. Guarantees:

- a wait returns when its condition holds, whichever thread found out;
- what is carried on, and every handler of a control message, runs under the leadership: never two at once;
- a leader whose wait is over goes; a follower or the service thread takes over within a millisecond, or the 64th part of
  the time that it has waited;
- a thread that computes may lead for a moment between two operations (`Progress.glance`), so that this rank answers others
  at once: the service thread would need the interpreter lock for it, and while it sleeps the others wait.

Owns: who polls, and how waits share it. Does not own: messages (``control``), what is carried on (``worker``).
Background: progress in MPI-4.0 section 2.9 is made by whoever calls; the same idea one floor up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from mpirt.transport.base import IDLE_EVERY_S, Patience, log_stall

_log = logging.getLogger("mpirt")
# A follower looks this often whether the leadership has become vacant; less often once it has followed for long, since that costs.
_FOLLOW_S, _LONGEST_FOLLOW_S, _FOLLOW_SHARE = 1e-3, 5e-3, 1 / 64
# Two ranks that talk to each other must not both begin to sleep: a sleep takes 0.1 ms at least, and is the other's reason for one.
_YIELD_S = 1e-3
_SHORTEST_NAP_S, _LONGEST_NAP_S, _NAP_GROWTH = 50e-6, 1e-3, 1.5
# The service thread looks this often whether the leader has gone. Longer beside one that leads for long; not at once: with short
# steps that cost nine tenths of the speed, since a rank whose leader had gone answered nobody for 10 ms.
_BESIDE_A_LEADER_S, _LONGEST_BESIDE_S = 1e-3, 10e-3
# A glance in vain takes about 1 us; one that finds something ends after so many turns, whoever asks for more.
_BETWEEN_GLANCES_S, _TURNS_OF_A_GLANCE = 20e-6, range(8)


class _Follower:
    """A thread that sleeps while another one leads."""

    __slots__ = ("ready", "bell", "done", "error")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.ready = ready
        self.bell = threading.Lock()
        self.bell.acquire()
        self.done = False
        self.error: Exception | None = None


class Progress:
    """The progress of one process.

    Parameters
    ----------
    poll : handles the control messages that have come; True if there were any
    """

    def __init__(self, poll: Callable[[], bool]) -> None:
        self._poll = poll
        self._leading = threading.Lock()
        self._followers: list[_Follower] = []
        self._suspended: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._bell = threading.Lock()
        self._bell.acquire()
        self._napping = False
        self._woke_others = False
        self._testing: _Follower | None = None  # whose condition the leader looks at
        self._wanted = False  # whether a thread wants to lead for a moment
        self._in_service = False  # whether the leader is the service thread
        self._glanced_at = 0.0  # when a thread that computes has last looked
        self.eager: set[object] = set()  # while not empty, every turn of a wait polls control messages, not only one in 100 us

    def wait(
        self,
        ready: Callable[[], bool],
        what: Callable[[], str],
        timeout_s: float | None = None,
        on_idle: Callable[[], None] | None = None,
        stall: Callable[[str], None] = log_stall,
    ) -> None:
        """Wait until ``ready()`` is true; see ``transport.base.wait_until`` for the parameters.

        Raises
        ------
        DeadlineExceededError
            After ``timeout_s``; and what ``ready`` and ``on_idle`` raise.
        """
        if ready():
            return
        patience = Patience(what, timeout_s, stall, _YIELD_S)
        follow_s = _FOLLOW_S
        follower = None
        while True:
            if self._leading.acquire(False) or (self._in_service and self._leading.acquire(timeout=_FOLLOW_S)):
                try:
                    if self._lead(ready, patience, on_idle):
                        return
                finally:
                    self._leading.release()
            if follower is None:
                follower = _Follower(ready)
            self._follow(follower, follow_s)
            if follower.error is not None:
                raise follower.error
            if follower.done:
                return
            waited_s = patience.check() - patience.start
            follow_s = min(max(_FOLLOW_S, waited_s * _FOLLOW_SHARE), _LONGEST_FOLLOW_S)

    def spin(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Lead for a short time, in the place of whoever leads; True once ``ready()`` is."""
        if not self._leading.acquire(False):
            self._wanted = True
            self.ring()
            leads = self._leading.acquire(timeout=_FOLLOW_S)
            self._wanted = False
            if not leads:
                return ready()
        try:
            end = time.perf_counter() + seconds
            while not ready():
                self._turn()
                if time.perf_counter() > end:
                    return ready()
            return True
        finally:
            self._leading.release()

    def when(self, ready: Callable[[], bool], go: Callable[[], None]) -> None:
        """Call ``go()`` once ``ready()`` is true, by whichever thread leads then."""
        self._suspended.append((ready, go))

    def soon(self, go: Callable[[], None]) -> None:
        """Call ``go()`` under the leadership, at the next turn of whoever leads."""
        self.when(_at_once, go)
        self.ring()

    def forget(self, go: Callable[[], None]) -> None:
        """Don't call ``go()`` any more. Under the leadership."""
        for item in [item for item in self._suspended if item[1] == go]:
            self._suspended.remove(item)  # in place: other threads append to this list

    def perform(self, action: Callable[[], None], what: str) -> None:
        """Call ``action()`` under the leadership, and wait until that is done. Not from within it."""
        done: list[bool] = []

        def go() -> None:
            try:
                action()
            finally:
                done.append(True)

        self.soon(go)
        self.wait(lambda: bool(done), lambda: what)

    def try_turn(self) -> None:
        """Look at everything once, unless another thread leads, which will."""
        if self._leading.acquire(False):
            try:
                self._turn()
            finally:
                self._leading.release()

    def glance(self) -> None:
        """Look at everything, unless another thread leads: what a thread that computes does between two operations.

        As long as that happens once in a millisecond the service thread stays away. Not from within the leadership.
        """
        now = time.perf_counter()
        if now - self._glanced_at < _BETWEEN_GLANCES_S:
            return
        self._glanced_at = now
        if self._leading.acquire(False):
            try:
                for _ in _TURNS_OF_A_GLANCE:
                    if not self._turn():
                        break
            finally:
                self._leading.release()

    def ring(self) -> None:
        """Something that a wait may be for has come about in this process: look at once."""
        if self._napping:
            try:
                self._bell.release()
            except RuntimeError:  # another thread has rung it
                pass

    def serve(self, stopped: Callable[[], bool], watch: Callable[[], None]) -> None:
        """What a service thread does: lead whenever nobody else does. It sleeps without leading, so that a wait can begin at once.

        ``watch()`` is called under the leadership, at every turn after which nothing has happened.
        """
        pause_s, beside_s = _SHORTEST_NAP_S, _BESIDE_A_LEADER_S
        while not stopped():
            if time.perf_counter() - self._glanced_at < _BESIDE_A_LEADER_S:
                time.sleep(_BESIDE_A_LEADER_S)
                continue
            if not self._leading.acquire(False):
                time.sleep(beside_s)
                beside_s = min(beside_s * _NAP_GROWTH, _LONGEST_BESIDE_S)
                continue
            self._in_service = True  # for a moment only: whoever wants to lead waits
            try:
                busy = self._turn()
                if not busy:
                    watch()
            finally:
                self._in_service = False
                self._leading.release()
            if busy:
                beside_s = _BESIDE_A_LEADER_S
            pause_s = _SHORTEST_NAP_S if busy else min(pause_s * _NAP_GROWTH, _LONGEST_NAP_S)
            time.sleep(pause_s)

    def _lead(self, ready: Callable[[], bool], patience: Patience, on_idle: Callable[[], None] | None) -> bool:
        """Move everything on until ``ready()`` (True), or until others were woken or want to lead for a moment (False)."""
        next_idle = 0.0
        self._woke_others = False  # somebody else did, before
        while True:
            now = patience.check()
            idle = now >= next_idle
            if (idle or self.eager or self._suspended or self._followers) and self._turn():
                patience.awake()
            if ready():
                return True
            if self._woke_others or self._wanted:
                return False
            if idle:
                next_idle = now + IDLE_EVERY_S
                if on_idle is not None:
                    on_idle()
            patience.pause(now, self._nap)

    def _turn(self) -> bool:
        """Look at everything once; True if something had happened."""
        busy = self._poll()
        if self._suspended:
            for item in self._suspended.copy():
                ready, go = item
                if _holds(ready) and item in self._suspended:  # else an earlier one has had it forgotten
                    self._suspended.remove(item)
                    busy = True
                    try:
                        go()
                    except Exception:  # it is nobody's who waits here
                        _log.exception("an error of mpirt, please report it")
        if self._followers:
            for follower in self._followers.copy():
                busy |= self._look_for(follower)
        return busy

    def _look_for(self, follower: _Follower) -> bool:
        """Wake a follower whose wait is over; True if it is."""
        if follower.done or follower.error is not None:
            return False  # it was woken and hasn't run since
        self._testing = follower
        try:
            if follower not in self._followers:
                return False  # it has gone to look for itself
            follower.done = follower.ready()
        except Exception as error:  # it is the follower's
            follower.error = error
        finally:
            self._testing = None
        if not follower.done and follower.error is None:
            return False
        self._woke_others = True
        follower.bell.release()
        return True

    def _follow(self, follower: _Follower, seconds: float) -> None:
        self._followers.append(follower)
        try:
            follower.bell.acquire(timeout=seconds)
        finally:  # also at an interrupt of this thread
            self._followers.remove(follower)
        while self._testing is follower:  # the leader may be in the middle of what only one thread may do
            time.sleep(0)

    def _nap(self, seconds: float) -> None:
        self._napping = True
        self._bell.acquire(timeout=seconds)
        self._napping = False


def _at_once() -> bool:
    return True


def _holds(ready: Callable[[], bool]) -> bool:
    """Whether it is ready; a failure counts, which whoever goes on will meet again."""
    try:
        return ready()
    except Exception:
        return True
