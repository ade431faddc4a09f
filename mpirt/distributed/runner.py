"""What a session runs its steps by: one interface for all run modes, and the deadline that a step may have.

A session checks what it is given and shapes the result; between the two stands a ``Runner``: ``collective_session`` for
sessions that every rank makes, ``master_session`` for those on servers and of one process. What both keep is here too.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpirt import errors
from mpirt.compiler.placer import DeviceName, Inventory, PlacementRules, place
from mpirt.compiler.program import WORD_NBYTES, Program, path_of
from mpirt.graph.graph import Graph, Operation, Tensor

Leaves = tuple[Tensor | Operation, ...]  # what is fetched, flat, each once

_NO_TIME_LEFT_S = 1e-6


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a step must have ended, because its user allows no more time.

    Attributes
    ----------
    end : in seconds of ``time.perf_counter``
    timeout_s : what the user allowed
    """

    end: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """The deadline ``timeout_s`` from now."""
        return cls(time.perf_counter() + timeout_s, timeout_s)

    @property
    def remaining_s(self) -> float:
        """Seconds left; once it is over a very small number, never 0, which means "for ever" to ``wait_until``."""
        return max(self.end - time.perf_counter(), _NO_TIME_LEFT_S)

    def exceeded(self, what: str) -> errors.DeadlineExceededError:
        """The user's error for a step that was still waiting for ``what``."""
        return errors.DeadlineExceededError(
            f"the step did not end within its timeout of {self.timeout_s:g} s; it was waiting for {what}.",
            hint="find out what the other side does meanwhile, or allow more time (operation_timeout_in_ms of the session's"
            " config, timeout_in_ms of RunOptions).",
        )


class Runner(Protocol):
    """Runs the steps of one session. Its methods may be called from several threads at once."""

    @property
    def num_signatures(self) -> int:
        """How many different steps have been compiled."""

    def run(self, leaves: Leaves, feeds: dict[Tensor, Any], deadline: Deadline | None) -> list[Any]:
        """One step.

        Parameters
        ----------
        leaves : what to fetch, at least one
        feeds : values as the user gave them
        deadline : None for as long as it takes

        Returns
        -------
        list : values of ``leaves`` as the user gets them (see ``results``), None where there is none

        Raises
        ------
        RuntimeError
            If the runner is closed.
        TypeError, ValueError, OpError
            The user's error: a feed that doesn't fit, or what failed, wherever that was.
        """

    def placement(self) -> dict[Operation, DeviceName]:
        """Device of every operation of the graph; those of steps that have run have the place they ran in.

        Raises
        ------
        InvalidArgumentError
            If an operation can't be placed.
        """

    def traffic(self, leaves: Leaves, feed_keys: Collection[Tensor]) -> dict[str, int]:
        """``messages`` that cross ranks in one step of a signature that has run, ``nbytes`` in them, ``window_nbytes`` in shared
        memory; unknown sizes count as 0.

        Raises
        ------
        FailedPreconditionError
            If it has not run.
        """

    def close(self) -> None:
        """Free what the session holds, once the step under way is over. Closing again does nothing."""


class Places:
    """Where the operations of a session's steps were placed: they stay there, with their state.

    Attributes
    ----------
    known : devices of all operations that steps have had
    pinned : of those with state, which later steps find there
    """

    def __init__(self) -> None:
        self.known: dict[Operation, DeviceName] = {}
        self.pinned: dict[Operation, DeviceName] = {}

    def add(self, placement: Mapping[Operation, DeviceName]) -> None:
        """Note the placement of a new step."""
        self.known.update(placement)
        self.pinned.update((op, device) for op, device in placement.items() if op.definition.stateful)

    def of(self, graph: Graph, inventory: Inventory, rules: PlacementRules) -> dict[Operation, DeviceName]:
        """Device of every operation of ``graph``; see ``Runner.placement``."""
        return {**place(graph, graph.get_operations(), inventory, rules, self.pinned), **self.known}


def traffic_of(program: Program, memory: Sequence[int]) -> dict[str, int]:
    """Messages and bytes of one step, over all ranks; see ``Runner.traffic``. ``memory`` is the transport's."""
    messages = [t for t in program.transfers if not t.on_board]
    packets = [packet for packet in program.packets if not packet[0].on_board]
    in_windows = [path_of(t, memory).window for t in messages]
    sizes = [t.nbytes or 0 for t in messages]
    on_boards = sum(t.nbytes or 0 for t in program.transfers if t.on_board)
    return {
        "messages": len(sizes) - sum(len(packet) - 1 for packet in packets),
        "nbytes": sum(WORD_NBYTES if window else nbytes for nbytes, window in zip(sizes, in_windows, strict=True)),
        "window_nbytes": on_boards + sum(nbytes for nbytes, window in zip(sizes, in_windows, strict=True) if window),
    }


def closed_error() -> RuntimeError:
    """The error of whoever runs a closed session."""
    return RuntimeError("Attempted to use a closed Session.")


def not_run_error() -> errors.FailedPreconditionError:
    """The error of whoever asks about a signature that has not run."""
    return errors.FailedPreconditionError("this signature has not run in this session yet.", hint="run it once first.")
