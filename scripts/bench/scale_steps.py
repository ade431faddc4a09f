"""The steps that `scale.py` predicts: those that are checked on the ranks at hand, and those of many more ranks on paper.

Each is a function from the names of tasks to the fetch of a step, which ends on the first task. Their inputs are variables, so
nothing is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from graphs import digits, stencil, tree_sum
from task_patterns import TaskGraph, key_of, ledger
from taskbench import register_task

import mpirt as tf
from mpirt.ops.apply import apply_op

Build = Callable[[Sequence[str]], Any]

PATTERN_STEPS, GRAIN = 20, 16  # rows of a pattern; iterations of each task's kernel, about 10 us
DIGITS, MLP = (64, 256, 128, 10), (784, 1024, 1024, 10)

_register_once = cache(register_task)


def task_names(count: int) -> list[str]:
    return [f"/job:worker/task:{number}" for number in range(count)]


def edge_step(devices: Sequence[str], floats: int) -> Any:
    """A tensor from the first task to the last and its answer back, as the line `edge` has it."""
    with tf.device(devices[0]):
        there = tf.add(tf.Variable(tf.fill([floats], np.float32(1.0))), 1.0)
    with tf.device(devices[-1]):
        back = tf.add(there, 1.0)
    return _all([back], devices)


def ring_step(devices: Sequence[str], floats: int) -> Any:
    """A tensor that goes round all tasks four times."""
    with tf.device(devices[0]):
        value = tf.Variable(tf.fill([floats], np.float32(1.0)))
    for device in [*devices[1:], devices[0]] * 4:
        with tf.device(device):
            value = tf.add(value, 1.0)
    return value.op


def stencil_step(devices: Sequence[str], side: int) -> Any:
    """Four rows of a stencil over matrices, each with a product of its own."""
    ends = []
    for device in devices:
        with tf.device(device):
            ends.append(tf.Variable(tf.fill([side, side], np.float32(0.01))))
    for _ in range(4):
        products = []
        for device, end in zip(devices, ends, strict=True):
            with tf.device(device):
                products.append(tf.matmul(end, end))
        ends = stencil(tf, products, 1, devices)
    return _all(ends, devices)


def tree_step(devices: Sequence[str], floats: int) -> Any:
    """An all-reduce of ordinary operations."""
    leaves = []
    for device in devices:
        with tf.device(device):
            leaves.append(tf.Variable(tf.fill([floats], np.float32(1.0))))
    return _all(tree_sum(tf, leaves, devices), devices)


def pattern_step(devices: Sequence[str], pattern: str, width: int) -> Any:
    """A Task-Bench-style pattern, as the line `taskbench` has it."""
    _register_once()
    ledger.iterations = GRAIN
    graph = TaskGraph(pattern, width, PATTERN_STEPS)
    row: dict[int, Any] = {}
    done: list[list[Any]] = [[] for _ in devices]
    for step in range(graph.steps):
        before, row = row, {}
        for point in graph.points(step):
            rank = graph.rank_of(point, len(devices))
            inputs = [before[q] for q in graph.inputs(step, point)]
            with tf.device(devices[rank]):
                row[point] = apply_op("BenchmarkTask", inputs, key=key_of(step, point), N=len(inputs), name=f"t{step}_{point}")
            done[rank].append(row[point].op)
    ends = []
    for device, ops in zip(devices, done, strict=True):
        with tf.device(device), tf.control_dependencies(ops):
            ends.append(tf.no_op())
    with tf.device(devices[0]):
        return tf.group(ends)


def reduce_step(devices: Sequence[str], floats: int) -> Any:
    """A collective all_reduce."""
    tensors = []
    for device in devices:
        with tf.device(device):
            tensors.append(tf.add(tf.Variable(tf.fill([floats], np.float32(1.0))), 1.0))
    return _all(tf.collective.all_reduce(tensors, "sum"), devices)


def sync_step(devices: Sequence[str], layers: Sequence[int], batch: int) -> Any:
    """A synchronous training step: parameters on every 32nd task, at least two, workers on the others, or on all of few."""
    servers = devices[: max(2, len(devices) // 32)]
    return digits(tf, servers, devices if len(devices) <= 4 else devices[len(servers) :], batch, layers)


def all_reduce_step(devices: Sequence[str], layers: Sequence[int], batch: int) -> Any:
    """A training step with a replica on each task, whose gradients are averaged by collectives."""
    replicas, gradients = [], []
    for device in devices:
        with tf.device(device):
            variables = []
            for rows, columns in zip(layers[:-1], layers[1:], strict=True):
                variables += [tf.Variable(tf.fill(shape, 0.01)) for shape in ([rows, columns], [columns])]
            hidden = tf.Variable(tf.fill([batch, layers[0]], 0.5), trainable=False)
            labels = tf.Variable(tf.fill([batch, layers[-1]], 1.0 / layers[-1]), trainable=False)
            for weights, biases in zip(variables[::2], variables[1::2], strict=True):
                hidden = tf.matmul(tf.nn.relu(hidden), weights) + biases
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=hidden))
            replicas.append(variables)
            gradients.append(tf.gradients(loss, variables))
    means = [tf.collective.all_reduce(list(each), "mean") for each in zip(*gradients, strict=True)]
    optimizer, trained = tf.train.MomentumOptimizer(0.05, 0.9), []
    for number, (device, variables) in enumerate(zip(devices, replicas, strict=True)):
        with tf.device(device):
            trained.append(optimizer.apply_gradients([(mean[number], v) for mean, v in zip(means, variables, strict=True)]))
    with tf.device(devices[0]):
        return tf.group(trained)


def empty_step(devices: Sequence[str]) -> Any:
    """One small operation on each task, whose end all are told of: what a step costs however little it does."""
    ends = []
    for device in devices:
        with tf.device(device):
            ends.append(tf.add(tf.Variable(tf.fill([2], np.float32(1.0))), 1.0))
    return _all(ends, devices)


def _all(ends: Sequence[Any], devices: Sequence[str]) -> Any:
    with tf.device(devices[0]):
        return tf.group([end.op for end in ends])


KIB, MIB = 2**10 // 4, 2**20 // 4  # in floats
CHECKS: dict[str, Build] = {
    "edge, 8 B": partial(edge_step, floats=2),
    "edge, 1 MiB": partial(edge_step, floats=MIB),
    "ring, 8 B": partial(ring_step, floats=2),
    "ring, 256 KiB": partial(ring_step, floats=256 * KIB),
    "stencil, 64 x 64": partial(stencil_step, side=64),
    "stencil, 256 x 256": partial(stencil_step, side=256),
    "tree, 1 KiB": partial(tree_step, floats=KIB),
    "tree, 1 MiB": partial(tree_step, floats=MIB),
    "stencil_1d, width 4": partial(pattern_step, pattern="stencil_1d", width=4),
    "fft, width 8": partial(pattern_step, pattern="fft", width=8),
    "all_to_all, width 8": partial(pattern_step, pattern="all_to_all", width=8),
    "all_reduce, 16 KiB": partial(reduce_step, floats=16 * KIB),
    "all_reduce, 512 KiB": partial(reduce_step, floats=512 * KIB),
    "all_reduce, 8 MiB": partial(reduce_step, floats=8 * MIB),
    "digits, sync": partial(sync_step, layers=DIGITS, batch=64),
    "digits, all-reduce": partial(all_reduce_step, layers=DIGITS, batch=64),
    "784-1024-1024-10, sync": partial(sync_step, layers=MLP, batch=128),
}
ANY = 10**9
ON_PAPER: dict[str, tuple[Build, int]] = {  # and the most ranks: beyond, the graph of all workers takes minutes to build
    "empty step": (empty_step, ANY),
    "all_reduce, 1 KiB": (partial(reduce_step, floats=KIB), ANY),
    "all_reduce, 1 MiB": (partial(reduce_step, floats=MIB), ANY),
    "tree, 1 MiB": (partial(tree_step, floats=MIB), ANY),
    "stencil, 256 x 256": (partial(stencil_step, side=256), ANY),
    "digits, sync": (partial(sync_step, layers=DIGITS, batch=64), 1024),
    "digits, all-reduce": (partial(all_reduce_step, layers=DIGITS, batch=64), 1024),
}
