"""The training graphs of `training.py`, as TensorFlow 1 scripts write them; ``tf`` is mpirt or tensorflow.compat.v1.

Both contestants run this very code. Synchronous: one graph with a tower for each worker, whose gradients are averaged where
the variable is. Asynchronous: each worker its own graph and session, the variables shared. All-reduce: a replica of the
variables on each worker, gradients averaged by a collective operation (mpirt only).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from training_problem import MOMENTUM, PS, WORKERS, Problem


def _network(tf: Any, images: Any, layers: Sequence[tuple[Any, Any]]) -> Any:
    hidden = images
    for weights, biases in layers[:-1]:
        hidden = tf.nn.relu(tf.matmul(hidden, weights) + biases)
    weights, biases = layers[-1]
    return tf.matmul(hidden, weights) + biases


def _loss(tf: Any, logits: Any, labels: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def _pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


class Graph:
    """What the forms share: variables, placeholders of a batch, resetting, the accuracy."""

    def __init__(self, tf: Any, problem: Problem, form: str) -> None:
        self.tf, self.problem = tf, problem
        self._scope = f"{form}_{problem.name}"  # servers share variables by name
        self.session: Any = None
        self.optimizer = tf.train.MomentumOptimizer(problem.rates[form], MOMENTUM, use_locking=True)
        self.test = tf.placeholder(tf.float32, [None, problem.layers[0]]), tf.placeholder(tf.int64, [None])
        self.initial = [tf.placeholder(tf.float32, shape) for shape in problem.shapes]
        self.fetches: Any = None
        self.holders: list[Any] = []  # what a step is given, and that of each step
        self.batches: list[list[Any]] = []
        self._call: Any = None
        self._position = 0

    def variables(self, scope: str = "") -> list[Any]:
        """The variables of one replica."""
        return [
            self.tf.get_variable(f"{self._scope}{scope}/variable{i}", shape, initializer=self.tf.zeros_initializer())
            for i, shape in enumerate(self.problem.shapes)
        ]

    def batch(self) -> tuple[Any, Any]:
        """Placeholders of one worker's batch."""
        tf, problem = self.tf, self.problem
        return tf.placeholder(tf.float32, [problem.batch, problem.layers[0]]), tf.placeholder(tf.int64, [problem.batch])

    def finish(self, *replicas: list[Any]) -> None:
        """Add what sets the variables back and what measures the accuracy of the first of the ``replicas``."""
        tf = self.tf
        assigned = [tf.assign(v, value) for values in replicas for v, value in zip(values, self.initial, strict=True)]
        slots = [self.optimizer.get_slot(v, "momentum").initializer for values in replicas for v in values]
        self.reset_all = tf.group(*assigned, *slots)
        images, labels = self.test
        with tf.device("/job:worker/task:0"):
            right = tf.equal(tf.argmax(_network(tf, images, _pairs(replicas[0])), 1), labels)
            self.right = tf.reduce_mean(tf.cast(right, tf.float32))
        self.initialize = tf.global_variables_initializer()

    def reset(self) -> None:
        """See `Contestant`."""
        self._position = 0
        self.session.run(self.reset_all, dict(zip(self.initial, self.problem.initial(), strict=True)))

    def accuracy(self) -> float:
        """See `Contestant`."""
        return float(self.session.run(self.right, dict(zip(self.test, self.problem.test or (), strict=True))))

    def steps(self, count: int, stop: Callable[[], bool] | None = None) -> list[float]:
        """See `Contestant`."""
        if self._call is None:
            self._call = self.session.make_callable(self.fetches, self.holders)
        call, batches, losses = self._call, self.batches, []
        for step in range(self._position, self._position + count):
            if stop is not None and stop():
                break
            losses.append(call(*batches[step % len(batches)])[0])
        self._position += len(losses)
        return list(map(float, losses))


def _ps_setter(tf: Any, problem: Problem, worker: str) -> Any:
    homes = problem.homes()

    def home(op: Any) -> int:
        number = re.search(r"/variable(\d+)", op.name)
        return homes[int(number[1])] if number else 0  # the global step

    return tf.train.replica_device_setter(ps_tasks=PS, worker_device=worker, ps_strategy=home)


class Synchronous(Graph):
    """One step trains on the batches of all workers."""

    def __init__(self, tf: Any, problem: Problem) -> None:
        super().__init__(tf, problem, "sync")
        with tf.device(_ps_setter(tf, problem, "/job:worker/task:0")):
            variables = self.variables()
            step = tf.train.get_or_create_global_step()
        losses, gradients = [], []
        for worker in range(WORKERS):
            with tf.device(f"/job:worker/task:{worker}"):
                images, labels = self.batch()
                self.holders += [images, labels]
                losses.append(_loss(tf, _network(tf, images, _pairs(variables)), labels))
                gradients.append(self.optimizer.compute_gradients(losses[-1], variables))
        averaged = []
        for towers in zip(*gradients, strict=True):
            variable = towers[0][1]
            with tf.device(variable.device):
                averaged.append((tf.add_n([gradient for gradient, _ in towers]) / WORKERS, variable))
        train = self.optimizer.apply_gradients(averaged, global_step=step)
        with tf.device("/job:worker/task:0"):
            self.fetches = [tf.add_n(losses) / WORKERS, train]
        self.finish(variables)
        self.batches = [[array for batch in parts for array in batch] for parts in zip(*problem.batches, strict=True)]


class Asynchronous(Graph):
    """One worker's graph: it reads the variables, and its gradients are applied as they come."""

    def __init__(self, tf: Any, problem: Problem, worker: int) -> None:
        super().__init__(tf, problem, "async")
        with tf.device(_ps_setter(tf, problem, f"/job:worker/task:{worker}")):
            variables = self.variables()
            step = tf.train.get_or_create_global_step()
            images, labels = self.batch()
            loss = _loss(tf, _network(tf, images, _pairs(variables)), labels)
            train = self.optimizer.minimize(loss, global_step=step, var_list=variables)
            self.fetches = [loss, train]
        self.finish(variables)
        self.holders, self.batches = [images, labels], [list(batch) for batch in problem.batches[worker]]


class AllReduce(Graph):
    """A replica of the variables on each worker, trained alike."""

    def __init__(self, tf: Any, problem: Problem) -> None:
        super().__init__(tf, problem, "all-reduce")
        replicas, losses, gradients = [], [], []
        for worker in range(WORKERS):
            with tf.device(f"/job:worker/task:{worker}"):
                replicas.append(self.variables(f"_{worker}"))
                images, labels = self.batch()
                self.holders += [images, labels]
                losses.append(_loss(tf, _network(tf, images, _pairs(replicas[-1])), labels))
                gradients.append([gradient for gradient, _ in self.optimizer.compute_gradients(losses[-1], replicas[-1])])
        means = [tf.collective.all_reduce(list(towers), "mean") for towers in zip(*gradients, strict=True)]
        trained = []
        for worker, variables in enumerate(replicas):
            with tf.device(f"/job:worker/task:{worker}"):
                own = [mean[worker] for mean in means]
                trained.append(self.optimizer.apply_gradients(zip(own, variables, strict=True)))
        mean_loss = tf.collective.all_reduce(losses, "mean")
        with tf.device("/job:worker/task:0"):
            self.fetches = [mean_loss[0], *trained]
        self.finish(*replicas)
        self.batches = [[array for batch in parts for array in batch] for parts in zip(*problem.batches, strict=True)]
