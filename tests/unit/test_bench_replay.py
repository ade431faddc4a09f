"""The replay of a plan on paper: its programs are those that the ranks would run, its times those that a small sum gives."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Meet, Program, Recv, Run, Send
from mpirt.graph.graph import Graph
from tests.unit.planning import TASKS, Step, link_all, rank_tables, steps

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))
try:
    from message_costs import curves, hops_in, longer, meeting_s, met_in
    from rehearsal import Alone, Rehearsal, Together, kind_of
    from replay import programs_of, replay
    from scale import planned as planned_on
    from scale_steps import ON_PAPER, reduce_step
    from tracks import BOX, FLAG, IN_PARTS, MESSAGE, PACKET, PRODUCED, STAYS, WHOLE, WINDOW, Costs, Piece, Track, networked, tracks_of
finally:
    sys.path.pop(0)

BEGIN, RUN, POST, SEND, TAKE, PUT, GET, FLIGHT, BYTE = 1000.0, 100.0, 3.0, 1.0, 2.0, 0.25, 0.5, 20.0, 0.5


def costs(**changes: Any) -> Costs:
    """Round numbers: an operation takes 100, a step 1000; a message 20 and a byte's 0.5 on its way."""
    table = Costs(
        BEGIN,
        post_s=lambda way, nbytes: POST,
        send_s=lambda way, nbytes: SEND,
        take_s=lambda way, nbytes: TAKE,
        put_s=PUT,
        get_s=GET,
        flight_s=lambda way, nbytes: FLIGHT + BYTE * nbytes,
    )
    return dataclasses.replace(table, **changes)


def seconds(program: Program) -> list[float]:
    return [RUN if isinstance(i, Run) else 0.0 for i in program.instructions]


def tracks(programs: Sequence[Program], one_memory: bool = True, table: Costs | None = None) -> list[Track]:
    memory = (0,) * len(programs) if one_memory else range(len(programs))
    return tracks_of(programs, seconds, table or costs(), memory)


def planned(build: Callable[[], Any], tasks: int) -> tuple[Graph, Plan]:
    with Graph().as_default() as graph:
        fetch = build()
        inventory = {Task("w", number): ("CPU:0",) for number in range(tasks)}
        return graph, make_plan(graph, [fetch], (), inventory, PlacementRules(Task("w", 0)), {})


def linked(build: Callable[[], Any], tasks: int) -> list[Program]:
    return programs_of(planned(build, tasks)[1], lambda task: task.index, tasks)


def on(task: int) -> Any:
    return tf.device(f"/job:w/task:{task}")


def made(size: int) -> Any:
    """The result of one operation, which is not folded while planning."""
    return tf.exp(tf.zeros([size]))


# ------------------------------------------------------------------------------------------------------------ programs


@settings(max_examples=40)
@given(steps(), rank_tables())
def test_programs_made_together_are_those_that_each_rank_would_make(step: Step, table: tuple[list[int], int]) -> None:
    ranks, num_ranks = table
    plan = step.plan()
    made = programs_of(plan, dict(zip(TASKS, ranks, strict=True)).__getitem__, num_ranks)
    assert made == link_all(plan, ranks, num_ranks, "owner")


def collective(kind: str, tasks: int, floats: int) -> Any:
    tensors = []
    for task in range(tasks):
        with on(task):
            tensors.append(made(floats))
    if kind == "two all_reduces":
        found = [*tf.collective.all_reduce(tensors, "sum"), *tf.collective.all_reduce(tensors, "max")]
    elif kind == "broadcast":
        found = tf.collective.broadcast(tensors[0], tensors)
    else:
        found = getattr(tf.collective, kind)(tensors)
    with on(0):
        return tf.group([tensor.op for tensor in found])


@pytest.mark.parametrize("tasks, floats", [(2, 4), (3, 30_000), (11, 22), (11, 110_000)])
@pytest.mark.parametrize("kind", ["all_reduce", "two all_reduces", "all_gather", "reduce_scatter", "broadcast"])
def test_programs_with_collectives_made_together_are_those_that_each_rank_would_make(kind: str, tasks: int, floats: int) -> None:
    from mpirt.compiler.linker import link

    _, plan = planned(partial(collective, kind, tasks, floats - floats % tasks), tasks)
    made = programs_of(plan, lambda task: task.index, tasks)
    assert made == [link(plan, lambda task: task.index, rank, tasks, "owner") for rank in range(tasks)]
    one_host = programs_of(plan, lambda task: task.index, tasks, (0,) * tasks)
    assert one_host == [link(plan, lambda task: task.index, rank, tasks, "owner", (0,) * tasks) for rank in range(tasks)]
    met = {t.index for program in one_host for i in program.instructions if isinstance(i, Meet) for t in i.transfers}
    assert replay(tracks(one_host), costs()).messages == len(one_host[0].transfers) - len(met)
    assert replay(tracks(made), costs()).messages == replay(tracks(made), costs(cores=2, spin_s=5.0)).messages > 0


