"""Programs of all ranks, over random graphs, placements and rank tables: they agree, they end, and folding changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.partition import Plan, partition
from mpirt.compiler.program import END, HOST, NO_SLOT, Move, Program, Read, Recv, Run, Send, memory_space
from mpirt.graph.graph import Graph, Operation, Tensor
from tests.unit.planning import TASKS, Simulation, Step, link_all, rank_tables, steps

DELIVER = st.sampled_from(["all", "owner"])


def sends(program: Program) -> list[int]:
    return [i.transfer.index for i in program.instructions if isinstance(i, Send)]


def receives(program: Program) -> list[int]:
    return [i.transfer.index for i in program.instructions if isinstance(i, Recv)]


@settings(max_examples=150)
@given(steps(), rank_tables(), DELIVER)
def test_both_ends_of_each_transfer_have_one_send_and_one_receive_and_no_rank_sends_to_itself(
    step: Step, table: tuple[list[int], int], deliver: str
) -> None:
    programs = link_all(step.plan(), *table, deliver)
    transfers = programs[0].transfers
    assert all(p.transfers == transfers for p in programs)
    assert [t.index for t in transfers] == list(range(len(transfers)))
    assert all(t.src_rank != t.dst_rank for t in transfers)
    for rank, program in enumerate(programs):
        assert Counter(sends(program)) == Counter(t.index for t in transfers if t.src_rank == rank)
        assert Counter(receives(program)) == Counter(t.index for t in transfers if t.dst_rank == rank)


@settings(max_examples=150)
@given(steps(), rank_tables(), DELIVER)
def test_the_programs_of_all_ranks_end_leave_no_message_and_no_value_behind(
    step: Step, table: tuple[list[int], int], deliver: str
) -> None:
    plan = step.plan()
    programs = link_all(plan, *table, deliver)
    done = Simulation(programs)
    assert not done.stuck and not done.left_over
    for program, values in zip(programs, done.values, strict=True):
        permanent = {slot for slot, _, _ in program.constants} | set(program.feeds.values()) | set(program.fetches)
        assert values.keys() <= permanent


@settings(max_examples=150)
@given(steps(), rank_tables())
def test_folding_tasks_onto_ranks_in_any_way_changes_no_fetched_value(step: Step, table: tuple[list[int], int]) -> None:
    plan = step.plan()
    alone = Simulation(link_all(plan, [0, 0, 0], 1)).fetched[0]
    assert Simulation(link_all(plan, *table)).fetched == [alone] * table[1]


@settings(max_examples=100)
@given(steps(), rank_tables())
def test_delivered_to_the_owner_a_value_is_on_the_rank_that_made_it_and_nowhere_else(step: Step, table: tuple[list[int], int]) -> None:
    plan, (ranks, num_ranks) = step.plan(), table
    everywhere = Simulation(link_all(plan, ranks, num_ranks)).fetched[0]
    fetched = Simulation(link_all(plan, ranks, num_ranks, "owner")).fetched
    rank_of = dict(zip(TASKS, ranks, strict=True))
    for position, fetch in enumerate(plan.fetches):
        owner = rank_of[plan.device_of(fetch).task]
        expected = [everywhere[position] if rank == owner else None for rank in range(num_ranks)]
        assert [values[position] for values in fetched] == expected


@settings(max_examples=100)
@given(steps(variables=False), rank_tables())
def test_an_operation_runs_once_on_its_own_rank_and_a_tensor_crosses_once_to_each_rank(step: Step, table: tuple[list[int], int]) -> None:
    plan, (ranks, num_ranks) = step.plan(), table
    programs = link_all(plan, ranks, num_ranks)
    rank_of = dict(zip(TASKS, ranks, strict=True))
    ran = Counter((op, p.rank) for p in programs for op in _operations(p))
    assert ran == Counter((node.op, rank_of[node.device.task]) for node in plan.nodes if node.fed is None)
    crossings = Counter((t.name, t.dst_rank) for t in programs[0].transfers if t.reason != END)
    assert not crossings or max(crossings.values()) == 1


def _operations(program: Program) -> list[Operation]:
    return [i.op for i in program.instructions if isinstance(i, Run)] + [op for _, op, _ in program.constants]


@settings(max_examples=100)
@given(steps(), rank_tables())
def test_kernels_get_values_in_their_devices_memory_and_messages_leave_from_host_memory(step: Step, table: tuple[list[int], int]) -> None:
    for program in link_all(step.plan(), *table):
        space: dict[int, str] = {slot: memory_space(device) for slot, _, device in program.constants}
        space |= dict.fromkeys(program.feeds.values(), HOST)
        cells: dict[int, str] = {}
        for i in program.instructions:
            if isinstance(i, Run):
                kernel = i.op.definition.kernels[i.device.type]
                names = [arg.name for arg in i.op.definition.inputs for _ in range(i.op.attrs[arg.number_attr] if arg.number_attr else 1)]
                for slot, name in zip(i.inputs, names, strict=True):
                    assert slot in cells or space[slot] == (HOST if name in kernel.host else memory_space(i.device)), i
                for slot, tensor in zip(i.outputs, i.op.outputs, strict=True):
                    (cells if tensor.dtype.is_ref else space)[slot] = memory_space(i.device)
            elif isinstance(i, Read):
                space[i.target] = cells[i.source]
            elif isinstance(i, Move):
                assert space[i.source] == i.from_space != i.to_space and HOST in (i.from_space, i.to_space)
                space[i.target] = i.to_space
            elif isinstance(i, Send):
                assert i.source == NO_SLOT or space[i.source] == HOST
            elif i.target != NO_SLOT:
                space[i.target] = HOST
        assert all(space[slot] == HOST for slot in program.fetches if slot != NO_SLOT)


# ------------------------------------------------------------------------------------------------------- by example


def plan_of(fetches: list[Any], feeds: tuple[Tensor, ...] = ()) -> Plan:
    return Step(tf.get_default_graph(), tuple(fetches), feeds).plan()


@pytest.fixture(autouse=True)
def graph() -> Any:
    with Graph().as_default() as g:
        yield g


def test_two_tasks_of_one_rank_that_read_a_tensor_get_it_in_one_message() -> None:
    with tf.device("/job:worker/task:0/cpu:0"):
        a = tf.constant([1.0, 2.0], name="a")
    readers = []
    for task in (0, 1):
        with tf.device(f"/job:ps/task:{task}/cpu:0"):
            readers.append(tf.negative(a).op)
    plan = plan_of(readers)
    assert len(plan.edges) == 2
    folded, spread = link_all(plan, [1, 1, 0], 2), link_all(plan, [1, 2, 0], 3)
    assert [t.name for t in folded[0].transfers if t.reason != END] == ["a:0"]
    assert [t.name for t in spread[0].transfers if t.reason != END] == ["a:0", "a:0"]


def test_a_fetched_tensor_that_the_other_rank_needs_anyway_crosses_once() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        a = tf.constant([1.0], name="a")
    with tf.device("/job:worker/task:0/cpu:0"):
        b = tf.negative(a, name="b")
    (program, _) = link_all(plan_of([a, b]), [0, 0, 1], 2)
    assert [(t.name, t.src_rank, t.dst_rank) for t in program.transfers] == [("a:0", 0, 1), ("b:0", 1, 0)]


def test_a_gpu_tensor_is_copied_to_another_gpu_once_through_host_memory() -> None:
    with tf.device("/job:worker/task:0/gpu:0"):
        a = tf.negative(tf.constant([1.0]), name="a")
    with tf.device("/job:worker/task:0/gpu:1"):
        readers = [tf.negative(a).op, tf.exp(a).op]
    (program,) = link_all(plan_of(readers), [0, 0, 0], 1)
    first, second = "/job:worker/task:0/device:GPU:0", "/job:worker/task:0/device:GPU:1"
    moves = [(i.tensor.name, i.from_space, i.to_space) for i in program.instructions if isinstance(i, Move)]
    assert moves == [("a:0", first, HOST), ("a:0", HOST, second)]


def test_a_variable_read_elsewhere_crosses_once_for_each_value_that_is_needed() -> None:
    def read() -> Tensor:
        return tf.negative(v._as_graph_element())

    with tf.device("/job:ps/task:0/cpu:0"):
        v = tf.Variable(1.0, name="v")
    with tf.device("/job:worker/task:0/cpu:0"):
        before = [read(), read()]
    with tf.device("/job:ps/task:0/cpu:0"), tf.control_dependencies(before):
        change = tf.assign_add(v, 1.0)
    with tf.device("/job:worker/task:0/cpu:0"), tf.control_dependencies([change]):
        after = [read(), read()]
    plan = plan_of([t.op for t in [*before, *after]])
    assert [(e.name, e.after) for e in plan.edges if e.src == TASKS[0]] == [("v:0", v.op), ("v:0", change.op)]
    ps, worker = link_all(plan, [0, 0, 1], 2)
    assert [i.op for i in ps.instructions if isinstance(i, Read)] == [v.op, change.op]
    first, second = (i.target for i in worker.instructions if isinstance(i, Recv) and i.target != NO_SLOT)
    inputs = {i.op: i.inputs for i in worker.instructions if isinstance(i, Run)}
    assert [inputs[t.op] for t in [*before, *after]] == [(first,), (first,), (second,), (second,)]


def test_a_gpu_that_reads_a_variable_of_another_task_gets_a_new_copy_of_each_value() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        v = tf.Variable(1.0, name="v")
    readers = []
    controls: list[Tensor] = []
    for _ in range(2):
        with tf.device("/job:worker/task:0/gpu:0"), tf.control_dependencies(controls):
            readers.append(tf.negative(v._as_graph_element()))
        with tf.device("/job:ps/task:0/cpu:0"), tf.control_dependencies(readers):
            controls = [tf.assign_add(v, 1.0)]
    plan = plan_of(readers)
    alone = Simulation(link_all(plan, [0, 0, 0], 1)).fetched[0]
    apart = Simulation(link_all(plan, [0, 0, 1], 2)).fetched
    assert alone[0][2] != alone[1][2] and apart == [alone, alone]


def test_a_fetched_variable_has_on_every_rank_the_value_from_before_the_steps_changes() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        v = tf.Variable(1.0, name="v")
        change = tf.assign_add(v, 1.0)
    plan = plan_of([v._as_graph_element(), change.op])
    for ranks, num_ranks in (([0, 0, 0], 1), ([1, 0, 0], 3)):
        assert Simulation(link_all(plan, ranks, num_ranks)).fetched == [[("initial", "v"), None]] * num_ranks


def test_two_fed_outputs_of_an_operation_that_does_not_run_owe_one_token() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        x, y = tf.unstack(tf.constant([1.0, 2.0]), name="both")
    programs = link_all(plan_of([x, y], (x, y)), [0, 0, 1], 2, "owner")
    assert [t.name for t in programs[0].transfers] == ["^both"]
    assert (sends(programs[0]), receives(programs[1])) == ([0], [0])


def test_feeds_count_on_the_rank_of_their_task_only() -> None:
    with tf.device("/job:ps/task:1/cpu:0"):
        x = tf.placeholder(tf.float32, [], name="x")
    with tf.device("/job:worker/task:0/cpu:0"):
        y = x * 2.0
    programs = link_all(plan_of([y], (x,)), [0, 1, 2], 4)
    assert [[t.name for t in p.feeds] for p in programs] == [[], ["x:0"], [], []]
    assert [(t.name, t.src_rank, t.dst_rank) for t in programs[3].transfers] == [
        ("x:0", 1, 2), ("mul:0", 2, 0), ("mul:0", 2, 1), ("mul:0", 2, 3),
    ]  # fmt: skip


def test_an_edge_without_a_rank_change_is_no_transfer_but_keeps_the_order() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        a = tf.constant([1.0])
        b = tf.negative(a)
    with tf.device("/job:worker/task:0/cpu:0"):
        c = tf.negative(b)
    (program,) = link_all(plan_of([c]), [0, 0, 0], 1)
    assert not program.transfers
    assert [i.op for i in program.instructions if isinstance(i, Run)] == [b.op, c.op]


def test_a_plan_split_for_tasks_knows_no_ranks() -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        a = tf.constant([1.0])
    step = Step(tf.get_default_graph(), (a,), ())
    placement = step.placement()
    assert str(placement[a.op].task) == "/job:ps/task:0" and placement[a.op].task == Task("ps", 0)
    assert partition(step.needed(), placement, (a,)) == step.plan()
