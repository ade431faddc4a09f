"""The plan of a step: which task runs what in which order, and which tensors cross between tasks.

Guarantees: one edge for each (tensor, destination task), however many consumers. A variable's own tensor has one edge for
each of its values that a task needs: it starts behind the last operation before the consumer that may have changed the
variable, so that the consumer sees what it would see if all tasks were one. A constant that every task has from the start
(``fold``) has no edge. Of operations of one device that another one waits for only the last one tells of its end. Plans speak of
tasks, never of ranks.
A collective has no edges for what goes in and comes out: the tasks with its inputs and those that need its outputs come to
its place in the one order, and do it together there.
Neighbours: ``schedule`` gives the order, ``verify`` proves the plan, ``program`` binds it to ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from mpirt import dtypes
from mpirt.cluster.task import Task
from mpirt.compiler.placer import DeviceName, Placement, resource_inputs
from mpirt.compiler.prune import control_producers
from mpirt.dtypes import DType
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.shapes import Shape, num_elements
from mpirt.ops.collective_ops import HUBS


@dataclass(frozen=True, slots=True)
class Edge:
    """One tensor (or, for a control dependency, the end of one operation) that goes from a task to another."""

    index: int
    source: Tensor | Operation
    after: Operation  # where it starts: behind the producer, or behind a later change of the variable
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
        source = self.source
        return message_nbytes(None, ()) if isinstance(source, Operation) else message_nbytes(source.dtype.base_dtype, source.static_shape)

    def __str__(self) -> str:
        return f"{self.name} {self.src} -> {self.dst}"


class Node(NamedTuple):
    """One entry of the global order: an operation on its device, or a fed tensor where it comes in."""

    op: Operation
    device: DeviceName
    fed: Tensor | None
    waits: tuple[int, ...]  # edges that must have arrived
    sends: tuple[int, ...]  # edges that start here


@dataclass(frozen=True, slots=True)
class Collective:
    """Who takes part in a collective operation."""

    op: Operation
    sources: tuple[Task, ...]  # for each input: the task that has it
    targets: tuple[tuple[Task, ...], ...]  # for each output: the tasks that need it

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All that take part."""
        return tuple(dict.fromkeys([*self.sources, *(task for tasks in self.targets for task in tasks)]))


