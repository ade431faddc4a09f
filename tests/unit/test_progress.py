"""The progress engine under load: however threads come and go, every wait ends, once, with its own result."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from mpirt import errors
from mpirt.distributed import progress as progress_module
from mpirt.distributed.progress import Progress
from mpirt.distributed.turn import Turn


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Races show sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(count: int, work: Callable[[int], None], timeout_s: float = 30) -> None:
    """Call ``work(0)`` ... in threads; what one raises is raised here, and all must end in time."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    end = time.perf_counter() + timeout_s
    for thread in threads:
        thread.join(max(0.0, end - time.perf_counter()))
    if failed:
        raise failed[0]
    assert not any(thread.is_alive() for thread in threads), "a wait did not end"


class Network:
    """Replies to requests, as a control plane gives them: when it is polled, after some polls."""

    def __init__(self, seed: int) -> None:
        self.answered: set[int] = set()
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._due: list[list[int]] = []  # polls left, number
        self.polling = 0
        self.at_once = 0

    def ask(self, number: int) -> None:
        with self._lock:
            self._due.append([self._random.randrange(6), number])

    def poll(self) -> bool:
        self.polling += 1
        self.at_once = max(self.at_once, self.polling)
        found = False
        with self._lock:
            for entry in self._due.copy():
                entry[0] -= 1
                if entry[0] < 0:
                    self._due.remove(entry)
                    self.answered.add(entry[1])
                    found = True
        self.polling -= 1
        return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("service", [False, True], ids=["alone", "with a service thread"])
def test_no_wait_of_many_threads_is_lost_and_one_thread_polls_at_a_time(seed: int, service: bool) -> None:
    network = Network(seed)
    progress = Progress(network.poll)
    stopped = threading.Event()
    ends = [0, 0]  # answers, deadlines

    def one_wait(request: int, r: random.Random) -> None:
        def answered() -> bool:
            return request in network.answered

        kind = r.random()
        if kind < 0.15:  # never answered
            with pytest.raises(errors.DeadlineExceededError):
                progress.wait(answered, lambda: "nothing", r.choice([1e-4, 1e-3, 3e-3]))
            ends[1] += 1
        elif kind < 0.3:
            done = threading.Event()
            progress.perform(done.set, "an action")
            assert done.is_set()
        elif kind < 0.45:  # carried on by whoever leads, as a suspended step is
            network.ask(request)
            went = threading.Event()
            progress.when(answered, went.set)
            progress.wait(went.is_set, lambda: f"what follows request {request}", 10)
        elif kind < 0.55:  # comes about in this process
            local = threading.Event()
            threading.Timer(1e-3 * r.random(), lambda: (local.set(), progress.ring())).start()
            progress.wait(local.is_set, lambda: "a bell", 10)
        else:
            network.ask(request)
            progress.wait(answered, lambda: f"request {request}", 10)
            ends[0] += 1

    def client(number: int) -> None:
        r = random.Random(seed * 100 + number)
        for i in range(300):
            one_wait(number * 1000 + i, r)

    server = threading.Thread(target=progress.serve, args=(stopped.is_set, lambda: None), daemon=True)
    if service:
        server.start()
    try:
        in_threads(8, client)
    finally:
        stopped.set()
    if service:
        server.join(2)
        assert not server.is_alive()
    assert network.at_once == 1
    assert ends[0] > 500 and ends[1] > 100


def test_what_is_forgotten_takes_nothing_else_with_it() -> None:
    """Others suspend their steps while the leader forgets one. And a follower may go while the leader asks whether it is ready."""
    progress = Progress(lambda: False)
    stopped = threading.Event()
    went: list[int] = []

    def forgets(number: int) -> None:
        if number == 0:
            while not stopped.is_set():
                def go() -> None:
                    raise AssertionError("was forgotten")

                def swap() -> None:
                    progress.when(lambda: False, go)
                    progress.forget(go)

                progress.perform(swap, "to forget")
            return
        try:
            for i in range(400):
                done = threading.Event()
                progress.when(lambda: True, done.set)
                progress.wait(done.is_set, lambda: "what was suspended", 5)
                went.append(i)
        finally:
            if number == 1:
                stopped.set()

    in_threads(4, forgets)
    assert len(went) == 1200


