"""Training written by hand with mpi4py and numpy, as one would for speed: the yardstick of `training.py`.

Nothing is allocated in a step. Forward and backward pass write into buffers made once; the gradients of one ps task lie in
one array and so do its values, so that one message each way carries them; messages are persistent and their receives
posted before they can come. Updates are done on the whole array at once. What lives on one rank is not copied.
Arithmetic and order of the batches are those of `training_graphs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from training_problem import MOMENTUM, PS, WORKERS, Array, Labels, Problem

GRADIENTS, VALUES, DONE = range(3)


class Network:
    """Loss and gradients, into buffers. ``values`` and ``gradients`` are views of what is sent: weights and biases in turn."""

    def __init__(self, problem: Problem, values: Sequence[Array], gradients: Sequence[Array]) -> None:
        batch, sizes = problem.batch, problem.layers[1:]
        self._weights, self._biases = values[::2], values[1::2]
        self._d_weights, self._d_biases = gradients[::2], gradients[1::2]
        self._outputs = [np.empty((batch, size), np.float32) for size in sizes]
        self._deltas = [np.empty((batch, size), np.float32) for size in sizes[:-1]]
        self._masks = [np.empty((batch, size), bool) for size in sizes[:-1]]
        self._ones, self._rows = np.ones(batch, np.float32), np.arange(batch)
        self._by_class, self._sums = np.empty((sizes[-1], batch), np.float32), np.empty((batch, 1), np.float32)
        self._share = np.float32(1 / batch)

    def step(self, images: Array, labels: Labels) -> float:
        """Mean loss of a batch; the gradients are in their buffers."""
        hidden = images
        for weights, biases, output in zip(self._weights, self._biases, self._outputs, strict=True):
            np.matmul(hidden, weights, out=output)
            output += biases
            if output is not self._outputs[-1]:
                np.maximum(output, 0, out=output)
            hidden = output
        delta = self._outputs[-1]
        self._by_class[...] = delta.T  # numpy's largest of each short row is slow, that of each column isn't
        np.maximum.reduce(self._by_class, axis=0, out=self._sums[:, 0])
        delta -= self._sums
        chosen = delta[self._rows, labels]
        np.exp(delta, out=delta)
        np.einsum("ij->i", delta, out=self._sums[:, 0])
        delta /= self._sums
        delta[self._rows, labels] -= 1
        delta *= self._share
        np.log(self._sums, out=self._sums)
        loss = float((self._sums[:, 0] - chosen).mean())
        for i in reversed(range(len(self._outputs))):
            below = self._outputs[i - 1] if i else images
            np.matmul(below.T, delta, out=self._d_weights[i])
            np.matmul(self._ones, delta, out=self._d_biases[i])
            if i:
                np.matmul(delta, self._weights[i].T, out=self._deltas[i - 1])
                np.greater(below, 0, out=self._masks[i - 1])
                delta = np.multiply(self._deltas[i - 1], self._masks[i - 1], out=self._deltas[i - 1])
        return loss

    def accuracy(self, images: Array, labels: Labels) -> float:
        """Share of the images that get the right digit."""
        hidden = images
        for weights, biases in zip(self._weights[:-1], self._biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weights + biases, 0)
        return float(((hidden @ self._weights[-1] + self._biases[-1]).argmax(axis=1) == labels).mean())


class Momentum:
    """Updates ``values`` in place."""

    def __init__(self, values: Array, rate: float) -> None:
        self._values, self._rate = values, np.float32(rate)
        self._sum, self._scratch = np.zeros_like(values), np.empty_like(values)

    def reset(self) -> None:
        self._sum[...] = 0

    def update(self, gradient: Array) -> None:
        self._sum *= np.float32(MOMENTUM)
        self._sum += gradient
        np.multiply(self._sum, self._rate, out=self._scratch)
        self._values -= self._scratch


def _views(flat: Array, problem: Problem, chosen: Sequence[int]) -> dict[int, Array]:
    views, start = {}, 0
    for i in chosen:
        size = int(np.prod(problem.shapes[i]))
        views[i] = flat[start : start + size].reshape(problem.shapes[i])
        start += size
    return views


def _waiter(comm: MPI.Intracomm) -> Callable[[list[Any]], object]:
    """How to wait for persistent requests: by MPI's own wait; ranks that share cores give theirs away meanwhile."""
    testall, rest = MPI.Prequest.Testall, os.sched_yield
    if comm.size <= len(os.sched_getaffinity(0)):
        return MPI.Prequest.Waitall

    def wait(requests: list[Any]) -> None:
        while not testall(requests):
            rest()

    return wait