# ------------------------------------------------------------------------------------------------------- what must hold


def longest_path(found: Sequence[Track], table: Costs) -> float:
    """Seconds of one step if nothing but order and messages held anybody up."""
    begins = [BEGIN + POST * len(track.posts) for track in found]
    place, now = [0] * len(found), begins.copy()
    sent: dict[Any, float] = {}
    went_on = True
    while went_on:
        went_on = False
        for rank, track in enumerate(found):
            while place[rank] < len(track.pieces):
                piece = track.pieces[place[rank]]
                if piece.what == "take":
                    if piece.message not in sent:
                        break
                    now[rank] = max(now[rank], sent[piece.message] + table.flight_s(piece.way, piece.nbytes)) + TAKE
                elif piece.what == "send":
                    sent[piece.message] = now[rank]
                    now[rank] += SEND
                else:
                    now[rank] += piece.seconds
                place[rank] += 1
                went_on = True
    assert place == [len(track.pieces) for track in found]
    return max(now)


@settings(max_examples=40)
@given(steps(), rank_tables(), st.integers(1, 3), st.sampled_from([0.0, 5.0, 1e9]), st.sampled_from([30.0, float("inf")]), st.booleans())
def test_no_step_is_shorter_than_its_longest_path_or_its_busiest_rank_or_core(
    step: Step, table: tuple[list[int], int], cores: int, spin_s: float, slice_s: float, ports: bool
) -> None:
    ranks, num_ranks = table
    made = programs_of(step.plan(), dict(zip(TASKS, ranks, strict=True)).__getitem__, num_ranks)
    found = tracks(made)
    packed = sum(len(packet) - 1 for packet in made[0].packets)
    own = costs(port_s=(lambda nbytes: BYTE * nbytes) if ports else None)
    shared = costs(cores=cores, spin_s=spin_s, slice_s=slice_s)
    for table_of, one in ((own, replay(found, own, 1)), (shared, replay(found, shared, 1))):
        assert one.messages == len(made[0].transfers) - packed
        assert one.step_s >= max(longest_path(found, table_of), *one.busy_s) - 1e-6
    busy = replay(found, shared, 1).busy_s
    assert replay(found, shared, 1).step_s >= max(sum(busy[core::cores]) for core in range(cores)) - 1e-6
    assert sum(busy) == pytest.approx(sum(replay(found, own, 1).busy_s))
    several = replay(found, shared, 4)
    assert several.step_s >= max(several.busy_s) - 1e-6
    if not ports:
        assert replay(found, own, 1).step_s == pytest.approx(longest_path(found, own))


# --------------------------------------------------------------------------------------------------------- closed forms


def echo() -> Any:
    """Eight bytes from task 0 to task 1 and back."""
    with on(0):
        out = made(2)
    with on(1):
        there = tf.exp(out)
    with on(0):
        return tf.exp(there).op


def test_ping_pong_takes_its_kernels_and_twice_what_a_message_takes() -> None:
    found = replay(tracks(linked(echo, 2)), costs(), steps=1)
    message = FLIGHT + 8 * BYTE + TAKE
    # begin, post, exp, there, exp, back, exp, and the word to rank 1 that the step has ended, which takes that
    assert found.step_s == pytest.approx(BEGIN + POST + RUN + message + RUN + message + RUN + FLIGHT + BYTE + TAKE)
    assert (found.messages, found.nbytes) == (3, 8 + 8 + 1)
    own = [POST + RUN + SEND + TAKE + RUN + SEND, 2 * POST + TAKE + RUN + SEND + TAKE]
    assert found.busy_s == pytest.approx([BEGIN + seconds for seconds in own])


