"""What goes wrong on one of several ranks: one error everywhere, nothing left behind, no hang. On simulated ranks."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.distributed import collective, control
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import Outcome, Traffic, run_ranks, values
from tests.loopback.test_collective_session import traffic_of, worker

SEEDS = [None, 1, 2]
Caught = pytest.ExceptionInfo[Any]


@pytest.fixture(autouse=True)
def quick_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_STATUS_AFTER_S", 0.05)


def lines_hidden(error: BaseException) -> str:
    return re.sub(r"[^ ]*/(\w+\.py):\d+", r"\1:N", str(error))


def chain(fails: Callable[[float], float]) -> tuple[Any, Any]:
    """x on task 0 -> a function that may fail on task 1 -> y on task 2."""
    with worker(0):
        x = tf.placeholder(tf.float64, [], name="x")
        sent = x + 0.0
    with worker(1):
        middle = tf.py_func(fails, [sent], tf.float64, name="middle")
    with worker(2):
        y = tf.add(middle, sent, name="y")
    return x, y


def fail_below_zero(x: float) -> float:
    if x < 0:
        raise ValueError(f"{float(x):g} is below zero")
    return x


# ------------------------------------------------------------------------------------------------ errors of kernels


@pytest.mark.parametrize("fetch_on", ["all", "owner"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_kernel_error_is_the_same_on_all_ranks_and_leaves_nothing_behind(
    seed: int | None, fetch_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_STATUS_AFTER_S", 60.0)  # the traffic is counted: nobody tells where it stands

    def script(rank: int, cluster: Cluster) -> Any:
        x, y = chain(fail_below_zero)
        with tf.Session(cluster=cluster, fetch_on=fetch_on) as session:
            session.run(y, {x: 1.0})
            clean = traffic_of(session, cluster, y, {x: 1.0}, 100)
            errors = []
            for i in range(5):
                with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                    session.run(y, {x: -1.0 - i})
                errors.append(caught.value)
                assert session.run(y, {x: 2.0}) in (4.0, None)
            after = traffic_of(session, cluster, y, {x: 1.0}, 100)
            return errors, clean == after, session.run(y, {x: 5.0}), cluster.describe_rank(1)

    outcomes = values(4, script, {"worker": 3}, seed)
    for rank, (errors, exact, last, where) in enumerate(outcomes):
        assert exact
        assert last == 10.0 or (fetch_on == "owner" and rank != 2 and last is None)
        assert [str(e) for e in errors] == [str(e) for e in outcomes[0][0]]
        for i, error in enumerate(errors):
            assert type(error) is tf.errors.InvalidArgumentError and error.code == tf.errors.INVALID_ARGUMENT
            assert error.op.name == "middle" and error.node_def.name == "middle"
            assert error.origin == f"{where}, /job:worker/task:1/device:CPU:0"
            assert error.message.startswith(
                f"'middle' (PyFunc): the Python function failed with ValueError: {-1 - i} is below zero\nTraceback"
            )
            assert lines_hidden(error).endswith(
                f"\n  defined at test_collective_failures.py:N.\n  failed on {where}, /job:worker/task:1/device:CPU:0."
            )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("large", [False, True])
def test_a_failure_reaches_those_who_wait_for_tensors_of_unknown_shape(seed: int | None, large: bool) -> None:
    size = 5000 if large else 2

    def make(fail: bool) -> Any:
        if fail:
            raise LookupError("nothing there")
        return np.arange(float(size))

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            flag = tf.placeholder(tf.bool, [])
            data = tf.py_func(make, [flag], tf.float64)
            static = tf.py_func(make, [flag], tf.float64)
            static.set_shape([size])
        with worker(1):
            a, b = data + 1.0, static + 1.0
        with worker(0):
            c = a + b
        with tf.Session(cluster=cluster) as session:
            found = []
            for fail in (False, True, True, False):
                if fail:
                    with pytest.raises(tf.errors.UnknownError, match="LookupError: nothing there"):
                        session.run([c, data], {flag: fail})
                else:
                    found.append(float(np.sum(session.run([c, data], {flag: fail})[0])))
            return found

    expected = 2 * (size * (size - 1) / 2 + size)
    assert values(3, script, {"worker": 2}, seed) == [[expected, expected]] * 3


@pytest.mark.parametrize("seed", [None, *range(8)])
def test_of_two_failures_all_ranks_report_the_one_that_comes_first_in_the_order_of_the_step(seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        fetches = []
        for task in (2, 0, 1):
            with worker(task):
                x = tf.constant(-1.0 - task, tf.float64)
                fetches.append(tf.py_func(fail_below_zero, [x], tf.float64, name=f"on_{task}"))
        with tf.Session(cluster=cluster) as session:
            found = []
            for _ in range(3):
                with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                    session.run(fetches)
                found.append((caught.value.op.name, str(caught.value)))
            return found

    outcomes = values(4, script, {"worker": 3}, seed)
    assert outcomes == [outcomes[0]] * 4
    assert [name for name, _ in outcomes[0]] == ["on_2"] * 3


@pytest.mark.parametrize("fetch_on", ["all", "owner"])
@pytest.mark.parametrize("fetch", ["the variable", "its value", "what is computed from it"])
@pytest.mark.parametrize("seed", [None, 1])
def test_an_uninitialised_variable_is_a_failed_precondition_on_every_rank(fetch: str, fetch_on: str, seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            v = tf.Variable([1.0], name="v")
        with worker(0):
            y = v * 2.0
        wanted = {"the variable": v, "its value": v.value(), "what is computed from it": y}[fetch]
        with tf.Session(cluster=cluster, fetch_on=fetch_on) as session:
            with pytest.raises(tf.errors.FailedPreconditionError) as caught:
                session.run(wanted)
            session.run(v.initializer)
            session.run(wanted)
            return caught.value.message, caught.value.origin.partition(",")[0], caught.value.hint

    hint = "run its initializer first (tf.global_variables_initializer()), in a run of its own, or restore a checkpoint."
    for message, origin, mend in values(3, script, {"worker": 2}, seed):
        assert message == "Attempting to use uninitialized value v" and mend == hint and origin.startswith("rank 1 (host")


def test_an_operation_that_cannot_be_placed_is_refused_on_every_rank_and_the_session_goes_on() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with tf.device("/job:ps/task:0"):
            a = tf.constant(1, name="a")
        with worker(1):
            b = tf.constant(2)
        with tf.Session(cluster=cluster) as session:
            for _ in range(2):
                with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                    session.run(a)
            return caught.value.message, int(session.run(b))

    message = (
        "cannot place 'a' on /job:ps/task:0: there is no job 'ps'; jobs are worker."
        " All devices: /job:worker/task:0/device:CPU:0, /job:worker/task:1/device:CPU:0."
    )
    assert values(2, script, {"worker": 2}) == [(message, 2)] * 2


def test_run_inside_a_function_of_the_graph_is_refused_on_every_rank() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            one = tf.constant(1)
            y = tf.py_func(lambda: session.run(one), [], tf.int32, name="inner")
        session = tf.Session(cluster=cluster)
        with pytest.raises(tf.errors.FailedPreconditionError) as caught:
            session.run(y)
        return re.sub(r"at [^ ]*\.py:\d+", "at HERE", caught.value.message), int(session.run(one))

    message = "run() was called inside a step: run([inner:0]) of session 0 at HERE is under way in this thread."
    assert values(2, script, {"worker": 2}) == [(message, 1)] * 2


def test_two_threads_of_a_rank_take_turns_in_calls_of_all_ranks() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            v = tf.Variable(0)
        with worker(1):
            change = v.assign_add(tf.constant(1))
        session, other = tf.Session(cluster=cluster), tf.Session(cluster=cluster)
        for s in (session, other):
            s.run(v.initializer)
        graph = v.graph

        def loop() -> None:  # the same call from all threads: their order makes no difference
            with graph.as_default():
                for _ in range(20):
                    session.run(change.op)

        threads = [threading.Thread(target=loop) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return int(session.run(v)), int(other.run(v))

    assert values(2, script, {"worker": 2}) == [(60, 0)] * 2


# ------------------------------------------------------------------------------------ ranks that don't do the same


def everywhere(outcomes: list[Outcome], kind: type[Exception]) -> str:
    """The text of the error of all ranks, which must be one; a rank that waited for nobody hears it at its end."""
    found = [outcome.error or outcome.farewell for outcome in outcomes]
    assert all(type(error) is kind for error in found), found
    texts = {lines_hidden(error) for error in found if error is not None}
    assert len(texts) == 1, texts
    return texts.pop()


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_different_graphs_end_in_an_error_that_names_the_first_operation_that_differs_on_both_sides(odd: int) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            a = tf.constant(1.0, name="a")
            if rank == odd:
                b = tf.add(a, 2.0, name="b")
            else:
                b = tf.subtract(a, 2.0, name="b")
        with tf.Session(cluster=cluster) as session:
            session.run(tf.negative(b, name="c"))

    def side(rank: int) -> str:
        kind = "AddV2" if rank == odd else "Sub"
        return f"b = {kind}(a:0, b/y:0){{T=mpirt.float32}} on /job:worker/task:0, defined at test_collective_failures.py:N"

    found = everywhere(run_ranks(3, script, {"worker": 2}), tf.errors.InvalidArgumentError)
    other = 1 if odd == 0 else odd
    groups = {0: "rank 0 stands alone; ranks 1, 2 agree", 1: "ranks 0, 2 agree; rank 1 stands alone"}
    groups[2] = "ranks 0, 1 agree; rank 2 stands alone"
    assert re.sub(rf"rank {other} \(host .*?\)", f"rank {other} (...)", found) == (
        "ranks built different graphs; the first operation that differs is number 2 of what the fetches need:"
        f"\n  rank 0: {side(0)}\n  rank {other} (...): {side(other)}\n  ({groups[odd]}.)"
        "\n  Mend: build the same graph on every rank: no operation may depend on the rank, on time, on a set's order or on a"
        " random name."
    )


def test_graphs_that_differ_in_the_bytes_of_a_constant_only_are_different() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            a = tf.constant(np.arange(10.0) + (rank == 1) * 1e-12, name="a")
        tf.Session(cluster=cluster).run(a)

    found = everywhere(run_ranks(2, script, {"worker": 2}), tf.errors.InvalidArgumentError)
    assert "the first operation that differs is number 0" in found and found.count("a = Const()") == 2


def differing(first_steps: int, mine: Callable[[int], list[str]], crossing: bool = True) -> list[Outcome]:
    """Ranks that run ``first_steps`` steps together and then each the fetches of ``mine(rank)``, among a, b and c.

    With ``crossing`` every rank must wait for another one in each step, without it only those that host no task of it.
    """

    def script(rank: int, cluster: Cluster) -> Any:
        tensors = {}
        for task, name in enumerate("abc"):
            with worker(task % 2):
                there = tf.placeholder_with_default(float(task), [])
            with worker(1 - task % 2 if crossing else task % 2):
                back = tf.identity(there)
            with worker(task % 2):
                tensors[name] = tf.identity(back, name=name)
        session = tf.Session(cluster=cluster)
        for _ in range(first_steps):
            for tensor in tensors.values():
                session.run(tensor)
        for name in mine(rank):
            session.run(tensors[name])

    start = time.perf_counter()
    outcomes = run_ranks(3, script, {"worker": 2}, timeout_s=20)
    assert time.perf_counter() - start < 10
    return outcomes


def sides_of(found: str) -> tuple[str, list[str]]:
    head, *lines = found.split("\n")
    assert lines[-1] == (
        "  Mend: a collective Session needs every rank to call run() with the same fetches in the same order; keep run() out of"
        " `if rank == 0:` and out of loops whose length differs between ranks."
    )
    return head, [re.sub(r"^  rank (\d) \(host .*?, (spare|/job.*?)\)", r"\1", line) for line in lines[:-1]]


RUN = "run([{}:0]) of session 0 at test_collective_failures.py:N"


@pytest.mark.parametrize("known", [0, 2], ids=["first step", "known signatures"])
@pytest.mark.parametrize(
    ("mine", "call", "sides"),
    [
        (lambda rank: ["a"] if rank != 1 else ["b"], 0, {"0: " + RUN.format("a"), "1: " + RUN.format("b")}),
        (lambda rank: ["a", "b"] if rank != 1 else ["b", "a"], 0, {"0: " + RUN.format("a"), "1: " + RUN.format("b")}),
        (lambda rank: ["a", "b"] if rank != 1 else ["a"], 1, {"1: the end of its script", "N: " + RUN.format("b")}),
        (lambda rank: ["a", "b"] if rank != 0 else ["a"], 1, {"0: the end of its script", "N: " + RUN.format("b")}),
        (lambda rank: ["a"] if rank != 0 else ["a", "b"], 1, {"N: the end of its script", "0: " + RUN.format("b")}),
        (lambda rank: ["b"] if rank != 0 else ["a", "b"], 0, {"0: " + RUN.format("a"), "N: " + RUN.format("b")}),
    ],
    ids=["other fetch", "other order", "rank 1 leaves early", "rank 0 leaves early", "one more on rank 0", "one more first"],
)
def test_ranks_that_make_different_calls_end_in_one_error_that_names_both_sides(
    mine: Callable[[int], list[str]], call: int, sides: set[str], known: int
) -> None:
    head, found = sides_of(everywhere(differing(known, mine), tf.errors.AbortedError))
    assert head == f"ranks don't make the same calls: collective call {call + 3 * known} is"
    expected = {side for side in sides if not side.startswith("N")} | {side[3:] for side in sides if side.startswith("N")}
    assert {line if line in expected else line[3:] for line in found} == expected


def test_a_call_more_that_waits_for_nobody_is_found_at_the_end() -> None:
    outcomes = differing(1, lambda rank: ["a", "a"] if rank == 0 else ["a"], crossing=False)
    head, sides = sides_of(everywhere(outcomes, tf.errors.AbortedError))
    assert head == "ranks don't make the same calls: collective call 4 is"
    assert sides == ["1: the end of its script after 4 calls", "0: the end of its script after 5 calls"]


def test_as_many_but_other_calls_that_wait_for_nobody_are_found_at_the_end() -> None:
    outcomes = differing(1, lambda rank: ["b"] if rank == 1 else ["a"], crossing=False)
    head, _ = sides_of(everywhere(outcomes, tf.errors.AbortedError))
    assert re.sub(r"rank 1 \(.*?\)", "rank 1", head) == (
        "ranks didn't make the same calls: each made 4, but those of rank 1 fetched something else than those of rank 0, or in"
        " another order."
    )


def test_other_calls_are_found_at_the_end_also_when_nobody_remembers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective, "_REMEMBERED_CALLS", 2)
    monkeypatch.setattr(control, "_STATUS_AFTER_S", 60.0)  # nobody asks before the end
    later = 20 * ["a"]
    assert not any(o.error or o.farewell for o in differing(1, lambda rank: ["a", *later], crossing=False))
    outcomes = differing(1, lambda rank: ["b" if rank == 1 else "a", *later], crossing=False)
    head, _ = sides_of(everywhere(outcomes, tf.errors.AbortedError))
    assert head.startswith("ranks didn't make the same calls: each made 24, but those of rank 1 (")


def test_sessions_with_different_options_are_refused() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        x = tf.constant(1)
        tf.Session(cluster=cluster, fetch_on="all" if rank == 0 else "owner").run(x)

    found = everywhere(run_ranks(2, script, {"worker": 2}), tf.errors.InvalidArgumentError)
    assert re.sub(r"rank 1 \(.*?\)", "rank 1", found) == (
        "ranks made their sessions with different options:"
        " rank 0 has 'master=/job:worker/task:0 soft=False task_default=zero fetch_on=all',"
        " rank 1 has 'master=/job:worker/task:0 soft=False task_default=zero fetch_on=owner'.\n"
        "  Mend: make the Session with the same arguments on every rank."
    )


# ---------------------------------------------------------------------------------------------------------- waiting


class Gate:
    """A function of the graph that takes as long as the test wants."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> np.float64:
        assert self.event.wait(4)
        return np.float64(1.0)


