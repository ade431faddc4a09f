"""What a worker service is given of a graph: the nodes that it runs, and the program that runs them, as messages.

The master sends a rank only what that rank runs. A tensor that another rank makes is declared by name, type and shape
(``foreign``); a large constant travels as a message of its own. The program says the rest: order, slots, transfers. Guarantee:
whatever comes in a message, reading it gives an operation graph and a program that are consistent in themselves, or one
clear error. Nothing is evaluated.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import graph_pb2

from mpirt import dtypes, errors
from mpirt.cluster.task import Task
from mpirt.compiler.exchange import JOIN, Fold, Make, Part, View
from mpirt.compiler.packets import PACKET_NBYTES, is_small, packed_nbytes
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.program import (
    HOST,
    NO_SLOT,
    Instruction,
    Move,
    Program,
    Read,
    Recv,
    Run,
    Send,
    Transfer,
    frees_after_last_use,
    memory_space,
)
from mpirt.distributed.control_pb2 import (
    ConstantDef,
    ExtendSession,
    InstructionDef,
    LargeConstant,
    PacketDef,
    ProgramDef,
    TensorSpec,
    TransferDef,
)
from mpirt.dtypes import DType
from mpirt.graph.function import ARG
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.graph_def import AT, bodies, import_nodes, to_function_def, to_node_def
from mpirt.graph.shapes import Shape

LARGE_CONSTANT_NBYTES = 1 << 16
_MAX_NDIM = 64
_MAX_NBYTES = 1 << 40  # of an array that a program makes
_TASK = re.compile(r"/job:([\w.-]+)/task:([0-9]{1,9})", re.ASCII)  # also the client, whose job's name no cluster can have
_RUN, _READ, _MOVE, _SEND, _RECV, _MAKE, _FOLD, _VIEW = range(8)
_ALL = (0, -1)  # the part that is the whole array


# ------------------------------------------------------------------------------------------------------------ nodes


class Extension(NamedTuple):
    """What a rank is told of new nodes: the message, and the large constants to send behind it, in the order of their tags."""

    message: ExtendSession
    constants: list[Operation]


def operations_of(program: Program) -> list[Operation]:
    """The operations that a program names, in creation order."""
    found = {op for _, op, _ in program.constants}
    for i in program.instructions:
        if isinstance(i, Run | Read):
            found.add(i.op)
        elif isinstance(i, Move):
            found.add(i.tensor.op)
    return sorted(found, key=lambda op: op.index)


def extension(session: int, operations: Sequence[Operation], known: Collection[Operation]) -> Extension:
    """The message that tells a rank of ``operations``, in creation order; it has those in ``known``."""
    have = set(known)
    graph_def = graph_pb2.GraphDef()
    foreign: dict[str, TensorSpec] = {}
    large = [op for op in operations if op.type == "Const" and _travels_alone(op.attrs["value"])]
    message = ExtendSession(session=session)
    message.constants.extend([LargeConstant(tensor=_tensor_spec(op.outputs[0])) for op in large])
    have.update(large)
    small = [op for op in operations if op not in have]
    places = _Numbered()
    for op in small:
        node = to_node_def(op)
        node.device = ""
        del node.input[:]
        node.attr.pop("_class", None)
        for tensor in op.inputs:
            node.input.append(tensor.name)
            if tensor.op not in have:
                foreign.setdefault(tensor.name, _tensor_spec(tensor))
        _note_place(node, op, places)
        graph_def.node.append(node)
        have.add(op)
    for body in bodies(small).values():
        definition = to_function_def(body)
        for node, op in zip(definition.node_def, [op for op in body.graph.get_operations() if op.type != ARG], strict=True):
            _note_place(node, op, places)
        graph_def.library.function.append(definition)
    message.places.extend(places)
    message.graph_def = graph_def.SerializeToString()
    message.foreign.extend(foreign.values())
    return Extension(message, large)


def _note_place(node: Any, op: Operation, places: _Numbered) -> None:
    """Have ``node`` say where the user made ``op``: errors on the other rank tell it."""
    if op.location:
        node.attr[AT].i = places[op.location]


def _travels_alone(value: np.ndarray[Any, Any]) -> bool:
    return value.dtype != object and value.nbytes >= LARGE_CONSTANT_NBYTES


def _tensor_spec(tensor: Tensor) -> TensorSpec:
    return _spec(tensor.name, tensor.dtype, tensor.static_shape)


def _spec(name: str, dtype: DType | None, shape: Shape) -> TensorSpec:
    sizes = [] if shape is None else [-1 if size is None else size for size in shape]
    return TensorSpec(name=name, dtype=0 if dtype is None else dtype.enum, unknown_rank=shape is None, shape=sizes)


def _read_spec(spec: TensorSpec) -> tuple[DType, Shape]:
    try:
        dtype = dtypes.as_dtype(spec.dtype)
    except TypeError as error:
        raise errors.InvalidArgumentError(f"tensor {spec.name!r}: {error}") from None
    if len(spec.shape) > _MAX_NDIM or any(size < -1 for size in spec.shape):
        raise errors.InvalidArgumentError(f"tensor {spec.name!r} can't have the shape {list(spec.shape)}.")
    return dtype, None if spec.unknown_rank else tuple(None if size < 0 else size for size in spec.shape)


class NodeTable:
    """The operations that a session has on this rank, by name, in a graph of their own."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.made: dict[str, Operation] = {}
        self._foreign: dict[str, Tensor] = {}

    def extend(self, message: ExtendSession) -> list[tuple[np.ndarray[Any, Any], int]]:
        """Add the nodes of a message.

        Returns
        -------
        list of (array, tag) : large constants, whose content is to be received into these arrays

        Raises
        ------
        OpError
            If the message is malformed.
        """
        try:
            graph_def = graph_pb2.GraphDef.FromString(message.graph_def)
        except DecodeError:
            raise errors.InvalidArgumentError(f"a GraphDef of {len(message.graph_def)} bytes can't be parsed.") from None
        _check_tensors(graph_def)
        for spec in message.foreign:
            self._declare(spec)
        loading = [self._constant(constant) for constant in message.constants]
        import_nodes(self.graph, graph_def, self.made, self._foreign, message.places)
        return loading

    def _declare(self, spec: TensorSpec) -> None:
        """Note a tensor that other ranks make."""
        dtype, shape = _read_spec(spec)
        with self.graph.as_default():
            op = self.graph.create_op(ARG, (), {"T": dtype, "index": 0}, f"_foreign/{len(self._foreign)}/")
        op.outputs[0].static_shape = shape
        self._foreign[spec.name if ":" in spec.name else f"{spec.name}:0"] = op.outputs[0]

    def _constant(self, constant: LargeConstant) -> tuple[np.ndarray[Any, Any], int]:
        dtype, shape = _read_spec(constant.tensor)
        name = constant.tensor.name.partition(":")[0]
        if shape is None or None in shape or dtype.size == 0 or name in self.made:
            raise errors.InvalidArgumentError(f"large constant {name!r}: shape {shape}, type {dtype.name}, or it comes twice.")
        sizes = [size for size in shape if size is not None]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # a system that overcommits gives out more
        try:
            if math.prod(sizes) * dtype.size > memory:
                raise MemoryError(f"it takes more than the {memory} bytes of memory that this host has.")
            array = np.empty(sizes, dtype.np_dtype)
        except (ValueError, MemoryError) as error:
            raise errors.ResourceExhaustedError(f"large constant {name!r} of shape {shape}: {error}") from None
        self.made[name] = self.graph.create_op("Const", (), {"dtype": dtype, "value": array}, f"{name}/")
        return array, constant.tag


