"""Graphs that more than one line of the suite measures, built with any package that has TensorFlow 1's functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CROSSINGS_PER_1000 = 10


def two_chains(tf: Any, x: Any, operations: int, devices: Sequence[str]) -> list[Any]:
    """Ends of two chains of multiply and add on two devices, with 10 tensors that cross in each thousand operations.

    Parameters
    ----------
    tf : mpirt or tensorflow.compat.v1
    x : a tensor that both need
    operations : how many in all
    """
    ends = [x, x]
    for number in range(operations // 4):
        crossing = number % (1000 // CROSSINGS_PER_1000 // 2) == 0
        for task, device in enumerate(devices):
            other = ends[1 - task] if crossing else x
            with tf.device(device):
                ends[task] = tf.add(tf.multiply(ends[task], other), x)
    return ends


def stencil(tf: Any, start: Sequence[Any], rows: int, devices: Sequence[str]) -> list[Any]:
    """The last of ``rows`` rows of a periodic stencil: each point adds up itself and its two neighbours in the row before.

    ``start`` has a tensor for each point; point p is on ``devices[p]``.
    """
    points = list(start)
    count = len(points)
    for _ in range(rows):
        row = []
        for point, device in enumerate(devices):
            with tf.device(device):
                row.append(tf.add_n([points[point - 1], points[point], points[(point + 1) % count]]))
        points = row
    return points
