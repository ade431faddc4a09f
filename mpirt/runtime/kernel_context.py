"""What a kernel sees beside its inputs: its state, its random numbers, the bodies of its operation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from mpirt import errors
from mpirt.compiler.placer import DeviceName
from mpirt.graph.function import Function
from mpirt.graph.graph import Operation
from mpirt.runtime.failures import StepFailed
from mpirt.runtime.resources import ResourceManager


class State(Protocol):
    """What is asked of a session: see ``executor.SessionState``."""

    resources: ResourceManager
    private: ResourceManager

    def body(self, body: Function, device: DeviceName) -> Callable[[Sequence[Any]], list[Any]]:
        """The function of arrays that ``body`` is on ``device``."""


class KernelContext:
    """What a kernel sees beside its inputs; kept for the life of a session, so state goes on between signatures."""

    def __init__(self, op: Operation, device: DeviceName, xp: ModuleType, state: State) -> None:
        self.op = op
        self.xp = xp
        self._device = device
        self._state = state
        self._executions = itertools.count()
        self._entropy: list[int] | None = None
        self._resource: Any = None
        self._resources: ResourceManager | None = None  # where it was looked up
        self._generation = -1  # of the resources when this one was looked up

    def resource(self, factory: Callable[[str], Any], private: bool = False) -> Any:
        """The state of this op on its task; see ``graph.op_def.KernelContext``."""
        resources = self._resources
        if resources is not None and self._generation == resources.generation:
            return self._resource
        attrs = self.op.attrs
        shared_name = attrs.get("shared_name")
        resources = self._resources = self._state.private if private and not shared_name else self._state.resources
        generation, name = resources.generation, shared_name or self.op.qualified_name
        self._resource = resources.lookup_or_create(self._device.task, attrs.get("container", ""), name, factory)
        self._generation = generation
        return self._resource

    def rng(self, seed: int, seed2: int) -> np.random.Generator:
        """Stream of this execution: Philox keyed by the seeds, counted by the executions of this op."""
        key = [seed, seed2]
        if not seed and not seed2:
            if self._entropy is None:
                self._entropy = np.random.SeedSequence().generate_state(2, np.uint64).view(np.int64).tolist()
            key = self._entropy
        counter = [0, 0, 0, next(self._executions)]
        return np.random.Generator(np.random.Philox(key=np.array(key, np.int64).view(np.uint64), counter=counter))

    def run(self, body: Function, inputs: Sequence[Any]) -> list[Any]:
        """Outputs of a body for ``inputs``; see ``graph.op_def.KernelContext``.

        Raises
        ------
        OpError
            If an operation inside failed: its error, with this op's name added.
        """
        try:
            return self._state.body(body, self._device)(inputs)
        except StepFailed as failed:
            assert failed.failure is not None
            error = failed.failure.error
            assert isinstance(error, errors.OpError)
            text = f"{error.message}\n  inside {body.name!r}, a body of {self.op.name!r} ({self.op.type})"
            text += f" at {self.op.location}." if self.op.location else "."
            raise type(error)(text, op=error.op, hint=error.hint, origin=error.origin) from failed.__cause__
