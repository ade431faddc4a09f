"""METG(50 %): the smallest mean task time at which at least half of the machine's peak rate is reached.

A sweep over grains gives, for each time ``kernel_s`` that a task computes, the time ``task_s`` that it takes a core on average
(wall time x cores / tasks). Half of the peak is reached where ``task_s = 2 kernel_s``. Between two grains ``task_s`` is taken as
a straight line, which is exact for a fixed cost per task: with a cost of c the METG is 2 c.
After Slaughter et al., SC 2020, section IV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HALF = 0.5


@dataclass(frozen=True, slots=True)
class Point:
    """One grain of a sweep."""

    kernel_s: float
    task_s: float

    @property
    def efficiency(self) -> float:
        """Share of the peak rate."""
        return self.kernel_s / self.task_s


def metg(points: Sequence[Point], efficiency: float = HALF) -> float:
    """Seconds of the smallest mean task time that reaches ``efficiency``; nan if none does."""
    sweep = sorted(points, key=lambda p: p.kernel_s)
    first = next((i for i, point in enumerate(sweep) if point.efficiency >= efficiency), None)
    if first is None:
        return float("nan")
    if first == 0:
        return sweep[0].task_s
    low, high = sweep[first - 1], sweep[first]
    # How much too long a task takes, and by how much it is short enough: the answer is where that is 0.
    over, under = low.task_s - low.kernel_s / efficiency, high.kernel_s / efficiency - high.task_s
    return low.task_s + over / (over + under) * (high.task_s - low.task_s)


def geometric_mean(values: npt.ArrayLike) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))
