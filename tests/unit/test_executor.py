"""The executor: runs a program over slots, frees values, turns failures into errors of an operation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.partition import partition
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.prune import prune
from mpirt.compiler.schedule import schedule
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.runtime.device import CpuDevice, Device
from mpirt.runtime.executor import Executor, Failure, SessionState, StepFailed, op_error
from mpirt.runtime.resources import ResourceManager
from mpirt.transport.base import wait_until
from mpirt.transport.loopback import LoopbackTransport, LoopbackWorld

TASKS = (Task("w", 0), Task("w", 1))
Where = Callable[[Operation], int]


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def wait(ready: Callable[[], bool], what: Callable[[], str]) -> None:
    wait_until(ready, what, timeout_s=10)


def executors(fetches: list[Tensor | Operation], feeds: list[Tensor], ranks: int = 1, where: Where = lambda op: 0) -> list[Executor]:
    """One executor for each rank; ``where`` gives an operation's task, which is also its rank."""
    needed = prune(fetches, set(feeds))
    everything = sorted({*needed, *(t.op for t in feeds)}, key=lambda op: op.index)
    placement = {op: DeviceName(TASKS[where(op)], "CPU", 0) for op in everything}
    plan = partition(schedule(needed, placement, set(feeds)), placement, fetches, feeds)
    world = LoopbackWorld(ranks)
    devices: dict[tuple[Task, str], Device] = {(task, "CPU:0"): CpuDevice() for task in TASKS}
    found = []
    for rank in range(ranks):
        program = link(plan, lambda task: task.index % ranks, rank, ranks)
        found.append(Executor(program, SessionState(ResourceManager(), devices), world.transport(rank), 0, wait))
        assert isinstance(found[-1], Executor)
    return found


def by_name(op: Operation) -> int:
    return int(op.name.endswith("_on_1"))


def test_a_program_gives_the_fetched_values_and_may_run_again_and_again() -> None:
    x = tf.placeholder(tf.float64, [2])
    y = tf.square(x)
    (executor,) = executors([y, y.op, x], [x])
    (slot,) = executor.program.feeds.values()
    for i in range(3):
        found = executor.run({slot: np.full(2, float(i))})
        assert found[0].tolist() == [i * i] * 2 and found[1] is None and found[2].tolist() == [i, i]


def test_a_value_is_dropped_after_its_last_use() -> None:
    alive: list[weakref.ref[Any]] = []
    seen: list[bool] = []

    def make() -> Any:
        return np.zeros(1000)

    def use(x: Any) -> Any:
        alive.append(weakref.ref(x.base if x.base is not None else x))
        return np.float64(0.0)

    def look(x: Any) -> Any:
        gc.collect()
        seen.append(alive[-1]() is None)
        return x

    first = tf.py_func(make, [], tf.float64)
    second = tf.py_func(use, [first], tf.float64)
    third = tf.py_func(look, [second], tf.float64)
    fourth = tf.py_func(look, [third], tf.float64)
    (executor,) = executors([fourth], [])
    executor.run({})
    assert seen[-1]


@pytest.mark.parametrize("count", range(1, 9))
def test_a_kernel_gets_its_inputs_in_order_whatever_their_number(count: int) -> None:
    x = [tf.placeholder(tf.float64, [], name=f"x{i}") for i in range(count)]
    (executor,) = executors([tf.stack(x)], x)
    (found,) = executor.run({slot: np.float64(t.name[1]) for t, slot in executor.program.feeds.items()})
    assert found.tolist() == list(range(count))


def test_what_is_received_in_a_packet_and_kept_never_changes() -> None:
    kept: list[Any] = []

    def keep(*values: Any) -> Any:
        kept.append(values)
        return np.float64(len(kept))

    x = tf.placeholder(tf.float64, [2], name="x")
    made = [tf.negative(x, name="a"), tf.exp(x, name="b")]
    last = tf.py_func(keep, made, tf.float64, name="last_on_1")
    ranks = executors([last.op], [x], 2, by_name)
    (slot,) = ranks[0].program.feeds.values()
    assert [len(packet) for packet in ranks[1].program.packets] == [2]
    for step in range(3):
        both(ranks[0], ranks[1], {slot: np.full(2, float(step))})
    for step, values in enumerate(kept):
        assert [v.tolist() for v in values] == [[-step] * 2, np.exp(np.full(2, float(step))).tolist()]


