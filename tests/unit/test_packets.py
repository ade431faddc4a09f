"""Packets: which small tensors share a message, and both ends of one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.packets import MOST_OPERATIONS, MOST_TENSORS, PACKET_NBYTES
from mpirt.compiler.program import FETCH, Program, Recv, Run, Send, Transfer
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.op_def import Blocked, op_def
from mpirt.runtime.packets import Packets
from mpirt.runtime.rendezvous import DeadTensor
from mpirt.transport.base import wait_until
from mpirt.transport.loopback import LoopbackWorld
from tests.unit.planning import Step

SEEDS = [None, *range(6)]


# ---- which tensors share a message


def by_task(task: Task) -> int:
    return {"ps": 0, "worker": 1}[task.job] if task != Task("ps", 1) else 2


def packets_of(
    graph: Graph, fetches: Sequence[Tensor | Operation], feeds: Sequence[Tensor] = (), memory: Sequence[int] | None = None
) -> list[list[str]]:
    """Names of what shares a message, the same on every rank."""
    plan = Step(graph, tuple(fetches), tuple(feeds)).plan()
    programs = [link(plan, by_task, rank, 3, memory=memory) for rank in range(3)]
    found = [[[t.name for t in packet] for packet in program.packets] for program in programs]
    assert found[0] == found[1] == found[2]
    return found[0]


def source(x: float = 0.0, shape: Sequence[int] = (2,), name: str | None = None) -> Tensor:
    return tf.negative(tf.zeros(shape) + x, name=name)


def test_small_tensors_that_a_rank_makes_one_after_the_other_share_a_message() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            made = [source(i, name=f"made{i}") for i in range(3)]
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = tf.add_n([tf.exp(m) for m in made])
    assert packets_of(graph, [last]) == [["made0:0", "made1:0", "made2:0"]]


def test_a_tensor_does_not_wait_for_one_that_needs_another_rank_s_answer() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            first = source(name="first")
        with tf.device("/job:worker/task:0/device:CPU:0"):
            answer = tf.exp(first, name="answer")
        with tf.device("/job:ps/task:0/device:CPU:0"):
            second = tf.exp(answer, name="second")
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = second + first
    assert packets_of(graph, [last]) == []


@pytest.mark.parametrize("between", ["a large operation", "one of unknown shape", "a Python function", "too many operations"])
def test_a_tensor_does_not_wait_for_one_behind(between: str) -> None:
    with Graph().as_default() as graph:
        unknown = tf.placeholder(tf.float32, None, name="unknown")
        with tf.device("/job:ps/task:0/device:CPU:0"):
            first = source(name="first")
            with tf.control_dependencies([first]):
                if between == "a large operation":
                    second = tf.reduce_sum(source(shape=(PACKET_NBYTES,)))
                elif between == "one of unknown shape":
                    second = tf.reduce_sum(tf.exp(unknown))
                elif between == "a Python function":
                    second = tf.py_func(lambda: np.float32(1), [], tf.float32)
                    second.set_shape([])
                else:
                    second = first
                    for _ in range(MOST_OPERATIONS + 1):
                        second = tf.exp(second)
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = tf.exp(first) + second
    assert packets_of(graph, [last], [unknown] if between == "one of unknown shape" else []) == []


def test_a_tensor_does_not_wait_for_two_of_the_users_own_operations_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long they take isn't known. Those that need nothing of each other are a row, made by the way."""
    kernels = op_def("Exp").kernels

    def packed(user: bool) -> list[list[str]]:
        if user:
            monkeypatch.setitem(kernels, "CPU", dataclasses.replace(kernels["CPU"], function=lambda ctx, x: np.exp(x), direct=""))
        with Graph().as_default() as graph:
            with tf.device("/job:ps/task:0/device:CPU:0"):
                x = source(1.0, name="x")
                row = [tf.exp(x, name="a0"), tf.exp(x, name="b0")]
                row += [tf.exp(row[0], name="a1"), tf.exp(row[1], name="b1")]
            with tf.device("/job:worker/task:0/device:CPU:0"):
                last = tf.add_n([tf.negative(made) for made in row])
        return packets_of(graph, [last])

    assert packed(user=False) == [["a0:0", "b0:0", "a1:0", "b1:0"]]
    assert packed(user=True) == [["a0:0", "b0:0"], ["a1:0", "b1:0"]]


