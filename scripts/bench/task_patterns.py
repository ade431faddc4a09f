"""Task graphs in the style of Task Bench: who reads whose output, and the work that every contestant does alike.

A graph is a rectangle of ``steps`` rows (timesteps) and ``width`` points; a task may read outputs of the row before only. A row
may be narrower; what would be read outside the row before is left out. The model is that of Slaughter et al., "Task Bench: A
Parameterized Benchmark for Evaluating Parallel Runtime Performance", SC 2020; written anew, so its results are not Task Bench's.

Every task's output is a checksum of its place and its inputs, in their order: a lost, stale or wrong input changes it and all
that follows from it. A rank keeps the sum (xor) of all checksums that it made, so that each measured run is checked whole.
Owns: the patterns, the work, the serial answer. No MPI and no mpirt in here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

PATTERNS = (
    "trivial", "no_comm", "stencil_1d", "stencil_1d_periodic", "dom", "tree", "fft", "nearest", "spread", "random_nearest", "all_to_all",
)  # fmt: skip
RADIX = 5  # inputs of nearest and spread, at most of random_nearest
PERIOD = 3  # rows after which spread and random_nearest repeat
CONNECTED = 0.25  # share of the possible inputs that random_nearest has, beside a task's own point
WORDS = 2  # a task's output: 16 bytes

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """One task graph."""

    pattern: str
    width: int
    steps: int

    def points(self, step: int) -> range:
        """The tasks of a row."""
        width, steps = self.width, self.steps
        if self.pattern == "dom":  # a wave that enters at point 0 and leaves at the last one
            first = max(0, step + width - steps)
            return range(first, first + min(width, step + 1, steps - step))
        if self.pattern == "tree":
            return range(min(width, 1 << min(step, 30)))
        return range(width)

    def inputs(self, step: int, point: int) -> tuple[int, ...]:
        """Points of the row before whose outputs a task reads, in order."""
        if step == 0:
            return ()
        before = self.points(step - 1)
        return tuple(q for q in sorted(set(self._sources(step, point))) if q in before)

    def _sources(self, step: int, point: int) -> list[int]:
        width, half = self.width, RADIX // 2
        match self.pattern:
            case "trivial":
                return []
            case "no_comm":
                return [point]
            case "stencil_1d":
                return [point - 1, point, point + 1]
            case "stencil_1d_periodic":
                return [(point - 1) % width, point, (point + 1) % width]
            case "dom":
                return [point - 1, point]
            case "tree":
                return [point // 2]
            case "fft":
                levels = max(1, (width - 1).bit_length())
                stride = 1 << (step + levels - 1) % levels
                return [point - stride, point, point + stride]
            case "nearest":
                return list(range(point - half, point + half + 1))
            case "spread":
                row = step % PERIOD
                return [(point + i * width // RADIX + (row if i else 0)) % width for i in range(RADIX)]
            case "random_nearest":
                row = step % PERIOD
                near = range(point - half, point + half + 1)
                return [q for q in near if q == point or random.Random(f"{row} {q} {point}").random() < CONNECTED]
            case "all_to_all":
                return list(range(width))
        raise ValueError(f"no pattern {self.pattern!r}; there are {', '.join(PATTERNS)}.")

    @property
    def num_tasks(self) -> int:
        """Of all rows."""
        return sum(len(self.points(step)) for step in range(self.steps))

    def rank_of(self, point: int, ranks: int) -> int:
        """Points are dealt out in blocks."""
        return point * ranks // self.width


def key_of(step: int, point: int) -> int:
    """What a task's checksum starts from: no two tasks have the same."""
    return ((step << 20) + point + 1) * 0x9E3779B97F4A7C15 & _MASK


_MASK = (1 << 60) - 1
_FACTOR = 0x9E3779B1  # odd, so that two different inputs never give the same checksum

_state = np.full(64, 2.0)
_scale, _shift = np.full(64, 0.5), np.ones(64)  # 2 stays 2: neither overflow nor denormals, and nothing to fold away


class Ledger:
    """What this process's tasks are to do, and what they have done."""

    iterations = 0  # of the kernel, in each task
    checksum = 0  # of all tasks since it was set to 0


ledger = Ledger()


def kernel(iterations: int) -> None:
    """Multiply and add in place over 64 numbers that stay in the cache."""
    multiply, add, state, scale, shift = np.multiply, np.add, _state, _scale, _shift
    for _ in repeat(None, iterations):
        multiply(state, scale, state)
        add(state, shift, state)


def run_task(key: int, inputs: Sequence[Array], out: Array) -> Array:
    """One task: the kernel, and the checksum of ``inputs`` into ``out``."""
    check = key
    for array in inputs:
        check = (check ^ array.item(0)) * _FACTOR & _MASK
    out[0] = check
    book = ledger
    book.checksum ^= check
    if book.iterations:
        kernel(book.iterations)
    return out


def reference(graph: TaskGraph) -> dict[tuple[int, int], int]:
    """The checksum of each task (step, point), computed one after the other."""
    checks: dict[tuple[int, int], int] = {}
    for step in range(graph.steps):
        for point in graph.points(step):
            check = key_of(step, point)
            for q in graph.inputs(step, point):
                check = (check ^ checks[step - 1, q]) * _FACTOR & _MASK
            checks[step, point] = check
    return checks


def checksum(checks: dict[tuple[int, int], int], points: Sequence[int] | range) -> int:
    """What a ledger has when all tasks of ``points`` have run."""
    total = 0
    for (_, point), check in checks.items():
        if point in points:
            total ^= check
    return total


class Serial:
    """All tasks one after the other in one process: what the work costs if nothing has to be passed on."""

    def __init__(self, graph: TaskGraph) -> None:
        rows = np.zeros((2, graph.width, WORDS), np.uint64)
        self._tasks = [
            (key_of(step, p), [rows[(step - 1) % 2, q] for q in graph.inputs(step, p)], rows[step % 2, p])
            for step in range(graph.steps)
            for p in graph.points(step)
        ]

    def run(self) -> None:
        """Run all tasks."""
        for key, inputs, out in self._tasks:
            run_task(key, inputs, out)
