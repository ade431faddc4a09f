"""The end of a step: the tree against what a tree must be, the tokens against a search of who could know of which failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.ends import WIDTH, pairs, relatives
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import END, Meet, Program, Read, Recv, Run, Send
from mpirt.graph.graph import Graph
from mpirt.transport import board
from tests.unit.planning import Step, link_all, rank_tables, steps

on_boards = pytest.mark.skipif(not board.USABLE, reason="ranks share no boards on this processor")

# ------------------------------------------------------------------------------------------------------------ the tree


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_the_tree_reaches_every_rank_once_in_few_hops_and_no_rank_has_more_children_than_its_width(width: int) -> None:
    for count in range(1, 71):
        ranks = [count // 2, *[rank for rank in range(count) if rank != count // 2]]
        found = list(pairs(ranks, width))
        depth = {ranks[0]: 0}
        for above, below in found:  # parents come before their children
            assert below not in depth
            depth[below] = depth[above] + 1
        assert depth.keys() == set(range(count))
        assert max(Counter(above for above, _ in found).values(), default=0) <= width
        if width > 1:
            assert max(depth.values()) <= ceil(log(count, width)) + 1


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_each_rank_finds_its_place_in_the_tree_by_itself(width: int) -> None:
    for ranks in ([], [3], [1, 0], [7, 2, 3, 5, 11, 12, 40], [30, *range(30), *range(31, 70)]):
        found = list(pairs(ranks, width))
        for rank in range(71):
            above, below = relatives(ranks, rank, width)
            assert [(above, rank)] * (above is not None) == [pair for pair in found if pair[1] == rank]
            assert [(rank, each) for each in below] == [pair for pair in found if pair[0] == rank]


def test_neighbouring_ranks_are_told_by_one_another() -> None:
    """On hosts of 16 ranks, of 64 ranks' 63 tokens few leave their host."""
    leaving = [pair for pair in pairs(range(64)) if pair[0] // 16 != pair[1] // 16]
    assert len(leaving) <= WIDTH + 3


# ----------------------------------------------------------------------------------------- who learns of which failure


def learns(programs: list[Program], failing: int, position: int) -> list[bool]:
    """Which ranks end the step dead if instruction ``position`` of rank ``failing`` fails; found by running all dead or alive."""
    places, dead = [0] * len(programs), [False] * len(programs)
    wire: dict[tuple[int, int], bool] = {}
    met: dict[tuple[str, int], dict[int, bool]] = {}
    went_on = True
    while went_on:
        went_on = False
        for rank, program in enumerate(programs):
            while places[rank] < len(program.instructions):
                i = program.instructions[places[rank]]
                if (rank, places[rank]) == (failing, position):
                    dead[rank] = True
                if isinstance(i, Send):
                    wire[i.transfer.dst_rank, i.transfer.index] = dead[rank]
                elif isinstance(i, Recv):
                    if (rank, i.transfer.index) not in wire:
                        if not dead[rank]:
                            break
                    else:
                        dead[rank] |= wire[rank, i.transfer.index]
                elif isinstance(i, Meet):
                    here = met.setdefault((i.name, 0), {})
                    here[rank] = dead[rank]
                    if len(here) < len(i.ranks) and not dead[rank]:
                        break
                    dead[rank] |= any(here.values())
                places[rank] += 1
                went_on = True
    assert places == [len(program.instructions) for program in programs]
    return dead


def can_fail(program: Program) -> list[int]:
    """Positions of what may fail on a rank by itself."""
    return [position for position, i in enumerate(program.instructions) if isinstance(i, Run | Read | Meet)]


@settings(max_examples=60, deadline=None)
@given(steps(), rank_tables(), st.sampled_from(["all", "owner"]))
def test_a_failure_of_any_operation_reaches_every_rank(step: Step, table: tuple[list[int], int], deliver: str) -> None:
    programs = link_all(step.plan(), *table, deliver)
    for rank, program in enumerate(programs):
        for position in can_fail(program):
            assert all(learns(programs, rank, position)), (rank, program.instructions[position])


@pytest.fixture(autouse=True)
def graph() -> Any:
    with Graph().as_default() as g:
        yield g


def on(task: int) -> Any:
    return tf.device(f"/job:w/task:{task}/device:CPU:0")


def planned(fetches: list[Any], tasks: int, feeds: Sequence[tf.Tensor] = ()) -> Plan:
    inventory = {Task("w", number): ("CPU:0", "GPU:0") for number in range(tasks)}
    return make_plan(tf.get_default_graph(), fetches, feeds, inventory, PlacementRules(Task("w", 0)), {})


def linked(
    fetches: list[Any], tasks: int, deliver: str = "owner", one_memory: bool = False, feeds: Sequence[tf.Tensor] = ()
) -> list[Program]:
    from mpirt.compiler.linker import link

    plan, memory = planned(fetches, tasks, feeds), (0,) * tasks if one_memory else None
    return [link(plan, lambda task: task.index, rank, tasks, deliver, memory) for rank in range(tasks)]


def made(task: int, size: int = 3) -> tf.Tensor:
    """The result of one operation, which is not folded while planning."""
    with on(task):
        return tf.exp(tf.zeros([size]), name=f"made{task}")


def all_learn(programs: list[Program]) -> bool:
    """Whether a failure of whatever can fail anywhere is every rank's."""
    return all([all(learns(programs, program.rank, position)) for program in programs for position in can_fail(program)])


def tokens(programs: list[Program]) -> list[tuple[int, int]]:
    return [(t.src_rank, t.dst_rank) for t in programs[0].transfers if t.reason == END]


@pytest.mark.parametrize("tasks", [2, 3, 5, 17, 64])
@pytest.mark.parametrize("grouped", [True, False])
def test_where_every_rank_ends_by_itself_each_is_told_by_few(tasks: int, grouped: bool) -> None:
    ends: list[Any] = [made(task).op for task in range(tasks)]
    if grouped:
        with on(0):
            ends = [tf.group(ends)]
    programs = linked(ends, tasks)
    found = tokens(programs)
    assert len(found) == len(programs[0].transfers) == 2 * (tasks - 1), "nothing tells the group itself"
    assert max(Counter(src for src, _ in found).values()) <= WIDTH + 1 and max(Counter(dst for _, dst in found).values()) <= WIDTH + 1
    for rank, program in enumerate(programs if tasks < 17 else programs[:: tasks // 8]):
        assert all(learns(programs, program.rank, can_fail(program)[-1])), rank


def test_two_ranks_that_both_end_by_themselves_tell_each_other_before_they_listen() -> None:
    for rank, program in enumerate(linked([made(0).op, made(1).op], 2)):
        assert [type(i) for i in program.instructions] == [Run, Send, Recv]
        assert program.instructions[1].transfer.name == f"^made{rank}"  # type: ignore[union-attr]


def test_of_what_runs_on_one_rank_behind_all_else_it_alone_tells() -> None:
    x = made(0)
    with on(1):
        y = tf.exp(x)
    with on(0):
        done = tf.group(y.op)
    programs = linked([done, x.op], 3)
    assert [(t.name, t.src_rank, t.dst_rank) for t in programs[0].transfers] == [
        ("made0:0", 0, 1),
        (f"^{done.name}", 1, 0),
        (f"^{done.name}", 1, 2),
    ]


def test_a_value_that_all_get_tells_of_its_end_by_itself() -> None:
    x = made(0)
    with on(1):
        y = tf.exp(x)
    assert tokens(linked([y, x], 3, "all")) == []
    assert tokens(linked([y, x.op], 3, "all")) == []
    assert tokens(linked([y.op, x], 3, "all")) == [(1, 0), (1, 2)]


def test_what_does_nothing_needs_no_end() -> None:
    with on(0):
        nothing = tf.no_op()
    with on(1):
        group = tf.group(nothing)
    for program in linked([group], 2):
        assert not program.instructions and not program.transfers


def test_an_edge_that_a_group_shares_with_an_operation_stays() -> None:
    x = made(0)
    with on(1), tf.control_dependencies([x.op]):
        after = made(1)
        group = tf.group(x.op)
    programs = linked([after.op, group], 2)
    assert [(t.name, t.reason) for t in programs[0].transfers] == [("^made0", "/job:w/task:1"), ("^group_deps", END)]

def test_an_edge_that_a_group_waits_for_first_and_an_operation_later_stays() -> None:
    x = made(0)
    with on(1):
        group = tf.group(x.op)
        with tf.control_dependencies([x.op]):
            after = made(1)
    programs = linked([group, after.op], 2)
    assert [t.name for t in programs[0].transfers if t.reason != END] == ["^made0"]
    assert [type(i) for i in programs[1].instructions[:2]] == [Recv, Run], "it runs behind what it waits for"


def test_of_two_groups_one_behind_the_other_the_last_is_where_all_is_known() -> None:
    x, y = made(0), made(1)
    with on(0):
        first = tf.group(x.op, y.op, name="first")
    with on(1), tf.control_dependencies([first]):
        last = tf.no_op(name="last")
    found = linked([last], 3)[0].transfers
    assert [(t.name, t.src_rank, t.dst_rank) for t in found] == [("^made0", 0, 1), ("^last", 1, 0), ("^last", 1, 2)]


# ---------------------------------------------------------------------------------------------------------------- feeds


def test_of_a_feed_that_was_asked_for_its_rank_tells_though_nothing_runs_there() -> None:
    """A feed that doesn't fit fails where it lives, whoever feeds it."""
    with on(1):
        x = tf.placeholder(tf.float32, [3], name="x")
    y = made(0)
    assert tokens(linked([y.op, x], 3, feeds=[x])) == [(1, 0), (0, 1), (0, 2)]


def test_of_a_feed_that_nobody_asked_for_its_reader_tells() -> None:
    with on(1):
        x = tf.placeholder(tf.float32, [3], name="x")
    with on(0):
        y = tf.exp(x, name="y")
    assert tokens(linked([y.op], 3, feeds=[x])) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("reader", [None, 1])
@pytest.mark.parametrize("asked", ["a value", "an operation"])
@pytest.mark.parametrize("deliver", ["all", "owner"])
def test_an_operation_of_which_one_output_is_fed_tells_by_itself(deliver: str, asked: str, reader: int | None) -> None:
    """Neither who gets the fed value nor who reads it learns of the operation that would have made it."""
    with on(0):
        fed, made_there = tf.unstack(tf.exp(tf.zeros([2]), name="made0"), name="parts")
    told: Any = fed
    if reader is not None:
        with on(reader):
            told = tf.exp(fed, name="told")
    programs = linked([told, made_there if asked == "a value" else made_there.op], 2, deliver, feeds=[fed])
    assert [i.op.type for i in programs[0].instructions if isinstance(i, Run)] == ["Exp", "Unpack"]
    assert all_learn(programs)


# ---------------------------------------------------------------------------------------------------------- on a board


@on_boards
@pytest.mark.parametrize("kind", ["all_reduce of different hosts", "broadcast", "all_gather", "two all_reduces", "one of two ranks"])
def test_a_failure_behind_any_collective_reaches_every_rank(kind: str) -> None:
    values = [made(task, 4) for task in range(3)]
    if kind == "broadcast":
        ys = tf.collective.broadcast(values[0], values)
    elif kind == "all_gather":
        ys = tf.collective.all_gather(values)
    else:
        ys = tf.collective.all_reduce(values[: 2 if kind == "one of two ranks" else 3])
    if kind == "two all_reduces":
        ys += tf.collective.all_reduce(values, "max")
    fetches = [y.op for y in ys] + [value.op for value in values]
    programs = linked(fetches, 3, one_memory=kind != "all_reduce of different hosts")
    assert all_learn(programs)


@on_boards
def test_a_group_behind_the_meeting_of_all_ranks_is_told_by_nobody() -> None:
    ys = tf.collective.all_reduce([made(task) for task in range(3)])
    with on(0):
        inner = tf.group([y.op for y in ys], name="inner")
    with on(1):
        done = tf.group(inner, name="done")
    programs = linked([done], 3, one_memory=True)
    assert [t for t in programs[0].transfers if not t.reason.startswith("AllReduce")] == []
    assert [i.last for program in programs for i in program.instructions if isinstance(i, Meet)] == [True] * 3


@on_boards
@pytest.mark.parametrize("behind", ["another rank's value", "a GPU's copy of it", "a value on a GPU"])
def test_whoever_does_something_behind_the_meeting_tells_of_it(behind: str) -> None:
    ys = tf.collective.all_reduce([made(task) for task in range(3)])
    fetches: list[Any] = [y.op for y in ys]
    if behind == "another rank's value":
        with on(0):
            fetches.append(tf.identity(ys[1]).op)
    elif behind == "a GPU's copy of it":
        with tf.device("/job:w/task:1/device:GPU:0"):
            fetches.append(tf.identity(ys[1]).op)
    else:
        with tf.device("/job:w/task:1/device:GPU:0"):
            fetches.append(tf.exp(tf.zeros([2])))
    programs = linked(fetches, 3, one_memory=True)
    assert not any(i.last for program in programs for i in program.instructions if isinstance(i, Meet))
    assert {dst for _, dst in tokens(programs)} == {0, 1, 2}


@on_boards
@pytest.mark.parametrize("size", [3, 50_000])
def test_ranks_that_meet_behind_all_else_tell_nobody(size: int) -> None:
    ys = tf.collective.all_reduce([made(task, size) for task in range(3)])
    programs = linked([y.op for y in ys], 3, one_memory=True)
    assert tokens(programs) == []
    for program in programs:
        meets = [i for i in program.instructions if isinstance(i, Meet)]
        assert [meet.last for meet in meets] == [True] and program.instructions[-1] is meets[0]
        for position in can_fail(program)[:-1]:
            assert all(learns(programs, program.rank, position))


@on_boards
def test_ranks_that_do_something_behind_a_meeting_tell_of_its_end() -> None:
    ys = tf.collective.all_reduce([made(task) for task in range(3)])
    with on(1):
        behind = tf.exp(ys[1])
    programs = linked([*[y.op for y in ys], behind.op], 3, one_memory=True)
    assert not any(i.last for program in programs for i in program.instructions if isinstance(i, Meet))
    for program in programs:
        for position in can_fail(program):
            assert all(learns(programs, program.rank, position))
    assert tokens(programs)


@on_boards
def test_a_rank_that_is_not_at_the_meeting_is_told() -> None:
    ys = tf.collective.all_reduce([made(task) for task in range(2)])
    programs = linked([y.op for y in ys], 3, one_memory=True)
    assert {dst for _, dst in tokens(programs)} == {0, 1, 2}
    for program in programs:
        for position in can_fail(program):
            assert all(learns(programs, program.rank, position))


@on_boards
@pytest.mark.parametrize("fetched", ["its value", "its end"])
def test_a_value_on_a_gpu_that_was_made_before_the_meeting_still_has_to_be_fetched_behind_it(fetched: str) -> None:
    with tf.device("/job:w/task:1/device:GPU:0"):
        early = tf.exp(tf.zeros([2]), name="early")
    with tf.control_dependencies([early]):
        ys = tf.collective.all_reduce([made(task) for task in range(3)])
    fetches = [early if fetched == "its value" else early.op, *[y.op for y in ys]]
    programs = linked(fetches, 3, one_memory=True)
    assert [i.last for program in programs for i in program.instructions if isinstance(i, Meet)] == [fetched == "its end"] * 3
    assert {dst for _, dst in tokens(programs)} == ({0, 1, 2} if fetched == "its value" else set())