@dataclass(frozen=True, slots=True)
class Plan:
    """A step, ready to be bound to ranks."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    fetches: tuple[Tensor | Operation, ...]
    feeds: tuple[Tensor, ...]
    placement: Mapping[Operation, DeviceName]
    client: DeviceName | None = None  # where all feeds come in; None: each where its operation is placed
    collectives: Mapping[Operation, Collective] = field(default_factory=dict)
    constants: Mapping[Tensor, Operation] = field(default_factory=dict)  # known to every task from the start, with their Const

    def device_of(self, item: Tensor | Operation) -> DeviceName:
        """Where a tensor or operation of the plan is."""
        if self.client is not None and item in self.feeds:
            return self.client
        return self.placement[item.op if isinstance(item, Tensor) else item]


def partition(
    order: Sequence[Operation],
    placement: Placement,
    fetches: Sequence[Tensor | Operation],
    feeds: Sequence[Tensor] = (),
    client: DeviceName | None = None,
    constants: Mapping[Tensor, Operation] = MappingProxyType({}),
) -> Plan:
    """Split the operations ``order`` (a topological order) among their tasks, with edges where tensors cross.

    Feeds come in at the device ``client``, if given, else where their operations are placed. ``constants`` are everywhere.
    """
    fed = set(feeds)
    crossing = _Crossing(placement, fed, client, constants)
    waits = [crossing.waits(op) for op in order]
    edges = crossing.edges
    sends: dict[Operation, list[int]] = {}
    for edge in edges:
        sends.setdefault(edge.after, []).append(edge.index)
    nodes = []
    for tensor in feeds:
        outgoing = tuple([i for i in sends.get(tensor.op, ()) if edges[i].source is tensor])
        nodes.append(Node(tensor.op, client or placement[tensor.op], tensor, (), outgoing))
    for op, incoming in zip(order, waits, strict=True):
        outgoing = tuple([i for i in sends[op] if edges[i].source not in fed]) if op in sends else ()
        nodes.append(Node(op, placement[op], None, incoming, outgoing))
    return Plan(tuple(nodes), tuple(edges), tuple(fetches), tuple(feeds), placement, client, crossing.collectives(fetches), constants)


class _Crossing:
    """The edges of the operations seen so far, in the order in which they run."""

    def __init__(self, placement: Placement, fed: Set[Tensor], client: DeviceName | None, constants: Mapping[Tensor, Operation]) -> None:
        self.edges: list[Edge] = []
        self._placement = placement
        self._fed = fed
        self._client = client
        self._constants = constants
        self._known: dict[tuple[Tensor | Operation, Operation, Task], int] = {}
        self._variable: dict[Tensor, Tensor] = {}  # the variable behind a tensor that an operation on it gave out
        self._changed: dict[Tensor, Operation] = {}  # the last operation that may have changed a variable
        self._place: dict[Operation, int] = {}  # of the operations in the order
        self._sources: dict[Operation, tuple[Task, ...]] = {}  # of the collectives
        self._targets: dict[Operation, list[dict[Task, None]]] = {}

    def waits(self, op: Operation) -> tuple[int, ...]:
        """Edges that ``op``, the next operation, waits for; adds the new ones."""
        device = self._placement[op]
        dst = device.task
        found: dict[int, None] = {}
        collective = op.type in HUBS
        if collective:
            self._sources[op] = tuple([self._home(t) for t in op.inputs])
            self._targets[op] = [{} for _ in op.outputs]
        for position, tensor in enumerate(op.inputs):
            if self._targets and self._of_collective(tensor):
                reader = self._sources[op][position] if collective else dst
                self._targets[tensor.op][tensor.value_index][reader] = None
            elif self._client is None and self._placement[tensor.op] is device:
                continue  # most inputs
            elif tensor not in self._constants and self._home(tensor) != dst and not collective:
                found[self._edge(tensor, self._origin(tensor), dst)] = None
        controls = control_producers(op, self._fed) if op.control_inputs else ()
        for control in controls:
            if control in self._targets:  # its end is where it is placed
                self._targets[control][0][self._placement[control].task] = None
        away = [control for control in controls if self._placement[control].task != dst]
        if away:
            self._wait_for(away, dst, found)
        self._place[op] = len(self._place)
        if op.definition.takes_handles:
            self._note_change(op)
        return tuple(found)

    def _wait_for(self, controls: Sequence[Operation], dst: Task, found: dict[int, None]) -> None:
        """Add to ``found``, for which an operation waits anyway, what else tells ``dst`` that ``controls`` have run.

        A device does its work one after the other: what starts behind an operation tells of all that come before that there.
        """
        place, placement = self._place, self._placement
        told: dict[DeviceName, int] = {}
        for i in found:
            edge = self.edges[i]
            if edge.source not in self._fed:
                told[placement[edge.after]] = max(told.get(placement[edge.after], -1), place[edge.after])
        for control in sorted(controls, key=place.__getitem__, reverse=True):
            if place[control] > told.get(placement[control], -1):
                told[placement[control]] = place[control]
                # A tensor that starts behind it and comes to this task anyway tells as much as a message of its own.
                carrier = next((t for t in control.outputs if (t, control, dst) in self._known and t not in self._fed), control)
                found[self._edge(carrier, control, dst)] = None

    def collectives(self, fetches: Sequence[Tensor | Operation]) -> dict[Operation, Collective]:
        """Who takes part in which collective, once all operations are seen."""
        for fetch in fetches:
            op = fetch.op if isinstance(fetch, Tensor) else fetch
            if op in self._targets and fetch not in self._fed:
                index = fetch.value_index if isinstance(fetch, Tensor) else 0
                self._targets[op][index][self._placement[op].task] = None
        return {op: Collective(op, self._sources[op], tuple([tuple(sorted(t)) for t in found])) for op, found in self._targets.items()}

    def _of_collective(self, tensor: Tensor) -> bool:
        return tensor.op in self._targets and tensor not in self._fed

    def _home(self, source: Tensor | Operation) -> Task:
        """The task where a tensor or the end of an operation comes from."""
        if self._client is not None and source in self._fed:
            return self._client.task
        return self._placement[source.op if isinstance(source, Tensor) else source].task

    def _origin(self, tensor: Tensor) -> Operation:
        """The operation behind which the tensor has the value that the next operation needs."""
        if tensor.dtype.is_ref and tensor not in self._fed:
            return self._changed.get(self._variable.get(tensor, tensor), tensor.op)
        return tensor.op

    def _note_change(self, op: Operation) -> None:
        variables = [self._variable.get(t, t) for t in resource_inputs(op)]
        if variables:
            self._changed.update(dict.fromkeys(variables, op))
            self._variable.update((t, variables[0]) for t in op.outputs if t.dtype.is_ref or t.dtype is dtypes.resource)

    def _edge(self, source: Tensor | Operation, after: Operation, dst: Task) -> int:
        key = (source, after, dst)
        if key not in self._known:
            self._known[key] = len(self.edges)
            src = self._home(source if source in self._fed else after)
            self.edges.append(Edge(len(self.edges), source, after, src, dst))
        return self._known[key]


def message_nbytes(dtype: DType | None, shape: Shape) -> int | None:
    """Bytes of one message: None if only known at run time, 1 for the end of an operation, which has no ``dtype``."""
    if dtype is None:
        return 1
    count = num_elements(shape)
    return None if count is None or dtype.size == 0 else count * dtype.size
