"""Open device blocks: what they ask for together, and the device a new operation gets.

Strings and specs merge field by field, what is further in wins; None is a barrier; a function sees what is further in and
its result replaces that. Source: TensorFlow 1 as observed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpirt.cluster import device_spec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.graph.user_code import UserFrames

if TYPE_CHECKING:
    from mpirt.graph.operation import Operation

DeviceFunction = Callable[["Operation"], Any]


class DeviceScope:
    """One open device block, linked to the one outside it.

    ``folded`` is the merge of all blocks from here to the barrier, None if a function is among them. ``inside`` are the blocks
    that were opened in this one by name: in a loop they are opened again and again. ``passed`` is the check that ``folded`` has
    passed, if any.
    """

    __slots__ = ("parent", "spec", "function", "barrier", "folded", "inside", "passed")

    def __init__(self, parent: DeviceScope | None, spec: str = "", function: DeviceFunction | None = None, barrier: bool = False) -> None:
        self.parent = parent
        self.spec = spec
        self.function = function
        self.barrier = barrier
        self.inside: dict[str, DeviceScope] = {}
        self.passed: Callable[[str], None] | None = None
        outer = parent.folded if parent is not None else ""
        self.folded: str | None
        if barrier:
            self.folded = ""
        elif function is not None or outer is None:
            self.folded = None
        else:
            self.folded = merge_devices(outer, spec)


def apply_device(op: Operation, scope: DeviceScope | None) -> None:
    """Give a new operation the device that the open blocks ask for."""
    if scope is None:
        return
    if scope.folded is not None:
        op.device = scope.folded
        return
    while scope is not None and not scope.barrier:
        if scope.function is not None:
            op.device = _function_result(scope.function, op)
        else:
            op.device = merge_devices(scope.spec, op.device)
        scope = scope.parent
    if _device_check is not None:
        _device_check(op.device)


def enter_device(outer: DeviceScope | None, device: Any, outermost: dict[str, DeviceScope]) -> DeviceScope:
    """The scope that a `device` block opens inside ``outer``; checks the request at the user's line.

    ``outermost`` are those of the graph that are inside no other.
    """
    if device.__class__ is str:
        known = outermost if outer is None else outer.inside
        scope = known.get(device)
        if scope is None:
            scope = known[device] = DeviceScope(outer, spec=device_spec.parse(device).to_string())
        _check(scope)
        return scope
    if device is None:
        return DeviceScope(outer, barrier=True)
    if callable(device) and not isinstance(device, (str, DeviceSpec)):
        return DeviceScope(outer, function=device)
    if not isinstance(device, (str, DeviceSpec)):
        raise TypeError(f"a device is a string, a DeviceSpec, a function or None, not {device!r}.")
    scope = DeviceScope(outer, spec=device_spec.parse(device).to_string() if isinstance(device, str) else device.to_string())
    _check(scope)
    return scope


def _check(scope: DeviceScope) -> None:
    """What the cluster says of a request depends on nothing else, so it is asked once."""
    if scope.passed is not _device_check and scope.folded and _device_check is not None:
        _device_check(scope.folded)
        scope.passed = _device_check


def merge_devices(outer: str, inner: str) -> str:
    """``outer`` with ``inner`` put over it, field by field; warns once where a task leaks into another job."""
    if not outer:
        return inner
    if not inner:
        return outer
    if device_spec.leaks_task(outer, inner) and not _leak.warned:
        _leak.warned = True
        merged = device_spec.merge(outer, inner)
        frames = UserFrames().find()
        warnings.warn(
            f"device {inner!r} inside {outer!r} keeps the outer task: operations go to {merged!r}"
            f" ({frames[0][0]}:{frames[0][1]}). Name the task too, or open the block outside, if that isn't meant."
            if frames
            else f"device {inner!r} inside {outer!r} keeps the outer task: operations go to {merged!r}.",
            stacklevel=5,
        )
    return device_spec.merge(outer, inner)


class _Leak:
    """Whether the warning about a leaked task was given (once a process)."""

    warned = False


_leak = _Leak()


def _function_result(function: DeviceFunction, op: Operation) -> str:
    result = function(op)
    if isinstance(result, DeviceSpec):
        return result.to_string()
    if not isinstance(result, str):
        name = getattr(function, "__name__", function)
        raise TypeError(f"device function {name!r} returned {result!r} for {op.name!r}; it must return a string.")
    return device_spec.parse(result).to_string()


_device_check: Callable[[str], None] | None = None


def set_device_check(check: Callable[[str], None] | None) -> None:
    """Have each device that is asked for checked at the user's line, once the cluster is known."""
    global _device_check
    _device_check = check
