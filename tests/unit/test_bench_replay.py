"""The replay of a plan on paper: its programs are those that the ranks would run, its times those that a small sum gives."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler import program as program_module
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Program, Recv, Send
from mpirt.graph.graph import Graph
from tests.unit.planning import TASKS, Step, link_all, rank_tables, steps

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))
try:
    from replay import Costs, RankProgram, programs_of, replay
finally:
    sys.path.pop(0)


def instructions(program: Program, ranks: Sequence[int]) -> list[Any]:
    """What the instructions are, without the numbers of slots and transfers."""
    found: list[Any] = []
    for i in program.instructions:
        if isinstance(i, Send | Recv):
            t = i.transfer
            found.append((type(i), t.name, t.nbytes, t.reason, ranks[t.src_rank], ranks[t.dst_rank]))
        else:
            found.append((type(i), getattr(i, "op", None), getattr(i, "tensor", None)))
    return found


@settings(max_examples=100, deadline=None)
@given(steps(), rank_tables())
def test_programs_made_rank_by_rank_are_those_that_the_whole_plan_gives(step: Step, table: tuple[list[int], int]) -> None:
    """But for packets, whose sends and receives are brought together: a part of the plan can't tell which there are."""
    ranks, num_ranks = table
    plan = step.plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_module, "find_packets", lambda *_: [])
        made = programs_of(plan, dict(zip(TASKS, ranks, strict=True)).__getitem__, num_ranks)
        whole = link_all(plan, ranks, num_ranks, "owner")
    assert [instructions(p.program, p.ranks) for p in made] == [instructions(p, range(num_ranks)) for p in whole]


@settings(max_examples=100, deadline=None)
@given(steps(), rank_tables())
def test_whatever_the_plan_all_ranks_come_to_the_end_of_every_step(step: Step, table: tuple[list[int], int]) -> None:
    ranks, num_ranks = table
    plan = step.plan()
    made = programs_of(plan, dict(zip(TASKS, ranks, strict=True)).__getitem__, num_ranks)
    found = replay(made, costs(), steps=2)
    assert found.messages == len(link_all(plan, ranks, num_ranks, "owner")[0].transfers)
    assert found.step_s >= max(1000.0, found.busy_s[0])


def costs(**changes: Any) -> Costs:
    """Round numbers: an operation takes 100, another call 10, a step 1000; a message 1 + 2 at its ends, 20 + a byte's 0.5."""
    table = Costs(
        run_s=lambda op: 100.0,
        call_s=10.0,
        begin_s=1000.0,
        send_s=1.0,
        recv_s=2.0,
        message_s=lambda nbytes: 20.0 + 0.5 * nbytes,
        port_s=lambda nbytes: 0.5 * nbytes,
    )
    return dataclasses.replace(table, **changes)


def linked(build: Callable[[], Any], tasks: int) -> list[RankProgram]:
    with Graph().as_default() as graph:
        fetch = build()
        inventory = {Task("w", number): ("CPU:0",) for number in range(tasks)}
        plan: Plan = make_plan(graph, [fetch], (), inventory, PlacementRules(Task("w", 0)), {})
    return programs_of(plan, lambda task: task.index, tasks)


def on(task: int) -> Any:
    return tf.device(f"/job:w/task:{task}")


def made(size: int) -> Any:
    """The result of one operation, which is not folded while planning."""
    return tf.exp(tf.zeros([size]))


def echo() -> Any:
    """Eight bytes from task 0 to task 1 and back."""
    with on(0):
        out = made(2)
    with on(1):
        there = tf.exp(out)
    with on(0):
        return tf.exp(there).op


