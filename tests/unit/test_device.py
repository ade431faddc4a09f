"""Devices: copies that share no memory with the host's, the GPU's own stream, and which devices there are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.task import Task
from mpirt.compiler.placer import DeviceName
from mpirt.distributed.cluster import Cluster
from mpirt.graph.graph import Graph
from mpirt.runtime import device as device_module
from mpirt.runtime.device import CpuDevice, CudaGpu, EmulatedGpu, default_devices, is_emulated, open_device, visible_gpus
from mpirt.transport.loopback import LoopbackTransport


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "2")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPIRT_EMULATED_GPUS", raising=False)
    monkeypatch.setattr(device_module, "visible_gpus", lambda: 0)


# ------------------------------------------------------------------------------------------------------ which there are


def test_without_gpu_a_task_has_one_cpu(without_gpu: None) -> None:
    assert default_devices() == ("CPU:0",)
    assert not is_emulated("GPU:0") and not is_emulated("CPU:0")


def test_emulated_gpus_are_there_only_if_asked_for_and_say_what_they_are(emulated: None) -> None:
    assert default_devices() == ("CPU:0", "GPU:0", "GPU:1")
    assert is_emulated("GPU:0") and not is_emulated("CPU:0")
    gpu = open_device("GPU:1")
    assert (gpu.name, gpu.description) == ("GPU:1", "GPU emulated on the CPU")
    assert Cluster(LoopbackTransport(), ClusterSpec({"a": 1})).describe().endswith(
        "/job:a/task:0 [CPU:0, GPU:0 (emulated), GPU:1 (emulated)]"
    )  # fmt: skip


def test_a_gpu_that_is_not_there_is_refused(without_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    mend = "\n  Mend: install the extra cuda12x or cuda13x on a machine with GPUs, set MPIRT_EMULATED_GPUS, or change the rank table."
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        open_device("GPU:0")
    assert str(caught.value) == "this rank has no device GPU:0: 0 emulated and 0 real GPU(s) can be used here." + mend
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "2")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        open_device("GPU:2")
    assert str(caught.value) == "this rank has no device GPU:2: 2 emulated and 0 real GPU(s) can be used here." + mend


def test_other_types_of_device_are_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"^device type 'TPU' is not supported; mpirt has CPU and GPU\.$"):
        open_device("TPU:0")


def test_the_placement_report_shows_what_is_emulated(emulated: None, capfd: pytest.CaptureFixture[str]) -> None:
    with tf.device("/gpu:1"):
        a = tf.constant(1.0, name="a")
    b = tf.negative(a, name="b")
    with tf.device("/cpu:0"):
        c = tf.negative(b, name="c")
    config = tf.ConfigProto(log_device_placement=True)
    with tf.Session(config=config, cluster=Cluster(LoopbackTransport(), ClusterSpec({"worker": 1}))) as session:
        session.run(c)
    assert capfd.readouterr().err == (
        "a: (Const): /job:worker/task:0/device:GPU:1 (emulated)\n"
        "b: (Neg): /job:worker/task:0/device:GPU:0 (emulated)\n"
        "c: (Neg): /job:worker/task:0/device:CPU:0\n"
    )


# -------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.arange(12)[::2], np.array(3.0), np.zeros((0, 2)), np.float32(2)])
def test_what_goes_to_an_emulated_gpu_or_comes_from_it_shares_no_memory_with_the_host(array: Any) -> None:
    gpu = EmulatedGpu(0)
    there = gpu.from_host(array)
    back = gpu.to_host(there)
    assert not np.shares_memory(there, array) and not np.shares_memory(back, there)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype and back.shape == array.shape


def test_a_cpu_copies_nothing() -> None:
    array = np.arange(3)
    cpu = CpuDevice()
    with cpu.active():
        assert cpu.from_host(array) is array and cpu.to_host(array) is array
    cpu.synchronize()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Every array that was made on an emulated GPU by a copy from the host."""
    made: list[np.ndarray[Any, Any]] = []

    class Watched(EmulatedGpu):
        def from_host(self, array: np.ndarray[Any, Any]) -> Any:
            made.append(super().from_host(array))
            return made[-1]

    monkeypatch.setattr(device_module, "EmulatedGpu", Watched)
    return made


