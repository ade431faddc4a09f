"""Instructions as bound calls: all that is known before a step is bound once.

A call gets the values of up to `_MOST_INPUTS` slots, or all slots (`ALL`) and picks its own.
Neighbours: ``segments`` (calls that run as one), ``packets`` and ``windows`` (messages), ``folding`` (collectives).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from types import FunctionType, MethodType
from typing import Any, Protocol

from mpirt.cluster.task import Task
from mpirt.compiler.exchange import Part
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.program import HOST, NO_SLOT, Move, Run, is_state
from mpirt.graph.graph import Operation
from mpirt.runtime.device import Device
from mpirt.runtime.folding import part_of

Instruction = tuple[Callable[..., Any], tuple[int, ...], Any, tuple[int, ...]]  # function, slots in, slots out, slots to drop
ALL: tuple[int, ...] = (-1,) * 9  # in place of the slots of inputs: the function gets all slots
_MOST_INPUTS = 4  # that the loop gives to a call one by one

Devices = Mapping[tuple[Task, str], Device]  # by task and local name, "CPU:0"


class State(Protocol):
    """What is asked of a session: see ``executor.SessionState``."""

    devices: Devices

    def context(self, op: Operation, device: DeviceName) -> Any:
        """The kernel context of ``op``."""


def kernel_call(run: Run, state: State) -> Callable[..., Any]:
    """The kernel of an operation with all that is known now bound to it."""
    kernel = run.op.definition.kernels[run.device.type]
    device = state.devices[run.device.task, run.device.local]
    call: Callable[..., Any]
    if kernel.direct:
        call = getattr(device.xp, kernel.direct)
    else:
        assert kernel.function is not None
        attrs = {name: run.op.attrs[name] for name in kernel.attrs}
        if kernel.takes_out:
            attrs["out"] = None
        call = _with_attributes(kernel.function, attrs)
        # A method costs no more than a function; `partial` with keywords costs as much as a small kernel.
        call = MethodType(call, state.context(run.op, run.device))
    return device.bound(call)


def writing_to(call: Any, out: Any) -> Callable[..., Any]:
    """``call``, of a kernel that takes an ``out``, with that array."""
    return MethodType(_with_attributes(call.__func__, {"out": out}), call.__self__)


def writing_into(call: Any, lend: Callable[[], Any]) -> Callable[..., Any]:
    """``call``, of a kernel that takes an ``out``, with the array that ``lend`` gives each time. Binding it again is fine."""
    kernel = call.args[0] if isinstance(call, partial) and call.func is _with_out else call
    return partial(_with_out, kernel, lend)


def _with_out(kernel: Any, lend: Callable[[], Any], *operands: Any) -> Any:
    return kernel.__func__(kernel.__self__, *operands, out=lend())


def out_of(run: Run) -> int | tuple[int, ...]:
    """Where results go: one slot if the kernel returns one array, else a slot for each."""
    outputs = run.op.definition.outputs
    if not outputs:
        return NO_SLOT
    return run.outputs[0] if len(outputs) == 1 and not outputs[0].is_list else run.outputs


def read(cell: Any) -> Any:
    """The value of a variable."""
    return cell.read()


def move_call(move: Move, state: State) -> Callable[..., Any]:
    """The copy between host memory and a GPU's."""
    assert HOST in (move.from_space, move.to_space) and not is_state(move.tensor) or move.tensor.dtype.is_ref
    space = move.to_space if move.from_space == HOST else move.from_space
    device = next(d for (task, local), d in state.devices.items() if f"{task}/device:{local}" == space)
    return device.from_host if move.from_space == HOST else device.to_host


def send_part(send: Callable[[Any], None], part: Part, array: Any) -> None:
    """Send some elements of ``array``."""
    send(part_of(array, part))


def spread(instruction: Instruction) -> Instruction:
    """With a call of many inputs as one of all slots."""
    call, inputs, out, frees = instruction
    if len(inputs) <= _MOST_INPUTS or inputs is ALL:
        return instruction
    pick = itemgetter(*inputs)
    return lambda values: call(*pick(values)), ALL, out, frees


def _with_attributes(function: Callable[..., Any], attrs: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of a kernel with its attributes bound to it."""
    if not attrs:
        return function
    if not isinstance(function, FunctionType) or not attrs.keys() <= _keywords_of(function):
        return partial(function, **attrs)
    bound = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    bound.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **attrs}
    return bound


def _keywords_of(function: FunctionType) -> frozenset[str]:
    """The arguments of a function that can only be given by name."""
    code = function.__code__
    return frozenset(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
