"""Any server is the target of any client: how it is named, what it decides, and what is said when it isn't there."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.distributed.cluster import Cluster
from tests.loopback.serving import served, session_on
from tests.loopback.simulated_ranks import run_ranks, values

ADDRESSES = ClusterSpec({"ps": ["127.0.0.1:2221"], "worker": ["127.0.0.1:2222", "127.0.0.1:2223"]})
SEEDS = [None, 1, 2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("client", [0, 1, 2])
@pytest.mark.parametrize(
    ("target", "task"),
    [
        ("mpi:///job:ps/task:0", "/job:ps/task:0"),
        ("mpi:///job:worker/task:1", "/job:worker/task:1"),
        ("grpc://127.0.0.1:2221", "/job:ps/task:0"),
        ("127.0.0.1:2223", "/job:worker/task:1"),
    ],
)
def test_any_client_opens_a_session_on_any_server_by_name_or_address(target: str, task: str, client: int, seed: int | None) -> None:
    def run(rank: int, cluster: Cluster) -> Any:
        x = tf.identity(20, name="x")
        with tf.device("/job:worker/task:0"):
            y = x + 22
        with tf.Session(target, cluster=cluster) as session:
            return int(session.run(y)), session.placement()["x"], session.sess_str

    assert served(3, run, ADDRESSES, clients=[client], seed=seed) == [(42, f"{task}/device:CPU:0", target)]


def test_a_servers_target_opens_a_session_on_it_from_its_own_and_from_other_ranks() -> None:
    targets: dict[int, str] = {}

    def script(rank: int, cluster: Cluster) -> list[str]:
        server = tf.train.Server(cluster)
        targets[rank] = server.target
        while len(targets) < 3:
            pass
        found = []
        for other in (rank, (rank + 1) % 3):
            with tf.Graph().as_default():
                x = tf.constant(1.0, name="x")
                with tf.Session(targets[other], cluster=cluster) as session:
                    session.run(x)
                    found.append(session.placement()["x"])
        server.join()
        return found

    tasks = [f"/job:worker/task:{i}/device:CPU:0" for i in range(3)]
    assert values(3, script, {"worker": 3}) == [[tasks[r], tasks[(r + 1) % 3]] for r in range(3)]


def test_the_targets_task_hosts_what_names_no_task_and_its_own_job() -> None:
    """TensorFlow: a device is completed from the master's own; another job's task is still task 0."""

    def run(rank: int, cluster: Cluster) -> dict[str, str]:
        tf.constant(0.0, name="nothing")
        with tf.device("/cpu:0"):
            tf.constant(0.0, name="device")
        with tf.device("/job:worker"):
            tf.constant(0.0, name="own_job")
        with tf.device("/job:ps"):
            tf.constant(0.0, name="other_job")
        with tf.device("/job:ps/task:1"):
            tf.constant(0.0, name="full")
        with session_on("worker:1", cluster) as session:
            return session.placement()

    worker, ps = "/job:worker/task:{}/device:CPU:0".format, "/job:ps/task:{}/device:CPU:0".format
    assert served(4, run, {"ps": 2, "worker": 2})[0] == {
        "nothing": worker(1),
        "device": worker(1),
        "own_job": worker(1),
        "other_job": ps(0),
        "full": ps(1),
    }


def test_a_target_that_names_no_task_is_refused_with_the_tasks_there_are() -> None:
    def run(rank: int, cluster: Cluster) -> list[str]:
        found = []
        for target in ("mpi:///job:ps/task:7", "grpc://127.0.0.1:1"):
            with pytest.raises(errors.NotFoundError) as caught:
                tf.Session(target, cluster=cluster)
            found.append(caught.value.message)
        return found

    by_name, by_address = served(3, run, ADDRESSES)[0]
    assert by_name == (
        "session target 'mpi:///job:ps/task:7': the cluster's tasks are /job:ps/task:0, /job:worker/task:0, /job:worker/task:1."
    )
    assert by_address.startswith("session target 'grpc://127.0.0.1:1': ")
    assert "127.0.0.1:2221" in by_address


def test_a_session_on_a_task_of_this_rank_without_a_server_says_so() -> None:
    def script(rank: int, cluster: Cluster) -> str:
        with session_on("worker:0", cluster) as session, pytest.raises(errors.FailedPreconditionError) as caught:
            session.run(tf.constant(1))
        return str(caught.value)

    (text,) = values(1, script, {"worker": 1})
    assert re.match(
        r"no server runs on rank 0 \(host \S+, pid \d+, /job:worker/task:0\), which hosts the session's target /job:worker/task:0\.", text
    )
    assert "make a tf.train.Server before the session" in text


def test_a_session_on_a_rank_whose_script_ended_without_a_server_hears_it() -> None:
    def script(rank: int, cluster: Cluster) -> str:
        if rank == 1:
            return ""
        server = tf.train.Server(cluster)
        with session_on("worker:1", cluster) as session, pytest.raises(errors.UnavailableError) as caught:
            session.run(tf.constant(1))
        server.join()
        return str(caught.value)

    text = values(2, script, {"worker": 2})[0]
    assert re.match(r"no server runs on rank 1 \(host \S+, pid \d+, /job:worker/task:1\)\.", text)
    assert "end the script with server.join()" in text


def test_a_step_that_needs_a_rank_without_a_server_fails_though_the_target_has_one() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 2:
            return None
        server = tf.train.Server(cluster)
        if rank == 0:
            with tf.device("/job:worker/task:2"):
                far = tf.constant(1.0) + 1.0
            near = tf.constant(2.0)
            with session_on("worker:1", cluster) as session:
                assert session.run(near) == 2
                with pytest.raises(errors.UnavailableError, match=r"no server runs on rank 2 "):
                    session.run(far)
                assert session.run(near) == 2, "the session goes on"
        server.join()
        return None

    values(3, script, {"worker": 3})


def test_a_rank_with_one_server_serves_all_its_tasks() -> None:
    """So that a folded classic script, which starts only its own task's server, finds the parameter servers."""

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster, "worker", 0)
        with tf.device("/job:ps/task:0"):
            v = tf.Variable(3.0)
        with tf.Session(server.target, cluster=cluster) as session:
            session.run(v.initializer)
            found = float(session.run(v + 1)), session.placement()["Variable"]
        server.stop()
        return found

    assert values(1, script, {"ps": 1, "worker": 1}) == [(4.0, "/job:ps/task:0/device:CPU:0")]