def test_a_constant_is_the_same_array_in_every_step_and_lives_on() -> None:
    c = tf.constant([1.0, 2.0])
    (executor,) = executors([c, tf.identity(c)], [])
    first, second = executor.run({}), executor.run({})
    assert first[0] is second[0] and first[0].tolist() == [1.0, 2.0]


def test_a_failure_names_operation_and_device_and_keeps_the_traceback() -> None:
    def fail(x: float) -> float:
        raise ZeroDivisionError("by hand")

    x = tf.placeholder(tf.float64, [])
    y = tf.py_func(fail, [x], tf.float64, name="bad")
    (executor,) = executors([y], [x])
    for _ in range(2):
        with pytest.raises(StepFailed) as caught:
            executor.run({next(iter(executor.program.feeds.values())): np.float64(1.0)})
        failure = caught.value.failure
        assert failure is not None and failure.op is y.op and str(failure.device) == "/job:w/task:0/device:CPU:0"
        assert isinstance(failure.error, errors.UnknownError) and "by hand" in failure.traceback
        assert isinstance(caught.value.__cause__, errors.UnknownError)


def test_a_failed_step_sends_dead_tensors_and_the_next_step_is_clean() -> None:
    def maybe(x: float) -> float:
        if x < 0:
            raise ValueError("negative")
        return x

    x = tf.placeholder(tf.float64, [], name="x")
    y = tf.py_func(maybe, [x], tf.float64, name="y")
    z = tf.negative(y, name="z_on_1")
    first, second = executors([z], [x], 2, by_name)
    (slot,) = first.program.feeds.values()
    world = first_transport(first).world
    for value in (1.0, -1.0, -2.0, 3.0):
        for incoming in second._incoming:  # rank 1 is in its step already
            assert incoming.drained()
        outcome = both(first, second, {slot: np.float64(value)})
        if value < 0:
            assert outcome[0].failure is not None and outcome[1].failure is None
            for executor in (first, second):
                executor.drain()
        else:
            assert [float(o[0]) for o in outcome] == [-value, -value]
        assert not world._channels


def test_a_result_of_a_packet_that_is_not_what_its_operation_promised_names_that_operation() -> None:
    x = tf.placeholder(tf.float64, [2], name="x")
    good, bad = tf.negative(x, name="good"), tf.py_func(lambda a: a[:1], [x], tf.float64, stateful=False, name="bad")
    bad.set_shape([2])
    z = tf.add_n([good, bad], name="z_on_1")
    first, second = executors([z.op], [x], 2, by_name)
    assert [[t.name for t in packet] for packet in first.program.packets] == [["good:0", "bad:0"]]
    (slot,) = first.program.feeds.values()
    mine, theirs = both(first, second, {slot: np.zeros(2)})
    assert mine.failure.op is bad.op is mine.failure.error.op and theirs.failure is None
    assert str(mine.failure.error).startswith("'bad:0' has shape (1,) and type float64, but its static shape is (2,)")


def test_a_failure_before_the_step_sends_all_its_messages_as_dead_tensors() -> None:
    x = tf.placeholder(tf.float64, [], name="x")
    z = tf.negative(x, name="z_on_1")
    first, second = executors([z, x], [x], 2, by_name)
    failure = Failure(ValueError("no such feed"), None, None, "")
    mine, theirs = both(first, second, {}, failure)
    assert mine.failure is failure and theirs.failure is None
    for executor in (first, second):
        executor.drain()
    assert not first_transport(first).world._channels


def first_transport(executor: Executor) -> LoopbackTransport:
    transport = executor._transport
    assert isinstance(transport, LoopbackTransport)
    return transport


def both(first: Executor, second: Executor, feeds: dict[int, Any], failure: Failure | None = None) -> list[Any]:
    """What each rank's step gave or raised."""
    import threading

    found: list[Any] = [None, None]

    def run(rank: int) -> None:
        try:
            found[rank] = first.run(feeds, failure) if rank == 0 else second.run({})
        except StepFailed as failed:
            found[rank] = failed

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotImplementedError("n"), errors.UnimplementedError),
        (MemoryError("m"), errors.ResourceExhaustedError),
        (ZeroDivisionError("z"), errors.InvalidArgumentError),
        (ValueError("v"), errors.InvalidArgumentError),
        (TypeError("t"), errors.InvalidArgumentError),
        (IndexError("i"), errors.InvalidArgumentError),
        (OSError("o"), errors.UnknownError),
    ],
)
def test_exceptions_of_kernels_become_errors_of_the_field(error: Exception, kind: type[errors.OpError]) -> None:
    op = tf.no_op(name="n")
    found = op_error(error, op)
    assert type(found) is kind and found.op is op and found.message == f"'n' (NoOp) failed: {type(error).__name__}: {error}"


