"""Reductions that share messages: which come together, that no cycle comes of it, and that one exchange carries them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler import buckets
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan, partition
from mpirt.compiler.placer import DeviceName, Placement
from mpirt.compiler.program import Fold, Program, Send
from mpirt.compiler.prune import prune
from mpirt.compiler.schedule import bring_together, schedule
from mpirt.compiler.verify import verify
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.ops.apply import apply_op
from mpirt.ops.collective_ops import REDUCE

TASKS = (Task("worker", 0), Task("worker", 1), Task("worker", 2))


@dataclass
class Random:
    """A random graph of collectives and additions over three tasks."""

    graph: Graph
    tensors: list[Tensor]
    placement: Placement

    @property
    def order(self) -> list[Operation]:
        return self.graph.get_operations()

    def plan(self, wanted: Sequence[Tensor]) -> Plan:
        order = schedule(prune(wanted), self.placement)
        return partition(order, self.placement, wanted)


@st.composite
def graphs(draw: st.DrawFn) -> Random:
    graph = Graph()
    with graph.as_default():
        tensors: list[list[Tensor]] = [[], [], []]  # of each task
        for i in range(3):
            with tf.device(str(TASKS[i])):
                tensors[i].append(tf.constant([float(i)] * 4))
        for _ in range(draw(st.integers(1, 14))):
            kind = draw(st.sampled_from(["sum", "sum", "max", "add", "ordered"]))
            if kind in ("sum", "max"):
                picked = [draw(st.sampled_from(of)) for of in tensors]
                for i, y in enumerate(tf.collective.all_reduce(picked, kind)):
                    tensors[i].append(y)
            else:
                i, j = draw(st.integers(0, 2)), draw(st.integers(0, 2))
                a, b = draw(st.sampled_from(tensors[i])), draw(st.sampled_from(tensors[j]))
                with tf.device(str(TASKS[i])), tf.control_dependencies([b] if kind == "ordered" else []):
                    tensors[i].append(tf.identity(a) if kind == "ordered" else a + b)
    placement = {op: DeviceName(Task("worker", int(op.device[-1]) if op.device else 0), "CPU", 0) for op in graph.get_operations()}
    return Random(graph, [t for of in tensors for t in of], placement)


def ancestors(op: Operation) -> set[Operation]:
    found: set[Operation] = set()
    stack = [op]
    while stack:
        for other in [*(t.op for t in stack[-1].inputs), *stack.pop().control_inputs]:
            if other not in found:
                found.add(other)
                stack.append(other)
    return found


@settings(max_examples=80)
@given(graphs(), st.sampled_from([16, 40, 1 << 20]))
def test_what_is_brought_together_is_in_a_topological_order_and_nothing_in_a_bucket_depends_on_another(random: Random, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "BUCKET_NBYTES", limit)
        order = bring_together(random.order, random.placement)
        assert sorted(order, key=lambda op: op.index) == random.order
        seen: set[Operation] = set()
        for op in order:
            assert {*(t.op for t in op.inputs), *op.control_inputs} <= seen
            seen.add(op)
        plan = random.plan(random.tensors)
        verify(plan)
        programs = [link(plan, lambda task: task.index, rank, 3) for rank in range(3)]
        for names in {names for program in programs for names in exchanged(program)}:
            ops = [random.graph.get_operation_by_name(name) for name in names]
            assert all(not ancestors(op) & set(ops) for op in ops)
            assert sum(buckets.nbytes_of(op) for op in ops) <= max(limit, 16)


@settings(max_examples=40)
@given(graphs())
def test_reductions_alike_with_the_same_number_of_collectives_before_them_are_neighbours(random: Random) -> None:
    order = bring_together(random.order, random.placement)
    hubs = [op for op in order if op.type == REDUCE]
    groups: dict[tuple[int, str], list[int]] = {}
    for op in hubs:  # brute force: the longest way of collectives to each
        groups.setdefault((depth(op), op.get_attr("reduction")), []).append(order.index(op))
    for places in groups.values():
        assert places == list(range(places[0], places[0] + len(places)))


def depth(op: Operation) -> int:
    producers = [*(t.op for t in op.inputs), *op.control_inputs]
    return max([depth(p) + (p.type == REDUCE) for p in producers], default=0)


def exchanged(program: Program) -> set[tuple[str, ...]]:
    """The collectives that share an exchange in a program: those whose tensors are packed into one array."""
    packed: dict[int, list[str]] = {}
    for i in program.instructions:
        if isinstance(i, Fold) and i.into is not None and i.op is not None and " more" in i.name:
            names = packed.setdefault(i.target, [])
            if i.op.name not in names:
                names.append(i.op.name)
    return {tuple(names) for names in packed.values() if len(names) > 1}


def gradients_of(count: int, size: int = 10) -> Plan:
    """The plan of ``count`` reductions of ``size`` floats over two tasks."""
    with Graph().as_default():
        ys = []
        for i in range(count):
            xs = []
            for task in range(2):
                with tf.device(f"/job:worker/task:{task}"):
                    xs.append(tf.constant([float(i)] * size))
            ys += tf.collective.all_reduce(xs, "mean")
        placement = {op: DeviceName(Task("worker", int(op.device[-1])), "CPU", 0) for op in prune(ys)}
        return partition(schedule(prune(ys), placement), placement, ys)


def sums(program: Program) -> list[Send]:
    return [i for i in program.instructions if isinstance(i, Send) and "Reduce" in i.transfer.reason]


def test_fifty_small_gradients_cross_in_one_message_each_way() -> None:
    plan = gradients_of(50)
    for rank in range(2):
        (send,) = sums(link(plan, lambda task: task.index, rank, 2, "owner"))
        assert send.transfer.nbytes == 50 * 10 * 4
        assert "and 49 more, all pairs" in send.transfer.reason


def test_a_bucket_is_not_filled_beyond_its_size() -> None:
    plan = gradients_of(5, buckets.BUCKET_NBYTES // 8)  # half a bucket each
    program = link(plan, lambda task: task.index, 0, 2, "owner")
    assert sorted({i.name for i in program.instructions if isinstance(i, Fold)}) == [
        "AllReduce/reduce and 1 more", "AllReduce_2/reduce and 1 more", "AllReduce_4/reduce",
    ]  # fmt: skip


def test_on_one_rank_nothing_is_packed() -> None:
    program = link(gradients_of(3), lambda task: 0, 0, 1)
    assert program.transfers == [] and not any(isinstance(i, Fold) for i in program.instructions)


def test_a_reduction_of_another_ones_result_shares_no_message_with_it_though_it_is_next_to_it() -> None:
    with Graph().as_default():
        xs = []
        for task in range(2):
            with tf.device(f"/job:worker/task:{task}"):
                xs.append(tf.constant([task + 1.0]))
        first = apply_op(REDUCE, xs, reduction="sum", name="first")
        second = apply_op(REDUCE, [first, xs[1]], reduction="sum", name="second")
        tasks = {xs[0].op: 0, xs[1].op: 1, first.op: 0, second.op: 0}
        placement = {op: DeviceName(Task("worker", task), "CPU", 0) for op, task in tasks.items()}
        plan = partition(schedule(prune([second]), placement), placement, [second])
    verify(plan)
    assert [node.op.name for node in plan.nodes][-2:] == ["first", "second"], "neighbours"
    sends = [i.transfer.reason for i in link(plan, lambda task: task.index, 1, 2, 0).instructions if isinstance(i, Send)]
    assert sends == ["first, all pairs: all 0", "second, all pairs: all 0"]