def test_device_filters_hide_the_tasks_that_no_filter_names() -> None:
    def run(rank: int, cluster: Cluster) -> Any:
        with tf.device("/job:worker/task:1"):
            hidden = tf.constant(1.0, name="hidden") + 1
        with tf.device("/job:ps"):
            seen = tf.constant(1.0, name="seen") + 1
        config = tf.ConfigProto(device_filters=["/job:ps", "/job:worker/task:0"])
        with session_on("worker:0", cluster, config) as session:
            assert session.run(seen) == 2
            with pytest.raises(errors.InvalidArgumentError) as caught:
                session.run(hidden)
            return caught.value.message

    assert served(3, run, {"ps": 1, "worker": 2}) == [
        "cannot place 'hidden' on /job:worker/task:1: the device_filters of the session hide /job:worker/task:1."
        " All devices: /job:ps/task:0/device:CPU:0, /job:worker/task:0/device:CPU:0."
    ]


def test_the_target_itself_is_never_hidden_by_device_filters() -> None:
    """As in TensorFlow, whose filters choose among the other tasks."""

    def run(rank: int, cluster: Cluster) -> Any:
        x = tf.identity(1.0, name="x")
        with session_on("worker:0", cluster, tf.ConfigProto(device_filters=["/job:ps"])) as session:
            return float(session.run(x)), session.placement()["x"]

    assert served(2, run, {"ps": 1, "worker": 1}) == [(1.0, "/job:worker/task:0/device:CPU:0")]


