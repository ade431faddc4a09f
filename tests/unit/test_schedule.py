"""The order of a step: topological, what the longest chain waits for first, and the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.schedule import schedule
from mpirt.graph.graph import Graph, Operation, Tensor
from tests.unit.planning import Step, steps

HERE, THERE = (DeviceName(Task("worker", i), "CPU", 0) for i in (0, 1))


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


@settings(max_examples=150)
@given(steps())
def test_every_operation_comes_once_and_after_all_it_depends_on(step: Step) -> None:
    needed, fed = step.needed(), set(step.feeds)
    order = schedule(needed, step.placement(), fed)
    assert sorted(order, key=lambda op: op.index) == needed
    position = {op: i for i, op in enumerate(order)}
    for op in order:
        assert all(position[t.op] < position[op] for t in op.inputs if t not in fed)
        assert all(position[c] < position[op] for c in op.control_inputs)


@settings(max_examples=100)
@given(steps())
def test_what_has_the_longer_way_to_the_end_comes_first(step: Step) -> None:
    """The way to the end by recursion over consumers: one for each operation, eight more for each message."""
    needed, placement, fed = step.needed(), step.placement(), set(step.feeds)
    consumers: dict[Operation, list[Operation]] = {op: [] for op in needed}
    for op in needed:
        for producer in [t.op for t in op.inputs if t not in fed] + list(op.control_inputs):
            consumers[producer].append(op)

    @cache
    def way(op: Operation) -> int:
        return 1 + max((way(c) + 8 * (placement[c].task != placement[op].task) for c in consumers[op]), default=0)

    ways = [way(op) for op in schedule(needed, placement, fed)]
    assert ways == sorted(ways, reverse=True)


def test_a_producer_for_another_task_runs_before_local_work_that_nobody_waits_for() -> None:
    local: Tensor = tf.constant(1.0, name="local")
    for i in range(5):
        local = tf.negative(local, name=f"local{i}")
    sent = tf.constant(2.0, name="sent")
    received = tf.negative(sent, name="received")
    operations = tf.get_default_graph().get_operations()
    placement = dict.fromkeys(operations, HERE) | {received.op: THERE}
    assert [op.name for op in schedule(operations, placement)][0] == "sent"
    placement[received.op] = HERE
    assert [op.name for op in schedule(operations, placement)][0] == "local"


def test_equals_keep_the_order_in_which_they_were_made() -> None:
    made = [tf.constant(float(i)).op for i in range(20)]
    assert schedule(made, dict.fromkeys(made, HERE)) == made


def test_a_fed_tensor_is_no_reason_to_wait() -> None:
    x = tf.negative(tf.constant(1.0), name="x")
    y = tf.negative(x, name="y")
    needed = [op for op in tf.get_default_graph().get_operations()]
    assert [op.name for op in schedule(needed, dict.fromkeys(needed, HERE), {x})] == ["Const", "x", "y"]
    assert [op.name for op in schedule([y.op], {y.op: HERE}, {x})] == ["y"]
