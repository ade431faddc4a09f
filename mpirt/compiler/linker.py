"""The linker: a plan bound to the rank table, as one program for each rank.

Guarantees: the programs of all ranks are projections of the plan's one order; both ends of a transfer number it alike;
one transfer for each (tensor, destination rank), or for each value of a variable's own tensor that a rank needs, small ones in
packets where they are ready together (``packets``), whose sends are neighbours in the list, as are their receives; a value is
dropped after its last use. Tasks of one rank share values. Every reader of a variable sees the value at its own place in
the plan's order, a fetch the value when the operation that gives the variable out has run, wherever the tasks live: so
folding tasks onto fewer ranks changes no result (but for the order in which collectives add), and all ranks get the same.

Owns: which rank does what, and which transfers there are. Does not own: what instructions are (``program``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, repeat

from mpirt.cluster.task import Task
from mpirt.compiler.ends import End, find_tails, meeting_at_the_end
from mpirt.compiler.exchange import Exchange, Fold, Make, Message, MessageKey, Part, View, exchanges
from mpirt.compiler.packets import find_packets, is_small
from mpirt.compiler.partition import Node, Plan
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.program import (
    END,
    FETCH,
    HOST,
    NO_SLOT,
    Instruction,
    Meet,
    Move,
    Program,
    Read,
    Recv,
    Run,
    Send,
    Transfer,
    frees_after_last_use,
    is_state,
    memory_space,
    path_of,
)
from mpirt.graph.function import ARG
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import ArgDef, arg_size
from mpirt.transport import board

_PASSING = frozenset(("Identity", "PlaceholderWithDefault", "NoOp"))  # whose outputs are their inputs


def link(
    plan: Plan,
    rank_of: Callable[[Task], int],
    rank: int,
    num_ranks: int,
    deliver: str | int = "all",
    memory: Sequence[int] | None = None,
) -> Program:
    """The program of ``rank``.

    Parameters
    ----------
    plan : a verified plan
    rank_of : the rank that hosts a task
    rank, num_ranks : this rank, and how many there are
    deliver : "all" - every fetched value reaches every rank; "owner" - none does. Either way a failure anywhere reaches every
        rank (see ``ends``). A rank: the values reach that rank only, and nothing tells of the end of a step: its master knows.
    memory : ``Transport.memory``: where ranks share it, they reduce on boards and send each other no messages. None: messages everywhere
    """
    return _Linker(plan, rank_of, rank, num_ranks, deliver, memory).link()


class _Linker:
    def __init__(
        self, plan: Plan, rank_of: Callable[[Task], int], rank: int, num_ranks: int, deliver: str | int, memory: Sequence[int] | None
    ) -> None:
        self.plan = plan
        self.memory = memory if board.USABLE else None  # what ranks can tell each other through without a message
        self.rank_of: Callable[[Task], int] = lru_cache(maxsize=None)(rank_of)  # asked for each operation
        self.rank = rank
        self.program = Program(rank)
        self.slots: dict[str, dict[Tensor, int]] = {HOST: {}}  # by memory space; a variable or resource itself is in HOST
        self.fed = frozenset(plan.feeds)
        fed_ops = {t.op for t in plan.feeds}
        self.running = {node.op for node in plan.nodes if node.op in fed_ops and node.fed is None}  # although an output is fed
        self.landed: dict[int, int] = {}  # slots of the transfers that have come in
        self.received: set[int] = set()  # those of them that something has waited for
        self.sent: set[int] = set()
        self.held_back: dict[int, int] = {}  # slots of the transfers that wait for the last one of their packet
        self.sources: list[Tensor | Operation] = []  # of each transfer
        self.deliver = deliver
        self.by_edge: dict[int, int] = {}  # transfer of each edge that leaves its rank
        self.behind: dict[Operation, list[int]] = {}  # transfers that start on this rank when an operation has run
        self.of_fetch: dict[int, int] = {}  # transfer that brings each fetch to this rank
        self.fetched = frozenset(f for f in plan.fetches if isinstance(f, Tensor) and f.dtype.is_ref and f not in self.fed)
        self.snapshots: dict[tuple[Tensor, Operation], int] = {}  # slots with the values of variables behind an operation
        self.exchanges: dict[Operation, Exchange] = {}  # by the last of their collectives
        self.shared: set[Operation] = set()  # all collectives that ranks compute together
        self.messages: dict[tuple[Operation, MessageKey], int] = {}  # transfer of each message of an exchange
        self.last_meeting: Exchange | None = None  # that tells all ranks of the step's end
        self.end = End()
        self.of_end: dict[tuple[int, int], int] = {}  # transfer of each token of the step's end, by source and destination
        self._number_transfers(num_ranks)

    def _number_transfers(self, num_ranks: int) -> None:
        """All transfers of all ranks, in the order of edges and fetches; the same list on every rank."""
        found: dict[tuple[Tensor | Operation, Operation, int], int] = {}
        starts: dict[Operation, dict[int, None]] = {}  # where they may wait for each other: what is fed is there at once
        together = isinstance(self.deliver, str) and num_ranks > 1
        tails = find_tails(self.plan, self.rank_of, self.deliver == "all") if together else None
        needless = frozenset[int]() if tails is None else tails.needless
        for edge in self.plan.edges:
            src, dst = self.rank_of(edge.src), self.rank_of(edge.dst)
            if src != dst and edge.index not in needless:
                index = self._transfer(found, edge.source, edge.after, src, dst, edge.src, str(edge.dst))
                self.by_edge[edge.index] = index
                if edge.source not in self.fed:
                    starts.setdefault(edge.after, {})[index] = None
        self.program.packets = find_packets(self.plan, self.rank_of, self.program.transfers, self.by_edge, starts)
        self.packed = {t.index: packet for packet in self.program.packets for t in packet}
        receivers: Sequence[int] = range(num_ranks) if self.deliver == "all" else () if isinstance(self.deliver, str) else [self.deliver]
        for position, fetch in enumerate(self.plan.fetches if receivers else ()):
            if isinstance(fetch, Tensor):
                task = self.plan.device_of(fetch).task
                src = self.rank_of(task)
                for dst in receivers:
                    if dst != src:
                        index = self._transfer(found, fetch, fetch.op, src, dst, task, FETCH)
                        if dst == self.rank:
                            self.of_fetch[position] = index
        self._number_messages()
        if tails is not None:
            self.last_meeting = meeting_at_the_end(self.plan, tails, self.exchanges, self.shared, num_ranks)
            if self.last_meeting is None:
                self._number_end(End(tails, num_ranks))

    def _number_end(self, end: End) -> None:
        """The tokens that tell of the step's end, behind all other transfers."""
        self.end = end
        for token in end.tokens():
            self.of_end[token.src, token.dst] = index = len(self.sources)
            self.sources.append(token.op)
            task = self.plan.device_of(token.op).task
            self.program.transfers.append(_transfer(index, token.op, token.src, token.dst, task, END, self.memory))

    def _number_messages(self) -> None:
        """The messages of collectives, behind those of edges and fetches."""
        if not self.plan.collectives:
            return
        order = [None if node.fed is not None else self.plan.collectives.get(node.op) for node in self.plan.nodes]
        for exchange in exchanges(order, self.rank_of, self.memory):
            home = self.rank_of(self.plan.placement[exchange.op].task)
            if exchange.ranks == (home,):
                continue  # an operation like any other
            self.shared.update(c.op for c in exchange.collectives)
            self.exchanges[exchange.collectives[-1].op] = exchange
            for message in exchange.messages():
                self.messages[exchange.op, message.key] = index = len(self.sources)
                self.sources.append(exchange.op)
                self.program.transfers.append(_of_exchange(index, message, exchange))

    def _transfer(
        self,
        found: dict[tuple[Tensor | Operation, Operation, int], int],
        source: Tensor | Operation,
        after: Operation,
        src: int,
        dst: int,
        task: Task,
        why: str,
    ) -> int:
        key = (source, after, dst)
        if key not in found:
            found[key] = index = len(self.sources)
            self.sources.append(source)
            self.program.transfers.append(_transfer(index, source, src, dst, task, why, self.memory))
            if src == self.rank:
                self.behind.setdefault(after, []).append(index)
        return found[key]

    def link(self) -> Program:
        program = self.program
        for node in self.plan.nodes:
            if self.shared and node.fed is None and node.op in self.shared:
                self._exchange(node)
                continue
            if self.rank_of(node.device.task) != self.rank:
                continue
            for edge in node.waits:
                if edge in self.by_edge:
                    self._receive(self.by_edge[edge])
            space = memory_space(node.device)
            if node.fed is not None:
                program.feeds[node.fed] = self._keep(node.fed, HOST, self._new_slot())
                if space != HOST and not is_state(node.fed):
                    self._slot(node.fed, space)
                self._send(node.op, (node.fed,) if node.op in self.running else (node.fed, node.op))
            else:
                self._run(node.op, node.device, space)
        if self.deliver in ("all", "owner", self.rank):
            own = [self._own_fetch(position, fetch) for position, fetch in enumerate(self.plan.fetches)]
            for src, dst in self.end.of(self.rank):  # what can fail on this rank is behind it, but for taking what others send
                transfer = program.transfers[self.of_end[src, dst]]
                self._emit(Send(transfer, NO_SLOT) if src == self.rank else Recv(transfer, NO_SLOT))
            program.fetches = [self._fetch(position, slot) for position, slot in enumerate(own)]
        program.frees = frees_after_last_use(program)
        return program

    def _exchange(self, node: Node) -> None:
        """This rank's part in a collective, or if it isn't the last one of its exchange, what the operation itself waits for."""
        home = self.rank_of(node.device.task) == self.rank
        for edge in node.waits if home else ():
            if edge in self.by_edge:
                self._receive(self.by_edge[edge])
        exchange = self.exchanges.get(node.op)
        if exchange is None:
            return
        if self.rank in exchange.ranks:
            exchange.emit(self.rank, _Emitter(self, exchange))
        for collective in exchange.collectives:
            if self.rank_of(self.plan.placement[collective.op].task) == self.rank:
                self._send(collective.op)

    def _new_slot(self) -> int:
        self.program.num_slots += 1
        return self.program.num_slots - 1

    def _emit(self, instruction: Instruction) -> None:
        self.program.instructions.append(instruction)

    def _receive(self, index: int) -> None:
        """Wait for a transfer, and take in what comes with it."""
        if index in self.received:
            return
        self.received.add(index)
        if index not in self.landed:
            transfer = self.program.transfers[index]
            for each in (transfer, *[t for t in self.packed.get(index, ()) if t is not transfer]):
                self.landed[each.index] = self._new_slot() if isinstance(self.sources[each.index], Tensor) else NO_SLOT
                self._emit(Recv(each, self.landed[each.index]))
        source = self.sources[index]
        if isinstance(source, Tensor):
            for slots in self.slots.values():
                slots.pop(source, None)
            self.slots[HOST][source] = self.landed[index]  # of a variable's tensor, the newest value

    def _run(self, op: Operation, device: DeviceName, space: str) -> None:
        definition = op.definition
        host = definition.kernels[device.type].host
        here = self.slots.setdefault(space, {})
        inputs: list[int] = []
        for tensor, arg in zip(op.inputs, _args(op, op.inputs, definition.inputs, host or definition.takes_refs), strict=True):
            if arg is None and tensor in here and not tensor.dtype.is_ref:  # most inputs
                inputs.append(here[tensor])
                continue
            wanted = HOST if arg is not None and arg.name in host else space
            if tensor in self.plan.constants:
                self._constant(tensor, device, wanted)
            inputs.append(self._input(op, tensor, arg is not None and arg.is_ref, wanted))
        if op.type in _PASSING:
            self._pass_on(op, inputs, space)
            return
        outputs: list[int] = []
        for tensor, arg in zip(op.outputs, _args(op, op.outputs, definition.outputs, host), strict=True):
            slot = self._new_slot()
            outputs.append(slot)
            if tensor not in self.fed:
                self._keep(tensor, HOST if is_state(tensor) or arg is not None and arg.name in host else space, slot)
        if op.type == "Const":
            self.program.constants.append((outputs[0], op, device))
        else:
            self._emit(Run(op, device, tuple(inputs), tuple(outputs)))
        for tensor in op.outputs if self.fetched else ():
            if tensor in self.fetched:
                self._value_slot(tensor, op)
        if op in self.behind:
            self._send(op)

    def _pass_on(self, op: Operation, inputs: Sequence[int], space: str) -> None:
        """An operation that computes nothing is no instruction: its place in the order is all there is to it."""
        for tensor, slot in zip(op.outputs, inputs, strict=True):
            if tensor not in self.fed:
                self._keep(tensor, HOST if is_state(tensor) else space, slot)
        self._send(op)

    def _input(self, op: Operation, tensor: Tensor, is_ref: bool, space: str) -> int:
        if not tensor.dtype.is_ref:
            return self._slot(tensor, HOST if is_state(tensor) else space)
        if not self._is_local_variable(tensor):
            return self._slot(tensor, space)  # fed, or received as a value
        if is_ref:
            return self.slots[HOST][tensor]
        return self._read(op, tensor, space)

    def _constant(self, tensor: Tensor, device: DeviceName, space: str) -> None:
        """Have a constant that every task knows in the memory ``space`` for an operation on ``device``."""
        if tensor not in self.slots.setdefault(space, {}):
            slot = self._keep(tensor, space, self._new_slot())
            there = DeviceName(device.task, "CPU", 0) if space == HOST else device
            self.program.constants.append((slot, self.plan.constants[tensor], there))

    def _is_local_variable(self, tensor: Tensor) -> bool:
        given = tensor in self.fed and tensor.op.type != ARG  # fed with a value; an argument of a body is the variable itself
        return not given and self.rank_of(self.plan.placement[tensor.op].task) == self.rank

    def _read(self, op: Operation, tensor: Tensor, space: str) -> int:
        """Slot with the value that a variable has at this point of the order."""
        slot, here = self._new_slot(), memory_space(self.plan.placement[tensor.op])
        self._emit(Read(op, self.slots[HOST][tensor], slot))
        return self._moved(tensor, slot, here, space)

    def _moved(self, tensor: Tensor, slot: int, here: str, space: str) -> int:
        """Slot with a copy in memory ``space`` of the value in ``slot``; the same slot if it is there."""
        for there in (HOST, space):  # from one GPU to another through host memory
            if here not in (there, space):
                moved = self._new_slot()
                self._emit(Move(tensor, slot, moved, here, there))
                slot, here = moved, there
        return slot

    def _slot(self, tensor: Tensor, space: str) -> int:
        """Slot with the tensor's value in a memory space; copies it there the first time."""
        slots = self.slots.setdefault(space, {})
        if tensor not in slots:
            if space != HOST and tensor not in self.slots[HOST]:
                self._slot(tensor, HOST)  # from one GPU to another through host memory
            here = next(place for place, known in self.slots.items() if tensor in known)  # HOST, if it is there
            slots[tensor] = self._new_slot()
            self._emit(Move(tensor, self.slots[here][tensor], slots[tensor], here, space))
        return slots[tensor]

    def _keep(self, tensor: Tensor, space: str, slot: int) -> int:
        """Note that ``slot`` will hold the tensor's value in a memory space."""
        self.slots.setdefault(space, {})[tensor] = slot
        return slot

    def _send(self, after: Operation, sources: Collection[Tensor | Operation] | None = None) -> None:
        """Start the transfers that wait for ``after`` and have not been started: all, or those of ``sources``."""
        for index in self.behind.get(after, ()):
            source = self.sources[index]
            if index not in self.sent and (sources is None or source in sources):
                self.sent.add(index)
                transfer = self.program.transfers[index]
                packet = self.packed.get(index, (transfer,))
                self.held_back[index] = self._value_slot(source, after) if isinstance(source, Tensor) else NO_SLOT
                if transfer is packet[-1]:
                    for each in packet:
                        self._emit(Send(each, self.held_back.pop(each.index)))

    def _value_slot(self, tensor: Tensor, after: Operation) -> int:
        """Slot in host memory with the value that the tensor, made on this rank or fed, has behind ``after``."""
        if not tensor.dtype.is_ref or tensor in self.fed:
            return self._slot(tensor, HOST)
        key = (tensor, after)
        if key not in self.snapshots:
            self.snapshots[key] = self._read(after, tensor, HOST)
        return self.snapshots[key]

    def _own_fetch(self, position: int, fetch: Tensor | Operation) -> int:
        """Slot with a fetched value that is on this rank."""
        if position in self.of_fetch or isinstance(fetch, Operation) or self.rank_of(self.plan.device_of(fetch).task) != self.rank:
            return NO_SLOT
        return self._value_slot(fetch, fetch.op)

    def _fetch(self, position: int, slot: int) -> int:
        """Slot with a fetched value; ``slot``, if it doesn't come from another rank."""
        if position in self.of_fetch:
            self._receive(self.of_fetch[position])
            return self.landed[self.of_fetch[position]]
        return slot