def _check_tensors(graph_def: Any) -> None:
    """Refuse tensors that would take far more memory than their message: ours are written in full, as bytes or as strings."""
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    for node in nodes:
        for attr in node.attr.values():
            case = attr.WhichOneof("value")
            for tensor in [attr.tensor] if case == "tensor" else attr.list.tensor if case == "list" else ():
                size, held = math.prod([dim.size for dim in tensor.tensor_shape.dim]), len(tensor.string_val)
                if size > held and not tensor.tensor_content:  # whose size is compared when it is read
                    raise errors.InvalidArgumentError(f"node {node.name!r} has a tensor of {size} elements, but only {held} are there.")


# ---------------------------------------------------------------------------------------------------------- program


def program_def(program: Program) -> ProgramDef:
    """The program of a rank as a message; its feeds and fetches stay with the client."""
    nodes, devices, transfers = _Numbered(), _Numbered(), _Numbered()
    message = ProgramDef(num_slots=program.num_slots)
    for slot, op, device in program.constants:
        message.constants.append(ConstantDef(slot=slot, node=nodes[op.name], device=devices[str(device)]))
    for i in program.instructions:
        if isinstance(i, Run):
            entry = InstructionDef(kind=_RUN, node=nodes[i.op.name], device=devices[str(i.device)], inputs=i.inputs, outputs=i.outputs)
        elif isinstance(i, Read):
            entry = InstructionDef(kind=_READ, node=nodes[i.op.name], inputs=[i.source], outputs=[i.target])
        elif isinstance(i, Move):
            entry = InstructionDef(kind=_MOVE, node=nodes[i.tensor.op.name], output=i.tensor.value_index)
            entry.MergeFrom(InstructionDef(inputs=[i.source], outputs=[i.target], from_space=i.from_space, to_space=i.to_space))
        elif isinstance(i, Send):
            entry = InstructionDef(kind=_SEND, node=transfers[i.transfer.index], inputs=[i.source], parts=i.part or _ALL)
        elif isinstance(i, Recv):
            entry = InstructionDef(kind=_RECV, node=transfers[i.transfer.index], outputs=[i.target], parts=i.part or _ALL)
        elif isinstance(i, Make):
            entry = InstructionDef(kind=_MAKE, outputs=[i.target], made=_spec("", i.dtype, i.shape))
        elif isinstance(i, View):
            entry = InstructionDef(kind=_VIEW, inputs=[i.source], outputs=[i.target], parts=i.part or _ALL, made=_spec("", None, i.shape))
        else:
            assert isinstance(i, Fold), f"only who runs a program that was sent to nobody may have {i}"
            parts = [place for part in (i.into, *i.parts) for place in part or _ALL]
            entry = InstructionDef(kind=_FOLD, name=i.name, how=i.how, number=i.number, labels=i.labels)
            entry.MergeFrom(InstructionDef(inputs=i.inputs, outputs=[i.target], parts=parts))
        message.instructions.append(entry)
    message.nodes.extend(nodes)
    message.devices.extend(devices)
    for index in transfers:
        t = program.transfers[index]
        spec = _spec(t.name, t.dtype, t.shape)
        transfer = TransferDef(index=index, tensor=spec, src_rank=t.src_rank, dst_rank=t.dst_rank, src=str(t.src))
        transfer.MergeFrom(TransferDef(reason=t.reason, in_place=t.in_place))
        message.transfers.append(transfer)
    for packet in program.packets:
        if packet[0].index in transfers:  # else of other ranks
            message.packets.append(PacketDef(transfers=[transfers[t.index] for t in packet]))
    return message


