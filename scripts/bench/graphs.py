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


def tree_sum(tf: Any, leaves: Sequence[Any], devices: Sequence[str]) -> list[Any]:
    """The sum of all ``leaves`` on every device: added up pairwise towards the first device, then handed back the same way."""
    sums, distance = list(leaves), 1
    while distance < len(sums):
        for point in range(0, len(sums) - distance, 2 * distance):
            with tf.device(devices[point]):
                sums[point] = tf.add(sums[point], sums[point + distance])
        distance *= 2
    while distance > 1:
        distance //= 2
        for point in range(0, len(sums) - distance, 2 * distance):
            with tf.device(devices[point + distance]):
                sums[point + distance] = tf.identity(sums[point])
    return sums


def digits(tf: Any, servers: Sequence[str], workers: Sequence[str], batch: int, layers: Sequence[int] = (64, 256, 128, 10)) -> Any:
    """One synchronous training step of the digits' network: variables on ``servers`` in turn, a batch on each of ``workers``."""
    variables = []
    for number, (rows, columns) in enumerate(zip(layers[:-1], layers[1:], strict=True)):
        for place, shape in enumerate(([rows, columns], [columns])):
            with tf.device(servers[(2 * number + place) % len(servers)]):
                variables.append(tf.Variable(tf.fill(shape, 0.01)))
    gradients = []
    for worker in workers:
        with tf.device(worker):
            hidden = tf.Variable(tf.fill([batch, layers[0]], 0.5), trainable=False)
            labels = tf.Variable(tf.fill([batch, layers[-1]], 1.0 / layers[-1]), trainable=False)
            for weights, biases in zip(variables[::2], variables[1::2], strict=True):
                hidden = tf.matmul(tf.nn.relu(hidden), weights) + biases
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=hidden))
            gradients.append(tf.gradients(loss, variables))
    means = []
    for variable, each in zip(variables, zip(*gradients, strict=True), strict=True):
        with tf.device(variable.device):
            means.append((tf.multiply(tf.add_n(list(each)), 1.0 / len(workers)), variable))
    return tf.train.MomentumOptimizer(0.05, 0.9).apply_gradients(means)
