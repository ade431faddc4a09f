"""What the compiler's tests share: clusters as inventories, random steps, and all ranks' programs run in the mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan, partition
from mpirt.compiler.placer import Placement, PlacementRules, place
from mpirt.compiler.program import NO_SLOT, Move, Program, Read, Recv, Run, Send
from mpirt.compiler.prune import prune
from mpirt.compiler.schedule import schedule
from mpirt.graph.graph import Graph, Operation, Tensor

TASKS = (Task("ps", 0), Task("ps", 1), Task("worker", 0))


def inventory(gpus: int = 2, **jobs: int) -> dict[Task, tuple[str, ...]]:
    """Devices of ``jobs``' tasks: a CPU and some GPUs each."""
    names = ("CPU:0", *(f"GPU:{i}" for i in range(gpus)))
    return {Task(job, i): names for job, count in jobs.items() for i in range(count)}


@dataclass(frozen=True)
class Step:
    """A graph, and what a step asks of it."""

    graph: Graph
    fetches: tuple[Tensor | Operation, ...]
    feeds: tuple[Tensor, ...]

    def needed(self) -> list[Operation]:
        return prune(self.fetches, set(self.feeds))

    def placement(self) -> Placement:
        placing = sorted({*self.needed(), *(t.op for t in self.feeds)}, key=lambda op: op.index)
        return place(self.graph, placing, inventory(2, ps=2, worker=1), PlacementRules(Task("worker", 0)))

    def plan(self) -> Plan:
        placement, fed = self.placement(), set(self.feeds)
        return partition(schedule(self.needed(), placement, fed), placement, self.fetches, self.feeds)


@st.composite
def steps(draw: st.DrawFn, max_ops: int = 14, variables: bool = True) -> Step:
    """A random graph over three tasks with two GPUs each: several outputs, control dependencies, feeds, variables."""
    graph = Graph()
    with graph.as_default():
        refs = []
        for i in range(draw(st.integers(0, 2)) if variables else 0):
            with tf.device(_device(draw)):
                refs.append(tf.Variable(float(i), name=f"v{i}"))
        with tf.device(_device(draw)):
            tensors: list[Tensor] = [tf.constant(1.0)]
        for _ in range(draw(st.integers(1, max_ops))):
            inputs = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3))
            controls = draw(st.lists(st.sampled_from(tensors), max_size=2))
            with tf.device(_device(draw)), tf.control_dependencies(controls):
                tensors += _operation(draw, inputs, refs)
        plain = [t for t in tensors if not t.dtype.is_ref]
        fetches = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        feeds = draw(st.lists(st.sampled_from(plain), max_size=2, unique=True))
        targets = tuple(t.op if draw(st.booleans()) else t for t in fetches)
    return Step(graph, targets, tuple(sorted(feeds, key=lambda t: t.name)))


def _device(draw: st.DrawFn) -> str:
    return f"{draw(st.sampled_from(TASKS))}/{draw(st.sampled_from(['cpu:0', 'gpu:0', 'gpu:1']))}"


def _operation(draw: st.DrawFn, inputs: list[Tensor], refs: list[Any]) -> list[Tensor]:
    kind = draw(st.sampled_from(["add_n", "split", "constant", *(["change", "read"] if refs else [])]))
    if kind == "add_n":
        return [tf.add_n(inputs)]
    if kind == "split":
        return tf.unstack(tf.stack([inputs[0], inputs[-1]]))
    if kind == "constant":
        return [tf.constant(2.0)]
    variable = draw(st.sampled_from(refs))
    return [tf.assign_add(variable, inputs[0]) if kind == "change" else tf.identity(variable._as_graph_element())]


def link_all(plan: Plan, ranks: Sequence[int], num_ranks: int, deliver: str = "all") -> list[Program]:
    """Programs of all ranks; ``ranks`` gives the rank of each of ``TASKS``."""
    table = dict(zip(TASKS, ranks, strict=True))
    return [link(plan, table.__getitem__, rank, num_ranks, deliver) for rank in range(num_ranks)]


@st.composite
def rank_tables(draw: st.DrawFn) -> tuple[list[int], int]:
    """Ranks of ``TASKS`` and the number of ranks: folded in any way, with spares."""
    num_ranks = draw(st.integers(1, 5))
    return draw(st.lists(st.integers(0, num_ranks - 1), min_size=3, max_size=3)), num_ranks


class Simulation:
    """Runs the programs of all ranks, each blocked on every receive, with the history of a tensor as its value.

    A value says what was computed from what: equal values mean equal results. Reading a slot that is empty fails.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs
        self.values: list[dict[int, Any]] = [{} for _ in programs]
        self.fetched: list[list[Any]] = []
        self.max_live = 0
        self._cells: dict[str, Any] = {}
        self._wire: dict[tuple[int, int], Any] = {}  # (destination, transfer) -> value
        self._held: dict[tuple[int, int], Any] = {}  # in packets that wait for more
        positions = [0] * len(programs)
        for program, values in zip(programs, self.values, strict=True):
            values.update({slot: ("const", op.name) for slot, op, _ in program.constants})
            values.update({slot: ("fed", tensor.name) for tensor, slot in program.feeds.items()})
        progress = True
        while progress:
            progress = False
            for rank, program in enumerate(programs):
                while positions[rank] < len(program.instructions) and self._step(rank, positions[rank]):
                    positions[rank] += 1
                    progress = True
        self.stuck = {r: p.instructions[positions[r]] for r, p in enumerate(programs) if positions[r] < len(p.instructions)}
        self.left_over = {**self._wire, **self._held}
        if not self.stuck:
            self.fetched = [[None if s == NO_SLOT else self.values[r][s] for s in p.fetches] for r, p in enumerate(programs)]

    def _step(self, rank: int, position: int) -> bool:
        program, values = self.programs[rank], self.values[rank]
        i = program.instructions[position]
        if isinstance(i, Recv):
            if (rank, i.transfer.index) not in self._wire:
                return False
            value = self._wire.pop((rank, i.transfer.index))
            if i.target != NO_SLOT:
                values[i.target] = value
        elif isinstance(i, Send):
            key = (i.transfer.dst_rank, i.transfer.index)
            packet = next((p for p in program.packets if i.transfer in p), (i.transfer,))
            assert key not in self._wire and key not in self._held, f"{i.transfer} is sent twice"
            assert not [t for t in packet[: packet.index(i.transfer)] if (key[0], t.index) not in self._held], "not in its order"
            self._held[key] = None if i.source == NO_SLOT else values[i.source]
            if i.transfer == packet[-1]:  # the packet leaves
                self._wire.update({(t.dst_rank, t.index): self._held.pop((t.dst_rank, t.index)) for t in packet})
        elif isinstance(i, Read):
            values[i.target] = self._cells.get(values[i.source][1], ("initial", values[i.source][1]))
        elif isinstance(i, Move):
            values[i.target] = values[i.source]
        else:
            self._run(i, values)
        for slot in program.frees[position]:
            del values[slot]
        return True

    def _run(self, i: Run, values: dict[int, Any]) -> None:
        inputs = [values[slot] for slot in i.inputs]
        cell = next((v for v in inputs if v[0] == "cell"), None)
        for slot, tensor in zip(i.outputs, i.op.outputs, strict=True):
            if tensor.dtype.is_ref:
                values[slot] = cell or ("cell", i.op.name)
            else:
                values[slot] = (i.op.name, tensor.value_index, tuple(inputs))
        if cell is not None:
            before = self._cells.get(cell[1], ("initial", cell[1]))
            self._cells[cell[1]] = (i.op.name, before, tuple(v for v in inputs if v[0] != "cell"))