def test_a_round_trip_takes_its_kernels_and_twice_what_a_message_takes() -> None:
    found = replay(linked(echo, 2), costs(), steps=1)
    message = 1 + (20 + 0.5 * 8) + 2
    # begin, exp, there, exp, back, exp, and the word to rank 1 that the step has ended
    assert found.step_s == pytest.approx(1000 + 100 + message + 100 + message + 100 + 1)
    assert (found.messages, found.nbytes) == (3, 8 + 8 + 1)
    assert found.busy_s == pytest.approx([100 + 1 + 2 + 100 + 1, 2 + 100 + 1 + 2])


def test_in_a_row_of_steps_the_last_one_counts() -> None:
    programs = linked(echo, 2)
    assert replay(programs, costs(), steps=3).step_s == pytest.approx(replay(programs, costs(), steps=1).step_s)


def test_where_the_receiver_copies_bytes_move_only_while_it_waits() -> None:
    def build() -> Any:
        with on(0):
            out = made(1000)
        with on(1):
            busy = made(2)
            for _ in range(50):
                busy = tf.exp(busy)
            with tf.control_dependencies([busy]):
                there = tf.exp(out)
        with on(0):
            return tf.exp(there).op

    programs = linked(build, 2)
    wire, copied = (replay(programs, costs(receiver_copies=way), steps=1).step_s for way in (False, True))
    # There are 4,000 bytes each way: on the way out they move beside the 51 operations, or behind them.
    assert copied - wire == pytest.approx(0.5 * 4000)


def test_a_port_carries_one_message_at_a_time() -> None:
    def build() -> Any:
        ends = []
        for task in range(1, 5):
            with on(task):
                ends.append(made(1000))
        with on(0):
            return tf.add_n(ends).op

    found = replay(linked(build, 5), costs(), steps=1).step_s
    # All four messages are sent at one time; rank 0's port takes 2,000 for each.
    first = 1000 + 100 + 1 + 20 + 2000
    assert found == pytest.approx(first + 3 * 2000 + 2 + 100 + 4 * 1)


def test_ranks_that_share_a_core_take_turns() -> None:
    def build() -> Any:
        ends = []
        for task in range(2):
            with on(task):
                end = made(2)
                for _ in range(9):
                    end = tf.exp(end)
                ends.append(end.op)
        with on(0):
            return tf.group(ends)

    programs = linked(build, 2)
    own, shared = (replay(programs, costs(cores=cores), steps=1).step_s for cores in (None, 1))
    # Each rank has 10 operations; what gathers their ends computes nothing.
    assert own == pytest.approx(1000 + 10 * 100 + 1 + 20.5 + 2 + 1)
    # One behind the other, the message, the end; in which order the ranks get the core may hide the message.
    assert 1000 + 20 * 100 <= shared <= 1000 + 20 * 100 + 1 + 20.5 + 2 + 1


def test_a_message_that_nobody_sends_is_told_and_not_waited_for() -> None:
    programs = linked(echo, 2)
    silent = dataclasses.replace(programs[1].program, instructions=[i for i in programs[1].program.instructions if isinstance(i, Recv)])
    with pytest.raises(ValueError, match=r"2 ranks, rank 0 the first of them, wait for messages that nobody sends: \[\(\(1, 0, 0\), 0\)"):
        replay([programs[0], RankProgram(silent, programs[1].ranks)], costs())


def test_a_message_of_unknown_size_is_refused_with_its_name() -> None:
    def build() -> Any:
        with on(0):
            out = tf.boolean_mask(made(4), tf.greater(made(4), 0.5))
        with on(1):
            return tf.exp(out).op

    with pytest.raises(ValueError, match="the size of .* isn't known while compiling"):
        replay(linked(build, 2), costs())


def test_a_collective_is_refused_and_not_given_a_made_up_cost() -> None:
    def build() -> Any:
        tensors = []
        for task in range(2):
            with on(task):
                tensors.append(made(8))
        return tf.group(tf.collective.all_reduce(tensors, "sum"))

    with pytest.raises(ValueError, match="a plan with collectives can't be replayed, and this one has 'AllReduce"):
        linked(build, 2)