def test_in_a_row_of_steps_ranks_wait_for_each_other_once_a_step() -> None:
    def build() -> Any:
        with on(1):
            out = made(2)
        with on(0):
            return tf.exp(out).op

    programs = linked(build, 2)
    for count in (1, 2, 5):  # rank 1 begins when rank 0 has told it of the end; rank 0 has begun by then
        period = BEGIN + POST + RUN + FLIGHT + 8 * BYTE + TAKE + RUN + FLIGHT + BYTE + TAKE
        assert replay(tracks(programs), costs(), count).step_s == pytest.approx(period)


def piece(src: int, dst: int, what: str, number: int = 0, nbytes: int = 0, way: str = PACKET) -> Piece:
    return Piece(what, 0.0, (src, dst, number), way, nbytes)


def test_a_pipeline_runs_at_the_pace_of_a_stage_once_it_is_filled() -> None:
    stages, items, work = 5, 7, 40.0
    found = []
    for rank in range(stages):
        pieces: list[Piece] = []
        for item in range(items):
            pieces += [piece(rank - 1, rank, "take", item)] if rank else []
            pieces += [Piece("work", work)]
            pieces += [piece(rank, rank + 1, "send", item)] if rank < stages - 1 else []
        found.append(Track(tuple(pieces), ()))
    filled = BEGIN + work + (stages - 1) * (FLIGHT + TAKE + work)
    assert replay(found, costs(), 1).step_s == pytest.approx(filled + (items - 1) * (TAKE + work + SEND))


def all_pairs(ranks: int, nbytes: int = 0, way: str = PACKET) -> list[Track]:
    found = []
    for rank in range(ranks):
        others = [other for other in range(ranks) if other != rank]
        sends = [piece(rank, other, "send", 0, nbytes, way) for other in others]
        found.append(Track((*sends, *[piece(other, rank, "take", 0, nbytes, way) for other in others]), ()))
    return found


def test_all_pairs_end_when_the_last_rank_has_taken_what_was_sent_to_it_last() -> None:
    ranks = 6
    found = replay(all_pairs(ranks), costs(), 1)
    # The last rank is the last that each other one sends to; the first of these messages comes, then it takes one behind the other.
    assert found.step_s == pytest.approx(BEGIN + (ranks - 2) * SEND + FLIGHT + (ranks - 1) * TAKE)
    assert found.messages == ranks * (ranks - 1)


def test_all_pairs_through_ports_take_a_ports_time_for_each_message() -> None:
    ranks, nbytes = 4, 1000
    table = costs(port_s=lambda nbytes: BYTE * nbytes, send_s=lambda way, nbytes: 0.0, take_s=lambda way, nbytes: 0.0)
    # In turns nobody waits for a port but its own.
    turns = [
        Track(
            (
                *[piece(rank, (rank + hop) % ranks, "send", 0, nbytes) for hop in range(1, ranks)],
                *[piece((rank - hop) % ranks, rank, "take", 0, nbytes) for hop in range(1, ranks)],
            ),
            (),
        )
        for rank in range(ranks)
    ]
    assert replay(turns, table, 1).step_s == pytest.approx(BEGIN + FLIGHT + (ranks - 1) * BYTE * nbytes)


def test_what_a_receiver_moves_while_it_waits_for_something_else_costs_no_time() -> None:
    nbytes, move = 1000, 500.0
    table = costs(copy_s=lambda way, nbytes: move if nbytes else 0.0)
    late = Track((Piece("work", 2000.0), piece(0, 2, "send")), ())
    large = Track((piece(1, 2, "send", 0, nbytes, MESSAGE),), ())
    last = BEGIN + 2000.0 + FLIGHT
    for order, behind in (((0, 1), TAKE), ((1, 0), TAKE - TAKE)):
        takes = [piece(0, 2, "take") if src == 0 else piece(1, 2, "take", 0, nbytes, MESSAGE) for src in order]
        assert replay([late, large, Track(tuple(takes), ())], table, 1).step_s == pytest.approx(last + TAKE + behind)
    busy = Track((Piece("work", 5000.0), piece(1, 0, "take", 0, nbytes, MESSAGE)), ())
    sender = Track((piece(1, 0, "send", 0, nbytes, MESSAGE),), ())
    assert replay([busy, sender], table, 1).step_s == pytest.approx(BEGIN + 5000.0 + move + TAKE)