class _Shards:
    """Buffers and messages of one rank: the values and gradients of each ps task that it or its worker has to do with.

    A gradient message ends with the loss of its batch, a message of values with the mean loss: no message of their own.
    """

    def __init__(self, comm: MPI.Intracomm, problem: Problem, form: str, ps_ranks: Sequence[int], worker_ranks: Sequence[int]) -> None:
        rank, homes = comm.rank, problem.homes()
        self.problem = problem
        self.wait = _waiter(comm)
        self.ps = [p for p in range(PS) if ps_ranks[p] == rank]
        self.worker = worker_ranks.index(rank) if rank in worker_ranks else None
        of = [[i for i, home in enumerate(homes) if home == p] for p in range(PS)]
        sizes = [sum(int(np.prod(problem.shapes[i])) for i in chosen) for chosen in of]

        def flat(p: int) -> Array:
            return np.zeros(sizes[p] + 1, np.float32)

        self.values = [flat(p) for p in range(PS)]
        self.gradients = [[flat(p) for _ in range(WORKERS)] for p in range(PS)]  # by ps task and worker
        self.momentum = {p: Momentum(self.values[p][:-1], problem.rates[form]) for p in self.ps}
        views: dict[int, Array] = {}
        gradient_views: dict[int, Array] = {}
        for p in range(PS):
            views |= _views(self.values[p], problem, of[p])
            if self.worker is not None:
                gradient_views |= _views(self.gradients[p][self.worker], problem, of[p])
        self._views = [views[i] for i in range(len(homes))]
        self.network = Network(problem, self._views, [gradient_views[i] for i in range(len(homes))]) if gradient_views else None
        self.batches = problem.batches[self.worker] if self.worker is not None else []
        self.position = 0

        # A rank has at most one ps task and one worker; so the two ends of a message, and which way it goes, tell what it is.
        assert len(set(ps_ranks)) == PS and len(set(worker_ranks)) == WORKERS, "tasks of one job on one rank"
        self._push, self._pull = comm.Dup(), comm.Dup()
        self.senders = [w for w in range(WORKERS) if worker_ranks[w] != rank] if self.ps else []
        # DONE instead of GRADIENTS says that there will be no more.
        self.gradients_in = [self._push.Recv_init(self.gradients[self.ps[0]][w], worker_ranks[w], MPI.ANY_TAG) for w in self.senders]
        self.values_out = [self._pull.Send_init(self.values[self.ps[0]], worker_ranks[w], VALUES) for w in self.senders]
        far = [p for p in range(PS) if p not in self.ps] if self.worker is not None else []
        self.far_ranks = [ps_ranks[p] for p in far]
        self.gradients_out = [self._push.Send_init(self.gradients[p][self.worker or 0], ps_ranks[p], GRADIENTS) for p in far]
        self.values_in = [self._pull.Recv_init(self.values[p], ps_ranks[p], VALUES) for p in far]
        self.exchange = [*self.gradients_out, *self.values_in]
        self._comm, self._chief = comm, worker_ranks[0]

    def reset(self) -> None:
        """See `Contestant`."""
        self.position = 0
        for view, value in zip(self._views, self.problem.initial(), strict=True):
            view[...] = value
        for momentum in self.momentum.values():
            momentum.reset()

    def accuracy(self) -> float:
        """Of the chief's values."""
        assert self.network is not None and self.problem.test is not None
        return self.network.accuracy(*self.problem.test)

    def accuracy_for_all(self) -> float:
        """Of the chief's values, known to all ranks."""
        return float(self._comm.bcast(self.accuracy() if self._comm.rank == self._chief else None, self._chief))

    def compute(self) -> float:
        """Gradients of the worker's next batch, and its loss."""
        assert self.network is not None
        batch = self.batches[self.position % len(self.batches)]
        self.position += 1
        return self.network.step(*batch)

    def say_done(self) -> None:
        """Tell the ps tasks on other ranks that this worker sends no more gradients."""
        for rank in self.far_ranks:
            self._push.Send(np.empty(0, np.float32), rank, DONE)

    def close(self) -> None:
        """Free the messages."""
        for request in (*self.gradients_in, *self.values_out, *self.gradients_out, *self.values_in):
            request.Free()


