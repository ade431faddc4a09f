"""The plan of a step: which task runs what in which order, and which tensors cross between tasks.

Guarantee: one edge for each (tensor, destination task), however many consumers. Plans speak of tasks, never of ranks.
Neighbours: ``schedule`` gives the order, ``verify`` proves the plan, ``program`` binds it to ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from mpirt.cluster.task import Task
from mpirt.compiler.placer import DeviceName, Placement
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.shapes import num_elements


@dataclass(frozen=True, slots=True)
class Edge:
    """One tensor (or, for a control dependency, the end of one operation) that goes from a task to another."""

    index: int
    source: Tensor | Operation
    src: Task
    dst: Task

    @property
    def name(self) -> str:
        """``w:0``, or ``^init`` for a control dependency."""
        return self.source.name if isinstance(self.source, Tensor) else f"^{self.source.name}"

    @property
    def producer(self) -> Operation:
        """The operation that must have run."""
        return self.source.op if isinstance(self.source, Tensor) else self.source

    @property
    def nbytes(self) -> int | None:
        """Bytes of the tensor, None if its shape is not known while compiling; 1 for a control dependency."""
        return tensor_nbytes(self.source)

    def __str__(self) -> str:
        return f"{self.name} {self.src} -> {self.dst}"


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of the global order: an operation on its device, or a fed tensor where it comes in."""

    op: Operation
    device: DeviceName
    fed: Tensor | None
    waits: tuple[int, ...]  # edges that must have arrived
    sends: tuple[int, ...]  # edges that start here


@dataclass(frozen=True, slots=True)
class Plan:
    """A step, ready to be bound to ranks."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    fetches: tuple[Tensor | Operation, ...]
    feeds: tuple[Tensor, ...]
    placement: Mapping[Operation, DeviceName]

    def device_of(self, item: Tensor | Operation) -> DeviceName:
        """Where a tensor or operation of the plan is."""
        return self.placement[item.op if isinstance(item, Tensor) else item]


def partition(
    order: Sequence[Operation],
    placement: Placement,
    fetches: Sequence[Tensor | Operation],
    feeds: Sequence[Tensor] = (),
) -> Plan:
    """Split the operations ``order`` (a topological order) among their tasks, with edges where tensors cross."""
    fed = set(feeds)
    edges: list[Edge] = []
    edge_of: dict[tuple[Tensor | Operation, Task], int] = {}
    waits = [_waits(op, placement, fed, edges, edge_of) for op in order]
    sends: dict[Operation, list[int]] = {}
    for edge in edges:
        sends.setdefault(edge.producer, []).append(edge.index)
    nodes = []
    for tensor in feeds:
        outgoing = tuple(i for i in sends.get(tensor.op, ()) if edges[i].source is tensor)
        nodes.append(Node(tensor.op, placement[tensor.op], tensor, (), outgoing))
    for op, incoming in zip(order, waits, strict=True):
        outgoing = tuple(i for i in sends.get(op, ()) if edges[i].source not in fed)
        nodes.append(Node(op, placement[op], None, incoming, outgoing))
    return Plan(tuple(nodes), tuple(edges), tuple(fetches), tuple(feeds), placement)


def _waits(
    op: Operation, placement: Placement, fed: Set[Tensor], edges: list[Edge], edge_of: dict[tuple[Tensor | Operation, Task], int]
) -> tuple[int, ...]:
    """Edges that ``op`` waits for; adds the new ones."""
    dst = placement[op].task
    found: dict[int, None] = {}
    for tensor in op.inputs:
        if placement[tensor.op].task != dst:
            found[_edge(tensor, tensor.op, dst, placement, edges, edge_of)] = None
    for control in op.control_inputs:
        if placement[control].task != dst:
            # A tensor of the same operation that comes to this task anyway tells as much as a message of its own.
            carrier = next((t for t in control.outputs if (t, dst) in edge_of and t not in fed), control)
            found[_edge(carrier, control, dst, placement, edges, edge_of)] = None
    return tuple(found)


def _edge(
    source: Tensor | Operation,
    producer: Operation,
    dst: Task,
    placement: Placement,
    edges: list[Edge],
    edge_of: dict[tuple[Tensor | Operation, Task], int],
) -> int:
    key = (source, dst)
    if key not in edge_of:
        edge_of[key] = len(edges)
        edges.append(Edge(len(edges), source, placement[producer].task, dst))
    return edge_of[key]


def tensor_nbytes(source: Tensor | Operation) -> int | None:
    """Bytes of one message with ``source``: None if only known at run time, 1 for the end of an operation."""
    if isinstance(source, Operation):
        return 1
    count = num_elements(source.static_shape)
    size = source.dtype.base_dtype.size
    return None if count is None or size == 0 else count * size
