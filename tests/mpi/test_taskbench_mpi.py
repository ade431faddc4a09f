"""The Task-Bench-style line of the suite under mpirun: every contestant computes the serial answer, and a wrong one is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mpirt as tf

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))

pytestmark = pytest.mark.one_mpi


@pytest.fixture
def taskbench() -> Iterator[Any]:
    """The line, with its operation type."""
    tf.cluster({"worker": 2})
    import taskbench

    from mpirt.graph.op_def import op_types

    if "BenchmarkTask" not in op_types():
        taskbench.register_task()
    yield taskbench


@pytest.mark.ranks([2])
def test_every_contestant_runs_every_pattern_with_the_serial_answer(taskbench: Any) -> None:
    from mpi4py import MPI

    for pattern in taskbench.PATTERNS:
        for width in (2, 5):
            case = taskbench.Case(MPI.COMM_WORLD, taskbench.TaskGraph(pattern, width, 9))  # runs each, and checks
            for name in (*case.contestants, taskbench.LIMIT):
                case.wall(name, 1, repeats=2)  # again: buffers of the run before are used again
            case.close()


@pytest.mark.ranks([2])
@pytest.mark.parametrize("planted", ["lost", "added"])
def test_a_wrong_dependence_in_any_contestant_is_found(taskbench: Any, planted: str) -> None:
    import taskbench_hand
    from mpi4py import MPI

    @dataclass(frozen=True, slots=True)
    class Wrong(taskbench.TaskGraph):  # type: ignore[misc, name-defined]
        def inputs(self, step: int, point: int) -> tuple[int, ...]:
            right = super(Wrong, self).inputs(step, point)
            if (step, point) not in ((4, 1), (4, 2)):  # one on each rank
                return right
            return right[1:] if planted == "lost" else (0, 1, 2, 3)

    wrong = Wrong("stencil_1d", 4, 8)
    case = taskbench.Case(MPI.COMM_WORLD, taskbench.TaskGraph("stencil_1d", 4, 8))
    for name, make in (
        (taskbench.MPIRT, lambda: taskbench.Mpirt(wrong)),
        (taskbench.PER_DEPENDENCE, lambda: taskbench_hand.MessagePerDependence(MPI.COMM_WORLD, wrong)),
        (taskbench.PACKED, lambda: taskbench_hand.PackedPersistent(MPI.COMM_WORLD, wrong)),
    ):
        case.contestants[name].close()
        case.contestants[name] = make()
        with pytest.raises(AssertionError, match=f"{name}: wrong checksum of the tasks of rank {MPI.COMM_WORLD.rank} in "):
            case.wall(name, 0)
    case.close()