def test_in_a_session_no_array_of_an_emulated_gpu_is_one_of_the_hosts(
    emulated: None, on_gpu: list[np.ndarray[Any, Any]]
) -> None:
    """Feeds, constants, results between devices, variables and fetches, in both directions."""
    cluster = Cluster(LoopbackTransport(), ClusterSpec({"worker": 2}))
    fed = np.arange(4.0, dtype=np.float32)
    with tf.device("/job:worker/task:1/gpu:1"):
        x = tf.placeholder(tf.float32, [4])
        c = tf.constant([1.0, 2.0, 3.0, 4.0])
        v = tf.Variable(np.ones(4, np.float32))
        same, flat = tf.identity(x), tf.reshape(v, [2, 2])
        with tf.control_dependencies([flat]):
            update = tf.assign_add(v, x)
    with tf.device("/job:worker/task:0/cpu:0"):
        host = tf.constant([5.0, 6.0, 7.0, 8.0])
        out = tf.identity(same)
    with tf.device("/job:worker/task:0/gpu:0"):
        across = tf.identity(host) + tf.identity(same)
    with tf.Session(cluster=cluster) as session:
        session.run(v.initializer)
        fetches = [x, c, v, same, flat, update, out, across, host]
        values = session.run(fetches, {x: fed})
        kept = [np.copy(value) for value in values]
        cell = _cell(session, "Variable")
        arrays = [*on_gpu, cell]
        assert len(on_gpu) >= 5
        for value in values:
            assert all(not np.shares_memory(value, array) for array in arrays)
        assert all(not np.shares_memory(fed, array) for array in [*arrays, *values])
        for value in values:
            value[...] = -1.0
        fed[...] = -2.0
        session.run(tf.no_op())
        np.testing.assert_array_equal(_cell(session, "Variable"), [1.0, 2.0, 3.0, 4.0])
        np.testing.assert_array_equal(session.run(c), [1.0, 2.0, 3.0, 4.0])
    expected = [[0, 1, 2, 3], [1, 2, 3, 4], [1, 1, 1, 1], [0, 1, 2, 3], [[1, 1], [1, 1]], None, [0, 1, 2, 3], [5, 7, 9, 11], [5, 6, 7, 8]]
    for value, wanted in zip(kept, expected, strict=True):
        if wanted is not None:
            np.testing.assert_array_equal(value, wanted)


def _cell(session: Any, name: str) -> Any:
    return session._runner._state.resources.lookup_or_create(Task("worker", 1), "", name, lambda n: None).read()


# --------------------------------------------------------------------------------------------------- a GPU, on a fake cupy


class FakeArray:
    """An array of the fake GPU: numpy can't touch it by accident."""

    __array__ = None

    def __init__(self, data: np.ndarray[Any, Any], stream: Any) -> None:
        self.data, self.stream = data, stream
        self.nbytes, self.shape, self.dtype = data.nbytes, data.shape, data.dtype