def test_a_rank_that_has_waited_long_finds_what_has_come_late() -> None:
    work, waited = 5000.0, 5000.0 + FLIGHT
    found = [Track((Piece("work", work), piece(0, 1, "send")), ()), Track((piece(0, 1, "take"),), ())]
    one = replay(found, costs(late_s=lambda waited_s: waited_s / 10), 1)
    assert one.step_s == pytest.approx(BEGIN + waited + waited / 10 + TAKE)
    assert one.busy_s[1] == pytest.approx(BEGIN + TAKE)


# ----------------------------------------------------------------------------------------------------- ports, packets, paths


def test_a_port_carries_one_message_at_a_time() -> None:
    def build() -> Any:
        ends = []
        for task in range(1, 5):
            with on(task):
                ends.append(made(1000))
        with on(0):
            return tf.add_n(ends).op

    table = costs(port_s=lambda nbytes: BYTE * nbytes)
    found = replay(tracks(linked(build, 5)), table, steps=1).step_s
    # All four messages are sent at one time; rank 0's port takes 2,000 for each. Then each is told of the end.
    first = BEGIN + POST + RUN + FLIGHT + 2000
    assert found == pytest.approx(first + 3 * 2000 + TAKE + RUN + 3 * SEND + FLIGHT + BYTE + TAKE)


def test_tensors_of_a_packet_are_one_message() -> None:
    def build() -> Any:
        with on(0):
            out = [made(2) for number in range(3)]
        with on(1):
            return tf.add_n(out).op

    programs = linked(build, 2)
    assert [len(packet) for packet in programs[0].packets] == [3]
    found = replay(tracks(programs), costs(), steps=1)
    assert (found.messages, found.nbytes) == (2, 3 * 8 + 1)  # the packet, and the end to rank 0
    packet = 3 * RUN + 2 * PUT + FLIGHT + 24 * BYTE + TAKE + 2 * GET
    assert found.step_s == pytest.approx(BEGIN + POST + packet + RUN + FLIGHT + BYTE + TAKE)


def test_large_tensors_travel_through_windows_where_ranks_share_memory() -> None:
    def build() -> Any:
        with on(0):
            x = made(1 << 15)
            out = tf.exp(x), tf.reshape(x, [1 << 15]), made(1 << 11), made(1 << 5)
        with on(1):
            return tf.group([tf.exp(tensor).op for tensor in out])

    programs = linked(build, 2)
    for one_memory, large in ((True, {PRODUCED, WINDOW}), (False, {MESSAGE})):
        sends = [p for p in tracks(programs, one_memory)[0].pieces if p.what == "send"]
        ways = {nbytes: {p.way for p in sends if p.nbytes == nbytes} for nbytes in (1 << 17, 1 << 13, 1 << 7)}
        assert ways == {1 << 17: large, 1 << 13: {MESSAGE}, 1 << 7: {PACKET}}


def test_what_ranks_of_one_host_pass_through_boxes_are_messages_between_hosts() -> None:
    def build() -> Any:
        with on(0):
            out = made(2), made(1 << 11), made(1 << 12)
        with on(1):
            return tf.group([tf.exp(tensor).op for tensor in out])

    plan = planned(build, 2)[1]
    for memory, ways in (((0, 0), [BOX, BOX, PRODUCED]), ((0, 1), [PACKET, MESSAGE, MESSAGE])):
        programs = programs_of(plan, lambda task: task.index, 2, memory)
        found = tracks_of(programs, seconds, costs(), memory)
        assert sorted((p.nbytes, p.way) for p in found[0].pieces if p.what == "send") == list(zip([8, 1 << 13, 1 << 14], ways, strict=True))
        assert [p.way for p in found[1].pieces if p.what == "send"] == [ways[0]], "the word that the step has ended"


def by_way(**seconds_of: float) -> Callable[[str, int], float]:
    return lambda way, nbytes: seconds_of[way.replace(" ", "_")] * (1000 if nbytes > 8 else 1)