def test_two_ranks_that_exchange_all_their_tensors_in_each_row_send_one_message_a_row() -> None:
    """What the second operation of a row receives came with what the first one has received, so it cuts no packet."""
    with Graph().as_default() as graph:
        rows: list[dict[str, list[Tensor]]] = []
        for row in range(4):
            made: dict[str, list[Tensor]] = {}
            for job, other in (("ps", "worker"), ("worker", "ps")):
                with tf.device(f"/job:{job}/task:0/device:CPU:0"):
                    read = list(reversed(rows[-1][other])) if rows else [source(0), source(1)]
                    made[job] = [tf.exp(x, name=f"{job}{row}_{i}") for i, x in enumerate(read)]
            rows.append(made)
        ends = [t.op for tensors in rows[-1].values() for t in tensors]
    found = packets_of(graph, ends)
    assert sorted(found) == sorted([f"{job}{row}_{i}:0" for i in (0, 1)] for row in range(3) for job in ("ps", "worker"))


def test_what_is_fetched_or_of_another_rank_or_large_travels_by_itself() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            fetched, large = source(1, name="fetched"), tf.identity(source(2, (PACKET_NBYTES // 4,)), name="large")
            to_worker, to_ps = source(3, name="to_worker"), source(4, name="to_ps")
        with tf.device("/job:worker/task:0/device:CPU:0"):
            there = tf.exp(to_worker) + tf.reduce_sum(large)
        with tf.device("/job:ps/task:1/device:CPU:0"):
            elsewhere = tf.exp(to_ps)
    assert packets_of(graph, [there, elsewhere, fetched]) == []


@pytest.mark.parametrize("memory", [None, (7, 7, 7)], ids=["messages", "boxes"])
def test_what_is_too_large_for_a_packet_leaves_those_around_it_together(memory: Sequence[int] | None) -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            short, long = tf.split(source(shape=(PACKET_NBYTES // 4 + 5,)), [4, PACKET_NBYTES // 4 + 1], name="parts")
            behind = tf.exp(short, name="behind")
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = tf.add_n([tf.reduce_sum(x) for x in (short, long, behind)])
    assert packets_of(graph, [last], memory=memory) == [["parts:0", "behind:0"]]


def test_a_packet_is_cut_where_it_would_grow_too_long() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            made = [source(i, (PACKET_NBYTES // 12,), name=f"made{i}") for i in range(5)]  # of a third of a packet each
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = tf.add_n([tf.exp(m) for m in made])
    assert packets_of(graph, [last]) == [["made0:0", "made1:0", "made2:0"], ["made3:0", "made4:0"]]
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            parts = tf.unstack(source(shape=(MOST_TENSORS + 2,)))  # one operation makes all
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = tf.add_n([tf.exp(p) for p in parts])
    assert [len(names) for names in packets_of(graph, [last])] == [MOST_TENSORS, 2]


def test_the_program_for_people_says_what_travels_together() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            made = [source(i, name=f"made{i}") for i in range(2)]
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = tf.add_n([tf.exp(m) for m in made])
    plan = Step(graph, (last,), ()).plan()
    for rank, word in ((0, "send"), (1, "recv")):
        lines = [line for line in link(plan, by_task, rank, 3).text().splitlines() if f"{word} " in line and "made" in line]
        assert len(lines) == 2 and all(" in one packet: #0, #1" in line for line in lines), lines


def test_the_sends_of_a_packet_are_neighbours_and_so_are_its_receives_with_what_is_awaited_first() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            made = [source(i, name=f"made{i}") for i in range(3)]
        with tf.device("/job:worker/task:0/device:CPU:0"):
            last = made[1]
            for other in (made[2], made[0]):  # each one is read when the one before has been
                for _ in range(3):
                    last = tf.exp(last)
                last = last + other
    plan = Step(graph, (last,), ()).plan()
    order = [{"made0": 0, "made1": 1, "made2": 2}[t.name[:5]] for t in link(plan, by_task, 0, 3).packets[0]]
    for rank, kind, names in ((0, Send, [f"made{i}:0" for i in order]), (1, Recv, ["made1:0"] + [f"made{i}:0" for i in order if i != 1])):
        instructions = link(plan, by_task, rank, 3).instructions
        at = [p for p, i in enumerate(instructions) if isinstance(i, kind) and i.transfer.name.startswith("made")]
        assert at == list(range(at[0], at[0] + 3))
        assert [i.transfer.name for i in instructions if isinstance(i, kind) and i.transfer.name.startswith("made")] == names


def test_of_two_values_of_a_variable_in_one_packet_each_reader_sees_its_own() -> None:
    with Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/device:CPU:0"):
            v = tf.Variable(1.0, name="v")
        with tf.device("/job:worker/task:0/device:CPU:0"):
            early = tf.exp(v._as_graph_element())
            for _ in range(30):  # a long way to something that the other task needs: so it comes first in the order
                early = tf.exp(early)
        with tf.device("/job:ps/task:0/device:CPU:0"):
            early = tf.exp(early)
            change = tf.assign_add(v, 1.0)
        with tf.device("/job:worker/task:0/device:CPU:0"), tf.control_dependencies([change]):
            late = tf.exp(tf.exp(v._as_graph_element(), name="late"))
    plan = Step(graph, (early, late), ()).plan()
    worker = link(plan, by_task, 1, 3)
    assert [[t.name for t in packet] for packet in worker.packets] == [["v:0", "v:0"]]
    first, second = (i.target for i in worker.instructions if isinstance(i, Recv) and i.transfer.name == "v:0")
    read = {i.op: i.inputs for i in worker.instructions if isinstance(i, Run)}
    assert [inputs for op, inputs in read.items() if op.inputs[0].op is v.op] == [(first,), (second,)]


# ---- both ends


def patient(ready: Any, what: Any) -> None:
    wait_until(ready, what, timeout_s=10)


TRANSFERS = (
    Transfer(3, "b:0", tf.bool, (3,), 0, 1, Task("a", 0), "/job:b/task:0"),
    Transfer(5, "^done", None, None, 0, 1, Task("a", 0), "/job:b/task:0"),
    Transfer(6, "x:0", tf.float64, (2, 2), 0, 1, Task("a", 0), "/job:b/task:0"),
    Transfer(7, "none:0", tf.int32, (0, 4), 0, 1, Task("a", 0), "/job:b/task:0"),
    Transfer(9, "s:0", tf.float32, (), 0, 1, Task("a", 0), FETCH),
)
NBYTES = 3 + 1 + 32 + 1 + 4


class Pair:
    """Rank 0, which sends `TRANSFERS` in one packet, and rank 1, which takes them in the order ``wanted`` and keeps all but ``lent``."""

    def __init__(
        self,
        seed: int | None = None,
        wait: Any = patient,
        transfers: tuple[Transfer, ...] = TRANSFERS,
        wanted: Sequence[int] = range(5),
        lent: Sequence[int] = (),
    ) -> None:
        self.world = LoopbackWorld(2, seed=seed)
        program = Program(0, packets=[transfers] if len(transfers) > 1 else [])
        self.sender, self.receiver = (Packets(program, self.world.transport(rank), 100, wait) for rank in (0, 1))
        assert self.sender.together(transfers[-1]) == transfers
        self.outgoing = self.sender.sending_end(transfers)
        self.send = self.outgoing.sender(range(len(transfers)))
        self.incoming = self.receiver.receiving_end([transfers[i] for i in wanted if i < len(transfers)])
        self.given = [i for i in wanted if transfers[i].dtype is not None and i not in lent]
        self.incoming.give([transfers[i] for i in self.given])
        self.lent = {i: self.incoming.lend(transfers[i]) for i in lent}

    def take(self) -> dict[int, Any]:
        """What has come of this step."""
        found = self.incoming.take()
        return dict(zip(self.given, found if len(self.given) > 1 else [found], strict=True))


def values_of(step: int) -> list[Any]:
    return [
        np.arange(3) % 2 == step % 2,
        None,
        np.full((2, 2), 0.5 + step).T,
        np.empty((0, 4), np.int32),
        np.float32(step),
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 1, 3)])
def test_all_tensors_of_a_packet_arrive_in_one_message_whatever_is_wanted_first(wanted: Sequence[int], seed: int | None) -> None:
    pair = Pair(seed, wanted=wanted)
    kept: list[dict[int, Any]] = []
    for step in range(4):
        pair.receiver.post()
        pair.send(values_of(step))
        kept.append(pair.take())
        assert pair.receiver.drained()
    for step, found in enumerate(kept):  # later steps have not changed what was taken
        expected = values_of(step)
        assert list(found) == [i for i in wanted if i != 1]
        for i, value in found.items():
            assert value.dtype == expected[i].dtype and value.shape == expected[i].shape and value.tolist() == expected[i].tolist()
            assert value.base is None and value.flags.aligned and value.flags.writeable
    counters = pair.world.transport(0).counters
    assert (counters.messages_sent, counters.bytes_sent) == (4, 4 * NBYTES)
    assert not pair.world._channels


@pytest.mark.parametrize("seed", SEEDS)
def test_what_nobody_keeps_is_read_where_it_came_in_arrays_that_stay_the_same(seed: int | None) -> None:
    pair = Pair(seed, lent=[0, 2, 4])
    assert [pair.incoming.lend(TRANSFERS[i]) for i in (1, 3)] == [None, None], "a token and an empty tensor"
    for step in range(4):
        pair.receiver.post()
        pair.send(values_of(step))
        assert pair.take()[3].shape == (0, 4)
        for i, array in pair.lent.items():
            expected = values_of(step)[i]
            assert array is not None and array.flags.aligned and array.dtype == expected.dtype
            assert array.shape == expected.shape and array.tolist() == expected.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_packet_that_is_not_sent_is_dead_and_the_next_step_is_a_good_one(seed: int | None) -> None:
    pair = Pair(seed)
    for step in range(4):
        pair.receiver.post()
        if step % 2:
            pair.send(values_of(step))
            assert pair.take()[4] == step
        else:
            pair.outgoing.send_dead()
            with pytest.raises(DeadTensor):
                pair.take()
    while pair.outgoing.pending():
        pass
    assert pair.receiver.drained() and not pair.world._channels


def test_a_wrong_shape_or_type_is_refused_and_names_the_tensor() -> None:
    pair = Pair(transfers=(TRANSFERS[2],), wanted=[0])
    for wrong in (np.zeros((2, 2), np.float32), np.zeros(4), np.float64(1)):
        text = f"'x:0' has shape {wrong.shape} and type {wrong.dtype}, but its static shape is (2, 2) and its type float64."
        with pytest.raises(tf.errors.InternalError, match=re.escape(text)):
            pair.send([wrong])


def test_the_next_step_s_first_tensor_waits_by_name_until_the_last_packet_has_left() -> None:
    waits: list[str] = []

    def wait(ready: Any, what: Any) -> None:
        waits.append(what())
        pair.receiver.post()  # now the receiver comes
        patient(ready, what)

    seed = next(s for s in range(50) if not _left_at_once(s))
    pair = Pair(seed, wait)
    pair.sender.post()
    pair.send(values_of(0))
    pair.sender.post()
    pair.send(values_of(1))
    assert waits == ["rank 1 to receive 'b:0' of the step before"]
    assert pair.take()[4] == 0.0, "the packet was written before it had left"


def _left_at_once(seed: int) -> bool:
    pair = Pair(seed)
    pair.send(values_of(0))
    return not pair.outgoing.pending()


def test_a_wait_says_which_tensor_is_awaited_and_a_step_that_cannot_wait_is_blocked_on_it() -> None:
    pair = Pair(wait=None, wanted=[2, 0, 1, 3, 4])
    pair.receiver.post()
    with pytest.raises(Blocked) as caught:
        pair.take()
    pending = caught.value.pending
    assert pending.describe() == "tensor 'x:0' from /job:a/task:0 on rank 0 (for /job:b/task:0)"
    assert not pending.ready()
    pair.send(values_of(3))
    assert pending.ready() and pending.result()[0].tolist() == np.full((2, 2), 3.5).tolist()
    pair = Pair(wanted=[1, 0, 2, 3, 4])
    assert pair.incoming.describe() == "the end of operation 'done' from /job:a/task:0 on rank 0 (for /job:b/task:0)"