class FakeCupy(ModuleType):
    """The few names of cupy that mpirt uses; notes what is current when they are called."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.__spec__ = SimpleNamespace(name="cupy")  # type: ignore[assignment]
        self.current: list[str] = []
        self.synchronized = 0
        outer = self

        class Scope:
            def __init__(self, name: str) -> None:
                self.name = name

            def __enter__(self) -> Any:
                outer.current.append(self.name)
                return self

            def __exit__(self, *exc: Any) -> None:
                assert outer.current.pop() == self.name

        class Stream(Scope):
            def __init__(self, non_blocking: bool) -> None:
                assert non_blocking and outer.current, "a stream belongs to the device that is current when it is made"
                super().__init__(f"stream of {outer.current[-1]}")

            def synchronize(self) -> None:
                outer.synchronized += 1

        def alloc_pinned_memory(nbytes: int) -> Any:
            if self.pinned_left < nbytes:
                raise CUDARuntimeError("out of memory")
            self.pinned_left -= nbytes
            return bytearray(nbytes)

        class CUDARuntimeError(Exception):
            pass

        self.gpus: int | Exception = 2
        self.pinned_left = 1 << 20
        self.cuda = SimpleNamespace(
            Device=lambda ordinal: Scope(f"device {ordinal}"),
            Stream=Stream,
            alloc_pinned_memory=alloc_pinned_memory,
            runtime=SimpleNamespace(
                getDeviceProperties=lambda ordinal: {"name": b"Fake 9000"},
                getDeviceCount=self.count,
                CUDARuntimeError=CUDARuntimeError,
            ),
        )

    def count(self) -> int:
        if isinstance(self.gpus, Exception):
            raise self.gpus
        return self.gpus

    def asarray(self, array: np.ndarray[Any, Any]) -> FakeArray:
        return FakeArray(array.copy(), tuple(self.current))

    def asnumpy(self, array: FakeArray, stream: Any, out: Any, blocking: bool) -> np.ndarray[Any, Any]:
        assert stream.name == self.current[-1]
        self.synchronized += blocking
        if out is None:
            return array.data.copy()
        out[...] = array.data
        return out  # type: ignore[no-any-return]

    def negative(self, x: FakeArray) -> FakeArray:
        return FakeArray(-x.data, tuple(self.current))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.delenv("MPIRT_EMULATED_GPUS", raising=False)
    return fake


ON_GPU_1 = ("device 1", "stream of device 1")


def test_a_gpu_copies_in_its_own_stream_and_waits_for_what_it_gives_back(cupy: FakeCupy) -> None:
    gpu = CudaGpu(0, 1)
    assert (gpu.name, gpu.description) == ("GPU:0", "Fake 9000 (CUDA ordinal 1)")
    there = gpu.from_host(np.arange(3))
    assert there.stream == ON_GPU_1 and not cupy.current
    assert cupy.synchronized == 0
    np.testing.assert_array_equal(gpu.to_host(there), [0, 1, 2])
    assert cupy.synchronized == 1 and not cupy.current
    gpu.synchronize()
    assert cupy.synchronized == 2


def test_large_arrays_come_to_page_locked_memory_while_there_is_some(cupy: FakeCupy) -> None:
    gpu = CudaGpu(0, 0)
    array = np.arange(100_000.0).reshape(100, 1000)
    there = gpu.from_host(array)
    backs = [gpu.to_host(there) for _ in range(2)]
    assert cupy.pinned_left == (1 << 20) - array.nbytes
    for back in backs:
        assert back.dtype == array.dtype and back.flags.writeable
        np.testing.assert_array_equal(back, array)
    gpu.to_host(gpu.from_host(np.zeros(1000)))
    assert cupy.pinned_left == (1 << 20) - array.nbytes, "a small one doesn't need it"


def test_device_and_stream_are_left_when_a_kernel_raises(cupy: FakeCupy) -> None:
    gpu = CudaGpu(0, 0)
    with pytest.raises(ZeroDivisionError), gpu.active():
        assert cupy.current == ["device 0", "stream of device 0"]
        raise ZeroDivisionError
    assert not cupy.current


def test_the_visible_gpus_are_a_tasks_default_devices(cupy: FakeCupy) -> None:
    assert visible_gpus() == 2
    assert default_devices() == ("CPU:0", "GPU:0", "GPU:1")
    assert open_device("GPU:1").description == "Fake 9000 (CUDA ordinal 1)"
    assert not is_emulated("GPU:1")


def test_cupy_without_a_driver_means_no_gpu(cupy: FakeCupy) -> None:
    cupy.gpus = cupy.cuda.runtime.CUDARuntimeError("no driver")
    assert visible_gpus() == 0 and default_devices() == ("CPU:0",)


def test_emulated_gpus_come_instead_of_real_ones(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "1")
    assert default_devices() == ("CPU:0", "GPU:0")
    assert isinstance(open_device("GPU:0"), EmulatedGpu)
    with pytest.raises(tf.errors.InvalidArgumentError, match="1 emulated and 0 real"):
        open_device("GPU:1")


def test_a_step_copies_to_a_gpu_and_back_and_runs_kernels_in_its_stream(cupy: FakeCupy) -> None:
    with tf.device("/cpu:0"):
        x = tf.placeholder(tf.float32, [2])
    with tf.device("/gpu:1"):
        y = tf.negative(x)
    seen: list[tuple[str, ...]] = []
    negative = cupy.negative

    def watched(x: FakeArray) -> FakeArray:
        seen.append(tuple(cupy.current))
        return negative(x)

    cupy.negative = watched  # type: ignore[method-assign]
    with tf.Session(cluster=Cluster(LoopbackTransport(), ClusterSpec({"worker": 1}))) as session:
        assert session.run(y, {x: [1.0, -2.0]}).tolist() == [-1.0, 2.0]
    assert seen == [ON_GPU_1]


def test_kernels_see_the_array_namespace_of_their_device(cupy: FakeCupy) -> None:
    cluster = Cluster(LoopbackTransport(), ClusterSpec({"worker": 1}))
    state = tf.Session(cluster=cluster)._runner._state  # type: ignore[attr-defined]
    op = tf.constant(1.0).op
    devices = [DeviceName(Task("worker", 0), kind, 0) for kind in ("CPU", "GPU")]
    assert [state.context(op, device).xp for device in devices] == [np, cupy]
