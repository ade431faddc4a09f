"""Steps of servers that fail, are cancelled, interrupted or too late: what the client hears, and that all goes on."""

from __future__ import annotations

import gc
import re
import threading
import time
from typing import Any

import pytest

import mpirt as tf
from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.control_pb2 import ErrorRecord, Reply, StepDone
from mpirt.distributed.master import Step, _Request
from mpirt.transport.loopback import LoopbackWorld
from tests.loopback.serving import served, session_on

SEEDS = [None, 1, 2, 3]
LINE = re.compile(r"test_servers_failures\.py:\d+")


def on(task: int) -> Any:
    """Device block of a worker."""
    return tf.device(f"/job:worker/task:{task}")


class Chain:
    """x (fed by the client) -> picked (task 1) -> doubled (task 2), and a counter on task 2 that must not be touched by failures."""

    def __init__(self) -> None:
        self.x = tf.placeholder(tf.float32, [3])
        with on(1):
            self.picked = tf.gather(self.x, tf.cast(self.x[0], tf.int32), name="pick")
        with on(2):
            self.counter = tf.Variable(0.0)
            self.doubled = self.picked * 2.0
            with tf.control_dependencies([self.doubled]):
                self.count = self.counter.assign_add(1.0)
        with on(0):
            self.result = self.doubled + 1.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", [0, 1, 3])
def test_a_failure_on_one_of_three_ranks_reaches_the_client_with_class_place_and_line_and_the_session_goes_on(
    target: int, seed: int | None
) -> None:
    def run(rank: int, cluster: Cluster) -> Any:
        chain = Chain()
        with session_on(f"worker:{target}", cluster) as session:
            session.run(chain.counter.initializer)
            fetches = [chain.result, chain.count]
            found = []
            for i in range(6):
                if i % 2:
                    with pytest.raises(errors.InvalidArgumentError) as caught:
                        session.run(fetches, {chain.x: [7, 0, 0]})
                    found.append(caught.value)
                else:
                    assert session.run(fetches, {chain.x: [1, 5, 0]}) == [11, i / 2 + 1]
            return found, chain.picked.op

    found, op = served(4, run, seed=seed)[0]
    for error in found:
        assert error.op is op, "the operation of the client's own graph"
        assert error.where == op.location and LINE.search(error.where)
        assert re.match(r"rank 1 \(host \S+, pid \d+, /job:worker/task:1\), /job:worker/task:1/device:CPU:0", error.origin)
        assert error.message == "'pick': indices = 7 is not in [0, 3)."


