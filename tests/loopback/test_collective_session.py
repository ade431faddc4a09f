"""Collective sessions on simulated ranks: what arrives where, in which order, and with how many messages."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.rank_table import RankTable
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.results import as_results
from mpirt.graph.graph import Tensor
from tests.loopback.simulated_ranks import Traffic, values

SEEDS = [None, 1, 2]
FOLDED = RankTable.from_text("rank 0 = * /job:worker/task:0\nrank 1 = * /job:worker/task:1\nrank 0 = * /job:worker/task:2\n", 2)


def worker(index: int) -> Any:
    return tf.device(f"/job:worker/task:{index}")


def traffic_of(session: tf.Session, cluster: Cluster, fetches: Any, feeds: Any = None, steps: int = 1) -> Traffic:
    """What this rank's transport does in ``steps`` steps."""
    before = dataclasses.replace(cluster.transport.counters)
    for _ in range(steps):
        session.run(fetches, feeds)
    return Traffic.since(before, cluster.transport.counters)


# ------------------------------------------------------------------------------------------------------ what arrives


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_rank_gets_every_fetched_value_however_many_ranks_there_are(size: int, seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            a = tf.constant([1.0, 2.0])
        with worker(1):
            b = a * 10.0
        with worker(2):
            c = tf.reduce_sum(b)
        with tf.Session(cluster=cluster) as session:
            return [session.run({"a": a, "rest": (b, [c])}) for _ in range(3)]

    for steps in values(size, script, {"worker": 3}, seed):
        for found in steps:
            assert found["a"].tolist() == [1.0, 2.0]
            assert found["rest"][0].tolist() == [10.0, 20.0]
            assert type(found["rest"][1][0]) is np.float32 and found["rest"][1][0] == 30.0


def test_with_fetch_on_owner_a_value_arrives_only_where_it_lives() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            a = tf.constant(1)
        with worker(1):
            b = a + 1
        with tf.Session(cluster=cluster, fetch_on="owner") as session:
            return session.run([a, b, b.op])

    assert values(3, script, {"worker": 2}) == [[1, None, None], [None, 2, None], [None, None, None]]


def test_a_step_ends_on_a_spare_rank_only_when_its_fetches_are_there_even_if_it_gets_no_value() -> None:
    ran = threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            op = tf.py_func(lambda: ran.set(), [], [])
        with tf.Session(cluster=cluster, fetch_on="owner") as session:
            session.run(op)
        return ran.is_set()

    assert values(3, script, {"worker": 1}) == [True, True, True]


def test_tasks_that_share_a_rank_share_values_and_send_nothing_to_each_other() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            a = tf.constant(np.arange(4.0))
        with worker(2):
            b = a + 1.0
        with worker(0):
            c = b * 2.0
        session = tf.Session(cluster=cluster, fetch_on="owner")
        session.run(c)
        return session.run(c), traffic_of(session, cluster, c)

    (first, sent), (second, received) = values(2, script, FOLDED)
    assert first.tolist() == [2.0, 4.0, 6.0, 8.0] and second is None
    assert sent == Traffic(1, 1, 0, 0, 0)  # a token: the end of the fetch
    assert received == Traffic(0, 0, 1, 1, 0)


CONTENTS: dict[str, Any] = {
    "0-d": np.float64(2.5),
    "bool": np.array([True, False, True]),
    "0-d bool": np.bool_(True),
    "empty": np.zeros((0, 3), np.float32),
    "int8": np.arange(-3, 4, dtype=np.int8),
    "complex": np.array([1 + 2j]),
    "strings": np.array([[b"", b"a\x00b"], [b"long" * 500, b"\xff"]], object),
    "0-d string": np.array(b"text", object),
    "no strings": np.empty((0,), object),
    "just fits behind a header": np.arange(1024 - 24, dtype=np.uint8),
    "just doesn't": np.arange(1024 - 23, dtype=np.int64).astype(np.uint8),
    "big": np.random.default_rng(0).random((1 << 18) + 1),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", ["static", "unknown sizes", "unknown"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_value_crosses_ranks_unchanged_whatever_its_type_and_shape(content: Any, shape: str, seed: int | None) -> None:
    content = np.asarray(content)
    dtype = tf.string if content.dtype == object else tf.as_dtype(content.dtype)
    static = {"static": content.shape, "unknown sizes": [None] * content.ndim, "unknown": None}[shape]

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.placeholder(dtype, static)
        with worker(1):
            y = tf.identity(x)
        with worker(0):
            z = tf.identity(y)
        with tf.Session(cluster=cluster) as session:
            return [session.run([y, z], {x: content}) for _ in range(2)]

    for steps in values(2, script, {"worker": 2}, seed):
        for found in [value for step in steps for value in step]:
            assert np.asarray(found, content.dtype).shape == content.shape
            if content.dtype == object:
                assert np.asarray(found, object).tolist() == content.tolist()
            else:
                assert found.dtype == content.dtype and found.tobytes() == content.tobytes()


def test_a_tensor_of_unknown_shape_may_change_its_size_from_step_to_step() -> None:
    sizes = [3, 1000, 0, 1, 5000]

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.placeholder(tf.int32, [None])
        with worker(1):
            total = tf.reduce_sum(x)
        with tf.Session(cluster=cluster) as session:
            return [int(session.run(total, {x: np.arange(n)})) for n in sizes]

    assert values(2, script, {"worker": 2}, seed=3) == [[n * (n - 1) // 2 for n in sizes]] * 2


# ------------------------------------------------------------------------------------------------- order and state


@pytest.mark.parametrize("seed", SEEDS)
def test_control_dependencies_hold_across_tasks(seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            v = tf.Variable(1.0)
        with worker(1):
            w = tf.Variable(1.0)
        with tf.control_dependencies([v.assign(v.read_value() * 3.0)]):
            first = w.assign_add(10.0)  # on task 1, after task 0's change
        with tf.control_dependencies([first]):
            second = v.assign_add(1.0)  # back on task 0
        with tf.control_dependencies([second]):
            both = v.read_value() + w.read_value()
        with tf.Session(cluster=cluster) as session:
            session.run(tf.global_variables_initializer())
            return [float(session.run(both)) for _ in range(4)]

    expected, v, w = [], 1.0, 1.0
    for _ in range(4):
        v, w = v * 3 + 1, w + 10
        expected.append(v + w)
    assert values(2, script, {"worker": 2}, seed) == [expected] * 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_fetched_variable_has_the_value_from_before_the_steps_own_change_on_every_rank(size: int, seed: int | None) -> None:
    """Nothing orders the two fetches; what counts is that all ranks, and all ways to place tasks on ranks, agree."""

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            v = tf.Variable([0.0, 0.0])
        with worker(0):
            change = v.assign_add(tf.constant([1.0, 2.0]))
        with tf.Session(cluster=cluster) as session:
            session.run(v.initializer)
            return [[np.asarray(x).tolist() for x in session.run([v, change])] for _ in range(3)]

    expected = [[[i, 2 * i], [i + 1, 2 * i + 2]] for i in range(3)]
    assert values(size, script, {"worker": 2}, seed) == [expected] * size


@pytest.mark.parametrize("size", [1, 2])
def test_what_another_task_reads_of_a_variable_is_the_same_however_tasks_are_folded(size: int) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            v = tf.Variable(1.0)
            change = v.assign_add(1.0)
        with worker(1), tf.control_dependencies([change]):
            seen = tf.identity(v._as_graph_element())
        with tf.Session(cluster=cluster) as session:
            session.run(v.initializer)
            return [float(session.run(seen)) for _ in range(3)]

    assert values(size, script, {"worker": 2}) == [[2.0, 3.0, 4.0]] * size  # after the change that it waits for


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_fetched_never_changes_and_changing_it_changes_nothing(seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            v = tf.Variable(np.zeros(5))
            same = tf.identity(v)
            c = tf.constant(np.ones(5))
            grow = v.assign_add(c)
        with worker(1):
            there = same * 1.0
        with tf.Session(cluster=cluster) as session:
            session.run(v.initializer)
            for i in range(4):
                got = session.run([v, same, there, c])
                kept = [x.copy() for x in got]
                session.run(grow.op)
                for x, before in zip(got, kept, strict=True):
                    assert x.tolist() == before.tolist()
                    x[:] = -99.0
                assert session.run(v).tolist() == [i + 1.0] * 5
                assert session.run(c).tolist() == [1.0] * 5
        return True

    assert values(2, script, {"worker": 2}, seed) == [True, True]


@pytest.mark.parametrize("seed", range(12))
def test_a_fed_array_may_be_overwritten_as_soon_as_run_returns(seed: int) -> None:
    """Also where the value goes to other ranks only because it is fetched, and where a variable took it."""

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.placeholder(tf.float64, [3])
            y = tf.placeholder(tf.float64, [None])
            v = tf.Variable(np.zeros(3))
            set_v = v.assign(x)
            view = tf.reshape(tf.identity(x), [1, 3])
        with tf.Session(cluster=cluster) as session:
            session.run(v.initializer)
            found = []
            a, b = np.zeros(3), np.zeros(300)
            for i in range(5):
                a[:], b[:] = i, i
                got = session.run([x, y, view, set_v], {x: a, y: b})
                a[:], b[:] = -1.0, -1.0
                found.append([set(np.asarray(g).reshape(-1).tolist()) for g in [*got, session.run(v)]])
            return found

    assert values(2, script, {"worker": 2}, seed) == [[[{float(i)}] * 5 for i in range(5)]] * 2


def test_a_result_that_nobody_else_holds_is_handed_over_without_a_copy() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            v = tf.Variable(np.ones(1000))
            y = v + 1.0
        with tf.Session(cluster=cluster) as session:
            session.run(v.initializer)
            results = [np.full(1000, 7.0)]
            alone = results[0].__array_interface__["data"]
            shared = as_results([v_held := np.ones(3)], [False])[0] is not v_held
            kept = as_results(results, [False])[0].__array_interface__["data"] == alone
            return kept, shared, session.run(y).tolist() == [2.0] * 1000

    assert values(1, script, {"worker": 1}) == [(True, True, True)]


def test_two_sessions_of_a_job_have_variables_of_their_own() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            v = tf.Variable(0)
        first, second = tf.Session(cluster=cluster), tf.Session(cluster=cluster)
        for session in (first, second):
            session.run(v.initializer)
        for _ in range(3):
            first.run(v.assign_add(1))
        return int(first.run(v)), int(second.run(v))

    assert values(2, script, {"worker": 2}) == [(3, 0), (3, 0)]


# ------------------------------------------------------------------------------------------------------ steady state


@pytest.mark.parametrize("seed", SEEDS)
def test_after_its_first_step_a_signature_sends_exactly_its_tensors_and_no_control_message(seed: int | None) -> None:
    n, steps = 1000, 7

    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.placeholder(tf.float32, [n])
            twice = x * 2.0
        with worker(1):  # two readers, one message
            a, b = twice + 1.0, twice - 1.0
        with worker(2), tf.control_dependencies([a]):
            late = tf.no_op()
        with worker(2):
            total = tf.reduce_sum(a * b)
        session = tf.Session(cluster=cluster)
        session.run([total, late], {x: np.ones(n)})
        return traffic_of(session, cluster, [total, late], {x: np.ones(n)}, steps), session.traffic([total, late], {x: 0})

    found = values(4, script, {"worker": 3}, seed)
    big = 4 * n
    # a and b to task 2, and in a's packet a token: "late" comes before what reads a. Total and late to 3 ranks.
    sent = [(1, big), (2, 2 * big + 1), (6, 3 * (4 + 1)), (0, 0)]
    received = [(2, 5), (1 + 2, big + 5), (2, 2 * big + 1), (2, 5)]
    for rank, (traffic, promised) in enumerate(found):
        out, into = sent[rank], received[rank]
        assert traffic == Traffic(steps * out[0], steps * out[1], steps * into[0], steps * into[1], 0), f"rank {rank}"
        assert promised == {"messages": 9, "nbytes": 3 * big + 16, "window_nbytes": 0}


def test_in_the_steady_state_what_has_an_unknown_shape_needs_one_message_if_small_and_two_if_large() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(0):
            x = tf.placeholder(tf.uint8, [None])
        with worker(1):
            y = tf.identity(x)
        session = tf.Session(cluster=cluster, fetch_on="owner")
        session.run(y, {x: np.zeros(1, np.uint8)})
        return [traffic_of(session, cluster, y, {x: np.zeros(size, np.uint8)}) for size in (0, 1000, 1001)]

    header = 8 * 3  # bytes, number of dimensions, one size
    expected = [(1, header), (1, header + 1000), (2, header + 1001)]
    first, second = values(2, script, {"worker": 2})
    assert first == [Traffic(m, n, 1, 1, 0) for m, n in expected]
    assert second == [Traffic(1, 1, m, n, 0) for m, n in expected]


def test_a_signature_of_known_parts_is_agreed_upon_once_and_the_graph_may_grow_between_steps() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with worker(1):
            x = tf.constant(1)
        session = tf.Session(cluster=cluster)
        controls = []
        for i in range(3):
            with worker(i % 2):
                x = x + i
            controls += [traffic_of(session, cluster, x).control > 0, traffic_of(session, cluster, x).control > 0]
        return controls, int(session.run(x))

    assert values(2, script, {"worker": 2}) == [([True, False] * 3, 4)] * 2


def test_the_programs_of_all_ranks_are_written_where_MPIRT_DUMP_PROGRAM_says(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPIRT_DUMP_PROGRAM", str(tmp_path / "programs"))

    def script(rank: int, cluster: Cluster) -> None:
        with worker(0):
            a = tf.placeholder(tf.float32, [2], name="a")
        with worker(1):
            b = tf.negative(a, name="b")
        with tf.Session(cluster=cluster) as session:
            session.run(b, {a: [1.0, 2.0]})

    values(2, script, {"worker": 2})
    found = {path.name: path.read_text() for path in (tmp_path / "programs").iterdir()}
    assert found == {
        "session-0-step-0-rank-0.txt": (
            "rank 0: 2 instructions, 2 slots\n"
            "  feed  s0 = a:0\n"
            "  send  s0 #0 a:0 from /job:worker/task:0 (rank 0) to rank 1 8 B in a message (small) for /job:worker/task:1   # drop s0\n"
            "  recv  s1 #1 b:0 from /job:worker/task:1 (rank 1) to rank 0 8 B in a message (small) for fetch\n"
            "  fetch s1\n"
            "memory: 8 B at most, 0 B of it in 0 buffers that every step uses again\n"
        ),
        "session-0-step-0-rank-1.txt": (
            "rank 1: 3 instructions, 2 slots\n"
            "  recv  s0 #0 a:0 from /job:worker/task:0 (rank 0) to rank 1 8 B in a message (small) for /job:worker/task:1\n"
            "  run   s1 = Neg b(s0) on /job:worker/task:1/device:CPU:0   # drop s0\n"
            "  send  s1 #1 b:0 from /job:worker/task:1 (rank 1) to rank 0 8 B in a message (small) for fetch\n"
            "  fetch s1\n"
            "memory: 16 B at most, 0 B of it in 0 buffers that every step uses again\n"
        ),
    }


def test_log_device_placement_prints_each_operation_once_sorted_on_rank_0_only(capfd: pytest.CaptureFixture[str]) -> None:
    def script(rank: int, cluster: Cluster) -> None:
        with worker(1):
            b = tf.constant(1, name="b")
        with worker(0):
            a = tf.negative(b, name="a")
            c = tf.negative(a, name="c")
        with tf.Session(cluster=cluster, config=tf.ConfigProto(log_device_placement=True)) as session:
            session.run(a)
            session.run(a)
            session.run(c)

    values(2, script, {"worker": 2})
    assert capfd.readouterr().err == (
        "a: (Neg): /job:worker/task:0/device:CPU:0\n"
        "b: (Const): /job:worker/task:1/device:CPU:0\n"
        "c: (Neg): /job:worker/task:0/device:CPU:0\n"
    )


def test_simulated_ranks_touch_neither_the_process_s_graph_nor_its_cluster() -> None:
    from mpirt.distributed import cluster as module

    graph, cluster = tf.get_default_graph(), module._current
    version = graph.version

    def script(rank: int, cluster: Cluster) -> bool:
        x: Tensor = tf.constant(1)
        return x.graph is not graph

    assert values(2, script) == [True, True]
    assert tf.get_default_graph() is graph and graph.version == version and module._current is cluster