class _Emitter:
    """The program under construction as an exchange sees it: see `compiler.exchange.Emitter`."""

    def __init__(self, linker: _Linker, exchange: Exchange) -> None:
        self._linker = linker
        self._of = exchange.op
        self._exchange = exchange
        self.new_slot = linker._new_slot
        self.emit: Callable[[Make | Fold | View], None] = linker._emit

    def value(self, op: Operation, tensor: Tensor) -> int:
        return self._linker._input(op, tensor, False, HOST)

    def send(self, message: MessageKey, slot: int, part: Part | None = None) -> None:
        self._linker._emit(Send(self._transfer(message), slot, part))

    def receive(self, message: MessageKey, into: tuple[int, Part] | None = None) -> int:
        slot, part = (self._linker._new_slot(), None) if into is None else into
        self._linker._emit(Recv(self._transfer(message), slot, part))
        return slot

    def meet(self, how: str, number: int, source: int) -> int:
        linker, ex = self._linker, self._exchange
        rank, target = linker.rank, linker._new_slot()
        own = tuple([t for t in map(self._transfer, (m.key for m in ex.messages())) if rank in (t.src_rank, t.dst_rank)])
        whole, last = ex.way == "all pairs", ex is linker.last_meeting
        linker._emit(Meet(ex.name, how, number, rank, ex.ranks, ex.dtype, ex.shape or (), whole, last, source, target, own, ex.op))
        return target

    def give(self, tensor: Tensor, slot: int) -> None:
        self._linker._keep(tensor, HOST, slot)

    def _transfer(self, message: MessageKey) -> Transfer:
        return self._linker.program.transfers[self._linker.messages[self._of, message]]


