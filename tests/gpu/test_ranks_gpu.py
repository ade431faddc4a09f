"""Several ranks that share one GPU: tensors go GPU - host - MPI - host - GPU, and errors from a kernel to all ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from tests.mpirun_plugin import Mpirun

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]


def on(task: int, device: str = "gpu:0") -> Any:
    return tf.device(f"/job:worker/task:{task}/{device}")


@pytest.mark.ranks([2, 3])
def test_tensors_go_round_from_gpu_to_gpu(nranks: int) -> None:
    """Of every kind of message: fixed, empty, a scalar, of a size known at run time only, a large one."""
    tf.cluster({"worker": nranks})
    fed = {
        "large": np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 4)),
        "odd": np.arange(7, dtype=np.uint8),
        "complex": np.array([1 + 2j, -1j], np.complex64),
        "truth": np.array([True, False]),
    }
    for known in (True, False):
        feeds, ends = {}, []
        for value in fed.values():
            with on(0):
                x = tf.placeholder(value.dtype, value.shape if known else None)
                y = tf.identity(x)
            feeds[x] = value
            for task in [*range(1, nranks), 0]:
                with on(task):
                    y = tf.logical_not(y) if value.dtype == bool else y + tf.constant(1, value.dtype)
            ends.append(y)
        with tf.Session() as session:
            for _ in range(3):
                for value, found in zip(fed.values(), session.run(ends, feeds), strict=True):
                    wanted = value ^ bool(nranks % 2) if value.dtype == bool else value + nranks * np.ones((), value.dtype)
                    assert found.dtype == value.dtype and found.shape == value.shape
                    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
            assert {place.rpartition("/")[2] for place in session.placement().values()} == {"device:GPU:0"}


@pytest.mark.ranks(2, timeout=120)
def test_a_message_leaves_when_the_kernels_that_make_its_tensor_have_ended() -> None:
    """Each step queues 40 products of 2048 x 2048 before the send; another value every time, so that an early one is seen."""
    tf.cluster({"worker": 2})
    n = 2048
    with on(0):
        scale = tf.placeholder(tf.float32, [])
        flat = tf.constant(np.full((n, n), 1 / n, np.float32))
        y = flat * scale
        for _ in range(40):
            y = tf.matmul(y, flat)  # stays as it is
    with on(1):
        low, high = tf.reduce_min(y), tf.reduce_max(y)
        back = tf.identity(y)
    with on(0):
        again = tf.reduce_max(tf.matmul(back, flat))
    with tf.Session() as session:
        for step in range(1, 11):
            found = session.run([low, high, again], {scale: step * n})
            np.testing.assert_allclose(found, step, rtol=1e-4)


@pytest.mark.ranks(2)
def test_a_buffer_that_the_next_step_receives_into_has_been_read_by_the_gpu() -> None:
    """The receiver keeps a host buffer for large tensors; its GPU is busy when the copy is asked for."""
    tf.cluster({"worker": 2})
    size = 1 << 22
    with on(0, "cpu:0"):
        value = tf.placeholder(tf.float32, [])
        sent = tf.fill([size], value)
        sent.set_shape([size])
    with on(1):
        flat = tf.constant(np.full((2048, 2048), 1 / 2048, np.float32))
        y = flat
        for _ in range(20):
            y = tf.matmul(y, flat)
        with tf.control_dependencies([y]):
            total = tf.Variable(np.zeros(size, np.float32))
            add = total.assign_add(sent)
    with tf.Session() as session:
        session.run(total.initializer)
        for step in range(1, 21):
            session.run(add.op, {value: step})
        found = session.run(total)
    assert found.min() == found.max() == 210


@pytest.mark.ranks([2, 3])
def test_variables_on_the_host_of_a_ps_and_gradients_from_the_gpus_of_workers(nranks: int) -> None:
    cluster = tf.cluster({"ps": 1, "worker": nranks - 1})
    rng = np.random.default_rng(7)
    start = rng.standard_normal((5, 2)).astype(np.float32)
    x, t = rng.standard_normal((nranks - 1, 8, 5)), rng.standard_normal((nranks - 1, 8, 2))
    with tf.device("/job:ps/task:0/cpu:0"):
        w = tf.Variable(start)
    grads = []
    for task in range(cluster.spec.num_tasks("worker")):
        with on(task):
            loss = tf.reduce_sum(tf.square(tf.matmul(tf.constant(x[task], tf.float32), w) - tf.constant(t[task], tf.float32)))
            grads.append(tf.gradients(loss, w)[0])
    with tf.device("/job:ps/task:0/cpu:0"):
        train = w.assign_sub(tf.add_n(grads) * 0.01)
    with tf.Session() as session:
        session.run(w.initializer)
        for _ in range(5):
            session.run(train.op)
        found = session.run(w)
        assert session.placement()[w.op.name].endswith("CPU:0") and session.placement()[grads[0].op.name].endswith("GPU:0")
    wanted = start.astype(np.float64)
    for _ in range(5):
        wanted = wanted - 0.01 * sum(2 * x[k].T @ (x[k] @ wanted - t[k]) for k in range(nranks - 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("kind", ["index", "memory"])
def test_an_error_on_one_ranks_gpu_is_every_ranks_error_and_the_session_goes_on(kind: str) -> None:
    tf.cluster({"worker": 2})
    with on(1):
        n = tf.placeholder(tf.int64, [])
        if kind == "index":
            made = tf.gather(tf.constant([1.0, 2.0, 3.0]), n, name="made")
        else:
            made = tf.fill(tf.expand_dims(n, 0), 1.0, name="made")
        total = tf.reduce_sum(made)
    with on(0):
        result = total + 1.0
    error = tf.errors.InvalidArgumentError if kind == "index" else tf.errors.ResourceExhaustedError
    with tf.Session() as session:
        for _ in range(3):
            with pytest.raises(error) as caught:
                session.run(result, {n: 2**40})
            assert "'made'" in str(caught.value) and "/job:worker/task:1/device:GPU:0" in str(caught.value)
            assert session.run(result, {n: 2}) == (4 if kind == "index" else 3)


@pytest.mark.ranks([2, 3])
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_tensors_of_all_gpus_are_reduced_to_each_of_them(nranks: int, reduction: str) -> None:
    tf.cluster({"worker": nranks})
    rng = np.random.default_rng(8)
    given = [[rng.standard_normal(shape).astype(np.float32) for _ in range(nranks)] for shape in ((), (5, 3), (1 << 19,))]
    results = []
    for values in given:
        tensors = []
        for task, value in enumerate(values):
            with on(task):
                tensors.append(tf.Variable(value).read_value() * 2.0)
        for task, found in enumerate(tf.collective.all_reduce(tensors, reduction)):
            with on(task):
                results.append(found + 1.0)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            found = session.run(results)
        placement = session.placement()
    assert all(placement[t.op.name].endswith("GPU:0") for t in results)
    wanted = [getattr(np, reduction)(np.array(values, np.float64), axis=0) * 2 + 1 for values in given for _ in range(nranks)]
    for ours, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-5)


@pytest.mark.ranks(2)
def test_strings_and_integers_of_a_py_func_cross_beside_the_tensors_of_a_gpu() -> None:
    tf.cluster({"worker": 2})
    with tf.device("/job:worker/task:0"):
        x = tf.placeholder(tf.float32, [3])
        doubled = x * 2.0
        words, lengths = tf.py_func(lambda v: ([str(i).encode() for i in v], np.arange(3)), [doubled], [tf.string, tf.int64])
    with tf.device("/job:worker/task:1"):
        words.set_shape([3]), lengths.set_shape([3])
        together, total = tf.identity(words), tf.cast(lengths, tf.float32) + doubled
    with tf.Session() as session:
        text, numbers = session.run([together, total], {x: [0.5, 1.0, 2.0]})
        placement = session.placement()
    assert text.tolist() == [b"1.0", b"2.0", b"4.0"] and numbers.tolist() == [1, 3, 6]
    assert placement[together.op.name].endswith("CPU:0") and placement[total.op.name].endswith("GPU:0")


TABLE = """
version = 1
share = true
fold = true