class Leader:
    """A thread that leads until it is told to stop."""

    def __init__(self, progress: Progress) -> None:
        self._stopped = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._lead, args=(progress,), daemon=True)

    def _lead(self, progress: Progress) -> None:
        try:
            progress.wait(lambda: self._stopped, lambda: "the test's end", 30)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Leader:
        self._thread.start()
        time.sleep(0.01)  # it leads by now; if not, the test tests less
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        self._thread.join(5)
        assert not self._thread.is_alive() and self.error is None, self.error


def test_only_one_thread_at_a_time_asks_whether_a_wait_is_over() -> None:
    """Also when its deadline passes while the leader asks: a request of MPI is no longer in use once its wait has ended."""
    progress = Progress(lambda: False)
    asking: list[int] = []
    together: list[int] = []

    def ready() -> bool:
        asking.append(1)
        together.append(len(asking))
        time.sleep(0.003)
        asking.pop()
        return False

    with Leader(progress):
        for _ in range(5):
            with pytest.raises(errors.DeadlineExceededError):
                progress.wait(ready, lambda: "what never comes", 0.005)
            assert not asking
    assert max(together) == 1


def test_a_follower_that_is_interrupted_is_asked_no_more() -> None:
    progress = Progress(lambda: False)
    asked: list[int] = []
    interrupted = threading.Event()

    def follow() -> None:
        try:
            progress.wait(lambda: bool(asked.append(1)), lambda: "what never comes", 30)
        except KeyboardInterrupt:
            interrupted.set()

    with Leader(progress):
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        time.sleep(0.02)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt))
        assert interrupted.wait(5)
        progress.perform(lambda: None, "a turn")
        before = len(asked)
        for _ in range(20):
            progress.perform(lambda: None, "a turn")
        assert len(asked) == before > 0


def test_an_error_of_a_followers_condition_is_the_followers() -> None:
    progress = Progress(lambda: False)
    main = threading.get_ident()

    def ready() -> bool:
        if threading.get_ident() != main:
            raise errors.DataLossError("lost")
        return False

    with Leader(progress), pytest.raises(errors.DataLossError, match="^lost$"):
        progress.wait(ready, lambda: "an error", 5)


def test_a_spin_that_could_not_lead_leaves_no_trace() -> None:
    """A leader who is busy for long keeps the lead later on."""
    progress = Progress(lambda: False)
    began = threading.Event()

    def long() -> None:
        began.set()
        time.sleep(0.02)

    with Leader(progress):
        progress.when(lambda: True, long)
        progress.ring()
        assert began.wait(5)
        assert not progress.spin(lambda: False, 1e-4)
        assert not progress._wanted


def test_the_turn_of_an_interrupted_thread_goes_to_the_next() -> None:
    turn = Turn()
    turn.take()
    interrupted = threading.Event()

    def wait() -> None:
        try:
            turn.take()
        except KeyboardInterrupt:
            interrupted.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.01)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt))
    assert interrupted.wait(5)

    def many(number: int) -> None:
        for _ in range(500):
            turn.take()
            turn.give()

    turn.give()
    in_threads(4, many)


def test_a_glance_carries_on_what_waits_unless_another_thread_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    polls: list[int] = []
    requests = [3]  # each is found by one poll

    def poll() -> bool:
        polls.append(threading.get_ident())
        requests[0] -= 1
        return requests[0] >= 0

    progress = Progress(poll)
    went: list[str] = []
    progress.when(lambda: True, lambda: went.append("carried on"))
    progress.glance()
    assert went == ["carried on"] and len(polls) == 4, "until a look finds nothing"
    progress.glance()
    assert len(polls) == 4, "not at once again"
    now[0] += 1e-4
    assert progress._leading.acquire(False)
    progress.glance()
    assert len(polls) == 4, "another thread leads, and finds it"
    progress._leading.release()
    now[0] += 1e-4
    requests[0] = 1000
    progress.glance()
    assert len(polls) == 12, "the thread has a step of its own"


def test_the_service_thread_leaves_the_looking_to_a_thread_that_glances(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        now[0] = round(now[0] + seconds, 6)
        if now[0] < 1.05:
            progress.glance()  # the other thread's

    monkeypatch.setattr(progress_module, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    progress = Progress(lambda: bool(polls.append(now[0])))
    progress.glance()
    led: list[float] = []  # when the service thread has looked
    progress.serve(lambda: now[0] > 1.06, lambda: led.append(now[0]))
    assert len([t for t in polls if t < 1.05]) == 50, "the other thread's glances"
    assert 1.05 <= led[0] < 1.0525, "a millisecond or two after the last of them"
