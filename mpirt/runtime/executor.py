"""Runs the program of one rank: a flat list of bound calls over numbered slots.

What can be decided once is decided in the constructor: kernels, attributes, devices, constants, both ends of the transfers.
The loop does no look-up by name. A failure turns the rest of the step dead: nothing more is computed, every message of
the plan is still sent (empty), so that the step ends on every rank and leaves nothing behind.
"""

from __future__ import annotations

import copy
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import length_hint
from typing import Any

import numpy as np

from mpirt import errors
from mpirt.compiler.body import compile_body
from mpirt.compiler.buffers import assign_buffers, signature_of
from mpirt.compiler.exchange import Fold, Make, View
from mpirt.compiler.partition import message_nbytes
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.planning import collecting_later
from mpirt.compiler.program import NO_SLOT, Meet, Move, Program, Read, Recv, Run, Send, Transfer, is_state
from mpirt.graph.function import Function, has_body
from mpirt.graph.graph import Operation
from mpirt.graph.op_def import Blocked, Pending
from mpirt.runtime.boxes import OutgoingBox
from mpirt.runtime.calls import ALL, Devices, Instruction, kernel_call, move_call, out_of, read, send_part, writing_into
from mpirt.runtime.device import Device
from mpirt.runtime.failures import Failure, StepFailed, op_error
from mpirt.runtime.folding import Made, fold_call, view_call
from mpirt.runtime.kernel_context import KernelContext
from mpirt.runtime.meetings import Meeting, Meetings
from mpirt.runtime.packet_layout import Array
from mpirt.runtime.packets import OutgoingPacket, Packets
from mpirt.runtime.rendezvous import Abandoned, DeadTensor, Incoming, Outgoing, Wait
from mpirt.runtime.resources import ResourceManager
from mpirt.runtime.segments import Lane, Producing, joined
from mpirt.runtime.windows import WindowOutgoing, receiving_end, sending_end
from mpirt.transport.base import Transport

_PYTHON = ("PyFunc", "PyFuncStateless")

_LARGE_NBYTES, _MANY = 1 << 14, 16  # of a tensor; operations on smaller ones that take as long as one on a large one

Block = Callable[[Pending], None]  # returns when it is ready


class SessionState:
    """What one session keeps on this rank: resources, kernel contexts, compiled bodies.

    Parameters
    ----------
    resources : those of the tasks, which sessions share; the session's own are in ``private``
    devices : of the tasks
    """

    def __init__(self, resources: ResourceManager, devices: Devices) -> None:
        self.resources = resources
        self.private = ResourceManager()
        self.devices = devices
        self._contexts: dict[tuple[Operation, DeviceName], KernelContext] = {}
        self._bodies: dict[tuple[Function, DeviceName], Callable[[Sequence[Any]], list[Any]]] = {}

    def close(self) -> None:
        """Drop what is the session's own."""
        self.private.clear()

    def context(self, op: Operation, device: DeviceName) -> KernelContext:
        """The kernel context of ``op``."""
        key = (op, device)
        if key not in self._contexts:
            xp = self.devices[device.task, device.local].xp
            self._contexts.setdefault(key, KernelContext(op, device, xp, self))  # threads may meet here: one context for all
        return self._contexts[key]

    def body(self, body: Function, device: DeviceName) -> Callable[[Sequence[Any]], list[Any]]:
        """The function of arrays that ``body`` is on ``device``; compiled the first time."""
        key = (body, device)
        if key not in self._bodies:
            names = [local for task, local in self.devices if task == device.task]
            program = compile_body(body, device, names)
            self._bodies[key] = partial(_run_body, Executor(program, self), [program.feeds[t] for t in body.inputs], len(body.outputs))
        return self._bodies[key]


def _run_body(executor: Executor, slots: Sequence[int], num_outputs: int, inputs: Sequence[Any]) -> list[Any]:
    return executor.run(dict(zip(slots, inputs, strict=True)), block=getattr(_this_thread, "block", None))[:num_outputs]


_this_thread = threading.local()  # block: how bodies wait, which can't be left half-way