def test_on_a_network_a_packet_costs_its_ranks_what_a_message_costs_them_here_and_a_large_one_its_requests() -> None:
    latency, byte = 50.0, 0.25
    table = costs(
        post_s=by_way(packet=3.0, message=30.0),
        send_s=by_way(packet=1.0, message=10.0),
        take_s=by_way(packet=2.0, message=20.0),
        flight_s=by_way(),
        copy_s=by_way(message=1e6),
    )

    def build() -> Any:
        with on(0):
            out = made(2), made(1 << 11)
        with on(1):
            return tf.group([tf.exp(tensor).op for tensor in out])

    programs = programs_of(planned(build, 2)[1], lambda task: task.index, 2, range(2))
    network = networked(table, latency, byte)
    found = replay(tracks_of(programs, seconds, network, range(2)), network, 1)
    # Rank 0 sends the packet when it has made it, then the large one; rank 1 has posted both, takes the packet and works meanwhile.
    # The large one's bytes have the port for longer than its latency.
    large = BEGIN + 3 + 2 * RUN + 1 + 10 + latency + (1 << 13) * byte + 20
    end = RUN + 1 + latency + 1 * byte + 2
    assert found.step_s == pytest.approx(large + end)
    assert found.busy_s == pytest.approx([BEGIN + 3 + 2 * RUN + 1 + 10 + 2, BEGIN + 3 + 30 + 2 + 20 + 2 * RUN + 1])
    longer_packet = networked(costs(send_s=by_way(packet=1.0)), latency, byte)
    assert longer_packet.send_s(PACKET, 4096) == 1000.0, "its copies are its ranks'"


@pytest.mark.parametrize("name", ON_PAPER)
def test_on_paper_ranks_have_hosts_of_their_own_so_all_that_they_share_are_messages(name: str) -> None:
    step = planned_on(ON_PAPER[name][0], 4, False)
    assert len(set(step.memory)) == 4
    for program in step.programs:
        assert not any(isinstance(i, Meet) for i in program.instructions)
        assert not any(t.on_board for t in program.transfers)
    ways = {p.way for track in tracks_of(step.programs, seconds, costs(), step.memory) for p in track.pieces if p.what != "work"}
    assert ways <= {PACKET, MESSAGE} and ways
    one_host = planned_on(partial(reduce_step, floats=100), 4, True)
    assert set(one_host.memory) == {0} and any(isinstance(i, Meet) for i in one_host.programs[0].instructions)


@pytest.mark.parametrize("memory, windows", [((0, 0), 1), ((0, 1), 0)])
def test_a_rehearsal_makes_what_it_sends_in_a_window_only_where_ranks_share_memory(memory: tuple[int, int], windows: int) -> None:
    def build() -> Any:
        with on(0):
            out = made(LARGE)
        with on(1):
            return tf.exp(out).op

    graph, plan = planned(build, 2)
    program = programs_of(plan, lambda task: task.index, 2, memory)[0]
    alone = Alone(graph, program, memory)
    assert len(alone._executor._produced) == windows
    assert len(alone.run()) == len(program.instructions)


LARGE = 1 << 15  # floats, which travel through windows


