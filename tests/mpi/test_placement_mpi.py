"""The issue's own examples: every operation is where the script says, and its value on every rank, on 1 to 4 ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import mpirt as tf

SPEC = {"ps": 2, "worker": 2}
CPU = "/job:{}/task:{}/device:CPU:0"
GPU = "/job:{}/task:{}/device:GPU:{}"

pytestmark = [pytest.mark.ranks([1, 4], env={"MPIRT_EMULATED_GPUS": "2"}), pytest.mark.one_mpi]


@pytest.fixture(autouse=True)
def cluster() -> Iterator[tf.Cluster]:
    """Two ps and two workers on the ranks of this test, each with two emulated GPUs."""
    yield tf.cluster(SPEC)


def test_a_on_the_cpu_of_a_ps_b_on_the_second_gpu_of_a_worker_c_on_the_masters_own_default_device() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        a = tf.constant(3.0, name="a")
    with tf.device("/job:worker/task:0/gpu:1"):
        b = tf.add(a, 2.0, name="b")
    c = tf.add(a, b, name="c")
    with tf.Session() as session:
        assert session.run([a, b, c]) == [3.0, 5.0, 8.0]
        placement = session.placement()
    assert placement["a"] == CPU.format("ps", 0)
    assert placement["b"] == GPU.format("worker", 0, 1)
    assert placement["c"] == GPU.format("worker", 0, 0)


def test_what_a_device_leaves_open_is_filled_by_one_simple_rule() -> None:
    asked = {
        "": GPU.format("worker", 0, 0),
        "/job:ps": GPU.format("ps", 0, 0),
        "/job:worker": GPU.format("worker", 0, 0),
        "/task:1": GPU.format("worker", 1, 0),
        "/cpu:0": CPU.format("worker", 0),
        "/gpu:1": GPU.format("worker", 0, 1),
        "/job:ps/task:1": GPU.format("ps", 1, 0),
        "/job:ps/cpu:0": CPU.format("ps", 0),
    }
    ones = []
    for device in asked:
        with tf.device(device):
            ones.append(tf.add(tf.constant(0.5), 0.5))
    text = tf.py_func(lambda: b"no kernel on a GPU", [], tf.string, name="text")
    session = tf.Session()
    placement = session.placement()
    assert [placement[one.op.name] for one in ones] == list(asked.values())
    assert placement[text.op.name] == CPU.format("worker", 0)
    assert session.run(ones) == [1.0] * len(asked)
    assert session.run(text) == b"no kernel on a GPU"


@pytest.mark.parametrize("how", ["ps_tasks", "cluster", "worker_device"])
def test_five_variables_go_round_the_ps_tasks_and_inner_blocks_refine_the_workers(how: str) -> None:
    setter = {
        "ps_tasks": lambda: tf.train.replica_device_setter(ps_tasks=2),
        "cluster": lambda: tf.train.replica_device_setter(cluster=tf.train.ClusterSpec(SPEC)),
        "worker_device": lambda: tf.train.replica_device_setter(ps_tasks=2, worker_device="/job:worker"),
    }[how]()
    with tf.device(setter):
        v = [tf.Variable(float(i), name=f"v{i}") for i in range(1, 6)]
        s = tf.add(v[0], v[1], name="s")
        with tf.device("/gpu:1"):
            p1 = tf.multiply(2.0, s, name="p1")
            with tf.device("/task:1"):
                p2 = tf.multiply(3.0, s, name="p2")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run([*v, s, p1, p2]) == [1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 6.0, 9.0]
        placement = session.placement()
    tasks = [placement[f"v{i}"].split("/device")[0] for i in range(1, 6)]
    assert tasks == [f"/job:ps/task:{task}" for task in (0, 1, 0, 1, 0)]
    assert s.device == "/job:worker"
    assert placement["s"] == GPU.format("worker", 0, 0)
    assert placement["p1"] == GPU.format("worker", 0, 1)
    assert placement["p2"] == GPU.format("worker", 1, 1)


def test_reports_say_that_the_gpus_are_emulated(cluster: tf.Cluster, rank: int, capfd: pytest.CaptureFixture[str]) -> None:
    devices = "CPU:0, GPU:0 (emulated), GPU:1 (emulated)"
    hosted = [part for line in cluster.describe().splitlines() for part in line.split("  ")[2].split("], ") if part != "spare"]
    assert [part.removesuffix("]") for part in hosted] == [
        f"/job:{job}/task:{task} [{devices}" for job in ("ps", "worker") for task in (0, 1)
    ]
    with tf.device("/job:worker/task:1/gpu:1"):
        b = tf.add(tf.constant(1.0), 1.0, name="b")
    config = tf.ConfigProto(log_device_placement=True)
    assert tf.Session(config=config).run(b) == 2.0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("b: ")]
    assert lines == ([f"b: ({b.op.type}): /job:worker/task:1/device:GPU:1 (emulated)"] if rank == 0 else [])