@contextmanager
def blocking(block: Block | None) -> Iterator[None]:
    """Inside, bodies of the steps that this thread runs wait by ``block``."""
    before = getattr(_this_thread, "block", None)
    _this_thread.block = block
    try:
        yield
    finally:
        _this_thread.block = before


class Executor:
    """A program, bound and ready to run again and again.

    A program with messages runs one step at a time, since its receives are numbered once: `another` makes an executor for
    steps beside it, with tags of its own. A program without messages may `run` in several threads at once: each step has
    buffers of its own (a `Lane`), which later steps use again.

    Parameters
    ----------
    program : what to run
    state : of the session
    transport : who carries messages; a program without any needs none
    first_tag : tag of the program's transfer number 0
    wait : how a step waits for a message; None - it doesn't: it stops there (see `advance`)
    glance : called between operations, after one that may take more than some microseconds or after some small ones
    """

    def __init__(
        self,
        program: Program,
        state: SessionState,
        transport: Transport | None = None,
        first_tag: int = 0,
        wait: Wait | None = None,
        glance: Callable[[], None] | None = None,
    ) -> None:
        self.program = program
        self.first_tag = first_tag
        self._transport = transport
        self._wait = wait
        self._glance = glance
        self.has_bodies = any(isinstance(i, Run) and has_body(i.op) for i in program.instructions)
        self.calls_python = any(isinstance(i, Run) and i.op.type in _PYTHON for i in program.instructions)
        self._template: list[Any] = [None] * program.num_slots
        self._code: list[Instruction] = []
        self._messages: list[int] = []  # positions of what `_bind_messages` binds
        self._gpu_constants: list[tuple[int, Operation, DeviceName, Device]] = []
        direct: dict[tuple[str, DeviceName], tuple[Callable[..., Any], bool]] = {}  # calls that many operations share
        for slot, op, device in program.constants:
            value = self._template[slot] = op.attrs["value"]
            if device.type == "GPU" and value.dtype != object:
                self._gpu_constants.append((slot, op, device, state.devices[device.task, device.local]))
        for position, (instruction, frees) in enumerate(zip(program.instructions, program.frees, strict=True)):
            if isinstance(instruction, Run):
                key = (instruction.op.type, instruction.device)
                if key in direct:
                    call, single = direct[key]
                    out = instruction.outputs[0] if single else instruction.outputs
                else:
                    call, out = kernel_call(instruction, state), out_of(instruction)
                    if instruction.op.definition.kernels[instruction.device.type].direct:
                        direct[key] = call, isinstance(out, int)
                self._code.append((call, instruction.inputs, out, frees))
            elif isinstance(instruction, Read):
                self._code.append((read, (instruction.source,), instruction.target, frees))
            elif isinstance(instruction, Move):
                self._code.append((move_call(instruction, state), (instruction.source,), instruction.target, frees))
            elif isinstance(instruction, View):
                self._code.append((view_call(instruction), (instruction.source,), instruction.target, frees))
            elif isinstance(instruction, Fold):
                out = instruction.target if instruction.into is None else NO_SLOT
                self._code.append((*fold_call(instruction), out, frees))
            else:
                self._messages.append(position)
                self._code.append((_unbound, (), NO_SLOT, frees))
        self.buffers = assign_buffers(program)
        self._told = frozenset(self.buffers.into.values())
        self._bind_messages()
        self._lanes: list[Lane] = []  # those that no step uses
        self._lane: Lane | None = None  # of the step that `start` has begun
        self._values: list[Any] = []
        self._index = 0
        self.blocked: Pending | None = None

    def another(self, first_tag: int) -> Executor:
        """An executor of the same program whose messages have other tags; kernels are bound already."""
        other = copy.copy(self)
        other.first_tag = first_tag
        other._code = self._code.copy()
        other._bind_messages()
        other._lanes, other._lane = [], None
        other._values, other._index, other.blocked = [], 0, None
        return other

    def _take_lane(self) -> Lane:
        try:
            lane = self._lanes.pop()
        except IndexError:
            own_context = not (self.has_bodies or self.calls_python)
            with collecting_later():
                lane = Lane(self.buffers, self._code, self._template, self._produced, self._lent, self._placed, own_context)
                if self._glance is not None:
                    lane.call_behind(self._glance, _where_to_glance(self.program))
        if self._packets is not None:
            lane.code = lane.whole if self._packets.all_left() else lane.careful
        return lane

    def _bind_messages(self) -> None:
        meetings = Meetings(self.program, self._transport, self.first_tag, self._wait)
        self._all_taken = False  # the last step has run to its end and taken all that came; at a meeting others may still be on their way
        self._meets = bool(meetings.ends)
        self._incoming: list[Incoming | Packets | Meetings] = [meetings] if meetings.ends else []
        self._produced: dict[int, Callable[[], Any]] = {}  # for slots whose values leave through windows, what lends the window's array
        self._lent: dict[int, Array] = {}  # values of packets that stay where they come, by slot
        self._placed: dict[int, Array] = {}  # results that are made where they are sent from, by slot
        self._packets: Packets | None = None
        self._outgoing: list[tuple[int, Outgoing | OutgoingPacket | OutgoingBox | Meeting]] = []  # with the position that starts each
        made: dict[int, Made] = {}
        instructions = self.program.instructions
        after = 0  # position behind the packet at hand
        for position in self._messages:
            instruction = instructions[position]
            if isinstance(instruction, Make):
                array = meetings.makers.get(instruction.target) or made.setdefault(instruction.target, Made(instruction))
                self._code[position] = (array.take, (), instruction.target, self._code[position][3])
            if not isinstance(instruction, (Send, Recv, Meet)) or position < after:
                continue
            transport = self._transport
            assert transport is not None, f"a program without transport has {instruction}"
            if isinstance(instruction, Meet):
                meeting = meetings.ends[instruction.target]
                self._outgoing.append((position, meeting))
                self._code[position] = (meeting.call, (instruction.source,), instruction.target, self._code[position][3])
                continue
            transfer = instruction.transfer
            packets = self._packets
            if packets is None:
                packets = self._packets = Packets(self.program, transport, self.first_tag, self._wait)
                self._incoming.append(packets)
            count = len(packets.together(transfer))
            if count:
                after = position + count
                if isinstance(instruction, Send):
                    self._bind_sends(packets, position, [i for i in instructions[position:after] if isinstance(i, Send)])
                else:
                    self._bind_receives(packets, position, [i for i in instructions[position:after] if isinstance(i, Recv)])
                continue
            tag, part, frees = self.first_tag + transfer.index, instruction.part, self._code[position][3]
            if isinstance(instruction, Send):
                outgoing = sending_end(transport, transfer, tag, self._wait, packets)
                self._outgoing.append((position, outgoing))
                if isinstance(outgoing, WindowOutgoing) and part is None:
                    self._produced[instruction.source] = outgoing.buffer
                if instruction.source in made:
                    made[instruction.source].sent_by(outgoing.pending)
                send = outgoing.send if part is None else partial(send_part, outgoing.send, part)
                self._code[position] = (send, (instruction.source,), NO_SLOT, frees)
            else:
                place = None if part is None else partial(made[instruction.target].part, part)
                end = receiving_end(transport, transfer, tag, self._wait, packets, place)
                self._incoming.append(end)
                self._code[position] = (end.take, (), instruction.target if part is None else NO_SLOT, frees)
        self._made = list(made.values())
        self._keep_what_stays()
        self._produce_in_place()

    def _bind_sends(self, packets: Packets, position: int, sends: Sequence[Send]) -> None:
        """Make one instruction of the sends of a packet."""
        transfers = packets.together(sends[0].transfer)
        assert [s.transfer for s in sends] == list(transfers), f"the sends of a packet are not one behind the other at {position}"
        outgoing = packets.sending_end(transfers)
        self._outgoing.append((position, outgoing))
        part = sends[0].part
        made_there = [s for s in sends if s.source in self._told and s.transfer.nbytes]
        for send in made_there:
            self._placed.setdefault(send.source, outgoing.place(send.transfer))
        if part is None:
            self._join(position, len(sends), outgoing.sender([s.source for s in sends], bool(made_there)), ALL, NO_SLOT)
        else:  # of a collective: these travel alone
            start = outgoing.sender([0])
            call = partial(send_part, lambda array: start([array]), part)
            self._code[position] = (call, (sends[0].source,), NO_SLOT, self._code[position][3])

    def _bind_receives(self, packets: Packets, position: int, receives: Sequence[Recv]) -> None:
        """Make one instruction of the receives of a packet."""
        transfers = [r.transfer for r in receives]
        wanted = packets.together(transfers[0])
        assert {t.index for t in transfers} == {t.index for t in wanted}, f"a packet's receives are not together at {position}"
        incoming = packets.receiving_end(transfers)
        given: dict[int, Transfer] = {}  # by slot: what somebody may keep
        for receive in receives:
            place = incoming.lend(receive.transfer)
            if place is not None and receive.target not in self.buffers.held:
                self._lent[receive.target] = place
            elif receive.target != NO_SLOT:
                given[receive.target] = receive.transfer
        incoming.give(list(given.values()))
        slots = tuple(given)
        self._join(position, len(receives), incoming.take, (), NO_SLOT if not slots else slots[0] if len(slots) == 1 else slots)

    def _join(self, position: int, count: int, call: Callable[..., Any], ins: tuple[int, ...], out: Any) -> None:
        """Have one instruction stand for several."""
        frees = tuple([slot for *_, slots in self._code[position : position + count] for slot in slots])
        self._code[position] = (call, ins, out, frees)
        for other in range(position + 1, position + count):
            self._code[other] = (joined, (), NO_SLOT, ())

    def _keep_what_stays(self) -> None:
        """Arrays of messages and of lanes are there in every step: nothing is to be dropped."""
        stay = self._lent.keys() | self.buffers.kept.keys() | self._placed.keys()
        for position, (call, ins, out, frees) in enumerate(self._code if stay else ()):
            if any([slot in stay for slot in frees]):
                self._code[position] = (call, ins, out, tuple([slot for slot in frees if slot not in stay]))

    def _produce_in_place(self) -> None:
        """Have the single ufuncs, and kernels with ``out``, whose results leave through windows write them there.

        Segments do that by themselves.
        """
        if not self._produced:
            return
        for position, instruction in enumerate(self.program.instructions):
            if isinstance(instruction, Run) and len(instruction.outputs) == 1 and instruction.outputs[0] in self._produced:
                signature = signature_of(instruction)
                if signature is not None:
                    ufunc, _, inputs = signature
                    call = Producing(getattr(np, ufunc), inputs, self._produced[instruction.outputs[0]])
                    self._code[position] = (call, *self._code[position][1:])
                elif instruction.device.type == "CPU" and instruction.op.definition.kernels["CPU"].takes_out:
                    kernel, *rest = self._code[position]
                    self._code[position] = (writing_into(kernel, self._produced[instruction.outputs[0]]), *rest)

    def _post(self) -> None:
        """Get everything ready that messages of the next step come into."""
        self._all_taken = False
        for array in self._made:
            array.begin()
        for incoming in self._incoming:
            incoming.post()

    def run(self, feeds: Mapping[int, Any], failure: Failure | None = None, block: Block | None = None) -> list[Any]:
        """One step, from its beginning to its end.

        Parameters
        ----------
        feeds : arrays by slot
        failure : the step has failed on this rank before it began (a feed that doesn't fit): only its messages are sent
        block : waits for what a kernel is blocked on

        Returns
        -------
        list : one value for each fetch, None where there is none

        Raises
        ------
        StepFailed
            If anything failed here, or elsewhere before what this rank waited for.
        """
        self._post()
        if failure is not None:
            self._end_dead(0)
            raise StepFailed(failure)
        lane = self._take_lane()
        try:
            values = lane.template.copy()
            for slot, value in feeds.items():
                values[slot] = value
            if lane.context is not None:
                lane.context.run(self._run_on, lane, values, block)
            else:
                with np.errstate(all="ignore"), blocking(block):
                    self._run_on(lane, values, block)
        finally:
            self._lanes.append(lane)
        return [None if slot == NO_SLOT else values[slot] for slot in self.program.fetches]

    def _run_on(self, lane: Lane, values: list[Any], block: Block | None) -> None:
        """Run all instructions; where one is blocked, wait."""
        index, pending = self._interpret(lane, values, 0, None)
        while pending is not None:
            self._block(block, lane.position(index), pending)
            index, pending = self._interpret(lane, values, index, pending)
        self._all_taken = not self._meets

    def start(self, feeds: Mapping[int, Any]) -> None:
        """Begin a step that `advance` carries on; the last one has ended."""
        self._index, self.blocked = 0, None
        self._post()
        self._lane = self._take_lane()
        values = self._values = self._lane.template.copy()
        for slot, value in feeds.items():
            values[slot] = value

    def advance(self) -> bool:
        """Carry the step on until its end (True), or until it is blocked on something (False), which has come when this is called again.

        Raises
        ------
        StepFailed
            As `run`. The step has ended then.
        """
        lane = self._lane
        assert lane is not None, "no step has been started"
        try:
            if lane.context is not None:
                self._index, self.blocked = lane.context.run(self._interpret, lane, self._values, self._index, self.blocked)
            else:
                with np.errstate(all="ignore"):
                    self._index, self.blocked = self._interpret(lane, self._values, self._index, self.blocked)
        except StepFailed:
            self._ended()
            raise
        if self.blocked is None:
            self._ended()
            self._all_taken = not self._meets
            return True
        return False

    def stop(self) -> None:
        """End a step that is blocked or couldn't be started, dead. What it waits for has been taken back or is a message."""
        position = 0 if self._lane is None else self._lane.position(self._index)
        self._ended()
        self._end_dead(position)

    def _ended(self) -> None:
        """Let go of what the step had."""
        if self._lane is not None:
            self._lanes.append(self._lane)
        self._lane, self._values, self.blocked = None, [], None

    def _interpret(self, lane: Lane, values: list[Any], index: int, pending: Pending | None) -> tuple[int, Pending | None]:
        """Run the lane's code from ``index`` on; the instruction there has ``pending`` as its result, if given.

        Returns
        -------
        Index of the instruction that is blocked and what it waits for, or the end and None
        """
        if self._gpu_constants and not lane.loaded:
            self._load(lane, values)
        calls = iter(lane.code)
        if index:
            calls.__setstate__(index)  # type: ignore[attr-defined]  # of a list's iterator: where it goes on
        try:
            if pending is not None:
                _, _, out, frees = next(calls)
                _store(values, out, pending.result(), frees)
            for call, ins, out, frees in calls:
                count = len(ins)
                if count == 2:  # most calls have few inputs; a list of them costs as much as a small kernel
                    a, b = ins
                    result = call(values[a], values[b])
                elif count == 1:
                    result = call(values[ins[0]])
                elif ins is ALL:
                    result = call(values)
                elif count == 0:
                    result = call()
                elif count == 3:
                    a, b, c = ins
                    result = call(values[a], values[b], values[c])
                else:
                    a, b, c, d = ins
                    result = call(values[a], values[b], values[c], values[d])
                if out.__class__ is int:
                    if out >= 0:
                        values[out] = result
                else:
                    for slot, item in zip(out, result, strict=True):
                        if slot >= 0:
                            values[slot] = item
                if frees:
                    for slot in frees:
                        values[slot] = None
        except Blocked as blocked:
            return _reached(lane, calls), blocked.pending
        except DeadTensor:
            self._end_dead(lane.position(_reached(lane, calls)))
            raise StepFailed(None) from None
        except Abandoned:
            raise
        except Exception as error:
            raise self._failed(error, lane.position(_reached(lane, calls))) from error
        except BaseException:  # the user has interrupted the step
            self._end_dead(lane.position(_reached(lane, calls)))
            raise
        return len(lane.code), None

    def _load(self, lane: Lane, values: list[Any]) -> None:
        """Copy constants to their GPUs, in the first step: the content of a large one may come after the program."""
        for slot, op, name, device in self._gpu_constants:
            try:
                if self._template[slot] is op.attrs["value"]:  # else an executor or a lane that shares it was first
                    self._template[slot] = device.from_host(op.attrs["value"])
            except Exception as error:
                self._end_dead(0)
                text = "".join(traceback.format_exception(error))
                raise StepFailed(Failure(op_error(error, op), op, name, text)) from error
            values[slot] = lane.template[slot] = self._template[slot]
        lane.loaded = True

    def _block(self, block: Block | None, position: int, pending: Pending) -> None:
        """Wait for ``pending``; if that is given up, the step ends dead."""
        try:
            if block is None:
                raise errors.UnimplementedError(f"nothing here can wait for {pending.describe()}.")
            block(pending)
        except Abandoned:
            raise
        except Exception as error:
            raise self._failed(error, position) from error
        except BaseException:
            self._end_dead(position)
            raise

    def _failed(self, error: Exception, position: int) -> StepFailed:
        failure = self._failure(error, position)
        self._end_dead(position)
        return StepFailed(failure)

    def pending(self) -> bool:
        """Whether messages of the last step are still under way to their receivers."""
        for _, outgoing in self._outgoing:  # noqa: SIM110 - a generator costs as much as a look
            if outgoing.pending():
                return True
        return False

    def _end_dead(self, position: int) -> None:
        """Send what the plan promises from ``position`` on as dead tensors."""
        for started_at, outgoing in self._outgoing:
            if started_at >= position:
                outgoing.send_dead()

    def drained(self) -> bool:
        """Whether all messages to this rank have come, also those that a failed step didn't take. The next step can't begin before."""
        return self._all_taken or all([incoming.drained() for incoming in self._incoming])

    def idle(self) -> bool:
        """Whether no message of the last step is under way, to this rank or from it."""
        return self.drained() and not self.pending()

    def drain(self) -> None:
        """After a failed step: wait until all messages to this rank have come."""
        for incoming in self._incoming:
            incoming.drain()

    def _failure(self, error: Exception, position: int) -> Failure:
        instruction = self.program.instructions[position]
        op: Operation | None = None
        device: DeviceName | None = None
        if isinstance(instruction, Run):
            op, device = instruction.op, instruction.device
        elif isinstance(instruction, Read):
            op = instruction.op
        elif isinstance(instruction, Move):
            op = instruction.tensor.op
        elif isinstance(instruction, Fold | Meet):
            op = instruction.op
        elif isinstance(instruction, Send | Recv):
            op = instruction.transfer.op
            if isinstance(error, errors.OpError) and error.op is not None:
                op = error.op  # of another tensor of the same packet
        return Failure(op_error(error, op), op, device, "".join(traceback.format_exception(error)))