def test_a_variable_that_no_operation_changes_stays_in_its_window() -> None:
    def build() -> Any:
        with on(0):
            still, changed = (tf.Variable(tf.fill([LARGE + size], 1.0)) for size in (0, 4))
            after = tf.assign_add(changed, tf.fill([LARGE + 4], 1.0))
        with on(1):
            return tf.group([tf.exp(still).op, tf.exp(changed).op, after.op])

    ways = {p.nbytes // 4 - LARGE: p.way for p in tracks(linked(build, 2))[0].pieces if p.what == "send" and p.nbytes > LARGE}
    assert ways == {0: STAYS, 4: WINDOW}


@pytest.mark.parametrize("reads", [True, False])
def test_a_kernel_pays_for_what_another_core_holds_if_both_sides_touch_it(reads: bool) -> None:
    write, read = 11.0, 13.0

    def build() -> Any:
        with on(0):
            out = made(LARGE)
        with on(1):
            return (tf.exp(out) if reads else tf.reshape(out, [2, LARGE // 2])).op

    def of_produced(seconds: float) -> Callable[[str, int], float]:
        return lambda way, nbytes: seconds if way == PRODUCED else 0.0

    table = costs(read_s=of_produced(read), write_s=of_produced(write))
    programs = linked(build, 2)
    assert [sum(isinstance(i, Run) for i in program.instructions) for program in programs] == [2, 1]  # zeros are filled, then exp
    there = BEGIN + POST + 2 * RUN + write * reads + FLIGHT + BYTE * 4 * LARGE + TAKE
    back = read * reads + RUN + FLIGHT + BYTE + TAKE  # the word that it has ended
    assert replay(tracks(programs, table=table), table, 1).step_s == pytest.approx(there + back)


def test_what_is_read_twice_is_fetched_from_the_other_core_once() -> None:
    seen: list[tuple[str, int]] = []

    def build() -> Any:
        with on(0):
            out = made(LARGE)
        with on(1):
            return tf.group([tf.exp(out).op, tf.exp(tf.add(out, 1.0)).op])

    def read_s(way: str, nbytes: int) -> float:
        seen.append((way, nbytes))
        return 0.0

    tracks(linked(build, 2), table=costs(read_s=read_s))
    assert seen == [(PRODUCED, 4 * LARGE)]


def test_of_a_reduction_in_parts_each_kernel_fetches_what_it_reads() -> None:
    sizes = (LARGE, LARGE // 4)
    seen: list[tuple[str, int]] = []

    def build() -> Any:
        ends = []
        values: list[list[Any]] = [[], []]
        for task in range(2):
            with on(task):
                for size, each in zip(sizes, values, strict=True):
                    each.append(made(size))
        for each in values:
            for task, mean in enumerate(tf.collective.all_reduce(each, "mean")):
                with on(task):
                    ends.append(tf.exp(mean).op)
        with on(0):
            return tf.group(ends)

    def read_s(way: str, nbytes: int) -> float:
        seen.append((way, nbytes))
        return 0.0

    tracks(programs_of(planned(build, 2)[1], lambda task: task.index, 2, (0, 0)), table=costs(read_s=read_s))
    assert sorted(seen) == sorted([(IN_PARTS, 4 * size) for size in sizes] * 2)


def test_ranks_that_reduce_on_a_board_wait_for_each_other_and_send_no_message() -> None:
    ranks, floats, flag, meet = 3, 500, 7.0, 900.0

    def build() -> Any:
        values = []
        for task in range(ranks):
            with on(task):
                value = made(floats)
                for _ in range(task):
                    value = tf.exp(value)
                values.append(value)
        with on(0):
            return tf.group([tensor.op for tensor in tf.collective.all_reduce(values, "max")])

    programs = programs_of(planned(build, ranks)[1], lambda task: task.index, ranks, (0,) * ranks)
    seen = []

    def meet_s(*of: Any) -> float:
        seen.append(of)
        return meet

    def only_messages(way: str, nbytes: int) -> float:
        return flag if way == FLAG else FLIGHT + BYTE * nbytes

    table = costs(meet_s=meet_s, flight_s=only_messages, send_s=lambda way, nbytes: SEND * (way != FLAG), take_s=lambda way, nbytes: 0.0)
    found = replay(tracks(programs, table=table), table, 1)
    assert seen == [(ranks, 4 * floats, True)] * ranks
    assert (found.messages, found.nbytes) == (0, 0)  # who has met the others knows of their end
    assert found.step_s == pytest.approx(BEGIN + 3 * RUN + flag + meet)  # the last one to come has three operations before


# ---------------------------------------------------------------------------------------------------------------- cores


def test_ranks_that_share_a_core_take_turns() -> None:
    found = [Track((Piece("work", 500.0),), ()), Track((Piece("work", 300.0),), ())]
    assert replay(found, costs(), 1).step_s == pytest.approx(BEGIN + 500)
    assert replay(found, costs(cores=1), 1).step_s == pytest.approx(2 * BEGIN + 800)
    assert replay(found, costs(cores=2), 1).step_s == pytest.approx(BEGIN + 500)


@pytest.mark.parametrize("slice_s", [float("inf"), 1500.0])
def test_a_rank_that_computes_long_lets_others_have_the_core_after_a_slice(slice_s: float) -> None:
    table = costs(cores=2, slice_s=slice_s, begin_s=10.0)
    # Ranks 0 and 2 share a core; rank 1 waits for what rank 2 sends when it comes to that.
    found = [
        Track((Piece("work", 9000.0),), ()),
        Track((piece(2, 1, "take"), Piece("work", 20_000.0)), ()),
        Track((piece(2, 1, "send"),), ()),
    ]
    sent = 10 + min(9000.0, slice_s) + 10
    assert replay(found, table, 1).step_s == pytest.approx(sent + FLIGHT + TAKE + 20_000)


@pytest.mark.parametrize("spin_s", [0.0, 30.0, 300.0])
def test_a_rank_that_waits_keeps_its_core_for_a_while(spin_s: float) -> None:
    # Ranks 0 and 2 share a core: rank 0 waits for rank 1, rank 1 for rank 2, which has to compute before.
    found = [
        Track((piece(1, 0, "take"),), ()),
        Track((piece(2, 1, "take"), Piece("work", 100.0), piece(1, 0, "send")), ()),
        Track((Piece("work", 500.0), piece(2, 1, "send")), ()),
    ]
    own = BEGIN + spin_s + BEGIN + 500  # when rank 2 sends
    assert replay(found, costs(cores=2, spin_s=spin_s), 1).step_s == pytest.approx(own + FLIGHT + TAKE + 100 + FLIGHT + TAKE)


def test_ranks_that_wait_on_one_core_look_by_turns() -> None:
    turns = 8.0
    # Ranks 0 and 2 share a core and wait for rank 1: rank 0 finds its message while rank 2 waits, rank 2 has its own while rank 0
    # computes, and gets the core when that waits again. Then it computes itself, and nobody waits beside rank 0.
    found = [
        Track((piece(1, 0, "take", 0), Piece("work", 9000.0), piece(1, 0, "take", 1)), ()),
        Track(
            (
                Piece("work", 5000.0),
                piece(1, 0, "send", 0),
                Piece("work", 100.0),
                piece(1, 2, "send"),
                Piece("work", 30_000.0),
                piece(1, 0, "send", 1),
            ),
            (),
        ),
        Track((piece(1, 2, "take"), Piece("work", 50_000.0)), ()),
    ]
    waits_again = BEGIN + 5000 + FLIGHT + turns + TAKE + 9000
    one = replay(found, costs(cores=2, turns_s=turns), 1)
    assert one.step_s == pytest.approx(waits_again + turns / 2 + TAKE + 50_000 + TAKE)
    assert replay(found, costs(turns_s=turns), 1).step_s == pytest.approx(BEGIN + 5000 + SEND + 100 + FLIGHT + TAKE + 50_000)


# ---------------------------------------------------------------------------------------------------------- measured costs


def test_costs_between_sizes_lie_on_a_line_and_beyond_the_largest_the_last_slope_goes_on() -> None:
    cost = curves({PACKET: {10: 1.0, 20: 3.0, 40: 4.0}, MESSAGE: {10: 5.0}, WINDOW: {10: 7.0, 20: 6.0}})
    assert [cost(PACKET, nbytes) for nbytes in (1, 15, 30, 80)] == pytest.approx([1.0, 2.0, 3.5, 6.0])
    assert [cost(MESSAGE, nbytes) for nbytes in (1, 99)] == [5.0, 5.0]
    assert cost(WINDOW, 99) == pytest.approx(6.0)  # nothing gets cheaper
    assert cost(FLAG, 10) == 0.0


def test_a_hop_lasts_from_the_beginning_of_its_send_until_it_was_taken() -> None:
    # Two steps of three hops: 0 to 1, back, and there again.
    first = {"begin": np.array([[10.0, 50.0], [110.0, 150.0]]), "end": np.array([[44.0], [145.0]])}
    second = {"begin": np.array([[30.0], [130.0]]), "end": np.array([[13.0, 56.0], [112.0, 155.0]])}
    np.testing.assert_array_equal(hops_in((first, second)), [[3.0, 6.0, 14.0], [2.0, 5.0, 15.0]])


def test_a_meeting_lasts_from_when_both_have_come_until_both_have_the_result() -> None:
    first = {"come": np.array([[10.0], [100.0]]), "met": np.array([[25.0], [131.0]])}
    second = {"come": np.array([[20.0], [90.0]]), "met": np.array([[27.0], [130.0]])}
    np.testing.assert_array_equal(met_in((first, second)), [[7.0], [31.0]])


def test_how_much_longer_kernels_take_is_never_less_than_nothing() -> None:
    def side(beside: float, alone: float) -> list[dict[str, Any]]:
        return [{"last": np.full((5, 2), beside), "last alone": np.full((5, 2), alone)}]

    assert longer([side(5.0, 3.0), side(4.0, 3.5)], "last") == pytest.approx(2 * 2.0 + 2 * 0.5)
    assert longer([side(3.0, 5.0)], "last") == 0.0


def test_each_further_rank_adds_what_it_brings_if_all_read_all() -> None:
    def pair_s(way: str, nbytes: int) -> float:
        return 10.0 + nbytes / 1024 if way == WHOLE else 100.0

    assert meeting_s(pair_s, 2, 8192, True) == pytest.approx(18.0)
    assert meeting_s(pair_s, 4, 8192, True) == pytest.approx(18.0 + 2 * 7.0)
    assert meeting_s(pair_s, 4, 8192, False) == 100.0


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_message_that_nobody_sends_is_told_and_not_waited_for() -> None:
    found = tracks(linked(echo, 2))
    silent = Track(tuple(piece for piece in found[1].pieces if piece.what != "send"), found[1].posts)
    with pytest.raises(ValueError, match=r"2 ranks, rank 0 the first of them, wait for messages that nobody sends: \[\(\(1, 0, 0\), 0\)"):
        replay([found[0], silent], costs())


def test_a_message_of_unknown_size_is_refused_with_its_name() -> None:
    def build() -> Any:
        with on(0):
            out = tf.boolean_mask(made(4), tf.greater(made(4), 0.5))
        with on(1):
            return tf.exp(out).op

    with pytest.raises(ValueError, match="the size of .* isn't known while compiling"):
        tracks(linked(build, 2))


# ------------------------------------------------------------------------------------------------------------ rehearsals


def ring(ranks: int, floats: int = 4) -> Any:
    """Each rank multiplies its variable with what comes from before it; the last one's end is the step's."""
    with on(0):
        value = tf.Variable(tf.fill([floats, floats], 1.0)).value()
    for rank in [*range(1, ranks), 0]:
        with on(rank):
            value = tf.add(tf.matmul(tf.Variable(tf.fill([floats, floats], 1.0)), value), 1.0)
    return value.op


def test_a_rehearsal_runs_each_ranks_program_alone_and_finds_time_in_kernels_only() -> None:
    graph, plan = planned(partial(ring, 3, 64), 3)
    programs = programs_of(plan, lambda task: task.index, 3)
    rehearsal = Rehearsal((0,) * 3)
    for program in programs:
        rehearsal.learn(graph, program)
        found = rehearsal(program)
        for instruction, took in zip(program.instructions, found, strict=True):
            if isinstance(instruction, Send | Recv):
                assert took == 0.0
            elif isinstance(instruction, Run) and instruction.op.type == "MatMul":
                assert took > 0.0


def test_a_rehearsal_answers_messages_with_arrays_that_kernels_take() -> None:
    seen: list[Any] = []

    def look(array: Any) -> Any:
        seen.append(array)
        return array

    def build() -> Any:
        with on(0):
            out = made(3)
        with on(1):
            return tf.py_func(look, [out], tf.float32).op

    graph, plan = planned(build, 2)
    Rehearsal((0,) * 2).learn(graph, programs_of(plan, lambda task: task.index, 2)[1])
    assert seen
    for array in seen:
        np.testing.assert_array_equal(array, np.ones(3, np.float32))


def test_ranks_that_do_the_same_are_rehearsed_once() -> None:
    graph, plan = planned(partial(ring, 5), 5)
    programs = programs_of(plan, lambda task: task.index, 5)
    assert len({kind_of(program) for program in programs[1:]}) == 1
    assert kind_of(programs[0]) != kind_of(programs[1])
    rehearsal = Rehearsal((0,) * 5)
    assert rehearsal.missing(programs) == [programs[0], programs[4]]
    rehearsal.learn(graph, programs[4])
    assert rehearsal.missing(programs) == [programs[0]]
    assert rehearsal(programs[2]) is rehearsal(programs[4])
    larger = programs_of(planned(partial(ring, 5, 8), 5)[1], lambda task: task.index, 5)
    assert kind_of(larger[2]) != kind_of(programs[2])


class OneRank:
    """A communicator of this process alone."""

    def Get_rank(self) -> int:  # noqa: N802
        return 0

    def Get_size(self) -> int:  # noqa: N802
        return 1

    def Barrier(self) -> None: ...  # noqa: N802

    def allgather(self, value: Any) -> list[Any]:
        return [value]


def test_what_was_rehearsed_together_all_know() -> None:
    graph, plan = planned(partial(ring, 3, 64), 3)
    programs = programs_of(plan, lambda task: task.index, 3)
    rehearsal = Rehearsal((0,) * 3)
    together = Together(rehearsal, graph, programs, OneRank(), 1)
    for _ in range(2):
        together.sample(0.0)
    assert len(rehearsal.missing(programs)) == 2
    together.learn()
    assert rehearsal.missing(programs) == []
    for program in programs:
        took = [
            seconds
            for instruction, seconds in zip(program.instructions, rehearsal(program), strict=True)
            if isinstance(instruction, Run) and instruction.op.type == "MatMul"
        ]
        assert all(seconds > 0 for seconds in took)