def test_an_error_of_the_field_stays_what_it_is_and_gets_the_operation_it_lacks() -> None:
    op, other = tf.no_op(name="n"), tf.no_op(name="m")
    found = op_error(errors.OutOfRangeError("end", hint="stop"), op)
    assert type(found) is errors.OutOfRangeError and found.op is op and (found.message, found.hint) == ("end", "stop")
    assert op_error(errors.OutOfRangeError("end", op=other), op).op is other


def test_kernels_keep_their_random_streams_for_the_life_of_the_session_state() -> None:
    state = SessionState(ResourceManager(), {(TASKS[0], "CPU:0"): CpuDevice()})
    op, device = tf.no_op(), DeviceName(TASKS[0], "CPU", 0)
    context = state.context(op, device)
    assert state.context(op, device) is context
    draws = [context.rng(1, 2).random() for _ in range(3)]
    assert len(set(draws)) == 3
    again = SessionState(ResourceManager(), {(TASKS[0], "CPU:0"): CpuDevice()}).context(op, device)
    assert [again.rng(1, 2).random() for _ in range(3)] == draws
    assert again.rng(0, 0).random() != context.rng(0, 0).random()  # no seed: another stream in each session


def test_resources_are_kept_by_task_container_and_name() -> None:
    manager = ResourceManager()
    first = manager.lookup_or_create(TASKS[0], "", "v", lambda name: [name])
    assert manager.lookup_or_create(TASKS[0], "", "v", lambda name: ["other"]) is first == ["v"]
    assert manager.lookup_or_create(TASKS[1], "", "v", lambda name: [1]) == [1]
    assert manager.lookup_or_create(TASKS[0], "c", "v", lambda name: [2]) == [2]
    assert manager.names() == [(TASKS[0], "", "v"), (TASKS[0], "c", "v"), (TASKS[1], "", "v")]
    manager.clear(["c"])
    assert manager.names() == [(TASKS[0], "", "v"), (TASKS[1], "", "v")]
    manager.clear()
    assert manager.names() == []


def glancing(plain: Executor, glance: Callable[[], None]) -> Executor:
    """The same program in an executor that glances."""
    devices: dict[tuple[Task, str], Device] = {(task, "CPU:0"): CpuDevice() for task in TASKS}
    return Executor(plain.program, SessionState(ResourceManager(), devices), glance=glance)


def test_a_glance_follows_an_operation_on_a_large_or_unknown_tensor_or_sixteen_others_if_another_one_comes() -> None:
    x, unknown = tf.placeholder(tf.float32, [64, 64]), tf.placeholder(tf.float32, [None])
    y = tf.reduce_max(tf.matmul(x, x)) + tf.reduce_max(unknown)  # three: the addition is small
    z = tf.sort(tf.stack([y, y]))
    for _ in range(40):
        z = tf.reverse(z, [0])
    glances: list[int] = []
    for last, count in ((z, 3 + 43 // 16), (tf.matmul(x, x), 0)):
        glances.clear()
        [plain] = executors([last], [x, unknown])
        executor = glancing(plain, lambda: glances.append(1))
        feeds = {slot: np.full([64, 64], 2, np.float32) if t is x else np.ones(3, np.float32) for t, slot in plain.program.feeds.items()}
        for step in (1, 2):
            np.testing.assert_array_equal(executor.run(feeds)[0], [257, 257] if count else np.full([64, 64], 256))
            assert len(glances) == count * step


def test_what_fails_behind_a_glance_keeps_its_name() -> None:
    x, y = tf.placeholder(tf.float32, [64, 64]), tf.placeholder(tf.float32, [64, 64])
    with tf.control_dependencies([tf.matmul(x, x)]):
        second = tf.matmul(x, y, name="second")
    glances: list[int] = []
    [plain] = executors([second], [x, y])
    executor = glancing(plain, lambda: glances.append(1))
    with pytest.raises(StepFailed) as info:
        executor.run({plain.program.feeds[x]: np.eye(64, dtype=np.float32), plain.program.feeds[y]: np.ones(3, np.float32)})
    assert info.value.failure is not None and info.value.failure.op is second.op
    assert glances == [1]