def test_a_rank_that_the_filters_hide_is_never_asked() -> None:
    """So a worker with filters starts although the other workers aren't there yet: TensorFlow's reason for them."""

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 2:
            return cluster.transport.counters.control_received  # no server here, ever
        server = tf.train.Server(cluster)
        if rank == 1:
            with tf.device("/job:ps/task:0"):
                v = tf.Variable(1.0)
            config = tf.ConfigProto(device_filters=["/job:ps", "/job:worker/task:0"], operation_timeout_in_ms=3000)
            with session_on("worker:0", cluster, config) as session:
                session.run(tf.global_variables_initializer())
                assert session.run(v) == 1
        server.join()
        return None

    values(3, script, {"ps": 1, "worker": 2})


def test_soft_placement_and_log_device_placement_hold_for_servers_too(capsys: pytest.CaptureFixture[str]) -> None:
    def run(rank: int, cluster: Cluster) -> float:
        with tf.device("/job:worker/task:1/gpu:0"):
            x = tf.constant(4.0, name="x")
        config = tf.ConfigProto(allow_soft_placement=True, log_device_placement=True)
        with session_on("worker:0", cluster, config) as session:
            found = float(session.run(tf.identity(x, name="y")))
            session.run("y:0")
            return found

    assert served(2, run) == [4.0]
    lines = sorted(line for line in capsys.readouterr().err.splitlines() if "/job:" in line)
    assert lines == ["x: (Const): /job:worker/task:1/device:CPU:0", "y: (Identity): /job:worker/task:0/device:CPU:0"]


def test_placement_and_traffic_tell_of_the_steps_that_ran() -> None:
    def run(rank: int, cluster: Cluster) -> Any:
        with tf.device("/job:worker/task:1"):
            x = tf.placeholder(tf.float32, [10], name="x")
            y = tf.add(x, x, name="y")
        with session_on("worker:0", cluster) as session:
            with pytest.raises(errors.FailedPreconditionError, match="this signature has not run in this session yet"):
                session.traffic(y, {x: None})
            session.run(y, {x: np.ones(10)})
            return session.placement()["y"], session.traffic(y, {x: np.ones(10)})

    assert served(2, run) == [("/job:worker/task:1/device:CPU:0", {"messages": 2, "nbytes": 80, "window_nbytes": 0})]


def test_a_closed_session_says_so_and_closing_again_does_nothing() -> None:
    def run(rank: int, cluster: Cluster) -> None:
        with tf.device("/job:worker/task:1"):
            x = tf.constant(1.0) + 1
        session = session_on("worker:1", cluster)
        again = session.make_callable(x)
        assert session.run(x) == again() == 2
        session.close()
        session.close()
        for use in (lambda: session.run(x), again):
            with pytest.raises(RuntimeError, match=r"^Attempted to use a closed Session\.$"):
                use()

    served(2, run)


def test_a_session_whose_server_was_stopped_says_what_to_do_and_a_new_one_on_a_new_server_works() -> None:
    told: list[str] = []

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 1:
            wait_for(told, "opened")
            server.stop()
            told.append("stopped")
            wait_for(told, "heard")
            server = tf.train.Server(cluster)
            server.join()
            return None
        with tf.device("/job:worker/task:1"):
            v = tf.Variable(5.0)
        session = session_on("worker:0", cluster)
        session.run(v.initializer)
        told.append("opened")
        wait_for(told, "stopped")
        texts = []
        for fetch in (v.initializer, v + 1):  # a step that it knew, and a new one
            with pytest.raises(errors.UnavailableError) as caught:
                session.run(fetch)
            texts.append(str(caught.value))
        assert session.run(tf.constant(1.0) + 1) == 2, "what needs no other rank goes on"
        told.append("heard")
        session.close()
        with session_on("worker:0", cluster) as second:
            assert second.run(v) == 5, "values stay as long as the process"
        server.join()
        return texts

    for text in run_ranks(2, script, {"worker": 2})[0].result():
        assert re.match(r"the server on rank 1 \(host \S+, pid \d+, /job:worker/task:1\) was stopped\.", text)
        assert "open a new session on a server that runs" in text


def wait_for(told: list[str], word: str) -> None:
    """Until another rank has said ``word``."""
    while word not in told:
        pass
