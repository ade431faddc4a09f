"""What sessions on servers share and what they don't: graphs are their own, state goes by task, container and name."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

import mpirt as tf
from mpirt import errors
from mpirt.distributed.cluster import Cluster
from mpirt.graph.graph import Graph
from tests.loopback.serving import served, session_on
from tests.loopback.simulated_ranks import values

SEEDS = [None, 1, 2]


def counter(task: int = 1, name: str = "counter", container: str = "", start: float = 0.0) -> tf.Variable:
    """A variable on a worker, in a graph of its own; use its ``graph``."""
    with Graph().as_default(), tf.device(f"/job:worker/task:{task}"), tf.container(container):
        v = tf.Variable(start, name=name)
        v.up = v.assign_add(1.0)  # type: ignore[attr-defined]
        return v


@pytest.mark.parametrize("seed", SEEDS)
def test_a_graph_may_grow_between_steps(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            v = tf.Variable(1.0)
        with session_on("worker:0", cluster) as session:
            session.run(v.initializer)
            x: Any = v
            for i in range(6):
                with tf.device(f"/job:worker/task:{i % 3}"):
                    x = x + tf.Variable(float(i), name=f"more_{i}").initialized_value()
                assert session.run(x) == 1 + sum(range(i + 1))
            session.run(v.assign(101.0))
            assert session.run(x) == 116

    served(3, run, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clients", [[0], [0, 1, 2]])
def test_sessions_with_graphs_of_their_own_share_state_by_task_container_and_name(clients: list[int], seed: int | None) -> None:
    """All on one task; other graphs, sessions and clients see what one of them wrote, unless task, container or name differ."""
    order = threading.Barrier(len(clients))

    def run(rank: int, cluster: Cluster) -> Any:
        mine = counter()
        if rank == 0:
            with tf.Session("mpi:///job:worker/task:0", mine.graph, cluster=cluster) as session:
                session.run(mine.initializer)
        order.wait()
        for _ in range(5):
            again = counter()  # a graph and session for each step
            with tf.Session("mpi:///job:worker/task:0", again.graph, cluster=cluster) as session:
                session.run(again.up)
        order.wait()
        found = []
        for other in (counter(), counter(task=2), counter(name="other"), counter(container="mine")):
            with tf.Session("mpi:///job:worker/task:1", other.graph, cluster=cluster) as session:
                try:
                    found.append(float(session.run(other)))
                except errors.FailedPreconditionError:
                    found.append(-1.0)
        order.wait()
        return found

    assert served(3, run, clients=clients, seed=seed) == [[5.0 * len(clients), -1.0, -1.0, -1.0]] * len(clients)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by", [0, 2])
def test_reset_clears_its_containers_on_all_ranks_and_nothing_else_and_sessions_live_on(by: int, seed: int | None) -> None:
    turns = threading.Barrier(2)

    def run(rank: int, cluster: Cluster) -> None:
        graph = Graph()
        with graph.as_default():
            cells = {}
            for task in range(3):
                for container in ("", "a", "b"):
                    with tf.device(f"/job:worker/task:{task}"), tf.container(container):
                        cells[task, container] = tf.Variable(float(task))
            up = [v.assign_add(1.0) for v in cells.values()]
            missing = {key: tf.logical_not(tf.is_variable_initialized(v)) for key, v in cells.items()}
            start = tf.global_variables_initializer()

        with tf.Session(f"mpi:///job:worker/task:{rank}", graph, cluster=cluster) as session:
            if rank == 0:
                session.run(start)
                session.run(up)
            for containers, gone in ((["a"], {"a"}), ([], {"", "a"}), (None, {"", "a"}), (["b", "none"], {"", "a", "b"})):
                turns.wait()
                if rank == by:
                    tf.Session.reset("mpi:///job:worker/task:1", containers, cluster=cluster)
                turns.wait()
                assert session.run(missing) == {(task, c): c in gone for task, c in cells}
                if "b" not in gone:
                    assert [session.run(cells[task, "b"]) for task in range(3)] == [1, 2, 3]
            turns.wait()
            if rank == 0:
                session.run(start)
            turns.wait()
            session.run(up)
            turns.wait()
            assert [session.run(cells[task, "a"]) for task in range(3)] == [2, 3, 4], "both sessions' increments"
            turns.wait()

    served(3, run, clients=[0, 2], seed=seed)


def test_reset_names_the_ranks_that_don_t_answer() -> None:
    busy, done = threading.Event(), threading.Event()

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 1:
            busy.set()
            done.wait(10)
            return None
        busy.wait(10)
        with pytest.raises(errors.DeadlineExceededError) as caught:
            tf.Session.reset("mpi:///job:worker/task:0", config=tf.ConfigProto(operation_timeout_in_ms=200), cluster=cluster)
        done.set()
        return caught.value.message

    message = values(2, script, {"worker": 2})[0]
    assert re.search(r"waiting for rank 1 \(host \S+, pid \d+, /job:worker/task:1\) to reset its containers", message)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_isolated_session_shares_state_with_no_other(seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> None:
        isolated = tf.ConfigProto(isolate_session_state=True)
        sessions = []
        for config in (None, isolated, isolated):
            v = counter()
            session = tf.Session("mpi:///job:worker/task:1", v.graph, config, cluster=cluster)
            with pytest.raises(errors.FailedPreconditionError):
                session.run(v)
            session.run(v.initializer)
            sessions.append((session, v))
        for times, (session, v) in enumerate(sessions):
            for _ in range(times):
                session.run(v.up)
        tf.Session.reset("mpi:///job:worker/task:0", cluster=cluster)
        with pytest.raises(errors.FailedPreconditionError):
            sessions[0][0].run(sessions[0][1])
        assert [float(session.run(v)) for session, v in sessions[1:]] == [1, 2], "a reset is no matter of theirs"
        for session, _ in sessions:
            session.close()

    served(2, run, seed=seed)


@pytest.mark.parametrize("what", ["dtype", "shape"])
@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 2), (1, 0), (0, 1)])
def test_a_clash_on_a_shared_variable_names_both_declarations_by_file_and_line(first: int, second: int, what: str) -> None:
    """Whichever ranks the clients are on: the variable is on rank 1."""
    declared = threading.Event()
    places: list[str] = []

    def run(rank: int, cluster: Cluster) -> Any:
        found = None
        for turn, (client, number) in enumerate(((first, 0), (second, 1))):
            if client != rank:
                continue
            if turn:
                declared.wait(10)
            with Graph().as_default() as graph, tf.device("/job:worker/task:1"):
                value: Any = 0.0 if turn == 0 else 0 if what == "dtype" else [0.0, 0.0]
                v = tf.Variable(value, name="shared")
            places.append(v.op.location)
            with tf.Session(f"mpi:///job:worker/task:{rank}", graph, cluster=cluster) as session:
                if number == 0:
                    session.run(v.initializer)
                    declared.set()
                else:
                    with pytest.raises(errors.InvalidArgumentError) as caught:
                        session.run(v.initializer)
                    found = caught.value
                    assert found.op is v.op
        return found

    error = next(e for e in served(3, run, clients={first, second}) if e is not None)
    other = "int32 []" if what == "dtype" else "float32 [2]"
    other = other if re.search(re.escape(other), error.message) else other.replace("[", "(").replace("]", ")")
    assert "test_servers_state.py:" in places[0]
    assert error.message.startswith("'shared' declares the variable 'shared' as ")
    assert error.message.endswith(f"declared at {places[0]}."), error.message
    assert error.where == places[1]


def test_variables_outlive_their_sessions_and_a_restarted_server() -> None:
    def script(rank: int, cluster: Cluster) -> list[float]:
        found = []
        for turn in range(3):
            with tf.train.Server(cluster) as server:
                v = counter(task=0)
                with tf.Session(server.target, v.graph, cluster=cluster) as session:
                    if not turn:
                        session.run(v.initializer)
                    found.append(float(session.run(v.up)))
        return found

    assert values(1, script, {"worker": 1}) == [[1, 2, 3]]