def _reached(lane: Lane, calls: Iterator[object]) -> int:
    """Index of the instruction that the loop over ``calls`` was at: counting in the loop would cost every call."""
    return len(lane.code) - 1 - length_hint(calls)


def _where_to_glance(program: Program) -> list[int]:
    """Positions behind operations that may take more than some microseconds, as far as sizes tell, or behind so many small ones."""
    found, work = [], 0
    for position, instruction in enumerate(program.instructions):
        if isinstance(instruction, Run):
            tensors = [t for t in (*instruction.op.inputs, *instruction.op.outputs) if not is_state(t)]
            sizes = [message_nbytes(t.dtype, t.static_shape) for t in tensors]
            work += _MANY if any([nbytes is None or nbytes >= _LARGE_NBYTES for nbytes in sizes]) else 1
            if work >= _MANY:
                found.append(position)
                work = 0
    return found


def _unbound() -> None:
    raise AssertionError("a message that no executor has bound")


def _store(values: list[Any], out: Any, result: Any, frees: tuple[int, ...]) -> None:
    for slot, item in [(out, result)] if isinstance(out, int) else zip(out, result, strict=True):
        if slot >= 0:
            values[slot] = item
    for slot in frees:
        values[slot] = None


__all__ = ["Executor", "Failure", "KernelContext", "Recv", "SessionState", "StepFailed", "op_error"]