def test_a_failure_inside_a_body_on_another_rank_tells_the_users_line() -> None:
    def run(rank: int, cluster: Cluster) -> Any:
        x = tf.placeholder(tf.float32, [2])
        with on(1):
            picked = tf.cond(tf.constant(True), lambda: tf.gather(x, 9, name="inside"), lambda: x[0], name="choice")
        with session_on("worker:0", cluster) as session, pytest.raises(errors.InvalidArgumentError) as caught:
            session.run(picked, {x: [1, 2]})
        return caught.value

    error = served(2, run)[0]
    assert "inside" in error.message and "'choice'" in error.message
    assert LINE.search(error.where) and "<GraphDef>" not in str(error), str(error)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_python_function_on_another_rank_fails_with_its_class_and_traceback(seed: int | None) -> None:
    def fails(x: Any) -> Any:
        raise ZeroDivisionError("no way")

    def run(rank: int, cluster: Cluster) -> None:
        with on(1):
            y = tf.py_func(fails, [tf.constant(1.0)], tf.float32)
        with on(2):
            z = tf.identity(y)
        with session_on("worker:0", cluster) as session:
            for _ in range(3):
                with pytest.raises(errors.UnknownError) as caught:
                    session.run(z)
                assert "ZeroDivisionError: no way" in caught.value.message and "in fails" in caught.value.message
                assert caught.value.origin.startswith("rank 1 (")

    served(3, run, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_steps_at_once_of_which_one_fails_don_t_meet(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        chain = Chain()
        wrong: list[Any] = []
        with session_on("worker:1", cluster) as session:
            session.run(chain.counter.initializer)

            def work(bad: bool) -> None:
                for i in range(15):
                    try:
                        found = session.run(chain.result, {chain.x: [7 if bad else 1, i, 0]})
                        if bad or found != 2 * i + 1:
                            wrong.append(found)
                    except errors.InvalidArgumentError as error:
                        if not bad:
                            wrong.append(error)

            threads = [threading.Thread(target=work, args=(bad,)) for bad in (True, False, True, False)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []

    served(3, run, seed=seed)


class Gate:
    """A Python function that waits until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, x: Any) -> Any:
        self.reached.set()
        self.open.wait(10)
        return x


@pytest.mark.parametrize("seed", SEEDS)
def test_a_deadline_ends_a_step_whose_part_elsewhere_waits_and_the_next_step_is_whole(seed: int | None) -> None:
    """Rank 2 is suspended, waiting for rank 1, which is in a Python function; then both are used again."""

    def run(rank: int, cluster: Cluster) -> None:
        gate = Gate()
        x = tf.placeholder(tf.float32, [])
        with on(1):
            held = tf.py_func(gate, [x], tf.float32)
            held.set_shape([])
        with on(2):
            y = held * 2.0
        with session_on("worker:0", cluster) as session:
            start = time.perf_counter()
            with pytest.raises(errors.DeadlineExceededError) as caught:
                session.run(y, {x: 1.0}, options=tf.RunOptions(timeout_in_ms=200))
            assert 0.2 <= time.perf_counter() - start < 0.7
            assert "did not end within its timeout of 0.2 s; it was waiting for tensor " in caught.value.message
            assert session.run(tf.constant(1.0) + 1) == 2
            gate.open.set()
            assert [float(session.run(y, {x: float(i)})) for i in range(5)] == [0, 2, 4, 6, 8], "no value of the step before"

    served(3, run, seed=seed)


@pytest.mark.parametrize("where", ["elsewhere", "here"])
@pytest.mark.parametrize("seed", [None, 1])
def test_close_ends_blocked_steps_of_other_threads_within_100_ms(where: str, seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> Any:
        gate = Gate()
        with on(1):
            held = tf.py_func(gate, [tf.constant(1.0)], tf.float32)
        with on(2 if where == "elsewhere" else 0):
            y = tf.identity(held)
        session = session_on("worker:0", cluster)
        caught: list[tuple[float, BaseException]] = []

        def work() -> None:
            try:
                session.run(y if where == "here" else y.op)
            except BaseException as error:
                caught.append((time.perf_counter(), error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        gate.reached.wait(5)
        start = time.perf_counter()
        session.close()
        for thread in threads:
            thread.join(5)
        gate.open.set()
        return [(t - start, error) for t, error in caught]

    caught = served(3, run, seed=seed)[0]
    assert len(caught) == 3
    for seconds, error in caught:
        assert isinstance(error, errors.CancelledError), error
        assert error.message == "the session was closed while this step was running."
        assert seconds < 0.1, seconds


@pytest.mark.parametrize("seed", SEEDS)
def test_an_interrupted_step_leaves_nothing_behind_for_the_next(seed: int | None) -> None:
    """Ctrl-C in a notebook: while the client's own part computes, with a message still to send, and while it waits."""

    def run(rank: int, cluster: Cluster) -> None:
        interrupt = True

        def maybe(x: Any) -> Any:
            if interrupt:
                raise KeyboardInterrupt
            return x

        x = tf.placeholder(tf.float32, [])
        with on(0):
            first = tf.py_func(maybe, [x], tf.float32)
            first.set_shape([])
        with on(1):
            y = first * 2.0 + x
        with session_on("worker:1", cluster) as session:
            for _ in range(3):
                interrupt = True
                with pytest.raises(KeyboardInterrupt):
                    session.run(y, {x: 100.0})
                interrupt = False
                assert [float(session.run(y, {x: float(i)})) for i in range(3)] == [0, 3, 6]
            start = time.perf_counter()
        assert time.perf_counter() - start < 0.4, "closing finds all at rest"

    served(2, run, seed=seed)


def test_a_failure_of_the_clients_own_part_is_told_though_the_others_end_dead_before_it_is_noted() -> None:
    """Their answers may be handled by another thread before the client's has come to say what failed."""

    class NoMaster:
        numbers = iter([1])

    step = Step(NoMaster(), None, [1, 2])  # type: ignore[arg-type]
    for rank in (1, 2):
        step.hear(rank, StepDone(step=1, dead=True))
    assert step.over() and step.error is None
    mine = errors.InvalidArgumentError("mine")
    step.fail(mine)
    assert step.error is mine


def test_the_first_failure_is_the_one_that_counts() -> None:
    class NoMaster:
        numbers = iter([1])

    step = Step(NoMaster(), None, [1, 2])  # type: ignore[arg-type]
    step.hear(1, StepDone(step=1, dead=True))
    step.hear(2, StepDone(step=1, error=ErrorRecord(kind="OutOfRangeError", message="the end")))
    assert isinstance(step.error, errors.OutOfRangeError)


def test_a_step_that_begins_while_its_session_closes_is_cancelled_and_waits_for_nobody() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with on(1):
            y = tf.constant(1.0) + 1.0
        session = session_on("worker:0", cluster)
        session.run(y)
        runner = session._runner
        new_lane, runner._signatures = runner._new_lane, dict(runner._signatures)  # type: ignore[attr-defined]

        def closing(signature: Any) -> Any:
            session.close()
            return new_lane(signature)

        runner._new_lane = closing  # type: ignore[attr-defined,method-assign]
        next(iter(runner._signatures.values())).lanes.clear()  # type: ignore[attr-defined]
        with pytest.raises(errors.CancelledError, match=r"^the session was closed while this step was running\.$"):
            session.run(y)
        assert not cluster.master.steps and not cluster.plane.progress._suspended

    served(2, run)


class Watched(set[int]):
    """Calls ``see()`` whenever a rank is taken out."""

    def __init__(self, ranks: list[int], see: Any) -> None:
        super().__init__(ranks)
        self._see = see

    def discard(self, rank: int) -> None:
        self._see()
        super().discard(rank)


def test_whoever_sees_that_all_ranks_have_answered_sees_what_failed_too() -> None:
    """The client's thread looks without a lock while another one handles the answer."""
    failed = ErrorRecord(kind="OutOfRangeError", message="the end")

    class NoMaster:
        numbers = iter([1])

    step = Step(NoMaster(), None, [1])  # type: ignore[arg-type]
    seen: list[Any] = []
    step.outstanding = Watched([1], lambda: seen.append(step.error))
    step.hear(1, StepDone(step=1, error=failed))

    master = Cluster(LoopbackWorld(1).transport(0), ClusterSpec({"worker": 1})).master
    request = master._requests[7] = _Request(set())
    request.missing = Watched([1], lambda: seen.append(request.error))
    master._reply(1, Reply(request=7, error=failed))
    assert [type(error) for error in seen] == [errors.OutOfRangeError] * 2


@pytest.mark.parametrize("seed", [None, 1])
def test_a_session_that_is_dropped_without_being_closed_is_forgotten_by_its_ranks(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with on(1):
            y = tf.constant(1.0) + 1.0
        session = session_on("worker:0", cluster)
        session.run(y)
        worker = cluster.plane.transport.world.services[1]  # type: ignore[attr-defined]
        assert worker.num_sessions == 1
        del session
        gc.collect()
        end = time.perf_counter() + 5
        while worker.num_sessions and time.perf_counter() < end:
            time.sleep(1e-3)
        assert worker.num_sessions == 0

    def keep(rank: int, cluster: Cluster) -> None:
        run(rank, cluster)

    served(2, with_services(keep), clients=[0, 1], seed=seed)


def with_services(client: Any) -> Any:
    """A client on rank 0 that can look at the worker services of all ranks."""

    def run(rank: int, cluster: Cluster) -> Any:
        world = cluster.plane.transport.world  # type: ignore[attr-defined]
        services = world.__dict__.setdefault("services", {})
        services[rank] = cluster.service.worker
        if rank:
            return None
        while len(services) < cluster.size:
            time.sleep(1e-3)
        return client(rank, cluster)

    return run


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ends", ["failure", "deadline", "close"])
def test_a_step_that_ends_is_cancelled_where_it_waits_and_takes_nothing_later(ends: str, seed: int | None) -> None:
    """Rank 2 waits for an element of a queue: an element that comes afterwards belongs to the next step."""

    def run(rank: int, cluster: Cluster) -> None:
        x = tf.placeholder(tf.int32, [])
        with on(1):
            picked = tf.gather([1.0, 2.0], x)
        with on(2):
            queue = tf.FIFOQueue(10, tf.float32, shapes=[[]], shared_name="jobs")
            taken = queue.dequeue()
            put = queue.enqueue(tf.constant(5.0))
        with session_on("worker:0", cluster) as session:
            if ends == "failure":
                with pytest.raises(errors.InvalidArgumentError):
                    session.run([picked, taken], {x: 7})
            elif ends == "deadline":
                with pytest.raises(errors.DeadlineExceededError, match="waiting for tensor 'fifo_queue_Dequeue:0' from .*task:2"):
                    session.run([picked, taken], {x: 0}, options=tf.RunOptions(timeout_in_ms=100))
            else:
                other = session_on("worker:1", cluster)
                thread = threading.Thread(target=lambda: pytest.raises(errors.CancelledError, other.run, [picked, taken], {x: 0}))
                thread.start()
                while not other._runner._running:  # type: ignore[attr-defined]
                    time.sleep(1e-3)
                other.close()
                thread.join()
            session.run(put)
            assert session.run([picked, taken], {x: 1}) == [2, 5]

    served(3, run, seed=seed)