class _Numbered(dict[Any, int]):
    """Numbers in order of first use."""

    def __missing__(self, key: Any) -> int:
        self[key] = number = len(self)
        return number


def read_program(message: ProgramDef, table: NodeTable, rank: int, size: int, devices: Collection[DeviceName]) -> Program:
    """The program of this rank.

    Parameters
    ----------
    message : from a master
    table : the session's operations on this rank
    rank, size : this rank and the number of ranks
    devices : of this rank

    Raises
    ------
    InvalidArgumentError, NotFoundError
        If the message contradicts itself, the nodes, or the cluster.
    """
    return _Reader(message, table, rank, size, {str(device): device for device in devices}).read()


class _Reader:
    def __init__(self, message: ProgramDef, table: NodeTable, rank: int, size: int, known: dict[str, DeviceName]) -> None:
        self._message = message
        self._rank = rank
        self._size = size
        limit = len(message.constants) + sum(len(i.outputs) for i in message.instructions)
        self._num_slots = message.num_slots
        if not 0 <= self._num_slots <= limit:
            raise _malformed(f"{self._num_slots} slots for {limit} values")
        self._nodes = [table.made[n] if n in table.made else _refuse_node(n) for n in message.nodes]
        self._devices = [known[d] if d in known else _refuse_device(d, known) for d in message.devices]
        self._transfers = [self._transfer(t) for t in message.transfers]
        self._spaces = {HOST, *(memory_space(d) for d in known.values())}
        self._made: dict[int, tuple[DType, int]] = {}  # type and number of elements of the arrays that are made

    def read(self) -> Program:
        program = Program(self._rank, num_slots=self._num_slots)
        for c in self._message.constants:
            op = self._item(self._nodes, c.node, "node")
            if op.type != "Const":
                raise _malformed(f"{op.name!r} is no constant")
            program.constants.append((self._slot(c.slot), op, self._item(self._devices, c.device, "device")))
        program.instructions = [self._instruction(i) for i in self._message.instructions]
        program.transfers = self._transfers
        program.packets = self._packets(program.instructions)
        program.frees = frees_after_last_use(program)
        return program

    def _instruction(self, i: InstructionDef) -> Instruction:
        inputs, outputs = tuple(i.inputs), tuple(i.outputs)
        if i.kind == _RUN:
            op, device = self._item(self._nodes, i.node, "node"), self._item(self._devices, i.device, "device")
            if device.type not in op.definition.kernels:
                raise _malformed(f"{op.name!r} ({op.type}) has no kernel for {device}")
            if len(inputs) != len(op.inputs) or len(outputs) != len(op.outputs):
                raise _malformed(f"{op.name!r} has {len(op.inputs)} inputs and {len(op.outputs)} outputs")
            return Run(op, device, tuple(map(self._slot, inputs)), tuple([NO_SLOT if s == NO_SLOT else self._slot(s) for s in outputs]))
        if i.kind in (_READ, _MOVE):
            if len(inputs) != 1 or len(outputs) != 1:
                raise _malformed("a read or move has one source and one target")
            op, source, target = self._item(self._nodes, i.node, "node"), self._slot(inputs[0]), self._slot(outputs[0])
            if i.kind == _READ:
                return Read(op, source, target)
            if {i.from_space, i.to_space} - self._spaces or HOST not in (i.from_space, i.to_space) or i.from_space == i.to_space:
                raise _malformed(f"there is no move from {i.from_space!r} to {i.to_space!r} on this rank")
            return Move(self._item(op.outputs, i.output, "output"), source, target, i.from_space, i.to_space)
        if i.kind in (_MAKE, _FOLD, _VIEW):
            return self._of_exchange(i)
        if i.kind not in (_SEND, _RECV):
            raise _malformed(f"{i.kind} is no kind of instruction")
        transfer = self._item(self._transfers, i.node, "transfer")
        slots = inputs if i.kind == _SEND else outputs
        if len(slots) != 1 or (slots[0] == NO_SLOT) != (transfer.dtype is None):
            raise _malformed(f"{transfer} has one slot if it is a tensor, none if it isn't")
        slot = NO_SLOT if transfer.dtype is None else self._slot(slots[0])
        mine = transfer.src_rank if i.kind == _SEND else transfer.dst_rank
        if mine != self._rank:
            raise _malformed(f"rank {self._rank} is not the end of {transfer} that the program says")
        (part,) = self._parts(i, 1)
        if part is not None and (transfer.dtype is None or transfer.shape != (part[1] - part[0],)):
            raise _malformed(f"{transfer} can't be the elements {part[0]} to {part[1]}")
        if i.kind == _SEND:
            return Send(transfer, slot, part)
        if transfer.in_place != (part is not None):
            raise _malformed(f"{transfer} has a place if it is received in place")
        if part is not None:
            self._check_made(slot, transfer.dtype, part)
        return Recv(transfer, slot, part)

    def _of_exchange(self, i: InstructionDef) -> Instruction:
        """What happens between the messages of a collective."""
        if len(i.outputs) != 1:
            raise _malformed("what is made, folded or viewed has one target")
        target = self._slot(i.outputs[0])
        if i.kind == _FOLD:
            into, *parts = self._parts(i, 1 + len(i.inputs))
            reduces = i.how in ("sum", "max", "min") and i.number >= 1
            if not i.inputs or not (reduces or (i.how == JOIN and 0 <= i.number < _MAX_NDIM)) or len(i.labels) not in (0, len(i.inputs)):
                raise _malformed(f"{i.name!r} can't fold {len(i.inputs)} arrays by {i.how!r} and {i.number}")
            if i.how == JOIN and (into or any(parts) or not i.labels):
                raise _malformed(f"{i.name!r} joins whole arrays")
            if into is None and any(parts):
                raise _malformed(f"{i.name!r} folds parts into no array")
            if into is not None:
                self._check_made(target, None, into)
            inputs = tuple(map(self._slot, i.inputs))
            return Fold(i.name, i.how, i.number, inputs, tuple(parts), target, into, tuple(i.labels))
        shape = tuple(i.made.shape)
        if len(shape) > _MAX_NDIM or any(size < 0 for size in shape):
            raise _malformed(f"no array has the shape {list(shape)}")
        if i.kind == _VIEW:
            (part,) = self._parts(i, 1)
            if len(i.inputs) != 1 or (part is not None and part[1] - part[0] != math.prod(shape)):
                raise _malformed(f"a part of an array can't have the shape {list(shape)}")
            return View(self._slot(i.inputs[0]), target, part, shape)
        dtype, _ = _read_spec(i.made)
        if dtype.size == 0 or math.prod(shape) * dtype.size > _MAX_NBYTES:
            raise _malformed(f"an array of type {dtype.name} and shape {list(shape)}")
        self._made[target] = dtype, math.prod(shape)
        return Make(target, dtype, shape)

    @staticmethod
    def _parts(i: InstructionDef, count: int) -> list[Part | None]:
        pairs = list(zip(i.parts[::2], i.parts[1::2], strict=False))
        if len(i.parts) != 2 * count or any(not (0 <= start <= stop or (start, stop) == _ALL) for start, stop in pairs):
            raise _malformed(f"parts {list(i.parts)[:8]} of {count} array(s)")
        return [None if pair == _ALL else pair for pair in pairs]

    def _check_made(self, slot: int, dtype: DType | None, part: Part) -> None:
        """A part is filled only of an array that was made, and inside it."""
        have, size = self._made.get(slot, (None, 0))
        if have is None or part[1] > size or dtype not in (None, have):
            raise _malformed(f"slot {slot} has no array whose elements {part[0]} to {part[1]} could be filled")

    def _transfer(self, t: TransferDef) -> Transfer:
        ranks = (t.src_rank, t.dst_rank)
        if t.index < 0 or t.src_rank == t.dst_rank or self._rank not in ranks or not all(0 <= r < self._size for r in ranks):
            raise _malformed(f"transfer {t.index} of {t.tensor.name!r} from rank {t.src_rank} to rank {t.dst_rank}")
        dtype: DType | None = None
        shape: Shape = None
        if t.tensor.dtype:
            dtype, shape = _read_spec(t.tensor)
        static = None if shape is None or None in shape else tuple([size for size in shape if size is not None])
        return Transfer(t.index, t.tensor.name, dtype, static, t.src_rank, t.dst_rank, _task(t.src), t.reason, t.in_place)

    def _packets(self, instructions: Sequence[Instruction]) -> list[tuple[Transfer, ...]]:
        packets = [tuple([self._item(self._transfers, n, "transfer") for n in p.transfers]) for p in self._message.packets]
        numbers = [t.index for packet in packets for t in packet]
        if len(set(numbers)) < len(numbers):
            raise _malformed("a transfer is in two packets")
        sent = [i.transfer.index for i in instructions if isinstance(i, Send)]
        for packet in packets:
            if len(packet) < 2 or not all(map(is_small, packet)) or sum(map(packed_nbytes, packet)) > PACKET_NBYTES:
                raise _malformed(f"a packet of {len(packet)} transfers is too short or too large")
            if len({(t.src_rank, t.dst_rank) for t in packet}) > 1:
                raise _malformed("a packet goes from one rank to one rank")
            order = [t.index for t in packet]
            if packet[0].src_rank == self._rank and [n for n in sent if n in order] != order:
                raise _malformed("the transfers of a packet are not sent in its order")
        return packets

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self._num_slots:
            raise _malformed(f"slot {slot} of {self._num_slots}")
        return slot

    @staticmethod
    def _item(items: Sequence[Any], index: int, what: str) -> Any:
        if not 0 <= index < len(items):
            raise _malformed(f"{what} {index} of {len(items)}")
        return items[index]


def _task(text: str) -> Task:
    """A task for people to read: the client of a session is one, though no rank table has it."""
    found = _TASK.fullmatch(text)
    if found is None:
        raise _malformed(f"{text!r} is no task")
    return Task(found[1], int(found[2]))


def _malformed(what: str) -> errors.InvalidArgumentError:
    return errors.InvalidArgumentError(f"malformed program: {what}.")


def _refuse_node(name: str) -> Operation:
    raise errors.NotFoundError(f"malformed program: node {name!r} is not known here.")


def _refuse_device(name: str, known: Iterable[str]) -> DeviceName:
    raise errors.InvalidArgumentError(f"malformed program: {name!r} is no device of this rank, which has {', '.join(sorted(known))}.")