[[job]]
name = "ps"
count = 2
devices = ["cpu:0"]

[[job]]
name = "worker"
count = 2
devices = ["cpu:0", "gpu:0"]
"""


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_digits_job_learns_as_well_with_workers_on_the_gpu_and_variables_on_the_ps(mpirun: Mpirun, tmp_path: Path, n: int) -> None:
    (tmp_path / "table.toml").write_text(TABLE)
    accuracy, losses, placed = {}, {}, {}
    for device, table in {"cpu": {"CUDA_VISIBLE_DEVICES": ""}, "gpu": {"MPIRT_RANK_TABLE": str(tmp_path / "table.toml")}}.items():
        arguments = ["--epochs", "12", "--losses", str(tmp_path / f"{device}.npy")]
        result = mpirun(n, ROOT / "jobs/digits/train.py", arguments, env=table, timeout=120)
        accuracy[device] = float(re.search(r"accuracy  ([\d.]+)", result.stdout)[1])  # type: ignore[index]
        placed[device] = re.search(r"placement (.*)", result.stdout)[1]  # type: ignore[index]
        losses[device] = np.load(tmp_path / f"{device}.npy")
    assert "worker/task:1/device:GPU:0" in placed["gpu"] and "ps/task:0/device:CPU:0" in placed["gpu"] and "GPU" not in placed["cpu"]
    np.testing.assert_allclose(losses["gpu"], losses["cpu"], rtol=0.02, atol=2e-3)
    assert accuracy["gpu"] >= 0.95 and abs(accuracy["gpu"] - accuracy["cpu"]) <= 0.006


def test_the_asynchronous_digits_job_learns_with_workers_on_the_gpu(mpirun: Mpirun, tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text(TABLE)
    result = mpirun(4, ROOT / "jobs/digits/train_async.py", env={"MPIRT_RANK_TABLE": str(tmp_path / "table.toml")}, timeout=120)
    found = re.findall(r"accuracy\D*([\d.]+)", result.stdout)
    assert found and float(found[-1]) >= 0.95, result
