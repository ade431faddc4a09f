"""One process and its GPU: copies, streams, memory, errors, and where operations go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.runtime.device import CudaGpu, open_device
from tests.gpu.kernels import note_kernels

pytestmark = pytest.mark.gpu

ON_GPU, ON_CPU = "/job:worker/task:0/device:GPU:0", "/job:worker/task:0/device:CPU:0"


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as g:
        yield g


@pytest.fixture(scope="module")
def gpu() -> CudaGpu:
    device = open_device("GPU:0")
    assert isinstance(device, CudaGpu)
    return device


# ------------------------------------------------------------------------------------------------------------- copies

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 1, 5)])
def test_an_array_comes_back_as_it_went(gpu: CudaGpu, shape: tuple[int, ...], dtype: str) -> None:
    array = (np.random.default_rng(1).standard_normal(shape) * 9).astype(dtype)
    there = gpu.from_host(array)
    back = gpu.to_host(there)
    assert isinstance(there, gpu.xp.ndarray) and type(back) is np.ndarray
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


def test_views_that_are_not_contiguous_come_and_go_as_values(gpu: CudaGpu) -> None:
    array = np.arange(60.0).reshape(3, 4, 5)
    large = np.arange(60_000.0).reshape(30, 40, 50)  # comes back to page-locked memory
    np.testing.assert_array_equal(gpu.to_host(gpu.from_host(large).T[:, ::3]), large.T[:, ::3])
    for view in (array.T, array[::2, ::-1], array[:, 1], np.broadcast_to(array[0], (2, 4, 5))):
        np.testing.assert_array_equal(gpu.to_host(gpu.from_host(view)), view)
        np.testing.assert_array_equal(gpu.to_host(gpu.from_host(array)[::-1].T), array[::-1].T)


def test_the_host_may_change_its_array_as_soon_as_it_has_been_given(gpu: CudaGpu) -> None:
    """The copy to the GPU runs behind what the stream has to do; the array must have been read before."""
    array = np.zeros(1 << 22, np.float32)
    with gpu.active():
        busy = gpu.xp.ones((4096, 4096), np.float32)
    for turn in range(5):
        with gpu.active():
            for _ in range(5):
                busy = busy @ busy * np.float32(1 / 4096)
        array[...] = turn
        there = gpu.from_host(array)
        array[...] = -1
        found = gpu.to_host(there)
        assert found[0] == found[-1] == turn and (found == turn).all()


def test_what_comes_back_is_the_end_of_a_long_computation(gpu: CudaGpu) -> None:
    """Twenty products of 4096 x 4096 are queued at once; the copy must wait for all of them."""
    x = gpu.from_host(np.full((4096, 4096), 1 / 4096, np.float32))
    with gpu.active():
        y = x
        for _ in range(20):
            y = y @ x  # stays as it is
        y += np.float32(1)
    assert (np.abs(gpu.to_host(y) - (1 + 1 / 4096)) < 1e-5).all()


def test_two_devices_of_a_process_have_two_streams() -> None:
    one, other = open_device("GPU:0"), open_device("GPU:0")
    with one.active():
        first = one.xp.cuda.get_current_stream().ptr
    with other.active():
        second = other.xp.cuda.get_current_stream().ptr
    assert len({first, second, 0}) == 3


# ---------------------------------------------------------------------------------------------------------- placement


def test_what_names_no_device_goes_to_the_gpu_and_strings_stay_on_the_host() -> None:
    x = tf.placeholder(tf.float32, [2], "x")
    y = tf.multiply(x, 2.0, name="y")
    words = tf.constant(["a", "b"], name="words")
    joined = tf.add(words, "!", name="joined")
    text = tf.py_func(lambda v: str(v.tolist()).encode(), [y], tf.string, name="text")
    with tf.Session() as session:
        values = session.run([y, joined, text], {x: [1.0, 2.5]})
        placement = session.placement()
    np.testing.assert_array_equal(values[0], [2, 5])
    assert values[1].tolist() == [b"a!", b"b!"] and values[2] == b"[2.0, 5.0]"
    assert {n: placement[n] for n in ("y", "words", "joined", "text")} == {"y": ON_GPU, "words": ON_CPU, "joined": ON_CPU, "text": ON_CPU}


def test_what_has_no_kernel_for_a_gpu_is_refused_there_and_placed_softly_on_request() -> None:
    x = tf.placeholder(tf.float32, [3])
    with tf.device("/gpu:0"):
        most = tf.segment_max(x, [0, 0, 1], name="most")
        twice = most * 2.0
    with tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError, match=r"'most' \(SegmentMax\) on .*GPU:0: it has no"):
        session.run(twice, {x: [1, 3, 2]})
    with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as session:
        assert session.run(twice, {x: [1, 3, 2]}).tolist() == [6, 4]
        assert [session.placement()[t.op.name] for t in (most, twice)] == [ON_CPU, ON_GPU]


def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with tf.device("/gpu:9"):
        x = tf.constant(1.0)
    with tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError, match="has no device GPU:9; it has CPU:0, GPU:0"):
        session.run(x)


# ----------------------------------------------------------------------------------------------------- feeds and fetches


@pytest.mark.parametrize("dtype", DTYPES)
def test_feeds_and_fetches_cross_to_the_gpu_and_back(dtype: str) -> None:
    x = tf.placeholder(dtype, None)
    with tf.device("/gpu:0"):
        turned, same = tf.transpose(x), tf.identity(x)
    a = (np.random.default_rng(3).standard_normal((3, 4)) * 9).astype(dtype)
    with tf.Session() as session:
        values = session.run([turned, same, x], {x: a})
        assert session.run(same, {x: a[1, 2]}) == a[1, 2]
    for value, wanted in zip(values, (a.T, a, a), strict=True):
        assert type(value) is np.ndarray and value.dtype == a.dtype
        np.testing.assert_array_equal(value, wanted)
        assert not np.shares_memory(value, a) or wanted is a


def test_a_fetched_value_stays_when_later_steps_run() -> None:
    with tf.device("/gpu:0"):
        v = tf.Variable(np.zeros(1000, np.float32))
        add = tf.assign_add(v, tf.ones([1000]))
    with tf.Session() as session:
        session.run(v.initializer)
        values = [session.run(add) for _ in range(20)]
    assert [float(value.min()) for value in values] == [float(value.max()) for value in values] == [float(i) for i in range(1, 21)]


# ----------------------------------------------------------------------------------------------- state and control flow


def test_a_reader_keeps_its_snapshot_while_the_variable_is_changed_in_place() -> None:
    with tf.device("/gpu:0"):
        v = tf.Variable(np.arange(5, dtype=np.float32))
        before = tf.identity(v.read_value())
        with tf.control_dependencies([before]):
            change = v.assign_add(np.full(5, 10, np.float32))
        with tf.control_dependencies([change]):
            after = v.read_value()
    with tf.Session() as session:
        session.run(v.initializer)
        for i in range(5):
            a, b = session.run([before, after])
            np.testing.assert_array_equal(a, np.arange(5) + 10 * i)
            np.testing.assert_array_equal(b, np.arange(5) + 10 * (i + 1))


OPTIMIZERS = {
    "sgd": lambda: tf.train.GradientDescentOptimizer(0.1),
    "momentum": lambda: tf.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
    "adagrad": lambda: tf.train.AdagradOptimizer(0.1),
    "adadelta": lambda: tf.train.AdadeltaOptimizer(1.0),
    "rmsprop": lambda: tf.train.RMSPropOptimizer(0.01, momentum=0.5, centered=True),
    "adam": lambda: tf.train.AdamOptimizer(0.01),
    "ftrl": lambda: tf.train.FtrlOptimizer(0.1, l1_regularization_strength=0.01),
    "proximal": lambda: tf.train.ProximalAdagradOptimizer(0.1, l2_regularization_strength=0.01),
}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_on_the_gpu_is_training_on_the_cpu(name: str, sparse: bool) -> None:
    """Ten steps of a linear model, or of an embedding with repeated rows; numpy's kernels have TensorFlow's answers."""

    def train(device: str) -> list[Any]:
        rng = np.random.default_rng(4)
        with tf.Graph().as_default(), tf.device(device):
            w = tf.Variable(rng.standard_normal((6, 3)).astype(np.float32))
            x, t = tf.placeholder(tf.float32, [8, 6]), tf.placeholder(tf.float32, [8, 3])
            rows = tf.placeholder(tf.int32, [8])
            y = tf.nn.embedding_lookup(w, rows) if sparse else tf.matmul(x, w)
            loss = tf.reduce_mean(tf.square(y - t))
            step = OPTIMIZERS[name]().minimize(loss)
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                found = []
                for _ in range(10):
                    feeds = {x: rng.standard_normal((8, 6)), t: rng.standard_normal((8, 3)), rows: rng.integers(0, 4, 8)}
                    found.append(session.run([loss, step], feeds)[0])
                kinds = {place.rpartition(":")[0].rpartition(":")[2] for place in session.placement().values()}
                assert kinds == {device[1:4].upper()}
                return [*found, session.run(w)]

    for ours, wanted in zip(train("/gpu:0"), train("/cpu:0"), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=1e-5)


def test_a_loop_with_a_cond_inside_runs_on_the_gpu_and_changes_its_variable() -> None:
    with tf.device("/gpu:0"):
        x = tf.placeholder(tf.float32, [4])
        v = tf.Variable(np.zeros(4, np.float32), use_resource=True)

        def turn(i: Any, y: Any) -> Any:
            y = tf.cond(tf.equal(i % 2, 0), lambda: y * 2.0, lambda: y + 1.0)
            with tf.control_dependencies([v.assign_add(y)]):
                return i + 1, tf.identity(y)

        _, y = tf.while_loop(lambda i, y: i < 5, turn, [0, x])
        slope = tf.gradients(tf.while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, y * y), [0, x])[1], x)[0]
    start = np.array([0.9, 1.0, 1.01, -0.5], np.float32)
    total, expected = np.zeros(4), start.astype(np.float64)
    for i in range(5):
        expected = expected * 2 if i % 2 == 0 else expected + 1
        total += expected
    with tf.Session() as session:
        session.run(v.initializer)
        found, d = session.run([y, slope], {x: start})
        np.testing.assert_allclose(session.run(v), total, rtol=1e-5)
        note_kernels(session, tf.get_default_graph())
        loops = [op.name for op in tf.get_default_graph().get_operations() if "While" in op.type]
        assert loops and {session.placement()[name] for name in loops if name in session.placement()} == {ON_GPU}
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(d, 32 * start.astype(np.float64) ** 31, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- errors


def test_an_error_of_a_kernel_names_the_operation_and_its_line() -> None:
    x, y = tf.placeholder(tf.float32, None), tf.placeholder(tf.float32, None)
    with tf.device("/gpu:0"):
        z = tf.matmul(x, y, name="product")
    with tf.Session() as session:
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(z, {x: np.ones((2, 3)), y: np.ones((4, 5))})
        assert "'product'" in str(caught.value) and "test_device_gpu.py:" in str(caught.value)
        np.testing.assert_array_equal(session.run(z, {x: np.ones((2, 3)), y: np.ones((3, 1))}), [[3], [3]])


@pytest.mark.parametrize("bad", [5, -1])
def test_an_index_out_of_range_is_an_error_on_a_gpu_too(bad: int) -> None:
    x, i = tf.placeholder(tf.float32, [5]), tf.placeholder(tf.int32, [2])
    with tf.device("/gpu:0"):
        y = tf.gather(x, i, name="rows")
    with tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError, match=rf"'rows'.*= {bad} is not in \[0, 5\)"):
        session.run(y, {x: np.zeros(5), i: [0, bad]})


def test_an_integer_divided_by_zero_is_an_error_on_a_gpu_too() -> None:
    x = tf.placeholder(tf.int64, [2])
    with tf.device("/gpu:0"):
        y = tf.floordiv(7, x, name="share")
    with tf.Session() as session:
        with pytest.raises(tf.errors.InvalidArgumentError, match="'share'.*integer division by zero"):
            session.run(y, {x: [3, 0]})
        assert session.run(y, {x: [3, -2]}).tolist() == [2, -4]


def test_more_memory_than_the_gpu_has_is_resource_exhausted_and_the_session_goes_on(gpu: CudaGpu) -> None:
    n = tf.placeholder(tf.int64, [1])
    with tf.device("/gpu:0"):
        big = tf.fill(n, 1.0, name="big")
        total = tf.reduce_sum(big)
    free, whole = gpu.xp.cuda.runtime.memGetInfo()
    with tf.Session() as session:
        for elements in (2**40, whole // 4):
            with pytest.raises(tf.errors.ResourceExhaustedError, match=r"'big' \(Fill\).*[Oo]ut of memory"):
                session.run(total, {n: [elements]})
        assert session.run(total, {n: [2**20]}) == 2**20
        # What a failed step held is free again: most of what was free fits.
        assert session.run(total, {n: [free // 8]}) > 0


def test_memory_of_steps_does_not_grow(gpu: CudaGpu) -> None:
    x = tf.placeholder(tf.float32, [1 << 20])
    with tf.device("/gpu:0"):
        v = tf.Variable(tf.zeros([1 << 20]))
        step = v.assign_add(tf.sin(x) * 2.0)
    pool = gpu.xp.get_default_memory_pool()
    with tf.Session() as session:
        session.run(v.initializer)
        used = []
        for _ in range(30):
            session.run(step.op, {x: np.zeros(1 << 20, np.float32)})
            used.append((pool.used_bytes(), pool.total_bytes()))
    # What an earlier test has left to the garbage collector may go meanwhile.
    assert max(used[5:]) == used[5]


# ------------------------------------------------------------------------------------------------------------ threads


def test_threads_run_steps_on_one_gpu_at_the_same_time() -> None:
    with tf.device("/gpu:0"):
        x = tf.placeholder(tf.float32, [256, 256])
        y = tf.reduce_sum(tf.matmul(x, x))
        z = tf.reduce_max(tf.sin(x) * 3.0 + x)
        counter = tf.Variable(0, dtype=tf.int64)
        count = tf.assign_add(counter, 1)
    wrong: list[str] = []
    with tf.Session() as session:
        session.run(counter.initializer)

        def client(k: int) -> None:
            rng = np.random.default_rng(k)
            for _ in range(50):
                a = rng.standard_normal((256, 256)).astype(np.float32)
                total, top, _ = session.run([y, z, count.op], {x: a})
                if not np.isclose(total, (a.astype(np.float64) @ a).sum(), rtol=1e-3, atol=0.5):
                    wrong.append(f"{k}: sum {total}")
                if not np.isclose(top, (np.sin(a) * 3 + a).max(), rtol=1e-5):
                    wrong.append(f"{k}: max {top}")

        threads = [threading.Thread(target=client, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert session.run(counter) == 200