def _of_exchange(index: int, message: Message, exchange: Exchange) -> Transfer:
    tensor, task = message.tensor, exchange.task_at(message.src)
    reason = f"{exchange.name}, {exchange.way}: {message.role} {message.number}"
    ends = message.src, message.dst
    on_board = exchange.meets
    return Transfer(index, tensor.name, exchange.dtype, message.shape, *ends, task, reason, message.in_place, on_board, exchange.op)


def _transfer(
    index: int, source: Tensor | Operation, src: int, dst: int, task: Task, why: str, memory: Sequence[int] | None
) -> Transfer:
    share = memory is not None and memory[src] == memory[dst]
    if isinstance(source, Operation):
        return Transfer(index, f"^{source.name}", None, None, src, dst, task, why, on_board=share)
    static = source.static_shape
    shape = None if static is None or None in static else tuple([size for size in static if size is not None])
    dtype = source.dtype.base_dtype
    transfer = Transfer(index, source.name, dtype, shape, src, dst, task, why, on_board=share, op=source.op)
    if memory is None or not share or is_small(transfer) or path_of(transfer, memory).window:
        return transfer
    return replace(transfer, on_board=False)


def _args(op: Operation, tensors: Sequence[Tensor], args: Sequence[ArgDef], differ: object) -> Iterable[ArgDef | None]:
    """The argument that each of the inputs or outputs of an operation belongs to; None for each if they don't ``differ``."""
    if not differ:
        return repeat(None, len(tensors))
    return chain.from_iterable([repeat(arg, arg_size(arg, op.attrs)) for arg in args])