class Synchronous:
    """All workers push, the ps tasks average and update, all workers pull."""

    def __init__(self, comm: MPI.Intracomm, problem: Problem, ps_ranks: Sequence[int], worker_ranks: Sequence[int]) -> None:
        self._shards = _Shards(comm, problem, "sync", ps_ranks, worker_ranks)
        self.reset, self.accuracy, self.close = self._shards.reset, self._shards.accuracy_for_all, self._shards.close

    def steps(self, count: int, stop: Callable[[], bool] | None = None) -> list[float]:
        """See `Contestant`."""
        assert stop is None
        shards = self._shards
        wait, start = shards.wait, MPI.Prequest.Startall
        workers, losses = np.float32(WORKERS), []
        if count:
            start(shards.gradients_in)
        for step in range(count):
            if shards.worker is not None:
                start(shards.values_in)
                loss = shards.compute()
                for p in range(PS):
                    shards.gradients[p][shards.worker][-1] = loss
                start(shards.gradients_out)
            if shards.ps:
                wait(shards.gradients_in)
                for p in shards.ps:
                    mean, other = shards.gradients[p]
                    mean += other
                    mean /= workers
                    shards.momentum[p].update(mean[:-1])
                    shards.values[p][-1] = mean[-1]
                start(shards.values_out)
                if step + 1 < count:
                    start(shards.gradients_in)
            if shards.worker is not None:
                wait(shards.exchange)
                losses.append(float(shards.values[0][-1]))
            wait(shards.values_out)
        return losses


class Asynchronous:
    """Workers push and pull when they like; a ps task updates at each gradient that comes."""

    def __init__(self, comm: MPI.Intracomm, problem: Problem, ps_ranks: Sequence[int], worker_ranks: Sequence[int]) -> None:
        self._shards = _Shards(comm, problem, "async", ps_ranks, worker_ranks)
        self.reset, self.accuracy, self.close = self._shards.reset, self._shards.accuracy, self._shards.close
        self._status = MPI.Status()
        self._crowded = comm.size > len(os.sched_getaffinity(0))

    def steps(self, count: int, stop: Callable[[], bool] | None = None) -> list[float]:
        """See `Contestant`."""
        shards, losses = self._shards, []
        MPI.Prequest.Startall(shards.gradients_in)
        self._open = len(shards.gradients_in)
        testall = MPI.Prequest.Testall
        if shards.worker is not None:
            for _ in range(count):
                if stop is not None and stop():
                    break
                MPI.Prequest.Startall(shards.values_in)
                losses.append(shards.compute())
                MPI.Prequest.Startall(shards.gradients_out)
                for p in shards.ps:
                    self._update(p, shards.worker)
                while not testall(shards.exchange):
                    self._serve()
            shards.say_done()
        while self._open:
            self._serve()
        shards.wait(shards.values_out)
        return losses

    def _serve(self) -> None:
        """Apply a gradient that has come from another rank, if one has, and answer with the values."""
        shards, status = self._shards, self._status
        if self._open:
            index, came = MPI.Prequest.Testany(shards.gradients_in, status)
            if came:
                if status.tag == DONE:
                    self._open -= 1
                    return
                self._update(shards.ps[0], shards.senders[index])
                shards.values_out[index].Start()
                shards.gradients_in[index].Start()
                return
        if self._crowded:
            os.sched_yield()

    def _update(self, p: int, worker: int) -> None:
        shards = self._shards
        shards.wait(shards.values_out)  # the last answers have left: their array changes now
        shards.momentum[p].update(shards.gradients[p][worker][:-1])


class AllReduce:
    """Each rank has all variables; the gradients, one array, are averaged by MPI's Allreduce in place."""

    def __init__(self, comm: MPI.Intracomm, problem: Problem, worker_ranks: Sequence[int]) -> None:
        size, everything = sum(int(np.prod(s)) for s in problem.shapes), range(len(problem.shapes))
        self._problem, self._comm = problem, comm
        self._worker = worker_ranks.index(comm.rank)
        self._values, self._gradients = np.zeros(size, np.float32), np.zeros(size + 1, np.float32)
        self._views = list(_views(self._values, problem, everything).values())
        self._network = Network(problem, self._views, list(_views(self._gradients, problem, everything).values()))
        self._momentum = Momentum(self._values, problem.rates["all-reduce"])
        self._position = 0

    def reset(self) -> None:
        """See `Contestant`."""
        self._position = 0
        self._momentum.reset()
        for view, value in zip(self._views, self._problem.initial(), strict=True):
            view[...] = value

    def accuracy(self) -> float:
        """See `Contestant`."""
        assert self._problem.test is not None
        return self._network.accuracy(*self._problem.test)

    def steps(self, count: int, stop: Callable[[], bool] | None = None) -> list[float]:
        """See `Contestant`."""
        assert stop is None
        batches, gradients, workers, losses = self._problem.batches[self._worker], self._gradients, np.float32(WORKERS), []
        for step in range(self._position, self._position + count):
            gradients[-1] = self._network.step(*batches[step % len(batches)])
            self._comm.Allreduce(MPI.IN_PLACE, gradients)
            gradients /= workers
            self._momentum.update(gradients[:-1])
            losses.append(float(gradients[-1]))
        self._position += count
        return losses

    def close(self) -> None:
        """Nothing is held."""