@pytest.mark.parametrize("how", ["config", "options"])
@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize("fetch_on", ["all", "owner"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_deadline_of_one_rank_is_kept_and_the_session_goes_on(how: str, waiting: int, fetch_on: str, seed: int | None) -> None:
    """The slow rank has no deadline: its step goes well, and it must not be held up by the other's."""
    gate = Gate()

    def script(rank: int, cluster: Cluster) -> Any:
        slow = 1 - waiting
        with worker(slow):
            x = tf.py_func(gate, [], tf.float64)
            x.set_shape([])
            y = tf.add(x, 1.0, name="y")
        mine = 100 if rank == waiting else 0
        config = tf.ConfigProto(operation_timeout_in_ms=mine if how == "config" else 0)
        options = tf.RunOptions(timeout_in_ms=mine) if how == "options" else None
        session = tf.Session(cluster=cluster, config=config, fetch_on=fetch_on)
        gate.event.set()
        session.run(y)
        session.run(tf.constant(0.0))  # both ranks are here
        if rank == waiting:
            gate.event.clear()
        session.run(tf.constant(1.0))
        if rank == slow:
            value = session.run(y)
        else:
            start = time.perf_counter()
            what = "tensor 'y:0'" if fetch_on == "all" else "the end of operation 'y'"
            text = f"^the step did not end within its timeout of 0.1 s; it was waiting for {what} from "
            with pytest.raises(tf.errors.DeadlineExceededError, match=text) as caught:
                session.run(y, options=options)
            took = time.perf_counter() - start
            assert 0.09 < took < 1.0
            value = caught.value.origin.partition(",")[0]
            gate.event.set()
        session._timeout_ms = 0
        found = [session.run(y) for _ in range(3)]
        return value, found, traffic_of(session, cluster, y, steps=10)

    outcomes = values(2, script, {"worker": 2}, seed)
    value, found, traffic = outcomes[1 - waiting]
    assert value == 2.0 and found == [2.0] * 3 and traffic.control == 0 and traffic.sent == 10
    value, found, traffic = outcomes[waiting]
    assert value.startswith(f"rank {waiting}") and found == ([2.0] * 3 if fetch_on == "all" else [None] * 3)
    assert traffic == Traffic(0, 0, 10, 80 if fetch_on == "all" else 10, 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("waiting", [0, 1])
def test_a_deadline_in_the_middle_of_a_step_ends_it_for_all_ranks(waiting: int, seed: int | None) -> None:
    gate = Gate()

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1 - waiting):
            x = tf.py_func(gate, [], tf.float64, name="x")
        with worker(waiting):
            y = tf.py_func(lambda x: np.repeat(x, 4000), [x], tf.float64, name="y")
        with worker(1 - waiting):
            z = tf.reduce_sum(y)
        session = tf.Session(cluster=cluster)
        gate.event.set()
        found = [float(session.run(z))]
        session.run(tf.constant(0.0))
        if rank == waiting:
            gate.event.clear()
        session.run(tf.constant(1.0))
        with pytest.raises(tf.errors.DeadlineExceededError) as caught:
            session.run(z, options=tf.RunOptions(timeout_in_ms=100 if rank == waiting else 0))
        if rank == waiting:
            gate.event.set()
        found += [float(session.run(z)) for _ in range(3)]
        return caught.value.message, caught.value.origin, found

    outcomes = values(3, script, {"worker": 2}, seed)
    assert outcomes == [outcomes[0]] * 3
    message, origin, found = outcomes[0]
    assert message == (
        "the step did not end within its timeout of 0.1 s; it was waiting for tensor 'x:0' from"
        f" /job:worker/task:{1 - waiting} on rank {1 - waiting} (for /job:worker/task:{waiting})."
    )
    assert origin.startswith(f"rank {waiting} (host") and found == [4000.0] * 4


def test_a_rank_that_gave_up_may_close_its_session_or_end_its_script_and_the_others_are_told() -> None:
    gate = Gate()

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.py_func(gate, [], tf.float64)
        with worker(1):
            y = x + 1.0
        with worker(0):
            z = y + 1.0
        with tf.Session(cluster=cluster) as session:
            gate.event.set()
            session.run(z)
            session.run(tf.constant(0.0))
            if rank == 1:
                gate.event.clear()
            session.run(tf.constant(1.0))
            with pytest.raises(tf.errors.DeadlineExceededError):
                session.run(z, options=tf.RunOptions(timeout_in_ms=50 if rank == 1 else 0))
        gate.event.set()
        return True

    assert values(3, script, {"worker": 2}) == [True] * 3


def test_the_deadline_of_the_job_ends_it_with_one_error_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_TIMEOUT_S", "0.3")
    gate = Gate()

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.py_func(gate, [], tf.float64, name="x")
        with worker(1):
            y = x + 1.0
        session = tf.Session(cluster=cluster)
        threading.Timer(1.0, gate.event.set).start()
        session.run(y)

    found = everywhere(run_ranks(2, script, {"worker": 2}), tf.errors.DeadlineExceededError)
    assert "for tensor 'x:0' from /job:worker/task:0 on rank 0 (for /job:worker/task:1); the deadline was 0.3 s." in found
    assert "failed on rank 1 (host" in found


def test_a_long_wait_is_reported_with_its_name_and_again_when_it_has_doubled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MPIRT_STALL_S", "0.1")
    gate = Gate()

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.py_func(gate, [], tf.float64, name="x")
        with worker(1):
            y = x + 1.0
        with worker(0):
            z = y + 1.0
        session = tf.Session(cluster=cluster, fetch_on="owner")
        threading.Timer(0.5, gate.event.set).start()
        session.run(z)

    with caplog.at_level(logging.WARNING, logger="mpirt"):
        values(2, script, {"worker": 2})
    texts = [re.sub(r"[0-9.]+ s$", "T", r.getMessage()) for r in caplog.records]
    assert texts.count("waiting for tensor 'x:0' from /job:worker/task:0 on rank 0 (for /job:worker/task:1) since T") >= 2


def test_a_dead_rank_is_named_to_all_who_wait() -> None:
    ran, died = threading.Barrier(3), threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.constant(1.0)
        with worker(2):
            y = x + 1.0
        session = tf.Session(cluster=cluster)
        session.run(y)
        ran.wait(10)
        if rank == 2:
            cluster.transport.world.kill(2)  # type: ignore[attr-defined]
            died.set()
            return None
        assert died.wait(10)
        with pytest.raises(tf.errors.UnavailableError) as caught:
            session.run(y)
        return str(caught.value), cluster.describe_rank(2)

    outcomes = run_ranks(3, script, {"worker": 3})
    for outcome in outcomes[:2]:
        text, where = outcome.result()
        assert text == str(outcome.farewell) == (  # caught, but the end of the job tells it again
            f"{where} is gone: its process has ended.\n"
            "  Mend: look for its last output (killed, out of memory, crash), then start the job again."
        )
